"""What is read out of an answer, and what counts as right."""

from __future__ import annotations

import pytest

from coe.surgery.judge.scoring import agree, normalised, number, score
from coe.surgery.judge.values import AnswerKind, Question

CITIES = ("London", "Berlin", "Paris", "Madrid")
TEN = tuple(f"option number {index}" for index in range(1, 11))
CELLS = ("T cells", "B cells", "a dog", "platelets")


def choice(text: str, options: tuple[str, ...] = CITIES) -> str | None:
    return score(Question("q", "?", AnswerKind.CHOICE, ("C",), options), text).extracted


def numeric(reference: str, text: str, tolerance: float | None = None) -> tuple[bool, str | None]:
    verdict = score(Question("q", "?", AnswerKind.NUMERIC, (reference,), tolerance=tolerance), text)
    return verdict.correct, verdict.extracted


def exact(text: str, *references: str) -> bool:
    return score(Question("q", "?", AnswerKind.EXACT, references or ("Paris",)), text).correct


class TestChoice:
    @pytest.mark.parametrize(
        "text",
        [
            "C",
            "c",
            "C.",
            "(C)",
            "c)",
            "**C**",
            "`C`",
            "C) Paris",
            "C. Paris",
            "C: Paris",
            "(C) Paris is the capital of France.",
            "**C) Paris**",
            "**C. Paris**",
            "Option C",
            "It's C.",
            "I think C",
            "Answer: C",
            "answer: c",
            "ANSWER: C",
            "Answer C",
            "Answer - C",
            "Answer = C",
            "Answer\n\nC",
            "**Answer:** C",
            "**Answer: C**",
            "**Answer**: **C**",
            "**Answer: C",
            "## Answer\nC) Paris",
            "Final answer: (C)",
            "**Final Answer: C. Paris**",
            "Answer: C because France's capital is Paris",
            "Answer: C Paris",
            "Answer: Option C",
            "Answer: the letter C.",
            "Answer: Paris",
            "The answer is (C).",
            "The answer is: C",
            "The answer is **(C)**.",
            "The correct answer is:\n\n**C) Paris**",
            "The correct answer to this question is therefore C.",
            "The answer would be C, since it is the capital.",
            "The answer must be 'C'.",
            "The answer is option C.",
            "The answer is Paris.",
            "The correct option is C.",
            "The right choice here is (C).",
            "Therefore, option C is correct.",
            "(C) is the correct answer.",
            "C is correct.",
            "C) Paris is the right answer.",
            "So I choose C.",
            "I would go with option C.",
            "A is out, B is out, so it must be (C).",
            r"\boxed{C}",
            r"$\boxed{\text{C}}$",
            r"The answer is $\boxed{\textbf{(C)}}$.",
            r"\[ \boxed{\mathrm{C}} \]",
            "<answer>C</answer>",
            "#### C",
            "Paris",
            "paris.",
            "The capital of France is Paris.",
            "Let us see. London is in England.\n\nAnswer: C",
            "Of the four cities only (C) lies in France.",
        ],
    )
    def test_these_all_say_c(self, text: str) -> None:
        assert choice(text) == "C"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "   \n",
            "A city in France.",
            "A large city, I suppose.",
            "The answer is a city in France.",
            "The answer is A city in France.",
            "I cannot answer this question.",
            "The answer is not C.",
            "The answer isn't C.",
            "The answer is E.",
            "Answer: Z",
            "Answer: C and D",
            "Answer: B, C",
            "Answer: B or C",
            "Answer: (A) and (C)",
            "Both (B) and (C) look right.",
            "A) wrong\nB) wrong\nC) right\nD) wrong",
            "Vitamin C helps.",
            "It may be Paris or London.",
            "It is not Paris.",
            "3",
            "Plan B would be better",
        ],
    )
    def test_nothing_can_be_read_out_of_these(self, text: str) -> None:
        verdict = score(Question("q", "?", AnswerKind.CHOICE, ("C",), CITIES), text)
        assert verdict.extracted is None
        assert not verdict.correct

    @pytest.mark.parametrize(
        ("text", "letter"),
        [
            ("The answer is B. Wait, that is Germany. The answer is C.", "C"),
            ("Answer: A\n\nOn reflection the correct answer is D.", "D"),
            (r"At first \boxed{B}, but in the end \boxed{C}.", "C"),
            ("(B) is tempting. The answer is (A).", "A"),
            ("Answer: A", "A"),
            ("The answer is A.", "A"),
            ("The answer is A because it is so.", "A"),
            ("A", "A"),
            ("A) London", "A"),
            ("a", "A"),
            ("Answer: C) London", "C"),
        ],
    )
    def test_the_last_statement_counts(self, text: str, letter: str) -> None:
        assert choice(text) == letter

    def test_what_a_model_asks_itself_afterwards_does_not_count(self) -> None:
        text = "Answer: C\n\nQuestion: What is the capital of Spain?\nA) Rome\nB) Lisbon\n\nAnswer: D"
        assert choice(text) == "C"

    def test_a_question_that_is_repeated_before_the_answer_hides_nothing(self) -> None:
        assert choice("Question: What is the capital of France?\n\nAnswer: C") == "C"

    @pytest.mark.parametrize(
        ("text", "letter"),
        [
            ("The answer is B cells.", "B"),
            ("The answer is T cells.", "A"),
            ("The answer is a dog.", "C"),
            ("Answer: A dog", "C"),
            ("B lymphocytes", None),
            ("The answer is D dimers", None),
        ],
    )
    def test_options_that_begin_with_a_letter_or_an_article(self, text: str, letter: str | None) -> None:
        assert choice(text, CELLS) == letter

    @pytest.mark.parametrize(
        ("text", "letter"),
        [("Answer: J", "J"), ("I.", "I"), ("Answer: I", "I"), ("I think so", None), ("Answer: I am not sure", None)],
    )
    def test_i_is_a_letter_only_where_it_is_no_pronoun(self, text: str, letter: str | None) -> None:
        assert choice(text, TEN) == letter

    def test_an_option_within_another_is_not_named_by_it(self) -> None:
        options = ("Paris", "Paris, Texas", "Rome")
        assert choice("It is Paris, Texas.", options) == "B"
        assert choice("Answer: Paris, Texas", options) == "B"
        assert choice("Answer: Paris", options) == "A"

    def test_options_and_references_in_latex(self) -> None:
        assert choice(r"The answer is $\sqrt{2}$.", (r"$\sqrt{2}$", "2")) == "A"
        assert exact(r"Answer: \(x^2 + 1\)", "$x^2 + 1$")
        assert exact("Answer: `len(x)`", "len(x)")

    @pytest.mark.parametrize(
        ("text", "letter"),
        [
            ("Answer: D\n\nStatement A is correct, and statement B is correct.", "D"),
            ("The possible answers are A) London and so on. I cannot tell.", None),
            ("The answer choices are: A) London, B) Berlin", None),
            ("Answer choice A is wrong.", None),
            ("Answer B is incorrect. The answer is D.", "D"),
        ],
    )
    def test_talk_about_answers_is_no_answer(self, text: str, letter: str | None) -> None:
        assert choice(text) == letter

    @pytest.mark.parametrize(
        ("text", "letter"),
        [
            ("False.", "B"),
            ("The statement is true.", "A"),
            ("The statement is False", "B"),
            ("Answer: False", "B"),
            ("It is not true.", None),
            ("It isn't false.", None),
        ],
    )
    def test_true_and_false(self, text: str, letter: str | None) -> None:
        assert choice(text, ("True", "False")) == letter

    def test_words_that_two_options_share_name_neither(self) -> None:
        assert choice("Answer: the dog", ("a dog", "the dog")) is None

    def test_a_label_is_no_article(self) -> None:
        options = ("True, False", "False, False", "True, True", "False, True")
        assert choice("The answer is:\n\nA) False, True", options) == "A"
        assert choice("Answer: A. False, True", options) == "A"
        assert choice("Answer: False, True", options) == "D"

    def test_options_that_are_numbers_keep_their_signs(self) -> None:
        options = ("5", "-5", "0.5", "15")
        assert choice("Answer: -5", options) == "B"
        assert choice("Answer: 0.5", options) == "C"
        assert choice("Answer: 5", options) == "A"
        assert choice("3 x 5 = 15, so the answer is 15.", options) == "D"

    def test_right_and_wrong(self) -> None:
        question = Question("q", "?", AnswerKind.CHOICE, ("C",), CITIES)
        assert score(question, "Answer: C").correct
        assert not score(question, "Answer: B").correct


