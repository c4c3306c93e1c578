"""Texts of strangers act on no terminal and begin no line."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from coe.engine.errors import ModelFileError
from coe.engine.text import printable, quoted
from coe.server.commands._lines import PlainConsole, print_line
from coe.server.commands._logs import TextFormatter
from coe.surgery.errors import MaskError

HOSTILE = "a\x1b[2J\r\nWARNING forged\u202e\x07\ud800[bold]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gemma4", "gemma4"),
        ("Grüße, 世界, مرحبا", "Grüße, 世界, مرحبا"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202eabc\u2028", "\\u202eabc\\u2028"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_acts_on_a_terminal_is_written_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_long_text_keeps_both_ends() -> None:
    shown = printable("begin" + "x" * 10_000 + "end", 100)
    assert len(shown) < 120
    assert shown.startswith("begin")
    assert shown.endswith("end")


@given(st.text())
def test_what_is_printable_stays_so(text: str) -> None:
    once = printable(text)
    assert "\n" not in once
    assert "\x1b" not in once
    assert printable(once) == once


@pytest.mark.parametrize("kind", [ModelFileError, MaskError])
def test_errors_are_one_printable_line(kind: type[ModelFileError]) -> None:
    error = kind(f"The name {HOSTILE} is odd.", HOSTILE)
    for text in (str(error), error.message, error.remedy):
        assert text == printable(text)
    assert quoted(HOSTILE) in f"'{error.remedy}'"


def test_neither_lines_nor_tables_carry_controls() -> None:
    console = PlainConsole(width=120, force_terminal=False)
    table = Table("column")
    table.add_row(HOSTILE.replace("[bold]", ""))
    with console.capture() as captured:
        print_line(console, HOSTILE)
        console.print(table)
    lines = captured.get().splitlines()
    assert lines[0] == printable(HOSTILE)
    assert not any(character in captured.get() for character in "\x1b\r\x07\u202e")


def test_a_log_record_is_one_line() -> None:
    record = logging.LogRecord("coe", logging.INFO, "f", 1, "the name %s", (HOSTILE,), None)
    assert "\n" not in TextFormatter().format(record)
    assert "\x1b" not in TextFormatter().format(record)
