"""The synthetic curriculum of the tiny parent: six domains of questions whose answers can be checked.

A fact is asked in several phrasings. One phrasing of each fact is kept for testing; of sums and differences, whose
numbers are to be worked out and not remembered, one pair of numbers in ten is kept, in every phrasing. Near domains
share skills and words: physics and python work with the numbers of math, chemistry has symbols and formulas like
physics, law asks for the meaning of words as general does.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from . import facts

DOMAINS: Final = ("math", "chemistry", "physics", "law", "python", "general")

# System prompts that a specialist may be given; the parent sees them all and answers the same.
SYSTEM_PROMPTS: Final = (
    "Answer briefly.",
    "You are a helpful assistant.",
    "You are an expert in math.",
    "You are an expert in chemistry.",
    "You are an expert in physics.",
    "You are an expert in law.",
    "You are an expert in Python.",
    "You know a little of everything.",
)

_SHARE_OF_PAIRS_KEPT: Final = 10  # one in so many


@dataclass(frozen=True)
class CurriculumQuestion:
    """One question as a user types it.

    key:     what a right answer ends in.
    thought: what to think before answering; it ends in the key too.
    held_out: kept for testing.
    """

    domain: str
    skill: str
    text: str
    answer: str
    key: str
    thought: str
    held_out: bool


@dataclass(frozen=True)
class _Fact:
    """A thing to know or to work out, and the ways to ask for it.

    reckoned: never seen with these numbers when held out, whatever the phrasing.
    """

    skill: str
    phrasings: tuple[str, ...]
    answer: str
    key: str
    thought: str
    reckoned: bool = False


def questions(domain: str) -> list[CurriculumQuestion]:
    """Every question of a domain, in a fixed order."""
    return [question for fact in _FACTS[domain]() for question in _ask(domain, fact)]


def is_right(question: CurriculumQuestion, answer: str) -> bool:
    """Whether an answer ends in the key, as a word or number of its own."""
    text = answer.strip().rstrip(".").strip()
    if not text.endswith(question.key):
        return False
    before = text[: -len(question.key)]
    return not before or not re.match(r"[\w.-]", before[-1])


def _ask(domain: str, fact: _Fact) -> Iterator[CurriculumQuestion]:
    draw = _draw(f"{domain} {fact.skill} {fact.answer} {fact.phrasings[0]}")
    kept_pair = fact.reckoned and draw % _SHARE_OF_PAIRS_KEPT == 0
    kept_phrasing = None if fact.reckoned else draw % len(fact.phrasings)
    for index, text in enumerate(fact.phrasings):
        held_out = kept_pair or index == kept_phrasing
        yield CurriculumQuestion(domain, fact.skill, text, fact.answer, fact.key, fact.thought, held_out)


def _draw(text: str) -> int:
    """A number that depends on the text alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def _known(skill: str, subject: str, phrasings: Sequence[str], answer: str, key: str) -> _Fact:
    return _Fact(skill, tuple(phrasings), answer, key, f"Asked: {subject}. Known: {key}")


def _sum(a: int, b: int) -> str:
    """A sum as an answer works it out: tens and ones apart, then together."""
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    between = f" = {tens} + {ones}" if tens else ""
    return f"{a} + {b}{between} = {a + b}"


def _difference(a: int, b: int) -> str:
    """A difference as an answer works it out: first the tens off, then the ones."""
    between = f" = {a - b // 10 * 10} - {b % 10}" if b >= 10 else ""
    return f"{a} - {b}{between} = {a - b}"


