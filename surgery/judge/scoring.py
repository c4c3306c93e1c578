"""Answer extraction and grading: what an answer's text says, and whether that is right. Pure: text in, verdict out.

A model reasons and then concludes, and corrects itself on the way: so the last explicit statement counts ("Answer: C",
a box), not the first. A question that the model makes up after its answer is no part of it. Where nothing is stated,
only what cannot be misread counts; the rest is unparsed, which is wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .values import AnswerKind, Question

_MAX_IMPLIED: Final = 0.02  # of the reference; digits alone never excuse more
_SIGNIFICANT: Final = 3  # digits an answer needs to be taken for the rounded reference
_SHORT_CHARS: Final = 60  # a longer text is more than a letter
_SEGMENT_CHARS: Final = 300  # how far behind "the answer is" the answer may stand


@dataclass(frozen=True)
class Score:
    """A verdict. extracted: what was compared with the reference, None when the text states nothing (unparsed)."""

    correct: bool
    extracted: str | None


@dataclass(frozen=True)
class Number:
    """A number as it was written.

    last_place: the size of its last written decimal, None for integers and fractions, which state all their digits.
    """

    value: float
    last_place: float | None = None
    significant: int = 0
    percent: bool = False

    def scaled(self, factor: float) -> Number:
        """The same, `factor` times as large."""
        place = None if self.last_place is None else self.last_place * factor
        return Number(self.value * factor, place, self.significant, self.percent)


def score(question: Question, text: str) -> Score:
    """Judge an answer. text: without thinking."""
    plain = _plain(text)
    match question.kind:
        case AnswerKind.CHOICE:
            letter = stated_letter(plain, [_plain(option) for option in question.options])
            return Score(letter == question.answers[0], letter)
        case AnswerKind.NUMERIC:
            found = stated_number(plain)
            references = [reference for answer in question.answers if (reference := number(answer)) is not None]
            right = found is not None and any(agree(ref, found, question.tolerance) for ref in references)
            return Score(right, None if found is None else _written(found))
        case AnswerKind.EXACT:
            stated = stated_texts(plain)
            wanted = {normalised(_plain(answer)) for answer in question.answers}
            hit = next((words for words in stated if normalised(words) in wanted), None)
            return Score(hit is not None, hit or (stated[0] if stated else None))


def normalised(text: str) -> str:
    """For comparing words: case, accents' encoding, white space, punctuation and English articles make no difference.

    What changes a meaning stays: a sign and a decimal point of a number, and the marks of `C++`, `C#` and `50 %`.
    """
    text = unicodedata.normalize("NFKC", text).replace("−", "-").casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"['’`]", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|(?<=\w)-|-(?![\d.])|[^\w\s.\-+%/#&@^<>=$€£]|_", " ", text)
    words = text.split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


# --- the text, made plain -------------------------------------------------------------------------------------------

_SUPERSCRIPT: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_WRAPPED: Final = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox|bm)\s*\{([^{}]*)\}")
_BOX_OR_BRACE: Final = re.compile(r"\\(?:boxed|fbox)\s*\{\s*|[{}]")
# Bounded: an opening mark that nothing closes must not be followed to the end of a long line, each of them again.
_BOLD: Final = re.compile(r"(?<![\w*)])(\*\*\*?|__)(?=\S)([^*\n]{1,300}?)(?<=\S)\1(?!\w)")
_ITALIC: Final = re.compile(r"(?<![\w*)])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])")
_NEXT_QUESTION: Final = re.compile(
    r"^[ \t>#*]*(?:next\s+)?(?:question|q|problem|exercise)\b[ \t]*\d*[ \t]*[:.)]", re.I | re.M
)


def _plain(text: str) -> str:
    """Without markup: emphasis, LaTeX's dress, boxes written as "Answer: ...", superscripts as ^{...}."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n")
    # A model that repeats one mark for ever must not cost more to read than another.
    text = re.sub(r"([^\w\n])\1{8,}", lambda m: m[1] * 8, re.sub(r"\s+", _paragraph_end, text))
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPT) + "}", text)
    text = re.sub(r"[¼½¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/"), text)
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f\u2007'’](?=\d{3}(?!\d))", ",", text)
    text = re.sub(r"[\u00a0\u2009\u202f\u2007]", " ", text)
    text = text.replace("{,}", ",").replace("\\%", "%").replace("\\$", "$").replace("\\#", "#")
    text = re.sub(r"\\[,!;:]|\\(?:left|right|displaystyle)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\[()\[\]]|\$|`", "", text)
    for _ in range(3):  # one in another
        text = _WRAPPED.sub(r" \1 ", text)
    text = _unboxed(text)
    text = re.sub(r"<answer>((?:(?!<answer>).)*?)</answer>", r"\nAnswer: \1\n", text, flags=re.I | re.S)
    text = re.sub(r"^[ \t]*####(?!#)[ \t]*(?=\S)", "Answer: ", text, flags=re.M)
    text = _BOLD.sub(lambda m: f"({m[2].strip('() ')})" if re.fullmatch(r"\(?[A-Z]\)?", m[2]) else m[2], text)
    text = _ITALIC.sub(r"\1", text)
    text = re.sub(r"^[ \t]*#+[ \t]+", "", text, flags=re.M)
    return _before_the_next_question(text)


