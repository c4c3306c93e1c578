"""The line under the table of `coe fit`: what the rows come to. A pure decision."""

from __future__ import annotations

from collections.abc import Iterable

from .values import Row, Table, Way, context_text


def verdict(table: Table) -> str:
    """What to hold, in one line: a model whole where it fits, and what fewer experts would give then.

    Whether a file is anybody's parent is not known: it is called by its title. Contexts that a model was not trained
    for are no gain.
    """
    budget, least = table.budget, min(table.contexts)
    rows = [row for row in table.rows if row.needs[least].memory is not None]
    if not rows:
        return "Nothing is known of what would fit."
    whole = _finest(row for row in rows if row.way is Way.WHOLE and row.fits(least, budget))
    cuts = [row for row in rows if row.way is Way.CUT and row.fits(least, budget)]
    if whole is not None:
        return f"{_whole(whole, table)} {_beside_whole(whole, cuts, table)}".strip()
    offloaded = _finest(row for row in rows if row.way is Way.OFFLOADED and row.fits(least, budget))
    best = max(cuts, key=lambda row: (row.n_keep, row.n_bytes), default=None)
    at = context_text(least)
    if best is None and offloaded is None:
        smallest = min(rows, key=lambda row: _bytes(row, least))
        memory = smallest.needs[least].memory
        return f"Nothing fits at {at}: {_name(smallest)} would take {memory}, and there are {budget}."
    ways = []
    if best is not None:
        others = [row for row in cuts if row.model != best.model and row.n_keep < best.n_keep]
        ways.append(f"{_name(best)} do: a college holds more of it than fits whole")
        if (finer := _finest(row for row in others if row.model.n_bytes > best.model.n_bytes)) is not None:
            ways[-1] += f", or {_name(finer)}, finer weights of fewer experts"
    if offloaded is not None:
        count = offloaded.needs[least].cpu_expert_layers
        where = "of all layers" if count < 0 else f"of {count} layers"
        ways.append(f"{offloaded.model.title} with the experts {where} in host memory does, slower")
    none = f"{rows[0].model.title} does not fit whole" if table.n_models == 1 else "None of the models fits whole"
    return f"{none} at {at}. {'; '.join(ways)}."


def _whole(row: Row, table: Table) -> str:
    fitting = [context for context in table.contexts if row.fits(context, table.budget)]
    trained = [context for context in fitting if context not in row.model.untrained(fitting)]
    contexts = " and ".join(map(context_text, trained or fitting))
    name = f"{row.model.title} fits whole" if row.model.n_expert else f"{row.model.title}, whole and dense, fits"
    return f"{name} at {contexts}."


def _beside_whole(whole: Row, cuts: list[Row], table: Table) -> str:
    """What fewer experts give where it fits whole: a longer context, residents, a finer quantisation."""
    if not whole.model.n_expert:
        return "It has no experts to cut."
    budget, least = table.budget, min(table.contexts)
    gains = []
    beyond = whole.model.untrained(table.contexts)
    longer = [context for context in table.contexts if not whole.fits(context, budget) and context not in beyond]
    for context in longer:
        row = max(
            (row for row in cuts if row.model == whole.model and row.fits(context, budget)),
            key=lambda row: row.n_keep,
            default=None,
        )
        if row is not None:
            gains.append(f"{_name(row)} leave room for {context_text(context)}")
    finer = [row for row in cuts if row.model.n_bytes > whole.model.n_bytes]
    if (row := max(finer, key=lambda row: (row.n_keep, -row.n_bytes), default=None)) is not None:
        gains.append(f"{_name(row)} fit, finer weights of fewer experts")
    one = whole.residents(least, budget)
    more = [row for row in cuts if row.residents(least, budget) > one]
    if (row := max(more, key=lambda row: (row.model == whole.model, row.n_keep), default=None)) is not None:
        gains.append(f"{_name(row)} fit {row.residents(least, budget)} times")
    if not gains:
        return "For one model at a time serve it whole: a college saves nothing but memory that is there."
    return f"For one model at a time serve it whole; a college pays where you want more: {'; '.join(gains)}."


def _name(row: Row) -> str:
    if row.way is Way.CUT:
        return f"{row.n_keep} of {row.model.n_expert} experts in {row.model.title}"
    return f"the whole of {row.model.title}"


def _finest(rows: Iterable[Row]) -> Row | None:
    return max(rows, key=lambda row: row.n_bytes, default=None)


def _bytes(row: Row, context: int) -> int:
    memory = row.needs[context].memory
    return memory.total_bytes if memory is not None else 0
