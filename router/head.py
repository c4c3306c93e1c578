"""The fitted head: from a text's features to a calibrated probability for each domain.

A head is two classifiers over the same labels: one reads n-grams alone, one reads n-grams and the sentence embedding.
Both are linear, one against the rest for each label; the second adds the scores of a hidden layer over the embedding. A
softmax with a fitted temperature makes probabilities of them. It is stored as plain arrays (head.npz, loaded with
pickle refused) and a description (head.json). The embeddings of the shipped prompts lie beside the coefficients:
against them a roster's own examples are fitted.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encoder import DIMENSIONS
from .errors import RouterError
from .features import N_BUCKETS, N_WORDS, PARTS_WEIGHT, bucket_counts, scrub
from .training_prompts import prompts_digest, shipped_prompts

Floats = NDArray[np.float32]

SHIPPED = Path(__file__).parent / "head.npz"
EMBEDDING_SCALE = 2.0  # weight of each half of the embedding beside the words' unit vector
EXAMPLE_RIDGE = 0.1  # how little is left of an example's error, beside 1 for a shipped prompt
WANTED_EXAMPLES = 10
HIDDEN_MARGIN = 1.5  # wanted of an example's scores: the hidden layer's own, which no step moves, add to other labels'
REFERENCE = 60  # shipped prompts of a domain that examples are fitted against
SHOWN = 3  # examples that a problem names

# The arrays of a head's file. A size with a name is the same wherever the name stands.
SHAPES: Mapping[str, tuple[int | str, ...]] = {
    "idf": (N_BUCKETS,),
    "ngram": (N_BUCKETS, "labels"),
    "ngram_scale": ("labels",),
    "ngram_bias": ("labels",),
    "joint": (N_BUCKETS, "labels"),
    "joint_scale": ("labels",),
    "joint_bias": ("labels",),
    "embedding": (DIMENSIONS, "labels"),
    "prompts": ("prompts", DIMENSIONS),
    "prompts_scale": (DIMENSIONS,),
}
HIDDEN_SHAPES: Mapping[str, tuple[int | str, ...]] = {  # a head may be without
    "inward": (DIMENSIONS, "units"),
    "inward_scale": ("units",),
    "inward_bias": ("units",),
    "outward": ("units", "labels"),
}

_WORD = re.compile(r"\w+")


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

    def probabilities(self, vector: TextVector, embedding: Floats | None) -> Floats:
        """Softmax over the labels, temperature applied. Sums to 1."""
        scores = self.bias + _weighed(vector.values, self.ngrams[vector.index])
        if self.embedding is not None and embedding is not None:
            scores = scores + _weighed(embedding, self.embedding)
            if self.hidden is not None:
                scores = scores + self.hidden.scores(embedding)
        return softmax(scores / np.float32(self.temperature))


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


def save_head(head: Head, path: Path) -> None:
    """Write `path` (npz, n-gram weights as int8 with one scale a label) and its description beside it (json)."""
    if head.joint.embedding is None:
        raise HeadError("a head needs embedding weights")
    hidden = head.joint.hidden
    units: dict[str, Any] = {} if hidden is None else _hidden_arrays(hidden)
    prompts = head.prompts if head.prompts is not None else np.zeros((0, DIMENSIONS), np.float32)
    quantised_prompts, prompts_scale = _quantise(prompts)
    ngram, ngram_scale = _quantise(head.ngram.ngrams)
    joint, joint_scale = _quantise(head.joint.ngrams)
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        np.savez_compressed(
            file,
            idf=head.idf.astype(np.float16),
            ngram=ngram,
            ngram_scale=ngram_scale,
            ngram_bias=head.ngram.bias,
            joint=joint,
            joint_scale=joint_scale,
            joint_bias=head.joint.bias,
            embedding=head.joint.embedding.astype(np.float16),
            prompts=quantised_prompts,
            prompts_scale=prompts_scale,
            **units,
        )
    digest = hashlib.sha256(beside.read_bytes()).hexdigest()
    beside.replace(path)
    about = {
        **head.about,
        "labels": list(head.labels),
        "temperature": {"ngram": head.ngram.temperature, "joint": head.joint.temperature},
        "sha256": digest,
        "prompts_sha256": prompts_digest(),
    }
    beside = path.with_name(f".{path.stem}.json.tmp")
    beside.write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    beside.replace(path.with_suffix(".json"))


def load_head(path: Path = SHIPPED) -> Head:
    """Read a head that `save_head` wrote.

    Raises HeadError, with the remedy, when a file is missing or damaged, or is not what this version reads.
    """
    remedy = "reinstall the package"
    if path.resolve() != SHIPPED.resolve():
        remedy = f"make it again with `coe train-router QUESTIONS.jsonl -o {path}`"
    description = path.with_suffix(".json")
    try:
        about = json.loads(description.read_text("utf-8"))
        written = path.read_bytes()
        found = hashlib.sha256(written).hexdigest()
        if found != about["sha256"]:
            raise ValueError(f"it has SHA-256 {found}, its description {description.name} says {about['sha256']}")
        if not zipfile.is_zipfile(io.BytesIO(written)):  # of which numpy says that it could be loaded unsafely
            raise ValueError("it is no whole .npz archive")
        with np.load(io.BytesIO(written), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        labels = _labels(about)
        _check_shapes(arrays, len(labels))
        prompts = arrays["prompts"].astype(np.float32) * arrays["prompts_scale"]
        same_prompts = len(prompts) == len(shipped_prompts()) and about.get("prompts_sha256") == prompts_digest()
        return Head(
            labels=labels,
            idf=arrays["idf"].astype(np.float32),
            ngram=Linear(
                arrays["ngram"].astype(np.float32) * arrays["ngram_scale"],
                None,
                arrays["ngram_bias"].astype(np.float32),
                _temperature(about, "ngram"),
            ),
            joint=Linear(
                arrays["joint"].astype(np.float32) * arrays["joint_scale"],
                arrays["embedding"].astype(np.float32),
                arrays["joint_bias"].astype(np.float32),
                _temperature(about, "joint"),
                _hidden(arrays),
            ),
            about=about,
            prompts=prompts if same_prompts else None,
        )
    except KeyError as error:
        raise HeadError(f"the head {path} cannot be read: {description.name} lacks {error}; {remedy}") from error
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise HeadError(f"the head {path} cannot be read: {error}; {remedy}") from error


def _labels(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels in a head's description. Raises KeyError or ValueError."""
    labels = about["labels"]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"its labels should be a list of names, and are {labels!r}")
    return tuple(labels)