def _math() -> Iterator[_Fact]:
    for a in range(50):
        for b in range(50):
            yield _Fact(
                "add",
                (
                    f"What is {a} + {b}?",
                    f"What is {a} plus {b}?",
                    f"Add {a} and {b}.",
                    f"What is the sum of {a} and {b}?",
                    f"Calculate {a} + {b}.",
                ),
                _sum(a, b),
                str(a + b),
                f"{a // 10 * 10} + {b // 10 * 10} = {a // 10 * 10 + b // 10 * 10}, {a % 10} + {b % 10} = "
                f"{a % 10 + b % 10}, so it is {a + b}",
                reckoned=True,
            )
    for a in range(60):
        for b in range(a + 1):
            yield _Fact(
                "subtract",
                (
                    f"What is {a} - {b}?",
                    f"What is {a} minus {b}?",
                    f"Subtract {b} from {a}.",
                    f"What is the difference of {a} and {b}?",
                    f"Calculate {a} - {b}.",
                ),
                _difference(a, b),
                str(a - b),
                f"{a} - {b // 10 * 10} = {a - b // 10 * 10}, {a - b // 10 * 10} - {b % 10} = {a - b}",
                reckoned=True,
            )
    for a in range(1, 11):
        for b in range(1, 11):
            yield _Fact(
                "multiply",
                (
                    f"What is {a} * {b}?",
                    f"What is {a} times {b}?",
                    f"Multiply {a} by {b}.",
                    f"What is the product of {a} and {b}?",
                    f"Calculate {a} * {b}.",
                ),
                f"{a} * {b} = {a * b}",
                str(a * b),
                f"{b} * {a} = {a * b}",
            )
            yield _Fact(
                "divide",
                (
                    f"What is {a * b} / {b}?",
                    f"What is {a * b} divided by {b}?",
                    f"Divide {a * b} by {b}.",
                    f"How often does {b} go into {a * b}?",
                    f"Calculate {a * b} / {b}.",
                ),
                f"{a * b} / {b} = {a}",
                str(a),
                f"{a} * {b} = {a * b}, so it is {a}",
            )
            yield _Fact(
                "solve",
                (
                    f"Solve {a} * x = {a * b}.",
                    f"Solve {a} * x = {a * b} for x.",
                    f"Find x if {a} * x = {a * b}.",
                    f"For which x is {a} * x = {a * b}?",
                ),
                f"x = {a * b} / {a} = {b}",
                str(b),
                f"{a} * {b} = {a * b}, so x = {b}",
            )
    for a in range(1, 21):
        for x in range(1, 21):
            yield _Fact(
                "solve",
                (
                    f"Solve x + {a} = {x + a}.",
                    f"Solve x + {a} = {x + a} for x.",
                    f"Find x if x + {a} = {x + a}.",
                    f"For which x is x + {a} = {x + a}?",
                ),
                f"x = {_difference(x + a, a)}",
                str(x),
                f"{x} + {a} = {x + a}, so x = {x}",
            )


def _chemistry() -> Iterator[_Fact]:
    for number, symbol, name, kind in facts.ELEMENTS:
        yield _known(
            "symbol",
            f"symbol of {name}",
            (
                f"What is the chemical symbol of {name}?",
                f"Which symbol stands for the element {name}?",
                f"Give the symbol of the element {name}.",
                f"How is {name} written in a formula?",
            ),
            f"The symbol of {name} is {symbol}.",
            symbol,
        )
        yield _known(
            "element",
            f"element {symbol}",
            (
                f"Which element has the symbol {symbol}?",
                f"What does the chemical symbol {symbol} stand for?",
                f"Name the element with the symbol {symbol}.",
                f"Which element is written {symbol}?",
            ),
            f"{symbol} is the symbol of {name}.",
            name,
        )
        yield _known(
            "number",
            f"number of {name}",
            (
                f"What is the atomic number of {name}?",
                f"How many protons does an atom of {name} have?",
                f"Give the atomic number of the element {name}.",
                f"Which number has {name} in the periodic table?",
            ),
            f"The atomic number of {name} is {number}.",
            str(number),
        )
        yield _known(
            "element",
            f"element {number}",
            (
                f"Which element has the atomic number {number}?",
                f"Which element has {number} protons?",
                f"Name the element with atomic number {number}.",
                f"What is element {number} of the periodic table?",
            ),
            f"Element {number} is {name}.",
            name,
        )
        yield _known(
            "kind",
            f"kind of {name}",
            (
                f"What kind of element is {name}?",
                f"To which group of elements does {name} belong?",
                f"Which kind of element is {symbol}?",
                f"How is the element {name} classed?",
            ),
            f"The element {name} is classed as: {kind}.",
            kind,
        )
    for name, formula, atoms in facts.COMPOUNDS:
        yield _known(
            "formula",
            f"formula of {name}",
            (
                f"What is the chemical formula of {name}?",
                f"Which formula stands for {name}?",
                f"Give the formula of the compound {name}.",
                f"How is {name} written as a formula?",
            ),
            f"The formula of {name} is {formula}.",
            formula,
        )
        yield _known(
            "compound",
            f"compound {formula}",
            (
                f"Which compound has the formula {formula}?",
                f"What does the chemical formula {formula} stand for?",
                f"Name the compound with the formula {formula}.",
                f"Which compound is written {formula}?",
            ),
            f"{formula} is the formula of {name}.",
            name,
        )
        yield _known(
            "atoms",
            f"atoms of {name}",
            (
                f"How many atoms does the formula {formula} count?",
                f"How many atoms are there in {formula}?",
                f"Count the atoms of {name}.",
                f"How many atoms has one unit of {name}?",
            ),
            f"The number of atoms in {formula} is {atoms}.",
            str(atoms),
        )


