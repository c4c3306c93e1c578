"""Structured output: which tokens a JSON schema lets come next (constrained decoding, by llguidance).

llama.cpp has grammars too, but no bound on what one may cost: `([a-z]{0,10}){0,200}` kept a whole batch waiting for
minutes, deep repetitions overflowed its stack. llguidance counts what it spends and gives up with a reason.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from ..errors import GrammarError
from ..llama.vocab import Vocab
from .conformity import Conformity
from .digits import NumberEnd
from .exact_tokens import ExactTokens
from .json_schema import SIMPLIFY, JsonSchema, needs_escapes
from .wide_numbers import has_wide_numbers, rules_of

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # a name of its type stub alone

# One blank, or up to two line breaks and what is indented after them: small models like to indent for ever.
_WHITE_SPACE: Final = r"( |(\r?\n){1,2}[ \t]{0,20})"
# No \uXXXX: a key may else be written in two ways, and the second one escapes what the first is held to.
_ESCAPES: Final = 'nrbtf\\"'

# What one request may spend, in llguidance's own units (about 20,000 items or 14,000 of a step's fuel a millisecond).
_LIMITS: Final = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
)


_FORMAT: Final = "response_format.json_schema"
MAX_SCHEMA_CHARS: Final = 256 * 1024


def schema_of(response_format: Mapping[str, Any] | None) -> Any | None:
    """The JSON schema that an OpenAI response_format asks for; None for plain text.

    Raises GrammarError when the format names none.
    """
    kind = (response_format or {}).get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    assert response_format is not None
    wanted = response_format.get("json_schema")
    if not isinstance(wanted, Mapping):
        raise GrammarError("response_format has the type json_schema but no json_schema.", "Give it one, with a name.")
    return wanted.get("schema", {})


def tokenizer_of(vocab: Vocab, tags: Collection[int] = ()) -> LLTokenizer:
    """llguidance's view of a vocabulary: 0.2 s for 49,000 tokens, so made once a model.

    tags: tokens which stand for no text although llama.cpp takes them for one.
    """
    # 0xFF, which is in no UTF-8 text, marks tokens that stand for no text.
    own = frozenset(tags)
    tokens = [
        b"\xff" + piece if token in own or vocab.is_control(token) else piece
        for token, piece in enumerate(vocab.pieces())
    ]
    ends = [token for token in range(vocab.n_tokens) if vocab.ends_generation(token)]
    exact = ExactTokens(vocab, tokens)
    vocab.keep(exact)
    made: LLTokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]  # missing in its type stub
        tokens=tokens,
        vocab_ptr=vocab.handle,
        tokenize_fptr=exact.address,
        eos_token=ends or None,
        slices=LLTokenizer.json_slices(),
    )
    return made


def options_of(written: str) -> JsonCompileOptions:
    """How the library is to write the JSON of a schema, whose own JSON is `written`."""
    options: JsonCompileOptions = {"whitespace_pattern": _WHITE_SPACE}
    if not needs_escapes(written):
        options["json_allowed_escapes"] = _ESCAPES
    return options


def json_rule(schema: JsonSchema, prefix: str = "") -> tuple[str, list[str]]:
    """A schema's Lark rules: the first one's name, and all of them. prefix: what their names begin with.

    Raises GrammarError when it cannot be followed.
    """
    options = options_of(json.dumps(schema.wanted))
    if has_wide_numbers(schema.followed):
        return rules_of(schema, options, prefix)
    followed = schema.followed if isinstance(schema.followed, Mapping) else {"allOf": [schema.followed]}
    return f"{prefix}json", [f"{prefix}json: %json {json.dumps({**followed, 'x-guidance': options})}"]


class Grammar:
    """What a grammar still allows, token by token."""

    def __init__(
        self,
        tokenizer: LLTokenizer,
        grammar: str,
        conformity: Conformity | None = None,
        *,
        subject: str = _FORMAT,
        is_json: bool = True,
    ) -> None:
        """grammar: in one of the library's forms. conformity: of a finished answer. subject: what asks for it, for
        messages. is_json: whether strings are quoted as in JSON; then numbers end in time.

        Takes up to seconds; other Python threads go on meanwhile.
        Raises GrammarError when it asks for what llguidance does not know, or is too large.
        """
        self._conformity = conformity
        self._subject = subject
        self._tokenizer = tokenizer
        self._number = NumberEnd() if is_json else None
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
        self._bits = np.zeros((tokenizer.vocab_size + 31) // 32, np.uint32)
        self._vocab_size = tokenizer.vocab_size
        self._require_sound(f"{subject} cannot be followed")
        self.allowed()  # the first look is the expensive one, and here no answer waits for it

    @classmethod
    def of_schema(cls, tokenizer: LLTokenizer, schema: Any) -> Grammar:
        """The grammar of answers in JSON. Raises GrammarError for what is no schema, too, and as the constructor."""
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_CHARS:
            raise GrammarError(
                f"{_FORMAT} has {len(text):,} characters; {MAX_SCHEMA_CHARS:,} are taken.", "Shorten the schema."
            )
        read = JsonSchema.read(schema)
        try:
            if has_wide_numbers(read.followed):
                start, lines = json_rule(read)
                grammar = LLMatcher.grammar_from_lark("\n".join([f"start: {start}", *lines]))
            else:
                grammar = LLMatcher.grammar_from_json_schema(json.dumps(read.followed), overrides=options_of(text))
        except (ValueError, TypeError) as error:
            raise GrammarError(f"{_FORMAT} cannot be followed: {_reason(str(error))}.", SIMPLIFY) from error
        return cls(tokenizer, grammar, Conformity(read))

    def copy(self) -> Grammar:
        """Another one at the same place, which goes its own way."""
        made = copy.copy(self)
        made._matcher = self._matcher.deep_copy()
        made._bits = self._bits.copy()
        made._number = self._number.copy() if self._number is not None else None
        return made

    def take_text(self, text: str) -> bool:
        """Go on by a text if all of it is allowed; otherwise nothing changes and False is given. Raises as `take`."""
        tokens = self._tokenizer.tokenize_bytes(text.encode())
        taken: int = self._matcher.try_consume_tokens(tokens)
        self._require_sound(f"The answer cannot be held to {self._subject} any further")
        if taken < len(tokens):
            self._matcher.rollback(taken)
            return False
        if self._number is not None:
            self._number.read(text.encode())
        return True

    @property
    def complete(self) -> bool:
        """Whether nothing more can follow."""
        return bool(self._matcher.is_stopped())

    def take(self, token: int) -> bool:
        """Go on by a token if it is allowed; otherwise nothing changes and False is given.

        Raises GrammarError when finding that out would cost too much.
        """
        number = self._number
        if number is not None and number.is_due and self._goes_on(token) and token not in self.allowed():
            return False
        taken: int = self._matcher.try_consume_tokens([token])
        self._require_sound(f"The answer cannot be held to {self._subject} any further")
        if taken and number is not None:
            number.read(self._bytes(token))
        return taken == 1

    def _bytes(self, token: int) -> bytes:
        return bytes(self._tokenizer.decode_bytes([token]))

    def _goes_on(self, token: int) -> bool:
        return NumberEnd.goes_on(self._bytes(token))

    def allowed(self) -> NDArray[np.intp]:
        """The tokens that may come next, ascending; those that end the answer among them where it may end.

        Raises GrammarError when there is none, or finding them would cost too much.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._require_sound(f"The answer cannot be held to {self._subject} any further")
        mask = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size]
        found = np.flatnonzero(mask)
        if not len(found):
            raise GrammarError(f"{self._subject} leaves no token that could follow.", SIMPLIFY)
        if self._number is not None and self._number.is_due:
            ends = np.fromiter((token for token in found if not self._goes_on(int(token))), found.dtype)
            return ends if len(ends) else found
        return found

    def could_have_ended(self, token: int) -> bool:
        """Whether the answer could have ended in place of `token`, the last one taken."""
        self._matcher.rollback(1)
        could = bool(self._matcher.is_accepting())
        self._take_again(token)
        return could

    def could_have_come(self, texts: Iterable[bytes], token: int) -> bool:
        """Whether one of the texts could have come in place of `token`, the last one taken."""
        self._matcher.rollback(1)
        could = False
        for text in texts:
            tokens = self._tokenizer.tokenize_bytes(text)
            could = could or self._matcher.validate_tokens(tokens) == len(tokens)
        self._take_again(token)
        return could

    def _take_again(self, token: int) -> None:
        self._matcher.try_consume_tokens([token])
        self._require_sound(f"The answer cannot be held to {self._subject} any further")

    def violation(self, answer: str) -> str | None:
        """What a finished answer breaks of the schema, None when it keeps to it: never trust, check.

        Raises GrammarError when finding that out would cost too much.
        """
        return self._conformity.violation(answer) if self._conformity is not None else None

    def _require_sound(self, what: str) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"{what}: {_reason(self._matcher.get_error())}.", SIMPLIFY)


def _reason(said: str) -> str:
    """The library's reason, without its parser's state and without options that no request has."""
    why = " ".join(said.split("<state>")[0].split())
    sentences = [part for part in re.split(r"(?<=\.) ", why) if not _ADVICE.search(part)]
    return " ".join(sentences)[:300].rstrip(".") or "it asks for what is not supported"


_ADVICE: Final = re.compile(r"coerce_one_of|lenient|x-guidance|whitespace_|\boptions?\b|\benable\b", re.IGNORECASE)
