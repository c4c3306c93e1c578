"""Tiny random GGUFs of every architecture that surgery knows, some hundred KB each, which llama.cpp loads and runs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import random_model
from gguf import GGMLQuantizationType as Type
from llama_cpp._ggml import libggml
from numpy.typing import NDArray

from coe.surgery.mask import Mask
from coe.surgery.parent import Parent

ARCHITECTURES: Final = (
    "gemma4", "qwen3moe", "qwen2moe", "llama", "olmoe", "granitemoe", "gpt-oss", "glm4moe", "deepseek2", "qwen35moe",
    "qwen3next",
)  # fmt: skip
FUSED: Final = ("gemma4", "deepseek2", "qwen35moe", "qwen3next")  # llama.cpp takes gate and up as one tensor there
DRAFTING: Final = ("glm4moe", "deepseek2", "qwen35moe", "qwen3next")  # may have a block that predicts further tokens

_VOCABULARY: Final = 320
_HEADS: Final = 2
_LORA: Final = 32  # deepseek2: rank of its compressed queries, keys and values
_ROPE: Final = 8  # deepseek2: width of the part of a key that turns with the position
_STATE: Final = 16  # qwen35moe, qwen3next: width of a linear attention head

Array = NDArray[np.float32]


@dataclass(frozen=True)
class MoE:
    """What to write.

    embedding, expert_ff: give 256 each for types whose blocks are that long (Q4_K).
    quantised:   type of all matrices but the router; rows that are no whole blocks stay F32.
    fused:       gate and up as one tensor, where the architecture can (FUSED).
    dense_layers: leading layers without experts (glm4moe, deepseek2).
    draft:       one more block, for multi-token prediction (DRAFTING).
    choice_bias: exp_probs_b (deepseek2; glm4moe has it anyway).
    normalised:  expert_weights_norm (glm4moe, deepseek2).
    shared:      a shared expert, where the architecture can do without (granitemoe).
    used_array:  expert_used_count as one number a layer.
    parts:       files to split into.
    """

    architecture: str = "gemma4"
    layers: int = 2
    experts: int = 8
    experts_used: int = 2
    embedding: int = 64
    expert_ff: int = 32
    quantised: Type = Type.F32
    fused: bool = False
    dense_layers: int = 0
    draft: bool = False
    groups: int = 1
    groups_used: int = 1
    choice_bias: bool = True
    normalised: bool = True
    shared: bool = True
    used_array: bool = False
    parts: int = 1
    alignment: int = 32

    @property
    def head(self) -> int:
        """Width of an attention head."""
        return self.embedding // _HEADS


def write_random_moe(path: Path, moe: MoE | None = None, *, seed: int = 0, **changes: Any) -> Path:
    """Write the model and give the path of its first part: write_random_moe(path, architecture="olmoe")."""
    moe = moe or MoE(**changes)
    tensors = [
        (name, *_packed(name, array, moe.quantised)) for name, array in _tensors(moe, np.random.default_rng(seed))
    ]
    size = -(-len(tensors) // moe.parts)
    names = [path]
    if moe.parts > 1:
        names = [path.with_name(f"{path.stem}-{i:05d}-of-{moe.parts:05d}.gguf") for i in range(1, moe.parts + 1)]
    for part, name in enumerate(names):
        writer = gguf.GGUFWriter(name, moe.architecture)
        if moe.alignment != 32:
            writer.add_custom_alignment(moe.alignment)
        if part == 0:
            writer.add_name(f"Random {moe.architecture}")
            _write_metadata(writer, moe)
            random_model.write_vocabulary(writer, random_model.Shape(vocabulary=_VOCABULARY))
            writer.add_chat_template(random_model.CHAT_TEMPLATE)
        if moe.parts > 1:
            writer.add_uint16("split.no", part)
            writer.add_uint16("split.count", moe.parts)
            writer.add_int32("split.tensors.count", len(tensors))
        for tensor, packed, kind in tensors[part * size : (part + 1) * size]:
            writer.add_tensor(tensor, packed, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return names[0]


def quantise(array: Array, kind: Type) -> NDArray[np.uint8]:
    """The rows' bytes in a type of ggml's, by ggml itself (the gguf package cannot write K-quants)."""
    rows = np.ascontiguousarray(array, np.float32).reshape(-1, array.shape[-1])
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((len(rows), rows.shape[1] // block * block_bytes), np.uint8)
    function = libggml.ggml_quantize_chunk
    i64, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes, function.restype = [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer], ctypes.c_size_t
    written = function(int(kind), rows.ctypes.data, out.ctypes.data, 0, len(rows), rows.shape[1], None)
    assert written == out.nbytes
    return out.reshape(*array.shape[:-1], -1)


def _packed(name: str, array: Array, kind: Type) -> tuple[NDArray[Any], Type]:
    whole_blocks = array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
    plain = array.ndim < 2 or not name.endswith(".weight") or "ffn_gate_inp" in name or "ssm_conv1d" in name
    if kind == Type.F32 or plain or not whole_blocks:
        return array, Type.F32
    if kind == Type.F16:
        return array.astype(np.float16), kind
    return quantise(array, kind), kind


def _write_metadata(writer: gguf.GGUFWriter, moe: MoE) -> None:
    arch = moe.architecture
    writer.add_context_length(4096)
    writer.add_embedding_length(moe.embedding)
    writer.add_block_count(moe.layers + moe.draft)
    writer.add_feed_forward_length(2 * moe.expert_ff)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(1 if arch == "deepseek2" else _HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)
    writer.add_expert_count(moe.experts)
    if moe.used_array:
        writer.add_array(f"{arch}.expert_used_count", [moe.experts_used] * (moe.layers + moe.draft))
    else:
        writer.add_expert_used_count(moe.experts_used)
    if arch not in ("llama", "olmoe", "granitemoe"):  # their experts have feed_forward_length
        writer.add_expert_feed_forward_length(moe.expert_ff)
    if moe.groups > 1:
        writer.add_expert_group_count(moe.groups)
        writer.add_expert_group_used_count(moe.groups_used)
    if moe.draft:
        writer.add_nextn_predict_layers(1)
    if arch == "deepseek2":
        writer.add_key_length(_LORA + _ROPE)
        writer.add_value_length(_LORA)
        writer.add_key_length_mla(moe.head)
        writer.add_value_length_mla(moe.head)
        writer.add_q_lora_rank(_LORA)
        writer.add_kv_lora_rank(_LORA)
        writer.add_rope_dimension_count(_ROPE)
    else:
        writer.add_key_length(moe.head)
        writer.add_value_length(moe.head)
        writer.add_rope_dimension_count(moe.head)
    if arch in ("gemma4", "gpt-oss"):
        writer.add_sliding_window(32)
    if arch == "gemma4":
        writer.add_key_length_swa(moe.head)
        writer.add_value_length_swa(moe.head)
        writer.add_rope_dimension_count_swa(moe.head)
        writer.add_rope_freq_base_swa(1e4)
        writer.add_sliding_window_pattern([layer % 2 == 0 for layer in range(moe.layers)])
        writer.add_shared_kv_layers(0)
        writer.add_embedding_length_per_layer_input(0)
        writer.add_final_logit_softcapping(30.0)
    if arch == "granitemoe":
        writer.add_logit_scale(1.0)
    if (arch == "granitemoe" and moe.shared) or arch in ("qwen2moe", "qwen35moe", "qwen3next"):
        writer.add_expert_shared_feed_forward_length(moe.expert_ff)
    if arch in ("glm4moe", "deepseek2"):
        writer.add_expert_shared_count(1)
        writer.add_leading_dense_block_count(moe.dense_layers)
        writer.add_expert_weights_norm(moe.normalised)
        writer.add_expert_weights_scale(1.5)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if arch in ("qwen35moe", "qwen3next"):
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(_STATE * _HEADS)
        writer.add_ssm_state_size(_STATE)
        writer.add_ssm_time_step_rank(_HEADS)
        writer.add_ssm_group_count(_HEADS)
        writer.add_full_attention_interval(2)
    if arch == "qwen35moe":
        quarter = moe.head // 8
        writer.add_rope_dimension_sections([quarter] * 4)


def _tensors(moe: MoE, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """Names and arrays, numpy order (rows of ne0 innermost); scaled so that activations neither vanish nor explode."""

    def matrix(*dimensions: int) -> Array:
        return (rng.standard_normal(dimensions, np.float32) / np.float32(np.sqrt(dimensions[-1]))).astype(np.float32)

    def vector(count: int, around: float = 1.0) -> Array:
        return (around + 0.1 * rng.standard_normal(count)).astype(np.float32)

    yield "token_embd.weight", matrix(_VOCABULARY, moe.embedding)
    yield "output_norm.weight", vector(moe.embedding)
    if moe.architecture == "gemma4":
        yield "rope_freqs.weight", np.ones(moe.head // 2, np.float32)
    else:
        yield "output.weight", matrix(_VOCABULARY, moe.embedding)
    for layer in range(moe.layers + moe.draft):
        drafts = layer >= moe.layers
        parts = [_attention(moe, layer, drafts, matrix, vector), _feed_forward(moe, layer, matrix, vector)]
        for part in parts:
            for name, array in part:
                yield f"blk.{layer}.{name}", array
        if drafts:
            yield f"blk.{layer}.nextn.eh_proj.weight", matrix(moe.embedding, 2 * moe.embedding)
            yield f"blk.{layer}.nextn.enorm.weight", vector(moe.embedding)
            yield f"blk.{layer}.nextn.hnorm.weight", vector(moe.embedding)


def _attention(moe: MoE, layer: int, drafts: bool, matrix: Any, vector: Any) -> Iterator[tuple[str, Array]]:
    arch, width, head = moe.architecture, moe.embedding, moe.head
    yield "attn_norm.weight", vector(width)
    if arch == "deepseek2":
        yield "attn_q_a.weight", matrix(_LORA, width)
        yield "attn_q_a_norm.weight", vector(_LORA)
        yield "attn_q_b.weight", matrix(_HEADS * head, _LORA)
        yield "attn_kv_a_mqa.weight", matrix(_LORA + _ROPE, width)
        yield "attn_kv_a_norm.weight", vector(_LORA)
        yield "attn_k_b.weight", matrix(_HEADS, _LORA, head - _ROPE)
        yield "attn_v_b.weight", matrix(_HEADS, head, _LORA)
        yield "attn_output.weight", matrix(width, _HEADS * head)
        return
    linear = arch in ("qwen35moe", "qwen3next")
    if linear and not drafts and layer % 2 == 0:
        channels = _STATE * _HEADS
        yield "attn_qkv.weight", matrix(3 * channels, width)
        yield "attn_gate.weight", matrix(channels, width)
        yield "ssm_conv1d.weight", matrix(3 * channels, 4)
        yield "ssm_dt.bias", vector(_HEADS, 0.0)
        yield "ssm_a", -vector(_HEADS)
        if arch == "qwen35moe":
            yield "ssm_beta.weight", matrix(_HEADS, width)
            yield "ssm_alpha.weight", matrix(_HEADS, width)
        else:
            yield "ssm_ba.weight", matrix(2 * _HEADS, width)
        yield "ssm_norm.weight", vector(_STATE)
        yield "ssm_out.weight", matrix(width, channels)
        return
    yield "attn_q.weight", matrix((2 if linear else 1) * _HEADS * head, width)  # a gate beside the query
    yield "attn_k.weight", matrix(_HEADS * head, width)
    yield "attn_v.weight", matrix(_HEADS * head, width)
    yield "attn_output.weight", matrix(width, _HEADS * head)
    if arch in ("qwen2moe", "gpt-oss"):
        for name in ("attn_q", "attn_k", "attn_v"):
            yield f"{name}.bias", vector(_HEADS * head, 0.0)
    if arch == "gpt-oss":
        yield "attn_output.bias", vector(width, 0.0)
        yield "attn_sinks.weight", vector(_HEADS, 0.0)
    if arch == "olmoe":
        yield "attn_q_norm.weight", vector(width)
        yield "attn_k_norm.weight", vector(width)
    elif arch in ("gemma4", "qwen3moe") or linear:
        yield "attn_q_norm.weight", vector(head)
        yield "attn_k_norm.weight", vector(head)


def _feed_forward(moe: MoE, layer: int, matrix: Any, vector: Any) -> Iterator[tuple[str, Array]]:
    arch, width, ff, experts = moe.architecture, moe.embedding, moe.expert_ff, moe.experts
    if arch in ("llama", "olmoe", "granitemoe"):
        ff *= 2
    norms = ["ffn_norm"]
    if arch == "gemma4":
        norms = ["post_attention_norm", "ffn_norm", "post_ffw_norm", "pre_ffw_norm_2", "post_ffw_norm_1"]
        norms.append("post_ffw_norm_2")
    elif arch in ("gpt-oss", "glm4moe", "qwen35moe", "qwen3next"):
        norms = ["post_attention_norm"]
    for norm in norms:
        yield f"{norm}.weight", vector(width)
    dense = layer < moe.dense_layers
    if arch == "gemma4" or dense:
        yield "ffn_gate.weight", matrix(2 * moe.expert_ff, width)
        yield "ffn_up.weight", matrix(2 * moe.expert_ff, width)
        yield "ffn_down.weight", matrix(width, 2 * moe.expert_ff)
    if dense:
        return
    # Spread wide, so that the choice is seldom a near-tie.
    yield "ffn_gate_inp.weight", 2 * matrix(experts, width)
    if arch == "gemma4":
        yield "ffn_gate_inp.scale", np.float32(np.sqrt(width)) * vector(width)
        yield "ffn_down_exps.scale", vector(experts)
    if moe.fused:
        yield "ffn_gate_up_exps.weight", matrix(experts, 2 * ff, width)
    else:
        yield "ffn_gate_exps.weight", matrix(experts, ff, width)
        yield "ffn_up_exps.weight", matrix(experts, ff, width)
    yield "ffn_down_exps.weight", matrix(experts, width, ff)
    if arch == "gpt-oss":
        yield "ffn_gate_inp.bias", 5 * vector(experts, 0.0)
        yield "ffn_gate_exps.bias", np.stack([vector(ff, 0.0) for _ in range(experts)])
        yield "ffn_up_exps.bias", np.stack([vector(ff, 0.0) for _ in range(experts)])
        yield "ffn_down_exps.bias", np.stack([vector(width, 0.0) for _ in range(experts)])
    if arch == "glm4moe" or (arch == "deepseek2" and moe.choice_bias):
        yield "exp_probs_b.bias", vector(experts, 0.0)
    if arch == "granitemoe" and not moe.shared:
        return
    if arch in ("qwen2moe", "granitemoe", "glm4moe", "deepseek2", "qwen35moe", "qwen3next"):
        yield "ffn_gate_shexp.weight", matrix(moe.expert_ff, width)
        yield "ffn_up_shexp.weight", matrix(moe.expert_ff, width)
        yield "ffn_down_shexp.weight", matrix(width, moe.expert_ff)
    if arch in ("qwen2moe", "qwen35moe", "qwen3next"):
        yield "ffn_gate_inp_shexp.weight", vector(width, 0.0)


def random_mask(parent: Parent, n_keep: int, *, seed: int = 0) -> Mask:
    """A mask that keeps that many experts a layer, as many of each group, chosen at random."""
    experts, rng = parent.experts, np.random.default_rng(seed)
    size, of_group = experts.n_expert // experts.n_groups, n_keep // experts.n_groups
    keep = {
        layer: tuple(
            sorted(
                group * size + int(expert)
                for group in range(experts.n_groups)
                for expert in rng.choice(size, of_group, replace=False)
            )
        )
        for layer in experts.layers
    }
    return Mask(parent.identity(), keep)
