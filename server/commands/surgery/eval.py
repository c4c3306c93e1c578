"""`coe eval`: exact-match evaluation of a specialist beside its parent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .._errors import clear_errors
from .._extras import PLOTS, require
from ._shared import (
    CpuExperts,
    GpuLayers,
    Threads,
    load_spec,
    named_path,
    out_console,
    prefixed_path,
    progress_bars,
    tried,
)


def evaluate(
    models: Annotated[list[str], typer.Argument(help="GGUFs, FILE or NAME=FILE; several make a matrix.")],
    questions: Annotated[
        list[str], typer.Option(help="Questions as JSON lines, FILE or TARGET=FILE; may be repeated.")
    ],
    beside: Annotated[Path | None, typer.Option(help="The parent's GGUF, asked the same.")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report as JSON.")] = None,
    system: Annotated[str, typer.Option(help="System prompt of questions that have none.")] = "",
    max_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 4096,
    context: Annotated[int, typer.Option(help="Tokens of a question and its answer.")] = 8192,
    parallel: Annotated[int, typer.Option(help="Questions asked at once.")] = 8,
    cache: Annotated[int, typer.Option(help="Tokens that these questions share; 0 for four full contexts.")] = 0,
    seed: Annotated[int, typer.Option(help="For answers that are tried again.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw the matrix as a PNG.")] = None,
    gpu_layers: GpuLayers = -1,
    cpu_expert_layers: CpuExperts = 0,
    threads: Threads = 0,
) -> None:
    """Ask a specialist questions with known answers, and its parent the same."""
    if picture is not None:
        require(PLOTS, "--picture")
    with clear_errors("What was answered stays: the same command goes on from there."):
        from coe.surgery.errors import EvaluationError
        from coe.surgery.judge.evaluate import evaluate as run
        from coe.surgery.judge.evaluate import report_table
        from coe.surgery.judge.generation import GenerationSettings
        from coe.surgery.judge.questions import read_questions
        from coe.surgery.study.matrix import draw, evaluate_matrix, matrix_table

        named = dict(named_path(text) for text in models)
        targets: dict[str, list[Path]] = {}
        for text in questions:
            name, path = prefixed_path(text)
            targets.setdefault(name, []).append(path)
        load = replace(
            load_spec(next(iter(named.values())), gpu_layers, cpu_expert_layers, threads),
            context_tokens=context,
            cache_tokens=cache or 4 * context,
            parallel=parallel,
        )
        alone = len(named) == 1 and set(targets) == {""}
        if beside is None and not alone:
            raise EvaluationError("A matrix compares with the parent.", "Add --beside PARENT.")
        sets = {name or "questions": read_questions(paths) for name, paths in targets.items()}
        load = tried(load, [*named.values(), *([beside] if beside is not None else [])])
        settings = GenerationSettings(max_tokens=max_tokens, seed=seed)
        if alone or beside is None:
            with progress_bars() as bars:
                report = run(
                    next(iter(named.values())),
                    sets["questions"],
                    beside=beside,
                    settings=settings,
                    load=load,
                    system=system,
                    progress=bars.generating,
                )
            out_console.print(report_table(report))
            if out is not None:
                report.save(out)
            return
        with progress_bars() as bars:
            matrix = evaluate_matrix(
                named, sets, beside, settings=settings, load=load, system=system, progress=bars.generating
            )
        out_console.print(matrix_table(matrix))
        if out is not None:
            matrix.save(out)
        if picture is not None:
            draw(matrix, picture)
