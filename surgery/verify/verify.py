"""Verification of a cut file against its parent and mask: bytes, numbers, metadata, and llama.cpp's logits.

What is found is named: layer, expert and tensor. Only a file that cannot be read at all raises.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from llama_cpp._ggml import libggml
from numpy.typing import NDArray

from coe.engine.gguf.header import Header, TensorInfo
from coe.engine.gguf.reader import read_header
from coe.engine.spec import LoadSpec

from ..architectures import block_tensor, is_per_expert
from ..cut.cut import KEY, OnStage, identify, kept_experts, read_slots
from ..cut.gguf_writer import RawHeader, read_raw_header
from ..cut.shared_scale import scaling
from ..errors import SurgeryError, VerificationError
from ..mask import Mask
from ..parent import Parent
from .agreement import Agreement, agree_apart

_PIECE_WEIGHTS: Final = 2**20  # whole blocks of any type
_NAMED: Final = 5  # findings of one kind that are spelled out
# How far from the parent's values those quantised anew may lie, as a share of their norm. Two bits lie 0.3 away,
# another expert's values 1.4.
_MOST_DISTANCE: Final = 0.7


@dataclass(frozen=True)
class Verification:
    """What was found. problems: a sentence each; none for a specialist that is what it should be.

    tensors: tensors compared with the parent's; compared_bytes: bytes of the specialist that were read.
    agreement: what running it showed; None when it was not run. Where it was run without the parent, a note says why.
    """

    specialist: Path
    tensors: int
    compared_bytes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    agreement: Agreement | None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def require(self) -> None:
        """Raises VerificationError, naming the first problems, when there are any."""
        if self.problems:
            more = len(self.problems) - _NAMED
            rest = f" And {more} more." if more > 0 else ""
            raise VerificationError(
                f"{self.specialist.name} is not what its mask says. {' '.join(self.problems[:_NAMED])}{rest}",
                "Cut it again; if it stays so, the parent is damaged.",
            )


def verify(
    parent: Path,
    specialist: Path,
    mask: Mask,
    *,
    text_tokens: Sequence[int] | None = None,
    shared_scale: float | None = None,
    load: LoadSpec | None = None,
    run: bool = True,
    progress: OnStage | None = None,
) -> Verification:
    """Hold a specialist against its parent.

    text_tokens:  what both are run on; tokens of a text of ours when not given.
    shared_scale: what the shared expert was scaled by, for a file that does not say it itself.
    load:         how both are loaded; on the CPU when not given.
    run:          whether both are run as well; without, what stands in the files is all that is compared.
    progress:     the steps are "hash", "tensors" and "logits".

    Raises ModelFileError for a file that cannot be read, ParentMismatchError for a mask of another parent,
    VerificationError for a file that was cut at another number of experts than the mask has.
    """
    whole = Parent.open(parent)
    on_stage = progress or (lambda step, done, total: None)
    mask.require_parent(identify(whole, on_stage))
    header = read_header(specialist)
    _require_count(whole, mask, header)
    raws = [read_raw_header(part.path) for part in whole.headers]
    recorded = header.metadata.get(KEY + "shared_scale")
    if recorded is not None and (isinstance(recorded, str) or not 0 < recorded < math.inf):
        raise VerificationError(f"{specialist} says that its shared expert is scaled by {recorded!r}.", "Cut it again.")
    scale = shared_scale if recorded is None else float(recorded)
    order, problems = _order(whole, mask, header)
    problems += _metadata_problems(whole, raws[0], read_raw_header(specialist), mask)
    tensors = _Tensors(whole, header, order, scale)
    for done in tensors.compared():
        on_stage("tensors", done, header.weights_bytes)
    problems += tensors.problems
    notes = tensors.notes
    agreement = None
    if problems:
        notes.append("It was not run, since it differs from what it should be already.")
    elif run:
        why = "its shared expert is scaled" if scale is not None else ""
        why = "its weights were quantised anew" if tensors.requantised else why
        if why:
            notes.append(f"Its logits are not held against the parent's, from which they are meant to differ: {why}.")
        try:
            agreement = agree_apart(
                None if why else parent,
                specialist,
                order,
                tokens=text_tokens,
                load=load,
                progress=lambda done, total: on_stage("logits", done, total),
            )
            problems += agreement.problems
        except VerificationError as error:
            problems.append(str(error))
    return Verification(specialist, len(header.tensors), tensors.read_bytes, tuple(problems), tuple(notes), agreement)


def _require_count(parent: Parent, mask: Mask, specialist: Header) -> None:
    """Raises VerificationError where all tensors of experts have another number of them than the mask: each tensor
    would be another one than it should be, and none of that would be the reason."""
    counts = {one.shape[-1] for one in specialist.tensors if is_per_expert(parent.experts.architecture, one.name)}
    if len(counts) != 1 or counts == {mask.n_keep}:
        return
    (count,) = counts
    remedy = "Give the mask that it was cut with."
    if mask.can_keep(count):
        slots, keep = read_slots(specialist), mask.keeping(count).keep
        if slots is None or {layer: tuple(sorted(kept)) for layer, kept in slots.items()} == dict(keep):
            remedy = f"If it was cut with --experts {count}, verify it with --experts {count} as well."
    raise VerificationError(f"{specialist.path} keeps {count} experts a layer, and the mask {mask.n_keep}.", remedy)


def _order(parent: Parent, mask: Mask, specialist: Header) -> tuple[dict[int, tuple[int, ...]], list[str]]:
    """The order of experts in the file: its own slots, where they hold what the mask keeps; else ascending."""
    slots = read_slots(specialist)
    if slots is None:
        return kept_experts(parent.experts, mask), []
    try:
        return kept_experts(parent.experts, mask, {layer: slots[layer] for layer in mask.keep}), []
    except (SurgeryError, KeyError):
        odd = [layer for layer in mask.keep if sorted(slots.get(layer, ())) != list(mask.keep[layer])]
        return kept_experts(parent.experts, mask), [
            f"The file says of itself that it keeps other experts than the mask, in the layers {odd}."
        ]


# --- metadata -------------------------------------------------------------------------------------------------------


def _metadata_problems(parent: Parent, before: RawHeader, after: RawHeader, mask: Mask) -> list[str]:
    """Everything is carried over but the count of experts, the name, and what quantising writes."""
    count = f"{parent.experts.architecture.name}.expert_count"
    changed = {count, "general.name", "general.file_type", "general.quantization_version"}
    problems = []
    for key, value in before.metadata.items():
        if key in changed or key.startswith("split."):
            continue
        if key not in after.metadata:
            problems.append(f"The metadata lack {key}.")
        elif after.metadata[key] != value:
            problems.append(f"The metadata say something else than the parent's about {key}.")
    added = after.metadata.keys() - before.metadata.keys() - changed
    problems += [f"The metadata have {key}, the parent's do not." for key in sorted(added) if not key.startswith(KEY)]
    found = after.metadata.get(count)
    if found is None or int.from_bytes(found[1], "little") != mask.n_keep:
        problems.append(f"{count} is not the mask's {mask.n_keep}.")
    return problems


# --- tensors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """One expert's part of a tensor, or a piece of another tensor: where it lies in both files, and how long it is."""

    expert: int | None  # the parent's number
    ours: int
    n_ours: int
    theirs: int
    n_theirs: int


