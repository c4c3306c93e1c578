"""A specialist's rules applied to a request: sampling within bounds, thinking as the roster says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from coe.engine.request import Patience, Tool, ToolUse
from coe.engine.spec import Sampling, Thinking, ThinkingMode
from coe.router.client_tasks import ClientTask

from ..roster.models import Specialist
from .errors import Part, RuleError
from .request import Request

NOTED_TEMPERATURE = 0.8  # from here on, cut models were seen to loop more


@dataclass(frozen=True)
class Rules:
    """What a request is answered with. loop_guard: None for none. notes: what the client should know, for a header.
    tools: what the model is told of and may call, as tool_use says. task: a client's own, where it bounds the answer to
    fewer tokens than max_tokens does, thinking aside.
    """

    sampling: Sampling
    thinking: Thinking
    max_tokens: int | None
    loop_guard: Patience | None
    notes: tuple[str, ...]
    tools: tuple[Tool, ...] = ()
    tool_use: ToolUse = field(default_factory=ToolUse)
    task: ClientTask | None = None

    @property
    def may_call(self) -> bool:
        """Whether the answer may call a tool."""
        return bool(self.tools) and not self.tool_use.forbidden

    @property
    def must_call(self) -> bool:
        """Whether the answer is to be calls, and no text."""
        return bool(self.tools) and self.tool_use.required


def rules_for(request: Request, specialist: Specialist, task: ClientTask | None = None) -> Rules:
    """The specialist's defaults, the request's wishes within the bounds. task: what the request is, if a client's own.

    Raises RuleError when the roster refuses what the request asks for.
    """
    notes: list[str] = [*request.notes]
    sampling = specialist.default_sampling()
    wishes: dict[str, Any] = dict(request.overrides)
    sampling = replace(sampling, **wishes)
    asked = request.overrides.get("temperature")
    bounds = specialist.sampling_bounds
    if asked is not None and asked > bounds.max_temperature and bounds.on_excess != "allow":
        if bounds.on_excess == "refuse":
            does = f"takes at most {bounds.max_temperature:g}, {asked:g} was asked for"
            raise RuleError("temperature", specialist.name, does)
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
    if request.wanted_context is not None and request.wanted_context > specialist.context_tokens:
        notes.append(
            f"a context of {request.wanted_context} tokens was asked for: {specialist.name} has "
            f"{specialist.context_tokens}"
        )
    max_tokens = specialist.max_tokens if request.max_tokens is None else request.max_tokens
    guard = _loop_guard(request, specialist, notes)
    tools = _tools(request, specialist, notes)
    use = replace(request.tool_use, generic=specialist.tools == "generic")
    most = task.answer_tokens if task is not None else None
    bounded = most is not None and (max_tokens is None or most < max_tokens)
    return Rules(sampling, thinking, max_tokens, guard, tuple(notes), tools, use, task if bounded else None)


def drawn(rules: Rules) -> Rules:
    """The rules for a second try: a fresh seed changes nothing about the most probable tokens, so they are drawn."""
    if rules.sampling.temperature > 0:
        return rules
    sampling = replace(rules.sampling, temperature=Sampling.temperature)
    note = f"the second try was drawn at temperature {sampling.temperature:g}"
    return replace(rules, sampling=sampling, notes=(*rules.notes, note))


def refusal_of(request: Request, specialist: Specialist) -> RuleError | None:
    """Why the specialist's rules refuse a request; None where they take it."""
    try:
        rules_for(request, specialist)
    except RuleError as error:
        return error
    return None


def _tools(request: Request, specialist: Specialist, notes: list[str]) -> tuple[Tool, ...]:
    if request.may_call and specialist.tools == "refuse":
        raise RuleError("tools", specialist.name, "takes none", "Send none.", param=Part.TOOLS)
    if request.may_call and specialist.tools == "ignore":
        if request.tool_use.required:  # an answer in words would break the client that counts on a call
            raise RuleError(
                "tool_choice",
                specialist.name,
                "calls no tools, and a call is demanded",
                "Leave tool_choice (or function_call) at auto, for an answer in words.",
                param=Part.TOOL_CHOICE,
            )
        notes.append(f"{specialist.name} calls no tools: it answers without them")
    return () if specialist.tools in ("refuse", "ignore") else request.tools


# From the one that ends an answer first to none at all.
_PATIENCE: Final = (Patience.STRICT, Patience.NORMAL, Patience.PATIENT, None)


def _loop_guard(request: Request, specialist: Specialist, notes: list[str]) -> Patience | None:
    own = specialist.patience()
    if request.loop_guard is None:
        return own
    asked = request.loop_guard or None
    bounds = specialist.sampling_bounds
    bound = Patience(bounds.max_patience) if bounds.max_patience else None
    most = max(own, bound, key=_PATIENCE.index)  # the roster's own choice is nobody's excess
    if bounds.on_excess == "allow" or _PATIENCE.index(asked) <= _PATIENCE.index(most):
        return asked
    written = asked.value if asked else "false"
    assert most is not None, "nothing is more patient than no guard"
    if bounds.on_excess == "refuse":
        raise RuleError("loop_guard", specialist.name, f"takes at most {most.value}, {written} was asked for")
    notes.append(f"loop_guard {written} was changed to {most.value}")
    return most
