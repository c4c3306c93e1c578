"""Calls as the families of models write them, by small writers that know nothing of the readers; and what is read."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from coe.engine.generate.grammar import Grammar
from coe.engine.generate.tools.family import Family
from coe.engine.generate.tools.source import SENTINELS
from coe.engine.generate.tools.splitter import CallSplitter
from coe.engine.request import Tool

Call = tuple[str, Mapping[str, Any]]
Tag = Callable[[str], str]  # how a tag comes: as its text, or as the sentinel of a token
Writer = Callable[[Sequence[Call], Tag], str]


def as_text(tag: str) -> str:
    """For a vocabulary without tokens of the family's own."""
    return tag


def spelling(family: Family, *, tokens: bool) -> dict[str, str]:
    """How each tag of a family comes."""
    if not tokens:
        return {tag: tag for tag in family.tags}
    return {tag: SENTINELS[number] for number, tag in enumerate(sorted(family.tags))}


@dataclass
class Read:
    """What came of an answer."""

    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    malformed: int = 0
    taken: int = 0


def read(
    family: Family, tools: Mapping[str, Tool], spelt: Mapping[str, str], pieces: Iterable[str], *, live: bool = True
) -> Read:
    """Read an answer that comes in pieces. Arguments that are no JSON come as the text they are."""
    splitter = CallSplitter(family, tools, spelt, live=live)
    found = Read()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for part in [part for piece in pieces for part in splitter.feed(piece)] + splitter.flush():
        found.text += part.text
        found.taken += part.taken
        for piece in part.pieces:
            if piece.name is not None:
                names[piece.index] = piece.name
            arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    for index, name in names.items():
        try:
            found.calls.append((name, json.loads(arguments[index])))
        except ValueError:
            found.calls.append((name, arguments[index]))
    found.malformed = splitter.malformed
    return found


def cut(text: str, draw: random.Random) -> list[str]:
    """A text in pieces of some characters."""
    pieces, at = [], 0
    while at < len(text):
        size = draw.choice([1, 1, 2, 3, 7, 30])
        pieces.append(text[at : at + size])
        at += size
    return pieces


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def gemma4(calls: Sequence[Call], tag: Tag) -> str:
    mark = tag('<|"|>')

    def written(value: Any) -> str:
        if isinstance(value, str):
            return mark + value + mark
        if isinstance(value, Mapping):
            pairs = sorted(value.items(), key=lambda pair: pair[0].lower())
            return "{" + ",".join(f"{key}:{written(inner)}" for key, inner in pairs) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(written, value)) + "]"
        return _json(value)

    return "".join(f"{tag('<|tool_call>')}call:{name}{written(given)}{tag('<tool_call|>')}" for name, given in calls)


def hermes(calls: Sequence[Call], tag: Tag) -> str:
    return "\n".join(
        f"{tag('<tool_call>')}\n{_json({'name': name, 'arguments': given})}\n{tag('</tool_call>')}"
        for name, given in calls
    )


def xml(opening: str, closing: str, line: str) -> Writer:
    def write(calls: Sequence[Call], tag: Tag) -> str:
        return "\n".join(
            f"{tag(opening)}\n<function={name}>\n"
            + "".join(f"<parameter={key}>{line}{_value(value)}{line}</parameter>\n" for key, value in given.items())
            + f"</function>\n{tag(closing)}"
            for name, given in calls
        )

    def _value(value: Any) -> str:
        return value if isinstance(value, str) else _json(value)

    return write


def glm(line: str) -> Writer:
    def write(calls: Sequence[Call], tag: Tag) -> str:
        return "\n".join(
            f"{tag('<tool_call>')}{name}{line}"
            + "".join(
                f"{tag('<arg_key>')}{key}{tag('</arg_key>')}{line}"
                f"{tag('<arg_value>')}{value if isinstance(value, str) else _json(value)}{tag('</arg_value>')}{line}"
                for key, value in given.items()
            )
            + tag("</tool_call>")
            for name, given in calls
        )

    return write


def kimi(calls: Sequence[Call], tag: Tag) -> str:
    return (
        tag("<|tool_calls_section_begin|>")
        + "".join(
            f"{tag('<|tool_call_begin|>')}functions.{name}:{at}{tag('<|tool_call_argument_begin|>')}{_json(given)}"
            + tag("<|tool_call_end|>")
            for at, (name, given) in enumerate(calls)
        )
        + tag("<|tool_calls_section_end|>")
    )


def deepseek(calls: Sequence[Call], tag: Tag) -> str:
    return (
        tag("<｜tool▁calls▁begin｜>")
        + "".join(
            f"{tag('<｜tool▁call▁begin｜>')}{name}{tag('<｜tool▁sep｜>')}{_json(given)}{tag('<｜tool▁call▁end｜>')}"
            for name, given in calls
        )
        + tag("<｜tool▁calls▁end｜>")
    )


