"""From a request to a sequence that can be decoded: chat template, tokenisation, context limits, grammar."""

from __future__ import annotations

import functools

from llguidance import LLTokenizer

from ..errors import PromptTooLongError, TemplateError
from ..llama.model import Model
from ..request import GenerateRequest
from ..spec import LoadSpec
from .chat_template import ChatTemplate, Prompt
from .grammar import Grammar, schema_of, tokenizer_of
from .sequence import ActiveSequence

# From here on a prompt is worth a look at its length before it is read into tokens.
_LONG_PROMPT_CHARS = 100_000


class PromptReader:
    """Reads requests for one model. template: the model's own; None when its file has none."""

    def __init__(self, model: Model, spec: LoadSpec) -> None:
        self._vocab = model.vocab
        self._context_tokens = spec.context_tokens
        source, text = model.chat_template(), model.vocab.text
        self.template = ChatTemplate(source, bos=text(model.vocab.bos), eos=text(model.vocab.eos)) if source else None

    def grammar_of(self, request: GenerateRequest) -> Grammar | None:
        """What the answer has to keep to, None for plain text.

        Takes up to seconds for a large schema, and may run on a thread of its own. Raises GrammarError.
        """
        schema = schema_of(request.response_format)
        return Grammar(self._grammar_tokens, schema) if schema is not None else None

    @functools.cached_property
    def _grammar_tokens(self) -> LLTokenizer:
        return tokenizer_of(self._vocab)

    def read(self, request: GenerateRequest, grammar: Grammar | None, specialist_id: int) -> ActiveSequence:
        """The sequence of a request.

        Raises PromptTooLongError and TemplateError.
        """
        prompt = self._prompt(request)
        vocab, context_tokens = self._vocab, self._context_tokens
        bos = vocab.adds_bos and not prompt.text.startswith(vocab.text(vocab.bos) or "\0")
        # Reading megabytes into tokens takes seconds in which no answer goes on: refuse what cannot fit.
        if len(prompt.text) > _LONG_PROMPT_CHARS:
            at_least = len(prompt.text.encode("utf-8", "replace")) // vocab.longest_piece_bytes
            if at_least >= context_tokens:
                raise PromptTooLongError(at_least, context_tokens, at_least=True)
        history = vocab.tokenize(prompt.text[: prompt.history_chars], bos=bos) if prompt.history_chars else []
        tokens = vocab.tokenize(prompt.text, bos=bos)
        if not tokens:
            tokens = [vocab.bos if vocab.bos >= 0 else max(vocab.eos, 0)]
        if request.max_prompt_tokens is not None and len(tokens) > request.max_prompt_tokens:
            raise PromptTooLongError(len(tokens), request.max_prompt_tokens, by_roster=True)
        if len(tokens) >= context_tokens:
            raise PromptTooLongError(len(tokens), context_tokens)
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

    def _prompt(self, request: GenerateRequest) -> Prompt:
        if request.prompt is not None:
            return Prompt(request.prompt, 0, self.template.tags if self.template else ())
        if self.template is None:
            raise TemplateError("The model file carries no chat template.", "Use /v1/completions, or another GGUF.")
        return self.template.prompt(request.messages or [], request.thinking)
