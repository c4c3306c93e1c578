"""Bodies of requests for embeddings and for reranking. Bad input is refused with the name of its field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from ...runtime.embedding import Wanted
from ...runtime.errors import RequestError
from ..common.fields import MAX_INT, Body, ModelName, validated
from ..openai.extras import near

MAX_TEXTS: Final = 2048  # OpenAI's bound of a request; a query comes on top
_TOKEN_IDS: Final = (
    "token ids are not taken, since they are of one vocabulary alone: send texts (LangChain does with "
    "check_embedding_ctx_length=False)"
)
# What clients of other servers send to have texts prefixed by their kind, or vectors in another form.
_NOTED: Final = ("input_type", "task", "task_type", "prompt_name", "instruction")
_REFUSED: Final[Mapping[str, tuple[tuple[Any, ...], str]]] = {
    "embedding_types": ((["float"],), "Vectors are float, or base64 of it: use encoding_format."),
    "output_dtype": (("float",), "Vectors are float, or base64 of it: use encoding_format."),
    "output_dimension": ((), "Write dimensions."),
    "normalize": ((True,), "Vectors have unit length: leave it out."),
    "embd_normalize": ((2,), "Vectors have unit length: leave it out."),
    "late_chunking": ((False,), "It is not served: send each chunk as a text of its own."),
    "messages": ((), "Write input, with texts."),
    "prompt": ((), "Write input, with texts."),
    "rank_fields": ((["text"],), "A document is its text: write what is to be read into it."),
}


def _tokens_left(value: Any) -> Any:
    """-1 is vLLM's word for as many as the model reads."""
    return MAX_INT if type(value) is int and value == -1 else value


_CutTo = Annotated[Annotated[int, Field(ge=1, le=MAX_INT)] | None, BeforeValidator(_tokens_left)]


class _Cuttable(Body):
    """By which words clients let long texts be cut."""

    truncate: bool | None = None
    truncate_prompt_tokens: _CutTo = None

    @property
    def cut_to(self) -> int | None:
        """See Wanted."""
        if self.truncate_prompt_tokens is not None:
            return self.truncate_prompt_tokens
        return MAX_INT if self.truncate else None


class EmbeddingBody(_Cuttable):
    model: ModelName = "auto"
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    user: str | None = None


def _texts(value: Any) -> Any:
    """Documents as texts: each is one, or an object with one."""
    if not isinstance(value, list) or not value:
        raise ValueError("give a list of texts that is not empty")
    found = [one.get("text") if isinstance(one, dict) else one for one in value]
    wrong = next((index for index, one in enumerate(found) if not isinstance(one, str)), None)
    if wrong is not None:
        raise ValueError(f"its member {wrong} is neither a text nor an object with one (text)")
    return found


Documents = Annotated[list[str], BeforeValidator(_texts)]


class RerankBody(_Cuttable):
    model: ModelName = "auto"
    query: str
    documents: Documents | None = None
    texts: Documents | None = None  # TEI's name for them
    top_n: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None  # 0, as vLLM has it: all
    return_documents: bool | None = None
    return_text: bool | None = None  # TEI's
    max_tokens_per_doc: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None  # Cohere's

    @model_validator(mode="after")
    def _agree(self) -> RerankBody:
        if self.documents is None and self.texts is None:
            raise ValueError("give documents, a list of texts (or texts, as TEI calls them)")
        if self.documents is not None and self.texts is not None:
            raise ValueError("give documents or texts, not both")
        if self.max_tokens_per_doc is not None and self.truncate_prompt_tokens is not None:
            raise ValueError("give max_tokens_per_doc or truncate_prompt_tokens, not both")
        return self


@dataclass(frozen=True)
class EmbeddingCall:
    """A body of POST /v1/embeddings. names: what each text is called in it. notes: what was left out."""

    wanted: Wanted
    names: Sequence[str]
    base64: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RerankCall:
    """A body of POST /v1/rerank; the query is the first of the texts. bare: TEI's answer is wanted, a list alone."""

    wanted: Wanted
    names: Sequence[str]
    top_n: int
    with_documents: bool
    bare: bool
    notes: tuple[str, ...]


def parse_embeddings(body: Mapping[str, Any]) -> EmbeddingCall:
    """Raises RequestError naming the field."""
    given = body.get("input")
    listed = given if isinstance(given, list) else [given]
    if any(type(item) is int or (isinstance(item, list) and item and type(item[0]) is int) for item in listed):
        raise RequestError(f"input: {_TOKEN_IDS}.", param="input")
    _refuse(body, EmbeddingBody)
    parsed = validated(EmbeddingBody, body, {"input": MAX_TEXTS})
    texts = [parsed.input] if isinstance(parsed.input, str) else parsed.input
    names = ["input"] if isinstance(parsed.input, str) else [f"input[{index}]" for index in range(len(texts))]
    if not texts:
        raise RequestError("input: give a text, or a list of texts that is not empty.", param="input")
    _refuse_empty(texts, names)
    wanted = Wanted(parsed.model, tuple(texts), parsed.dimensions, parsed.cut_to)
    return EmbeddingCall(wanted, names, parsed.encoding_format == "base64", _notes(body))


def parse_rerank(body: Mapping[str, Any]) -> RerankCall:
    """Raises RequestError naming the field."""
    _refuse(body, RerankBody)
    if body.get("documents") is None and body.get("texts") is None:
        raise RequestError("documents: give a list of texts.", param="documents")
    parsed = validated(RerankBody, body, {"documents": MAX_TEXTS, "texts": MAX_TEXTS})
    bare = parsed.documents is None
    documents = parsed.documents or parsed.texts or []
    texts = [parsed.query, *documents]
    names = ["query", *(f"{'texts' if bare else 'documents'}[{index}]" for index in range(len(documents)))]
    _refuse_empty(texts, names)
    wanted = Wanted(parsed.model, tuple(texts), None, parsed.max_tokens_per_doc or parsed.cut_to)
    top_n = min(parsed.top_n or len(documents), len(documents))
    with_documents = bool(parsed.return_documents or parsed.return_text)
    return RerankCall(wanted, names, top_n, with_documents, bare, _notes(body))


def _refuse_empty(texts: Sequence[str], names: Sequence[str]) -> None:
    for text, name in zip(texts, names, strict=True):
        if not text:
            raise RequestError(f"{name}: the text is empty.", param=name)


def _refuse(body: Mapping[str, Any], kind: type[Body]) -> None:
    """Fields that ask for what is not served, and misspelt ones."""
    for name, (nothing, remedy) in _REFUSED.items():
        value = body.get(name)
        if value is not None and not any(value == each and type(value) is type(each) for each in nothing):
            raise RequestError(f"{name} is not supported. {remedy}", param=name)
    for name, value in body.items():
        if value is not None and (right := near(name, kind.model_fields)) is not None:
            raise RequestError(f"{name[:60]} is not understood: write {right}.", param=name[:60])


def _notes(body: Mapping[str, Any]) -> tuple[str, ...]:
    asked = (name for name in _NOTED if body.get(name) not in (None, "", {}))
    return tuple(f"{name} is not served and was ignored: texts are embedded as they are" for name in asked)
