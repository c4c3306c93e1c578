"""Batched in-process inference: questions put to a GGUF, many at once, as the engine's workers answer them.

A specialist of the tiny parent is cut in 5 milliseconds, loaded in 3, and has answered sixty questions in a third of
a second, so that hundreds of masks can be tried for what they are: files, asked through the engine's own loop.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from coe.engine.errors import EngineError
from coe.engine.generate.prompt import PromptReader
from coe.engine.generate.renderer import InProcess
from coe.engine.llama.context import Context
from coe.engine.llama.model import Model
from coe.engine.request import Delta, Event, Finish, Finished, GenerateRequest, Patience, Rejected
from coe.engine.spec import LoadSpec, Sampling, Thinking
from coe.engine.worker.batch import BatchLoop
from coe.surgery.cut.cut import cut
from coe.surgery.judge.generation import GREEDY, seed_of
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent

from .curriculum import CurriculumQuestion, is_right

_AT_ONCE: Final = 16
_PROMPT_TOKENS: Final = 192  # the longest question takes 60
_ANSWER_TOKENS: Final = 64


@dataclass(frozen=True)
class Manner:
    """How questions are asked. retries: what a loop is tried again with a fresh seed."""

    thinking: Thinking = field(default_factory=Thinking)
    sampling: Sampling = GREEDY
    max_tokens: int = _ANSWER_TOKENS
    loop_guard: bool = True
    retries: int = 0


@dataclass(frozen=True)
class CheckedAnswer:
    """What came of one question.

    reason: why the last attempt ended; looped: the first one ended in a loop. tokens: of the first, then of the last.
    """

    text: str
    right: bool
    reason: Finish
    tokens: int
    looped: bool = False
    retried_tokens: int = 0


def drawn_evenly(questions: Sequence[CurriculumQuestion], count: int, draw: random.Random) -> list[CurriculumQuestion]:
    """`count` questions, or all where there are fewer: of each skill as many, as far as it has them, in mixed order."""
    skills: dict[str, list[CurriculumQuestion]] = {}
    for question in questions:
        skills.setdefault(question.skill, []).append(question)
    for of_one in skills.values():
        draw.shuffle(of_one)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*skills.values()))
    chosen = list(itertools.islice((question for question in turns if question is not None), count))
    draw.shuffle(chosen)
    return chosen


def ask(
    model: Path, questions: Sequence[CurriculumQuestion], manner: Manner | None = None, *, seed: int = 0
) -> list[CheckedAnswer]:
    """Answers in the questions' order; the same for the same seed.

    Raises EngineError when the model does not load or a question is refused.
    """
    manner = manner or Manner()
    with _loaded(model, _PROMPT_TOKENS + manner.max_tokens) as (loop, events):
        first = _attempt(loop, events, questions, manner, seed, 0)
        answers = [_answer(question, *first[at]) for at, question in enumerate(questions)]
        for attempt in range(1, manner.retries + 1):
            looping = [at for at, answer in enumerate(answers) if answer.reason is Finish.LOOP]
            again = _attempt(loop, events, [questions[at] for at in looping], manner, seed, attempt)
            for place, at in enumerate(looping):
                once_more = _answer(questions[at], *again[place])
                before = answers[at]
                answers[at] = CheckedAnswer(
                    once_more.text, once_more.right, once_more.reason, before.tokens, True, once_more.tokens
                )
    return answers


def ask_cut(
    parent: Parent, mask: Mask, questions: Sequence[CurriculumQuestion], manner: Manner | None = None, *, seed: int = 0
) -> list[CheckedAnswer]:
    """The answers of the specialist that a mask makes of its parent. Raises SurgeryError, EngineError."""
    with tempfile.TemporaryDirectory(prefix="coe-") as folder:
        path = Path(folder) / "specialist.gguf"
        cut(parent, mask, path, provenance=False)
        return ask(path, questions, manner, seed=seed)


@contextmanager
def _loaded(path: Path, context_tokens: int) -> Iterator[tuple[BatchLoop, list[Event]]]:
    spec = LoadSpec(
        path,
        context_tokens=context_tokens,
        cache_tokens=_AT_ONCE * context_tokens,
        parallel=_AT_ONCE,
        threads=1,  # at this size threads wait for each other longer than they work
    )
    model = Model(spec)
    try:
        context = Context(model, spec)
        events: list[Event] = []
        # A process of its own for the template, which is the demo's, would take longer than all the rest.
        prompts = PromptReader(model, spec, renderer=InProcess)
        loop = BatchLoop(model, context, spec, events.append, prompts=prompts)
        try:
            yield loop, events
        finally:
            loop.close()
            context.close()
    finally:
        model.close()


def _attempt(
    loop: BatchLoop,
    events: list[Event],
    questions: Sequence[CurriculumQuestion],
    manner: Manner,
    seed: int,
    attempt: int,
) -> list[tuple[str, Finished]]:
    """Text and end of each answer."""
    # A greedy answer is drawn the second time: a seed changes nothing about the most probable token.
    sampling = Sampling() if attempt and manner.sampling.temperature == 0 else manner.sampling
    events.clear()
    for at, question in enumerate(questions):
        loop.submit(
            GenerateRequest(
                str(at),
                "specialist",
                messages=[{"role": "user", "content": question.text}],
                thinking=manner.thinking,
                sampling=sampling,
                max_tokens=manner.max_tokens,
                seed=seed_of(seed, question.text, attempt),
                loop_guard=Patience.NORMAL if manner.loop_guard else None,
            )
        )
    while loop.step():
        pass
    texts: Mapping[str, list[str]] = {str(at): [] for at in range(len(questions))}
    ends: dict[str, Finished] = {}
    for event in events:
        if isinstance(event, Rejected):
            raise EngineError(event.message, event.remedy)
        if isinstance(event, Delta):
            texts[event.id].append(event.text)
        elif isinstance(event, Finished):
            ends[event.id] = event
    return [("".join(texts[str(at)]), ends[str(at)]) for at in range(len(questions))]


def _answer(question: CurriculumQuestion, text: str, end: Finished) -> CheckedAnswer:
    ended = end.reason is Finish.STOP
    return CheckedAnswer(
        text, ended and is_right(question, text), end.reason, end.completion_tokens, end.reason is Finish.LOOP
    )
