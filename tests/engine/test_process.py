"""What a process is told of its own memory, by Linux and macOS."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from coe.engine.process import rss_bytes

RESIDENT_AT = 64  # of macOS's struct rusage_info_v0: after an uuid of 16 bytes and six numbers of 8


def test_the_resident_memory_of_this_process_and_of_another_is_known() -> None:
    child = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1)
    assert child.stdout is not None
    child.stdout.readline()  # it runs
    try:
        assert 2**20 < rss_bytes(child.pid) < rss_bytes() == pytest.approx(rss_bytes(os.getpid()), rel=0.1)
    finally:
        child.communicate(b"\n")
    assert rss_bytes(child.pid) == 0, "it is gone"


class TestMacOS:
    """Asked of a library that stands in for its own."""

    @pytest.fixture
    def resident(self, monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
        """Bytes by process; those that are not named are refused."""
        known: dict[int, int] = {}

        def proc_pid_rusage(pid: int, flavor: int, info: Any) -> int:
            assert flavor == 0
            if pid not in known:
                return -1
            assert ctypes.sizeof(info._obj) == 96
            ctypes.c_uint64.from_address(ctypes.addressof(info._obj) + RESIDENT_AT).value = known[pid]
            return 0

        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(proc_pid_rusage=proc_pid_rusage))
        return known

    def test_its_own_library_is_asked(self, resident: dict[int, int]) -> None:
        resident |= {os.getpid(): 5 * 2**30, 17: 7}
        assert rss_bytes() == 5 * 2**30
        assert rss_bytes(17) == 7

    def test_of_a_process_that_it_does_not_tell_of_nothing_is_known(self, resident: dict[int, int]) -> None:
        assert rss_bytes(18) == 0
