"""Fitting the head to a roster's own examples."""

from dataclasses import replace

import numpy as np
import pytest

from coe.router.domains import DOMAINS
from coe.router.encoder import DIMENSIONS
from coe.router.features import N_BUCKETS
from coe.router.head_file import load_head
from coe.router.teaching import ngram_kernel, support_vector_machine, with_examples
from fakes.heads import EMBEDDING, SAILING, hidden_head, likeliest


def test_a_domain_of_its_own_is_learned_from_ten_examples_and_the_others_stay():
    before = load_head()
    after = with_examples(before, {"sailing": SAILING}, None)
    assert after.labels == (*DOMAINS, "sailing")
    assert likeliest(after, "How do I reef the sail of a yacht in strong wind?") == "sailing"
    for text in ("Solve the equation 3x + 7 = 22 for x", "Write a Python function that sorts a list"):
        assert likeliest(after, text) == likeliest(before, text)


def test_examples_of_a_built_in_domain_correct_the_head():
    before = load_head()
    text = "Which knot holds a jib sheet on its clew best?"
    examples = {"engineering": SAILING}
    after = with_examples(before, examples, None)
    place = DOMAINS.index("engineering")
    assert after.labels == DOMAINS
    assert after.probabilities(after.vector(text))[place] > before.probabilities(before.vector(text))[place] + 0.2
    assert likeliest(after, "Solve the equation 3x + 7 = 22 for x") == "math"


def test_without_examples_the_head_stays_as_it_is():
    head = load_head()
    assert with_examples(head, {}, None) is head


@pytest.mark.slow
def test_shipped_prompts_are_embedded_only_where_the_head_does_not_bring_their_embeddings():
    head, asked = load_head(), []

    def embed(texts):
        asked.append(len(texts))
        return np.zeros((len(texts), DIMENSIONS), np.float32)

    with_examples(head, {"sailing": SAILING}, embed)
    assert asked == [len(SAILING)]
    with_examples(replace(head, prompts=None), {"sailing": SAILING}, embed)
    assert max(asked) > 500


def test_examples_are_learned_against_what_the_hidden_layer_says():
    def embed(texts):
        return np.tile(EMBEDDING, (len(texts), 1))

    before = hidden_head()
    texts = [f"how do I reef the sail number {word}" for word in ("one", "two", "three", "four")]
    mistaken = DOMAINS[int(before.probabilities(before.vector(texts[0]), EMBEDDING).argmax())]
    after = with_examples(before, {"sailing": texts}, embed)
    assert after.joint.hidden.outward.shape == (6, len(DOMAINS) + 1)
    found = after.probabilities(after.vector(texts[0]), EMBEDDING)
    assert after.labels[int(found.argmax())] == "sailing" != mistaken


def test_the_support_vector_machine_is_liblinears():
    from sklearn.svm import LinearSVC

    draw = np.random.default_rng(0)
    texts = draw.standard_normal((120, 300)).astype(np.float32) / 10
    is_wanted = np.arange(120) < 12
    texts[is_wanted, :5] += 0.3
    shares = support_vector_machine(texts @ texts.T, is_wanted)
    expected = LinearSVC(C=0.5, class_weight="balanced", tol=1e-6, max_iter=100_000).fit(texts, is_wanted)
    np.testing.assert_allclose(texts @ (texts.T @ shares) + shares.sum(), expected.decision_function(texts), atol=2e-3)


def test_inner_products_of_ngrams_are_those_of_the_dense_rows(monkeypatch):
    monkeypatch.setattr("coe.router.teaching.BLOCK", 64)
    head = load_head()
    vectors = [head.vector(text) for text in (*SAILING, "", "Solve 3x + 7 = 22 for x")]
    dense = np.zeros((len(vectors), N_BUCKETS), np.float32)
    for row, vector in zip(dense, vectors, strict=True):
        row[vector.index] = vector.values
    np.testing.assert_allclose(ngram_kernel(vectors), dense @ dense.T, atol=1e-5)
