"""A profile counts every choice of every token once, however documents are packed and a run is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_model import Shape, write_random_model

from coe.demo.curriculum import DOMAINS
from coe.engine.llama.model import Model
from coe.engine.spec import LoadSpec
from coe.surgery.errors import ProfileError, SurgeryError
from coe.surgery.parent import Parent
from coe.surgery.plan.methods import TopK
from coe.surgery.plan.planning import plan
from coe.surgery.profile import run as profiling
from coe.surgery.profile.corpus import ChatReader, Corpus, Document
from coe.surgery.profile.profile import Profile, read_extra
from coe.surgery.profile.run import ProfileProgress, evaluate_corpus, profile_corpus, state_path
from coe.surgery.profile.summary import summarize
from coe.surgery.profile.tap import Observation, TappedContext
from fakes import taught
from fakes.random_moe import write_random_moe

LOAD = LoadSpec(Path(), context_tokens=256, threads=1)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("parent") / "p.gguf", Shape(experts=8, experts_used=3))


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_PACK_BATCHES", 1)


def words(rng: np.random.Generator, count: int) -> str:
    return " ".join(f"w{n}" for n in rng.integers(0, 200, count))


def corpus_of(*sizes: int, classes: Sequence[str] = ("law", "math")) -> Corpus:
    rng = np.random.default_rng(5)
    return Corpus(tuple(Document(classes[n % len(classes)], words(rng, size)) for n, size in enumerate(sizes)))


SIZES = (70, 3, 250, 40, 90, 160, 12, 230, 30, 150, 220, 80)  # words, about one token each


def same(one: Profile, other: Profile) -> bool:
    arrays = ("selections", "weights", "tokens", "documents", "norms", "peaks")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.parametrize("architecture", ["gemma4", "olmoe", "deepseek2", "qwen3next"])
def test_histograms_equal_those_of_the_routers_scores(tmp_path: Path, architecture: str) -> None:
    path = write_random_moe(tmp_path / "p.gguf", architecture=architecture, experts=8, experts_used=3)
    corpus = Corpus((Document("law", words(np.random.default_rng(2), 30)),))
    profile = profile_corpus(path, corpus, tmp_path / "p.npz", load=LOAD)
    spec = replace(LOAD, path=path, parallel=1)
    model = Model(spec)
    tokens = ChatReader(None, model.vocab).tokens_of(corpus.documents[0])[:256].tolist()
    tapped = TappedContext(model, spec, Parent.open(path).experts, scores=True)
    _, seen = tapped.evaluate(tokens)
    tapped.close()
    model.close()
    assert seen.scores is not None
    ranked = np.argsort(-seen.scores, axis=2, kind="stable")[:, :, :3]
    for row in range(2):
        for rank in range(3):
            wanted = np.bincount(ranked[row, :, rank], minlength=8)
            np.testing.assert_array_equal(profile.selections[0, row, :, rank], wanted)
    assert profile.n_tokens == len(tokens)


@pytest.mark.model
def test_packed_documents_are_counted_as_each_alone(parent: Path, tmp_path: Path) -> None:
    corpus = corpus_of(*SIZES)
    together = profile_corpus(parent, corpus, tmp_path / "all.npz", load=LOAD, norms=True)
    alone = Profile.empty(together.parent, together.classes, norms=True)
    for document in corpus.documents:
        one = profile_corpus(parent, Corpus((document,)), tmp_path / "one.npz", load=LOAD, norms=True)
        at = together.classes.index(document.category)
        alone.selections[at] += one.selections[0]
        alone.weights[at] += one.weights[0]
        alone.tokens[at] += one.tokens[0]
        alone.documents[at] += one.documents[0]
    # A row among others rounds in another way, which may flip a near-tie of the router.
    flipped = np.abs(together.selections - alone.selections)
    assert flipped.sum() <= 1e-3 * together.selections.sum()
    # With each of these goes a weight of one at most.
    np.testing.assert_allclose(together.weights, alone.weights, atol=1e-3 * together.weights.max() + flipped.max())
    np.testing.assert_array_equal(together.tokens, alone.tokens)
    assert together.documents.tolist() == alone.documents.tolist() == [6, 6]
    assert (together.selections.sum((2, 3)) == together.tokens[:, None] * 3).all()


@pytest.mark.model
def test_each_class_of_a_mixed_corpus_names_the_experts_of_its_own_domain(tmp_path: Path) -> None:
    """Questions that the parent never saw, of all domains mixed up and packed together."""
    documents = [taught.conversation(question) for domain in DOMAINS for question in taught.exam(domain, 50)]
    mixed = Corpus(tuple(documents)).shuffled()
    profile = profile_corpus(taught.PARENT, mixed, tmp_path / "p.npz", load=taught.READING)
    assert profile.documents.tolist() == [50] * len(DOMAINS)
    for domain in taught.WITH_MASKS:
        mask = plan(profile.of_class(domain), taught.HALF, TopK())
        assert taught.overlap(mask, domain) > 0.75
        assert all(taught.overlap(mask, other) < 0.72 for other in taught.WITH_MASKS if other != domain)
    spread = [np.mean([layer.entropy for layer in summarize(profile.of_class(domain))]) for domain in DOMAINS]
    assert max(spread) < 0.75
    assert np.mean([layer.entropy for layer in summarize(profile.merged())]) > 0.95


@pytest.mark.model
def test_a_recurrent_parent_reads_one_document_a_decode(tmp_path: Path) -> None:
    path = write_random_moe(tmp_path / "p.gguf", architecture="qwen35moe", experts=8, experts_used=3)
    corpus = corpus_of(9, 2, 14, 5)
    together = profile_corpus(path, corpus, tmp_path / "all.npz", load=LOAD)
    singles = [profile_corpus(path, Corpus((d,)), tmp_path / "one.npz", load=LOAD) for d in corpus.documents]
    np.testing.assert_array_equal(together.selections.sum(0), sum(one.selections.sum(0) for one in singles))
    assert (together.selections.sum((2, 3)) == together.tokens[:, None] * 3).all()


@pytest.mark.model
def test_conversations_and_long_documents_are_read_whole(parent: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    talk = Document("talk", messages=(("user", words(rng, 5)), ("assistant", words(rng, 9))))
    book = Document("book", words(rng, 700))
    profile = profile_corpus(parent, Corpus((talk, book)), tmp_path / "p.npz", load=LOAD, extra={"made": "here"})
    model = Model(replace(LOAD, path=parent))
    with closing(ChatReader(model.chat_template(), model.vocab)) as reader:
        sizes = [len(reader.tokens_of(document)) for document in (talk, book)]
    model.close()
    assert profile.tokens.tolist() == sizes
    assert profile.documents.tolist() == [1, 1]
    extra = read_extra(tmp_path / "p.npz")
    assert extra["cut_documents"] == 1
    assert extra["windows"] == 1 + -(-sizes[1] // 256)
    assert extra["whole_corpus"]
    assert extra["made"] == "here"


@pytest.mark.model
def test_the_cards_long_utility_is_the_short_one(parent: Path, tmp_path: Path) -> None:
    profile = profile_corpus(parent, corpus_of(*SIZES[:5]), tmp_path / "p.npz", load=LOAD).merged()
    hist, weight = profile.selections[0], profile.weights[0]
    mean_weight = np.divide(weight, hist, out=np.zeros_like(weight), where=hist > 0)
    np.testing.assert_allclose((hist / profile.n_tokens * mean_weight).sum(2), profile.gate_mass())


@pytest.mark.model
def test_evaluation_without_the_tap_reads_the_same_tokens(parent: Path, tmp_path: Path) -> None:
    corpus = corpus_of(*SIZES[:6])
    profile = profile_corpus(parent, corpus, tmp_path / "p.npz", load=LOAD)
    assert evaluate_corpus(parent, corpus, load=LOAD).tokens == profile.n_tokens


@pytest.mark.model
def test_router_weights_that_are_not_finite_are_named(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe = TappedContext.observe

    def overflowing(self: TappedContext, entries: Any) -> Observation:
        seen = observe(self, entries)
        seen.weights[1] = np.nan
        return seen

    monkeypatch.setattr(TappedContext, "observe", overflowing)
    with pytest.raises(ProfileError, match=r"not finite in the layers \[1\]"):
        profile_corpus(parent, corpus_of(10), tmp_path / "p.npz", load=LOAD)
    assert not (tmp_path / "p.npz").exists()


# --- interruption -----------------------------------------------------------------------------------------------------


def interrupting(at_tokens: int) -> Callable[[ProfileProgress], None]:
    def progress(reached: ProfileProgress) -> None:
        if reached.stage == "profile" and reached.done >= at_tokens:
            raise KeyboardInterrupt

    return progress


@pytest.mark.model
@pytest.mark.parametrize("norms", [False, True])
def test_an_interrupted_run_goes_on_and_counts_the_same(parent: Path, tmp_path: Path, norms: bool) -> None:
    corpus, out = corpus_of(*SIZES), tmp_path / "p.npz"
    whole = profile_corpus(parent, corpus, tmp_path / "whole.npz", load=LOAD, norms=norms)
    done: list[int] = []
    for share in (0.45, 0.8):
        at = interrupting(int(share * whole.n_tokens))
        with pytest.raises(KeyboardInterrupt):
            profile_corpus(parent, corpus, out, load=LOAD, norms=norms, progress=at)
        assert not out.exists()
        done.append(Profile.load(state_path(out)).n_tokens)
    assert 0 < done[0] < done[1] < whole.n_tokens
    reached: list[ProfileProgress] = []
    resumed = profile_corpus(parent, corpus, out, load=LOAD, norms=norms, progress=reached.append)
    assert next(progress.done for progress in reached if progress.stage == "profile") == done[1]
    assert same(resumed, whole)
    assert same(Profile.load(out), whole)
    assert not state_path(out).exists()


@pytest.mark.model
def test_a_run_of_another_corpus_does_not_go_on_from_the_state(parent: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.npz"
    with pytest.raises(KeyboardInterrupt):
        profile_corpus(parent, corpus_of(*SIZES), out, load=LOAD, progress=interrupting(1200))
    assert state_path(out).exists()
    other = corpus_of(*SIZES[::-1])
    fresh = profile_corpus(parent, other, tmp_path / "fresh.npz", load=LOAD)
    assert same(profile_corpus(parent, other, out, load=LOAD), fresh)


@pytest.mark.model
def test_a_damaged_state_is_not_gone_on_from(parent: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.npz"
    state_path(out).write_bytes(b"PK\x03\x04 half a file")
    assert profile_corpus(parent, corpus_of(*SIZES[:3]), out, load=LOAD).n_tokens > 0
    assert not state_path(out).exists()


_KILLED = """
import os, signal, sys
from pathlib import Path
from coe.engine.spec import LoadSpec
from coe.surgery.profile import run as profiling
from coe.surgery.profile.corpus import read_corpus

