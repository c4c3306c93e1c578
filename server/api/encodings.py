"""Content-Encoding and charset of request bodies: gzip and deflate are taken off within the body's limit.

Source: RFC 9110, 8.4 (Content-Encoding), 12.5.3 (Accept-Encoding in a 415); RFC 1950 to 1952 (zlib, deflate, gzip).
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Sequence
from email.message import Message
from typing import Final

from starlette.datastructures import Headers

from ..runtime.errors import BodyTooLargeError, RequestError, UnsupportedBodyError

_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's window bits: with which header
_MOST: Final = 3  # encodings on top of each other
_MOST_MEMBERS: Final = 1000  # of gzip: tools that compress by the block make one of every 64 KiB
_PIECE_BYTES: Final = 64 * 1024
_ALIASES: Final = {"x-gzip": "gzip"}
_TAKEN: Final = ("gzip", "deflate")


def encodings_of(headers: Headers) -> tuple[str, ...]:
    """The encodings of a body, the innermost first. Raises UnsupportedBodyError for one that is not taken."""
    said = [name.strip().lower() for line in headers.getlist("content-encoding") for name in line.split(",")]
    names = tuple(_ALIASES.get(name, name) for name in said if name not in ("", "identity"))
    if unknown := [name for name in names if name not in _TAKEN]:
        raise _refusal(f"Content-Encoding {unknown[0][:40]!r} is not taken")
    if len(names) > _MOST:
        raise _refusal(f"{len(names)} encodings on top of each other are not taken")
    return names


def _refusal(what: str) -> UnsupportedBodyError:
    taken = ", ".join(_TAKEN)
    return UnsupportedBodyError(f"{what}. Send the body as it is, or as {taken}.", {"accept-encoding": taken})


def check_charset(headers: Headers) -> None:
    """Raises UnsupportedBodyError where Content-Type names a charset that JSON is not written in (RFC 8259, 8.1)."""
    parsed = Message()
    parsed["content-type"] = headers.get("content-type", "")
    charset = parsed.get_param("charset")
    if not isinstance(charset, str) or not charset:
        return
    try:
        known = codecs.lookup(charset).name
    except (LookupError, ValueError):
        known = ""
    if known not in ("utf-8", "utf-8-sig", "ascii"):
        raise UnsupportedBodyError(f"Content-Type says charset {charset[:40]!r}. Send JSON in UTF-8.")


def decoded(body: bytes, encodings: Sequence[str], limit: int) -> bytes:
    """The body without its encodings. Never holds more than `limit` decoded bytes.

    Raises BodyTooLargeError where it would; RequestError for what is not encoded as was said.
    """
    for name in reversed(encodings):
        try:
            body = _gunzipped(body, limit) if name == "gzip" else _inflated(body, limit)
        except zlib.error as error:
            what = f"The body is not {name}, though its Content-Encoding says so ({error})."
            raise RequestError(f"{what} Send it whole, or leave the header out.") from error
    return body


def _gunzipped(body: bytes, limit: int) -> bytes:
    """gzip's members, one after the other; zeros may follow.

    Each member is set up anew, and may unpack to nothing: their number is bounded, not their size alone.
    """
    found = bytearray()
    rest = memoryview(body)
    for _ in range(_MOST_MEMBERS):
        reader = zlib.decompressobj(_GZIP)
        while not reader.eof:
            # By the piece: what follows a member's end comes back as a copy.
            piece, rest = rest[:_PIECE_BYTES], rest[_PIECE_BYTES:]
            if not piece:
                raise zlib.error("it ends too early")
            found += _within(reader.decompress(piece, limit - len(found) + 1), limit - len(found), limit)
        rest = memoryview(body)[len(body) - len(rest) - len(reader.unused_data) :]
        if not rest or (rest[0] == 0 and not bytes(rest).lstrip(b"\0")):
            return bytes(found)
    raise RequestError(f"The body has more than {_MOST_MEMBERS:,} gzip members. Compress it in one piece.")


def _inflated(body: bytes, limit: int) -> bytes:
    """deflate with zlib's header, as it is meant, or without, as some clients send it."""
    try:
        reader = zlib.decompressobj(_ZLIB)
        found = _unpacked(reader, body, limit)
    except zlib.error:
        reader = zlib.decompressobj(_RAW)
        found = _unpacked(reader, body, limit)
    if reader.unused_data:
        raise zlib.error("something follows its end")
    return found


def _unpacked(reader: zlib._Decompress, data: bytes, limit: int) -> bytes:
    found = _within(reader.decompress(data, limit + 1), limit, limit)
    if not reader.eof:
        raise zlib.error("it ends too early")
    return found


def _within(found: bytes, room: int, limit: int) -> bytes:
    if len(found) > room:
        raise BodyTooLargeError(
            f"The body is larger than {limit:,} bytes when it is unpacked. Send less, or raise server.max_body_bytes "
            "in the roster."
        )
    return found
