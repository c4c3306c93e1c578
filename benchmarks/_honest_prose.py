# ruff: noqa: E501  (lines of verse and of data are as long as they are)
"""Songs, letters, lists and other text for people that repeats itself for a reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from _honest_words import ANIMALS, NAMES, PLACES, SOUNDS, THINGS, in_words


def song_falling_words(r: random.Random) -> str:
    thing, n = r.choice(["crates of apples", "jars of honey", "little brown birds"]), r.randrange(30, 100)
    return "\n\n".join(
        f"{in_words(i).capitalize()} {thing} on the wall, {in_words(i)} {thing}.\n"
        f"Take one away and give it to May: {in_words(i - 1)} {thing} on the wall."
        for i in range(n, 0, -1)
    )


def song_falling_digits(r: random.Random) -> str:
    thing, n = r.choice(["lemons in the basket", "sailors in the boat", "candles in the hall"]), r.randrange(30, 100)
    return "\n".join(
        f"{i} {thing}, {i} {thing}, and if one of them should fall today, there would be {i - 1} {thing}."
        for i in range(n, 0, -1)
    )


def song_cumulative(r: random.Random) -> str:
    gifts = [f"{in_words(i)} {r.choice(THINGS)}s from the {r.choice(PLACES)}" for i in range(1, 15)]
    return "\n\n".join(
        f"On evening number {in_words(i)} my neighbour brought to me\n" + ",\n".join(reversed(gifts[:i])) + "."
        for i in range(1, 15)
    )


def song_refrain(r: random.Random) -> str:
    refrain = "Roll the barrel down the hill,\nroll it, roll it, roll it still,\nroll it past the old red mill,\nand we'll all go home by morning."
    return "\n\n".join(
        f"The {r.choice(ANIMALS)} of {name} ran up to the {r.choice(PLACES)}\nand came back with a {r.choice(THINGS)}.\n\n"
        f"{refrain}"
        for name in r.sample(NAMES, 20)
    )


def farm_song(r: random.Random) -> str:
    pairs = list(zip(ANIMALS, SOUNDS, strict=True))
    r.shuffle(pairs)
    return "\n\n".join(
        f"My uncle Jack he had a farm, hey-dee-hey-dee-ho,\nand on that farm he had a {a}, hey-dee-hey-dee-ho,\n"
        f"with a {s} {s} here and a {s} {s} there,\nhere a {s}, there a {s}, everywhere a {s} {s},\n"
        f"my uncle Jack he had a farm, hey-dee-hey-dee-ho."
        for a, s in pairs
    )


def litany(r: random.Random) -> str:
    names = [f"{a} of the {b}" for a in NAMES for b in PLACES]
    return "\n".join(f"Saint {name}, watch over us and over our house." for name in r.sample(names, 120))


def coin_flips(r: random.Random) -> str:
    separator = r.choice([" ", ", ", "\n"])
    return separator.join(r.choice(["heads", "tails"]) for _ in range(r.randrange(300, 600)))


def lines_asked_for(r: random.Random) -> str:
    line = r.choice(
        [
            "I will not throw paper planes in class.",
            "I must hand in my homework on time.",
            "The quick brown fox jumps over the lazy dog.",
            "Practice makes perfect.",
            "All work and no rest makes a dull week.",
        ]
    )
    n = r.choice([50, 50, 60, 100])
    form = r.choice(["{line}\n", "{line} ", "{i}. {line}\n", "- {line}\n"])
    intro = r.choice(["", "", "Sure! Here it is:\n\n"])
    return intro + "".join(form.format(line=line, i=i) for i in range(1, n + 1))


def legal(r: random.Random) -> str:
    return "\n\n".join(
        f"{i}. Obligations of {name}. Subject to the terms of this Agreement, {name} shall indemnify and hold harmless the "
        f"other parties from and against any and all claims, losses and expenses arising out of or in connection with "
        f"the {thing}, save to the extent that such claims arise from the negligence of the other parties."
        for i, (name, thing) in enumerate(zip(r.sample(NAMES, 24), THINGS * 2, strict=False), 1)
    )


def form_letters(r: random.Random) -> str:
    return "\n\n---\n\n".join(
        f"Dear {name},\n\nthank you very much for your order. We are pleased to tell you that it has left our house today "
        f"and should be with you within three working days. If anything is missing or broken, please write to us at "
        f"once, and we will send you another one free of charge. We hope to see you again soon.\n\nYours sincerely,\n"
        f"The team of the shop at the old {r.choice(PLACES)}"
        for name in r.sample(NAMES, 22)
    )


def dna(r: random.Random) -> str:
    if r.random() < 0.4:
        return "5'-" + r.choice(["CAG", "AT", "TTAGGG"]) * 150 + "-3'"
    row = r.choice([10, 60])
    bases = "".join(r.choice("ACGT") for _ in range(r.randrange(2000, 9000)))
    return (" " if row == 10 else "\n").join(bases[i : i + row] for i in range(0, len(bases), row))


def music(r: random.Random) -> str:
    bars = ["C4 E4 G4 E4", "F4 A4 C5 A4", "G4 B4 D5 B4", "A3 C4 E4 C4"]
    if r.random() < 0.5:
        return "X:1\nM:4/4\nK:C\n" + "\n".join(
            "| " + " | ".join(r.choice(bars) for _ in range(4)) + " |" for _ in range(40)
        )
    return "".join(
        f"{part}|" + "".join(r.choice(["x-x-x-x-|", "--o---o-|", "x---x---|"]) for _ in range(8)) + "\n"
        for part in ["HH", "SD", "BD"] * 14
    )


def chords(r: random.Random) -> str:
    row = r.choice(["C  G  Am F", "Dm G  C  A7", "E  B  A  B"])
    return "\n".join(
        f"[{part}]\n" + f"| {row} |\n" * 4 for part in ["Verse", "Chorus", "Verse", "Chorus", "Bridge", "Chorus"] * 4
    )


def chess(r: random.Random) -> str:
    def move() -> str:
        return r.choice(["", "N", "B", "R", "Q", "K"]) + r.choice("abcdefgh") + str(r.randrange(1, 9))

    return " ".join(f"{i}. {move()} {move()}" for i in range(1, 140))


def chess_shuffle(r: random.Random) -> str:
    return " ".join(f"{i}. {'Nf3 Nf6' if i % 2 else 'Ng1 Ng8'}" for i in range(1, 76))


def multiplication(r: random.Random) -> str:
    of = r.choice([" times {b} is {c}.", " x {b} = {c}", " multiplied by {b} gives {c}."])
    return "\n".join(f"{a}{of.format(b=b, c=a * b)}" for a in range(1, 21) for b in range(1, 21))


def proof_steps(r: random.Random) -> str:
    start, n = r.randrange(2, 50), r.randrange(40, 110)
    lines, value = [], start
    for i in range(1, n):
        new = value // 2 if value % 2 == 0 else 3 * value + 1
        rule = "is even, so we divide it by two" if value % 2 == 0 else "is odd, so we triple it and add one"
        lines.append(f"Step {i}: the number {value} {rule} and get {new}.")
        value = new if new != 1 else start + i
    return "\n".join(lines)


def diary(r: random.Random) -> str:
    return "\n".join(
        f"Day {i}: I walked {r.randrange(2, 20)} kilometres, slept {r.randrange(5, 10)} hours and drank {r.randrange(1, 9)} glasses of water."
        for i in range(1, 100)
    )


def checklist(r: random.Random) -> str:
    days = [f"{d} {m}" for m in ["March", "April", "May"] for d in range(1, 31)]
    task = r.choice(["water the plants and feed the cat", "take the medicine after breakfast", "practise the piano"])
    return "\n".join(f"- [ ] {day}: {task}" for day in days)


def glossary(r: random.Random) -> str:
    names = [f"{a} {b}" for a in PLACES for b in THINGS]
    return "\n".join(f"**{name}**: a {name.split()[1]} that is kept in the {name.split()[0]}." for name in names)


def counted_rhyme(r: random.Random) -> str:
    return "\n\n".join(
        f"{in_words(i).capitalize()} {r.choice(['grey', 'old'])} elephant{'s' * (i > 1)} went out to play\nupon a spider's thread one day,\n"
        f"they had so very good a time\nthat they called one more to join the line."
        for i in range(1, 41)
    )


def cjk_list(r: random.Random) -> str:
    return "".join(f"{i}。第{i}天，我们走了{r.randrange(3, 30)}公里，天气很好。\n" for i in range(1, 160))


def phone_book(r: random.Random) -> str:
    return "\n".join(f"{a} {b.capitalize()}: +49 30 {r.randrange(10**6, 10**7)}" for a in NAMES for b in THINGS[:8])


def gradebook(r: random.Random) -> str:
    return "\n".join(
        f"{name} {thing}: present, present, present, absent, present" for name in NAMES for thing in THINGS[:6]
    )


def ordinals(r: random.Random) -> str:
    return "\n".join(
        f"The {in_words(i)} guest in line takes the seat with the number {in_words(i)}." for i in range(1, 160)
    )


def backwards(r: random.Random) -> str:
    n = r.randrange(60, 200)
    return "\n".join(f"T minus {i} seconds and counting, all systems are ready." for i in range(n, -1, -1))


PROSE: Final[dict[str, Callable[[random.Random], str]]] = {
    function.__name__: function
    for function in (
        song_falling_words,
        song_falling_digits,
        song_cumulative,
        song_refrain,
        farm_song,
        litany,
        coin_flips,
        lines_asked_for,
        legal,
        form_letters,
        dna,
        music,
        chords,
        chess,
        chess_shuffle,
        multiplication,
        proof_steps,
        diary,
        checklist,
        glossary,
        counted_rhyme,
        cjk_list,
        phone_book,
        gradebook,
        ordinals,
        backwards,
    )
}
