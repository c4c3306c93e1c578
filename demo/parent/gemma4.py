"""Gemma 4 as a GGUF file: its sizes, their metadata keys, and how tensors are written; without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 32  # weights of a Q8_0 block


@dataclass(frozen=True)
class ModelShape:
    """Sizes. Every `full_attention_every`th layer sees everything and turns a quarter of each head, as in Gemma 4."""

    vocabulary: int = 1024
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    head: int = 32
    experts: int = 64
    experts_used: int = 4
    expert_ff: int = 32
    shared_ff: int = 64
    window: int = 128
    full_attention_every: int = 4
    context: int = 2048
    rope_base: float = 1e4  # full attention
    rope_base_window: float = 1e3
    softcap: float = 30.0

    def full_attention(self, layer: int) -> bool:
        """Whether a layer sees the whole context."""
        return (layer + 1) % self.full_attention_every == 0


def write_metadata(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    """Write the sizes under the keys that llama.cpp reads. Source: llama.cpp, src/models/gemma4.cpp."""
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.shared_ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_key_length_swa, writer.add_value_length_swa):
        add(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_dimension_count_swa(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_freq_base_swa(shape.rope_base_window)
    writer.add_sliding_window(shape.window)
    writer.add_sliding_window_pattern([not shape.full_attention(layer) for layer in range(shape.layers)])
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.experts_used)
    writer.add_expert_feed_forward_length(shape.expert_ff)
    writer.add_shared_kv_layers(0)
    writer.add_embedding_length_per_layer_input(0)
    writer.add_final_logit_softcapping(shape.softcap)


def write_tensors(
    writer: gguf.GGUFWriter, tensors: Iterable[tuple[str, NDArray[np.float32]]], *, quantise: bool
) -> None:
    """Write the file with these tensors and close it.

    tensors:  GGUF's names and arrays, rows innermost.
    quantise: Q8_0 for the matrices whose rows are whole blocks, except the router's; else everything is F32.
    """
    for name, array in tensors:
        if quantise and array.ndim > 1 and array.shape[-1] % _BLOCK == 0 and "ffn_gate_inp" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
