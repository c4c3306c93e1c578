"""The hidden layer over the embedding: fitting it, storing it with the head, and a roster's own examples beside it."""

from dataclasses import replace

import numpy as np
import pytest

from coe.router.domains import DOMAINS
from coe.router.encoder import DIMENSIONS
from coe.router.features import N_BUCKETS
from coe.router.head import Head, HeadError, Hidden, Linear, load_head, save_head, with_examples
from coe.router.training.hidden import fit_hidden

EMBEDDING = np.full(DIMENSIONS, DIMENSIONS**-0.5, np.float32)


def crossed(n=2000):
    """Unit rows whose label is whether two of their numbers have the same sign: no linear classifier can tell."""
    rows = np.random.default_rng(0).standard_normal((n, 8)).astype(np.float32)
    labels = (rows[:, 0] * rows[:, 1] > 0).astype(int)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels


def scores(fitted, rows):
    return fitted.hidden.scores(rows) + rows @ fitted.linear + fitted.bias


def test_what_no_linear_classifier_can_tell_is_learned():
    rows, labels = crossed()
    fitted = fit_hidden(rows[:1600], labels[:1600], np.ones(1600), 2, units=256)
    assert (scores(fitted, rows[1600:]).argmax(axis=1) == labels[1600:]).mean() > 0.8


def test_the_same_seed_gives_the_same_layer_and_scores_add_up_to_nothing():
    rows, labels = crossed(300)
    one, again, other = (fit_hidden(rows, labels, np.ones(300), 2, units=16, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.hidden.inward, again.hidden.inward)
    assert not np.array_equal(one.hidden.inward, other.hidden.inward)
    np.testing.assert_allclose(scores(one, rows).sum(axis=1), 0, atol=1e-4)


def test_weights_decide_where_labels_contradict_each_other():
    rows = np.tile(np.eye(4, 8, dtype=np.float32)[:1], (400, 1))
    labels = np.arange(400) % 2
    for heavy in (0, 1):
        fitted = fit_hidden(rows, labels, np.where(labels == heavy, 5.0, 1.0), 2, units=16)
        assert scores(fitted, rows[:1]).argmax() == heavy


def hidden_head(n_units=6):
    draw = np.random.default_rng(0)
    n = len(DOMAINS)
    outward = draw.standard_normal((n_units, n)).astype(np.float32)
    hidden = Hidden(
        inward=draw.standard_normal((DIMENSIONS, n_units)).astype(np.float32),
        inward_bias=np.ones(n_units, np.float32),
        outward=outward - outward.mean(axis=1, keepdims=True),
    )
    nothing, bias = np.zeros((N_BUCKETS, n), np.float32), np.zeros(n, np.float32)
    joint = Linear(nothing, np.zeros((DIMENSIONS, n), np.float32), bias, 1.0, hidden)
    return Head(DOMAINS, np.ones(N_BUCKETS, np.float32), Linear(nothing, None, bias, 1.0), joint, {})


def test_a_head_is_read_as_it_was_written(tmp_path):
    before = hidden_head()
    save_head(before, tmp_path / "head.npz")
    after = load_head(tmp_path / "head.npz")
    vector = before.vector("a ship")
    found = after.probabilities(vector, EMBEDDING)
    np.testing.assert_allclose(found, before.probabilities(vector, EMBEDDING), atol=0.02)
    assert found.max() > 2 / len(DOMAINS)


def test_a_head_without_a_hidden_layer_can_be_read(tmp_path):
    before = hidden_head()
    save_head(replace(before, joint=replace(before.joint, hidden=None)), tmp_path / "head.npz")
    after = load_head(tmp_path / "head.npz")
    assert after.joint.hidden is None
    np.testing.assert_allclose(after.probabilities(after.vector("a ship"), EMBEDDING), 1 / len(DOMAINS), atol=1e-6)


def test_a_hidden_layer_of_another_width_is_refused(tmp_path):
    before = hidden_head()
    narrow = replace(before.joint.hidden, inward=before.joint.hidden.inward[:100])
    save_head(replace(before, joint=replace(before.joint, hidden=narrow)), tmp_path / "head.npz")
    with pytest.raises(HeadError, match=rf"inward has the shape \(100, 6\) in place of \({DIMENSIONS}, 6\)"):
        load_head(tmp_path / "head.npz")


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
