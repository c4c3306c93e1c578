"""Loading a roster: validation with every problem at once, each with its line, and inheritance from `defaults`.

`load_roster` reads a YAML file into frozen values. `specialists.yaml` at the top of the project explains every key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from .models import (
    ModelSource,
    PoolSection,
    Roster,
    RouterSection,
    SamplingSection,
    Section,
    ServerSection,
    Specialist,
    SpecialistSettings,
)
from .rules import Finding, roster_findings, specialist_findings
from .source import KeyPath, Problem, RosterError, Source, nearest, read_source
from .values import InvalidError


def load_roster(path: Path) -> Roster:
    """Read and check a roster. Raises RosterError with every problem at once; doubts stand in `Roster.warnings`."""
    source = read_source(path)
    if source.values is None:
        raise RosterError(source.problems or [Problem(source.file, None, "", "The file says nothing.")])
    if not isinstance(source.values, dict):
        what = "a list" if isinstance(source.values, list) else "a single value"
        remedy = "Start with keys such as `specialists:`."
        raise RosterError([*source.problems, source.problem((), f"The file holds {what}, not keys.", remedy)])
    roster, findings = _check(source)
    for_lines = {finding.path: _written(finding.path, source) for finding in findings}
    problems = [
        (finding.fatal, source.problem(for_lines[finding.path], finding.message, finding.remedy))
        for finding in findings
    ]
    errors = [*source.problems, *(problem for fatal, problem in problems if fatal)]
    if errors:
        raise RosterError(errors)
    assert roster is not None, "a roster without problems has a value"
    doubts = {problem for fatal, problem in problems if not fatal}
    roster._path = path
    roster = _with_whole_paths(roster)
    for one in _sources(roster):
        one._roster_option = roster.option
    roster._warnings = tuple(sorted(doubts, key=lambda problem: (problem.line or 0, problem.key)))
    return roster


def _with_whole_paths(roster: Roster) -> Roster:
    """Masks as absolute paths, those of published specialists too: an entry knows nothing of the roster's folders."""

    def whole(entry: Specialist) -> Specialist:
        if entry.mask_of is not None:
            return entry.model_copy(update={"mask": str(entry.mask_of.path(roster.models_path))})
        if entry.mask is not None:
            return entry.model_copy(update={"mask": str(roster.resolve(entry.mask))})
        return entry

    return roster.model_copy(update={"specialists": tuple(map(whole, roster.specialists))})


def _sources(roster: Roster) -> Iterator[ModelSource]:
    """All that says where a model comes from."""
    if roster.parent is not None:
        yield roster.parent
    for entry in roster.specialists:
        yield entry
        if entry.build is not None and entry.build.parent is not None:
            yield entry.build.parent


_SECTIONS: dict[str, type[Section]] = {
    "server": ServerSection,
    "pool": PoolSection,
    "router": RouterSection,
    "defaults": SpecialistSettings,
}


def _check(source: Source) -> tuple[Roster | None, list[Finding]]:
    """Everything wrong with the values, and the roster where nothing is.

    One pass of pydantic would name the wrong fields, but cross-field checks would wait until all fields are right.
    So each part is checked by itself, its wrong fields are set aside, and the rules see what is left.
    """
    # A section whose settings are all commented out is null in YAML: it says nothing, which is allowed.
    empty = {*_SECTIONS, "notices"}
    written = {key: {} if value is None and key in empty else value for key, value in source.values.items()}
    findings: list[Finding] = []

    top = {key: value for key, value in written.items() if key != "specialists"}
    top_good, top_findings = _good_fields(Roster, {**top, "specialists": ()}, ())
    findings += top_findings
    defaults_good: dict[str, Any] = {}
    if isinstance(written.get("defaults"), dict):
        defaults_good, _ = _good_fields(SpecialistSettings, written["defaults"], ())

    entries = written.get("specialists")
    specialists: list[tuple[Specialist, frozenset[str]]] = []
    if not isinstance(entries, list):
        problem = "is missing" if "specialists" not in written else "must be a list of entries, each with a `name`"
        remedy = "Write `specialists:` and below it `- name: ...`."
        findings.append(Finding(("specialists",), f"`specialists` {problem}.", remedy))
        entries = None
    elif not entries:
        findings.append(Finding(("specialists",), "There is no specialist.", "Write at least one `- name: ...`."))
    for index, entry in enumerate(entries or ()):
        at: KeyPath = ("specialists", index)
        if not isinstance(entry, dict):
            findings.append(Finding(at, "An entry must be keys and values.", "Begin it with `- name: ...`."))
            continue
        merged = _inherit(defaults_good, entry)
        good, wrong = _good_fields(Specialist, merged, at)
        findings += wrong
        bad = frozenset(str(finding.path[2]) for finding in wrong if len(finding.path) > 2)
        provisional = Specialist.model_validate({"name": "unnamed", **good})
        if "name" not in good:
            bad |= {"name"}
        specialists.append((provisional, bad))
        findings += specialist_findings(provisional, bad, at, [*map(str, entry)])

    top_good.pop("specialists", None)
    draft = Roster.model_validate({**top_good, "specialists": ()})
    findings += roster_findings(draft, specialists, frozenset(top) - frozenset(top_good))
    if any(finding.fatal for finding in findings):
        return None, findings
    return draft.model_copy(update={"specialists": tuple(entry for entry, _ in specialists)}), findings


