"""How an answer is drawn: fields that all dialects share, and those of OpenAI's APIs and vLLM beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from ...runtime.errors import RequestError
from ...runtime.request import Request
from .fields import (
    MAX_INT,
    Body,
    LoopGuard,
    MinP,
    ModelName,
    Penalty,
    RepeatLastN,
    RepeatPenalty,
    Seed,
    Stops,
    Temperature,
    TopK,
    TopP,
)

# What goes to the specialist's rules under its own name.
_SAMPLING: Final = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("presence_penalty", "frequency_penalty", "repeat_penalty", "repeat_last_n"),
)
# Members of the object: more than any client has a use for.
MAX_BIASES: Final = 4096


class Sampler(Body):
    """How tokens are drawn, and where they end."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK = None
    min_p: MinP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: RepeatPenalty | None = None
    repeat_last_n: RepeatLastN = None
    seed: Seed = None
    stop: Stops = ()

    @property
    def overrides(self) -> dict[str, float]:
        """What goes to the specialist's rules."""
        return {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}


class Sampled(Sampler):
    """What OpenAI's APIs have beside it."""

    model: ModelName = "auto"
    stream: bool | None = None
    repetition_penalty: RepeatPenalty | None = None  # vLLM's name for repeat_penalty
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    user: str | None = None
    loop_guard: LoopGuard = None


def sampled_request(body: Sampled, **own: Any) -> Request:
    """The request of a body. own: what is not of Sampled. Raises RequestError naming the field."""
    overrides = body.overrides
    if body.repetition_penalty is not None:
        overrides.setdefault("repeat_penalty", body.repetition_penalty)
    return Request(
        model=body.model,
        stream=bool(body.stream),
        overrides=overrides,
        stop=body.stop,
        seed=body.seed,
        loop_guard=body.loop_guard,
        logit_bias=_biases(body.logit_bias or {}),
        **own,
    )


def _biases(asked: Mapping[str, float]) -> dict[int, float]:
    if not all(token.isascii() and token.isdigit() and len(token) <= 10 for token in asked):
        raise RequestError("logit_bias: the keys are token ids, whole numbers.", param="logit_bias")
    # A number that no vocabulary reaches would come round to another token.
    return {int(token): bias for token, bias in asked.items() if int(token) <= MAX_INT}
