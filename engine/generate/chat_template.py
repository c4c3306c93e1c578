"""From a conversation to the text a model continues, with the specialist's thinking policy carried out.

The template is the model's own. What a closed thinking block looks like belongs to the template's family, never to
the client: `<think></think>` is six ordinary tokens to Gemma 4.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ..errors import TemplateError, ThinkingPolicyError
from ..spec import Thinking, ThinkingMode
from .echo import Echo
from .origin import Own, Spans, is_own, joined, spans_of
from .renderer import Message, Renderer


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

_ANY_SYSTEM: Final = "Answer in seven words."


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    history_chars: length of the part before the answer's turn; the next turn of the conversation shares it.
    tags: opening and closing strings of thinking blocks to look for in the answer.
    thinking_open: the prompt itself has opened the block.
    own: the parts of the text that are the template's, and the only ones in which control tokens are read.
    closed_by_ban: the answer goes on in a turn that has begun, where the template has no closed thinking block: to keep
          it closed, its opening is not to be drawn.
    tokens, history_tokens: the text, and its first history_chars, once they have been read; see PromptReader.
    echo: how it is given back before the answer, where that is wanted.
    """

    text: str
    history_chars: int
    tags: tuple[tuple[str, str], ...]
    thinking_open: bool = False
    own: Spans = ()
    closed_by_ban: bool = False
    tokens: tuple[int, ...] = ()
    history_tokens: tuple[int, ...] = ()
    echo: Echo | None = None


class ChatTemplate:
    """A model's chat template, ready to render."""

    def __init__(self, renderer: Renderer, *, bos: str = "", eos: str = "") -> None:
        """Raises ModelTemplateError when its source is no template."""
        renderer.compile()
        self._renderer = renderer
        self._own = {"bos_token": bos, "eos_token": eos}
        self.source = renderer.source
        self.family = next((family for family in FAMILIES if family.mark in renderer.source), None)
        self._drops_system: bool | None = None  # not known before the first system message

    def _render(
        self, messages: Sequence[Message], *, thinking: bool, answer: bool, tools: Sequence[Any] | None = None
    ) -> str:
        # enable_thinking: Qwen 3, Gemma 4; thinking: DeepSeek V3.1
        flags: dict[str, Any] = {"add_generation_prompt": answer, "enable_thinking": thinking, "thinking": thinking}
        if tools:
            flags["tools"] = list(tools)
        return self._renderer.render(messages, self._own, flags)

    def close(self) -> None:
        """Free what renders it."""
        self._renderer.close()

    def prompt(self, messages: Sequence[Message], policy: Thinking, tools: Sequence[Any] | None = None) -> Prompt:
        """Render a conversation. A trailing assistant message is continued, not closed, but for one with calls.

        tools: as the template reads them.

        Raises TemplateError when the template refuses the messages, ModelTemplateError when it costs too much,
        ThinkingPolicyError when the policy cannot be carried out with this template.
        """
        start = ""
        if messages and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
            start = _CLIENT_CLOSED.sub("", str(messages[-1].get("content") or ""))
            messages = messages[:-1]
        thinks = policy.mode is not ThinkingMode.OFF
        if self._leaves_out_system(messages):
            messages = _system_into_user(messages) or messages
        try:
            text = self._render(messages, thinking=thinks, answer=True, tools=tools)
        except TemplateError:
            merged = _system_into_user(messages)
            if merged is None:
                raise
            messages = merged
            text = self._render(messages, thinking=thinks, answer=True, tools=tools)
        history = self._render(messages, thinking=thinks, answer=False, tools=tools)
        shared = len(history) if text.startswith(history) else 0
        goes_on = text == history and bool(messages) and messages[-1]["role"] == "tool"
        banned = goes_on and not thinks and policy.prefill is None and self.family is not None
        prefill = "" if banned else self._close(text, policy) if not thinks else self._require_thinking(policy)
        text = joined((text, Own.literal(prefill)))
        family = self.family
        opened = bool(thinks and family and _ends_in_own(text, family.opening))
        if opened and start and family:  # what is continued is the answer, not the thinking
            thought, closed, answer = start.partition(family.closing)
            if closed:
                text = joined((text, thought, Own.literal(closed)))
                start = answer
            else:
                text = joined((text, Own.literal(self._rest_of_block(text, family))))
        whole = joined((text, start))
        return Prompt(str.__str__(whole), shared, self.tags, opened and not start, spans_of(whole), banned)

    def _leaves_out_system(self, messages: Sequence[Message]) -> bool:
        """Whether the template passes over system messages without a word, where there are any."""
        if not any(message["role"] == "system" for message in messages):
            return False
        if self._drops_system is None:
            asked = ({"role": "system", "content": _ANY_SYSTEM}, {"role": "user", "content": "?"})
            try:
                self._drops_system = _ANY_SYSTEM not in self._render(asked, thinking=False, answer=True)
            except TemplateError:
                self._drops_system = False  # it refuses them, which is seen where it does
        return self._drops_system

    def conversation(self, messages: Sequence[Message], policy: Thinking) -> Prompt:
        """A conversation whose last answer is finished: it begins as the policy demands, and its turn is closed.

        One that does not end in an answer is rendered as a prompt. Raises what `prompt` raises.
        """
        prompt = self.prompt(messages, policy)
        if not messages or messages[-1]["role"] != "assistant":
            return prompt
        try:
            whole = self._render(messages, thinking=False, answer=False)
        except TemplateError:
            whole = self._render(_system_into_user(messages) or messages, thinking=False, answer=False)
        answer = str(messages[-1].get("content") or "").strip()
        at = whole.rfind(answer) if answer else -1
        if at < 0:
            return prompt
        text = joined((Own(prompt.text, prompt.own), whole[at + len(answer) :]))
        return replace(prompt, text=str.__str__(text), own=spans_of(text))

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
        if _ends_in_own(text, family.closing):
            return ""  # the template closes the block in its own way, which is what the model was trained on
        start = text.rfind(family.opening.rstrip())
        begun = text[start:] if start >= 0 and is_own(text, start, len(text)) else ""
        return family.closed[len(begun) :] if family.closed.startswith(begun) else family.closed

    def _require_thinking(self, policy: Thinking) -> str:
        if self.family is None:
            raise ThinkingPolicyError(
                f"thinking: {policy.mode.value} needs a model that thinks; this chat template has no thinking block.",
                "Set `thinking: off`.",
            )
        return policy.prefill or ""


def _ends_in_own(text: str, ending: str) -> bool:
    """Whether a text ends so, white space aside, and the ending is the template's."""
    trimmed, wanted = text.rstrip(), ending.rstrip()
    return trimmed.endswith(wanted) and is_own(trimmed, len(trimmed) - len(wanted), len(trimmed))


def _system_into_user(messages: Sequence[Message]) -> list[Message] | None:
    """For templates without a system role: the system text goes in front of the first user message."""
    system = [str(m["content"]) for m in messages if m["role"] == "system"]
    rest = [dict(m) for m in messages if m["role"] != "system"]
    if not system or not rest or rest[0]["role"] != "user":
        return None
    rest[0]["content"] = "\n\n".join([*system, str(rest[0]["content"])])
    return list(rest)
