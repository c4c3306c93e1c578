"""Files that somebody names: only regular ones are read, and never is one waited for."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from coe.engine.files import open_regular, read_bounded, remember_sha256, sha256_of


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has 107 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_fifo, "It is a named pipe"),
        (_socket, "It is a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "It is a device"),
        (lambda path: path.symlink_to("nowhere"), "It is a link to nowhere, which is not there"),
        (lambda path: path.mkdir(), "It is a folder"),
        (lambda path: None, "No such file"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
    ],
)
def test_what_is_no_file_is_named_at_once(tmp_path: Path, make: Callable[[Path], None], why: str) -> None:
    path = tmp_path / "model.gguf"
    make(path)
    with pytest.raises(OSError, match=why):
        open_regular(path)


def test_a_name_that_cannot_be_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="No path can be called so"):
        open_regular(Path("a\0b"))


def test_a_file_beyond_its_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10))
    assert read_bounded(path, 10) == bytes(10)
    with pytest.raises(OSError, match="larger"):
        read_bounded(path, 9)


def test_another_file_of_the_same_name_has_another_hash(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    before = sha256_of((path,))
    path.write_bytes(b"two, longer")
    assert sha256_of((path,)) != before


def test_a_hash_that_is_known_is_given_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "x"
    path.write_bytes(b"stands for another")
    remember_sha256((path,), "0" * 64)
    assert sha256_of((path,)) == "0" * 64
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1, "other processes know it as well"
    path.write_bytes(b"is itself again")
    assert sha256_of((path,)) == hashlib.sha256(b"is itself again").hexdigest()
