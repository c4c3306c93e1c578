"""The supervisor: which specialist answers a conversation. Imports nothing else of this project."""

from coe.router.choose import Candidate, Decision, NoSpecialist, Ranked, Settings, choose
from coe.router.conversation import Conversation
from coe.router.domains import DOMAINS
from coe.router.encoder import EncoderError, EncoderMismatch, EncoderSource, find_encoder
from coe.router.errors import RouterError
from coe.router.head import HeadError
from coe.router.supervisor import Supervisor

__all__ = [
    "DOMAINS",
    "Candidate",
    "Conversation",
    "Decision",
    "EncoderError",
    "EncoderMismatch",
    "EncoderSource",
    "HeadError",
    "NoSpecialist",
    "Ranked",
    "RouterError",
    "Settings",
    "Supervisor",
    "choose",
    "find_encoder",
]
