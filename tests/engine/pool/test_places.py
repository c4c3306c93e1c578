"""Memory by place, the cards that llama.cpp uses, and the budget that is made of what is free on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.engine.cards import cards, free_by_place
from coe.engine.errors import UnavailableError
from coe.engine.pool import memory
from coe.engine.pool.decisions import Ledger
from coe.engine.pool.memory import Hardware, booked_memory, cards_of, find_budget
from coe.engine.pool.places import HOST, Memory
from coe.engine.spec import Device, Footprint, LoadSpec
from fakes.pool_world import CARD, both, host

GIB = 2**30


class TestMemory:
    def test_places_are_added_and_taken_away_one_by_one(self) -> None:
        assert both(5, 2) + host(3) == both(5, 5)
        assert both(5, 2) - both(6, 1) == both(-1, 1)
        assert Memory.total([]) == Memory()
        assert both(5, 2)["elsewhere"] == 0

    def test_a_place_of_which_there_is_nothing_makes_no_difference(self) -> None:
        assert both(0, 3) == host(3)
        assert hash(both(0, 3)) == hash(host(3))
        assert both(1, 3) != host(3)

    def test_it_fits_where_each_place_has_room(self) -> None:
        assert both(5, 2).fits_in(both(5, 2))
        assert not both(5, 3).fits_in(both(9, 2))
        assert both(5, 3).short_of(both(9, 2)) == (HOST,)
        assert not Memory.at("CUDA1", 1).fits_in(both(9, 9)), "a place that is not there has no room"

    def test_a_place_that_nothing_is_asked_of_needs_no_room(self) -> None:
        assert host(3).fits_in(both(-7, 3))

    def test_of_two_figures_one_is_taken_for_each_place(self) -> None:
        assert both(5, 2).larger(both(1, 4)) == both(5, 4)
        assert both(5, 2).smaller(both(1, 4)) == both(1, 2)

    def test_it_is_read_by_people(self) -> None:
        assert str(both(5 * GIB, 2 * GIB)) == f"5.00 GiB of {CARD} + 2.00 GiB of host"
        assert str(host(2 * GIB)) == "2.00 GiB"
        assert str(Memory()) == "0 MiB"

    def test_a_ledger_of_several_places_names_those_that_are_short(self) -> None:
        free, budget = both(4 * GIB, 2 * GIB), both(8 * GIB, 8 * GIB)
        short = "host: 3.00 GiB needed, 2.00 GiB of 8.00 GiB free"
        assert str(Ledger(both(4 * GIB, 3 * GIB), free, budget)) == short
        assert str(Ledger(both(GIB, 0), free, budget)) == f"{CARD}: 1.00 GiB needed, 4.00 GiB of 8.00 GiB free"
        assert str(Ledger(host(GIB), host(GIB), host(GIB))) == "1.00 GiB needed, 1.00 GiB of 1.00 GiB free"


def device(name: str, kind: str, free_bytes: int = 0) -> Device:
    return Device(name, "", kind, free_bytes, 2 * free_bytes)


CPU = device("CPU", "cpu", 50)


class TestCards:
    def test_every_gpu_is_used(self) -> None:
        found = [device("CUDA0", "gpu", 5), device("CUDA1", "gpu", 6), CPU]
        assert [card.name for card in cards(found)] == ["CUDA0", "CUDA1"]
        assert free_by_place(found) == {"CUDA0": 5, "CUDA1": 6}

    def test_an_integrated_one_only_where_there_is_no_other(self) -> None:
        assert [card.name for card in cards([device("Vulkan1", "igpu"), device("Vulkan0", "gpu")])] == ["Vulkan0"]
        assert [card.name for card in cards([device("Vulkan0", "igpu"), CPU])] == ["Vulkan0"]

    def test_an_integrated_one_that_two_backends_see_is_one(self) -> None:
        found = [device("CUDA0", "igpu", 7), device("Vulkan0", "igpu", 7)]
        assert [card.name for card in cards(found)] == ["CUDA0"]

    def test_the_memory_of_an_integrated_one_is_the_host(self) -> None:
        assert free_by_place([device("Vulkan0", "igpu", 7), CPU]) == {HOST: 7}

    def test_a_processor_is_no_card(self) -> None:
        assert free_by_place([CPU, device("BLAS", "accel")]) == {}

    def test_named_ones_are_used_in_their_order_and_no_others(self) -> None:
        found = [device("CUDA0", "gpu", 5), device("CUDA1", "gpu", 6), device("Vulkan0", "igpu", 7), CPU]
        assert [card.name for card in cards(found, ("CUDA1", "CUDA0"))] == ["CUDA1", "CUDA0"]
        assert free_by_place(found, ("CUDA1",)) == {"CUDA1": 6}
        assert free_by_place(found, ("Vulkan0",)) == {HOST: 7}
        assert cards(found, ("CPU",)) == ()


class TestBudget:
    @pytest.fixture
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> list[Device]:
        found: list[Device] = []

        async def hardware() -> Hardware:
            return Hardware(tuple(found), "")

        monkeypatch.setattr(memory, "hardware", hardware)
        monkeypatch.setattr(memory, "available_host_bytes", lambda: 60)
        return found

    async def test_without_a_card_it_is_the_hosts(self, machine: list[Device]) -> None:
        budget = await find_budget(None, 10)
        assert (budget.memory, budget.of_host) == (host(50), True)
        budget = await find_budget(40, 10, 30)
        assert (budget.memory, budget.note, budget.of_host) == (host(40), "set in the roster", False)

    async def test_beside_a_card_there_are_two(self, machine: list[Device]) -> None:
        machine += [device(CARD, "gpu", 24)]
        assert (await find_budget(None, 10)).memory == both(14, 50)
        assert (await find_budget(20, 10)).memory == both(20, 50)
        set_for_both = await find_budget(20, 10, 30)
        assert (set_for_both.memory, set_for_both.of_host) == (both(20, 30), False)

    async def test_an_integrated_card_has_the_hosts_memory_once(self, machine: list[Device]) -> None:
        machine += [device("Vulkan0", "igpu", 35)]
        assert (await find_budget(None, 10)).memory == host(25), "its driver gives no more"
        assert (await find_budget(40, 10)).memory == host(40)

    async def test_each_of_several_cards_has_its_own(self, machine: list[Device]) -> None:
        machine += [device(CARD, "gpu", 24), device("CUDA1", "gpu", 12)]
        assert (await find_budget(None, 10)).memory == both(14, 50) + Memory.at("CUDA1", 2)
        budget = await find_budget(30, 10)
        assert budget.memory == both(20, 50) + Memory.at("CUDA1", 10)
        assert budget.margin_bytes == 2, "a budget that the roster sets leaves less to others"

    async def test_it_is_of_the_cards_that_the_roster_names(self, machine: list[Device]) -> None:
        machine += [device(CARD, "gpu", 24), device("CUDA1", "gpu", 12), device("Vulkan0", "igpu", 35)]
        assert (await find_budget(None, 10, devices=("CUDA1",))).memory == Memory({"CUDA1": 2, HOST: 50})
        assert (await find_budget(None, 10, devices=("CUDA1", CARD))).memory.cards == ("CUDA1", CARD)
        assert (await find_budget(None, 10, devices=("Vulkan0",))).memory == host(25)
        with pytest.raises(UnavailableError, match=r"names CUDA2; llama.cpp sees CUDA0, CUDA1, Vulkan0 here"):
            await find_budget(None, 10, devices=("CUDA0", "CUDA2"))
        with pytest.raises(UnavailableError, match="names Vulkan0, which has no memory of its own, beside"):
            await find_budget(20, 10, devices=("CUDA0", "Vulkan0"))

    async def test_a_card_is_named_where_there_is_none(self, machine: list[Device]) -> None:
        machine += [CPU]
        with pytest.raises(UnavailableError, match=r"names CUDA0; llama.cpp sees no GPU here"):
            await find_budget(20, 10, devices=("CUDA0",))

    async def test_less_than_the_margin_is_nothing(self, machine: list[Device]) -> None:
        machine += [device(CARD, "gpu", 4)]
        assert (await find_budget(None, 100)).memory == Memory()


def test_several_cards_hold_a_model_together_each_in_proportion() -> None:
    budget = both(20, 50) + Memory.at("CUDA1", 10)
    assert booked_memory(Footprint(8, 1, 1, host_bytes=3), budget) == both(7, 3) + Memory.at("CUDA1", 3)
    assert booked_memory(Footprint(20, 5, 5), budget).fits_in(budget)
    assert not booked_memory(Footprint(20, 5, 6), budget).fits_in(budget)


def test_what_is_on_one_of_several_cards_is_booked_there() -> None:
    budget = both(20, 50) + Memory.at("CUDA1", 10)
    assert booked_memory(Footprint(8, 1, 1, host_bytes=3), budget, ("CUDA1",)) == Memory({"CUDA1": 10, HOST: 3})
    assert booked_memory(Footprint(8, 1, 1), host(50), ("Vulkan0",)) == host(10), "an integrated one"


def test_what_is_shared_out_by_layers_is_booked_as_it_lies() -> None:
    budget = both(20, 50) + Memory.at("CUDA1", 10)
    sizes = Footprint(8, 1, 1, host_bytes=3, card_bytes=((CARD, 6), ("CUDA1", 4)))
    assert booked_memory(sizes, budget, (CARD, "CUDA1")) == both(6, 3) + Memory.at("CUDA1", 4)


def test_a_load_for_one_card_may_go_to_each() -> None:
    budget = both(20, 50) + Memory.at("CUDA1", 10)
    assert cards_of(LoadSpec(Path("a"), devices=("CUDA1",)), budget) == ("CUDA1", CARD)
    assert cards_of(LoadSpec(Path("a"), devices=(CARD, "CUDA1")), budget) == ()
    assert cards_of(LoadSpec(Path("a"), devices=(CARD,)), both(20, 50)) == ()
    assert cards_of(LoadSpec(Path("a")), budget) == ()


def test_a_footprint_is_booked_where_it_lies() -> None:
    sizes = Footprint(5, 2, 1, host_bytes=4)
    assert booked_memory(sizes, both(100, 100)) == both(8, 4)
    assert booked_memory(sizes, host(100)) == host(12)
    assert booked_memory(Footprint(0, 0, 0, host_bytes=9), both(100, 100)) == host(9)
