"""Few-shot fitting of the head to a roster's own examples: a linear support vector machine for a domain that the head
lacks, then kernel ridge regression that corrects all labels.

A server does this at start, so it is numpy alone. Both fits are solved in the dual, over (n, n) inner products of the
texts: n is about a thousand, the features are 132,000, of which a text has some hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encoder import DIMENSIONS
from .features import N_BUCKETS
from .head import EMBEDDING_SCALE, Floats, Head, Linear, TextVector
from .training_prompts import shipped_prompts

EXAMPLE_RIDGE = 0.1  # how little is left of an example's error, beside 1 for a shipped prompt
HIDDEN_MARGIN = 1.5  # wanted of an example's scores: the hidden layer's own, which no step moves, add to other labels'
REFERENCE = 60  # shipped prompts of a domain that examples are fitted against
PENALTY = 0.5  # C of a new domain's support vector machine
MOST_STEPS = 50  # of Newton's method, which needs four to nine
SHORTEST_STEP = 1e-3
TOLERANCE = 1e-4  # of a linear system's solution, relative
BLOCK = 4096  # buckets whose weights are laid out densely at a time

Doubles = NDArray[np.float64]


def with_examples(
    head: Head,
    examples: Mapping[str, Sequence[str]],
    embed: Callable[[Sequence[str]], Floats] | None,
) -> Head:
    """The head fitted to a roster's own examples, domain -> texts; well under a second.

    A domain that the head does not know becomes one more label, fitted on its examples against the shipped prompts and
    the other domains' examples. Then all labels are moved as little as makes the examples right and leaves the shipped
    prompts where they were: of a built-in domain a few examples correct the head and do not replace it.

    embed: texts -> (n, DIMENSIONS), as the encoder gives them that the head was fitted with; None: n-grams alone.
    """
    texts = [text for of_domain in examples.values() for text in of_domain]
    if not texts:
        return head
    own = np.array([domain for domain, of_domain in examples.items() for _ in of_domain])
    reference, prompts = _reference_prompts()
    embedded: Floats | None = None
    if embed is not None:
        known = head.prompts[reference] if head.prompts is not None else embed(prompts)
        embedded = np.vstack([known, embed(texts)])
    plain = _Texts.of([head.vector(text) for text in [*prompts, *texts]])
    both = plain.beside(embedded) if embedded is not None else plain
    ngram, joint = head.ngram, head.joint
    added = tuple(domain for domain in examples if domain not in head.labels)
    for domain in added:
        is_wanted = np.r_[np.zeros(len(prompts), bool), own == domain]
        shares = support_vector_machine(plain.kernel, is_wanted)
        ngram = _with_label(ngram, plain, shares)
        joint = _with_label(joint, both, shares if both is plain else support_vector_machine(both.kernel, is_wanted))
    labels = (*head.labels, *added)
    target = own[:, None] == np.array(labels)
    return replace(
        head,
        labels=labels,
        ngram=_corrected(ngram, plain, target),
        joint=_corrected(joint, both, target) if embedded is not None else joint,
    )


def _reference_prompts() -> tuple[NDArray[np.int64], list[str]]:
    """Places and texts of some shipped prompts, evenly of each label: all of them would take seconds to fit against."""
    prompts = shipped_prompts()
    labels = np.array([label for label, _ in prompts])
    chosen = []
    for label in dict.fromkeys(label for label, _ in prompts):
        mine = np.flatnonzero(labels == label)
        chosen.append(mine[np.linspace(0, len(mine) - 1, min(len(mine), REFERENCE)).astype(int)])
    reference = np.concatenate(chosen)
    return reference, [prompts[place][1] for place in reference]


@dataclass(frozen=True)
class _Texts:
    """Features of n texts: n-grams and, scaled by EMBEDDING_SCALE, embeddings (n, DIMENSIONS) or None.

    kernel: the texts' inner products with one another, (n, n).
    """

    vectors: Sequence[TextVector]
    embeddings: Floats | None
    kernel: Floats

    @classmethod
    def of(cls, vectors: Sequence[TextVector]) -> _Texts:
        return cls(vectors, None, ngram_kernel(vectors))

    def beside(self, embeddings: Floats) -> _Texts:
        """The same texts with embeddings beside their n-grams."""
        scaled = np.asarray(EMBEDDING_SCALE * embeddings, np.float32)
        return replace(self, embeddings=scaled, kernel=self.kernel + scaled @ scaled.T)

    def weights(self, shares: NDArray[Any]) -> tuple[Floats, Floats | None]:
        """Sums of the texts' features, each text counted by its share, (n, k): weights of a Linear's n-grams
        (N_BUCKETS, k) and of its embedding (DIMENSIONS, k)."""
        shares = shares.astype(np.float32)
        ngrams = np.zeros((N_BUCKETS, shares.shape[1]), np.float32)
        for vector, share in zip(self.vectors, shares, strict=True):
            ngrams[vector.index] += vector.values[:, None] * share
        if self.embeddings is None:
            return ngrams, None
        return ngrams, np.asarray(EMBEDDING_SCALE * (self.embeddings.T @ shares), np.float32)


def ngram_kernel(vectors: Sequence[TextVector]) -> Floats:
    """Inner products of sparse vectors, (n, n). Only buckets that two texts share count off the diagonal: these are
    laid out densely, a block at a time, since a matrix product of BLAS beats any loop over pairs."""
    index = np.concatenate([vector.index for vector in vectors])
    values = np.concatenate([vector.values for vector in vectors])
    row = np.repeat(np.arange(len(vectors)), [len(vector.index) for vector in vectors])
    _, bucket, counts = np.unique(index, return_inverse=True, return_counts=True)
    is_shared = counts > 1
    column = (np.cumsum(is_shared) - 1)[bucket]
    kernel = np.zeros((len(vectors), len(vectors)), np.float32)
    for start in range(0, int(is_shared.sum()), BLOCK):
        mine = is_shared[bucket] & (column >= start) & (column < start + BLOCK)
        block = np.zeros((len(vectors), BLOCK), np.float32)
        block[row[mine], column[mine] - start] = values[mine]
        kernel += block @ block.T
    np.fill_diagonal(kernel, [vector.values @ vector.values for vector in vectors])
    return kernel


def _with_label(linear: Linear, texts: _Texts, shares: Doubles) -> Linear:
    """The classifier with one more label, whose weights are the texts' features, each counted by its share."""
    ngrams, embedding = texts.weights(shares[:, None])
    if linear.embedding is not None:
        added = embedding if embedding is not None else np.zeros((DIMENSIONS, 1), np.float32)
        embedding = np.hstack([linear.embedding, added])
    hidden = linear.hidden
    if hidden is not None:
        hidden = replace(hidden, outward=np.pad(hidden.outward, ((0, 0), (0, 1))))
    return replace(
        linear,
        ngrams=np.hstack([linear.ngrams, ngrams]),
        embedding=embedding,
        bias=np.append(linear.bias, np.float32(shares.sum())),
        hidden=hidden,
    )


