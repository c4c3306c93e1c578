"""Courtesies say nothing of a subject."""

from __future__ import annotations

import pytest

from coe.router.conversation import Conversation
from coe.router.courtesy import without_courtesies

QUESTION = "How do tides work?"


@pytest.mark.parametrize(
    "text",
    [
        "Hi! {} Thanks!",
        "Hello there, {}",
        "Good morning! {} Thank you very much in advance.",
        "Dear assistant, I hope this message finds you well. {} Kind regards, Tom",
        "Sorry to bother you again. {}",
        "Sorry, quick question: {}",
        "I am not sure whether this is the right place to ask, but please: {}",
        "{} Any help would be greatly appreciated.",
        "👋 Hi! {} 🙏🙏",
        "Hi Claude, my name is Peter. {}",
        "Hello,\n\n{}\n\nThanks,\nJohn",
        "Hallo! Ich habe eine Frage. {} Mit freundlichen Grüßen, Hans",
        "Bonjour ! {} Merci beaucoup !",
        "Hola, ¿qué tal? {} ¡Muchas gracias!",
        "Привет! {} Спасибо!",
        "你好！{} 谢谢！",
        "こんにちは。{} ありがとうございます。",
        "नमस्ते! {} धन्यवाद",
        "안녕! {} 감사해요",
        "Xin chào! {} Cảm ơn",
        "Bonjour à tous, {} Merci d'avance pour vos réponses",
        "Bonjour a\u0300 tous, {} Merci",
        "Konnichiwa! {} Arigatou gozaimasu",
        "Hey ChatGPT, {} Thank you ever so much!!!",
        "Dear Sir or Madam,\n\nI hope this email finds you well.\n\n{}\n\nYours truly,\nJohn Smith\nSenior Manager",
        "{}\n\nRegards,\nDr. Jane Miller, PhD",
        "Happy new year 🎉 {}",
        "Happy Friday! {} Enjoy your weekend!",
    ],
)
def test_clauses_of_courtesies_are_left_out(text: str) -> None:
    assert without_courtesies(text.format(QUESTION)) == QUESTION


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Hi! Could you please tell me what 27 + 35 is? Thanks!", "what 27 + 35 is?"),
        ("I would like to know how tides work", "how tides work"),
        ("I was wondering whether you could tell me how tides work.", "how tides work."),
        ("how do tides work thanks a lot", "how do tides work"),
        ("Please explain how tides work", "explain how tides work"),
        ("hey siri how do tides work", "how do tides work"),
        ("Quick question but how do tides work? lol", "how do tides work?"),
    ],
)
def test_what_leads_up_to_a_question_is_left_out(text: str, rest: str) -> None:
    assert without_courtesies(text) == rest


@pytest.mark.parametrize("text", ["Hi!", "Thanks a lot!", "Good morning, how are you?", "Bonjour", "🙂", "", "?"])
def test_a_bare_courtesy_stays_whole(text: str) -> None:
    assert without_courtesies(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "The right, title and interest shall be owned by the buyer.",
        "A boat, 100 ft. long, moves. One day, it sinks. Then, what?",
        "Quick Python question: how do I sort a list?",
        "x = thanks(1, you)\nprint(hello)",
        "Is `thanks` a keyword?",
        "Why do people say thanks in so many ways?",
        "My rash itches, and I am worried. Is it shingles?",
        "How do I say thank you in Thai?",
        "hello world in Python",
        "What does 🙏 mean?",
        "Which of these lies on the coast?\nParis\nLima",
    ],
)
def test_what_tells_of_a_subject_stays(text: str) -> None:
    assert without_courtesies(text) == text


def test_a_long_text_of_courtesies_is_read_once() -> None:
    for text in ("Hello, " * 40_000, "could you please " * 20_000, " thanks" * 20_000, "-" * 200_000):
        assert without_courtesies(text[:4000])
        assert without_courtesies(text)


def test_a_conversation_is_read_without_them() -> None:
    (passage,) = Conversation.from_text(f"Hi! {QUESTION} Thanks!").passages
    assert passage.text == QUESTION
    turns = [("user", QUESTION), ("assistant", "By the moon."), ("user", "Thanks! Make it shorter, please.")]
    assert Conversation.from_messages([{"role": role, "content": text} for role, text in turns]).follow_up


def test_moved_courtesies_do_not_hide_a_conversation() -> None:
    one, other = Conversation.from_text("Hi! How do tides work?"), Conversation.from_text("Hello! How do tides work?")
    assert one.here != other.here
