"""Two cards: each has its own residents, and what is shared out by layers lies where it was predicted.

On Mesa's software device, which is one, Vulkan is told to see it twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_model import Shape, write_random_model

from coe.engine.llama.context import BATCH_TOKENS
from coe.engine.pool.memory import find_budget, hardware, predict
from coe.engine.spec import LoadSpec
from fakes.card_load import loaded_elsewhere
from fakes.demo_college import college_roster
from fakes.device import GPU_KINDS, is_software
from fakes.server_process import ServerProcess

pytestmark = [pytest.mark.device, pytest.mark.server]

MIB = 2**20
WIDTH = 256
NEAR_BYTES = 0.05 * MIB  # llama.cpp logs hundredths of a MiB, of several buffers


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[str, str]]:
    """Two cards, by name, as processes see them that are started from here."""
    with pytest.MonkeyPatch.context() as patch:
        if is_software():
            patch.setenv("GGML_VK_VISIBLE_DEVICES", "0,0")
        names = [device.name for device in asyncio.run(hardware()).devices if device.kind in GPU_KINDS]
        if len(names) < 2:
            pytest.skip("there is one card")
        yield names[0], names[1]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> LoadSpec:
    shape = Shape(layers=5, width=WIDTH, heads=4, kv_heads=2, head=64, experts=8, expert_ff=256, window=512)
    path = write_random_model(tmp_path_factory.mktemp("model") / "five.gguf", shape, quantise=True)
    return LoadSpec(path, context_tokens=2048, parallel=2, threads=1, mmap=False)


@pytest.mark.parametrize("split", [(3.0, 3.0), (1.0, 5.0), (6.0, 0.0)], ids=str)
@pytest.mark.parametrize("on_host", [0, 2], ids=["all experts", "some experts on the CPU"])
async def test_each_card_holds_what_was_predicted(
    two: tuple[str, str], spec: LoadSpec, split: tuple[float, float], on_host: int
) -> None:
    spread = replace(spec, devices=two, tensor_split=split, cpu_expert_layers=on_host)
    predicted = (await predict(spread)).footprint
    real = loaded_elsewhere(spread)["buffers"]
    runtime = predicted.overhead_bytes // 2
    # Without memory the scheduler copies the mask of a batch for a card where a real cache lets it share one, and for a
    # batch's states there is room on each card, though not each needs it.
    spare = BATCH_TOKENS * (2 * spec.cells + 4 * WIDTH)
    for card, n_bytes in predicted.card_bytes:
        beyond = n_bytes - runtime - sum(real.get(card, {}).values())
        assert -NEAR_BYTES <= beyond <= spare + NEAR_BYTES, card
    assert predicted.total_bytes == pytest.approx(sum(size for _, size in predicted.card_bytes), abs=NEAR_BYTES)


async def test_on_one_card_nothing_lies_on_the_other(two: tuple[str, str], spec: LoadSpec) -> None:
    alone = [loaded_elsewhere(replace(spec, devices=(card,))) for card in two]
    for card, found in zip(two, alone, strict=True):
        assert card in found["buffers"]
        assert not set(found["buffers"]) & ({*two} - {card})
    spread = loaded_elsewhere(replace(spec, devices=two, tensor_split=(3.0, 3.0)))
    np.testing.assert_array_equal(alone[0]["logits"], alone[1]["logits"])
    np.testing.assert_allclose(spread["logits"], alone[0]["logits"], atol=1e-2)


async def test_the_budget_is_of_the_cards_that_are_named(two: tuple[str, str]) -> None:
    assert set(two) <= set((await find_budget(None, 0)).memory.cards)
    assert (await find_budget(None, 0, devices=two[1:])).memory.cards == two[1:]


def test_residents_lie_side_by_side_one_on_each_card(two: tuple[str, str], tmp_path: Path) -> None:
    with ServerProcess(college_roster(tmp_path, server={"max_wait_s": 900})) as server:
        server.http.timeout = 900
        for model in ("math", "general"):
            assert server.chat("What is 2 + 2?", model=model, max_tokens=4).status_code == 200
        places = [set(one["places"]) & set(two) for one in server.pool()["residents"]]
        assert sorted(map(sorted, places)) == [[two[0]], [two[1]]]


def test_one_that_is_named_is_used_alone(two: tuple[str, str], tmp_path: Path) -> None:
    roster = college_roster(tmp_path, server={"max_wait_s": 900}, pool={"devices": [two[1]]})
    with ServerProcess(roster) as server:
        server.http.timeout = 900
        assert server.chat("What is 2 + 2?", model="math", max_tokens=4).status_code == 200
        pool = server.pool()
        assert two[0] not in pool["places"]
        assert [set(one["places"]) & set(two) for one in pool["residents"]] == [{two[1]}]
