"""What a dry run predicts of a device's memory, beside the buffers that llama.cpp logs when it loads for real."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_model import Shape, write_random_model

from coe.engine.llama.context import Context
from coe.engine.llama.log import start
from coe.engine.llama.model import Model
from coe.engine.pool.memory import predict
from coe.engine.spec import LoadSpec
from fakes.device import LAYERS, PLACEMENTS, log_of_load, logged_buffers, on_cards

pytestmark = [pytest.mark.device, pytest.mark.model]

MIB = 2**20
NEAR = 0.03  # MiB: llama.cpp logs hundredths, of several buffers


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts in which one layer of three sees the whole context, and two a window."""
    shape = Shape(layers=LAYERS, width=256, heads=4, kv_heads=2, head=64, experts=8, expert_ff=256, window=512)
    return write_random_model(tmp_path_factory.mktemp("windowed") / "windowed.gguf", shape, quantise=True)


def loaded_for_real(spec: LoadSpec) -> dict[tuple[str, str], float]:
    """The buffers of a load: (place, what for) -> MiB."""
    return logged_buffers(log_of_load(spec))


def sum_of(buffers: dict[tuple[str, str], float], *kinds: str) -> float:
    return sum(mib for (_, kind), mib in buffers.items() if kind in kinds)


def spec_of(path: Path, fields: dict[str, Any]) -> LoadSpec:
    return replace(LoadSpec(path, context_tokens=4096, parallel=2, threads=1, mmap=False), **fields)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("model", ["windowed", "smollm2"])
async def test_weights_and_compute_on_the_device_are_what_a_real_load_logs(
    model: str, placement: str, request: pytest.FixtureRequest
) -> None:
    spec = spec_of(request.getfixturevalue(model), PLACEMENTS[placement])
    predicted = (await predict(spec)).footprint
    real = loaded_for_real(spec)
    there = on_cards(real)
    assert there
    assert predicted.weights_bytes / MIB == pytest.approx(sum_of(there, "model"), abs=NEAR)
    beyond = predicted.compute_bytes / MIB - sum_of(there, "compute", "output")
    if spec.kv_type == "q8_0":  # a layer's cells in F16, of which llama.cpp says nothing
        assert 0 <= beyond <= 2 * sum_of(there, "KV")
    else:
        assert beyond == pytest.approx(0, abs=NEAR)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("model", ["windowed", "smollm2"])
async def test_the_cache_on_the_device_is_what_a_real_load_logs(
    model: str, placement: str, request: pytest.FixtureRequest
) -> None:
    spec = spec_of(request.getfixturevalue(model), PLACEMENTS[placement])
    predicted = (await predict(spec)).footprint
    there = on_cards(loaded_for_real(spec))
    assert predicted.kv_bytes / MIB == pytest.approx(sum_of(there, "KV"), abs=NEAR)


@pytest.mark.parametrize("placement", PLACEMENTS)
async def test_no_less_host_memory_is_predicted_than_buffers_take(windowed: Path, placement: str) -> None:
    spec = spec_of(windowed, PLACEMENTS[placement])
    predicted = (await predict(spec)).footprint
    real = loaded_for_real(spec)
    host = {key: mib for key, mib in real.items() if key not in on_cards(real)}
    assert host, "the embeddings are always there"
    assert predicted.host_bytes / MIB > sum(host.values())


async def test_nothing_lies_on_the_device_where_no_layer_is_to(windowed: Path) -> None:
    spec = spec_of(windowed, {"gpu_layers": 0})
    assert on_cards(loaded_for_real(spec)) == {}
    predicted = (await predict(spec)).footprint
    assert predicted.overhead_bytes < 420 * MIB, "no runtime of a GPU is booked"


def test_a_long_prompt_stays_on_the_host_where_no_layer_is_on_the_device(windowed: Path) -> None:
    """llama.cpp sends large products to a device even where all weights lie on the host, if it has one."""
    spec = spec_of(windowed, {"gpu_layers": 0})
    log = start()
    log.lines.clear()
    model = Model(spec)
    context = Context(model, spec)
    try:
        assert context.decode([(token % 200 + 10, token, 0, token == 199) for token in range(200)]) == 0
        assert on_cards(logged_buffers(log.lines)) == {}
    finally:
        context.close()
        model.close()
