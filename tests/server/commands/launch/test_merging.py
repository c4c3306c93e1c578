"""Our settings in a file of the user's: what is not ours stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coe.server.commands.launch.merging import MergeError, merge_json, merge_yaml, merged

CONTINUE = """\
# My assistant
name: mine   # a name
models:
  # the good one
  - name: big
    provider: anthropic   # paid
    model: claude
  - name: old one
    provider: openai
rules:
  - be brief   # always
"""
OURS = {"name": "old one", "provider": "ours"}
NEW = {"name": "new", "provider": "ours"}


def test_keys_of_both_stay_and_ours_count() -> None:
    theirs = {"theme": "dark", "env": {"A": "1", "B": "2"}}
    assert merged(theirs, {"env": {"B": "3"}}) == {"theme": "dark", "env": {"A": "1", "B": "3"}}


def test_an_entry_takes_the_place_of_its_namesake_and_a_new_one_stands_first() -> None:
    assert merged([{"id": "a", "x": 1}, {"id": "b"}], [{"id": "b", "y": 2}, {"id": "c"}]) == [
        {"id": "c"},
        {"id": "a", "x": 1},
        {"id": "b", "y": 2},
    ]


def test_json_that_says_it_already_is_left_as_it_is_written() -> None:
    text = '{"a":   {"b": 1}}'
    assert merge_json(text, {"a": {"b": 1}}) == text
    assert json.loads(merge_json("", {"a": 1})) == {"a": 1}


@pytest.mark.parametrize("text", ["// mine\n{}", "[1]", "{", '{"a": 1,}'])
def test_what_is_no_json_object_is_not_touched(text: str) -> None:
    with pytest.raises(MergeError, match="JSON"):
        merge_json(text, {"a": 1})


def test_comments_and_order_of_yaml_stay() -> None:
    found = merge_yaml(CONTINUE, {"models": [NEW, OURS], "extra": True})
    assert yaml.safe_load(found) == {
        "name": "mine",
        "models": [NEW, {"name": "big", "provider": "anthropic", "model": "claude"}, OURS],
        "rules": ["be brief"],
        "extra": True,
    }
    for comment in ("# My assistant", "# a name", "# paid", "# always"):
        assert comment in found
    assert merge_yaml(found, {"models": [NEW, OURS], "extra": True}) == found


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just text", "a: 1\n\tb: 2"])
def test_what_is_no_yaml_of_keys_is_not_touched(text: str) -> None:
    with pytest.raises(MergeError):
        merge_yaml(text, {"model": "auto"})


AS_WRITTEN = (
    "",
    "# nothing\n",
    "model: other",
    "model: other # why\nz: 1\n",
    "model:\n  nested: 1\nz: 1\n",
    "model: |\n  a\n  b\nz: 1\n",
    "list: [a, b]\n",
    "list: []\n",
    "list: null\n",
    "list:\n- a\n- b\n",
    "list:\n    - a: 1   # one\n\n    - b\nz: 1\n",
    "&x model: other\n",
    "'model': \"other\"\n",
    "model: other\r\nz: 1\r\n",
)
SOUGHT: dict[str, Any] = {"model": "auto", "list": [{"name": "x", "b": [1, "ü"]}]}


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_yaml_is_merged_however_it_is_written(text: str) -> None:
    found = merge_yaml(text, SOUGHT)
    assert yaml.safe_load(found) == merged(yaml.safe_load(text) or {}, SOUGHT)
    assert [line for line in text.splitlines() if "#" in line and line not in found and "why" not in line] == []


@pytest.mark.parametrize("text", ["{model: other, z: 1}", "model: other\n...\n"])
def test_yaml_that_text_cannot_be_put_into_is_refused(text: str) -> None:
    with pytest.raises(MergeError, match="cannot be put into"):
        merge_yaml(text, SOUGHT)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8", categories=["L", "P", "Zs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.dictionaries(st.sampled_from(["a", "b", "models"]), VALUES, max_size=3)


@given(KEYS, KEYS, st.booleans())
def test_yaml_says_what_both_say_or_is_refused(theirs: dict[str, Any], ours: dict[str, Any], flow: bool) -> None:
    text = yaml.safe_dump(theirs, default_flow_style=flow, allow_unicode=True)
    try:
        found = merge_yaml(text, ours)
    except MergeError:
        return
    assert yaml.safe_load(found) == merged(yaml.safe_load(text), ours)
