"""Cutting (expert pruning of a GGUF): a specialist's file out of its parent's, by copying bytes.

Experts are the outermost dimension of their tensors and quantisation blocks lie within rows, so an expert is one run of
bytes. Nothing is dequantised, no tensor is held whole, and neighbouring experts are copied together.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from gguf import GGML_QUANT_SIZES

from coe.engine.files import FULL_DISK, written_beside
from coe.engine.gguf.header import TensorInfo
from coe.engine.swap.fingerprints import PROVENANCE, SKELETON
from coe.engine.swap.fingerprints import read_slots as read_slots

from ..architectures import Architecture, Experts, block_tensor, expert_bytes, is_per_expert
from ..errors import CutError
from ..files import require_output
from ..mask import Mask
from ..parent import Identity, Parent
from ..weights import ByteRange as ByteRange
from .gguf_writer import RawHeader, Tensor, Value, padded, read_raw_header
from .quantize import quantize_file, require_file_type, roughly_bytes
from .shared_scale import scaling

KEY: Final = PROVENANCE

_PIECE_BYTES: Final = 4 * 2**20  # held in memory at once
_STEP_BYTES: Final = 64 * 2**20  # asked of the kernel at once

# step ("hash", "copy" or "quantize"), how much of it is done, of how much
OnStage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CutReport:
    """What was written. notes: what the specialist's owner should know, a sentence each."""

    path: Path
    n_bytes: int
    parent_bytes: int
    n_expert: int  # of the parent
    n_keep: int
    parent_sha256: str
    mask_sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A tensor to be written: its record, the runs that it is made of, and what happens to the bytes on the way."""

    tensor: Tensor
    runs: tuple[ByteRange, ...]
    scale: Callable[[bytes], bytes] | None = None


def cut(
    parent: Parent,
    mask: Mask,
    out: Path,
    *,
    shared_scale: float | None = None,
    provenance: bool = True,
    quantize: str | None = None,
    slots: Mapping[int, Sequence[int]] | None = None,
    progress: OnStage | None = None,
) -> CutReport:
    """Write the specialist that a mask makes of its parent, one file, in place of `out` when it is whole.

    shared_scale: multiply the shared expert's contribution by this (`shared_scale.scaling`).
    provenance:   write `coe.surgery.*` keys and add the count of experts to general.name. Without, a mask that keeps
                  everything gives the parent's file again, to the byte.
    quantize:     a file type of llama.cpp's quantiser, for example Q4_K_M, that the cut file is brought to.
    slots:        layer -> its kept experts in the order that the file is to have them; ascending where not given.

    Raises ParentMismatchError for a mask of another parent, CutError for what cannot be written: an `out` that is the
    parent, too little room on the disk, slots that are no order of the kept experts, a scale that has no place.
    """
    require_output(out, parent.paths)
    if quantize is not None:
        require_file_type(quantize)
    parent_bytes = sum(path.stat().st_size for path in parent.paths)
    on_stage = progress or (lambda step, done, total: None)
    identity = identify(parent, on_stage)
    mask.require_parent(identity)
    order = kept_experts(parent.experts, mask, slots)
    header, parts = _plan(parent, order, shared_scale)
    header = header.with_value(f"{parent.experts.architecture.name}.expert_count", mask.n_keep)
    if provenance:
        header = _with_provenance(header, parent, identity, mask, order, shared_scale, quantize)
    head = header.to_bytes()
    n_bytes = len(head) + header.offsets()[-1]
    needed = n_bytes
    if quantize is not None:
        needed += roughly_bytes(sum(math.prod(part.tensor.shape) for part in parts), quantize)
    _remove_leftovers(out)
    _require_room(out, needed)
    with _clear_errors(out), written_beside(out) as beside:
        if quantize is None:
            _write(beside, head, header, parts, _pads_last(parent), on_stage)
        else:
            whole = beside.with_suffix(".cut.part")
            try:
                _write(whole, head, header, parts, True, on_stage)
                quantize_file(whole, beside, quantize, progress=lambda done, total: on_stage("quantize", done, total))
            finally:
                whole.unlink(missing_ok=True)
    return CutReport(
        out,
        out.stat().st_size,
        parent_bytes,
        parent.experts.n_expert,
        mask.n_keep,
        identity.sha256,
        mask_sha256(mask),
        _notes(parent.experts, mask.n_keep, quantize),
    )


def write_skeleton(parent: Parent, n_keep: int, out: Path, *, progress: OnStage | None = None) -> bool:
    """Write what all specialists that keep so many experts need beside their parent's file and their masks: the header
    of their cut files, then a hole.

    The hole is as long as the tensors and takes no room on the disk. A resident that loads the skeleton is filled from
    the parent with what a mask keeps, and is then what the cut file would be. False where the file is there already.

    Raises CutError for what cannot be written, or for a number of experts that no mask could keep.
    """
    header = _header_of_any(parent, n_keep, out)
    identity = identify(parent, progress or (lambda step, done, total: None))
    facts: dict[str, Value] = {
        "general.name": f"{parent.name} ({n_keep} of {identity.n_expert} experts)",
        KEY + "parent_name": parent.name,
        KEY + "parent_sha256": identity.sha256,
        KEY + "parent_expert_count": identity.n_expert,
        SKELETON: str(parent.path.resolve()),
    }
    for key, value in facts.items():
        header = header.with_value(key, value)
    return _write_hole(header, out)


def write_outline(parent: Parent, n_keep: int, out: Path) -> None:
    """Write what a dry run reads of a cut that keeps so many experts: its header without provenance, then a hole.

    Nothing of the parent but its header is read. Its length is that of the cut file. Raises CutError as write_skeleton.
    """
    _write_hole(_header_of_any(parent, n_keep, out), out)


def _header_of_any(parent: Parent, n_keep: int, out: Path) -> RawHeader:
    """The header of every cut that keeps so many experts, whichever they are."""
    require_output(out, parent.paths)
    experts = parent.experts
    if not 2 <= n_keep <= experts.n_expert or n_keep % experts.n_groups:
        raise CutError(f"No mask keeps {n_keep} of {experts.n_expert} experts.", "Make the mask again with coe plan.")
    _require_groups(experts, n_keep)
    order = dict.fromkeys((*experts.layers, *experts.draft_layers), tuple(range(n_keep)))
    header, _ = _plan(parent, order, None)
    return header.with_value(f"{experts.architecture.name}.expert_count", n_keep)


def _write_hole(header: RawHeader, out: Path) -> bool:
    """A header, and a hole as long as its tensors. False where that is there already."""
    head = header.to_bytes()
    n_bytes = len(head) + header.offsets()[-1]
    if out.is_file() and out.stat().st_size == n_bytes:
        with out.open("rb") as file:
            if file.read(len(head)) == head:
                return False
    _require_room(out, len(head))
    with _clear_errors(out), written_beside(out) as beside, beside.open("wb") as file:
        file.write(head)
        file.truncate(n_bytes)
    return True


# --- what is kept, and in which order -------------------------------------------------------------------------------


def kept_experts(
    experts: Experts, mask: Mask, slots: Mapping[int, Sequence[int]] | None = None
) -> dict[int, tuple[int, ...]]:
    """Layer -> the parent's experts in the order of the file's slots, draft layers included.

    A mask holds no draft layers, as nothing routes through them: they keep the first experts of each group.

    Raises CutError when slots are no order of what the mask keeps, or when the file could not choose as many experts
    from its groups as a token uses.
    """
    if mask.n_keep < 2:
        raise CutError("The mask keeps one expert a layer.", "Keep at least 2: one is no mixture of experts.")
    _require_groups(experts, mask.n_keep)
    order = {layer: tuple(mask.keep[layer]) for layer in experts.layers}
    size, kept_of_group = experts.n_expert // experts.n_groups, mask.n_keep // experts.n_groups
    firsts = tuple(group * size + at for group in range(experts.n_groups) for at in range(kept_of_group))
    order |= dict.fromkeys(experts.draft_layers, firsts)
    for layer, wanted in (slots or {}).items():
        if layer not in mask.keep or sorted(wanted) != list(mask.keep[layer]):
            raise CutError(
                f"The slots of layer {layer} are not the experts that the mask keeps there.",
                "Give each kept expert once.",
            )
        if [expert // size for expert in wanted] != [expert // size for expert in order[layer]]:
            raise CutError(f"The slots of layer {layer} move experts to other groups.", "Reorder within groups.")
        order[layer] = tuple(wanted)
    return order


def _require_groups(experts: Experts, n_keep: int) -> None:
    """Source: llama-graph.cpp, build_moe_ffn: a group is judged by its best two, and only chosen groups are open."""
    if experts.n_groups == 1:
        return
    of_group = n_keep // experts.n_groups
    least = max(2, -(-experts.n_used // experts.n_groups_used))
    if of_group < least:
        raise CutError(
            f"The mask keeps {of_group} of each of {experts.n_groups} groups of experts; a token uses {experts.n_used} "
            f"from {experts.n_groups_used} groups.",
            f"Keep at least {least * experts.n_groups} experts a layer.",
        )


def neighbours(order: Sequence[int]) -> list[tuple[int, int]]:
    """An order of experts as runs of neighbours: (first, how many)."""
    if not order:
        return []
    breaks = [at for at, (left, right) in enumerate(pairwise(order), start=1) if right != left + 1]
    return [(order[start], end - start) for start, end in pairwise([0, *breaks, len(order)])]


def mask_sha256(mask: Mask) -> str:
    """A hash of what a mask keeps of which parent; how it was made does not matter to it."""
    facts = {"parent": mask.parent.sha256, "keep": {str(layer): list(mask.keep[layer]) for layer in sorted(mask.keep)}}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# --- the plan -------------------------------------------------------------------------------------------------------


def _plan(
    parent: Parent, order: Mapping[int, tuple[int, ...]], shared_scale: float | None
) -> tuple[RawHeader, list[Part]]:
    """The header without provenance, and the tensors to write, in the parent's order."""
    architecture = parent.experts.architecture
    shared = _shared_tensors(parent, shared_scale)
    parts = []
    raws = [read_raw_header(header.path) for header in parent.headers]
    for header, raw in zip(parent.headers, raws, strict=True):
        for record, info in zip(raw.tensors, header.tensors, strict=True):
            scale = None
            if shared_scale is not None and info.name in shared:
                scale = scaling(info.name, info.type, shared_scale)
            parts.append(Part(*_pieces(architecture, header.path, record, info, order), scale))
    whole = raws[0].without("split.")
    return replace(whole, tensors=tuple(part.tensor for part in parts)), parts


