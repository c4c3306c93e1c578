# ruff: noqa: E501  (lines of verse and of data are as long as they are)
"""More text that repeats itself for a reason, written when the limits of the guard stood and not looked at before."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Final

from _honest_words import ANIMALS, NAMES, PLACES, THINGS, in_words


def sonnet_counting_sheep(r: random.Random) -> str:
    return " ".join(f"{in_words(i).capitalize()} sheep jumped over the fence." for i in range(1, r.randrange(90, 200)))


def rosary(r: random.Random) -> str:
    prayer = "Lady of the lake, full of light, be with us now and at the end of the road. So be it.\n"
    return "\n".join(f"Bead {in_words(i)}\n{prayer * 10}" for i in range(1, 6))


def lullaby(r: random.Random) -> str:
    line = r.choice(["Hush now, hush now, little one", "Sleep, my darling, sleep"])
    return "\n\n".join(
        f"{line},\n{line},\nthe {a} and the {t} are gone,\n{line}." for a, t in zip(ANIMALS, THINGS, strict=False)
    )


def toml_packages(r: random.Random) -> str:
    return "".join(
        f'[[package]]\nname = "{t}-{p}"\nversion = "{r.randrange(4)}.{r.randrange(9)}.0"\ndependencies = []\noptional = false\n\n'
        for t in THINGS
        for p in PLACES
    )


def geojson(r: random.Random) -> str:
    return json.dumps(
        {
            "type": "FeatureCollection",
            "features": [
                {
                    "type": "Feature",
                    "properties": {},
                    "geometry": {"type": "Point", "coordinates": [r.randrange(180), r.randrange(90)]},
                }
                for _ in range(120)
            ],
        },
        indent=2,
    )


def yaml_schedule(r: random.Random) -> str:
    return "".join(f"- day: {d}\n  open: true\n  from: 08:00\n  to: 18:00\n  staff: 2\n" for d in range(1, 200))


def bash_script(r: random.Random) -> str:
    return "#!/bin/sh\nset -e\n" + "".join(
        f"mkdir -p /srv/data/{i:03}\nchown app:app /srv/data/{i:03}\nchmod 0750 /srv/data/{i:03}\n" for i in range(160)
    )


def truth_table(r: random.Random) -> str:
    n = 7
    rows = [[f"{i:0{n}b}"[j] for j in range(n)] for i in range(2**n)]
    return (
        "| a | b | c | d | e | f | g | out |\n|"
        + "---|" * 8
        + "\n"
        + "".join(
            f"| {' | '.join('true' if x == '1' else 'false' for x in row)} | {'true' if row.count('1') % 2 else 'false'} |\n"
            for row in rows
        )
    )


def game_of_life(r: random.Random) -> str:
    rows = ["." * 20 for _ in range(20)]
    rows[10] = "........###........."
    flipped = [*rows]
    flipped[9] = flipped[10] = flipped[11] = ".........#.........."
    return "\n\n".join(f"Generation {i}:\n" + "\n".join(rows if i % 2 else flipped) for i in range(1, 16))


def exercise_plan(r: random.Random) -> str:
    return "\n\n".join(
        f"Week {w}\n"
        + "\n".join(
            f"- {d}: {3 + w // 3} sets of {8 + w} push-ups, {20 + 5 * w} seconds of plank, then rest"
            for d in ["Monday", "Wednesday", "Friday"]
        )
        for w in range(1, 25)
    )


def quiz(r: random.Random) -> str:
    return "\n\n".join(
        f"Question {i}: What is {a} + {b}?\nA) {a + b - 1}\nB) {a + b}\nC) {a + b + 1}\nD) None of these\nCorrect answer: B"
        for i, (a, b) in enumerate(((r.randrange(99), r.randrange(99)) for _ in range(80)), 1)
    )


def dialogue(r: random.Random) -> str:
    return "\n".join(
        f"Child: Why is the {a} in the {p}?\nParent: Because the {a} likes the {p}.\nChild: But why?\nParent: Because that is how it is."
        for a in ANIMALS
        for p in PLACES[:5]
    )


def css(r: random.Random) -> str:
    return "".join(f".m-{i} {{\n  margin: {i}px;\n}}\n.p-{i} {{\n  padding: {i}px;\n}}\n" for i in range(130))


def latex_table(r: random.Random) -> str:
    return "\\begin{tabular}{lrrr}\n" + "".join(f"{a} & 0 & 0 & 0 \\\\\n" for a in NAMES * 5) + "\\end{tabular}\n"


def countdown_minutes(r: random.Random) -> str:
    return "\n".join(f"{i} minutes left on the clock, keep on writing and do not look up." for i in range(180, 0, -1))


def french_song(r: random.Random) -> str:
    return "\n\n".join(
        f"{n} kilomètres à pied, ça use, ça use,\n{n} kilomètres à pied, ça use les souliers."
        for n in range(1, r.randrange(40, 80))
    )


def german_verbs(r: random.Random) -> str:
    verbs = ["lach", "wein", "koch", "mal", "spiel", "wohn", "hör", "lern", "frag", "such", "kauf", "sag"]
    return "\n\n".join(f"ich {v}e\ndu {v}st\ner {v}t\nwir {v}en\nihr {v}t\nsie {v}en" for v in verbs * 2)


def assertions(r: random.Random) -> str:
    return (
        "it('works', () => {\n"
        + "".join(f"  expect(isPrime({i})).toBe({'true' if r.random() < 0.2 else 'false'});\n" for i in range(250))
        + "});\n"
    )


def shopping(r: random.Random) -> str:
    return "\n".join(f"{i}. {r.choice(THINGS)} - quantity: 1 - price: $9.99 - in stock" for i in range(1, 200))


def stack_trace(r: random.Random) -> str:
    return "RecursionError: maximum recursion depth exceeded\n" + "".join(
        f'  File "app.py", line 12, in walk\n    return walk(node.parent, depth + 1)  # depth {i}\n' for i in range(40)
    )


def sudoku_log(r: random.Random) -> str:
    return "\n".join(
        f"Try {r.randrange(1, 10)} in row {r.randrange(1, 10)}, column {r.randrange(1, 10)}: not allowed, go back."
        for _ in range(200)
    )


def vows(r: random.Random) -> str:
    return "\n".join(f"I promise to remember the {t} by the {p} as long as I live." for t in THINGS for p in PLACES)


def echo_lines(r: random.Random) -> str:
    line = r.choice(["Never give up!", "I am calm and strong.", "Hello, world!", "Je suis content."])
    return "Of course! Here you are:\n\n" + "\n".join([line] * r.choice([25, 50, 100]))


def palindromes(r: random.Random) -> str:
    return ", ".join(f"{i}{str(i)[::-1]}" for i in range(10, 400))


def tap_output(r: random.Random) -> str:
    return "1..300\n" + "".join(f"ok {i} - case {i} of the parser\n" for i in range(1, 300))


FRESH: Final[dict[str, Callable[[random.Random], str]]] = {
    function.__name__: function
    for function in (
        sonnet_counting_sheep,
        rosary,
        lullaby,
        toml_packages,
        geojson,
        yaml_schedule,
        bash_script,
        truth_table,
        game_of_life,
        exercise_plan,
        quiz,
        dialogue,
        css,
        latex_table,
        countdown_minutes,
        french_song,
        german_verbs,
        assertions,
        shopping,
        stack_trace,
        sudoku_log,
        vows,
        echo_lines,
        palindromes,
        tap_output,
    )
}
