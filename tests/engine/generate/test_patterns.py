"""A schema's patterns mean what they mean everywhere, not what the grammar library makes of them; `re` is the judge."""

from __future__ import annotations

import random
import re
import warnings

import pytest

from coe.engine.generate.patterns import as_the_library_reads
from coe.engine.generate.validators import matches

CHARS = [chr(code) for code in range(1, 127)] + list("é中😀\u2028")
MEMBERS = [
    *("a", "b", '"', r"\\", r"\"", "[", "&", "&&", "~~", "-", "^", r"\n", r"\x22", r"\u005c", r"\x00", r"\x1f", " "),
    *("/", r"\/", r"\[", r"\]", ".", r"\d", r"\-", "{", "é", r"\b", "a-z", "!-~", r"\x00-\x1f", "#-&", r"\x00-!"),
    *("&-[", "--a", "+--", r"\t-~", r"\x01-\x21"),
]


def disagreements(pattern: str) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of `[[` and `&&`, which it reads as they are written
        read = re.compile(pattern)
    return [char for char in CHARS if matches(pattern, char) != bool(read.search(char))]


@pytest.mark.parametrize(
    "pattern",
    [
        '^[^"]*$', r"^[^\\]+$", r'^[^"\\]*$', r"^[^\x22]$", r'^[^"\n]$', r"^[\x00-!]$", r"^([^\"]|\n)$", '[^"]',
        "^[a-z&&[^b]]$", "^[[:alpha:]]$", "^[a&&b]$", "^[a~~b]$", "^[+--]$", "^[a-c--b]$", "^[[]$", "^[]a]$", "^[^]a]$",
        r"^[\b]$", "^[-a]$", "^[a-]$", r"^[\]\\]$", r"^\[a]$",
    ],
)  # fmt: skip
def test_a_class_holds_what_it_says(pattern: str) -> None:
    assert disagreements(pattern) == []


def test_any_class_holds_what_it_says() -> None:
    draw = random.Random(7)
    tried = 0
    while tried < 100:
        body = "".join(draw.choice(MEMBERS) for _ in range(draw.randint(1, 4)))
        pattern = f"^[{draw.choice(['', '^'])}{body}]$"
        if pattern == r"^[\x00]$":  # matches no text that JSON can hold unescaped
            continue
        try:
            wrong = disagreements(pattern)
        except re.error:
            continue
        assert wrong == [], pattern
        tried += 1


def test_properties_of_characters_keep_out_what_they_exclude() -> None:
    assert matches(r"^\P{P}$", "a")
    assert not matches(r"^\P{P}$", '"')
    assert not matches(r"^[\P{P}]$", '"')


@pytest.mark.parametrize("pattern", ["^[a-z]+$", r"\[x\]", "^a|b$", "[", "a[b", "\\", r"[\]", r"^\d{2}[.,]\d$"])
def test_what_needs_no_change_is_left_alone(pattern: str) -> None:
    assert as_the_library_reads(pattern) == pattern
