"""Background requests of chat clients: titles, tags, follow-up questions, summaries, commit messages.

Recognised by the wording of the clients' own prompts, and by shape, so that new wordings need no release: an
instruction to make something of a conversation, and then that conversation, quoted; or to condense what was said for
whoever goes on with it. What each is for tells how long its answer may be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_READ_CHARS = 400  # an instruction stands at the beginning of a text: the rest quotes the chat
_SHAPE_CHARS = 1_200  # of one that is told by its shape
_QUOTE_CHARS = 20_000  # in which the quoted chat is looked for

# By the instruction's own wording, since people do ask for titles and tags of their own. Written from the default
# prompts of Open WebUI, LibreChat, LobeChat, NextChat, Chatbox, Cherry Studio, big-AGI, HuggingChat, Continue, Zed,
# Copilot, opencode, Qwen Code, Crush, Goose, Cline, Roo Code, Aider and Claude Code.
_TASKS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("title", r"^\W*task:?\s+(?:generate|create)\s+a\s+concise,?\s+(?:and\s+)?[\w-]*\s*(?:word\s+)?title\b"),
        (
            "title",
            r"\b(?:generate|create|provide)\s+a\s+concise,?\s+\d+(?:\s*-\s*\d+)?[\s-]words?(?:[\s-]or[\s-]less)?\s+"
            r"(?:title|phrase)\b[^.!?]{0,80}\b(?:conversation|chat|query|prompt|history|messages?|dialogue|session)\b",
        ),
        ("title", r"\bconcise,?\s+5-word-or-less\s+title\s+for\s+the\s+conversation\b"),
        (
            "title",
            r"^\W*you\s+are\s+an?\s+(?:\w+\s+)?title\s+generator\b(?=.{0,200}?\b(?:thread|conversation|chat|session)\b)",
        ),
        (
            "title",
            r"^\W*(?:generate|write|create)\s+a\s+(?:\w+,?\s+)?title\s+for\s+(?:this|the)\s+(?:conversation|chat)\s*:",
        ),
        ("title", r"\bexpert\s+in\s+crafting\s+pithy\s+titles\s+for\s+chatbot\s+conversations\b"),
        (
            "title",
            r"^\W*please\s+write\s+a\s+brief\s+title\s+for\s+the\s+following\s+(?:request|chat|conversation)\s*:",
        ),
        ("title", r"\byou\s+will\s+generate\s+a\s+short\s+title\s+based\s+on\s+the\s+first\s+message\b"),
        (
            "title",
            r"\bgenerate\s+a\s+(?:four|five|\d+)(?:\s*(?:to|-)\s*(?:four|five|six|\d+))?[\s-]word\s+title\s+summari[sz]ing\s+"
            r"(?:our|this|the)\s+conversation\b",
        ),
        (
            "title",
            r"\bsummari[sz]e\s+(?:the|this)\s+(?:user'?s?\s+)?(?:conversation|chat)\s+(?:above\s+)?(?:in|into)\s+(?:a\s+)?"
            r"(?:short\s+)?title\b",
        ),
        ("title", r"\bwrite\s+a\s+5-10\s+word\s+title\s+for\s+the\s+following\s+conversation\b"),
        ("title", r"\bconcise\s+description\s+of\s+this\s+session\s+in\s+4\s+words\s+or\s+less\b"),
        ("title", r"^\W*summari[sz]e\s+this\s+coding\s+conversation\s+in\s+under\s+\d+\s+characters\b"),
        ("title", r"^\W*you\s+are\s+a\s+summari[sz]ation\s+ai\.\s+summari[sz]e\s+the\s+user'?s\s+(?:request|query)\b"),
        ("title", r"\breply\s+with\s+a\s+title\s+for\s+(?:the|this)\s+chat\b"),
        ("title", r"^\W*based\s+on\s+the\s+chat\s+history,\s+give\s+this\s+conversation\s+a\s+name\b"),
        ("title", r"^\W*analy[sz]e\s+this\s+conversation\s+and\s+provide:\s+1\.\s+the\s+detected\s+language\b"),
        (
            "title",
            r"^\W*you\s+are\s+a\s+professional\s+conversation\s+summari[sz]er\.\s+generate\s+a\s+concise\s+title\b",
        ),
        ("title", r"^\W*you\s+are\s+an\s+ai\s+conversation\s+titles\s+assistant\b"),
        ("title", r"^\W*summari[sz]e\s+the\s+given\s+session\s+as\s+a\s+\d+-word\s+title\b"),
        ("summary", r"^\W*provide\s+a\s+detailed\s+prompt\s+for\s+continuing\s+(?:our|this|the)\s+conversation\b"),
        (
            "summary",
            r"\byou\s+are\s+the\s+component\s+that\s+summari[sz]es\s+(?:internal\s+chat\s+history|a\s+conversation)\b",
        ),
        ("summary", r"^\W*you\s+are\s+a\s+(?:\w+\s+)?context\s+summari[sz](?:ation\s+agent|er)\b"),
        ("summary", r"^\W*generate\s+a\s+one-line\s+session\s+recap\b"),
        ("title", r"^\W*generate\s+a\s+concise,?\s+[\w-]+\s+title\s+\(\d+(?:\s*-\s*\d+)?\s+words\)"),
        ("follow-ups", r"^\W*suggestion\s+mode:\s+suggest\s+what\s+the\s+user\s+might\b"),
        (
            "next speaker",
            r"^\W*analy[sz]e\W+only\W+the\s+content\s+and\s+structure\s+of\s+your\s+immediately\s+preceding\s+response\b",
        ),
        (
            "summary",
            r"^\W*you\s+are\s+(?:an?|the)\s+(?:\S+\s+){0,4}(?:conversation|chat|context|history|session)\s+(?:history\s+)?"
            r"(?:compactor|compressor)\b",
        ),
        ("topic", r"\banaly[sz]e\s+if\s+this\s+message\s+indicates\s+a\s+new\s+conversation\s+topic\b"),
        ("tags", r"^\W*task:?\s+generate\s+\d(?:\s*-\s*\d)?\s+broad\s+tags\b"),
        ("follow-ups", r"^\W*task:?\s+suggest\s+\d(?:\s*-\s*\d)?\s+relevant\s+follow-?up\b"),
        ("autocompletion", r"^\W*task:?\s+you\s+are\s+an\s+autocompletion\s+system\b"),
        ("search queries", r"^\W*task:?\s+analy[sz]e\s+the\s+chat\s+history\s+to\s+determine\s+the\s+necessity\s+of\b"),
        ("image prompt", r"^\W*task:?\s+generate\s+a\s+detailed\s+prompt\s+for\s+an?m?\s+image\s+generation\s+task\b"),
        ("emoji", r"^\W*your\s+task\s+is\s+to\s+reflect\s+the\s+speaker'?s\s+likely\s+facial\s+expression\b"),
        ("tool choice", r"\byour\s+task\s+is\s+to\s+choose\s+and\s+return\s+the\s+correct\s+tools?(?:\(s\))?\s+from\b"),
        ("summary", r"^\W*briefly\W*\s+summari[sz]e\s+this\s+partial\s+conversation\s+about\s+programming\b"),
        (
            "summary",
            r"^\W*summari[sz]e\s+the\s+discussion\s+briefly\s+in\s+\d+\s+words\s+or\s+less\s+to\s+use\s+as\s+a\s+prompt\b",
        ),
        (
            "summary",
            r"^\W*your\s+task\s+is\s+to\s+create\s+a\s+detailed\s+summary\s+of\s+the\s+conversation\s+so\s+far\b",
        ),
        ("commit message", r"\bengineer\s+that\s+generates\s+concise,\s+one-line\s+git\s+commit\s+messages\b"),
        ("memory", r"^\W*managed\s+memory\s+has\s+two\s+directories\.\s+choose\s+which\s+one\s+to\s+write\b"),
        ("commit message", r"^\W*generate\s+a\s+concise\s+git\s+commit\s+message\s+for\s+these\s+changes\b"),
        ("prompt rewriting", r"^\W*generate\s+an\s+enhanced\s+version\s+of\s+this\s+prompt\s+\(reply\s+with\s+only\b"),
    )
)


# What is to be made of the conversation, by the words for it, the more special first.
_PRODUCTS: Final = (
    ("follow-ups", r"follow[\s-]?ups?|(?:next|useful|likely)\s+(?:\w+\s+)?(?:messages?|questions?|prompts?|replies)"),
    ("search queries", r"search\s+quer(?:y|ies)"),
    ("tags", r"tags?|keywords|categories|labels?"),
    ("title", r"titles?|name|heading|headline|topic|slug"),  # names and topics are what people ask for
    ("emoji", r"emojis?"),
    ("summary", r"summar(?:y|ies)|snapshot|recap|digest|handoff|hand-off"),
)
_CONVERSATION: Final = (
    r"(?:conversations?|chats?|dialogues?|dialogs?|discussions?|sessions?|threads?|transcripts?|histor(?:y|ies)"
    r"|messages?)"
)
_MAKE: Final = (
    r"(?:generate|create|write|suggest|predict|provide|produce|propose|give|make|pick|choose|extract|return|draft|compose"
    r"|come\s+up\s+with|think\s+of|reply\s+with|respond\s+with|output|assign)"
)
_CONDENSE: Final = r"(?:summari[sz]e|condense|compress|compact|distil+|recap)"
_ASKS_FOR: Final = (
    *((task, rf"\b{_MAKE}\b[^.!?]{{0,120}}?\b(?:{words})\b") for task, words in _PRODUCTS),
    ("summary", rf"\b{_CONDENSE}\b[^.!?]{{0,80}}?\b{_CONVERSATION}\b"),
)
_SHAPES: Final = tuple((task, re.compile(pattern, re.IGNORECASE)) for task, pattern in _ASKS_FOR)
_OF_A_CONVERSATION: Final = re.compile(rf"\b{_CONVERSATION}\b", re.IGNORECASE)
# A conversation that is quoted: in a tag of its own, as turns, of which the human's may be the only ones, or as JSON.
_TAG: Final = rf"(?:chat_?|conversation_?|message_?)?{_CONVERSATION}"
_OPENED: Final = re.compile(rf"<({_TAG})>", re.IGNORECASE)
_QUOTED: Final = re.compile(
    rf"<{_TAG}>"
    r"|^\W{0,4}(?:user|human)\W{0,3}:"
    r"|\"role\"\s*:\s*\"(?:user|assistant)\"",
    re.IGNORECASE | re.MULTILINE,
)
# What was said and done so far, condensed for whoever goes on with it: nothing is quoted, for the history is there.
_CONDENSES: Final = re.compile(
    rf"\b(?:{_CONDENSE}|{_MAKE}\b[^.!?]{{0,120}}?\b(?:summary|snapshot|recap|digest|hand-?off|brief))\b", re.IGNORECASE
)
_OF_THE_PAST: Final = re.compile(
    rf"\b(?:{_CONVERSATION}|so\s+far|above|compaction|progress|(?:everything|what|all)\s+(?:that\s+)?(?:we|you|was|has))\b",
    re.IGNORECASE,
)
_FOR_THE_NEXT: Final = re.compile(
    r"\b(?:(?:another|next|new|fresh|future|successor|subsequent|different)\s+(?:\w+\s+){0,2}?"
    r"(?:llm|model|agent|assistant|instance|session|context|conversation|chat|thread)"
    r"|(?:out|short)\s+of\s+context|(?:fit|within|exceed|full|approach|reach|limit)\w*\s+(?:\w+\s+){0,3}context|context\s+checkpoint"
    r"|compaction|compacted"
    r"|(?:continu|resum)(?:e|es|ing)\s+(?:(?:the|our|this|your|its)\s+)?"
    r"(?:work|task|conversation|session|development|discussion|chat)|(?:work|task|conversation)\s+can\s+(?:continue|go\s+on)"
    r"|replac(?:e|es|ing)\s+(?:(?:the|this|our|all|older|earlier|previous)\s+){0,2}(?:\w+\s+)?"
    r"(?:history|conversation|messages))\b",
    re.IGNORECASE,
)

ANSWER_TOKENS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "title": 128,
        "topic": 128,
        "emoji": 32,
        "tags": 256,
        "commit message": 256,
        "autocompletion": 256,
        "follow-ups": 512,
        "next speaker": 512,
        "search queries": 512,
        "image prompt": 512,
        "tool choice": 2048,
        "prompt rewriting": 2048,
        "summary": 8192,
    }
)
"""The longest answer of each task, in tokens: some times what it is asked for, in scripts of many tokens, too."""

_BY_SHAPE: Final = 4  # as long: a person's own words may have the shape, and want more than a client does


@dataclass(frozen=True)
class ClientTask:
    """What a chat client asks on its own account: a "title". answer_tokens: the longest answer; None for no bound."""

    name: str
    answer_tokens: int | None = None


_LISTS_TOOLS: Final = re.compile(r"\W*available\s+tools\s*:", re.IGNORECASE)


class ClientTasks:
    """Tells the tasks of clients: those known here, and those of the operator's own patterns."""

    def __init__(
        self, patterns: Mapping[str, Sequence[str]] | None = None, answer_tokens: Mapping[str, int] | None = None
    ) -> None:
        """patterns: regular expressions, looked for at the beginning of a text, by the task's name.

        answer_tokens: in place of ANSWER_TOKENS, by the task's name; 0 for no bound.
        Raises ValueError for a pattern that is none.
        """
        self._answer_tokens = {**ANSWER_TOKENS, **(answer_tokens or {})}
        self._own: list[tuple[str, re.Pattern[str]]] = []
        for name, written in (patterns or {}).items():
            for pattern in written:
                try:
                    self._own.append((name, re.compile(pattern, re.IGNORECASE)))
                except (re.error, RecursionError, OverflowError) as error:
                    raise ValueError(f"{pattern!r} is no regular expression: {error}") from None

    def in_messages(self, last: str, system: str) -> ClientTask | None:
        """The task that a chat is: by its last human turn, or by its system text, of which no shape is believed.

        An application's system text may well speak of chats and quote one, and no request of it is a client's task.
        """
        return self.find(last) or self.find(system, shapes=False)

    def find(self, text: str, *, shapes: bool = True) -> ClientTask | None:
        """The task that a text instructs the model to do for a client. shapes: whether one is told by shape, too."""
        start = text.lstrip()[:_READ_CHARS]
        if _LISTS_TOOLS.match(start):  # as long as they are, the instruction comes after them
            start += text[-_SHAPE_CHARS:]
        if found := next((name for name, pattern in (*self._own, *_TASKS) if pattern.search(start)), None):
            return ClientTask(found, self._answer_tokens.get(found) or None)
        if shapes and (found := _by_shape(text.lstrip())):
            return ClientTask(found, _BY_SHAPE * self._answer_tokens[found] or None)
        return None


