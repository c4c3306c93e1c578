"""The command `coe fit`: its models found, here or on the hub, its rows predicted, its table printed."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from coe.engine.errors import EngineError
from coe.engine.files import require_regular
from coe.engine.pool.memory import find_budget
from coe.engine.pool.places import Memory
from coe.engine.units import size_text

from ...roster.model_files import parts_missing
from ...roster.models import PoolSection
from .._bars import Bars
from .._errors import clear_errors
from .._lines import print_line
from .._speeds import known_speeds
from ..pull.errors import KEPT, PullError
from ..pull.files import COMMAND_LINE, HUB, hub_address, listed_models
from ..pull.headers import HubHeaders
from .predicting import Candidate, Predictor
from .values import Need, Row, Table, Way, context_text, titles
from .verdict import verdict

_MOST_MODELS: Final = 48  # of a repository: each has a header of some MiB, and some seconds of dry runs


def fit(
    model: str,
    vram_bytes: int | None,
    contexts: Sequence[int],
    *,
    token: str | None,
    as_json: bool,
    out: Console,
    err: Console,
) -> int:
    """Print what of a model fits. Returns the exit code: 1 where nothing could be predicted.

    model: a GGUF, or hf:OWNER/REPO with or without a pattern. vram_bytes: None for this machine's budget.
    """
    left_out: list[str] = []
    with clear_errors(KEPT, err), Bars(err) as bars, tempfile.TemporaryDirectory(prefix="coe-fit-") as scratch:
        budget = asyncio.run(find_budget(vram_bytes, PoolSection().vram_margin)).memory
        candidates = _of_the_hub(model, token, bars, left_out) if model.startswith(HUB) else [_here(model)]
        predictor = Predictor(budget, contexts, Path(scratch), known_speeds(), bars.staged)
        rows = asyncio.run(predictor.rows(candidates))
    table = Table(budget, tuple(sorted(set(contexts))), rows, predictor.on_gpu, (*left_out, *predictor.remarks))
    if as_json:
        out.print_json(json.dumps(as_values(table)))
    else:
        show(table, out)
    return 0 if any(need.memory is not None for row in rows for need in row.needs.values()) else 1


def _here(model: str) -> Candidate:
    path = Path(model)
    require_regular(path)
    return Candidate(path.stem, path)


def _of_the_hub(address: str, token: str | None, bars: Bars, left_out: list[str]) -> list[Candidate]:
    """The models of a repository, each with its header here. Raises PullError; a model that cannot be looked at is left
    out, unless it is the only one."""
    wanted = hub_address(address)
    hub = HubHeaders(token, bars.staged)
    repository = hub.repository(wanted.repo, wanted.revision)
    models = listed_models(repository, wanted.pattern, COMMAND_LINE)
    if len(models) > _MOST_MODELS:
        raise PullError(
            f"{wanted.pattern!r} finds {len(models)} models in {wanted.repo}; {_MOST_MODELS} are the most.",
            f"Give a pattern that finds fewer: {HUB}{wanted.repo}/*Q4*.",
        )
    found = []
    models = tuple(sorted(models, key=lambda files: sum(file.size_bytes for file in files), reverse=True))
    for title, files in zip(titles([files[0].path for files in models]), models, strict=True):
        try:
            if missing := parts_missing([file.path for file in files]):
                raise PullError(f"It lacks part {', '.join(map(str, missing))}.", "")
            found.append(Candidate(title, hub.look(repository, files).path))
        except (PullError, EngineError) as error:
            if len(models) == 1:
                raise
            left_out.append(f"{title} is left out. {error}".strip())
    if not found:
        raise PullError(f"No model of {wanted.repo} could be looked at. {left_out[0]}", "")
    return found


def as_values(table: Table) -> dict[str, Any]:
    """For scripts: bytes by place, contexts in tokens."""

    def need(one: Need, row: Row, context: int) -> dict[str, Any]:
        return {
            "context_tokens": context,
            "bytes": dict(one.memory.bytes_by_place) if one.memory is not None else None,
            "residents": row.residents(context, table.budget),
            "cpu_expert_layers": one.cpu_expert_layers,
        }

    return {
        "budget": dict(table.budget.bytes_by_place),
        "on_gpu": table.on_gpu,
        "rows": [
            {
                "model": row.model.file,
                "trained_tokens": row.model.trained_tokens or None,
                "way": row.way,
                "experts": row.n_keep,
                "of_experts": row.model.n_expert,
                "file_bytes": row.n_bytes,
                "needs": [need(one, row, context) for context, one in row.needs.items()],
                "tokens_per_s": row.tokens_per_s,
            }
            for row in table.rows
        ],
        "remarks": list(table.remarks),
        "verdict": verdict(table),
    }


def show(table: Table, out: Console) -> None:
    """Print the rows, what there is to say of them, and the verdict."""
    if not table.rows:
        for line in (*table.remarks, verdict(table)):
            print_line(out, line)
        return
    where = "VRAM" if table.on_gpu else "memory"
    print_line(out, f"Budget {table.budget}; {where} with one conversation, and how many such residents fit at once:")
    out.print(_grid(table))
    if any(row.way is Way.OFFLOADED for row in table.rows):
        print_line(
            out,
            "CPU 6/8: the experts of the first 6 layers stay in host memory with the one context, of 8 with another.",
        )
    for remark in table.remarks:
        print_line(out, remark)
    if not table.on_gpu:
        print_line(
            out,
            "llama.cpp has no GPU here: these are sums for the processor. On a card, weights and KV are the same, "
            "compute buffers differ, its runtime takes some hundred MiB, and experts may stay in host memory.",
        )
    print_line(out, verdict(table))


def _grid(table: Table) -> Grid:
    grid = Grid("model", "experts", box=None, pad_edge=False)
    grid.add_column("file", justify="right", no_wrap=True)
    for context in table.contexts:
        grid.add_column(f"at {context_text(context)}", justify="right", no_wrap=True)
        grid.add_column("fit", justify="right", no_wrap=True)
    if has_speeds := any(row.tokens_per_s is not None for row in table.rows):
        grid.add_column("tokens/s", justify="right", no_wrap=True)
    before = None
    for row in table.rows:
        cells = [escape(row.model.title) if row.model != before else "", _experts(row), size_text(row.n_bytes)]
        before = row.model
        for context in table.contexts:
            cells += [_memory(row.needs[context], table.budget), str(row.residents(context, table.budget) or "no")]
        if has_speeds:
            cells.append("-" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}")
        grid.add_row(*cells)
    return grid


def _memory(need: Need, budget: Memory) -> str:
    """What counts against the budget that was asked for."""
    if need.memory is None:
        return "-"
    return size_text(need.memory.card_bytes if budget.cards else need.memory.host_bytes)


def _experts(row: Row) -> str:
    if row.way is Way.CUT:
        return f"{row.n_keep} of {row.model.n_expert}"
    if not row.model.n_expert:
        return "dense"
    if row.way is Way.WHOLE:
        return f"all {row.model.n_expert}"
    counts = dict.fromkeys(need.cpu_expert_layers for need in row.needs.values())
    return f"all, CPU {'/'.join('all' if count < 0 else str(count) for count in counts)}"