class _Tensors:
    """Reads both files once, tensor by tensor, and collects what is wrong."""

    def __init__(
        self, parent: Parent, specialist: Header, order: Mapping[int, tuple[int, ...]], scale: float | None
    ) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.read_bytes = 0
        self.requantised = False
        self._architecture = parent.experts.architecture
        self._parent, self._specialist, self._order, self._scale = parent, specialist, order, scale

    def compared(self) -> Iterator[int]:
        """Compare all; gives the bytes read so far."""
        ours = {tensor.name: tensor for tensor in self._specialist.tensors}
        theirs = {tensor.name: (header, tensor) for header in self._parent.headers for tensor in header.tensors}
        self._add("The file lacks", sorted(theirs.keys() - ours.keys()))
        self._add("The file has, and the parent has not,", sorted(ours.keys() - theirs.keys()))
        with self._specialist.path.open("rb", buffering=0) as file:
            for name in (name for name in ours if name in theirs):
                header, tensor = theirs[name]
                if not self._same_shape(ours[name], tensor):
                    continue
                with header.path.open("rb", buffering=0) as parent_file:
                    self._compare(ours[name], tensor, file.fileno(), parent_file.fileno())
                self.read_bytes += ours[name].n_bytes
                yield self.read_bytes

    def _same_shape(self, ours: TensorInfo, theirs: TensorInfo) -> bool:
        wanted = theirs.shape
        if is_per_expert(self._architecture, theirs.name):
            wanted = (*wanted[:-1], len(self._order[_layer(theirs.name)]))
        if ours.shape != wanted:
            self.problems.append(f"{ours.name} has the shape {list(ours.shape)}, not {list(wanted)}.")
        return ours.shape == wanted

    def _compare(self, ours: TensorInfo, theirs: TensorInfo, file: int, parent_file: int) -> None:
        same_type = ours.type == theirs.type
        self.requantised |= not same_type
        scale = None
        shared = self._architecture.shared_output
        if self._scale is not None and shared is not None and ours.name.endswith(f".{shared}") and same_type:
            scale = scaling(ours.name, ours.type, self._scale)
        differing: list[_Piece] = []
        faulty: list[tuple[_Piece, str]] = []
        moved: list[str] = []
        for piece in self._pieces(ours, theirs):
            data = os.pread(file, piece.n_ours, piece.ours)
            beside = os.pread(parent_file, piece.n_theirs, piece.theirs)
            equal = same_type and data == (scale(beside) if scale else beside)
            norm = norm_of(data, ours.type)
            if same_type and not equal:
                differing.append(piece)
            elif not same_type and distance_of(data, ours.type, beside, theirs.type) > _MOST_DISTANCE:
                moved.append(_named(ours.name, piece))
            if not np.isfinite(norm):
                faulty.append((piece, "holds NaN or Inf"))
            elif norm == 0 and piece.expert is not None and not ours.name.endswith(".bias"):
                fault = "is all zero" + (", as in the parent" if equal else "")
                faulty.append((piece, fault))
        for piece, fault in faulty:
            where = self.notes if fault.endswith("parent") else self.problems
            where.append(f"{_named(ours.name, piece)} {fault}.")
        self._add_differing(ours, theirs, differing, file, parent_file)
        self._add("Quantised anew, but too far from the parent's values,", moved)

    def _pieces(self, ours: TensorInfo, theirs: TensorInfo) -> Iterator[_Piece]:
        if is_per_expert(self._architecture, ours.name):
            kept = self._order[_layer(ours.name)]
            one, beside = ours.n_bytes // ours.shape[-1], theirs.n_bytes // theirs.shape[-1]
            for slot, expert in enumerate(kept):
                yield _Piece(expert, ours.offset + slot * one, one, theirs.offset + expert * beside, beside)
            return
        for at in range(0, math.prod(ours.shape), _PIECE_WEIGHTS):
            count = min(_PIECE_WEIGHTS, math.prod(ours.shape) - at)
            yield _Piece(
                None,
                ours.offset + _bytes_of(at, ours.type),
                _bytes_of(count, ours.type),
                theirs.offset + _bytes_of(at, theirs.type),
                _bytes_of(count, theirs.type),
            )

    def _add_differing(
        self, ours: TensorInfo, theirs: TensorInfo, differing: Sequence[_Piece], file: int, parent_file: int
    ) -> None:
        """Name the experts whose bytes are others, and whose they are, if they are another expert's."""
        if not differing:
            return
        if differing[0].expert is None:
            self.problems.append(f"{ours.name} has other bytes than the parent's.")
            return
        one = differing[0].n_ours
        found = []
        for piece in differing[:_NAMED]:
            data = os.pread(file, one, piece.ours)
            holders = (
                expert
                for expert in range(theirs.shape[-1])
                if os.pread(parent_file, one, theirs.offset + expert * one) == data
            )
            holder = next(holders, None)
            whose = "bytes that no expert of the parent has" if holder is None else f"those of expert {holder}"
            found.append(f"for expert {piece.expert} {whose}")
        more = f", and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        self.problems.append(f"{ours.name} has {'; '.join(found)}{more}.")

    def _add(self, what: str, names: Sequence[str]) -> None:
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            self.problems.append(f"{what} {', '.join(names[:_NAMED])}{more}.")


