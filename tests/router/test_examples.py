"""A roster's own examples: what is wrong with them."""

from coe.router.examples import different_examples, example_problems
from fakes.heads import SAILING


def test_examples_that_differ_in_case_and_signs_are_one():
    assert different_examples(["How do I tack?", "how do I  tack", "HOW DO I TACK!", "How do I jibe?", "?", "!"]) == [
        "How do I tack?",
        "How do I jibe?",
        "?",
        "!",
    ]


def test_contradictions_duplicates_and_too_few_examples_are_pointed_out():
    found = example_problems(
        {
            "sailing": ["How do I tack?", "how do I  tack", *SAILING],
            "boats": ["How do I tack?", *SAILING[:2]],
            "law": [],
        }
    )
    (shared,) = [problem for problem in found if "under" in problem]
    assert shared.startswith("3 examples ('How do I tack?', 'How do I tack a small")
    assert 'stand under "sailing" and "boats"' in shared
    assert any('"boats" has 3 examples' in problem for problem in found)
    assert not any("law" in problem for problem in found)
    assert example_problems({"law": [*SAILING, SAILING[0]]}) == [
        f'the example {SAILING[0]!r} stands more than once under "law" and counts once: remove the repetitions, '
        "or write others"
    ]
    assert example_problems({"sailing": SAILING}) == []


def test_many_bad_examples_are_one_sentence_for_the_domains_that_they_stand_under():
    texts = [f"What is knot number {word}?" for word in "abcdefghijklmnopqrstuvwxyz"]
    assert example_problems({"sailing": texts, "boats": texts, "law": [*SAILING, *SAILING[:2]]}) == [
        "26 examples (such as 'What is knot number a?', 'What is knot number b?', 'What is knot number c?') stand "
        'under "sailing" and "boats": keep each where it belongs',
        f'2 examples ({SAILING[0]!r}, {SAILING[1]!r}) stand more than once under "law" and count once: '
        "remove the repetitions, or write others",
    ]
    both = example_problems({"sailing": texts, "boats": texts[:13], "ships": texts[13:]})
    assert [text[:2] for text in both] == ["13", "13"]
    assert ['"boats"' in text for text in both] == [True, False]
