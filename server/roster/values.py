"""The kinds of values that a roster's keys take: how each may be written, what is wrong with others, and the JSON
schema of what is right."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict, WithJsonSchema

AUTO: Final = "auto"  # the model name that asks the supervisor
_TAG: Final = ":latest"  # clients of Ollama put it behind a name without a tag

_UNITS: Final = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_MOST_BYTES: Final = 2**60
_LEAST_BARE_BYTES: Final = 2**14  # a smaller number without a unit is no size of anything that a roster bounds
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
# llama.cpp adds parts up as 32-bit floats, and cannot load where the sum is nothing or infinity.
_LEAST_PART: Final = 0.001
_MOST_PART: Final = 1_000_000
_CARD: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,31}")  # a device of ggml
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")
_ALIAS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")
_PREFIX: Final = re.compile(rf"{_ALIAS.pattern}\*?")
_REPO: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PACKAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9][A-Za-z0-9_-]*)*")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ENVIRONMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def untagged(name: str) -> str:
    """A model's name as it is compared where no other way finds it: `Math:latest` is `math`."""
    return name.casefold().removesuffix(_TAG)


def tagged(name: str) -> str:
    """A model's name as Ollama lists it: `math` is `math:latest`."""
    return name if ":" in name.rpartition("/")[2] else f"{name}{_TAG}"


def asked_name(text: str) -> str:
    """What a client asks for: `auto` however it is written, all else as it stands; `Roster.find` finds it."""
    return AUTO if untagged(text) == AUTO else text


def names_among(aliases: Sequence[str]) -> list[str]:
    """Aliases that are names; one that ends in * is that of many, and no list has it."""
    return [alias for alias in aliases if not alias.endswith("*")]


class InvalidError(ValueError):
    """A value that a key does not take, with what to write instead."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


def expanded(written: str) -> Path:
    """A path with `~` and `~user` resolved; as it stands where there is no such user."""
    try:
        return Path(written).expanduser()
    except RuntimeError:
        return Path(written)


def parse_size(value: object) -> int:
    """Bytes of `15 GiB`, `900 MB` or a plain number of bytes. Raises InvalidError for anything else.

    A small plain number is meant in another unit: 15 for 15 GiB, 8192 for 8192 MiB. None is guessed.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        _require_unit(value, "", value)
        if value > _MOST_BYTES:
            raise InvalidError(f"{value} is more than any machine has.", "Write `15 GiB` or `900 MB`.")
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2].lower() not in _UNITS:
        raise InvalidError(f"{value!r} is not a size.", "Write `15 GiB`, `900 MB` or a number of bytes.")
    _require_unit(value, found[2], float(found[1]))
    size = float(found[1]) * _UNITS[found[2].lower()]
    if size > _MOST_BYTES:
        raise InvalidError(f"{value!r} is more than any machine has.", "Write `15 GiB`, `900 MB` or a number of bytes.")
    return int(size)


def _require_unit(value: object, unit: str, number: float) -> None:
    if not unit and 0 < number < _LEAST_BARE_BYTES:
        meant = f"{number:g} GiB" if number < 1024 else f"{number:g} MiB"
        raise InvalidError(
            f"{value!r} has no unit and would be {number:g} bytes.",
            f"Write `{meant}` if that is meant, or `{number:g} B`.",
        )


def _budget(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    size = parse_size(value)
    if size == 0:
        raise InvalidError("A budget of nothing holds no model.", "Write `auto` or a size such as `15 GiB`.")
    return size


def _budget_or_zero(value: object) -> int | Literal["auto"]:
    return "auto" if value == "auto" else parse_size(value)


def _share(value: object) -> object:
    if value != "auto" and not isinstance(value, bool):
        raise InvalidError(f"{value!r} is not known here.", "Write auto, true or false.")
    return value


def _guard(value: object) -> object:
    if isinstance(value, bool):
        return "normal" if value else False
    if value not in ("strict", "normal", "patient"):
        raise InvalidError(f"{value!r} is no loop guard.", "Write true, false, strict, normal or patient.")
    return value


def _layers(word: Mapping[str, int | str]) -> Any:
    def layers(value: object) -> object:
        if isinstance(value, str):
            if value not in word:
                raise InvalidError(f"{value!r} is no number of layers.", f"Write a number or {' or '.join(word)}.")
            return word[value]
        if isinstance(value, int) and value < 0:
            raise InvalidError("A number of layers is not negative.", "Write `all` for all of them.")
        return value

    return BeforeValidator(layers)


def _layers_schema(*words: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"enum": [*words]}]})


