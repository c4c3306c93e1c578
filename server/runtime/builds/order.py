"""From a roster entry to a build order: what is to be built, and how its models are loaded."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

from coe.surgery.build.job import BuildOrder, Machine
from coe.surgery.errors import BuildError

from ...roster.models import Roster, Specialist


def order_of(roster: Roster, specialist: Specialist) -> BuildOrder:
    """The build order of an entry, with absolute paths.

    Raises BuildError for an entry without `build:`, and for a parent, corpus or question file that is not there.
    """
    build = specialist.build
    if build is None:
        raise BuildError(
            f"{specialist.name} has no `build:` in {roster.path.name}.", "Add one, or name an entry that has."
        )
    source = roster.parent_of(specialist)
    if source is None:
        raise BuildError(f"{specialist.name} has no parent.", "Add `parent:` to the roster.")
    found = source.find_file(roster.models_path, "parent" if build.parent is None else specialist.name)
    if found.path is None:
        raise BuildError(f"The parent of {specialist.name} is not there. {found.reason}", found.remedy)
    questions = tuple(roster.resolve(path) for path in build.questions)
    corpus, reasoning = (
        tuple(_with_class(roster, text) for text in texts) for texts in (build.corpus, build.reasoning)
    )
    for path in (*questions, *(path for _, path in (*corpus, *reasoning))):
        if not os.path.isfile(path):
            raise BuildError(f"There is no file {path}.", f"Correct the build of {specialist.name} in the roster.")
    return BuildOrder(
        name=specialist.name,
        parent=found.path,
        corpus=tuple(f"{category}{path}" for category, path in corpus),
        experts=build.experts,
        out=specialist.built_path(roster.models_path),
        recipe=build.recipe.value,
        reasoning=tuple(f"{category}{path}" for category, path in reasoning),
        answer=build.answer,
        questions=questions,
        bound=build.bound.value,
        system=specialist.system_prompt or "",
        quantize=build.quantize,
        shared_scale=build.shared_scale,
        max_tokens=build.max_tokens,
        option=roster.option,
    )


def _with_class(roster: Roster, text: str) -> tuple[str, Path]:
    """`law=texts/law.jsonl` as ("law=", path); a file without a class has "" before it."""
    category, found, path = text.partition("=")
    if not found or not category or os.path.exists(roster.resolve(text)):
        return "", roster.resolve(text)
    return f"{category}=", roster.resolve(path)


def machine_of(roster: Roster, specialist: Specialist) -> Machine:
    """How the roster loads a specialist: its parent is loaded the same way where there is room, and lies on all cards
    that the roster names."""
    devices = () if roster.pool.devices == "auto" else roster.pool.devices
    spec = replace(specialist.load_spec(Path()), devices=devices if specialist.gpu_layers else ())
    return Machine(**{field.name: getattr(spec, field.name) for field in fields(Machine)})
