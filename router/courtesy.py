"""Stop-clause removal: clauses that say nothing of a subject are left out before a text is classified.

A greeting, a thank-you or a sign-off around a question changes a classifier's mind about a question that it knows. Such
a clause is told by its words alone: all of them are words of courtesies (`courtesy.txt`), but for the names of those
who greet and are greeted. What is left out of a text is never all of it: a bare greeting stays what it is.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path

WORDS = Path(__file__).parent / "courtesy.txt"
MOST_WORDS = 16  # of a clause; a longer one tells something
MOST_NAMES = 2
MOST_SIGNED = 4  # clauses of a signature: name, title, position

# A clause ends at a mark that white space, or the text's end, follows; those of Chinese and Japanese need none. A dash
# ends one where white space stands on both sides; emoji do.
_EMOJI = "\u2600-\u27bf\U0001f300-\U0001faff\ufe0f"
_CLAUSE = re.compile(
    rf"(?:[^\n.!?…,:;。！？，、{_EMOJI}–—-]|[.!?…,:;](?!\s|$)|(?<!\s)[–—-]|[–—-](?!\s))*"
    rf"(?:[.!?…,:;。！？，、\n{_EMOJI}–—-]+\s*|$)"
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SAYS_MORE = re.compile(r"[\d_{}()\[\]=<>+*/^$#&|%@~\\`]")  # formulas and code are about something
_SMILEY = re.compile(r"(?<!\S)[:;][-']?[)(DPp3](?!\S)|<3(?!\S)")
# Thanks that follow a question without a mark between: "how do tides work thanks a lot".
_THANKING = re.compile(
    r"\s(?:(?:many|a million) )?(?:thanks|thank you|thank u|thx|tysm|cheers|please and thank|best regards"
    r"|kind regards|any help"
    r"|lol|lmao|haha|hehe|xx+|xoxo"
    r"|i['’]d be grateful|i would be grateful|i(?: really)? appreciate|much appreciated|have a (?:nice|great|good)"
    r"|vielen dank|danke|mit freundlichen|merci|muchas gracias|gracias|grazie|obrigad[oa]|спасибо|sorry)(?![\w'’])",
    re.IGNORECASE,
)
_OF_A_NAME = re.compile(r"\b(?:in|of|about|from) [A-Z]")  # "thank you in Thai" is asked about, and thanks nobody
# What stands beside a name.
_NAMED = frozenset(
    (
        *("hi", "hello", "hey", "dear", "hallo", "hei", "hej", "hoi", "bonjour", "salut", "hola", "ciao", "olá", "oi"),
        *("cześć", "merhaba", "thanks", "thank", "thx", "cheers", "merci", "danke", "gracias", "grazie", "obrigado"),
        *("regards", "wishes", "sincerely", "yours", "name", "i'm", "liebe", "lieber", "beste"),
    )
)
# A greeting that no mark ends, before a word that begins a question: "hey siri what is ice".
_GREETING = re.compile(
    r"\s*(?:(?:hi|hello|hey|hiya|yo|howdy|good (?:morning|afternoon|evening))(?: (?:there|all|everyone|everybody|guys"
    r"|siri|google|alexa|chatgpt|claude|gemini|computer|assistant|bot|ai|buddy|friend|mate|dude|sir))?,?\s+"
    r"|(?:(?:quick|random|silly|stupid|dumb|simple) )+question,?(?: but)?\s+|(?:lol|ok|okay|so|and|but|well),?\s+)+"
    r"(?=(?:what|what's|who|whose|which|when|where|why|how|is|are|do|does|did|can|could|would|will|please|pls|tell"
    r"|solve|calculate|compute|explain|define|name)\b)",
    re.IGNORECASE,
)
# What stands before the question in its own sentence: "Could you please tell me what 27 + 35 is?"
_OPENING = re.compile(
    r"\s*(?:(?:so|and|but|ok|okay|well|please|kindly|just|also|then)\b,?\s+)*"
    r"(?:(?:(?:i was|i am|i'm|i've been|just)?\s*wondering (?:if|whether) you )?"
    r"(?:(?:can|could|would|will|might|may) (?:you|u|i)\b|do you think you (?:can|could)|(?:can|could|would|might)\b"
    r"|(?:would|do) you mind|would you be (?:so kind (?:as )?to|able to|willing to)|i (?:want|need|would like|'d like)"
    r" you to|i'd like you to)?\s*(?:(?:please|kindly|possibly|perhaps|maybe|just|quickly|briefly|to)\s+)*"
    r"(?:(?:tell|telling|let) me(?: know)?|help(?:ing)? me (?:to )?(?:understand|find out|figure out|work out|with)"
    r"|ask(?: you)?)"
    r"|(?:i want|i need|i wish|i would like|i'd like|i would love|i'd love|i am trying|i'm trying|i wanted)"
    r" (?:to (?:know|ask you|ask|understand|find out)|help (?:with|understanding|to understand))"
    r"|(?:i was|i am|i'm|i've been|just)? ?(?:wondering|curious)(?: about)?"
    r"|(?:can|could|would|will) you (?:please|kindly)|please|kindly|pls|plz)\b[,:]?\s+(?=\S)",
    re.IGNORECASE,
)


def without_courtesies(text: str) -> str:
    """The text without clauses that carry no subject, and without the phrase that leads up to the question; the whole
    text where nothing else would be left. What stays stands as it was written."""
    clauses = [match[0] for match in _CLAUSE.finditer(text) if match[0]]
    kept: list[str] = []
    left_out = False  # the clause before
    signed = _signed_from(clauses)
    for number, clause in enumerate(clauses):
        left_out = (left_out and number >= signed) or _is_courtesy(clause)
        if not left_out:
            kept.append(_without_thanks(clause))
    rest = "".join(kept).strip()
    for lead in (_GREETING, _OPENING):
        if found := lead.match(rest):
            rest = rest[found.end() :]
    return rest if any(character.isalnum() for character in rest) else text


def _signed_from(clauses: list[str]) -> int:
    """Where the names that a text ends in begin, which are its signature if a courtesy stands before them."""
    first = len(clauses)
    while first > max(0, len(clauses) - MOST_SIGNED) and _is_name(clauses[first - 1]):
        first -= 1
    return first


def _is_courtesy(clause: str) -> bool:
    bare = _SMILEY.sub(" ", unicodedata.normalize("NFC", clause))
    if _SAYS_MORE.search(bare):
        return False
    written = _WORD.findall(bare)
    if len(written) > MOST_WORDS:
        return False
    words = [word.lower().replace("’", "'") for word in written]
    unknown = [word for word, low in zip(written, words, strict=True) if low not in _known()]
    if words and _fillers().issuperset(words):
        return False
    if not unknown:
        return True
    return len(unknown) <= MOST_NAMES and all(word[0].isupper() for word in unknown) and not _NAMED.isdisjoint(words)


def _without_thanks(clause: str) -> str:
    # No more words than a courtesy may have can follow: each beginning in a long text would be read to its end.
    words = [word.start() for word in _WORD.finditer(_SMILEY.sub(lambda smiley: " " * len(smiley[0]), clause))]
    first = words[-MOST_WORDS - 1] + 1 if len(words) > MOST_WORDS else 0
    late = (match for match in _THANKING.finditer(clause) if match.start() >= first)
    match = next((match for match in late if _thanks(clause[match.start() :])), None)
    return clause if match is None else clause[: match.start()] + " "


def _thanks(ending: str) -> bool:
    return _is_courtesy(ending) and not _OF_A_NAME.search(ending)


def _is_name(clause: str) -> bool:
    written = _WORD.findall(clause)
    return (
        0 < len(written) <= MOST_NAMES and not _SAYS_MORE.search(clause) and all(word[0].isupper() for word in written)
    )


@cache
def _known() -> frozenset[str]:
    return frozenset(_words("")) | _fillers()


@cache
def _fillers() -> frozenset[str]:
    return frozenset(_words("+ "))


def _words(mark: str) -> list[str]:
    """The words of the lines of the file that begin with a mark, "" for those without one; in lower case."""
    lines = [line for line in WORDS.read_text("utf-8").splitlines() if not line.startswith("#")]
    marked = [line[2:] if mark else line for line in lines if line.startswith("+ ") == bool(mark)]
    return [word.lower() for line in marked for word in _WORD.findall(unicodedata.normalize("NFC", line))]
