"""Counters and gauges for GET /metrics, in Prometheus' text format."""

from __future__ import annotations

import platform
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coe.engine.pool.status import PoolStatus
from coe.engine.request import Finished

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """This server's registry. Observing is cheap; the pool is asked at each scrape."""

    def __init__(
        self, pool_status: Callable[[], PoolStatus], builds: Callable[[], Sequence[Mapping[str, Any]]] = list
    ) -> None:
        """builds: what Builds.cards gives."""
        self.registry = CollectorRegistry()
        self.registry.register(_PoolCollector(pool_status))
        self.registry.register(_BuildCollector(builds))
        registry = self.registry
        self.running = Running()
        registry.register(_RunningCollector(self.running))
        info = Gauge(
            "coe_build_info", "1, labelled with versions", ["version", "llama_cpp", "python"], registry=registry
        )
        info.labels(*(_version(name) for name in ("coe-runtime", "llama-cpp-python")), platform.python_version()).set(1)
        self._duration_s = Histogram(
            "coe_request_seconds",
            "Time from a request to its last byte",
            ["specialist", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._requests = Counter("coe_requests", "Requests by status", ["route", "status"], registry=registry)
        self._routed = Counter("coe_routed", "Decisions of the supervisor", ["specialist", "path"], registry=registry)
        self._route_s = Histogram("coe_route_seconds", "Time for a decision", buckets=_SECONDS, registry=registry)
        self._wait_s = Histogram(
            "coe_wait_seconds", "Time a request waited for a lease", ["residency"], buckets=_SECONDS, registry=registry
        )
        self._first_s = Histogram(
            "coe_first_token_seconds", "Time from the request to its first text", buckets=_SECONDS, registry=registry
        )
        self._prompt = Counter("coe_prompt_tokens", "Prompt tokens", ["specialist"], registry=registry)
        self._cached = Counter(
            "coe_cached_tokens", "Prompt tokens found in the cache", ["specialist"], registry=registry
        )
        self._completion = Counter("coe_completion_tokens", "Generated tokens", ["specialist"], registry=registry)
        self._ended = Counter("coe_answers", "Answers by how they ended", ["specialist", "reason"], registry=registry)
        self._leaked = Counter("coe_leaked_think_blocks", "Thinking blocks stripped", ["specialist"], registry=registry)
        self._calls = Counter("coe_tool_calls", "Calls of tools", ["specialist"], registry=registry)
        self._malformed = Counter(
            "coe_malformed_tool_calls", "What began as a call and was none", ["specialist"], registry=registry
        )
        self._forbidden = Counter(
            "coe_forbidden_tool_calls",
            "Calls that were made although the request forbids them, and were left out",
            ["specialist"],
            registry=registry,
        )

    def requested(self, route: str, status: int) -> None:
        """A request was answered with a status."""
        self._requests.labels(route, str(status)).inc()

    def ended(self, specialist: str, outcome: str, seconds: float) -> None:
        """A request was done with. specialist: a name of the roster; outcome: answered, refused, failed or left."""
        self._duration_s.labels(specialist, outcome).observe(seconds)

    def routed(self, specialist: str, path: str, seconds: float) -> None:
        """The supervisor decided."""
        self._routed.labels(specialist, path).inc()
        self._route_s.observe(seconds)

    def waited(self, specialist: str, residency: str, seconds: float) -> None:
        """A lease was granted."""
        self._wait_s.labels(residency).observe(seconds)

    def first_text(self, seconds: float) -> None:
        """The first text of an answer is on its way."""
        self._first_s.observe(seconds)

    def finished(self, specialist: str, end: Finished, calls: int = 0) -> None:
        """An answer ended. calls: how many of tools it made."""
        self._prompt.labels(specialist).inc(end.prompt_tokens)
        self._cached.labels(specialist).inc(end.cached_tokens)
        self._completion.labels(specialist).inc(end.completion_tokens)
        self._ended.labels(specialist, end.reason.value).inc()
        self._leaked.labels(specialist).inc(end.leaked_blocks)
        self._calls.labels(specialist).inc(calls)
        self._malformed.labels(specialist).inc(end.malformed_calls)
        self._forbidden.labels(specialist).inc(end.forbidden_calls)

    def embedded(self, model: str, tokens: int) -> None:
        """Texts of so many tokens were embedded."""
        self._prompt.labels(model).inc(tokens)

    def unfinished(self, specialist: str, reason: str, count: int) -> None:
        """Answers ended before their models were done: cancelled when the client left, failed when something broke."""
        self._ended.labels(specialist, reason).inc(count)

    def text(self) -> bytes:
        """The scrape."""
        return generate_latest(self.registry)


@dataclass
class RunningRequest:
    """A request that is being served, as far as it is known. Nothing of its body is here."""

    id: str
    route: str
    since: float  # of time.perf_counter
    model: str = "-"
    specialist: str = "-"
    end: str = ""  # how an answer ended whose status could not say it: the error's code, "client_left", "loop"


class Running:
    """Requests in flight and connections of clients."""

    def __init__(self) -> None:
        self.requests: dict[int, RunningRequest] = {}
        self.connections: Callable[[], int] = lambda: 0


class _RunningCollector(Collector):
    def __init__(self, running: Running) -> None:
        self._running = running

    def collect(self) -> Iterator[Metric]:
        in_flight = len(self._running.requests)
        yield GaugeMetricFamily("coe_requests_in_flight", "Requests that are being served", in_flight)
        yield GaugeMetricFamily("coe_connections", "Connections of clients", self._running.connections())


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


class _PoolCollector(Collector):
    def __init__(self, status: Callable[[], PoolStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield GaugeMetricFamily("coe_budget_bytes", "Memory that residents may take", status.budget_bytes)
        yield GaugeMetricFamily("coe_booked_bytes", "Memory that residents are booked with", status.booked_bytes)
        for name, about, memory in (
            ("coe_place_budget_bytes", "Memory that residents may take, of each card and of the host", status.budget),
            ("coe_place_booked_bytes", "What of it is booked", status.booked),
        ):
            of_place = GaugeMetricFamily(name, about, labels=["place"])
            for place in status.budget.places:
                of_place.add_metric([place], memory[place])
            yield of_place
        yield GaugeMetricFamily("coe_waiting_requests", "Requests that wait for a lease", len(status.waiting))
        yield GaugeMetricFamily("coe_oldest_wait_seconds", "How long the oldest waits", status.oldest_wait_s)
        yield CounterMetricFamily("coe_loads", "Models loaded", status.loads)
        yield CounterMetricFamily("coe_failed_loads", "Loads that failed", status.failed_loads)
        yield CounterMetricFamily("coe_evictions", "Residents stopped", status.evictions)
        deaths = CounterMetricFamily("coe_worker_deaths", "Workers that ended unasked, by cause", labels=["cause"])
        for cause, count in status.deaths.items():
            deaths.add_metric([cause], count)
        yield deaths
        yield GaugeMetricFamily("coe_stalled_residents", "Residents without progress", len(status.stalled))
        yield GaugeMetricFamily("coe_ready", "1 while /ready says so, else 0", int(not status.stalled))
        # Specialists that share may have several residents: what they have in common is added up.
        booked: Tally[tuple[str, str]] = Tally()
        hosted: Tally[str] = Tally()
        offloaded: Tally[str] = Tally()
        waits: dict[str, float] = {}
        speeds: dict[str, float] = {}
        leases: Tally[str] = Tally()
        for resident in status.residents:
            booked[resident.file, resident.state.value] += status.vram_bytes(resident.memory)
            hosted[resident.file] += resident.memory.host_bytes
            leases[resident.file] += resident.leases
            offloaded[resident.file] += int(resident.activity.get("offloaded_bytes", 0))
            speed = resident.activity.get("prompt_tokens_per_s", 0.0)
            speeds[resident.file] = max(speeds.get(resident.file, 0.0), speed)
            waits[resident.file] = max(waits.get(resident.file, 0.0), resident.activity.get("worst_wait_s", 0.0))
        bytes_ = GaugeMetricFamily("coe_resident_bytes", "Booked bytes of residents", labels=["file", "state"])
        for labels, size in booked.items():
            bytes_.add_metric(labels, size)
        yield bytes_
        yield _family(GaugeMetricFamily, "coe_resident_host_bytes", "Booked host memory of residents", hosted)
        yield _family(GaugeMetricFamily, "coe_resident_leases", "Requests on residents", leases)
        yield _family(
            GaugeMetricFamily,
            "coe_resident_offloaded_bytes",
            "Host memory of conversations out of the cache",
            offloaded,
        )
        for name, about in _COUNTED.items():
            counted = {file: value for (file, what), value in status.counted.items() if what == name}
            yield _family(CounterMetricFamily, f"coe_resident_{name}", about, counted)
        yield _family(
            GaugeMetricFamily, "coe_resident_worst_wait_seconds", "Longest wait for a time slice, as things are", waits
        )
        yield _family(
            GaugeMetricFamily, "coe_resident_prompt_tokens_per_second", "How fast prompts were read lately", speeds
        )


_COUNTED = {"swaps": "Changes from one specialist to another", "swapped_bytes": "Bytes of weights moved by them"}


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, about: str, values: Mapping[str, float]
) -> Metric:
    family = kind(name, about, labels=["file"])
    for file, value in values.items():
        family.add_metric([file], value)
    return family


class _BuildCollector(Collector):
    def __init__(self, builds: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        self._builds = builds

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("coe_build", "1 for the state a build is in", labels=["specialist", "state"])
        share = GaugeMetricFamily("coe_build_steps_done", "Finished steps of a build", labels=["specialist"])
        for build in self._builds():
            state.add_metric([build["name"], str(build["state"])], 1)
            share.add_metric([build["name"]], build["steps_done"])
        yield state
        yield share