def _by_shape(text: str) -> str | None:
    """An instruction, and the conversation that it is about, quoted below it, in tags above it, or standing above."""
    below = _below_quotation(text)
    if below and (task := _asked_for(below)):
        return task
    start = text[:_SHAPE_CHARS]
    if all(part.search(start) for part in (_CONDENSES, _OF_THE_PAST, _FOR_THE_NEXT)):
        return "summary"
    if not _OF_A_CONVERSATION.search(start):
        return None
    quoted = _QUOTED.search(text[:_QUOTE_CHARS])
    if quoted is None or quoted.start() == 0:
        return None
    return _asked_for(text[: min(quoted.start(), _SHAPE_CHARS)])


def _below_quotation(text: str) -> str:
    """What follows a conversation that is quoted in tags; "" where nothing does, or there is none."""
    opened = _OPENED.search(text[:_SHAPE_CHARS])
    _, closed, below = text.rpartition(f"</{opened[1]}>") if opened else ("", "", "")
    return below[:_SHAPE_CHARS] if closed else ""


def _asked_for(asked: str) -> str | None:
    if not _OF_A_CONVERSATION.search(asked):
        return None
    # What is named first: "a summary of the conversation in the tags above" asks for no tags.
    found = [(match.end(), task) for task, shape in _SHAPES if (match := shape.search(asked))]
    return min(found, key=lambda one: one[0])[1] if found else None


DEFAULT: Final = ClientTasks()


def client_task_of(text: str) -> str | None:
    """The name of the task that a text instructs the model to do for a client ("title"), or None."""
    task = DEFAULT.find(text)
    return task.name if task is not None else None
