"""`coe plan`: expert selection, from profiles to a pruning mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .._errors import clear_errors
from .._extras import PLOTS, require
from ._shared import Criterion, say


def plan(
    profiles: Annotated[list[Path], typer.Argument(help="Profiles of one parent; several are added up.")],
    experts: Annotated[int, typer.Option(help="Experts that each layer keeps.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Where the mask is written.")] = Path("mask.json"),
    recipe: Annotated[
        str, typer.Option(help="top-k, three-pass, drop-map, or a published recipe: v6, v7, v7-coderx.")
    ] = "three-pass",
    criterion: Criterion = None,
    second: Annotated[
        Path | None, typer.Option(help="Profile of domain-neutral reasoning, for the third of the three passes.")
    ] = None,
    cap: Annotated[
        int | None, typer.Option(min=0, help="Most exchanges a layer of the third pass; 3 when left out.")
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="An expert to keep, LAYER:EXPERT; may be repeated.", show_default=False)
    ] = None,
    pin_super_experts: Annotated[
        bool, typer.Option("--pin-super-experts", help="Keep experts of extreme output (needs --norms).")
    ] = False,
    weight: Annotated[
        list[str] | None,
        typer.Option(help="A class's weight in a drop map, CLASS=NUMBER; may be repeated.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="For the criterion random.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw the mask as a PNG.")] = None,
) -> None:
    """Choose the experts of a specialist from what a profile saw."""
    if picture is not None:
        require(PLOTS, "--picture")
    with clear_errors():
        from coe.surgery.files import require_output
        from coe.surgery.plan import planning, super_experts
        from coe.surgery.plan.presets import PRESETS
        from coe.surgery.plan.recipes import Recipe
        from coe.surgery.profile.profile import Profile, combine
        from coe.surgery.study import plots

        require_output(out, [*profiles, *([second] if second else [])])
        whole = combine([Profile.load(path) for path in profiles])
        settings: dict[str, Any] = {"name": recipe}
        if cap is not None:
            settings["cap"] = cap
        if weight:
            settings["weights"] = dict(_weight(text) for text in weight)
        pins = [_pin(text) for text in pin or ()]
        if pin_super_experts:
            found = super_experts.find(whole)
            pins += found.pins
            say(found.note)
        mask = planning.plan(
            whole,
            experts,
            Recipe.from_settings(settings).method,
            criterion=criterion,
            second=Profile.load(second) if second is not None else None,
            pins=pins,
            seed=seed,
        )
        mask.save(out)
        if picture is not None:
            plots.mask_map(picture, {out.stem: mask})
        if recipe in PRESETS:
            say(f"Exact in this preset: {'; '.join(PRESETS[recipe].exact)}.")
            say(f"Assumed: {'; '.join(PRESETS[recipe].assumed)}.")
        swaps = mask.provenance.swaps
        say(
            f"{out}: {mask.n_keep} of {mask.parent.n_expert} experts in {len(mask.keep)} layers; exchanged after the "
            f"first pass: {len(swaps)}, pinned: {len(pins)}."
        )
        say(f"Next: coe cut PARENT {out} -o SPECIALIST.gguf")


def _pin(text: str) -> Any:
    from coe.surgery.errors import MaskError
    from coe.surgery.mask import Pin

    layer, found, expert = text.partition(":")
    if not (found and layer.isdecimal() and expert.isdecimal()):
        raise MaskError(f"{text!r} is no expert.", "Write --pin LAYER:EXPERT, such as --pin 3:17.")
    return Pin(int(layer), int(expert), "asked for")


def _weight(text: str) -> tuple[str, float]:
    from coe.surgery.errors import MaskError

    name, found, number = text.rpartition("=")
    try:
        if not found or not name:
            raise ValueError
        return name, float(number)
    except ValueError:
        raise MaskError(f"{text!r} is no weight.", "Write --weight CLASS=NUMBER.") from None