def support_vector_machine(kernel: NDArray[Any], is_wanted: NDArray[np.bool_]) -> Doubles:
    """A linear classifier as the share of each text in its weights, (n,); the shares' sum is its bias.

    Least w.w/2 + b.b/2 + sum of cost * max(0, 1 - y (w.x + b))^2, where both sides cost the same together. Newton's
    method over the texts within the margin, each step a linear system that conjugate gradients solve from the last.
    kernel: inner products (n, n).
    Source: Chapelle 2007, "Training a support vector machine in the primal"; the objective is LIBLINEAR's, and so are
    the scores, to three digits.
    """
    n = len(kernel)
    kernel = np.asarray(kernel, np.float64) + 1  # a feature of 1 whose weight is the bias
    sign = np.where(is_wanted, 1.0, -1.0)
    cost = PENALTY * n / (2 * np.where(is_wanted, is_wanted.sum(), n - is_wanted.sum()))
    shares, scores = np.zeros(n), np.zeros(n)

    def loss(shares: Doubles, scores: Doubles) -> float:
        return float(shares @ scores / 2 + cost @ np.maximum(0, 1 - sign * scores) ** 2)

    for _ in range(MOST_STEPS):
        within = np.flatnonzero(sign * scores < 1)
        wanted = np.zeros(n)
        system = kernel[np.ix_(within, within)]
        system[np.diag_indices(len(within))] += 1 / (2 * cost[within])
        wanted[within] = _conjugate_gradients(system, sign[within], shares[within])
        wanted_scores = kernel @ wanted
        way, scores_way, step = wanted - shares, wanted_scores - scores, 1.0
        before = loss(shares, scores)
        while loss(shares + step * way, scores + step * scores_way) > before and step > SHORTEST_STEP:
            step /= 2  # a whole step may go too far where it moves texts across the margin
        shares, scores = shares + step * way, scores + step * scores_way
        if np.array_equal(within, np.flatnonzero(sign * scores < 1)):
            break
    return shares


def _conjugate_gradients(system: Doubles, right: Doubles, start: Doubles) -> Doubles:
    """The solution of a symmetric positive definite system, (n,): for a thousand unknowns some 50 matrix-vector
    products, a quarter of the time that elimination takes. Preconditioned by the diagonal."""
    solution, scale = start, 1 / np.diag(system)
    rest = right - system @ solution
    way = scale * rest
    energy, enough = float(rest @ way), TOLERANCE * float(np.linalg.norm(right))
    for _ in range(len(right)):
        if np.linalg.norm(rest) <= enough:
            break
        moved = system @ way
        length = energy / float(way @ moved)
        solution, rest = solution + length * way, rest - length * moved
        before, energy = energy, float(rest @ (scale * rest))
        way = scale * rest + (energy / before) * way
    return solution


def _corrected(linear: Linear, texts: _Texts, target: NDArray[np.bool_]) -> Linear:
    """The classifier with the examples (the last texts) on the right side of each label's margin.

    target: (n_examples, n_labels). Kernel ridge regression on what the scores lack: +1 for the example's own label,
    -1 for others (with a hidden layer HIDDEN_MARGIN times as much), and nothing for the texts before them.
    Source: least-squares support vector machines.
    """
    n_prompts = len(texts.vectors) - len(target)
    embeddings: Sequence[Floats | None] = [None] * len(target)
    if texts.embeddings is not None:
        embeddings = list(texts.embeddings[n_prompts:] / np.float32(EMBEDDING_SCALE))
    scored = zip(texts.vectors[n_prompts:], embeddings, strict=True)
    scores = np.stack([linear.scores(vector, embedding) for vector, embedding in scored])
    margin = 1.0 if linear.hidden is None else HIDDEN_MARGIN
    lacking = np.where(target, np.maximum(0, margin - scores), np.minimum(0, -margin - scores))
    ridge = np.r_[np.ones(n_prompts), np.full(len(target), EXAMPLE_RIDGE)]
    wanted = np.vstack([np.zeros((n_prompts, target.shape[1])), lacking])
    ngrams, embedding = texts.weights(np.linalg.solve(texts.kernel + np.diag(ridge), wanted))
    if linear.embedding is not None and embedding is not None:
        embedding = linear.embedding + embedding
    return replace(linear, ngrams=linear.ngrams + ngrams, embedding=embedding)