def minimax(calls: Sequence[Call], tag: Tag) -> str:
    invokes = "\n".join(
        f'<invoke name="{name}">\n'
        + "".join(
            f'<parameter name="{key}">{value if isinstance(value, str) else _json(value)}</parameter>\n'
            for key, value in given.items()
        )
        + "</invoke>"
        for name, given in calls
    )
    return f"{tag('<minimax:tool_call>')}\n{invokes}\n{tag('</minimax:tool_call>')}"


def mistral(calls: Sequence[Call], tag: Tag) -> str:
    return "".join(f"{tag('[TOOL_CALLS]')}{name}{tag('[ARGS]')}{_json(given)}" for name, given in calls)


def mistral_ids(calls: Sequence[Call], tag: Tag) -> str:
    return "".join(
        f"{tag('[TOOL_CALLS]')}{name}{tag('[CALL_ID]')}abcDEF{at:03}{tag('[ARGS]')}{_json(given)}"
        for at, (name, given) in enumerate(calls)
    )


def mistral_list(calls: Sequence[Call], tag: Tag) -> str:
    listed = [{"name": name, "arguments": given, "id": f"abcDEF{at:03}"} for at, (name, given) in enumerate(calls)]
    return tag("[TOOL_CALLS]") + _json(listed)


def json_list(opening: str, closing: str) -> Writer:
    return lambda calls, tag: (
        tag(opening) + _json([{"name": name, "arguments": given} for name, given in calls]) + tag(closing)
    )


def llama3(calls: Sequence[Call], tag: Tag) -> str:
    return "; ".join(_json({"name": name, "parameters": given}) for name, given in calls)


def llama3_tagged(calls: Sequence[Call], tag: Tag) -> str:
    return tag("<|python_tag|>") + llama3(calls, tag)


def harmony(calls: Sequence[Call], tag: Tag) -> str:
    start, channel, message, call = map(tag, ("<|start|>", "<|channel|>", "<|message|>", "<|call|>"))
    return f"{start}assistant".join(
        f"{channel}commentary to=functions.{name} {tag('<|constrain|>')}json{message}{_json(given)}{call}"
        for name, given in calls
    )


def harmony_of_the_template(calls: Sequence[Call], tag: Tag) -> str:
    start, channel, message, call = map(tag, ("<|start|>", "<|channel|>", "<|message|>", "<|call|>"))
    return f"{start}assistant".join(
        f" to=functions.{name}{channel}commentary json{message}{_json(given)}{call}" for name, given in calls
    )


class _Vocabulary:
    """A byte each, an end, and tokens of its own for tags."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)

    def __init__(self, tags: Sequence[str]) -> None:
        own = [b"\xff" + tag.encode() for tag in tags]
        self.tokens = [bytes([byte]) for byte in range(256)] + [b"\xff<end>", *own]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def vocabulary(family: Family) -> tuple[LLTokenizer, dict[str, int]]:
    """A vocabulary made for a family, and the token of each of its tags."""
    tags = sorted(family.tags)
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tags))), {tag: 257 + at for at, tag in enumerate(tags)}


_CLOSING = frozenset(b'"}])>/|<nt')
# What no random walk would find soon.
_TAILS = (
    b"</parameter>\n</function>\n",
    b"</parameter>\n<parameter=",
    b"</parameter>\n</invoke>\n",
    b'</parameter>\n<parameter name="',
    b"</arg_value></tool_call>",
    b"</arg_value>\n<arg_key>",
)
_ENDINGS = (b"x7", b'x7"', b'<|"|>', *_TAILS, *(b"\n" + tail for tail in _TAILS))
_MARKS = frozenset(b'"}],0129.-eE<|>/')


def drawn(grammar: Grammar, draw: random.Random, shown: Mapping[int, str], *, chars: int = 150) -> str | None:
    """A random walk over the tokens that a grammar allows; None where it finds no end.

    shown: how tokens that are no bytes come. chars: from here on whatever closes is preferred.
    """
    out: list[bytes] = []
    while not grammar.complete:
        if len(out) > 8 * chars:
            return None
        if draw.random() < (0.5 if len(out) > chars else 0.15):
            ending = draw.choice(_ENDINGS)
            ahead = grammar.copy()
            if all(ahead.take(byte) for byte in ending):
                grammar = ahead
                out.append(ending)
                continue
        allowed = grammar.allowed().tolist()
        text = [token for token in allowed if token < 256 or token in shown]
        ends = len(text) < len(allowed)
        if ends and (not text or draw.random() < 0.3):
            break
        liked = [token for token in text if 32 < token < 127 or token in shown] or text
        own = [token for token in text if token in shown]
        if own and (len(out) > chars or draw.random() < 0.3):
            liked = own
        elif len(out) > chars:
            liked = [token for token in text if token in _CLOSING] or liked
        elif draw.random() < 0.1:
            liked = text
        elif draw.random() < 0.3:
            liked = [token for token in liked if token in _MARKS] or liked
        token = draw.choice(liked)
        assert grammar.take(token)
        out.append(shown[token].encode() if token in shown else bytes([token]))
    return b"".join(out).decode()
