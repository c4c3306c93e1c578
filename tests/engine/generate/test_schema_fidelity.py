"""What a grammar lets through is what its schema allows: random schemas, random answers, judged by jsonschema itself."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator, ValidationError, validators
from llguidance import LLTokenizer

from coe.engine.errors import GrammarError
from coe.engine.generate.grammar import Grammar
from fakes.schemas import Schemas, answer

BYTES = LLTokenizer("byte")
NO_OPTION = re.compile(r"coerce|lenient|x-guidance|\boptions?\b|\benable\b", re.IGNORECASE)


def _multiple_of(validator: Any, step: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """In decimals, as they are written: doubles say that 0.3 is no multiple of 0.1."""
    if validator.is_type(instance, "number") and Fraction(repr(instance)) % Fraction(repr(step)):
        yield ValidationError(f"{instance} is not a multiple of {step}")


JUDGE = cast(Any, validators.extend(Draft202012Validator, {"multipleOf": _multiple_of}))


def judged(schema: Any, text: str) -> str | None:
    fault = next(JUDGE(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).iter_errors(json.loads(text)), None)
    return fault.message if fault is not None else None


def some_answers(schema: Any, seed: int, count: int) -> Iterator[tuple[str, Grammar]]:
    for at in range(count):
        grammar = Grammar(BYTES, schema)
        text = answer(grammar, random.Random(f"{seed}/{at}"))
        if text is not None:
            yield text, grammar


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_random_schemas_are_kept_or_refused_in_words_that_help(block: int) -> None:
    followed = 0
    for seed in range(100 * block, 100 * block + 100):
        schema = Schemas(random.Random(seed)).root()
        try:
            for text, grammar in some_answers(schema, seed, 4):
                fault = judged(schema, text)
                assert fault is None, (seed, schema, text, fault)
                assert grammar.violation(text) is None, (seed, schema, text)
                followed += 1
        except GrammarError as error:
            assert error.remedy
            assert not NO_OPTION.search(str(error)), error
    assert followed > 100
