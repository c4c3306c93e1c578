"""Statistics beside figures that others have published, or that can be counted by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.surgery.judge.proportions import Lengths, Paired, Share


class TestShare:
    def test_the_binomial_error(self) -> None:
        assert Share(16, 64).standard_error == pytest.approx(math.sqrt(0.25 * 0.75 / 64))
        assert Share(0, 64).standard_error == 0.0

    @pytest.mark.parametrize(
        ("correct", "n", "card"), [(0.79, 80, 4.6), (0.589, 110, 4.7), (0.943, 135, 2.0), (0.658, 38, 7.7)]
    )
    def test_it_is_the_error_that_the_cards_mean(self, correct: float, n: int, card: float) -> None:
        """The third card says 4 to 5 points for 80 to 135 questions, and 7.7 for 38 at the parent's 65.8 %."""
        assert 100 * Share(round(correct * n), n).standard_error == pytest.approx(card, abs=0.1)

    @pytest.mark.parametrize(
        ("count", "n", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_wilson(self, count: int, n: int, low: float, high: float) -> None:
        """Source: Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3."""
        assert Share(count, n).wilson() == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))

    @given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_wilson_holds_the_share_and_stays_within_bounds(self, counts: tuple[int, int]) -> None:
        share = Share(*counts)
        low, high = share.wilson()
        assert 0 <= low <= share.value + 1e-12
        assert share.value - 1e-12 <= high <= 1
        assert high - low > 0

    def test_nothing_of_nothing(self) -> None:
        assert (Share(0, 0).value, Share(0, 0).standard_error, Share(0, 0).wilson()) == (0.0, 0.0, (0.0, 1.0))


class TestPaired:
    def test_counting(self) -> None:
        paired = Paired.of([True, True, False, False, True], [True, False, True, False, True])
        assert paired == Paired(both=2, gained=1, lost=1, neither=1)
        assert (paired.first.count, paired.second.count, paired.n) == (3, 3, 5)

    def test_difference_and_error(self) -> None:
        """Source: Agresti, Categorical Data Analysis, table 10.1: 1,600 voters asked twice, 944 and 880 approve."""
        paired = Paired(both=794, gained=150, lost=86, neither=570)
        assert paired.difference == pytest.approx(0.04)
        assert paired.standard_error == pytest.approx(0.0095, abs=5e-5)

    def test_the_error_is_that_of_the_mean_of_the_differences(self) -> None:
        paired = Paired(both=11, gained=3, lost=9, neither=7)
        differences = [0] * 18 + [1] * 3 + [-1] * 9
        mean = sum(differences) / 30
        variance = sum((d - mean) ** 2 for d in differences) / 30
        assert paired.standard_error == pytest.approx(math.sqrt(variance / 30))

    @pytest.mark.parametrize(
        ("gained", "lost", "p"),
        [
            (1, 9, 2 * (1 + 10) / 2**10),
            (0, 5, 2 / 2**5),
            (3, 3, 1.0),
            (0, 0, 1.0),
            # Source: statsmodels' documentation of mcnemar(exact=True) for [[101, 121], [59, 33]].
            (121, 59, 4.434444926375551e-06),
        ],
    )
    def test_mcnemar(self, gained: int, lost: int, p: float) -> None:
        assert Paired(101, gained, lost, 33).p_value == pytest.approx(p)
        assert Paired(101, lost, gained, 33).p_value == pytest.approx(p)

    def test_one_lost_question_is_always_more_than_a_plain_error_and_never_more_than_a_steadied_one(self) -> None:
        for n in (30, 100, 1000):
            paired = Paired(n - 1, 0, 1, 0)
            assert -paired.difference > paired.standard_error
            assert -paired.difference < paired.steadied_standard_error

    def test_both_errors_agree_where_there_are_many_disagreements(self) -> None:
        paired = Paired(794, 150, 86, 570)
        assert paired.steadied_standard_error == pytest.approx(paired.standard_error, rel=0.005)

    def test_orders_must_match(self) -> None:
        with pytest.raises(ValueError, match="longer"):
            Paired.of([True], [True, False])


class TestLengths:
    def test_each_figure_is_a_length_that_occurred(self) -> None:
        assert Lengths.of(list(range(1, 11))) == Lengths(5, 9, 10)
        assert Lengths.of([7]) == Lengths(7, 7, 7)
        assert Lengths.of([]) == Lengths(0, 0, 0)

    def test_the_order_does_not_matter(self) -> None:
        assert Lengths.of([9, 1, 5]) == Lengths(5, 9, 9)
