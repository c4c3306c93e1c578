"""An expert pruning mask: which experts each layer keeps, in which order it would keep more or fewer, bound to its
parent by hash, with its provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coe.engine.files import unread, written_beside
from coe.engine.text import quoted

from .errors import MaskError, ParentMismatchError
from .files import read_json
from .parent import Identity

SCHEMA_VERSION: Final = 1
MOST_BYTES: Final = 8 * 2**20  # of a mask's file; 100 layers of 512 experts take less than 1
_MAKE: Final = "Make a mask with coe plan, or of another tool's: coe mask FILE --parent PARENT.gguf -o mask.json"


@dataclass(frozen=True)
class ExpertSwap:
    """One expert that a pass of a recipe put in another's place."""

    layer: int
    out: int
    into: int
    why: str


@dataclass(frozen=True)
class Pin:
    """An expert that had to be kept, and why."""

    layer: int
    expert: int
    why: str


@dataclass(frozen=True)
class Provenance:
    """How a mask was made. recipe: the recipe's name under "name", its settings beside it."""

    recipe: Mapping[str, Any] = field(default_factory=dict)
    corpus_sha256: str = ""
    tokens: Mapping[str, int] = field(default_factory=dict)  # a class
    swaps: tuple[ExpertSwap, ...] = ()
    pins: tuple[Pin, ...] = ()
    made_with: str = ""


