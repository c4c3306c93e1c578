"""Pictures of masks, profiles and comparisons, as PNG files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from coe.engine.files import cache_folder, written_beside

from ..files import require_output
from ..mask import Mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .transfer import Transfer

os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # its list of fonts lies with what is ours

_KEPT: Final = "#1f4e79"
_DROPPED: Final = "#e8edf3"
_SECOND: Final = "#c8553d"
_SCALE: Final = "viridis"


class CurvePoint(Protocol):
    """One increment of a growing corpus."""

    @property
    def tokens(self) -> int:
        """Tokens so far."""

    @property
    def jaccard(self) -> float | None:
        """Mean over the layers, with the mask of the step before; None at the first."""

    @property
    def worst_jaccard(self) -> float | None:
        """The layer that moved most."""

    @property
    def entropy(self) -> float:
        """0..1, of the utilities."""


def mask_map(path: Path, masks: Mapping[str, Mask]) -> Path:
    """Which experts each mask keeps, a panel a mask, layers downwards and experts across."""
    # Many masks are small ones: a picture that fits no screen is of no use.
    smaller = min(1.0, 4 / len(masks))
    figure = _figure(10, 1.1 + sum(max(1.2, smaller * _panel_height(mask.parent.layers)) for mask in masks.values()))
    for at, (name, mask) in enumerate(masks.items()):
        axes = figure.add_subplot(len(masks), 1, at + 1)
        axes.imshow(mask.matrix(), aspect="auto", interpolation="nearest", cmap=_two_colours(), vmin=0, vmax=1)
        _name_layers(axes, mask.parent.layers)
        axes.set_title(f"{name}: {mask.n_keep} of {mask.parent.n_expert} experts a layer", fontsize=10)
        axes.set_xlabel("expert" if at == len(masks) - 1 else "")
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(color=_KEPT, label="kept"), Patch(color=_DROPPED, label="dropped")],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    return _save(figure, path)


def overlap_map(path: Path, masks: Mapping[str, Mask]) -> Path:
    """In how many of the masks each expert is kept: what is common to all, and what belongs to few."""
    counts = np.sum([mask.matrix() for mask in masks.values()], axis=0)
    first = next(iter(masks.values()))
    figure = _figure(10, 1.2 + _panel_height(first.parent.layers))
    axes = figure.add_subplot()
    steps = np.arange(len(masks) + 2) - 0.5
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm

    colours = colormaps[_SCALE].resampled(len(masks) + 1)
    image = axes.imshow(
        counts, aspect="auto", interpolation="nearest", cmap=colours, norm=BoundaryNorm(steps, len(masks) + 1)
    )
    _name_layers(axes, first.parent.layers)
    axes.set_xlabel("expert")
    axes.set_title(f"Masks that keep an expert: {', '.join(masks)}", fontsize=10, wrap=True)
    every = max(1, -(-len(masks) // 10))
    figure.colorbar(image, ax=axes, ticks=np.arange(0, len(masks) + 1, every), label="masks", pad=0.02)
    return _save(figure, path)


def matrix(path: Path, names: Sequence[str], values: NDArray[np.float64], title: str, label: str = "") -> Path:
    """A square matrix of shares from 0 to 1, with its values: Jaccard, F-scores, cosines.

    Colours span what lies off the diagonal, which is where masks differ; the diagonal itself is grey.
    """
    count = len(names)
    side = max(4.5, 1.9 + 0.62 * count)
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    off = values[~np.eye(count, dtype=bool)]
    low, high = (float(off.min()), float(off.max())) if off.size else (0.0, 1.0)
    if high - low < 0.05:
        low, high = max(0.0, low - 0.025), high + 0.025
    image = axes.imshow(np.ma.masked_array(values, np.eye(count, dtype=bool)), cmap=_SCALE, vmin=low, vmax=high)
    axes.set_facecolor(_DROPPED)
    axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    for row in range(count):
        for column in range(count):
            dark = row != column and values[row, column] < (low + high) / 2
            axes.text(
                column,
                row,
                f"{values[row, column]:.2f}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if dark else "black",
            )
    axes.set_title(title, fontsize=11)
    figure.colorbar(image, ax=axes, label=label or title, shrink=0.8)
    return _save(figure, path)


def transfer_map(
    path: Path, visitors: Sequence[str], targets: Sequence[str], values: NDArray[np.float64], title: str
) -> Path:
    """values [visitors, targets]: shares of the parent's accuracy, from 0 on; nan, drawn grey, where there is none."""
    rows, columns = values.shape
    figure = _figure(max(4.5, 2.7 + 0.7 * columns), max(3.0, 1.6 + 0.5 * rows))
    axes = figure.add_subplot()
    high = max(1.0, float(np.nanmax(values, initial=1.0)))
    image = axes.imshow(np.ma.masked_invalid(values), cmap=_SCALE, vmin=0.0, vmax=high, aspect="auto")
    axes.set_facecolor(_DROPPED)
    axes.set_xticks(range(columns), targets, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(rows), visitors)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < high / 2 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return _save(figure, path)


