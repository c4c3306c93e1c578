"""Want of memory in a process of llama.cpp: measured, and told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..cards import HOST, cards, place
from ..errors import OutOfMemoryError
from ..shortage import Shortage, card_users
from .devices import devices


def out_of_memory(title: str, shortage: Shortage, named: Sequence[str] = ()) -> OutOfMemoryError:
    """The error for a shortage, with what is free there now, and who else holds it. title: what could not be done.
    named: the cards of the spec."""
    found = cards(devices(named), named)
    card = next((card for card in found if shortage.place in (card.name, "")), None)
    if shortage.place == HOST or card is None:
        return OutOfMemoryError.of(title, shortage)
    return OutOfMemoryError.of(title, replace(shortage, place=place(card), free_bytes=card.free_bytes), card_users())
