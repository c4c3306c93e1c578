"""Child processes: what crosses the pipes, what ends a child, and what is told of its end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coe.engine import errors as engine_errors
from coe.engine.child import Limits, run, started
from coe.engine.errors import ChildDiedError, ChildTimeoutError, EngineError, OutOfMemoryError, PromptTooLongError
from coe.engine.shortage import Shortage
from coe.engine.vitals import SHORTEST_S, Beat, Vitals
from coe.surgery import errors as surgery_errors
from fakes.child_modules import write_module
from fakes.server_process import ended

pytestmark = pytest.mark.slow

TITLE = "The process that stands in"
FOREVER = "report(os.getpid()); signal.pause()"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A module whose `main(job, report)` has this body."""
    return lambda main: write_module(tmp_path, monkeypatch, main)


class TestAnswers:
    async def test_progress_comes_in_order_and_the_answer_last(self, module: Callable[[str], str]) -> None:
        heard: list[Any] = []
        name = module("for n in range(job['n']): report({'at': n})\nreturn {'of': job['n']}")
        assert await run(name, {"n": 3}, title=TITLE, on_progress=heard.append) == {"of": 3}
        assert heard == [{"at": 0}, {"at": 1}, {"at": 2}]

    async def test_jobs_and_answers_may_be_larger_than_a_pipe(self, module: Callable[[str], str]) -> None:
        text = "\udce4ä" * 2**20
        assert await run(module("return job"), text, title=TITLE) == text

    async def test_what_is_printed_does_not_reach_the_answer(self, module: Callable[[str], str]) -> None:
        name = module("print('by Python')\nos.write(1, b'by a library')\nos.system('echo by a child')\nreturn 'clean'")
        assert await run(name, None, title=TITLE) == "clean"

    async def test_an_answer_counts_whatever_happens_on_the_way_out(self, module: Callable[[str], str]) -> None:
        name = module("import atexit\natexit.register(os.abort)\nreturn 'done'")
        assert await run(name, None, title=TITLE) == "done"

    def test_a_caller_without_an_event_loop_is_served_too(self, module: Callable[[str], str]) -> None:
        assert asyncio.run(run(module("return job"), 1, title=TITLE)) == 1

    async def test_a_child_is_in_a_session_of_its_own(self, module: Callable[[str], str]) -> None:
        pid, session = await run(module("return os.getpid(), os.getsid(0)"), None, title=TITLE)
        assert pid == session


