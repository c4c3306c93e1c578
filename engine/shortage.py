"""Want of memory: what llama.cpp and the backends of GPUs log of it, and who else holds a card's memory."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .cards import HOST, is_on_host
from .last_words import is_no_device_memory
from .units import size_text

_ASKED_S: Final = 3.0  # how long nvidia-smi may take; it takes some tenths of a second
_QUERY: Final = ("nvidia-smi", "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits")

# A buffer that could not be had, and its size in bytes or MiB. Source: ggml-alloc.c, alloc_tensor_range and
# ggml_gallocr_reserve_n_impl; llama-model.cpp, load_tensors; llama-context.cpp, output_reserve; ggml-cuda.cu and
# ggml-metal.cpp, their alloc_buffer; ggml-vulkan-buffers.cpp, ggml_vk_create_buffer.
_BUFFER: Final = re.compile(
    r"(?:failed|unable) to allocate (?P<buffer>\S+) buffer(?: of (?:size )?(?P<size>[\d.]+)(?P<mib> MiB)?)?"
    r"|allocating (?P<mib_size>[\d.]+) MiB on device \d+: cudaMalloc failed"
    r"|allocation of size (?P<vulkan_size>\d+) failed"
)
# Which card was computing when its backend gave up. Source: ggml-cuda.cu, ggml_cuda_error.
_ERROR: Final = re.compile(r"\b(?P<name>CUDA|ROCm|MUSA) error: .*")
_CURRENT: Final = re.compile(r"current device: (?P<number>\d+)")
# A graph, or a part of it, that has no memory. Source: ggml-backend.cpp; llama-context.cpp.
_GRAPH: Final = re.compile(r"failed to allocate (graph|compute )|could not reserve space")
_NO_PLACE: Final = frozenset({"compute", "output", "Metal", "device", "host"})  # words that stand where a buffer's may


@dataclass(frozen=True)
class Shortage:
    """A place that had too little memory.

    place:       a card by its name in ggml, or HOST; "" where the log does not say.
    asked_bytes: of the buffer that could not be had; 0 where the log does not say.
    free_bytes:  what was free there at that moment; None where it is not known.
    need_bytes:  what the whole process is known to need there at least; 0 where that is not known.
    """

    place: str = ""
    asked_bytes: int = 0
    free_bytes: int | None = None
    need_bytes: int = 0

    @property
    def had_bytes(self) -> int | None:
        """What was free there for the process at its start; None where that is not known. Less than was asked for last,
        and not to be had, where the driver says that more was free."""
        if self.free_bytes is None or not self.need_bytes:
            return None
        return self.need_bytes - self.asked_bytes + min(self.free_bytes, max(0, self.asked_bytes - 1))

    def __str__(self) -> str:
        """`no room on CUDA0: a buffer of 8.60 GiB was asked for, and 3.10 GiB were free`."""
        where = {"": "on the GPU", HOST: "in host memory"}.get(self.place, f"on {self.place}")
        asked = f"a buffer of {size_text(self.asked_bytes)} was asked for" if self.asked_bytes else ""
        free = f"{size_text(self.free_bytes)} were free" if self.free_bytes is not None else ""
        facts = ", and ".join(filter(None, (asked, free)))
        return f"no room {where}{f': {facts}' if facts else ''}"


def find_shortage(lines: Sequence[str]) -> Shortage | None:
    """Want of memory among errors that were logged, or last words; None where they tell of none."""
    place, asked_bytes, is_short = "", 0, False
    backend = ""
    for line in lines:
        is_short = is_short or is_no_device_memory(line) or _GRAPH.search(line) is not None
        if match := _BUFFER.search(line):
            is_short = True
            asked_bytes = _bytes_of(match) or asked_bytes
            place = _place_of(match["buffer"] or "") or place
        elif match := _ERROR.search(line):
            backend = match["name"]
        elif backend and (match := _CURRENT.search(line)):
            place = place or f"{backend}{match['number']}"
    return Shortage(place, asked_bytes) if is_short else None


def _bytes_of(match: re.Match[str]) -> int:
    if match["vulkan_size"]:
        return int(match["vulkan_size"])
    mib = match["mib_size"] or (match["size"] if match["mib"] else None)
    if mib:
        return round(float(mib) * 2**20)
    return int(match["size"]) if match["size"] and match["size"].isdecimal() else 0


def _place_of(buffer: str) -> str:
    """Where a buffer of a name is: "CUDA0", but CUDA_Host and CPU_REPACK are host memory, and MTL0_Private is MTL0."""
    if is_on_host(buffer) or buffer == "output":
        return HOST
    return "" if buffer in _NO_PLACE else buffer.partition("_")[0]


@dataclass(frozen=True)
class CardUser:
    """A process that holds memory of a card. held_bytes: None where the driver does not tell."""

    pid: int
    name: str
    held_bytes: int | None

    def __str__(self) -> str:
        held = f"holds {size_text(self.held_bytes)}" if self.held_bytes is not None else "uses it"
        return f"{self.name} (pid {self.pid}) {held}"


def card_users() -> list[CardUser]:
    """The other processes that hold memory of NVIDIA cards; none where nobody tells. Blocks for some tenths of a
    second."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_ASKED_S, check=True).stdout
        return [user for user in parse_users(told.splitlines()) if user.pid != os.getpid()]
    return []


def parse_users(lines: Iterable[str]) -> list[CardUser]:
    """What nvidia-smi told: `1234, /usr/bin/python3, 8192` a line, in MiB, `[N/A]` for what it does not know. A process
    is known by its own name, where the system tells it, and by its program's else."""
    users = []
    for line in lines:
        fields = [field.strip() for field in line.split(",")]
        if len(fields) >= 3 and fields[0].isdecimal():
            pid, held = int(fields[0]), fields[-1]
            name = _name_of(pid) or Path(",".join(fields[1:-1])).name
            users.append(CardUser(pid, name, int(held) * 2**20 if held.isdecimal() else None))
    return users


def _name_of(pid: int) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
