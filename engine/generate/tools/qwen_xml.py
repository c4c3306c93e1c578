"""Qwen3-Coder, Qwen 3.5, Seed-OSS and others: <function=NAME> with one <parameter=KEY> for each argument."""

from __future__ import annotations

from .markup import Markup
from .xml_call import XmlCalls


class QwenXml(XmlCalls):
    """See Family."""

    markup = Markup(
        opening="<tool_call>",
        closing="</tool_call>",
        head="<function=",
        head_end=">",
        key="<parameter=",
        key_end=(">",),
        value_end="</parameter>",
        end="</function>",
        line="\n",
    )

    name = "qwen-xml"
    openings = (markup.opening, markup.head)  # Qwen3-Coder leaves the first tag out at times
    tags = (markup.opening, markup.closing)


class SeedOss(XmlCalls):
    """Seed-OSS: the same within tags of its own, with values on the line of their tags."""

    markup = Markup(
        opening="<seed:tool_call>",
        closing="</seed:tool_call>",
        head="<function=",
        head_end=">",
        key="<parameter=",
        key_end=(">",),
        value_end="</parameter>",
        end="</function>",
    )

    name = "seed-oss"
    openings = (markup.opening, markup.head)
    tags = (markup.opening, markup.closing)