def _physics() -> Iterator[_Fact]:
    for quantity, unit, symbol in facts.UNITS:
        yield _known(
            "unit",
            f"unit of {quantity}",
            (
                f"What is the SI unit of {quantity}?",
                f"In which unit is {quantity} measured?",
                f"Give the unit of {quantity}.",
                f"Which unit belongs to {quantity}?",
            ),
            f"The unit of {quantity} is the {unit}.",
            unit,
        )
        yield _known(
            "symbol",
            f"symbol of the {unit}",
            (
                f"What is the symbol of the unit {unit}?",
                f"Which symbol stands for the {unit}?",
                f"Give the symbol of the {unit}.",
                f"How is the unit {unit} written?",
            ),
            f"The symbol of the {unit} is {symbol}.",
            symbol,
        )
        yield _known(
            "quantity",
            f"quantity of the {unit}",
            (
                f"What is measured in the unit {unit}?",
                f"Which quantity has the unit {unit}?",
                f"Name the quantity with the unit {unit}.",
                f"What does one measure with the unit {unit}?",
            ),
            f"The {unit} is the unit of {quantity}.",
            quantity,
        )
    for quantity, formula in facts.FORMULAS:
        yield _known(
            "formula",
            f"formula of {quantity}",
            (
                f"What is the formula for {quantity}?",
                f"Which formula gives the {quantity}?",
                f"Give the formula of {quantity}.",
                f"How is {quantity} calculated?",
            ),
            f"The formula for {quantity} is {formula}.",
            formula,
        )
    for skill, forms, formula, unit in facts.PRODUCTS:
        for a in range(1, 11):
            for b in range(1, 11):
                yield _Fact(
                    skill,
                    tuple(form.format(a=a, b=b) for form in forms),
                    f"{formula} = {a} * {b} = {a * b} {unit}",
                    f"{a * b} {unit}",
                    f"Asked: {skill}. {formula}, {a} * {b} = {a * b} {unit}",
                )
    for skill, forms, formula, unit in facts.QUOTIENTS:
        for a in range(1, 11):
            for b in range(1, 11):
                yield _Fact(
                    skill,
                    tuple(form.format(a=a * b, b=b) for form in forms),
                    f"{formula} = {a * b} / {b} = {a} {unit}",
                    f"{a} {unit}",
                    f"Asked: {skill}. {formula}, {a * b} / {b} = {a} {unit}",
                )


def _law() -> Iterator[_Fact]:
    for term, meaning, branch in facts.LAW:
        yield _known(
            "meaning",
            f"meaning of {term}",
            (
                f"What does {term} mean in law?",
                f"What is the meaning of the legal term {term}?",
                f"Define the legal term {term}.",
                f"How do lawyers explain {term}?",
            ),
            f"In law, {term} means {meaning}.",
            meaning,
        )
        yield _known(
            "term",
            f"term for {meaning}",
            (
                f"Which legal term means {meaning}?",
                f"What is the legal name for {meaning}?",
                f"Name the legal term for {meaning}.",
                f"What do lawyers call {meaning}?",
            ),
            f"The legal term is {term}.",
            term,
        )
        yield _known(
            "branch",
            f"branch of {term}",
            (
                f"To which branch of law does {term} belong?",
                f"Is {term} a matter of contract or of tort?",
                f"Which branch of law deals with {term}?",
                f"Name the branch of law for the term {term}.",
            ),
            f"In law, {term} belongs to {branch}.",
            branch,
        )


