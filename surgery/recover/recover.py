"""Recovering the mask of a published specialist: its router's rows say which of its parent's experts it keeps.

Beside the rows, the proof that it is that parent: every norm is the parent's to the byte, and one expert is. What a
mask cannot hold is told: another quantisation, a scaled shared expert, another number of experts a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from coe.engine.errors import ModelFileError
from coe.engine.gguf.architectures import ROUTER
from coe.engine.gguf.reader import read_split
from coe.engine.swap.fingerprints import SKELETON

from ..architectures import Experts, block_tensor, experts_of
from ..errors import MaskError, ParentMismatchError
from ..files import sha256_of
from ..mask import Mask, Provenance
from ..parent import Parent
from ..weights import PLAIN, ROUTER_BIASES, ByteRange, Weights, read, values
from .matching import Near, Twins, match_nearest, match_rows

OnStage = Callable[[str, int, int], None]
Fetch = Callable[[Sequence[ByteRange]], None]
Array = NDArray[np.float32]

RECIPE: Final = "mask-of"

_SHARED_DOWN: Final = ("ffn_down_shexp.weight", "ffn_down.weight")
_SAMPLE_BYTES: Final = 256 * 1024  # of a shared expert's matrix: some 100 rows tell a factor to a thousandth
# The same weights in two quantisations have cosines of 0.85 (one bit) and more; other weights some 0.
_SAME_WEIGHTS: Final = 0.7
# What the cosine of a row and the nearest one of the parent means. F32 rows that were rounded to 16 bits are above the
# first; the second is a judgement: rows of a router that was trained further are expected between the two.
_ROUNDED: Final = 0.99999
_TRAINED: Final = 0.9


class Quantisation(StrEnum):
    """How a specialist's expert lies beside the parent's."""

    SAME = "same"  # the same bytes
    OTHER = "other"  # the same experts
    UNKNOWN = "unknown"  # of a type that cannot be read here


@dataclass(frozen=True)
class SharedScale:
    """A shared expert that was scaled (the cards' alpha).

    tensor: of a block. cancelled: a norm divides the factor out again.
    """

    tensor: str
    factor: float
    cancelled: bool


@dataclass(frozen=True)
class Recovered:
    """A mask, and what was seen on the way.

    lowest_cosine: of a row and the parent's it was taken for; None where all are the same to the byte.
    differences:   what is not the parent's and was accepted because rows need only be near.
    notes:         what the mask cannot hold, a sentence each.
    """

    mask: Mask
    quantisation: Quantisation
    lowest_cosine: float | None = None
    scales: tuple[SharedScale, ...] = ()
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def recover(
    parent: Parent,
    specialist: Path,
    *,
    source: Mapping[str, Any] | None = None,
    fetch: Fetch | None = None,
    nearest: float | None = None,
    progress: OnStage | None = None,
) -> Recovered:
    """The mask that makes this specialist of its parent. Nothing is written.

    specialist: its file, of a split one the first part. Only headers have to be there, where `fetch` brings the rest.
    source:     where it comes from, for the mask's provenance; its name and SHA-256 when left out.
    nearest:    take rows for the parent's that are none, one to one, where their cosine is at least this.

    Raises ParentMismatchError for a specialist of another parent or checkpoint, MaskError where the rows leave open
    which experts are kept, ModelFileError for a file that cannot be read.
    """
    if nearest is not None and not 0 < nearest <= 1:
        raise MaskError(f"A cosine of {nearest} is no bound.", "Give one between 0 and 1, for example 0.99.")
    return _Recovery(parent, specialist, fetch or (lambda ranges: None), nearest, progress).run(source)


@dataclass
class _Recovery:
    """One specialist beside its parent."""

    parent: Parent
    path: Path
    fetch: Fetch
    nearest: float | None
    progress: OnStage | None
    differences: list[str] = field(default_factory=list)
    scales: dict[tuple[str, float], SharedScale] = field(default_factory=dict)

    def run(self, source: Mapping[str, Any] | None) -> Recovered:
        headers = read_split(self.path)
        self.name = str(headers[0].metadata.get("general.name") or self.path.stem)
        for header in (headers[0], self.parent.headers[0]):
            if SKELETON in header.metadata:
                raise ParentMismatchError(f"{header.path.name} is a skeleton without weights.", "Give a whole model.")
        self.experts = experts_of(headers)
        self.mine, self.theirs = Weights.of(headers), Weights.of(self.parent.headers)
        self._require_alike(self.parent.experts, self.experts)
        vectors = list(self._vectors())
        self.fetch([*self._ranges(vectors)])

        slots, lowest = self._match()
        for name in vectors:
            self._compare_vector(name)
        for layer in self.experts.layers:
            self._compare_scales(layer, slots[layer])
        first = self.experts.layers[0]
        quantisation = self._compare_expert(first, slots[first][0])
        for layer in dict.fromkeys((first, self.experts.layers[-1])):
            self._compare_shared(layer)
        self._require_the_same()

        identity = self.parent.identity(self._hashing(self.parent.paths))
        if source is None:
            paths = tuple(header.path for header in headers)
            source = {"file": self.path.name, "sha256": sha256_of(paths, self._hashing(paths))}
        scales = tuple(self.scales.values())
        recipe: dict[str, Any] = {
            "name": RECIPE,
            "source": dict(source),
            "rows": "the same bytes" if lowest is None else "nearest",
            "quantisation": str(quantisation),
        }
        if lowest is not None or self.differences:
            recipe |= {"nearest": self.nearest, "differences": list(self.differences)}
        if lowest is not None:
            recipe["lowest_cosine"] = round(lowest, 6)
        if scales:
            recipe["shared_scale"] = {scale.tensor: scale.factor for scale in scales}
        keep = {layer: tuple(sorted(experts)) for layer, experts in slots.items()}
        provenance = Provenance(recipe=recipe, made_with=f"coe-runtime {version('coe-runtime')}")
        mask = Mask(identity, keep, provenance)
        return Recovered(mask, quantisation, lowest, scales, tuple(self.differences), tuple(self._notes()))

    # --- what the headers say -----------------------------------------------------------------------------------

    def _require_alike(self, theirs: Experts, mine: Experts) -> None:
        """Raises where the headers tell already that it is another model: before anything else is read."""
        parent = self.parent.name
        if mine.architecture.name != theirs.architecture.name:
            raise ParentMismatchError(
                f"{self.name} is of the architecture {mine.architecture.name}, {parent} of {theirs.architecture.name}.",
                "Give the parent that it was cut from.",
            )
        if mine.n_expert > theirs.n_expert:
            raise ParentMismatchError(
                f"{self.name} has {mine.n_expert} experts a layer, and {parent} has {theirs.n_expert}: it cannot be "
                "the parent.",
                "Give the whole model as the parent, not one that was cut itself.",
            )
        if mine.layers != theirs.layers or mine.n_groups != theirs.n_groups:
            raise ParentMismatchError(
                f"{self.name} and {parent} have experts in other layers, or other groups of them.",
                "Give the parent that it was cut from.",
            )
        for layer in mine.layers:
            for tensor in (ROUTER, *ROUTER_BIASES):
                name = f"blk.{layer}.{tensor}"
                there = [name in weights for weights in (self.mine, self.theirs)]
                if there[0] != there[1] or (
                    there[0] and self.mine.info(name).shape[:-1] != self.theirs.info(name).shape[:-1]
                ):
                    raise ParentMismatchError(
                        f"{name} of {self.name} has another width than the parent's, or one of them lacks it.",
                        "Give the parent that it was cut from.",
                    )

    def _vectors(self) -> Iterator[str]:
        """Norms, and whatever else has one dimension and belongs to no expert; never quantised."""
        first = self.parent.headers[0]
        n_trunk = first.count("block_count") - first.count("nextn_predict_layers")
        per_expert = self.experts.architecture.per_expert
        for name in dict.fromkeys((*self.mine.places, *self.theirs.places)):
            block = block_tensor(name)
            if block is not None and (block[0] >= n_trunk or block[1] in per_expert):
                continue
            shapes = [weights.info(name).shape for weights in (self.mine, self.theirs) if name in weights]
            if all(len(shape) > 1 for shape in shapes):
                continue
            if len(shapes) == 2 and shapes[0] == shapes[1]:
                if all(weights.info(name).type in PLAIN for weights in (self.mine, self.theirs)):
                    yield name
            elif "norm" in name:
                self.differences.append(f"{name} is not in both, or has another width")

    def _ranges(self, vectors: Sequence[str]) -> Iterator[ByteRange]:
        """What has to be fetched of a specialist before anything is compared."""
        yield from (self.mine.whole(name) for name in vectors)
        for layer in self.experts.layers:
            yield from (self.mine.whole(name) for name in self.mine.router(layer))
            yield from (self.mine.whole(name) for name in self._expert_scales(layer))
        first, last = self.experts.layers[0], self.experts.layers[-1]
        yield from (self.mine.slab(name, 0) for name in self._matrices(first))
        for layer in dict.fromkeys((first, last)):
            yield from (self.mine.slab(name, 0, count) for name, count in self._shared_rows(layer))

    def _in_both(self, layer: int) -> Iterator[str]:
        """The experts' tensors of a layer that both files have alike, but for how many experts there are."""
        for tensor in self.experts.architecture.per_expert:
            name = f"blk.{layer}.{tensor}"
            if tensor in (ROUTER, *ROUTER_BIASES) or name not in self.mine or name not in self.theirs:
                continue
            if self.mine.info(name).shape[:-1] == self.theirs.info(name).shape[:-1]:
                yield name

    def _matrices(self, layer: int) -> list[str]:
        """The experts' matrices of a layer that both have. A converter may write gate and up as one: then `down`."""
        return [name for name in self._in_both(layer) if len(self.mine.info(name).shape) == 3]

    def _expert_scales(self, layer: int) -> list[str]:
        """Numbers an expert that are the model's own, such as Gemma 4's. NVFP4 has some of its quantisation."""
        names = list(self._in_both(layer))
        types = {weights.info(name).type for name in names for weights in (self.mine, self.theirs)}
        if Type.NVFP4 in types:
            return []
        return [name for name in names if len(self.mine.info(name).shape) == 1 and not name.endswith("input_scale")]

    def _shared_rows(self, layer: int) -> list[tuple[str, int]]:
        """The shared expert's projections of a layer that both have, and how many rows of them are looked at."""
        found = []
        for tensor in _SHARED_DOWN:
            name = f"blk.{layer}.{tensor}"
            if name in self.mine and name in self.theirs:
                one, other = self.mine.info(name), self.theirs.info(name)
                if len(one.shape) == 2 and one.shape == other.shape:
                    row_bytes = max(one.n_bytes, other.n_bytes) // one.shape[-1]
                    found.append((name, max(1, min(one.shape[-1], _SAMPLE_BYTES // row_bytes))))
        return found

    # --- rows ---------------------------------------------------------------------------------------------------

    def _match(self) -> tuple[dict[int, tuple[int, ...]], float | None]:
        """Layer -> the parent's expert in each slot; the lowest cosine, where rows were only near."""
        found: dict[int, dict[int, int]] = {}
        near: dict[int, list[Near]] = {}
        layers = self.experts.layers
        for at, layer in enumerate(layers, start=1):
            rows, theirs = (self._rows(weights, layer) for weights in (self.mine, self.theirs))
            match = match_rows(rows, theirs)
            if match.repeated:
                raise MaskError(
                    f"Slots {_listed(match.repeated)} of layer {layer} of {self.name} have one row, which the parent "
                    "has less often.",
                    "A mask keeps an expert once: this is no cut of the parent alone.",
                )
            experts = found[layer] = dict(match.experts)
            for twins in match.twins:
                experts |= self._told_apart(layer, twins)
            if match.unmatched:
                width = self.mine.info(f"blk.{layer}.{ROUTER}").shape[0]
                near[layer] = match_nearest(rows[:, :width], theirs[:, :width], match.unmatched, experts.values())
                experts |= {one.slot: one.expert for one in near[layer]}
            self._tell("match", at, len(layers))
        if near:
            self._require_near(near)
        slots = {layer: tuple(experts[slot] for slot in range(len(experts))) for layer, experts in found.items()}
        return slots, min((one.cosine for some in near.values() for one in some), default=None)

    def _rows(self, weights: Weights, layer: int) -> Array:
        """[experts, width]: a layer's router rows, with what is added to their product behind them."""
        columns = [weights.values(name) for name in weights.router(layer)]
        return np.concatenate([columns[0], *(column.reshape(-1, 1) for column in columns[1:])], axis=1)

    def _require_near(self, near: Mapping[int, Sequence[Near]]) -> None:
        """Raises ParentMismatchError where rows that are not the parent's are not to be taken for near enough."""
        worst, layer = min(((one, layer) for layer, some in near.items() for one in some), key=lambda at: at[0].cosine)
        if self.nearest is not None and worst.cosine >= self.nearest:
            return
        n_rows, n_odd = self.experts.n_expert * len(self.experts.layers), sum(map(len, near.values()))
        found = (
            f"{n_odd:,} of {n_rows:,} rows of {self.name}'s router are none of {self.parent.name}'s. The furthest, "
            f"slot {worst.slot} of layer {layer}, has the cosine {worst.cosine:.6f} with the nearest, expert "
            f"{worst.expert} (the next: {worst.second:.3f})"
        )
        if self.nearest is not None:
            raise ParentMismatchError(
                f"{found}: below {self.nearest}.", "It is of another parent, or trained further than that."
            )
        bound = max(0.0, np.floor(worst.cosine * 1000 - 1) / 1000)
        if worst.cosine >= _ROUNDED:
            raise ParentMismatchError(
                f"{found}: the same router, in another number format, or with other biases.",
                f"To take them for the same: --nearest {bound:g}",
            )
        if worst.cosine >= _TRAINED:
            raise ParentMismatchError(
                f"{found}: another checkpoint of this model, such as a quantisation-aware one, or a router that was "
                "trained further.",
                f"Give the checkpoint that it was cut from, or accept this parent's experts in their place: --nearest "
                f"{bound:g}",
            )
        raise ParentMismatchError(f"{found}: another model.", "Give the parent that it was cut from.")

    def _told_apart(self, layer: int, twins: Twins) -> dict[int, int]:
        """Slot -> expert of rows that the parent has several times, by the experts' bytes. Raises MaskError."""
        names = list(self._in_both(layer))
        which = f"Experts {_listed(twins.experts)} of layer {layer} have the same row in {self.parent.name}"
        if not names or any(self.mine.info(name).type != self.theirs.info(name).type for name in names):
            raise MaskError(
                f"{which}, and {self.name} keeps {len(twins.slots)} of them in another quantisation: it cannot be told "
                "which.",
                "Give a specialist and a parent of the same quantisation.",
            )
        self.fetch([self.mine.slab(name, slot) for name in names for slot in twins.slots])
        free = list(twins.experts)
        digests = {expert: _digest(self.theirs, names, expert) for expert in free}
        found = {}
        for slot in twins.slots:
            wanted = _digest(self.mine, names, slot)
            expert = next((expert for expert in free if digests[expert] == wanted), None)
            if expert is None:
                raise MaskError(
                    f"{which}, and slot {slot} of {self.name} has the bytes of none of them.",
                    "Give a specialist and a parent of the same quantisation, by the same converter.",
                )
            free.remove(expert)
            found[slot] = expert
        return found

    # --- what has to be the parent's beside the rows --------------------------------------------------------------

    def _compare_vector(self, name: str) -> None:
        one, other = self.mine.values(name), self.theirs.values(name)
        if one.tobytes() == other.tobytes():
            return
        block = block_tensor(name)
        if block is not None and block[1] == self.experts.architecture.shared_output:
            factor = _constant_factor(one, other)
            if factor is not None:
                self._note_scale(block[1], factor)
                return
        if "rope" not in name:  # converters differ in how they write those
            self.differences.append(f"{name} is another")

    def _compare_scales(self, layer: int, experts: Sequence[int]) -> None:
        for name in self._expert_scales(layer):
            one, other = self.mine.values(name)[0], self.theirs.values(name)[0]
            if one.tobytes() != other[list(experts)].tobytes():
                self.differences.append(f"{name} is another")

    def _compare_expert(self, layer: int, expert: int) -> Quantisation:
        """One expert, in slot 0 here: whether its bytes are the parent's, or its numbers."""
        names = self._matrices(layer)
        if not names:
            return Quantisation.UNKNOWN
        matrices = [name for layer in self.experts.layers for name in self._matrices(layer)]
        same = all(self.mine.info(name).type == self.theirs.info(name).type for name in matrices)
        found = Quantisation.SAME if same else Quantisation.OTHER
        for name in names:
            one, other = read(self.mine.slab(name, 0)), read(self.theirs.slab(name, expert))
            if self.mine.info(name).type == self.theirs.info(name).type and one == other:
                continue
            found = Quantisation.OTHER if found is Quantisation.SAME else found
            try:
                cosine, _ = _likeness(
                    values(one, self.mine.info(name).type, name), values(other, self.theirs.info(name).type, name)
                )
            except ModelFileError:
                found = Quantisation.UNKNOWN
                continue
            if cosine < _SAME_WEIGHTS:
                self.differences.append(f"expert {expert} of {name} is another (cosine {cosine:.3f})")
        return found

    def _compare_shared(self, layer: int) -> None:
        for name, count in self._shared_rows(layer):
            mine, theirs = self.mine.info(name).type, self.theirs.info(name).type
            one, other = read(self.mine.slab(name, 0, count)), read(self.theirs.slab(name, 0, count))
            if mine == theirs and one == other:
                continue
            try:
                cosine, factor = _likeness(values(one, mine, name), values(other, theirs, name))
            except ModelFileError:
                continue
            if cosine < _SAME_WEIGHTS:
                self.differences.append(f"{name} is another (cosine {cosine:.3f})")
            elif abs(factor - 1) > max(0.005, 2 * (1 - cosine)):  # quantising takes as much of a length
                self._note_scale(name.split(".", 2)[2], factor)

    def _note_scale(self, tensor: str, factor: float) -> None:
        factor = round(factor, 2)
        cancelled = tensor == "ffn_down.weight" and self.experts.architecture.shared_output != tensor
        self.scales[tensor, factor] = SharedScale(tensor, factor, cancelled)

    def _require_the_same(self) -> None:
        if self.differences and self.nearest is None:
            more = f", and {len(self.differences) - 3} more" if len(self.differences) > 3 else ""
            raise ParentMismatchError(
                f"The rows of {self.name}'s router are {self.parent.name}'s, and other weights are not: "
                f"{'; '.join(self.differences[:3])}{more}.",
                "It was trained after it was cut, or cut from another checkpoint: a mask would serve this parent's "
                "weights in their place. To accept that: --nearest 1",
            )

    def _notes(self) -> Iterator[str]:
        mine, theirs = self.experts, self.parent.experts
        if mine.n_expert == theirs.n_expert:
            yield f"{self.name} keeps all {mine.n_expert} experts: it was not cut."
        if mine.n_used != theirs.n_used:
            yield (
                f"{self.name} uses {mine.n_used} experts a token, its parent {theirs.n_used}: a mask does not say how "
                f"many, and {theirs.n_used} are used with it."
            )
        for scale in self.scales.values():
            told = f"Its shared expert is scaled by {scale.factor:g} ({scale.tensor}; alpha)"
            if scale.cancelled:
                yield f"{told}: without effect in llama.cpp, where a norm follows, and nothing is lost without it."
            else:
                yield f"{told}. A mask does not hold that; a file does: coe cut --shared-scale {scale.factor:g}"

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)

    def _hashing(self, paths: Sequence[Path]) -> Callable[[int], None]:
        total, done = sum(path.stat().st_size for path in paths), 0

        def more(n_bytes: int) -> None:
            nonlocal done
            done += n_bytes
            self._tell(f"hash {paths[0].name}", done, total)

        return more


def _likeness(one: Array, other: Array) -> tuple[float, float]:
    """Cosine of two tensors' values, and how much longer the first is. Two of zeros are the same."""
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if not all(lengths):
        return (0.0, 1.0) if any(lengths) else (1.0, 1.0)
    return float(a @ b) / (lengths[0] * lengths[1]), lengths[0] / lengths[1]


def _constant_factor(one: Array, other: Array) -> float | None:
    """The number that the second was multiplied with to give the first, as far as floats can say it."""
    _, factor = _likeness(one, other)
    if not np.isfinite(factor) or not np.allclose(one, other * factor, rtol=1e-5, atol=0):
        return None
    return factor


def _digest(weights: Weights, names: Sequence[str], expert: int) -> bytes:
    digest = hashlib.sha256()
    for name in names:
        digest.update(read(weights.slab(name, expert)))
    return digest.digest()


def _listed(numbers: Sequence[int], most: int = 8) -> str:
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most])) + more
