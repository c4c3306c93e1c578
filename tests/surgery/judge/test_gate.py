"""What goes out, what is kept aside, and what nobody can tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.surgery.errors import BuildError
from coe.surgery.judge.gate import VerdictState, Withheld, accept, foresee, hold_out, judge
from coe.surgery.judge.proportions import Paired
from coe.surgery.judge.values import AnswerKind, Bound, Question


def question(index: int) -> Question:
    return Question(str(index), f"What is {index} plus one?", AnswerKind.NUMERIC, (str(index + 1),))


class TestJudging:
    def test_as_good_as_its_parent_goes_out(self) -> None:
        verdict = judge(Paired(60, 8, 8, 24))
        assert verdict.state is VerdictState.RELEASED
        assert verdict.released
        assert verdict.remedy == ""

    def test_better_goes_out(self) -> None:
        assert judge(Paired(60, 20, 0, 20)).released

    def test_much_worse_is_kept_aside_and_says_what_to_do(self) -> None:
        verdict = judge(Paired(36, 4, 31, 11))  # the third card's Health: 81.7 % to 48.8 % of 82
        assert verdict.state is VerdictState.KEPT_ASIDE
        assert not verdict.released
        assert "48.8%" in verdict.reason
        assert "81.7%" in verdict.reason
        assert "-32.9 points" in verdict.reason
        assert "split the corpus" in verdict.remedy

    def test_the_cards_unreleased_specialists_would_have_been_caught(self) -> None:
        """Health, Other and Philosophy as the card gives them, with the parent's share of what was gained or lost."""
        for specialist, parent, n in ((0.488, 0.817, 82), (0.570, 0.763, 93), (0.500, 0.640, 50)):
            right, of_parent = round(specialist * n), round(parent * n)
            for gained in range(min(right, n - of_parent) + 1):
                lost = of_parent - right + gained
                verdict = judge(Paired(right - gained, gained, lost, n - of_parent - gained))
                assert verdict.state is VerdictState.KEPT_ASIDE, (specialist, gained)

    def test_one_lost_question_of_thirty_is_no_reason(self) -> None:
        assert judge(Paired(25, 0, 1, 4)).released
        assert not judge(Paired(25, 0, 3, 2)).released

    def test_identical_answers_go_out(self) -> None:
        assert judge(Paired(25, 0, 0, 5)).released

    def test_too_few_questions_say_nothing(self) -> None:
        verdict = judge(Paired(25, 0, 0, 4))
        assert verdict.state is VerdictState.NEEDS_QUESTIONS
        assert "29" in verdict.reason
        assert "30" in verdict.reason
        assert "`questions` of its build" in verdict.remedy
        assert judge(Paired(25, 0, 0, 4), Bound(min_questions=29)).released

    @pytest.mark.parametrize("paired", [None, Paired(0, 0, 0, 0)])
    def test_no_questions_at_all(self, paired: Paired | None) -> None:
        verdict = judge(paired)
        assert verdict.state is VerdictState.NEEDS_QUESTIONS
        assert not verdict.released
        assert verdict.difference is None

    def test_a_parent_that_knows_nothing_shows_nothing(self) -> None:
        assert judge(Paired(0, 0, 0, 50)).state is VerdictState.NEEDS_QUESTIONS
        guessing = Paired(6, 7, 7, 30)  # 13 of 50 are what four options give
        verdict = judge(guessing, chance=0.25)
        assert verdict.state is VerdictState.NEEDS_QUESTIONS
        assert "guessing" in verdict.reason
        assert judge(guessing).released

    def test_a_loss_in_points_can_be_the_bound_instead(self) -> None:
        paired = Paired(80, 2, 6, 12)
        assert not judge(paired).released
        assert judge(paired, Bound(loss=0.05)).released
        assert judge(paired, Bound(loss=0.04)).released, "a loss that equals the bound"
        assert not judge(paired, Bound(loss=0.039)).released
        assert not judge(Paired(80, 2, 3, 15), Bound(loss=0.0)).released

    def test_wider_and_narrower_bounds(self) -> None:
        paired = Paired(70, 5, 11, 14)
        assert not judge(paired).released
        assert judge(paired, Bound(standard_errors=2.0)).released
        assert not judge(Paired(70, 5, 6, 19), Bound(standard_errors=0.0)).released

    @pytest.mark.parametrize("wrong", [{"standard_errors": -1.0}, {"loss": 1.5}, {"loss": -0.1}, {"min_questions": 0}])
    def test_bounds_that_make_no_sense(self, wrong: dict[str, float]) -> None:
        with pytest.raises(BuildError, match="makes no sense"):
            Bound(**wrong)  # type: ignore[arg-type]

    @given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
    def test_losing_less_is_never_judged_worse(self, both: int, gained: int, lost: int, neither: int) -> None:
        if lost and judge(Paired(both, gained, lost, neither), Bound(loss=0.1)).released:
            assert judge(Paired(both + 1, gained, lost - 1, neither), Bound(loss=0.1)).released

    def test_a_person_may_accept_what_the_gate_did_not(self) -> None:
        aside = judge(Paired(36, 4, 31, 11))
        taken = accept(aside, "Ada")
        assert taken.state is VerdictState.ACCEPTED
        assert taken.released
        assert "Ada" in taken.reason
        assert aside.reason in taken.reason
        assert taken.difference == aside.difference
        fine = judge(Paired(60, 8, 8, 24))
        assert accept(fine, "Ada") is fine

    def test_a_verdict_is_json(self) -> None:
        assert judge(None).to_json()["state"] == "needs questions"


