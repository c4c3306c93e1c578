"""What the supervisor reads of a conversation: which texts, how much each counts, and what kind of request it is.

Nothing here keeps a text after the decision: a conversation is recognised later by hashes.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coe.router.features import clip

MAX_PASSAGE_CHARS = 4000
FENCE_CHARS = 240
QUOTE_CHARS = 240

# Chores that chat clients send on their own, by the instruction they begin with. Written from the default prompts of
# Open WebUI, LibreChat, LobeChat, Continue and opencode; each needs the instruction's own wording, since people do ask
# for titles and tags of their own.
_CHORES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("title", r"^\W*task:?\s+(?:generate|create)\s+a\s+concise,?\s+(?:and\s+)?[\w-]*\s*(?:word\s+)?title\b"),
        (
            "title",
            r"\b(?:generate|create|provide)\s+a\s+concise,?\s+\d(?:\s*-\s*\d)?[\s-]word(?:-or-less)?\s+(?:title|phrase)\b",
        ),
        ("title", r"\bconcise,?\s+5-word-or-less\s+title\s+for\s+the\s+conversation\b"),
        ("title", r"^\W*you\s+are\s+a\s+(?:conversation\s+)?title\s+generator\b"),
        ("title", r"\breply\s+with\s+a\s+title\s+for\s+(?:the|this)\s+chat\b"),
        (
            "title",
            r"\bsummari[sz]e\s+(?:the|this)\s+(?:conversation|chat)\s+(?:above\s+)?(?:in|into)\s+(?:a\s+)?(?:short\s+)?title\b",
        ),
        ("title", r"\bgive\s+this\s+conversation\s+a\s+name\b"),
        ("tags", r"^\W*task:?\s+generate\s+\d(?:\s*-\s*\d)?\s+broad\s+tags\b"),
        ("follow-ups", r"^\W*task:?\s+suggest\s+\d(?:\s*-\s*\d)?\s+relevant\s+follow-?up\b"),
        ("autocompletion", r"^\W*task:?\s+you\s+are\s+an\s+autocompletion\s+system\b"),
        ("search queries", r"^\W*task:?\s+analy[sz]e\s+the\s+chat\s+history\s+to\s+determine\s+the\s+necessity\s+of\b"),
        ("image prompt", r"^\W*task:?\s+generate\s+a\s+detailed\s+prompt\s+for\s+an?m?\s+image\s+generation\s+task\b"),
        ("emoji", r"^\W*your\s+task\s+is\s+to\s+reflect\s+the\s+speaker'?s\s+likely\s+facial\s+expression\b"),
    )
)

# Whole blocks that clients put around the human's words: retrieved passages, files, an editor's state.
_QUOTING_TAG = re.compile(
    r"<(context|documents?|source|file|attachment|environment_details|system-reminder)(?:\s[^<>\n]{0,300})?>",
    re.IGNORECASE,
)

_FOLLOW_UP_START = re.compile(
    r"^\W*(?:and|but|so|then|also|ok(?:ay)?|yes|no|yep|nope|sure|thanks?|thank you|great|perfect|cool|why|how so|really"
    r"|what about|how about|what if|which one|the (?:first|second|third|last|other)|again|continue|go on|go ahead|more"
    r"|shorter|longer|simpler|explain (?:that|this|it|more|again)"
    r"|can you (?:explain|repeat|elaborate|shorten|fix|change)|now|instead|try|do (?:it|that|the same)|same|use"
    r"|make it|fix (?:it|that|this)|commit|run|show me"
    r"|is (?:it|that|this)|does (?:it|that|this)|are you sure|wait|hmm+|in other words|for example)\b",
    re.IGNORECASE,
)
_FOLLOW_UP_WORDS = 8
_TERSE_WORDS = 3


@dataclass(frozen=True)
class Passage:
    """One text to be classified and its share of the decision; the shares of a conversation add up to 1."""

    text: str
    weight: float


@dataclass(frozen=True)
class Conversation:
    """A conversation as the supervisor sees it.

    passages:      newest human text first; empty when no human said anything readable.
    follow_up:     the newest text leans on what went before ("and for n = 5?").
    tool_exchange: the model waits for a tool, or has just been given its result.
    chore:         what a chat client asks on its own account ("title"), or None.
    here, before:  digests that recognise this conversation at its newest and its previous human turn; None for none.
    """

    passages: tuple[Passage, ...]
    follow_up: bool
    tool_exchange: bool
    chore: str | None
    here: bytes | None
    before: bytes | None

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """Read OpenAI chat messages (role, content as a string or as parts). Unknown roles and parts are skipped.

        Never raises on what a message contains; the caller has checked that messages are mappings.
        """
        turns = [(str(message.get("role") or ""), message_text(message)) for message in messages]
        human = [i for i, (role, text) in enumerate(turns) if role == "user" and text.strip()]
        newest = turns[human[-1]][1] if human else ""
        earlier = [turns[i][1] for i in reversed(human[:-1])]
        system = " ".join(clip(text, MAX_PASSAGE_CHARS) for role, text in turns if role in ("system", "developer"))
        follow_up = bool(earlier) and is_follow_up(newest)
        return cls(
            passages=_passages(newest, earlier, system, follow_up),
            follow_up=follow_up,
            tool_exchange=_in_tool_exchange(messages),
            chore=chore_of(newest) or chore_of(system),
            here=_digest(turns, human[-1]) if human else None,
            before=_digest(turns, human[-2]) if len(human) > 1 else None,
        )

    @classmethod
    def from_text(cls, text: str) -> Conversation:
        """A conversation of one human message."""
        return cls.from_messages([{"role": "user", "content": text}])


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message: its content, or its parts of type text joined by newlines; "" when there is none."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") in ("text", None))
    return "\n".join(text for text in texts if isinstance(text, str))


def chore_of(text: str) -> str | None:
    """The chore a chat client asks for by this text, or None. Only the beginning is read: the rest quotes the chat."""
    start = text.lstrip()[:400]
    return next((name for name, pattern in _CHORES if pattern.search(start)), None)


def is_follow_up(text: str) -> bool:
    """Whether a text says too little on its own: three words at most, or a short one that begins like a reply."""
    head = text.strip()[:400]
    n_words = len(head.split())
    return n_words <= _TERSE_WORDS or (n_words <= _FOLLOW_UP_WORDS and _FOLLOW_UP_START.match(head) is not None)


def question_of(text: str) -> str:
    """The question in a message: long code, quotes and pasted documents cut to their beginnings, the rest kept.

    A retrieval prompt that marks the human's words (<user_query>) is reduced to them.
    """
    text = clip(text, 8 * MAX_PASSAGE_CHARS)
    start, end = text.find("<user_query>"), text.rfind("</user_query>")
    if 0 <= start < end and text[start + len("<user_query>") : end].strip():
        text = text[start + len("<user_query>") : end]
    return clip(_shorten_lines(_shorten_blocks(text)).strip(), MAX_PASSAGE_CHARS)


def _shorten_blocks(text: str) -> str:
    """Cut what stands between quoting tags to its beginning. One pass: patterns that look for a closing tag from every
    opening one take minutes over a text made of opening tags."""
    lowered, kept, position, unclosed = text.lower(), [], 0, set()
    if len(lowered) != len(text):  # a few capitals grow when lowered; then offsets would not fit
        return text
    for tag in _QUOTING_TAG.finditer(text):
        name = tag.group(1).lower()
        if tag.start() < position or name in unclosed:
            continue
        end = lowered.find(f"</{name}>", tag.end())
        if end < 0:
            unclosed.add(name)
            continue
        kept += [text[position : tag.start()], text[tag.end() : min(end, tag.end() + QUOTE_CHARS)]]
        position = end + len(f"</{name}>")
    return " ".join([*kept, text[position:]])


def _shorten_lines(text: str) -> str:
    """Cut fenced code and runs of quoted lines (>) to their beginnings."""
    kept: list[str] = []
    fence = ""
    room = 0  # characters that the present block may still give
    quoting = False
    for line in text.split("\n"):
        mark = line.lstrip()[:3]
        if fence:
            if mark == fence:
                fence = ""
            elif room > 0:
                kept.append(line[:room])
                room -= len(line)
        elif mark in ("```", "~~~"):
            fence, room, quoting = mark, FENCE_CHARS, False
            kept.append(line.lstrip(" \t`~")[:FENCE_CHARS])
        elif mark.startswith(">"):
            if not quoting:
                quoting, room = True, QUOTE_CHARS
            if room > 0:
                kept.append(line[:room])
                room -= len(line)
        else:
            quoting = False
            kept.append(line)
    return "\n".join(kept)


def _passages(newest: str, earlier: Sequence[str], system: str, follow_up: bool) -> tuple[Passage, ...]:
    """The newest text counts most, the two before it less, the system prompt least; a follow-up leans on its past."""
    shares = (0.4, 0.4, 0.15) if follow_up else (1.0, 0.15, 0.05)
    weighted = [(question_of(text), share) for text, share in zip([newest, *earlier[:2]], shares, strict=False)]
    if not earlier:
        weighted.append((clip(system, 600), 0.3 if is_follow_up(newest) else 0.1))
    kept = [(text, share) for text, share in weighted if text.strip()]
    # A system prompt alone says what an application is for, but nobody has asked anything yet.
    if not newest.strip() and not earlier:
        kept = []
    total = sum(share for _, share in kept)
    return tuple(Passage(text, share / total) for text, share in kept)


def _in_tool_exchange(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the newest message is a tool's result or a call that waits for one."""
    if not messages:
        return False
    last = messages[-1]
    return last.get("role") in ("tool", "function") or (
        last.get("role") == "assistant" and bool(last.get("tool_calls") or last.get("function_call"))
    )


_KEY = secrets.token_bytes(32)  # of this process: a digest cannot be matched against guessed texts elsewhere


def digest(*parts: str) -> bytes:
    """A keyed 16-byte hash of some texts, in order. The same within a process, unlike any other process's."""
    state = hashlib.blake2b(digest_size=16, key=_KEY)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little"))
        state.update(encoded)
    return state.digest()


def _digest(turns: Sequence[tuple[str, str]], last: int) -> bytes:
    """Of the human and assistant turns up to `last`; not of system prompts, since clients put the time in them."""
    spoken = [f"{role}\0{text.strip()}" for role, text in turns[: last + 1] if role in ("user", "assistant")]
    return digest(*spoken)
