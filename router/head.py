"""The fitted head: from a text's features to a calibrated probability for each domain (softmax, temperature scaling).

A head is two classifiers over the same labels: one reads n-grams alone, one reads n-grams and the sentence embedding.
Both are linear, one against the rest for each label; the second adds the scores of a hidden layer over the embedding. A
softmax with a fitted temperature makes probabilities of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RouterError
from .features import N_WORDS, PARTS_WEIGHT, bucket_counts, scrub

Floats = NDArray[np.float32]

EMBEDDING_SCALE = 2.0  # weight of each half of the embedding beside the words' unit vector, where a head is fitted


class HeadError(RouterError):
    """The head's files are missing, damaged, or do not belong together."""


@dataclass(frozen=True)
class TextVector:
    """A text's n-grams: distinct bucket numbers and their weights, both empty for no words.

    The words' weights are of unit length together, those of the parts of words of length PARTS_WEIGHT.
    """

    index: NDArray[np.int64]
    values: Floats


@dataclass(frozen=True)
class Hidden:
    """Rectified units over the embedding: (DIMENSIONS, n_units) weights, (n_units,) bias, then (n_units, n_labels)."""

    inward: Floats
    inward_bias: Floats
    outward: Floats

    def scores(self, embeddings: Floats) -> Floats:
        """Scores of one embedding (n_labels,), or of several (n, n_labels). Over the labels they add up to 0."""
        units = np.maximum(_weighed(embeddings, self.inward) + self.inward_bias, 0)
        return _weighed(units, self.outward)


@dataclass(frozen=True)
class Linear:
    """One classifier. Weights for n-grams (N_BUCKETS, n), for the embedding (DIMENSIONS, n) or None, bias (n,), and
    what a hidden layer over the embedding adds, or None."""

    ngrams: Floats
    embedding: Floats | None
    bias: Floats
    temperature: float
    hidden: Hidden | None = None

    def scores(self, vector: TextVector, embedding: Floats | None) -> Floats:
        """Unscaled score of each label, (n_labels,)."""
        scores = self.bias + _weighed(vector.values, self.ngrams[vector.index])
        if self.embedding is not None and embedding is not None:
            scores = scores + _weighed(embedding, self.embedding)
            if self.hidden is not None:
                scores = scores + self.hidden.scores(embedding)
        return scores

    def probabilities(self, vector: TextVector, embedding: Floats | None) -> Floats:
        """Softmax over the labels, temperature applied. Sums to 1."""
        return softmax(self.scores(vector, embedding) / np.float32(self.temperature))


@dataclass(frozen=True)
class Head:
    """Both classifiers, the n-gram weights they share, and how they were made."""

    labels: tuple[str, ...]
    idf: Floats  # (N_BUCKETS,), 0 for a bucket that training saw less than twice
    ngram: Linear
    joint: Linear
    about: Mapping[str, Any]
    prompts: Floats | None = None  # (n, DIMENSIONS), embeddings of shipped_prompts() in their order

    def vector(self, text: str) -> TextVector:
        """The n-gram features of a text."""
        index, counts = bucket_counts(scrub(text))
        values = counts * self.idf[index]
        known = values > 0
        index, values = index[known], values[known]
        for block, weight in ((index < N_WORDS, 1.0), (index >= N_WORDS, PARTS_WEIGHT)):
            length = float(np.sqrt(values[block] @ values[block]))
            if length > 0:
                values[block] *= np.float32(weight / length)
        return TextVector(index, values)

    def probabilities(self, vector: TextVector, embedding: Floats | None = None) -> Floats:
        """Probability of each label, (n_labels,). Without an embedding the n-grams decide alone.

        Nothing readable, or numbers that are not finite, give the uniform distribution: no opinion, not a wrong one.
        """
        uniform = np.full(len(self.labels), 1 / len(self.labels), np.float32)
        if embedding is not None:
            found = self.joint.probabilities(vector, embedding)
        elif len(vector.index):
            found = self.ngram.probabilities(vector, None)
        else:
            return uniform
        return found if bool(np.isfinite(found).all()) else uniform


def _weighed(values: Floats, weights: Floats) -> Floats:
    """values @ weights, in the calling thread alone where there is one row of values.

    For a row BLAS would share the microseconds of work with a thread of its own, which then spins for some twenty
    milliseconds in wait of more: a second core burnt at each decision. numpy's own loop is as fast as a decision needs.
    """
    return np.asarray(np.einsum("i,ij->j", values, weights) if values.ndim == 1 else values @ weights)


def softmax(scores: NDArray[Any]) -> Floats:
    """Softmax over the last axis."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)
