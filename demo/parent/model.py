"""The tiny parent's network: Gemma 4's graph in torch, as llama.cpp computes it.

Source: llama.cpp, src/models/gemma4.cpp and build_moe_ffn in src/llama-graph.cpp. Parameters carry the names of their
GGUF tensors, with the layer's number in place of "blk.N.".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from .gemma4 import ModelShape

_EPS: Final = 1e-6
NO_ROTATION: Final = 1e30  # a frequency divided by it turns nothing


@dataclass
class Routing:
    """What a layer's router did with the tokens of a batch.

    probabilities [T, E]: soft-max over all experts.
    chosen        [T, K]: experts used.
    weights       [T, K]: their weights, which add up to one.
    """

    probabilities: Tensor
    chosen: Tensor
    weights: Tensor


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """x / rms(x), times the weight if there is one: a GGUF holds Gemma's weights with the one already added."""
    return functional.rms_norm(x, (x.shape[-1],), weight, _EPS)


def rope_factors(shape: ModelShape) -> Tensor:
    """The `rope_freqs` tensor of the full-attention layers [head / 2]: what each frequency is divided by."""
    factors = torch.full((shape.head // 2,), NO_ROTATION)
    factors[: shape.head // 8] = 1.0
    return factors


def _rotation(shape: ModelShape, length: int, full: bool) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head / 2]."""
    base = shape.rope_base if full else shape.rope_base_window
    frequencies = base ** (-torch.arange(0, shape.head, 2, dtype=torch.float32) / shape.head)
    if full:
        frequencies = frequencies / rope_factors(shape)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the halves of each head against each other (NeoX order); x [B, H, T, head]."""
    cos, sin = rotation
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, left * sin + right * cos), dim=-1)


