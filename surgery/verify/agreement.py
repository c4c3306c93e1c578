"""A specialist beside its parent with the dropped experts forbidden: the same logits, but for rounding.

A softmax over fewer terms rounds otherwise in its last bit. Where activations are quantised for a product, or keys and
values stored, a last bit can move a value by a whole step; where two experts are nearly tied, it can change the choice,
and with it all that comes after: later layers of that position and of the positions that attend to it. So short
documents are compared, and of each what no changed choice can have reached: there the router's scores and the logits
must agree within rounding. A changed choice whose scores agree so far is a near-tie, and its margin is given.

llama.cpp may abort, so a command asks a child process of engine.child: `agree_apart`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from coe.engine import child
from coe.engine.child import Report
from coe.engine.errors import ChildDiedError, ChildError, EngineError, FullDiskError
from coe.engine.gguf.header import Header
from coe.engine.llama.context import Context
from coe.engine.llama.model import Model
from coe.engine.private import child_environment
from coe.engine.process import worker_environment
from coe.engine.spec import LoadSpec

from ..errors import VerificationError
from ..parent import Parent
from ..profile.tap import Observation, TappedContext

_PROCESS: Final = "coe.surgery.verify.agreement"
_SILENT_S: Final = 3600.0  # between two documents; before the first of each model, its file is read
DOCUMENT_TOKENS: Final = 16  # short: a flip ends what a document can show, and the next one starts afresh
GENERATED_TOKENS: Final = 16
_OUR_TOKENS: Final = 256

# Text to compare on when none is given. Ours; any text does.
TEXT: Final = (
    "The baker opens at six. By then the first loaves have cooled enough to be cut, and the street smells of rye and "
    "caraway. A train leaves for the coast every forty minutes; the ticket costs 12.50, or 9.75 with a card, so that "
    "four friends with one card between them pay 47.25.\n\n"
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n\n"
    "Water boils at a lower temperature on a mountain because the air presses on it with less weight. If the pressure "
    "falls by half, the boiling point falls to about 81 degrees. Cooking takes longer there, though nothing in the pot "
    "seems to be different.\n\n"
    "Q: Which of the three doors was opened last?\nA: The left one. The key to it lay behind the second door, and that "
    "one could be opened only after the first had been shut again."
)


@dataclass(frozen=True)
class Tolerance:
    """How far apart two values may be by rounding, in standard deviations of the values of their position.

    worst: any; most: nine of ten. A wrong row or scale moves nearly all, rounding moves few and little.
    """

    worst: float
    most: float


# Measured on random models of four layers, which spread an error more than trained ones: in F32, where only attention
# rounds to halves, 0.004 at worst; in Q4_K, where activations are quantised for every product, 0.36 and 0.11. Experts
# in another order: about 3, nearly everywhere.
EXACT_WEIGHTS: Final = Tolerance(0.05, 0.01)
ROUNDED_WEIGHTS: Final = Tolerance(1.0, 0.3)


# A choice can change when two scores are nearer than what both may be off; a group is judged by the sum of two.
_MARGIN_ROUNDINGS: Final = 4.0


@dataclass(frozen=True)
class Flip:
    """A position whose choice of experts differs, with nothing before it that could be the reason.

    margin: between the scores of the expert that the parent chose and the one that the specialist chose, in standard
            deviations of the scores; rounding: how far the two runs' scores of this position are apart.
    """

    document: int
    position: int
    layer: int
    parent_experts: tuple[int, ...]
    specialist_experts: tuple[int, ...]
    margin: float
    rounding: float


@dataclass(frozen=True)
class Agreement:
    """positions: tokens that both have read; reached: at or behind a flip, and therefore not held against the
    specialist. Of the others equal: those with the same logits to the last bit; largest: the largest difference of
    logits, in standard deviations. problems: a sentence each; none when the two agree.
    """

    positions: int
    equal: int
    reached: int
    largest: float
    flips: tuple[Flip, ...]
    problems: tuple[str, ...]
    generated: str = ""

    @property
    def text(self) -> str:
        """The positions by what became of each, which adds up to all of them: `Of 274 positions 273 have the masked
        parent's logits to the last bit, 1 differs in rounding, by 0.002 standard deviations at most.`"""
        if self.equal == self.positions:
            return f"All {self.positions} positions have the masked parent's logits to the last bit."
        parts = [f"{self.equal} have the masked parent's logits to the last bit"]
        if differing := self.positions - self.equal - self.reached:
            how = "" if self.problems else "in rounding, "
            verb = "differs" if differing == 1 else "differ"
            parts.append(f"{differing} {verb} {how}by {self.largest:.2g} standard deviations at most")
        if self.reached:
            count = len(self.flips)
            if self.problems:
                what = "another choice of experts" if count == 1 else f"one of {count} other choices of experts"
            else:
                what = "a near-tie" if count == 1 else f"one of {count} near-ties"
                what += " of the router that fell the other way"
            verb = "lies" if self.reached == 1 else "lie"
            parts.append(f"{self.reached} {verb} at or behind {what}, and cannot be compared")
        return f"Of {self.positions} positions {', '.join(parts)}."


@dataclass(frozen=True)
class Run:
    """What one of the two did with a document. Experts are the parent's numbers, dropped ones left out of scores.

    logits [T, n_vocab]; chosen [L, T, R]; scores [L, T, K], in one order of experts for both runs.
    """

    logits: NDArray[np.float32]
    chosen: NDArray[np.int32]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Kept:
    """What the specialist has of its parent: layers, and [L, K] the parent's numbers of its experts, slot by slot.

    group_size: of the parent's experts; 0 where there are no groups.
    """

    layers: tuple[int, ...]
    experts: NDArray[np.int64]
    group_size: int = 0


def compare_runs(document: int, parent: Run, specialist: Run, kept: Kept, tolerance: Tolerance) -> Agreement:
    """Judge one document."""
    n_layers, n_tokens = parent.chosen.shape[:2]
    flipped = (np.sort(parent.chosen, -1) != np.sort(specialist.chosen, -1)).any(-1)
    # A layer's router sees what earlier layers made of this position and of all before it.
    reached = np.zeros((n_layers + 1, n_tokens), np.bool_)
    for row in range(n_layers):
        reached[row + 1] = reached[row] | np.logical_or.accumulate(flipped[row])
    apart = _apart(parent.scores, specialist.scores)
    flips = tuple(
        _flip(document, int(position), int(row), parent, specialist, kept, float(apart[row, position]))
        for row, position in np.argwhere(flipped & ~reached[:-1])
    )
    differences = _apart(parent.logits, specialist.logits)
    open_positions = ~reached[-1]
    problems = []
    for row, layer in enumerate(kept.layers):
        problems += _beyond(apart[row], ~reached[row], tolerance, f"router's scores in layer {layer}", document)
    problems += _beyond(differences, open_positions, tolerance, "logits", document)
    problems += [
        f"Document {document}: at position {flip.position}, layer {flip.layer}, the parent chose "
        f"{list(flip.parent_experts)} and the specialist {list(flip.specialist_experts)}, {flip.margin:.3g} standard "
        f"deviations apart, which is no near-tie: the scores agree to {flip.rounding:.3g}."
        for flip in flips
        if flip.margin > _MARGIN_ROUNDINGS * flip.rounding + 1e-6
    ]
    return Agreement(
        n_tokens,
        int(((parent.logits == specialist.logits).all(-1) & open_positions).sum()),
        int(reached[-1].sum()),
        float(differences[open_positions].max(initial=0.0)),
        flips,
        tuple(problems),
    )


def _apart(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """[..., T]: the largest difference, in standard deviations of the left; not a number counts as infinitely far."""
    spread = np.maximum(left.std(-1, dtype=np.float64), 1e-9)
    with np.errstate(invalid="ignore"):
        difference = np.abs(left.astype(np.float64) - right).max(-1) / spread
    return np.where(np.isnan(difference), np.inf, difference)


def _beyond(
    apart: NDArray[np.float64], judged: NDArray[np.bool_], tolerance: Tolerance, what: str, document: int
) -> list[str]:
    if not judged.any():
        return []
    far = np.flatnonzero(judged & (apart > tolerance.worst))
    if len(far):
        return [
            f"Document {document}: the {what} differ by {apart[far[0]]:.3g} standard deviations at position {far[0]}, "
            f"where no choice of experts was changed before ({len(far)} such positions)."
        ]
    usual = float(np.quantile(apart[judged], 0.9))
    if usual > tolerance.most:
        return [f"Document {document}: the {what} differ by {usual:.3g} standard deviations at a tenth of positions."]
    return []


def _flip(document: int, position: int, row: int, parent: Run, specialist: Run, kept: Kept, rounding: float) -> Flip:
    ours, theirs = set(parent.chosen[row, position].tolist()), set(specialist.chosen[row, position].tolist())
    lost, won = sorted(ours - theirs), sorted(theirs - ours)
    scores = parent.scores[row, position].astype(np.float64)
    of = dict(zip(kept.experts[row].tolist(), scores.tolist(), strict=True))
    margins = [_between(of, lost, won)]
    if kept.group_size:
        groups: dict[int, list[float]] = {}
        for expert, score in of.items():
            groups.setdefault(expert // kept.group_size, []).append(score)
        best_two = {group: sum(sorted(found)[-2:]) for group, found in groups.items()}
        lost_groups, won_groups = ({expert // kept.group_size for expert in side} for side in (lost, won))
        margins.append(_between(best_two, lost_groups - won_groups, won_groups - lost_groups))
    return Flip(
        document,
        position,
        kept.layers[row],
        tuple(lost),
        tuple(won),
        min(margins) / max(float(scores.std()), 1e-9),
        rounding,
    )


def _between(scores: Mapping[int, float], lost: Iterable[int], won: Iterable[int]) -> float:
    """How far the worst of those lost is from the best of those won; infinite without either."""
    worst = min((scores.get(one, np.inf) for one in lost), default=np.inf)
    best = max((scores.get(one, -np.inf) for one in won), default=-np.inf)
    return abs(worst - best)


def joined(parts: Sequence[Agreement], generated: str = "") -> Agreement:
    """Several documents' agreements as one."""
    return Agreement(
        sum(part.positions for part in parts),
        sum(part.equal for part in parts),
        sum(part.reached for part in parts),
        max((part.largest for part in parts), default=0.0),
        tuple(flip for part in parts for flip in part.flips),
        tuple(problem for part in parts for problem in part.problems),
        generated,
    )


