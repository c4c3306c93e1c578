"""A schema without the few keywords that no grammar can follow, for tools that need not keep to every word of it.

A set of pydantic's is `uniqueItems`, which a request may not be refused for; all else of the schema is still followed.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from ...errors import GrammarError
from ..json_formats import is_followed
from ..json_schema import NOT_FOLLOWED, JsonSchema
from ..subschemas import subschemas


def read_loosely(schema: Any) -> JsonSchema:
    """A schema as far as it can be followed; its `wanted` is the whole of it.

    Raises GrammarError for what is no schema, and where more stands in the way than some keywords.
    """
    try:
        return JsonSchema.read(schema)
    except GrammarError:
        return replace(JsonSchema.read(_loosened(schema)), wanted=schema)


def _loosened(schema: Any) -> Any:
    made = copy.deepcopy(schema)
    for node in list(subschemas(made)):
        assert isinstance(node, dict), "it is a copy of JSON"
        for word in NOT_FOLLOWED:
            node.pop(word, None)
        if isinstance(node.get("format"), str) and not is_followed(node["format"]):
            del node["format"]
        if "oneOf" in node and "anyOf" not in node:
            node["anyOf"] = node.pop("oneOf")
    return made
