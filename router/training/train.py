"""Fit the head (linear SVMs and a hidden layer) and measure it by cross-validation, for `coe train-router`.

Questions are JSON lines with `label`, `text` and, where known, `source`. The prompts in router/prompts are added, with
more weight a prompt, since they are few and look like what people ask. Each text is learned twice, the second time with
typing errors. Figures are out of fold: every text is judged by a head that saw neither it nor a near duplicate of it.
Only coefficients are written, never texts.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..choose import SURE
from ..domains import DOMAINS
from ..encoder import Encodes, QuantisedEncoder
from ..features import N_BUCKETS, N_WORDS, PARTS_WEIGHT, bucket_counts, mistyped, scrub, tokens
from ..head import EMBEDDING_SCALE, Floats, Head, Linear, softmax
from ..head_file import save_head
from ..training_prompts import shipped_prompts
from .embeddings import KeptEmbeddings
from .hidden import UNITS, fit_hidden
from .measures import report
from .questions import LabelledQuestion, QuestionsError, read_questions

PENALTY = 1.0  # LinearSVC's C
TOLERANCE = 1e-2  # tighter ones take longer and change no figure
MOST_PASSES = 60
PROMPT_WEIGHT = 10.0  # of one shipped prompt beside one question of the data
# What each classifier's scores count for with the encoder. Only the ratios decide; the size keeps the temperature that
# a single classifier has, so that the margins to which a roster's examples are fitted mean as much.
PLAIN_SHARE, JOINT_SHARE, HIDDEN_SHARE = 0.33, 0.33, 0.22
TYPED_WEIGHT = 0.5  # of a text's copy with typing errors beside the text
BALANCE = 0.3  # 0: labels count by their size in the data; 1: all labels count the same
TEMPERATURE_PROMPT_WEIGHT = 3.0
FOLDS = 5
PROMPTS = "prompts"
CLEAN, TYPED, TYPED_OTHERWISE = 0, 1, 2  # seeds of typing errors; none for the first

Array = NDArray[Any]


@dataclass(frozen=True)
class Features:
    """Of n texts: bucket counts, sparse (n, N_BUCKETS), and embeddings (n, DIMENSIONS)."""

    counts: Any
    embeddings: Floats


@dataclass(frozen=True)
class TrainingSet:
    """Labelled texts as features. `versions` holds the texts as they are and with typing errors, by seed."""

    names: tuple[str, ...]
    labels: Array  # (n,), indices into names
    sources: Array  # (n,), str
    groups: Array  # (n,), near duplicates have the same number
    versions: dict[int, Features]

    def weights(self, rows: Array) -> Array:
        """Sample weight of each of the rows."""
        sizes = np.maximum(np.bincount(self.labels[rows], minlength=len(self.names)), 1)
        by_label = (sizes.mean() / sizes) ** BALANCE
        return np.asarray(by_label[self.labels[rows]] * np.where(self.sources[rows] == PROMPTS, PROMPT_WEIGHT, 1.0))


def training_set(
    questions: Sequence[LabelledQuestion],
    embed: Callable[[Sequence[str]], Floats],
    *,
    names: Sequence[str] = DOMAINS,
    prompts: bool = True,
    versions: Sequence[int] = (CLEAN, TYPED),
) -> TrainingSet:
    """Features of the questions and of the shipped prompts. A text that stands there twice counts once.

    names: the labels, three or more (of two, scikit-learn fits one row of weights only).
    """
    rows = list({_normal(question.text): question for question in questions}.values())
    if prompts:
        rows += [LabelledQuestion(label, text, PROMPTS) for label, text in shipped_prompts()]
    texts = [row.text for row in rows]
    missing = set(names) - {row.label for row in rows}
    if missing:
        raise QuestionsError(f"no text is labelled {', '.join(sorted(missing))}: a head needs some of each label")
    return TrainingSet(
        names=tuple(names),
        labels=np.array([list(names).index(row.label) for row in rows]),
        sources=np.array([row.source for row in rows]),
        groups=near_duplicates(texts),
        versions={seed: features([mistyped(t, seed) if seed else t for t in texts], embed) for seed in versions},
    )


def features(texts: Sequence[str], embed: Callable[[Sequence[str]], Floats]) -> Features:
    """Bucket counts and embeddings of texts."""
    from scipy import sparse

    indices, values, starts = [], [], [0]
    for text in texts:
        index, counts = bucket_counts(scrub(text))
        indices.append(index)
        values.append(counts)
        starts.append(starts[-1] + len(index))
    counted = sparse.csr_matrix((np.concatenate(values), np.concatenate(indices), starts), (len(texts), N_BUCKETS))
    return Features(counted, embed(texts))


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def near_duplicates(texts: Sequence[str]) -> Array:
    """A number for each text, (n,); texts that share nearly all of their runs of three words have the same.

    Numbers in a text do not count. Of the hashes of a text's runs the three smallest are kept, and texts with the same
    three belong together: of two texts with nine tenths of their runs in common, that are three pairs of four.
    """
    first_with: dict[tuple[int, ...], int] = {}
    rows = []
    for row, text in enumerate(texts):
        found = tokens(text)
        runs = {" ".join(found[i : i + 3]) for i in range(max(len(found) - 2, 1))}
        key = tuple(sorted(zlib.crc32(run.encode("utf-8", "replace")) for run in runs)[:3])
        rows.append(first_with.setdefault(key, row))
    return np.array(rows)


def inverse_document_frequency(counts: Any) -> Floats:
    """ln((1 + n) / (1 + df)) + 1 of each bucket, 0 where fewer than two texts have it."""
    frequency = np.asarray((counts > 0).sum(axis=0)).ravel()
    idf = np.log((1 + counts.shape[0]) / (1 + frequency)) + 1
    return np.where(frequency >= 2, idf, 0).astype(np.float16).astype(np.float32)


def ngram_matrix(counts: Any, idf: Floats) -> Any:
    """The sparse counterpart of Head.vector: weighted by idf, words and parts of words scaled to their lengths."""
    from scipy import sparse

    blocks = []
    for block, weight in ((slice(0, N_WORDS), 1.0), (slice(N_WORDS, N_BUCKETS), PARTS_WEIGHT)):
        weighted = counts[:, block].multiply(idf[block]).tocsr()
        length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        length[length == 0] = 1
        blocks.append(sparse.diags(weight / length) @ weighted)
    return sparse.hstack(blocks).tocsr()


def fit(data: TrainingSet, rows: Array) -> Head:
    """A head fitted on the given rows, both temperatures 1.

    What it serves with an embedding is a weighted sum of three classifiers: n-grams alone, both kinds of features, and
    the hidden layer. They err on different texts, and the sum of linear ones costs no more than one of them.
    """
    from scipy import sparse
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    idf = inverse_document_frequency(data.versions[CLEAN].counts[rows])
    seeds = [seed for seed in (CLEAN, TYPED) if seed in data.versions]
    ngrams = sparse.vstack([ngram_matrix(data.versions[seed].counts[rows], idf) for seed in seeds]).tocsr()
    embeddings = np.vstack([data.versions[seed].embeddings[rows] for seed in seeds])
    both = sparse.hstack([ngrams, sparse.csr_matrix(embeddings * EMBEDDING_SCALE)]).tocsr()
    labels = np.tile(data.labels[rows], len(seeds))
    once = data.weights(rows)
    weights = np.concatenate([once * (1.0 if seed == CLEAN else TYPED_WEIGHT) for seed in seeds])

    def fitted(matrix: Any) -> tuple[Floats, Floats]:
        model = LinearSVC(C=PENALTY, tol=TOLERANCE, max_iter=MOST_PASSES, random_state=0)
        with warnings.catch_warnings():
            # liblinear warns where MOST_PASSES end before TOLERANCE is reached, in every fold: more change no figure.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(matrix, labels, sample_weight=weights)
        return model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)

    plain, plain_bias = fitted(ngrams)
    joint, joint_bias = fitted(both)
    by_embedding = fit_hidden(embeddings, labels, weights, len(data.names))
    hidden = by_embedding.hidden
    return Head(
        labels=data.names,
        idf=idf,
        ngram=Linear(plain, None, plain_bias, 1.0),
        joint=Linear(
            PLAIN_SHARE * plain + JOINT_SHARE * joint[:N_BUCKETS],
            JOINT_SHARE * EMBEDDING_SCALE * joint[N_BUCKETS:] + HIDDEN_SHARE * by_embedding.linear,
            PLAIN_SHARE * plain_bias + JOINT_SHARE * joint_bias + HIDDEN_SHARE * by_embedding.bias,
            1.0,
            replace(hidden, outward=HIDDEN_SHARE * hidden.outward),
        ),
        about={},
    )


def scores(head: Head, features: Features, rows: Array) -> tuple[Array, Array]:
    """Unscaled scores (n, n_labels) of the n-gram classifier and of the joint one."""
    assert head.joint.embedding is not None
    assert head.joint.hidden is not None
    ngrams = ngram_matrix(features.counts[rows], head.idf)
    plain = ngrams @ head.ngram.ngrams + head.ngram.bias
    embeddings = features.embeddings[rows]
    joint = ngrams @ head.joint.ngrams + embeddings @ head.joint.embedding + head.joint.bias
    joint = joint + head.joint.hidden.scores(embeddings)
    return np.asarray(plain), np.asarray(joint)


@dataclass(frozen=True)
class OutOfFold:
    """Scores of every row by heads that saw neither it nor its near duplicates, (n, n_labels) each, by seed."""

    folds: Array  # (n,), the fold of each row
    plain: dict[int, Array]
    joint: dict[int, Array]


def out_of_fold(data: TrainingSet, progress: Callable[[str], None] = lambda text: None) -> OutOfFold:
    """Cross-validate over FOLDS folds; groups stay together, and each fold has its share of each label."""
    from sklearn.model_selection import StratifiedGroupKFold

    n = len(data.labels)
    folds = np.zeros(n, int)
    plain = {seed: np.zeros((n, len(data.names))) for seed in data.versions if seed != TYPED}
    joint = {seed: np.zeros((n, len(data.names))) for seed in plain}
    strata = np.where(data.sources == PROMPTS, data.labels + len(data.names), data.labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # then it is not in every fold
        split = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(strata, strata, data.groups))
    for fold, (train, test) in enumerate(split):
        progress(f"fold {fold + 1} of {FOLDS}")
        head = fit(data, train)
        folds[test] = fold
        for seed in plain:
            plain[seed][test], joint[seed][test] = scores(head, data.versions[seed], test)
    return OutOfFold(folds, plain, joint)


def fit_temperature(unscaled: Array, labels: Array, weights: Array) -> float:
    """The temperature of least weighted cross-entropy."""
    from scipy.optimize import minimize_scalar

    def loss(temperature: float) -> float:
        chosen = softmax(unscaled / temperature)[np.arange(len(labels)), labels]
        return float(-np.average(np.log(chosen + 1e-12), weights=weights))

    return float(minimize_scalar(loss, bounds=(0.02, 10), method="bounded").x)


def temperature_weights(data: TrainingSet) -> Array:
    """How much each row counts where temperatures are fitted."""
    return np.where(data.sources == PROMPTS, TEMPERATURE_PROMPT_WEIGHT, 1.0)


def calibrated(unscaled: Array, data: TrainingSet, folds: Array, to_scale: Array | None = None) -> Array:
    """Probabilities of every row, at the temperature that fits the other folds.

    to_scale: other scores of the same rows, to be scaled by those temperatures.
    """
    weights = temperature_weights(data)
    found = np.zeros(unscaled.shape)
    for fold in range(int(folds.max()) + 1):
        others, mine = folds != fold, folds == fold
        temperature = fit_temperature(unscaled[others], data.labels[others], weights[others])
        found[mine] = softmax((unscaled if to_scale is None else to_scale)[mine] / temperature)
    return found


def in_turn(plain: Array, joint: Array, sure: float = SURE) -> tuple[Array, Array]:
    """A cascade, as served: the n-grams' probabilities where those are sure, the joint ones elsewhere; and where."""
    is_sure = plain.max(axis=1) >= sure
    return np.where(is_sure[:, None], plain, joint), is_sure


