"""Inspection of a GGUF: bytes by kind of tensor, and the memory that masks of it would save."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from coe.engine.errors import EngineError
from coe.engine.gguf.header import Header
from coe.engine.gguf.reader import read_split
from coe.engine.pool import memory
from coe.engine.spec import Footprint, LoadSpec

from ..architectures import Experts, expert_bytes, experts_of, is_per_expert
from ..cut.gguf_writer import padded, read_raw_header
from ..errors import ArchitectureError
from ..mask import require_count
from ..parent import Identity

CONTEXTS: Final = (16_384, 65_536)
_SHARES: Final = ((3, 4), (1, 2), (3, 8), (1, 4))


class TensorKind(StrEnum):
    """What a tensor is for."""

    EMBEDDING = "embedding"  # token embeddings and the output
    ATTENTION = "attention"  # of every kind, recurrent layers included
    ROUTER = "router"
    EXPERTS = "experts"
    SHARED = "shared FFN"  # what every token passes through, in a dense model all of it
    NORMS = "norms"
    OTHER = "other"


# The first that fits; names as llama.cpp's (gguf.constants, TENSOR_NAMES).
_KINDS: Final = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"norm", TensorKind.NORMS),
        (r"ffn_gate_inp\.|exp_probs_b", TensorKind.ROUTER),
        (r"_exps\.", TensorKind.EXPERTS),
        (r"ffn_", TensorKind.SHARED),
        (r"attn_|ssm_|indexer", TensorKind.ATTENTION),
        (r"^(token_embd|per_layer_token_embd|position_embd|token_types|output)\.", TensorKind.EMBEDDING),
    )
)


@dataclass(frozen=True)
class Saving:
    """What a mask of n_keep experts a layer comes to.

    file_bytes:  of the cut file, exactly, before provenance is written into its metadata.
    saved_bytes: weights that go.
    vram_bytes:  context tokens -> memory of a resident with one sequence; empty where the parent's is.
    """

    n_keep: int
    file_bytes: int
    saved_bytes: int
    vram_bytes: Mapping[int, int]


@dataclass(frozen=True)
class Inspection:
    """What a file is. n_expert is 0 and savings are empty for a dense model.

    layers:     block numbers with a router.
    bytes_by_kind: tensors' bytes, kinds that the file lacks left out.
    vram_bytes: context tokens -> memory of a resident with one sequence (of the host where there is no GPU); empty when
                llama.cpp cannot load the file.
    on_gpu:     whether that is a GPU's memory.
    notes:      what there is to say besides.
    """

    path: Path
    name: str
    architecture: str
    n_expert: int
    n_used: int
    n_groups: int
    layers: tuple[int, ...]
    file_bytes: int
    bytes_by_kind: Mapping[TensorKind, int]
    vram_bytes: Mapping[int, int]
    on_gpu: bool
    savings: tuple[Saving, ...]
    notes: tuple[str, ...]


def kind_of(tensor: str) -> TensorKind:
    """What a tensor is for, by its name in the file."""
    return next((kind for pattern, kind in _KINDS if pattern.search(tensor)), TensorKind.OTHER)


def bytes_by_kind(headers: Sequence[Header]) -> dict[TensorKind, int]:
    """Bytes of the tensors of each kind there is, in the order of the kinds."""
    sizes = dict.fromkeys(TensorKind, 0)
    for header in headers:
        for tensor in header.tensors:
            sizes[kind_of(tensor.name)] += tensor.n_bytes
    return {kind: size for kind, size in sizes.items() if size}


def usual_counts(experts: Experts, shares: Sequence[tuple[int, int]] = _SHARES) -> tuple[int, ...]:
    """Three quarters, half, three eighths and a quarter of the experts, or other shares of them (part, of how many), as
    far as a mask can have so many."""
    step, least = experts.n_groups, fewest(experts)
    counts = (experts.n_expert * part // of // step * step for part, of in shares)
    return tuple(dict.fromkeys(count for count in counts if least <= count < experts.n_expert))


def fewest(experts: Experts) -> int:
    """The fewest experts a layer that a mask can keep: what a token uses, and of each group two."""
    return max(experts.n_used, 2 * experts.n_groups)


async def inspect(path: Path, keep: Sequence[int] | None = None, contexts: Sequence[int] = CONTEXTS) -> Inspection:
    """Read the header, and ask dry runs what residents would take; nothing is loaded.

    keep: numbers of experts to work out savings for; None for the usual ones. Dense models and architectures that
    surgery does not know are answered with what their header says.
    Raises ModelFileError for a file that cannot be read, MaskError for numbers that no mask can keep.
    """
    headers = read_split(path)
    first = headers[0]
    name = str(first.metadata.get("general.name") or path.stem)
    notes = []
    experts = None
    n_expert = first.count("expert_count")
    if n_expert < 2:
        notes.append("A dense model: it has no experts that a mask could drop.")
    else:
        try:
            experts = experts_of(headers)
        except ArchitectureError as error:
            notes.append(f"Nothing is known of what masks would save. {error}")
    footprints, remarks = await _footprints(path, contexts)
    notes += remarks
    savings: tuple[Saving, ...] = ()
    if experts is not None:
        # Only counts are asked of this identity: hashing the file would take minutes.
        identity = Identity(name, "", first.architecture, experts.layers, n_expert, experts.n_used, experts.n_groups)
        counts = usual_counts(experts) if keep is None else keep
        for count in counts:
            require_count(identity, count)
        savings = tuple(_savings(headers, experts, counts, footprints))
        if experts.draft_layers:
            notes.append(f"The blocks {list(experts.draft_layers)} predict further tokens and are cut as well.")
    return Inspection(
        path,
        name,
        first.architecture,
        n_expert if n_expert > 1 else 0,
        experts.n_used if experts else 0,
        experts.n_groups if experts else 1,
        experts.layers if experts else (),
        sum(header.path.stat().st_size for header in headers),
        bytes_by_kind(headers),
        {context: footprint.total_bytes for context, footprint in footprints.items()},
        any(footprint.host_bytes for footprint in footprints.values()),
        savings,
        tuple(notes),
    )


async def _footprints(path: Path, contexts: Sequence[int]) -> tuple[dict[int, Footprint], list[str]]:
    """Context -> what a resident takes, and what the dry runs noted; no footprints where llama.cpp refuses."""
    found: dict[int, Footprint] = {}
    notes: list[str] = []
    for context in contexts:
        try:
            # One sequence, as one person's chat has; without mmap a processor's repacked weights are there only once.
            spec = LoadSpec(path, context_tokens=context, parallel=1, mmap=False)
            footprint = (await memory.predict(spec)).footprint
        except EngineError as error:
            return {}, [f"What it takes in memory is not known. {error}"]
        found[context] = footprint
        notes += [note for note in footprint.notes if note not in notes]
    return found, notes


def _savings(
    headers: Sequence[Header], experts: Experts, counts: Sequence[int], footprints: Mapping[int, Footprint]
) -> Iterator[Saving]:
    raws = [read_raw_header(header.path) for header in headers]
    whole = replace(raws[0].without("split."), tensors=tuple(tensor for raw in raws for tensor in raw.tensors))
    head_bytes = len(whole.to_bytes())
    for n_keep in counts:
        sizes = [
            (tensor.n_bytes, expert_bytes(tensor) * n_keep)
            if is_per_expert(experts.architecture, tensor.name)
            else (tensor.n_bytes, tensor.n_bytes)
            for header in headers
            for tensor in header.tensors
        ]
        saved = sum(before - after for before, after in sizes)
        vram = {context: footprint.total_bytes - saved for context, footprint in footprints.items()}
        data_bytes = sum(padded(after, whole.alignment) for _, after in sizes)
        yield Saving(n_keep, head_bytes + data_bytes, saved, vram)
