"""From a request to a sequence that can be decoded: chat template, tokenisation, context limits, grammar."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from llguidance import LLTokenizer

from ..errors import EngineError, ModelTemplateError, PromptTooLongError, TemplateError, UnknownTokenError
from ..llama.model import Model
from ..request import GenerateRequest, ReadRequest, Told, Tool
from ..spec import LoadSpec, Thinking, ThinkingMode
from .chat_template import ChatTemplate, Prompt
from .echo import Echo
from .grammar import Grammar, schema_of, tokenizer_of
from .infill import infill_tokens
from .origin import within
from .plain_text import markers_of, tokens_of
from .renderer import Message, Renderer, RenderProcess
from .sequence import ActiveSequence
from .tools.constraint import CallConstraint
from .tools.family import Family
from .tools.find import GENERIC, ToolSupport, support_of
from .tools.reading import Toolbox
from .tools.shown import simple

# From here on a prompt is worth a look at its length before it is read into tokens.
_LONG_PROMPT_BYTES: Final = 10_000

_MOST_TOOLBOXES: Final = 8
_NO_CHAT: Final = "It answers POST /v1/completions only; chats need another GGUF of the model, with a chat template."


# What every template is asked once: no client's text, so that all the control tokens in it are the template's.
_HARMLESS: Final[tuple[tuple[Message, ...], ...]] = (
    ({"role": "user", "content": "What is 27 + 35?"},),
    (
        {"role": "user", "content": "What is 27 + 35?"},
        {"role": "assistant", "content": "62"},
        {"role": "user", "content": "And twice that?"},
    ),
)


class PromptReader:
    """Reads requests for one model.

    template:   the model's own chat template; None when the model cannot answer chats, and
    chat_fault: why it cannot; None when it can.
    tool_support: how calls of tools are written for it.
    """

    def __init__(self, model: Model, spec: LoadSpec, *, renderer: Callable[[str], Renderer] = RenderProcess) -> None:
        """renderer: what renders a template, of its source. A template is tried out here, once."""
        self._vocab = model.vocab
        self._context_tokens = spec.context_tokens
        source, text = model.chat_template(), model.vocab.text
        self._template_source = source
        self._markers = markers_of(model.vocab, source or "")
        self._renderer = renderer(source) if source else None
        self.template: ChatTemplate | None = None
        self.chat_fault: ModelTemplateError | None = None
        self._toolboxes: dict[str, Toolbox] = {}  # by what they were made of, the least recently used first
        self._making_toolbox = threading.Lock()
        self.tool_support = ToolSupport(None, "the model cannot answer chats")
        try:
            if self._renderer is None:
                raise ModelTemplateError("The model file carries no chat template.", _NO_CHAT)
            template = ChatTemplate(self._renderer, bos=text(model.vocab.bos), eos=text(model.vocab.eos))
            self._try_out(template)
            self.template = template
            self.tool_support = support_of(template, self._tags_of, self._reads_as_written)
        except ModelTemplateError as error:
            self.chat_fault = error
            if self._renderer is not None:
                self._renderer.close()

    def _try_out(self, template: ChatTemplate) -> None:
        """Render conversations that are nobody's, and read them as a user's are read. Raises ModelTemplateError."""
        policy = Thinking(ThinkingMode.ON if template.family is not None else ThinkingMode.OFF)
        for messages in _HARMLESS:
            try:
                prompt = template.prompt(messages, policy)
            except ModelTemplateError:
                raise
            except EngineError as error:
                if messages is _HARMLESS[0]:
                    raise ModelTemplateError(error.message, _NO_CHAT) from error
                continue  # it may take one question alone
            if not self._reads_as_written(prompt):
                raise ModelTemplateError(
                    "The model's chat template makes control tokens in a way that cannot be told from a user's text.",
                    _NO_CHAT,
                )

    @property
    def renderer_bytes(self) -> int:
        """Resident memory of the process that renders the template; 0 where none runs."""
        return self._renderer.rss_bytes if self._renderer is not None else 0

    def close(self) -> None:
        """End the process that renders the template."""
        if self._renderer is not None:
            self._renderer.close()

    def _reads_as_written(self, prompt: Prompt) -> bool:
        """Whether a prompt that holds no client's text has all the control tokens that are spelt in it."""
        return self._tokens(prompt) == self._vocab.tokenize(prompt.text, bos=self._adds_bos(prompt.text))

    def _tags_of(self, family: Family) -> dict[str, int]:
        """The token of each of a family's tags that is one of the vocabulary's own."""
        found: dict[str, int] = {}
        for tag in family.tags:
            tokens = self._vocab.tokenize_on(tag)
            if len(tokens) == 1 and self._vocab.text(tokens[0]) == tag:
                found[tag] = tokens[0]
        return found

    def family_of(self, request: GenerateRequest) -> Family:
        """How the calls of a request are written."""
        native = None if request.tool_use.generic else self.tool_support.family
        return native or GENERIC

    def held_to(self, request: GenerateRequest) -> Grammar | Toolbox | None:
        """What the answer has to keep to: a schema's grammar, tools, or nothing.

        Takes up to seconds for large schemas, and may run on a thread of its own. Raises GrammarError.
        """
        schema = schema_of(request.response_format)
        if request.messages is not None and request.tools and not request.tool_use.forbidden:
            return self._toolbox_of(request, schema)
        if request.messages is not None and schema is None:
            return self._closed_toolbox(request)
        return Grammar.of_schema(self._grammar_tokens, schema) if schema is not None else None

    def _toolbox_of(self, request: GenerateRequest, schema: Any | None) -> Toolbox:
        """Made once for the turns of an agent, which sends the same tools each time: 36 of them take half a second."""
        made_of = json.dumps([[asdict(tool) for tool in request.tools], asdict(request.tool_use), schema])
        with self._making_toolbox:
            box = self._toolboxes.pop(made_of, None) or self._made_toolbox(request, schema)
            self._toolboxes[made_of] = box
            if len(self._toolboxes) > _MOST_TOOLBOXES:
                del self._toolboxes[next(iter(self._toolboxes))]
        return box

    def _made_toolbox(self, request: GenerateRequest, schema: Any | None) -> Toolbox:
        family, use = self.family_of(request), request.tool_use
        tools = {tool.name: tool for tool in request.tools if not use.only or tool.name in use.only}
        tags = self._tags_of(family)
        tokenizer = self._grammar_tokens if tools else None
        constraint = CallConstraint(tokenizer, family, tuple(tools.values()), use, tags, schema)
        return Toolbox(family, tools, tags, self._ends_of(family), constraint, use.parallel)

    def _closed_toolbox(self, request: GenerateRequest) -> Toolbox | None:
        """For an answer that may call nothing. A model that does so all the same calls what it was told of, or called
        before; None where there is neither, and nothing stands around a text that is no part of it."""
        names = [call["name"] for message in request.messages or () for call in message.get("tool_calls") or ()]
        tools = {**{name: Tool(name) for name in names}, **{tool.name: tool for tool in request.tools}}
        family = self.family_of(request)
        if not tools and not family.frames:
            return None
        tags = self._tags_of(family)
        constraint = CallConstraint(None, family, (), request.tool_use, tags)
        return Toolbox(family, tools, tags, self._ends_of(family), constraint, forbidden=True)

    def _ends_of(self, family: Family) -> frozenset[int]:
        return frozenset(tokens[0] for end in family.ends if len(tokens := self._vocab.tokenize_on(end)) == 1)

    def _banned_of(self, box: Toolbox) -> list[int]:
        """The tokens that begin a call and nothing else, where none may be made."""
        openings = box.family.openings if box.forbidden else ()
        return [box.tags[opening] for opening in openings if opening in box.tags]

    @functools.cached_property
    def _grammar_tokens(self) -> LLTokenizer:
        families = (GENERIC, *filter(None, (self.tool_support.family,)))
        return tokenizer_of(self._vocab, {tag for family in families for tag in self._tags_of(family).values()})

    def prompt_of(self, request: GenerateRequest) -> Prompt:
        """What a request is to be continued from, read into tokens.

        Takes as long as the chat template does, within its bounds, and seconds for a text that some vocabularies are
        slow to read; may run on a thread of its own. Raises TemplateError, ModelTemplateError, ThinkingPolicyError,
        PromptTooLongError, UnknownTokenError and InfillError.
        """
        if request.prompt_ids is not None:
            return self._with_echo(request, self._given(request.prompt_ids))
        # Of a conversation templates may leave out anything but what its user says, its margins aside.
        said = (str(m.get("content") or "").strip() for m in request.messages or () if m["role"] == "user")
        self._refuse_long(sum(map(len, said)))
        prompt = self._rendered(request)
        self._refuse_long(
            len(prompt.text.encode("utf-8", "replace")) + len((request.suffix or "").encode("utf-8", "replace"))
        )
        if request.suffix is not None:
            return replace(prompt, tokens=tuple(self._infill(prompt, request)))
        history = self._tokens(prompt, prompt.history_chars) if prompt.history_chars else []
        read = replace(prompt, tokens=tuple(self._tokens(prompt)), history_tokens=tuple(history))
        return self._with_echo(request, read)

    def _given(self, ids: Sequence[int]) -> Prompt:
        """A prompt of token ids, which are nobody's text: control tokens are what they are."""
        vocab = self._vocab
        unknown = next((token for token in ids if not 0 <= token < vocab.n_tokens), None)
        if unknown is not None:
            raise UnknownTokenError(
                f"The prompt has the token id {unknown}; the model's vocabulary has 0 to {vocab.n_tokens - 1}.",
                "Make the ids with this model's tokenizer, such as POST /tokenize, or send texts.",
            )
        return Prompt("", 0, self.template.tags if self.template else (), tokens=tuple(ids))

    def _infill(self, prompt: Prompt, request: GenerateRequest) -> list[int]:
        vocab = self._vocab

        def read(text: str) -> list[int]:
            own = ((0, len(text)),) if request.raw_prompt and text else ()
            # Neither begins a text: the model has seen such parts in the middle of one.
            return tokens_of(text, own, vocab, self._markers, goes_on=True) if text else []

        return infill_tokens(
            prompt.text,
            request.suffix or "",
            request.snippets,
            vocab.infill,
            read,
            bos=[vocab.bos] if vocab.adds_bos and vocab.bos >= 0 else [],
            room=self._context_tokens - (request.max_tokens or 0) - 1,
            longest_bytes=vocab.longest_piece_bytes,
        )

    def told(self, request: ReadRequest) -> Told:
        """A text's tokens, or the text of tokens. Raises what `prompt_of` raises, but for a text that is too long."""
        vocab = self._vocab
        if request.tokens is not None:
            tokens = [token for token in request.tokens if 0 <= token < vocab.n_tokens]
            written = b"".join(vocab.piece(token, special=True) for token in tokens).decode("utf-8", "replace")
        else:
            prompt = self._rendered(request.prompt)
            written = prompt.text
            is_text = request.prompt.messages is None
            own = within(prompt.own, 0, len(written))
            bos = request.bos if is_text else self._adds_bos(written)
            tokens = tokens_of(written, own, vocab, self._markers, bos=bos and self._adds_bos(written))
        pieces = [list(vocab.piece(token, special=True)) for token in tokens] if request.pieces else None
        return Told(request.id, written, tokens, pieces, self._facts() if request.vocabulary else None)

    def _facts(self) -> dict[str, str | None]:
        vocab = self._vocab
        return {
            "bos_token": vocab.text(vocab.bos) or None,
            "eos_token": vocab.text(vocab.eos) or None,
            "chat_template": self._template_source,
        }

    def _with_echo(self, request: GenerateRequest, prompt: Prompt) -> Prompt:
        """One of ids comes back as /detokenize has it; the start that a text's tokens were given is no part of it."""
        if not request.echo:
            return prompt
        tokens = prompt.tokens or self._of_nothing
        pieces = [self._vocab.piece(token, special=True) for token in tokens]
        if request.prompt_ids is not None:
            return replace(prompt, echo=Echo(pieces))
        if tokens[0] == self._vocab.bos and self._adds_bos(prompt.text):
            pieces[0] = b""
        return replace(prompt, echo=Echo(pieces, prompt.text.encode("utf-8", "replace").decode()))

    @property
    def _of_nothing(self) -> tuple[int, ...]:
        """What an empty prompt is evaluated as."""
        vocab = self._vocab
        return (vocab.bos if vocab.bos >= 0 else max(vocab.eos, 0),)

    def _rendered(self, request: GenerateRequest) -> Prompt:
        if request.prompt is not None:
            tags = self.template.tags if self.template else ()
            own = ((0, len(request.prompt)),) if request.raw_prompt and request.prompt else ()
            return Prompt(request.prompt, 0, tags, own=own)
        if self.template is None:
            assert self.chat_fault is not None
            raise self.chat_fault
        messages = request.messages or []
        tools: Sequence[Any] | None = None
        if request.tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
            messages, tools = self.family_of(request).messages(messages, request.tools)
        try:
            return self.template.prompt(messages, request.thinking, tools)
        except TemplateError:
            if not tools:
                raise
        # Some fail on parameters of several types: the model can be shown simpler ones.
        return self.template.prompt(messages, request.thinking, [simple(tool) for tool in request.tools])

    def read(
        self,
        request: GenerateRequest,
        held_to: Grammar | Toolbox | None,
        specialist_id: int,
        prompt: Prompt | None = None,
    ) -> ActiveSequence:
        """The sequence of a request. held_to: what `held_to` gave.

        prompt: what `prompt_of` made of it beforehand; made here when left out.

        Raises PromptTooLongError, and what `prompt_of` raises.
        """
        prompt = prompt if prompt is not None else self.prompt_of(request)
        banned = self._openings_of_thinking() if prompt.closed_by_ban else []
        banned += self._banned_of(held_to) if isinstance(held_to, Toolbox) else []
        vocab, context_tokens = self._vocab, self._context_tokens
        tokens = list(prompt.tokens or self._of_nothing)
        if request.max_prompt_tokens is not None and len(tokens) > request.max_prompt_tokens:
            raise PromptTooLongError(len(tokens), request.max_prompt_tokens, by_roster=True)
        if len(tokens) >= context_tokens:
            raise PromptTooLongError(len(tokens), context_tokens)
        history = list(prompt.history_tokens)
        room = context_tokens - len(tokens)
        return ActiveSequence(
            request,
            tokens,
            vocab,
            limit=min(room, request.max_tokens) if request.max_tokens is not None else room,
            # Only where the text splits between tokens: tokenizing a part may join what the whole keeps apart.
            history_tokens=len(history) if tokens[: len(history)] == history else 0,
            tags=prompt.tags,
            thinking_open=prompt.thinking_open,
            grammar=held_to if isinstance(held_to, Grammar) else None,
            toolbox=held_to if isinstance(held_to, Toolbox) else None,
            specialist_id=specialist_id,
            banned=banned,
            echo=prompt.echo,
        )

    def _openings_of_thinking(self) -> list[int]:
        """The control token that a thinking block begins with; none where that is plain text."""
        family = self.template.family if self.template is not None else None
        tokens = self._vocab.tokenize_on(family.opening) if family is not None else []
        return tokens[:1] if tokens and self._vocab.is_control(tokens[0]) else []

    def _refuse_long(self, at_least_bytes: int) -> None:
        """Refuse what cannot fit before it is rendered and read: that takes seconds for megabytes, and for some texts
        of fewer."""
        at_least = at_least_bytes // self._vocab.longest_piece_bytes
        if at_least_bytes > _LONG_PROMPT_BYTES and at_least >= self._context_tokens:
            raise PromptTooLongError(at_least, self._context_tokens, at_least=True)

    def _tokens(self, prompt: Prompt, chars: int | None = None) -> list[int]:
        """Tokens of a prompt, or of its first characters."""
        text = prompt.text if chars is None else prompt.text[:chars]
        own = within(prompt.own, 0, len(text))
        return tokens_of(text, own, self._vocab, self._markers, bos=self._adds_bos(prompt.text))

    def _adds_bos(self, text: str) -> bool:
        return self._vocab.adds_bos and not text.startswith(self._vocab.text(self._vocab.bos) or "\0")
