"""A bounded memory of conversations, and what recognises them."""

from coe.router.conversation import Conversation, ConversationKey
from coe.router.memory import ConversationMemory


def test_the_key_unused_for_longest_is_forgotten_first():
    memory = ConversationMemory(2)
    memory.remember(["a"], "math")
    memory.remember(["b"], "law")
    assert memory.recall(["a"]) == "math"
    memory.remember(["c"], "chat")
    assert [name for name in "abc" if name in memory] == ["a", "c"]
    assert len(memory) == 2


def test_the_first_key_that_is_known_decides():
    memory = ConversationMemory()
    memory.remember(["session", "turn"], "math")
    memory.remember(["turn"], "law")
    assert memory.recall(["unknown", "session", "turn"]) == "math"
    assert memory.recall(["turn", "session"]) == "law"
    assert memory.recall(["unknown"]) is None
    assert memory.recall([]) is None


TURNS = [
    {"role": "user", "content": "What is the derivative of x squared?"},
    {"role": "assistant", "content": "2x."},
    {"role": "user", "content": "and of x cubed?"},
]


def key(n_turns, session_id=None):
    return ConversationKey.of(Conversation.from_messages(TURNS[:n_turns]), session_id)


def test_a_conversation_is_recognised_at_its_next_turn_by_the_turn_before():
    first, next_turn = key(1), key(3)
    assert next_turn.earlier(same_turn=False) == first.now()
    assert first.earlier(same_turn=False) == []
    assert next_turn.n_old_chars == sum(len(turn["content"]) for turn in TURNS[:2])


def test_the_same_turn_is_looked_for_only_where_asked():
    assert key(3).now()[0] in key(3).earlier(same_turn=True)
    assert key(3).now()[0] not in key(3).earlier(same_turn=False)


def test_the_clients_own_name_for_a_conversation_comes_first():
    named, other = key(3, "chat-1"), key(1, "chat-1")
    assert named.earlier(same_turn=True)[0] == other.now()[0]
    assert key(3, "chat-2").earlier(same_turn=False)[0] != other.now()[0]
    assert key(3, "").session is None
