"""One load for real, in a process of its own: where its buffers lie, what a device's memory says of them, how long it
takes, and what its changes in place move. Run by engine.child.

Beside a dry run of the same spec (`probe.py`) it shows whether what is predicted comes true on this machine.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable
from typing import Any, Final

from ..child import Report
from ..errors import LoadError
from ..llama.context import Context
from ..llama.devices import devices
from ..llama.log import start
from ..llama.model import Model
from ..spec import LoadSpec
from ..swap.swapper import Swapper

# Source: llama.cpp's llama-model.cpp ("model"), llama-kv-cache.cpp ("KV"), llama-memory-recurrent.cpp ("RS") and
# llama-context.cpp ("compute", "output"), each with the name of the buffer before it.
_SIZE: Final = re.compile(r"(\S+) +(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")
_MIB: Final = 2**20
_ROUNDS: Final = 3  # of changes through all specialists; the first compiles what a device compiles, and is left out


def buffers_by_place(log: Iterable[str]) -> dict[str, dict[str, int]]:
    """Bytes of llama.cpp's buffers as it logged them: place -> what for -> bytes.

    place: the buffer's name: Vulkan0, CUDA0, CPU, CPU_Mapped, CUDA_Host ... What for: model, KV, RS, compute, output.
    """
    found: dict[str, dict[str, int]] = {}
    for line in log:
        if match := _SIZE.search(line):
            kinds = found.setdefault(match[1], {})
            kinds[match[2]] = kinds.get(match[2], 0) + round(float(match[3]) * _MIB)
    return found


class _Loaded:
    """A model with its context and, where specialists share it, its swapper."""

    def __init__(self, spec: LoadSpec) -> None:
        log = start()
        log.lines.clear()
        began = time.perf_counter()
        self.model = Model(spec)
        lines = list(log.lines)
        self.swapper = Swapper(self.model, spec) if spec.sharing is not None else None
        log.lines.clear()  # finding the weights made a small context
        self.context = Context(self.model, spec)
        self.seconds = time.perf_counter() - began
        self.lines = [*lines, *log.lines]

    def read(self, n_tokens: int) -> None:
        """Read a prompt. Raises LoadError where that fails, or what comes of it is no number."""
        self.context.forget(0)
        token = max(self.model.vocab.bos, 1)
        n_tokens = min(n_tokens, self.context.n_batch, self.context.n_cells)
        result = self.context.decode([(token, at, 0, at == n_tokens - 1) for at in range(n_tokens)])
        if result:
            raise LoadError(f"A decode of {n_tokens} tokens failed with {result}.", "See llama.cpp's own words.")
        if not math.isfinite(float(self.context.logits(n_tokens - 1).sum())):
            raise LoadError("What a decode gave is no number.", "Try another driver, or without the GPU.")

    def close(self) -> None:
        self.context.close()
        if self.swapper is not None:
            self.swapper.close()
        self.model.close()


def _changes(swapper: Swapper, names: Iterable[str], report: Report) -> list[dict[str, Any]]:
    """Each change of a round through all specialists, in bytes and seconds, for the rounds after the first."""
    found = []
    ids = sorted({swapper.id_of(name) for name in names})
    for round_number in range(_ROUNDS + 1):
        for specialist_id in ids[1:] + ids[:1]:
            report(None)
            swapper.prefetch(specialist_id).result()
            change = swapper.swap(specialist_id)
            if round_number:
                found.append(
                    {
                        "changed_bytes": change.changed_bytes,
                        "moved_bytes": change.moved_bytes,
                        "seconds": change.seconds,
                    }
                )
    return found


def main(job: dict[str, Any], report: Report) -> dict[str, Any]:
    """What the child answers: buffers, each device's free memory before and after, seconds of two loads (the first
    brings the device up), and changes in place where specialists share the resident."""
    spec = LoadSpec.from_json(job["spec"])
    start()
    before = {device.name: device.free_bytes for device in devices() if device.kind != "cpu"}
    loaded = _Loaded(spec)
    report(None)
    loaded.read(64)
    after = {device.name: device.free_bytes for device in devices() if device.kind != "cpu"}
    answer: dict[str, Any] = {
        "buffers": buffers_by_place(loaded.lines),
        "taken_bytes": {name: before[name] - free for name, free in after.items()},
        "first_load_s": loaded.seconds,
        "changes": [],
    }
    if loaded.swapper is not None and spec.sharing is not None:
        names = [member.name for member in spec.sharing.members]
        answer["changes"] = _changes(loaded.swapper, names, report)
    loaded.read(64)
    loaded.close()
    report(None)
    again = _Loaded(spec)
    again.close()
    return {**answer, "load_s": again.seconds}