def _paragraph_end(space: re.Match[str]) -> str:
    """Blank lines as one; other white space as it is."""
    return "\n\n" if space[0].count("\n") > 1 else space[0]


def _unboxed(text: str) -> str:
    """`\\boxed{...}` as a statement of its own line. Braces may stand in one another, so no regular expression."""
    plain: list[str] = []
    open_braces: list[bool] = []  # of those inside the outermost box: whether a brace is a box's
    position = 0
    for mark in _BOX_OR_BRACE.finditer(text):
        if not open_braces and mark[0] in "{}":
            continue
        is_end = mark[0] == "}"
        before = text[position : mark.start()]
        if is_end and not open_braces.pop():
            plain.append(text[position : mark.end()])
        elif is_end:
            plain += [before.rstrip(), "\n"]
        elif mark[0] == "{":
            open_braces.append(False)
            plain.append(text[position : mark.end()])
        else:
            open_braces.append(True)
            plain += [before, "\nAnswer: "]
        position = mark.end()
    return "".join([*plain, text[position:], "\n" * sum(open_braces)])


def _before_the_next_question(text: str) -> str:
    """Up to where a model that has answered goes on with a question of its own."""
    answered = re.search(r"\banswer\b", text, re.I)
    if answered is None:
        return text
    asked = _NEXT_QUESTION.search(text, answered.end())
    return text if asked is None else text[: asked.start()]


# --- statements -----------------------------------------------------------------------------------------------------

