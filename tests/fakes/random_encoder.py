"""Tiny random GGUFs made for embeddings, some hundred KB each: an encoder (BERT), and a decoder whose last token's
state is the embedding (Qwen3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import random_model
from numpy.typing import NDArray

WIDTH = 32
_HEADS = 2
_FF = 64
_LAYERS = 2
_WORDS = ("red", "green", "blue", "sky", "grass", "rose", "is", "the", "over")
_VOCABULARY = 320  # of the decoder

Array = NDArray[np.float32]
POOLING = gguf.PoolingType


def write_encoder(path: Path, pooling: gguf.PoolingType | None = POOLING.MEAN, *, seed: int = 0) -> Path:
    """A BERT of 64 positions; words that it does not know are spelt by letters. pooling: None to name none."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("Random BERT")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    letters = [chr(code) for code in range(33, 127)]
    # As llama.cpp wants WordPiece: a word's beginning is marked, its further pieces are not.
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{word}" for word in _WORDS)]
    tokens += [*(f"▁{letter}" for letter in letters), *letters]
    kind = gguf.TokenType
    kinds = [kind.CONTROL, kind.UNKNOWN, *[kind.CONTROL] * 3, *[kind.NORMAL] * (len(tokens) - 5)]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_type_count(2)
    for name, token in (("bos", 2), ("eos", 3), ("unk", 1), ("sep", 3), ("pad", 0), ("mask", 4)):
        getattr(writer, f"add_{name}_token_id")(token)
    _write(writer, _encoder_tensors(rng, len(tokens)))
    return path


def write_decoder(path: Path, pooling: gguf.PoolingType = POOLING.LAST, *, seed: int = 0) -> Path:
    """A Qwen3 of 4,096 positions."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name("Random Qwen3 Embedding")
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)
    writer.add_pooling_type(pooling)
    random_model.write_vocabulary(writer, random_model.Shape(vocabulary=_VOCABULARY))
    _write(writer, _decoder_tensors(rng))
    return path


def _write(writer: gguf.GGUFWriter, tensors: Iterator[tuple[str, Array]]) -> None:
    for name, array in tensors:
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _matrix(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))).astype(np.float32)


def _normed(name: str) -> Iterator[tuple[str, Array]]:
    yield f"{name}.weight", np.ones(WIDTH, np.float32)
    yield f"{name}.bias", np.zeros(WIDTH, np.float32)


def _encoder_tensors(rng: np.random.Generator, n_tokens: int) -> Iterator[tuple[str, Array]]:
    yield "token_embd.weight", _matrix(rng, n_tokens, WIDTH)
    yield "token_types.weight", _matrix(rng, 2, WIDTH)
    yield "position_embd.weight", _matrix(rng, 64, WIDTH)
    yield from _normed("token_embd_norm")
    for layer in range(_LAYERS):
        at = f"blk.{layer}."
        for name, rows, columns in (
            *((f"attn_{part}", WIDTH, WIDTH) for part in ("q", "k", "v", "output")),
            ("ffn_up", _FF, WIDTH),
            ("ffn_down", WIDTH, _FF),
        ):
            yield f"{at}{name}.weight", _matrix(rng, rows, columns)
            yield f"{at}{name}.bias", np.zeros(rows, np.float32)
        yield from _normed(f"{at}attn_output_norm")
        yield from _normed(f"{at}layer_output_norm")


def _decoder_tensors(rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    head = WIDTH // _HEADS
    yield "token_embd.weight", _matrix(rng, _VOCABULARY, WIDTH)
    yield "output_norm.weight", np.ones(WIDTH, np.float32)
    for layer in range(_LAYERS):
        at = f"blk.{layer}."
        for norm, width in (("attn_norm", WIDTH), ("ffn_norm", WIDTH), ("attn_q_norm", head), ("attn_k_norm", head)):
            yield f"{at}{norm}.weight", np.ones(width, np.float32)
        for part in ("q", "k", "v", "output"):
            yield f"{at}attn_{part}.weight", _matrix(rng, WIDTH, WIDTH)
        yield f"{at}ffn_gate.weight", _matrix(rng, _FF, WIDTH)
        yield f"{at}ffn_up.weight", _matrix(rng, _FF, WIDTH)
        yield f"{at}ffn_down.weight", _matrix(rng, WIDTH, _FF)
