"""File descriptors of this process: each client takes one, each worker a few."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import Final

_ENOUGH: Final = 65536  # some systems allow a thousand million, of which programs make tables


def raise_descriptor_limit() -> int:
    """Allow this process, and those that it starts, as many open files as the system lets it. Gives the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # a sandbox that forbids it: what there is must do
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft


def open_descriptors() -> int:
    """How many this process has open. Source: proc(5), /proc/self/fd."""
    return len(os.listdir("/proc/self/fd"))
