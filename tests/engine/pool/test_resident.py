"""Workers as processes: they answer, they die, and they leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from random_model import CHAT_TEMPLATE, write_random_model

from coe.engine.errors import (
    EngineError,
    GrammarError,
    ModelFileError,
    ModelTemplateError,
    PromptTooLongError,
    SlowReaderError,
    ThinkingPolicyError,
    UnavailableError,
    WorkerDiedError,
    WorkerHungError,
)
from coe.engine.logs import LLAMA_LOGGER, WORKER_LOGGER
from coe.engine.pool.inbox import Unread
from coe.engine.pool.resident import WorkerResident
from coe.engine.request import Accepted, Delta, Finish, Finished, GenerateRequest
from coe.engine.spec import LoadSpec, Sampling, Thinking, ThinkingMode
from coe.engine.vitals import SHORTEST_S
from fakes.worker_events import GONE_S, events, gone, request


class WatchedResident(WorkerResident):
    """Announces the beats of its worker."""

    def __init__(self, *arguments: Any) -> None:
        self.beats: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        super().__init__(*arguments)

    @property
    def beat(self) -> dict[str, Any]:
        return self._beat

    @beat.setter
    def beat(self, value: dict[str, Any]) -> None:
        self._beat = value
        self.beats.put_nowait(value)


@pytest.fixture
async def resident(smollm2_spec: LoadSpec) -> AsyncIterator[WatchedResident]:
    resident = await WatchedResident.start(smollm2_spec, {})
    assert isinstance(resident, WatchedResident)
    yield resident
    await resident.stop()


def endless(name: str = "r", max_tokens: int | None = None) -> GenerateRequest:
    return request(
        name, max_tokens=max_tokens, sampling=Sampling(temperature=1.0), seed=1, logit_bias={2: -100.0, 0: -100.0}
    )


class TestAnswering:
    async def test_a_worker_answers_over_its_socket(self, resident: WatchedResident) -> None:
        accepted, *deltas, finished = await events(resident, request())
        assert isinstance(accepted, Accepted)
        assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)).startswith(" Paris")
        assert isinstance(finished, Finished)
        assert finished.reason is Finish.LENGTH

    async def test_several_at_once_get_each_their_own(self, resident: WatchedResident) -> None:
        answers = await asyncio.gather(*(events(resident, request(f"r{n}", max_tokens=n + 1)) for n in range(5)))
        ends = [answer[-1] for answer in answers]
        assert [end.completion_tokens for end in ends if isinstance(end, Finished)] == [1, 2, 3, 4, 5]

    async def test_a_rejection_is_raised_with_its_facts(self, resident: WatchedResident) -> None:
        with pytest.raises(PromptTooLongError) as caught:
            await events(resident, request(prompt="word " * 1000))
        assert caught.value.limit_tokens == 512
        assert not caught.value.by_roster
        assert caught.value.prompt_tokens > 900

    async def test_text_of_any_kind_crosses(self, resident: WatchedResident) -> None:
        answer = await events(resident, request(prompt="\0 \ud800 日本 🐍", max_tokens=1))
        assert isinstance(answer[-1], Finished)

    async def test_others_go_on_while_a_schema_is_read(self, resident: WatchedResident) -> None:
        schema = {"type": "object", "properties": {f"property_{n}": {"type": "string"} for n in range(2000)}}
        wanted = {"type": "json_schema", "json_schema": {"name": "large", "schema": schema}}
        read = asyncio.Event()

        async def structured() -> None:
            with contextlib.suppress(GrammarError):
                await anext(aiter(resident.generate(request("structured", response_format=wanted))))
            read.set()

        asked: asyncio.Task[None] | None = None
        meanwhile = 0
        async for event in resident.generate(endless()):
            if isinstance(event, Delta) and asked is None:
                asked = asyncio.create_task(structured())
            elif isinstance(event, Delta) and not read.is_set():
                meanwhile += 1
            if read.is_set():
                break
        assert meanwhile > 2

    async def test_a_request_that_is_left_while_its_schema_is_read_is_forgotten(
        self, resident: WatchedResident
    ) -> None:
        schema = {"type": "object", "properties": {f"property_{n}": {"type": "string"} for n in range(2000)}}
        wanted = {"type": "json_schema", "json_schema": {"name": "large", "schema": schema}}
        task = asyncio.create_task(events(resident, request("left", response_format=wanted)))
        await asyncio.sleep(0)  # it is sent
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert isinstance((await events(resident, request("next", response_format={"type": "text"})))[-1], Finished)

    async def test_leaving_early_ends_the_generation(self, resident: WatchedResident) -> None:
        stream = resident.generate(endless())
        async for event in stream:
            if isinstance(event, Delta):
                break
        await stream.aclose()
        beat: dict[str, Any] = {}
        while not beat.get("steps") or beat["active"]:
            beat = await asyncio.wait_for(resident.beats.get(), GONE_S)
        assert beat["waiting"] == 0
        assert beat["steps"] < 400, "it did not run to the end of the context"

    async def test_it_tells_how_fast_it_reads_prompts(self, resident: WatchedResident) -> None:
        await events(resident, request(prompt="The capital of France is Paris. " * 20))
        beat: dict[str, Any] = {}
        while not beat.get("steps") or beat["active"]:
            beat = await asyncio.wait_for(resident.beats.get(), GONE_S)
        assert beat["prompt_tokens_per_s"] > 0

    async def test_a_generation_goes_on_to_its_end_though_nothing_of_it_is_read(
        self, resident: WatchedResident
    ) -> None:
        ended = asyncio.Event()
        unread = resident.generate(endless(max_tokens=100), on_end=ended.set, unread=Unread(2**20, 2**20))
        assert isinstance(await anext(unread), Accepted)
        await asyncio.wait_for(ended.wait(), GONE_S)
        *deltas, finished = [event async for event in unread]
        assert isinstance(finished, Finished)
        assert finished.reason is Finish.LENGTH
        assert len(deltas) < finished.completion_tokens, "deltas are joined"

    async def test_a_reader_that_is_too_far_behind_ends_its_generation_alone(self, resident: WatchedResident) -> None:
        ended = asyncio.Event()
        unread = resident.generate(endless("unread"), on_end=ended.set, unread=Unread(100, 2**20))
        await anext(unread)
        read = asyncio.create_task(events(resident, endless("read", max_tokens=100)))
        await asyncio.wait_for(ended.wait(), GONE_S)
        text = ""
        with pytest.raises(SlowReaderError):  # noqa: PT012
            async for event in unread:
                assert isinstance(event, Delta)
                text += event.text
        assert 0 < len(text.encode()) <= 100
        assert isinstance((await read)[-1], Finished)
        beat: dict[str, Any] = {}
        while beat.get("active", 1) or beat["waiting"]:
            beat = await asyncio.wait_for(resident.beats.get(), GONE_S)  # the first is empty

    async def test_requests_are_refused_all_at_once(self, resident: WatchedResident) -> None:
        streams = [resident.generate(endless(name)) for name in ("a", "b")]
        for stream in streams:
            await anext(stream)
        resident.refuse(UnavailableError("The server is shutting down."))
        for stream in streams:
            with pytest.raises(UnavailableError):
                _ = [event async for event in stream]
        assert isinstance((await events(resident, request()))[-1], Finished)


class TestLoading:
    async def test_progress_is_reported(self, smollm2_spec: LoadSpec) -> None:
        reported: list[float] = []
        resident = await WorkerResident.start(smollm2_spec, {}, reported.append)
        await resident.stop()
        assert reported == sorted(reported)
        assert reported[-1] == 1.0

    async def test_memory_is_measured(self, resident: WatchedResident) -> None:
        assert resident.memory is not None
        assert resident.memory.host_bytes > 50 * 2**20

    @pytest.mark.model
    async def test_a_file_of_garbage_is_an_error_with_a_reason(self, tmp_path: Path) -> None:
        path = tmp_path / "garbage.gguf"
        path.write_bytes(b"GGUF" + bytes(range(256)) * 40)
        with pytest.raises(ModelFileError, match=r"garbage\.gguf is damaged: it gives its version as"):
            await WorkerResident.start(LoadSpec(path, context_tokens=256), {})

    async def test_a_policy_that_cannot_hold_fails_the_load(self, smollm2_spec: LoadSpec) -> None:
        with pytest.raises(ThinkingPolicyError):
            await WorkerResident.start(smollm2_spec, {"deep": Thinking(ThinkingMode.BUDGET, 5)})

    async def test_a_start_that_is_given_up_leaves_no_process(
        self, smollm2_spec: LoadSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loading: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        send = WorkerResident._send

        def note(self: WorkerResident, message: dict[str, Any]) -> None:
            send(self, message)
            loading.set_result(self.pid)

        monkeypatch.setattr(WorkerResident, "_send", note)
        start = asyncio.create_task(WorkerResident.start(smollm2_spec, {}))
        pid = await loading
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert gone(pid)


class TestLogging:
    async def test_decisions_of_a_worker_reach_the_log_with_their_request_and_llama_cpps_lines_apart(
        self, smollm2_spec: LoadSpec, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "coe")
        resident = await WorkerResident.start(smollm2_spec, {})
        await events(resident, request("r7", max_tokens=1))
        with pytest.raises(PromptTooLongError):
            await events(resident, request("r8", prompt="word " * 1000))
        resident._send({"op": "generate", "request": {"no": "such request"}})
        await resident.wait_gone()
        decided = [record for record in caplog.records if record.name == WORKER_LOGGER]
        about = {name: [r.getMessage() for r in decided if r.__dict__["request_id"] == name] for name in ("r7", "r8")}
        said = f"worker {resident.pid}: "
        assert [line.removeprefix(said).split()[0] for line in about["r7"]] == ["accepted", "starts", "ends:"]
        assert [line.removeprefix(said).split()[0] for line in about["r8"]] == ["refused:"]
        assert {record.levelno for record in decided} == {logging.DEBUG}
        assert any("KeyError" in record.getMessage() for record in caplog.records if record.name == LLAMA_LOGGER)

    async def test_a_line_is_found_by_the_id_of_the_http_request_and_says_which_answer_it_is_of(
        self, smollm2_spec: LoadSpec, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "coe")
        resident = await WorkerResident.start(smollm2_spec, {})
        await events(resident, request("a/req-1/0123456789abcdef0123456789abcdef-1-0", max_tokens=1))
        await resident.stop()
        lines = [r.getMessage() for r in caplog.records if r.__dict__.get("request_id") == "a/req-1"]
        assert lines
        assert all(line.startswith(f"worker {resident.pid} 012345-1-0: ") for line in lines)

    async def test_a_worker_says_nothing_of_its_decisions_unless_asked_when_it_loads(
        self, smollm2_spec: LoadSpec, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, WORKER_LOGGER)
        resident = await WorkerResident.start(smollm2_spec, {})
        caplog.set_level(logging.DEBUG, WORKER_LOGGER)
        await events(resident, request())
        await resident.stop()
        assert not [record for record in caplog.records if record.name == WORKER_LOGGER]

    async def test_an_error_that_a_worker_logs_is_always_told(
        self, smollm2_spec: LoadSpec, caplog: pytest.LogCaptureFixture
    ) -> None:
        resident = await WorkerResident.start(smollm2_spec, {})
        with pytest.raises(EngineError, match="cannot be prepared"):
            await events(resident, request("bad", stop=[""]))
        await resident.stop()
        (record,) = [record for record in caplog.records if record.name == WORKER_LOGGER]
        assert (record.levelno, record.__dict__["request_id"]) == (logging.ERROR, "bad")
        assert "cannot be prepared" in record.getMessage()
        assert record.exc_info is not None
        told = str(record.exc_info[1])
        assert "self._stops = StopMatcher(request.stop)" in told, "where it was"
        assert "ValueError: (its text is left out" in told, "it may be what a user said"


class TestDying:
    async def test_a_worker_killed_in_mid_stream_fails_its_requests_with_a_remedy(self, smollm2_spec: LoadSpec) -> None:
        resident = await WorkerResident.start(smollm2_spec, {})
        stream = resident.generate(endless())
        while not isinstance(await anext(stream), Delta):
            pass
        os.kill(resident.pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match="signal 9") as caught:
            _ = [event async for event in stream]
        assert "Send the request again" in caught.value.remedy
        await resident.wait_gone()
        with pytest.raises(WorkerDiedError):
            await events(resident, request())

        fresh = await WorkerResident.start(smollm2_spec, {})
        assert isinstance((await events(fresh, request()))[-1], Finished)
        await fresh.stop()

    async def test_a_stopped_worker_is_killed_and_its_requests_fail(self, smollm2_spec: LoadSpec) -> None:
        resident = await WorkerResident.spawn(SHORTEST_S)
        await resident.load(smollm2_spec, {}, lambda fraction: None)
        streams = [resident.generate(endless(name)) for name in ("a", "b")]
        for stream in streams:
            await anext(stream)
        os.kill(resident.pid, signal.SIGSTOP)
        for stream in streams:
            with pytest.raises(WorkerHungError, match="no sign of life") as caught:
                _ = [event async for event in stream]
            assert "Send the request again" in caught.value.remedy
        loss = await resident.wait_lost()
        assert set(loss.requests) == {"a", "b"}
        await resident.wait_gone()
        with pytest.raises(WorkerHungError):
            await events(resident, request())

    async def test_a_stopped_worker_without_work_is_killed_too(self, smollm2_spec: LoadSpec) -> None:
        resident = await WorkerResident.spawn(SHORTEST_S)
        await resident.load(smollm2_spec, {}, lambda fraction: None)
        os.kill(resident.pid, signal.SIGSTOP)
        assert "no sign of life" in (await resident.wait_lost()).how
        await resident.wait_gone()

    async def test_a_worker_that_is_stopped_while_it_loads_fails_the_load(self, smollm2_spec: LoadSpec) -> None:
        resident = await WorkerResident.spawn(SHORTEST_S)
        stopped: list[float] = []

        def stop(fraction: float) -> None:
            if not stopped:
                os.kill(resident.pid, signal.SIGSTOP)
            stopped.append(fraction)

        with pytest.raises(WorkerHungError):
            await resident.load(smollm2_spec, {}, stop)
        assert stopped
        assert gone(resident.pid)

    async def test_a_stopped_worker_can_be_stopped_for_good(self, smollm2_spec: LoadSpec) -> None:
        resident = await WorkerResident.start(smollm2_spec, {})
        os.kill(resident.pid, signal.SIGSTOP)
        await resident.stop()
        assert gone(resident.pid)

    async def test_a_worker_that_breaks_says_what_it_said_last(self, smollm2_spec: LoadSpec) -> None:
        resident = await WorkerResident.start(smollm2_spec, {})
        resident._send({"op": "generate", "request": {"no": "such request"}})
        await resident.wait_gone()
        with pytest.raises(WorkerDiedError, match=r"exit 1.*KeyError"):
            await events(resident, request())

    async def test_stopping_twice_and_after_death_is_harmless(self, smollm2_spec: LoadSpec) -> None:
        resident = await WorkerResident.start(smollm2_spec, {})
        await asyncio.gather(resident.stop(), resident.stop())
        await resident.stop()
        assert gone(resident.pid)

    async def test_a_busy_worker_stops_too(self, smollm2_spec: LoadSpec) -> None:
        resident = await WorkerResident.start(smollm2_spec, {})
        stream = resident.generate(endless())
        await anext(stream)
        await resident.stop()
        with pytest.raises(EngineError):
            async for _ in stream:
                pass

    @pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
    def test_a_server_killed_with_9_leaves_no_worker(self, smollm2: Path) -> None:
        script = (
            "import asyncio, sys; from pathlib import Path\n"
            "from coe.engine.pool.resident import WorkerResident; from coe.engine.spec import LoadSpec\n"
            "async def main():\n"
            "    spec = LoadSpec(Path(sys.argv[1]), context_tokens=256, parallel=1, threads=1)\n"
            "    resident = await WorkerResident.start(spec, {})\n"
            "    print(resident.pid, flush=True)\n"
            "    await resident.wait_gone()\n"
            "asyncio.run(main())\n"
        )
        server = subprocess.Popen([sys.executable, "-c", script, str(smollm2)], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        with server:
            worker = int(server.stdout.readline())
            descriptor = os.pidfd_open(worker)
            server.kill()
            assert select.select([descriptor], [], [], GONE_S)[0], "the worker outlived its server"
            os.close(descriptor)


@pytest.mark.model
class TestChatTemplatesOfStrangers:
    @pytest.fixture
    async def later(self, tmp_path: Path) -> AsyncIterator[WatchedResident]:
        """A model whose template never ends from the fifth message on."""
        endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        source = CHAT_TEMPLATE + "{% if messages | length > 4 %}" + endless + "{% endif %}"
        path = write_random_model(tmp_path / "later.gguf", chat_template=source)
        resident = await WatchedResident.start(LoadSpec(path, context_tokens=8192, parallel=2, threads=1), {})
        assert isinstance(resident, WatchedResident)
        yield resident
        await resident.stop()

    async def test_one_that_hangs_holds_no_other_answer_up(self, later: WatchedResident) -> None:
        def chat(name: str, turns: int) -> GenerateRequest:
            messages = [{"role": ("user", "assistant")[n % 2], "content": "w1"} for n in range(turns)]
            return request(name, prompt=None, messages=messages, max_tokens=4)

        hangs = asyncio.create_task(events(later, chat("hangs", 5)))
        plain = await events(later, request("plain", prompt="w1 w2", max_tokens=4))
        assert isinstance(plain[-1], Finished)
        assert not hangs.done(), "it is still being rendered"
        with pytest.raises(ModelTemplateError, match="takes more than 2 s of processor time"):
            await hangs
        assert isinstance((await events(later, chat("short", 1)))[-1], Finished)

    async def test_a_hanging_rendering_that_is_cancelled_leaves_nothing_behind(self, later: WatchedResident) -> None:
        messages = [{"role": "user", "content": "w1"}] * 5
        hangs = asyncio.create_task(events(later, request("hangs", prompt=None, messages=messages)))
        await events(later, request("plain", prompt="w1", max_tokens=1))
        hangs.cancel()
        await asyncio.gather(hangs, return_exceptions=True)
        short = await events(later, request("short", prompt=None, messages=messages[:1], max_tokens=1))
        assert isinstance(short[-1], Finished)
