"""The one that writes a client's settings and starts it: in the user's folder, at the user's terminal."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from coe.engine.files import cache_folder, private_folder

from ...api.keys import ADMIN_VARIABLE, CHAT_VARIABLE
from .values import TEMPORARY, Place, Settings

_TRIES: Final = 5  # to remove a folder that something still writes to
_TAKEN: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def temporary_place(*, outside_tmp: bool = False) -> Iterator[Place]:
    """A folder of a client's own, the user's alone, that is gone after the block.

    outside_tmp: within the user's cache, for a client that trusts no folder for temporary files.
    """
    parent: Path | None = None
    if outside_tmp:
        parent = cache_folder()
        private_folder(parent)
    # Links in the path (macOS) are followed now: clients compare it with the folders that they find.
    folder = Path(tempfile.mkdtemp(prefix="coe-launch-", dir=parent)).resolve()
    try:
        (folder / TEMPORARY).mkdir()
        yield place_of(folder, os.environ)
    finally:
        _remove(folder)


def place_of(folder: Path, environment: Mapping[str, str]) -> Place:
    """A folder, with what of the user's is to stay in reach."""
    home = Path.home()
    named = environment.get("GIT_CONFIG_GLOBAL")
    xdg = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "git" / "config"
    found = (Path(named),) if named else (home / ".gitconfig", xdg)
    git_config = next((path for path in found if path.is_file()), None)
    return Place(folder, home, git_config, secrets.token_urlsafe(32))


def _remove(folder: Path) -> None:
    """What a client has left running may write meanwhile: some tries, and what is left then is left."""
    for _ in range(_TRIES):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)


def write_files(files: Mapping[Path, str]) -> None:
    """Write a client's files, for the user alone: a key stands in them. Raises OSError."""
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")


def environment_of(settings: Settings, base: Mapping[str, str]) -> dict[str, str]:
    """What a client gets of an environment. Not the server's keys: it has its own, and runs what a model asks it to."""
    kept = {name: value for name, value in base.items() if name not in (CHAT_VARIABLE, ADMIN_VARIABLE)}
    for name, value in settings.environment.items():
        if value is None:
            kept.pop(name, None)
        else:
            kept[name] = value
    return kept


def run(executable: str, settings: Settings, arguments: Sequence[str]) -> int:
    """Start a client and wait for its end. Returns its exit code; 128 and the signal's number where one ended it.

    It has the terminal, and so gets a Ctrl-C itself. Raises OSError where it cannot be started.
    """
    command = [executable, *settings.argv[1:], *arguments]
    with _ended_by_its_client() as signals:
        process = subprocess.Popen(command, env=environment_of(settings, os.environ))
        signals.go_to(process)
        code = process.wait()
    return 128 - code if code < 0 else code


class _Signals:
    """What this process is sent while its client runs. A Ctrl-C reaches the client through the terminal, and is not
    passed on; the others are sent to this process alone, and are."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def go_to(self, process: subprocess.Popen[bytes]) -> None:
        """From now on to this process, with what came before it was there."""
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def take(self, number: int, frame: FrameType | None) -> None:
        """A handler, for a client would inherit SIG_IGN."""
        if number == signal.SIGINT:
            return
        if self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)


@contextmanager
def _ended_by_its_client() -> Iterator[_Signals]:
    """While the block lasts, this process outlives the signals that end its client, to clean up after it. One that is
    ignored already (nohup) stays so, for the client as well."""
    signals = _Signals()
    taken = [number for number in _TAKEN if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signals.take) for number in taken}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