class TestNumeric:
    @pytest.mark.parametrize(
        "text",
        [
            "1234.5",
            "1,234.5",
            "1,234.50",
            "1\u202f234.5",
            "1'234.5",
            "Answer: 1234.5",
            "**Answer:** 1,234.5",
            "The answer is $1,234.50.",
            "The answer is approximately 1234.5 m/s^2",
            "Answer: 1234.5 kg",
            "Answer: about 1.2345e3",
            "Answer: 1.2345 × 10^3 J",
            r"Answer: $1.2345 \times 10^{3}$",
            "Answer: 1.2345·10³",
            r"\boxed{1234.5}",
            r"$\boxed{1{,}234.5\ \text{m/s}^2}$",
            r"The area is \boxed{1234.5 \text{ cm}^2}.",
            "#### 1234.5",
            "Answer: 1200 + 34.5 = 1234.5",
            "Answer: x1 = 1234.5",
            "1000 + 234.5\n= 1234.5",
            "We get 3 times 411.5, which is 1234.5.",
            "Step 1. Add.\nStep 2. Multiply.\n\nAnswer: 1234.5\n\nThis answer assumes that there are 3 of them.",
            "Answer: 2469/2",
            r"Answer: \frac{2469}{2}",
            "Answer: 1234 1/2",
            "Answer: 1234½",
            "Answer: 1.2345 thousand",
        ],
    )
    def test_these_all_say_the_same_number(self, text: str) -> None:
        right, extracted = numeric("1234.5", text)
        assert right, extracted

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("Answer: -5", "-5"),
            ("Answer: −5 °C", "-5"),
            ("Answer: -$5", "-5"),
            ("Answer: €-5", "-5"),
            ("7-5=2", "2"),
            ("Answer: 9.8 m/s2", "9.8"),
            ("Answer: 6.02e23", "6.02e+23"),
            ("Answer: 10^-3", "0.001"),
            ("Answer: 2^10", "1024"),
            ("Answer: .5", "0.5"),
            ("Answer: 3,14", "3.14"),
            ("Answer: 25%", "25%"),
            ("Answer: 25 percent", "25%"),
            (r"\boxed{25\%}", "25%"),
            ("Answer: 2 million", "2000000"),
            (r"Answer: -\frac12", "-0.5"),
            ("The CO2 share is 12", "12"),
            ("Answer: 12.", "12"),
            ("12 apples, in the end 11.", "11"),
            (r"\boxed{\dfrac{3}{4}}", "0.75"),
        ],
    )
    def test_what_is_read(self, text: str, number: str) -> None:
        assert numeric("1", text)[1] == number

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "none",
            "Answer: 5-10",
            "Answer: 5 to 10",
            "between 5-10",
            "Answer: 2π",
            r"\boxed{\frac{\pi}{2}}",
            r"Answer: 3\sqrt{2}",
            "Answer: pi/2",
            "Answer: 10^9999",
            "Answer: 1/0",
            "Answer: H2O",
        ],
    )
    def test_nothing_can_be_read_out_of_these(self, text: str) -> None:
        assert numeric("2", text) == (False, None)

    @pytest.mark.parametrize(
        ("reference", "text", "right"),
        [
            ("42", "42", True),
            ("42", "42.0", True),
            ("42", "42.4", False),
            ("42", "-42", False),
            ("1234", "1230", False),
            ("3.14", "3.14159", True),
            ("3.14159", "3.14", True),
            ("3.14159", "3.1", False),
            ("0.5", "0.46", False),
            ("1/3", "0.333", True),
            ("1/3", "0.3", False),
            ("0.33", "1/3", True),
            ("3e8", "299792458", True),
            ("1.6e-19", "1.602 × 10^-19 C", True),
            ("1.6e-19", "1.6 × 10^-18 C", False),
            ("25%", "25", True),
            ("25%", "0.25", True),
            ("0.25", "25%", True),
            ("25", "25%", True),
            ("25", "0.25", False),
            ("25%", "26%", False),
            ("0", "0.0", True),
            ("0", "0.001", False),
        ],
    )
    def test_how_close_is_right_when_nothing_is_said(self, reference: str, text: str, right: bool) -> None:
        assert numeric(reference, f"Answer: {text}")[0] is right

    @pytest.mark.parametrize(
        ("text", "right"), [("9.81", True), ("9.9", True), ("9.7", True), ("9.91", False), ("9.69", False)]
    )
    def test_a_tolerance_is_a_distance(self, text: str, right: bool) -> None:
        assert numeric("9.8", text, tolerance=0.1)[0] is right

    def test_a_tolerance_goes_with_the_reference_through_percent(self) -> None:
        assert numeric("25%", "0.26", tolerance=1.0)[0]
        assert not numeric("25%", "0.27", tolerance=1.0)[0]

    def test_several_references(self) -> None:
        question = Question("q", "?", AnswerKind.NUMERIC, ("2", "-2"))
        assert [score(question, text).correct for text in ("2", "-2", "4")] == [True, True, False]

    def test_a_reference_is_a_number_and_nothing_beside_it(self) -> None:
        assert number("5 kg") is None
        assert number("the 5") is None
        five = number("5")
        assert five is not None
        assert agree(five, five)


