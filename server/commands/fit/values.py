"""The rows of `coe fit`, as plain values, and what is decided about them: which are tried, and how many fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from coe.engine.pool.places import HOST, Memory

from ...roster.values import InvalidError, parse_size

_LEAST_BUDGET: Final = 2**20  # less holds not even the process
_MOST_BUDGET: Final = 2**47
LADDER: Final = ((7, 8), (3, 4), (5, 8), (1, 2))  # shares of the experts that are tried


class Way(StrEnum):
    """How a model is held."""

    WHOLE = "whole"
    OFFLOADED = "experts in host memory"  # of as few layers as needed
    CUT = "fewer experts"


@dataclass(frozen=True)
class Model:
    """A GGUF to choose.

    title:    tells it from the others. file: the first file's name. n_bytes: of all its files.
    n_expert: a layer; 0 of a dense model. trained_tokens: the context that it was trained for; 0 where its header does
              not say.
    """

    title: str
    file: str
    n_bytes: int
    n_expert: int
    trained_tokens: int = 0

    def untrained(self, contexts: Iterable[int]) -> list[int]:
        """Those of the contexts that are longer than it was trained for."""
        return [context for context in contexts if 0 < self.trained_tokens < context]


@dataclass(frozen=True)
class Need:
    """What a resident takes with one conversation, by a dry run.

    memory: None where that ended in an error. cpu_expert_layers: as in LoadSpec.
    cards:  any of which may take it; () where there is no choice.
    """

    memory: Memory | None
    cpu_expert_layers: int = 0
    cards: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One way to hold a model.

    n_keep:  experts a layer. n_bytes: of the file.
    needs:   by context tokens.
    tokens_per_s: by `coe bench` on this machine, None where it was not measured.
    """

    model: Model
    way: Way
    n_keep: int
    n_bytes: int
    needs: Mapping[int, Need]
    tokens_per_s: float | None = None

    def residents(self, context: int, budget: Memory) -> int:
        """How many of them fit at once with this context."""
        return n_residents(self.needs[context], budget)

    def fits(self, context: int, budget: Memory) -> bool:
        """Whether one does."""
        return self.residents(context, budget) > 0


@dataclass(frozen=True)
class Table:
    """All rows, those of a model together, and what there is to say besides.

    remarks: what dry runs noted, and why models, or ways to hold them, are left out.
    """

    budget: Memory
    contexts: tuple[int, ...]
    rows: tuple[Row, ...]
    on_gpu: bool
    remarks: tuple[str, ...] = field(default=())

    @property
    def n_models(self) -> int:
        """Distinct models: a file of one's own is one, a repository may have several."""
        return len({row.model for row in self.rows})


def parse_budget(text: str) -> int:
    """Bytes of `15 GiB` or a plain number of bytes. Raises InvalidError for what is no size, and for one that no model
    can be held in or no machine has."""
    n_bytes = parse_size(int(text) if text.isdecimal() else text)
    if not _LEAST_BUDGET <= n_bytes <= _MOST_BUDGET:
        why = "holds no model at all" if n_bytes < _LEAST_BUDGET else "is more than any machine has"
        raise InvalidError(f"A budget of {text} {why}.", "Write what models may take, such as `15 GiB`.")
    return n_bytes


def context_text(tokens: int) -> str:
    """`16k` of 16384, `1000` of 1000."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def n_residents(need: Need, budget: Memory) -> int:
    """How many residents alike fit at once: on each card that may take one, and in host memory."""
    memory = need.memory
    if memory is None or not memory:
        return 0
    counts = [budget[place] // memory[place] for place in memory.places if place == HOST and memory[place] > 0]
    if len(need.cards) > 1:
        per_card = memory[need.cards[0]]
        counts += [sum(budget[card] // per_card for card in need.cards)] if per_card > 0 else []
    else:
        counts += [budget[place] // memory[place] for place in memory.places if place != HOST and memory[place] > 0]
    return max(0, min(counts, default=0))


def most_experts(need: Need, budget: Memory, bytes_per_expert: int, n_expert: int, step: int) -> int:
    """About how many experts a layer fit, of which a dry run has yet to tell; 0 where not even none would.

    need: with all of them. bytes_per_expert: of one expert in all layers. step: they come in multiples of it.
    """
    if need.memory is None or bytes_per_expert <= 0:
        return 0
    lacking = sum(max(0, need.memory[place] - budget[place]) for place in need.memory.places)
    gone = -(-lacking // bytes_per_expert)
    return max(0, (n_expert - gone) // step * step)


def fits_always(row: Row, budget: Memory) -> bool:
    """Whether it fits with each of the contexts."""
    return all(row.fits(context, budget) for context in row.needs)


def titles(files: Sequence[str]) -> list[str]:
    """What tells files apart: their names without their ending, and without the words that all of them begin with."""
    words = [re.split(r"(?<=[-./])", file.removesuffix(".gguf")) for file in files]
    if len(words) < 2:
        return ["".join(each) for each in words]
    most = min(map(len, words)) - 1
    alike = next((at for at in range(most) if len({each[at] for each in words}) > 1), most)
    return ["".join(each[alike:]) for each in words]