def _layer(name: str) -> int:
    found = block_tensor(name)
    assert found is not None
    return found[0]


def _named(tensor: str, piece: _Piece) -> str:
    if piece.expert is None:
        return tensor
    return f"Expert {piece.expert} (the parent's number) of layer {_layer(tensor)} in {tensor}"


def _bytes_of(n_weights: int, kind: Type) -> int:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return n_weights // block * block_bytes


# --- numbers --------------------------------------------------------------------------------------------------------


class _Traits(ctypes.Structure):
    """Source: ggml.h, struct ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("block_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.c_void_p),
    )


_PLAIN: Final = {
    Type.F32: np.float32, Type.F64: np.float64, Type.I8: np.int8, Type.I16: np.int16, Type.I32: np.int32,
    Type.I64: np.int64,
}  # fmt: skip


def norm_of(data: bytes, kind: Type) -> float:
    """The L2 norm of a tensor's values, given the bytes of whole blocks; NaN or infinite when one of them is."""
    return float(np.linalg.norm([_norm(values) for values in _values(data, kind)]))


def distance_of(data: bytes, kind: Type, beside: bytes, other: Type) -> float:
    """||a - b|| / ||b|| of as many values in two types, given the bytes of whole blocks. 0 where both are all zero."""
    distance, norm = 0.0, 0.0
    for ours, theirs in zip(_values(data, kind), _values(beside, other), strict=True):
        theirs = theirs.astype(np.float64)
        distance += float(np.square(ours - theirs).sum())
        norm += float(np.square(theirs).sum())
    return float(np.sqrt(distance / norm)) if norm else float(distance > 0)


