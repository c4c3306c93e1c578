"""Host memory that can be had, as Linux and macOS tell it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coe.engine import host_memory
from coe.engine.host_memory import available_host_bytes, of_meminfo, of_vm_stat

MEMINFO = """MemTotal:       24677268 kB
MemFree:         2304148 kB
MemAvailable:   20127948 kB
Buffers:          612344 kB
"""
VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10345.
Pages active:                            412345.
Pages inactive:                          400000.
Pages speculative:                         1655.
Pages throttled:                              0.
Pages wired down:                        151234.
Pages purgeable:                           3456.
"Translation faults":                 812345678.
Pages copy-on-write:                   12345678.
File-backed pages:                       201234.
Swapins:                                      0.
"""
WHOLE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_linux_says_itself_what_can_be_had() -> None:
    assert of_meminfo(MEMINFO) == 20127948 * 1024
    assert of_meminfo("MemTotal: 5 kB\n") is None


def test_of_macos_pages_those_count_that_are_given_up_first() -> None:
    assert of_vm_stat(VM_STAT) == (10345 + 400000 + 1655) * 16384
    assert of_vm_stat(VM_STAT.replace("Pages inactive", "Pages idle")) is None
    assert of_vm_stat("") is None


def test_the_free_memory_of_this_machine_is_known() -> None:
    assert 0 < available_host_bytes() < WHOLE


class TestMacOS:
    """Asked of a program that stands in for its own."""

    @pytest.fixture
    def program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(host_memory, "_VM_STAT", str(tmp_path / "vm_stat"))
        return tmp_path / "vm_stat"

    def write(self, path: Path, *lines: str) -> None:
        path.write_text("\n".join(["#!/bin/sh", *lines]))
        path.chmod(0o755)

    def test_its_own_program_is_asked(self, program: Path) -> None:
        self.write(program, "cat <<'END'", VM_STAT + "END", "")
        assert available_host_bytes() == (10345 + 400000 + 1655) * 16384

    @pytest.mark.parametrize("fault", ["exit 1", "echo of another form"])
    def test_where_it_fails_all_memory_counts(self, program: Path, fault: str) -> None:
        self.write(program, fault)
        assert available_host_bytes() == WHOLE

    def test_where_it_is_not_there_or_hangs_too(self, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert available_host_bytes() == WHOLE

        def hang(*_: object, **__: object) -> None:
            raise subprocess.TimeoutExpired("vm_stat", 5.0)

        monkeypatch.setattr(subprocess, "run", hang)
        assert available_host_bytes() == WHOLE
