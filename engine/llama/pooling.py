"""How a model made for embeddings is run: what its file says of pooling, and how much of a text a decode takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import llama_cpp.llama_cpp as lib

from ..errors import ModelFileError
from ..spec import LoadSpec
from .model import Model

_CHUNK_TOKENS: Final = 512  # of a text that need not be read at once


@dataclass(frozen=True)
class PooledReading:
    """How texts are read.

    input_tokens: of the longest text. batch_tokens: of one decode. whole: a text must not be spread over two decodes.
    """

    input_tokens: int
    batch_tokens: int
    whole: bool


def pooled_reading(model: Model, spec: LoadSpec) -> PooledReading:
    """How a model's texts are read. Raises ModelFileError for one that names no pooling, or one that embeds nothing.

    Where the last token's state is the embedding, and no token sees a later one, a text may be read in pieces; all else
    pools, or attends, over one decode alone. Source: llama.cpp, llama-graph.cpp, build_pooling, and
    llama-context.cpp, llama_context::encode.
    """
    architecture = model.metadata("general.architecture") or ""
    named = model.metadata(f"{architecture}.pooling_type")
    pooling = int(named) if named is not None and named.isdigit() else lib.LLAMA_POOLING_TYPE_NONE
    if pooling == lib.LLAMA_POOLING_TYPE_RANK:
        raise ModelFileError(
            f"{spec.path.name} ranks pairs of texts (a cross-encoder) and gives no embeddings.",
            "It cannot be served: name a model made for embeddings, which /v1/rerank ranks with as well.",
        )
    if pooling == lib.LLAMA_POOLING_TYPE_NONE:
        raise ModelFileError(
            f"{spec.path.name} does not say how its tokens' states become one vector ({architecture}.pooling_type).",
            "Name a model that is made for embeddings, or remove `embeddings: true`.",
        )
    trained = model.trained_context_tokens
    longest = min(spec.context_tokens, trained) if trained else spec.context_tokens
    causal = model.metadata(f"{architecture}.attention.causal") != "false"
    whole = not (pooling == lib.LLAMA_POOLING_TYPE_LAST and causal and not lib.llama_model_has_encoder(model.handle))
    return PooledReading(longest, longest if whole else min(_CHUNK_TOKENS, longest), whole)
