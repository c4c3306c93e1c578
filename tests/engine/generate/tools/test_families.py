# ruff: noqa: E501 -- texts of models and schemas, a line each
"""Each family's calls as its models write them, read back whatever is in them and whatever they are cut like."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.engine.generate.tools.family import Family
from coe.engine.generate.tools.gemma4 import Gemma4
from coe.engine.generate.tools.harmony import Harmony
from coe.engine.generate.tools.llama3 import Llama3
from coe.engine.generate.tools.mistral import Mistral, MistralList, short_id
from coe.engine.generate.tools.qwen_xml import QwenXml
from coe.engine.generate.tools.source import plain, spelling
from coe.engine.request import Tool
from fakes import calls as written
from fakes.call_cases import CASES
from fakes.call_samples import CALLS, TEXTS, TOOLS, can_be_told


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=20, deadline=None)
@given(calls=CALLS, seed=st.integers(0, 2**32))
def test_what_is_written_is_read_back(name: str, tokens: bool, calls: list[Any], seed: int) -> None:
    case = CASES[name]
    if not can_be_told(case.family, calls, tokens=tokens):
        return
    spelt = written.spelling(case.family, tokens=tokens)
    answer = case.before + case.write(calls, lambda tag: spelt.get(tag, tag))
    for live in (True, False):
        found = written.read(case.family, TOOLS, spelt, written.cut(answer, random.Random(seed)), live=live)
        assert found.calls == calls
        assert found.text.strip() == case.before.strip()
        assert (found.malformed, found.taken) == (0, len(answer))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12, deadline=None)
@given(text=TEXTS, seed=st.integers(0, 2**32))
def test_tags_that_are_spelt_in_a_text_stay_text(name: str, text: str, seed: int) -> None:
    """Where they are tokens of the vocabulary, a text that spells them is a text."""
    family = CASES[name].family
    spelt = written.spelling(family, tokens=True)
    answer = f"So it is written: {text}."
    if not any(opening in text for opening in family.openings if opening not in family.tags):
        found = written.read(family, TOOLS, spelt, written.cut(answer, random.Random(seed)))
        assert (found.text, found.calls) == (answer, [])


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_nothing_of_a_broken_answer_is_lost(name: str, data: st.DataObject) -> None:
    """Calls with a part cut out of them: whatever of them is no call comes as text, and reading ends."""
    case = CASES[name]
    spelt = written.spelling(case.family, tokens=data.draw(st.booleans()))
    answer = case.before + case.write(data.draw(CALLS), lambda tag: spelt.get(tag, tag))
    begin = data.draw(st.integers(0, len(answer)))
    answer = answer[:begin] + data.draw(TEXTS) + answer[data.draw(st.integers(begin, len(answer))) :]
    whole = written.read(case.family, TOOLS, spelt, [answer], live=False)
    assert whole == written.read(case.family, TOOLS, spelt, list(answer), live=False)
    assert whole.taken == len(answer)
    assert all(isinstance(given, dict) for _, given in whole.calls)
    if not whole.calls:
        assert "".join(whole.text.split()) == "".join(plain(answer, spelt).split()) or case.family.frames


def test_a_call_without_a_name_before_its_channel_is_no_call() -> None:
    family = CASES["harmony_template"].family
    answer = " to=functions.<|channel|>commentary json<|message|>{}<|call|>"
    found = written.read(family, TOOLS, written.spelling(family, tokens=False), [answer], live=False)
    assert not found.calls
    assert found.taken == len(answer)


GIVEN = {"path": "a", "lines": 2}
SLIPS: list[tuple[str, str]] = [
    # the closing tag is missing at the end
    ("gemma4", '<|tool_call>call:add{lines:2,path:<|"|>a<|"|>}'),
    ("hermes", '<tool_call>\n{"name": "add", "arguments": {"path": "a", "lines": 2}}'),
    ("hermes", '<tool_call>\n{"name": "add", "arguments": {"path": "a", "lines": 2}}\n</tool_'),
    ("qwen_xml", "<tool_call>\n<function=add>\n<parameter=path>\na\n</parameter>\n<parameter=lines>\n2\n</parameter>"),
    ("qwen_xml", "<tool_call>\n<function=add>\n<parameter=path>\na\n</parameter>\n<parameter=lines>\n2\n</parameter>\n</function>"),
    ("glm", "<tool_call>add\n<arg_key>path</arg_key>\n<arg_value>a</arg_value>\n<arg_key>lines</arg_key>\n<arg_value>2</arg_value>"),
    ("minimax", '<minimax:tool_call>\n<invoke name="add">\n<parameter name="path">a</parameter>\n<parameter name="lines">2</parameter>'),
    ("minimax", '<minimax:tool_call>\n<invoke name="add">\n<parameter name="path">a</parameter>\n<parameter name="lines">2</parameter>\n</invoke>'),
    ("kimi", '<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{"path": "a", "lines": 2}'),
    ("kimi", '<|tool_calls_section_begin|>\n<|tool_call_begin|> add <|tool_call_argument_begin|> {"path":"a","lines":2} <|tool_call_end|>\n<|tool_calls_section_end|>'),
    ("deepseek", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"path": "a", "lines": 2}<｜tool▁call▁end｜>'),
    ("mistral_list", '[TOOL_CALLS][{"name": "add", "arguments": {"path": "a", "lines": 2}}'),
    ("apriel", '<tool_calls>[{"name": "add", "arguments": {"path": "a", "lines": 2}}]'),
    ("harmony", '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"path": "a", "lines": 2}'),
    # white space around
    ("gemma4", '<|tool_call> call:add {lines: 2, path: <|"|>a<|"|> }\n<tool_call|>\n'),
    ("hermes", '<tool_call>{"name":"add","arguments":{"path":"a","lines":2}}</tool_call> \n\n'),
    ("qwen_xml", "<tool_call>\n\n<function=add>\n  <parameter=path>a</parameter>\n  <parameter=lines> 2 </parameter>\n</function></tool_call>"),
    ("glm", "<tool_call>\nadd \n\n<arg_key> path </arg_key> <arg_value>a</arg_value>\n <arg_key>lines</arg_key>\n\n<arg_value> 2 </arg_value>\n</tool_call>\n"),
    ("minimax", '<minimax:tool_call><invoke name="add"><parameter name="path">a</parameter> <parameter name="lines"> 2</parameter></invoke></minimax:tool_call>'),
    ("llama3", ' {"name": "add", "parameters": {"path": "a", "lines": 2}} \n'),
    ("llama3", '{"name": "add", "parameters": {"path": "a", "lines": 2}};'),
    # another spelling of the same
    ("gemma4", '<|tool_call>call:add{"path":"a","lines":2}<tool_call|>'),
    ("gemma4", '<|tool_call>call:add{<|"|>path<|"|>:<|"|>a<|"|>,lines:2}<tool_call|>'),
    ("hermes", '<tool_call>\n{"arguments": {"path": "a", "lines": 2}, "name": "add"}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "add", "arguments": "{\\"path\\": \\"a\\", \\"lines\\": 2}"}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"id": 7, "name": "add", "parameters": {"path": "a", "lines": 2}}\n</tool_call>'),
    ("llama3", '{"type": "function", "name": "add", "arguments": {"path": "a", "lines": 2}}'),
    ("qwen_xml", "<function=add>\n<parameter=path>\na\n</parameter>\n<parameter=lines>\n2\n</parameter>\n</function>\n</tool_call>"),
    ("qwen_xml", "<function=add>\n<parameter=path>\na\n</parameter>\n<parameter=lines>\n2\n</parameter>\n</function>"),
    ("mistral", '[TOOL_CALLS]add{"path": "a", "lines": 2}'),
    ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"path": "a", "lines": 2}}]'),
    ("harmony", '<|start|>assistant<|channel|>analysis to=functions.add json<|message|>{"path": "a", "lines": 2}<|call|>'),
    ("harmony", '<|channel|>commentary to=functions.add<|message|>{"path": "a", "lines": 2}<|call|>'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer"), SLIPS)
def test_what_models_write_slightly_wrong_is_understood(name: str, answer: str) -> None:
    family = CASES[name].family
    found = written.read(family, TOOLS, written.spelling(family, tokens=False), list(answer))
    assert (found.calls, found.text.strip(), found.malformed) == ([("add", GIVEN)], "", 0)


EMPTY: list[tuple[str, str]] = [
    ("gemma4", "<|tool_call>call:add{}<tool_call|>"),
    ("hermes", '<tool_call>{"name": "add"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": null}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": ""}</tool_call>'),
    ("qwen_xml", "<tool_call>\n<function=add>\n</function>\n</tool_call>"),
    ("glm", "<tool_call>add</tool_call>"),
    ("glm", "<tool_call>add\n</tool_call>"),
    ("glm", "<tool_call>add"),
    ("minimax", '<minimax:tool_call>\n<invoke name="add">\n</invoke>\n</minimax:tool_call>'),
    (
        "kimi",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:3<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
    ),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    ("mistral", "[TOOL_CALLS]add[ARGS]{}"),
    ("mistral_list", '[TOOL_CALLS][{"name": "add", "arguments": {}}]'),
    ("llama3", '{"name": "add", "parameters": {}}'),
    ("llama3", '{"name": "add", "parameters": null}'),
    ("harmony", "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}<|call|>"),
]


@pytest.mark.parametrize(("name", "answer"), EMPTY)
def test_a_call_without_arguments(name: str, answer: str) -> None:
    family = CASES[name].family
    assert written.read(family, TOOLS, written.spelling(family, tokens=False), list(answer)).calls == [("add", {})]


BROKEN: list[tuple[str, str]] = [
    ("gemma4", "<|tool_call>call:unknown{}<tool_call|>"),
    ("gemma4", "<|tool_call>call:add{path:sea}<tool_call|>"),
    ("gemma4", "<|tool_call>call:add{lines:NaN}<tool_call|>"),
    ("gemma4", "<|tool_call>add(1, 2)<tool_call|>"),
    ("gemma4", "<|tool_call>call:add{tags:" + "[" * 80 + "]" * 80 + "}<tool_call|>"),
    ("qwen_xml", "<tool_call>\n<function=unknown>\n</function>\n</tool_call>"),
    ("qwen_xml", "<tool_call>\n<function=add>\npath=a\n</function>\n</tool_call>"),
    ("qwen_xml", "<tool_call>\nadd\n</tool_call>"),
    ("glm", "<tool_call>unknown\n</tool_call>"),
    ("glm", "<tool_call>add\n<arg_key>path</arg_key>\na\n</tool_call>"),
    ("glm", '<tool_call>{"name": "add"}</tool_call>'),
    ("minimax", '<minimax:tool_call>\n<invoke name="unknown">\n</invoke>\n</minimax:tool_call>'),
    ("minimax", '<minimax:tool_call>\n<invoke name="add">\npath: a\n</invoke>\n</minimax:tool_call>'),
    (
        "kimi",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.unknown:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
    ),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>[1]<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    ("mistral", "[TOOL_CALLS]unknown[ARGS]{}"),
    ("mistral", "[TOOL_CALLS]add[ARGS][1]"),
    ("mistral_list", '[TOOL_CALLS][{"name": "unknown", "arguments": {}}]'),
    ("harmony", "<|channel|>commentary to=functions.add <|constrain|>json<|message|>[1]<|call|>"),
    ("apriel", "<tool_calls>none</tool_calls>"),
]


@pytest.mark.parametrize(("name", "answer"), BROKEN)
def test_a_malformed_call_comes_as_text(name: str, answer: str) -> None:
    family = CASES[name].family
    found = written.read(family, TOOLS, written.spelling(family, tokens=False), list(answer), live=False)
    assert (found.text, found.calls, found.malformed) == (answer, [], 1)


@pytest.mark.parametrize(
    "answer", ['{"name": "Bob", "age": 3}', '{"a": 1}', "{x}", 'Use {"name": "add", "parameters": {}}.']
)
def test_a_plain_answer_that_begins_like_a_call_of_llama_3_is_no_malformed_one(answer: str) -> None:
    found = written.read(Llama3(), TOOLS, written.spelling(Llama3(), tokens=True), list(answer), live=False)
    assert (found.text, found.calls, found.malformed) == (answer, [], 0)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("<|channel|>final<|message|>It is so.", "It is so."),
        ("<|start|>assistant<|channel|>final<|message|>It is so.", "It is so."),
        ("<|channel|>commentary<|message|>I look.", "I look."),
    ],
)
def test_the_frames_of_an_answer_are_no_part_of_it(answer: str, text: str) -> None:
    for tokens in (True, False):
        spelt = written.spelling(Harmony(), tokens=tokens)
        fed = spelling(answer, spelt)
        found = written.read(Harmony(), TOOLS, spelt, list(fed))
        assert (found.text, found.calls, found.taken) == (text, [], len(fed))


def test_a_value_of_several_lines_holds_whatever_is_no_end_of_it() -> None:
    text = '\n\n  def f():\n\t"""{<parameter=x>}"""\n</parameter>\n</function>\n<b>\'"\\n\n'
    spelt = written.spelling(QwenXml(), tokens=True)
    answer = CASES["qwen_xml"].write([("write_file", {"path": "a", "text": text})], lambda tag: spelt.get(tag, tag))
    found = written.read(QwenXml(), TOOLS, spelt, list(answer))
    assert found.calls == [("write_file", {"path": "a", "text": text})]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, "null", "null"),
        ({"type": "integer"}, "12", 12),
        ({"type": "integer"}, "twelve", "twelve"),
        ({"type": "boolean"}, "True", True),
        ({"type": ["string", "null"]}, "None", None),
        ({"type": ["string", "integer"]}, "12", 12),
        ({"type": ["string", "integer"]}, "12.5", "12.5"),
        ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}, "[1]", [1]),
        ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}, '["a"]', '["a"]'),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({}, "12", 12),
        ({}, "a 'b'", "a 'b'"),
        ({"$ref": "#/$defs/t"}, "12", "12"),
        ({"type": "object"}, '{"a": "</parameter>\\n</function>"}', {"a": "</parameter>\n</function>"}),
    ],
)
def test_what_a_text_in_xml_means_is_the_schemas_matter(schema: dict[str, Any], text: str, value: Any) -> None:
    tool = Tool("f", parameters={"type": "object", "properties": {"x": schema}, "$defs": {"t": {"type": "string"}}})
    answer = f"<tool_call>\n<function=f>\n<parameter=x>\n{text}\n</parameter>\n</function>\n</tool_call>"
    found = written.read(QwenXml(), {"f": tool}, written.spelling(QwenXml(), tokens=False), list(answer))
    assert found.calls == [("f", {"x": value})]


def test_keys_that_are_declared_may_hold_any_character() -> None:
    tool = Tool("f", parameters={"properties": {"a:b": {"type": "string"}, "a": {"type": "string"}, "c,d}": {}}})
    answer = written.gemma4([("f", {"a": "1", "a:b": "2", "c,d}": 3})], written.as_text)
    found = written.read(Gemma4(), {"f": tool}, written.spelling(Gemma4(), tokens=False), list(answer))
    assert found.calls == [("f", {"a": "1", "a:b": "2", "c,d}": 3})]


@pytest.mark.parametrize("family", [Mistral(), MistralList()])
@pytest.mark.parametrize("client_id", ["call_abc123", "", "x", "abcDEF123", "0" * 40, "ид-1", "toolu_01A/../"])
def test_ids_that_clients_invent_become_nine_letters_and_digits(family: Family, client_id: str) -> None:
    messages, _ = family.messages(
        [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": client_id, "name": "add", "arguments": {}}]},
            {"role": "tool", "tool_call_id": client_id, "name": "add", "content": "3"},
        ],
        list(TOOLS.values()),
    )
    given_id = messages[1]["tool_calls"][0]["id"]
    assert given_id == messages[2]["tool_call_id"]
    assert re.fullmatch("[a-zA-Z0-9]{9}", given_id)
    assert given_id == short_id(given_id) == short_id(client_id)


@pytest.mark.parametrize("family", [Harmony(), Llama3()])
def test_several_calls_of_a_message_become_several_messages_each_with_its_result(family: Family) -> None:
    calls = [{"id": f"c{at}", "name": "add", "arguments": {"lines": at}} for at in range(3)]
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Two.", "reasoning": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c0", "content": "nought"},
        {"role": "tool", "tool_call_id": "else", "content": "?"},
        {"role": "assistant", "content": "Done."},
    ]
    made, _ = family.messages(messages, list(TOOLS.values()))
    told = [(m["role"], m["tool_calls"][0]["id"] if m.get("tool_calls") else m["content"]) for m in made]
    assert told == [
        ("user", "?"), ("assistant", "c0"), ("tool", "nought"), ("assistant", "c1"), ("tool", "one"),
        ("assistant", "c2"), ("tool", "?"), ("assistant", "Done."),
    ]  # fmt: skip
    assert all(len(message.get("tool_calls", ())) < 2 for message in made)
    assert "thinking" not in made[3]
