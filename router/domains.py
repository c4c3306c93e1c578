"""The taxonomy of domains that questions are classified into, and measured transfer between them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

DOMAINS: tuple[str, ...] = (
    "math",
    "physics",
    "chemistry",
    "engineering",
    "biology",
    "economics",
    "business",
    "psychology",
    "computer_science",
    "law",
    "medicine",
    "coding",
    "python",
    "general",
)

GENERAL = "general"

PARENTS: Mapping[str, str] = MappingProxyType({"python": "coding"})

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "cs": "computer_science",
        "maths": "math",
        "mathematics": "math",
        "health": "medicine",
        "medical": "medicine",
        "pharma": "medicine",
        "code": "coding",
        "programming": "coding",
        "chat": "general",
        "other": "general",
    }
)

TRANSFERS_WELL = 0.8

# target -> ((visitor, efficiency), ...), best first. Efficiency is the accuracy of the visitor's specialist on the
# target's questions over the parent model's on the same questions.
# Source: model card of coe-gemma4-[domain]-mmlu_pro-14b-a4b-q4, "Full 20-Pair Results" (41 to 135 questions a pair,
# standard errors 0.03 to 0.09). Only measured pairs stand here: medicine was not measured.
TRANSFER: Mapping[str, tuple[tuple[str, float], ...]] = MappingProxyType(
    {
        "math": (("physics", 0.945), ("law", 0.197)),
        "physics": (("chemistry", 0.952), ("law", 0.115)),
        "engineering": (("physics", 0.880), ("law", 0.170)),
        "computer_science": (("math", 1.089), ("law", 0.618)),
        "chemistry": (("physics", 0.844), ("law", 0.151)),
        "biology": (("psychology", 0.834), ("business", 0.603)),
        "economics": (("psychology", 0.745), ("chemistry", 0.745)),
        "business": (("math", 0.884), ("law", 0.159)),
        "psychology": (("biology", 0.782), ("engineering", 0.752)),
        "law": (("economics", 0.730), ("chemistry", 0.540)),
    }
)


def canonical(domain: str) -> str:
    """The name this package uses for a domain that a person wrote: "CS", "computer science", "maths"."""
    name = domain.strip().lower().replace(" ", "_").replace("-", "_")
    return ALIASES.get(name, name)


def family(domain: str) -> str:
    """The topmost parent of a domain; of most domains the domain itself."""
    while domain in PARENTS:
        domain = PARENTS[domain]
    return domain


def stand_ins(domain: str) -> tuple[str, ...]:
    """Domains whose specialist may answer for `domain`, best first: its parent, its children, then measured relatives.

    Only relatives that keep at least TRANSFERS_WELL of the parent model's accuracy are named. That a specialist of the
    parent serves the child, and the other way round, is assumed, not measured.
    """
    parent = (PARENTS[domain],) if domain in PARENTS else ()
    children = tuple(child for child, of in PARENTS.items() if of == domain)
    near = tuple(visitor for visitor, efficiency in TRANSFER.get(domain, ()) if efficiency >= TRANSFERS_WELL)
    return parent + children + near
