"""The speller: what it mends, and what it keeps its hands off."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.router.features import excerpt, mistyped, scrub
from coe.router.spelling import MOST_CORRECTED, TECHNICAL, Speller
from coe.router.training_prompts import shipped_prompts


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
        ("Equqlity of arms. Dooes it matter?", "equality of arms. does it matter?"),
        ("the deriv\u00adatvie of x\u200b squared", "the derivative of x squared"),
        (
            "how do i calcualte the derivitive of a fucntion that depnds on two varibles",
            "how do i calculate the derivative of a function that depends on two variables",
        ),
        ("can my landlrod evict me witout notise", "can my landlord evict me without notice"),
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
        "integrate tanx and cosx, then mrna, copd, capex, wacc and cuda",  # four letters, or known terms
        "is haskell hard, and tkinter, nodejs, oauth, keras, crispr, covid, pthread",
        "amortise the litres of aluminium",  # British
        "xqzt vbnmk wrtpl",  # nothing near
        "wie hoch ist der Eiffelturm und wann wurde er gebaut",  # another language
        "kuinka korkea tornitalo onkaan nykyisin",
    ],
)
def test_what_is_no_typing_error_stays(speller: Speller, text: str) -> None:
    assert speller.corrected(text) == text


def test_what_the_encoder_knows_whole_stays() -> None:
    assert Speller().corrected("look at those floopers") != "look at those floopers"
    assert Speller(["floopers"]).corrected("look at those floopers") == "look at those floopers"


def test_words_of_several_prompts_are_known_and_those_of_one_may_be_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [("law", "some floopers here"), ("math", "Floopers there"), ("math", "one floooer")]
    monkeypatch.setattr("coe.router.spelling.shipped_prompts", lambda: prompts)
    speller = Speller()
    assert speller.corrected("look at those floopers") == "look at those floopers"
    assert speller.corrected("look at one floooer") != "look at one floooer"


def test_of_gibberish_only_so_many_words_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    speller, asked = Speller(), []
    monkeypatch.setattr(speller, "_nearest", asked.append)
    words = [f"qz{letter}xvkw" for letter in "abcdefghijklmnopqrstuvwxyz"]
    speller.corrected(" the ".join(words))
    assert asked == words[:MOST_CORRECTED]


def test_technical_words_are_sorted_lower_case_and_long_enough_to_be_at_risk() -> None:
    words = TECHNICAL.read_text("utf-8").splitlines()
    assert words == sorted(set(words))
    assert all(word.islower() and len(word) > 4 for word in words)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_can_be_read(speller: Speller, text: str) -> None:
    found = speller.corrected(excerpt(scrub(text)))
    assert found == speller.corrected(excerpt(scrub(text)))
    found.encode()


def test_prompts_are_read_as_they_stand_but_for_a_few_words(speller: Speller) -> None:
    prompts = [excerpt(scrub(text)) for _, text in shipped_prompts()]
    changed = sum(speller.corrected(text) != text for text in prompts)
    assert changed < len(prompts) / 5, "many were written with typing errors, most were not"


def test_of_mistyped_prompts_many_words_are_mended(speller: Speller) -> None:
    right = typed_right = n = 0
    for _, text in shipped_prompts()[::20]:
        words = excerpt(scrub(text)).lower().split()
        typed = excerpt(scrub(mistyped(text, 7)))
        if len(typed.split()) != len(words):
            continue
        n += len(words)
        typed_right += sum(a == b for a, b in zip(words, typed.lower().split(), strict=True))
        right += sum(a == b for a, b in zip(words, speller.corrected(typed).lower().split(), strict=True))
    assert n - right < 0.7 * (n - typed_right)
