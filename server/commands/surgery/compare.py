"""`coe compare`: mask overlap (Jaccard, F-score, cosine), and how it foretells transfer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from .._errors import clear_errors
from .._extras import PLOTS, require
from ._shared import MaskKind, named_path, out_console, say

if TYPE_CHECKING:
    pass


def compare(
    masks: Annotated[list[str], typer.Argument(help="Masks of one parent, FILE or NAME=FILE.")],
    parent: Annotated[Path | None, typer.Option(help="The parent's GGUF, for masks of other tools.")] = None,
    kind: MaskKind = "auto",
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="The profile a mask was planned from, NAME=FILE: for the weighted cosine.", show_default=False
        ),
    ] = None,
    accuracies: Annotated[
        Path | None,
        typer.Option(help="JSON of accuracies, {visitor: {target: share}} with a `parent`, or a matrix of coe eval."),
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="A folder for heat maps and matrices as PNG.")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Write all figures as JSON.")] = None,
) -> None:
    """Compare masks, and say how their overlap foretells accuracy away from home."""
    if pictures is not None:
        require(PLOTS, "--pictures")
    with clear_errors():
        from coe.surgery.formats import read_mask
        from coe.surgery.mask import Mask
        from coe.surgery.parent import Parent
        from coe.surgery.profile.profile import Profile
        from coe.surgery.study.compare import compare as run

        named = dict(named_path(text) for text in masks)
        identity = Parent.open(parent).identity() if parent is not None else None
        read = {
            name: Mask.load(path) if identity is None else read_mask(path, identity, kind=kind)
            for name, path in named.items()
        }
        seen = {name: Profile.load(path).gate_mass() for name, path in map(named_path, profile or ())}
        comparison = run(read, seen or None)
        names = comparison.names
        for title, values in (
            ("Jaccard, mean of the layers", comparison.jaccard),
            ("F-score without common experts", comparison.f_score),
            ("cosine weighted by budget", comparison.cosine),
        ):
            if values is not None:
                out_console.print(_square(title, names, values))
        found = _transfer(comparison, accuracies) if accuracies is not None else None
        if pictures is not None:
            _draw(pictures, read, comparison, found)
        if out is not None:
            from coe.engine.files import written_beside

            whole = {"comparison": comparison.to_json(), "transfer": found and found.to_json()}
            with written_beside(out) as beside:
                beside.write_text(json.dumps(whole, indent=1) + "\n")


def _square(title: str, names: Sequence[str], values: Any) -> Table:
    table = Table(escape(f"{title}:"), box=None, pad_edge=False)
    for name in names:
        table.add_column(escape(name), justify="right")
    for row, name in enumerate(names):
        table.add_row(escape(name), *(f"{value:.3f}" for value in values[row]))
    return table


def _transfer(comparison: Any, path: Path) -> Any:
    from coe.surgery.errors import EvaluationError
    from coe.surgery.study.matrix import TransferMatrix
    from coe.surgery.study.transfer import transfer

    try:
        given = json.loads(path.read_text())
    except ValueError as error:
        raise EvaluationError(f"{path} is no JSON: {error}.", "Write {visitor: {target: share}}.") from error
    if isinstance(given, dict) and "cells" in given:
        given = TransferMatrix.from_json(given).accuracies()
    if not isinstance(given, dict) or not all(isinstance(row, dict) for row in given.values()):
        raise EvaluationError(f"{path} holds no accuracies.", "Write {visitor: {target: share}}, with a `parent`.")
    found = transfer(comparison, given)
    table = Table(box=None, pad_edge=False)
    for column in ("predictor", "n", "Pearson r", "p", "95 %"):
        table.add_column(column, justify="left" if column == "predictor" else "right")
    for one in found.correlations:
        figures = [f"{one.r:.3f}", f"{one.p:.3g}"] if one.r is not None and one.p is not None else ["-", "-"]
        bounds = f"{one.low:.2f} to {one.high:.2f}" if one.low is not None and one.high is not None else "-"
        table.add_row(one.predictor, str(one.n), *figures, bounds)
    say("Transfer efficiency (accuracy of the visitor / the parent's), as foretold by:")
    out_console.print(table)
    if (fit := found.fit) is not None:
        say(f"Together ({', '.join(fit.predictors)}): R² {fit.r_squared:.3f}, adjusted {fit.adjusted_r_squared:.3f}, "
             f"p {fit.p:.3g}, n {fit.n}.")  # fmt: skip
    for note in found.notes:
        say(note)
    return found


def _draw(folder: Path, masks: Mapping[str, Any], comparison: Any, found: Any) -> None:
    from coe.surgery.study import plots

    folder.mkdir(parents=True, exist_ok=True)
    drawn = [plots.mask_map(folder / "masks.png", masks), plots.overlap_map(folder / "overlap.png", masks)]
    for name, values, title in (
        ("jaccard", comparison.jaccard, "Jaccard, mean of the layers"),
        ("f-score", comparison.f_score, "F-score without the experts of all masks"),
        ("cosine", comparison.cosine, "Cosine of the utilities, weighted by budget"),
    ):
        if values is not None:
            drawn.append(plots.matrix(folder / f"{name}.png", comparison.names, values, title))
    for one in found.correlations if found is not None else ():
        if one.r is not None:
            name = "".join(letter if letter.isalnum() else "-" for letter in one.predictor.lower())
            drawn.append(plots.transfer_scatter(folder / f"transfer-{name}.png", found, one.predictor))
    say(f"Drawn: {', '.join(str(path) for path in drawn)}")