profiling._PACK_BATCHES = 1
def progress(reached):
    if reached.stage == "profile" and reached.done >= 1200:
        os.kill(os.getpid(), signal.SIGKILL)

parent, corpus, out = map(Path, sys.argv[1:])
load = LoadSpec(parent, context_tokens=256, threads=1)
profiling.profile_corpus(parent, read_corpus([corpus]), out, load=load, progress=progress, save_every_s=0.0)
"""


@pytest.mark.model
def test_a_kill_leaves_the_old_profile_and_a_state_to_go_on_from(parent: Path, tmp_path: Path) -> None:
    corpus, out, text = corpus_of(*SIZES), tmp_path / "p.npz", tmp_path / "corpus.jsonl"
    old = profile_corpus(parent, corpus_of(20), out, load=LOAD)
    lines = [{"text": document.text, "class": document.category} for document in corpus.documents]
    text.write_text("\n".join(map(json.dumps, lines)))
    ended = subprocess.run([sys.executable, "-c", _KILLED, parent, text, out], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert same(Profile.load(out), old)
    assert Profile.load(state_path(out)).n_tokens > 0
    whole = profile_corpus(parent, corpus, tmp_path / "whole.npz", load=LOAD)
    assert same(profile_corpus(parent, corpus, out, load=LOAD), whole)


def test_a_folder_that_is_not_there_is_told_before_any_work(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="does not exist"):
        profile_corpus(parent, corpus_of(5), tmp_path / "no" / "p.npz", load=LOAD)
