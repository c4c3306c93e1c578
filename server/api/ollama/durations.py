"""How long clients of Ollama want a model kept: seconds, or a duration as Go writes it."""

from __future__ import annotations

import re
from typing import Any, Final

from ...runtime.errors import RequestError

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(rf"(\d+\.?\d*|\.\d+)({'|'.join(_UNITS)})", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
_LONGEST: Final = 64  # characters


def keep_alive_s(value: Any) -> float | None:
    """The seconds of a keep_alive; None where it says nothing, negative for ever.

    Raises RequestError for what is no duration.
    """
    if value is None or value == "":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e18 else 1e18
    if isinstance(value, str) and len(value) <= _LONGEST:
        if _NUMBER.fullmatch(value):
            return float(value)
        sign, parts = (-1.0 if value[0] == "-" else 1.0), value.lstrip("+-")
        found = list(_PART.finditer(parts))
        if found and value[1:] in (parts, parts[1:]) and "".join(each[0] for each in found) == parts:
            return sign * sum(float(each[1]) * _UNITS[each[2]] for each in found)
    raise RequestError(
        "keep_alive: give seconds, or a duration such as 5m, 1h30m or -1 (until its room is needed).",
        param="keep_alive",
    )
