"""Chains of samplers over logits that the test sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from coe.engine.generate.sampling import MAX_SEED, Sampler, log_probabilities
from coe.engine.llama.model import Model
from coe.engine.spec import Sampling

PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)


class Draw:
    """Draws from given logits (the same ones each time) with one sampler."""

    def __init__(self, model: Model, logits: dict[int, float], sampler: Sampler) -> None:
        self._logits = np.full(model.vocab.n_tokens, -30.0, np.float32)
        self._sampler = sampler
        for token, value in logits.items():
            self._logits[token] = value

    def __call__(self, times: int = 1) -> list[int]:
        drawn = []
        for _ in range(times):
            everything = np.arange(len(self._logits))
            token = self._sampler._apply(self._sampler._chain, self._sampler._candidates(self._logits, everything))
            self._sampler.accept(token)
            drawn.append(token)
        return drawn


NewDraw = Callable[..., Draw]


@pytest.fixture
def new_draw(gemma4_model: Model) -> Iterator[NewDraw]:
    samplers: list[Sampler] = []

    def make(logits: dict[int, float], sampling: Sampling = PLAIN, seed: int | None = 1, **more: Any) -> Draw:
        samplers.append(Sampler(gemma4_model.vocab, sampling, seed=seed, **more))
        return Draw(gemma4_model, logits, samplers[-1])

    yield make
    for sampler in samplers:
        sampler.close()


EVEN = {300: 1.0, 301: 1.0, 302: 1.0, 303: 1.0}
STEPS = {300: 4.0, 301: 3.0, 302: 2.0, 303: 1.0}


class TestChain:
    def test_the_same_seed_draws_the_same(self, new_draw: NewDraw) -> None:
        assert new_draw(EVEN, seed=5)(20) == new_draw(EVEN, seed=5)(20)

    def test_another_seed_draws_otherwise(self, new_draw: NewDraw) -> None:
        assert new_draw(EVEN, seed=5)(20) != new_draw(EVEN, seed=6)(20)

    def test_no_seed_is_a_new_one_each_time(self, new_draw: NewDraw) -> None:
        assert new_draw(EVEN, seed=None)(40) != new_draw(EVEN, seed=None)(40)

    @pytest.mark.parametrize("seed", [0, -1, 2**31, MAX_SEED, MAX_SEED + 1, 2**63])
    def test_any_seed_is_a_fixed_one(self, new_draw: NewDraw, seed: int) -> None:
        assert new_draw(EVEN, seed=seed)(20) == new_draw(EVEN, seed=seed)(20)

    def test_temperature_0_takes_the_most_probable(self, new_draw: NewDraw) -> None:
        assert set(new_draw(STEPS, replace(PLAIN, temperature=0.0))(10)) == {300}

    def test_draws_follow_the_probabilities(self, new_draw: NewDraw) -> None:
        counts = Counter(new_draw({300: 0.0, 301: float(np.log(3))})(2000))
        assert 0.70 < counts[301] / 2000 < 0.80

    def test_top_k_top_p_and_min_p_cut_the_tail(self, new_draw: NewDraw) -> None:
        assert set(new_draw(STEPS, replace(PLAIN, top_k=2))(200)) == {300, 301}
        assert set(new_draw(STEPS, replace(PLAIN, top_p=0.7))(200)) == {300, 301}
        assert set(new_draw(STEPS, replace(PLAIN, min_p=0.2))(200)) == {300, 301}

    def test_a_repeated_token_gets_less_likely(self, new_draw: NewDraw) -> None:
        greedy = replace(PLAIN, temperature=0.0)
        logits = {300: 2.0, 301: 1.9}
        assert new_draw(logits, greedy)(3) == [300, 300, 300]
        assert new_draw(logits, replace(greedy, repeat_penalty=1.5))(2) == [300, 301]
        assert new_draw(logits, replace(greedy, presence_penalty=0.5))(2) == [300, 301]
        assert new_draw(logits, replace(greedy, frequency_penalty=0.06))(3) == [300, 300, 301]

    def test_only_the_last_tokens_are_penalised(self, new_draw: NewDraw) -> None:
        logits = {300: 3.0, 301: 2.0}
        forgetful = replace(PLAIN, temperature=0.0, presence_penalty=5.0, repeat_last_n=1)
        assert new_draw(logits, forgetful)(4) == [300, 301, 300, 301]

    def test_a_bias_bans_or_forces(self, new_draw: NewDraw) -> None:
        assert set(new_draw(EVEN, logit_bias={300: -100.0, 301: -100.0})(100)) == {302, 303}
        assert set(new_draw(EVEN, logit_bias={305: 100.0})(20)) == {305}

    def test_a_bias_on_a_token_that_is_none_does_nothing(self, new_draw: NewDraw) -> None:
        assert set(new_draw(EVEN, logit_bias={10**9: 100.0, -5: 100.0})(20)) <= set(EVEN)


LOGITS = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40)


class TestLogProbabilities:
    @given(LOGITS, st.integers(0, 20), st.data())
    def test_they_are_those_of_a_softmax(self, values: list[float], top: int, data: st.DataObject) -> None:
        logits: NDArray[np.float32] = np.array(values, np.float32)
        token = data.draw(st.integers(0, len(values) - 1))
        own, best = log_probabilities(logits, token, top)
        exact = logits.astype(np.float64)
        exact = exact - (exact.max() + np.log(np.exp(exact - exact.max()).sum()))
        assert own == pytest.approx(exact[token], abs=1e-6)
        assert len(best) == min(top, len(values))
        assert [value for _, value in best] == pytest.approx(np.sort(exact)[::-1][:top].tolist(), abs=1e-6)
        assert sum(np.exp(value) for _, value in best) <= 1 + 1e-6
        assert cast(bool, all(exact[t] == pytest.approx(v, abs=1e-6) for t, v in best))
