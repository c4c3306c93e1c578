"""What llama.cpp computes on in this process, and tests that ask for one or the other.

@pytest.mark.device          needs a GPU, or Mesa's software device: skipped where llama.cpp sees none
@pytest.mark.host("why")     says what is so on the host alone: skipped, with the reason, where it sees a device
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable
from typing import Any, Final

import pytest

from coe.engine.cards import is_on_host
from coe.engine.llama.context import Context
from coe.engine.llama.devices import devices
from coe.engine.llama.log import start
from coe.engine.llama.model import Model
from coe.engine.pool.memory import hardware
from coe.engine.spec import Device, LoadSpec
from coe.engine.worker.trial import buffers_by_place

GPU_KINDS: Final = ("gpu", "igpu")
# Ways to place a model of three layers, by what lies where; the output counts as a layer, and is the first to go.
LAYERS: Final = 3
PLACEMENTS: Final[dict[str, dict[str, Any]]] = {
    "all layers": {},
    "some layers": {"gpu_layers": 2},
    "the output alone": {"gpu_layers": 1},
    "experts on the CPU": {"cpu_expert_layers": -1},
    "some experts on the CPU": {"cpu_expert_layers": 1},
    "some layers, some experts on the CPU": {"gpu_layers": 3, "cpu_expert_layers": 2},
    "q8_0 cache": {"kv_type": "q8_0"},
}


@functools.cache
def cards() -> tuple[Device, ...]:
    """The GPUs that llama.cpp sees, with their memory as it was when this was first asked."""
    start()
    return tuple(device for device in devices() if device.kind in GPU_KINDS)


def tolerance(on_host: float, on_device: float = 1e-2) -> float:
    """By how much logits of about 10 may differ that other batches, slots or caches have rounded otherwise.

    A device multiplies in half precision, and sums in an order that hangs on the batch's size.
    """
    return on_device if cards() else on_host


def require(item: pytest.Item) -> None:
    """Skip a test whose markers ask for what is not here."""
    if item.get_closest_marker("device") is not None and not cards():
        pytest.skip("llama.cpp sees no GPU here; `make test-device` builds it for one, or for Mesa's software device")
    if (mark := item.get_closest_marker("host")) is not None:
        assert mark.args, "say why the test is about the host alone: @pytest.mark.host('why')"
        if cards():
            pytest.skip(f"on the host alone: {mark.args[0]}")


def is_software() -> bool:
    """Whether the device is a program that runs on the processor."""
    return any("llvmpipe" in card.description for card in cards())


def log_of_load(spec: LoadSpec) -> list[str]:
    """What llama.cpp logs of a model that is loaded here for real, with its context."""
    log = start()
    log.lines.clear()
    model = Model(spec)
    context = Context(model, spec)
    lines = list(log.lines)
    context.close()
    model.close()
    return lines


def logged_buffers(log: Iterable[str]) -> dict[tuple[str, str], float]:
    """What llama.cpp has logged of its buffers: (place, what for) -> MiB, those of a name added up.

    place: Vulkan0, CUDA0, CPU, CUDA_Host ...; what for: model, KV, RS, compute, output.
    """
    places = buffers_by_place(log).items()
    return {(place, kind): n_bytes / 2**20 for place, kinds in places for kind, n_bytes in kinds.items()}


def on_cards(buffers: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Those that lie on a device: neither the host's own memory nor the host's that a device can read."""
    return {key: mib for key, mib in buffers.items() if not is_on_host(key[0])}


def free_bytes() -> int:
    """Free memory of all cards, as a process of its own sees it now."""
    return sum(device.free_bytes for device in asyncio.run(hardware()).devices if device.kind in GPU_KINDS)
