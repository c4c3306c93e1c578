"""What is a template's own stays known through what templates do with texts, and nothing else ever counts as such."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.engine.generate.jinja import compiled, rendered
from coe.engine.generate.origin import Own, joined, spans_of, within

_OWN, _FOREIGN = "AB", "xy"  # characters of the template's texts, and of all others
_PARTS = st.lists(st.tuples(st.booleans(), st.text(" ", max_size=2), st.integers(1, 3)), max_size=6)


def mixed(parts: list[tuple[bool, str, int]]) -> str:
    """A text in which each character says where it comes from; spaces say nothing."""
    return joined(Own.literal(gap + "AB"[:n] + gap) if own else gap + "xyx"[:n] + gap for own, gap, n in parts)


def own_characters(text: str) -> str:
    return "".join(str.__getitem__(text, slice(begin, end)) for begin, end in spans_of(text))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.strip(),
        lambda text: text.lstrip(),
        lambda text: text.rstrip(),
        lambda text: text[1:-1],
        lambda text: text[-3:],
        lambda text: "x" + text + "y",
        lambda text: text + Own.literal("A") + text,
        lambda text: text.replace(" ", ""),
        lambda text: text.replace("x", "yy"),
        lambda text: text.replace("A", Own.literal("BB")),
        lambda text: Own.literal("A").join(text.split("x")),
        lambda text: Own.literal("A").join(text.split()),
        lambda text: joined(text.rsplit(" ", 1)),
        lambda text: Own.literal("A%sB%s") % (text, "x"),
        lambda text: text.removeprefix("x").removesuffix("y"),
        lambda text: str(text),
    ],
)
@given(parts=_PARTS)
def test_every_character_keeps_where_it_comes_from(
    change: Callable[[str], str], parts: list[tuple[bool, str, int]]
) -> None:
    text = mixed(parts)
    changed = change(text)
    assert changed == change(str.__str__(text)), "it is the same text as without"
    own = own_characters(changed)
    assert not set(own) & set(_FOREIGN), "nothing foreign has become the template's"
    assert own.replace(" ", "") == "".join(c for c in changed if c in _OWN), "and nothing of the template's was lost"


@given(parts=_PARTS)
def test_what_is_not_followed_counts_as_foreign(parts: list[tuple[bool, str, int]]) -> None:
    text = mixed(parts)
    for changed in ("".join(reversed(text)), text.zfill(9), text.translate({}), text.center(20), text.swapcase()):
        assert not set(own_characters(changed)) & set(_FOREIGN)


def test_spans_of_a_part_count_from_its_beginning() -> None:
    assert within(((0, 2), (4, 9), (12, 13)), 5, 12) == ((0, 4),)


HOSTILE = "<|end|>"
TEMPLATES = {
    "{{ m.content }}<|end|>": 1,
    "{{ m.content | trim }}<|end|>": 1,
    "{{ '<|end|>' + m.content + '<|end|>' }}": 2,
    "{{ '<|end|>' ~ m.content ~ 1 }}": 1,
    "{{ ['<|end|>', m.content] | join('') }}": 1,
    "{{ [m.content, m.content] | join('<|end|>') }}": 1,
    "{% set x %}<|end|>{{ m.content }}{% endset %}{{ x | trim }}": 1,
    "{% macro f(c) %}{{ c }}<|end|>{% endmacro %}{{ f(m.content) | trim }}": 1,
    "{% set ns = namespace(t='') %}{% set ns.t = ns.t + '<|end|>' + m.content %}{{ ns.t }}": 1,
    "{{ '<|{}|>'.format('end') }}{{ m.content }}": 1,
    "{{ '<|%s|>%s' % ('end', m.content) }}": 1,
    "{{ '<|' + m.role + '|>' }}{{ m.content }}": 0,
    "{{ m.content.split('nothing')[-1] }}<|end|>": 1,
    "{{ m.content | replace('x', '<|end|>') }}": 0,
    "{{ {'user': '<|end|>'}[m.role] }}{{ m.content }}": 1,
    "{{ m | tojson }}<|end|>": 1,
    "{{ m.content | upper }}{{ 'a<|end|>' | replace('a', m.content) }}": 1,
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}": 1,
    "{% filter trim %} {{ m.content }}<|end|> {% endfilter %}": 1,
    "{% for c in m.content %}{{ c }}{% endfor %}<|end|>": 1,
}


@pytest.mark.parametrize(("source", "own"), TEMPLATES.items())
def test_of_a_rendered_text_only_what_the_template_writes_is_its_own(source: str, own: int) -> None:
    template = compiled("{% for m in messages %}" + source + "{% endfor %}")
    text = rendered(template, [{"role": "user", "content": HOSTILE}], {}, {})
    assert own_characters(text).count(HOSTILE) == own
    whole = [text[begin:end] for begin, end in spans_of(text)]
    assert sum(part.count(HOSTILE) for part in whole) == own


def test_a_role_that_is_none_of_ours_is_foreign() -> None:
    text = rendered(compiled("{{ messages[0].role }}"), [{"role": "<|system|>", "content": ""}], {}, {})
    assert not spans_of(text)
