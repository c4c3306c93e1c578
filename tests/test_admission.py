"""Who is served, loaded and evicted: the planner alone, by plain calls and by a machine that tries everything."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coe.engine.admission import Plan, ResidentView, State, WaiterView, expired, plan, plan_evictions

BOUND_S = 10.0


def warm(key: str, size: int = 4, *, leases: int = 0, last_used: float = 0.0, pinned: bool = False) -> ResidentView:
    return ResidentView(key, State.WARM, size, leases, 2, last_used, pinned)


def waiter(number: int, key: str, size: int = 4, *, bypassed_s: float = 0.0) -> WaiterView:
    return WaiterView(number, key, size, bypassed_s)


def decide(waiters: list[WaiterView], residents: list[ResidentView], budget: int = 8) -> Plan:
    return plan(waiters, residents, budget, max_bypass_s=BOUND_S)


class TestEvictions:
    def test_nothing_goes_while_it_fits(self) -> None:
        assert plan_evictions(4, [warm("a")], 8) == []

    def test_the_least_recently_used_goes_first(self) -> None:
        assert plan_evictions(4, [warm("a", last_used=5), warm("b", last_used=2)], 8) == ["b"]

    def test_a_busy_resident_stays(self) -> None:
        assert plan_evictions(4, [warm("a", leases=1, last_used=1), warm("b", last_used=9)], 8) == ["b"]

    def test_a_pinned_resident_stays(self) -> None:
        assert plan_evictions(8, [warm("a", pinned=True), warm("b")], 8) is None

    def test_nobody_is_stopped_in_vain(self) -> None:
        assert plan_evictions(8, [warm("a", leases=1), warm("b")], 8) is None

    def test_a_resident_that_is_going_counts_as_room_to_come(self) -> None:
        going = replace(warm("a"), state=State.DRAINING)
        assert plan_evictions(4, [going, warm("b")], 8) == []


class TestPlan:
    def test_a_warm_specialist_is_served_at_once(self) -> None:
        assert decide([waiter(1, "a")], [warm("a")]) == Plan(grants=(1,))

    def test_no_more_leases_than_a_resident_has_slots(self) -> None:
        assert decide([waiter(i, "a") for i in range(3)], [warm("a")]).grants == (0, 1)

    def test_waiters_of_one_cold_specialist_share_one_load(self) -> None:
        assert decide([waiter(i, "a") for i in range(5)], []) == Plan(load=("a",))

    def test_a_load_waits_until_the_bytes_are_really_back(self) -> None:
        going = replace(warm("a"), state=State.DRAINING)
        assert decide([waiter(1, "b", 6)], [going]) == Plan()

    def test_a_later_waiter_does_not_take_the_room_an_earlier_one_waits_for(self) -> None:
        assert decide([waiter(1, "big", 8), waiter(2, "small", 2)], [warm("a", leases=1)]) == Plan()

    def test_requests_for_what_is_warm_pass_at_first(self) -> None:
        decided = decide([waiter(1, "b", 8, bypassed_s=9.9), waiter(2, "a")], [warm("a", leases=1)])
        assert decided == Plan(grants=(2,))

    def test_they_stop_passing_when_the_bound_is_reached(self) -> None:
        decided = decide([waiter(1, "b", 8, bypassed_s=10), waiter(2, "a")], [warm("a", leases=1)])
        assert decided == Plan()

    def test_those_that_came_before_the_overdue_one_still_pass(self) -> None:
        decided = decide([waiter(1, "a"), waiter(2, "b", 8, bypassed_s=10), waiter(3, "a")], [warm("a")])
        assert decided == Plan(grants=(1,))

    def test_only_as_many_residents_close_as_are_in_the_way(self) -> None:
        residents = [warm("a", leases=1), replace(warm("c", leases=2), capacity=4)]
        waiters = [waiter(1, "b", bypassed_s=10), waiter(2, "a"), waiter(3, "c")]
        assert decide(waiters, residents).grants == (3,)

    def test_a_resident_that_took_more_than_predicted_makes_others_go(self) -> None:
        residents = [warm("a", 4, last_used=1), warm("b", 6, last_used=2, leases=1)]
        assert decide([], residents) == Plan(evict=("a",))

    def test_residents_expire_after_their_idle_time_but_not_while_busy_or_pinned(self) -> None:
        residents = [warm("a"), warm("b", leases=1), warm("c", pinned=True), warm("d", last_used=95)]
        assert expired(residents, 100.0, 30.0) == ["a"]
        assert expired(residents, 1e9, None) == []


@dataclass
class Seat:
    """A resident of the small world below."""

    key: str
    state: State
    size: int
    leases: int = 0
    last_used: float = 0.0
    pinned: bool = False

    def view(self) -> ResidentView:
        return ResidentView(self.key, self.state, self.size, self.leases, 2, self.last_used, self.pinned)


SIZES = {"a": 3, "b": 4, "c": 5, "d": 8}
BUDGET = 10


class AnyOrder(RuleBasedStateMachine):
    """Requests, ends of requests, loads and stops in any order: the plan keeps its promises in all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.number = 0
        self.waiting: list[tuple[int, str, float]] = []
        self.seats: dict[str, Seat] = {}

    def replan(self) -> None:
        views = [WaiterView(number, key, SIZES[key], self.now - since) for number, key, since in self.waiting]
        decided = plan(views, [seat.view() for seat in self.seats.values()], BUDGET, max_bypass_s=BOUND_S)
        keys = {number: key for number, key, _ in self.waiting}
        for number in decided.grants:
            seat = self.seats[keys[number]]
            assert seat.state is State.WARM
            seat.leases += 1
            assert seat.leases <= 2
        self.waiting = [entry for entry in self.waiting if entry[0] not in decided.grants]
        for key in decided.evict:
            seat = self.seats[key]
            assert seat.state is State.WARM, "only what is warm can be stopped"
            assert not seat.leases, "nobody is stopped while busy"
            assert not seat.pinned
            seat.state = State.DRAINING
        for key in decided.load:
            assert key not in self.seats, "nothing is loaded twice"
            self.seats[key] = Seat(key, State.LOADING, SIZES[key], pinned=False)

    @rule(key=st.sampled_from(sorted(SIZES)))
    def ask(self, key: str) -> None:
        self.waiting.append((self.number, key, self.now))
        self.number += 1
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
        seat.leases -= 1
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
    def somebody_gives_up(self, data: st.DataObject) -> None:
        self.waiting.remove(data.draw(st.sampled_from(self.waiting)))
        self.replan()

    @invariant()
    def the_budget_holds(self) -> None:
        assert sum(seat.size for seat in self.seats.values()) <= BUDGET

    def teardown(self) -> None:
        """Whatever has happened: when requests end and loads do, everybody who waits is served."""
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
