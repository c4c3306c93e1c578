"""`coe check`: the errors of a roster, what of it this machine can serve, which specialists share, and what fits
in the budget (a dry run)."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coe.engine.errors import EngineError
from coe.engine.pool.places import Memory
from coe.engine.units import size_text
from coe.router.encoder import EncoderError, find_encoder
from coe.router.errors import RouterError
from coe.router.examples import examples_of, taught_by
from coe.router.head_file import load_head
from coe.router.thresholds import threshold_problems

from ..api.keys import read_keys
from ..roster.load import load_roster
from ..roster.model_files import pull_remedy
from ..roster.models import Roster
from ..roster.source import RosterError
from ..runtime.availability import Hindrance, Servable, ToBuild, Unavailable, availability, locate
from ..runtime.budget import Room, encoder_of, find_room
from ..runtime.college import head_of, supervisor_of
from ..runtime.fitting import offloaded_text
from ..runtime.resolve import Resolved, resolve
from ..runtime.what_fits import (
    ResidentPlan,
    budget_doubts,
    fit_in_order,
    maximal_sets,
    most_that_fit,
    page_cache_bytes,
    residents,
    together,
)
from ._away import PARENT, Away
from ._lines import print_line
from .check_sharing import copy_bytes_per_s, pair_lines, wait_lines
from .check_sizes import sizes_to_come

_MOST_SETS_SHOWN = 8


def check_roster(path: Path, *, dry_run: bool, out: Console, look: Callable[[Roster], Away] | None = None) -> int:
    """`coe check`: print every error of a roster, or what it comes to here. Returns the exit code.

    dry_run: ask llama.cpp what each load would take. Nothing in the models folder is changed.
    look:    looks at the models that are not here, to judge them as well.
    """
    try:
        roster = load_roster(path)
        read_keys(roster)
        supervisor = supervisor_of(roster)
        head = load_head(head_of(roster))  # what the server would refuse to start with
    except RosterError as error:
        return print_errors(error, out)
    except (ValueError, RouterError) as error:
        print_line(out, str(error), "red")
        return 1
    labels = {*head.labels, *taught_by(examples_of(supervisor.candidates))}  # those that the supervisor will know
    doubts = [f"router.thresholds: {doubt}" for doubt in threshold_problems(supervisor.settings.thresholds, labels)]
    written, away = roster, Away(roster) if look is None else look(roster)
    roster = away.roster
    if not dry_run:
        to_build = asyncio.run(sizes_to_come(roster, dry_run=False))
        entries = availability(locate(roster), None, None)
        return print_report(written, entries, None, out, to_build, doubts=doubts, away=away)

    async def facts(scratch: Path) -> tuple[Resolved, Room, dict[str, ToBuild]]:
        room = await find_room(roster)
        resolved = await resolve(roster, room.residents, scratch=scratch)
        entries = resolved.availability
        # What settings or the budget keep from being served is not helped by being made; what cannot be made never is.
        hopeless = (Hindrance.REFUSED, Hindrance.UNPREPARED, Hindrance.OVER_BUDGET)
        settled = {name for name, it in entries.items() if isinstance(it, Servable) or it.hindrance in hopeless}
        counts = {name: fit.chosen for fit in resolved.fits for name in fit.names}
        to_build = await sizes_to_come(roster.with_experts(counts), dry_run=True, budget=room.residents)
        return resolved, room, {name: plan for name, plan in to_build.items() if name not in settled}

    with tempfile.TemporaryDirectory(prefix="coe-check-") as scratch:
        try:
            resolved, room, to_build = asyncio.run(facts(Path(scratch)))
        except EngineError as error:  # what the server would refuse to start with: cards that are not there
            print_line(out, str(error), "red")
            return 1
    pool = roster.pool
    # Of stand-ins it is not known which experts differ.
    groups = [group for group in resolved.groups if not away.masks & {member.name for member in group.members}]
    guessed = [[member.name for member in group.members] for group in resolved.groups if group not in groups]
    waits = wait_lines(groups, copy_bytes_per_s(), swap_share=pool.swap_share, max_wait_s=pool.max_slice_wait_s)
    unshared = [f"{name} shares with no other: {why.rstrip('.')}." for name, why in resolved.unshared.items()]
    if resolved.unhashed:
        unknown = ", ".join(path.name for path in resolved.unhashed)
        unshared.append(
            f"Not known yet what these have in common with others: {unknown}. Until the server has hashed them, which "
            "it does while no request is served, a swap to or from them moves everything."
        )
    held = [
        f"Beside the budget, {title} takes {size_text(memory.host_bytes)} of host memory."
        for title, memory in room.held.items()
    ]
    fits = [
        f"experts (fit): {', '.join(fit.names)}: each layer keeps {fit.text}"
        for fit in resolved.fits
        if not fit.lacking
    ]
    doubts += [f"{', '.join(fit.names)}: {fit.doubt}" for fit in resolved.fits if fit.doubt]
    later = [
        f"Sharing a resident: {', '.join(names)}. What a change moves is known once their masks are there."
        for names in guessed
        if len(names) > 1
    ]
    sharing = [*held, *fits, *later, *pair_lines(groups), *(waits if groups else []), *unshared]
    return print_report(written, resolved.availability, room.residents, out, to_build, sharing, doubts, away)


def print_errors(error: RosterError, out: Console) -> int:
    """Print what is wrong with a roster. Returns the exit code."""
    for problem in error.problems:
        print_line(out, str(problem))
    count = len(error.problems)
    out.print(f"[red]{count} {'error' if count == 1 else 'errors'}.[/red]", highlight=False)
    return 1


def print_report(
    roster: Roster,
    entries: Mapping[str, Servable | Unavailable],
    budget: Memory | None,
    out: Console,
    to_build: Mapping[str, ToBuild] | None = None,
    sharing: Sequence[str] = (),
    doubts: Sequence[str] = (),
    away: Away | None = None,
) -> int:
    """Print what a roster comes to on this machine.

    to_build: of the specialists that have yet to be built, by name. sharing: lines on specialists that share.
    doubts: further warnings. away: what is on the hub and not here, and was looked at.
    Returns the exit code: 0, or 1 where nothing in it can be served.
    """
    to_build, away = to_build or {}, away or Away(roster)
    out.print(_table(entries, to_build, away))
    fitting = [name for name, item in entries.items() if isinstance(item, Servable)]
    servable = [name for name in fitting if name not in away.names]
    for names, why in _reasons(entries, to_build, roster.option).items():
        print_line(out, f"{', '.join(names)}: {why}")
    for line in _away_lines(away):
        print_line(out, line)
    for line in (*_offload_lines(entries), *_tool_lines(entries), *_embedding_lines(entries)):
        print_line(out, line)
    _print_what_fits(residents(entries, budget), budget, out)
    for line in sharing:
        print_line(out, line)
    if servable:
        here = {name: entries[name] for name in servable}
        print_line(out, f"Host memory for a warm page cache: {size_text(page_cache_bytes(here))}.")
    for name, item in entries.items():
        for found in item.doubts if isinstance(item, Servable) else ():
            print_line(out, f"warning: {name}: {found}")
    for problem in roster.warnings:
        print_line(out, f"warning: {problem}")
    if (doubt := encoder_doubt(roster)) is not None:
        print_line(out, f"warning: router.encoder: {doubt}")
    for doubt in doubts:
        print_line(out, f"warning: {doubt}")
    if (doubt := models_dir_doubt(roster, entries, away.names)) is not None:
        print_line(out, f"warning: models_dir: {doubt}")
    for doubt in budget_doubts(roster, entries, budget):
        print_line(out, f"warning: {doubt}")
    if more := [name for name in fitting if name in away.names]:
        remedy = pull_remedy(more, roster.option)
        print_line(out, f"{len(more)} of {len(entries)} can be served when they are fetched. {remedy}")
    if not servable and any(not plan.missing for plan in to_build.values()):
        ways = sorted({plan.how for plan in to_build.values() if not plan.missing})
        print_line(out, f"Nothing in this roster can be served before it is {' or '.join(ways)}.")
        return 0
    if not servable:
        print_line(
            out,
            "Nothing in this roster can be served here: fetch a model with "
            f"`coe pull{roster.option}`, or see the remedies above.",
        )
        return 1
    print_line(out, f"{len(servable)} of {len(entries)} can be served.")
    return 0


def encoder_doubt(roster: Roster) -> str | None:
    """Why the sentence encoder that a roster asks for will not serve, as far as can be told without loading it."""
    try:
        found = find_encoder(encoder_of(roster))
    except EncoderError as error:
        return f"{error}: n-grams alone will sort questions. Name another folder, or write auto."
    if roster.router.encoder == "none":
        return "It is switched off: n-grams alone will sort questions. Write auto to use the installed one."
    if found is None:
        return "None is installed: n-grams alone will sort questions. `coe doctor` says what to install."
    return None


def models_dir_doubt(
    roster: Roster, entries: Mapping[str, Servable | Unavailable], away: Collection[str] = ()
) -> str | None:
    """Why nothing can be written where models are fetched, cut and built; None where it can, or need not.

    away: specialists whose models are looked at on the hub."""
    absent = {name for name, item in entries.items() if item.location.path is None}.union(away)
    writers = [
        s.name
        for s in roster.specialists
        # The server writes the skeletons of masks; a model that is there already is not fetched or built again.
        if s.mask is not None or ((s.repo is not None or s.build is not None) and s.name in absent)
    ]
    if not writers:
        return None
    folder = roster.models_path.absolute()
    # The folder is made when it is first written to; until then it is the one above that counts.
    # Not Path.exists, which raises where one above may not be searched.
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    why = "cannot be written to" if there.is_dir() else "is no folder"
    return f"{there} {why}, and {', '.join(writers)} would be fetched, cut or built there. Name another folder."


def _reasons(
    entries: Mapping[str, Servable | Unavailable], to_build: Mapping[str, ToBuild], option: str
) -> dict[tuple[str, ...], str]:
    """Why specialists cannot be served and what to do, each sentence once with all names that it is said of."""
    said: dict[str, list[str]] = {}
    pulls: dict[str, list[str]] = {}
    for name, item in entries.items():
        if not isinstance(item, Unavailable):
            continue
        missing = to_build[name].missing if name in to_build else ""
        reason = "" if missing else item.reason  # that it is not made yet, or the same once more
        if item.location.pull and reason:
            pulls.setdefault(reason, []).append(name)
        else:
            said.setdefault(f"{reason} {missing or item.remedy}".strip(), []).append(name)
    for reason, those in pulls.items():
        said[f"{reason} {pull_remedy((entries[name].location.pull for name in those), option)}"] = those
    return {tuple(those): sentence for sentence, those in said.items()}


def _away_lines(away: Away) -> list[str]:
    """What is to be fetched of a parent, and what could not be looked at, each reason once."""
    lines = []
    if PARENT in away.to_fetch:
        made = [s.name for s in away.roster.specialists if s.name in away.parents and s.name not in away.to_fetch]
        of = f": {', '.join(made)} {'are' if len(made) > 1 else 'is'} made of it" if made else ""
        lines.append(f"The parent is not here, {size_text(away.to_fetch[PARENT])} to fetch{of}.")
    said: dict[str, list[str]] = {}
    for name, why in away.troubles.items():
        said.setdefault(why, []).append(name)
    return lines + [f"{', '.join(names)}: not looked at on the hub. {why}" for why, names in said.items()]


def _tool_lines(entries: Mapping[str, Servable | Unavailable]) -> list[str]:
    """What becomes of tools, each form once with all names that it is said of."""
    forms: dict[str, list[str]] = {}
    for name, item in entries.items():
        if isinstance(item, Servable) and item.footprint is not None and not item.entry.embeddings:
            forms.setdefault(item.tools, []).append(name)
    return [f"tools: {form}: {', '.join(names)}" for form, names in forms.items()]


def _offload_lines(entries: Mapping[str, Servable | Unavailable]) -> list[str]:
    """What `cpu_expert_layers: auto` comes to, each choice once with all names that it is said of."""
    chosen: dict[str, list[str]] = {}
    for name, item in entries.items():
        if isinstance(item, Servable) and item.footprint is not None and item.entry.cpu_expert_layers == "auto":
            layers, host = item.spec.cpu_expert_layers, size_text(item.footprint.host_bytes)
            found = f"those of {offloaded_text(layers)} stay in host memory, which takes {host} of it"
            chosen.setdefault(found if layers else "none has to stay in host memory", []).append(name)
    return [f"experts (cpu_expert_layers: auto): {', '.join(names)}: {found}" for found, names in chosen.items()]


def _embedding_lines(entries: Mapping[str, Servable | Unavailable]) -> list[str]:
    """What models made for embeddings give and take."""
    given = {
        name: item.embedding
        for name, item in entries.items()
        if isinstance(item, Servable) and item.embedding is not None
    }
    return [
        f"embeddings: {name}: {form.dimensions} dimensions, texts of up to {form.input_tokens} tokens"
        for name, form in given.items()
    ]


def _table(entries: Mapping[str, Servable | Unavailable], to_build: Mapping[str, ToBuild], away: Away) -> Table:
    table = Table("specialist", "file", box=None, pad_edge=False)
    for column in ("size", "weights", "KV", "compute", "total"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("served")
    for name, item in entries.items():
        if (plan := to_build.get(name)) is not None and plan.missing:
            table.add_row(escape(name), "absent", *["-"] * 5, f"no: cannot be {plan.how}")
            continue
        if plan is not None:
            size = f"~{size_text(plan.file_bytes)}" if plan.file_bytes else "-"
            total = f"~{size_text(plan.total_bytes)}" if plan.total_bytes is not None else "-"
            table.add_row(escape(name), f"to be {plan.how}", size, "-", "-", "-", total, f"when it is {plan.how}")
            continue
        location, footprint = item.location, item.footprint
        there = location.path is not None
        sizes = [size_text(location.size_bytes) if there else "-"]
        if footprint is None:
            sizes += ["-"] * 4
        else:
            parts = (footprint.weights_bytes, footprint.kv_bytes, footprint.compute_bytes, footprint.total_bytes)
            sizes += [size_text(size) for size in parts]
        file = location.path.name if location.path is not None else "absent"
        verdict = _verdict(item)
        if name in away.names and isinstance(item, Servable):
            verdict = "when fetched" if verdict == "yes" else f"when fetched: {verdict.removeprefix('yes, ')}"
        table.add_row(escape(name), escape(away.text(name) or file), *sizes, verdict)
    return table


def _verdict(item: Servable | Unavailable) -> str:
    if isinstance(item, Servable):
        if item.entry.embeddings:
            return "embeddings"
        if item.chat_fault is not None:
            return "completions only"
        return "yes" if item.footprint is not None else "yes, size not predicted"
    return f"no: {item.hindrance}"


def _print_what_fits(plans: Sequence[ResidentPlan], budget: Memory | None, out: Console) -> None:
    if not plans:
        return
    if budget is None:
        print_line(out, f"The budget is not known; all residents together take {together(plans)}.")
        return
    first = fit_in_order(plans, budget)
    print_line(out, f"Budget {budget}, distinct residents: {len(plans)}.")
    titles = ", ".join(plan.title for plan in first)
    print_line(out, f"In roster order these fit together: {titles} ({together(first, budget)}).")
    if len(first) == len(plans):
        return
    print_line(out, f"At most {most_that_fit(plans, budget)} fit at once.")
    for chosen in maximal_sets(plans, budget, _MOST_SETS_SHOWN) or ():
        print_line(out, f"  {', '.join(plan.title for plan in chosen)} ({together(chosen, budget)})")
