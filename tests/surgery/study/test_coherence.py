"""Coherence: two routers mixed are told apart, one is left alone, and short documents are joined first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from coe.surgery.errors import MaskError, ProfileError
from coe.surgery.parent import Identity
from coe.surgery.profile.corpus import Corpus
from coe.surgery.study.coherence import coherence
from coe.surgery.study.document_counts import DocumentCounts, count_documents
from fakes import taught
from fakes.synthetic_profile import identity, routed

PARENT = identity(layers=6, experts=32, used=4)
Logits = NDArray[np.float64]


def router(rng: np.random.Generator, parent: Identity = PARENT) -> Logits:
    return rng.normal(size=(len(parent.layers), parent.n_expert))


def documents(
    routers: Sequence[Logits],
    each: int,
    rng: np.random.Generator,
    *,
    tokens: int = 300,
    own: float = 0.0,
    parent: Identity = PARENT,
) -> DocumentCounts:
    """`each` documents of every router in turn, each with a slant of its own; named by their router."""
    mass, names = [], []
    for number in range(each * len(routers)):
        which = number % len(routers)
        logits = routers[which] + own * router(rng, parent)
        mass.append(routed(parent, tokens, rng, logits, norms=False).weights.sum((0, 3)))
        names.append(f"{which}:{number}")
    count = len(names)
    return DocumentCounts(
        parent, tuple(names), ("all",) * count, np.full(count, tokens), np.array(mass, np.float32), "corpus"
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
class TestSplit:
    def test_two_routers_are_told_apart_document_by_document(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        found = coherence(documents([router(rng), router(rng)], 10, rng, own=0.3), 16)
        assert not found.coherent
        assert {frozenset(name[0] for name in domain.documents) for domain in found.domains} == {
            frozenset("0"),
            frozenset("1"),
        }
        assert [len(domain.documents) for domain in found.domains] == [10, 10]
        assert found.between < 0.7 < found.random
        assert "2 domains (50%, 50% of the tokens)" in found.warning
        assert found.p < 0.01

    def test_three_are_three(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        found = coherence(documents([router(rng) for _ in range(3)], 8, rng, own=0.3), 16)
        assert [len({name[0] for name in domain.documents}) for domain in found.domains] == [1, 1, 1]

    @pytest.mark.parametrize("own", [0.0, 0.5])
    def test_one_router_is_left_alone(self, seed: int, own: float) -> None:
        rng = np.random.default_rng(seed)
        found = coherence(documents([router(rng)], 20, rng, own=own), 16)
        assert found.coherent
        assert found.warning == ""
        assert len(found.domains) == 1
        assert len(found.domains[0].documents) == 20
        assert set(found.labels) == {0}

    def test_domains_nearer_than_any_published_ones_are_no_reason_to_split(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        base = router(rng)
        near = [base + 0.1 * router(rng) for _ in range(2)]
        assert coherence(documents(near, 12, rng, tokens=3000), 16).coherent

    def test_a_sample_says_the_same_and_every_document_is_in_the_split(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        counts = documents([router(rng), router(rng)], 15, rng, own=0.3)
        found = coherence(counts, 16, max_pieces=16, seed=seed)
        assert len(found.pieces) == 16
        assert found.f_scores.shape == (16, 16)
        assert sorted(name for domain in found.domains for name in domain.documents) == sorted(counts.names)
        assert all(len({name[0] for name in domain.documents}) == 1 for domain in found.domains)
        assert "16 of 30 pieces were compared, drawn at random." in found.notes
        assert found.labels == coherence(counts, 16, max_pieces=16, seed=seed).labels

    def test_a_stray_document_is_no_domain(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        counts = documents([router(rng)], 20, rng)
        counts.document_mass[7] = documents([router(rng)], 1, rng).document_mass[0]
        assert coherence(counts, 16).coherent

    def test_groups_are_respected(self, seed: int) -> None:
        parent = identity(layers=6, experts=32, used=4, groups=4)
        rng = np.random.default_rng(seed)
        pair = [router(rng, parent), router(rng, parent)]
        assert len(coherence(documents(pair, 8, rng, parent=parent), 16).domains) == 2


class TestShortDocuments:
    def test_neighbours_of_one_class_are_joined(self) -> None:
        rng = np.random.default_rng(0)
        counts = documents([router(rng)], 12, rng, tokens=30)
        counts = replace(counts, classes=("a", "b") * 6)
        found = coherence(counts, 16, min_tokens=70)
        assert [piece.documents for piece in found.pieces] == [(0, 2, 4), (6, 8, 10), (1, 3, 5), (7, 9, 11)]
        assert {piece.tokens for piece in found.pieces} == {90}
        assert "Short documents were joined with their neighbours, to 70 tokens or more." in found.notes
        assert found.domains[0].classes == {"a": 6, "b": 6}

    def test_the_rest_of_a_class_goes_to_its_last_piece(self) -> None:
        rng = np.random.default_rng(0)
        found = coherence(documents([router(rng)], 5, rng, tokens=30), 16, min_tokens=60)
        assert [piece.documents for piece in found.pieces] == [(0, 1), (2, 3, 4)]

    def test_a_class_that_is_too_short_as_a_whole_is_left_out_and_said(self) -> None:
        rng = np.random.default_rng(0)
        counts = replace(documents([router(rng)], 5, rng, tokens=100), classes=("a", "a", "a", "a", "tiny"))
        found = coherence(counts, 16, min_tokens=150)
        assert any(note.startswith("1 documents were left out") for note in found.notes)
        assert "0:4" not in found.domains[0].documents

    def test_two_routers_are_told_apart_in_joined_documents(self) -> None:
        rng = np.random.default_rng(0)
        counts = documents([router(rng), router(rng)], 60, rng, tokens=40)
        order = np.argsort([name[0] for name in counts.names], kind="stable")
        counts = replace(counts, names=tuple(counts.names[i] for i in order), document_mass=counts.document_mass[order])
        found = coherence(counts, 16)
        assert len(found.domains) == 2

    def test_few_pieces_are_not_judged(self) -> None:
        rng = np.random.default_rng(0)
        found = coherence(documents([router(rng), router(rng)], 1, rng), 16)
        assert found.coherent
        assert any("too few to look for domains" in note for note in found.notes)

    def test_a_corpus_without_enough_tokens_is_refused(self) -> None:
        rng = np.random.default_rng(0)
        with pytest.raises(ProfileError, match="has 256 tokens"):
            coherence(documents([router(rng)], 2, rng, tokens=20), 16)


def test_an_impossible_number_of_experts_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(MaskError, match="Keep at least 4"):
        coherence(documents([router(rng)], 4, rng), 2)


def test_one_layer_is_enough() -> None:
    parent = identity(layers=1, experts=32, used=4)
    rng = np.random.default_rng(0)
    pair = [router(rng, parent), router(rng, parent)]
    assert len(coherence(documents(pair, 10, rng, tokens=1000, parent=parent), 16).domains) == 2
    assert coherence(documents(pair[:1], 20, rng, parent=parent), 16).coherent


@pytest.mark.model
class TestARealRouter:
    """Short questions of the trained parent's domains, with nothing that says which is of which."""

    def counts(self, folder: Path, *domains: str) -> DocumentCounts:
        asked = [question for domain in domains for question in taught.corpus(domain, 60)]
        corpus = Corpus(tuple(taught.conversation(question, "all") for question in asked))
        return count_documents(taught.PARENT, corpus, folder / "d.npz", limit=len(asked), load=taught.READING)

    def test_two_domains_in_one_file_are_told_apart(self, tmp_path: Path) -> None:
        found = coherence(self.counts(tmp_path, "chemistry", "law"), taught.HALF)
        assert len(found.domains) == 2
        places = [{int(name.removeprefix("document ")) for name in domain.documents} for domain in found.domains]
        for part in places:
            of_law = sum(place >= 60 for place in part)
            # Where one ends and the other begins, a joined piece holds some of both.
            assert min(of_law, len(part) - of_law) <= 10
        assert found.between < 0.7

    @pytest.mark.parametrize("domain", ["chemistry", "general"])
    def test_one_domain_is_left_alone(self, domain: str, tmp_path: Path) -> None:
        assert coherence(self.counts(tmp_path, domain), taught.HALF).coherent


