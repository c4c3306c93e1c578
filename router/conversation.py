"""What the supervisor reads of a conversation: which texts, how much each counts, and what kind of request it is.

Nothing here keeps a text after the decision: a conversation is recognised later by hashes (session affinity).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .client_markup import MAX_CHARS, UserTurn, read_turn
from .client_tasks import DEFAULT, ClientTask, ClientTasks
from .courtesy import without_courtesies
from .features import clip

_SYSTEM_CHARS = 600
# What a turn and the two questions before it count: the less it says, the more they do.
_SHARES = (1.0, 0.15, 0.05)
_SHARES_OF_SHORT = (0.7, 0.25, 0.05)
_SHARES_OF_FOLLOW_UP = (0.4, 0.4, 0.15)
_SHORT_WORDS = 6
_QUOTED_SHARE = 0.1
# "What does this do?": in so few words and with such a word, what is quoted is the subject.
_POINTS_AT_QUOTATION_WORDS = 8
_POINTS_AT_QUOTATION = re.compile(
    r"\b(?:this|that|these|those|it|its|they|here|there|above|below|following|attached"
    r"|the (?:\w+ )?(?:code|text|document|function|snippet|error|file|e-?mail|article|paper|log|output|page|table))\b",
    re.IGNORECASE,
)
_SYSTEM_SHARE = 0.05
_SYSTEM_SHARE_OF_TERSE = 0.3  # where the human says next to nothing, what the application is for says more

# How replies that say little begin, by the number of words up to which they are taken for one. A full question may
# begin alike ("Why is the sky blue?", "Now how do I cook rice?"): what is common is trusted in very short texts only.
_BACK = r"(?:it|that|this|them|those|again|more|the same)"
_REPLIES: tuple[tuple[int, re.Pattern[str]], ...] = tuple(
    (n_words, re.compile(rf"^\W*(?:please,? )?(?:{pattern})\b", re.IGNORECASE))
    for n_words, pattern in (
        (
            4,
            r"ok(?:ay)?|yes|no|yep|nope|yeah|sure|thanks?|thank you|thx|great|perfect|cool|nice|good|why|how so|really"
            r"|right|correct|wrong|exactly|hmm+|wait|stop|lgtm|done|next|more|less|one more|another|again|shorter"
            r"|longer|simpler|now|instead|try|use|run|do|with|without|for|in|as|if|not|sorry|actually|i mean|show me",
        ),
        (6, r"and|but|so|then|also|or|(?:answer|reply|respond) (?:in|with|as)"),
        (
            8,
            r"what about|how about|what if|which (?:one|of)|what else|anything else|any other|are you sure"
            r"|the (?:first|second|third|last|other|same) (?:one|part|line|step|question|equation|function|paragraph)"
            r"|continue|go on|go ahead|keep going|proceed|commit|push|ship it|undo|revert|retry|redo"
            r"|(?:explain|repeat|do|make|fix|try|change|expand|simplify|check|shorten|prove|solve|rewrite|translate"
            rf"|summari[sz]e|show me) {_BACK}"
            r"|(?:can|could|would|will) you (?:also |please )?(?:explain|repeat|elaborate|shorten|fix|change|redo"
            rf"|expand|simplify|show|do|make|try|check|prove|rewrite|translate)(?: {_BACK}|(?=\W*$))"
            r"|(?:give|show)(?: me)? (?:another|more|an example|some examples|the (?:steps|result|code|rest))"
            r"|(?:is|does|what does|what is|what was|what if|why is|why does) (?:it|that|this)|why not"
            r"|in other words|for example",
        ),
    )
)
# "translate the answer", "what is wrong with it?", "I don't get the second step", "use a set instead"
_POINTS_BACK = re.compile(
    r"\b(?:it|that|this|them|those|above|previous|instead|again|as well)\W*$"
    r"|\b(?:your|the) (?:previous |last |first |second )?(?:answer|reply|response|solution|result|proof|example)\b"
    r"|\bthe (?:first|second|third|last|next|previous) (?:step|part|line|point|one|paragraph|sentence|bit)\b"
    r"|\binstead of\b|\bare you sure\b|\byou (?:mean|meant|said|wrote|used|forgot|missed|just)\b"
    r"|^\W*i (?:do not|don'?t|still don'?t|can'?t) (?:get|understand|see|follow)\b"
    r"|\bis there (?:a|an|any|another) (?:\w+er|better|other|different|alternative) (?:way|one|method|option|version)\b"
    r"|\b(?:be|something) more \w+\W*$|\bfind (?:out )?more\W*$|\bwhat i (?:asked|meant|wanted)\b"
    r"|^\W*say (?:it|that)\b|^\W*where (?:did|does) (?:the|that|this|it)\b.{0,30}\bcomes? from\b",
    re.IGNORECASE,
)
_POINTS_BACK_WORDS = 10
_TERSE_WORDS = 3
# Of so few words most are replies ("more examples"), but not those that name a subject: "Explain photosynthesis", "What
# is DNA?". Not "explain why", "what is next?", "what is the second?", which mean something that was said before.
_ASKS_ANEW = re.compile(
    r"^\W*(?:explain|define|describe|discuss|derive|solve|integrate|differentiate|what(?:'?s| is| are| was| causes)"
    r"|who(?:'?s| is| was))\s+"
    r"(?!(?:why|how|what|who|when|where|the|this|that|these|those|its?|them|he|she|they|i|you|your|my|me|more|again"
    r"|another|further|briefly|better|fully|please|each|all|both|everything|anything|else|next|new|left|missing|wrong"
    r"|different|first|second|third|last|steps?|part|line|point)\b)\S*[^\W_]",
    re.IGNORECASE,
)
# Nothing but thanks and praise, however long: "Great, thank you so much for all your help!"
_THANKS = re.compile(
    r"(?:\W*\b(?:thanks?|thx|cheers|great|good|nice|perfect(?:ly)?|awesome|excellent|wonderful|brilliant|amazing|clear"
    r"|useful|help(?:s|ed|ful)?|works|worked|well done|makes sense|appreciated?|ok(?:ay)?|yes|got|i|see|you|me|it|that"
    r"|this|all|the|your|so|very|really|much|a lot|again|for|is|was|were|now|and|answer|explanation|job)\b)+\W*",
    re.IGNORECASE,
)
# Says nothing of what the application is for.
_BARE_SYSTEM = re.compile(
    r"^\W*you are (?:a|an) (?:\w+,? ){0,4}(?:assistant|ai|chatbot|language model)\b[^.\n]{0,60}[.\s]*$", re.I
)


@dataclass(frozen=True)
class Passage:
    """One text to be classified and its share of the decision; the shares of a conversation add up to 1."""

    text: str
    weight: float


@dataclass(frozen=True)
class Conversation:
    """A conversation as the supervisor sees it.

    passages:      newest human text first; empty when no human said anything readable.
    says_little:   the newest text is nothing on its own ("make it shorter").
    follow_up:     it says little, and leans on what went before ("and for n = 5?").
    tool_exchange: the model waits for a tool, or has been given its result and no human has spoken since.
    client_task:   what a chat client asks on its own account, or None.
    here, before:  digests that recognise this conversation at its newest and its previous human turn; None for none.
    n_chars:       characters of all messages and tools; n_new_chars: of those since the last answer.
    """

    passages: tuple[Passage, ...]
    follow_up: bool
    tool_exchange: bool
    client_task: ClientTask | None
    here: bytes | None
    before: bytes | None
    says_little: bool = False
    n_chars: int = 0
    n_new_chars: int = 0

    @classmethod
    def from_messages(
        cls, messages: Sequence[Mapping[str, Any]], tools_chars: int = 0, tasks: ClientTasks = DEFAULT
    ) -> Conversation:
        """Read OpenAI chat messages (role, content as a string or as parts). Unknown roles and parts are skipped.

        tools_chars: of the descriptions of tools. They have to be read, and tell nothing of the subject.
        tasks: what tells the tasks of clients.

        Never raises on what a message contains; the caller has checked that messages are mappings.
        """
        turns = [_read(message) for message in messages]
        spoken = [turn for turn in turns if turn.role == "user" and turn.written.strip()]
        human = [turn for turn in spoken if turn.user] or [replace(t, user=_as_written(t.written)) for t in spoken]
        asked = [replace(turn.user, text=without_courtesies(turn.user.text)) for turn in human]
        newest = asked[-1] if asked else UserTurn("")
        before = [_subject(turn) for turn in reversed(asked[:-1])]
        earlier = [text for text in before if not is_follow_up(text)] or before[-1:]
        system = " ".join(clip(t.written, MAX_CHARS) for t in turns if t.role in ("system", "developer"))
        says_little = is_follow_up(newest.text)
        follow_up = bool(earlier) and says_little
        answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        n_chars = [len(turn.written) + _call_chars(message) for turn, message in zip(turns, messages, strict=True)]
        return cls(
            passages=_passages(newest, earlier, system, follow_up),
            follow_up=follow_up,
            tool_exchange=_in_tool_exchange(messages, turns),
            client_task=client_task_in(messages, tasks),
            here=_digest(turns, spoken[-1]) if spoken else None,
            before=_digest(turns, spoken[-2]) if len(spoken) > 1 else None,
            says_little=says_little,
            n_chars=sum(n_chars) + tools_chars,
            n_new_chars=sum(n_chars[answers[-1] + 1 :]) if answers else sum(n_chars) + tools_chars,
        )

    @classmethod
    def from_text(cls, text: str) -> Conversation:
        """A conversation of one human message."""
        return cls.from_messages([{"role": "user", "content": text}])


def client_task_in(messages: Sequence[Mapping[str, Any]], tasks: ClientTasks = DEFAULT) -> ClientTask | None:
    """What a chat client asks with some messages on its own account; None where a human asks."""
    said = (message_text(message) for message in reversed(messages) if message.get("role") == "user")
    newest = next((text for text in said if text.strip()), "")
    system = [message_text(message) for message in messages if message.get("role") in ("system", "developer")]
    return tasks.in_messages(newest, " ".join(clip(text, MAX_CHARS) for text in system))


@dataclass(frozen=True)
class ConversationKey:
    """How a conversation is recognised at its next request, and how long it is: keyed hashes, no text.

    session: of the client's own name for it; None where the client sends none.
    here:    of its turns up to the newest human one; None when no human spoke.
    before:  of its turns up to the human one before that: what `here` was at the last request; None at the first.
    n_chars: characters of all messages; n_old_chars: of those up to the last answer.
    """

    session: bytes | None
    here: bytes | None
    before: bytes | None
    n_chars: int
    n_old_chars: int

    @classmethod
    def of(cls, conversation: Conversation, session_id: str | None = None) -> ConversationKey:
        """The key of a conversation. session_id: the client's own name for it."""
        return cls(
            session=digest("session", session_id) if session_id else None,
            here=conversation.here,
            before=conversation.before,
            n_chars=conversation.n_chars,
            n_old_chars=conversation.n_chars - conversation.n_new_chars,
        )

    def now(self) -> list[bytes]:
        """The hashes under which this request is remembered."""
        return [one for one in (self.session, self.here) if one is not None]

    def earlier(self, *, same_turn: bool) -> list[bytes]:
        """The hashes under which an earlier request of the conversation was remembered, the most certain first.

        same_turn: an earlier request may have been at this very turn (a tool exchange, an answer tried again).
        """
        turns = (self.here, self.before) if same_turn else (self.before,)
        return [one for one in (self.session, *turns) if one is not None]