def groups_of(data: TrainingSet) -> dict[str, Array]:
    """The parts of a training set that figures are given for: name -> which rows."""
    prompts = data.sources == PROMPTS
    pro = np.char.startswith(data.sources.astype(str), "mmlu_pro")
    return {name: rows for name, rows in (("data", ~prompts), ("mmlu_pro", pro), ("prompts", prompts)) if rows.any()}


def held_out_source(data: TrainingSet, source: str) -> tuple[int, float]:
    """Number of texts of a source (or of a family of sources, by prefix), and joint accuracy trained without them."""
    held = np.char.startswith(data.sources.astype(str), source)
    if not held.any():
        raise QuestionsError(f"no text has a source that begins with {source!r}")
    missing = set(range(len(data.names))) - set(data.labels[~held].tolist())
    if missing:
        raise QuestionsError(f"without {source!r} no text is labelled {', '.join(data.names[i] for i in missing)}")
    head = fit(data, np.flatnonzero(~held))
    _, joint = scores(head, data.versions[CLEAN], np.flatnonzero(held))
    return int(held.sum()), float((joint.argmax(axis=1) == data.labels[held]).mean())


def train(
    path: Path,
    output: Path,
    encoder: Encodes,
    *,
    embeddings: Path | None = None,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fit a head on the questions of a file, write it to `output`, and return its out-of-fold figures.

    The licences of the sources are taken over from the head that `output` holds already, if it is of the same file.
    Raises QuestionsError for a file that cannot be used.
    """
    own = "write one of these; a domain of your own is taught by `examples` in a roster"
    questions = read_questions(path, remedy=own)
    progress(f"{len(questions)} questions, to be embedded together with their mistyped copies")
    data = training_set(questions, KeptEmbeddings(encoder, embeddings))
    found = out_of_fold(data, progress)
    plain, joint = found.plain[CLEAN], found.joint[CLEAN]
    p_plain, p_joint = calibrated(plain, data, found.folds), calibrated(joint, data, found.folds)
    cascade, is_sure = in_turn(p_plain, p_joint)
    figures = {
        name: {
            "ngrams": report(p_plain[rows], data.labels[rows]),
            "joint": report(p_joint[rows], data.labels[rows]),
            "in_turn": report(cascade[rows], data.labels[rows]),
            "without_encoder": round(float(is_sure[rows].mean()), 4),
        }
        for name, rows in groups_of(data).items()
    }
    progress("the head itself")
    head = fit(data, np.arange(len(data.labels)))
    prompts = data.versions[CLEAN].embeddings[data.sources == PROMPTS]
    weights = temperature_weights(data)
    data_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    about = {
        "made_by": "coe train-router",
        "classifier": (
            f"LinearSVC, C {PENALTY}, prompts weighted {PROMPT_WEIGHT}, label balance {BALANCE}, "
            f"copies with typing errors weighted {TYPED_WEIGHT}; with the encoder the sum of n-grams alone, both, and "
            f"a hidden layer of {UNITS} units over the embedding, weighted {PLAIN_SHARE}, {JOINT_SHARE}, {HIDDEN_SHARE}"
        ),
        "temperatures": f"least cross-entropy over {FOLDS}-fold out-of-fold scores",
        "encoder": "int8" if isinstance(encoder, QuantisedEncoder) else "torch",
        "encoder_weights": encoder.weights,
        "data_sha256": data_sha256,
        "n_questions": len(data.labels) - len(prompts),
        "n_prompts": len(prompts),
        "sources": _licences(output, data_sha256),
        "out_of_fold": figures,
    }
    save_head(
        replace(
            head,
            ngram=replace(head.ngram, temperature=fit_temperature(plain, data.labels, weights)),
            joint=replace(head.joint, temperature=fit_temperature(joint, data.labels, weights)),
            about=about,
            prompts=prompts,
        ),
        output,
    )
    return figures


def _licences(output: Path, data_sha256: str) -> dict[str, str]:
    """Sources and licences as the description beside the output has them, where it is of the same data."""
    try:
        found = json.loads(output.with_suffix(".json").read_text("utf-8"))
        return dict(found["sources"]) if found["data_sha256"] == data_sha256 else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