class TestFile:
    def test_counts_survive_their_file(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        counts = documents([router(rng)], 3, rng)
        counts.save(tmp_path / "documents.npz")
        again = DocumentCounts.load(tmp_path / "documents.npz")
        assert again.parent == counts.parent
        assert (again.names, again.classes, again.corpus_sha256) == (counts.names, counts.classes, "corpus")
        np.testing.assert_array_equal(again.tokens, counts.tokens)
        np.testing.assert_array_equal(again.document_mass, counts.document_mass)
        assert [path.name for path in tmp_path.iterdir()] == ["documents.npz"]

    def test_a_profile_is_no_counts_of_documents(self, tmp_path: Path) -> None:
        routed(PARENT, 10, np.random.default_rng(0)).save(tmp_path / "profile.npz")
        (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
        for name in ("profile.npz", "broken.npz"):
            with pytest.raises(ProfileError, match="no counts of documents"):
                DocumentCounts.load(tmp_path / name)
        with pytest.raises(ProfileError, match="does not exist"):
            DocumentCounts.load(tmp_path / "none.npz")

    def test_parts_that_do_not_go_together_are_refused(self) -> None:
        with pytest.raises(ProfileError, match="contradict"):
            DocumentCounts(PARENT, ("a",), ("x",), np.array([1, 2]), np.zeros((1, 6, 32), np.float32))
