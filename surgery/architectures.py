"""Which tensors of which architecture belong to single experts: the table that cutting and masking read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from coe.engine.gguf_header import Header, TensorInfo, read_array

from .errors import ArchitectureError

_BLOCK: Final = re.compile(r"blk\.(\d+)\.(.+)")

_ROUTER: Final = "ffn_gate_inp.weight"
_CHOICE_BIAS: Final = "exp_probs_b.bias"  # added to the probabilities for the choice alone, not for the weights
_MATRICES: Final = ("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps")

# What every architecture's experts may have: the router's rows, the matrices (gate and up apart or fused), and a number
# an expert beside each matrix. llama-model.cpp looks for the scales whatever the architecture.
_EXPERTS: Final = (
    _ROUTER,
    *(f"{matrix}.{part}" for matrix in _MATRICES for part in ("weight", "scale", "input_scale")),
)
_BIASES: Final = ("ffn_gate_inp.bias", *(f"{matrix}.bias" for matrix in _MATRICES))


@dataclass(frozen=True)
class Architecture:
    """How an architecture's router and experts are laid out.

    name:          `general.architecture`, which is also the prefix of its metadata keys.
    per_expert:    tensors of a block, without `blk.N.`, whose outermost dimension counts the experts; a file need not
                   have all of them. What is not listed is left alone, whatever its name resembles.
    renormalises:  the weights of the chosen experts are divided by their sum, so that nothing changes for a token whose
                   chosen experts are all kept. Where False the output grows when experts go.
    selects_by:    the graph node that the choice of experts is made by; -inf written into it masks an expert.
    weights:       the graph node of the weights that the chosen experts' outputs are multiplied with, before a
                   constant scale.
    shared_output: the tensor of a block that the shared expert's contribution is proportional to in the graph; None
                   for an architecture without a shared expert.
    varies:        normalisation and choice are the file's to say, by `expert_weights_norm` and by having exp_probs_b;
                   `experts_of` gives the row as it is for a file.

    Source: llama-graph.cpp, build_moe_ffn, and its calls in src/models.
    """

    name: str
    per_expert: tuple[str, ...] = _EXPERTS
    renormalises: bool = True
    selects_by: str = "ffn_moe_logits"
    weights: str = "ffn_moe_weights_norm"
    shared_output: str | None = None
    varies: bool = False


_SHARED_DOWN: Final = "ffn_down_shexp.weight"  # added to the experts' sum; a gate or scale in between is linear

ARCHITECTURES: Final[dict[str, Architecture]] = {
    architecture.name: architecture
    for architecture in (
        # ffn_gate_inp.scale is of the embedding's width and stays, though its name begins like the router's. The dense
        # ffn_gate, ffn_up and ffn_down are the shared expert; a norm follows, so that its weight alone scales them.
        Architecture("gemma4", shared_output="post_ffw_norm_1.weight"),
        Architecture("qwen3moe"),
        Architecture("llama"),  # Mixtral and its like
        Architecture("granitemoe", shared_output=_SHARED_DOWN),
        Architecture("qwen35moe", shared_output=_SHARED_DOWN),
        Architecture("qwen3next", shared_output=_SHARED_DOWN),
        Architecture("olmoe", renormalises=False, weights="ffn_moe_weights"),
        Architecture("qwen2moe", renormalises=False, weights="ffn_moe_weights", shared_output=_SHARED_DOWN),
        # The softmax is taken over the chosen experts alone; the biased logits go by the name of probabilities.
        Architecture("gpt-oss", (*_EXPERTS, *_BIASES), selects_by="ffn_moe_probs", weights="ffn_moe_weights_softmax"),
        Architecture("glm4moe", (*_EXPERTS, _CHOICE_BIAS), shared_output=_SHARED_DOWN, varies=True),
        Architecture("deepseek2", (*_EXPERTS, _CHOICE_BIAS), shared_output=_SHARED_DOWN, varies=True),
    )
}


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

    Raises ArchitectureError for a dense model, an unknown architecture, tensors of experts that the table does not
    list, or tensors that contradict the metadata.
    """
    first = headers[0]
    architecture = architecture_of(first)
    n_expert = int(first.value("expert_count", 0) or 0)
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
            if found[1] == _ROUTER:
                routers.append(found[0])
            elif found[1] == _CHOICE_BIAS:
                biased.append(found[0])
    if not routers or n_expert < 2:
        raise ArchitectureError(f"{first.path.name} has no experts to choose from.", "Give a mixture of experts.")
    if biased and set(biased) != set(routers):
        raise ArchitectureError(
            f"{first.path.name} has {_CHOICE_BIAS} in some of its layers only.", "The file is damaged: fetch it again."
        )
    n_trunk = int(first.value("block_count", 0)) - int(first.value("nextn_predict_layers", 0))
    return Experts(
        _as_in_file(architecture, first, bool(biased)) if architecture.varies else architecture,
        tuple(sorted(layer for layer in routers if layer < n_trunk)),
        n_expert,
        _experts_used(first),
        int(first.value("expert_group_count", 1) or 1),
        int(first.value("expert_group_used_count", 1) or 1),
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
        return int(max(read_array(header.path, key)))
    if key not in header.metadata:
        raise ArchitectureError(
            f"{header.path.name} does not say how many experts a token uses.", "Give a file of a known converter."
        )
    return int(header.metadata[key])
