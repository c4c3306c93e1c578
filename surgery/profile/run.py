"""The parent read over a corpus while its router is watched: documents packed into full batches, choices counted.

The work is cut into packs of some thousand tokens that share nothing, and what is counted so far is saved between
them: an interrupted run goes on with the next pack and gives the same figures, bit for bit, as one that ran through.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from coe.engine.errors import EngineError
from coe.engine.llama.context import BATCH_TOKENS, Context
from coe.engine.llama.devices import devices
from coe.engine.llama.model import Model
from coe.engine.pool import memory
from coe.engine.spec import LoadSpec
from coe.engine.units import size_text

from ..errors import ProfileError
from ..files import require_output
from ..parent import Parent
from .corpus import Corpus, chat_template, tokens_of
from .profile import Profile, read_extra
from .tap import Observation, TappedContext

CONTEXT_TOKENS: Final = 4096  # of a document; a longer one is read in windows
_SEQUENCES: Final = 32  # documents in one decode, at most
_PACK_BATCHES: Final = 8  # full batches of a pack, at least; less would leave the last one of too many half empty
_SAVE_EVERY_S: Final = 60.0
_MARGIN_BYTES: Final = 512 * 2**20  # of a GPU's free memory

_log = logging.getLogger(__name__)

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class ProfileProgress:
    """How far a run is. stage: `hash` (bytes), `read` (documents) or `profile` (tokens); per_second in the same unit.

    per_second is of this run, without what an interrupted one had done.
    """

    stage: str
    done: int
    total: int
    per_second: float = 0.0


class Watcher(Protocol):
    """Looks at the profile between packs, and may end the run. What it remembers goes into the saved state."""

    def begin(self, profile: Profile, memory: Mapping[str, Any]) -> None:
        """Called first with an empty profile and nothing to remember, and again when an interrupted run goes on."""

    def enough(self, profile: Profile, *, last: bool) -> bool:
        """Whether the run may end. last: it ends anyway."""

    def remember(self) -> Mapping[str, Any]:
        """What it has seen so far, as JSON types."""


# --- packing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of a document, read from position 0: all of them, or as many as the context holds."""

    document: int
    tokens: Tokens
    ends: bool  # the document ends with it


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of a window from `start` on, in one decode. ends: the window ends with it."""

    window: int
    start: int
    count: int
    sequence: int
    ends: bool


Pack = tuple[tuple[Chunk, ...], ...]  # decodes, each of pieces


def windows_of(documents: Sequence[Tokens], context_tokens: int) -> list[Window]:
    """Documents in their order; those longer than the context cut into windows of that many tokens, nothing dropped."""
    return [
        Window(at, tokens[start : start + context_tokens], start + context_tokens >= len(tokens))
        for at, tokens in enumerate(documents)
        for start in range(0, len(tokens), context_tokens)
    ]


def plan_packs(
    lengths: Sequence[int], *, n_batch: int, n_seq: int, pack_tokens: int, together: bool = True
) -> list[Pack]:
    """Which tokens of which windows go into which decode.

    Every decode is full (n_batch tokens, or pieces of n_seq windows) but the last of a pack. A pack ends with the
    first window that brings it to pack_tokens; nothing goes on from one pack to the next. At most one window is
    unfinished between two decodes. together: one decode may hold several windows.
    """
    packs: list[Pack] = []
    decodes: list[tuple[Chunk, ...]] = []
    pieces: list[Chunk] = []
    filled = packed = 0

    def end_decode() -> None:
        nonlocal pieces, filled
        if pieces:
            decodes.append(tuple(pieces))
        pieces, filled = [], 0

    for window, length in enumerate(lengths):
        if len(pieces) == n_seq or (pieces and not together):
            end_decode()
        held = {piece.sequence for piece in pieces}
        sequence = next(number for number in range(n_seq) if number not in held)
        start = 0
        while start < length:
            if filled == n_batch:
                end_decode()
            count = min(n_batch - filled, length - start)
            pieces.append(Chunk(window, start, count, sequence, start + count == length))
            start += count
            filled += count
        packed += length
        if packed >= pack_tokens:
            end_decode()
            packs.append(tuple(decodes))
            decodes, packed = [], 0
    end_decode()
    if decodes:
        packs.append(tuple(decodes))
    return packs


def _entries(decode: Sequence[Chunk], windows: Sequence[Window]) -> list[tuple[int, int, int]]:
    return [
        (token, position, piece.sequence)
        for piece in decode
        for position, token in enumerate(
            windows[piece.window].tokens[piece.start : piece.start + piece.count].tolist(), piece.start
        )
    ]


# --- counting ---------------------------------------------------------------------------------------------------------


def count(profile: Profile, observed: Observation, categories: NDArray[np.int64]) -> None:
    """Add what was observed to a profile's arrays, in place.

    categories: [T], the class of each token as its place in `profile.classes`.
    """
    n_layers, n_expert, n_used = profile.selections.shape[1:]
    there, local = np.unique(categories, return_inverse=True)  # a batch holds few classes, a profile may have many
    chosen = observed.chosen.astype(np.int64)
    owner = (local[None, :, None] * n_layers + np.arange(n_layers)[:, None, None]) * n_expert + chosen
    index = owner * n_used + np.arange(n_used)
    used: Any = observed.chosen >= 0
    if used.all():  # an index by truth values copies; no layer of most models uses fewer experts than another
        used = ...
    index = index[used].ravel()
    shape = (len(there), n_layers, n_expert, n_used)
    size = int(np.prod(shape))
    profile.selections[there] += np.bincount(index, minlength=size).reshape(shape)
    profile.weights[there] += np.bincount(index, observed.weights[used].ravel(), size).reshape(shape)
    np.add.at(profile.tokens, categories, 1)
    if profile.norms is not None and profile.peaks is not None:
        assert observed.norms is not None
        assert observed.peaks is not None
        owner = owner[used].ravel()
        sums = np.bincount(owner, observed.norms[used].ravel(), size // n_used)
        profile.norms[there] += sums.reshape(shape[:3])
        np.maximum.at(profile.peaks.reshape(-1), owner % (n_layers * n_expert), observed.peaks[used].ravel())


def _sum(total: Profile, part: Profile) -> Profile:
    """Packs are added whole, so that the sums round alike whether or not a run was interrupted."""
    norms = peaks = None
    if total.norms is not None and total.peaks is not None:
        assert part.norms is not None
        assert part.peaks is not None
        norms, peaks = total.norms + part.norms, np.maximum(total.peaks, part.peaks)
    return replace(
        total,
        selections=total.selections + part.selections,
        weights=total.weights + part.weights,
        tokens=total.tokens + part.tokens,
        documents=total.documents + part.documents,
        norms=norms,
        peaks=peaks,
    )


# --- room on the device -----------------------------------------------------------------------------------------------


def layers_on_cpu(needed_bytes: int, budget_bytes: int, expert_bytes: Sequence[int]) -> int | None:
    """How many layers, from the first, must leave their experts in host memory for the rest to fit the budget.

    needed_bytes: with all experts on the device. expert_bytes: of each layer, those without experts included.
    None when it does not fit even without any.
    """
    for layers in range(len(expert_bytes) + 1):
        if needed_bytes - sum(expert_bytes[:layers]) <= budget_bytes:
            return layers
    return None


def expert_bytes_by_layer(parent: Parent) -> list[int]:
    """Bytes of the experts of each block, 0 for one without."""
    per_layer = [0] * int(parent.headers[0].value("block_count", 0))
    for header in parent.headers:
        for tensor in header.tensors:
            block, found, rest = tensor.name.removeprefix("blk.").partition(".")
            if found and "_exps." in rest and block.isdecimal():
                per_layer[int(block)] += tensor.n_bytes
    return per_layer


def needed_bytes(spec: LoadSpec, parent: Parent) -> int:
    """What watching the parent takes of the device, from a dry run. Raises ModelFileError as that does."""
    # The dry run reserves a row of logits a sequence; where the last layer only sees tokens with logits, all have one.
    n_vocab = next(header.array_lengths.get("tokenizer.ggml.tokens", 0) for header in parent.headers)
    rows = 4 * n_vocab * BATCH_TOKENS
    return asyncio.run(memory.predict(spec)).footprint.total_bytes + rows


def fitted(spec: LoadSpec, parent: Parent, budget_bytes: int | None) -> LoadSpec:
    """The spec with as many layers' experts on the CPU as the GPU's budget asks for; unchanged without a GPU.

    budget_bytes: None for what is free now, less a margin. Raises ProfileError when even the rest does not fit.
    """
    if spec.gpu_layers == 0 or not any(device.kind == "gpu" for device in devices()):
        return spec
    budget, _ = asyncio.run(memory.budget_bytes(budget_bytes, _MARGIN_BYTES))
    per_layer = expert_bytes_by_layer(parent)
    needed = needed_bytes(spec, parent)
    layers = layers_on_cpu(needed, budget, per_layer)
    if layers is None:
        raise ProfileError(
            f"{parent.path.name} needs {size_text(needed - sum(per_layer))} beside its experts, "
            f"and the budget is {size_text(budget)}.",
            "Lower the context, or keep the model on the CPU: --gpu-layers 0.",
        )
    return replace(spec, cpu_expert_layers=layers)


# --- the run ----------------------------------------------------------------------------------------------------------


def load_spec(parent: Path, load: LoadSpec | None) -> LoadSpec:
    """How the parent is loaded: the given spec's layers, threads and cache type, over room for one batch more than a
    document."""
    given = load or LoadSpec(parent, context_tokens=CONTEXT_TOKENS)
    cells = given.context_tokens + BATCH_TOKENS
    return replace(given, path=parent, cache_tokens=cells, parallel=_SEQUENCES)


class _Reading:
    """A loaded parent and the corpus in its tokens, cut into packs."""

    def __init__(
        self,
        parent: Parent,
        corpus: Corpus,
        load: LoadSpec | None,
        budget_bytes: int | None,
        progress: Callable[[ProfileProgress], None],
    ) -> None:
        spec = load_spec(parent.path, load)
        if spec.cpu_expert_layers == 0:
            spec = fitted(spec, parent, budget_bytes)
        self.model = Model(spec)
        # Decodes of a recurrent model hold one document, and it keeps a state for every sequence that there may be.
        self.together = not self.model.recurrent
        self.spec = spec if self.together else replace(spec, parallel=1)
        template = chat_template(self.model.chat_template(), self.model.vocab)
        documents = []
        for done, document in enumerate(corpus.documents, 1):
            documents.append(tokens_of(document, self.model.vocab, template))
            if done % 100 == 0 or done == len(corpus.documents):
                progress(ProfileProgress("read", done, len(corpus.documents)))
        self.windows = windows_of(documents, spec.context_tokens)
        self.cut = sum(len(tokens) > spec.context_tokens for tokens in documents)
        self.packs = plan_packs(
            [len(window.tokens) for window in self.windows],
            n_batch=min(BATCH_TOKENS, self.spec.cells),
            n_seq=self.spec.parallel,
            pack_tokens=_PACK_BATCHES * BATCH_TOKENS,
            together=self.together,
        )
        self.n_tokens = sum(len(window.tokens) for window in self.windows)

    def digest(self) -> str:
        """Of all that decides which tokens are evaluated in which decode."""
        digest = hashlib.sha256(f"{self.spec.context_tokens} {self.spec.kv_type} {self.together}".encode())
        for window in self.windows:
            digest.update(f"{window.document} {len(window.tokens)}".encode() + window.tokens.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Reached:
    """How far a run is: one value, so that Ctrl-C finds counts and place together.

    stopped: the watcher has seen enough.
    """

    profile: Profile
    packs: int = 0
    stopped: bool = False


def state_path(out: Path) -> Path:
    """Where the state of a run that is under way, or was interrupted, lies beside its output."""
    return out.with_name(f"{out.name}.part")


def profile_corpus(
    path: Path,
    corpus: Corpus,
    out: Path,
    *,
    norms: bool = False,
    load: LoadSpec | None = None,
    budget_bytes: int | None = None,
    progress: Callable[[ProfileProgress], None] = lambda progress: None,
    watcher: Watcher | None = None,
    save_every_s: float = _SAVE_EVERY_S,
    extra: Mapping[str, Any] | None = None,
) -> Profile:
    """Evaluate the parent over the corpus, count what its routers choose, and write the profile to `out`.

    path:         the parent's GGUF, or the first of its parts.
    norms:        collect norms and peaks of the experts' outputs too; slower.
    load:         its context_tokens (the longest document), gpu_layers, cpu_expert_layers, threads, kv_type and mmap
                  are used. Without cpu_expert_layers, as many layers as a GPU has no room for compute their experts on
                  the CPU; budget_bytes is that room, None for what is free.
    watcher:      may end the run before the corpus ends.
    extra:        facts to keep with the profile, beside what this function knows of the run.

    Documents longer than the context are read in windows that know nothing of each other; `extra` of the profile
    counts them. Saves its state beside `out` every save_every_s and when it is interrupted (Ctrl-C); called again with
    the same parent, corpus and settings it goes on from there.

    Raises SurgeryError or EngineError.
    """
    if load is not None and load.context_tokens < 2:
        raise ProfileError(f"A context of {load.context_tokens} tokens reads nothing.", "Give it some thousands.")
    parent = Parent.open(path)
    require_output(out, parent.paths)
    size = sum(part.stat().st_size for part in parent.paths)
    hashed = 0

    def on_hash(n_bytes: int) -> None:
        nonlocal hashed
        hashed += n_bytes
        progress(ProfileProgress("hash", hashed, size))

    identity = parent.identity(on_hash)
    reached = _Reached(Profile.empty(identity, corpus.classes, norms=norms, corpus_sha256=corpus.sha256))
    if watcher is not None:
        watcher.begin(reached.profile, {})
    reading = _Reading(parent, corpus, load, budget_bytes, progress)
    fingerprint = {
        "parent": identity.sha256,
        "corpus": corpus.sha256,
        "tokens": reading.digest(),
        "classes": list(corpus.classes),
        "norms": norms,
    }
    state = state_path(out)
    found = _saved(state, fingerprint)
    if found is not None:
        reached, remembered = found
        if watcher is not None:
            watcher.begin(reached.profile, remembered)

    def save() -> None:
        reached.profile.save(
            state,
            fingerprint=fingerprint,
            packs=reached.packs,
            stopped=reached.stopped,
            watcher=dict(watcher.remember()) if watcher is not None else {},
        )

    saved, at_start = reached.packs, reached.profile.n_tokens
    categories = [corpus.classes.index(document.category) for document in corpus.documents]
    tapped = TappedContext(reading.model, reading.spec, parent.experts, norms=norms)
    began = last_save = time.perf_counter()

    def on_tokens(count: int) -> None:
        here = reached.profile.n_tokens + count
        rate = (here - at_start) / max(time.perf_counter() - began, 1e-9)
        progress(ProfileProgress("profile", here, reading.n_tokens, rate))

    try:
        on_tokens(0)
        while reached.packs < len(reading.packs) and not reached.stopped:
            part = Profile.empty(identity, corpus.classes, norms=norms)
            _evaluate(reading.packs[reached.packs], reading.windows, tapped, part, categories, on_tokens)
            profile, packs = _sum(reached.profile, part), reached.packs + 1
            stopped = watcher is not None and watcher.enough(profile, last=packs == len(reading.packs))
            reached = _Reached(profile, packs, stopped)
            if time.perf_counter() - last_save >= save_every_s:
                save()
                saved, last_save = packs, time.perf_counter()
    except BaseException:
        if reached.packs > saved:
            save()
        raise
    finally:
        tapped.close()
        reading.model.close()
    seconds = time.perf_counter() - began
    facts = {
        "context_tokens": reading.spec.context_tokens,
        "cpu_expert_layers": reading.spec.cpu_expert_layers,
        "windows": len(reading.windows),
        "cut_documents": reading.cut,
        "whole_corpus": reached.packs == len(reading.packs),
        "tokens_per_s": (reached.profile.n_tokens - at_start) / seconds,
    }
    growth = {"growth": dict(watcher.remember())} if watcher is not None else {}
    reached.profile.save(out, **{**(extra or {}), **facts, **growth})
    with suppress(FileNotFoundError):
        state.unlink()
    return reached.profile


def _saved(state: Path, fingerprint: Mapping[str, Any]) -> tuple[_Reached, Mapping[str, Any]] | None:
    """How far an interrupted run of the same work came, and what its watcher remembered."""
    if not state.exists():
        return None
    try:
        facts = read_extra(state)
        if facts["fingerprint"] == fingerprint:
            return _Reached(Profile.load(state), facts["packs"], facts["stopped"]), facts["watcher"]
        why = "is of another parent, corpus or setting"
    except (ProfileError, KeyError):
        why = "is damaged"
    _log.warning("%s %s: the run starts from the beginning", state, why)
    return None


def _evaluate(
    pack: Pack,
    windows: Sequence[Window],
    tapped: TappedContext,
    part: Profile,
    categories: Sequence[int],
    on_tokens: Callable[[int], None],
) -> None:
    evaluated = 0
    tapped.forget_all()
    for decode in pack:
        entries = _entries(decode, windows)
        observed = tapped.observe(entries)
        of_piece = [categories[windows[piece.window].document] for piece in decode]
        count(part, observed, np.repeat(np.array(of_piece, np.int64), [piece.count for piece in decode]))
        for piece, category in zip(decode, of_piece, strict=True):
            if piece.ends:
                tapped.forget(piece.sequence)
                part.documents[category] += windows[piece.window].ends
        evaluated += len(entries)
        on_tokens(evaluated)
    if not np.isfinite(part.weights).all():
        bad = [layer for row, layer in enumerate(part.parent.layers) if not np.isfinite(part.weights[:, row]).all()]
        raise ProfileError(
            f"The router's weights are not finite in the layers {bad}.",
            "The parent overflows on this text, or is damaged: try it with coe verify, or another quantisation.",
        )


@dataclass(frozen=True)
class Speed:
    """Tokens and the seconds that their evaluation took."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second."""
        return self.tokens / max(self.seconds, 1e-9)


