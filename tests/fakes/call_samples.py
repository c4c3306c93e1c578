"""Random calls of tools, with whatever makes reading them hard in their arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from coe.engine.generate.tools.family import Family
from coe.engine.generate.tools.find import FAMILIES
from coe.engine.generate.tools.xml_call import XmlCalls
from coe.engine.request import Tool

_PARAMETERS: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "text": {"type": "string"},
        "lines": {"type": "integer"},
        "new": {"type": "boolean"},
        "note": {"type": ["string", "null"]},
        "tags": {"type": "array"},
        "more": {"type": "object", "additionalProperties": True},
    },
}
TOOLS = {name: Tool(name, parameters=_PARAMETERS) for name in ("write_file", "add", "get-weather.v2")}

_TAGS = sorted({tag for family in FAMILIES for tag in (*family.tags, *family.openings)})
_MARKUP = [
    *_TAGS,
    "<parameter=text>",
    "</parameter>",
    "</function>",
    "\n",
    '"',
    "\\",
    "{",
    "}",
    "```\n",
    "'",
    ",",
    ": ",
]
TEXTS = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(_MARKUP), max_size=6).map("".join)).filter(
    lambda text: not re.search("[\ufdd0-\ufdef\ud800-\udfff]", text)
)
KEYS = st.from_regex(r"[A-Za-z_$][A-Za-z0-9_. -]{0,6}[a-z]", fullmatch=True)
NUMBERS = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "path": TEXTS,
        "text": TEXTS,
        "lines": st.integers(-(10**9), 10**9),
        "new": st.booleans(),
        "note": st.none() | TEXTS,
        "tags": st.lists(VALUES, max_size=3),
        "more": st.dictionaries(KEYS, VALUES, max_size=3),
    },
)
CALLS = st.lists(st.tuples(st.sampled_from(sorted(TOOLS)), ARGUMENTS), min_size=1, max_size=3)


def _texts_in(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _texts_in(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts_in(inner)]
    return [value] if isinstance(value, str) else []


def can_be_told(family: Family, calls: list[tuple[str, Mapping[str, Any]]], *, tokens: bool) -> bool:
    """Notations without escapes cannot hold what ends a text; all others hold anything."""
    texts = [text for _, given in calls for text in _texts_in(given)]
    if family.name == "gemma4":
        return tokens or not any('<|"|>' in text for text in texts)
    if isinstance(family, XmlCalls):
        markup = family.markup
        if tokens and markup.value_end in family.tags:
            ends = r"(?!)"
        else:
            after = "|".join(re.escape(mark) for mark in (markup.key, markup.end, markup.closing) if mark)
            ends = rf"{re.escape(markup.value_end)}\s*({after}|\Z)"
        notes = [given["note"] for _, given in calls if given.get("note") is not None]
        return not any(re.search(ends, text) for text in texts) and not any(_is_json(note) for note in notes)
    return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return text.strip() in ("None", "True", "False")
    return True
