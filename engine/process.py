"""What a process of ours does about itself: its environment, its standard output, its memory (RSS), its end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # prctl.h
_RUSAGE_INFO_V0: Final = 0  # macOS, sys/resource.h
SPARE = "coe spare"  # what a worker without a model is called

# Turns of the loop in which an OpenMP thread waits for the others before it sleeps; libgomp's own choice is 300,000.
# ggml's threads wait for each other hundreds of times a token. Where another process wants one of the cores, long
# waiting spends whole time slices of the scheduler: one busy process made a model 15 times slower, and 1,000 turns
# cost nothing on a quiet machine. It also leaves the cores to the threads that sample. See docs/benchmarks.md.
_SPIN_TURNS = "1000"


# After a failed assertion, or an error of a GPU, ggml would start a debugger on its process where one is installed, and
# its hundreds of lines would bury the reason. Read when the library is loaded, too: it has to be there from the start.
# Source: ggml.c, ggml_print_backtrace; ggml.cpp, ggml_uncaught_exception.
NO_BACKTRACE: Final[Mapping[str, str]] = {"GGML_NO_BACKTRACE": "1"}


def worker_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that decodes: no debugger looks into its end, and OpenMP threads wait briefly,
    unless `base` says how they wait."""
    told = "GOMP_SPINCOUNT" in base or "OMP_WAIT_POLICY" in base
    return {**base, **NO_BACKTRACE, **({} if told else {"GOMP_SPINCOUNT": _SPIN_TURNS})}


_HINTS: Final[Mapping[int, str]] = {
    signal.SIGKILL: "killed, perhaps by the kernel for lack of memory",
    signal.SIGILL: "llama.cpp was compiled for another processor, or its use of AMX is broken: `make clean install`",
    signal.SIGBUS: "a file that it had mapped was cut short, or its disk failed",  # Source: mmap(2), SIGBUS
}


def signal_name(number: int) -> str | None:
    """SIGKILL and the like; None for a number that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


def ending(code: int) -> str:
    """How a process ended, in words, by its exit code or the negative number of a signal."""
    if code >= 0:
        return f"exit {code}"
    hint = _HINTS.get(-code)
    return f"signal {-code}, {signal_name(-code) or 'unknown'}{f': {hint}' if hint else ''}"


def die_with(parent_pid: int) -> None:
    """Be killed when the parent dies, however it dies. To be called first of all.

    The kernel takes the thread that started this process for its parent. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the kernel was asked
        os._exit(1)


def take_limits(memory_bytes: int | None, cpu_s: int | None) -> None:
    """Bound what this process may take: memory of its own, and processor time. None: no limit.

    Memory is what it allocates (RLIMIT_DATA): a mapped file, however large, is none of its own. An allocation beyond it
    fails, a process beyond its time is ended by SIGXCPU. Source: setrlimit(2).
    """
    for kind, most in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_CPU, cpu_s)):
        if most is None:
            continue
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(kind, (most, most))


def be_killed_before_parent(by: int = 300) -> None:
    """Where memory runs out, the kernel ends this process before the one that started it, which can start another.

    by: points of a thousand, each worth a thousandth of the machine's memory. Source: proc(5), oom_score_adj.
    """
    with contextlib.suppress(OSError, ValueError):  # no Linux, or a sandbox that does not let processes say so
        own = Path("/proc/self/oom_score_adj")
        own.write_text(str(min(1000, int(own.read_text()) + by)))


def take_stdout() -> int:
    """The real standard output, as a descriptor of our own; what is printed from now on goes to stderr.

    llama.cpp, ggml and Python libraries write to descriptor 1 as they like: an answer among that could not be read.
    """
    taken = os.dup(1)
    os.dup2(2, 1)
    return taken


def call_process(name: str) -> None:
    """What `top` and /proc/PID/comm call this process, on Linux; cut after 15 bytes. Called by its main thread."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode("utf-8", "replace"), 0, 0, 0)


def effort() -> tuple[float, int]:
    """Two figures that grow while this process gets on: processor seconds of all its threads; page faults that went to
    the disk and blocks read from it. Source: getrusage(2)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_majflt + usage.ru_inblock


class _RusageInfo(ctypes.Structure):
    """Source: macOS, sys/resource.h, struct rusage_info_v0."""

    _fields_ = (
        ("ri_uuid", ctypes.c_uint8 * 16),
        ("ri_user_time", ctypes.c_uint64),
        ("ri_system_time", ctypes.c_uint64),
        ("ri_pkg_idle_wkups", ctypes.c_uint64),
        ("ri_interrupt_wkups", ctypes.c_uint64),
        ("ri_pageins", ctypes.c_uint64),
        ("ri_wired_size", ctypes.c_uint64),
        ("ri_resident_size", ctypes.c_uint64),
        ("ri_phys_footprint", ctypes.c_uint64),
        ("ri_proc_start_abstime", ctypes.c_uint64),
        ("ri_proc_exit_abstime", ctypes.c_uint64),
    )


def rss_bytes(pid: int | None = None) -> int:
    """Resident memory of a process, this one if none is named; 0 where the system does not tell.

    Source: Linux, /proc/PID/status, VmRSS; macOS, libproc.h, proc_pid_rusage, which tells of one's own processes.
    """
    if sys.platform == "darwin":
        info = _RusageInfo()
        asked = ctypes.CDLL(None).proc_pid_rusage(pid or os.getpid(), _RUSAGE_INFO_V0, ctypes.byref(info))
        return int(info.ri_resident_size) if asked == 0 else 0
    try:
        for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
