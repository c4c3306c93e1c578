"""What can go wrong in surgery, one sentence a class."""

from __future__ import annotations

from coe.engine.text import printable


class SurgeryError(Exception):
    """Something in surgery went wrong; `remedy` says what a person can do about it.

    Both are one printable line, whatever a file has in the texts that they name.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        message, remedy = printable(message), printable(remedy)
        super().__init__(f"{message} {remedy}".strip())
        self.message = message
        self.remedy = remedy


class ArchitectureError(SurgeryError):
    """The model is no mixture of experts, or of an architecture that is not in the table."""


class CorpusError(SurgeryError):
    """A corpus cannot be read, or holds nothing to read."""


class ProfileError(SurgeryError):
    """A profile file is damaged, or does not go with what it is used for."""


class MaskError(SurgeryError):
    """A mask cannot be read, contradicts itself, or keeps too few experts."""


class ParentMismatchError(SurgeryError):
    """A mask, profile or file belongs to another parent than the one given."""


class CutError(SurgeryError):
    """A specialist could not be written."""


class VerificationError(SurgeryError):
    """A written specialist is not what the mask says it should be."""


class EvaluationError(SurgeryError):
    """Questions cannot be read, or an evaluation cannot be carried out."""


class BuildError(SurgeryError):
    """A build of the roster cannot be carried out."""
