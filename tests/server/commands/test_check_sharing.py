"""What is said of specialists that share: what swaps move, what is doubtful, and how long a turn is waited for."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.engine.spec import Member
from coe.engine.swap.groups import Group
from coe.engine.swap.plan import Pair
from coe.server.commands.check_sharing import copy_bytes_per_s, pair_lines, wait_lines

GIB = 2**30
MEMBERS = tuple(Member(name, Path(f"{name}.gguf")) for name in ("law", "math", "medicine"))
GROUP = Group(
    MEMBERS,
    (Pair("law", "math", 3 * GIB, GIB), Pair("law", "medicine", 2 * GIB, 2 * GIB), Pair("math", "medicine", 0, GIB)),
    (("law", "medicine"),),
)


def test_every_pair_has_a_line_and_what_was_quantised_apart_a_warning() -> None:
    lines = pair_lines([GROUP, Group(MEMBERS[:1])])
    assert lines[0] == "Sharing a resident: law, math, medicine"
    assert [line.split() for line in lines[2:5]] == [
        ["law", "and", "math", "3.00", "GiB", "1.00", "GiB"],
        ["law", "and", "medicine", "2.00", "GiB", "2.00", "GiB"],
        ["math", "and", "medicine", "0", "MiB", "1.00", "GiB"],
    ]
    assert len({len(line) for line in lines[1:5]}) == 1, "columns stand under each other"
    assert len(lines) == 6
    assert lines[5].startswith("warning: law and medicine")
    assert "Quantise the parent, then cut." in lines[5]


def test_the_longest_wait_is_told_for_every_number_at_work_and_how_it_was_estimated() -> None:
    # The largest swap, 2 GiB, at half of 8 GiB/s takes 0.5 s; a turn, so that swaps take a tenth, 4.5 s.
    told, two, three = wait_lines([GROUP], 8 * GIB)
    assert "2.00 GiB" in told
    assert "8.00 GiB/s" in told
    assert "500 ms a swap" in told
    assert two == "  2 at work: 5.5 s"
    assert three == "  3 at work: 10.5 s"


def test_a_bound_shortens_turns_and_what_no_turn_is_short_enough_for_is_said() -> None:
    _, two, three = wait_lines([GROUP], 8 * GIB, max_wait_s=1.2)
    assert two == "  2 at work: 1.2 s"
    assert three == "  3 at work: 1.5 s, more than the 1.2 s that are asked for"
    assert wait_lines([GROUP], 8 * GIB, swap_share=0.5)[1] == "  2 at work: 1.5 s"


@pytest.mark.parametrize("members", [MEMBERS[:1], (MEMBERS[0], Member("again", MEMBERS[0].path))])
def test_names_for_the_same_weights_never_wait_for_each_other(members: tuple[Member, ...]) -> None:
    pairs = (Pair("law", "again", GIB, 0),) if len(members) > 1 else ()
    assert wait_lines([Group(members, pairs)], GIB) == []


def test_the_speed_of_memory_is_measured() -> None:
    assert copy_bytes_per_s() > 10**7
