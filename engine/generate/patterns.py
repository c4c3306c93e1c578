r"""A JSON schema's regular expressions, written so that the grammar library reads in them what JSON Schema means.

Two things differ. In a class, llguidance's dialect (Rust's) takes `[`, `&&`, `--` and `~~` for operations on sets,
which they are nowhere else. And where a class has all control characters in it, as `[^"]` has, the library lets `"` and
`\` come for it even if these are what it excludes: it then takes every escape of a JSON text for one of a control
character. Without U+0000, which a pattern's texts are not given, that does not happen.
"""

from __future__ import annotations

import re
from typing import Final

# One character or escape.
_ONE: Final = r"(?:\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|[xupP]\{[^}]*\}|.)|[^\\])"
_ATOM: Final = re.compile(_ONE, re.DOTALL)
# One of a class, or a range.
_MEMBER: Final = re.compile(rf"({_ONE})(?:-(?!\])({_ONE}))?", re.DOTALL)
_PROPERTY: Final = re.compile(r"\\[pP](?:\{[^}]*\}|.)")
_SPECIAL: Final = frozenset("[]&~-^")


def as_the_library_reads(pattern: str) -> str:
    """The same pattern, or one that matches the same texts but for such with U+0000 in them."""
    out: list[str] = []
    at = 0
    while at < len(pattern):
        if pattern[at] == "[":
            text, at = _class(pattern, at)
        elif found := _PROPERTY.match(pattern, at):
            text, at = f"[{found[0]}&&[^\\x00]]", found.end()
        else:
            found = _ATOM.match(pattern, at)
            text, at = (found[0], found.end()) if found else (pattern[at:], len(pattern))
        out.append(text)
    return "".join(out)


def _class(pattern: str, begin: int) -> tuple[str, int]:
    """The class that begins at a bracket, and where it ends; the rest of the pattern as it is where it does not end."""
    at = begin + 1
    negated = pattern.startswith("^", at)
    at += negated
    members: list[str] = []
    while at < len(pattern) and (pattern[at] != "]" or not members):
        found = _MEMBER.match(pattern, at)
        if found is None:
            return pattern[begin:], len(pattern)
        members.append("-".join(_plain(end) for end in found.groups() if end is not None))
        at = found.end()
    if at == len(pattern):
        return pattern[begin:], at
    body = "".join(members)
    if not _loses_quotes(f"[{'^' * negated}{body}]"):
        return f"[{'^' * negated}{body}]", at + 1
    return (f"[^\\x00{body}]" if negated else f"[[{body}]&&[^\\x00]]"), at + 1


def _plain(atom: str) -> str:
    if atom == r"\b":
        return r"\x08"
    return f"\\{atom}" if atom in _SPECIAL else atom


def _loses_quotes(written: str) -> bool:
    """Whether it is one of the classes that the library widens. One that Python cannot read may be one."""
    try:
        read = re.compile(written)
    except re.error:
        return True
    return read.fullmatch("\0") is not None and not (read.fullmatch('"') and read.fullmatch("\\"))
