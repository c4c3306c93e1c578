"""What stays with the user: secrets that no child process gets, telemetry that is off, and modes of files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from coe.engine.files import make_private, private_folder, share_like, shared_folder, written_beside
from coe.engine.private import (
    NO_TELEMETRY,
    child_environment,
    keep_private,
    make_files_private,
    without_secrets,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """One that a user may have."""
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "OPENAI_API_KEY", "COE_API_KEYS", "COE_ADMIN_KEYS",
        "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "GH_PAT", "DB_PASSWORD",
        "PGPASSWORD", "MYSQL_PASSWD", "GOOGLE_APPLICATION_CREDENTIALS", "SSH_PRIVATE_KEY", "api_key", "APIKEY",
        "SERVER_KEY", "NPM_AUTH", "SESSION_COOKIE", "TOKEN", "GPG_PASSPHRASE",
        "MYSQL_PWD", "SENTRY_DSN", "SLACK_WEBHOOK_URL", "DOCKER_AUTH_CONFIG", "SSH_AUTH_SOCK", "JWT", "AUTHORIZATION",
    ],
)  # fmt: skip
def test_no_child_gets_keys_tokens_or_passwords(name: str) -> None:
    given = child_environment({name: "secret", "HOME": "/x"})
    assert "secret" not in given.values()
    assert given["HOME"] == "/x"


@pytest.mark.parametrize(
    "value",
    [
        "Bearer 1a2b3c4d",
        "sk-proj-abcdefghijkl",
        "hf_abcdefghijklmnop",
        "ghp_0123456789abcdef",
        "eyJhbGciOiJIUzI1.e30.x",
    ],
)
def test_no_child_gets_what_is_a_token_by_its_form(value: str) -> None:
    assert "MINE" not in child_environment({"MINE": value})


@pytest.mark.parametrize("url", ["http://me:secret@proxy:3128", "postgres://u:secret@db/x", "socks5h://:secret@p"])
def test_no_child_gets_a_url_with_a_password(url: str) -> None:
    assert "secret" not in str(child_environment({"https_proxy": url, "DATABASE_URL": url}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PATH", "/bin:/usr/bin"), ("LD_LIBRARY_PATH", "/usr/lib"), ("CUDA_VISIBLE_DEVICES", "0"), ("HOME", "/root"),
        ("TOKENIZERS_PARALLELISM", "false"), ("XDG_CACHE_HOME", "/c"), ("PYTHONPATH", "/p"), ("GGML_CUDA_P2P", "1"),
        ("KEYBOARD", "us"), ("MONKEY", "x"), ("http_proxy", "http://proxy:3128"), ("LC_ALL", "C.UTF-8"),
        ("OMP_NUM_THREADS", "2"), ("HF_HOME", "/h"), ("PATTERN", "x"), ("AUTHOR", "x"),
        ("PWD", "/x"), ("OLDPWD", "/x"), ("XAUTHORITY", "/x"), ("TASK", "sk-"), ("MODEL", "hf_home"),
    ],
)  # fmt: skip
def test_a_child_gets_what_it_has_use_for(name: str, value: str) -> None:
    assert child_environment({name: value})[name] == value


def test_telemetry_is_off_here_and_in_children_whatever_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NO_TELEMETRY:
        monkeypatch.setenv(name, "0")
    assert child_environment(os.environ).items() >= NO_TELEMETRY.items()
    keep_private()
    assert {name: os.environ[name] for name in NO_TELEMETRY} == NO_TELEMETRY
    assert {"ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"} <= NO_TELEMETRY.keys()


def test_a_private_folder_and_its_files_are_the_users_alone(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "a" / "b"
    private_folder(folder)
    assert mode(folder) == 0o700
    with written_beside(folder / "file", private=True) as beside:
        assert mode(beside) == 0o600, "before anything is in it"
        beside.write_text("x")
        assert mode(beside) == 0o600
    assert mode(folder / "file") == 0o600
    make_private(folder / "log")
    assert mode(folder / "log") == 0o600


def test_a_folder_that_was_open_to_others_is_closed_and_keeps_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o775)
    (folder / "file").write_text("kept")
    private_folder(folder)
    assert mode(folder) == 0o700
    (folder / "file").chmod(0o644)
    make_private(folder / "file")
    assert (mode(folder / "file"), (folder / "file").read_text()) == (0o600, "kept")


def test_a_released_model_is_as_open_as_what_it_was_made_of(tmp_path: Path) -> None:
    former = make_files_private()
    try:
        (tmp_path / "models").mkdir()
        (tmp_path / "models").chmod(0o755)
        shared_folder(tmp_path / "models" / "built" / "deep")
        (parent := tmp_path / "parent.gguf").touch()
        for given, gets in ((0o644, 0o644), (0o600, 0o600), (0o640, 0o640), (0o444, 0o644), (0o755, 0o644)):
            parent.chmod(given)
            (made := tmp_path / f"{given}.gguf").touch()
            assert mode(made) == 0o600
            share_like(made, parent)
            assert mode(made) == gets
    finally:
        os.umask(former)
    assert mode(tmp_path / "models" / "built") == mode(tmp_path / "models" / "built" / "deep") == 0o755
    (tmp_path / "closed").mkdir(0o700)
    shared_folder(tmp_path / "closed" / "built")
    assert mode(tmp_path / "closed" / "built") == 0o700


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "The hub at https://me:pass@mirror.example:8443/hf is gone.",
            "The hub at https://mirror.example:8443/hf is gone.",
        ),
        ("GET https://cdn.example/a.gguf?X-Amz-Signature=ab&x=1 failed", "GET https://cdn.example/a.gguf?*** failed"),
        ("url 'https://cdn.example/a?sig=ab'", "url 'https://cdn.example/a?***'"),
        ("authorization: Bearer abc.def", "authorization: Bearer ***"),
        ("the token hf_abcdefghij is refused", "the token *** is refused"),
        ("See https://huggingface.co/owner/name (gated)", "See https://huggingface.co/owner/name (gated)"),
        ("hf_hub is a package, and is it so? Yes", "hf_hub is a package, and is it so? Yes"),
    ],
)
def test_what_opens_something_is_left_out_of_a_text(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
