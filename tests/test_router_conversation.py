"""What is read of a conversation."""

import pytest

from coe.router import Conversation
from coe.router.conversation import chore_of, is_follow_up, question_of


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_the_newest_human_text_counts_most_and_the_system_prompt_least():
    conversation = Conversation.from_messages(
        [
            {"role": "system", "content": "You are a helpful assistant."},
            user("Find the integral of x squared from zero to one."),
            assistant("1/3"),
            user("Which French wine goes with a mushroom risotto for six guests?"),
        ]
    )
    assert conversation.passages[0].text.startswith("Which French wine")
    assert conversation.passages[0].weight > 0.8
    assert sum(p.weight for p in conversation.passages) == pytest.approx(1)
    alone = Conversation.from_messages([{"role": "system", "content": "You are a lawyer."}, user("How do tides work?")])
    assert alone.passages[0].weight > 0.8


def test_a_short_follow_up_leans_on_what_went_before():
    conversation = Conversation.from_messages([user("Solve x^2 = n for n = 4"), assistant("2"), user("and for n = 5?")])
    assert conversation.follow_up
    assert conversation.passages[1].weight >= conversation.passages[0].weight


@pytest.mark.parametrize("text", ["and for n = 5?", "commit it", "thanks!", "why?", "make it shorter please"])
def test_replies_that_say_little_are_follow_ups(text):
    assert is_follow_up(text)


@pytest.mark.parametrize(
    "text",
    [
        "Translate the following sentence into French: good morning",
        "What are the early symptoms of type 2 diabetes in adults?",
        "and now for something different, please explain the commerce clause of the constitution",
    ],
)
def test_full_questions_are_no_follow_ups(text):
    assert not is_follow_up(text)


def test_the_first_message_of_a_conversation_is_no_follow_up():
    assert not Conversation.from_text("thanks").follow_up


def test_code_and_pasted_documents_do_not_drown_the_question():
    code = "```python\n" + "x = compute(x)\n" * 500 + "```"
    text = question_of(f"Is this contract clause enforceable?\n{code}\nPlease answer for Austria.")
    assert len(text) < 600
    assert "enforceable" in text
    assert "Austria" in text
    long = question_of("Summarise the verdict.\n" + "lorem ipsum " * 5000 + "\nWho won?")
    assert len(long) < 5000
    assert long.startswith("Summarise")
    assert long.endswith("Who won?")
    quoted = question_of("> an old mail\n" * 400 + "Can you answer this politely?")
    assert len(quoted) < 400


def test_the_humans_words_are_taken_out_of_a_retrieval_prompt():
    text = (
        "### Task:\nRespond to the user query using the provided context.\n<context><source id='1'>"
        + "Heart rate and blood pressure. " * 300
        + "</source></context>\n<user_query>Which sorting algorithm is stable?</user_query>"
    )
    assert question_of(text) == "Which sorting algorithm is stable?"
    assert chore_of(text) is None


@pytest.mark.parametrize(
    ("text", "chore"),
    [
        ("### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n### ...", "title"),
        ("### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history", "tags"),
        ("### Task:\nSuggest 3-5 relevant follow-up questions or prompts that the user might ask", "follow-ups"),
        ("### Task:\nYou are an autocompletion system. Continue the text in `<text>`", "autocompletion"),
        (
            "### Task:\nAnalyze the chat history to determine the necessity of generating search queries",
            "search queries",
        ),
        ("Provide a concise, 5-word-or-less title for the conversation, using its same language", "title"),
        ("Create a concise, 3-5 word title with an emoji for the following query: hello", "title"),
    ],
)
def test_chores_of_chat_clients_are_recognised(text, chore):
    assert chore_of(text) == chore
    assert Conversation.from_text(text).chore == chore


@pytest.mark.parametrize(
    "text",
    [
        "Suggest a title for my essay about whales",
        "Write five tags for my blog post on sourdough",
        "What follow-up questions should a doctor ask a patient with headaches?",
        "Implement an autocompletion system for a search box in JavaScript",
        "### Task:\nWrite a function that sorts a list.",
    ],
)
def test_people_who_ask_for_titles_and_tags_are_not_taken_for_a_client(text):
    assert chore_of(text) is None


def test_a_tool_exchange_is_a_pending_call_or_a_fresh_result():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    result = {"role": "tool", "tool_call_id": "1", "content": "42"}
    assert Conversation.from_messages([user("look it up"), call]).tool_exchange
    assert Conversation.from_messages([user("look it up"), call, result]).tool_exchange
    done = [user("look it up"), call, result, assistant("42"), user("thanks")]
    assert not Conversation.from_messages(done).tool_exchange


def test_a_client_that_sends_its_history_again_is_recognised():
    first = Conversation.from_messages([user("Prove it.")])
    second = Conversation.from_messages([user("Prove it."), assistant("Done."), user("again, slower")])
    other = Conversation.from_messages([user("Prove that."), assistant("Done."), user("again, slower")])
    assert first.before is None
    assert second.before == first.here
    assert other.before != first.here


def test_a_system_prompt_that_tells_the_time_does_not_hide_a_conversation():
    at_ten = Conversation.from_messages([{"role": "system", "content": "It is 10:00"}, user("Hi there")])
    at_eleven = Conversation.from_messages(
        [{"role": "system", "content": "It is 11:00"}, user("Hi there"), assistant("Hi"), user("and now?")]
    )
    assert at_eleven.before == at_ten.here


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": "   "}],
        [{"role": "system", "content": "You are a lawyer."}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": 7}, "odd", None]}],
        [{"role": 3, "content": 4}],
    ],
)
def test_messages_without_anything_to_read_give_no_passages(messages):
    assert Conversation.from_messages(messages).passages == ()


@pytest.mark.parametrize(
    "text",
    [
        "\ud800 lone",
        "a\0b",
        "x" * 1_000_000,
        "`" * 200_000,
        "```\n" * 50_000,
        "> \n" * 100_000,
        "<source>" * 50_000,
        "<user_query>" * 50_000,
        "İ<context>" * 20_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_strange_and_enormous_texts_are_read_without_harm(text):
    conversation = Conversation.from_messages([user(text), assistant(text), user(text)])
    assert all(len(p.text) < 10_000 for p in conversation.passages)
    assert conversation.here


def test_text_parts_are_read_in_order():
    parts = [{"type": "text", "text": "Which court"}, {"type": "text", "text": "hears appeals?"}]
    assert Conversation.from_messages([user(parts)]).passages[0].text == "Which court\nhears appeals?"
