"""What a request's reader has not taken yet: kept in order, joined, bounded."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.engine.errors import SlowReaderError, WorkerDiedError
from coe.engine.pool.inbox import Inbox, Unread
from coe.engine.request import Accepted, CallPiece, Delta, Event, Finish, Finished, Rejected, TokenLogprob

END = Finished("r", Finish.STOP, 1, 0, 1)


async def taken(inbox: Inbox) -> list[Event]:
    """All there is, up to the end."""
    events: list[Event] = []
    while not events or not isinstance(events[-1], Finished | Rejected):
        events.append(await inbox.take())
    return events


async def test_a_reader_that_keeps_pace_gets_every_event_as_it_was() -> None:
    inbox = Inbox()
    sent = [Accepted("r", 1), Delta("r", "a"), Delta("r", "b"), END]
    got = []
    for event in sent:
        inbox.put(event)
        got.append(await inbox.take())
    assert got == sent


async def test_a_reader_waits_for_what_comes() -> None:
    inbox = Inbox()
    reading = asyncio.create_task(inbox.take())
    await asyncio.sleep(0)
    inbox.put(Delta("r", "late"))
    assert await reading == Delta("r", "late")


async def test_a_reader_that_is_behind_gets_the_same_text_in_larger_pieces() -> None:
    inbox = Inbox()
    words = [f"word {n} " for n in range(5000)]
    for word in words:
        inbox.put(Delta("r", word, logprobs=(TokenLogprob(word, [], -1.0, []),)))
    inbox.put(END)
    *deltas, end = await taken(inbox)
    assert end == END
    assert len(deltas) < len(words) / 10
    assert "".join(d.text for d in deltas if isinstance(d, Delta)) == "".join(words)
    assert [entry.token for d in deltas if isinstance(d, Delta) for entry in d.logprobs] == words


async def test_reasoning_stays_before_the_text_it_led_to() -> None:
    inbox = Inbox()
    parts = [Delta("r", text="a"), Delta("r", reasoning="b")] * 50
    for part in parts:
        inbox.put(part)
    inbox.put(END)
    *deltas, _ = await taken(inbox)
    in_order = "".join(d.reasoning + d.text for d in deltas if isinstance(d, Delta))
    assert in_order == "ab" * 50


PARTS = st.sampled_from(
    (
        Delta("r", text="said "),
        Delta("r", reasoning="thought "),
        Delta("r", calls=(CallPiece(0, "read", ""), CallPiece(0, None, '{"path": '))),
        Delta("r", calls=(CallPiece(1, None, "ünï"),)),
        Delta("r", logprobs=(TokenLogprob("said", [], -1.0, []),)),
        Delta("r", calls=(CallPiece(1, None, "x" * 300),)),
    )
)


def _in_order(events: list[Event]) -> list[object]:
    """What a client is told, a letter at a time, in the order within a delta in which it is told."""
    found: list[object] = []
    for event in events:
        assert isinstance(event, Delta)
        found += [("reasoning", letter) for letter in event.reasoning] + [("text", letter) for letter in event.text]
        for piece in event.calls:
            found += [(piece.index, piece.name)] if piece.name is not None else []
            found += [(piece.index, letter) for letter in piece.arguments]
    return found


@given(st.lists(PARTS, min_size=1).map(lambda parts: parts * (60 // len(parts) + 1)))
async def test_whatever_comes_a_reader_that_is_behind_gets_all_of_it_in_its_order(parts: list[Event]) -> None:
    unread = Unread(2**30, 2**30)
    inbox = Inbox(unread=unread)
    for part in parts:
        inbox.put(part)
    inbox.put(END)
    *got, _ = await taken(inbox)
    assert _in_order(got) == _in_order(parts)
    assert [entry for event in got if isinstance(event, Delta) for entry in event.logprobs] == [
        entry for event in parts if isinstance(event, Delta) for entry in event.logprobs
    ]
    assert unread.waiting_bytes == 0


async def test_calls_of_tools_that_wait_count_as_text_does() -> None:
    inbox = Inbox(unread=Unread(1000, 2**30))
    for _ in range(20):
        inbox.put(Delta("r", calls=(CallPiece(0, None, "x" * 100),)))
    assert inbox.ended
    for _ in range(10):
        await inbox.take()
    with pytest.raises(SlowReaderError):
        await inbox.take()


async def test_beyond_the_limit_what_is_there_can_be_read_and_then_the_error_comes() -> None:
    ends: list[str] = []
    inbox = Inbox(lambda: ends.append("end"), unread=Unread(1000, 2**30))
    for n in range(1000):
        inbox.put(Delta("r", f"{n % 10}"))
    assert not inbox.ended
    inbox.put(Delta("r", "too much"))
    assert inbox.ended
    inbox.put(Delta("r", "nothing follows"))
    inbox.put(END)
    text = ""
    with pytest.raises(SlowReaderError, match="waited to be read"):  # noqa: PT012
        while True:
            event = await inbox.take()
            assert isinstance(event, Delta)
            text += event.text
    assert text == "0123456789" * 100
    assert ends == ["end"]


async def test_what_was_read_makes_room() -> None:
    inbox = Inbox(unread=Unread(100, 2**30))
    for _ in range(100):
        inbox.put(Delta("r", "x" * 90))
        await inbox.take()
    assert not inbox.ended


async def test_one_piece_larger_than_the_limit_still_goes_through_to_a_reader_that_keeps_pace() -> None:
    inbox = Inbox(unread=Unread(10, 2**30))
    inbox.put(Delta("r", "x" * 1000))
    assert not inbox.ended
    assert await inbox.take() == Delta("r", "x" * 1000)


async def test_all_together_may_leave_no_more_unread_than_the_total_and_what_is_read_or_left_makes_room() -> None:
    unread = Unread(1000, 2000)
    slow = [Inbox(unread=unread) for _ in range(3)]
    for inbox in slow[:2]:
        for _ in range(10):
            inbox.put(Delta("r", "x" * 100))
    slow[2].put(Delta("r", "a"))  # the first of an empty inbox always comes in
    slow[2].put(Delta("r", "b"))
    assert [inbox.ended for inbox in slow] == [False, False, True]
    assert await slow[2].take() == Delta("r", "a")
    with pytest.raises(SlowReaderError, match=r"more than 1 KB of all answers together waited to be read"):
        await slow[2].take()
    at_pace = Inbox(unread=unread)
    for _ in range(10):
        at_pace.put(Delta("r", "y" * 100))
        await at_pace.take()
    assert not at_pace.ended, "a reader that has taken all pays for no other"
    assert unread.waiting_bytes == 2000
    await slow[0].take()
    slow[1].close()
    assert unread.waiting_bytes == 900
    for _ in range(10):
        slow[0].close()
    assert unread.waiting_bytes == 0


async def test_the_end_is_told_once_before_anything_is_read() -> None:
    for last in (END, Rejected("r", "EngineError", "no")):
        ends: list[str] = []
        inbox = Inbox(lambda ends=ends: ends.append("end"))  # type: ignore[misc]
        inbox.put(Delta("r", "x"))
        inbox.put(last)
        inbox.fail(WorkerDiedError("too late"))
        assert ends == ["end"]
        assert await taken(inbox) == [Delta("r", "x"), last]


async def test_a_worker_that_dies_fails_a_reader_after_what_had_come() -> None:
    inbox = Inbox()
    inbox.put(Delta("r", "x"))
    inbox.fail(WorkerDiedError("It died."))
    assert await inbox.take() == Delta("r", "x")
    with pytest.raises(WorkerDiedError):
        await inbox.take()


async def test_what_each_may_leave_may_differ_and_all_together_count() -> None:
    unread = Unread(10, 100)
    small, large = Inbox(unread=unread), Inbox(unread=unread.with_each(90))
    for _ in range(8):
        large.put(Delta("r", "x" * 10))
    assert not large.ended
    assert unread.waiting_bytes == 80
    small.put(Delta("r", "x" * 10))
    large.put(Delta("r", "x" * 20))
    assert large.ended
    small.close()
    large.close()
    assert unread.waiting_bytes == 0


@given(
    st.lists(st.one_of(st.builds(lambda t: Delta("r", t), st.text()), st.integers(1, 30)), max_size=200),
    st.integers(1, 500),
)
def test_whatever_the_reader_does_it_gets_a_beginning_of_the_text_and_no_more_waits_than_may(
    script: list[Delta | int], limit_bytes: int
) -> None:
    """script: deltas that come, and how many events are read in between."""

    async def play() -> None:
        inbox = Inbox(unread=Unread(limit_bytes, 2**30))
        sent = got = ""
        n_waiting_bytes = 0
        for act in script:
            if isinstance(act, Delta):
                alone = not n_waiting_bytes
                inbox.put(act)
                if not inbox.ended:
                    sent += act.text
                    n_waiting_bytes += len(act.text.encode())
                    assert alone or n_waiting_bytes <= limit_bytes
                continue
            for _ in range(min(act, len(inbox))):
                event = await inbox.take()
                assert isinstance(event, Delta)
                got += event.text
                n_waiting_bytes -= len(event.text.encode())
        while len(inbox):
            event = await inbox.take()
            assert isinstance(event, Delta)
            got += event.text
        assert got == sent

    asyncio.run(play())