@dataclass(frozen=True, eq=False)
class _Turn:
    role: str
    written: str  # all of it
    user: UserTurn  # as read; empty for other roles


def _read(message: Mapping[str, Any]) -> _Turn:
    role, written = str(message.get("role") or ""), message_text(message)
    return _Turn(role, written, read_turn(written) if role == "user" else UserTurn(""))


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message: its content, or its parts of type text joined by newlines; "" when there is none."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") in ("text", None))
    return "\n".join(text for text in texts if isinstance(text, str))


def is_follow_up(text: str) -> bool:
    """Whether a text says too little alone: three words at most that name no subject, nothing but thanks, or a few
    words that begin like a reply or point back."""
    head = text.strip()[:400]
    n_words = len(head.split())
    if n_words <= _TERSE_WORDS:
        return not _ASKS_ANEW.match(head)
    if _THANKS.fullmatch(head):
        return True
    if n_words <= _POINTS_BACK_WORDS and _POINTS_BACK.search(head):
        return True
    return any(n_words <= limit and pattern.match(head) for limit, pattern in _REPLIES)


def _as_written(text: str) -> UserTurn:
    return UserTurn(clip(text, MAX_CHARS))


def _subject(turn: UserTurn) -> str:
    """The text that tells what a turn is about: the human's words, and the quotation where they point at it."""
    short = len(turn.text.split()) <= _POINTS_AT_QUOTATION_WORDS
    if short and (is_follow_up(turn.text) or _POINTS_AT_QUOTATION.search(turn.text)):
        return f"{turn.text}\n{turn.quoted}".strip()
    return turn.text


