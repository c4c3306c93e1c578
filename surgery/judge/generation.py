"""Batch inference: many prompts through one model; an interrupted batch is resumed.

Answers are kept in a JSONL file as they come. The file is bound to the model's bytes and to the settings, each line to
its prompt's text: a prompt with an answer there is not asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from coe.engine.errors import EngineError, WorkerDiedError
from coe.engine.files import cache_folder
from coe.engine.gguf.reader import read_split
from coe.engine.pool.resident import WorkerResident
from coe.engine.request import Delta, Finish, Finished, GenerateRequest
from coe.engine.spec import LoadSpec, Sampling, Thinking

from ..errors import EvaluationError
from ..files import sha256_of

GREEDY: Final = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)

_VERSION: Final = 1
_NAME: Final = "generation"
_STALL_S: Final = 600.0  # a worker that has work and gives no sign for so long is stopped
_LOOK_S: Final = 5.0
_DEATHS: Final = 3  # questions in a row that kill the worker, each twice: then it is not the questions


@dataclass(frozen=True)
class BatchPrompt:
    """A conversation that wants an answer. id: gives the answer's seed."""

    id: str
    messages: Sequence[Mapping[str, str]]

    @property
    def key(self) -> tuple[str, str]:
        """The id, and the SHA-256 of the conversation: two prompts of one key are one."""
        return self.id, _digest(list(self.messages))


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated.

    thinking:     off by default.
    sampling:     greedy by default.
    seed:         each answer draws with a seed made of this and its prompt's id, whatever the order.
    loop_retries: how often an answer that the loop guard ended is tried again with a fresh seed. A greedy one is then
                  drawn with the server's default sampling: a seed changes nothing about the most probable token.
    """

    thinking: Thinking = field(default_factory=Thinking)
    sampling: Sampling = GREEDY
    max_tokens: int | None = 4096
    seed: int = 0
    loop_retries: int = 1

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data


DEFAULT: Final = GenerationSettings()


@dataclass(frozen=True)
class Generated:
    """One answer.

    reason:  why it ended: stop, length or loop; "" when there is none, and `error` says why.
    looped:  the first attempt ended in a loop; `reason` tells what became of the last one.
    spent_tokens: of all attempts; the other counts are the last one's.
    """

    text: str = ""
    reasoning: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    leaked_blocks: int = 0
    spent_tokens: int = 0
    attempts: int = 1
    looped: bool = False
    error: str = ""


@dataclass(frozen=True)
class GenerationProgress:
    """How far a step has come. step: hash (bytes), load (percent) or generate (answers). tokens: generated so far."""

    step: str
    model: str
    done: int
    total: int
    tokens: int = 0


OnProgress = Callable[[GenerationProgress], None]


class Answering(Protocol):
    """What is asked of a resident here; `coe.engine.pool.resident.Resident` is one."""

    def generate(self, request: GenerateRequest) -> Any:
        """See Resident.generate."""
        ...

    async def stop(self) -> None:
        """See Resident.stop."""
        ...

    def silent_s(self) -> float:
        """See Resident.silent_s."""
        ...


Start = Callable[[LoadSpec, Mapping[str, Thinking], Callable[[float], None]], Awaitable[Answering]]


# --- the file of answers --------------------------------------------------------------------------------------------


def binding(model_sha256: str, settings: GenerationSettings, load: LoadSpec) -> dict[str, Any]:
    """What answers depend on beside their prompts."""
    return {
        "version": _VERSION,
        "model": model_sha256,
        "settings": settings.to_json(),
        "context_tokens": load.context_tokens,
        "kv_type": load.kv_type,
    }


class AnswerFile:
    """Answers on disk. Opened by `opened`, which holds the file against other writers."""

    def __init__(self, path: Path, descriptor: int, answers: dict[tuple[str, str], Generated]) -> None:
        self.path = path
        self._descriptor = descriptor
        self._answers = answers

    @classmethod
    @contextmanager
    def opened(cls, path: Path, bound_to: Mapping[str, Any]) -> Iterator[AnswerFile]:
        """Open, or make, the file of one model under one set of settings.

        A last line that was torn by a crash is dropped. Raises EvaluationError for a file that is bound to something
        else, is damaged, or is being written by another process.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise EvaluationError(
                f"{path} cannot be written: {error}.", "Name a folder that can be written."
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EvaluationError(
                    f"Another process is writing {path}.",
                    "Wait until it has ended, or name another folder for answers.",
                ) from None
            kept, answers = _read_answers(path, dict(bound_to))
            os.ftruncate(descriptor, kept)
            answer_file = cls(path, descriptor, answers)
            if not kept:
                answer_file._append(dict(bound_to))
            yield answer_file
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def get(self, prompt: BatchPrompt) -> Generated | None:
        """The answer to a prompt, None when there is none or it failed."""
        answer = self._answers.get(prompt.key)
        return answer if answer is not None and not answer.error else None

    def put(self, prompt: BatchPrompt, answer: Generated) -> None:
        """Keep an answer, on disk before this returns. Raises EvaluationError when the disk is full."""
        prompt_id, sha256 = prompt.key
        self._append({"id": prompt_id, "prompt": sha256, "answer": asdict(answer)})
        self._answers[prompt_id, sha256] = answer

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError("the disk is full")
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise EvaluationError(
                f"An answer cannot be written to {self.path}: {error}.",
                "Make room on the disk and go on: nothing is lost.",
            ) from error


def _read_answers(path: Path, bound_to: Mapping[str, Any]) -> tuple[int, dict[tuple[str, str], Generated]]:
    """How many bytes of the file are sound, and the answers in them."""
    lines = path.read_bytes().split(b"\n")
    answers: dict[tuple[str, str], Generated] = {}
    kept = 0
    for at, line in enumerate(lines[:-1]):
        try:
            record = json.loads(line)
            if at:
                answers[record["id"], record["prompt"]] = Generated(**record["answer"])
        except (ValueError, KeyError, TypeError) as error:
            if at == len(lines) - 2:
                break  # torn by a crash
            raise EvaluationError(
                f"{path}, line {at + 1} is damaged: {error}.", "Remove the file: its questions are asked again."
            ) from error
        if not at and record != bound_to:
            raise EvaluationError(
                f"{path} holds answers of another model or of other settings.", "Name another file, or remove this one."
            )
        kept += len(line) + 1
    return kept, answers


# --- generating -----------------------------------------------------------------------------------------------------


def generate(
    model: Path,
    prompts: Sequence[BatchPrompt],
    settings: GenerationSettings = DEFAULT,
    *,
    load: LoadSpec | None = None,
    folder: Path | None = None,
    progress: OnProgress = lambda progress: None,
    start: Start = WorkerResident.start,
) -> list[Generated]:
    """Answers to all prompts, in their order; the model is loaded only if one is missing.

    load:   how to load the model; its `path` is not looked at, its `parallel` says how many prompts at once.
    folder: where answers are kept, in a file of this model and these settings; the cache by default.
    A prompt that the engine refuses, or whose worker dies twice, gets an answer with `error`, and is asked again the
    next time. Interrupt it as you like: what was answered stays. Must not be called from a running event loop.
    Raises EngineError when the model does not load, EvaluationError when its worker dies over that or again and again.
    """
    load = replace(load or LoadSpec(model), path=model)
    bound_to = binding(model_sha256(model, progress), settings, load)
    path = (folder or cache_folder() / "answers") / f"{model.stem[:100]}-{_digest(bound_to)[:16]}.jsonl"
    with AnswerFile.opened(path, bound_to) as answers:
        wanted = {prompt.key: prompt for prompt in prompts}
        missing = [prompt for prompt in wanted.values() if answers.get(prompt) is None]
        failed: dict[tuple[str, str], Generated] = {}
        if missing:
            batch = _Batch(load, settings, answers, len(wanted), missing, progress, start)
            asyncio.run(batch.run())
            failed = batch.failed
        return [answers.get(prompt) or failed[prompt.key] for prompt in prompts]


def model_sha256(model: Path, progress: OnProgress = lambda progress: None) -> str:
    """SHA-256 of a GGUF and its further parts, from the cache for an unchanged file. Raises ModelFileError."""
    paths = tuple(header.path for header in read_split(model))
    total = sum(path.stat().st_size for path in paths)
    done = 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(GenerationProgress("hash", model.name, done, total))

    return sha256_of(paths, count)


def seed_of(seed: int, prompt_id: str, attempt: int = 0) -> int:
    """The seed of one attempt at one prompt: the same in every run and in every order."""
    return int(_digest([seed, prompt_id, attempt])[:8], 16) % (2**32 - 1)


class _Batch:
    """What is still to be asked, and the workers that are started for it, one after another.

    A dead worker takes all its prompts with it, though one of them may have been its death. So they are asked again
    one at a time in a new worker, and a prompt that kills it there is to blame.
    """

    def __init__(
        self,
        spec: LoadSpec,
        settings: GenerationSettings,
        answers: AnswerFile,
        total: int,
        missing: Sequence[BatchPrompt],
        progress: OnProgress,
        start: Start,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._answers = answers
        self._total = total
        self._todo = deque(missing)
        self._suspects: deque[BatchPrompt] = deque()
        self._on_progress = progress
        self._start = start
        self._tokens = 0
        self._done = total - len(missing)
        self._deaths = 0  # in a row
        self.failed: dict[tuple[str, str], Generated] = {}

    async def run(self) -> None:
        """Ask everything."""
        self._report("generate", self._done, self._total)
        while self._todo or self._suspects:
            try:
                resident = await self._start(
                    self._spec,
                    {_NAME: self._settings.thinking},
                    lambda fraction: self._report("load", int(100 * fraction), 100),
                )
            except WorkerDiedError as error:
                raise EvaluationError(
                    f"{self._spec.path.name} cannot be loaded: {error.message}",
                    "Look at the file with coe inspect, or give it more memory.",
                ) from error
            watch = asyncio.create_task(_stop_when_silent(resident))
            try:
                await self._use(resident)
            finally:
                watch.cancel()
                await asyncio.shield(resident.stop())

    async def _use(self, resident: Answering) -> None:
        """Ask until there is nothing left, or the worker is dead."""
        while self._suspects:
            prompt = self._suspects.popleft()
            try:
                self._keep(prompt, await self._answer(resident, prompt))
            except WorkerDiedError as error:
                self._fail(prompt, f"The worker died twice over this prompt. {error.message}")
                self._deaths += 1
                if self._deaths >= _DEATHS:
                    raise EvaluationError(
                        f"{self._spec.path.name} kills its worker over one prompt after the other: {error.message}",
                        "Look at the model with coe verify, or give it more memory.",
                    ) from error
                return
        tasks = [asyncio.create_task(self._drain(resident)) for _ in range(max(1, self._spec.parallel))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, resident: Answering) -> None:
        while self._todo and not self._suspects:
            prompt = self._todo.popleft()
            try:
                self._keep(prompt, await self._answer(resident, prompt))
            except WorkerDiedError:
                self._suspects.append(prompt)

    async def _answer(self, resident: Answering, prompt: BatchPrompt) -> Generated:
        try:
            answer = await self._attempt(resident, prompt, 0)
            first = answer
            spent = answer.completion_tokens
            attempt = 0
            while answer.reason == Finish.LOOP and attempt < self._settings.loop_retries:
                attempt += 1
                answer = await self._attempt(resident, prompt, attempt)
                spent += answer.completion_tokens
        except WorkerDiedError:
            raise
        except EngineError as error:
            return Generated(error=str(error))
        return replace(answer, looped=first.reason == Finish.LOOP, attempts=attempt + 1, spent_tokens=spent)

    async def _attempt(self, resident: Answering, prompt: BatchPrompt, attempt: int) -> Generated:
        settings = self._settings
        sampling = settings.sampling
        if attempt and sampling.temperature == 0:
            sampling = Sampling()
        request = GenerateRequest(
            f"{'-'.join(prompt.key)}-{attempt}",
            _NAME,
            messages=list(prompt.messages),
            thinking=settings.thinking,
            sampling=sampling,
            max_tokens=settings.max_tokens,
            seed=seed_of(settings.seed, prompt.id, attempt),
        )
        text, reasoning = [], []
        end: Finished | None = None
        async with contextlib.aclosing(resident.generate(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    text.append(event.text)
                    reasoning.append(event.reasoning)
                elif isinstance(event, Finished):
                    end = event
        assert end is not None
        return Generated(
            "".join(text),
            "".join(reasoning),
            end.reason.value,
            end.prompt_tokens,
            end.completion_tokens,
            end.reasoning_tokens,
            end.leaked_blocks,
        )

    def _keep(self, prompt: BatchPrompt, answer: Generated) -> None:
        if answer.error:
            self._fail(prompt, answer.error)
            return
        self._deaths = 0
        self._answers.put(prompt, answer)
        self._tokens += answer.spent_tokens
        self._done += 1
        self._report("generate", self._done, self._total)

    def _fail(self, prompt: BatchPrompt, why: str) -> None:
        answer = Generated(error=why)
        self._answers.put(prompt, answer)
        self.failed[prompt.key] = answer
        self._done += 1
        self._report("generate", self._done, self._total)

    def _report(self, step: str, done: int, total: int) -> None:
        self._on_progress(GenerationProgress(step, self._spec.path.name, done, total, self._tokens))


async def _stop_when_silent(resident: Answering) -> None:
    """A worker that hangs is stopped: its prompts are then those of a dead one."""
    while True:
        await asyncio.sleep(_LOOK_S)
        if resident.silent_s() > _STALL_S:
            await resident.stop()
            return


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