def _experts(value: object) -> object:
    remedy = "Write a number of experts such as 64, a share of all such as 0.75, or fit."
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or value != value:
        raise InvalidError(f"{value!r} is no number of experts.", remedy)
    if isinstance(value, str) and value != "fit":
        raise InvalidError(f"{value!r} is no number of experts.", remedy)
    if isinstance(value, int) and value < 2:
        raise InvalidError(f"A layer cannot keep {value} of its experts.", remedy)
    if isinstance(value, float) and not 0 < value <= 1:
        raise InvalidError(f"{value:g} is no share of the experts.", remedy)
    return value


def _matches(pattern: re.Pattern[str], message: str, remedy: str) -> Any:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise InvalidError(f"{value!r} {message}", remedy)
        return value

    return AfterValidator(check)


def _cards(value: object) -> object:
    if value == AUTO:
        return value
    names = sequence(value)
    if not isinstance(names, (list, tuple)):
        raise InvalidError(f"{value!r} names no cards.", "Write names such as [CUDA0, CUDA1], or auto.")
    if not names:
        raise InvalidError(
            "No card is named.", "Name one, or write `auto`; gpu_layers: 0 keeps a model off all of them."
        )
    for name in names:
        if not isinstance(name, str) or _CARD.fullmatch(name) is None:
            raise InvalidError(f"{name!r} is not a card.", "Write a name as `coe doctor` lists them, such as CUDA0.")
    if len(set(names)) < len(names):
        raise InvalidError("A card is named twice.", "Name each once.")
    return names


def _part(value: float) -> float:
    if value and value < _LEAST_PART:
        raise InvalidError(f"{value:g} is a very small part.", "Write numbers such as [3, 1]; 0 for none.")
    return value


def _some_part(value: tuple[float, ...]) -> tuple[float, ...]:
    if value and not any(value):
        raise InvalidError("No card gets a part.", "Write numbers such as [3, 1], or remove the key.")
    return value


def _text_schema(pattern: re.Pattern[str], **more: Any) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern.pattern}$", **more})


def one_of(words: Collection[str]) -> AfterValidator:
    """One of some words that another module lists."""

    def check(value: str) -> str:
        if value not in words:
            raise InvalidError(f"{value!r} is not known here.", f"Write {' or '.join(words)}.")
        return value

    return AfterValidator(check)


def _not_auto(value: str) -> str:
    if value == AUTO:
        raise InvalidError("`auto` is the name that asks the supervisor.", "Choose another.")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise InvalidError("The text is empty.", "Write something, or remove the key.")
    return value


def _inside(value: str) -> str:
    """A glob inside a folder must not lead out of it."""
    if value.startswith(("/", "~")) or ".." in value.split("/"):
        raise InvalidError(f"{value!r} leads out of the folder.", 'Write a pattern such as "*Q4_K_M*.gguf".')
    return value


def sequence(value: object) -> object:
    """Any value but text, which pydantic would take for a list of its letters."""
    if isinstance(value, str):
        raise InvalidError("A list is wanted, this is one text.", f"Write `[{value}]`.")
    return value


_NOT_BLANK: Final = {"type": "string", "pattern": r"\S"}
# 0, or _LEAST_BARE_BYTES and more.
_BARE: Final = r"0+(\.0+)?|0*(1638[4-9]|1639\d|16[4-9]\d\d|1[7-9]\d{3}|[2-9]\d{4}|[1-9]\d{5,})(\.\d+)?"
_SIZE_TEXT: Final = {
    "type": "string",
    "pattern": rf"^\s*\d+(\.\d+)?\s*([kKmMgGtT][iI]?)?[bB]\s*$|^\s*({_BARE})\s*$",
    "examples": ["15 GiB", "900 MB"],
}


def _size_schema(least: int, *words: str) -> WithJsonSchema:
    bare = {"type": "integer", "minimum": _LEAST_BARE_BYTES, "maximum": _MOST_BYTES}
    sizes = [bare, *([] if least else [{"const": 0}]), _SIZE_TEXT]
    return WithJsonSchema({"anyOf": [*({"const": word} for word in words), *sizes]})


