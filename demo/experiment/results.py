"""All measurements of one parent, made or read from the folder where they are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from coe.surgery.parent import Parent

from ..curriculum import DOMAINS
from .design import ExperimentPlan
from .pieces import Json, Pieces, answered, at_home, by_corpus, by_method, grown, loops, visits
from .sample import Sample, questions_of


@dataclass(frozen=True)
class Results:
    """All pieces of one parent. Every list has an entry a sample; see the functions above for what is in one."""

    parent: Parent
    samples: Sequence[Sample]
    home: Sequence[Json]
    methods: Sequence[Mapping[str, Json]]
    corpora: Sequence[Mapping[str, Json]]
    answered: Mapping[str, Json]
    growth: Mapping[str, Json]
    visits: Mapping[float, Sequence[Json]]
    loops: Mapping[float, Mapping[str, Json]]  # 1.0: of the parent


def run(path: Path, plan: ExperimentPlan, folder: Path, tell: Callable[[str], None] = lambda line: None) -> Results:
    """Do what is not done yet for one parent. Raises SurgeryError, EngineError."""
    parent = Parent.open(path)
    own = folder / f"{parent.identity().sha256[:12]}-{_digest(plan)}"
    pieces = Pieces(own, tell)
    samples = [Sample(number, plan, parent, own) for number in range(plan.samples)]
    get, first = pieces.get, samples[0]
    home = [get(f"home-{one.number}", at_home, parent, one) for one in samples]
    methods = [
        {domain: get(f"methods-{one.number}-{domain}", by_method, parent, one, domain, plan) for domain in DOMAINS}
        for one in samples
    ]
    corpora = [
        {domain: get(f"corpora-{one.number}-{domain}", by_corpus, parent, one, domain, plan) for domain in DOMAINS}
        for one in samples
    ]
    growth = {domain: get(f"growth-{domain}", grown, parent, first, domain, plan, own) for domain in DOMAINS}
    theirs = {domain: get(f"answered-{domain}", answered, parent, first, domain, plan, own) for domain in DOMAINS}
    away = {
        share: [get(f"visits-{one.number}-{share}", visits, parent, one, share, plan) for one in samples]
        for share in plan.corpus_shares
    }
    rates = {1.0: {"parent": get("loops-parent", loops, parent, first, "parent", 1.0, plan)}} | {
        share: {domain: get(f"loops-{share}-{domain}", loops, parent, first, domain, share, plan) for domain in DOMAINS}
        for share in plan.corpus_shares
    }
    return Results(parent, samples, home, methods, corpora, theirs, growth, away, rates)


def _digest(plan: ExperimentPlan) -> str:
    """Of what is done with which questions."""
    held_out = [q.text for domain in DOMAINS for q in questions_of(domain, held_out=True)]
    return hashlib.sha256(json.dumps([asdict(plan), held_out]).encode()).hexdigest()[:8]
