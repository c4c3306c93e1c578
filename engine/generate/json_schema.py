"""A client's JSON schema made ready for the grammar library: read by its draft, held against its metaschema, and then
written anew so that what the library makes of it allows nothing that the schema forbids.

llguidance leaves some things open or gets them wrong: 0 fits its `exclusiveMinimum: 0`, numbers of many digits are
rounded, 29 February comes in every year. Where an equal or narrower way of saying it exists, it is said so; the rest is
refused, by the keyword's name. What may come out is tested against a validator, with random schemas and answers.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, Final
from urllib.parse import quote, unquote

from jsonschema import Draft4Validator, Draft6Validator, Draft7Validator, Draft201909Validator, Draft202012Validator
from referencing.exceptions import Unresolvable

from ..errors import GrammarError
from .closing import close_objects
from .exclusive import Exclusion
from .json_formats import tighten_format
from .patterns import as_the_library_reads
from .subschemas import LISTS, MAPS, SINGLE
from .validators import MAX_STEPS, Draft, TooCostlyError, exactly, spending, validator_of

SIMPLIFY: Final = "Leave unsupported keywords out, or simplify: fewer alternatives, shorter patterns, lower counts."
_SMALLER: Final = "Write a smaller one."
MAX_EXACT: Final = 2**53  # integers beyond it have no double of their own
# What serde_json reads exactly; of other floats it may miss the last bit: 1.9999999999999998 becomes 2.
_SAFE_DIGITS: Final = 15
_SAFE_EXPONENT: Final = 15

_BY_NAME: Final[Mapping[str, Draft]] = {
    "http://json-schema.org/draft-04/schema": Draft4Validator,
    "http://json-schema.org/draft-06/schema": Draft6Validator,
    "http://json-schema.org/draft-07/schema": Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": Draft201909Validator,
    "https://json-schema.org/draft/2020-12/schema": Draft202012Validator,
}
# A schema that names none is read as the newest that it is well-formed by: old libraries write lists as `items`.
_UNNAMED: Final[tuple[Draft, ...]] = (Draft202012Validator, Draft7Validator, Draft4Validator)

# Nearer to zero than any number that is meant: the library nests a group a digit, and takes 250 of these.
_SMALLEST: Final = Decimal("1e-60")

NOT_FOLLOWED: Final[Mapping[str, str]] = {
    "not": "Say what is allowed instead, with enum or anyOf.",
    "if": "Use anyOf, with a branch for each case.",
    "contains": "Use prefixItems for items at fixed places, or leave it out.",
    "uniqueItems": "Leave it out, and drop what comes twice.",
    "propertyNames": "Use patternProperties with additionalProperties: false.",
    "dependentRequired": "Use anyOf, with a branch for each case.",
    "dependentSchemas": "Use anyOf, with a branch for each case.",
    "dependencies": "Use anyOf, with a branch for each case.",
    "unevaluatedProperties": "Use additionalProperties, in the schema that declares the properties.",
    "unevaluatedItems": "Use items, in the schema that declares prefixItems.",
    "$dynamicRef": "Use $ref.",
    "$recursiveRef": "Use $ref.",
    "disallow": "Say what is allowed instead, with enum or anyOf.",
    "divisibleBy": "Use multipleOf.",
    "extends": "Use allOf.",
    "x-guidance": "Remove it: white space and the like are not a request's to choose.",
}

# They forbid nothing, and the library does not know them.
_ANNOTATIONS: Final = ("deprecated", "contentSchema", "$vocabulary", "$dynamicAnchor", "$recursiveAnchor")

_COUNTS: Final = (
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"),
)


@dataclass(frozen=True)
class JsonSchema:
    """A schema in two forms.

    wanted:   as the client wrote it.
    followed: allows no more than `wanted`, and holds only what the grammar library keeps to.
    draft:    the validator of its draft.
    loosely:  whether keywords were left out of `followed`, which then may allow more.
    """

    wanted: Any
    followed: Any
    draft: Draft
    loosely: bool = False

    @classmethod
    def read(cls, schema: Any, *, loosely: bool = False) -> JsonSchema:
        """loosely: a keyword that cannot be followed is left out at its place.

        Raises GrammarError for what is no schema, and for what cannot be followed.
        """
        if schema is False:
            raise GrammarError("response_format.json_schema is false, which allows nothing.", "Give a schema.")
        try:
            draft = _draft_of(schema)
            with spending(MAX_STEPS):
                followed = _Tightener(schema, draft, loosely=loosely).tightened()
        except RecursionError as error:
            raise GrammarError("response_format.json_schema is nested too deeply.", SIMPLIFY) from error
        except TooCostlyError as error:
            raise GrammarError("response_format.json_schema would cost too much to be read.", SIMPLIFY) from error
        return cls(schema, followed, draft, loosely)


def _draft_of(schema: Any) -> Draft:
    if not isinstance(schema, Mapping | bool):
        raise GrammarError("response_format.json_schema is no JSON schema: it must be an object.", "Give one.")
    for path, value in _numbers(schema, "$"):
        if not math.isfinite(value):
            raise GrammarError(
                f"response_format.json_schema: the number at {path} is out of range.", "Write a smaller."
            )
    drafts = _drafts_for(schema)
    for draft in drafts:
        if next(_faults_by(draft, schema), None) is None:
            return draft
    fault = next(_faults_by(drafts[0], schema))
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault.path)
    raise GrammarError(
        f"response_format.json_schema is no JSON schema: at ${where[:200]}, {fault.message[:200]}.",
        "Write it as the JSON Schema specification has it.",
    )


def _drafts_for(schema: Any) -> tuple[Draft, ...]:
    """The draft that a schema names, or else those that it may be of."""
    known = draft_called(schema.get("$schema")) if isinstance(schema, Mapping) else None
    return (known,) if known is not None else _UNNAMED


def draft_called(name: Any) -> Draft | None:
    """The draft that a schema names so, None for one that is not known."""
    return _BY_NAME.get(name.rstrip("#")) if isinstance(name, str) else None


def _faults_by(draft: Draft, schema: Any) -> Iterator[Any]:
    found: Iterator[Any] = validator_of(draft, draft.META_SCHEMA, formats=draft.FORMAT_CHECKER).iter_errors(schema)
    return found


def faults_of(schema: Any) -> list[Sequence[str | int]]:
    """The paths of what is malformed in a schema; nothing where it is one by a draft that it may be of. Up to 5,000."""
    drafts = _drafts_for(schema)
    if any(next(_faults_by(draft, schema), None) is None for draft in drafts):
        return []
    return [tuple(fault.absolute_path) for fault in itertools.islice(_faults_by(drafts[0], schema), 5_000)]


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    todo: list[tuple[Any, str]] = [(value, path)]
    while todo:
        value, path = todo.pop()
        if isinstance(value, float):
            yield path, value
        elif isinstance(value, Mapping):
            todo += [(inner, f"{path}.{key}"[:200]) for key, inner in value.items()]
        elif isinstance(value, list):
            todo += [(inner, f"{path}[{at}]"[:200]) for at, inner in enumerate(value)]


class _Tightener:
    """Rewrites a copy of a schema in place, each of its parts once."""

    def __init__(self, schema: Any, draft: Draft, *, loosely: bool) -> None:
        self._loosely = loosely
        self._root = {} if schema is True else copy.deepcopy(schema)
        self._seen: set[int] = set()
        self._places: list[tuple[dict[str, Any], str]] = []  # each part, and its path
        self._validator = validator_of(draft, schema)
        self._exclusion = Exclusion(self._target, self._accepts)

    def tightened(self) -> Any:
        self._tighten(self._root, "$")
        self._refuse_endless()
        close_objects([node for node, _ in self._places], self._target)
        for node, _ in self._places:  # each once, when none is copied any more
            _write_patterns_anew(node)
        return self._root

    def _refuse_endless(self) -> None:
        """A part that is defined by itself, without a property or an item between, says nothing and never ends."""
        state: dict[int, bool] = {}  # by part: whether it is done

        def follow(node: Any, path: str) -> None:
            if not isinstance(node, dict) or state.get(id(node)):
                return
            if id(node) in state:
                raise GrammarError(
                    f"response_format.json_schema: {path} is defined by itself alone.",
                    "Say what it is, beside the $ref.",
                )
            state[id(node)] = False
            inner = [each for word in ("allOf", "anyOf", "oneOf") for each in node.get(word) or ()]
            if isinstance(node.get("$ref"), str):
                inner.append(self._target(node["$ref"]))
            for each in inner:
                follow(each, path)
            state[id(node)] = True

        for node, path in self._places:
            follow(node, path)

    def _target(self, reference: str) -> Any:
        return target_of(reference, self._root)

    def _accepts(self, value: Any, schema: Any) -> bool:
        try:
            return bool(self._validator.evolve(schema=schema).is_valid(value))
        except (Unresolvable, RecursionError):
            return True

    def _tighten(self, node: Any, path: str) -> None:
        if not isinstance(node, dict) or id(node) in self._seen:
            return
        self._seen.add(id(node))
        self._places.append((node, path))
        self._drop_what_asks_for_nothing(node)
        _close_instead_of_unevaluated(node)
        self._name_the_properties(node)
        for word in NOT_FOLLOWED:
            if word in node and (word != "x-guidance" or path == "$"):
                what = f"response_format.json_schema: {word}, at {path}, cannot be followed."
                self._give_way(GrammarError(what, NOT_FOLLOWED[word]), node, word)
        _drop_what_stands_alone(node)
        for word in _COUNTS:
            if isinstance(node.get(word), float):
                node[word] = int(node[word])  # 5.0 is an integer to JSON Schema, and was found to be one
        for check, words in (
            (_refuse_steps, ("multipleOf",)),
            (_tighten_numbers, _BOUNDS),
            (tighten_format, ("format",)),
        ):
            try:
                check(node, path)
            except GrammarError as error:
                self._give_way(error, node, *words)
        for word in MAPS:
            if isinstance(node.get(word), dict):
                for name, inner in node[word].items():
                    self._tighten(inner, f"{path}.{word}.{name}"[:200])
        for word in LISTS:
            for at, inner in enumerate(node.get(word) or ()):
                self._tighten(inner, f"{path}.{word}[{at}]"[:200])
        for word in SINGLE:
            inner = node.get(word)
            for at, each in enumerate(inner if isinstance(inner, list) else [inner]):
                self._tighten(each, f"{path}.{word}" + (f"[{at}]" if isinstance(inner, list) else ""))
        if isinstance(node.get("$ref"), str):
            target = self._target(node["$ref"])
            self._tighten(target, node["$ref"][:200])
            if target is None and node["$ref"].startswith("#/"):
                what = f"response_format.json_schema: nothing is at {node['$ref'][:200]}, which {path} refers to."
                self._give_way(GrammarError(what, "Define it, in $defs for instance."), node, "$ref")
        if "oneOf" in node:
            self._one_of(node, path)

    def _give_way(self, error: GrammarError, node: dict[str, Any], *words: str) -> None:
        """Leave keywords out that cannot be followed, where that may be; else raise the error."""
        if not self._loosely:
            raise error
        for word in words:
            node.pop(word, None)

    def _drop_what_asks_for_nothing(self, node: dict[str, Any]) -> None:
        """Keywords whose value forbids nothing are as good as left out."""
        required = set(node.get("required") or ()) if isinstance(node.get("required"), list) else set()
        nothing: Mapping[str, Callable[[Any], bool]] = {
            "not": lambda value: value is False,
            "if": lambda _: "then" not in node and "else" not in node,
            "contains": lambda _: node.get("minContains") == 0 and "maxContains" not in node,
            "uniqueItems": lambda value: value is False or node.get("maxItems") in (0, 1),
            "propertyNames": lambda value: value in (True, {}, {"type": "string"}),
            "dependentRequired": lambda value: all(set(names) <= required for names in value.values()),
            "dependentSchemas": lambda value: all(inner in (True, {}) for inner in value.values()),
            "dependencies": lambda value: value == {},
            "unevaluatedProperties": lambda value: value in (True, {}),
            "unevaluatedItems": lambda value: value in (True, {}),
        }
        for word, is_nothing in nothing.items():
            if word in node and is_nothing(node[word]):
                del node[word]
        for word in _ANNOTATIONS:
            node.pop(word, None)
        _drop_what_stands_alone(node)

    def _name_the_properties(self, node: dict[str, Any]) -> None:
        """`propertyNames` as properties or a pattern of their own, where it stands alone: maps by an enum, say."""
        if "propertyNames" not in node or node.get("properties") or node.get("patternProperties"):
            return
        names = node["propertyNames"]
        if isinstance(names, dict) and set(names) == {"$ref"}:
            names = self._target(names["$ref"])
        if not isinstance(names, dict):
            return
        values = [names["const"]] if "const" in names else names.get("enum")
        words = set(names) - {"type", "title", "description", "$comment", "default", "examples"}
        inner = node.get("additionalProperties", True)
        if isinstance(values, list) and words <= {"const", "enum"}:
            allowed = [value for value in values if isinstance(value, str)]
            node["properties"] = {name: copy.deepcopy(inner) for name in allowed}
        elif words == {"pattern"}:
            node["patternProperties"] = {names["pattern"]: copy.deepcopy(inner)}
        elif words and words <= {"minLength", "maxLength"}:
            least, most = names.get("minLength", 0), names.get("maxLength", "")
            node["patternProperties"] = {rf"^[\s\S]{{{least},{most}}}$": copy.deepcopy(inner)}
        else:
            return
        node["additionalProperties"] = False
        del node["propertyNames"]

    def _one_of(self, node: dict[str, Any], path: str) -> None:
        """`oneOf` becomes `anyOf` where no value fits two of its branches."""
        branches = node["oneOf"]
        discriminator = node.get("discriminator")
        preferred = discriminator.get("propertyName") if isinstance(discriminator, Mapping) else None
        # A tag with a default is not required, as pydantic writes it: an answer that has it is as good, and told apart.
        tag = self._exclusion.tag(branches, preferred) if len(branches) > 1 else None
        if tag is not None:
            for branch in branches:
                target = self._exclusion.behind(branch)
                if tag not in target.get("required", ()):
                    target["required"] = [*target.get("required", ()), tag]
        context = {key: value for key, value in node.items() if key != "oneOf"}
        both = self._exclusion.overlap(branches, context)
        if both is not None and not self._loosely:
            raise GrammarError(
                f"response_format.json_schema: a value may fit two branches of oneOf at {path}, "
                f"{both[0]} and {both[1]}, which cannot be ruled out token by token.",
                "Use anyOf, or give each branch a required property with a const of its own.",
            )
        _replace(node, "oneOf", "allOf" if "anyOf" in node else "anyOf", branches)


def _drop_what_stands_alone(node: dict[str, Any]) -> None:
    """Keywords that mean something only beside another."""
    for word, needs in (("then", "if"), ("else", "if"), ("minContains", "contains"), ("maxContains", "contains")):
        if needs not in node:
            node.pop(word, None)


def _replace(node: dict[str, Any], word: str, by: str, branches: list[Any]) -> None:
    """Rename a keyword at its place: the library orders properties as their schemas come."""
    items = list(node.items())
    node.clear()
    for key, value in items:
        if key != word:
            node[key] = [*value, {"anyOf": branches}] if key == by == "allOf" else value
        elif by == "anyOf":
            node["anyOf"] = branches
        elif not any(other == "allOf" for other, _ in items):
            node["allOf"] = [{"anyOf": branches}]


def _close_instead_of_unevaluated(node: dict[str, Any]) -> None:
    """Where nothing beside it evaluates, what is unevaluated is what is additional."""
    if any(word in node for word in ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas", "contains")):
        return
    if "unevaluatedProperties" in node:
        unevaluated = node.pop("unevaluatedProperties")
        node.setdefault("additionalProperties", unevaluated)
    if "unevaluatedItems" in node:
        unevaluated = node.pop("unevaluatedItems")
        node.setdefault("items", unevaluated)


def _refuse_steps(node: Mapping[str, Any], path: str) -> None:
    """The library finds a step's digits by multiplying its double, which not all survive: 0.01 does, 0.07 does not."""
    given = node.get("multipleOf", 1)
    step = 2.0**32 if given >= 2**32 else float(given)
    while step % 1 and step < 2**32:
        step *= 10
    if step >= 2**32:
        raise GrammarError(
            f"response_format.json_schema: multipleOf {node['multipleOf']}, at {path}, cannot be followed.",
            "Use another step, such as 0.01 or 0.5.",
        )