class TestExact:
    @pytest.mark.parametrize(
        "text",
        [
            "Paris",
            "paris",
            " PARIS. ",
            "**Paris**",
            "The Paris",
            "Answer: Paris",
            "**Answer:** Paris.",
            "The answer is Paris. It lies on the Seine.",
            "The answer is Paris, since it is the capital",
            "It lies on the Seine.\n\nAnswer: Paris",
            "Answer: Paris\n\nThis answer is based on what everybody knows.",
            "The Seine runs through it:\nParis",
            r"\boxed{\text{Paris}}",
            "Answer: “Paris”",
            "Answer: Paris (France)",
        ],
    )
    def test_these_are_right(self, text: str) -> None:
        assert exact(text)

    @pytest.mark.parametrize(
        "text", ["", "London", "Paris, or London", "Not Paris", "The capital is Paris", "Par is", "..."]
    )
    def test_these_are_wrong(self, text: str) -> None:
        assert not exact(text)

    def test_aliases(self) -> None:
        assert exact("Answer: the U.S.A.", "United States", "USA", "US") is False
        assert exact("Answer: the USA", "United States", "USA")
        assert exact("united  states", "United States", "USA")

    def test_an_empty_answer_is_unparsed_and_a_wrong_one_is_not(self) -> None:
        question = Question("q", "?", AnswerKind.EXACT, ("Paris",))
        assert score(question, " \n ").extracted is None
        assert score(question, "London").extracted == "London"

    @pytest.mark.parametrize(
        ("one", "other"), [("C", "C++"), ("C", "C#"), ("-5", "5"), ("3.5", "35"), ("50 %", "50"), ("x < y", "x > y")]
    )
    def test_what_changes_the_meaning_is_kept(self, one: str, other: str) -> None:
        assert normalised(one) != normalised(other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("The cat.", "cat"),
            ("don't", "dont"),
            ("1,234", "1234"),
            ("well-known", "well known"),
            ("A", "a"),
            ("ﬁne", "fine"),
        ],
    )
    def test_what_does_not_is_dropped(self, one: str, other: str) -> None:
        assert normalised(one) == normalised(other)