def _inherit(defaults: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with what it does not say itself; sampling and its bounds are inherited field by field."""
    merged = {**defaults, **entry}
    for key in ("sampling", "sampling_bounds"):
        theirs, own = defaults.get(key), entry.get(key)
        if isinstance(theirs, dict) and isinstance(own, dict):
            merged[key] = {**theirs, **own}
    return merged


def _good_fields(model: type[Section], values: Mapping[str, Any], at: KeyPath) -> tuple[dict[str, Any], list[Finding]]:
    """The values whose keys a model accepts, and what is wrong with the others."""
    text_keys = {key: value for key, value in values.items() if isinstance(key, str)}
    try:
        model.model_validate(text_keys)
    except ValidationError as error:
        findings = []
        bad = set()
        for detail in error.errors():
            findings.append(_explain(model, detail, at))
            bad.add(str(detail["loc"][0]) if detail["loc"] else "")
        return {key: value for key, value in text_keys.items() if key not in bad}, findings
    return text_keys, []


_SHOULD = {
    "string_type": ("should be text", "Put it in quotes."),
    "int_type": ("should be a whole number", ""),
    "float_type": ("should be a number", ""),
    "bool_type": ("should be true or false", ""),
    "tuple_type": ("should be a list", "Write `[a, b]`, or one `- a` a line."),
    "dict_type": ("should be keys and values", ""),
    "model_type": ("should be keys and values", ""),
    "finite_number": ("should be a finite number", ""),
}


def _explain(model: type[Section], detail: Mapping[str, Any], at: KeyPath) -> Finding:
    """One of pydantic's errors in our words, at its key path."""
    loc = tuple(part for part in detail["loc"] if part not in ("[key]",))
    path = (*at, *loc)
    kind = str(detail["type"])
    if kind == "extra_forbidden":
        return Finding(path, "unknown key.", _unknown_key(model, tuple(loc)))
    if kind == "missing":
        return Finding(path, "This is missing.", f"Add `{loc[-1]}:`.")
    if detail.get("input") is None and kind != "value_error":
        return Finding(path, "There is nothing behind the colon.", "Write a value, or remove the key.")
    if kind == "value_error":
        error = detail["ctx"]["error"]
        return Finding(path, str(error), error.remedy if isinstance(error, InvalidError) else "")
    if kind == "literal_error":
        allowed = re.findall(r"'([^']+)'|(\d+)", str(detail["ctx"]["expected"]))
        words = [first or second for first, second in allowed]
        return Finding(path, f"{detail['input']!r} is not known here.", f"Write {' or '.join(words)}.")
    if kind in _SHOULD:
        should, remedy = _SHOULD[kind]
        if kind in ("int_type", "float_type") and isinstance(detail["input"], str):
            remedy = _number_remedy(detail["input"])
        return Finding(path, f"{_shown(detail['input'])} {should}.", remedy)
    said = str(detail["msg"]).removeprefix("Input should").strip()
    return Finding(path, f"{_shown(detail['input'])} should {said}.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|sec|m|min|h|d)\s*", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def _number_remedy(written: str) -> str:
    """YAML 1.1 takes 1e4 for text; and a duration is written in seconds, as the keys' names say."""
    if (found := _DURATION.fullmatch(written)) is not None:
        return f"Write seconds: {float(found[1]) * _SECONDS[found[2].lower()]:g}."
    try:
        return f"Write {float(written):g}, without quotes." if float(written) < 1e6 else f"Write {int(float(written))}."
    except (ValueError, OverflowError):
        return ""


def _unknown_key(model: type[Section], loc: KeyPath) -> str:
    """What an unknown key was probably meant to be."""
    inner: type[BaseModel] = model
    for part in loc[:-1]:
        inner = _submodel(inner, part) or inner
    word = str(loc[-1])
    close = nearest(word, inner.model_fields)
    if close is not None:
        return f"Did you mean {close}?"
    for name in inner.model_fields:
        below = _submodel(inner, name)
        if below is not None and word in below.model_fields:
            return f"It belongs under `{name}`."
    if inner is Roster and (word in Specialist.model_fields or word in SamplingSection.model_fields):
        return "It belongs into an entry of `specialists`, or under `defaults`."
    if inner is SpecialistSettings and word in Specialist.model_fields:
        return "It belongs into each entry of `specialists`."
    return f"Known here: {', '.join(inner.model_fields)}."


def _submodel(model: type[BaseModel], field_name: object) -> type[BaseModel] | None:
    """The model behind a field, if it is one; of an optional field as well."""
    field = model.model_fields.get(str(field_name))
    if field is None:
        return None
    candidates = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _written(path: KeyPath, source: Source) -> KeyPath:
    """Where a value of an entry is written: in the entry, or in `defaults`, from where it was inherited."""
    if len(path) > 2 and path[0] == "specialists" and path not in source.lines:
        inherited: KeyPath = ("defaults", *path[2:])
        if inherited in source.lines:
            return inherited
    return path
