"""`experts:` of masks: a number, a share, and as many as fit the machine."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from random_model import Shape, write_random_model

from coe.engine.gguf.reader import read_header
from coe.engine.pool.places import Memory
from coe.server.roster.load import load_roster
from coe.server.roster.models import Roster
from coe.server.roster.source import RosterError
from coe.server.runtime.availability import Hindrance, Servable, Unavailable
from coe.server.runtime.expert_fit import ExpertFit, Line, budgets_shown, choices_of, largest
from coe.server.runtime.resolve import Resolved, resolve
from coe.server.runtime.what_fits import assign
from coe.server.runtime.what_fits import residents as distinct_residents
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from fakes.pool_world import CARD, both, host
from fakes.synthetic_profile import identity

EXPERTS = 8


class TestDecision:
    def test_the_largest_that_fits(self) -> None:
        assert largest(range(1, 10), lambda count: count <= 7) == 7
        assert largest([8], lambda count: True) == 8
        assert largest([8, 16], lambda count: False) is None

    @given(st.integers(2, 60), st.integers(61, 128), st.integers(0, 10**10), st.integers(0, 10**8), st.integers(0, 99))
    def test_what_lies_between_two_numbers_is_in_proportion(
        self, few: int, many: int, base: int, each: int, host_bytes: int
    ) -> None:
        line = Line(few, many, both(base + few * each, host_bytes), both(base + many * each, host_bytes))
        for count in (few, (few + many) // 2, many):
            assert line.at(count) == both(base + count * each, host_bytes)

    def test_all_residents_have_to_fit(self) -> None:
        line = Line(1, 10, both(10, 1), both(100, 1))
        counts = range(1, 11)

        def most(budget: Memory, residents: int) -> int | None:
            return largest(counts, partial(line.fits, budget=budget, residents=residents))

        assert most(both(102, 9), 1) == 10
        assert most(both(100, 9), 1) == 9, "a hundredth is left"
        assert most(both(102, 9), 2) == 5
        assert most(both(102, 2), 2) is None, "host memory for one alone"
        assert most(both(9, 9), 1) is None

    def test_each_resident_lies_on_a_card_of_its_own(self) -> None:
        cards = (CARD, "CUDA1")
        line = Line(1, 10, both(10, 0), both(100, 0), cards)
        budget = both(100, 0) + Memory.at("CUDA1", 60)
        for residents, most in ((1, 9), (2, 5), (3, 4)):  # a hundredth is left
            assert largest(range(1, 11), partial(line.fits, budget=budget, residents=residents)) == most

    def test_masks_with_a_ranking_may_keep_any_number_that_a_token_can_use(self) -> None:
        parent = identity(layers=1, experts=6, used=2)
        ranked = Mask(parent, {0: (1, 3)}, ranking={0: (3, 1, 0, 2, 4, 5)})
        wider = Mask(parent, {0: (1, 3, 4)}, ranking={0: (3, 1, 4, 2, 0, 5)})
        assert choices_of([ranked, wider]).counts == (2, 3, 4, 5, 6)
        assert choices_of([ranked, wider]).planned == (2, 3)

    def test_masks_without_one_keep_what_they_have_or_all(self) -> None:
        assert choices_of([Mask(identity(layers=1, experts=6, used=2), {0: (1, 3)})]).counts == (2, 6)

    def test_other_budgets_are_shown_as_they_would_be(self) -> None:
        gib = 2**30
        line = Line(8, 128, both(2 * gib, gib), both(17 * gib, gib))
        shown = dict(budgets_shown(line, range(8, 129), both(gib, 4 * gib), 1))
        assert shown[6 * gib] == 39
        assert shown[16 * gib] == 118
        assert shown[24 * gib] == 128
        fit = ExpertFit(("a",), 128, 40, (64, 64), tuple(shown.items()))
        assert fit.text.startswith("40 of 128 experts; with other budgets 39 in 6 GiB, 55 in 8 GiB, ")
        assert fit.text.endswith("118 in 16 GiB, all in 20 GiB")
        assert "fewer than the 64" in fit.doubt
        assert not ExpertFit(("a",), 128, 64, (64, 64)).doubt


def ranked_mask(parent: Path, *, seed: int, keep: int = 4) -> Mask:
    who = Parent.open(parent).identity()
    order = np.stack([np.random.default_rng((seed, layer)).permutation(who.n_expert) for layer in who.layers])
    kept = np.zeros(order.shape, np.bool_)
    np.put_along_axis(kept, order[:, :keep], True, axis=1)
    return Mask.from_matrix(who, kept, order=order)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(experts=EXPERTS, experts_used=2, expert_ff=8192)  # what a dry run takes differs less than an expert
    return write_random_model(tmp_path_factory.mktemp("fit") / "parent.gguf", shape)


def roster_in(folder: Path, parent: Path, pool: dict[str, Any] | None = None, **both_say: Any) -> Roster:
    return roster_of(folder, parent, {"law": both_say, "math": both_say}, pool)


def roster_of(
    folder: Path, parent: Path, masks: dict[str, dict[str, Any]], pool: dict[str, Any] | None = None
) -> Roster:
    entries = []
    for seed, (name, says) in enumerate(masks.items()):
        ranked_mask(parent, seed=seed).save(folder / f"{name}.json")
        entries.append({"name": name, "mask": f"{name}.json", "domains": [name], "context_tokens": 256, **says})
    text = {
        "router": {"encoder": "none"},
        "pool": {"ram_budget": 0, **(pool or {})},
        "parent": {"model": "random", "file": str(parent)},
        "specialists": entries,
    }
    (folder / "roster.yaml").write_text(yaml.safe_dump(text))
    return load_roster(folder / "roster.yaml")


def total(found: Resolved, name: str = "law") -> int:
    item = found.availability[name]
    assert item.footprint is not None, item
    return item.footprint.total_bytes


def experts_of(found: Resolved) -> set[int]:
    """Experts of the files that are loaded."""
    items = [item for item in found.availability.values() if isinstance(item, Servable)]
    return {read_header(item.spec.path).count("expert_count") for item in items}


def cut_files(folder: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in (folder / "models" / "cut").glob("[!s]*.gguf"))


PLENTY = host(2**40)


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory, parent: Path) -> dict[int, int]:
    """Number of experts -> bytes of the resident that two masks of so many share: of one roster with pairs of masks."""
    counts = range(3, 8)
    masks = {f"{name}-{count}": {"experts": count} for count in counts for name in ("law", "math")}
    found = asyncio.run(resolve(roster_of(tmp_path_factory.mktemp("sizes"), parent, masks), PLENTY))
    return {count: total(found, f"law-{count}") for count in counts}


@pytest.mark.slow
class TestOnAMachine:
    async def test_a_number_and_a_share(self, tmp_path: Path, parent: Path) -> None:
        masks: dict[str, dict[str, Any]] = {
            "law": {"experts": 6},
            "math": {"experts": 0.75},
            "physics": {"experts": 1.0},
            "chemistry": {"experts": None},
        }
        found = await resolve(roster_of(tmp_path, parent, masks), PLENTY)
        groups = {tuple(member.name for member in group.members) for group in found.groups}
        assert groups == {("law", "math"), ("physics",), ("chemistry",)}, "those of one number share their resident"
        items = {name: item for name, item in found.availability.items() if isinstance(item, Servable)}
        counts = {name: read_header(item.spec.path).count("expert_count") for name, item in items.items()}
        assert counts == {"law": 6, "math": 6, "physics": 8, "chemistry": 4}

    async def test_one_by_itself_is_cut_at_that_number_and_again_at_another(self, tmp_path: Path, parent: Path) -> None:
        for count in (6, 5):
            found = await resolve(roster_in(tmp_path, parent, experts=count, share=False), PLENTY)
            assert experts_of(found) == {count}
        assert cut_files(tmp_path) == ["law", "math"], "what was cut before is gone"

    @pytest.mark.parametrize("count", [3, 5])
    async def test_as_many_as_there_is_room_for(
        self, tmp_path: Path, parent: Path, sizes: dict[int, int], count: int
    ) -> None:
        """Up to the byte, but for what is left."""
        budget = int((sizes[count] + sizes[count + 1]) / 2 / 0.99)
        found = await resolve(roster_in(tmp_path, parent, experts="fit"), host(budget))
        assert experts_of(found) == {count}
        (fit,) = found.fits
        assert (fit.names, fit.chosen, fit.n_expert) == (("law", "math"), count, EXPERTS)
        assert bool(fit.doubt) == (count < 4)

    async def test_room_is_left_for_what_is_pinned_and_as_many_residents_as_the_roster_wants(
        self, tmp_path: Path, parent: Path, smollm2: Path, sizes: dict[int, int]
    ) -> None:
        roster = roster_in(tmp_path, parent, {"residents": 2}, experts="fit")
        other = {"name": "general", "file": str(smollm2), "domains": ["general"], "context_tokens": 256, "pin": True}
        text = yaml.safe_load(roster.path.read_text())
        roster.path.write_text(yaml.safe_dump({**text, "specialists": [*text["specialists"], other]}))
        roster = load_roster(roster.path)
        plenty = await resolve(roster, PLENTY)
        assert {fit.chosen for fit in plenty.fits} == {EXPERTS}
        pinned = total(plenty, "general")
        (fit,) = (await resolve(roster, host(int((pinned + sizes[5] + sizes[6]) / 0.99)))).fits
        assert fit.chosen == 5

    async def test_what_is_pinned_among_them_leaves_room_for_the_others(self, tmp_path: Path, parent: Path) -> None:
        roster = roster_in(tmp_path, parent, experts="fit")
        text = yaml.safe_load(roster.path.read_text())
        text["specialists"][0] |= {"context_tokens": 512}  # a load of its own
        text["specialists"][1] |= {"pin": True}
        roster.path.write_text(yaml.safe_dump(text))
        roster = load_roster(roster.path)
        sizes = {}
        for count in (5, 6):
            fixed = await resolve(roster.with_experts({"law": count, "math": count}), PLENTY)
            sizes[count] = total(fixed) + total(fixed, "math")
        found = await resolve(roster, host(int((sizes[5] + sizes[6]) / 2 / 0.99)))
        assert [fit.names for fit in found.fits] == [("math",), ("law",)]
        assert all(fit.chosen in (5, 6) for fit in found.fits)
        plans = distinct_residents(found.availability, found.budget)
        assert assign(plans, found.budget) is not None, "both at once"
        assert all(isinstance(item, Servable) for item in found.availability.values())

    async def test_memory_for_conversations_gives_way_where_the_planned_number_would_not_fit(
        self, tmp_path: Path, parent: Path, sizes: dict[int, int]
    ) -> None:
        roster = roster_in(tmp_path, parent, {"ram_budget": "1 GiB"}, experts="fit")
        found = await resolve(roster, host(int((sizes[6] + sizes[7]) / 2 / 0.99)))
        assert [fit.chosen for fit in found.fits] == [6]
        assert experts_of(found) == {6}

    async def test_where_nothing_fits_the_budget_is_what_is_told_of(self, tmp_path: Path, parent: Path) -> None:
        found = await resolve(roster_in(tmp_path, parent, experts="fit"), host(1000))
        item = found.availability["law"]
        assert isinstance(item, Unavailable)
        assert item.hindrance is Hindrance.OVER_BUDGET
        (fit,) = found.fits
        assert "Not even 2 experts a layer let a resident fit" in fit.doubt
        assert not cut_files(tmp_path), "nothing is cut for that"

    async def test_a_mask_of_another_tool_keeps_its_own_number(self, tmp_path: Path, parent: Path) -> None:
        roster = roster_in(tmp_path, parent, experts="fit")
        matrix = ranked_mask(parent, seed=0).matrix().astype(int).tolist()
        (tmp_path / "law.json").write_text(str(matrix))
        found = await resolve(roster, PLENTY)
        assert experts_of(found) == {4, EXPERTS}
        assert [fit.names for fit in found.fits] == [("math",)]

    @pytest.mark.parametrize("foreign", ["law", "math"])
    async def test_a_mask_of_another_parent_is_refused_alone(self, foreign: str, tmp_path: Path, parent: Path) -> None:
        roster = roster_in(tmp_path, parent, experts="fit")
        path = tmp_path / f"{foreign}.json"
        stranger = json.loads(path.read_text())
        stranger["parent"] |= {"sha256": "0" * 64, "router_sha256": "0" * 64}
        path.write_text(json.dumps(stranger))
        found = await resolve(roster, PLENTY)
        refused = found.availability[foreign]
        assert isinstance(refused, Unavailable)
        assert "was made for" in refused.reason
        assert experts_of(found) == {EXPERTS}

    async def test_a_number_that_cannot_be_is_told(self, tmp_path: Path, parent: Path) -> None:
        item = (await resolve(roster_in(tmp_path, parent, experts=9), PLENTY)).availability["law"]
        assert isinstance(item, Unavailable)
        assert "has 8 experts a layer, not 9" in item.reason


@pytest.mark.parametrize("written", [0, 1, -3, 1.5, 0.0, "most", True, float("nan")])
def test_what_is_no_number_of_experts_is_refused(tmp_path: Path, parent: Path, written: object) -> None:
    with pytest.raises(RosterError, match="experts"):
        roster_in(tmp_path, parent, experts=written)


def test_a_file_has_the_experts_that_it_has(tmp_path: Path, parent: Path) -> None:
    entry = {"name": "law", "file": "law.gguf", "domains": ["law"]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"specialists": [{**entry, "experts": 4}]}))
    with pytest.raises(RosterError, match="`experts` goes with a mask"):
        load_roster(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"defaults": {"experts": 4}, "specialists": [entry]}))
    load_roster(tmp_path / "r.yaml")
