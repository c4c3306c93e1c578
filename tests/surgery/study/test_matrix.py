"""Visitors and targets."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from rich.console import Console

from coe.surgery.errors import EvaluationError
from coe.surgery.judge.evaluate import AnswerOutcome, Performance
from coe.surgery.judge.generation import GenerationSettings
from coe.surgery.judge.proportions import Paired, Share
from coe.surgery.judge.questions import read_questions
from coe.surgery.judge.values import AnswerKind, Question, QuestionSet
from coe.surgery.study.compare import compare
from coe.surgery.study.matrix import (
    PARENT,
    Cell,
    TransferMatrix,
    draw,
    efficiency,
    evaluate_matrix,
    matrix_table,
    tabulate,
)
from coe.surgery.study.transfer import OVERLAP, transfer
from fakes import taught
from fakes.scripted_resident import Script

# Visitor's accuracy in percent, questions, the parent's accuracy, Y and sigma: the third card's twenty visits.
CARD = [
    (88.9, 135, 94.1, 0.945, 0.029),
    (18.5, 135, 94.1, 0.197, 0.036),
    (83.1, 130, 87.3, 0.952, 0.038),
    (10.0, 130, 87.3, 0.115, 0.030),
    (63.9, 97, 72.6, 0.880, 0.067),
    (12.4, 97, 72.6, 0.170, 0.046),
    (90.2, 41, 82.9, 1.089, 0.056),
    (51.2, 41, 82.9, 0.618, 0.094),
    (74.3, 113, 88.1, 0.844, 0.047),
    (13.3, 113, 88.1, 0.151, 0.036),
    (75.0, 72, 89.9, 0.834, 0.057),
    (54.2, 72, 89.9, 0.603, 0.065),
    (65.5, 84, 87.9, 0.745, 0.059),
    (65.5, 84, 87.9, 0.745, 0.059),
    (77.2, 79, 87.3, 0.884, 0.054),
    (13.9, 79, 87.3, 0.159, 0.045),
    (65.0, 80, 83.1, 0.782, 0.064),
    (62.5, 80, 83.1, 0.752, 0.065),
    (45.5, 110, 62.3, 0.730, 0.076),
    (33.6, 110, 62.3, 0.540, 0.072),
]


def performance(name: str, rights: str) -> Performance:
    """ "+-+": right, wrong, right."""
    return Performance(
        name, "", tuple(AnswerOutcome(str(i), "", mark == "+", mark, 1) for i, mark in enumerate(rights))
    )


class TestCell:
    @pytest.mark.parametrize(("accuracy", "n", "parent", "y", "sigma"), CARD)
    def test_it_is_the_third_cards_figure(self, accuracy: float, n: int, parent: float, y: float, sigma: float) -> None:
        kept = efficiency(Share(round(accuracy * n / 100), n), parent / 100)
        assert kept is not None
        assert kept.value == pytest.approx(y, abs=0.0015)
        assert kept.sigma == pytest.approx(sigma, abs=0.0006)

    def test_the_paired_sigma_is_what_resampling_finds(self) -> None:
        counts = Paired(both=50, gained=8, lost=22, neither=20)
        pairs = [(1, 1)] * 50 + [(1, 0)] * 8 + [(0, 1)] * 22 + [(0, 0)] * 20
        draws = random.Random(1)
        ratios = []
        for _ in range(4000):
            sample = draws.choices(pairs, k=100)
            ratios.append(sum(own for own, _ in sample) / sum(parent for _, parent in sample))
        mean = sum(ratios) / len(ratios)
        spread = math.sqrt(sum((ratio - mean) ** 2 for ratio in ratios) / len(ratios))
        assert Cell("v", "t", counts).paired_sigma == pytest.approx(spread, rel=0.06)

    def test_the_same_answers_have_no_paired_error(self) -> None:
        cell = Cell("v", "t", Paired(60, 0, 0, 40))
        assert cell.efficiency == 1.0
        assert cell.paired_sigma == pytest.approx(0.0)
        assert cell.sigma is not None
        assert cell.sigma > 0.05

    def test_a_parent_that_knows_nothing(self) -> None:
        cell = Cell("v", "t", Paired(0, 3, 0, 40))
        assert (cell.efficiency, cell.sigma, cell.paired_sigma) == (None, None, None)


class TestMatrix:
    @pytest.fixture
    def matrix(self) -> TransferMatrix:
        parents = {"math": performance(PARENT, "++++-"), "law": performance(PARENT, "++--")}
        visitors = {
            "physics": {"math": performance("p", "+++-+"), "law": performance("p", "+---")},
            "poetry": {"math": performance("q", "+----"), "law": performance("q", "+++-")},
            "law": {"math": performance("l", "-----"), "law": performance("l", "++--")},
        }
        return tabulate(visitors, parents)

    def test_its_cells(self, matrix: TransferMatrix) -> None:
        assert matrix.efficiencies() == [[1.0, 0.5], [0.25, 1.5], [0.0, 1.0]]
        assert matrix.cell("poetry", "law").paired == Paired(2, 1, 0, 1)

    def test_accuracies_for_the_comparison_of_masks(self, matrix: TransferMatrix) -> None:
        assert matrix.accuracies() == {
            "physics": {"math": 0.8, "law": 0.25},
            "poetry": {"math": 0.2, "law": 0.75},
            "law": {"math": 0.0, "law": 0.5},
            PARENT: {"math": 0.8, "law": 0.5},
        }

    def test_json_and_back(self, matrix: TransferMatrix, tmp_path: Path) -> None:
        path = tmp_path / "matrix.json"
        matrix.save(path)
        data = json.loads(path.read_text())
        assert TransferMatrix.from_json(data) == matrix
        assert data["cells"][0]["efficiency"] == 1.0
        with pytest.raises(EvaluationError, match="no transfer matrix"):
            TransferMatrix.from_json({"cells": [{}]})

    def test_the_table(self, matrix: TransferMatrix) -> None:
        console = Console(width=120)
        with console.capture() as capture:
            console.print(matrix_table(matrix))
        text = capture.get()
        assert "0.250 ± 0.224" in text
        assert "80.0%" in text

    def test_a_picture(self, matrix: TransferMatrix, tmp_path: Path) -> None:
        unknown = TransferMatrix(("v",), ("t",), (Cell("v", "t", Paired(0, 3, 0, 40)),))
        for name, drawn in (("some.png", matrix), ("unknown.png", unknown)):
            draw(drawn, tmp_path / name)
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    def test_other_questions_are_no_comparison(self) -> None:
        with pytest.raises(EvaluationError, match="same questions of math"):
            tabulate({"v": {"math": performance("v", "++")}}, {"math": performance(PARENT, "+++")})
        with pytest.raises(EvaluationError, match="same questions of law"):
            tabulate({"v": {"math": performance("v", "++")}}, {"law": performance(PARENT, "++")})
        with pytest.raises(EvaluationError, match="a visitor and a target"):
            tabulate({}, {})


def test_every_model_is_loaded_once(random_gemma4: Path, tmp_path: Path) -> None:
    models = {}
    for index, name in enumerate((PARENT, "one", "two"), 1):
        models[name] = tmp_path / f"{name}.gguf"
        content = bytearray(random_gemma4.read_bytes())
        content[-1] ^= index
        models[name].write_bytes(content)
    # The two sets number their questions alike.
    targets = {
        name: QuestionSet(tuple(Question(str(i), f"{name} {i}?", AnswerKind.EXACT, ("yes",)) for i in range(3)))
        for name in ("math", "law")
    }
    script = Script({"math": "Answer: yes", "law": "Answer: no", "law 1?": "Answer: yes"})
    parent = models.pop(PARENT)
    matrix = evaluate_matrix(models, targets, parent, folder=tmp_path / "answers", start=script.start)
    assert [spec.path.stem for spec in script.loads] == [PARENT, "one", "two"]
    assert len(script.requests) == 3 * 6
    assert matrix.accuracies()["one"] == {"math": 1.0, "law": pytest.approx(1 / 3)}
    assert matrix.efficiencies() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.model
def test_specialists_know_their_own_domain_and_their_masks_overlap_foretells_the_rest(
    specialists: dict[str, Path], tmp_path: Path
) -> None:
    names = ("math", "python", "chemistry", "general")
    targets = {
        name: read_questions([taught.write_exam(tmp_path / f"{name}.jsonl", taught.exam(name, 10))]) for name in names
    }
    visitors = {name: specialists[name] for name in names}
    settings = GenerationSettings(max_tokens=taught.ANSWER_TOKENS, loop_retries=0)
    matrix = evaluate_matrix(
        visitors, targets, taught.PARENT, settings=settings, load=taught.ANSWERING, folder=tmp_path / "answers"
    )
    accuracies = matrix.accuracies()
    for name in names:
        assert accuracies[PARENT][name] >= 0.8
        assert accuracies[name][name] >= 0.8
        assert max(accuracies[other][name] for other in names if other != name) < accuracies[name][name]
    assert accuracies["python"]["math"] > accuracies["general"]["math"], "python reckons too"
    found = transfer(compare({name: taught.mask_of(name) for name in names}), accuracies)
    assert len(found.visits) == 12
    (foretold,) = [one.r for one in found.correlations if one.predictor == OVERLAP]
    assert foretold is not None
    assert foretold > 0.5
