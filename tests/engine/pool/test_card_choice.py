"""Which of several cards a resident is loaded on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coe.engine.pool.admission import ResidentView, State
from coe.engine.pool.card_choice import Placement, choose_placement, counting_shut_out, place_all, possible
from coe.engine.pool.places import HOST, Memory

BUDGET = Memory({"CUDA0": 10, "CUDA1": 8, HOST: 50})


def on_each(size: int, host: int = 0) -> list[Placement]:
    return [Placement((card,), Memory({card: size, HOST: host})) for card in BUDGET.cards]


def resident(
    key: str,
    card: str,
    size: int,
    *,
    state: State = State.WARM,
    leases: int = 0,
    last_used: float = 0.0,
    pinned: bool = False,
) -> ResidentView:
    return ResidentView(key, state, Memory.at(card, size), leases, 4, last_used, pinned, key, key)


def chosen(size: int, *residents: ResidentView, promised: Memory | None = None) -> str:
    return choose_placement(on_each(size), residents, BUDGET, promised).devices[0]


def test_the_card_with_the_most_room_is_taken() -> None:
    assert chosen(4) == "CUDA0"
    assert chosen(4, resident("a", "CUDA0", 4)) == "CUDA1"
    assert chosen(4, promised=Memory.at("CUDA0", 4)) == "CUDA1"


def test_a_card_that_has_room_comes_before_one_that_has_to_make_it() -> None:
    assert chosen(8, resident("a", "CUDA0", 4)) == "CUDA1"


def test_memory_on_its_way_back_comes_before_an_idle_resident() -> None:
    going = resident("a", "CUDA0", 8, state=State.DRAINING)
    assert chosen(8, going, resident("b", "CUDA1", 4, last_used=-99.0)) == "CUDA0"


def test_the_least_recently_used_goes_first_on_whichever_card_it_is() -> None:
    old, new = (resident(key, card, 8, last_used=at) for key, card, at in (("a", "CUDA1", 5.0), ("b", "CUDA0", 9.0)))
    assert chosen(8, old, new) == "CUDA1"
    assert chosen(9, old, new) == "CUDA0", "the other is too small"


def test_an_idle_resident_goes_before_a_busy_one() -> None:
    busy = resident("a", "CUDA0", 8, leases=1, last_used=1.0)
    assert chosen(8, busy, resident("b", "CUDA1", 8, last_used=9.0)) == "CUDA1"


def test_a_busy_one_may_go_and_a_pinned_one_never() -> None:
    assert chosen(8, resident("a", "CUDA0", 8, pinned=True), resident("b", "CUDA1", 8, leases=3)) == "CUDA1"


def test_those_that_wait_together_are_spread_in_their_order() -> None:
    waiting = [("a", on_each(6)), ("b", on_each(6)), ("b", on_each(6)), ("c", on_each(3))]
    first, second, _, last = place_all(waiting, [], BUDGET)
    assert (first.devices, second.devices) == (("CUDA0",), ("CUDA1",))
    assert last.devices == ("CUDA0",), "one group is loaded once"


def test_what_is_loaded_takes_nothing_from_those_that_wait() -> None:
    there = resident("a", "CUDA0", 1)
    assert place_all([("a", on_each(8)), ("b", on_each(8))], [there], BUDGET)[1].devices == ("CUDA0",)


def test_what_never_goes_decides_where_something_can_be_at_all() -> None:
    kept = Memory.at("CUDA0", 5)
    assert [one.devices for one in possible(on_each(4), kept, BUDGET)] == [("CUDA0",), ("CUDA1",)]
    assert [one.devices for one in possible(on_each(6), kept, BUDGET)] == [("CUDA1",)]
    assert [one.devices for one in possible(on_each(9), kept, BUDGET)] == [("CUDA1",)], "it lacks the least there"
    assert [one.devices for one in possible(on_each(4, host=51), kept, BUDGET)] == [("CUDA1",)]


def test_what_never_goes_counts_whom_it_keeps_out() -> None:
    others = [on_each(9), on_each(7), on_each(7, host=50)]
    counted = counting_shut_out(on_each(4, host=1), others, Memory(), BUDGET)
    assert [(one.devices, one.shuts_out) for one in counted] == [(("CUDA0",), 2), (("CUDA1",), 1)]
    assert choose_placement(counted, [resident("a", "CUDA1", 8)], BUDGET).devices == ("CUDA1",)


residents = st.lists(
    st.builds(
        resident,
        st.uuids().map(str),
        st.sampled_from(BUDGET.cards),
        st.integers(0, 8),
        state=st.sampled_from(State),
        leases=st.integers(0, 2),
        last_used=st.floats(0, 100),
        pinned=st.booleans(),
    ),
    max_size=5,
)


@given(residents, st.integers(1, 10), st.integers(0, 60))
def test_where_one_card_has_room_at_once_that_one_is_taken(present: list[ResidentView], size: int, host: int) -> None:
    free = BUDGET - Memory.total(one.memory for one in present)
    options = on_each(size, host)
    taken = choose_placement(options, present, BUDGET)
    assert taken in options
    if any(option.memory.fits_in(free) for option in options):
        assert taken.memory.fits_in(free)
