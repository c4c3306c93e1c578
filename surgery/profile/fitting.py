"""Expert offload while profiling: how the parent is loaded, and which layers' experts stay in host memory so that it
fits the device."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Final

from coe.engine.cards import cards
from coe.engine.expert_offload import layers_on_cpu
from coe.engine.gguf.header import expert_bytes
from coe.engine.llama.context import BATCH_TOKENS
from coe.engine.llama.devices import devices
from coe.engine.pool import memory
from coe.engine.spec import Footprint, LoadSpec
from coe.engine.units import size_text

from ..errors import ProfileError
from ..parent import Parent

CONTEXT_TOKENS: Final = 4096  # of a document; a longer one is read in windows
_SEQUENCES: Final = 32  # documents in one decode, at most
_MARGIN_BYTES: Final = 512 * 2**20  # of a GPU's free memory


def load_spec(parent: Path, load: LoadSpec | None) -> LoadSpec:
    """How the parent is loaded to be profiled: the given spec's layers, threads and cache type, with a KV cache for one
    batch more than a document."""
    given = load or LoadSpec(parent, context_tokens=CONTEXT_TOKENS)
    cells = given.context_tokens + BATCH_TOKENS
    return replace(given, path=parent, cache_tokens=cells, parallel=_SEQUENCES)


def profiling_load(load: LoadSpec) -> LoadSpec:
    """A build's load spec for profiling: documents need no longer context than they are cut to."""
    return replace(load, context_tokens=min(load.context_tokens, CONTEXT_TOKENS))


def expert_bytes_by_layer(parent: Parent) -> list[int]:
    """Bytes of the experts of each block, 0 for one without."""
    return expert_bytes(parent.headers)


def needed(spec: LoadSpec, parent: Parent) -> Footprint:
    """What watching the parent takes, from a dry run. Raises ModelFileError as that does."""
    # The dry run reserves a row of logits a sequence; where the last layer only sees tokens with logits, all have one.
    # Beside a GPU they are brought to host memory as well; what keeps off it has them there alone.
    n_vocab = next(header.array_lengths.get("tokenizer.ggml.tokens", 0) for header in parent.headers)
    rows = 4 * n_vocab * BATCH_TOKENS
    found = asyncio.run(memory.predict(spec)).footprint
    return replace(
        found,
        compute_bytes=found.compute_bytes + (rows if found.total_bytes else 0),
        host_bytes=found.host_bytes + (rows if found.host_bytes else 0),
        card_bytes=tuple((card, n_bytes + rows) for card, n_bytes in found.card_bytes),  # one of them has the output
    )


def fit_spec(spec: LoadSpec, parent: Parent, budget_bytes: int | None) -> LoadSpec:
    """The spec with as many layers' experts on the CPU as the GPU's budget asks for; unchanged without a GPU.

    budget_bytes: None for what is free now, less a margin. Raises ProfileError when even the rest does not fit.
    """
    if spec.cpu_expert_layers or spec.gpu_layers == 0 or not cards(devices(ask_memory=False), spec.devices):
        return spec
    budget, _ = asyncio.run(memory.budget_bytes(budget_bytes, _MARGIN_BYTES, spec.devices))
    per_layer = expert_bytes_by_layer(parent)
    whole = needed(spec, parent).total_bytes
    layers = layers_on_cpu(whole, budget, per_layer)
    if layers is None:
        raise ProfileError(
            f"{parent.path.name} needs {size_text(whole - sum(per_layer))} beside its experts, "
            f"and the budget is {size_text(budget)}.",
            "Lower the context, or keep the model on the CPU: --gpu-layers 0.",
        )
    return replace(spec, cpu_expert_layers=layers)
