"""Workers whose resident changes: over the socket, and when the process is lost in the middle of a swap."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from coe.engine.errors import LoadError, SharingError, SwapError, WorkerDiedError
from coe.engine.pool.memory import predict
from coe.engine.pool.resident import WorkerResident
from coe.engine.request import Accepted, Delta, Event, Finished, GenerateRequest
from coe.engine.spec import LoadSpec, Member, Sharing
from fakes.device import tolerance
from fakes.local_engine import GREEDY
from fakes.sharing_models import College
from fakes.weight import brings

# Python runs this when it starts, and the worker's third read of a swap ends as the test wants.
AT_THE_THIRD_READ = """
import os, signal
whole, reads = os.preadv, []
def preadv(*arguments):
    reads.append(1)
    if len(reads) < 3:
        return whole(*arguments)
    {what}
os.preadv = preadv
"""


@pytest.fixture(scope="module")
@brings("model")
def college(tmp_path_factory: pytest.TempPathFactory) -> College:
    return College.random(tmp_path_factory.mktemp("college"), masks_only="c")


def request(name: str, specialist: str, max_tokens: int = 4) -> GenerateRequest:
    return GenerateRequest(
        name, specialist, prompt="hello", sampling=GREEDY, max_tokens=max_tokens, loop_guard=None,
        logit_bias={1: -100.0}, top_logprobs=1,
    )  # fmt: skip


async def events(resident: WorkerResident, wanted: GenerateRequest) -> list[Event]:
    return [event async for event in resident.generate(wanted)]


def sureness(answer: list[Event]) -> float:
    """The first token's log-probability: a number that each specialist has of its own."""
    return next(entry.logprob for event in answer if isinstance(event, Delta) for entry in event.logprobs)


async def test_a_worker_serves_all_its_specialists(college: College) -> None:
    resident = await WorkerResident.start(college.spec(parallel=2), {})
    try:
        first = [await events(resident, request(f"r{n}", name)) for n, name in enumerate("abca")]
        both = await asyncio.gather(events(resident, request("x", "b")), events(resident, request("y", "c")))
        swaps = [answer[0].swap for answer in first if isinstance(answer[0], Accepted)]
    finally:
        await resident.stop()
    assert swaps == [False, True, True, True]
    a, b, c, again = (sureness(answer) for answer in first)
    assert [sureness(answer) for answer in both] == pytest.approx([b, c], abs=tolerance(1e-4, 1e-3))
    assert again == pytest.approx(a, abs=tolerance(1e-4, 1e-3))
    assert min(abs(a - b), abs(b - c), abs(a - c)) > 1e-3


async def test_a_worker_that_is_killed_during_a_swap_leaves_nothing_behind(
    college: College, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {member.name: member.path.read_bytes() for member in college.members}
    (tmp_path / "sitecustomize.py").write_text(AT_THE_THIRD_READ.format(what="os.kill(os.getpid(), signal.SIGKILL)"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    resident = await WorkerResident.start(college.spec(), {})
    running = asyncio.create_task(events(resident, request("long", "a", max_tokens=200)))
    with pytest.raises(WorkerDiedError, match="signal 9"):
        await events(resident, request("r", "b"))
    with pytest.raises(WorkerDiedError):
        await running
    await resident.wait_gone()
    monkeypatch.delenv("PYTHONPATH")
    assert before == {member.name: member.path.read_bytes() for member in college.members}
    again = await WorkerResident.start(college.spec(), {})
    try:
        assert isinstance((await events(again, request("r", "b")))[-1], Finished)
    finally:
        await again.stop()


async def test_a_swap_that_fails_ends_the_worker_and_says_why(
    college: College, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_THE_THIRD_READ.format(what="return 0"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    resident = await WorkerResident.start(college.spec(), {})
    with pytest.raises(SwapError, match=r"b\.gguf failed half-way"):
        await events(resident, request("r", "b"))
    await resident.wait_gone()
    with pytest.raises(WorkerDiedError, match="half-way"):
        await events(resident, request("again", "a"))


async def test_what_cannot_be_shared_is_said_when_it_is_loaded(college: College, tmp_path: Path) -> None:
    other = College.random(tmp_path, names="d", keep=6)
    with pytest.raises(SharingError):
        await WorkerResident.start(college.spec(sharing=Sharing((*college.members, *other.members))), {})


async def test_a_skeleton_is_not_served_without_its_parent(college: College) -> None:
    with pytest.raises(LoadError, match="skeleton"):
        await WorkerResident.start(LoadSpec(college.members[2].path, context_tokens=256, threads=1), {})


async def test_host_memory_for_offloaded_conversations_is_counted(college: College) -> None:
    found = [(await predict(college.spec(ram_budget_bytes=budget))).footprint for budget in (0, 100 * 2**20)]
    # Beside a device's memory it is a figure of its own; without one it is part of the sum.
    without, with_ram = (footprint.total_bytes + footprint.host_bytes for footprint in found)
    assert 90 * 2**20 < with_ram - without < 110 * 2**20


def test_how_a_resident_is_shared_crosses_to_the_worker(tmp_path: Path) -> None:
    members = (
        Member("a", tmp_path / "a.gguf", stamp="s"),
        Member("b", tmp_path / "b.gguf", tmp_path / "p.gguf", kept=((0, (3, 1)), (4, (0, 2)))),
    )
    for spec in (
        LoadSpec(tmp_path / "a.gguf"),
        LoadSpec(tmp_path / "a.gguf", sharing=Sharing(members, 0.2, 5.0, True, "b")),
    ):
        arrived = LoadSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert arrived == spec
        assert hash(arrived) == hash(spec)
