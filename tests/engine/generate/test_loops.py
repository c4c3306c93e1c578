"""The loop guard ends loops and leaves text alone that repeats itself for a reason."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from _honest_texts import FRESH, KINDS, texts
from hypothesis import given
from hypothesis import strategies as st

from coe.engine.generate.loops import Loop, LoopGuard
from coe.engine.request import Patience

# Running text without a loop, somewhat over 3,000 characters.
GOOD = "\n\n".join(
    f"{who.capitalize()} came to the {place} when the {season} was nearly over. Somebody had heard that {what} "
    f"could be bought there for {price} pieces of silver, and after {days} days on the road nothing else was worth the "
    f"trouble. The keeper laughed: {what} had not been seen near the {place} since the old {season} market burnt down."
    for who, place, season, what, price, days in [
        ("a miller", "harbour", "winter", "good rope", 7, 12),
        ("the smith's daughter", "monastery", "harvest", "blue glass", 30, 4),
        ("an astronomer", "southern gate", "rainy month", "a clear lens", 112, 61),
        ("nobody of importance", "bridge", "long summer", "honey from the hills", 2, 1),
        ("my uncle Theodor", "salt works", "fishing season", "a tame heron", 55, 9),
        ("the last of the cartographers", "observatory", "century", "an honest map", 900, 240),
        ("a choir of eleven", "valley", "festival", "silence", 0, 3),
        ("whoever wrote this", "inn", "evening", "paper", 1, 2),
    ]
)


def first_loop(text: str) -> Loop | None:
    return LoopGuard().feed(text)


def repeated(block: str, chars: int = 9000) -> str:
    return block * (chars // len(block) + 1)


PARAGRAPH = (
    "First we note that the sum of the angles is known, so the third one follows from the other two, and with it the "
    "whole triangle up to its size. Then the size follows from the one side that is given, by the law of sines, which "
    "holds in every triangle. But wait, the side that is given may lie opposite to the smaller angle, and in that case "
    "there are two triangles instead of one. Let me think about this again, from the beginning, and more carefully, "
    "because the answer depends on it, and a mistake here cannot be mended later on.\n\n"
)

LOOPS = {
    "a sentence": "I need to check the result again before I give it. ",
    "a word": "really ",
    "a long paragraph": PARAGRAPH,
    "token garbage": "ðŁ<|x|>",
    "one character": "!",
    "blank lines": "\n",
    "Chinese": "我需要再检查一遍结果。",
    "list items": "- Mix the flour and the sugar in a bowl.\n",
    "table rows": "| Jupiter | 5 | gas giant |\n",
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("before", ["", GOOD + "\n\n"], ids=["alone", "after good text"])
def test_a_loop_is_met(name: str, before: str) -> None:
    loop = first_loop(before + repeated(LOOPS[name]))
    assert loop is not None
    assert loop.at_chars > len(before)
    assert loop.reason
    assert loop.repeated


@pytest.mark.parametrize(
    "line", ["    total = total + values[index]\n", "from typing import Any\n", "}\n", "        // TODO\n"]
)
def test_a_loop_inside_a_code_block_is_met(line: str) -> None:
    assert first_loop("Here it is:\n\n```python\n" + repeated(line)) is not None


def test_a_formula_without_end_is_met() -> None:
    loop = first_loop("We compute 17 * 23 * 41, step by step: " + repeated("17 * 23 * 41 = ", 2000))
    assert loop is not None


def test_a_function_written_over_and_over_is_met() -> None:
    function = "".join(f"    step_{chr(97 + i)} = compute(step, {i * i})\n" for i in range(20))
    assert first_loop("```python\n" + repeated(f"def solve(step):\n{function}\n\n")) is not None


@pytest.mark.parametrize(
    "line",
    [
        "Attempt {0}: " + PARAGRAPH,
        "Step {0}: we add one to the counter and look at the whole result again. ",
        "{0}. Mix the flour and the sugar in a bowl.\n",
        "def test_number_{0}():\n    assert the_answer_is_right({0})\n\n",
    ],
)
def test_a_loop_that_counts_is_met(line: str) -> None:
    assert first_loop("".join(line.format(i) for i in range(1, 20_000 // len(line)))) is not None


def test_a_sentence_loop_is_met_within_a_thousand_characters() -> None:
    loop = first_loop(GOOD + repeated(LOOPS["a sentence"]))
    assert loop is not None
    assert loop.at_chars - len(GOOD) <= 1000


def test_short_text_is_never_a_loop() -> None:
    assert first_loop(repeated("no ", 590)) is None


REASONS = {
    "prose": GOOD,
    "a matrix of zeros": "\n".join(" ".join("0" * 9) for _ in range(9)),
    "a large matrix of zeros": "```\n" + "\n".join(" ".join("0" * 32) for _ in range(32)) + "\n```",
    "a table with equal cells": "| a | b | c |\n|---|---|---|\n" + "| 0 | 0 | 0 |\n" * 80,
    "a table with equal words": "".join(f"| run {i} | passed | passed | not measured |\n" for i in range(150)),
    "hex bytes in one line": ", ".join(["0x00"] * 400),
    "a JSON array of zeros": json.dumps([0] * 300),
    "JSON records": json.dumps(
        [{"id": i, "name": "unknown", "active": False, "score": i * i % 97} for i in range(150)], indent=2
    ),
    "unit tests": "```python\n"
    + "".join(f"def test_square_{i}():\n    assert square({i}) == {i * i}\n\n\n" for i in range(100))
    + "```",
    "a list": "".join(f"- item {i}: the same words as in all the other lines\n" for i in range(60)),
    "numbered instructions": "".join(f"{i}. Turn the crank once and write down the number.\n" for i in range(50)),
    "a multiplication table": "".join(f"{a} x {b} = {a * b}\n" for a in range(1, 21) for b in range(1, 21)),
    "squares in words": "".join(f"The square of {i} is {i * i}.\n" for i in range(12)),
    "rulers": "Title\n" + "=" * 300 + "\n\n" + "-" * 300 + "\n" + GOOD,
    "a poem with a refrain": "\n\n".join(
        f"{first}\nand the wind blew over the hill,\n{second}\nand the wind blew over the hill."
        for first, second in [
            ("The ploughman rose before the day", "his oxen would not go their way"),
            ("A girl went singing to the well", "what she had heard she did not tell"),
            ("The bells rang out for someone's feast", "we did not mind them in the least"),
            ("The river took the wooden bridge", "we saw it from the windy ridge"),
            ("In autumn came the tax collector", "the barn held nothing but a spectre"),
            ("The oldest man lay down to sleep", "and left his flock for us to keep"),
        ]
    ),
    "imports": "".join(f"from package.module_{c} import name_{c}, other_{c}\n" for c in "abcdefghijklmnopqrstuvwxyz"),
    "C declarations": "".join(
        f"int crypto_{c}_set(const char *file, int line, size_t n);\n" for c in "abcdefghijkl" * 3
    ),
    "a licence header in each file": "\n\n".join(
        f"# file {i}\n# Licensed under the terms that the file LICENSE names.\n# No warranty of any kind is given.\n"
        f"def {name}(value):\n    return {name}_table[value]"
        for i, name in enumerate(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota"])
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_text_that_repeats_itself_for_a_reason_passes(name: str) -> None:
    assert first_loop(REASONS[name] + "\n" + GOOD[:400]) is None


@pytest.mark.parametrize("kind", [*KINDS, *FRESH])
def test_honest_repetition_is_left_alone(kind: str) -> None:
    for text in texts(kind, range(2)):
        assert first_loop(text) is None
        assert LoopGuard(Patience.PATIENT, "Write it.").feed(text) is None


def test_the_honest_texts_are_many_and_long() -> None:
    lengths = [len(text) for kind in [*KINDS, *FRESH] for text in texts(kind, range(2))]
    assert len(lengths) >= 150
    assert sum(length >= 10_000 for length in lengths) >= 15


SONG = "\n".join(
    f"{n} lemons in the basket, and if one should fall there would be {n - 1} lemons." for n in range(400, 0, -1)
)


@pytest.mark.parametrize("upwards", [True, False])
def test_numbers_that_fall_come_to_an_end_and_numbers_that_rise_need_not(upwards: bool) -> None:
    lines = SONG.split("\n")
    loop = first_loop("\n".join(reversed(lines) if upwards else lines))
    assert (loop is not None) == upwards


def test_few_sentences_in_any_order_are_a_loop() -> None:
    sentences = [
        "Wait, let me look at this once more.",
        "Hmm, that does not seem to be right.",
        "So the answer has to be seven after all.",
        "But what if the first line was meant in another way?",
        "Let me start again from the beginning.",
    ]
    draw = random.Random(1)
    loop = first_loop(GOOD + " ".join(draw.choice(sentences) for _ in range(400)))
    assert loop is not None
    assert loop.at_chars - len(GOOD) < 6000


LINE = "I will not throw paper planes in class.\n"


@pytest.mark.parametrize("times", [50, 100])
def test_what_an_answer_begins_with_may_have_been_asked_for(times: int) -> None:
    assert first_loop("Here you are:\n\n" + LINE * times) is None
    assert first_loop(GOOD + "\n\n" + LINE * times) is not None


def test_the_users_own_words_may_be_repeated_as_often_as_was_said() -> None:
    asked = "Write 'I will not throw paper planes in class.' 300 times."
    assert LoopGuard(asked=asked).feed(GOOD + "\n\n" + LINE * 300) is None
    assert LoopGuard(asked=asked).feed(GOOD + "\n\n" + LINE * 400) is not None


def test_what_the_user_did_not_say_is_met_sooner() -> None:
    known = LoopGuard(asked="Tell me a story about a dragon.").feed(LINE * 300)
    unknown = first_loop(LINE * 300)
    assert known is not None
    assert unknown is not None
    assert known.at_chars < unknown.at_chars


@pytest.mark.parametrize("name", LOOPS)
def test_patience_moves_where_a_loop_is_met(name: str) -> None:
    text = GOOD + "\n\n" + repeated(LOOPS[name], 40_000)
    at = [loop.at_chars for patience in Patience if (loop := LoopGuard(patience).feed(text)) is not None]
    assert len(at) == len(Patience)
    assert at == sorted(at)


def test_a_loop_that_was_forgiven_is_met_again_while_it_goes_on() -> None:
    guard = LoopGuard()
    met = []
    for piece in [LOOPS["a sentence"]] * 150 + [GOOD[at : at + 50] for at in range(0, len(GOOD), 50)]:
        if loop := guard.feed(piece):
            met.append(loop.at_chars)
            guard.look_again()
    assert len(met) > 10
    assert max(met) < 150 * len(LOOPS["a sentence"]) + 600


def test_a_loop_stays_met() -> None:
    guard = LoopGuard()
    loop = guard.feed(repeated(LOOPS["a sentence"]))
    assert loop is not None
    assert guard.feed("Now something else.") == loop


def test_the_report_is_short() -> None:
    loop = first_loop(repeated(PARAGRAPH))
    assert loop is not None
    assert len(loop.repeated) <= 200


@given(st.sampled_from([*LOOPS.values(), *REASONS.values()]), st.lists(st.integers(1, 3999), max_size=40))
def test_any_cutting_meets_the_same_loop(text: str, places: list[int]) -> None:
    whole = (GOOD[:500] + repeated(text, 4000))[:4000]
    edges = [0, *sorted(set(places)), len(whole)]
    guard = LoopGuard()
    loop = None
    for start, end in itertools.pairwise(edges):
        loop = guard.feed(whole[start:end])
    assert loop == first_loop(whole)


READS = {
    "json": '<tool_call>\n{{"name": "read_file", "arguments": {{"path": "{path}", "limit": 200}}}}\n</tool_call>\n',
    "gemma": '<|tool_call>call:read_file{{limit:200,path:<|"|>{path}<|"|>}}<tool_call|>',
    "xml": "<tool_call>\n<function=read_file>\n<parameter=path>\n{path}\n</parameter>\n</function>\n</tool_call>\n",
}
PATHS = [
    f"src/{a}/{b}.py" for a in ("engine", "server", "router", "tests") for b in ("main", "util", "types", "errors")
]


@pytest.mark.parametrize("form", READS)
@pytest.mark.parametrize("patience", [Patience.STRICT, Patience.NORMAL])
def test_calls_with_other_arguments_are_no_loop_and_the_same_call_again_and_again_is(
    form: str, patience: Patience
) -> None:
    honest = "".join(READS[form].format(path=path) for path in PATHS)
    assert LoopGuard(patience, "Read all the files.").feed(honest + " " * 200) is None
    same = READS[form].format(path=PATHS[0]) * 128
    assert LoopGuard(patience, "Read all the files.").feed(same + " " * 200) is not None
