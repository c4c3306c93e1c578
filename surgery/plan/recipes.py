"""Recipes: how the experts of a specialist are chosen, as a roster, a command line or a job file asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..errors import MaskError
from .methods import DropMap, SelectionMethod, ThreePass, TopK
from .presets import PRESETS

RECIPES: Final[Mapping[str, SelectionMethod]] = {
    "top-k": TopK(),
    "three-pass": ThreePass(),
    "drop-map": DropMap(),
    **{preset.name: preset.method for preset in PRESETS.values()},
}

# Setting as it is written -> field of the method. A drop map's floor is a preset's, and not written.
_THREE_PASS: Final = {key: key for key in ("whitelist_rank", "whitelist_activations")} | {"cap": "reasoning_cap"}
_DROP_MAP: Final = {key: key for key in ("weights", "alpha", "breadth", "protect_top")}

_BY_NORMS: Final = ("reap", "mass-norm")  # criteria that read the norms of the experts' outputs


@dataclass(frozen=True)
class Recipe:
    """A selection method with its settings, and what experts are scored by.

    name:      one of RECIPES, whose settings `method` has where it differs in none.
    criterion: one of criteria.CRITERIA; None for the method's own.
    """

    name: str = "three-pass"
    method: SelectionMethod = field(default_factory=ThreePass)
    criterion: str | None = None
    pin_super_experts: bool = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Recipe:
        """Parse a recipe as it is written: `name`, `criterion`, `pin_super_experts`, and settings of its own method.

        Raises MaskError for an unknown name, or a setting that its method does not have.
        """
        own = dict(settings)
        name = str(own.pop("name", "three-pass"))
        criterion, pin = own.pop("criterion", None), bool(own.pop("pin_super_experts", False))
        method = named(name)
        fields = _fields(method)
        if unknown := [key for key in own if key not in fields]:
            known = f"It has: {', '.join(fields)}." if fields else "It has none."
            raise MaskError(f"`{unknown[0]}` is no setting of the recipe {name}.", known)
        if own:
            method = replace(method, **{fields[key]: value for key, value in own.items()})
        return cls(name, method, criterion, pin)

    def to_settings(self) -> dict[str, Any]:
        """The recipe as it is written, JSON types: from_settings gives it back. Settings equal to the name's are left
        out, so that the fingerprint of a build does not depend on how much of them was written."""
        usual = named(self.name)
        own = {
            key: getattr(self.method, name)
            for key, name in _fields(self.method).items()
            if getattr(self.method, name) != getattr(usual, name)
        }
        criterion = {} if self.criterion is None else {"criterion": self.criterion}
        return {"name": self.name, **criterion, "pin_super_experts": self.pin_super_experts, **own}

    @property
    def needs_norms(self) -> bool:
        """Whether it reads the norms of the experts' outputs, which make profiling slower."""
        by_norms = isinstance(self.method, DropMap) and self.criterion is None and self.method.alpha > 0
        return by_norms or self.criterion in _BY_NORMS or self.pin_super_experts


def named(name: str) -> SelectionMethod:
    """A method with the settings of a recipe's name. Raises MaskError for an unknown name."""
    if name not in RECIPES:
        raise MaskError(f"There is no recipe {name!r}.", f"Known: {', '.join(RECIPES)}.")
    return RECIPES[name]


def settings_of(name: str) -> tuple[str, ...]:
    """The settings that may be written beside a recipe's name. Raises MaskError for an unknown name."""
    return tuple(_fields(named(name)))


def _fields(method: SelectionMethod) -> Mapping[str, str]:
    match method:
        case ThreePass():
            return _THREE_PASS
        case DropMap():
            return _DROP_MAP
        case TopK():
            return {}