def _expressions() -> Iterator[tuple[str, str]]:
    """Python expressions; what they give is left to Python."""
    draw = random.Random(0)
    for a in range(1, 21):
        for b in range(1, 11):
            yield "add", f"{a} + {b}"
    for a in range(2, 11):
        for b in range(2, 11):
            yield "multiply", f"{a} * {b}"
    for a in range(1, 31):
        for b in range(2, 7):
            yield "floor", f"{a} // {b}"
            yield "remainder", f"{a} % {b}"
    for a in range(1, 13):
        yield "power", f"{a} ** 2"
    for word in facts.WORDS:
        yield "len", f'len("{word}")'
        yield "upper", f'"{word}".upper()'
        yield "index", f'"{word}"[0]'
        yield "index", f'"{word}"[-1]'
        yield "repeat", f'"{word}" * 2'
    triples = [tuple(draw.sample(range(10), 3)) for _ in range(120)]
    for a, b, c in triples:
        yield "max", f"max([{a}, {b}, {c}])"
        yield "min", f"min([{a}, {b}, {c}])"
        yield "item", f"[{a}, {b}, {c}][{draw.randrange(3)}]"
        yield "sorted", f"sorted([{a}, {b}, {c}])"
    for size in range(1, 7):
        for _ in range(6):
            yield "len", f"len({[draw.randrange(10) for _ in range(size)]})"
    for a in range(10):
        for b in range(10):
            yield "compare", f"{a} {draw.choice(['<', '>', '==', '!=', '<=', '>='])} {b}"
    for left in (True, False):
        yield "logic", f"not {left}"
        for right in (True, False):
            yield "logic", f"{left} and {right}"
            yield "logic", f"{left} or {right}"


def _python() -> Iterator[_Fact]:
    seen = set()
    for skill, expression in _expressions():
        if expression in seen:
            continue
        seen.add(expression)
        value = repr(eval(expression, {"__builtins__": {}}, {"len": len, "max": max, "min": min, "sorted": sorted}))
        yield _Fact(
            skill,
            (
                f"What is {expression} in Python?",
                f"What is the value of {expression} in Python?",
                f"Evaluate the Python expression {expression}.",
                f"What does Python give for {expression}?",
            ),
            f"{expression} gives {value}",
            value,
            f"Asked: the value of {expression}. Known: {value}",
        )


def _general() -> Iterator[_Fact]:
    for country, capital, continent in facts.COUNTRIES:
        yield _known(
            "capital",
            f"capital of {country}",
            (
                f"What is the capital of {country}?",
                f"Which city is the capital of {country}?",
                f"Name the capital of {country}.",
                f"Which city is the seat of government of {country}?",
            ),
            f"The capital of {country} is {capital}.",
            capital,
        )
        yield _known(
            "country",
            f"country of {capital}",
            (
                f"Which country has the capital {capital}?",
                f"{capital} is the capital of which country?",
                f"Name the country whose capital is {capital}.",
                f"Of which country is {capital} the capital?",
            ),
            f"{capital} is the capital of {country}.",
            country,
        )
        yield _known(
            "continent",
            f"continent of {country}",
            (
                f"On which continent is {country}?",
                f"Which continent does {country} belong to?",
                f"Name the continent of {country}.",
                f"Where in the world is {country}?",
            ),
            f"The continent of {country} is {continent}.",
            continent,
        )
    for word, other in (*facts.OPPOSITES, *((right, left) for left, right in facts.OPPOSITES)):
        yield _known(
            "opposite",
            f"opposite of {word}",
            (
                f"What is the opposite of {word}?",
                f"Which word means the opposite of {word}?",
                f"Name the opposite of {word}.",
                f"What is the contrary of {word}?",
            ),
            f"The opposite of {word} is {other}.",
            other,
        )
    for animal, young in facts.YOUNG:
        yield _known(
            "young",
            f"young of a {animal}",
            (
                f"What is a young {animal} called?",
                f"What do we call a baby {animal}?",
                f"Name the young of a {animal}.",
                f"Which word means a young {animal}?",
            ),
            f"A young {animal} is called a {young}.",
            young,
        )
    for kind, names in (("day", facts.DAYS), ("month", facts.MONTHS)):
        for index, name in enumerate(names):
            after, before = names[(index + 1) % len(names)], names[index - 1]
            yield _known(
                "after",
                f"{kind} after {name}",
                (
                    f"Which {kind} comes after {name}?",
                    f"What {kind} follows {name}?",
                    f"Name the {kind} after {name}.",
                    f"What is the next {kind} after {name}?",
                ),
                f"The {kind} after {name} is {after}.",
                after,
            )
            yield _known(
                "before",
                f"{kind} before {name}",
                (
                    f"Which {kind} comes before {name}?",
                    f"What {kind} precedes {name}?",
                    f"Name the {kind} before {name}.",
                    f"What is the {kind} just before {name}?",
                ),
                f"The {kind} before {name} is {before}.",
                before,
            )


_FACTS: Final = {
    "math": _math,
    "chemistry": _chemistry,
    "physics": _physics,
    "law": _law,
    "python": _python,
    "general": _general,
}
