"""Keys of two kinds: where they come from, what each opens, and that none is shown."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from coe.server.api.keys import Keys, forget_keys, key_variables, made_keys, read_keys, readable_by_others
from coe.server.roster.models import Roster
from fakes.college import SAID, Asking, FakeLease, ServedCollege, post

KEYS = Keys(frozenset({"chat-key"}), frozenset({"admin-key"}))
VARIABLES = ("COE_API_KEYS", "COE_ADMIN_KEYS", "CHATTING", "RUNNING")


def roster(folder: Path, **server: Any) -> Roster:
    made = Roster.model_validate({"specialists": [], "server": server})
    made._path = folder / "roster.yaml"
    return made


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


async def status(path: str, key: str | None, keys: Keys, method: str = "POST") -> tuple[int, str]:
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    client = Asking(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode(), headers)
    await post(ServedCollege([FakeLease([SAID], "math")]), client, path, keys=keys, method=method)
    said = client.body.decode()
    assert not any(known in said for known in (*keys.chat, *keys.admin))
    return client.got[0]["status"], said


async def test_a_key_for_asking_asks_and_looks() -> None:
    assert (await status("/v1/chat/completions", "chat-key", KEYS))[0] == 200
    assert (await status("/metrics", "chat-key", KEYS, "GET"))[0] == 200


@pytest.mark.parametrize("path", ["/v1/pool/unload", "/v1/builds/math", "/v1/whatever/comes"])
async def test_a_key_for_asking_changes_nothing(path: str) -> None:
    code, said = await status(path, "chat-key", KEYS)
    assert code == 403
    assert "admin_keys_env" in said
    code, said = await status(path, "chat-key", Keys(frozenset({"chat-key"})))
    assert code == 403, "where no other key is set, too"
    assert "COE_ADMIN_KEYS" in said


@pytest.mark.parametrize(
    ("path", "code"), [("/v1/responses/resp_1", 404), ("/v1/responsesX", 403), ("/v1/builds/math", 403)]
)
async def test_a_key_for_asking_forgets_what_it_has_stored_and_nothing_else(path: str, code: int) -> None:
    assert (await status(path, "chat-key", KEYS, "DELETE"))[0] == code


async def test_a_key_for_administering_does_both() -> None:
    assert (await status("/v1/chat/completions", "admin-key", KEYS))[0] == 200
    assert (await status("/v1/nothing", "admin-key", KEYS))[0] == 404, "it comes as far as the router"


@pytest.mark.parametrize("keys", [KEYS, Keys(frozenset({"chat-key"})), Keys(admin=frozenset({"admin-key"}))])
@pytest.mark.parametrize("key", [None, "chat-ke", "chat-key2", "nobody", ""])
async def test_as_soon_as_there_is_any_key_every_path_wants_one(keys: Keys, key: str | None) -> None:
    for path in ("/v1/chat/completions", "/v1/pool/unload"):
        assert (await status(path, key, keys))[0] == 401
    assert (await status("/metrics", key, keys, "GET"))[0] == 401
    assert (await status("/health", key, keys, "GET"))[0] == 200


def test_keys_of_each_kind_come_from_their_own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATTING", "a, b")
    (tmp_path / "admins").write_text("# of the house\nc\n")
    keys = read_keys(roster(tmp_path, api_keys_env="CHATTING", admin_keys_file="admins"))
    assert (keys.chat, keys.admin) == ({"a", "b"}, {"c"})


def test_without_a_word_in_the_roster_the_usual_variables_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COE_API_KEYS", "a")
    monkeypatch.setenv("COE_ADMIN_KEYS", "b")
    keys = read_keys(roster(tmp_path))
    assert (keys.chat, keys.admin) == ({"a"}, {"b"})
    monkeypatch.setenv("CHATTING", "c")
    assert read_keys(roster(tmp_path, api_keys_env="CHATTING")).chat == {"c"}
    monkeypatch.setenv("COE_API_KEYS", " ,")
    monkeypatch.setenv("COE_ADMIN_KEYS", "")
    assert not read_keys(roster(tmp_path))


@pytest.mark.parametrize("setting", ["api_keys", "admin_keys"])
def test_a_place_that_is_named_and_holds_nothing_is_an_error(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ValueError, match=f"server.{setting}_env names RUNNING"):
        read_keys(roster(tmp_path, **{f"{setting}_env": "RUNNING"}))
    with pytest.raises(ValueError, match=f"server.{setting}_file: .* cannot be read"):
        read_keys(roster(tmp_path, **{f"{setting}_file": "none"}))
    (tmp_path / "bytes").write_bytes(b"s\xe9cret\n")
    with pytest.raises(ValueError, match=f"server.{setting}_file: .* is not UTF-8") as error:
        read_keys(roster(tmp_path, **{f"{setting}_file": "bytes"}))
    assert "cret" not in str(error.value)


def test_keys_that_were_read_are_gone_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "x")
    named = roster(tmp_path, api_keys_env="CHATTING", admin_keys_env="RUNNING")
    assert set(key_variables(named)) == set(VARIABLES)
    forget_keys(named)
    with pytest.raises(ValueError, match="CHATTING"):
        read_keys(named)


def test_keys_are_not_shown_even_where_they_are_printed() -> None:
    assert "key'" not in repr(KEYS)
    assert "-key" not in f"{KEYS} {KEYS!r}"


def test_files_of_keys_that_others_can_read_are_found(tmp_path: Path) -> None:
    for name, mode in (("open", 0o644), ("closed", 0o600)):
        (tmp_path / name).write_text("a\n")
        (tmp_path / name).chmod(mode)
    assert readable_by_others(roster(tmp_path, api_keys_file="open", admin_keys_file="closed")) == [tmp_path / "open"]


def test_made_keys_are_the_users_alone_and_the_same_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    keys, files = made_keys()
    assert keys.chat.isdisjoint(keys.admin)
    assert all(len(key) > 40 for key in (*keys.chat, *keys.admin))
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700
    for place, wide in ((files[0], 0o644), (files[0].parent, 0o755)):
        place.chmod(wide)
    assert made_keys()[0] == keys
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700