def tolerance_of(headers: Sequence[Header]) -> Tolerance:
    """What rounding may do, by the types of a model's matrices."""
    matrices = [tensor.type for header in headers for tensor in header.tensors if len(tensor.shape) > 1]
    return EXACT_WEIGHTS if all(kind == Type.F32 for kind in matrices) else ROUNDED_WEIGHTS


# --- running the two ------------------------------------------------------------------------------------------------


def agree(
    parent: Path | None,
    specialist: Path,
    order: Mapping[int, Sequence[int]],
    *,
    tokens: Sequence[int] | None = None,
    load: LoadSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Run the parent with all others forbidden, then the specialist, and compare; let the specialist write a little.

    parent: None to let the specialist write, and compare nothing.
    order:  layer -> the parent's experts, slot by slot of the specialist.
    tokens: cut into documents of 16; those of a text of ours when not given.
    load:   how both are loaded (its path is not looked at); on the CPU when not given.

    To be used in a child process (`agree_apart`). Raises EngineError and SurgeryError.
    """
    spec = replace(load or LoadSpec(specialist, gpu_layers=0), parallel=1)
    # Keys and values stored in 16 bits would round once more.
    spec = replace(spec, context_tokens=DOCUMENT_TOKENS + GENERATED_TOKENS, cache_tokens=0, kv_type="f32")
    with tempfile.TemporaryFile() as file:
        runs = None if parent is None else _run_parent(parent, spec, order, tokens, file, progress)
        model = Model(replace(spec, path=specialist))
        parts = [] if runs is None else list(_beside(runs, model, spec, specialist, progress))
    return joined(parts, _generated(model, spec, _documents(model, tokens)[0]))


@dataclass(frozen=True)
class _ParentRuns:
    documents: list[list[int]]
    logits: NDArray[np.float32]  # of all documents, one after the other; in a file, for they are large
    seen: list[Observation]
    kept: Kept
    tolerance: Tolerance


def _run_parent(
    path: Path,
    spec: LoadSpec,
    order: Mapping[int, Sequence[int]],
    tokens: Sequence[int] | None,
    file: IO[bytes],
    progress: Callable[[int, int], None] | None,
) -> _ParentRuns:
    parent = Parent.open(path)
    experts = parent.experts
    kept = Kept(
        experts.layers,
        np.array([order[layer] for layer in experts.layers], np.int64),
        experts.n_expert // experts.n_groups if experts.n_groups > 1 else 0,
    )
    blocked = np.ones((len(experts.layers), experts.n_expert), np.bool_)
    np.put_along_axis(blocked, kept.experts, False, axis=1)
    model = Model(replace(spec, path=path))
    documents = _documents(model, tokens)
    logits: NDArray[np.float32] = np.memmap(
        file, np.float32, "w+", shape=(sum(map(len, documents)), model.vocab.n_tokens)
    )
    seen = []
    context = TappedContext(model, spec, experts, logits=True, scores=True, blocked=blocked)
    at = 0
    for document in documents:
        found, observed = context.evaluate(document)
        assert found is not None
        logits[at : at + len(document)] = found
        at += len(document)
        seen.append(observed)
        if progress is not None:
            progress(len(seen), 2 * len(documents))
    context.close()
    model.close()
    return _ParentRuns(documents, logits, seen, kept, tolerance_of(parent.headers))


def _beside(
    runs: _ParentRuns, model: Model, spec: LoadSpec, specialist: Path, progress: Callable[[int, int], None] | None
) -> Iterator[Agreement]:
    context = TappedContext(model, spec, Parent.open(specialist).experts, logits=True, scores=True)
    at = 0
    for number, (document, observed) in enumerate(zip(runs.documents, runs.seen, strict=True)):
        found, beside = context.evaluate(document)
        assert found is not None
        rows = runs.logits[at : at + len(document)]
        at += len(document)
        parent_run, specialist_run = _parent_run(rows, observed, runs.kept), _specialist_run(found, beside, runs.kept)
        yield compare_runs(number, parent_run, specialist_run, runs.kept, runs.tolerance)
        if progress is not None:
            progress(len(runs.documents) + number + 1, 2 * len(runs.documents))
    context.close()


def _documents(model: Model, tokens: Sequence[int] | None) -> list[list[int]]:
    if tokens is None:
        tokens = model.vocab.tokenize(TEXT)[:_OUR_TOKENS]
    bos = [model.vocab.bos] if model.vocab.adds_bos and model.vocab.bos >= 0 else []
    size = DOCUMENT_TOKENS - len(bos)
    return [[*bos, *tokens[start : start + size]] for start in range(0, len(tokens), size)]


def _parent_run(logits: NDArray[np.float32], observed: Observation, kept: Kept) -> Run:
    assert observed.scores is not None
    return Run(logits, observed.chosen, np.take_along_axis(observed.scores, kept.experts[:, None, :], axis=2))


def _specialist_run(logits: NDArray[np.float32], observed: Observation, kept: Kept) -> Run:
    """With the parent's numbers of the chosen experts."""
    assert observed.scores is not None
    slots = np.maximum(observed.chosen, 0).reshape(len(kept.layers), -1)
    named = np.take_along_axis(kept.experts, slots, axis=1).reshape(observed.chosen.shape)
    return Run(logits, np.where(observed.chosen < 0, -1, named).astype(np.int32), observed.scores)


def _generated(model: Model, spec: LoadSpec, prompt: Sequence[int]) -> str:
    """What the model goes on with, the most probable token each time. Raises VerificationError for no number."""
    context = Context(model, spec)
    pieces: list[bytes] = []
    batch = list(enumerate(prompt))
    while len(pieces) < GENERATED_TOKENS:
        last = batch[-1][0]
        if result := context.decode((token, position, 0, position == last) for position, token in batch):
            raise VerificationError(f"The specialist does not generate: llama_decode gives {result}.")
        logits = context.logits(len(batch) - 1)
        if not np.isfinite(logits).all():
            raise VerificationError("The specialist's logits are no numbers.", "Verify its tensors; cut again.")
        token = int(logits.argmax())
        if model.vocab.ends_generation(token):
            break
        pieces.append(model.vocab.piece(token))
        batch = [(last + 1, token)]
    context.close()
    model.close()
    return b"".join(pieces).decode("utf-8", "replace")


# --- in a child process ---------------------------------------------------------------------------------------------


def agree_apart(
    parent: Path | None,
    specialist: Path,
    order: Mapping[int, Sequence[int]],
    *,
    tokens: Sequence[int] | None = None,
    load: LoadSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """`agree` in a child process. Raises VerificationError where that fails, with the reason."""
    job = {
        "parent": None if parent is None else str(parent),
        "specialist": str(specialist),
        "order": {str(layer): list(experts) for layer, experts in order.items()},
        "tokens": None if tokens is None else list(tokens),
        "load": None if load is None else asdict(load) | {"path": str(load.path)},
    }
    running = child.run(
        _PROCESS,
        job,
        title="The process that runs the two models",
        on_progress=lambda step: progress(*step) if progress is not None else None,
        silent_s=_SILENT_S,
        environment=worker_environment(child_environment(os.environ)),
    )
    try:
        return _from_json(asyncio.run(running))
    except ChildError as error:
        how = error.how
        if isinstance(error, ChildDiedError):
            how = f"ended by {signal.Signals(-error.code).name}" if error.code < 0 else f"ended with {error.code}"
        words = f": {error.words}" if error.words else ""
        raise VerificationError(
            f"The process that runs the two models {how}{words}.", "Look at the file with coe inspect."
        ) from None
    except FullDiskError as error:
        raise OSError(error.errno, error.strerror) from None  # says nothing of the file
    except EngineError as error:
        raise VerificationError(error.message, error.remedy) from None


def _from_json(answer: dict[str, Any]) -> Agreement:
    flips = tuple(
        Flip(
            **flip
            | {
                "parent_experts": tuple(flip["parent_experts"]),
                "specialist_experts": tuple(flip["specialist_experts"]),
            }
        )
        for flip in answer["flips"]
    )
    return Agreement(**answer | {"flips": flips, "problems": tuple(answer["problems"])})


def main(job: dict[str, Any], report: Report) -> dict[str, Any]:
    """What the child answers: an `Agreement`. It reports [documents done, of how many]."""
    return asdict(
        agree(
            job["parent"] and Path(job["parent"]),
            Path(job["specialist"]),
            {int(layer): experts for layer, experts in job["order"].items()},
            tokens=job["tokens"],
            load=job["load"] and LoadSpec(**job["load"] | {"path": Path(job["load"]["path"])}),
            progress=lambda done, total: report([done, total]),
        )
    )
