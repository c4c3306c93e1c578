"""Whether a finished answer is what its JSON schema asked for: the last word, after the grammar it was drawn by."""

from __future__ import annotations

import json
from typing import Final

from referencing.exceptions import Unresolvable

from ..errors import GrammarError
from .json_schema import JsonSchema
from .validators import MAX_STEPS, TooCostlyError, spending, validator_of

_MAX_SAID_CHARS: Final = 300


class Conformity:
    """Validates the answers of one request."""

    def __init__(self, schema: JsonSchema) -> None:
        self._validator = validator_of(schema.draft, schema.wanted)

    def violation(self, text: str) -> str | None:
        """What an answer breaks, None when it keeps to the schema.

        Raises GrammarError when finding that out would cost too much.
        """
        try:
            with spending(MAX_STEPS):
                fault = next(self._validator.iter_errors(json.loads(text)), None)
        except json.JSONDecodeError as error:
            return f"it is not JSON: {error.msg} at character {error.pos}"
        except ValueError as error:  # an integer of more digits than Python takes
            return f"it is not JSON that can be read: {error}"
        except (TooCostlyError, RecursionError, Unresolvable) as error:
            raise GrammarError(
                "The answer cannot be checked against response_format.json_schema: that would cost too much.",
                "Simplify it: fewer alternatives within alternatives.",
            ) from error
        if fault is None:
            return None
        said = fault.message if len(fault.message) <= _MAX_SAID_CHARS else f"{fault.message[:_MAX_SAID_CHARS]}..."
        return f"at {fault.json_path[:_MAX_SAID_CHARS]}, {said}"
