"""Texts that repeat themselves for a reason, as people ask for them: what no loop guard should end.

Each kind is a function of a random generator, so that a seed gives a text and another seed another one.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from typing import Final

_ONES: Final = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()  # fmt: skip
_TENS: Final = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
_NAMES: Final = "Anna Boris Chen Dalia Emil Farah Goran Hanna Igor Jana Kofi Lena Marek Nadia Olaf Petra Quim Rosa Stefan Tara Umar Vera Wanda Xenia Yusuf Zora".split()  # fmt: skip
_THINGS: Final = "lamp chair kettle ladder bucket mirror carpet shovel basket hammer clock bottle blanket candle pillow wagon".split()  # fmt: skip
_PLACES: Final = "harbour mill castle orchard market bridge library station meadow tower".split()
_ANIMALS: Final = "cow hen goat duck sheep horse pig dog cat goose donkey frog".split()
_SOUNDS: Final = "moo cluck maa quack baa neigh oink woof meow honk bray croak".split()


def in_words(number: int) -> str:
    """A whole number below a thousand, in English."""
    if number >= 100:
        rest = f" {in_words(number % 100)}" if number % 100 else ""
        return f"{_ONES[number // 100]} hundred{rest}"
    if number >= 20:
        return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    return _ONES[number]


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
    gifts = [f"{in_words(i)} {r.choice(_THINGS)}s from the {r.choice(_PLACES)}" for i in range(1, 15)]
    return "\n\n".join(
        f"On evening number {in_words(i)} my neighbour brought to me\n" + ",\n".join(reversed(gifts[:i])) + "."
        for i in range(1, 15)
    )


def song_refrain(r: random.Random) -> str:
    refrain = "Roll the barrel down the hill,\nroll it, roll it, roll it still,\nroll it past the old red mill,\nand we'll all go home by morning."  # fmt: skip
    return "\n\n".join(
        f"The {r.choice(_ANIMALS)} of {name} ran up to the {r.choice(_PLACES)}\nand came back with a {r.choice(_THINGS)}.\n\n"
        f"{refrain}"
        for name in r.sample(_NAMES, 20)
    )


def farm_song(r: random.Random) -> str:
    pairs = list(zip(_ANIMALS, _SOUNDS, strict=True))
    r.shuffle(pairs)
    return "\n\n".join(
        f"My uncle Jack he had a farm, hey-dee-hey-dee-ho,\nand on that farm he had a {a}, hey-dee-hey-dee-ho,\n"
        f"with a {s} {s} here and a {s} {s} there,\nhere a {s}, there a {s}, everywhere a {s} {s},\n"
        f"my uncle Jack he had a farm, hey-dee-hey-dee-ho."
        for a, s in pairs
    )


def litany(r: random.Random) -> str:
    names = [f"{a} of the {b}" for a in _NAMES for b in _PLACES]
    return "\n".join(f"Saint {name}, watch over us and over our house." for name in r.sample(names, 120))


def json_records(r: random.Random) -> str:
    indent = r.choice([None, 2])
    rows = [
        {"id": i, "name": f"Item {i}", "category": "general", "active": True, "stock": 100, "note": "no remarks"}
        for i in range(1, r.randrange(150, 230))
    ]
    return json.dumps(rows, indent=indent)


def json_users(r: random.Random) -> str:
    rows = [
        {"user_id": 1000 + i, "username": f"user{i}", "email": f"user{i}@example.com", "role": "member", "verified": False}
        for i in range(r.randrange(100, 210))
    ]
    return "```json\n" + json.dumps({"users": rows, "count": len(rows)}, indent=2) + "\n```"


def json_lines(r: random.Random) -> str:
    return "\n".join(
        json.dumps({"ts": 1_700_000_000 + 60 * i, "level": "info", "event": "heartbeat", "host": "node-1", "ok": True})
        for i in range(r.randrange(100, 220))
    )


def sql_inserts(r: random.Random) -> str:
    table, n = r.choice(["users", "products", "orders"]), r.randrange(150, 260)
    return "\n".join(
        f"INSERT INTO {table} (id, name, active, created) VALUES ({i}, '{table[:-1]}{i}', 1, '2024-01-01');"
        for i in range(1, n)
    )


def sql_varied(r: random.Random) -> str:
    return "```sql\n" + "\n".join(
        f"INSERT INTO stock (item, place, amount) VALUES ('{r.choice(_THINGS)}', '{r.choice(_PLACES)}', {r.randrange(100)});"
        for _ in range(250)
    ) + "\n```"  # fmt: skip


def booleans(r: random.Random) -> str:
    word = r.choice(["true", "True", "yes"])
    n = r.randrange(200, 600)
    return "[" + ", ".join([word] * n) + "]"


def booleans_mixed(r: random.Random) -> str:
    share = r.choice([0.5, 0.8, 0.97])
    values = [r.random() < share for _ in range(r.randrange(300, 700))]
    return json.dumps(values, indent=r.choice([None, 2]))


def booleans_alternating(r: random.Random) -> str:
    return "flags = [" + ", ".join(["True, False"] * r.randrange(100, 250)) + "]"


def coin_flips(r: random.Random) -> str:
    separator = r.choice([" ", ", ", "\n"])
    return separator.join(r.choice(["heads", "tails"]) for _ in range(r.randrange(300, 600)))


def cells_in_one_line(r: random.Random) -> str:
    cells = r.choice([["0"], ["yes", "no"], ["X", "O", " "], ["1", "2", "3", "4"], ["n/a"]])
    return "| " + " | ".join(cells[i % len(cells)] for i in range(r.randrange(300, 700))) + " |"


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


def csv_constant(r: random.Random) -> str:
    rows = "".join(f"{i},sensor-{r.randrange(9)},ok,0,0,none\n" for i in range(1, r.randrange(200, 400)))
    return "id,sensor,state,errors,retries,comment\n" + rows


def csv_days(r: random.Random) -> str:
    year = r.randrange(1990, 2030)
    days = [(m, d) for m in range(1, 13) for d in range(1, 29)]
    return "```csv\ndate,open,closed,visitors\n" + "".join(f"{year}-{m:02}-{d:02},9:00,17:00,0\n" for m, d in days) + "```"


def lookup_table(r: random.Random) -> str:
    return "```c\nstatic const uint8_t table[256] = {\n" + "".join(
        "    " + ", ".join(f"0x{r.choice([0, 0, 0, 255]):02X}" for _ in range(16)) + ",\n" for _ in range(16)
    ) + "};\n```"  # fmt: skip


def hex_dump(r: random.Random) -> str:
    zero = r.random() < 0.5
    return "\n".join(
        f"{16 * i:08x}  " + " ".join("00" if zero else f"{r.randrange(256):02x}" for _ in range(16)) + "  |................|"
        for i in range(r.randrange(40, 120))
    )


def ascii_art(r: random.Random) -> str:
    width, height = r.randrange(20, 60), r.randrange(15, 40)
    inside = r.choice([" ", ".", "#"])
    rows = ["+" + "-" * width + "+", *["|" + inside * width + "|"] * height, "+" + "-" * width + "+"]
    return "```\n" + "\n".join(rows) + "\n```"


def matrix(r: random.Random) -> str:
    n, value = r.choice([16, 32, 50]), r.choice(["0", "1", "0.0"])
    rows = [" ".join(value if i != j else "1" for j in range(n)) for i in range(n)]
    return "\n".join(rows)


def zeros(r: random.Random) -> str:
    return f"import numpy as np\n\na = np.array([{', '.join(['0'] * r.randrange(300, 900))}])\n"


def unit_tests(r: random.Random) -> str:
    name, step = r.choice(["double", "square", "price_of"]), r.randrange(2, 9)
    return "```python\n" + "".join(
        f"def test_{name}_of_{i}() -> None:\n    assert {name}({i}) == {i * step}\n\n\n" for i in range(r.randrange(40, 130))
    ) + "```"  # fmt: skip


def legal(r: random.Random) -> str:
    return "\n\n".join(
        f"{i}. Obligations of {name}. Subject to the terms of this Agreement, {name} shall indemnify and hold harmless the "
        f"other parties from and against any and all claims, losses and expenses arising out of or in connection with "
        f"the {thing}, save to the extent that such claims arise from the negligence of the other parties."
        for i, (name, thing) in enumerate(zip(r.sample(_NAMES, 24), _THINGS * 2, strict=False), 1)
    )


def form_letters(r: random.Random) -> str:
    return "\n\n---\n\n".join(
        f"Dear {name},\n\nthank you very much for your order. We are pleased to tell you that it has left our house today "
        f"and should be with you within three working days. If anything is missing or broken, please write to us at "
        f"once, and we will send you another one free of charge. We hope to see you again soon.\n\nYours sincerely,\n"
        f"The team of the shop at the old {r.choice(_PLACES)}"
        for name in r.sample(_NAMES, 22)
    )


def dna(r: random.Random) -> str:
    if r.random() < 0.4:
        return "5'-" + r.choice(["CAG", "AT", "TTAGGG"]) * 150 + "-3'"
    row = r.choice([10, 60])
    bases = "".join(r.choice("ACGT") for _ in range(r.randrange(2000, 9000)))
    return (" " if row == 10 else "\n").join(bases[i : i + row] for i in range(0, len(bases), row))


def base64_text(r: random.Random) -> str:
    data = bytes(1000) if r.random() < 0.3 else r.randbytes(4000)
    text = base64.b64encode(data).decode()
    return "\n".join(text[i : i + 76] for i in range(0, len(text), 76))


def log_file(r: random.Random) -> str:
    second, lines = 0, []
    for _ in range(r.randrange(100, 200)):
        second += r.randrange(1, 20)
        lines.append(
            f"2024-05-17 10:{second // 60 % 60:02}:{second % 60:02} INFO worker: request served in {r.randrange(5, 90)} ms, status 200"
        )
    return "\n".join(lines)


def ping(r: random.Random) -> str:
    return "\n".join(
        f"64 bytes from 10.0.0.{r.randrange(2, 9)}: icmp_seq={i} ttl=64 time={r.random():.3f} ms" for i in range(1, 120)
    )


def music(r: random.Random) -> str:
    bars = ["C4 E4 G4 E4", "F4 A4 C5 A4", "G4 B4 D5 B4", "A3 C4 E4 C4"]
    if r.random() < 0.5:
        return "X:1\nM:4/4\nK:C\n" + "\n".join("| " + " | ".join(r.choice(bars) for _ in range(4)) + " |" for _ in range(40))
    return "".join(f"{part}|" + "".join(r.choice(["x-x-x-x-|", "--o---o-|", "x---x---|"]) for _ in range(8)) + "\n" for part in ["HH", "SD", "BD"] * 14)  # fmt: skip


def chords(r: random.Random) -> str:
    row = r.choice(["C  G  Am F", "Dm G  C  A7", "E  B  A  B"])
    return "\n".join(f"[{part}]\n" + f"| {row} |\n" * 4 for part in ["Verse", "Chorus", "Verse", "Chorus", "Bridge", "Chorus"] * 4)  # fmt: skip


def chess(r: random.Random) -> str:
    def move() -> str:
        return r.choice(["", "N", "B", "R", "Q", "K"]) + r.choice("abcdefgh") + str(r.randrange(1, 9))

    return " ".join(f"{i}. {move()} {move()}" for i in range(1, 140))


def chess_shuffle(r: random.Random) -> str:
    return " ".join(f"{i}. {'Nf3 Nf6' if i % 2 else 'Ng1 Ng8'}" for i in range(1, 76))


def trace_table(r: random.Random) -> str:
    total, rows = 0, []
    for i in range(1, r.randrange(80, 200)):
        total += i
        rows.append(f"| {i} | {i} <= n is true | total = {total} | go on |")
    return "| step | condition | state | next |\n|---|---|---|---|\n" + "\n".join(rows)


def status_table(r: random.Random) -> str:
    return "| case | unit | system | remark |\n|------|------|--------|--------|\n" + "".join(
        f"| TC-{i:03} | passed | {r.choice(['passed', 'passed', 'skipped'])} | not measured yet |\n" for i in range(1, 180)
    )  # fmt: skip


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


def blank_form(r: random.Random) -> str:
    entry = "Name: ____________________\nDate: ____________________\nSignature: _______________\n\n"
    return "# Visitors\n\n" + entry * r.randrange(15, 35)


def xml(r: random.Random) -> str:
    return "<rows>\n" + "".join(
        f"  <row>\n    <id>{i}</id>\n    <name>{r.choice(_THINGS)}</name>\n    <active>true</active>\n  </row>\n"
        for i in range(1, r.randrange(80, 200))
    ) + "</rows>\n"  # fmt: skip


def html_select(r: random.Random) -> str:
    return "<select>\n" + "".join(f'  <option value="{i}">Option {i}</option>\n' for i in range(1, 230)) + "</select>"


def enum_code(r: random.Random) -> str:
    return "enum class Code {\n" + "".join(f"    Value{i} = {i},\n" for i in range(300)) + "};\n"


def switch_code(r: random.Random) -> str:
    return "switch (value) {\n" + "".join(f'    case {i}:\n        return "{in_words(i)}";\n' for i in range(150)) + "}\n"


def setters(r: random.Random) -> str:
    names = [f"{a}_{b}" for a in _THINGS for b in _PLACES[:4]]
    return "class Store:\n" + "".join(
        f"    def set_{name}(self, value):\n        self._{name} = value\n        self._changed = True\n\n" for name in names
    )  # fmt: skip


def corrected_code(r: random.Random) -> str:
    body = "".join(f"    {thing} = load('{thing}')\n    check({thing}, limit={r.randrange(99)})\n" for thing in _THINGS)
    texts = [
        f"Version {i}: I changed the name of the function, everything else is as it was.\n\n```python\ndef {name.lower()}_main():\n{body}```"
        for i, name in enumerate(r.sample(_NAMES, 4), 1)
    ]
    return "\n\n".join(texts)


def assembly(r: random.Random) -> str:
    return "main:\n" + "".join(f"    mov eax, {r.randrange(9)}\n    add eax, ebx\n    nop\n" for _ in range(200))


def glossary(r: random.Random) -> str:
    names = [f"{a} {b}" for a in _PLACES for b in _THINGS]
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
    return "\n".join(f"{a} {b.capitalize()}: +49 30 {r.randrange(10**6, 10**7)}" for a in _NAMES for b in _THINGS[:8])


def config(r: random.Random) -> str:
    return "".join(
        f"  worker-{i}:\n    image: app:latest\n    restart: always\n    ports:\n      - \"{8000 + i}:80\"\n" for i in range(60)
    )  # fmt: skip


def gradebook(r: random.Random) -> str:
    return "\n".join(f"{name} {thing}: present, present, present, absent, present" for name in _NAMES for thing in _THINGS[:6])


def emoji_rows(r: random.Random) -> str:
    return "\n".join("🟩" * 12 if r.random() < 0.5 else "⬛" * 12 for _ in range(60))


def binary(r: random.Random) -> str:
    return "\n".join(f"{i} = {i:010b}" for i in range(r.randrange(200, 520)))


def ordinals(r: random.Random) -> str:
    return "\n".join(f"The {in_words(i)} guest in line takes the seat with the number {in_words(i)}." for i in range(1, 160))


def backwards(r: random.Random) -> str:
    n = r.randrange(60, 200)
    return "\n".join(f"T minus {i} seconds and counting, all systems are ready." for i in range(n, -1, -1))


KINDS: Final[dict[str, Callable[[random.Random], str]]] = {
    function.__name__: function
    for function in (
        song_falling_words, song_falling_digits, song_cumulative, song_refrain, farm_song, litany, json_records,
        json_users, json_lines, sql_inserts, sql_varied, booleans, booleans_mixed, booleans_alternating, coin_flips,
        cells_in_one_line, lines_asked_for, csv_constant, csv_days, lookup_table, hex_dump, ascii_art, matrix, zeros,
        unit_tests, legal, form_letters, dna, base64_text, log_file, ping, music, chords, chess, chess_shuffle,
        trace_table, status_table, multiplication, proof_steps, diary, checklist, blank_form, xml, html_select,
        enum_code, switch_code, setters, corrected_code, assembly, glossary, counted_rhyme, cjk_list, phone_book,
        config, gradebook, emoji_rows, binary, ordinals, backwards,
    )
}  # fmt: skip


def texts(kind: str, seeds: range) -> Iterator[str]:
    """The texts of a kind, one a seed."""
    for seed in seeds:
        yield KINDS[kind](random.Random(f"{kind} {seed}"))
