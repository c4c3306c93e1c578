"""Texts of strangers as one line of a terminal or a log: nothing in them acts on the terminal, forges a line, or fills
a page.

Names and templates come out of files that other people made, tags and names from clients. A terminal obeys escape
sequences in them, a line break begins a log line of their own, and bidirectional controls show something else than
what is there (Source: Unicode TR 36, 2.6).
"""

from __future__ import annotations

import re
from typing import Final

# C0, DEL and C1 controls; line and paragraph separators; bidirectional and invisible controls; half surrogates; tags.
UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_KEPT_AT_END: Final = 0.3  # of a text that is cut: the end of a message often says what is wrong


def printable(text: str, most: int = 2000) -> str:
    """The text with what acts on a terminal written as escapes (`\\x1b`, `\\u202e`), cut in its middle if long.

    most: characters of the text that are kept.
    """
    if len(text) > most:
        end = int(most * _KEPT_AT_END)
        text = f"{text[: most - end]} [...] {text[len(text) - end :]}"
    return UNPRINTABLE.sub(_escaped, text)


def quoted(text: object, most: int = 60) -> str:
    """A name out of a file or a request, in quotes, for a message: `'gemma4'`, `'\\x1b[2J'`."""
    return f"'{printable(str(text), most)}'"


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