_NO: Final = r"\bnot\b|n['’]t\b|\bcannot\b|\bnever\b"
_GAP: Final = rf"(?:(?!{_NO}|\bchoices\b|\boptions\b)[^.:=\n]){{0,60}}?"
_LINK: Final = r"(?:\b(?:is|be|are|was)\b|[:=])"
_FILL: Final = (
    r"(?:[\s:=>≈~]|[-–—]+(?=\s))*"
    r"(?:(?:therefore|thus|simply|clearly|indeed|most\s+likely|likely|probably|approximately|about|roughly|exactly"
    r"|given\s+by|equal\s+to|(?:the\s+)?(?:option|choice|letter))\b[\s:]*)*"
)
# The form that is asked for. What a model says about its answer afterwards must not be taken for another one.
_FINAL: Final = re.compile(
    rf"^[ \t>(\-]*(?:(?:so|therefore|thus|hence)\b,?\s+)?(?:the\s+|my\s+)?(?:final\s+|correct\s+)?answer\s*"
    rf"(?:is\s*)?[:=]{_FILL}",
    re.I | re.M,
)
_ANSWER: Final = re.compile(rf"\banswer\b(?:{_GAP}{_LINK})?{_FILL}", re.I)
_BARE_ANSWER: Final = re.compile(rf"\banswer\b{_FILL}", re.I)
_OPTION: Final = re.compile(
    rf"\b(?:correct|right|best|appropriate|suitable|accurate)\s+(?:option|choice|statement|letter|one|alternative)s?\b"
    rf"{_GAP}{_LINK}{_FILL}",
    re.I,
)
_CHOSEN: Final = re.compile(
    rf"\b(?:choose|pick|select|go\s+with|opt\s+for|(?:must|has\s+to)\s+be|leaves(?:\s+us\s+with)?)\b{_FILL}", re.I
)
_IS_RIGHT: Final = re.compile(
    r"(?<![\w'’°-])[(\[\"]{0,3}(?P<letter>[A-Z])[)\]\".:]{0,3}\s+is\s+"
    r"(?:(?:the|therefore|thus|indeed|clearly|most|likely|only)\s+)*(?:correct|right|best|answer)\b"
)
_LETTER: Final = re.compile(
    r"[\"'“‘(\[{\s]{0,8}(?P<letter>[A-Za-z])"
    r"(?=\s*$|[ \t]*\n|[ \t]*[)\]}\"”*;,!?](?![A-Za-z])|['’:.](?!\w)|[ \t]+[-–—(=]"
    r"|[ \t]+(?:because|since|as|which|due)\b)",
    re.I,
)
_LABEL: Final = re.compile(r"[\"'“‘(\[{\s]{0,8}[A-Za-z][)\]:.](?!\w)")
_ANOTHER: Final = re.compile(
    r"[)\]\"”]*[ \t]*(?:,|/|&|\+|\band\b|\bor\b)+[ \t]*(?:or|and)?[ \t]*[(\[]?[A-Z](?:[)\].,;]|\s*$)", re.M
)
_LINE_START: Final = re.compile(
    r"^\W{0,4}(?:option\s+)?[(\[]?(?P<letter>[A-Z])(?P<mark>[)\]:.]|[ \t]*$)[ \t]*(?P<rest>.*)$", re.M
)
_ALONE: Final = re.compile(
    r"\W*(?:(?:it['’]s|it\s+is|i\s+think|option|choice|letter)\s+)*[(\[\"]*(?P<letter>[A-Za-z])\W*", re.I
)
_MARKED: Final = re.compile(r"(?<!\w)\((?P<letter>[A-Z])\)(?!\w)")
_DENIED: Final = re.compile(
    r"\b(?:not|cannot|never|neither|(?:is|was|are|were|does|do|did|ca|wo)nt|incorrect|wrong|false|except|rather|unlike"
    r"|instead)\b"
)