def _values(data: bytes, kind: Type) -> Iterator[NDArray[Any]]:
    """The values that bytes stand for, in pieces of the same lengths for every type; valid until the next."""
    if kind in _PLAIN:
        plain = np.frombuffer(data, _PLAIN[kind])
        yield from (plain[at : at + _PIECE_WEIGHTS] for at in range(0, len(plain), _PIECE_WEIGHTS))
        return
    function = libggml.ggml_get_type_traits
    function.restype, function.argtypes = ctypes.POINTER(_Traits), [ctypes.c_int]
    traits = function(int(kind)).contents
    block, block_bytes = GGML_QUANT_SIZES[kind]
    assert traits.block_bytes == block_bytes, "the gguf package and ggml disagree about a type"
    bytes_array = np.frombuffer(data, np.uint8)
    values = np.empty(_PIECE_WEIGHTS, np.float32)
    for at in range(0, len(data), step := _bytes_of(_PIECE_WEIGHTS, kind)):
        count = min(step, len(data) - at) // block_bytes * block
        traits.to_float(bytes_array[at:].ctypes.data, values.ctypes.data, count)
        yield values[:count]


def _norm(values: NDArray[Any]) -> float:
    with np.errstate(over="ignore"):
        norm = float(np.sqrt(np.dot(values, values))) if values.dtype == np.float32 else np.inf
    if not np.isfinite(norm) or norm == 0:  # squares may leave the range of 32 bits where the values do not
        norm = float(np.linalg.norm(values.astype(np.float64)))
    return norm