class TestErrors:
    async def test_a_typed_error_is_raised_as_its_class_with_its_facts(self, module: Callable[[str], str]) -> None:
        name = module(
            "from coe.engine.errors import PromptTooLongError\nraise PromptTooLongError(9, 8, by_roster=True)"
        )
        with pytest.raises(PromptTooLongError, match="has 9 tokens, the roster takes 8") as caught:
            await run(name, None, title=TITLE)
        assert vars(caught.value) == vars(PromptTooLongError(9, 8, by_roster=True))
        assert str(caught.value) == str(PromptTooLongError(9, 8, by_roster=True))

    async def test_what_memory_was_short_is_told_as_it_was_found(self, module: Callable[[str], str]) -> None:
        shortage = Shortage("CUDA0", 4096, free_bytes=1024, need_bytes=8192)
        name = module(
            "from coe.engine import errors, shortage\n"
            f"raise errors.OutOfMemoryError.of('a model', shortage.{shortage!r}, [shortage.CardUser(7, 'blender', 9)])"
        )
        with pytest.raises(OutOfMemoryError, match=r"no room on CUDA0(?s:.)*blender \(pid 7\)") as caught:
            await run(name, None, title=TITLE)
        assert caught.value.shortage == shortage

    async def test_classes_are_looked_up_where_the_caller_says(self, module: Callable[[str], str]) -> None:
        name = module("from coe.surgery.errors import CutError\nraise CutError('It broke.', 'Mend it.')")
        with pytest.raises(surgery_errors.CutError) as caught:
            await run(name, None, title=TITLE, errors=(engine_errors, surgery_errors))
        assert (caught.value.message, caught.value.remedy) == ("It broke.", "Mend it.")
        with pytest.raises(EngineError, match=r"It broke\. Mend it\."):
            await run(name, None, title=TITLE)

    async def test_a_bug_is_a_death_with_its_last_words(self, module: Callable[[str], str]) -> None:
        with pytest.raises(ChildDiedError, match=r"stands in failed \(exit 1\): KeyError: 'absent'") as caught:
            await run(module("job['absent']"), {}, title=TITLE)
        assert caught.value.code == 1

    async def test_a_module_that_does_not_load_is_a_death_too(self) -> None:
        with pytest.raises(ChildDiedError, match="No module named 'no_such_module'"):
            await run("no_such_module", {}, title=TITLE)

    async def test_an_abort_is_told_apart_from_an_exit(self, module: Callable[[str], str]) -> None:
        name = module("print('GGML_ASSERT(n > 0) failed', file=sys.stderr, flush=True)\nprint('core')\nos.abort()")
        with pytest.raises(
            ChildDiedError, match=r"was ended by signal 6, SIGABRT: GGML_ASSERT\(n > 0\) failed"
        ) as caught:
            await run(name, None, title=TITLE)
        assert caught.value.code == -signal.SIGABRT

    async def test_half_a_line_is_no_answer(self, module: Callable[[str], str]) -> None:
        name = module("""
            for descriptor in range(3, 20):
                try: os.write(descriptor, b'{"answer": 1}')
                except OSError: pass
            os._exit(3)
        """)
        with pytest.raises(ChildDiedError, match=r"exit 3\): it printed nothing"):
            await run(name, None, title=TITLE)

    async def test_an_error_of_a_gpu_is_heard_though_it_went_to_the_log(self, module: Callable[[str], str]) -> None:
        name = module("""
            from coe.engine.llama.log import capture
            log = capture()
            for line in (b"CUDA error: out of memory", b"  current device: 0, in function alloc at ggml-cuda.cu:651"):
                log._receive(4, line + b"\\n", None)
            os.abort()
        """)
        with pytest.raises(ChildDiedError, match=r"SIGABRT: CUDA error: out of memory"):
            await run(name, None, title=TITLE)


