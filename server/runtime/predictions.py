"""Dry runs of loads, each but once: what they take, and whether they would work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from coe.engine.errors import EngineError, ModelTemplateError, NoRoomToTryError
from coe.engine.files import stamp
from coe.engine.pool.memory import Prediction, predict
from coe.engine.request import GenerateRequest
from coe.engine.spec import EmbeddingForm, Footprint, LoadSpec, ModelFacts, Thinking, ToolForm

from ..roster.models import Specialist
from .request import with_system_prompt

_DRY_RUNS_AT_ONCE = 2


@dataclass(frozen=True)
class Tried:
    """A dry run's result. stamp: of the file that was tried, another when it changed."""

    prediction: Prediction
    stamp: str


class Predictions:
    """Dry runs of loads, each but once; errors are kept beside the results.

    Two at a time, and one at a time on a GPU, of which each takes some hundred MiB for itself.
    """

    def __init__(self, max_prompt_tokens: int | None = None, before: Mapping[LoadSpec, Tried] | None = None) -> None:
        """max_prompt_tokens: the roster's own bound; None for the context's alone.
        before: results of earlier dry runs, which hold where the GPU has no room for another of an unchanged file.
        """
        self._max_prompt_tokens = max_prompt_tokens
        self._before = before or {}
        self._results: dict[LoadSpec, Prediction | EngineError] = {}
        self._stamps: dict[LoadSpec, str] = {}
        self._gate = asyncio.Semaphore(_DRY_RUNS_AT_ONCE)
        self._gpu = asyncio.Lock()
        self._may_have_gpu = True  # until a dry run has shown that there is none

    @property
    def tried(self) -> dict[LoadSpec, Tried]:
        """What came of the dry runs that went well."""
        good = {spec: result for spec, result in self._results.items() if isinstance(result, Prediction)}
        return {spec: Tried(result, self._stamps[spec]) for spec, result in good.items()}

    async def make(self, loads: Collection[tuple[Specialist, LoadSpec]]) -> None:
        """Try out loads, each distinct one with the thinking policies and system prompts that it is to carry out."""
        policies: dict[LoadSpec, dict[str, Thinking]] = {}
        chats: dict[LoadSpec, list[GenerateRequest]] = {}
        for entry, spec in loads:
            told, asked = policies.setdefault(spec, {}), chats.setdefault(spec, [])
            if not entry.embeddings:
                told[entry.name] = entry.thinking_policy()
                asked.append(self._shortest_chat(entry))

        async def one(spec: LoadSpec) -> None:
            async with self._gate, self._gpu if spec.gpu_layers and self._may_have_gpu else contextlib.nullcontext():
                self._results[spec] = await self._try(spec, policies[spec], chats[spec])

        await asyncio.gather(*(one(spec) for spec in policies))

    async def _try(
        self, spec: LoadSpec, policies: Mapping[str, Thinking], chats: Sequence[GenerateRequest]
    ) -> Prediction | EngineError:
        try:
            with contextlib.suppress(OSError):  # whoever reads the file says it better
                self._stamps[spec] = stamp(spec.path)
            found = await predict(spec, policies, chats)
        except NoRoomToTryError as error:
            before = self._before.get(spec)
            return before.prediction if before is not None and before.stamp == self._stamps.get(spec) else error
        except EngineError as error:
            return error
        if spec.gpu_layers and not found.on_gpu:
            self._may_have_gpu = False
        return found

    def _shortest_chat(self, entry: Specialist) -> GenerateRequest:
        return GenerateRequest(
            "",
            entry.name,
            with_system_prompt([{"role": "user", "content": "?"}], entry.system_prompt),
            thinking=entry.thinking_policy(),
            max_prompt_tokens=self._max_prompt_tokens,
        )

    def __getitem__(self, spec: LoadSpec) -> Footprint:
        """Raises the EngineError that the dry run ended in."""
        return self.require(spec).footprint

    def require(self, spec: LoadSpec) -> Prediction:
        """The dry run's result. Raises the EngineError that it ended in."""
        result = self._results[spec]
        if isinstance(result, EngineError):
            raise result
        return result

    def of(self, spec: LoadSpec) -> Prediction | None:
        """The dry run's result, None where it ended in an error."""
        result = self._results.get(spec)
        return result if isinstance(result, Prediction) else None

    def refused(self, spec: LoadSpec) -> Mapping[str, str]:
        """Specialists whose thinking policy or system prompt this model cannot carry out: specialist -> why."""
        result = self._results.get(spec)
        return result.refused if isinstance(result, Prediction) else {}

    def chat_fault(self, spec: LoadSpec) -> ModelTemplateError | None:
        """Why this model answers no chats; None where it does, or does not load at all."""
        result = self._results.get(spec)
        return result.chat_fault if isinstance(result, Prediction) else None

    def tool_form(self, spec: LoadSpec) -> ToolForm | None:
        """How this model's chat template writes calls of tools; None where it is not known."""
        result = self._results.get(spec)
        return result.tools if isinstance(result, Prediction) else None

    def embedding_form(self, spec: LoadSpec) -> EmbeddingForm | None:
        """What this model for embeddings gives; None for others, and where it is not known."""
        result = self._results.get(spec)
        return result.embedding if isinstance(result, Prediction) else None

    def infill(self, spec: LoadSpec) -> bool | None:
        """Whether this model can fill the middle between two texts; None where it is not known."""
        result = self._results.get(spec)
        return result.infill if isinstance(result, Prediction) else None

    def movable_expert_bytes(self, spec: LoadSpec) -> int:
        """Of the experts that this load has on a GPU, and could have in host memory; 0 where it is not known."""
        found = self.of(spec)
        layers = spec.cpu_expert_layers
        return sum(found.expert_bytes[layers:]) if found is not None and layers >= 0 else 0

    def facts(self, spec: LoadSpec) -> ModelFacts | None:
        """What this model's file says of itself; None where it does not load."""
        result = self._results.get(spec)
        return result.facts if isinstance(result, Prediction) else None
