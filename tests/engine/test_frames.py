"""Frames over a socket: what goes in comes out, and a broken stream is the end of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.engine import frames

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
MESSAGES = st.dictionaries(st.text(), JSON, max_size=4)


async def read_all(data: bytes) -> list[dict[str, Any]]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    found = []
    while (message := await frames.read(reader)) is not None:
        found.append(message)
    return found


@given(st.lists(MESSAGES, max_size=4))
def test_messages_come_out_as_they_went_in(messages: list[dict[str, Any]]) -> None:
    assert asyncio.run(read_all(b"".join(map(frames.pack, messages)))) == messages


@given(MESSAGES, st.integers(0, 1000))
def test_a_frame_that_is_cut_off_is_the_end(message: dict[str, Any], cut: int) -> None:
    whole = frames.pack(message)
    assert asyncio.run(read_all(whole + whole[: cut % len(whole)])) == [message]


@given(MESSAGES)
def test_piece_by_piece_it_is_the_same_frame(message: dict[str, Any]) -> None:
    assert frames.pack_slowly(message) == frames.pack(message)


@pytest.mark.parametrize("content", ["\0", "\ud800", "🐍", "日本"])
def test_any_text_passes(content: str) -> None:
    assert asyncio.run(read_all(frames.pack({"text": content}))) == [{"text": content}]


def test_a_length_beyond_all_messages_is_the_end() -> None:
    too_long = (frames.MAX_FRAME_BYTES + 1).to_bytes(4, "big")
    assert asyncio.run(read_all(too_long + b"{}")) == []


def test_the_blocking_side_reads_the_same_in_any_pieces() -> None:
    ours, theirs = socket.socketpair()
    message = {"text": "x" * 300_000}
    sender = threading.Thread(target=lambda: (ours.sendall(frames.pack(message) * 2), ours.close()))
    sender.start()
    with theirs:
        assert frames.receive(theirs) == message
        assert frames.receive(theirs) == message
        assert frames.receive(theirs) is None
    sender.join()


def test_the_blocking_side_ends_with_a_cut_frame() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frames.pack({"a": 1})[:-1])
        ours.shutdown(socket.SHUT_WR)
        assert frames.receive(theirs) is None
