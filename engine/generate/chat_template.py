"""From a conversation to the text a model continues, with the specialist's thinking policy carried out.

The template is the model's own. What a closed thinking block looks like belongs to the template's family, never to
the client: `<think></think>` is six ordinary tokens to Gemma 4.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import TemplateError, ThinkingPolicyError
from ..spec import Thinking, ThinkingMode

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """How a family of models writes its thinking block.

    closed: what a think-off answer starts with; empty when the family cannot close its block beforehand.
    """

    name: str
    mark: str  # a string that gives the family's template away
    opening: str
    closing: str
    closed: str


# Source: the models' own templates, rendered with enable_thinking=false.
FAMILIES: Final = (
    Family("gemma4", "<|channel>", "<|channel>thought\n", "<channel|>", "<|channel>thought\n<channel|>"),
    Family("harmony", "<|channel|>", "<|channel|>analysis<|message|>", "<|end|>", ""),
    Family("think", "</think>", "<think>", "</think>", "<think>\n\n</think>\n\n"),
)

# Clients were told by model cards to close the block themselves, in whatever spelling the card used.
_CLIENT_CLOSED = re.compile(r"\A\s*(?:<think>\s*</think>|<\|channel>thought\s*<channel\|>)\s*")


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    history_chars: length of the part before the answer's turn; the next turn of the conversation shares it.
    tags: opening and closing strings of thinking blocks to look for in the answer.
    thinking_open: the prompt itself has opened the block.
    """

    text: str
    history_chars: int
    tags: tuple[tuple[str, str], ...]
    thinking_open: bool = False


class ChatTemplate:
    """A model's chat template, ready to render."""

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        """Raises TemplateError when the source is no Jinja template."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"The model's chat template is broken: {error}.", "Give the entry another GGUF of the model."
            ) from error
        self._constants = {"bos_token": bos, "eos_token": eos}
        self.family = next((family for family in FAMILIES if family.mark in source), None)

    def _render(self, messages: Sequence[Message], *, thinking: bool, answer: bool) -> str:
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=answer,
                enable_thinking=thinking,  # Qwen 3, Gemma 4
                thinking=thinking,  # DeepSeek V3.1
                **self._constants,
            )
        except (jinja2.TemplateError, _RefusedError) as error:
            raise TemplateError(f"The model's chat template refuses this conversation: {error}.") from error
        except Exception as error:  # a template is a program: it may fail in any way
            raise TemplateError(f"The model's chat template fails on this conversation: {error!r}.") from error

    def prompt(self, messages: Sequence[Message], policy: Thinking) -> Prompt:
        """Render a conversation. A trailing assistant message is continued, not closed.

        Raises TemplateError when the template refuses the messages, ThinkingPolicyError when the policy cannot be
        carried out with this template.
        """
        start = ""
        if messages and messages[-1]["role"] == "assistant":
            start = _CLIENT_CLOSED.sub("", str(messages[-1].get("content") or ""))
            messages = messages[:-1]
        thinks = policy.mode is not ThinkingMode.OFF
        try:
            text = self._render(messages, thinking=thinks, answer=True)
        except TemplateError:
            merged = _system_into_user(messages)
            if merged is None:
                raise
            messages = merged
            text = self._render(messages, thinking=thinks, answer=True)
        history = self._render(messages, thinking=thinks, answer=False)
        shared = len(history) if text.startswith(history) else 0
        prefill = self._close(text, policy) if not thinks else self._require_thinking(policy)
        text += prefill
        family = self.family
        opened = bool(thinks and family and text.rstrip().endswith(family.opening.rstrip()))
        if opened and start and family and family.closing not in start:
            text += self._rest_of_block(text, family)  # what is continued is the answer, not the thinking
        return Prompt(text + start, shared, self.tags, opened and not start)

    def conversation(self, messages: Sequence[Message], policy: Thinking) -> str:
        """A conversation whose last answer is finished: it begins as the policy demands, and its turn is closed.

        One that does not end in an answer is rendered as a prompt. Raises what `prompt` raises.
        """
        text = self.prompt(messages, policy).text
        if not messages or messages[-1]["role"] != "assistant":
            return text
        try:
            whole = self._render(messages, thinking=False, answer=False)
        except TemplateError:
            whole = self._render(_system_into_user(messages) or messages, thinking=False, answer=False)
        answer = str(messages[-1].get("content") or "").strip()
        _, found, closing = whole.rpartition(answer) if answer else ("", "", "")
        return text + closing if found else text

    @property
    def tags(self) -> tuple[tuple[str, str], ...]:
        """Thinking blocks that may leak into an answer: the family's own, and the most common one."""
        common = ("<think>", "</think>")
        own = (self.family.opening, self.family.closing) if self.family else common
        return (own,) if own == common else (own, common)

    def check(self, policy: Thinking) -> None:
        """Raise ThinkingPolicyError unless a prompt under this policy ends as the policy demands."""
        prompt = self.prompt([{"role": "user", "content": "?"}], policy)
        if policy.mode is ThinkingMode.OFF:
            own = self.family.closing if self.family else ""
            ends_right = prompt.text.rstrip().endswith(own) if policy.prefill is None else True
            if not ends_right:
                raise ThinkingPolicyError(
                    f"A think-off prompt must end in {own!r} but ends in {prompt.text[-40:]!r}.",
                    "Give the specialist a `prefill` that closes its model's thinking block.",
                )

    def _close(self, text: str, policy: Thinking) -> str:
        """What must follow the rendered text so that it ends in the closed block."""
        if policy.prefill is not None:
            return policy.prefill
        family = self.family
        if family is None:
            return ""
        if not family.closed:
            raise ThinkingPolicyError(
                f"Models of the {family.name} family cannot have their thinking closed beforehand.",
                "Set `thinking: on`, or give a `prefill`.",
            )
        return self._rest_of_block(text, family)

    def _rest_of_block(self, text: str, family: Family) -> str:
        """What of the closed block is not there yet at the end of a rendered text."""
        if text.rstrip().endswith(family.closing):
            return ""  # the template closes the block in its own way, which is what the model was trained on
        start = text.rfind(family.opening.rstrip())
        begun = text[start:] if start >= 0 else ""
        return family.closed[len(begun) :] if family.closed.startswith(begun) else family.closed

    def _require_thinking(self, policy: Thinking) -> str:
        if self.family is None:
            raise ThinkingPolicyError(
                f"thinking: {policy.mode.value} needs a model that thinks; this chat template has no thinking block.",
                "Set `thinking: off`.",
            )
        return policy.prefill or ""


class _RefusedError(Exception):
    """A template called raise_exception."""


def _refuse(message: str) -> None:
    raise _RefusedError(message)


def _system_into_user(messages: Sequence[Message]) -> list[Message] | None:
    """For templates without a system role: the system text goes in front of the first user message."""
    system = [str(m["content"]) for m in messages if m["role"] == "system"]
    rest = [dict(m) for m in messages if m["role"] != "system"]
    if not system or not rest or rest[0]["role"] != "user":
        return None
    rest[0]["content"] = "\n\n".join([*system, str(rest[0]["content"])])
    return list(rest)
