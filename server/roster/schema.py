"""The JSON schema of a roster: by it an editor completes keys, shows their help and marks mistakes.

For yaml-language-server, which VS Code, Neovim, Helix and others use. The schema holds all that is true of a key by
itself. What is between keys (one source a model, names that are known) is `coe check`'s: see rules.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from pydantic import BaseModel

from . import models
from .models import Roster, Section, Specialist, SpecialistSettings

_DRAFT: Final = "http://json-schema.org/draft-07/schema#"  # what editors know best; nothing here needs a later one
# A block whose keys are all commented out is null in YAML: it says nothing, which is allowed.
_MAY_BE_EMPTY: Final = ("server", "pool", "router", "defaults", "notices")


def roster_schema() -> dict[str, Any]:
    """The schema of a whole roster, JSON types only."""
    schema = Roster.model_json_schema(ref_template="#/definitions/{model}")
    blocks = schema["definitions"] = schema.pop("$defs")
    for model in _sections():
        block = schema if model is Roster else blocks[model.__name__]
        keys = block.get("anyOf", [block])[-1]["properties"]  # the block itself stands last, after its short forms
        for name, help_text in help_of(model).items():
            keys[name]["description"] = help_text
            _tidy(keys[name])
    for name in _MAY_BE_EMPTY:
        _allow_null(schema["properties"][name])
    schema["properties"]["specialists"]["minItems"] = 1
    entry = blocks[Specialist.__name__]["properties"]
    for name in SpecialistSettings.model_fields:
        entry[name].pop("default", None)
        entry[name]["description"] += " (as in `defaults` when left out)"
    return {"$schema": _DRAFT, **schema, "title": "Roster of the College of Experts"}


def help_of(model: type[Section]) -> dict[str, str]:
    """What stands below each key of a section, its bases' included, in one line each."""
    return {
        key: text for base in reversed(model.__mro__) for key, text in _written_help().get(base.__name__, {}).items()
    }


def _written_help() -> Mapping[str, Mapping[str, str]]:
    """Class -> key -> the text below it, from the source of the models.

    Read here and not by pydantic (`use_attribute_docstrings`), which would do it at each start of each command.
    """
    classes = [node for node in ast.parse(inspect.getsource(models)).body if isinstance(node, ast.ClassDef)]
    return {node.name: dict(_texts_below(node)) for node in classes}


def _texts_below(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for key, below in pairwise(node.body):
        match key, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())


def _sections() -> list[type[Section]]:
    """The sections that a roster consists of: those that stand in the schema."""
    found: list[type[Section]] = [Roster]
    for section in found:
        for field in section.model_fields.values():
            found += [inner for inner in _models_in(field.annotation) if inner not in found]
    return found


def _models_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        assert issubclass(annotation, Section)
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _tidy(key: dict[str, Any]) -> None:
    """Leave out what an editor would show in vain: titles made of the key's name, and defaults that are blocks."""
    key.pop("title", None)
    if isinstance(key.get("default"), dict) or key.get("default", ...) is None:
        del key["default"]


def _allow_null(key: dict[str, Any]) -> None:
    value = {name: key.pop(name) for name in tuple(key) if name not in ("description", "default")}
    key["anyOf"] = [value, {"type": "null"}]