class TestHoldingOut:
    def test_every_tenth_from_the_sixth(self) -> None:
        assert hold_out([question(index) for index in range(40)]) == (5, 15, 25, 35)

    def test_more_questions_at_the_end_move_nothing(self) -> None:
        few, more = ([question(index) for index in range(n)] for n in (50, 80))
        assert hold_out(more)[:5] == hold_out(few)

    def test_a_small_corpus_may_hold_nothing_out(self) -> None:
        assert hold_out([question(index) for index in range(5)]) == ()

    def test_too_few_are_foreseen(self) -> None:
        assert foresee(30, Bound()) == ""
        assert "Only 29" in foresee(29, Bound())
        assert foresee(3, Bound(min_questions=3)) == ""


class TestKeepingWhatIsProfiledFree:
    WITHHELD = Withheld(["What is the boiling point of water?", "Why?", "What is 5 plus 5?"])

    @pytest.mark.parametrize(
        "text",
        [
            "what is  boiling-point of water",
            "They asked: What is the boiling\npoint of water? He did not know.",
            "WHY",
            "I wonder what is 5 plus 5, or so.",
        ],
    )
    def test_a_text_that_holds_a_question_asks_it(self, text: str) -> None:
        assert self.WITHHELD.is_asked_in(text)

    @pytest.mark.parametrize(
        "text",
        ["", "What is the boiling point of lead?", "Why is the sky blue?", "What is 5 plus 50?", "at 15 plus 5 is"],
    )
    def test_other_words_or_a_short_question_within_a_text_do_not(self, text: str) -> None:
        assert not self.WITHHELD.is_asked_in(text)

    @pytest.mark.parametrize(
        "record",
        [
            {"question": "What is 5 plus 5?", "answer": "10"},
            {"question": "What did he ask?", "answer": "He asked: what is 5 plus 5?"},
            {"text": "Well, what is 5 plus 5? Ten."},
            {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "Because."}]},
            {"messages": [{"role": "user", "content": "What is 5 plus 5?\n\nA) 9\nB) 10"}]},
        ],
    )
    def test_every_form_of_a_line_is_looked_at(self, record: dict[str, object]) -> None:
        assert self.WITHHELD.is_asked_in_line(record)
        assert not Withheld(["What is 6 plus 6?"]).is_asked_in_line(record)

    def test_a_question_over_several_paragraphs_takes_them_all_along(self) -> None:
        over_two = Withheld(["A man buys a horse.\n\nIs the sale valid?", "Why?"])
        assert over_two.asked_in(["Before.", "A man buys a horse.", "Is the sale valid?", "After.", "Why?"]) == {
            1,
            2,
            4,
        }
