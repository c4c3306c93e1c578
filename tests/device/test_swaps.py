"""Swaps in place on a device: whatever lies where, to the last bit what a fresh load there would be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from coe.engine.llama.log import start
from coe.engine.llama.model import Model
from coe.engine.swap.swapper import Swapper
from fakes.device import LAYERS, PLACEMENTS, cards, logged_buffers, on_cards
from fakes.sharing_models import College, logits

pytestmark = [pytest.mark.device, pytest.mark.model]

# Rows of Q4_K and Q8_0 are whole blocks at these widths; heads are wide enough for a q8_0 cache.
SHAPE: dict[str, Any] = {"layers": LAYERS, "embedding": 256, "expert_ff": 256, "fused": True}


@contextmanager
def resident(college: College, **fields: Any) -> Iterator[tuple[Model, Swapper, list[str]]]:
    """A model with its swapper, and what llama.cpp logged of its load."""
    spec = college.spec("a", **fields)
    log = start()
    log.lines.clear()
    model = Model(spec)
    lines = list(log.lines)
    swapper = Swapper(model, spec)
    try:
        yield model, swapper, lines
    finally:
        swapper.close()
        model.close()


@pytest.mark.parametrize("quantised", [Type.F32, Type.Q8_0, Type.Q4_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_after_many_swaps_logits_are_those_of_a_fresh_load_in_the_same_slots(
    tmp_path: Path, placement: str, quantised: Type
) -> None:
    fields = PLACEMENTS[placement]
    college = College.random(tmp_path, masks_only="c", quantised=quantised, **SHAPE)
    with resident(college, **fields) as (model, swapper, lines):
        assert on_cards(logged_buffers(lines)), "nothing lies on the device"
        said = {}
        for name in "bcacba":
            swapper.swap(swapper.id_of(name))
            said[name] = logits(model, college.spec("a", **fields))
            np.testing.assert_array_equal(said[name], college.fresh(name, swapper.order, **fields), name)
        assert not np.array_equal(said["a"], said["b"])
        assert not np.array_equal(said["b"], said["c"])


@pytest.mark.parametrize(
    ("fields", "on_host"),
    [({}, []), ({"cpu_expert_layers": -1}, [0, 1, 2]), ({"cpu_expert_layers": 1}, [0]), ({"gpu_layers": 2}, [0, 1])],
    ids=str,
)
def test_experts_lie_where_the_placement_says(tmp_path: Path, fields: dict[str, Any], on_host: Sequence[int]) -> None:
    """The output counts as a layer: of three layers gpu_layers: 2 puts the last one on the device."""
    college = College.random(tmp_path, names="ab", **SHAPE)
    with resident(college, **fields) as (_, swapper, _):
        found = {
            layer: {tensor.buffer for tensor in swapper._loaded[f"blk.{layer}.ffn_down_exps.weight"]}
            for layer in range(LAYERS)
        }
    device = {card.name for card in cards()}
    for layer, buffers in found.items():
        assert (buffers.isdisjoint(device)) == (layer in on_host), (layer, buffers)


def test_what_is_written_to_a_device_goes_through_the_buffer_and_the_rest_straight(tmp_path: Path) -> None:
    college = College.random(tmp_path, names="ab", **SHAPE)
    with resident(college, cpu_expert_layers=1) as (_, swapper, _):
        prepared = swapper._prepare(swapper.id_of("b"), swapper.current, swapper.order)
        straight = {piece.tensor.buffer for piece in prepared.direct}
        staged = {piece.tensor.buffer for piece in prepared.staged}
    assert straight
    assert staged
    assert staged <= {card.name for card in cards()}
    assert straight.isdisjoint(staged)


def test_the_device_agrees_with_the_host_but_for_rounding(tmp_path: Path) -> None:
    """A wrong expert in a slot would be off by as much as the logits themselves."""
    college = College.random(tmp_path, names="ab", quantised=Type.Q8_0, **SHAPE)
    with resident(college) as (model, swapper, _):
        swapper.swap(swapper.id_of("b"))
        there, order = logits(model, college.spec("a")), swapper.order
    here, other = (college.fresh(name, order, gpu_layers=0) for name in ("b", "a"))
    distance = np.abs(there - here).max()
    assert distance < 0.05 * np.abs(here).max()
    assert distance < 0.2 * np.abs(other - here).max()
