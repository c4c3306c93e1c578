# ruff: noqa: E501  (lines of verse and of data are as long as they are)
"""Records, code, tables and other data that repeat themselves for a reason."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from typing import Final

from _honest_words import NAMES, PLACES, THINGS, in_words


def json_records(r: random.Random) -> str:
    indent = r.choice([None, 2])
    rows = [
        {"id": i, "name": f"Item {i}", "category": "general", "active": True, "stock": 100, "note": "no remarks"}
        for i in range(1, r.randrange(150, 230))
    ]
    return json.dumps(rows, indent=indent)


def json_users(r: random.Random) -> str:
    rows = [
        {
            "user_id": 1000 + i,
            "username": f"user{i}",
            "email": f"user{i}@example.com",
            "role": "member",
            "verified": False,
        }
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
    return (
        "```sql\n"
        + "\n".join(
            f"INSERT INTO stock (item, place, amount) VALUES ('{r.choice(THINGS)}', '{r.choice(PLACES)}', {r.randrange(100)});"
            for _ in range(250)
        )
        + "\n```"
    )


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


def cells_in_one_line(r: random.Random) -> str:
    cells = r.choice([["0"], ["yes", "no"], ["X", "O", " "], ["1", "2", "3", "4"], ["n/a"]])
    return "| " + " | ".join(cells[i % len(cells)] for i in range(r.randrange(300, 700))) + " |"


def csv_constant(r: random.Random) -> str:
    rows = "".join(f"{i},sensor-{r.randrange(9)},ok,0,0,none\n" for i in range(1, r.randrange(200, 400)))
    return "id,sensor,state,errors,retries,comment\n" + rows


def csv_days(r: random.Random) -> str:
    year = r.randrange(1990, 2030)
    days = [(m, d) for m in range(1, 13) for d in range(1, 29)]
    return (
        "```csv\ndate,open,closed,visitors\n" + "".join(f"{year}-{m:02}-{d:02},9:00,17:00,0\n" for m, d in days) + "```"
    )


def lookup_table(r: random.Random) -> str:
    return (
        "```c\nstatic const uint8_t table[256] = {\n"
        + "".join("    " + ", ".join(f"0x{r.choice([0, 0, 0, 255]):02X}" for _ in range(16)) + ",\n" for _ in range(16))
        + "};\n```"
    )


def hex_dump(r: random.Random) -> str:
    zero = r.random() < 0.5
    return "\n".join(
        f"{16 * i:08x}  "
        + " ".join("00" if zero else f"{r.randrange(256):02x}" for _ in range(16))
        + "  |................|"
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
    return (
        "```python\n"
        + "".join(
            f"def test_{name}_of_{i}() -> None:\n    assert {name}({i}) == {i * step}\n\n\n"
            for i in range(r.randrange(40, 130))
        )
        + "```"
    )


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


def trace_table(r: random.Random) -> str:
    total, rows = 0, []
    for i in range(1, r.randrange(80, 200)):
        total += i
        rows.append(f"| {i} | {i} <= n is true | total = {total} | go on |")
    return "| step | condition | state | next |\n|---|---|---|---|\n" + "\n".join(rows)


def status_table(r: random.Random) -> str:
    return "| case | unit | system | remark |\n|------|------|--------|--------|\n" + "".join(
        f"| TC-{i:03} | passed | {r.choice(['passed', 'passed', 'skipped'])} | not measured yet |\n"
        for i in range(1, 180)
    )


def blank_form(r: random.Random) -> str:
    entry = "Name: ____________________\nDate: ____________________\nSignature: _______________\n\n"
    return "# Visitors\n\n" + entry * r.randrange(15, 35)


def xml(r: random.Random) -> str:
    return (
        "<rows>\n"
        + "".join(
            f"  <row>\n    <id>{i}</id>\n    <name>{r.choice(THINGS)}</name>\n    <active>true</active>\n  </row>\n"
            for i in range(1, r.randrange(80, 200))
        )
        + "</rows>\n"
    )


def html_select(r: random.Random) -> str:
    return "<select>\n" + "".join(f'  <option value="{i}">Option {i}</option>\n' for i in range(1, 230)) + "</select>"


def enum_code(r: random.Random) -> str:
    return "enum class Code {\n" + "".join(f"    Value{i} = {i},\n" for i in range(300)) + "};\n"


def switch_code(r: random.Random) -> str:
    return (
        "switch (value) {\n" + "".join(f'    case {i}:\n        return "{in_words(i)}";\n' for i in range(150)) + "}\n"
    )


def setters(r: random.Random) -> str:
    names = [f"{a}_{b}" for a in THINGS for b in PLACES[:4]]
    return "class Store:\n" + "".join(
        f"    def set_{name}(self, value):\n        self._{name} = value\n        self._changed = True\n\n"
        for name in names
    )


def corrected_code(r: random.Random) -> str:
    body = "".join(f"    {thing} = load('{thing}')\n    check({thing}, limit={r.randrange(99)})\n" for thing in THINGS)
    texts = [
        f"Version {i}: I changed the name of the function, everything else is as it was.\n\n```python\ndef {name.lower()}_main():\n{body}```"
        for i, name in enumerate(r.sample(NAMES, 4), 1)
    ]
    return "\n\n".join(texts)


def assembly(r: random.Random) -> str:
    return "main:\n" + "".join(f"    mov eax, {r.randrange(9)}\n    add eax, ebx\n    nop\n" for _ in range(200))


def config(r: random.Random) -> str:
    return "".join(
        f'  worker-{i}:\n    image: app:latest\n    restart: always\n    ports:\n      - "{8000 + i}:80"\n'
        for i in range(60)
    )


def emoji_rows(r: random.Random) -> str:
    return "\n".join("🟩" * 12 if r.random() < 0.5 else "⬛" * 12 for _ in range(60))


def binary(r: random.Random) -> str:
    return "\n".join(f"{i} = {i:010b}" for i in range(r.randrange(200, 520)))


DATA: Final[dict[str, Callable[[random.Random], str]]] = {
    function.__name__: function
    for function in (
        json_records,
        json_users,
        json_lines,
        sql_inserts,
        sql_varied,
        booleans,
        booleans_mixed,
        booleans_alternating,
        cells_in_one_line,
        csv_constant,
        csv_days,
        lookup_table,
        hex_dump,
        ascii_art,
        matrix,
        zeros,
        unit_tests,
        base64_text,
        log_file,
        ping,
        trace_table,
        status_table,
        blank_form,
        xml,
        html_select,
        enum_code,
        switch_code,
        setters,
        corrected_code,
        assembly,
        config,
        emoji_rows,
        binary,
    )
}