@dataclass(frozen=True)
class Mask:
    """Which experts stay.

    keep:    layer -> kept experts, ascending; every layer with a router has as many as any other.
    ranking: layer -> all experts, the one that goes last first: those that are kept, then the others. Of each group of
             experts, where there are several, the first so many are kept. Empty where the order is not known.
    """

    parent: Identity
    keep: Mapping[int, tuple[int, ...]]
    provenance: Provenance = Provenance()
    ranking: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises MaskError for a mask that contradicts itself or its parent."""
        _check(self)

    @property
    def n_keep(self) -> int:
        """Experts a layer keeps."""
        return len(self.keep[self.parent.layers[0]])

    @classmethod
    def everything(cls, parent: Identity) -> Mask:
        """The mask that keeps all experts."""
        return cls(parent, {layer: tuple(range(parent.n_expert)) for layer in parent.layers})

    def matrix(self) -> NDArray[np.bool_]:
        """[L, E]: True where an expert is kept."""
        kept = np.zeros((len(self.parent.layers), self.parent.n_expert), np.bool_)
        for row, layer in enumerate(self.parent.layers):
            kept[row, list(self.keep[layer])] = True
        return kept

    @classmethod
    def from_matrix(
        cls,
        parent: Identity,
        kept: NDArray[np.bool_],
        provenance: Provenance | None = None,
        order: NDArray[np.int_] | None = None,
    ) -> Mask:
        """The mask of a [L, E] matrix. order: [L, E], a layer's experts as `ranking` has them."""
        keep = {
            layer: tuple(int(expert) for expert in np.flatnonzero(row))
            for layer, row in zip(parent.layers, kept, strict=True)
        }
        ranking = {}
        if order is not None:
            ranking = {layer: tuple(map(int, row)) for layer, row in zip(parent.layers, order, strict=True)}
        return cls(parent, keep, provenance or Provenance(), ranking)

    def resized(self, wanted: float | None) -> Mask:
        """The mask with as many experts as are asked for: by their number (int), as a share of all (float, to 1),
        rounded down to what the groups allow, or its own number (None).

        Raises MaskError for a share that is none, and where `keeping` does.
        """
        if wanted is None or isinstance(wanted, int):
            return self if wanted is None else self.keeping(wanted)
        if not 0 < wanted <= 1:
            raise MaskError(f"{wanted:g} is no share of the experts.", "Write 0.75 for three quarters of them, or 64.")
        n_groups = self.parent.n_groups
        return self.keeping(int(wanted * self.parent.n_expert) // n_groups * n_groups)

    def can_keep(self, n_keep: int) -> bool:
        """Whether `keeping` gives a mask for so many experts."""
        try:
            self.keeping(n_keep)
        except MaskError:
            return False
        return True

    def keeping(self, n_keep: int) -> Mask:
        """The mask with so many experts a layer: the first of the ranking, of each group as many.

        Without a ranking just as many as there are, or all. Raises MaskError where that cannot be.
        """
        parent = self.parent
        if n_keep == self.n_keep:
            return self
        require_count(parent, n_keep)
        if not self.ranking and n_keep != parent.n_expert:
            raise MaskError(
                f"The mask keeps {self.n_keep} experts a layer and ranks none, so that it does not say which would be "
                f"the {n_keep}.",
                f"Keep {self.n_keep} or all {parent.n_expert}, or plan a mask (coe plan), which ranks them.",
            )
        keep = {
            layer: _first(self.ranking.get(layer, range(parent.n_expert)), n_keep, parent) for layer in parent.layers
        }
        recipe = {**self.provenance.recipe, "kept": n_keep}
        return replace(self, keep=keep, provenance=replace(self.provenance, recipe=recipe))

    def require_parent(self, parent: Identity) -> None:
        """Raises ParentMismatchError when the mask was made for another checkpoint, or describes this one otherwise.

        Another file of the same checkpoint will do, known by its routers: experts are the same ones in every
        quantisation. A mask from before there was the routers' hash is bound to its file alone.
        """
        own = self.parent
        if not parent.is_checkpoint_of(own):
            files = (
                f"The mask was made for {own.name} (SHA-256 {own.sha256[:12]}…), "
                f"not for this {parent.name} ({parent.sha256[:12]}…)"
            )
            if own.router_sha256 and parent.router_sha256:
                raise ParentMismatchError(
                    f"{files}, which is no other quantisation of it: its router is another ({own.router_sha256[:12]}… "
                    f"and {parent.router_sha256[:12]}…), so that it is another model or checkpoint.",
                    "Give a file of the checkpoint it was made for, or profile and plan again with this one.",
                )
            raise ParentMismatchError(
                f"{files}.",
                "Give the parent it was made for, or profile and plan again with this one. If this is the same "
                "checkpoint in another quantisation, write the mask again with its own parent, which binds it to the "
                "router that both have: coe mask MASK --parent ITS-OWN-PARENT.gguf -o mask.json",
            )
        routers = {own.router_sha256, parent.router_sha256} - {""}
        if _facts(parent) != _facts(own) or len(routers) > 1:
            raise ParentMismatchError(
                f"The mask has the hash of {parent.name}, and describes its layers, experts or router otherwise.",
                "Do not edit a mask's parent: plan again.",
            )

    def with_router_of(self, parent: Identity) -> Mask:
        """The mask bound to its parent's routers as well, where it is bound to the file alone and this is that file."""
        if self.parent.router_sha256 or self.parent.sha256 != parent.sha256:
            return self
        return replace(self, parent=replace(self.parent, router_sha256=parent.router_sha256))

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "schema": SCHEMA_VERSION,
            "parent": asdict(self.parent),
            "keep": {str(layer): list(self.keep[layer]) for layer in sorted(self.keep)},
            **(
                {"ranking": {str(layer): list(self.ranking[layer]) for layer in sorted(self.ranking)}}
                if self.ranking
                else {}
            ),
            "provenance": asdict(self.provenance),
        }

    def save(self, path: Path) -> None:
        """Write as JSON, beside and renamed; a layer a line."""
        whole = self.to_json()
        lists = {key: whole.pop(key) for key in ("keep", "ranking") if key in whole}
        text = json.dumps(whole, indent=2, ensure_ascii=False)[:-2]
        for key, layers in lists.items():
            rows = ",\n    ".join(f'"{layer}": {json.dumps(experts)}' for layer, experts in layers.items())
            text += f',\n  "{key}": {{\n    {rows}\n  }}'
        with written_beside(path) as beside:
            beside.write_text(f"{text}\n}}\n")

    @classmethod
    def load(cls, path: Path) -> Mask:
        """Read a mask file of this project; `formats.read_mask` also reads those of other tools. Raises MaskError."""
        try:
            content = read_json(path, MOST_BYTES)
        except OSError as error:
            raise MaskError(f"{unread(path, error)}.", _MAKE) from error
        except ValueError as error:
            raise MaskError(f"{path} is no mask of this project: {error}.", _MAKE) from error
        return cls.from_json(content)

    @classmethod
    def from_json(cls, content: Any) -> Mask:
        """The mask of a file's content. Raises MaskError, saying what is wrong with it."""
        if not isinstance(content, dict) or content.get("schema") != SCHEMA_VERSION:
            raise MaskError(f"This is no mask file of schema {SCHEMA_VERSION}.", _MAKE)
        try:
            parent = Identity.from_json(content["parent"])
            keep, ranking = _by_layer(content["keep"]), _by_layer(content.get("ranking", {}))
            said = content.get("provenance", {})
            provenance = Provenance(
                **said
                | {
                    "swaps": tuple(ExpertSwap(**swap) for swap in said.get("swaps", ())),
                    "pins": tuple(Pin(**pin) for pin in said.get("pins", ())),
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MaskError(f"The mask file lacks something or says too much: {error}.", "Make it again.") from error
        return cls(parent, keep, provenance, ranking)


def require_count(parent: Identity, n_keep: int) -> None:
    """Raises MaskError when a parent's layers cannot keep so many experts."""
    if n_keep < parent.n_used:
        raise MaskError(
            f"{n_keep} experts a layer are too few: every token of {parent.name} uses {parent.n_used}.",
            f"Keep at least {parent.n_used}.",
        )
    if n_keep > parent.n_expert:
        raise MaskError(
            f"{parent.name} has {parent.n_expert} experts a layer, not {n_keep}.", f"Keep {parent.n_expert} at most."
        )
    if n_keep % parent.n_groups:
        raise MaskError(
            f"{n_keep} experts cannot be shared out among the {parent.n_groups} groups of {parent.name}.",
            f"Keep a multiple of {parent.n_groups}.",
        )
    if parent.n_groups > 1 and n_keep < 2 * parent.n_groups:
        raise MaskError(
            f"{n_keep} experts are too few: each of {parent.n_groups} groups is judged by its best two.",
            f"Keep at least {2 * parent.n_groups}.",
        )


def _by_layer(content: Any) -> dict[int, tuple[Any, ...]]:
    found = {layer_of(layer): tuple(experts) for layer, experts in content.items()}
    if len(found) < len(content):
        raise ValueError("a layer stands there twice")
    return found


def _first(ranked: Sequence[int], n_keep: int, parent: Identity) -> tuple[int, ...]:
    """The first of a layer's experts, of each group as many, ascending."""
    size, of_group = parent.n_expert // parent.n_groups, n_keep // parent.n_groups
    kept: list[int] = []
    for group in range(parent.n_groups):
        kept += [expert for expert in ranked if expert // size == group][:of_group]
    return tuple(sorted(kept))


def _facts(parent: Identity) -> Identity:
    """What files of one checkpoint have in common."""
    return replace(parent, name="", sha256="", router_sha256="")


def layer_of(key: str) -> int:
    """The number of a layer that is an object's key. Raises ValueError for another word."""
    if not (key.isascii() and key.isdecimal()) or len(key) > 9:
        raise ValueError(f"{quoted(key)} is no number of a layer")
    return int(key)


def _check(mask: Mask) -> None:
    parent = mask.parent
    if not parent.layers or parent.n_groups < 1 or parent.n_expert % parent.n_groups:
        raise MaskError("The mask describes a parent that cannot be.", "Make the mask again with coe plan.")
    if set(mask.keep) != set(parent.layers):
        odd: Sequence[int] = sorted(set(mask.keep) ^ set(parent.layers))
        raise MaskError(f"The mask and the parent disagree about the layers {list(odd)}.", "Give every layer once.")
    sizes = {len(experts) for experts in mask.keep.values()}
    for layer, experts in mask.keep.items():
        whole = all(isinstance(expert, int) and not isinstance(expert, bool) for expert in experts)
        if not whole or not all(0 <= expert < parent.n_expert for expert in experts):
            raise MaskError(f"Layer {layer} names experts that are not 0 to {parent.n_expert - 1}.")
        if list(experts) != sorted(set(experts)):
            raise MaskError(f"Layer {layer} does not list its experts once each in ascending order.")
    if len(sizes) != 1:
        raise MaskError(
            f"The layers keep different numbers of experts ({min(sizes)} to {max(sizes)}).",
            "llama.cpp takes one number for all layers: keep as many everywhere.",
        )
    (n_keep,) = sizes
    if n_keep < parent.n_used:
        raise MaskError(
            f"The mask keeps {n_keep} experts a layer, and every token uses {parent.n_used}.",
            f"Keep at least {parent.n_used}.",
        )
    if parent.n_groups > 1:
        size = parent.n_expert // parent.n_groups
        for layer, experts in mask.keep.items():
            counts = [sum(expert // size == group for expert in experts) for group in range(parent.n_groups)]
            if len(set(counts)) != 1:
                raise MaskError(
                    f"Layer {layer} keeps {counts} experts of its groups of {size}.",
                    "This architecture chooses groups first: keep as many of each.",
                )
            if counts[0] < 2:
                raise MaskError(
                    f"Layer {layer} keeps {counts[0]} experts of each group, and a group is judged by its best two.",
                    f"Keep at least {2 * parent.n_groups} experts a layer.",
                )
    if mask.ranking:
        _check_ranking(mask)


def _check_ranking(mask: Mask) -> None:
    parent = mask.parent
    for layer in parent.layers:
        ranked = mask.ranking.get(layer, ())
        if not all(isinstance(expert, int) and not isinstance(expert, bool) for expert in ranked) or sorted(
            ranked
        ) != list(range(parent.n_expert)):
            raise MaskError(
                f"Layer {layer} does not rank its experts 0 to {parent.n_expert - 1} once each.", "Make it again."
            )
        if _first(ranked, mask.n_keep, parent) != tuple(mask.keep[layer]):
            raise MaskError(f"Layer {layer} keeps others than the first of its ranking.", "Make the mask again.")
    if odd := sorted(mask.ranking.keys() - set(parent.layers)):
        raise MaskError(f"The mask ranks the layers {odd}, which its parent does not have.", "Make the mask again.")
