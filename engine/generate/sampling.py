"""Sampling, the drawing of the next token: a logits processor, then llama.cpp's samplers in a chain per request."""

from __future__ import annotations

import ctypes
import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from ..errors import GrammarError
from ..llama.context import Context
from ..llama.vocab import Vocab
from ..spec import Sampling
from .grammar import Grammar
from .json_schema import SIMPLIFY

_CANDIDATE: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
# JSON knows no infinity: what a model has ruled out is written so, as OpenAI does.
LEAST_LOGPROB: Final = -9999.0
_BLOCK: Final = 512
MAX_SEED: Final = 2**32 - 2  # 2**32 - 1 asks llama.cpp for a random seed


class LogitsProcessor:
    """Changes to the logits of a few tokens before anything is cut or drawn: the request's biases, then penalties for
    recent tokens.

    llama.cpp's own samplers for these look every token of the vocabulary up: with 262,144 of them that is 0.7 of the
    0.9 ms that a draw takes. The formulas are theirs, in 32 bits as well.
    Source: llama-sampler.cpp, llama_sampler_logit_bias_apply and llama_sampler_penalties_apply.
    """

    def __init__(self, sampling: Sampling, biases: Mapping[int, float], n_vocab: int) -> None:
        known = {token: bias for token, bias in biases.items() if 0 <= token < n_vocab}
        self._biased = np.fromiter(known, np.int64, len(known))
        self._biases = np.fromiter(known.values(), np.float32, len(known))
        self._repeat = np.float32(sampling.repeat_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        self._presence = np.float32(sampling.presence_penalty)
        penalises = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (1.0, 0.0, 0.0)
        self._last_n = sampling.repeat_last_n if penalises else 0
        self._recent: deque[int] = deque()
        self._counts: dict[int, int] = {}

    def __bool__(self) -> bool:
        """Whether anything may be changed."""
        return bool(self._last_n or len(self._biased))

    def remember(self, token: int) -> None:
        """Penalise a token from now on, until it is no longer among the last."""
        if not self._last_n:
            return
        self._recent.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        if len(self._recent) > self._last_n:
            oldest = self._recent.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]

    @contextmanager
    def applied(self, logits: NDArray[np.float32]) -> Iterator[None]:
        """The logits are changed in place, and are what they were afterwards."""
        before_bias = logits[self._biased]
        logits[self._biased] += self._biases
        recent = np.fromiter(self._counts, np.int64, len(self._counts))
        before_penalty = logits[recent]
        logits[recent] = self._penalised(before_penalty)
        try:
            yield
        finally:
            logits[recent] = before_penalty
            logits[self._biased] = before_bias

    def _penalised(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        values = np.where(values <= 0, values * self._repeat, values / self._repeat)
        if not self._frequency and not self._presence:
            return values
        counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
        return values - (counts * self._frequency + self._presence)


class Sampler:
    """One request's bias and penalties, then llama.cpp's chain: top-k, top-p, min-p, temperature, draw."""

    def __init__(
        self,
        vocab: Vocab,
        sampling: Sampling,
        *,
        seed: int | None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> None:
        self._vocab = vocab
        self._seed = secrets.randbelow(MAX_SEED) if seed is None else seed % (MAX_SEED + 1)
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._processor = LogitsProcessor(sampling, logit_bias or {}, vocab.n_tokens)
        for part in self._parts(sampling):
            lib.llama_sampler_chain_add(self._chain, part)

    def _parts(self, sampling: Sampling) -> Sequence[Any]:
        if sampling.temperature <= 0:
            return [lib.llama_sampler_init_greedy()]
        parts: list[Any] = []
        if sampling.top_k > 0:
            parts.append(lib.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            parts.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            parts.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
        return [*parts, lib.llama_sampler_init_temp(sampling.temperature), lib.llama_sampler_init_dist(self._seed)]

    def sample(self, context: Context, index: int, grammar: Grammar | None = None) -> int:
        """Draw from the logits of batch entry `index`, and remember the token. grammar: what it has to keep to.

        Raises GrammarError when the grammar cannot be kept any longer.
        """
        if grammar is not None and grammar.complete:
            return self._vocab.end
        token = self._draw(context, index)
        # Most draws fit, so draw first and ask about that one; only a draw that does not fit pays for all tokens.
        if grammar is not None and not grammar.take(token):
            token = self._redraw(context.logits(index), grammar)
        self._processor.remember(token)
        return token

    def _draw(self, context: Context, index: int) -> int:
        if not self._processor:
            return int(lib.llama_sampler_sample(self._chain, context.handle, index))
        with self._processor.applied(context.logits(index)):
            return int(lib.llama_sampler_sample(self._chain, context.handle, index))

    def _redraw(self, logits: NDArray[np.float32], grammar: Grammar) -> int:
        allowed = grammar.allowed()
        while len(allowed):
            token = self._apply(self._chain, self._candidates(logits, allowed))
            if grammar.take(token):
                return token
            # The mask holds what the text before suggests, where taking it looks at the text itself.
            allowed = allowed[allowed != token]
        raise GrammarError("The answer cannot be gone on with: no token of this vocabulary writes it.", SIMPLIFY)

    def _candidates(self, logits: NDArray[np.float32], tokens: NDArray[np.intp]) -> NDArray[np.void]:
        candidates = np.zeros(len(tokens), _CANDIDATE)
        candidates["id"] = tokens
        with self._processor.applied(logits):
            candidates["logit"] = logits[tokens]
        return candidates

    def _apply(self, sampler: Any, candidates: NDArray[np.void]) -> int:
        array = _token_data_array(candidates)
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def accept(self, token: int) -> None:
        """Remember a token that was not drawn: the prompt's, for the penalties, or a forced one."""
        self._processor.remember(token)

    def close(self) -> None:
        """Free the chain."""
        if self._chain:
            lib.llama_sampler_free(self._chain)
            self._chain = None


def _token_data_array(candidates: NDArray[np.void]) -> Any:
    return lib.llama_token_data_array(
        data=candidates.ctypes.data_as(lib.llama_token_data_p), size=len(candidates), selected=-1, sorted=False
    )


def log_probabilities(logits: NDArray[np.float32], token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of a token under the model's own distribution, before sampling, and of the `top` best, each at
    least LEAST_LOGPROB."""
    peak = logits.max()
    # In 32 bits but for the sum: good to a millionth, and a quarter of the time that 64 would take.
    norm = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    ordered = [(int(i), max(float(logits[i]) - norm, LEAST_LOGPROB)) for i in _largest(logits, min(top, len(logits)))]
    return max(float(logits[token]) - norm, LEAST_LOGPROB), ordered


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Where the `count` largest values are, the largest first.

    They lie in the blocks that have the largest maxima: a whole vocabulary need not be sorted for them.
    """
    if count < 2:
        return np.array([values.argmax()] if count else [], np.intp)
    whole = len(values) // _BLOCK * _BLOCK
    found = np.arange(whole, len(values))
    if whole:
        maxima = values[:whole].reshape(-1, _BLOCK).max(axis=1)
        blocks = np.argsort(-maxima, kind="stable")[:count]
        found = np.concatenate([(blocks[:, None] * _BLOCK + np.arange(_BLOCK)).ravel(), found])
    return found[np.lexsort((found, -values[found]))[:count]]
