"""A model that plays a script: a GGUF like any other, whose weights are a look-up table.

Attention and feed-forward add nothing, so the next token depends on the last one alone. Each answer of the script is
cut into pieces that occur nowhere else, each a token, and the output matrix leads from each to the next, from the last
to the end of the turn. The chat template, which has the form of Hermes and Qwen, ends a prompt with the token of the
step that is next, and that one leads to the step's first piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import gguf
import numpy as np
from numpy.typing import NDArray

from coe.demo.shipped import PARENT

UNKNOWN: Final = "<unk>"
START, END = "<|im_start|>", "<|im_end|>"
_CALL_END: Final = "</tool_call>"
_TASK: Final = "<|client task|>"
_BLOCK: Final = 32
_HEAD: Final = 32
_LOGIT: Final = 100.0  # of the token that is next; all others have none
_SPACE: Final = "▁"  # how a SentencePiece vocabulary writes a space


@dataclass(frozen=True)
class Call:
    """A call of a tool, to be made in a step."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        call = {"name": self.name, "arguments": dict(self.arguments)}
        return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n{_CALL_END}"


Step: TypeAlias = str | Call | Sequence[str | Call]


@dataclass(frozen=True)
class Script:
    """What is said.

    steps: the one after as many as a conversation has answers; beyond the end the last. A step is text, a call, or both
           and several, in their order. A call's arguments come in the order of its schema's properties, to which they
           are held.
    client_task: said wherever a request brings no tools: a title, a summary.
    """

    steps: Sequence[Step]
    client_task: str = "A played title"

    def texts(self) -> list[str]:
        """The steps as the model writes them."""
        return ["\n".join(map(str, (step,) if isinstance(step, str | Call) else step)) for step in self.steps]


