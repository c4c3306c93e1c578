"""Admission control alone: by plain calls, and by a state machine (hypothesis) that tries everything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import combinations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coe.engine.pool.admission import (
    GroupView,
    ResidentView,
    State,
    WaiterView,
    expired,
    plan,
    plan_evictions,
    refuse,
    replaced,
)
from coe.engine.pool.decisions import (
    Bypass,
    Eviction,
    EvictionReason,
    Grant,
    Ledger,
    Load,
    LoadReason,
    Plan,
    Refusal,
    RefusalReason,
    Wait,
    WaitReason,
)
from coe.engine.pool.placement import CacheAffinity, Distances, Fit
from coe.engine.pool.places import HOST, Memory
from coe.engine.swap.plan import Pair
from fakes.pool_world import CARD, both, host

BOUND_S = 10.0


def warm(key: str, size: int = 4, *, leases: int = 0, last_used: float = 0.0, pinned: bool = False) -> ResidentView:
    return ResidentView(key, State.WARM, host(size), leases, 2, last_used, pinned, group=key)


def waiter(number: int, key: str, size: int = 4, *, bypassed_s: float = 0.0) -> WaiterView:
    return WaiterView(number, key, host(size), bypassed_s)


def ledger(need: int, free: int, budget: int) -> Ledger:
    return Ledger(host(need), host(free), host(budget))


# What is done; decisions are equal whatever their reasons are.
def granted(*pairs: tuple[int, str]) -> tuple[Grant, ...]:
    return tuple(Grant(*pair, fit=Fit.WARM, before="", swap_bytes=0, waited_s=0.0) for pair in pairs)


def loaded(*pairs: tuple[str, str]) -> tuple[Load, ...]:
    return tuple(Load(*pair, waiter=0, reason=LoadReason.COLD, ledger=ledger(0, 0, 0)) for pair in pairs)


def evicted(*keys: str) -> tuple[Eviction, ...]:
    return tuple(Eviction(key, reason=EvictionReason.ROOM, idle_s=0.0) for key in keys)


def decide(waiters: list[WaiterView], residents: list[ResidentView], budget: int = 8, *, now: float = 0.0) -> Plan:
    return plan(waiters, residents, host(budget), max_bypass_s=BOUND_S, now=now, groups={"": GROUP})


# Of one group: a law resident becomes a court one with few bytes, a math one with many.
BYTES = {("law", "court"): 1, ("law", "math"): 5, ("court", "math"): 6}
GROUP = GroupView(Distances([Pair(one, other, 0, changed) for (one, other), changed in BYTES.items()]), most=3)


def shared(key: str, specialist: str, *, last_used: float = 0.0, **leases: int) -> ResidentView:
    """leases: of each specialist."""
    total = sum(leases.values())
    return ResidentView(key, State.WARM, host(4), total, 2, last_used, specialist=specialist, shares=leases)


def wants(number: int, specialist: str, *, bypassed_s: float = 0.0) -> WaiterView:
    return WaiterView(number, "", host(4), bypassed_s, specialist)


class TestEvictions:
    def test_nothing_goes_while_it_fits(self) -> None:
        assert plan_evictions(host(4), [warm("a")], host(8)) == []

    def test_the_least_recently_used_goes_first(self) -> None:
        assert plan_evictions(host(4), [warm("a", last_used=5), warm("b", last_used=2)], host(8)) == ["b"]

    def test_a_busy_resident_stays(self) -> None:
        assert plan_evictions(host(4), [warm("a", leases=1, last_used=1), warm("b", last_used=9)], host(8)) == ["b"]

    def test_a_pinned_resident_stays(self) -> None:
        assert plan_evictions(host(8), [warm("a", pinned=True), warm("b")], host(8)) is None

    def test_no_resident_is_stopped_in_vain(self) -> None:
        assert plan_evictions(host(8), [warm("a", leases=1), warm("b")], host(8)) is None

    def test_a_resident_that_is_going_counts_as_room_to_come(self) -> None:
        going = replace(warm("a"), state=State.DRAINING)
        assert plan_evictions(host(4), [going, warm("b")], host(8)) == []


class TestPlan:
    def test_a_warm_specialist_is_served_at_once(self) -> None:
        assert decide([waiter(1, "a")], [warm("a")]) == Plan(grants=granted((1, "a")))

    def test_no_more_leases_than_a_resident_has_slots(self) -> None:
        assert decide([waiter(i, "a") for i in range(3)], [warm("a")]).grants == granted((0, "a"), (1, "a"))

    def test_waiters_of_one_cold_specialist_share_one_load(self) -> None:
        assert decide([waiter(i, "a") for i in range(5)], []) == Plan(load=loaded(("a", "")))

    def test_a_load_waits_until_the_bytes_are_really_back(self) -> None:
        going = replace(warm("a"), state=State.DRAINING)
        assert decide([waiter(1, "b", 6)], [going]) == Plan()

    def test_a_later_waiter_does_not_take_the_room_an_earlier_one_waits_for(self) -> None:
        assert decide([waiter(1, "big", 8), waiter(2, "small", 2)], [warm("a", leases=1)]) == Plan()

    def test_requests_for_what_is_warm_pass_at_first(self) -> None:
        decided = decide([waiter(1, "b", 8, bypassed_s=9.9), waiter(2, "a")], [warm("a", leases=1)])
        assert decided == Plan(grants=granted((2, "a")))

    def test_they_stop_passing_when_the_bound_is_reached(self) -> None:
        decided = decide([waiter(1, "b", 8, bypassed_s=10), waiter(2, "a")], [warm("a", leases=1)])
        assert decided == Plan()

    def test_those_that_came_before_the_overdue_one_still_pass(self) -> None:
        decided = decide([waiter(1, "a"), waiter(2, "b", 8, bypassed_s=10), waiter(3, "a")], [warm("a")])
        assert decided == Plan(grants=granted((1, "a")))

    def test_only_as_many_residents_close_as_are_in_the_way(self) -> None:
        residents = [warm("a", leases=1), replace(warm("c", leases=2), capacity=4)]
        waiters = [waiter(1, "b", bypassed_s=10), waiter(2, "a"), waiter(3, "c")]
        assert decide(waiters, residents).grants == granted((3, "c"))

    def test_a_resident_that_took_more_than_predicted_makes_others_go(self) -> None:
        residents = [warm("a", 4, last_used=1), warm("b", 6, last_used=2, leases=1)]
        assert decide([], residents) == Plan(evict=evicted("a"))

    def test_residents_expire_after_their_idle_time_but_not_while_busy_or_pinned(self) -> None:
        residents = [warm("a"), warm("b", leases=1), warm("c", pinned=True), warm("d", last_used=95)]
        assert expired(residents, 100.0, 30.0) == [*evicted("a")]
        assert expired(residents, 1e9, None) == []


class TestPlaces:
    """A machine with a card: what is needed of each place has to be free there."""

    def decide(self, waiters: list[WaiterView], residents: list[ResidentView]) -> Plan:
        return plan(waiters, residents, both(8, 8), max_bypass_s=BOUND_S, now=0.0)

    def warm(self, key: str, memory: Memory, *, leases: int = 0, last_used: float = 0.0) -> ResidentView:
        return replace(warm(key, leases=leases, last_used=last_used), memory=memory)

    def waiter(self, number: int, key: str, need: Memory) -> WaiterView:
        return replace(waiter(number, key), need=need)

    def test_the_host_may_be_full_while_the_card_has_room(self) -> None:
        busy = self.warm("a", both(2, 6), leases=1)
        decided = self.decide([self.waiter(1, "b", both(2, 6))], [busy])
        assert decided == Plan()
        assert str(decided.waits[0]) == "room, after 0.0 s, host: 6 bytes needed, 2 bytes of 8 bytes free"

    def test_only_residents_that_hold_what_is_short_go(self) -> None:
        on_card, on_host = self.warm("a", both(6, 0), last_used=1), self.warm("b", both(0, 6), last_used=2)
        assert self.decide([self.waiter(1, "c", both(2, 6))], [on_card, on_host]).evict == evicted("b")
        assert self.decide([self.waiter(1, "c", both(6, 2))], [on_card, on_host]).evict == evicted("a")
        assert self.decide([self.waiter(1, "c", both(6, 6))], [on_card, on_host]).evict == evicted("a", "b")

    def test_none_goes_where_only_one_of_two_places_can_be_freed(self) -> None:
        residents = [self.warm("a", both(6, 0)), self.warm("b", both(0, 6), leases=1)]
        assert self.decide([self.waiter(1, "c", both(6, 6))], residents) == Plan()

    def test_what_is_overbooked_at_two_places_goes_where_it_can(self) -> None:
        busy, idle = self.warm("a", both(9, 0), leases=1), self.warm("b", both(0, 9))
        assert self.decide([], [busy, idle]).evict == evicted("b")
        over = [self.warm("a", both(5, 5), last_used=1), self.warm("b", both(5, 5), last_used=2)]
        assert self.decide([], over).evict == evicted("a"), "which relieves both"
        apart = [self.warm(key, memory) for key, memory in (("a", both(9, 0)), ("b", both(0, 9)))]
        assert self.decide([], apart).evict == evicted("a", "b")

    def test_a_later_waiter_is_loaded_where_the_earlier_one_needs_nothing(self) -> None:
        busy = self.warm("a", both(8, 0), leases=1)
        waiters = [self.waiter(1, "b", both(4, 0)), self.waiter(2, "c", both(0, 4))]
        assert self.decide(waiters, [busy]) == Plan(load=loaded(("c", "")))

    def test_it_takes_nothing_that_the_earlier_one_will_need(self) -> None:
        busy = self.warm("a", both(8, 0), leases=1)
        first = self.waiter(1, "b", both(4, 5))
        assert self.decide([first, self.waiter(2, "c", both(0, 3))], [busy]) == Plan(load=loaded(("c", "")))
        assert self.decide([first, self.waiter(2, "c", both(0, 4))], [busy]) == Plan()

    def test_more_booked_than_the_host_has_makes_those_go_that_hold_it(self) -> None:
        residents = [self.warm("a", both(4, 0)), self.warm("b", both(1, 3), last_used=9), self.warm("c", both(1, 6))]
        residents[2] = replace(residents[2], leases=1)
        decided = self.decide([], residents)
        assert decided == Plan(evict=evicted("b"))
        assert str(decided.evict[0]) == "over budget, idle for -9.0 s, host: 0 MiB needed, -1 bytes of 8 bytes free"

    def test_only_residents_at_the_place_that_is_short_close_to_newcomers(self) -> None:
        residents = [self.warm("a", both(4, 0), leases=1), self.warm("b", both(0, 6), leases=1)]
        overdue = replace(self.waiter(1, "c", both(0, 4)), bypassed_s=BOUND_S)
        newcomers = [waiter(2, "a"), waiter(3, "b")]
        assert self.decide([overdue, *newcomers], residents).grants == granted((2, "a"))

    def test_what_never_fits_the_host_is_refused_with_its_figures(self) -> None:
        pinned = replace(self.warm("p", both(1, 3)), pinned=True)
        newcomer = self.waiter(1, "a", both(2, 6))
        refusal = refuse(newcomer, [], [pinned], both(8, 8), max_queue=9, max_bypass_s=BOUND_S, now=0.0)
        assert refusal is not None
        assert str(refusal) == "never fits, host: 6 bytes needed, 5 bytes of 8 bytes free"
        assert (refusal.kept, refusal.kept_memory) == (("p",), both(1, 3))

    def test_a_resident_of_the_host_alone_is_let_in_whatever_is_pinned_on_the_card(self) -> None:
        pinned = replace(self.warm("p", both(9, 0)), pinned=True)  # more than predicted
        newcomer = self.waiter(1, "a", both(0, 6))
        assert refuse(newcomer, [], [pinned], both(8, 8), max_queue=9, max_bypass_s=BOUND_S, now=0.0) is None


class TestSharing:
    """Residents that become one specialist or another."""

    def test_a_resident_that_is_the_wanted_one_serves_it_even_beside_others(self) -> None:
        decided = decide([wants(1, "math")], [shared("r1", "law"), shared("r2", "math", math=1)])
        assert decided == Plan(granted((1, "r2")))

    def test_the_nearest_idle_one_is_changed(self) -> None:
        residents = [shared("r1", "math", last_used=1), shared("r2", "law", last_used=9)]
        assert decide([wants(1, "court")], residents) == Plan(granted((1, "r2")))

    def test_a_resident_that_is_to_change_counts_as_changed_for_requests_behind(self) -> None:
        residents = [shared("r1", "law"), shared("r2", "math")]
        decided = decide([wants(1, "court"), wants(2, "court"), wants(3, "math")], residents)
        assert decided.grants == granted((1, "r1"), (2, "r1"), (3, "r2"))

    def test_where_all_are_busy_the_wanted_one_takes_time_slices(self) -> None:
        assert decide([wants(1, "math")], [shared("r1", "law", law=1)], budget=4) == Plan(granted((1, "r1")))

    def test_leases_of_other_specialists_take_no_place(self) -> None:
        full = shared("r1", "law", law=2)
        assert decide([wants(1, "law"), wants(2, "math")], [full], budget=4) == Plan(granted((2, "r1")))
        assert decide([wants(1, "math"), wants(2, "math"), wants(3, "math")], [full], budget=4).grants == granted(
            (1, "r1"), (2, "r1")
        )

    def test_with_room_to_spare_the_one_displaced_gets_a_resident_of_its_own(self) -> None:
        decided = decide([wants(1, "math")], [shared("r1", "law")])
        assert decided == Plan(granted((1, "r1")), load=loaded(("", "law")))

    def test_room_that_a_request_waits_for_is_not_to_spare(self) -> None:
        residents = [shared("r1", "law"), warm("other", leases=1)]
        decided = decide([wants(1, "math"), waiter(2, "big", 8)], residents, budget=12)
        assert decided == Plan(granted((1, "r1")))

    def test_no_resident_is_stopped_for_a_spread(self) -> None:
        assert decide([wants(1, "math")], [shared("r1", "law"), warm("idle")]) == Plan(granted((1, "r1")))

    def test_no_more_residents_than_the_group_may_have(self) -> None:
        decided = plan(
            [wants(1, "math")],
            [shared("r1", "law")],
            host(8),
            max_bypass_s=1.0,
            now=0.0,
            groups={"": replace(GROUP, most=1)},
        )
        assert decided == Plan(granted((1, "r1")))

    def test_no_two_residents_are_loaded_for_one_specialist(self) -> None:
        loading = replace(shared("r2", "math"), state=State.LOADING)
        full = shared("r1", "law", math=2)
        assert decide([wants(1, "math"), wants(2, "math")], [full, loading], budget=99) == Plan()

    def test_a_request_that_finds_all_full_gets_a_resident_where_there_is_room(self) -> None:
        assert decide([wants(1, "math")], [shared("r1", "law", math=2)]) == Plan(load=loaded(("", "math")))
        assert decide([wants(1, "law")], [shared("r1", "law", law=2)]) == Plan()

    def test_a_cold_group_is_loaded_once_as_what_is_wanted_first(self) -> None:
        assert decide([wants(1, "math"), wants(2, "math")], []) == Plan(load=loaded(("", "math")))

    def test_the_least_recently_used_of_a_group_goes_like_any_other(self) -> None:
        residents = [shared("r1", "law", last_used=3), shared("r2", "math", last_used=1)]
        assert decide([waiter(1, "other")], residents).evict == evicted("r2")

    def test_a_resident_that_closes_for_an_overdue_request_leaves_its_siblings_open(self) -> None:
        residents = [shared("r1", "law", law=1), shared("r2", "math", math=1)]
        decided = decide([waiter(1, "other", bypassed_s=10), wants(2, "law"), wants(3, "math")], residents)
        assert decided.grants == granted((2, "r2"), (3, "r2"))


class TestReasons:
    """Each decision carries what decided it."""

    def test_a_grant_tells_how_the_resident_fits(self) -> None:
        late = replace(wants(1, "court"), waited_s=3.0)
        (grant,) = decide([late], [shared("r1", "law")], budget=4).grants
        assert (grant.fit, grant.before, grant.swap_bytes, grant.waited_s) == (Fit.SWAP, "law", 1, 3.0)
        assert grant.bypass is None
        (grant,) = decide([waiter(1, "a")], [warm("a")]).grants
        assert (grant.fit, grant.swap_bytes) == (Fit.WARM, 0)

    def test_a_grant_tells_which_older_requests_it_passes(self) -> None:
        waiting = [waiter(1, "big", 8, bypassed_s=9.0), waiter(2, "b", 8, bypassed_s=4.0), waiter(3, "a")]
        (grant,) = decide(waiting, [warm("a", leases=1)]).grants
        assert grant.bypass == Bypass(passed=(1, 2), longest_s=9.0, max_bypass_s=BOUND_S)

    def test_a_younger_request_that_waits_is_not_passed(self) -> None:
        (grant,) = decide([waiter(1, "a"), waiter(2, "big", 8)], [warm("a", leases=1)]).grants
        assert grant.bypass is None

    def test_a_load_tells_the_bytes_and_for_which_request_it_is(self) -> None:
        first, second = decide([waiter(1, "a", 3), waiter(2, "b", 4)], []).load
        assert (first.waiter, first.reason, first.ledger) == (1, LoadReason.COLD, ledger(3, 8, 8))
        assert (second.waiter, second.reason, second.ledger) == (2, LoadReason.COLD, ledger(4, 5, 8))
        assert not first.is_spread

    def test_a_spread_tells_whether_a_swap_displaced_it_or_places_were_lacking(self) -> None:
        (load,) = decide([wants(1, "math")], [shared("r1", "law")]).load
        assert (load.reason, load.ledger, load.is_spread) == (LoadReason.DISPLACED, ledger(4, 4, 8), True)
        (load,) = decide([wants(1, "math")], [shared("r1", "law", math=2)]).load
        assert (load.reason, load.waiter, load.is_spread) == (LoadReason.CROWDED, 1, True)

    def test_an_eviction_tells_for_whom_and_how_long_the_resident_was_idle(self) -> None:
        (eviction,) = decide([waiter(7, "b", 6)], [warm("a", last_used=20)], now=50.0).evict
        assert (eviction.reason, eviction.idle_s, eviction.waiter) == (EvictionReason.ROOM, 30.0, 7)
        assert eviction.ledger == ledger(6, 4, 8)

    def test_an_eviction_over_budget_is_for_no_request(self) -> None:
        residents = [warm("a", 4, last_used=1), warm("b", 6, last_used=2, leases=1)]
        (eviction,) = decide([], residents, now=5.0).evict
        assert (eviction.reason, eviction.idle_s, eviction.waiter) == (EvictionReason.OVER_BUDGET, 4.0, None)
        assert eviction.ledger == ledger(0, -2, 8)

    def test_residents_that_go_by_themselves_tell_why(self) -> None:
        (eviction,) = expired([warm("a", last_used=10)], 100.0, 30.0)
        assert (eviction.reason, eviction.idle_s) == (EvictionReason.EXPIRED, 90.0)
        residents = [warm("a", last_used=10), warm("b"), warm("c", leases=1)]
        (eviction,) = replaced(residents, {"b"}, 100.0)
        assert (eviction.resident, eviction.reason) == ("a", EvictionReason.REPLACED)

    def test_each_waiter_that_is_not_served_tells_why(self) -> None:
        going = replace(warm("going", 1), state=State.DRAINING)
        coming = replace(warm("coming", 1), state=State.LOADING)
        full = replace(warm("full", 1), leases=2)
        asked = [
            waiter(1, "coming"), waiter(2, "going"), waiter(3, "full"), waiter(4, "big", 9), waiter(5, "small", 1),
        ]  # fmt: skip
        waits = decide([replace(one, waited_s=2.0) for one in asked], [going, coming, full], budget=10).waits
        assert [(wait.reason, wait.behind) for wait in waits] == [
            (WaitReason.LOADING, None), (WaitReason.STOPPING, None), (WaitReason.FULL, None), (WaitReason.ROOM, None),
            (WaitReason.BEHIND, 4),
        ]  # fmt: skip
        assert waits[3] == Wait(4, WaitReason.ROOM, ledger(9, 7, 10), 2.0)

    def test_a_waiter_whose_load_begins_waits_for_it(self) -> None:
        assert [wait.reason for wait in decide([waiter(1, "a"), waiter(2, "a")], []).waits] == [WaitReason.LOADING] * 2

    def test_a_newcomer_waits_behind_the_overdue_one(self) -> None:
        waits = decide([waiter(1, "b", 8, bypassed_s=10), waiter(2, "a")], [warm("a", leases=1)]).waits
        assert [(wait.reason, wait.behind) for wait in waits] == [(WaitReason.ROOM, None), (WaitReason.CLOSED, 1)]

    def test_nothing_is_loaded_while_more_is_booked_than_the_budget(self) -> None:
        (wait,) = decide([waiter(1, "b", 1)], [warm("a", 9, leases=1)]).waits
        assert (wait.reason, wait.ledger) == (WaitReason.OVER_BUDGET, ledger(1, -1, 8))

    def test_the_reason_does_not_make_another_decision(self) -> None:
        assert decide([wants(1, "court")], [shared("r1", "law")], budget=4).grants == granted((1, "r1"))


class TestRefusals:
    def refused(
        self, newcomer: WaiterView, waiters: list[WaiterView], residents: list[ResidentView], retry_s: float = 0.0
    ) -> Refusal | None:
        return refuse(
            newcomer,
            waiters,
            residents,
            host(8),
            max_queue=1,
            max_bypass_s=BOUND_S,
            now=0.0,
            groups={},
            retry_s=retry_s,
        )

    def test_what_never_fits_beside_the_pinned_is_refused_with_the_sum(self) -> None:
        refusal = self.refused(waiter(1, "a", 6), [], [warm("p", 3, pinned=True), warm("b", 5)])
        assert refusal == Refusal(RefusalReason.NEVER_FITS, ledger(6, 5, 8), kept=("p",), kept_memory=host(3))
        assert self.refused(waiter(1, "a", 5), [], [warm("p", 3, pinned=True), warm("b", 5)]) is None

    def test_a_load_that_failed_a_moment_ago_is_not_tried_again(self) -> None:
        refusal = self.refused(waiter(1, "a", 6), [], [], retry_s=4.0)
        assert refusal == Refusal(RefusalReason.BACK_OFF, ledger(6, 8, 8), retry_s=4.0)
        assert self.refused(waiter(1, "a"), [], [warm("a")], retry_s=4.0) is None, "another resident serves it"

    def test_a_full_queue_takes_only_what_is_served_at_once(self) -> None:
        waiting, residents = [waiter(1, "b", 8)], [warm("a", leases=1)]
        assert self.refused(waiter(2, "a"), waiting, residents) is None
        refusal = self.refused(waiter(2, "c"), waiting, residents)
        assert refusal == Refusal(RefusalReason.QUEUE_FULL, ledger(4, 4, 8), n_waiting=1)


@dataclass
class Seat:
    """A resident of the small world below."""

    key: str
    group: str
    specialist: str
    state: State
    memory: Memory
    last_used: float = 0.0
    shares: Counter[str] = field(default_factory=Counter)

    @property
    def leases(self) -> int:
        return self.shares.total()

    def view(self) -> ResidentView:
        shares = +self.shares if self.group == "shared" else {}
        leases = self.leases
        return ResidentView(
            self.key, self.state, self.memory, leases, 2, self.last_used, False, self.group, self.specialist, shares
        )


# specialist -> its group, and what a resident of that takes: of the card, of the host, of both
WORLD = {
    "a": ("a", both(3, 1)),
    "b": ("b", both(4, 5)),
    "c": ("c", both(0, 4)),
    "d": ("d", both(8, 0)),
    **dict.fromkeys(("s1", "s2", "s3"), ("shared", both(5, 2))),
}
SHARED = GroupView(Distances([Pair(one, other, 0, 1) for one, other in combinations(("s1", "s2", "s3"), 2)]), most=3)
BUDGET = both(10, 8)


class AnyOrder(RuleBasedStateMachine):
    """Requests, ends of requests, loads and stops in any order: the plan keeps its promises in all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.number = 0
        self.waiting: list[tuple[int, str, float, CacheAffinity | None]] = []
        self.seats: dict[str, Seat] = {}

    def replan(self) -> None:
        names = {number: name for number, name, _, _ in self.waiting}
        waiters = [
            WaiterView(number, *WORLD[name], self.now - since, name, affinity)
            for number, name, since, affinity in self.waiting
        ]
        residents = [seat.view() for seat in self.seats.values()]
        decided = plan(waiters, residents, BUDGET, max_bypass_s=BOUND_S, now=self.now, groups={"shared": SHARED})
        for grant in decided.grants:
            seat = self.seats[grant.resident]
            assert seat.state is State.WARM
            assert seat.group == WORLD[names[grant.waiter]][0]
            seat.specialist = names[grant.waiter]
            seat.shares[seat.specialist] += 1
            assert seat.shares[seat.specialist] <= 2
        served = {grant.waiter for grant in decided.grants}
        assert len(served) == len(decided.grants), "no request is served twice"
        self.waiting = [entry for entry in self.waiting if entry[0] not in served]
        assert [wait.waiter for wait in decided.waits] == [entry[0] for entry in self.waiting], "each has a reason"
        for eviction in decided.evict:
            seat = self.seats[eviction.resident]
            assert seat.state is State.WARM, "only what is warm can be stopped"
            assert not seat.leases, "no resident is stopped while busy"
            seat.state = State.DRAINING
        for load in decided.load:
            of_group = [seat for seat in self.seats.values() if seat.group == load.group]
            assert not of_group or load.group == "shared", "nothing is loaded twice"
            assert load.specialist not in [seat.specialist for seat in of_group], "no specialist has two residents"
            assert len(of_group) < 3, "no more residents than specialists"
            self.number += 1
            key = f"{load.group} {self.number}"
            self.seats[key] = Seat(key, load.group, load.specialist, State.LOADING, WORLD[load.specialist][1])

    @rule(name=st.sampled_from(sorted(WORLD)), worth_bytes=st.sampled_from([None, 0, 1, 2]), data=st.data())
    def ask(self, name: str, worth_bytes: int | None, data: st.DataObject) -> None:
        """worth_bytes: of a conversation that was answered before; its resident may be gone."""
        self.number += 1
        affinity = None
        if worth_bytes is not None:
            affinity = CacheAffinity(data.draw(st.sampled_from(["gone", *self.seats])), worth_bytes)
        self.waiting.append((self.number, name, self.now, affinity))
        self.replan()

    @rule(seconds=st.sampled_from([1.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.replan()

    @rule(data=st.data())
    @precondition(lambda self: any(seat.leases for seat in self.seats.values()))
    def a_request_ends(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from([seat for seat in self.seats.values() if seat.leases])))

    def end(self, seat: Seat) -> None:
        seat.shares[max(+seat.shares)] -= 1
        seat.last_used = self.now
        self.replan()

    @rule(data=st.data())
    @precondition(lambda self: any(seat.state is not State.WARM for seat in self.seats.values()))
    def a_load_or_a_stop_is_done(self, data: st.DataObject) -> None:
        moving = [seat for seat in self.seats.values() if seat.state is not State.WARM]
        self.done(data.draw(st.sampled_from(moving)))

    def done(self, seat: Seat) -> None:
        if seat.state is State.LOADING:
            seat.state, seat.last_used = State.WARM, self.now
        else:
            del self.seats[seat.key]
        self.replan()

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def a_request_gives_up(self, data: st.DataObject) -> None:
        self.waiting.remove(data.draw(st.sampled_from(self.waiting)))
        self.replan()

    @invariant()
    def the_budget_holds(self) -> None:
        booked = Memory.total(seat.memory for seat in self.seats.values())
        assert booked[CARD] <= BUDGET[CARD]
        assert booked[HOST] <= BUDGET[HOST]

    def teardown(self) -> None:
        """Whatever has happened: when requests end and loads do, every request that waits is served."""
        for _ in range(20 * (len(self.waiting) + 5)):
            if not self.waiting:
                return
            self.now += 1.0
            moving = next((seat for seat in self.seats.values() if seat.state is not State.WARM), None)
            busy = next((seat for seat in self.seats.values() if seat.leases), None)
            if moving is not None:
                self.done(moving)
            elif busy is not None:
                self.end(busy)
            else:
                self.replan()
        raise AssertionError(f"still waiting: {self.waiting}; there are {list(self.seats.values())}")


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
