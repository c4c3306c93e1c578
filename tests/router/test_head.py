"""The head: features and probabilities."""

from dataclasses import replace

import numpy as np
import pytest

from coe.router.features import N_WORDS, PARTS_WEIGHT
from coe.router.head_file import load_head


def test_words_and_parts_of_words_have_their_own_lengths():
    vector = load_head().vector("Solve the quadratic equation for x")
    words = vector.index < N_WORDS
    assert np.linalg.norm(vector.values[words]) == pytest.approx(1, abs=1e-3)
    assert np.linalg.norm(vector.values[~words]) == pytest.approx(PARTS_WEIGHT, abs=1e-3)


class NoMatrixProduct(np.ndarray):
    """Weights that refuse `@` with one row of values, which BLAS would share with a thread of its own."""

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        assert ufunc is not np.matmul, "a decision must not wake another thread"
        plain = [one.view(np.ndarray) if isinstance(one, NoMatrixProduct) else one for one in inputs]
        return getattr(ufunc, method)(*plain, **settings)


def test_a_decision_keeps_to_the_thread_that_makes_it():
    head = load_head()

    def guarded(linear):
        hidden = linear.hidden and replace(
            linear.hidden,
            inward=linear.hidden.inward.view(NoMatrixProduct),
            outward=linear.hidden.outward.view(NoMatrixProduct),
        )
        embedding = None if linear.embedding is None else linear.embedding.view(NoMatrixProduct)
        return replace(linear, ngrams=linear.ngrams.view(NoMatrixProduct), embedding=embedding, hidden=hidden)

    careful = replace(head, ngram=guarded(head.ngram), joint=guarded(head.joint))
    vector, embedding = head.vector("Solve the quadratic equation for x"), head.prompts[0]
    for given in (None, embedding):
        np.testing.assert_array_equal(careful.probabilities(vector, given), head.probabilities(vector, given))
    with pytest.raises(AssertionError, match="another thread"):
        embedding @ careful.joint.embedding


def test_a_text_scores_the_same_alone_and_among_others():
    head = load_head()
    together = head.joint.hidden.scores(head.prompts[:5])
    np.testing.assert_allclose(head.joint.hidden.scores(head.prompts[3]), together[3], atol=1e-4)
