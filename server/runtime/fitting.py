"""How a load fits the machine: on which cards its layers lie, and which experts stay in host memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from coe.engine.expert_offload import layers_on_cpu
from coe.engine.layer_split import split_layers
from coe.engine.pool.memory import Prediction, booked_memory
from coe.engine.pool.places import Memory
from coe.engine.spec import Footprint, LoadSpec, Member, Sharing

from ..roster.models import Roster, Specialist
from .mask_models import Missing
from .predictions import Predictions

_log = logging.getLogger(__name__)

_MOST_RAM: Final = 2 * 2**30  # for KV caches offloaded to host memory, where the roster does not say


class Fitter:
    """Fits the loads of a roster to the machine: by dry runs, within a budget, on its cards."""

    def __init__(self, predictions: Predictions, budget: Memory, devices: tuple[str, ...]) -> None:
        """devices: see `devices_of`; of several, a load is placed on one where it fits on one."""
        self.predictions = predictions
        self.budget = budget
        self.devices = devices

    def on_cards(self, spec: LoadSpec) -> LoadSpec:
        """The load on the card with the largest budget, where it is tried; on all where it says how to share it out."""
        devices = self.devices
        if not spec.gpu_layers or len(devices) < 2:
            return replace(spec, devices=devices if spec.gpu_layers else (), tensor_split=())
        if spec.tensor_split:
            return replace(spec, devices=devices)
        return replace(spec, devices=(max(devices, key=lambda card: self.budget[card]),))

    async def predicted(self, members: Sequence[Specialist], spec: LoadSpec) -> Footprint:
        """What a load takes. Raises the EngineError that its dry run ends in."""
        await self.predictions.make([(member, spec) for member in members])
        return self.predictions[spec]

    async def fitted(self, members: Sequence[Specialist], spec: LoadSpec) -> LoadSpec:
        """The load, which was predicted, as it fits the budget: on one card; where it fits on none alone, its layers on
        all of them; where one of its specialists wants that (`cpu_expert_layers: auto`), with as few layers' experts in
        host memory as let the rest fit. What it gives was predicted.

        With all experts there where even that does not suffice.
        """
        is_spread = False
        if len(self.devices) > 1 and len(spec.devices) == 1 and self._lacking(spec):
            is_spread = True
            spec = await self._spread(members, spec)
        if not any(member.cpu_expert_layers == "auto" for member in members):
            return spec
        while (found := self.predictions.of(spec)) is not None and found.on_gpu:
            lacking, experts, layers = self._lacking(spec), found.expert_bytes, spec.cpu_expert_layers
            if not lacking or not any(experts) or not 0 <= layers < len(experts):
                break
            # What the graph itself takes changes with where its weights lie: the next dry run says whether it fits now.
            enough = layers_on_cpu(sum(experts[:layers]) + lacking, 0, experts)
            spec = replace(spec, cpu_expert_layers=-1 if enough is None else max(enough, layers + 1))
            if is_spread:
                spec = await self._spread(members, spec)
            else:
                await self.predictions.make([(member, spec) for member in members])
        if spec.cpu_expert_layers:
            names = ", ".join(member.name for member in members)
            _log.info("%s: experts of %s stay in host memory", names, offloaded_text(spec.cpu_expert_layers))
        return spec

    def _lacking(self, spec: LoadSpec) -> int:
        """Bytes that a load has too little of on cards; 0 where it fits, or is not predicted."""
        found, budget = self.predictions.of(spec), self.budget
        if found is None or not found.on_gpu:
            return 0
        if not budget.cards:  # an integrated GPU, which has the host's memory
            return max(0, found.footprint.total_bytes - budget.vram_bytes)
        need = booked_memory(found.footprint, budget, spec.devices)
        return sum(max(0, need[card] - budget[card]) for card in budget.cards)

    async def _spread(self, members: Sequence[Specialist], spec: LoadSpec) -> LoadSpec:
        """The load with its layers on all cards that have room for some, by the room that each has for them. What it
        gives was predicted."""
        alone = replace(spec, devices=spec.devices[:1], tensor_split=())
        if self.predictions.of(alone) is None:
            await self.predictions.make([(member, alone) for member in members])
        found = self.predictions.of(alone)
        if found is None or not found.layer_bytes:
            return spec
        sizes, devices = found.footprint, self.devices
        cache = sizes.kv_bytes // len(found.layer_bytes)
        room = [max(1, self.budget[card] - sizes.compute_bytes - sizes.overhead_bytes) for card in devices]
        counts = split_layers([weights + cache for weights in found.layer_bytes], room)
        # A card without a layer would be opened all the same, which may be more than it has room for.
        used = {card: count for card, count in zip(devices, counts, strict=True) if count}
        split = tuple(map(float, used.values())) if len(used) > 1 else ()
        spec = replace(alone, devices=tuple(used), tensor_split=split)
        await self.predictions.make([(member, spec) for member in members])
        if split:
            names, parts = ", ".join(member.name for member in members), " and ".join(map(str, used.values()))
            _log.info("%s: the layers lie on %s, %s of them", names, " and ".join(used), parts)
        return spec


def shared_load(roster: Roster, entry: Specialist, members: Sequence[Member], budget: Memory) -> LoadSpec:
    """How specialists that share a resident are loaded, before cards are chosen. entry: one of theirs."""
    pool = roster.pool
    sharing = Sharing(tuple(members), pool.swap_share, pool.max_slice_wait_s, pool.check_swaps)
    on_gpu = entry.gpu_layers != 0 and bool(budget.cards)
    # Without a GPU this is memory of vram_budget.
    most = _MOST_RAM if on_gpu else min(_MOST_RAM, budget.host_bytes // 8)
    ram_budget = most if pool.ram_budget == "auto" else pool.ram_budget
    return entry.load_spec(members[0].path, sharing, ram_budget)


def devices_of(roster: Roster, budget: Memory) -> tuple[str, ...]:
    """The cards that loads are placed on, by name: those that the roster names, or all where there are several.

    None where llama.cpp takes the only one by itself.
    """
    if roster.pool.devices != "auto":
        return roster.pool.devices
    return budget.cards if len(budget.cards) > 1 else ()


def wrong_splits(roster: Roster, devices: Sequence[str]) -> dict[str, Missing]:
    """Specialists whose tensor_split has no part for each card. Where there is one card, or none is used, it is of no
    account."""
    return {
        entry.name: (
            f"tensor_split has {_parts_text(len(entry.tensor_split))}, and these cards are used: {', '.join(devices)}.",
            "Write a part for each, or name the cards in pool.devices.",
        )
        for entry in roster.specialists
        if entry.gpu_layers and entry.tensor_split and len(devices) > 1 and len(entry.tensor_split) != len(devices)
    }


def _parts_text(count: int) -> str:
    return "1 part" if count == 1 else f"{count} parts"


def offloaded_text(cpu_expert_layers: int) -> str:
    """Of which layers the experts stay in host memory: `the first 12 layers`."""
    if cpu_expert_layers < 0:
        return "all layers"
    return f"the first {cpu_expert_layers} layers" if cpu_expert_layers > 1 else "the first layer"


async def load_by_itself(entry: Specialist, file: Path, budget: Memory) -> tuple[LoadSpec, Prediction]:
    """How a specialist's file is loaded where nothing is shared, and what that would take. Raises the EngineError that
    its dry run ends in."""
    fitter = Fitter(Predictions(), budget, ())
    spec = fitter.on_cards(entry.load_spec(file))
    await fitter.predicted([entry], spec)
    spec = await fitter.fitted([entry], spec)
    return spec, fitter.predictions.require(spec)
