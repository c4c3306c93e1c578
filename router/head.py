"""The fitted head: from a text's features to a calibrated probability for each domain.

A head is two linear classifiers over the same labels: one reads n-grams alone, one reads n-grams and the sentence
embedding. Each label's row is a one-against-the-rest classifier; a softmax with a fitted temperature makes
probabilities of them. It is stored as plain arrays (head.npz, loaded with pickle
refused) and a description (head.json).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.router.encoder import DIMENSIONS, RouterError
from coe.router.features import N_BUCKETS, bucket_counts, scrub

Floats = NDArray[np.float32]

SHIPPED = Path(__file__).parent / "head.npz"
PROMPTS = Path(__file__).parent / "prompts"
EMBEDDING_SCALE = 2.0  # weight of the unit embedding beside the unit n-gram vector


class HeadError(RouterError):
    """The head's files are missing, damaged, or do not belong together."""


@dataclass(frozen=True)
class TextVector:
    """A text's n-grams: distinct bucket numbers and their weights, of unit length together; both empty for no words."""

    index: NDArray[np.int64]
    values: Floats


@dataclass(frozen=True)
class Linear:
    """One linear classifier. Weights for n-grams (N_BUCKETS, n), for the embedding (384, n) or None, bias (n,)."""

    ngrams: Floats
    embedding: Floats | None
    bias: Floats
    temperature: float

    def probabilities(self, vector: TextVector, embedding: Floats | None) -> Floats:
        """Softmax over the labels, temperature applied. Sums to 1."""
        scores = self.bias + vector.values @ self.ngrams[vector.index]
        if self.embedding is not None and embedding is not None:
            scores = scores + embedding @ self.embedding
        return softmax(scores / np.float32(self.temperature))


@dataclass(frozen=True)
class Head:
    """Both classifiers, the n-gram weights they share, and how they were made."""

    labels: tuple[str, ...]
    idf: Floats  # (N_BUCKETS,), 0 for a bucket that training saw less than twice
    ngram: Linear
    joint: Linear
    about: Mapping[str, Any]

    def vector(self, text: str) -> TextVector:
        """The n-gram features of a text."""
        index, counts = bucket_counts(scrub(text))
        values = counts * self.idf[index]
        known = values > 0
        index, values = index[known], values[known]
        length = float(np.sqrt(values @ values))
        return TextVector(index, values / np.float32(length) if length > 0 else values)

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