def evaluate_corpus(
    path: Path, corpus: Corpus, *, load: LoadSpec | None = None, budget_bytes: int | None = None
) -> Speed:
    """Evaluate the same batches as `profile_corpus` without watching: plain prompt evaluation, to compare with.

    As in a prompt's evaluation, the last token of a document has logits and the others have none.
    """
    reading = _Reading(Parent.open(path), corpus, load, budget_bytes, lambda progress: None)
    context = Context(reading.model, reading.spec)
    began = time.perf_counter()
    for pack in reading.packs:
        for decode in pack:
            entries = _entries(decode, reading.windows)
            lasts = set(np.cumsum([piece.count for piece in decode])[[piece.ends for piece in decode]] - 1)
            if result := context.decode((*entry, at in lasts) for at, entry in enumerate(entries)):
                raise EngineError(f"llama_decode failed with {result}.")
            for piece in decode:
                if piece.ends:
                    context.forget(piece.sequence)
    seconds = time.perf_counter() - began
    context.close()
    reading.model.close()
    return Speed(reading.n_tokens, seconds)


# --- what came out ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerSummary:
    """How concentrated one layer's router was.

    entropy:      of the gate mass over the experts, 0..1; 1: spread evenly.
    top_half, top_quarter: share of the gate mass that its strongest half and quarter of the experts have.
    never_used:   experts that no token chose.
    """

    layer: int
    entropy: float
    top_half: float
    top_quarter: float
    never_used: int


