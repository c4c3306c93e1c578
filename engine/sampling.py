"""Drawing the next token: llama.cpp's samplers in a chain of each request's own."""

from __future__ import annotations

import ctypes
import json
import re
import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import llama_cpp.llama_cpp as lib
import numpy as np
from llama_cpp.llama_grammar import JSON_GBNF, json_schema_to_gbnf
from numpy.typing import NDArray

from .errors import GrammarError
from .llama import Context, Vocab
from .spec import Sampling

_CANDIDATE: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
# The converter writes 🐍 as JSON does, \ud83d\udc0d; a grammar takes each half for a character of its own.
_SURROGATE_PAIR: Final = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")
_SURROGATE: Final = re.compile(r"\\ud[89a-f][0-9a-f]{2}|[\ud800-\udfff]")
MAX_SEED: Final = 2**32 - 2  # 2**32 - 1 asks llama.cpp for a random seed


_MAX_GRAMMAR: Final = 50_000
_GBNF_PART: Final = re.compile(
    r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\{(?P<least>\d{1,12})(?:,(?P<most>\d{1,12})?)?\}|[\w-]+|.', re.DOTALL
)


def grammar_of(response_format: Mapping[str, Any] | None) -> str | None:
    """GBNF for an OpenAI response_format; None for plain text.

    Raises GrammarError when the schema cannot be expressed.
    """
    kind = (response_format or {}).get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return str(JSON_GBNF)
    try:
        assert response_format is not None
        schema = response_format["json_schema"].get("schema", {})
        grammar = _SURROGATE_PAIR.sub(_one_escape, str(json_schema_to_gbnf(json.dumps(schema))))
        if "\0" in grammar or _SURROGATE.search(grammar):
            raise ValueError("the schema holds NUL or half a character")
    except Exception as error:  # the converter raises whatever it trips over
        raise GrammarError(
            f"response_format.json_schema cannot be turned into a grammar: {error!r}.",
            "Use the JSON Schema features that llama.cpp's converter knows.",
        ) from error
    if (size := expanded_size(grammar)) > _MAX_GRAMMAR:
        raise GrammarError(
            f"response_format.json_schema makes a grammar of {size:,} elements; {_MAX_GRAMMAR:,} are taken.",
            "Lower its minItems, maxItems, lengths or repetitions, or shorten its enums.",
        )
    return grammar


def expanded_size(grammar: str) -> int:
    """About how many characters a GBNF text has with its repetitions written out, as llama.cpp's parser does.

    A count of a million in a pattern overflows llama.cpp's stack and takes the worker down, with everybody's answers.
    """
    total = last = 0
    groups: list[int] = []  # the total where each open parenthesis stands
    for part in _GBNF_PART.finditer(grammar):
        text = part[0]
        if part["least"] is not None:
            more = last * (max(int(part["least"]), int(part["most"] or 0)) - 1)
            total, last = total + max(more, 0), last + max(more, 0)
        elif text == "(":
            groups.append(total)
        elif text == ")":
            last = total - groups.pop() if groups else last
        elif not text.isspace():
            last = len(text)
            total += last
    return total


def _one_escape(pair: re.Match[str]) -> str:
    high, low = int(pair[1], 16), int(pair[2], 16)
    return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08X}"


class Adjustments:
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
    """One request's bias and penalties, then llama.cpp's chain: top-k, top-p, min-p, temperature, draw; a grammar
    beside it."""

    def __init__(
        self,
        vocab: Vocab,
        sampling: Sampling,
        *,
        seed: int | None,
        logit_bias: Mapping[int, float] | None = None,
        grammar: str | None = None,
    ) -> None:
        """Raises GrammarError when llama.cpp refuses the grammar."""
        self._vocab = vocab
        self._grammar = None
        if grammar is not None:
            self._grammar = lib.llama_sampler_init_grammar(vocab.handle, grammar.encode(), b"root")
            if not self._grammar:
                raise GrammarError("llama.cpp refuses the grammar made from response_format.", "Simplify the schema.")
        self.seed = secrets.randbelow(MAX_SEED) if seed is None else seed % (MAX_SEED + 1)
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._adjustments = Adjustments(sampling, logit_bias or {}, vocab.n_tokens)
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
        return [*parts, lib.llama_sampler_init_temp(sampling.temperature), lib.llama_sampler_init_dist(self.seed)]

    def sample(self, context: Context, index: int, *, constrained: bool = True) -> int:
        """Draw from the logits of batch entry `index`, and remember the token.

        constrained: the grammar applies; not while the model still thinks.
        """
        if self._grammar is not None and constrained:
            token = self._sample_constrained(context.logits(index))
            lib.llama_sampler_accept(self._grammar, token)
        elif self._adjustments:
            with self._adjustments.applied(context.logits(index)):
                token = int(lib.llama_sampler_sample(self._chain, context.handle, index))
        else:
            token = int(lib.llama_sampler_sample(self._chain, context.handle, index))
        self._adjustments.remember(token)
        return token

    def _sample_constrained(self, logits: NDArray[np.float32]) -> int:
        # The grammar looks at every candidate it is given. Most draws fit it, so draw first and ask about that one;
        # only a draw that does not fit pays for all of them.
        candidates = self._candidates(logits)
        token = self._apply(self._chain, candidates)
        single = np.zeros(1, _CANDIDATE)
        single["id"] = token
        array = _token_data_array(single)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        if np.isfinite(single["logit"][0]):
            return token
        candidates = self._candidates(logits)
        array = _token_data_array(candidates)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return self._apply(self._chain, candidates)

    def _candidates(self, logits: NDArray[np.float32]) -> NDArray[np.void]:
        candidates = np.zeros(len(logits), _CANDIDATE)
        candidates["id"] = np.arange(len(logits), dtype=np.int32)
        with self._adjustments.applied(logits):
            candidates["logit"] = logits
        return candidates

    def _apply(self, sampler: Any, candidates: NDArray[np.void]) -> int:
        array = _token_data_array(candidates)
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def accept(self, token: int, *, constrained: bool = False) -> None:
        """Remember a token that was not drawn: the prompt's, for the penalties, or a forced one."""
        self._adjustments.remember(token)
        if constrained and self._grammar is not None:
            lib.llama_sampler_accept(self._grammar, token)

    def close(self) -> None:
        """Free the chain and the grammar."""
        if self._chain:
            lib.llama_sampler_free(self._chain)
            self._chain = None
        if self._grammar:
            lib.llama_sampler_free(self._grammar)
            self._grammar = None


def _token_data_array(candidates: NDArray[np.void]) -> Any:
    return lib.llama_token_data_array(
        data=candidates.ctypes.data_as(lib.llama_token_data_p), size=len(candidates), selected=-1, sorted=False
    )


def log_probabilities(logits: NDArray[np.float32], token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of a token under the model's own distribution, before sampling, and of the `top` best."""
    peak = float(logits.max())
    norm = peak + float(np.log(np.exp(logits.astype(np.float64) - peak).sum()))
    top = min(top, len(logits))
    best = np.argpartition(-logits, top - 1)[:top] if top else np.empty(0, np.int64)
    ordered = sorted(((int(i), float(logits[i]) - norm) for i in best), key=lambda pair: -pair[1])
    return float(logits[token]) - norm, ordered
