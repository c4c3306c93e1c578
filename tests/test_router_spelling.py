"""The speller: what it mends, and what it keeps its hands off."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.router.encoder import readable
from coe.router.features import excerpt, mistyped, scrub
from coe.router.own_prompts import shipped_prompts
from coe.router.spelling import Speller


@pytest.fixture(scope="module")
def speller() -> Speller:
    return Speller()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("how do plants make oxgyen", "how do plants make oxygen"),  # two letters swapped
        ("the momntum of a ball", "the momentum of a ball"),  # one left out
        ("is this contracxt valid?", "is this contract valid?"),  # one put in
        ("solve the equatiun for x", "solve the equation for x"),  # one replaced
        ("Eqaulity of arms. Waht is it?", "equality of arms. what is it?"),
        ("my stomahc hurts", "my stomach hurts"),
    ],
)
def test_one_typing_error_a_word_is_mended(speller: Speller, typed: str, meant: str) -> None:
    assert speller.corrected(typed) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is the derivative of sin(x)?",
        "ask Xhosan about Grimwuld",  # names
        "run qwzip() and sqrtf(2), then self.conut and conut_max",  # calls, attributes, identifiers
        "see /usr/lcoal/bin, https://exmaple.org/thnig and me@exmaple.org",
        "$\\alhpa + \\bteaa$",  # LaTeX
        "getUsrName, HTTPX and NASAA",  # abbreviations, and what has capitals inside
        "the pelvis, celiac disease and torts",  # rare words, rightly spelt
        "xqzt vbnmk wrtpl",  # nothing near
        "wie hoch ist der Eiffelturm und wann wurde er gebaut",  # another language
    ],
)
def test_what_is_no_typing_error_stays(speller: Speller, text: str) -> None:
    assert speller.corrected(text) == text


def test_the_words_of_several_texts_are_known() -> None:
    plain, taught = Speller(), Speller(["a florpads here", "Florpads there", "one flarpads"])
    assert taught.corrected("those flofpads") == "those florpads"
    assert plain.corrected("those flofpads") == "those flofpads"
    assert taught.corrected("those flarpads") == "those florpads", "a word of one text alone may be an error"


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    found = readable(text)
    assert found == readable(text)
    found.encode()


def test_prompts_are_read_as_they_stand_but_for_a_few_words() -> None:
    prompts = [excerpt(scrub(text)) for _, text in shipped_prompts()]
    changed = sum(readable(text) != text for text in prompts)
    assert changed < len(prompts) / 4, "many were written with typing errors, most were not"


def test_of_mistyped_prompts_many_words_are_mended() -> None:
    right = typed_right = n = 0
    for _, text in shipped_prompts()[::20]:
        words = excerpt(scrub(text)).lower().split()
        typed = excerpt(scrub(mistyped(text, 7)))
        if len(typed.split()) != len(words):
            continue
        n += len(words)
        typed_right += sum(a == b for a, b in zip(words, typed.lower().split(), strict=True))
        right += sum(a == b for a, b in zip(words, readable(typed).lower().split(), strict=True))
    assert n - right < 0.6 * (n - typed_right)
