"""The pool, with loads that end when the test lets them and a clock that the test turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from coe.engine.errors import (
    EngineError,
    LoadError,
    ModelFileError,
    QueueFullError,
    ShuttingDownError,
    UnavailableError,
    WaitTimeoutError,
    WorkerDiedError,
)
from coe.engine.pool.admission import State
from coe.engine.pool.places import Memory
from coe.engine.pool.pool import Pool
from coe.engine.pool.types import Entry, PoolLimits
from coe.engine.spec import LoadSpec
from fakes.pool_world import LONG_S, Clock, FakeLoader, ask, booked, both, host, states, turns

NewPool = Callable[..., Pool]


@pytest.fixture
async def new_pool(loader: FakeLoader, clock: Clock) -> AsyncIterator[NewPool]:
    """new_pool(a=4, b=4, budget=8, pinned={"a"}, max_queue=3): specialists by their bytes, then settings."""
    pools: list[Pool] = []

    def make(
        budget: int = 8,
        *,
        pinned: frozenset[str] | set[str] = frozenset(),
        free_memory: Any = None,
        settings: Mapping[str, Any] | None = None,
        held: Mapping[str, Memory] | None = None,
        **sizes: int,
    ) -> Pool:
        entries = {
            name: Entry(LoadSpec(Path(name), parallel=2), host(size), pinned=name in pinned)
            for name, size in sizes.items()
        }
        limits = PoolLimits(host(budget), **(settings or {}))
        pools.append(Pool(entries, limits, loader, clock=clock, free_memory=free_memory, held=held))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()


class TestLoads:
    async def test_callers_of_one_cold_specialist_share_one_load(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4)
        loader.hold("a")
        asked = [ask(pool, "a") for _ in range(4)]
        await turns()
        assert loader.loads == ["a"]
        loader.release("a")
        first, second = await asked[0], await asked[1]
        first.release()
        second.release()
        for task in asked[2:]:
            (await task).release()
        assert loader.loads == ["a"]

    async def test_a_lease_says_whether_it_was_warm(self, new_pool: NewPool) -> None:
        pool = new_pool(a=4)
        cold = await pool.lease("a", max_wait_s=LONG_S)
        warm = await pool.lease("a", max_wait_s=LONG_S)
        assert (cold.residency, warm.residency) == ("loaded", "warm")

    async def test_two_that_fit_load_side_by_side(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4, b=4)
        loader.hold("a", "b")
        asked = [ask(pool, "a"), ask(pool, "b")]
        await turns()
        assert loader.loads == ["a", "b"]
        assert booked(pool) == 8
        loader.release("b")
        await asked[1]
        loader.release("a")
        await asked[0]

    async def test_progress_is_reported_and_its_absence_is_a_stall(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=4, settings={"stall_s": 30.0})
        loader.hold("a")
        asked = ask(pool, "a")
        await turns()
        loader.progress["a"](0.5)
        assert pool.status().residents[0].progress == 0.5
        clock.advance(14)
        assert pool.status().stalled == ()
        clock.advance(2)
        assert "a shows no progress" in pool.status().stalled[0]
        loader.release("a")
        await asked

    async def test_a_resident_that_hangs_takes_no_more_requests_and_is_replaced_when_its_memory_is_back(
        self, new_pool: NewPool, loader: FakeLoader, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = new_pool(a=4)
        lease = await ask(pool, "a")
        hung = loader.residents["a"]
        hung.hang()
        await turns()
        assert states(pool) == {"a": State.DRAINING}
        next_one = ask(pool, "a")
        await turns()
        assert not next_one.done()
        assert booked(pool) == 4, "its process has not ended"
        lease.release()
        hung.gone.set()
        (await next_one).release()
        assert loader.loads == ["a", "a"]
        assert "a gave no sign of life for 60 s and was killed; requests that failed with it: req-1" in caplog.text

    async def test_a_pool_that_refuses_ends_what_waits_and_what_runs_and_takes_nothing_more(
        self, new_pool: NewPool, loader: FakeLoader
    ) -> None:
        pool = new_pool(a=4)
        lease = await ask(pool, "a")
        error = ShuttingDownError()
        pool.refuse(error)
        assert loader.residents["a"].refused == [error]
        with pytest.raises(ShuttingDownError):
            await ask(pool, "a")
        lease.release()

    async def test_a_load_that_takes_too_long_is_given_up(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=4, settings={"load_timeout_s": 60.0})
        loader.hold("a")
        asked = ask(pool, "a")
        await turns()
        clock.advance(61)
        with pytest.raises(LoadError, match="did not load within 60 s"):
            await asked
        assert loader.cancelled == ["a"]
        assert booked(pool) == 0


class TestEviction:
    async def test_the_least_recently_used_idle_resident_goes(self, new_pool: NewPool, clock: Clock) -> None:
        pool = new_pool(a=4, b=4, c=4)
        for name in ("a", "b", "a"):
            (await pool.lease(name, max_wait_s=LONG_S)).release()
            clock.advance(1)
        await pool.lease("c", max_wait_s=LONG_S)
        assert set(states(pool)) == {"a", "c"}

    async def test_a_pinned_resident_never_goes(self, new_pool: NewPool, clock: Clock) -> None:
        pool = new_pool(a=4, b=4, c=4, pinned={"a"})
        for name in ("a", "b"):
            (await pool.lease(name, max_wait_s=LONG_S)).release()
            clock.advance(1)
        await pool.lease("c", max_wait_s=LONG_S)
        assert set(states(pool)) == {"a", "c"}

    async def test_a_busy_resident_never_goes(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4, b=8)
        held = await pool.lease("a", max_wait_s=LONG_S)
        asked = ask(pool, "b")
        await turns()
        assert states(pool) == {"a": State.WARM}
        held.release()
        await asked
        assert states(pool) == {"b": State.WARM}

    async def test_nothing_is_loaded_before_the_bytes_are_back(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=8, b=8)
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        loader.residents["a"].may_stop.clear()
        asked = ask(pool, "b")
        await turns()
        assert states(pool) == {"a": State.DRAINING}
        assert loader.loads == ["a"]
        loader.residents["a"].may_stop.set()
        await asked
        assert loader.loads == ["a", "b"]

    async def test_how_fast_prompts_were_read_is_known_when_the_resident_has_gone(
        self, new_pool: NewPool, loader: FakeLoader
    ) -> None:
        pool = new_pool(a=8, b=8)
        assert pool.prompt_tokens_per_s("a") is None
        lease = await pool.lease("a", max_wait_s=LONG_S)
        assert pool.prompt_tokens_per_s("a") is None
        loader.residents["a"].activity["prompt_tokens_per_s"] = 250.0
        assert pool.prompt_tokens_per_s("a") == 250.0
        lease.release()
        (await pool.lease("b", max_wait_s=LONG_S)).release()
        assert pool.prompt_tokens_per_s("a") == 250.0
        assert pool.prompt_tokens_per_s("b") is None

    async def test_an_idle_resident_goes_after_its_time(self, new_pool: NewPool, clock: Clock) -> None:
        pool = new_pool(a=4, b=4, settings={"idle_ttl_s": 60.0}, pinned={"b"})
        for name in ("a", "b"):
            (await pool.lease(name, max_wait_s=LONG_S)).release()
        clock.advance(59)
        await turns()
        assert set(states(pool)) == {"a", "b"}
        clock.advance(2)
        await turns()
        assert set(states(pool)) == {"b"}

    async def test_unloading_on_request_spares_what_is_busy(self, new_pool: NewPool) -> None:
        pool = new_pool(a=4)
        held = await pool.lease("a", max_wait_s=LONG_S)
        assert not await pool.unload("a")
        held.release()
        assert await pool.unload("a")
        assert booked(pool) == 0


class TestFairness:
    async def test_two_in_turn_load_twice_not_four_times(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=8, b=8)
        loader.hold("a", "b")
        asked = [ask(pool, name) for name in "abab"]
        await turns()
        loader.release("a")
        for lease in (await asked[0], await asked[2]):
            lease.release()
        loader.release("b")
        for lease in (await asked[1], await asked[3]):
            lease.release()
        assert loader.loads == ["a", "b"]

    async def test_that_holds_when_a_load_lasts_longer_than_the_bound(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=8, b=8, settings={"max_bypass_s": 10.0})
        loader.hold("a", "b")
        asked = [ask(pool, name) for name in "abab"]
        await turns()
        clock.advance(30)
        loader.release("a")
        await turns()
        assert [task.done() for task in asked] == [True, False, True, False]
        for lease in (await asked[0], await asked[2]):
            lease.release()
        await turns()
        clock.advance(30)
        loader.release("b")
        for lease in (await asked[1], await asked[3]):
            lease.release()
        assert loader.loads == ["a", "b"]

    async def test_steady_traffic_on_one_starves_no_other(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=8, b=8, settings={"max_bypass_s": 10.0})
        running = await pool.lease("a", max_wait_s=LONG_S)
        waiting = ask(pool, "b")
        await turns()
        for _ in range(9):  # requests for the warm one overlap and pass
            clock.advance(1)
            following = await pool.lease("a", max_wait_s=LONG_S)
            running.release()
            running = following
        clock.advance(2)
        late = ask(pool, "a")
        await turns()
        assert not late.done(), "the bound has passed: no request passes any more"
        assert not waiting.done(), "what runs is not interrupted"
        running.release()
        (await waiting).release()
        (await late).release()
        assert loader.loads == ["a", "b", "a"]

    async def test_the_bound_is_noticed_without_any_other_event(self, new_pool: NewPool, clock: Clock) -> None:
        pool = new_pool(a=4, b=8, c=4, settings={"max_bypass_s": 10.0})
        held = [await pool.lease("a", max_wait_s=LONG_S), await pool.lease("c", max_wait_s=LONG_S)]
        waiting = ask(pool, "b")
        await turns()
        assert any(moment <= clock.now + 10.01 for moment, *_, handle in clock.timers if not handle.cancelled())
        for lease in held:
            lease.release()
        await waiting


class TestFailures:
    async def test_a_failed_load_fails_its_waiters_with_its_reason(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4, b=4)
        loader.hold("a")
        loader.failures["a"] = ModelFileError("a is damaged.", "Fetch it again.")
        asked = [ask(pool, "a"), ask(pool, "a")]
        await turns()
        loader.release("a")
        for task in asked:
            with pytest.raises(ModelFileError, match="a is damaged"):
                await task
        assert booked(pool) == 0
        assert pool.status().failed_loads == 1
        await pool.lease("b", max_wait_s=LONG_S)

    async def test_after_a_failure_the_next_try_waits_longer_each_time(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=4, settings={"load_backoff_s": 5.0})
        loader.failures["a"] = LoadError("no memory.")

        async def attempt() -> None:
            with pytest.raises(LoadError, match="no memory"):
                await pool.lease("a", max_wait_s=LONG_S)

        await attempt()
        await attempt()
        assert loader.loads == ["a"], "refused without a try"
        clock.advance(5)
        await attempt()
        assert loader.loads == ["a", "a"]
        clock.advance(9)
        await attempt()
        assert loader.loads == ["a", "a"]
        clock.advance(1)
        del loader.failures["a"]
        await pool.lease("a", max_wait_s=LONG_S)
        assert loader.loads == ["a", "a", "a"]

    async def test_a_process_that_is_lost_in_a_load_is_counted_and_the_next_load_waits_from_the_second_on(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=4, settings={"load_backoff_s": 5.0})
        loader.failures["a"] = lost = WorkerDiedError("The worker died.", "Send the request again.")
        lost.cause = "SIGKILL"

        async def attempt() -> None:
            with pytest.raises((WorkerDiedError, LoadError)):
                await pool.lease("a", max_wait_s=LONG_S)

        for n_loads in (1, 2, 2):
            await attempt()
            assert len(loader.loads) == n_loads
        clock.advance(5)
        for n_loads in (3, 3):
            await attempt()
            assert len(loader.loads) == n_loads
        assert pool.status().deaths == {"SIGKILL": 3}

    async def test_an_unforeseen_error_is_a_failed_load_too(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4)
        loader.failures["a"] = RuntimeError("surprise")
        with pytest.raises(LoadError, match="surprise"):
            await pool.lease("a", max_wait_s=LONG_S)
        assert booked(pool) == 0

    async def test_the_room_of_a_failed_load_goes_to_the_next_in_the_queue(
        self, new_pool: NewPool, loader: FakeLoader
    ) -> None:
        pool = new_pool(a=8, b=8)
        loader.hold("a")
        loader.failures["a"] = LoadError("no.")
        failing, next_one = ask(pool, "a"), ask(pool, "b")
        await turns()
        loader.release("a")
        with pytest.raises(LoadError):
            await failing
        await next_one

    async def test_a_dead_worker_leaves_and_the_next_request_loads_anew(
        self, new_pool: NewPool, loader: FakeLoader
    ) -> None:
        pool = new_pool(a=4)
        lease = await pool.lease("a", max_wait_s=LONG_S)
        loader.residents["a"].gone.set()
        await turns()
        assert booked(pool) == 0
        lease.release()
        again = await pool.lease("a", max_wait_s=LONG_S)
        assert loader.loads == ["a", "a"]
        assert pool.status().residents[0].leases == 1
        again.release()

    async def test_what_can_never_fit_is_refused_with_both_figures(self, new_pool: NewPool) -> None:
        pool = new_pool(2 * 2**30, a=3 * 2**30)
        with pytest.raises(UnavailableError, match=r"needs 3\.00 GiB; the budget is 2\.00 GiB"):
            await pool.lease("a", max_wait_s=LONG_S)

    async def test_what_cannot_fit_beside_the_pinned_is_refused(self, new_pool: NewPool) -> None:
        pool = new_pool(a=4, b=6, pinned={"a"})
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        with pytest.raises(UnavailableError, match="of them pinned"):
            await pool.lease("b", max_wait_s=LONG_S)

    async def test_an_unknown_specialist_is_refused(self, new_pool: NewPool) -> None:
        with pytest.raises(UnavailableError):
            await new_pool(a=4).lease("b", max_wait_s=LONG_S)


class TestWaiting:
    async def test_waiting_ends_in_time(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4)
        loader.hold("a")
        with pytest.raises(WaitTimeoutError):
            await pool.lease("a", max_wait_s=0)
        assert pool.status().waiting == ()
        loader.release("a")
        lease = await pool.lease("a", max_wait_s=LONG_S)
        assert loader.loads == ["a"], "the load went on for the next request"
        assert pool.status().residents[0].leases == 1
        lease.release()

    async def test_the_queue_has_an_end(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4, b=8, settings={"max_queue": 2})
        held = await pool.lease("a", max_wait_s=LONG_S)
        asked = [ask(pool, "b"), ask(pool, "b")]
        await turns()
        with pytest.raises(QueueFullError):
            await pool.lease("b", max_wait_s=LONG_S)
        (await pool.lease("a", max_wait_s=LONG_S)).release()  # what need not wait is served
        held.release()
        for task in asked:
            (await task).release()

    async def test_a_full_queue_refuses_requests_that_may_not_pass_any_more(
        self, new_pool: NewPool, clock: Clock
    ) -> None:
        pool = new_pool(a=4, b=8, settings={"max_queue": 1, "max_bypass_s": 10.0})
        held = await pool.lease("a", max_wait_s=LONG_S)
        waiting = ask(pool, "b")
        await turns()
        clock.advance(11)
        with pytest.raises(QueueFullError):
            await pool.lease("a", max_wait_s=LONG_S)
        held.release()
        await waiting

    async def test_a_client_that_leaves_gives_its_place_back(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4, b=8)
        held = await pool.lease("a", max_wait_s=LONG_S)
        leaving, staying = ask(pool, "b"), ask(pool, "a")
        await turns()
        leaving.cancel()
        await turns()
        assert pool.status().waiting == ()
        held.release()
        (await staying).release()
        assert loader.loads == ["a"]

    async def test_a_client_that_leaves_during_a_load_leaves_the_pool_as_it_was(
        self, new_pool: NewPool, loader: FakeLoader
    ) -> None:
        pool = new_pool(a=8, b=8)
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        loader.hold("b")
        leaving = ask(pool, "b")
        await loader.started["b"].wait()
        leaving.cancel()
        await turns()
        assert loader.cancelled == ["b"]
        assert states(pool) == {"a": State.WARM}
        assert loader.loads == ["a", "b", "a"]

    async def test_nor_does_one_that_leaves_while_room_is_made_for_it(
        self, new_pool: NewPool, loader: FakeLoader
    ) -> None:
        pool = new_pool(a=8, b=8)
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        loader.residents["a"].may_stop.clear()
        leaving = ask(pool, "b")
        await turns()
        assert states(pool) == {"a": State.DRAINING}
        leaving.cancel()
        await turns()
        loader.residents["a"].may_stop.set()
        await turns()
        assert states(pool) == {"a": State.WARM}
        assert loader.loads == ["a", "a"]

    async def test_a_load_that_another_waits_for_goes_on(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=8, b=8)
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        loader.hold("b")
        leaving, staying = ask(pool, "b"), ask(pool, "b")
        await loader.started["b"].wait()
        leaving.cancel()
        await turns()
        loader.release("b")
        (await staying).release()
        assert loader.loads == ["a", "b"]

    async def test_what_went_in_vain_comes_back_after_those_that_wait(
        self, new_pool: NewPool, loader: FakeLoader
    ) -> None:
        pool = new_pool(a=8, b=8, c=4)
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        loader.hold("b")
        leaving, waiting = ask(pool, "b"), ask(pool, "c")
        await loader.started["b"].wait()
        leaving.cancel()
        lease = await waiting
        assert states(pool) == {"c": State.WARM}
        lease.release()
        await turns()
        assert states(pool) == {"c": State.WARM}  # there is no room beside it, and it was asked for

    async def test_a_lease_given_up_at_the_moment_of_its_grant_does_not_leak(
        self, new_pool: NewPool, loader: FakeLoader
    ) -> None:
        pool = new_pool(a=4)
        held = [await pool.lease("a", max_wait_s=LONG_S) for _ in range(2)]
        waiting = ask(pool, "a")
        await turns()
        held[0].release()  # grants the waiting one ...
        waiting.cancel()  # ... which leaves before it has seen it
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert pool.status().residents[0].leases == 1
        held[1].release()

    async def test_nor_does_one_whose_waiting_ends_at_that_moment(self, new_pool: NewPool) -> None:
        pool = new_pool(a=4)
        held = [await pool.lease("a", max_wait_s=LONG_S) for _ in range(2)]
        waiting = ask(pool, "a", max_wait_s=0)
        await asyncio.sleep(0)
        held[0].release()
        with contextlib.suppress(WaitTimeoutError):
            (await waiting).release()
        assert pool.status().residents[0].leases == 1
        held[1].release()
        assert pool.status().residents[0].leases == 0

    async def test_releasing_twice_is_releasing_once(self, new_pool: NewPool) -> None:
        pool = new_pool(a=4)
        first, second = [await pool.lease("a", max_wait_s=LONG_S) for _ in range(2)]
        first.release()
        first.release()
        assert pool.status().residents[0].leases == 1
        second.release()

    async def test_two_hundred_at_once_are_all_served(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4, b=4, c=4, settings={"max_queue": 200})
        served: Counter[str] = Counter()

        async def client(name: str) -> None:
            lease = await pool.lease(name, max_wait_s=LONG_S)
            await asyncio.sleep(0)
            served[name] += 1
            lease.release()
            assert booked(pool) <= 8

        names = [("a", "b", "c")[number % 3] for number in range(200)]
        await asyncio.gather(*(client(name) for name in names))
        assert served == Counter(names)
        assert len(loader.loads) <= 6


class TestMeasuring:
    async def test_bytes_above_the_prediction_are_booked(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4)
        loader.memory["a"] = host(5)
        await pool.lease("a", max_wait_s=LONG_S)
        assert booked(pool) == 5

    async def test_bytes_below_it_are_not_trusted(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4)
        loader.memory["a"] = host(2)
        await pool.lease("a", max_wait_s=LONG_S)
        assert booked(pool) == 4

    async def test_they_are_remembered_for_the_next_load(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=4, b=4)
        loader.memory["a"] = host(5)
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        await pool.unload("a")
        clock.advance(1)
        busy = await pool.lease("b", max_wait_s=LONG_S)
        waiting = ask(pool, "a")
        await turns()
        assert loader.loads == ["a", "b"], "5 bytes do not fit beside 4 in 8"
        busy.release()
        await waiting

    async def test_an_idle_one_goes_when_a_load_took_more_than_predicted(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=4, b=4)
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        clock.advance(1)
        loader.memory["b"] = host(6)
        held = await pool.lease("b", max_wait_s=LONG_S)
        await turns()
        assert states(pool) == {"b": State.WARM}
        assert booked(pool) == 6
        held.release()

    async def test_the_device_is_asked_before_and_after(self, new_pool: NewPool) -> None:
        free = iter([100, 93])

        async def free_memory() -> Memory:
            return host(next(free))

        pool = new_pool(a=4, free_memory=free_memory)
        await pool.lease("a", max_wait_s=LONG_S)
        assert booked(pool) == 7

    @pytest.mark.parametrize(("lost", "measured", "expected"), [(0, 6, 6), (7, 6, 7), (0, 3, 4)])
    async def test_the_larger_is_believed_of_what_the_card_lost_and_what_the_worker_measured(
        self, lost: int, measured: int, expected: int, new_pool: NewPool, loader: FakeLoader
    ) -> None:
        free = iter([100, 100 - lost])

        async def free_memory() -> Memory:
            return host(next(free))

        loader.memory["a"] = host(measured)
        pool = new_pool(a=4, free_memory=free_memory)
        await pool.lease("a", max_wait_s=LONG_S)
        assert booked(pool) == expected

    async def test_each_place_is_measured_by_itself(self, loader: FakeLoader, clock: Clock) -> None:
        loader.memory["a"] = both(6, 1)
        entries = {"a": Entry(LoadSpec(Path("a")), both(4, 3))}
        pool = Pool(entries, PoolLimits(both(8, 8)), loader, clock=clock)
        await pool.lease("a", max_wait_s=LONG_S)
        assert pool.status().booked == both(6, 3)
        assert booked(pool) == 6
        await pool.close()

    async def test_the_device_is_asked_at_the_first_load_of_each_group(self, new_pool: NewPool) -> None:
        free, asked = iter([100, 93, 100, 95]), 0

        async def free_memory() -> Memory:
            nonlocal asked
            asked += 1
            return host(next(free))

        pool = new_pool(a=4, b=4, budget=8, free_memory=free_memory)
        for name in ("a", "b", "a", "b"):
            (await pool.lease(name, max_wait_s=LONG_S)).release()
        assert pool.loads == 4
        assert asked == 4
        assert booked(pool) == 5, "b takes 5, as was found when it was loaded first"

    async def test_a_machine_without_a_device_is_asked_once(self, new_pool: NewPool) -> None:
        asked = 0

        async def free_memory() -> None:
            nonlocal asked
            asked += 1

        pool = new_pool(a=4, b=4, free_memory=free_memory)
        await pool.lease("a", max_wait_s=LONG_S)
        await pool.lease("b", max_wait_s=LONG_S)
        assert asked == 1

    async def test_what_is_more_than_the_budget_is_measured_again(self, new_pool: NewPool) -> None:
        free = iter([100, 80, 100, 92, 100, 95])

        async def free_memory() -> Memory:
            return host(next(free))

        pool = new_pool(a=4, b=4, free_memory=free_memory)
        for name in ("a", "b", "a"):
            (await pool.lease(name, max_wait_s=LONG_S)).release()
        assert booked(pool) == 5, "15 of the 20 that went at first were another program's"

    async def test_two_loads_at_once_are_not_measured_as_one(self, new_pool: NewPool, loader: FakeLoader) -> None:
        async def free_memory() -> Memory:
            return host(100 - 4 * len(loader.residents))

        pool = new_pool(a=4, b=4, free_memory=free_memory)
        loader.hold("a")
        first, second = ask(pool, "a"), ask(pool, "b")
        await second
        loader.release("a")
        await first
        assert booked(pool) == 8

    async def test_a_measurement_that_fails_does_not_fail_the_load(self, new_pool: NewPool) -> None:
        async def free_memory() -> Memory:
            raise EngineError("no device")

        pool = new_pool(a=4, free_memory=free_memory)
        await pool.lease("a", max_wait_s=LONG_S)
        assert booked(pool) == 4


class TestClosing:
    async def test_closing_ends_loads_that_are_under_way(self, new_pool: NewPool, loader: FakeLoader) -> None:
        pool = new_pool(a=4, b=4)
        held = await pool.lease("b", max_wait_s=LONG_S)
        loader.hold("a")
        asked = ask(pool, "a")
        await turns()
        await pool.close()
        with pytest.raises(ShuttingDownError):
            await asked
        assert loader.cancelled == ["a"]
        assert loader.residents["b"].gone.is_set()
        assert pool.status().residents == ()
        held.release()
        with pytest.raises(ShuttingDownError):
            await pool.lease("b", max_wait_s=LONG_S)

    async def test_closing_while_a_load_is_being_measured_stops_its_worker(
        self, new_pool: NewPool, loader: FakeLoader
    ) -> None:
        measured = asyncio.Event()

        async def free_memory() -> Memory:
            if loader.residents:
                measured.set()
                await asyncio.Event().wait()
            return host(100)

        pool = new_pool(a=4, free_memory=free_memory)
        asked = ask(pool, "a")
        await measured.wait()
        await pool.close()
        assert loader.residents["a"].gone.is_set()
        with pytest.raises(ShuttingDownError):
            await asked


class TestReservations:
    """Room for what is no resident: a build, for example."""

    async def test_room_is_booked_like_a_resident_and_given_back(self, new_pool: NewPool) -> None:
        pool = new_pool(a=4)
        room = await pool.reserve("the build of a", host(5))
        assert booked(pool) == 5
        (shown,) = pool.status().residents
        assert (shown.specialists, shown.file, shown.state) == ((), "the build of a", State.WARM)
        room.release()
        room.release()
        assert booked(pool) == 0

    async def test_idle_residents_go_for_it_and_busy_ones_are_waited_for(self, new_pool: NewPool) -> None:
        pool = new_pool(a=4, b=4)
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        busy = await pool.lease("b", max_wait_s=LONG_S)
        asked = asyncio.create_task(pool.reserve("a build", host(6)))
        await turns()
        assert not asked.done()
        assert states(pool)["b"] is State.WARM
        busy.release()
        (await asked).release()

    async def test_a_kept_reservation_is_never_taken_away_and_what_cannot_fit_beside_it_is_refused(
        self, new_pool: NewPool, clock: Clock
    ) -> None:
        pool = new_pool(a=4, b=3)
        room = await pool.reserve("the build of x", host(5))
        with pytest.raises(UnavailableError, match="held by the build of x"):
            await pool.lease("a", max_wait_s=LONG_S)
        (await pool.lease("b", max_wait_s=LONG_S)).release()
        clock.advance(LONG_S)
        assert booked(pool) == 8
        room.release()
        (await pool.lease("a", max_wait_s=LONG_S)).release()

    async def test_one_that_makes_way_is_stopped_before_any_resident(self, new_pool: NewPool) -> None:
        pool = new_pool(a=4, b=4)
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        stopped, may_end = asyncio.Event(), asyncio.Event()

        async def stop() -> None:
            stopped.set()
            await may_end.wait()

        room = await pool.reserve("a build", host(4), stop=stop)
        asked = ask(pool, "b")
        await stopped.wait()
        await turns()
        assert not asked.done(), "its bytes are its own until it has ended"
        assert states(pool)["a"] is State.WARM
        room.release()
        assert booked(pool) == 8
        may_end.set()
        (await asked).release()
        assert states(pool) == {"a": State.WARM, "b": State.WARM}

    async def test_one_that_waits_for_idle_time_waits_until_nothing_was_asked_for_a_while(
        self, new_pool: NewPool, clock: Clock
    ) -> None:
        pool = new_pool(a=4, settings={"quiet_s": 60})
        lease = await pool.lease("a", max_wait_s=LONG_S)
        asked = asyncio.create_task(pool.reserve("a build", host(8), waits_for_idle=True))
        await turns()
        clock.advance(100)
        await turns()
        assert not asked.done(), "an answer is being given"
        lease.release()
        clock.advance(59)
        await turns()
        assert not asked.done()
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        clock.advance(59)
        await turns()
        assert not asked.done()
        assert states(pool) == {"a": State.WARM}, "nothing goes for it before its time"
        clock.advance(2)
        await turns()
        (await asked).release()

    async def test_it_does_not_expire_like_an_idle_resident(self, new_pool: NewPool, clock: Clock) -> None:
        pool = new_pool(a=4, settings={"idle_ttl_s": 10})

        async def stop() -> None:
            raise AssertionError("no request needs its room")

        room = await pool.reserve("a build", host(4), stop=stop)
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        clock.advance(50)
        await turns()
        assert states(pool) == {"a build": State.WARM}
        room.release()

    async def test_more_than_the_budget_is_refused_at_once(self, new_pool: NewPool) -> None:
        with pytest.raises(UnavailableError, match="vram_budget"):
            await new_pool(a=4).reserve("a build", host(9))

    @pytest.mark.parametrize("waits_for_idle", [False, True])
    async def test_giving_up_a_reservation_leaves_the_queue(
        self, new_pool: NewPool, waits_for_idle: bool, clock: Clock
    ) -> None:
        pool = new_pool(a=8, b=4, settings={"quiet_s": 60})
        lease = await pool.lease("a", max_wait_s=LONG_S)
        asked = asyncio.create_task(pool.reserve("a build", host(8), waits_for_idle=waits_for_idle))
        await turns()
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        lease.release()
        clock.advance(100)
        await turns()
        assert states(pool) == {"a": State.WARM}
        assert pool.status().waiting == ()

    async def test_closing_the_pool_ends_the_waiting_for_room(self, new_pool: NewPool) -> None:
        pool = new_pool(a=8)
        await pool.lease("a", max_wait_s=LONG_S)
        asked = [
            asyncio.create_task(pool.reserve(f"build {quiet}", host(8), waits_for_idle=quiet))
            for quiet in (True, False)
        ]
        await turns()
        await pool.close()
        for task in asked:
            with pytest.raises(ShuttingDownError):
                await task

    async def test_a_load_beside_it_is_not_measured_by_the_free_memory(self, new_pool: NewPool) -> None:
        free = iter((100, 40, 100, 90))

        async def free_memory() -> Memory:
            return host(next(free))

        pool = new_pool(a=2, free_memory=free_memory, settings={})
        await pool.reserve("a build", host(4))
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        assert booked(pool) == 6, "the 60 that went may be the build's"

    async def test_a_specialist_can_be_added_while_others_are_served(self, new_pool: NewPool) -> None:
        pool = new_pool(a=4)
        (await pool.lease("a", max_wait_s=LONG_S)).release()
        with pytest.raises(UnavailableError):
            await pool.lease("new", max_wait_s=LONG_S)
        pool.serve({name: Entry(LoadSpec(Path(name), parallel=2), host(4)) for name in ("a", "new")})
        (await pool.lease("new", max_wait_s=LONG_S)).release()
        assert states(pool) == {"a": State.WARM, "new": State.WARM}


async def test_host_memory_that_never_suffices_is_refused_with_its_place(loader: FakeLoader, clock: Clock) -> None:
    entries = {"a": Entry(LoadSpec(Path("a")), both(4, 13))}
    pool = Pool(entries, PoolLimits(both(24, 8)), loader, clock=clock)
    with pytest.raises(UnavailableError, match=r"a needs 13 bytes of host; the budget is 8 bytes\. .*host_budget"):
        await pool.lease("a", max_wait_s=LONG_S)
    await pool.close()


async def test_what_the_server_itself_holds_is_booked_for_good(new_pool: NewPool) -> None:
    pool = new_pool(budget=8, a=4, b=6, held={"the encoder": host(3)})
    assert pool.room == host(5)
    assert booked(pool) == 3
    with pytest.raises(UnavailableError, match=r"held by the encoder"):
        await pool.lease("b", max_wait_s=LONG_S)
    (await pool.lease("a", max_wait_s=LONG_S)).release()
    assert booked(pool) == 7, "no request takes its room"
