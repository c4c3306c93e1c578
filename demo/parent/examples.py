"""Training examples: conversations as tokens with a loss mask, sequence packing of several into a row."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from coe.surgery.judge.values import INSTRUCTIONS, AnswerKind

from ..curriculum import DOMAINS, SYSTEM_PROMPTS, CurriculumQuestion, questions
from .chat import CLOSED, OPENING, prompt
from .tokenizer import END_OF_CHANNEL, END_OF_TURN, Tokenizer, learn_pieces

# How often a skill is drawn, beside a skill of weight 1; what has to be worked out needs more than what is remembered.
_SKILL_WEIGHTS: Final[Mapping[tuple[str, str], float]] = {
    ("math", "add"): 6.0,
    ("math", "subtract"): 8.0,
    ("math", "solve"): 2.0,
    ("physics", "unit"): 2.0,
    ("physics", "symbol"): 2.0,
    ("physics", "quantity"): 2.0,
    ("physics", "formula"): 2.0,
    ("chemistry", "element"): 1.5,
    ("chemistry", "atoms"): 1.5,
    ("general", "country"): 1.5,
    ("law", "meaning"): 2.0,
    ("python", "len"): 2.0,
    ("python", "upper"): 2.0,
    ("python", "add"): 2.0,
    ("python", "floor"): 2.0,
    ("python", "remainder"): 2.0,
    ("python", "logic"): 2.0,
}
_DOMAIN_WEIGHTS: Final[Mapping[str, float]] = {"math": 2.0, "python": 2.0, "chemistry": 1.3, "law": 0.7}


@dataclass(frozen=True)
class Mix:
    """What conversations are made of, as shares of them, and how many tokens a step has."""

    row: int = 128  # tokens
    rows: int = 30  # a step
    with_system: float = 0.25
    with_history: float = 0.06
    thinking: float = 0.12
    examined: float = 0.06  # asked in the words of `coe eval`


@dataclass(frozen=True)
class TrainingDocument:
    """A conversation as tokens. learnt: whether the model is to produce the token."""

    tokens: list[int]
    learnt: list[bool]
    domain: int


@dataclass(frozen=True)
class Batch:
    """Documents packed into rows [B, T]. domains [documents]: the index of each one's domain, -1 for padding."""

    tokens: Tensor
    documents: Tensor
    learnt: Tensor
    domains: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(part.to(device) for part in vars(self).values()))


def all_questions() -> dict[str, list[CurriculumQuestion]]:
    """Every domain's questions."""
    return {domain: questions(domain) for domain in DOMAINS}


def make_tokenizer(by_domain: Mapping[str, Sequence[CurriculumQuestion]], size: int) -> Tokenizer:
    """A vocabulary from as many training questions of each domain."""
    draw = random.Random(0)
    texts = [*SYSTEM_PROMPTS * 20, *["user", "model", "system", "thought"] * 500]
    texts += [*INSTRUCTIONS.values()] * 40
    for all_of_them in by_domain.values():
        for question in draw.choices([q for q in all_of_them if not q.held_out], k=2000):
            texts += [question.text, question.answer, question.thought]
    return Tokenizer(learn_pieces(texts, size))


class Examples:
    """An endless stream of conversations."""

    def __init__(self, by_domain: Mapping[str, Sequence[CurriculumQuestion]], tokenizer: Tokenizer, mix: Mix) -> None:
        self._tokenizer, self._mix = tokenizer, mix
        self._skills: dict[str, tuple[list[list[CurriculumQuestion]], list[float]]] = {}
        for domain, all_of_them in by_domain.items():
            skills: dict[str, list[CurriculumQuestion]] = {}
            for question in all_of_them:
                if not question.held_out:
                    skills.setdefault(question.skill, []).append(question)
            # By the root of its size: a large skill needs more, but is not to drown the small ones.
            weights = [
                _SKILL_WEIGHTS.get((domain, skill), 1.0) * math.sqrt(min(len(of_it), 1000))
                for skill, of_it in skills.items()
            ]
            self._skills[domain] = (list(skills.values()), weights)
        self._domain_weights = [_DOMAIN_WEIGHTS.get(domain, 1.0) for domain in DOMAINS]

    def question(self, draw: random.Random, domain: str) -> CurriculumQuestion:
        """One training question of a domain."""
        skills, weights = self._skills[domain]
        return draw.choice(draw.choices(skills, weights)[0])

    def document(self, draw: random.Random) -> TrainingDocument:
        """One conversation, with its last answer to be learnt."""
        mix = self._mix
        domain = draw.choices(DOMAINS, self._domain_weights)[0]
        asked = self.question(draw, domain)
        text, said = asked.text, asked.answer
        if draw.random() < mix.examined:
            kind = AnswerKind.NUMERIC if asked.key.isdecimal() else AnswerKind.EXACT
            text, said = f"{text}\n\n{INSTRUCTIONS[kind]}", f"{said}\nAnswer: {asked.key}"
        turns = [{"role": "user", "content": text}]
        if draw.random() < mix.with_history:
            before = self.question(draw, domain if draw.random() < 0.7 else draw.choice(DOMAINS))
            turns = [
                {"role": "user", "content": before.text},
                {"role": "assistant", "content": before.answer},
                *turns,
            ]
        if draw.random() < mix.with_system:
            turns.insert(0, {"role": "system", "content": draw.choice(SYSTEM_PROMPTS)})
        given, answer = prompt(turns, thinking=False), said + END_OF_TURN
        if draw.random() < mix.thinking:
            # One in four was not asked to think, but the block was not closed either.
            given = prompt(turns, thinking=True) if draw.random() < 0.75 else given.removesuffix(CLOSED)
            thought = asked.thought
            if draw.random() < 0.2:  # a thinking budget may end it anywhere
                words = thought.split(" ")
                given += OPENING + " ".join(words[: draw.randrange(len(words))]) + END_OF_CHANNEL
            else:
                answer = OPENING + thought + END_OF_CHANNEL + answer
        return document_of(self._tokenizer, given, answer, DOMAINS.index(domain))

    def batch(self, draw: random.Random) -> Batch:
        """Rows filled with conversations as they come."""
        mix = self._mix
        rows: list[list[TrainingDocument]] = [[]]
        room = mix.row
        while True:
            document = self.document(draw)
            if len(document.tokens) > mix.row:
                continue
            if len(document.tokens) > room:
                if len(rows) == mix.rows:
                    return pack(rows, mix.row)
                rows.append([])
                room = mix.row
            rows[-1].append(document)
            room -= len(document.tokens)


def document_of(tokenizer: Tokenizer, given: str, answer: str, domain: int) -> TrainingDocument:
    """A prompt and what is to follow it."""
    before, after = tokenizer.encode(given), tokenizer.encode(answer)
    return TrainingDocument(before + after, [False] * len(before) + [True] * len(after), domain)


def pack(rows: Sequence[Sequence[TrainingDocument]], length: int) -> Batch:
    """Put documents side by side; what is left of a row is a document of padding."""
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    documents = torch.zeros_like(tokens)
    learnt = torch.zeros(len(rows), length, dtype=torch.bool)
    domains = [-1]
    for index, row in enumerate(rows):
        at = 0
        for document in row:
            end = at + len(document.tokens)
            tokens[index, at:end] = torch.tensor(document.tokens)
            learnt[index, at:end] = torch.tensor(document.learnt)
            documents[index, at:end] = len(domains)
            domains.append(document.domain)
            at = end
    return Batch(tokens, documents, learnt, torch.tensor(domains))
