"""Ollama's `options`: which of them reach the sampler, and what is said of the rest.

Clients send whole sets of options, out of habit and from older versions, so none is refused for its name: one that is
not served is noted if its value asks for something. A wrong value of one that is served is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from ..common.fields import MAX_INT, whole
from ..common.sampling import Sampler
from ..openai.extras import near

MAX_OPTIONS: Final = 100
_MOST_NAMED: Final = 5  # in a note


def _unlimited(value: Any) -> Any:
    """-1 is no bound, and -2 what the context leaves, which is the same here."""
    return None if type(value := whole(value)) is int and value < 0 else value


class Options(Sampler):
    """Those that are served."""

    num_predict: Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_unlimited)] = None
    num_ctx: Annotated[Annotated[int, Field(ge=0, le=MAX_INT)], BeforeValidator(whole)] | None = None


# How a model is loaded, which the roster says.
_OF_LOADS: Final = (
    *("num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "f16_kv", "numa"),
    *("num_keep", "draft_num_predict", "vocab_only", "logits_all", "embedding_only", "num_gqa"),
    *("rope_frequency_base", "rope_frequency_scale", "tensor_split"),
)


def _but(*off: Any) -> Callable[[Any], bool]:
    return lambda value: value not in off


# Samplers, with what asks for none. Those of mirostat say nothing without it; line breaks have not been penalised for
# years, whatever the option says.
_NOT_SERVED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "mirostat": _but(0),
    "mirostat_tau": lambda value: False,
    "mirostat_eta": lambda value: False,
    "penalize_newline": lambda value: False,
    "typical_p": _but(0, 1),
    "tfs_z": _but(0, 1),
}
# What other APIs call an option of Ollama's, spelt all differently.
_ELSEWHERE: Final = {"max_tokens": "num_predict", "n_predict": "num_predict", "n_ctx": "num_ctx"}


def option_notes(asked: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes of options that were asked for in vain."""
    ours, samplers, unknown = [], [], []
    for name, value in asked.items():
        if value is None or name in Options.model_fields:
            continue
        if name in _OF_LOADS:
            ours.append(name)
        elif name in _NOT_SERVED:
            samplers += [name] if _NOT_SERVED[name](value) else []
        else:
            right = near(name, Options.model_fields) or _ELSEWHERE.get(name)
            unknown.append(f"{name[:40]} (write {right})" if right is not None else name[:40])
    notes = []
    if ours:
        notes.append(f"how models are loaded is the roster's: options {_listed(ours)} ignored")
    if samplers:
        notes.append(f"options {_listed(samplers)} not served and ignored")
    if unknown:
        notes.append(f"options {_listed(unknown)} not known and ignored")
    return tuple(notes)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"
