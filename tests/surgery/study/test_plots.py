"""Pictures: what is in them, and that a file is whole or not there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from coe.surgery.errors import SurgeryError
from coe.surgery.mask import Mask
from coe.surgery.study import plots
from coe.surgery.study.transfer import OVERLAP, transfer
from fakes.published_masks import THREE, published
from fakes.synthetic_profile import identity


@dataclass(frozen=True)
class Step:
    tokens: int
    jaccard: float | None
    worst_jaccard: float | None
    entropy: float


STEPS = [Step(1000, None, None, 0.9), Step(2000, 0.8, 0.6, 0.85), Step(4_000_000, 0.99, 0.95, 0.84)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they were when they were saved."""
    figures: list[Figure] = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.append(figure), save(figure, path))[1])
    return figures


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_a_mask_is_drawn_expert_by_expert(tmp_path: Path, drawn: list[Figure]) -> None:
    path = plots.mask_map(tmp_path / "masks.png", THREE)
    assert imread(path).std() > 0.1
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == [f"{name}: 4 of 8 experts a layer" for name in THREE]
    for axes, mask in zip(panels, THREE.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), mask.matrix())


def test_rows_carry_their_block_numbers(tmp_path: Path, drawn: list[Figure]) -> None:
    plots.mask_map(tmp_path / "masks.png", {"late": Mask.everything(identity(layers=3, first_layer=5))})
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["5", "6", "7"]


def test_overlap_counts_masks(tmp_path: Path, drawn: list[Figure]) -> None:
    plots.overlap_map(tmp_path / "overlap.png", THREE)
    counts = drawn[0].axes[0].images[0].get_array()
    assert counts[0].tolist() == [3, 2, 2, 1, 1, 1, 1, 1]
    assert drawn[0].axes[1].get_ylabel() == "masks"


def test_a_matrix_shows_its_values_and_names(tmp_path: Path, drawn: list[Figure]) -> None:
    values = np.array([[1.0, 0.25], [0.25, 1.0]])
    plots.matrix(tmp_path / "matrix.png", ["law", "maths"], values, "Jaccard")
    said = texts(drawn[0])
    for expected in ("law", "maths", "0.25", "1.00", "Jaccard"):
        assert expected in said
    # The diagonal has no say in the colours.
    low, high = drawn[0].axes[0].images[0].get_clim()
    assert low < 0.25 < high < 1


def test_the_growth_curve_leaves_out_what_is_not_known_yet(tmp_path: Path, drawn: list[Figure]) -> None:
    plots.growth_curve(tmp_path / "growth.png", STEPS)
    upper, lower = drawn[0].axes
    assert upper.lines[0].get_xdata().tolist() == [2000, 4_000_000]
    assert upper.lines[1].get_ydata().tolist() == [0.6, 0.95]
    assert lower.lines[0].get_ydata().tolist() == [0.9, 0.85, 0.84]
    assert "4 M" in texts(drawn[0])


def test_the_scatter_tells_r_and_its_interval(tmp_path: Path, drawn: list[Figure]) -> None:
    comparison, accuracies, _ = published()
    plots.transfer_scatter(tmp_path / "transfer.png", transfer(comparison, accuracies), OVERLAP)
    axes = drawn[0].axes[0]
    assert axes.get_title() == "Transfer over F-score: r = 0.80, n = 20, 95 % interval 0.55 to 0.92"
    assert sum(len(points.get_offsets()) for points in axes.collections) == 20
    assert {"physics", "psychology"} <= set(texts(drawn[0]).split())


DRAWINGS = {
    "mask_map": (THREE,),
    "overlap_map": (THREE,),
    "matrix": (["a"], np.ones((1, 1)), "Jaccard"),
    "growth_curve": (STEPS[:1],),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_files_are_whole_pngs_with_nothing_left_beside_them(tmp_path: Path, name: str) -> None:
    path = getattr(plots, name)(tmp_path / f"{name}.png", *DRAWINGS[name])
    height, width = imread(path).shape[:2]
    assert 300 < width < 2000
    assert 150 < height < 2000
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_drawing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "old.png"
    path.write_bytes(b"old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.mask_map(path, THREE)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="mkdir -p"):
        plots.mask_map(tmp_path / "none" / "a.png", THREE)


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, coe.surgery.study.plots; print('matplotlib' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