def stated_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, by its letter or by its words.

    In this order: the last explicit statement; a weaker one ("C is correct", "it must be C"); a text or line that is a
    letter, or that begins with one; a letter in brackets, if there is one alone; an option's words in the last line,
    if they are one option's alone and nothing is denied there. "A" counts only where it cannot be the article, and a
    letter that no option has is no statement.
    """
    letters = [chr(ord("A") + index) for index in range(len(options))]
    strong = [found for at in _ends(text, _ANSWER, _BARE_ANSWER, _OPTION) if (found := _option_at(text, at, options))]
    if strong:
        return max(strong)[1]
    # Weaker: an explanation after the answer may say of single statements that they are correct.
    right = [match["letter"] for match in _IS_RIGHT.finditer(text) if match["letter"] in letters]
    if right:
        return right[-1]
    weak = [found for at in _ends(text, _CHOSEN) if (found := _option_at(text, at, options))]
    if weak:
        return max(weak)[1]
    if letter := _only_letter(text, letters):
        return letter
    lines = [line for line in text.split("\n") if line.strip()]
    named = {letter for line in lines if (letter := _line_letter(line, options))}
    if len(named) == 1:
        return named.pop()
    if lines and (letter := _only_letter(lines[-1], letters)):
        return letter
    marked = {match["letter"] for match in _MARKED.finditer(text)} & set(letters)
    if len(marked) == 1 and not named:
        return marked.pop()
    return _option_in(lines[-1], options) if lines and not named and not marked else None


def _only_letter(text: str, letters: Sequence[str]) -> str | None:
    match = _ALONE.fullmatch(text.strip()) if len(text.strip()) <= _SHORT_CHARS else None
    return match["letter"].upper() if match and match["letter"].upper() in letters else None


def _ends(text: str, *patterns: re.Pattern[str]) -> list[int]:
    return sorted({match.end() for pattern in patterns for match in pattern.finditer(text)})


def _option_at(text: str, at: int, options: Sequence[str]) -> tuple[int, str] | None:
    """The option that stands at a place of the text, with the place: (at, letter)."""
    rest = text[at : at + _SEGMENT_CHARS]
    line = f"{normalised(rest.lstrip().split(chr(10))[0])} "
    letter = None if _LABEL.match(rest) else _worded(line, options)
    if letter is not None:
        return at, letter
    match = _LETTER.match(rest)
    if match is None:
        lettered = re.match(r"\s*[(\[\"]*([A-Z])\s+(?=\S)", rest)  # "C Paris"
        index = ord(lettered[1]) - ord("A") if lettered else len(options)
        if lettered is None or index >= len(options):
            return None
        words = normalised(options[index])
        follows = f"{normalised(rest[lettered.end() :].split(chr(10))[0])} "
        return (at, lettered[1]) if words and follows.startswith(f"{words} ") else None
    letter = match["letter"].upper()
    if ord(letter) - ord("A") >= len(options) or _ANOTHER.match(rest, match.end()):
        return None
    return at, letter


def _worded(line: str, options: Sequence[str]) -> str | None:
    """The option whose words a line begins with; the longest, if others begin the same. line: normalised."""
    words = [normalised(option) for option in options]
    fitting = [option for option in words if (len(option) > 1 or option.isdigit()) and line.startswith(f"{option} ")]
    longest = max(fitting, key=len, default="")
    return chr(ord("A") + words.index(longest)) if fitting.count(longest) == 1 else None


def _line_letter(line: str, options: Sequence[str]) -> str | None:
    """The letter that a line begins with. Before a full stop it may be an initial: then the option's words follow."""
    match = _LINE_START.match(line)
    if match is None or ord(match["letter"]) - ord("A") >= len(options):
        return None
    words, rest = normalised(options[ord(match["letter"]) - ord("A")]), normalised(match["rest"])
    if match["mark"] == "." and rest and not (rest.startswith(words) or words.startswith(rest)):
        return None
    return match["letter"]


def _option_in(line: str, options: Sequence[str]) -> str | None:
    line = f" {normalised(line)} "
    words = [normalised(option) for option in options]
    found = [index for index, option in enumerate(words) if option and f" {option} " in line]
    longest = max((words[index] for index in found), key=len, default="")
    # An option within the words of a longer one is not named by them.
    found = [index for index in found if words[index] == longest or f" {words[index]} " not in f" {longest} "]
    if len(found) != 1 or _DENIED.search(line.replace(f" {longest} ", " ")):
        return None
    return chr(ord("A") + found[0])


