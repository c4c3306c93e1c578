"""GLM 4.5 to 4.7, Ling 3, Laguna, Spark: <tool_call>NAME with <arg_key> and <arg_value> for each argument.

Some of them write a line for each tag, others none at all: both are read, and both may come.
"""

from __future__ import annotations

from .markup import Markup
from .xml_call import XmlCalls


class Glm(XmlCalls):
    """See Family."""

    markup = Markup(
        opening="<tool_call>",
        closing="</tool_call>",
        head="",
        head_end="",
        key="<arg_key>",
        key_end=("</arg_key>", "<arg_value>"),
        value_end="</arg_value>",
        end="",
        lines_are_free=True,
    )

    name = "glm"
    openings = (markup.opening,)
    tags = (markup.opening, markup.closing, markup.key, *markup.key_end, markup.value_end)
