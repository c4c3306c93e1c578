"""What a model made for embeddings takes, by its file's header: how long a text may be, and whether it may be split.

The engine's `pooled_reading` says the same of a model that it has loaded.
"""

from __future__ import annotations

import struct
from typing import Final

from coe.engine.gguf.check import ARRAY, FORMATS, STRING
from coe.engine.gguf.records import Record, Records, text

_LAST: Final = 3  # llama.h, LLAMA_POOLING_TYPE_LAST: the last token's state is the embedding
_WITH_ENCODER: Final = ("t5", "t5encoder")  # architectures that read a text at once whatever their pooling


def longest_text(records: Records, context_tokens: int) -> int:
    """Tokens of the longest text: the roster's context, or what the model was trained on where that is less."""
    trained = _number(records.get(f"{text(records.get('general.architecture'))}.context_length"))
    return min(context_tokens, trained) if trained else context_tokens


def is_read_whole(records: Records) -> bool:
    """Whether a text has to fit into one physical batch. Where the last token's state is the embedding, and no token
    sees a later one, it may be read in pieces."""
    architecture = text(records.get("general.architecture"))
    pooled_last = _number(records.get(f"{architecture}.pooling_type")) == _LAST
    causal = _number(records.get(f"{architecture}.attention.causal")) != 0  # where the file does not say, it is
    return not (pooled_last and causal and architecture not in _WITH_ENCODER)


def _number(record: Record | None) -> int | None:
    """A whole number or a truth; None for anything else."""
    if record is None or record[0] in (STRING, ARRAY):
        return None
    (found,) = struct.unpack(f"<{FORMATS[record[0]]}", record[1])
    return None if isinstance(found, float) else int(found)
