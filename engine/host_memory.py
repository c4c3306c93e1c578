"""Host memory that can be had without swapping, as Linux and macOS tell it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from .errors import EngineError

_VM_STAT: Final = "/usr/bin/vm_stat"
_ASKED_S: Final = 5.0  # how long that may take; it takes milliseconds
# Free pages, those that were read ahead, and those that were not used of late: the kernel gives them up first.
_HAD: Final = ("free", "speculative", "inactive")


def available_host_bytes() -> int:
    """Host memory that can be had without swapping; all that there is, where the system does not tell that.

    Source: /proc/meminfo, MemAvailable; vm_stat(1) of macOS; sysconf(3), _SC_PHYS_PAGES.
    Raises EngineError where it does not even say how much there is.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = of_vm_stat(_vm_stat()) if sys.platform == "darwin" else of_meminfo(Path("/proc/meminfo").read_text())
        if found is not None:
            return found
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    raise EngineError("This system does not say how much memory it has.", "Set pool.vram_budget and pool.host_budget.")


def of_meminfo(text: str) -> int | None:
    """MemAvailable of /proc/meminfo in bytes; None where it is not there."""
    match = re.search(r"^MemAvailable: +(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 if match is not None else None


def of_vm_stat(text: str) -> int | None:
    """Bytes of the pages that can be had, of what vm_stat prints; None where it is of another form."""
    page = re.search(r"page size of (\d+) bytes", text)
    counts = dict(re.findall(r"^Pages (\w+): +(\d+)\.?$", text, re.MULTILINE))
    if page is None or any(name not in counts for name in _HAD):
        return None
    return int(page[1]) * sum(int(counts[name]) for name in _HAD)


def _vm_stat() -> str:
    return subprocess.run([_VM_STAT], capture_output=True, text=True, timeout=_ASKED_S, check=True).stdout
