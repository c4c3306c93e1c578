"""Placement: which resident serves a request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coe.engine.pool.placement import Assignment, CacheAffinity, Distances, Fit, Option, choose_resident
from coe.engine.swap.plan import Pair

NAMES = ("math", "physics", "law", "poetry")
BYTES = {("math", "physics"): 10, ("math", "law"): 60, ("math", "poetry"): 80}
BYTES |= {("physics", "law"): 55, ("physics", "poetry"): 90, ("law", "poetry"): 30}
DISTANCES = Distances([Pair(one, other, 0, n_bytes) for (one, other), n_bytes in BYTES.items()])

OPTIONS = st.dictionaries(
    st.sampled_from("ABCD"),
    st.builds(Option, st.sampled_from(NAMES), st.integers(0, 3), st.floats(0, 9)),
    min_size=1,
)


def chosen(
    wanted: str, options: dict[str, Option], distances: Distances, affinity: CacheAffinity | None = None
) -> str | None:
    assignment = choose_resident(wanted, options, distances, affinity)
    return assignment.resident if assignment is not None else None


def test_a_resident_that_is_the_wanted_one_serves_it_even_when_busy() -> None:
    options = {"A": Option("math", 0, 0.0), "B": Option("law", 3, 9.0)}
    assert chosen("law", options, DISTANCES) == "B"


def test_the_nearest_idle_one_is_changed() -> None:
    options = {"A": Option("physics", 0, 9.0), "B": Option("poetry", 0, 0.0)}
    assert chosen("math", options, DISTANCES) == "A"
    assert chosen("law", options, DISTANCES) == "B"


def test_an_idle_one_goes_before_a_nearer_busy_one() -> None:
    options = {"A": Option("physics", 1, 0.0), "B": Option("poetry", 0, 0.0)}
    assert chosen("math", options, DISTANCES) == "B"


def test_of_equals_the_least_recently_used_is_changed() -> None:
    options = {"A": Option("law", 0, 5.0), "B": Option("law", 0, 4.0)}
    assert chosen("math", options, DISTANCES) == "B"
    assert chosen("math", {}, DISTANCES) is None


def test_a_long_conversation_goes_where_it_was_and_a_short_one_where_less_is_swapped() -> None:
    options = {"A": Option("math", 0, 9.0), "B": Option("law", 0, 0.0)}
    assert chosen("math", options, DISTANCES, CacheAffinity("B", 61)) == "B"
    assert chosen("math", options, DISTANCES, CacheAffinity("B", 59)) == "A"
    assert chosen("math", options, DISTANCES, CacheAffinity("gone", 1000)) == "A"


def test_no_request_takes_time_slices_at_its_affinity_while_another_resident_could_begin_at_once() -> None:
    options = {"A": Option("law", 1, 0.0), "B": Option("poetry", 0, 0.0)}
    assert chosen("math", options, DISTANCES, CacheAffinity("A", 1000)) == "B"


def test_of_two_that_are_the_wanted_one_a_conversation_goes_where_it_was() -> None:
    options = {"A": Option("law", 2, 0.0), "B": Option("law", 0, 0.0)}
    assert chosen("law", options, DISTANCES) == "B"
    assert chosen("law", options, DISTANCES, CacheAffinity("A", 1)) == "A"


@given(OPTIONS, st.sampled_from(NAMES))
def test_no_other_idle_resident_would_have_changed_fewer_bytes(options: dict[str, Option], wanted: str) -> None:
    key = chosen(wanted, options, DISTANCES)
    assert key is not None
    moved = DISTANCES.between(wanted, options[key].specialist)
    idle = [c for c in options.values() if not c.active]
    if moved and idle:
        assert not options[key].active
        assert moved == min(DISTANCES.between(wanted, c.specialist) for c in idle)


def test_names_for_one_load_are_no_bytes_apart() -> None:
    assert Distances().between("law", "poetry") == 0
    assert chosen("law", {"A": Option("poetry", 1, 0.0)}, Distances()) == "A"


def test_a_choice_tells_its_reason_and_what_has_to_change() -> None:
    options = {"A": Option("math", 0, 9.0), "B": Option("law", 0, 0.0)}
    assert choose_resident("law", options, DISTANCES) == Assignment("B", Fit.WARM, 0)
    assert choose_resident("physics", options, DISTANCES) == Assignment("A", Fit.SWAP, 10)
    assert choose_resident("math", options, DISTANCES, CacheAffinity("B", 61)) == Assignment("B", Fit.AFFINITY, 60)
    busy = {"A": Option("math", 2, 9.0), "B": Option("law", 1, 0.0)}
    assert choose_resident("poetry", busy, DISTANCES) == Assignment("B", Fit.TIME_SLICE, 30)


def test_affinity_is_no_reason_where_the_resident_would_be_chosen_without_it() -> None:
    options = {"A": Option("math", 0, 9.0), "B": Option("law", 0, 0.0)}
    assert choose_resident("math", options, DISTANCES, CacheAffinity("A", 5)) == Assignment("A", Fit.WARM, 0)
