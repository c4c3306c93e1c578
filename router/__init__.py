"""The supervisor: which specialist answers a conversation. Imports nothing else of this project."""

from .choose import Candidate, Decision, NoSpecialist, Ranked, Settings, choose
from .conversation import Conversation
from .domains import DOMAINS
from .encoder import EncoderError, EncoderMismatch, EncoderSource, find_encoder
from .errors import RouterError
from .head import HeadError
from .supervisor import Supervisor

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
