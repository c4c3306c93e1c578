"""Which tensors of which architecture belong to single experts: the table that cutting and masking read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coe.engine.gguf_header import Header, TensorInfo

from .errors import ArchitectureError

_BLOCK: Final = re.compile(r"blk\.(\d+)\.(.+)")

_ROUTER: Final = "ffn_gate_inp.weight"
_SPLIT: Final = ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
_FUSED: Final = ("ffn_gate_up_exps.weight",)


@dataclass(frozen=True)
class Architecture:
    """How an architecture's router and experts are laid out.

    name:         `general.architecture`, which is also the prefix of its metadata keys.
    per_expert:   tensors of a block, without `blk.N.`, whose outermost dimension counts the experts; a file need not
                  have all of them. What is not listed is left alone, whatever its name resembles.
    renormalises: the weights of the chosen experts are divided by their sum, so that nothing changes for a token whose
                  chosen experts are all kept. Where False the output grows when experts go.
    selects_by:   the graph node that the choice of experts is made by; -inf written into it masks an expert.
    weights:      the graph node of the weights that the chosen experts' outputs are multiplied with, before a
                  constant scale.
    grouped:      experts form contiguous groups of equal size, and each group must keep as many as any other.
    """

    name: str
    per_expert: tuple[str, ...]
    renormalises: bool = True
    selects_by: str = "ffn_moe_logits"
    weights: str = "ffn_moe_weights_norm"
    grouped: bool = False


ARCHITECTURES: Final[dict[str, Architecture]] = {
    architecture.name: architecture
    for architecture in (
        # ffn_gate_inp.scale is of the embedding's width and stays, though its name begins like the router's.
        Architecture("gemma4", (_ROUTER, *_FUSED, *_SPLIT, "ffn_down_exps.scale")),
    )
}


@dataclass(frozen=True)
class Experts:
    """What a header says of a model's experts.

    layers: block numbers that have a router, ascending.
    """

    architecture: Architecture
    layers: tuple[int, ...]
    n_expert: int
    n_used: int  # experts a token uses, the largest over the layers
    n_groups: int = 1


def architecture_of(header: Header) -> Architecture:
    """The table's row for a file. Raises ArchitectureError, naming the architecture, when there is none."""
    found = ARCHITECTURES.get(header.architecture)
    if found is None:
        raise ArchitectureError(
            f"{header.path.name} is of the architecture {header.architecture or '(none)'!r}, "
            "which surgery does not know.",
            f"Known: {', '.join(sorted(ARCHITECTURES))}.",
        )
    return found


def block_tensor(name: str) -> tuple[int, str] | None:
    """Block number and the rest of a tensor's name, or None for a tensor outside the blocks."""
    match = _BLOCK.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def is_per_expert(architecture: Architecture, tensor: str) -> bool:
    """Whether a tensor, named as in the file, is cut with the experts."""
    found = block_tensor(tensor)
    return found is not None and found[1] in architecture.per_expert


def expert_bytes(tensor: TensorInfo) -> int:
    """Bytes of one expert's part of a per-expert tensor: the outermost dimension counts the experts."""
    return tensor.n_bytes // tensor.shape[-1]


def experts_of(headers: Sequence[Header]) -> Experts:
    """What the headers of a model's parts say of its experts.

    Raises ArchitectureError for a dense model, an unknown architecture, or tensors that contradict the metadata.
    """
    first = headers[0]
    architecture = architecture_of(first)
    n_expert = int(first.value("expert_count", 0) or 0)
    layers = []
    for header in headers:
        for tensor in header.tensors:
            found = block_tensor(tensor.name)
            if found is None or found[1] not in architecture.per_expert:
                continue
            if tensor.shape[-1] != n_expert:
                raise ArchitectureError(
                    f"{tensor.name} of {header.path.name} has {tensor.shape[-1]} experts, the metadata say {n_expert}.",
                    "The file is damaged or was cut by another tool: fetch it again.",
                )
            if found[1] == _ROUTER:
                layers.append(found[0])
    if not layers or n_expert < 2:
        raise ArchitectureError(f"{first.path.name} has no experts to choose from.", "Give a mixture of experts.")
    return Experts(
        architecture,
        tuple(sorted(layers)),
        n_expert,
        _experts_used(first),
        int(first.value("expert_group_count", 1) or 1),
    )


def _experts_used(header: Header) -> int:
    used = header.value("expert_used_count")
    if used is None:
        raise ArchitectureError(
            f"{header.path.name} does not say how many experts a token uses.", "Give a file of a known converter."
        )
    return int(used)