def _pieces(
    architecture: Architecture, path: Path, record: Tensor, info: TensorInfo, order: Mapping[int, tuple[int, ...]]
) -> tuple[Tensor, tuple[ByteRange, ...]]:
    if not is_per_expert(architecture, info.name):
        return record, (ByteRange(path, info.offset, info.n_bytes),)
    found = block_tensor(info.name)
    assert found is not None
    kept = order[found[0]]
    one = expert_bytes(info)
    at = len(info.shape) - 1  # the record may go on with dimensions of 1
    shape = (*record.shape[:at], len(kept), *record.shape[at + 1 :])
    runs = tuple(ByteRange(path, info.offset + first * one, count * one) for first, count in neighbours(kept))
    return Tensor(record.name, shape, record.type), runs


def _shared_tensors(parent: Parent, shared_scale: float | None) -> set[str]:
    """Names of the tensors that take the scale. Raises CutError when there are none."""
    if shared_scale is None:
        return set()
    experts = parent.experts
    tensor = experts.architecture.shared_output
    names = {info.name for header in parent.headers for info in header.tensors}
    found = {f"blk.{layer}.{tensor}" for layer in (*experts.layers, *experts.draft_layers)} & names
    if tensor is None or not found:
        raise CutError(
            f"{parent.name} ({experts.architecture.name}) has no shared expert to scale.",
            "Cut without a shared scale.",
        )
    return found