def _passages(newest: UserTurn, earlier: Sequence[str], system: str, follow_up: bool) -> tuple[Passage, ...]:
    """The newest text counts most, the two questions before it less, the system prompt least; a follow-up leans on its
    past."""
    subject = _subject(newest)
    short = len(subject.split()) <= _SHORT_WORDS
    shares = _SHARES_OF_FOLLOW_UP if follow_up else _SHARES_OF_SHORT if short else _SHARES
    weighted = list(zip([subject, *earlier[:2]], shares, strict=False))
    if not earlier and not _BARE_SYSTEM.match(system):
        says_little = is_follow_up(subject)
        weighted.append((clip(system, _SYSTEM_CHARS), _SYSTEM_SHARE_OF_TERSE if says_little else _SYSTEM_SHARE))
    if newest.quoted and subject == newest.text:
        weighted.append((newest.quoted, _QUOTED_SHARE))
    kept = [(text, share) for text, share in weighted if _says_anything(text)]
    # A system prompt alone says what an application is for; it asks nothing.
    if not _says_anything(subject) and not earlier:
        kept = []
    total = sum(share for _, share in kept)
    return tuple(Passage(text, share / total) for text, share in kept)


def _says_anything(text: str) -> bool:
    """Whether there is a letter or a digit. Of "?" or a smiley no classifier knows the subject, sure as it may be."""
    return any(character.isalnum() for character in text)


