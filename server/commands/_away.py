"""What of a roster is on the hub and not here, as `coe check --remote` finds it: a plain value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from coe.engine.units import size_text

from ..roster.models import Roster

PARENT: Final = "parent"


@dataclass(frozen=True)
class Away:
    """What of a roster is on the hub and not here.

    roster:   the same with headers in place of the models that are away, from which the rest follows as from files.
    to_fetch: bytes, by specialist, and `parent` for the roster's own; of what could be looked at.
    parents:  specialists whose parent is away, having a mask or a build.
    masks:    specialists whose own masks are to be read off published files. Others stand in for them, that keep as
              many experts, but not the same.
    troubles: why a model could not be looked at, by the same names.
    """

    roster: Roster
    to_fetch: Mapping[str, int] = field(default_factory=dict)
    parents: frozenset[str] = frozenset()
    masks: frozenset[str] = frozenset()
    troubles: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """Specialists that cannot be served before something is fetched, and were looked at."""
        return (self.parents | self.masks).union(name for name in self.to_fetch if self.roster.find(name) is not None)

    def text(self, name: str) -> str:
        """What a table says in place of a specialist's file; "" where that is here."""
        if name in self.masks:
            return "neither mask nor parent is here" if name in self.parents else "its mask is not here"
        if name in self.parents:
            return "its parent is not here"
        return f"not here: {size_text(self.to_fetch[name])} to fetch" if name in self.to_fetch else ""
