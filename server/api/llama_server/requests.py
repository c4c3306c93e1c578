"""llama-server's /infill bodies, parsed into the internal request.

Source: tools/server/README.md of llama.cpp, POST /infill. Editors send more than is read here: which samplers and in
which order, how long a prompt may take, which slot; what would change the answer is noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from ...runtime.errors import RequestError
from ...runtime.request import Request
from ..common.fields import Body, MaxTokens, ModelName, validated
from ..common.sampling import Sampler

MAX_SNIPPETS: Final = 1000
_NOTED: Final = ("samplers", "n_indent", "t_max_predict_ms", "n_probs", "grammar", "json_schema", "lora", "logit_bias")


class Snippet(Body):
    """Another file, or a part of one."""

    filename: Annotated[str, Field(max_length=1000)] = "tmp"
    text: str


class InfillBody(Sampler):
    """input_prefix, input_suffix: what stands before and after the gap. prompt: what was written in the gap so far."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: Annotated[list[Snippet], Field(max_length=MAX_SNIPPETS)] | None = None
    prompt: str = ""
    model: ModelName = "auto"
    stream: bool | None = None
    n_predict: MaxTokens = None


def parse_infill(body: Mapping[str, Any]) -> Request:
    """A body of POST /infill. Raises RequestError naming the field."""
    if body.get("input_prefix") is None and body.get("input_suffix") is None:
        raise RequestError("Give `input_prefix` and `input_suffix`, the texts around the gap.", param="input_prefix")
    parsed = validated(InfillBody, body, {"input_extra": MAX_SNIPPETS})
    return Request(
        model=parsed.model,
        prompt=parsed.input_prefix + parsed.prompt,
        suffix=parsed.input_suffix,
        snippets=tuple(snippet.model_dump() for snippet in parsed.input_extra or ()),
        stream=bool(parsed.stream),
        overrides=parsed.overrides,
        max_tokens=parsed.n_predict,
        stop=parsed.stop,
        seed=parsed.seed,
        notes=tuple(f"{name} is not served and was ignored" for name in _NOTED if body.get(name)),
    )