class TestLimits:
    async def test_a_child_that_takes_too_long_is_killed(self, module: Callable[[str], str]) -> None:
        async with started(module(FOREVER), None, title=TITLE) as one:
            watched = os.pidfd_open(one.pid)
            with pytest.raises(ChildTimeoutError, match=r"stands in did not end in 0 s\."):
                await one.answer(within_s=0.01, silent_s=60)
        assert ended(watched)
        os.close(watched)

    async def test_a_child_that_gives_no_sign_is_given_up(self, module: Callable[[str], str]) -> None:
        with pytest.raises(ChildTimeoutError, match="gave no sign for 0 s"):
            await run(module(FOREVER), None, title=TITLE, within_s=60, silent_s=0.01)

    @pytest.mark.parametrize(("limit", "lives"), [({"silent_s": 150.0}, True), ({"within_s": 150.0}, False)])
    async def test_every_report_is_a_sign_of_life(
        self,
        module: Callable[[str], str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        limit: dict[str, Any],
        lives: bool,
    ) -> None:
        loop, turned = asyncio.get_running_loop(), 0.0
        time = loop.time

        def turn(progress: Any) -> None:
            nonlocal turned
            turned += 100.0
            gate.write_text("")

        name = module("for n in range(4):\n    report(n)\n    open(job).read()\nreturn 'done'")
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        monkeypatch.setattr(loop, "time", lambda: time() + turned)
        if lives:
            assert await run(name, str(gate), title=TITLE, on_progress=turn, **limit) == "done"
        else:
            with pytest.raises(ChildTimeoutError):
                await run(name, str(gate), title=TITLE, on_progress=turn, **limit)


class TestEnds:
    async def test_a_cancelled_caller_leaves_no_child(self, module: Callable[[str], str]) -> None:
        pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(run(module(FOREVER), None, title=TITLE, on_progress=pid.set_result))
        watched = os.pidfd_open(await pid)
        task.cancel()
        assert await asyncio.to_thread(ended, watched)
        os.close(watched)
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_a_caller_that_raises_leaves_no_child(self, module: Callable[[str], str]) -> None:
        watched = []

        def refuse(pid: int) -> None:
            watched.append(os.pidfd_open(pid))
            raise ValueError("no more of this")

        with pytest.raises(ValueError, match="no more of this"):
            await run(module(FOREVER), None, title=TITLE, on_progress=refuse)
        assert ended(watched[0])
        os.close(watched[0])

    async def test_a_child_that_stands_still_is_killed_too(self, module: Callable[[str], str]) -> None:
        async with started(module(FOREVER), None, title=TITLE) as one:
            watched = os.pidfd_open(one.pid)
            one.send_signal(signal.SIGSTOP)
        assert ended(watched)
        os.close(watched)

    async def test_a_child_that_is_stopped_has_no_heartbeat_and_is_given_up(self, module: Callable[[str], str]) -> None:
        async with started(module(FOREVER), None, title=TITLE, stall_s=SHORTEST_S) as one:
            watched = os.pidfd_open(one.pid)
            with pytest.raises(ChildTimeoutError, match=f"{TITLE} gave no sign of life for 3 s and was killed"):
                await one.answer(lambda pid: os.kill(pid, signal.SIGSTOP))
        assert ended(watched)
        os.close(watched)

    async def test_one_that_holds_its_interpreter_has_none_either(self, module: Callable[[str], str]) -> None:
        """A call that never returns and keeps Python's lock, as an extension may."""
        name = module("import ctypes\nreport(0)\nctypes.PyDLL(None).sleep(100_000)")
        with pytest.raises(ChildTimeoutError, match="gave no sign of life"):
            await run(name, None, title=TITLE, stall_s=SHORTEST_S)

    async def test_one_that_waits_for_ever_is_given_up_though_its_heart_beats(
        self, module: Callable[[str], str]
    ) -> None:
        async with started(module(FOREVER), None, title=TITLE, idle_s=SHORTEST_S) as one:
            with pytest.raises(ChildTimeoutError, match="made no progress for 3 s and was killed"):
                await one.answer()

    @pytest.mark.parametrize("of", ["its own", "its child's"])
    async def test_what_a_child_or_a_child_of_its_own_does_is_in_its_heartbeat(
        self, of: str, module: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It goes on once its parent has heard of five steps done, and of processor time."""
        write_module(tmp_path, monkeypatch, "for _ in range(5): report(None)\nopen(job).read()\nreturn 'done'", "works")
        waits = module(
            "import asyncio\nfrom coe.engine import child\n"
            "return asyncio.run(child.run('works', job, title='Its child'))"
        )
        os.mkfifo(tmp_path / "fifo")
        heard, judge = asyncio.Event(), Vitals.beat

        def beat(self: Vitals, now: float, beat: Beat) -> None:
            judge(self, now, beat)
            if beat.steps == 5 and beat.cpu_s > 0:
                heard.set()

        monkeypatch.setattr(Vitals, "beat", beat)
        name = "works" if of == "its own" else waits
        answer = asyncio.create_task(run(name, str(tmp_path / "fifo"), title=TITLE))
        hearing = asyncio.create_task(heard.wait())
        await asyncio.wait([hearing, answer], return_when=asyncio.FIRST_COMPLETED)
        assert not answer.done() or await answer
        (tmp_path / "fifo").open("w").close()
        assert await answer == "done"

    async def test_a_watchdog_that_was_stopped_itself_forgives(
        self, module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The clock jumps by an hour between two looks: heartbeats lie unread, and the child lives."""
        name = module("report(0)\nsys.stdin.close()\nsignal.sigtimedwait([signal.SIGUSR1], 5)\nreturn 'done'")
        clock, late = time.monotonic, 0.0
        monkeypatch.setattr("coe.engine.child.time", SimpleNamespace(monotonic=lambda: clock() + late))

        def later(_: object) -> None:
            nonlocal late
            late = 3600.0

        assert await run(name, None, title=TITLE, on_progress=later) == "done"

    async def test_a_child_that_stands_still_hears_that_it_is_to_stop(self, module: Callable[[str], str]) -> None:
        ready = asyncio.Event()
        name = module("""
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                report('ready')
                signal.pause()
            except KeyboardInterrupt:
                return 'stopped'
        """)
        async with started(name, None, title=TITLE) as one:
            answer = asyncio.create_task(one.answer(lambda progress: ready.set()))
            await ready.wait()
            one.send_signal(signal.SIGSTOP)
            await one.stop(signal.SIGTERM, 60)
            assert await answer == "stopped"

    async def test_a_child_that_is_told_to_stop_may_answer(self, module: Callable[[str], str]) -> None:
        ready = asyncio.Event()
        name = module("""
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                report('ready')
                signal.pause()
            except KeyboardInterrupt:
                return 'stopped'
        """)
        async with started(name, None, title=TITLE) as one:
            answer = asyncio.create_task(one.answer(lambda progress: ready.set()))
            await ready.wait()
            await one.stop(signal.SIGTERM, 60)
            assert await answer == "stopped"

    async def test_a_child_that_does_not_stop_is_killed(self, module: Callable[[str], str]) -> None:
        ready = asyncio.Event()
        name = module("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nreport(0)\nwhile True: signal.pause()")
        async with started(name, None, title=TITLE) as one:
            answer = asyncio.create_task(one.answer(lambda progress: ready.set()))
            await ready.wait()
            await one.stop(signal.SIGTERM, 0.01)
            with pytest.raises(ChildDiedError, match="signal 9"):
                await answer


async def test_a_log_is_added_to_and_last_words_are_of_this_run(module: Callable[[str], str], tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_text("GGML_ASSERT(of an earlier run)\n")
    async with started(module("os._exit(7)"), None, title=TITLE, log=log) as one:
        with pytest.raises(ChildDiedError, match=r"\(exit 7\): it printed nothing"):
            await one.answer()
    async with started(module("sys.exit('there')"), None, title=TITLE, log=log) as one:
        with pytest.raises(ChildDiedError, match=r"\(exit 1\): there"):
            await one.answer()
    assert log.read_text() == "GGML_ASSERT(of an earlier run)\nthere\n"


class TestWhatAChildMayTake:
    async def test_memory_beyond_the_limit_fails_in_the_child(self, module: Callable[[str], str]) -> None:
        name = module("return len(bytearray(2**31))")
        with pytest.raises(ChildDiedError, match="MemoryError"):
            await run(name, None, title=TITLE, limits=Limits(memory_bytes=2**30))

    async def test_a_mapped_file_is_no_memory_of_its_own(self, module: Callable[[str], str], tmp_path: Path) -> None:
        path = tmp_path / "large"
        with path.open("wb") as file:
            file.truncate(2**33)
        name = module(
            "import mmap\nfile = open(job, 'rb')\nreturn len(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))"
        )
        assert await run(name, str(path), title=TITLE, limits=Limits(memory_bytes=2**30)) == 2**33

    async def test_time_beyond_the_limit_ends_the_child(self, module: Callable[[str], str]) -> None:
        with pytest.raises(ChildDiedError) as died:
            await run(module("while True: pass"), None, title=TITLE, limits=Limits(cpu_s=1))
        assert died.value.code in (-signal.SIGXCPU, -signal.SIGKILL)

    async def test_a_child_goes_before_its_parent_when_memory_runs_out(self, module: Callable[[str], str]) -> None:
        name = module("return int(Path('/proc/self/oom_score_adj').read_text())")
        own = int(await asyncio.to_thread(Path("/proc/self/oom_score_adj").read_text))
        assert await run(name, None, title=TITLE) == min(1000, own + 300)