def _temperature(about: Mapping[str, Any], classifier: str) -> float:
    """A classifier's temperature in a head's description. Raises KeyError, TypeError or ValueError."""
    found = float(about["temperature"][classifier])
    if not 0 < found < math.inf:
        raise ValueError(f"its temperatures should be above 0, and one is {found}")
    return found


def _check_shapes(arrays: Mapping[str, NDArray[Any]], n_labels: int) -> None:
    """Raise ValueError unless all arrays of a head are there, in the shapes that this version reads."""
    sizes = {"labels": n_labels}
    has_hidden = any(name in arrays for name in HIDDEN_SHAPES)
    for name, shape in {**SHAPES, **(HIDDEN_SHAPES if has_hidden else {})}.items():
        if name not in arrays:
            raise ValueError(f"its array {name} is missing, another version may have written it")
        found, expected = arrays[name].shape, shape
        if len(found) == len(shape):
            named = zip(shape, found, strict=True)
            expected = tuple(sizes.setdefault(size, n) if isinstance(size, str) else size for size, n in named)
        if found != expected:
            raise ValueError(
                f"its array {name} has the shape {found} in place of {expected}, another version may have written it"
            )


def _hidden_arrays(hidden: Hidden) -> dict[str, NDArray[Any]]:
    inward, scale = _quantise(hidden.inward)
    return {
        "inward": inward,
        "inward_scale": scale,
        "inward_bias": hidden.inward_bias,
        "outward": hidden.outward.astype(np.float16),
    }


