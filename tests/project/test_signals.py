"""What the caller of pytest ignores or blocks is of no account."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INHERITED = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD)

# What a shell in the background, a supervisor that reaps no children, or a careless parent leaves behind.
CARELESS = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def bit(number: signal.Signals) -> int:
    return 1 << (number - 1)


def test_an_interrupt_is_a_keyboard_interrupt() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_children_begin_with_the_defaults() -> None:
    command = ["cat", "/proc/self/status"]  # no Python, which ignores SIGPIPE by itself

    async def by_asyncio() -> str:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0].decode()

    by_subprocess = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for status in (by_subprocess, asyncio.run(by_asyncio())):
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        for number in INHERITED:
            assert not int(fields["SigIgn"], 16) & bit(number), number
            assert not int(fields["SigBlk"], 16) & bit(number), number


@pytest.mark.slow
@pytest.mark.parametrize(
    "caller",
    [
        pytest.param(["bash", "-c", 'trap "" INT TERM PIPE; exec "$0" "$@"', sys.executable], id="shell"),
        pytest.param([sys.executable, "-c", CARELESS], id="careless parent"),
    ],
)
def test_what_the_caller_ignores_or_blocks_is_of_no_account(caller: list[str]) -> None:
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", str(Path(__file__))]
    run = subprocess.run([*caller, *tests], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 passed" in run.stdout
