"""From a request to a sequence that can be decoded: chat template, tokenisation, context limits, grammar."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Final

from llguidance import LLTokenizer

from ..errors import EngineError, ModelTemplateError, PromptTooLongError
from ..llama.model import Model
from ..request import GenerateRequest
from ..spec import LoadSpec, Thinking, ThinkingMode
from .chat_template import ChatTemplate, Prompt
from .grammar import Grammar, schema_of, tokenizer_of
from .origin import within
from .plain_text import markers_of, tokens_of
from .renderer import HONEST, Limits, Message, RenderProcess
from .sequence import ActiveSequence

# From here on a prompt is worth a look at its length before it is read into tokens.
_LONG_PROMPT_BYTES: Final = 10_000

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
    """

    def __init__(self, model: Model, spec: LoadSpec, *, limits: Limits = HONEST) -> None:
        """limits: what a rendering may cost. A template is tried out here, once."""
        self._vocab = model.vocab
        self._context_tokens = spec.context_tokens
        source, text = model.chat_template(), model.vocab.text
        self._markers = markers_of(model.vocab, source or "")
        self._renderer = RenderProcess(source, limits) if source else None
        self.template: ChatTemplate | None = None
        self.chat_fault: ModelTemplateError | None = None
        try:
            if self._renderer is None:
                raise ModelTemplateError("The model file carries no chat template.", _NO_CHAT)
            template = ChatTemplate(self._renderer, bos=text(model.vocab.bos), eos=text(model.vocab.eos))
            self._try_out(template)
            self.template = template
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
            if self._tokens(prompt) != self._vocab.tokenize(prompt.text, bos=self._adds_bos(prompt.text)):
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

    def grammar_of(self, request: GenerateRequest) -> Grammar | None:
        """What the answer has to keep to, None for plain text.

        Takes up to seconds for a large schema, and may run on a thread of its own. Raises GrammarError.
        """
        schema = schema_of(request.response_format)
        return Grammar(self._grammar_tokens, schema) if schema is not None else None

    @functools.cached_property
    def _grammar_tokens(self) -> LLTokenizer:
        return tokenizer_of(self._vocab)

    def prompt_of(self, request: GenerateRequest) -> Prompt:
        """What a request is to be continued from, read into tokens.

        Takes as long as the chat template does, within its bounds, and seconds for a text that some vocabularies are
        slow to read; may run on a thread of its own. Raises TemplateError, ModelTemplateError, ThinkingPolicyError and
        PromptTooLongError.
        """
        # Of a conversation templates may leave out anything but what its user says, its margins aside.
        said = (str(m.get("content") or "").strip() for m in request.messages or () if m["role"] == "user")
        self._refuse_long(sum(map(len, said)))
        prompt = self._rendered(request)
        self._refuse_long(len(prompt.text.encode("utf-8", "replace")))
        history = self._tokens(prompt, prompt.history_chars) if prompt.history_chars else []
        return replace(prompt, tokens=tuple(self._tokens(prompt)), history_tokens=tuple(history))

    def _rendered(self, request: GenerateRequest) -> Prompt:
        if request.prompt is not None:
            tags = self.template.tags if self.template else ()
            own = ((0, len(request.prompt)),) if request.raw_prompt and request.prompt else ()
            return Prompt(request.prompt, 0, tags, own=own)
        if self.template is None:
            assert self.chat_fault is not None
            raise self.chat_fault
        return self.template.prompt(request.messages or [], request.thinking)

    def read(
        self, request: GenerateRequest, grammar: Grammar | None, specialist_id: int, prompt: Prompt | None = None
    ) -> ActiveSequence:
        """The sequence of a request. prompt: what `prompt_of` made of it beforehand; made here when left out.

        Raises PromptTooLongError, and what `prompt_of` raises.
        """
        prompt = prompt if prompt is not None else self.prompt_of(request)
        vocab, context_tokens = self._vocab, self._context_tokens
        tokens = list(prompt.tokens)
        if not tokens:
            tokens = [vocab.bos if vocab.bos >= 0 else max(vocab.eos, 0)]
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
            grammar=grammar,
            specialist_id=specialist_id,
        )

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