def softmax(scores: NDArray[Any]) -> Floats:
    """Softmax over the last axis."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)


def shipped_prompts() -> list[tuple[str, str]]:
    """The training prompts written for this project, as (label, text); one file a label, one line a prompt."""
    return [
        (path.stem, line.replace("\\n", "\n"))
        for path in sorted(PROMPTS.glob("*.txt"))
        for line in path.read_text("utf-8").splitlines()
        if line.strip()
    ]


def save_head(head: Head, path: Path) -> None:
    """Write `path` (npz, n-gram weights as int8 with one scale a label) and its description beside it (json)."""
    if head.joint.embedding is None:
        raise HeadError("a head needs embedding weights")
    ngram, ngram_scale = _quantise(head.ngram.ngrams)
    joint, joint_scale = _quantise(head.joint.ngrams)
    np.savez_compressed(
        path,
        idf=head.idf.astype(np.float16),
        ngram=ngram,
        ngram_scale=ngram_scale,
        ngram_bias=head.ngram.bias,
        joint=joint,
        joint_scale=joint_scale,
        joint_bias=head.joint.bias,
        embedding=head.joint.embedding.astype(np.float16),
    )
    about = {
        **head.about,
        "labels": list(head.labels),
        "temperature": {"ngram": head.ngram.temperature, "joint": head.joint.temperature},
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def load_head(path: Path = SHIPPED) -> Head:
    """Read a head that `save_head` wrote. Raises HeadError when a file is missing, damaged or of another shape."""
    try:
        about = json.loads(path.with_suffix(".json").read_text("utf-8"))
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != about["sha256"]:
            raise HeadError(
                f"{path} has SHA-256 {found}, its description says {about['sha256']}: reinstall the package"
            )
        with np.load(path, allow_pickle=False) as arrays:
            labels = tuple(str(label) for label in about["labels"])
            head = Head(
                labels=labels,
                idf=arrays["idf"].astype(np.float32),
                ngram=Linear(
                    arrays["ngram"].astype(np.float32) * arrays["ngram_scale"],
                    None,
                    arrays["ngram_bias"],
                    float(about["temperature"]["ngram"]),
                ),
                joint=Linear(
                    arrays["joint"].astype(np.float32) * arrays["joint_scale"],
                    arrays["embedding"].astype(np.float32),
                    arrays["joint_bias"],
                    float(about["temperature"]["joint"]),
                ),
                about=about,
            )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise HeadError(f"the head {path} cannot be read: {error}; reinstall the package") from error
    shapes = (head.idf.shape, head.ngram.ngrams.shape, head.joint.ngrams.shape)
    n = len(labels)
    if shapes != ((N_BUCKETS,), (N_BUCKETS, n), (N_BUCKETS, n)):
        raise HeadError(f"the head {path} has arrays of shapes {shapes}, expected {N_BUCKETS} buckets and {n} labels")
    return head


def with_domains(
    head: Head,
    examples: Mapping[str, Sequence[str]],
    embed: Any | None,
) -> Head:
    """The head with one more label for each key of `examples`, fitted on its texts against the shipped prompts.

    embed: texts -> (n, 384) unit rows; None fits on n-grams alone. Takes a second or a few (the prompts are embedded).
    Labels are rows of their own, so the shipped ones stay as they are.
    """
    from scipy import sparse
    from sklearn.svm import LinearSVC

    negatives = [text for _, text in shipped_prompts()]
    from_prompts = _rows(head, negatives, embed)
    ngram, joint = head.ngram, head.joint
    for texts in examples.values():
        rows = sparse.vstack([from_prompts, _rows(head, texts, embed)]).tocsr()
        wanted = np.r_[np.zeros(len(negatives)), np.ones(len(texts))]
        plain = LinearSVC(C=0.5, class_weight="balanced").fit(rows[:, :N_BUCKETS], wanted)
        both = LinearSVC(C=0.5, class_weight="balanced").fit(rows, wanted)
        ngram = _append(ngram, plain.coef_[0], plain.intercept_[0])
        joint = _append(joint, both.coef_[0], both.intercept_[0])
    return replace(head, labels=(*head.labels, *examples), ngram=ngram, joint=joint)


def _rows(head: Head, texts: Sequence[str], embed: Any | None) -> Any:
    """Sparse features (n, N_BUCKETS + 384): the n-gram vector, then the scaled embedding (zeros without an encoder)."""
    from scipy import sparse

    vectors = [head.vector(text) for text in texts]
    starts = np.cumsum([0, *(len(vector.index) for vector in vectors)])
    ngrams = sparse.csr_matrix(
        (np.concatenate([v.values for v in vectors]), np.concatenate([v.index for v in vectors]), starts),
        shape=(len(texts), N_BUCKETS),
    )
    embeddings = embed(texts) if embed is not None else np.zeros((len(texts), DIMENSIONS), np.float32)
    return sparse.hstack([ngrams, sparse.csr_matrix(EMBEDDING_SCALE * embeddings)]).tocsr()


def _append(linear: Linear, weights: NDArray[Any], bias: float) -> Linear:
    """The classifier with one more label; weights: N_BUCKETS, or N_BUCKETS + 384 of them."""
    embedding = linear.embedding
    if embedding is not None:
        scaled = (EMBEDDING_SCALE * weights[N_BUCKETS:, None]).astype(np.float32)
        embedding = np.hstack([embedding, scaled])
    return replace(
        linear,
        ngrams=np.hstack([linear.ngrams, weights[:N_BUCKETS, None].astype(np.float32)]),
        embedding=embedding,
        bias=np.append(linear.bias, np.float32(bias)),
    )


def _quantise(weights: Floats) -> tuple[NDArray[np.int8], Floats]:
    scale = np.abs(weights).max(axis=0) / 127
    scale[scale == 0] = 1
    return np.round(weights / scale).astype(np.int8), scale.astype(np.float32)
