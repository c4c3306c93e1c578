"""The experiment's report, docs/experiments.md, out of the experiment's pieces: prose from a template,
tables and plots from the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Final

import numpy as np

from coe.engine.files import written_beside
from coe.surgery.judge.proportions import Share
from coe.surgery.study import plots
from coe.surgery.study.transfer import COSINE, OVERLAP, QUALITY, SPREAD

from ..curriculum import DOMAINS
from .claims import CARD_R, judge
from .design import BASE, BUDGET_TOKENS, HALF, METHODS, THINKING, ExperimentPlan, kept_of
from .findings import (
    NEAR,
    Estimate,
    Unit,
    Visiting,
    all_loops,
    answered_pair,
    beside_base,
    corpus_rows,
    loops_of,
    near_and_far,
    paired,
    units_of,
    visiting,
)
from .results import Results

_TEMPLATE: Final = Path(__file__).with_name("experiments.template.md")


def write(results: Sequence[Results], plan: ExperimentPlan, docs: Path) -> Path:
    """Write experiments.md, and its plots into a folder beside it. Gives the document's path."""
    pictures = docs / "experiments"
    pictures.mkdir(parents=True, exist_ok=True)
    units = units_of(results)
    seen = {share: [found for unit in units if (found := visiting(unit, share, plan))] for share in plan.corpus_shares}
    _draw(results, units, plan, seen, pictures)
    experts = results[0].parent.experts
    claims = [(claim.says, f"**{claim.verdict}**", claim.seen) for claim in judge(results, plan, seen)]
    heads = [f"{_percent(share)} ({kept_of(results[0].parent, share)} of {experts.n_expert})" for share in plan.shares]
    text = Template(_TEMPLATE.read_text()).substitute(
        parent=f"`demo/college-parent.gguf`: {len(experts.layers)} layers, {experts.n_expert} experts, "
        f"{experts.n_used} used, {len(DOMAINS)} domains",
        parents="one parent" if len(results) == 1 else f"{len(results)} parents of different training seeds",
        samples=plan.samples,
        corpus=plan.corpus,
        exam=plan.exam,
        growth=f"{plan.growth:,}",
        budget=BUDGET_TOKENS,
        base=BASE,
        near=", ".join(" and ".join(domain for domain in DOMAINS if domain in pair) for pair in NEAR),
        claims=table(("claim", "here", "seen"), claims, right=False),
        parent_table=table(("domain", "right, held-out", "spread", "as of experts"), _parent_rows(results)),
        home_table=table(("domain", *(f"{_percent(share)} kept" for share in plan.shares)), _home_rows(units, plan)),
        methods_table=table(("experts kept", *heads), _method_rows(units, plan)),
        beside_table=table(("beside gate mass", *heads), _beside_rows(results, plan)),
        corpus_table=_corpus_table(results, plan),
        growth_table=table(
            ("domain", "settled", "questions read", "tokens", "Jaccard of the last step"), _growth_rows(results)
        ),
        answers_table=table(
            ("domain", "same answer", "dropped", "Jaccard of the masks", "points beside gold"), _answer_rows(results)
        ),
        visits="\n\n".join(_visits(share, found) for share, found in seen.items() if found),
        loops_table=table(
            ("model, where", "thinking", "greedy: loops", "at limit", "right", "drawn: loops", "at limit", "right"),
            _loop_rows(results),
        ),
        guard=_guard(results),
    )
    path = docs / "experiments.md"
    with written_beside(path) as beside:
        beside.write_text(text)
    return path


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, right: bool = True) -> str:
    """A Markdown table. right: all columns but the first are flush right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + ("|---:" if right else "|---") * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


# --- tables -----------------------------------------------------------------------------------------------------------


def _parent_rows(results: Sequence[Results]) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for domain in DOMAINS:
        rights = [right for unit in units_of(results) for right in unit.parent_rights(domain)]
        profiles = [one.samples[0].profile().of_class(domain) for one in results]
        spread = float(np.mean([profile.entropy().mean() for profile in profiles]))
        experts = results[0].parent.experts.n_expert ** spread
        rows.append((domain, str(Share(sum(rights), len(rights))), f"{spread:.2f}", f"{experts:.0f}"))
    return rows


def _home_rows(units: Sequence[Unit], plan: ExperimentPlan) -> list[Sequence[object]]:
    def cell(domain: str, share: float) -> str:
        pair = paired(units, BASE, share, domain)
        error = pair.steadied_standard_error
        return f"{100 * pair.difference:+.1f} ± {100 * error:.1f}" + ("" if pair.difference >= -error else " ✗")

    return [(domain, *(cell(domain, share) for share in plan.shares)) for domain in DOMAINS]


def _retained(units: Sequence[Unit], method: str, share: float) -> Estimate:
    return Estimate.of([unit.retained(method, share) for unit in units])


def _method_rows(units: Sequence[Unit], plan: ExperimentPlan) -> list[Sequence[object]]:
    return [
        (method.name, *(_retained(units, method.name, share).percent() for share in plan.shares)) for method in METHODS
    ]


def _beside_rows(results: Sequence[Results], plan: ExperimentPlan) -> list[Sequence[object]]:
    def cell(name: str, share: float) -> str:
        one = beside_base(results, name, share)
        text = f"{100 * one.mean:+.1f} ± {100 * one.error:.1f}"
        return f"**{text}**" if one.clear() else text

    names = [method.name for method in METHODS if method.name != BASE]
    return [(name, *(cell(name, share) for share in plan.shares)) for name in names]


def _corpus_table(results: Sequence[Results], plan: ExperimentPlan) -> str:
    shares = plan.corpus_shares
    heads = [text for share in shares for text in (f"Jaccard, {_percent(share)}", f"kept, {_percent(share)}")]
    rows = []
    for size, (tokens, found) in corpus_rows(results, plan).items():
        cells = [text for share in shares for text in (f"{found[share][0].mean:.2f}", found[share][1].percent())]
        rows.append((size, f"{tokens:,.0f}", *cells))
    return table(("questions", "tokens", *heads), rows)


def _growth_rows(results: Sequence[Results]) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for one in results:
        for domain, growth in one.growth.items():
            last = growth["steps"][-1]["jaccard"]
            settled = "yes" if growth["settled"] else "no"
            overlap = "-" if last is None else f"{last:.3f}"
            rows.append((domain, settled, f"{growth['documents']:,}", f"{growth['tokens']:,}", overlap))
    return rows


def _answer_rows(results: Sequence[Results]) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for domain in DOMAINS:
        cells = [one.answered[domain] for one in results]
        same = Share(sum(cell["same"] for cell in cells), sum(cell["written"] for cell in cells))
        overlap = float(np.mean([cell["shares"][str(HALF)]["jaccard"] for cell in cells]))
        pairs = [answered_pair(one, domain) for one in results]
        difference = float(np.mean([pair.difference for pair in pairs]))
        error = float(np.mean([pair.steadied_standard_error for pair in pairs]))
        points = f"{100 * difference:+.1f} ± {100 * error:.1f}"
        rows.append((domain, f"{same.value:.1%}", sum(cell["dropped"] for cell in cells), f"{overlap:.2f}", points))
    return rows


def _visits(share: float, found: Sequence[Visiting]) -> str:
    y = np.mean([one.matrix(lambda visit: visit.transfer) for one in found], axis=0)
    overlap = np.mean([one.overlap for one in found], axis=0)

    def cell(row: int, column: int) -> str:
        return "-" if row == column else f"{y[row, column]:.2f} ({overlap[row, column]:.2f})"

    numbers = range(len(DOMAINS))
    rows = [(visitor, *(cell(row, column) for column in numbers)) for row, visitor in enumerate(DOMAINS)]
    near, far = (Estimate.of([float(np.mean(near_and_far(one)[at])) for one in found]) for at in (0, 1))
    predictors = []
    for name in (OVERLAP, COSINE, SPREAD, QUALITY):
        values = [r for one in found if (r := one.r(name)) is not None]
        card = CARD_R.get(name)
        if values:
            figures = [f"{value:.2f}" for value in (float(np.mean(values)), min(values), max(values))]
            predictors.append((name, *figures, "-" if card is None else f"{card:.3f}"))
    return "\n\n".join(
        (
            f"**{_percent(share)} of the experts**: Y, and in brackets the F-score; means of the samples.",
            table(("visitor, on", *DOMAINS), rows),
            f"Near pairs reach {near.percent()} % of the parent's accuracy, far pairs {far.percent()} %. Pearson's r "
            "of what was known beforehand with Y:",
            table(("predictor", "r, mean of the samples", "lowest", "highest", "the third card's"), predictors),
        )
    )


def _loop_rows(results: Sequence[Results]) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for share in results[0].loops:
        model = "parent" if share == 1.0 else f"specialists, {_percent(share)}"
        for where in ("home", "away"):
            for thinking in THINKING:
                counts = [loops_of(results, share, where, thinking, sampling) for sampling in ("greedy", "drawn")]
                cells = [
                    f"{Share(count[key], count['n']).value:.1%}"
                    for count in counts
                    if count is not None
                    for key in ("looped", "at_limit", "right")
                ]
                if cells:
                    rows.append((f"{model}, {where}", thinking, *cells))
    return rows


def _guard(results: Sequence[Results]) -> str:
    total = all_loops(results)
    if not total["looped"]:
        return "There was no loop."
    ended = Share(total["recovered"], total["looped"])
    guarded = total["guarded_tokens"] + total["retried_tokens"]
    return (
        f"Of {total['looped']:,} loops a fresh seed ended {ended.count:,} ({ended.value:.0%}), "
        f"{total['recovered_right']:,} of them with the right answer. First attempts and retries together took "
        f"{guarded:,} tokens; the same questions asked without the guard took {total['unguarded_tokens']:,}, and "
        f"{total['unguarded_ended']:,} of those answers came to an end by themselves."
    )


# --- plots ------------------------------------------------------------------------------------------------------------


def _draw(
    results: Sequence[Results],
    units: Sequence[Unit],
    plan: ExperimentPlan,
    seen: Mapping[float, Sequence[Visiting]],
    pictures: Path,
) -> None:
    def points(name: str) -> list[tuple[float, float, float]]:
        kept = [(share, _retained(units, name, share)) for share in plan.shares]
        return [(100 * share, 100 * one.mean, 100 * one.error) for share, one in kept]

    plots.error_curves(
        pictures / "recipes.png",
        {method.name: points(method.name) for method in METHODS},
        "What specialists keep at home, by how their experts were chosen",
        "experts kept, %",
        "accuracy, % of the parent's",
    )
    rows = corpus_rows(results, plan).values()
    plots.error_curves(
        pictures / "corpus.png",
        {
            f"{_percent(share)} of the experts": [
                (tokens, 100 * found[share][1].mean, 100 * found[share][1].error) for tokens, found in rows
            ]
            for share in plan.corpus_shares
        },
        "What specialists keep at home, by the length of their corpus",
        "tokens of a domain's corpus",
        "accuracy, % of the parent's",
        logarithmic=True,
    )
    if found := seen.get(HALF):
        y = np.mean([one.matrix(lambda visit: visit.transfer) for one in found], axis=0)
        plots.transfer_map(pictures / "transfer.png", DOMAINS, DOMAINS, y, "Accuracy of the visitor / the parent's")
        plots.transfer_scatter(pictures / "overlap.png", found[0].found, OVERLAP)
