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
from .gemma4 import ModelShape, write_metadata, write_tensors
from .model import TinyParent, rope_factors
from .tokenizer import BOS, CONTROL, END_OF_TURN, EOS, PAD, Tokenizer
from .train import load_checkpoint

NAME: Final = "College parent"


def export(path: Path, model: TinyParent, tokenizer: Tokenizer, *, quantise: bool = True) -> Path:
    """Write the model and give its path back.

    quantise: Q8_0 for the matrices, except the router's; else everything is F32.
    """
    with written_beside(path) as beside:
        writer = gguf.GGUFWriter(beside, "gemma4")
        writer.add_name(NAME)
        writer.add_license("apache-2.0")
        write_metadata(writer, model.shape)
        _write_vocabulary(writer, tokenizer)
        write_tensors(writer, _tensors(model), quantise=quantise)
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