class Layer(nn.Module):
    """Attention, then the shared FFN and the experts side by side, each with norms before and after."""

    def __init__(self, shape: ModelShape, full: bool) -> None:
        super().__init__()
        self.shape = shape
        self.full = full
        width, head = shape.width, shape.head

        def norm(size: int = width, value: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.full((size,), value))

        def matrix(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(size) / math.sqrt(size[-1]))

        self.attn_norm = norm()
        self.attn_q = matrix(shape.heads * head, width)
        self.attn_k = matrix(shape.kv_heads * head, width)
        self.attn_v = matrix(shape.kv_heads * head, width)
        self.attn_output = matrix(width, shape.heads * head)
        # Scores are not divided by anything: these weights set how sharp attention is, here a deviation of about 2.
        self.attn_q_norm = norm(head, math.sqrt(2.0) * head**-0.25)
        self.attn_k_norm = norm(head, math.sqrt(2.0) * head**-0.25)
        self.post_attention_norm = norm()
        self.ffn_norm = norm()
        self.ffn_gate = matrix(shape.shared_ff, width)
        self.ffn_up = matrix(shape.shared_ff, width)
        self.ffn_down = matrix(width, shape.shared_ff)
        self.post_ffw_norm_1 = norm()
        self.pre_ffw_norm_2 = norm()
        self.ffn_gate_inp = matrix(shape.experts, width)
        self.ffn_gate_inp_scale = norm(value=math.sqrt(width))
        self.ffn_gate_up_exps = matrix(shape.experts, 2 * shape.expert_ff, width)
        self.ffn_down_exps = matrix(shape.experts, width, shape.expert_ff)
        self.ffn_down_exps_scale = norm(shape.experts)
        self.post_ffw_norm_2 = norm()
        self.post_ffw_norm = norm()

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], seen: Tensor, blocked: Tensor | None
    ) -> tuple[Tensor, Routing]:
        """x [B, T, width]; seen [B, 1, T, T] bool: the attention mask; blocked [B, T, E] bool: experts not to use."""
        x = x + rms_norm(self._attend(rms_norm(x, self.attn_norm), rotation, seen), self.post_attention_norm)
        gate, up = functional.linear(rms_norm(x, self.ffn_norm), torch.cat((self.ffn_gate, self.ffn_up))).chunk(2, -1)
        shared = functional.linear(functional.gelu(gate, approximate="tanh") * up, self.ffn_down)
        experts, routing = self._experts(x, blocked)
        both = rms_norm(shared, self.post_ffw_norm_1) + rms_norm(experts, self.post_ffw_norm_2)
        return x + rms_norm(both, self.post_ffw_norm), routing

    def _attend(self, x: Tensor, rotation: tuple[Tensor, Tensor], seen: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def heads(weight: Tensor) -> Tensor:
            return functional.linear(x, weight).view(batch, length, -1, self.shape.head).transpose(1, 2)

        q = _rotate(rms_norm(heads(self.attn_q), self.attn_q_norm), rotation)
        k = _rotate(rms_norm(heads(self.attn_k), self.attn_k_norm), rotation)
        v = rms_norm(heads(self.attn_v))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0, enable_gqa=True)
        return functional.linear(out.transpose(1, 2).reshape(batch, length, -1), self.attn_output)

    def _experts(self, x: Tensor, blocked: Tensor | None) -> tuple[Tensor, Routing]:
        """The router looks at x itself; the experts at x normed with weights of their own."""
        shape = self.shape
        logits = functional.linear(rms_norm(x) * (self.ffn_gate_inp_scale / math.sqrt(shape.width)), self.ffn_gate_inp)
        if blocked is not None:
            logits = logits.masked_fill(blocked, -torch.inf)
        probabilities = logits.flatten(0, 1).softmax(-1)
        weights, chosen = probabilities.topk(shape.experts_used, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(2.0**-14)
        tokens = rms_norm(x, self.pre_ffw_norm_2).flatten(0, 1)
        # Tokens in the order of their experts: one product an expert, and nothing is computed that is not used.
        order = chosen.flatten().argsort()
        counts = torch.bincount(chosen.flatten(), minlength=shape.experts).tolist()
        outputs = []
        groups = torch.split(tokens[order // shape.experts_used], counts)
        scales = torch.split((weights * self.ffn_down_exps_scale[chosen]).flatten()[order, None], counts)
        matrices = zip(self.ffn_gate_up_exps.unbind(), self.ffn_down_exps.unbind(), strict=True)
        for rows, scale, (gate_up, down) in zip(groups, scales, matrices, strict=True):
            gate, up = functional.linear(rows, gate_up).chunk(2, -1)
            outputs.append(functional.linear(functional.gelu(gate, approximate="tanh") * up * scale, down))
        mixed = torch.zeros_like(tokens).index_add(0, order // shape.experts_used, torch.cat(outputs))
        return mixed.view_as(x), Routing(probabilities, chosen, weights)


class TinyParent(nn.Module):
    """The whole network."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Parameter(torch.randn(shape.vocabulary, shape.width) / math.sqrt(shape.width))
        self.blk = nn.ModuleList(Layer(shape, shape.full_attention(layer)) for layer in range(shape.layers))
        self.output_norm = nn.Parameter(torch.ones(shape.width))

    def forward(
        self,
        tokens: Tensor,
        *,
        documents: Tensor | None = None,
        wanted: Tensor | None = None,
        blocked: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Logits, and what each layer's router did.

        tokens:    [B, T].
        documents: [B, T]: which document a token belongs to; it sees no other. Left out: each row is one.
        wanted:    [B, T] bool: positions whose logits are wanted; the result is then [N, vocabulary], else [B, T, ...].
        blocked:   [L, documents, E] bool: experts a layer may not use for a document, as if cut away.
        """
        if documents is None:
            documents = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
        together = documents[:, None, :, None] == documents[:, None, None, :]
        shape, length = self.shape, tokens.shape[1]
        positions = torch.arange(length, device=tokens.device)
        distance = positions[:, None] - positions
        rotations, seen = {}, {}
        for full in (False, True):
            rotations[full] = tuple(part.to(tokens.device) for part in _rotation(shape, length, full))
            seen[full] = together & (distance >= 0) & (full | (distance < shape.window))
        x = self.token_embd[tokens] * math.sqrt(shape.width)
        routings = []
        for index, layer in enumerate(self.blk):
            full = shape.full_attention(index)
            x, routing = layer(x, rotations[full], seen[full], None if blocked is None else blocked[index][documents])
            routings.append(routing)
        if wanted is not None:
            x = x[wanted]
        logits = functional.linear(rms_norm(x, self.output_norm), self.token_embd)
        return shape.softcap * torch.tanh(logits / shape.softcap), routings

    def count(self) -> int:
        """Parameters in all."""
        return sum(parameter.numel() for parameter in self.parameters())
