"""The model cards' claims, each with a verdict (effect sizes beyond two standard errors) and what was seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from coe.surgery.judge.proportions import Share
from coe.surgery.study.transfer import COSINE, HOME, OVERLAP, QUALITY, SPREAD

from ..curriculum import DOMAINS
from .design import BASE, HALF, METHODS, RANDOM, ExperimentPlan
from .findings import (
    Estimate,
    Unit,
    Visiting,
    all_loops,
    answered_pair,
    beside_base,
    corpus_rows,
    endless,
    loops_of,
    near_and_far,
    paired,
    units_of,
)
from .results import Results

# The third card's, of twenty visits; None where it gives none.
CARD_R: Final[Mapping[str, float | None]] = {OVERLAP: 0.800, COSINE: 0.791, SPREAD: None, HOME: None, QUALITY: None}
_CARD_LOOPS: Final = "60 to 70 %"
_CARD_RECOVERED: Final = (9, 15)


@dataclass(frozen=True)
class Claim:
    """What a card says, and what was seen of it here."""

    says: str
    verdict: str
    seen: str


def judge(results: Sequence[Results], plan: ExperimentPlan, seen: Mapping[float, Sequence[Visiting]]) -> list[Claim]:
    """Every claim with its verdict. seen: share of the experts -> the visits of each unit."""
    units = units_of(results)
    return [
        _half_is_enough(units),
        _random_fails(units),
        _gate_mass_is_best(results, plan),
        _passes_help(results, plan),
        _near_beats_far(seen),
        _overlap_foretells(seen),
        _corpus_suffices(results, plan),
        _own_answers_serve(results),
        _thinking_loops(results),
        _seeds_recover(results),
    ]


def _half_is_enough(units: Sequence[Unit]) -> Claim:
    pairs = {domain: paired(units, BASE, HALF, domain) for domain in DOMAINS}
    within = [d for d, pair in pairs.items() if pair.difference >= -pair.steadied_standard_error]
    outside = [d for d in DOMAINS if d not in within]
    kept = Estimate.of([unit.retained(BASE, HALF) for unit in units])
    verdict = "holds" if not outside else "holds in part" if len(within) >= len(DOMAINS) / 2 else "does not hold"
    said = f"{len(within)} of {len(DOMAINS)} domains within one standard error of the parent"
    if outside:
        said += f" (not {', '.join(outside)})"
    return Claim(
        "Half of the experts, chosen by a profile, serve their domain as the parent does.",
        verdict,
        f"{said}; {kept.percent()} % of the parent's accuracy kept",
    )


def _random_fails(units: Sequence[Unit]) -> Claim:
    chosen = Estimate.of([unit.retained(BASE, HALF) for unit in units])
    random = Estimate.of([unit.retained(RANDOM, HALF) for unit in units])
    gap = Estimate.of([unit.retained(BASE, HALF) - unit.retained(RANDOM, HALF) for unit in units])
    verdict = "holds" if gap.mean > 0 and gap.clear() else "does not hold"
    return Claim(
        "It is the profile that does it: a random half is no specialist.",
        verdict,
        f"random halves keep {random.percent()} % of the parent's accuracy, chosen ones {chosen.percent()} %",
    )


def _criteria() -> list[str]:
    return [m.name for m in METHODS if m.name.startswith("top-k") and m.name not in (BASE, RANDOM)]


def _gate_mass_is_best(results: Sequence[Results], plan: ExperimentPlan) -> Claim:
    better: list[str] = []
    worse: list[str] = []
    for share in plan.shares:
        for name in _criteria():
            beside = beside_base(results, name, share)
            if beside.clear():
                said = f"{name.removeprefix('top-k, ')} {100 * beside.mean:+.1f} points at {100 * share:g} %"
                (better if beside.mean > 0 else worse).append(said)
    verdict = "does not hold" if better else "holds" if worse else "cannot be told"
    seen = f"better by more than two errors: {'; '.join(better) or 'none'}. Worse: {'; '.join(worse) or 'none'}"
    return Claim("The mean gate mass a token is what experts should be chosen by.", verdict, seen)


def _passes_help(results: Sequence[Results], plan: ExperimentPlan) -> Claim:
    found = {
        (name, share): beside_base(results, name, share)
        for name in ("three-pass", "three-pass with reasoning")
        for share in plan.shares
    }
    clear = {key: one for key, one in found.items() if one.clear()}
    gains, losses = ([k for k, one in clear.items() if (one.mean > 0) is up] for up in (True, False))
    verdict = "holds" if gains and not losses else "does not hold" if losses else "not seen"
    told = "; ".join(
        f"{name} {100 * one.mean:+.1f} points at {100 * share:g} %" for (name, share), one in clear.items()
    )
    return Claim(
        "The whitelist and the reasoning pass improve on the best experts alone.",
        verdict,
        told or "no difference of more than two errors at any size",
    )


def _near_beats_far(seen: Mapping[float, Sequence[Visiting]]) -> Claim:
    says = "Specialists of near domains stand in for each other, those of far ones do not."
    if not seen.get(HALF):
        return Claim(says, "cannot be told", "no visits")
    near = Estimate.of([float(np.mean(near_and_far(one)[0])) for one in seen[HALF]])
    far = Estimate.of([float(np.mean(near_and_far(one)[1])) for one in seen[HALF]])
    gap = Estimate.of([float(np.mean(near_and_far(one)[0]) - np.mean(near_and_far(one)[1])) for one in seen[HALF]])
    order = gap.mean > 0 and gap.clear()
    verdict = "holds" if order and near.mean > 0.7 else "holds in part" if order else "does not hold"
    return Claim(says, verdict, f"near pairs reach {near.percent()} % of the parent there, far ones {far.percent()} %")


def _overlap_foretells(seen: Mapping[float, Sequence[Visiting]]) -> Claim:
    says = f"The overlap of two masks foretells how well one visits the other (r = {CARD_R[OVERLAP]:.2f})."
    found = {name: [r for one in seen.get(HALF, ()) if (r := one.r(name)) is not None] for name in (OVERLAP, COSINE)}
    if not all(found.values()):
        return Claim(says, "cannot be told", "r is not defined")
    middle = {name: float(np.mean(values)) for name, values in found.items()}
    strongest = max(middle.values())
    verdict = "holds" if strongest >= 0.6 else "holds in part" if strongest >= 0.3 else "does not hold"
    told = "; ".join(f"{name}: r = {middle[name]:.2f} ({min(v):.2f} to {max(v):.2f})" for name, v in found.items())
    return Claim(says, verdict, told)


def _corpus_suffices(results: Sequence[Results], plan: ExperimentPlan) -> Claim:
    rows = corpus_rows(results, plan)
    whole = rows[plan.corpus][1][HALF][1]
    slack = 0.0 if math.isnan(whole.error) else whole.error
    enough = next(size for size in plan.corpora if rows[size][1][HALF][1].mean >= whole.mean - slack)
    overlap = rows[enough][1][HALF][0].mean
    verdict = "holds, with less" if enough < plan.corpus else "cannot be told"
    return Claim(
        "A corpus of some 45,000 tokens is enough.",
        verdict,
        f"{enough} questions ({rows[enough][0]:,.0f} tokens) serve as well as {plan.corpus} "
        f"({rows[plan.corpus][0]:,.0f}) at half the experts, though the masks agree to {overlap:.2f} (Jaccard) only",
    )


def _own_answers_serve(results: Sequence[Results]) -> Claim:
    pairs = [answered_pair(one, domain) for one in results for domain in DOMAINS]
    difference = Estimate.of([pair.difference for pair in pairs])
    verdict = "does not hold" if difference.mean < 0 and difference.clear() else "holds"
    overlap = np.mean([one.answered[d]["shares"][str(HALF)]["jaccard"] for one in results for d in DOMAINS])
    return Claim(
        "Questions alone will do: the parent's own answers serve as a corpus.",
        verdict,
        f"{100 * difference.mean:+.1f} points beside gold answers, masks agree to {overlap:.2f} (Jaccard)",
    )


def _thinking_loops(results: Sequence[Results]) -> Claim:
    says = f"A cut model that thinks loops ({_CARD_LOOPS} of hard questions); with thinking closed it does not."
    rates = {}
    for where in ("home", "away"):
        for thinking in ("off", "on"):
            counts = loops_of(results, HALF, where, thinking, "drawn")
            rates[where, thinking] = endless(counts) if counts else Share(0, 0)
    home_off, home_on = rates["home", "off"], rates["home", "on"]
    apart = home_on.wilson()[0] > home_off.wilson()[1]
    verdict = "holds" if apart and home_on.value >= 0.3 else "holds in part" if apart else "not seen"
    return Claim(
        says,
        verdict,
        f"endless at home: off {home_off.value:.1%}, on {home_on.value:.1%}; on others' questions (hard for it): "
        f"off {rates['away', 'off'].value:.1%}, on {rates['away', 'on'].value:.1%}",
    )


def _seeds_recover(results: Sequence[Results]) -> Claim:
    counts = all_loops(results)
    recovered = Share(counts["recovered"], counts["looped"])
    right, of = _CARD_RECOVERED
    low, high = recovered.wilson()
    verdict = (
        "cannot be told"
        if not recovered.n
        else "holds"
        if low <= right / of <= high or low > right / of
        else "does not hold"
    )
    return Claim(
        f"A fresh seed ends most loops ({right} of {of}).",
        verdict,
        f"{recovered.count} of {recovered.n} ended, {counts['recovered_right']} of them right",
    )