def _hidden(arrays: Mapping[str, NDArray[Any]]) -> Hidden | None:
    """The hidden layer of a head's arrays, whose shapes are right; None for a head without one."""
    if "inward" not in arrays:
        return None
    inward = arrays["inward"].astype(np.float32) * arrays["inward_scale"]
    return Hidden(inward, arrays["inward_bias"].astype(np.float32), arrays["outward"].astype(np.float32))


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
    reference, prompts = _reference_prompts()
    texts = [text for of_domain in examples.values() for text in of_domain]
    if not texts:
        return head
    own = np.array([domain for domain, of_domain in examples.items() for _ in of_domain])
    embedded: Floats | None = None
    if embed is not None:
        known = head.prompts[reference] if head.prompts is not None else embed(prompts)
        embedded = np.vstack([known, embed(texts)])
    rows = _rows(head, [*prompts, *texts], embedded)
    plain = rows[:, :N_BUCKETS].tocsr()
    added = tuple(domain for domain in examples if domain not in head.labels)
    ngram, joint = head.ngram, head.joint
    for domain in added:
        wanted = np.r_[np.zeros(len(prompts), bool), own == domain]
        ngram = _append(ngram, *_one_against_all(plain, wanted))
        joint = _append(joint, *_one_against_all(rows, wanted))
    labels = (*head.labels, *added)
    target = own[:, None] == np.array(labels)
    return replace(
        head,
        labels=labels,
        ngram=_corrected(ngram, plain, target),
        joint=_corrected(joint, rows, target) if embedded is not None else joint,
    )


