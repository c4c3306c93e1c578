"""Which tensors of which architecture belong to single experts: the table that cutting, masking and swapping read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .header import TensorInfo

_BLOCK: Final = re.compile(r"blk\.(\d+)\.(.+)")

ROUTER: Final = "ffn_gate_inp.weight"
CHOICE_BIAS: Final = "exp_probs_b.bias"  # added to the probabilities for the choice alone, not for the weights
_MATRICES: Final = ("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps")

# What every architecture's experts may have: the router's rows, the matrices (gate and up apart or fused), and a number
# an expert beside each matrix. llama-model.cpp looks for the scales whatever the architecture.
_EXPERTS: Final = (
    ROUTER,
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
                   surgery's `experts_of` gives the row as it is for a file.

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
        Architecture("glm4moe", (*_EXPERTS, CHOICE_BIAS), shared_output=_SHARED_DOWN, varies=True),
        Architecture("deepseek2", (*_EXPERTS, CHOICE_BIAS), shared_output=_SHARED_DOWN, varies=True),
    )
}


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