def stated_texts(text: str) -> list[str]:
    """What an answer says in words, the likeliest reading first; [] for one that says nothing.

    The rest of the line behind the last line "Answer:", else behind the last "answer is", whole and up to the end of
    its first sentence; without one, the last line.
    """
    for match in [*reversed(list(_FINAL.finditer(text))), *reversed(list(_ANSWER.finditer(text)))]:
        if not re.search(rf"{_LINK}|\n", match[0], re.I):
            continue  # the word alone, in a sentence
        line = text[match.end() : match.end() + _SEGMENT_CHARS].lstrip().split("\n")[0].strip()
        if normalised(line):
            first = re.split(r"(?<=[^\W\d_]{2})\.\s|;|\s\(|,?\s+(?:because|since|as)\s", line)[0].strip()
            return [line] if first == line else [line, first]
    lines = [line.strip() for line in text.split("\n") if normalised(line)]
    return lines[-1:]


# --- numbers --------------------------------------------------------------------------------------------------------

_DIGITS: Final = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+,\d+(?![\d,])|\d+(?:\.\d+)?|\.\d+)"
_NUMBER: Final = re.compile(
    rf"""
    (?<![\w.^√])(?<!\^\{{)(?<!sqrt\{{)
    (?P<sign>(?<![\w)\]}}])[+\-−–])?(?:[€£¥]\s?)?(?P<sign2>(?<=[€£¥])[+\-−–])?
    (?:
       \\[dt]?frac\s*(?:\{{\s*(?P<top>[+\-−]?{_DIGITS})\s*\}}\s*\{{\s*(?P<bottom>{_DIGITS})\s*\}}|(?P<t>\d)\s*(?P<b>\d))
      |(?P<whole>\d+)\s+(?P<over>\d+)\s*/\s*(?P<under>\d+)
      |(?P<body>{_DIGITS})(?:\s*/\s*(?P<by>{_DIGITS})(?![\w^]))?
    )
    (?:(?P<e>[eE][+\-−]?\d{{1,4}})(?!\w)
      |\s*(?:×|x|\*|·|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*(?:\{{\s*)?(?P<ten>[+\-−]?\d{{1,4}})\s*\}}?
      |(?:\^|\*\*)\s*(?:\{{\s*)?(?P<power>[+\-−]?\d{{1,4}})\s*\}}?
    )?
    (?P<percent>\s*(?:%|per\s?cent\b))?
    (?:\s*(?P<scale>thousand|million|billion|trillion)\b)?
    """,
    re.X | re.I,
)
_SCALES: Final = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_SYMBOL: Final = re.compile(r"\s*(?:\\?pi\b|π|√|\\sqrt)|\s*/\s*(?:\\?pi\b|π|√|\\sqrt)")
_EQUALS: Final = re.compile(r"[^=≈\n.;]{0,80}?(?:\.\d[^=≈\n.;]{0,80}?)*(?:=|≈|\\approx)\s*(?=[^\s=])")
_RANGE: Final = re.compile(r"\s*(?:[-–—]|\bto\b)\s*\d")
_UNIT_POWER: Final = re.compile(r"(?<=[A-Za-zµΩ°])\s?\^\s*(?:\{\s*)?[+\-−]?\d+\s*\}?")


def number(text: str) -> Number | None:
    """The number that a text is, nothing beside it; None for any other text. For references and `kind`."""
    plain = _plain(text).strip()
    match = _NUMBER.match(plain)
    return _value(match) if match is not None and match.end() == len(plain) else None


def stated_number(text: str) -> Number | None:
    """The number that an answer states: behind the last line "Answer:", the last "answer is", else the text's last.

    Behind a formula's last "=" where the statement is one. Units are not looked at. None where there is no number,
    where it is a range, or where it is left in symbols (pi, roots): a part of those is not the answer.
    """
    text = _UNIT_POWER.sub("", text)
    for at in [*reversed(_ends(text, _FINAL)), *reversed(_ends(text, _ANSWER)), *reversed(_ends(text, _BARE_ANSWER))]:
        segment = text[at : at + _SEGMENT_CHARS].lstrip().split("\n")[0]
        while (equals := _EQUALS.match(segment)) and _NUMBER.search(segment, equals.end()):
            segment = segment[equals.end() :]
        match = _NUMBER.search(segment)
        if match is not None:
            return None if _is_part(segment, match) or _RANGE.match(segment, match.end()) else _value(match)
        if _SYMBOL.search(segment):
            return None
    last = next(iter(reversed(list(_NUMBER.finditer(text)))), None)
    if last is None or _is_part(text, last) or re.search(r"\d\s*(?:[-–—]|\bto)\s*$", text[: last.start()]):
        return None
    return _value(last)


