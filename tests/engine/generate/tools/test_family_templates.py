# ruff: noqa: E501 -- texts of models and schemas, a line each
"""Families found from chat templates, and calls that a template writes read back.

The models' own templates lie in llama.cpp's source tree and are not ours to carry: LLAMA_CPP_SOURCE names a tree, such as
vendor/llama.cpp of llama-cpp-python's source distribution. Without one, templates of the same forms stand in for them.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coe.engine.generate.chat_template import ChatTemplate
from coe.engine.generate.renderer import InProcess
from coe.engine.generate.tools.family import Family
from coe.engine.generate.tools.find import GENERIC, ToolSupport, family_of, read_calls, support_of
from coe.engine.generate.tools.shown import simple
from coe.engine.spec import Thinking, ThinkingMode
from fakes.call_samples import CALLS, TOOLS, can_be_told
from fakes.tool_templates import TEMPLATES

OF_MODELS = {
    "google-gemma-4-31B-it": "gemma4",
    "google-gemma-4-31B-it-interleaved": "gemma4",
    "Qwen3-Coder": "qwen-xml",
    "Qwen3.5-4B": "qwen-xml",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen-xml",
    "StepFun3.5-Flash": "qwen-xml",
    "ByteDance-Seed-OSS": "seed-oss",
    "GLM-4.6": "glm",
    "GLM-4.7-Flash": "glm",
    "Spark2.5": "glm",
    "inclusionai-ling-3.0-flash": "glm",
    "poolside-Laguna-S-2.1": "glm",
    "poolside-Laguna-XS-2.1": "glm",
    "poolside-Laguna-XS.2": "glm",
    "MiniMax-M2": "minimax",
    "moonshotai-Kimi-K2": "kimi",
    "deepseek-ai-DeepSeek-V3.1": "deepseek",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral",
    "unsloth-mistral-Devstral-Small-2507": "mistral",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral-list",
    "openai-gpt-oss-120b": "harmony",
    "unsloth-Apriel-1.5": "apriel",
    "Apriel-1.6-15b-Thinker-fixed": "apriel",
    "NVIDIA-Nemotron-Nano-v2": "nemotron",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3",
    "meta-llama-Llama-3.3-70B-Instruct": "llama3",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Bielik-11B-v3.0-Instruct": "hermes",
    "MiMo-VL": "hermes",
    "Reka-Edge": "hermes",
    "ibm-granite-granite-4.0": "hermes",
    "ibm-granite-granite-4.1": "hermes",
}
# They begin in the same way, and the form behind it is another one.
OF_NONE = ["MiniMax-M1", "MiniMax-M3", "tencent-Hy3", "LFM2.5-8B-A1B",
           "meetkai-functionary-medium-v3.1", "Kimi-K3", "llama-cpp-deepseek-r1"]  # fmt: skip
SHOWN = [simple(tool) for tool in TOOLS.values()]  # one type a parameter: Hermes 2 Pro's takes no others
ON = Thinking(ThinkingMode.ON)
OFF = Thinking(ThinkingMode.OFF)


def source_of(name: str) -> str:
    """A template: one of the project's own for tests, or a model's where there is a source tree."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    folder = Path(os.environ.get("LLAMA_CPP_SOURCE", "llama.cpp"), "models", "templates")
    path = folder / f"{name}.jinja"
    if not path.exists():
        pytest.skip("set LLAMA_CPP_SOURCE to a llama.cpp source tree to read the models' own templates")
    return path.read_text()


def support(source: str) -> ToolSupport:
    return support_of(ChatTemplate(InProcess(source), bos="<s>", eos="</s>"), lambda family: {}, lambda prompt: True)


@pytest.mark.parametrize(("name", "family"), [*((name, name) for name in TEMPLATES), *OF_MODELS.items()])
def test_a_family_is_found_from_its_template_and_tried_out(name: str, family: str) -> None:
    found = support(source_of(name))
    assert (found.family and found.family.name, found.fault) == (family, "")


@pytest.mark.parametrize("name", OF_NONE)
def test_a_form_that_is_not_known_is_said_to_be(name: str) -> None:
    found = support(source_of(name))
    assert found.family is None
    assert found.fault.startswith("the chat template ")


