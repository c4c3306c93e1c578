"""Profiling: the parent read over a corpus while its router is tapped; a run that is saved and resumed (checkpointing).

The work is cut into packs of some thousand tokens that share nothing, and what is counted so far is saved between
them: an interrupted run goes on with the next pack and gives the same figures, bit for bit, as one that ran through.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from coe.engine.errors import EngineError
from coe.engine.llama.context import BATCH_TOKENS, Context
from coe.engine.llama.model import Model
from coe.engine.spec import LoadSpec

from ..errors import ProfileError
from ..files import require_output
from ..parent import Parent
from .corpus import ChatReader, Corpus
from .counting import added, count
from .fitting import fit_spec, load_spec
from .packing import Pack, Window, entries_of, plan_packs, windows_of
from .profile import Profile, read_extra
from .tap import TappedContext

_PACK_BATCHES: Final = 8  # full batches of a pack, at least; less would leave the last one of too many half empty
_SAVE_EVERY_S: Final = 60.0

_log = logging.getLogger(__name__)


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
        spec = fit_spec(load_spec(parent.path, load), parent, budget_bytes)
        self.model = Model(spec)
        # Decodes of a recurrent model hold one document, and it keeps a state for every sequence that there may be.
        self.together = not self.model.recurrent
        self.spec = spec if self.together else replace(spec, parallel=1)
        documents = []
        with closing(ChatReader(self.model.chat_template(), self.model.vocab)) as reader:
            for done, document in enumerate(corpus.documents, 1):
                documents.append(reader.tokens_of(document))
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

    llama.cpp runs in this process, and ends it where it aborts on the file: have a stranger's tried in a dry run first.

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
            profile, packs = added(reached.profile, part), reached.packs + 1
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
        entries = entries_of(decode, windows)
        observed = tapped.observe(entries)
        of_chunk = [categories[windows[chunk.window].document] for chunk in decode]
        count(part, observed, np.repeat(np.array(of_chunk, np.int64), [chunk.count for chunk in decode]))
        for chunk, category in zip(decode, of_chunk, strict=True):
            if chunk.ends:
                tapped.forget(chunk.sequence)
                part.documents[category] += windows[chunk.window].ends
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
            entries = entries_of(decode, reading.windows)
            lasts = set(np.cumsum([chunk.count for chunk in decode])[[chunk.ends for chunk in decode]] - 1)
            if result := context.decode((*entry, at in lasts) for at, entry in enumerate(entries)):
                raise EngineError(f"llama_decode failed with {result}.")
            for chunk in decode:
                if chunk.ends:
                    context.forget(chunk.sequence)
    seconds = time.perf_counter() - began
    context.close()
    reading.model.close()
    return Speed(reading.n_tokens, seconds)
