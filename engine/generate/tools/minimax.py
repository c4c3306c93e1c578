"""MiniMax M2: <invoke name="NAME"> with one <parameter name="KEY"> for each argument, all calls in one pair of tags."""

from __future__ import annotations

from .markup import Markup
from .xml_call import XmlCalls


class MiniMax(XmlCalls):
    """See Family."""

    markup = Markup(
        opening="<minimax:tool_call>",
        closing="</minimax:tool_call>",
        head='<invoke name="',
        head_end='">',
        key='<parameter name="',
        key_end=('">',),
        value_end="</parameter>",
        end="</invoke>",
        grouped=True,
    )

    name = "minimax"
    openings = (markup.opening,)
    tags = (markup.opening, markup.closing)
