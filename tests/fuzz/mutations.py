"""Mutations of files: of any bytes, of the words of a text, and of the fields of a GGUF header."""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct
from collections.abc import Iterator
from typing import Final

_NUMBERS: Final = (0, 1, 2, 3, 4, 7, 8, 9, 12, 31, 127, 128, 255, 256, 2**15, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1,
                   2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
_WORDS: Final = (
    "0", "-1", "1e999", "NaN", "Infinity", "null", "true", "[]", "{}", '""', "9" * 400, "9" * 5000, "[" * 3000,
    '"\\u001b[2J\\u0007"', '"\\ud800"', '"a\\nb"', "*d", "<<: *d", "&d [*d]", "!!python/object:os.system x",
    '"[bold red]"', "1_0", "0x10", "00", "~", "\x1b]0;t\x07", "\u202e", "2024-13-45", "'", '"', ":", "\t",
)  # fmt: skip
_WORD: Final = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?\d+(?:\.\d+)?|[A-Za-z_]+')


def of_bytes(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, removed, repeated or put in; or the end cut off."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at = draw.randrange(len(data))
        length = draw.choice((1, 2, 4, 8, 64, 1024))
        match draw.randrange(6):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                width = draw.choice((1, 2, 4, 8))
                data[at : at + width] = (draw.choice(_NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length] * draw.choice((1, 2, 100))
            case 4:
                data[at:at] = draw.choice((b"\x1b[2J", b"\0" * 8, b"\xff" * 8, draw.randbytes(length)))
            case 5:
                del data[at:]
    return bytes(data)


def of_words(content: bytes, draw: random.Random) -> bytes:
    """Some words of a text (JSON, YAML) replaced, doubled, or nested; seldom its bytes, or a line of it very often."""
    chance = draw.random()
    if chance < 0.15:
        return of_bytes(content, draw)
    if chance < 0.2:
        lines = content.splitlines(keepends=True)
        at = draw.randrange(len(lines))
        # Not more: 100,000 questions are work for minutes, and no hang.
        return b"".join([*lines[:at], lines[at] * draw.choice((2, 100, 5_000)), *lines[at + 1 :]])
    words = list(_WORD.finditer(content))
    for word in sorted(draw.sample(words, min(len(words), draw.choice((1, 1, 2, 5)))), key=lambda w: -w.start()):
        other = draw.choice(words)[0]
        new = draw.choice(
            (draw.choice(_WORDS).encode(), other, word[0] + other, b"[" + word[0] + b"," + other + b"]", b"")
        )
        content = content[: word.start()] + new + content[word.end() :]
    return content


def of_head(content: bytes, description: bytes, draw: random.Random) -> tuple[bytes, bytes]:
    """A head's arrays, its description, or both; with the hash that goes with it, or nothing else would be read."""
    changed = of_bytes(content, draw) if draw.random() < 0.7 else content
    about = json.loads(description) | {"sha256": hashlib.sha256(changed).hexdigest()}
    told = json.dumps(about).encode()
    return changed, told if changed != content else of_words(told, draw)


def of_gguf(content: bytes, draw: random.Random) -> bytes:
    """Some fields of a header with numbers that make readers allocate, loop, overflow or look elsewhere."""
    if draw.random() < 0.2:
        return of_bytes(content[: _header_end(content)], draw) + content[_header_end(content) :]
    data = bytearray(content)
    fields = list(_fields(content))
    # A header has a handful of counts and hundreds of shapes: each kind of field gets its turn.
    kinds = sorted({kind for kind, _, _ in fields})
    for _ in range(draw.choice((1, 1, 2, 3))):
        wanted = draw.choice(kinds)
        _, at, width = draw.choice([field for field in fields if field[0] == wanted])
        if wanted in ("key", "name", "text"):
            data[at : at + width] = draw.choice((b"\x1b[2J\n", b"\xff", b"%s%n", b"blk.99999.", b"A"))[:width].ljust(
                width
            )
        else:
            data[at : at + width] = (draw.choice(_NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")
    return bytes(data)


_WIDTHS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _fields(content: bytes) -> Iterator[tuple[str, int, int]]:
    """Kind, place and width of every field of a sound header. Source: docs/gguf.md of ggml."""
    yield from (("version", 4, 4), ("tensors", 8, 8), ("keys", 16, 8))
    n_tensors, n_keys = struct.unpack_from("<QQ", content, 8)
    at = 24
    for _ in range(n_keys):
        at = yield from _text("key", content, at)
        (kind,) = struct.unpack_from("<I", content, at)
        yield "type", at, 4
        at += 4
        if kind in _WIDTHS:
            yield "value", at, _WIDTHS[kind]
            at += _WIDTHS[kind]
        elif kind == 8:
            at = yield from _text("text", content, at)
        else:
            inner, count = struct.unpack_from("<IQ", content, at)
            yield "inner", at, 4
            yield "count", at + 4, 8
            at += 12
            for _ in range(count):
                if inner == 8:
                    at = yield from _text("text", content, at)
                else:
                    yield "element", at, _WIDTHS[inner]
                    at += _WIDTHS[inner]
    for _ in range(n_tensors):
        at = yield from _text("name", content, at)
        (n_dimensions,) = struct.unpack_from("<I", content, at)
        yield "dimensions", at, 4
        for place in range(n_dimensions):
            yield "shape", at + 4 + 8 * place, 8
        at += 4 + 8 * n_dimensions
        yield "tensor type", at, 4
        yield "offset", at + 4, 8
        at += 12
    yield "end", at - 1, 1


def _text(kind: str, content: bytes, at: int) -> Iterator[tuple[str, int, int]]:
    (length,) = struct.unpack_from("<Q", content, at)
    yield "length", at, 8
    if length:
        yield kind, at + 8, length
    return at + 8 + length  # for `yield from`


def _header_end(content: bytes) -> int:
    return max(at + width for _, at, width in _fields(content))
