"""Which resident has a conversation in its cache."""

from __future__ import annotations

from coe.router.conversation import Conversation
from coe.server.runtime.affinity import Homes, Thread

TURNS = [
    {"role": "user", "content": "What is the derivative of x squared?"},
    {"role": "assistant", "content": "2x."},
    {"role": "user", "content": "and of x cubed?"},
]


def thread(n_turns: int) -> Thread:
    """The conversation when so many of its messages were there."""
    return Thread.of(Conversation.from_messages(TURNS[:n_turns]))


def test_a_conversation_is_found_where_it_was_at_its_turn_before() -> None:
    homes = Homes()
    homes.note("math", thread(1), "A")
    resident, seconds = homes.find("math", thread(3), tokens_per_s=10)
    assert resident == "A"
    assert seconds == (len(TURNS[0]["content"]) + len(TURNS[1]["content"])) / 4 / 10


def test_the_same_turn_again_has_all_of_it_there() -> None:
    homes = Homes()
    homes.note("math", thread(1), "A")
    homes.note("math", thread(3), "B")
    resident, seconds = homes.find("math", thread(3), tokens_per_s=10)
    assert resident == "B"
    assert seconds == sum(len(turn["content"]) for turn in TURNS) / 4 / 10


def test_the_same_words_about_another_document_are_read_anew() -> None:
    homes = Homes()
    asked = "<document>{}</document>\nTranslate it into French."
    first, other = (Thread.of(Conversation.from_text(asked.format(text * 200))) for text in ("One. ", "Another. "))
    assert first.here == other.here
    homes.note("math", first, "A")
    assert homes.find("math", first, tokens_per_s=10)[1] > 0
    assert homes.find("math", other, tokens_per_s=10) == ("A", 0.0)


def test_what_swaps_have_cost_at_home_is_taken_off_until_it_moves() -> None:
    homes = Homes()
    first, again = thread(1), thread(3)
    whole = homes_worth(again)
    homes.note("math", first, "A", swap_s=0.5)
    assert homes.find("math", again, 10) == ("A", whole), "its first answer was not at home yet"
    homes.note("math", again, "A", swap_s=0.5)
    at_turn = sum(len(turn["content"]) for turn in TURNS) / 4 / 10
    assert homes.find("math", again, 10) == ("A", at_turn - 0.5)
    for _ in range(5):
        homes.note("math", again, "A", swap_s=0.5)
    assert homes.find("math", again, 10) == ("A", 0.0)
    homes.note("math", again, "B", swap_s=0.5)
    assert homes.find("math", again, 10) == ("B", at_turn)


def homes_worth(again: Thread) -> float:
    """Seconds to read what was there before the newest turn."""
    return again.n_old_chars / 4 / 10


def test_others_have_not_read_it() -> None:
    homes = Homes()
    homes.note("math", thread(1), "A")
    assert homes.find("law", thread(3), 10) == (None, 0.0)
    assert homes.find("math", Thread.of(Conversation.from_text("Another one?")), 10) == (None, 0.0)
    assert homes.find("math", Thread.of(Conversation.from_messages([])), 10) == (None, 0.0)


def test_the_longest_unused_is_forgotten() -> None:
    homes = Homes(remembered=1)
    homes.note("math", thread(1), "A")
    homes.note("math", Thread.of(Conversation.from_text("Another one?")), "B")
    homes.note("math", Thread.of(Conversation.from_messages([])), "C")
    assert homes.find("math", thread(1), 10) == (None, 0.0)
    assert homes.find("math", Thread.of(Conversation.from_text("Another one?")), 10)[0] == "B"
