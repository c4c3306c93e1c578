"""Who reaches a server: its keys where others do, the names that it answers to, and what a person is told of them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from coe.server.api.keys import Keys
from coe.server.api.origin import Doors
from coe.server.commands._exposure import Opened, exposure, own_names
from coe.server.roster.models import ServerSection

NONE, SOME = Keys(), Keys(frozenset({"mine"}))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where keys are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "coe"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_addresses_that_only_this_machine_reaches(address: str, state: Path) -> None:
    found = exposure(ServerSection(), address, address, NONE, Opened())
    assert (found.keys, found.made, found.warning) == (NONE, (), "")
    assert not state.exists()


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "fe80::1%eth0", "::ffff:10.0.0.1"])
def test_where_others_reach_it_a_server_without_keys_has_keys_of_its_own(address: str, state: Path) -> None:
    found = exposure(ServerSection(), address, address, NONE, Opened())
    assert found.keys
    assert found.keys.admin
    assert set(found.made) == {state / "api-key", state / "admin-key"}
    again = exposure(ServerSection(), address, address, NONE, Opened())
    assert again.keys == found.keys


def test_keys_that_are_set_are_left_as_they_are(state: Path) -> None:
    found = exposure(ServerSection(), "0.0.0.0", "0.0.0.0", SOME, Opened())
    assert (found.keys, found.made, found.warning) == (SOME, (), "")
    assert not state.exists()


@pytest.mark.parametrize(
    ("settings", "opened"), [(ServerSection(insecure=True), Opened()), (ServerSection(), Opened(insecure=True))]
)
def test_doing_without_keys_takes_a_word_and_has_a_loud_warning(settings: ServerSection, opened: Opened) -> None:
    found = exposure(settings, "0.0.0.0", "0.0.0.0", NONE, opened)
    assert not found.keys
    assert "NO KEYS" in found.warning
    assert exposure(settings, "127.0.0.1", "127.0.0.1", NONE, opened).warning == "", "on the loopback it is no news"


def test_a_state_folder_that_cannot_be_written_is_an_error_with_the_remedies(state: Path) -> None:
    state.write_text("a file in its place")
    with pytest.raises(OSError, match=r"COE_API_KEYS.*--insecure"):
        exposure(ServerSection(), "0.0.0.0", "0.0.0.0", NONE, Opened())


def test_a_key_is_printed_for_a_terminal_and_nowhere_else() -> None:
    found = exposure(ServerSection(), "0.0.0.0", "0.0.0.0", NONE, Opened())
    (chat,), (admin,) = found.keys.chat, found.keys.admin
    assert chat in "\n".join(found.key_lines(shown=True))
    assert admin not in "\n".join(found.key_lines(shown=True))
    hidden = "\n".join(found.key_lines(shown=False))
    assert chat not in hidden
    assert str(found.made[0]) in hidden
    assert str(found.made[1]) in hidden
    assert exposure(ServerSection(), "0.0.0.0", "0.0.0.0", SOME, Opened()).key_lines(shown=True) == []


def test_it_answers_to_its_own_names_and_to_those_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Box.office.example")
    assert own_names() == ("box.office.example", "box", "box.local")
    settings = ServerSection(allowed_hosts=("coe.example.org",))
    found = exposure(settings, "listens.example", "127.0.0.1", NONE, Opened(("coe",)))
    doors = Doors(found.hosts)
    for name in ("box", "box.local", "box.office.example", "coe.example.org", "listens.example", "coe", "localhost"):
        assert doors.refusal("GET", [(b"host", f"{name}:8000".encode())]) is None, name
    assert doors.refusal("GET", [(b"host", b"office.example")]) is not None


def test_to_listen_everywhere_is_not_to_answer_to_any_name() -> None:
    doors = Doors(exposure(ServerSection(), "*", "0.0.0.0", SOME, Opened()).hosts)
    assert doors.refusal("GET", [(b"host", b"rebound.example")]) is not None
    told = Doors(exposure(ServerSection(), "*", "0.0.0.0", SOME, Opened(("*",))).hosts)
    assert told.refusal("GET", [(b"host", b"rebound.example")]) is None
