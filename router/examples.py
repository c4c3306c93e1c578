"""A roster's own examples: which domain each speaks for, which of them teach the head, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .choose import Candidate
from .domains import DOMAINS, canonical

MIN_EXAMPLES = 5  # different ones; a label fitted on fewer takes questions of others
WANTED_EXAMPLES = 10
SHOWN = 3  # examples that a problem names

_WORD = re.compile(r"\w+")


def examples_of(candidates: Sequence[Candidate]) -> dict[str, list[str]]:
    """Each domain's examples, and every domain of the roster's own, be it without any.

    A specialist's examples speak for one domain: for the first that it names which is not built in, else for its first.
    """
    found: dict[str, list[str]] = {}
    for candidate in candidates:
        domains = list(dict.fromkeys(map(canonical, candidate.domains)))
        texts = [text for text in candidate.examples if text.strip()]
        own = [domain for domain in domains if domain not in DOMAINS]
        for domain in own:
            found.setdefault(domain, [])
        for domain in (own or domains)[:1]:
            found.setdefault(domain, []).extend(texts)
    return found


def taught_by(examples: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The examples that a head is fitted to: each once, and no domain of the roster's own with too few."""
    found = {domain: different_examples(texts) for domain, texts in examples.items()}
    return {d: texts for d, texts in found.items() if texts and (d in DOMAINS or len(texts) >= MIN_EXAMPLES)}


def example_problems(examples: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with a roster's examples, domain -> texts: a sentence each, with what to do about it.

    Texts count as the same when they differ in case, spaces and punctuation only. There is one sentence for all that
    the same domains share, and one for all that a domain repeats.
    """
    seen: dict[str, list[tuple[str, str]]] = {}
    for domain, texts in examples.items():
        for text in texts:
            seen.setdefault(_words_of(text), []).append((domain, text))
    shared: dict[tuple[str, ...], list[str]] = {}
    repeated: dict[str, list[str]] = {}
    for found in seen.values():
        domains = tuple(dict.fromkeys(domain for domain, _ in found))
        if len(domains) > 1:
            shared.setdefault(domains, []).append(found[0][1])
        elif len(found) > 1:
            repeated.setdefault(domains[0], []).append(found[0][1])
    problems = []
    for domains, texts in shared.items():
        named = " and ".join(f'"{domain}"' for domain in domains)
        stand, each = ("stands", "it") if len(texts) == 1 else ("stand", "each")
        problems.append(f"{_named(texts)} {stand} under {named}: keep {each} where it belongs")
    for domain, texts in repeated.items():
        stand, count = ("stands", "counts") if len(texts) == 1 else ("stand", "count")
        problems.append(
            f'{_named(texts)} {stand} more than once under "{domain}" and {count} once: remove the repetitions, '
            "or write others"
        )
    for domain, texts in examples.items():
        different = len({key for key, found in seen.items() if any(d == domain for d, _ in found)})
        if texts and different < WANTED_EXAMPLES:
            problems.append(
                f'the domain "{domain}" has {different} example{"s" * (different != 1)}; with fewer than '
                f"{WANTED_EXAMPLES} it will miss many of its questions and take some that are not its own: write more"
            )
    return problems


def different_examples(texts: Sequence[str]) -> list[str]:
    """The first of those that differ in case, spaces and signs only: they are one example."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(_words_of(text), text)
    return list(found.values())


def _words_of(text: str) -> str:
    return " ".join(_WORD.findall(text.lower())) or text.strip()


def _named(texts: Sequence[str]) -> str:
    """How many examples these are, and the first of them, shortened."""
    shown = [repr(text if len(text) <= 60 else f"{text[:57]}...") for text in texts[:SHOWN]]
    if len(texts) == 1:
        return f"the example {shown[0]}"
    begin = "" if len(texts) <= SHOWN else "such as "
    return f"{len(texts)} examples ({begin}{', '.join(shown)})"