def summarize(profile: Profile) -> list[LayerSummary]:
    """A line a layer."""
    mass = np.sort(profile.gate_mass(), axis=1)[:, ::-1]
    share = np.cumsum(mass, axis=1) / np.maximum(mass.sum(1, keepdims=True), 1e-300)
    n_expert = profile.parent.n_expert
    never = (profile.selections.sum((0, 3)) == 0).sum(1)
    return [
        LayerSummary(
            layer,
            float(entropy),
            float(share[row, max(n_expert // 2, 1) - 1]),
            float(share[row, max(n_expert // 4, 1) - 1]),
            int(never[row]),
        )
        for row, (layer, entropy) in enumerate(zip(profile.parent.layers, profile.entropy(), strict=True))
    ]


def summary_line(profile: Profile) -> str:
    """One sentence: how concentrated the router was on average, and where most."""
    layers = summarize(profile)
    focused = min(layers, key=lambda summary: summary.entropy)
    half = float(np.mean([summary.top_half for summary in layers]))
    never = sum(summary.never_used for summary in layers)
    return (
        f"{profile.n_tokens:,} tokens of {int(profile.documents.sum()):,} documents: the strongest half of the experts "
        f"has {half:.1%} of the router's weight on average; entropy {np.mean([s.entropy for s in layers]):.3f}, lowest "
        f"{focused.entropy:.3f} in layer {focused.layer}; {never} of {len(layers) * profile.parent.n_expert} experts "
        "were never used."
    )