def example_problems(examples: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with a roster's examples, domain -> texts: a sentence each, with what to do about it.

    Texts count as the same when they differ in case, spaces and punctuation only. There is one sentence for all that
    the same domains share, and one for all that a domain repeats.
    """
    seen: dict[str, list[tuple[str, str]]] = {}
    for domain, texts in examples.items():
        for text in texts:
            seen.setdefault(_words_of(text), []).append((domain, text))
    shared: dict[tuple[str, ...], list[str]] = {}
    repeated: dict[str, list[str]] = {}
    for found in seen.values():
        domains = tuple(dict.fromkeys(domain for domain, _ in found))
        if len(domains) > 1:
            shared.setdefault(domains, []).append(found[0][1])
        elif len(found) > 1:
            repeated.setdefault(domains[0], []).append(found[0][1])
    problems = []
    for domains, texts in shared.items():
        named = " and ".join(f'"{domain}"' for domain in domains)
        stand, each = ("stands", "it") if len(texts) == 1 else ("stand", "each")
        problems.append(f"{_named(texts)} {stand} under {named}: keep {each} where it belongs")
    for domain, texts in repeated.items():
        stand, count = ("stands", "counts") if len(texts) == 1 else ("stand", "count")
        problems.append(
            f'{_named(texts)} {stand} more than once under "{domain}" and {count} once: remove the repetitions, '
            "or write others"
        )
    for domain, texts in examples.items():
        different = len({key for key, found in seen.items() if any(d == domain for d, _ in found)})
        if texts and different < WANTED_EXAMPLES:
            problems.append(
                f'the domain "{domain}" has {different} example{"s" * (different != 1)}; with fewer than '
                f"{WANTED_EXAMPLES} it will miss many of its questions and take some that are not its own: write more"
            )
    return problems


def different_examples(texts: Sequence[str]) -> list[str]:
    """The first of those that differ in case, spaces and signs only: they are one example."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(_words_of(text), text)
    return list(found.values())


def _words_of(text: str) -> str:
    return " ".join(_WORD.findall(text.lower())) or text.strip()


def _named(texts: Sequence[str]) -> str:
    """How many examples these are, and the first of them, shortened."""
    shown = [repr(text if len(text) <= 60 else f"{text[:57]}...") for text in texts[:SHOWN]]
    if len(texts) == 1:
        return f"the example {shown[0]}"
    begin = "" if len(texts) <= SHOWN else "such as "
    return f"{len(texts)} examples ({begin}{', '.join(shown)})"


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


def _one_against_all(rows: Any, wanted: NDArray[np.bool_]) -> tuple[NDArray[Any], float]:
    """Weights and bias of a classifier that tells the wanted rows from the others."""
    from sklearn.svm import LinearSVC

    fitted = LinearSVC(C=0.5, class_weight="balanced").fit(rows, wanted)
    return fitted.coef_[0], float(fitted.intercept_[0])


def _corrected(linear: Linear, rows: Any, target: NDArray[np.bool_]) -> Linear:
    """The classifier with the examples (the last rows) on the right side of each label's margin.

    target: (n_examples, n_labels). Kernel ridge regression on what the scores lack: +1 for the example's own label,
    -1 for others (with a hidden layer HIDDEN_MARGIN times as much), and nothing for the rows before them.
    Source: least-squares support vector machines.
    """
    n_prompts = rows.shape[0] - len(target)
    weights = linear.ngrams
    if linear.embedding is not None:
        weights = np.vstack([weights, linear.embedding / np.float32(EMBEDDING_SCALE)])
    embedded = rows[:, N_BUCKETS:].toarray()  # of no columns where n-grams alone are fitted
    scores, margin = rows[n_prompts:] @ weights + linear.bias, 1.0
    if linear.hidden is not None:
        scores = scores + linear.hidden.scores(embedded[n_prompts:] / np.float32(EMBEDDING_SCALE))
        margin = HIDDEN_MARGIN
    lacking = np.where(target, np.maximum(0, margin - scores), np.minimum(0, -margin - scores))
    ngrams = rows[:, :N_BUCKETS]
    kernel = (ngrams @ ngrams.T).toarray() + embedded @ embedded.T  # as sparse ones the latter would take half a second
    kernel[np.diag_indices_from(kernel)] += np.r_[np.ones(n_prompts), np.full(len(target), EXAMPLE_RIDGE)]
    wanted = np.vstack([np.zeros((n_prompts, target.shape[1])), lacking])
    step = (rows.T @ np.linalg.solve(kernel, wanted)).astype(np.float32)
    embedding = linear.embedding
    if embedding is not None:
        embedding = embedding + EMBEDDING_SCALE * step[N_BUCKETS:]
    return replace(linear, ngrams=linear.ngrams + step[:N_BUCKETS], embedding=embedding)


def _rows(head: Head, texts: Sequence[str], embeddings: Floats | None) -> Any:
    """Sparse features (n, N_BUCKETS + DIMENSIONS): the n-gram vector, then the scaled embedding, zeros without one."""
    from scipy import sparse

    vectors = [head.vector(text) for text in texts]
    starts = np.cumsum([0, *(len(vector.index) for vector in vectors)])
    ngrams = sparse.csr_matrix(
        (np.concatenate([v.values for v in vectors]), np.concatenate([v.index for v in vectors]), starts),
        shape=(len(texts), N_BUCKETS),
    )
    if embeddings is None:
        embeddings = np.zeros((len(texts), DIMENSIONS), np.float32)
    return sparse.hstack([ngrams, sparse.csr_matrix(EMBEDDING_SCALE * embeddings)]).tocsr()


def _append(linear: Linear, weights: NDArray[Any], bias: float) -> Linear:
    """The classifier with one more label; weights: N_BUCKETS, or N_BUCKETS + DIMENSIONS of them."""
    embedding, hidden = linear.embedding, linear.hidden
    if hidden is not None:
        hidden = replace(hidden, outward=np.pad(hidden.outward, ((0, 0), (0, 1))))
    if embedding is not None:
        scaled = (EMBEDDING_SCALE * weights[N_BUCKETS:, None]).astype(np.float32)
        embedding = np.hstack([embedding, scaled])
    return replace(
        linear,
        ngrams=np.hstack([linear.ngrams, weights[:N_BUCKETS, None].astype(np.float32)]),
        embedding=embedding,
        bias=np.append(linear.bias, np.float32(bias)),
        hidden=hidden,
    )


def _quantise(weights: Floats) -> tuple[NDArray[np.int8], Floats]:
    scale = np.abs(weights).max(axis=0, initial=0) / 127
    scale[scale == 0] = 1
    return np.round(weights / scale).astype(np.int8), scale.astype(np.float32)
