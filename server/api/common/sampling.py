"""How an answer is drawn: the fields that OpenAI's APIs share, with those of llama.cpp and vLLM beside them."""

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


class Sampled(Body):
    """The model, and how its tokens are drawn."""

    model: ModelName = "auto"
    stream: bool | None = None
    stop: Stops = ()
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK = None
    min_p: MinP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: RepeatPenalty | None = None
    repetition_penalty: RepeatPenalty | None = None  # vLLM's name for it
    repeat_last_n: RepeatLastN = None
    seed: Seed = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    user: str | None = None
    loop_guard: LoopGuard = None


def sampled_request(body: Sampled, **own: Any) -> Request:
    """The request of a body. own: what is not of Sampled. Raises RequestError naming the field."""
    overrides = {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
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
