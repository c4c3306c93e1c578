"""When a worker counts as hung, and when as slow: decided on a clock that the test turns."""

from __future__ import annotations

import pytest

from coe.engine.vitals import SHORTEST_S, SLOW, START_S, Beat, Lookout, Vitals

STALL_S = 60.0


class Watched:
    """Vitals, and a worker that sends a heartbeat a second."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.vitals = Vitals(self.now, STALL_S)
        self.steps, self.cpu_s, self.reads = 0, 0.0, 0
        self.live(1)

    def live(self, seconds: int, *, steps: int = 0, cpu_s: float = 0.001, reads: int = 0) -> None:
        """Seconds with a heartbeat each; the figures are those of one second."""
        for _ in range(seconds):
            self.now += 1
            self.steps += steps
            self.cpu_s += cpu_s
            self.reads += reads
            self.vitals.beat(self.now, Beat(self.steps, self.cpu_s, self.reads))

    def be_silent(self, seconds: float) -> None:
        self.now += seconds

    def work(self, has_work: bool = True) -> None:
        self.vitals.work(self.now, has_work)

    @property
    def fault(self) -> str | None:
        return self.vitals.fault(self.now)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_an_idle_worker_with_a_heartbeat_is_well(watched: Watched) -> None:
    watched.live(1000)
    assert watched.fault is None
    assert watched.vitals.silent_s(watched.now) == 0


@pytest.mark.parametrize("has_work", [False, True])
def test_a_worker_without_a_heartbeat_is_given_up_whether_it_has_work_or_not(has_work: bool, watched: Watched) -> None:
    watched.work(has_work)
    watched.be_silent(STALL_S)
    assert watched.fault is None
    watched.be_silent(1)
    assert watched.fault == "gave no sign of life for 60 s"


def test_a_worker_that_has_work_and_does_nothing_is_given_up_though_its_heart_beats(watched: Watched) -> None:
    watched.work()
    watched.live(60)
    assert watched.fault is None
    watched.live(1)
    assert watched.fault == "made no progress for 60 s"


@pytest.mark.parametrize("effort", [{"cpu_s": 0.9}, {"reads": 1}], ids=["computing", "reading"])
def test_a_decode_of_minutes_that_computes_or_reads_is_slow_and_lives(
    effort: dict[str, float], watched: Watched
) -> None:
    watched.work()
    for _ in range(20):
        watched.live(300, **effort)  # type: ignore[arg-type]
        watched.live(1, steps=1)
    assert watched.fault is None


def test_one_that_computes_for_ever_is_given_up_in_the_end(watched: Watched) -> None:
    watched.work()
    watched.live(int(SLOW * STALL_S), cpu_s=1.0)
    assert watched.fault is None
    watched.live(1, cpu_s=1.0)
    assert watched.fault == "computed for 600 s without one step done"


def test_what_its_requests_hear_is_progress(watched: Watched) -> None:
    watched.work()
    for _ in range(10):
        watched.live(50)
        watched.vitals.progress(watched.now)
    assert watched.fault is None


def test_the_time_before_the_work_does_not_count(watched: Watched) -> None:
    watched.live(1000)
    watched.work()
    assert watched.fault is None
    watched.live(59)
    watched.work(False)
    watched.live(1000)
    watched.work()
    assert watched.fault is None


def test_libraries_may_take_a_while_to_load_before_the_first_heartbeat() -> None:
    vitals = Vitals(0.0, STALL_S)
    assert vitals.fault(START_S + STALL_S) is None
    assert vitals.fault(START_S + STALL_S + 1) == "gave no sign of life for 60 s"


def test_silence_shorter_than_some_heartbeats_is_none() -> None:
    vitals = Vitals(0.0, 0.01)
    vitals.beat(0.0, Beat(0, 0.0, 0))
    assert vitals.fault(SHORTEST_S) is None
    assert vitals.fault(SHORTEST_S + 1) is not None


def test_what_lay_unread_while_the_watchdog_was_away_is_forgiven(watched: Watched) -> None:
    lookout = Lookout(watched.now, STALL_S)
    watched.work()
    watched.be_silent(lookout.every_s)
    assert not lookout.was_away(watched.now)
    watched.be_silent(3600)
    assert lookout.was_away(watched.now)
    watched.vitals.forgive(watched.now)
    assert watched.fault is None
    watched.be_silent(61)
    assert watched.fault is not None, "once, and not for good"
