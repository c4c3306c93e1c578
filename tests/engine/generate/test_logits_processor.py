"""Biases and penalties beside llama.cpp's own samplers for them, and the environment that workers decode in."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from numpy.typing import NDArray

from coe.engine.generate.sampling import LogitsProcessor
from coe.engine.process import worker_environment
from coe.engine.spec import Sampling

N_VOCAB = 500


def theirs(logits: NDArray[np.float32], sampling: Sampling, biases: dict[int, float], past: list[int]) -> list[float]:
    """What llama.cpp's chain of bias and penalties makes of the logits."""
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    array = (lib.llama_logit_bias * len(biases))()
    for entry, (token, bias) in zip(array, biases.items(), strict=True):
        entry.token, entry.bias = token, bias
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_logit_bias(N_VOCAB, len(array), array))
    penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_penalties(N_VOCAB, sampling.repeat_last_n, *penalties))
    for token in past:
        lib.llama_sampler_accept(chain, token)
    data: Any = (lib.llama_token_data * N_VOCAB)()
    for token, value in enumerate(logits):
        data[token].id, data[token].logit = token, value
    candidates = lib.llama_token_data_array(data=data, size=N_VOCAB, selected=-1, sorted=False)
    lib.llama_sampler_apply(chain, ctypes.byref(candidates))
    lib.llama_sampler_free(chain)
    return [data[token].logit for token in range(N_VOCAB)]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repeat_penalty=1.3),
        Sampling(repeat_penalty=1.0, frequency_penalty=0.4, presence_penalty=-0.7),
        Sampling(repeat_penalty=1.05, frequency_penalty=0.2, presence_penalty=0.1, repeat_last_n=5),
        Sampling(repeat_penalty=1.5, repeat_last_n=0),
        Sampling(repeat_penalty=1.0),
    ],
)
@pytest.mark.parametrize("biases", [{}, {7: -100.0, 11: 2.5, 499: 0.25, 10**6: 3.0}])
def test_logits_become_what_llama_cpp_makes_of_them(sampling: Sampling, biases: dict[int, float]) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 5, N_VOCAB).astype(np.float32)
    past = [int(token) for token in rng.integers(0, 40, 150)]
    processor = LogitsProcessor(sampling, biases, N_VOCAB)
    for token in past:
        processor.remember(token)
    known = {token: bias for token, bias in biases.items() if token < N_VOCAB}
    expected = theirs(logits, sampling, known, past)
    with processor.applied(logits):
        np.testing.assert_allclose(logits, expected, rtol=1e-6)


def test_logits_are_afterwards_what_they_were() -> None:
    logits = np.linspace(-3, 3, N_VOCAB, dtype=np.float32)
    processor = LogitsProcessor(Sampling(repeat_penalty=1.7), {3: 4.0, 5: -100.0}, N_VOCAB)
    processor.remember(3)
    processor.remember(8)
    before = logits.copy()
    with processor.applied(logits):
        assert not np.array_equal(logits, before)
    assert np.array_equal(logits, before)


def test_nothing_to_adjust_is_known_beforehand() -> None:
    assert not LogitsProcessor(Sampling(repeat_penalty=1.0), {}, N_VOCAB)
    assert not LogitsProcessor(Sampling(repeat_penalty=1.5, repeat_last_n=0), {}, N_VOCAB)
    assert LogitsProcessor(Sampling(repeat_penalty=1.5), {}, N_VOCAB)
    assert LogitsProcessor(Sampling(repeat_penalty=1.0), {1: 1.0}, N_VOCAB)


def test_threads_of_a_worker_wait_briefly_unless_the_user_says_how() -> None:
    quiet = {"GGML_NO_BACKTRACE": "1"}
    assert worker_environment({"HOME": "/x"}) == {"HOME": "/x", "GOMP_SPINCOUNT": "1000", **quiet}
    for said in ({"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "active"}):
        assert worker_environment(said) == {**said, **quiet}
