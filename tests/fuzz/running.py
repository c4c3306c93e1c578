"""Running one command in a forked child within limits, and judging how it ended."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WITHIN_S: Final = 60.0
_PATIENCE: Final = {"train-router": 4, "build": 4}  # how many times that: minutes of honest work on a busy machine
MOST_BYTES: Final = 3 * 2**30
_MOST_FILE_BYTES: Final = 2**29
KEPT_ASIDE: Final = 3  # the exit code of a build that does not release its specialist
_EXITS: Final = (0, 1, 2, KEPT_ASIDE)
_SERVES: Final = b"Stop:"  # the beginning of the last line that a server announces itself with
_LOOK_S: Final = 0.1
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


# Imported before the first fork, so that a command begins at once. None of them may load ggml: a library of a GPU does
# not survive a fork.
_BEFOREHAND: Final = (
    "coe.server.cli",
    "coe.server.commands.pull.command",
    "coe.server.commands.route",
    "coe.surgery.plan.planning",
    "coe.surgery.study.inspect",
)


def prepare() -> None:
    """Import what all commands need; to be called once, before `run`."""
    for name in _BEFOREHAND:
        importlib.import_module(name)
    assert "llama_cpp" not in sys.modules


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or the negative number of a signal; None where it had to be killed."""

    code: int | None
    output: str
    peak_bytes: int

    @property
    def fault(self) -> str:
        """What is wrong with that; "" for nothing."""
        if self.code is None:
            return f"did not end in {WITHIN_S:.0f} s"
        if self.code < 0:
            return f"was ended by signal {-self.code}"
        if "Traceback (most recent call last)" in self.output:
            return "printed a stack"
        if self.code not in _EXITS:
            return f"ended with {self.code}"
        if self.code and not self.output.strip():
            return f"ended with {self.code} and not a word"
        if self.peak_bytes > MOST_BYTES:
            return f"took {self.peak_bytes / 2**30:.1f} GiB"
        if (found := _CONTROL.search(self.output)) is not None:
            return f"printed the control character {found[0]!r}"
        return ""


def coe(arguments: Sequence[str]) -> None:
    """The command line, in this process; a head is fitted on the case's own few prompts."""
    from coe.router import training_prompts
    from coe.server.cli import app

    training_prompts.PROMPTS = Path("prompts")
    app(list(arguments), prog_name="coe")


def run(arguments: Sequence[str], folder: Path, *, main: Callable[[Sequence[str]], None] = coe) -> Ended:
    """Run `coe` with these arguments in a folder; it and all its children are gone when this returns.

    A server is told to stop, as by Ctrl-C, once it has announced itself.
    """
    log = folder / "output.txt"
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _in_child(arguments, folder, log, main)
        finally:
            os._exit(code)
    expired = threading.Event()

    def give_up() -> None:
        expired.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    over = threading.Event()

    def stop_server() -> None:
        while not over.wait(_LOOK_S):
            if log.exists() and _SERVES in log.read_bytes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
                return

    within_s = WITHIN_S * max(_PATIENCE.get(argument, 1) for argument in ("", *arguments[:1]))
    timer = threading.Timer(within_s, give_up)
    timer.start()
    stopping = threading.Thread(target=stop_server)
    if "serve" in arguments[:1]:
        stopping.start()
    _, status, usage = os.wait4(pid, 0)
    over.set()
    timer.cancel()
    if stopping.ident is not None:
        stopping.join()
    code = None if expired.is_set() else os.waitstatus_to_exitcode(status)
    output = log.read_text(errors="surrogateescape") if log.exists() else ""
    return Ended(code, output, usage.ru_maxrss * 1024)


def _in_child(arguments: Sequence[str], folder: Path, log: Path, main: Callable[[Sequence[str]], None]) -> int:
    os.setpgid(0, 0)
    os.chdir(folder)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False, errors="surrogateescape") for fd in (1, 2))
    os.environ.update(
        XDG_CACHE_HOME=str(folder / "cache"),
        TMPDIR=str(folder),
        HF_ENDPOINT="http://127.0.0.1:9",  # nothing serves there: nothing is asked of the network
        COLUMNS="200",
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_FILE_BYTES, _MOST_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
