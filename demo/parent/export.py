"""The tiny parent as a GGUF and back: `python -m coe.demo.parent.export CHECKPOINT OUT.gguf`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from coe.engine.files import written_beside

from .chat import CHAT_TEMPLATE
from .model import ModelShape, TinyParent, rope_factors
from .tokenizer import BOS, CONTROL, END_OF_TURN, EOS, PAD, Tokenizer
from .train import load_checkpoint

NAME: Final = "College parent"


def export(path: Path, model: TinyParent, tokenizer: Tokenizer, *, quantise: bool = True) -> Path:
    """Write the model and give its path back.

    quantise: Q8_0 for the matrices, except the router's; else everything is F32.
    """
    with written_beside(path) as beside:
        writer = gguf.GGUFWriter(beside, "gemma4")
        _write_metadata(writer, model.shape)
        _write_vocabulary(writer, tokenizer)
        for name, array in _tensors(model):
            if quantise and array.ndim > 1 and "ffn_gate_inp" not in name:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def read(path: Path) -> tuple[TinyParent, Tokenizer]:
    """The network and the tokenizer of a file that `export` wrote; quantised weights as what they stand for."""
    reader = gguf.GGUFReader(path)

    def field(key: str) -> Any:
        return reader.fields[key].contents()

    keys = {name: f"gemma4.{key}" for name, key in _KEYS.items()}
    sizes = {name: field(key) for name, key in keys.items()}
    tokens = field("tokenizer.ggml.tokens")
    windows = field("gemma4.attention.sliding_window_pattern")
    shape = ModelShape(vocabulary=len(tokens), full_attention_every=windows.index(False) + 1, **sizes)
    model = TinyParent(shape)
    tensors = {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        for tensor in reader.tensors
    }
    model.load_state_dict({name: tensors[_tensor_name(name)] for name in model.state_dict()})
    return model, Tokenizer.from_tokens(tokens)


# Sizes as a GGUF names them.
_KEYS: Final = {
    "layers": "block_count",
    "width": "embedding_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head": "attention.key_length",
    "experts": "expert_count",
    "experts_used": "expert_used_count",
    "expert_ff": "expert_feed_forward_length",
    "shared_ff": "feed_forward_length",
    "window": "attention.sliding_window",
    "context": "context_length",
    "rope_base": "rope.freq_base",
    "rope_base_window": "rope.freq_base_swa",
    "softcap": "final_logit_softcapping",
}


def _write_metadata(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    writer.add_name(NAME)
    writer.add_license("apache-2.0")
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


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    kind = gguf.TokenType
    special = len(tokenizer) - len(tokenizer.pieces)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokenizer.tokens)
    # Of two joins llama.cpp makes the one with the higher score: the earlier piece.
    writer.add_token_scores([0.0] * special + [-float(rank) for rank in range(len(tokenizer.pieces))])
    writer.add_token_types(
        [kind.CONTROL] * len(CONTROL) + [kind.UNKNOWN] + [kind.BYTE] * 256 + [kind.NORMAL] * len(tokenizer.pieces)
    )
    writer.add_bos_token_id(tokenizer.control(BOS))
    writer.add_eos_token_id(tokenizer.control(EOS))
    writer.add_eot_token_id(tokenizer.control(END_OF_TURN))
    writer.add_pad_token_id(tokenizer.control(PAD))
    writer.add_unk_token_id(len(CONTROL))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(model: TinyParent) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """GGUF's names and the arrays, rows innermost."""
    yield "rope_freqs.weight", rope_factors(model.shape).numpy()
    for name, parameter in model.state_dict().items():
        yield _tensor_name(name), parameter.float().cpu().contiguous().numpy()


def _tensor_name(parameter: str) -> str:
    """GGUF's name of a parameter."""
    stem = parameter.removesuffix("_scale")
    return f"{stem}.weight" if stem == parameter else f"{stem}.scale"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--f32", action="store_true", help="F32 instead of Q8_0")
    given = parser.parse_args()
    model, tokenizer = load_checkpoint(given.checkpoint)
    path = export(given.out, model, tokenizer, quantise=not given.f32)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