def agree(reference: Number, found: Number, tolerance: float | None = None) -> bool:
    """Whether a number is right.

    tolerance: the largest distance. None: to the digits of whichever of the two states fewer decimals (an answer
    needs three significant digits for that), and never by more than 2 % of the reference; whole numbers and
    fractions are exact. A percentage agrees with the number it says and with the hundredth of it, where only one of
    the two has the sign.
    """
    readings = [(reference, found, 1.0)]
    if reference.percent != found.percent:
        one, other = (0.01, 1.0) if reference.percent else (1.0, 0.01)
        readings.append((reference.scaled(one), found.scaled(other), one))
    for wanted, given, scale in readings:
        allowed = _implied(wanted, given) if tolerance is None else tolerance * scale
        if abs(wanted.value - given.value) <= allowed * (1 + 1e-9) + 1e-12 * abs(wanted.value):
            return True
    return False


def _implied(reference: Number, found: Number) -> float:
    places = [reference.last_place or 0.0]
    if found.last_place is not None and found.significant >= _SIGNIFICANT:
        places.append(found.last_place)
    return min(max(places) / 2, _MAX_IMPLIED * abs(reference.value))


def _is_part(text: str, match: re.Match[str]) -> bool:
    """Whether a number is a piece of an expression that stays in symbols: 2π, π/2, 3√2."""
    before = text[: match.start()].rstrip()
    return bool(_SYMBOL.match(text, match.end()) or re.search(r"(?:pi|π)[\s}]*[/{]\s*\{?$|√\(?$|sqrt\s*[({]$", before))


def _value(match: re.Match[str]) -> Number | None:
    try:
        found = _evaluated(match)
    except (OverflowError, ZeroDivisionError):
        return None
    return found if abs(found.value) < float("inf") else None


def _evaluated(match: re.Match[str]) -> Number:
    part = match.groupdict()
    place: float | None = None
    significant = 0
    if part["body"] is not None:
        digits = _decimal(part["body"])
        value = float(digits)
        if "." in digits:
            place = 10.0 ** -len(digits.partition(".")[2])
        if part["by"] is not None:
            value, place = value / float(_decimal(part["by"])), None
        significant = len(digits.replace(".", "").lstrip("0"))
    elif part["whole"] is not None:
        value = int(part["whole"]) + int(part["over"]) / int(part["under"])
    else:
        value = float(_decimal(part["top"] or part["t"])) / float(_decimal(part["bottom"] or part["b"]))
    factor = _SCALES.get((part["scale"] or "").lower(), 1.0)
    exponent = part["e"][1:] if part["e"] else part["ten"]
    if exponent is not None:
        place = place or 1.0
        factor *= 10.0 ** int(exponent.replace("−", "-"))
    if part["power"] is not None:
        value, place = value ** int(part["power"].replace("−", "-")), None
    if (part["sign"] or part["sign2"] or "+") != "+":
        factor = -factor
    number = Number(value, place, significant, part["percent"] is not None).scaled(factor)
    return Number(number.value, None if place is None else abs(place * factor), significant, number.percent)


def _decimal(digits: str) -> str:
    digits = digits.replace("−", "-").replace("–", "-")
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", digits):
        return digits.replace(",", "")
    return digits.replace(",", ".")


def _written(number: Number) -> str:
    return f"{number.value:.12g}" + ("%" if number.percent else "")