def _with_provenance(
    header: RawHeader,
    parent: Parent,
    identity: Identity,
    mask: Mask,
    order: Mapping[int, tuple[int, ...]],
    shared_scale: float | None,
    quantize: str | None,
) -> RawHeader:
    header = header.with_value("general.name", f"{parent.name} ({mask.n_keep} of {identity.n_expert} experts)")
    facts: dict[str, Value | None] = {
        "parent_name": parent.name,
        "parent_sha256": identity.sha256,
        "parent_expert_count": identity.n_expert,
        "mask_sha256": mask_sha256(mask),
        "recipe": json.dumps(mask.provenance.recipe, sort_keys=True, ensure_ascii=False)
        if mask.provenance.recipe
        else "",
        "corpus_sha256": mask.provenance.corpus_sha256,
        "layers": [*sorted(order)],
        "kept_experts": [expert for layer in sorted(order) for expert in order[layer]],
        "shared_scale": shared_scale,
        "quantized": quantize,
    }
    for key, value in facts.items():
        if value is not None and value != "":
            header = header.with_value(KEY + key, value)
    return header


def _notes(experts: Experts, n_keep: int, quantize: str | None) -> tuple[str, ...]:
    notes = []
    if n_keep & (n_keep - 1) and n_keep not in (288, 576):
        # Source: ggml-cuda/topk-moe.cu, ggml_cuda_should_use_topk_moe.
        notes.append(f"CUDA chooses experts in one kernel only for powers of two, 288 and 576; {n_keep} is none.")
    if not experts.architecture.renormalises:
        notes.append(
            f"{experts.architecture.name} does not divide by the sum of the chosen weights: with fewer experts the "
            "experts' output grows."
        )
    if experts.draft_layers:
        notes.append(
            f"The blocks for multi-token prediction {list(experts.draft_layers)} keep the first experts: no profile "
            "knows which they need. Do not draft with them."
        )
    if quantize is not None:
        notes.append(f"Quantised to {quantize} from the parent's own types, not from full precision.")
    return tuple(notes)


