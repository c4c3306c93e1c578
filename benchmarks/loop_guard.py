"""False alarms and recall of the loop guard, beside the detector it grew from, on the text this machine has.

    python benchmarks/loop_guard.py [--model-texts FILE.jsonl]

False alarms: Python, Markdown, reStructuredText, licences, JSON and C headers found through sysconfig and /usr, and
structured and repetitive text that is generated here. Recall: loops built from that real text, alone and after 3,000
good characters, and what small models say at several temperatures. These answers take an hour of two cores; they are
kept in the file, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sysconfig
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

from _bench import smollm2
from _honest_texts import FRESH, KINDS
from _honest_texts import texts as texts_of
from _model_texts import ModelText, hear_college, hear_smollm2, read_texts

from coe.engine.generate.loops import LoopGuard

MAX_CHARS = 60_000  # of one file; an answer of a 16k context is no longer
LOOP_CHARS = 12_000  # how long a loop goes on before it counts as missed
GOOD_CHARS = 3_000
HONEST = {"honest repetition": KINDS, "honest repetition, fresh kinds": FRESH}

Detector = Callable[[str], int | None]  # characters until it fires, None if it never does


def guard(text: str, *, asked: str | None = None) -> int | None:
    """Ours."""
    loop = LoopGuard(asked=asked).feed(text)
    return loop.at_chars if loop else None


def original(text: str) -> int | None:
    """At least 600 characters and 60 words, then distinct 5-grams / all 5-grams of the last 220 words < 0.30, or any
    5-gram 12 times in them; looked at after every 20 words."""
    words = text.split()
    ends, at = [], 0
    for word in words:
        at = text.index(word, at) + len(word)
        ends.append(at)
    for n in range(60, len(words) + 1, 20):
        if ends[n - 1] < 600:
            continue
        window = words[max(0, n - 220) : n]
        grams = Counter(zip(*(window[i:] for i in range(5)), strict=False))
        if len(grams) < 0.30 * grams.total() or max(grams.values()) >= 12:
            return ends[n - 1]
    return None


def sample(files: Iterable[Path], n: int, rng: random.Random) -> list[str]:
    """The first characters of n files that hold text and are long enough for a detector to speak."""
    paths = sorted(set(files))
    rng.shuffle(paths)
    texts: list[str] = []
    for path in paths:
        if len(texts) == n:
            break
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(MAX_CHARS)
        except (OSError, UnicodeDecodeError):
            continue
        if len(text) >= 600:
            texts.append(text)
    return texts


def real_text(rng: random.Random, n: int) -> dict[str, list[str]]:
    packages, stdlib = (Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib"))
    share = Path("/usr/share")

    def named(*suffixes: str, under: Sequence[Path]) -> Iterator[Path]:
        return (path for root in under for path in root.rglob("*") if path.suffix in suffixes and path.is_file())

    def licences() -> Iterator[Path]:
        for root in (packages, share):
            for path in root.rglob("*"):
                if (path.name.lower().startswith(("licen", "copying")) or path.name == "copyright") and path.is_file():
                    yield path

    return {
        "Python, standard library": sample(named(".py", under=[stdlib]), n, rng),
        "Python, site-packages": sample(named(".py", under=[packages]), n, rng),
        "Markdown": sample(named(".md", under=[share, packages]), n, rng),
        "reStructuredText": sample(named(".rst", under=[share, packages]), n, rng),
        "licences": sample(licences(), n, rng),
        "JSON": sample(named(".json", under=[share, packages]), n, rng),
        "C headers": sample(named(".h", ".hpp", under=[packages, Path("/usr/include")]), n, rng),
    }


def generated_text(rng: random.Random) -> dict[str, list[str]]:
    """Text that repeats itself for a reason, in sizes that an answer may well have."""
    sizes = (10, 20, 40)

    def table(rows: int, cells: Callable[[int], Sequence[object]]) -> str:
        head = "| " + " | ".join(f"column {i}" for i in range(len(cells(0)))) + " |\n"
        rule = "|---" * len(cells(0)) + "|\n"
        return head + rule + "".join("| " + " | ".join(map(str, cells(row))) + " |\n" for row in range(rows))

    equal = [table(rows, lambda _: ["0"] * 6) for rows in sizes]
    named = [table(rows * 3, lambda row: [f"case {row}", "passed", "passed", "not measured"]) for rows in sizes]
    matrices = ["\n".join(" ".join("0" for _ in range(n)) for _ in range(n)) for n in (9, 16, 32)]
    records = [{"id": i, "name": "unknown", "active": False, "score": rng.random()} for i in range(40)]
    test = (
        "def test_case_{0}():\n    result = compute({0})\n    assert result is not None\n    assert result == {1}\n\n"
    )
    verse = "O{0} my love is like a {1} that is newly sprung in June,\nand we will sing it, sing it, all the day.\n\n"
    return {
        "tables": equal + named,
        "matrices": matrices + [f"```\n{matrix}\n```" for matrix in matrices],
        "JSON arrays": [json.dumps([0] * 256), json.dumps(records), json.dumps(records, indent=2)],
        "unit tests": ["```python\n" + "".join(test.format(i, i * i) for i in range(rows)) + "```" for rows in sizes],
        "lists": [
            *("".join(f"- item {i}: the same words in every line of it\n" for i in range(rows)) for rows in sizes),
            *("".join(f"{i}. Preheat the oven and wait for a while.\n" for i in range(rows)) for rows in sizes),
        ],
        "multiplication": ["".join(f"{a} x {b} = {a * b}\n" for a in range(n) for b in range(n)) for n in (10, 12, 20)],
        "verse with refrain": ["".join(verse.format("h" * i, "rose lily bird song"[i % 15 :]) for i in range(1, 9))],
    }


def loops(rng: random.Random, texts: dict[str, list[str]], n: int) -> dict[str, list[tuple[str, str]]]:
    """(good text, loop) of each kind, built from the prose and the code given."""
    prose = " ".join(" ".join(text.split()) for text in texts["licences"][:40])
    sentences = [s.strip() + "." for s in prose.split(". ") if s.isascii() and 8 <= len(s.split()) <= 30]
    code = [text for text in texts["Python, standard library"] if text.count("\n") > 120]
    good = [text for text in texts["licences"] if guard(text) is None and len(text) > GOOD_CHARS]

    def turns(make: Callable[[int], str]) -> str:
        text = ""
        for i in count(1):
            text += make(i)
            if len(text) >= LOOP_CHARS:
                return text
        raise AssertionError

    def paragraph(words: int) -> str:
        text = ""
        while len(text.split()) < words:
            text += rng.choice(sentences) + " "
        return text

    def lines(k: int) -> str:
        all_lines = [line for line in rng.choice(code).split("\n") if line.strip()]
        start = rng.randrange(len(all_lines) - k)
        return "\n".join(all_lines[start : start + k]) + "\n"

    def word() -> str:
        return rng.choice([w for w in rng.choice(sentences).split() if len(w) > 2])

    def kinds() -> Iterator[tuple[str, str]]:
        s, p, q, w, c, f = rng.choice(sentences), paragraph(40), paragraph(110), word(), lines(1), lines(25)
        garbage = "".join(chr(rng.randrange(33, 1200)) for _ in range(rng.randrange(2, 12)))
        yield "one word", turns(lambda _: w + " ")
        yield "sentence", turns(lambda _: s + " ")
        yield "paragraph, 40 words", turns(lambda _: p + "\n\n")
        yield "paragraph, 110 words", turns(lambda _: q + "\n\n")
        yield "40 words, counting", turns(lambda i: f"Attempt {i}: {p}\n\n")
        yield "110 words, counting", turns(lambda i: f"Attempt {i}: {q}\n\n")
        yield "token garbage", turns(lambda _: garbage)
        yield "one character", turns(lambda _: garbage[0])
        yield "blank lines", turns(lambda _: " \n")
        yield "list, equal items", turns(lambda _: f"- {s}\n")
        yield "list, numbered", turns(lambda i: f"{i}. {s}\n")
        yield "table row", turns(lambda _: f"| {w} | {len(s)} | {len(p)} |\n")
        yield "code line", "```python\n" + turns(lambda _: c)
        yield "code, 25 lines", "```python\n" + turns(lambda _: f)

    found: dict[str, list[tuple[str, str]]] = {}
    for _ in range(n):
        for name, loop in kinds():
            found.setdefault(name, []).append(("", loop))
            start = rng.choice(good)
            found[name].append((start[:GOOD_CHARS] + "\n\n", loop))
    return found


def share(hits: int, of: int) -> str:
    return f"{hits}/{of}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300, help="files of each kind (default 300)")
    parser.add_argument("--loops", type=int, default=20, help="loops of each kind, each twice (default 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--honest", type=int, default=4, help="honest texts of each kind (default 4)")
    parser.add_argument(
        "--model-texts", type=Path, help="let SmolLM2 and the demo's models write into this file, and judge"
    )
    parser.add_argument("--tokens", type=int, default=1100, help="of each of these answers (default 1100)")
    options = parser.parse_args()
    rng = random.Random(options.seed)

    print(
        f"{'text without loops':26} {'texts':>6} {'characters':>11} {'original':>9} {'ours':>5} {'us/1000 chars':>14}"
    )
    real = real_text(rng, options.files)
    honest = {
        name: [t for kind in kinds for t in texts_of(kind, range(options.honest))] for name, kinds in HONEST.items()
    }
    for kind, texts in [*real.items(), *generated_text(rng).items(), *honest.items()]:
        started = time.perf_counter()
        ours = sum(guard(text) is not None for text in texts)
        chars = sum(map(len, texts))
        cost = (time.perf_counter() - started) / max(1, chars) * 1e9
        before = sum(original(text) is not None for text in texts)
        print(f"{kind:26} {len(texts):6} {chars:11,} {before:9} {ours:5} {cost:14.0f}")

    print(f"\n{'loops':26} {'original':>9} {'ours':>9}   characters of the loop until caught: original, ours (median)")
    for kind, cases in loops(rng, real, options.loops).items() if options.loops else ():
        row = []
        for detect in (original, guard):
            spent = []
            for start, loop in cases:
                at = detect(start + loop)
                if at is not None and at > len(start):
                    spent.append(at - len(start))
            row.append((share(len(spent), len(cases)), f"{statistics.median(spent):,.0f}" if spent else "-"))
        print(f"{kind:26} {row[0][0]:>9} {row[1][0]:>9}   {row[0][1]:>7} {row[1][1]:>7}")

    if options.model_texts is not None:
        model_rows(options.model_texts, options.tokens)


def model_rows(path: Path, tokens: int) -> None:
    """What SmolLM2 and the demo's specialists write without an end, by temperature and repeat penalty."""
    hear_college(path, tokens)
    hear_smollm2(smollm2(), path, tokens)
    rows: dict[tuple[str, float, float], list[ModelText]] = {}
    for text in read_texts(path):
        rows.setdefault((text.model.split()[0], text.temperature, text.penalty), []).append(text)
    print(
        f"\n{'model, temperature, penalty':32} {'loops':>6} {'original':>9} {'ours':>6} {'others ended':>14}   median"
    )
    for (model, temperature, penalty), texts_ in sorted(rows.items()):
        looping = [text for text in texts_ if is_loop(text)]
        others = [text for text in texts_ if not is_loop(text)]
        first = [original(text.text) for text in looping]
        ours = [guard(text.text, asked=text.prompt) for text in looping]
        ended = sum(guard(text.text, asked=text.prompt) is not None for text in others)
        medians = [
            f"{statistics.median(hits):,.0f}" if (hits := [at for at in row if at]) else "-" for row in (first, ours)
        ]
        name = f"{model} {temperature:g} {penalty:g}"
        counts = (sum(at is not None for at in row) for row in (first, ours))
        row = f"{name:32} {len(looping):6} {next(counts):9} {next(counts):6} {ended:7}/{len(others):<6}"
        print(f"{row}   {', '.join(medians)}")


def is_loop(text: ModelText) -> bool:
    """A witness of another kind than the detectors: the less new the end of a text says, the smaller it packs."""
    end = text.text[-1500:].encode()
    return not text.ended and len(text.text) >= 800 and len(zlib.compress(end, 9)) < 0.2 * len(end)


if __name__ == "__main__":
    main()