def growth_curve(path: Path, steps: Sequence[CurvePoint]) -> Path:
    """How the mask and the entropy settled while the corpus grew."""
    figure = _figure(8, 5.5)
    upper, lower = figure.subplots(2, 1, sharex=True)
    tokens = [step.tokens for step in steps]
    for name, values, colour in (
        ("mean of the layers", [step.jaccard for step in steps], _KEPT),
        ("layer that moved most", [step.worst_jaccard for step in steps], _SECOND),
    ):
        known = [(at, value) for at, value in zip(tokens, values, strict=True) if value is not None]
        upper.plot([at for at, _ in known], [value for _, value in known], "o-", ms=4, color=colour, label=name)
    upper.set_ylabel("Jaccard with the\nmask before")
    upper.set_title("How a mask settles as its corpus grows", fontsize=11)
    upper.legend(frameon=False, fontsize=9, loc="lower right")
    lower.plot(tokens, [step.entropy for step in steps], "o-", ms=4, color=_KEPT)
    lower.set_ylabel("entropy of the gate mass\n(1: evenly spread)")
    lower.set_xlabel("tokens of the corpus")
    lower.xaxis.set_major_formatter(lambda value, _: _short(value))
    lower.yaxis.get_major_formatter().set_useOffset(False)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return _save(figure, path)


def transfer_scatter(path: Path, transfer: Transfer, predictor: str) -> Path:
    """Transfer efficiency of every visit over one predictor, with r and its interval; a colour a visitor."""
    from matplotlib import colormaps

    figure = _figure(8.5, 5.5)
    axes = figure.add_subplot()
    visits = [visit for visit in transfer.visits if predictor in visit.predictors]
    across = [visit.predictors[predictor] for visit in visits]
    middle = (min(across) + max(across)) / 2
    axes.axhline(1.0, color="#888888", lw=0.8, ls="--")
    for at, visitor in enumerate(dict.fromkeys(visit.visitor for visit in visits)):
        own = [(x, visit) for x, visit in zip(across, visits, strict=True) if visit.visitor == visitor]
        colour = colormaps["tab10"](at % 10)
        mark = "osD^v"[at // 10 % 5]
        axes.scatter([x for x, _ in own], [v.transfer for _, v in own], color=colour, marker=mark, s=26, label=visitor)
        for x, visit in own:
            aside = (5, -3) if x < middle else (-5, -3)
            side = "left" if x < middle else "right"
            axes.annotate(
                visit.target, (x, visit.transfer), aside, textcoords="offset points", fontsize=7, ha=side, color=colour
            )
    found = next((one for one in transfer.correlations if one.predictor == predictor), None)
    figures = f"{len(visits)} visits"
    if found is not None and found.r is not None:
        figures = f"r = {found.r:.2f}, n = {found.n}"
        if found.low is not None and found.high is not None:
            figures += f", 95 % interval {found.low:.2f} to {found.high:.2f}"
    axes.set_title(f"Transfer over {predictor}: {figures}", fontsize=11)
    axes.set_xlabel(predictor)
    axes.set_ylabel("accuracy / the parent's on the same questions")
    axes.margins(x=0.08)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", title="visitor (its target\nbeside the point)", frameon=False, fontsize=8)
    return _save(figure, path)


def error_curves(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    title: str,
    across: str,
    up: str,
    *,
    logarithmic: bool = False,
) -> Path:
    """Named curves of (x, y, error of y) points; an error that is nan is not drawn. logarithmic: the x axis."""
    from matplotlib import colormaps

    figure = _figure(8.5, 5.0)
    axes = figure.add_subplot()
    for at, (name, points) in enumerate(curves.items()):
        x, y, error = np.array(points, np.float64).T
        colour, mark = colormaps["tab10"](at % 10), "osD^vPX*<>"[at % 10]
        bars = None if np.isnan(error).any() else error
        axes.errorbar(x, y, bars, label=name, color=colour, marker=mark, ms=4, lw=1.2, capsize=2)
    if logarithmic:
        axes.set_xscale("log")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    # Without pyplot: no display, no global state, and usable from any thread. Imported late: it takes half a second.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    require_output(path)
    with written_beside(path) as beside:
        figure.savefig(beside, format="png")
    return path


def _panel_height(layers: Sequence[int]) -> float:
    return min(4.5, max(1.3, 0.11 * len(layers) + 0.6))


def _two_colours() -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([_DROPPED, _KEPT])


def _name_layers(axes: Axes, layers: Sequence[int]) -> None:
    """Block numbers at some of the rows."""
    every = max(1, -(-len(layers) // 8))
    rows = range(0, len(layers), every)
    axes.set_yticks(list(rows), [str(layers[row]) for row in rows])
    axes.set_ylabel("layer")


def _short(tokens: float) -> str:
    return f"{tokens / 1e6:g} M" if tokens >= 1e6 else f"{tokens / 1e3:g} k" if tokens >= 1e3 else f"{tokens:g}"