def _in_tool_exchange(messages: Sequence[Mapping[str, Any]], turns: Sequence[_Turn]) -> bool:
    """Whether a tool's result, or a call that waits for one, is the newest but for what a client says of itself."""
    for message, turn in zip(reversed(messages), reversed(turns), strict=True):
        if turn.user.tool_result or turn.role in ("tool", "function"):
            return True
        if turn.role == "assistant":
            return bool(message.get("tool_calls") or message.get("function_call"))
        if turn.user:
            return False
    return False


def _call_chars(message: Mapping[str, Any]) -> int:
    """About how long the calls in a message are."""
    calls = message.get("tool_calls")
    return sum(len(str(call)) for call in calls) if isinstance(calls, Sequence) and not isinstance(calls, str) else 0


_KEY = secrets.token_bytes(32)  # of this process: a digest cannot be matched against guessed texts elsewhere


def digest(*parts: str) -> bytes:
    """A keyed 16-byte hash of some texts, in order. The same within a process, unlike any other process's."""
    state = hashlib.blake2b(digest_size=16, key=_KEY)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little"))
        state.update(encoded)
    return state.digest()


def _digest(turns: Sequence[_Turn], last: _Turn) -> bytes:
    """Of the human and assistant turns up to `last`, of a human's turn the words alone.

    Clients put the time into system prompts, and an editor's state or retrieved passages into the newest turn only.
    """
    spoken = []
    for turn in turns:
        if turn.role in ("user", "assistant"):
            spoken.append(f"{turn.role}\0{turn.user.text or turn.user.quoted or turn.written.strip()}")
        if turn is last:
            break
    return digest(*spoken)
