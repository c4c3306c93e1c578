"""The internal request: what a client wants, in words of no dialect. Every dialect parses its bodies into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from coe.engine.request import Patience, Tool, ToolUse

Message = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What one HTTP request asks for.

    model:          a specialist's name or alias, or `auto`.
    messages:       a conversation of {role, content}, roles system, user, assistant and tool, contents texts. An
                    assistant's may have `tool_calls`, each {id, name, arguments: an object}, and the `reasoning` before
                    them; a tool's has `tool_call_id` and `name`; or
    prompt:         a text to be continued as it is; or
    prompt_ids:     the ids of its tokens. Exactly one of the three is given.
    suffix:         what follows the answer, where it is to fill the middle between `prompt` and this.
    snippets:       other texts to fill the middle by, each {filename, text}.
    echo:           the prompt comes before the answer, scored where log-probabilities are wanted.
    tools:          what the model may call, as tool_use says.
    stream:         whether the answer is wanted piece by piece.
    overrides:      sampling fields that the client set, by the name that engine.spec.Sampling gives them.
    max_tokens:     None for what the specialist and the context allow.
    n:              choices.
    best_of:        how many answers the choices are the likeliest of; n at least, 0 for as many as there are choices.
    logit_bias:     token id -> what is added to its logit.
    response_format: {"type": "json_object"}, or {"type": "json_schema", "json_schema": ...}; None for free text.
    top_logprobs:   None for no log-probabilities, else how many alternatives a token.
    loop_guard:     how patient the loop guard is to be, False for none; None for what the specialist has.
    wants_thinking: True or False when the client said so, None when it did not.
    notes:          what of the body was left out, for the client to know.
    session:        what the body calls its conversation; None where it does not.
    wanted_context: tokens of context that the client asks for; None where it does not.
    """

    model: str
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    suffix: str | None = None
    snippets: tuple[Mapping[str, str], ...] = ()
    echo: bool = False
    tools: tuple[Tool, ...] = ()
    tool_use: ToolUse = field(default_factory=ToolUse)
    stream: bool = False
    overrides: Mapping[str, float] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    best_of: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    response_format: Mapping[str, Any] | None = None
    top_logprobs: int | None = None
    loop_guard: Patience | Literal[False] | None = None
    wants_thinking: bool | None = None
    notes: tuple[str, ...] = ()
    session: str | None = None
    wanted_context: int | None = None

    @property
    def n_made(self) -> int:
        """Answers that are generated, the choices among them."""
        return max(self.n, self.best_of)

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's own tokens are wanted."""
        return self.echo and self.top_logprobs is not None

    @cached_property
    def n_chars(self) -> int:
        """Characters that the prompt has at least; of token ids nobody here knows."""
        texts = (
            [self.prompt or "", self.suffix or ""]
            if self.messages is None
            else [m.get("content") or "" for m in self.messages]
        )
        return sum(map(len, texts)) + self.tools_chars

    @property
    def conversation(self) -> Sequence[Message]:
        """The messages; a bare prompt is the only message of a user, and token ids are one without a text."""
        return self.messages or [{"role": "user", "content": self.prompt or ""}]

    @property
    def may_call(self) -> bool:
        """Whether a tool may be called."""
        return bool(self.tools) and not self.tool_use.forbidden

    @cached_property
    def tools_chars(self) -> int:
        """About how long the descriptions of the tools are."""
        return sum(len(tool.name) + len(tool.description) + len(str(tool.parameters)) for tool in self.tools)


def with_system_prompt(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """The specialist's own system prompt first, the client's system text after it, in one system message."""
    own = [system_prompt.strip()] if system_prompt else []
    texts = own + [message["content"] for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *rest] if texts else rest