def _write_patterns_anew(node: dict[str, Any]) -> None:
    """Patterns as the library reads them, and references as the URIs that they are."""
    if isinstance(node.get("pattern"), str):
        node["pattern"] = as_the_library_reads(node["pattern"])
    if isinstance(node.get("patternProperties"), dict):
        node["patternProperties"] = {
            as_the_library_reads(name): inner for name, inner in node["patternProperties"].items()
        }
    if isinstance(node.get("$ref"), str):
        node["$ref"] = quote(node["$ref"], safe=_OF_URIS)


def target_of(reference: str, root: Any) -> Any:
    """What a reference within a schema points at (RFC 6901, also as a URI's fragment), None for any other."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    found = root
    for part in unquote(reference).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def types_of(node: Mapping[str, Any]) -> frozenset[str] | None:
    """The types that a schema names, None for any."""
    named = node.get("type")
    return None if named is None else frozenset(named if isinstance(named, list) else [named])


def is_integral(node: Mapping[str, Any]) -> bool:
    """Whether its numbers are integers."""
    kinds = types_of(node)
    return kinds is not None and "integer" in kinds and "number" not in kinds


@dataclass(frozen=True)
class _Bound:
    """The end of a range. strict: the value itself is outside."""

    value: Decimal
    strict: bool

    def within(self, other: _Bound | None, upwards: bool) -> _Bound:
        """The narrower of two lower bounds, or of two upper ones."""
        if other is None:
            return self
        if self.value == other.value:
            return _Bound(self.value, self.strict or other.strict)
        return self if (self.value > other.value) is upwards else other

    def whole(self, upwards: bool) -> int:
        """The next integer inside."""
        if upwards:
            return math.floor(self.value) + 1 if self.strict else math.ceil(self.value)
        return math.ceil(self.value) - 1 if self.strict else math.floor(self.value)

    def of_few_digits(self, upwards: bool) -> _Bound:
        """As many digits as the library reads rightly, and not wider."""
        digits = Context(prec=_SAFE_DIGITS, rounding=ROUND_CEILING if upwards else ROUND_FLOOR)
        near = digits.create_decimal(self.value)
        return _Bound(near, self.strict and near == self.value)

    def next_inside(self, upwards: bool) -> _Bound:
        """A bound that says without being strict what this one says by it, but for what no double tells apart."""
        if not self.strict:
            return self
        if not self.value:
            return _Bound(_SMALLEST if upwards else -_SMALLEST, strict=False)
        digits = Context(prec=_SAFE_DIGITS)
        return _Bound(self.value.next_plus(digits) if upwards else self.value.next_minus(digits), strict=False)


_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def _tighten_numbers(node: dict[str, Any], path: str) -> None:
    """Bounds that the library keeps to: integers for integers, and not more digits than it reads."""
    low, high = _bound(node, "minimum", "exclusiveMinimum", True), _bound(node, "maximum", "exclusiveMaximum", False)
    if is_integral(node):
        for word, bound, upwards in (("minimum", low, True), ("maximum", high, False)):
            if bound is not None:
                node[word] = bound.whole(upwards)
        return
    low, high = low and low.of_few_digits(True), high and high.of_few_digits(False)
    # Where both ends have the same whole part, the library lets that part alone pass for the nearer end.
    if low is not None and high is not None:
        if 0 <= low.value == math.trunc(high.value):
            low = low.next_inside(True)
        if 0 >= high.value == math.trunc(low.value):
            high = high.next_inside(False)
    for bound, word, exclusive in ((low, "minimum", "exclusiveMinimum"), (high, "maximum", "exclusiveMaximum")):
        if bound is not None:
            value = float(bound.value)
            if not math.isfinite(value):
                message = f"response_format.json_schema: the bound at {path}.{word} is out of range."
                raise GrammarError(message, _SMALLER)
            node[exclusive if bound.strict else word] = (
                int(value) if value == value // 1 and abs(value) < MAX_EXACT else value
            )


def _bound(node: dict[str, Any], word: str, exclusive: str, upwards: bool) -> _Bound | None:
    """Take the keywords of one end of a range out of a schema."""
    found: _Bound | None = None
    strict = node.pop(exclusive, None)
    if word in node:
        found = _Bound(exactly(node.pop(word)), strict is True)  # true as draft 4 has it
    if strict is not None and not isinstance(strict, bool):
        found = _Bound(exactly(strict), strict=True).within(found, upwards)
    if (step := exactly(node.get("multipleOf", 1))) % 1 and not is_integral(node):
        # Beyond it no double is a multiple of so fine a step, whatever the digits say.
        most = Decimal(10) ** (_SAFE_DIGITS + int(step.normalize().as_tuple().exponent))
        found = _Bound(-most if upwards else most, strict=False).within(found, upwards)
    return found


def is_wide(value: Any) -> bool:
    """Whether a value is or holds a number that the library would round."""
    if isinstance(value, list | dict):
        return any(map(is_wide, value.values() if isinstance(value, dict) else value))
    if isinstance(value, float):
        digits = Decimal(repr(value)).normalize()
        return len(digits.as_tuple().digits) > _SAFE_DIGITS or abs(digits.adjusted()) > _SAFE_EXPONENT
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_EXACT


# What a URI is made of, or has been encoded already.
_OF_URIS: Final = "#/?:@!$&'()*+,;=%~._-"


def needs_escapes(written: str) -> bool:
    r"""Whether a text in a schema, which is given as JSON, can only be written with \uXXXX."""
    return _ESCAPED.search(written) is not None


_ESCAPED: Final = re.compile(r"\\u00[01][0-9a-f]|\x7f")
