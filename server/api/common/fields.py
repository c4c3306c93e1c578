"""Fields of request bodies: the model that all bodies are made of, the types of what dialects have in common, and
errors that name the field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from coe.engine.request import Patience

from ...roster.values import asked_name
from ...runtime.errors import RequestError

_MAX_STOPS: Final = 16
_MAX_STOP_CHARS: Final = 1000
_MAX_CHOICES: Final = 8
MAX_INT: Final = 2**31 - 1  # what llama.cpp takes

# By pydantic's types of errors.
_WORDS: Final[Mapping[str, str]] = {
    "missing": "it is missing",
    "string_type": "give a text",
    "int_type": "give a whole number",
    "float_type": "give a number",
    "bool_type": "give true or false",
    "list_type": "give a list",
    "dict_type": "give an object",
    "model_type": "give an object",
    "too_short": "give at least {min_length}",
    "string_too_short": "give at least {min_length} characters",
    "string_too_long": "give at most {max_length} characters",
    "greater_than_equal": "give at least {ge}",
    "less_than_equal": "give at most {le}",
    "finite_number": "give a finite number",
}

_B = TypeVar("_B", bound=BaseModel)


class Body(BaseModel):
    """Extras that clients add are ignored; what we know is checked strictly."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, data: Any) -> Any:
        """null is as good as left out, for every field."""
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


def validated(kind: type[_B], body: Mapping[str, Any], most: Mapping[str, int]) -> _B:
    """The body as a model. most: how many members lists and objects may have, by field.

    Raises RequestError naming the first field at fault.
    """
    _refuse_too_many(body, most)
    try:
        return kind.model_validate(dict(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # A union names the alternative it tried after the field; a client knows nothing of these.
        known = _wire_names(kind)
        path = [part for part in first["loc"] if isinstance(part, int) or part in known]
        param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        # Without its cause: a log that prints it would write every one of its errors.
        raise RequestError(f"{param or 'The body'}: {_said(first)}.", param=param or None) from None


def _said(error: ErrorDetails) -> str:
    """An error in our words: pydantic's are a programmer's."""
    context = error.get("ctx", {})
    words = _WORDS.get(error["type"])
    return words.format(**context) if words is not None else str(error["msg"]).removeprefix("Value error, ")


def _refuse_too_many(body: Mapping[str, Any], most: Mapping[str, int]) -> None:
    """Before anything is checked: a hundred thousand wrong members are a hundred thousand errors to write."""
    for name, limit in most.items():
        value = body.get(name)
        if isinstance(value, (list, dict)) and len(value) > limit:
            raise RequestError(f"{name}: give at most {limit:,}, not {len(value):,}.", param=name)


def _wire_names(kind: type[BaseModel]) -> set[str]:
    """Names of a model's fields, and of those of models in it."""
    names: set[str] = set()
    for name, field in kind.model_fields.items():
        names.add(field.alias or name)
        for inner in _models_in(field.annotation):
            names |= _wire_names(inner)
    return names


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type is made of, such as that of `list[Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


# --- types --------------------------------------------------------------------------------------------------------


def whole(value: Any) -> Any:
    """1.0 is as good as 1: some languages write all numbers so."""
    return int(value) if type(value) is float and value.is_integer() else value


def _unlimited(value: Any) -> Any:
    """-1 is what clients of llama.cpp write for no bound of their own."""
    return None if type(value := whole(value)) is int and value == -1 else value


def _stops(value: Any) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("give a text or a list of texts")
    if len(texts) > _MAX_STOPS or any(len(text) > _MAX_STOP_CHARS for text in texts):
        raise ValueError(f"give at most {_MAX_STOPS} texts of at most {_MAX_STOP_CHARS} characters")
    return tuple(text for text in texts if text)


def _all_tokens(value: Any) -> Any:
    """-1 is vLLM's word for 0: no bound."""
    return 0 if type(value := whole(value)) is int and value == -1 else value


def _whole_context(value: Any) -> Any:
    """-1 is llama.cpp's word for all tokens of the context."""
    return MAX_INT if type(value := whole(value)) is int and value == -1 else value


def _random_seed(value: Any) -> Any:
    """-1 is a random seed, as it is for llama.cpp, vLLM and others."""
    return None if type(value := whole(value)) is int and value == -1 else value


def _loop_guard(value: Any) -> Patience | Literal[False] | None:
    if value is None or value is True or value == "normal":
        return None  # the roster's
    if value is False:
        return False
    if value not in ("strict", "patient"):
        raise ValueError("give false, strict or patient; true leaves it as the roster has it")
    return Patience(value)


ModelName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(asked_name)]
# 0 reads the prompt, which is in the cache from then on, and answers nothing.
MaxTokens = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_unlimited)]
Stops = Annotated[tuple[str, ...], BeforeValidator(_stops)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]  # 0: the most probable token alone
TopK = Annotated[Annotated[int, Field(ge=0, le=MAX_INT)] | None, BeforeValidator(_all_tokens)]
MinP = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepeatPenalty = Annotated[float, Field(ge=0.1, le=2)]
RepeatLastN = Annotated[Annotated[int, Field(ge=0, le=MAX_INT)] | None, BeforeValidator(_whole_context)]
Seed = Annotated[int | None, BeforeValidator(_random_seed)]
Choices = Annotated[Annotated[int, Field(ge=1, le=_MAX_CHOICES)], BeforeValidator(whole)]
Alternatives = Annotated[Annotated[int, Field(ge=0, le=20)], BeforeValidator(whole)]  # to each token of an answer
LoopGuard = Annotated[Patience | Literal[False] | None, BeforeValidator(_loop_guard)]
