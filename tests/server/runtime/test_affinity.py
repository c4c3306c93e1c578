"""Which resident has a conversation in its cache."""

from __future__ import annotations

from coe.router.conversation import Conversation, ConversationKey
from coe.server.runtime.affinity import Affinity

TURNS = [
    {"role": "user", "content": "What is the derivative of x squared?"},
    {"role": "assistant", "content": "2x."},
    {"role": "user", "content": "and of x cubed?"},
]


def key(n_turns: int) -> ConversationKey:
    """The conversation when so many of its messages were there."""
    return ConversationKey.of(Conversation.from_messages(TURNS[:n_turns]))


def test_a_conversation_is_found_where_it_was_at_its_turn_before() -> None:
    affinity = Affinity()
    affinity.record("math", key(1), "A")
    resident, seconds = affinity.find("math", key(3), tokens_per_s=10)
    assert resident == "A"
    assert seconds == (len(TURNS[0]["content"]) + len(TURNS[1]["content"])) / 4 / 10


def test_the_same_turn_again_has_all_of_it_there() -> None:
    affinity = Affinity()
    affinity.record("math", key(1), "A")
    affinity.record("math", key(3), "B")
    resident, seconds = affinity.find("math", key(3), tokens_per_s=10)
    assert resident == "B"
    assert seconds == sum(len(turn["content"]) for turn in TURNS) / 4 / 10


def test_the_same_words_about_another_document_are_read_anew() -> None:
    affinity = Affinity()
    asked = "<document>{}</document>\nTranslate it into French."
    first, other = (
        ConversationKey.of(Conversation.from_text(asked.format(text * 200))) for text in ("One. ", "Another. ")
    )
    assert first.here == other.here
    affinity.record("math", first, "A")
    assert affinity.find("math", first, tokens_per_s=10)[1] > 0
    assert affinity.find("math", other, tokens_per_s=10) == ("A", 0.0)


def test_what_swaps_have_cost_at_home_is_taken_off_until_it_moves() -> None:
    affinity = Affinity()
    first, again = key(1), key(3)
    whole = worth(again)
    affinity.record("math", first, "A", swap_s=0.5)
    assert affinity.find("math", again, 10) == ("A", whole), "its first answer was not at home yet"
    affinity.record("math", again, "A", swap_s=0.5)
    at_turn = sum(len(turn["content"]) for turn in TURNS) / 4 / 10
    assert affinity.find("math", again, 10) == ("A", at_turn - 0.5)
    for _ in range(5):
        affinity.record("math", again, "A", swap_s=0.5)
    assert affinity.find("math", again, 10) == ("A", 0.0)
    affinity.record("math", again, "B", swap_s=0.5)
    assert affinity.find("math", again, 10) == ("B", at_turn)


def worth(again: ConversationKey) -> float:
    """Seconds to read what was there before the newest turn."""
    return again.n_old_chars / 4 / 10


def test_others_have_not_read_it() -> None:
    affinity = Affinity()
    affinity.record("math", key(1), "A")
    assert affinity.find("law", key(3), 10) == (None, 0.0)
    assert affinity.find("math", ConversationKey.of(Conversation.from_text("Another one?")), 10) == (None, 0.0)
    assert affinity.find("math", ConversationKey.of(Conversation.from_messages([])), 10) == (None, 0.0)


def test_the_longest_unused_is_forgotten() -> None:
    affinity = Affinity(remembered=1)
    affinity.record("math", key(1), "A")
    affinity.record("math", ConversationKey.of(Conversation.from_text("Another one?")), "B")
    affinity.record("math", ConversationKey.of(Conversation.from_messages([])), "C")
    assert affinity.find("math", key(1), 10) == (None, 0.0)
    assert affinity.find("math", ConversationKey.of(Conversation.from_text("Another one?")), 10)[0] == "B"
