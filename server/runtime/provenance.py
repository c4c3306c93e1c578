"""What a client is told about an answer: which specialist gave it, why, how sure, after what wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coe.engine.request import Finish, Finished

from .choice import Choice
from .policy import Rules


@dataclass(frozen=True)
class AnswerProvenance:
    """Where an answer comes from, as far as it is known by now.

    answered_by: the specialist that answers: the chosen one, or the fallback after a loop.
    residency:   warm, swapped or loaded; None before there is a lease. waited_s: seconds until the lease.
    retries:     how often the answer was begun again because it looped, or broke its schema.
    """

    choice: Choice
    answered_by: str
    rules: Rules
    residency: str | None = None
    waited_s: float = 0.0
    retries: int = 0

    def headers(self, ends: Sequence[Finished] = ()) -> dict[str, str]:
        """x-coe-* headers; those of the lease only when there is one. ends: of the choices of a whole answer."""
        headers = {
            "x-coe-specialist": self.answered_by,
            "x-coe-confidence": f"{self.choice.confidence:.3f}",
            "x-coe-reason": header_text(self.choice.reason),
        }
        if self.choice.build is not None:
            headers["x-coe-build"] = header_text(self.choice.build)
        if notes := self._notes(ends):
            headers["x-coe-note"] = header_text("; ".join(notes))
        if self.residency is not None:
            headers["x-coe-residency"] = self.residency
            headers["x-coe-wait-ms"] = f"{self.waited_s * 1000:.0f}"
        return headers

    def _notes(self, ends: Sequence[Finished]) -> list[str]:
        """What the rules say, that calls were left out, and that the bound of a client's own task ended an answer."""
        notes, forbidden = [*self.rules.notes], sum(end.forbidden_calls for end in ends)
        if forbidden:
            calls = "a call was" if forbidden == 1 else f"{forbidden} calls were"
            notes.append(f"{calls} left out: the request lets none be made")
        task = self.rules.task
        most = task.answer_tokens if task is not None else None
        if task is None or most is None or not any(_is_full(end, most) for end in ends):
            return notes
        ended = f"the answer was ended: {most} tokens are enough for a chat client's own task ({task.name})"
        return [*notes, ended]

    def facts(self, ends: Sequence[Finished]) -> dict[str, Any]:
        """The `coe` object of a body, or of a stream's last chunk. ends: of the choices that have finished."""
        facts: dict[str, Any] = {
            "specialist": self.answered_by,
            "confidence": round(self.choice.confidence, 4),
            "reason": self.choice.reason,
            "thinking": self.rules.thinking.mode.value,
            "retries": self.retries,
        }
        if self.answered_by != self.choice.specialist.name:
            facts["chosen"] = self.choice.specialist.name
        if self.choice.build is not None:
            facts["build"] = self.choice.build
        if notes := self._notes(ends):
            facts["notes"] = notes
        if self.residency is not None:
            facts["residency"] = self.residency
            queued_s = max((end.queued_s for end in ends), default=0.0)
            facts["wait_ms"] = round(1000 * (self.waited_s + queued_s), 1)
        leaked = sum(end.leaked_blocks for end in ends)
        if leaked:
            facts["leaked_think_blocks"] = leaked
        malformed = sum(end.malformed_calls for end in ends)
        if malformed:
            facts["malformed_calls"] = malformed
        if forbidden := sum(end.forbidden_calls for end in ends):
            facts["forbidden_calls"] = forbidden
        checked = [end.conforms for end in ends if end.conforms is not None]
        if checked:
            facts["schema"] = "kept" if all(checked) else "cut"
        loops = [end.loop for end in ends if end.reason is Finish.LOOP]
        if loops:
            facts["loop"] = {"ended": True, "repeated": loops[0]}
        return facts


def _is_full(end: Finished, most: int) -> bool:
    return end.reason is Finish.LENGTH and end.completion_tokens - end.reasoning_tokens >= most


def header_text(text: str) -> str:
    """A header's value: latin-1 without line breaks and other control characters."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(line.split()).encode("latin-1", "replace").decode("latin-1")