@pytest.mark.parametrize("name", [*TEMPLATES, *OF_MODELS])
@settings(max_examples=6, deadline=None)
@given(calls=CALLS, seed=st.integers(0, 2**16))
def test_what_a_template_writes_is_read_back(name: str, calls: list[Any], seed: int) -> None:
    source = source_of(name)
    family = family_of(source)
    assert family is not None
    draw = random.Random(seed)
    # Without tokens of their own, tags that are spelt in a text would be as good as the template's.
    assume(can_be_told(family, calls, tokens=False))
    template = ChatTemplate(InProcess(source), bos="<s>", eos="</s>")
    answered = {"role": "assistant", "content": "", "tool_calls": [
        {"id": f"call_{draw.random()}", "name": call, "arguments": arguments} for call, arguments in calls
    ]}  # fmt: skip
    results = [
        {"role": "tool", "tool_call_id": call["id"], "name": call["name"], "content": f"result {at}"}
        for at, call in enumerate(answered["tool_calls"])
    ]
    for at in range(len(calls)):
        # One call a prompt where the template writes several in turns of their own.
        taken = slice(0, None) if family.several and family.certain else slice(at, at + 1)
        messages, tools = family.messages(
            [
                {"role": "user", "content": "?"},
                {**answered, "tool_calls": answered["tool_calls"][taken]},
                *results[taken],
            ],
            list(TOOLS.values()),
        )
        policy = ON if template.family is not None else OFF
        tools = SHOWN if tools else None
        prompt = template.prompt(messages, policy, tools).text
        asked = template.prompt(messages[:1], policy, tools)
        begin = asked.history_chars or next(at for at, char in enumerate(prompt) if asked.text[at : at + 1] != char)
        assert read_calls(family, TOOLS, prompt[begin:]) == calls[taken]
        assert all(result["content"] in prompt for result in results[taken])


@pytest.mark.parametrize("name", [*TEMPLATES, *OF_MODELS])
def test_a_message_of_several_calls_is_rendered_with_all_results(name: str) -> None:
    source = source_of(name)
    family = family_of(source)
    assert family is not None
    template = ChatTemplate(InProcess(source), bos="<s>", eos="</s>")
    messages, tools = family.messages(
        [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "x", "name": "add", "arguments": {"lines": 7}},
                {"id": "y", "name": "add", "arguments": {"lines": 8}},
            ]},
            {"role": "tool", "tool_call_id": "x", "name": "add", "content": "seven"},
            {"role": "tool", "tool_call_id": "y", "name": "add", "content": "eight"},
        ],
        list(TOOLS.values()),
    )  # fmt: skip
    assert tools or "add" in messages[0]["content"]
    prompt = template.prompt(messages, ON if template.family is not None else OFF, SHOWN if tools else None).text
    assert prompt.index("seven") < prompt.index("eight")
    assert "7" in prompt
    assert "8" in prompt


BROKEN: list[tuple[str, str, str]] = [
    ("knows no tools", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "knows no tools"),
    (
        "another form",
        "{{ tools }}{% for m in messages %}{% for c in m.tool_calls %}@{{ c.function.name }}{% endfor %}{% endfor %}",
        "has a form for calls that is not known here",
    ),
    ("no results", TEMPLATES["hermes"].replace("'tool' %}{{ m.content }}", "'tool' %}"), "leaves results of tools out"),
    ("no tools", TEMPLATES["hermes"].replace("for tool in tools", "for tool in toolbox"), "leaves the tools out"),
    ("broken JSON", TEMPLATES["hermes"].replace("arguments | tojson", "arguments"), "cannot be read back in the form of hermes"),
    ("refuses", TEMPLATES["hermes"].replace("<tool_call>", "<tool_call>{{ raise_exception('no') }}", 1), "refuses"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "fault"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_cannot_be_read_back_is_said_in_words(source: str, fault: str) -> None:
    found = support(source)
    assert found.family is None
    assert fault in found.fault


def test_a_template_whose_control_tokens_are_not_its_own_is_not_trusted() -> None:
    template = ChatTemplate(InProcess(TEMPLATES["hermes"]))
    found = support_of(template, lambda family: {}, lambda prompt: False)
    assert found.family is None
    assert "control tokens" in found.fault


def test_the_generic_form_needs_no_tools_of_the_template() -> None:
    messages, tools = GENERIC.messages(
        [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "x", "name": "add", "arguments": {"lines": 7}}]},
            {"role": "tool", "tool_call_id": "x", "name": "add", "content": "seven"},
        ],
        list(TOOLS.values()),
    )
    assert tools is None
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert read_calls(GENERIC, TOOLS, messages[2]["content"]) == [("add", {"lines": 7})]


@pytest.mark.parametrize("name", ["gemma4", "google-gemma-4-31B-it"])
def test_gemma_4_is_shown_parameters_that_may_be_null_or_are_referred_to(name: str) -> None:
    source = source_of(name)
    family: Family | None = family_of(source)
    assert family is not None
    tool = type(TOOLS["add"])("f", "Does.", {
        "type": "object",
        "properties": {
            "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}], "description": "How many."},
            "place": {"$ref": "#/$defs/place"},
            "loop": {"$ref": "#/$defs/loop"},
        },
        "$defs": {"place": {"type": "object", "properties": {"city": {"type": "string"}}},
                  "loop": {"type": "object", "properties": {"again": {"$ref": "#/$defs/loop"}}}},
    })  # fmt: skip
    messages, tools = family.messages([{"role": "user", "content": "?"}], [tool])
    prompt = ChatTemplate(InProcess(source)).prompt(messages, ON, tools).text
    assert 'nullable:true,type:<|"|>INTEGER<|"|>' in prompt
    assert 'city:{type:<|"|>STRING<|"|>}' in prompt