# --- writing --------------------------------------------------------------------------------------------------------


def _write(
    path: Path, head: bytes, header: RawHeader, parts: Sequence[Part], pad_last: bool, on_stage: OnStage
) -> None:
    total = header.offsets()[-1]
    done = 0
    with contextlib.ExitStack() as open_files, path.open("wb", buffering=0) as file:
        out = file.fileno()
        sources: dict[Path, int] = {}
        for source in dict.fromkeys(run.path for part in parts for run in part.runs):
            sources[source] = open_files.enter_context(source.open("rb", buffering=0)).fileno()
        _write_all(out, head)
        for index, part in enumerate(parts):
            for count in _copy(part, sources, out):
                done += count
                on_stage("copy", done, total)
            padding = padded(part.tensor.n_bytes, header.alignment) - part.tensor.n_bytes
            if pad_last or index + 1 < len(parts):
                _write_all(out, bytes(padding))
            done += padding
    on_stage("copy", total, total)


def _copy(part: Part, sources: Mapping[Path, int], out: int) -> Iterator[int]:
    """Append a tensor to the file, and give the bytes of each step."""
    n_bytes = part.tensor.n_bytes
    if part.scale is None and (n_bytes > _PIECE_BYTES or len(part.runs) == 1):
        for run in part.runs:
            yield from _copy_run(run, sources[run.path], out)
    elif part.scale is None:  # router rows, scales and biases: one write instead of many of some bytes
        _write_all(out, b"".join(_read(sources[run.path], run, run.offset, run.n_bytes) for run in part.runs))
        yield n_bytes
    else:
        block_bytes = GGML_QUANT_SIZES[part.tensor.type][1]
        for run in part.runs:
            for at in range(0, run.n_bytes, step := _PIECE_BYTES // block_bytes * block_bytes):
                count = min(step, run.n_bytes - at)
                _write_all(out, part.scale(_read(sources[run.path], run, run.offset + at, count)))
                yield count


def _copy_run(run: ByteRange, source: int, out: int) -> Iterator[int]:
    """Within the kernel where it can, else through a buffer."""
    in_kernel = hasattr(os, "copy_file_range")
    at, end = run.offset, run.offset + run.n_bytes
    while at < end:
        count = 0
        if in_kernel:
            try:
                count = os.copy_file_range(source, out, min(_STEP_BYTES, end - at), at)
            except OSError as error:
                if error.errno in FULL_DISK:
                    raise
            in_kernel = count > 0  # between file systems it may refuse, or do nothing
        if not count:
            data = _read(source, run, at, min(_PIECE_BYTES, end - at))
            _write_all(out, data)
            count = len(data)
        at += count
        yield count


def _read(source: int, run: ByteRange, at: int, n_bytes: int) -> bytes:
    data = os.pread(source, n_bytes, at)
    while len(data) < n_bytes:
        more = os.pread(source, n_bytes - len(data), at + len(data))
        if not more:
            raise CutError(f"{run.path} became shorter while it was read.", "Leave the parent alone and cut again.")
        data += more
    return data


def _write_all(out: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(out, rest) :]


def _pads_last(parent: Parent) -> bool:
    """Whether the parent's file goes on to the next multiple after its last tensor, as most writers do."""
    last = parent.headers[-1]
    end = max((info.offset + info.n_bytes for info in last.tensors), default=0)
    return len(parent.headers) > 1 or last.path.stat().st_size > end


# --- before and after -----------------------------------------------------------------------------------------------


def identify(parent: Parent, on_stage: OnStage) -> Identity:
    """The parent's identity; hashing it is the step "hash"."""
    done = 0
    parent_bytes = sum(path.stat().st_size for path in parent.paths)

    def hashed(count: int) -> None:
        nonlocal done
        done += count
        on_stage("hash", done, parent_bytes)

    return parent.identity(hashed)


def _require_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise CutError(
            f"{out.parent} has {free / 1e9:.2f} GB free and the cut needs {needed / 1e9:.2f} GB.",
            "Make room, or write to another disk.",
        )


def _remove_leftovers(out: Path) -> None:
    """Half-written files of cuts that were killed. A file of a process that lives is left alone."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        match = re.fullmatch(re.escape(f".{out.name}.") + r"(\d+)(\.cut)?\.part", path.name)
        if match is None:
            continue
        try:
            os.kill(int(match[1]), 0)
        except (ProcessLookupError, OverflowError):
            path.unlink(missing_ok=True)
        except PermissionError:
            pass


@contextlib.contextmanager
def _clear_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise CutError(
                f"{out} could not be written to its end: {error.strerror}.",
                "Nothing was changed: make room, try again.",
            ) from error
        raise CutError(f"{out} could not be written: {error.strerror}.", "Check the folder and its rights.") from error
