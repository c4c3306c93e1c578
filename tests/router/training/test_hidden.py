"""The hidden layer over the embedding."""

import numpy as np

from coe.router.training.hidden import fit_hidden


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
