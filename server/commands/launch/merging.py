"""Merging: our settings into a file that a user wrote. What is not ours stays, in YAML its comments too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

_IDENTITY: Final = ("id", "name")  # the keys by which an entry of a list is known again


class MergeError(Exception):
    """A file cannot be merged into; the message says why, as the end of a sentence."""


def merged(theirs: Any, ours: Any) -> Any:
    """Two values in one: keys of both, ours where both have one. Entries of a list that are known by an `id` or `name`
    take the place of their namesakes, new ones stand first."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return {**theirs, **{key: merged(theirs.get(key), value) for key, value in ours.items()}}
    if isinstance(theirs, list) and isinstance(ours, list):
        new = {_identity(entry): entry for entry in ours}
        old = {_identity(entry) for entry in theirs}
        first = [entry for key, entry in new.items() if key not in old]
        return first + [new.get(_identity(entry), entry) for entry in theirs]
    return ours


def _identity(entry: Any) -> str:
    if isinstance(entry, Mapping):
        for key in _IDENTITY:
            if isinstance(entry.get(key), str):
                return f"{key} {entry[key]}"
    return json.dumps(entry, sort_keys=True, default=str)


def merge_json(text: str, values: Mapping[str, Any]) -> str:
    """A JSON file with our values in it. Raises MergeError for what is no JSON object: comments, say, which other
    programs allow and which would be lost."""
    try:
        theirs = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise MergeError(f"is no JSON ({error})") from error
    if not isinstance(theirs, dict):
        raise MergeError("holds no JSON object")
    both = merged(theirs, values)
    return text if both == theirs else json.dumps(both, indent=2, ensure_ascii=False) + "\n"


def merge_yaml(text: str, values: Mapping[str, Any]) -> str:
    """A YAML file with our values in it, changed only where it has to be: comments and order stay.

    Raises MergeError for what is no YAML of keys, or is written so that our values find no place.
    """
    theirs = _loaded(text)
    both = merged(theirs, values)
    if both == theirs:
        return text
    # Text is put into text: whether it says then what it should is for the parser to tell.
    try:
        changed = _changed(text, theirs, both, list(values))
        holds = _loaded(changed) == both
    except (MergeError, yaml.YAMLError):
        holds = False
    if not holds:
        raise MergeError("is written in a way that the settings cannot be put into")
    return changed


def _changed(text: str, theirs: Mapping[str, Any], both: Mapping[str, Any], keys: Sequence[str]) -> str:
    for key in keys:
        if key not in theirs:
            between = "\n" if text and not text.endswith("\n") else ""
            text = f"{text}{between}{key}: {_flow(both[key])}\n"
        elif both[key] != theirs[key]:
            text = _replaced(text, key, theirs[key], both[key])
    return text


def _loaded(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MergeError(f"is no YAML ({' '.join(str(error).split())})") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise MergeError("holds no keys")
    return found


def _flow(value: Any) -> str:
    """On one line. JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)


def _replaced(text: str, key: str, old: Any, new: Any) -> str:
    """The text with another value for one of its keys."""
    document = yaml.compose(text, Loader=yaml.SafeLoader)
    found = [(at, node) for at, node in getattr(document, "value", ()) if at.value == key]
    if len(found) != 1:
        raise MergeError(f"has {key} in another place")  # taken in from an anchor, or twice
    [(at, node)] = found
    if not (isinstance(node, yaml.SequenceNode) and isinstance(new, list) and node.value):
        # What there was is a value on the key's line, or a block below it.
        return f"{text[: at.end_mark.index]}: {_flow(new)}{_rest(text, node)}"
    return _with_entries(text, node, old, new)


def _rest(text: str, node: yaml.Node) -> str:
    """What follows a value: a block's end lies at the next key, and the line break before it is the block's."""
    end: int = node.end_mark.index
    rest = text[end:]
    return rest if text[end - 1 : end] != "\n" else f"\n{rest}"


def _with_entries(text: str, node: yaml.SequenceNode, old: Sequence[Any], new: Sequence[Any]) -> str:
    """The text with entries of a list changed in their places, from the last to the first, and new ones before them."""
    added = new[: len(new) - len(old)]
    for entry, before, after in reversed(list(zip(node.value, old, new[len(added) :], strict=True))):
        if before != after:
            text = f"{text[: entry.start_mark.index]}{_flow(after)}{_rest(text, entry)}"
    start: int = node.start_mark.index
    if node.flow_style:
        return f"{text[: start + 1]}{''.join(f'{_flow(entry)}, ' for entry in added)}{text[start + 1 :]}"
    indent = " " * node.start_mark.column
    return f"{text[:start]}{''.join(f'- {_flow(entry)}{chr(10)}{indent}' for entry in added)}{text[start:]}"