@pytest.mark.parametrize("kind", list(AnswerKind))
def test_long_and_odd_texts_are_judged_too(kind: AnswerKind) -> None:
    options = CITIES if kind is AnswerKind.CHOICE else ()
    question = Question("q", "?", kind, ("C" if options else "1",), options)
    for text in ("answer " * 3000, "((((" * 5000, "\\boxed{" * 50, "2," * 3000, "=" * 50_000, "*" * 50_000, "\0"):
        assert not score(question, text).correct


@pytest.mark.parametrize(
    "text",
    [
        "2^" + " \t" * 200_000,
        "a^" + "\n" * 400_000,
        "1 x 10^" + " \t" * 200_000,
        "\\boxed{" * 20_000,
        "<answer>" * 8_000,
        "Question:\n" * 80_000,
        " \t" * 200_000 + "x",
        "__a " * 40_000,
    ],
    ids=lambda text: repr(text[:10]),
)
@pytest.mark.parametrize("kind", list(AnswerKind))
def test_a_long_run_of_what_a_pattern_may_begin_with_is_read_once(kind: AnswerKind, text: str) -> None:
    """Where a pattern looks again from each place, these take many minutes: a quadratic pattern hangs here."""
    options = CITIES if kind is AnswerKind.CHOICE else ()
    assert not score(Question("q", "?", kind, ("C" if options else "1",), options), text).correct
    assert number(text) is None


def test_boxes_may_lie_in_boxes_and_stay_open() -> None:
    assert score(Question("q", "?", AnswerKind.NUMERIC, ("12",)), r"\boxed{\fbox{ 12 }} and {more}").extracted == "12"
    assert score(Question("q", "?", AnswerKind.NUMERIC, ("12",)), r"so \boxed{12").extracted == "12"