def write_played_model(path: Path, script: Script, *, context: int = 131_072) -> Path:
    """Write the model and give its path back. context: tokens it says it was trained on.

    Raises ValueError for an answer that is too short to be told from ordinary words.
    """
    steps = script.texts()
    cues = [*(_step(number) for number in range(len(steps))), _TASK]
    tokens = _Vocabulary(cues)
    follows = tokens.follows(zip(cues, [*steps, script.client_task], strict=True))

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("A played script")
    writer.add_context_length(context)
    writer.add_chat_template(_template(len(steps)))
    tokens.write(writer)
    _write_weights(writer, len(tokens.texts), follows, tokens.texts.index(END))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _Vocabulary:
    """Control tokens, bytes, the pieces of words of the demo's parent, and the script's own pieces."""

    def __init__(self, cues: Sequence[str]) -> None:
        self._control = [START, END, *cues]
        fields = gguf.GGUFReader(PARENT).fields
        kinds = fields["tokenizer.ggml.token_type"].contents()
        known = fields["tokenizer.ggml.tokens"].contents()
        words = [text for text, kind in zip(known, kinds, strict=True) if kind == gguf.TokenType.NORMAL]
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        self.texts = [UNKNOWN, *self._control, *bytes_, *words]
        self._words = len(words)

    def follows(self, answers: Iterator[tuple[str, str]] | zip[tuple[str, str]]) -> dict[int, int]:
        """Cut answers, each with the token that leads to it, into new tokens: which follows which."""
        found: dict[int, int] = {}
        begins: dict[str, int] = {}
        taken = {text.replace(_SPACE, " ") for text in self.texts}
        for cue, answer in answers:
            if answer not in begins:
                begins[answer] = len(self.texts)
                # No piece goes on beyond a call: what a call is held to ends with it.
                parts = [part for part in re.split(f"(?<={_CALL_END})", answer) if part] or [""]
                pieces = [piece for part in parts for piece in _cut(part, taken)]
                self.texts += [piece.replace(" ", _SPACE) for piece in pieces]
                chain = range(begins[answer], len(self.texts))
                found |= dict(zip(chain, [*chain[1:], self.texts.index(END)], strict=True))
            found[self.texts.index(cue)] = begins[answer]
        return found

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Into a file."""
        kind = gguf.TokenType
        own = len(self.texts) - 1 - len(self._control) - 256
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(self.texts)
        # The earlier the sooner joined. What was cut for the script comes last, so that texts are read as words.
        writer.add_token_scores([-float(number) for number in range(len(self.texts))])
        writer.add_token_types(
            [kind.UNKNOWN] + [kind.CONTROL] * len(self._control) + [kind.BYTE] * 256 + [kind.NORMAL] * own
        )
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(self.texts.index(START))
        writer.add_eos_token_id(self.texts.index(END))
        writer.add_add_bos_token(False)
        writer.add_add_space_prefix(False)


def _cut(answer: str, taken: set[str]) -> list[str]:
    """A text in pieces that are not taken, each as short as can be; they are taken then."""
    pieces: list[str] = []
    at = 0
    if not answer:
        raise ValueError("an empty answer is none: say more")
    while at < len(answer):
        ends = (end for end in range(at + 1, len(answer) + 1) if answer[at:end] not in taken)
        if (end := next(ends, None)) is None:  # what is left is taken: the pieces before take it in
            piece, end = answer[at:], len(answer)
            while piece in taken:
                if not pieces:
                    raise ValueError(f"{answer!r} is no answer of its own: say more")
                taken.discard(pieces[-1])
                piece = pieces.pop() + piece
        else:
            piece = answer[at:end]
        taken.add(piece)
        pieces.append(piece)
        at = end
    return pieces


def _write_weights(writer: gguf.GGUFWriter, vocabulary: int, follows: Mapping[int, int], end: int) -> None:
    """One direction of the residual for each token that something follows, and one for all others, which end a turn."""
    width = -(-(len(follows) + 1) // _BLOCK) * _BLOCK
    embedding = np.zeros((vocabulary, width), np.float32)
    output = np.zeros((vocabulary, width), np.float32)
    embedding[:, 0] = 1
    output[end, 0] = 1
    for direction, (token, next_token) in enumerate(follows.items(), 1):
        embedding[token, [0, direction]] = 0, 1
        output[next_token, direction] = 1
    # The norm makes a direction of length 1 one of length sqrt(width).
    output *= np.float32(_LOGIT / np.sqrt(width))

    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_BLOCK)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_rope_dimension_count(_HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    nothing: Mapping[str, tuple[int, ...]] = {
        "attn_q": (_HEAD, width),
        "attn_k": (_HEAD, width),
        "attn_v": (_HEAD, width),
        "attn_output": (width, _HEAD),
        "ffn_gate": (_BLOCK, width),
        "ffn_up": (_BLOCK, width),
        "ffn_down": (width, _BLOCK),
    }
    tensors: dict[str, NDArray[np.float32]] = {"token_embd": embedding, "output": output}
    tensors |= {name: np.ones(width, np.float32) for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")}
    tensors |= {f"blk.0.{name}": np.zeros(shape, np.float32) for name, shape in nothing.items()}
    for name, array in tensors.items():
        writer.add_tensor(f"{name}.weight", array)


def _step(number: int) -> str:
    return f"<|step {number}|>"


_CALLS: Final = (
    "{% for call in m.tool_calls or [] %}{{ '\\n' if m.content or not loop.first }}<tool_call>\n"
    '{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}"
)


def _template(steps: int) -> str:
    """The chat template: turns, tools and results as a model of this form reads them, then the next step's token."""
    cues = "".join(
        f"{{% {'elif' if number else 'if'} at.step == {number} %}}{_step(number)}" for number in range(steps - 1)
    )
    last = f"{{% else %}}{_step(steps - 1)}{{% endif %}}" if steps > 1 else _step(0)
    return (
        "{% if tools %}" + START + "system\nThese tools can be called:\n"
        "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}" + END + "\n{% endif %}"
        "{% set at = namespace(step=0) %}{% for m in messages %}"
        + START
        + "{{ m.role }}\n{{ m.content }}"
        + _CALLS
        + END
        + "\n{% if m.role == 'assistant' %}{% set at.step = at.step + 1 %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + START + "assistant\n"
        "{% if tools %}" + cues + last + "{% else %}" + _TASK + "{% endif %}{% endif %}"
    )
