"""Calls of tools as answers tell of them: what each is known by, and the pieces in which a stream has it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from coe.engine.request import CallPiece

from ...runtime.answer import Answer


def call_id(answer: Answer, choice: int, number: int, prefix: str = "call_") -> str:
    """What a call is known by, the same whenever it is asked for."""
    told = f"{answer.id}/{choice}/{number}".encode()
    return f"{prefix}{hashlib.blake2b(told, digest_size=12).hexdigest()}"


def in_pieces(pieces: Iterable[CallPiece]) -> Iterable[CallPiece]:
    """Names apart from arguments, and the arguments of one call that come together as one piece."""
    held: CallPiece | None = None
    for piece in pieces:
        if held is not None and (piece.name is not None or piece.index != held.index):
            yield held
            held = None
        if piece.name is not None:
            yield replace(piece, arguments="")
        if piece.arguments:
            before = held.arguments if held is not None else ""
            held = CallPiece(piece.index, None, before + piece.arguments)
    if held is not None:
        yield held