Text = Annotated[str, AfterValidator(_not_blank), WithJsonSchema(_NOT_BLANK)]
Switch = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
CountOrZero = Annotated[int, Strict(), Field(ge=0)]
Factor = Annotated[float, Strict(), Field(ge=0)]
Seconds = Annotated[float, Strict(), Field(gt=0)]
SecondsOrZero = Annotated[float, Strict(), Field(ge=0)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1), _size_schema(1)]
SizeOrZero = Annotated[int, BeforeValidator(parse_size), _size_schema(0)]
Budget = Annotated[int | Literal["auto"], BeforeValidator(_budget), _size_schema(1, "auto")]
BudgetOrZero = Annotated[int | Literal["auto"], BeforeValidator(_budget_or_zero), _size_schema(0, "auto")]
ShareSwitch = Annotated[
    Literal["auto"] | bool, BeforeValidator(_share), WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "boolean"}]})
]
LoopGuardSwitch = Annotated[
    Literal["strict", "normal", "patient", False],
    BeforeValidator(_guard),
    WithJsonSchema({"enum": [True, False, "strict", "normal", "patient"]}),
]
Layers = Annotated[int, Strict(), _layers({"all": -1}), _layers_schema("all")]
ExpertLayers = Annotated[
    Annotated[int, Strict()] | Literal["auto"],
    _layers({"none": 0, "all": -1, "auto": "auto"}),
    _layers_schema("none", "all", "auto"),
]
# Experts that a mask's layers keep: how many, a share of all, or as many as there is room for.
Experts = Annotated[
    Annotated[int, Strict()] | Annotated[float, Strict()] | Literal["fit"],
    BeforeValidator(_experts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 2},
                {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                {"const": "fit"},
            ]
        }
    ),
]
# Distinct cards, by name, or all.
Cards = Annotated[
    Literal["auto"] | tuple[str, ...],
    BeforeValidator(_cards),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "auto"},
                {
                    "type": "array",
                    "minItems": 1,
                    "uniqueItems": True,
                    "items": {"type": "string", "pattern": f"^{_CARD.pattern}$"},
                },
            ]
        }
    ),
]
Part = Annotated[
    float,
    Strict(),
    Field(ge=0, le=_MOST_PART),
    AfterValidator(_part),
    WithJsonSchema({"anyOf": [{"const": 0}, {"type": "number", "minimum": _LEAST_PART, "maximum": _MOST_PART}]}),
]
Parts = Annotated[tuple[Part, ...], BeforeValidator(sequence), AfterValidator(_some_part)]
Name = Annotated[
    str,
    _matches(_NAME, "is not a name.", "Use lowercase letters, digits, `-`, `_` and `.`, a letter or digit first."),
    AfterValidator(_not_auto),
    _text_schema(_NAME, **{"not": {"const": AUTO}}),
]
Alias = Annotated[
    str,
    _matches(_ALIAS, "is not an alias.", "Use letters, digits and `-_.:/`, without spaces."),
    AfterValidator(_not_auto),
    _text_schema(_ALIAS, **{"not": {"const": AUTO}}),
]
# An alias, or the beginning of many and a star.
AliasOrPrefix = Annotated[
    str,
    _matches(_PREFIX, "is not an alias.", "Use letters, digits and `-_.:/`, without spaces, and `*` at the end alone."),
    AfterValidator(_not_auto),
    _text_schema(_PREFIX, **{"not": {"const": AUTO}}),
]
Repo = Annotated[
    str, _matches(_REPO, "is not a Hugging Face repository.", "Write it as owner/name."), _text_schema(_REPO)
]
Package = Annotated[
    str, _matches(_PACKAGE, "is not a package.", "Write the name that pip installs."), _text_schema(_PACKAGE)
]
Revision = Annotated[
    str,
    _matches(_REVISION, "is no revision.", "Write a commit's hash, a tag or a branch."),
    _text_schema(_REVISION),
]
Sha256 = Annotated[
    str,
    _matches(_SHA256, "is no SHA-256.", "Write its 64 digits 0-9 and a-f, as `sha256sum FILE` prints them."),
    _text_schema(_SHA256),
]
Variable = Annotated[
    str,
    _matches(_ENVIRONMENT, "is not a variable's name.", "Write a name such as COE_API_KEYS."),
    _text_schema(_ENVIRONMENT),
]
Pattern = Annotated[str, AfterValidator(_not_blank), AfterValidator(_inside), WithJsonSchema(_NOT_BLANK)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(sequence)]
Digests = Annotated[
    tuple[Sha256, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{_SHA256.pattern}$"},
                {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": f"^{_SHA256.pattern}$"}},
            ]
        }
    ),
]
Sizes = Annotated[tuple[Count, ...], BeforeValidator(sequence)]
Names = Annotated[tuple[Name, ...], BeforeValidator(sequence)]
Aliases = Annotated[tuple[Alias, ...], BeforeValidator(sequence)]
AliasesOrPrefixes = Annotated[tuple[AliasOrPrefix, ...], BeforeValidator(sequence)]
