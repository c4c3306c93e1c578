"""The table of mixture-of-experts architectures, and a file's experts read by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from coe.engine.gguf.architectures import ARCHITECTURES as ARCHITECTURES
from coe.engine.gguf.architectures import CHOICE_BIAS, ROUTER
from coe.engine.gguf.architectures import Architecture as Architecture
from coe.engine.gguf.architectures import block_tensor as block_tensor
from coe.engine.gguf.architectures import expert_bytes as expert_bytes
from coe.engine.gguf.architectures import is_per_expert as is_per_expert
from coe.engine.gguf.header import Header
from coe.engine.gguf.reader import read_array
from coe.engine.text import quoted

from .errors import ArchitectureError

# Experts of a layer, or blocks, that a model may have. llama.cpp's own bounds are lower: LLAMA_MAX_EXPERTS and
# LLAMA_MAX_LAYERS of llama-hparams.h.
MOST: Final = 4096


@dataclass(frozen=True)
class Experts:
    """What a header says of a model's experts.

    architecture:  the table's row, as it is for this file.
    layers:        block numbers that have a router and that every token goes through, ascending.
    n_groups:      contiguous groups of equal size of which a token first chooses `n_groups_used`.
    draft_layers:  blocks that predict further tokens (MTP): they have experts too, but ordinary decoding never enters
                   them, so that no profile can know their experts.
    """

    architecture: Architecture
    layers: tuple[int, ...]
    n_expert: int
    n_used: int  # experts a token uses, the largest over the layers
    n_groups: int = 1
    n_groups_used: int = 1
    draft_layers: tuple[int, ...] = ()


def architecture_of(header: Header) -> Architecture:
    """The table's row for a file. Raises ArchitectureError, naming the architecture, when there is none."""
    found = ARCHITECTURES.get(header.architecture)
    if found is None:
        raise ArchitectureError(
            f"{header.path.name} is of the architecture {quoted(header.architecture or '(none)')}, "
            "which surgery does not know.",
            f"Known: {', '.join(sorted(ARCHITECTURES))}.",
        )
    return found


def experts_of(headers: Sequence[Header]) -> Experts:
    """What the headers of a model's parts say of its experts.

    Raises ArchitectureError for a dense model, an unknown architecture, tensors of experts that the table does not
    list, or tensors that contradict the metadata.
    """
    first = headers[0]
    architecture = architecture_of(first)
    n_expert = first.count("expert_count")
    routers: list[int] = []
    biased: list[int] = []
    for header in headers:
        for tensor in header.tensors:
            found = block_tensor(tensor.name)
            if found is None:
                continue
            if found[1] not in architecture.per_expert:
                if "_exps." in found[1] and n_expert > 1:
                    raise ArchitectureError(
                        f"{tensor.name} of {header.path.name} belongs to experts, and surgery does not know what to do "
                        f"with it in {architecture.name}.",
                        "Fetch a file of a known converter.",
                    )
                continue
            if tensor.shape[-1] != n_expert:
                raise ArchitectureError(
                    f"{tensor.name} of {header.path.name} has {tensor.shape[-1]} experts, the metadata say {n_expert}.",
                    "The file is damaged or was cut by another tool: fetch it again.",
                )
            if found[1] == ROUTER:
                routers.append(found[0])
            elif found[1] == CHOICE_BIAS:
                biased.append(found[0])
    if not routers or n_expert < 2:
        raise ArchitectureError(f"{first.path.name} has no experts to choose from.", "Give a mixture of experts.")
    if biased and set(biased) != set(routers):
        raise ArchitectureError(
            f"{first.path.name} has {CHOICE_BIAS} in some of its layers only.", "The file is damaged: fetch it again."
        )
    n_blocks = first.count("block_count")
    n_trunk = n_blocks - first.count("nextn_predict_layers")
    n_used = _experts_used(first)
    n_groups = first.count("expert_group_count", 1) or 1
    n_groups_used = first.count("expert_group_used_count", 1) or 1
    contradiction = (
        f"it uses {n_used} of {n_expert} experts" if not 1 <= n_used <= n_expert
        else f"it has {n_groups} groups of {n_expert} experts" if n_expert % n_groups
        else f"it uses {n_groups_used} of {n_groups} groups" if n_groups_used > n_groups
        else f"it counts {n_blocks} blocks and has a block {max(routers)}" if max(routers) >= n_blocks
        else f"it has {n_expert} experts a layer" if n_expert > MOST
        else f"it counts {n_blocks} blocks" if n_blocks > MOST
        else "no block with a router is one that every token goes through" if min(routers) >= n_trunk
        else ""
    )  # fmt: skip
    if contradiction:
        raise ArchitectureError(
            f"{first.path.name} contradicts itself: {contradiction}.", "The file is damaged: fetch it again."
        )
    return Experts(
        _as_in_file(architecture, first, bool(biased)) if architecture.varies else architecture,
        tuple(sorted(layer for layer in routers if layer < n_trunk)),
        n_expert,
        n_used,
        n_groups,
        n_groups_used,
        tuple(sorted(layer for layer in routers if layer >= n_trunk)),
    )


def _as_in_file(architecture: Architecture, header: Header, biased: bool) -> Architecture:
    normalises = bool(header.value("expert_weights_norm", False))
    return replace(
        architecture,
        renormalises=normalises,
        selects_by="ffn_moe_probs_biased" if biased else "ffn_moe_logits",
        weights="ffn_moe_weights_norm" if normalises else "ffn_moe_weights",
    )


def _experts_used(header: Header) -> int:
    """One number, or the largest of one a layer. Source: llama-model.cpp, get_key_or_arr(LLM_KV_EXPERT_USED_COUNT)."""
    key = f"{header.architecture}.expert_used_count"
    if key in header.array_lengths:
        used = read_array(header.path, key)
        if not used or not all(isinstance(number, int) for number in used):
            raise ArchitectureError(f"{key} of {header.path.name} names no numbers.", "Fetch the file again.")
        return int(max(used))
    if key not in header.metadata:
        raise ArchitectureError(
            f"{header.path.name} does not say how many experts a token uses.", "Give a file of a known converter."
        )
    return header.whole_number(key, 0)
