"""A specialist's rules applied to a request: sampling within bounds, thinking as the roster says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from coe.engine.spec import Sampling, Thinking, ThinkingMode

from ..roster.models import Specialist
from .errors import RequestError
from .request import Request

NOTED_TEMPERATURE = 0.8  # from here on, cut models were seen to loop more


@dataclass(frozen=True)
class Rules:
    """What a request is answered with. notes: what the client should know, for a header."""

    sampling: Sampling
    thinking: Thinking
    max_tokens: int | None
    notes: tuple[str, ...]


def rules_for(request: Request, specialist: Specialist) -> Rules:
    """The specialist's defaults, the request's wishes within the bounds.

    Raises RequestError when the roster refuses what the request asks for.
    """
    notes: list[str] = []
    sampling = specialist.default_sampling()
    wishes: dict[str, Any] = dict(request.overrides)
    sampling = replace(sampling, **wishes)
    asked = request.overrides.get("temperature")
    bounds = specialist.sampling_bounds
    if asked is not None and asked > bounds.max_temperature and bounds.on_excess != "allow":
        if bounds.on_excess == "refuse":
            raise RequestError(
                f"temperature: {specialist.name} takes at most {bounds.max_temperature:g}, {asked:g} was asked for.",
                param="temperature",
            )
        sampling = replace(sampling, temperature=bounds.max_temperature)
        notes.append(f"temperature {asked:g} was lowered to {bounds.max_temperature:g}")
    elif asked is not None and asked >= NOTED_TEMPERATURE:
        notes.append(f"temperature {asked:g} makes loops likelier")
    thinking = specialist.thinking_policy()
    if request.wants_thinking and thinking.mode is ThinkingMode.OFF:
        notes.append(f"{specialist.name} does not think: thinking stays off")
    elif request.wants_thinking is False and thinking.mode is not ThinkingMode.OFF:
        # Less thinking than the roster allows is a client's right.
        thinking = replace(thinking, mode=ThinkingMode.OFF, budget_tokens=None)
    max_tokens = specialist.max_tokens if request.max_tokens is None else request.max_tokens
    return Rules(sampling, thinking, max_tokens, tuple(notes))
