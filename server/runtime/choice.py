"""The specialist that a request goes to, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from coe.router.choose import Decision
from coe.router.client_tasks import ClientTask
from coe.router.conversation import ConversationKey

from ..roster.models import Specialist


@dataclass(frozen=True)
class Choice:
    """The specialist that a request goes to, and why.

    decision:      the supervisor's; None when the request named its specialist.
    decided_in_ms: what reading the conversation and deciding took.
    build:         how far the build of the specialist is that this one stands in for.
    task:          what a chat client asks on its own account, None for what a human asks.
    key:           the conversation, for the resident that has it in its cache; None where only one resident can serve.
    """

    specialist: Specialist
    confidence: float
    reason: str
    decision: Decision | None = None
    decided_in_ms: float = 0.0
    build: str | None = None
    key: ConversationKey | None = None
    task: ClientTask | None = None
