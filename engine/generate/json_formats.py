"""JSON Schema's `format`, OpenAPI's and pydantic's too: what the library checks of each, and what is said beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..errors import GrammarError

# Said beside the formats of these names, which the library checks only so far. Years as Python and pydantic take them.
_DAY: Final = (
    r"([0-9]{4}-(0[13-9]|1[0-2])-|[0-9]{4}-02-([01][0-9]|2[0-8])"
    r"|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_YEAR: Final = r"^([1-9]|0[1-9]|00[1-9]|000[1-9])"
# Digits without end: a small model writes them until its answer is cut. Nanoseconds are the finest that is read
# anywhere; of each unit of a duration as many as Python's timedelta holds.
_SECONDS: Final = r":[0-5][0-9](\.[0-9]{1,9})?([Zz+]|-)"
_FORMATS: Final[Mapping[str, tuple[str, ...]]] = {
    "date": (f"^{_DAY}", _YEAR),
    "date-time": (f"^{_DAY}", _YEAR, _SECONDS),
    "time": (_SECONDS,),
    "duration": (r"^([A-Za-z]{1,2}[0-9]{1,6})+[A-Za-z]$",),
}

_KNOWN_FORMATS: Final = frozenset(
    ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
# They say how a text is shown or what it is used for, and forbid none (OpenAPI's, pydantic's).
_HINTS: Final = frozenset(("password", "binary", "path", "file-path", "directory-path"))
# Held by these, which are narrower (JSON Schema's for any language, pydantic's NameEmail and PostgresDsn).
_NARROWER: Final[Mapping[str, str]] = {
    **dict.fromkeys(("idn-email", "name-email"), "email"),
    **dict.fromkeys(("iri", "uri-reference", "iri-reference", "multi-host-uri"), "uri"),
    "idn-hostname": "hostname",
}
_OCTET: Final = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4: Final = rf"{_OCTET}(\.{_OCTET}){{3}}"
_IPV6: Final = "(([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|([0-9a-f]{1,4}:){1,3}(:[0-9a-f]{1,4}){1,3})"
# Of networks those whose prefix ends where a number does: the rest must be zero.
_NET4: Final = rf"({_IPV4}(/32)?|({_OCTET}\.){{3}}0/24|({_OCTET}\.){{2}}0\.0/16|{_OCTET}\.0\.0\.0/8)"
_NET6: Final = f"({_IPV6}(/128)?|([0-9a-f]{{1,4}}:){{4}}:/64|([0-9a-f]{{1,4}}:){{3}}:/48|([0-9a-f]{{1,4}}:){{2}}:/32)"
_LEN4: Final = "(/(3[0-2]|[12]?[0-9]))?"
_LEN6: Final = "(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?"
# Said by a pattern alone. ip...: pydantic's.
_BY_PATTERN: Final[Mapping[str, str]] = {
    **dict.fromkeys(("byte", "base64"), r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"),
    "base64url": r"^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2}(==)?|[A-Za-z0-9_-]{3}=?)?$",
    "ipvanyaddress": f"^({_IPV4}|{_IPV6})$",
    "ipv4interface": f"^{_IPV4}{_LEN4}$",
    "ipv6interface": f"^{_IPV6}{_LEN6}$",
    "ipvanyinterface": f"^({_IPV4}{_LEN4}|{_IPV6}{_LEN6})$",
    "ipv4network": f"^{_NET4}$",
    "ipv6network": f"^{_NET6}$",
    "ipvanynetwork": f"^({_NET4}|{_NET6})$",
    **{
        f"uuid{version}": f"^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"
        for version in range(1, 9)
    },
}
_NAMES_OF_FORMATS: Final = ", ".join(sorted(_KNOWN_FORMATS | _BY_PATTERN.keys() | _NARROWER.keys()))


def tighten_format(node: dict[str, Any], path: str) -> None:
    """Say a node's format by what the library holds to.

    Raises GrammarError for a format that cannot be followed.
    """
    kinds = node.get("type", "string")
    if "format" in node and "string" not in (kinds if isinstance(kinds, list) else [kinds]):
        del node["format"]  # int32, double and the like: formats of numbers forbid nothing
    named = node.get("format")
    if isinstance(named, str) and named in _NARROWER:
        named = node["format"] = _NARROWER[named]
    if named in _HINTS:
        del node["format"]
    elif isinstance(named, str) and named in _BY_PATTERN:
        del node["format"]
        node["allOf"] = [*(node.get("allOf") or ()), {"pattern": _BY_PATTERN[named]}]
    elif named is not None and named not in _KNOWN_FORMATS:
        raise GrammarError(
            f"response_format.json_schema: the format {named!r:.60}, at {path}, cannot be followed.",
            f"Leave it out, say it by a pattern, or use one of {_NAMES_OF_FORMATS}.",
        )
    patterns = _FORMATS.get(named, ()) if isinstance(named, str) else ()
    if patterns:
        node["allOf"] = [*(node.get("allOf") or ()), *({"pattern": pattern} for pattern in patterns)]
