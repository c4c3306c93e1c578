"""Strings of a schema as lexemes of llguidance's Lark dialect, for families that write them without JSON's escapes.

Source of the dialect: llguidance, docs/syntax.md; patterns are regular expressions of Rust's regex-syntax.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...errors import GrammarError

ANYTHING: Final = r"(?s:.*)"
_MOST_CHARS: Final = 20_000  # a lexeme that counts further than that costs more than it helps
_SIMPLIFY: Final = "Leave it out, or say it in a simpler way."
_WORDS: Final = frozenset(("type", "pattern", "minLength", "maxLength", "format", "allOf"))

_OCTET: Final = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HOST: Final = "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
_TIME: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?([Zz]|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])"
_DATE: Final = (
    "([1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
    "|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    "|([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29)"
)
_SECONDS: Final = "T([0-9]{1,3}H([0-9]{1,2}M)?([0-9]{1,2}S)?|[0-9]{1,3}M([0-9]{1,2}S)?|[0-9]{1,3}S)"
# Narrower than the formats are: what a model writes that means one.
# Source: JSON Schema 2020-12, validation, section 7.3.
_FORMATS: Final[Mapping[str, str]] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P([0-9]{{1,3}}W|([0-9]{{1,3}}D)({_SECONDS})?|{_SECONDS})",
    "email": rf"[a-zA-Z0-9_+\-]{{1,30}}(\.[a-zA-Z0-9_+\-]{{1,30}}){{0,3}}@{_HOST}(\.{_HOST}){{1,4}}",
    "hostname": rf"{_HOST}(\.{_HOST}){{0,5}}",
    "ipv4": rf"{_OCTET}(\.{_OCTET}){{3}}",
    "ipv6": "([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|([0-9a-f]{1,4}:){1,3}(:[0-9a-f]{1,4}){1,3}|::1?",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "uri": rf"[a-z][a-z0-9+.\-]{{0,15}}:\/\/{_HOST}(\.{_HOST}){{0,5}}(:[0-9]{{1,5}})?"
    r"(\/[a-zA-Z0-9\-._~!$&'()*+,;=:@]*)*(\?[a-zA-Z0-9\-._~!$&'()*+,;=:@\/?]*)?",
}


def lexeme(node: Mapping[str, Any], *without: str) -> str:
    """The body of a lexeme for the texts that a schema of strings allows. without: regular expressions of what they may
    not hold.

    Raises GrammarError for what cannot be said so.
    """
    words = {word: node[word] for word in _WORDS if word in node}
    parts = [_regex(part) for part in _constraints(words)]
    parts += [f"~{_regex(f'{ANYTHING}({part}){ANYTHING}')}" for part in without]
    return " & ".join(parts or [_regex(ANYTHING)])


def literals(texts: Sequence[str]) -> str:
    """The body of a lexeme for one of some texts."""
    return _regex("|".join(map(escaped, texts)))


def escaped(text: str) -> str:
    """A text as a regular expression."""
    return "".join(char if char.isalnum() and char.isascii() else f"\\x{{{ord(char):x}}}" for char in text) or "()"


def _regex(pattern: str) -> str:
    return f"/{pattern}/"


def _constraints(node: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    least, most = int(node.get("minLength", 0)), node.get("maxLength")
    if max(least, int(most or 0)) > _MOST_CHARS:
        raise _refused(f"a string's length of more than {_MOST_CHARS:,} characters")
    if least or most is not None:
        found.append(f"(?s:.{{{least},{int(most) if most is not None else ''}}})")
    if "pattern" in node:
        found.append(_search(str(node["pattern"])))
    if "format" in node:
        if node["format"] not in _FORMATS:
            raise _refused(f"the format {node['format']!r:.60}")
        found.append(_FORMATS[node["format"]])
    for part in node.get("allOf") or ():
        if not isinstance(part, Mapping) or not set(part) <= _WORDS or part.get("type", "string") != "string":
            raise _refused("allOf of a string with more than patterns and lengths")
        found += _constraints(part)
    return found or [ANYTHING]


# What another dialect of regular expressions would read in its own way, or not at all.
_FOREIGN: Final = re.compile(r"\(\?(?!:)|\\[bB1-9kGAzZpPcQE]|&&|~~|--|\[\[|\[[^\]]*(?<!\\)\[")


def _search(pattern: str) -> str:
    """A pattern of a schema, which is searched for, as one that fits a whole text. Raises GrammarError."""
    anchors = [at for at, char in _outside_classes(pattern) if char in "^$"]
    begins, ends = pattern.startswith("^"), bool(anchors) and anchors[-1] == len(pattern) - 1 and pattern.endswith("$")
    inner = pattern[begins : len(pattern) - ends if ends else None]
    alternatives = any(char == "|" for _, char in _outside_groups(inner))
    if len(anchors) > begins + ends or (alternatives and anchors):
        raise _refused(f"the pattern {pattern[:80]!r}, with an anchor within or beside alternatives")
    try:
        re.compile(pattern)
    except re.error:
        raise _refused(f"the pattern {pattern[:80]!r}") from None
    if _FOREIGN.search(inner):
        raise _refused(f"the pattern {pattern[:80]!r}")
    return f"{'' if begins else ANYTHING}({_translated(inner)}){'' if ends else ANYTHING}"


# Classes on which dialects differ, narrowed to what all of them mean.
_CLASSES: Final[Mapping[str, str]] = {"d": "0-9", "w": "A-Za-z0-9_", "s": r" \t\n\r\f\v"}
_BARE: Final[Mapping[str, str]] = {"/": r"\/", "\n": r"\n", "\r": r"\r"}


def _translated(pattern: str) -> str:
    """A pattern in the dialect of lexemes."""
    found: list[str] = []
    in_class, at = False, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\" and at + 1 < len(pattern):
            escape = pattern[at + 1]
            if escape in _CLASSES:
                found.append(_CLASSES[escape] if in_class else f"[{_CLASSES[escape]}]")
            elif escape == "S" and not in_class:
                found.append(r"[^\s\x1c-\x1f]")
            else:
                found.append(char + escape)
            at += 2
            continue
        in_class = char != "]" if in_class else char == "["
        found.append(_BARE.get(char, char))
        at += 1
    return "".join(found)


def _outside_classes(pattern: str) -> list[tuple[int, str]]:
    """The characters of a pattern, with their places, that are neither escaped nor in a class."""
    found: list[tuple[int, str]] = []
    at, in_class = 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 2
            continue
        if in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        else:
            found.append((at, char))
        at += 1
    return found


def _outside_groups(pattern: str) -> list[tuple[int, str]]:
    depth, found = 0, []
    for at, char in _outside_classes(pattern):
        depth += (char == "(") - (char == ")")
        if not depth:
            found.append((at, char))
    return found


def _refused(what: str) -> GrammarError:
    return GrammarError(f"response_format.json_schema: {what} cannot be followed in this model's calls.", _SIMPLIFY)
