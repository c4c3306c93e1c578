"""Write a GGUF of random weights in the shape of Gemma 4: real enough for llama.cpp to load and run, of any size.

For tests (some hundred KB) and for benchmarks whose cost does not depend on what the weights say, such as sampling
from a vocabulary of 262,144. Run: python benchmarks/random_model.py OUT.gguf --vocabulary 262144 --layers 4
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from coe.demo.parent.gemma4 import ModelShape, write_metadata, write_tensors

# Ours, not Google's: the turn and thinking tokens are Gemma 4's, so that the family is recognised.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
<|turn>{{ "model" if message.role == "assistant" else message.role }}
{% if message.role == "system" and enable_thinking %}<|think|>
{% endif %}{{ message.content }}<turn|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|turn>model
{% if enable_thinking %}<|channel>thought
{% else %}<|channel>thought
<channel|>{% endif %}
{%- endif -%}
"""

CONTROL_TOKENS = ("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>")
UNKNOWN_TOKEN = "<unk>"
_NORMS = (
    "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "pre_ffw_norm_2", "post_ffw_norm_1",
    "post_ffw_norm_2",
)  # fmt: skip


@dataclass(frozen=True)
class Shape(ModelShape):
    """The sizes of a model that is small by default."""

    vocabulary: int = 512
    layers: int = 3
    width: int = 64
    heads: int = 2
    kv_heads: int = 1
    experts: int = 4
    experts_used: int = 2
    window: int = 32
    full_attention_every: int = 3
    context: int = 8192
    rope_base: float = 1e6
    rope_base_window: float = 1e4


def write_random_model(
    path: Path,
    shape: Shape | None = None,
    *,
    seed: int = 0,
    quantise: bool = False,
    chat_template: str | None = CHAT_TEMPLATE,
    architecture: str = "gemma4",
    more_control: Sequence[str] = (),
) -> Path:
    """Write the model and give its path back.

    more_control: control tokens beside CONTROL_TOKENS, such as the tags of tools.
    quantise: Q8_0 instead of F32 for the matrices whose rows are whole blocks.
    architecture: another name makes a file that llama.cpp does not know.
    """
    shape = shape or Shape()
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    write_metadata(writer, shape)
    write_vocabulary(writer, shape, more_control)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    write_tensors(writer, _tensors(shape, rng), quantise=quantise)
    return path


def write_vocabulary(writer: gguf.GGUFWriter, shape: Shape, more_control: Sequence[str] = ()) -> None:
    """Control tokens, bytes and made-up words, `shape.vocabulary` in all."""
    special = [*CONTROL_TOKENS, UNKNOWN_TOKEN, *more_control]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"▁w{i}" for i in range(shape.vocabulary - len(special) - len(byte_tokens))]
    kind = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*special, *byte_tokens, *words])
    writer.add_token_scores([0.0] * shape.vocabulary)
    writer.add_token_types(
        [kind.CONTROL] * len(CONTROL_TOKENS)
        + [kind.UNKNOWN]
        + [kind.CONTROL] * len(more_control)
        + [kind.BYTE] * 256
        + [kind.NORMAL] * len(words)
    )
    writer.add_bos_token_id(CONTROL_TOKENS.index("<bos>"))
    writer.add_eos_token_id(CONTROL_TOKENS.index("<eos>"))
    writer.add_eot_token_id(CONTROL_TOKENS.index("<turn|>"))
    writer.add_unk_token_id(len(CONTROL_TOKENS))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _tensors(shape: Shape, rng: np.random.Generator) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and arrays, numpy order (rows of ne0 innermost); scaled so that activations neither vanish nor explode."""

    def matrix(*dimensions: int) -> NDArray[np.float32]:
        return (rng.standard_normal(dimensions, np.float32) / np.float32(np.sqrt(dimensions[-1]))).astype(np.float32)

    def ones(count: int) -> NDArray[np.float32]:
        return np.ones(count, np.float32)

    width, ff, experts = shape.width, shape.expert_ff, shape.experts
    yield "token_embd.weight", matrix(shape.vocabulary, width)
    yield "output_norm.weight", ones(width)
    yield "rope_freqs.weight", ones(shape.head // 2)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        for norm in _NORMS:
            yield f"{block}{norm}.weight", ones(width)
        yield block + "attn_q_norm.weight", ones(shape.head)
        yield block + "attn_k_norm.weight", ones(shape.head)
        yield block + "attn_q.weight", matrix(shape.heads * shape.head, width)
        yield block + "attn_k.weight", matrix(shape.kv_heads * shape.head, width)
        yield block + "attn_v.weight", matrix(shape.kv_heads * shape.head, width)
        yield block + "attn_output.weight", matrix(width, shape.heads * shape.head)
        yield block + "ffn_gate.weight", matrix(shape.shared_ff, width)
        yield block + "ffn_up.weight", matrix(shape.shared_ff, width)
        yield block + "ffn_down.weight", matrix(width, shape.shared_ff)
        yield block + "ffn_gate_inp.weight", matrix(experts, width)
        yield block + "ffn_gate_inp.scale", ones(width)
        yield block + "ffn_gate_up_exps.weight", matrix(experts, 2 * ff, width)
        yield block + "ffn_down_exps.weight", matrix(experts, width, ff)
        yield block + "ffn_down_exps.scale", (1 + 0.1 * rng.standard_normal(experts)).astype(np.float32)


def main() -> None:
    """Entry point."""
    defaults = Shape()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", help="where to write; nothing is written when left out")
    parser.add_argument("--layers", type=int, default=defaults.layers)
    parser.add_argument("--embedding", dest="width", type=int, default=defaults.width)
    parser.add_argument("--experts", type=int, default=defaults.experts)
    parser.add_argument("--experts-used", type=int, default=defaults.experts_used)
    parser.add_argument("--window", type=int, default=defaults.window)
    parser.add_argument("--vocabulary", type=int, default=defaults.vocabulary)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantise", action="store_true", help="Q8_0 instead of F32")
    given = vars(parser.parse_args())
    path, seed, quantise = given.pop("path"), given.pop("seed"), given.pop("quantise")
    if path is None:
        parser.print_usage()
        return
    print(write_random_model(path, Shape(**given), seed=seed, quantise=quantise))


if __name__ == "__main__":
    main()
