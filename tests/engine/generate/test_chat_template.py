"""Prompts by family, with templates of our own in each family's manner."""

from __future__ import annotations

import pytest
from random_model import CHAT_TEMPLATE as GEMMA4

from coe.engine.errors import ModelTemplateError, TemplateError, ThinkingPolicyError
from coe.engine.generate.chat_template import ChatTemplate as Template
from coe.engine.generate.renderer import InProcess
from coe.engine.llama.model import Model
from coe.engine.spec import Thinking, ThinkingMode

OFF, ON = Thinking(), Thinking(ThinkingMode.ON)
BUDGET = Thinking(ThinkingMode.BUDGET, 8)

_CHATML = """\
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
"""
PLAIN = _CHATML + "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
QWEN3 = (
    _CHATML
    + "{%- if add_generation_prompt -%}<|im_start|>assistant\n"
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    + "{%- endif -%}"
)
DEEPSEEK = (
    "{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content }}"
    "{% else %}<Bot>{{ m.content }}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<Bot>{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
)
ALWAYS_THINKS = _CHATML + "{%- if add_generation_prompt -%}<|im_start|>assistant\n<think>\n{% endif -%}{#- </think> -#}"
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}{# <|channel|>analysis #}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)

USER = [{"role": "user", "content": "Hi"}]


def chat_template(source: str, *, bos: str = "") -> Template:
    return Template(InProcess(source), bos=bos)


def text(source: str, policy: Thinking = OFF, messages: list[dict[str, str]] | None = None) -> str:
    return chat_template(source, bos="<bos>").prompt(messages or USER, policy).text


def answered(start: str) -> list[dict[str, str]]:
    return [*USER, {"role": "assistant", "content": start}]


class TestThinkingOff:
    @pytest.mark.parametrize(
        ("source", "ending"),
        [
            pytest.param(GEMMA4, "<|turn>model\n<|channel>thought\n<channel|>", id="gemma4"),
            pytest.param(QWEN3, "<|im_start|>assistant\n<think>\n\n</think>\n\n", id="qwen3"),
            pytest.param(DEEPSEEK, "<Bot></think>", id="deepseek"),
            pytest.param(ALWAYS_THINKS, "<|im_start|>assistant\n<think>\n\n</think>\n\n", id="always thinks"),
        ],
    )
    def test_a_prompt_ends_in_the_familys_closed_block(self, source: str, ending: str) -> None:
        assert text(source).endswith(ending)
        assert text(source).count("think>") <= 2, "the block is closed once"
        chat_template(source).check(OFF)

    def test_a_family_whose_template_does_not_close_the_block_gets_it_appended(self) -> None:
        never_closes = PLAIN + "{#- </think> -#}"
        assert text(never_closes).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")

    def test_a_model_that_does_not_think_gets_nothing_appended(self) -> None:
        assert text(PLAIN).endswith("<|im_start|>assistant\n")

    def test_harmony_cannot_be_closed_and_says_what_to_do(self) -> None:
        with pytest.raises(ThinkingPolicyError, match="thinking: on"):
            chat_template(HARMONY).check(OFF)

    def test_a_rosters_prefill_replaces_the_familys(self) -> None:
        policy = Thinking(prefill="<think></think>\n")
        assert text(GEMMA4, policy).endswith("<think></think>\n")
        assert text(HARMONY, Thinking(prefill="<|channel|>final<|message|>")).endswith(
            "assistant<|channel|>final<|message|>"
        )

    def test_the_answer_is_not_taken_for_thinking(self) -> None:
        assert not chat_template(ALWAYS_THINKS).prompt(USER, OFF).thinking_open


class TestThinkingOn:
    def test_nothing_is_closed(self) -> None:
        assert text(QWEN3, ON).endswith("<|im_start|>assistant\n")
        assert text(DEEPSEEK, BUDGET).endswith("<Bot><think>")

    @pytest.mark.parametrize("source", [GEMMA4, DEEPSEEK, ALWAYS_THINKS])
    def test_a_block_that_the_prompt_opens_is_known_to_be_open(self, source: str) -> None:
        assert chat_template(source).prompt(USER, BUDGET).thinking_open

    def test_one_that_the_model_opens_itself_is_not(self) -> None:
        assert not chat_template(QWEN3).prompt(USER, ON).thinking_open

    def test_a_model_that_does_not_think_cannot_be_told_to(self) -> None:
        with pytest.raises(ThinkingPolicyError, match="no thinking block"):
            chat_template(PLAIN).check(BUDGET)

    def test_harmony_may_think(self) -> None:
        chat_template(HARMONY).check(ON)

    def test_gemma4_is_told_in_the_system_turn(self) -> None:
        messages = [{"role": "system", "content": "Be brief."}, *USER]
        assert "<|think|>" in text(GEMMA4, ON, messages)
        assert "<|think|>" not in text(GEMMA4, OFF, messages)


class TestTrailingAssistant:
    def test_it_is_continued_not_closed(self) -> None:
        assert text(PLAIN, messages=answered("The answer is")).endswith("<|im_start|>assistant\nThe answer is")

    def test_it_follows_the_closed_block(self) -> None:
        assert text(QWEN3, messages=answered("Well")).endswith("</think>\n\nWell")

    @pytest.mark.parametrize(
        "closed", ["<think></think>\n", "<think>\n\n</think>\n\n", " <think> </think>", "<|channel>thought\n<channel|>"]
    )
    @pytest.mark.parametrize("source", [GEMMA4, QWEN3, DEEPSEEK, PLAIN])
    def test_a_closed_block_is_replaced_by_the_policys_own(self, source: str, closed: str) -> None:
        assert text(source, messages=answered(closed)) == text(source)

    def test_what_follows_the_closed_block_is_continued(self) -> None:
        assert text(QWEN3, messages=answered("<think></think>\nSo")) == text(QWEN3) + "So"

    def test_a_closed_block_that_is_only_mentioned_stays(self) -> None:
        start = "Write `<think></think>` first"
        assert text(QWEN3, messages=answered(start)).endswith(start)

    def test_a_continued_answer_is_not_thinking_though_the_prompt_opens_a_block(self) -> None:
        prompt = chat_template(DEEPSEEK).prompt(answered("So the"), ON)
        assert prompt.text.endswith("</think>\n\nSo the")
        assert not prompt.thinking_open


class TestMessages:
    def test_nor_is_one_lost_that_the_template_passes_over_in_silence(self) -> None:
        silent = (
            "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
        )
        system = {"role": "system", "content": "Be brief."}
        assert text(silent, messages=[system, *USER]) == "[user]Be brief.\n\nHi"
        assert text(silent) == "[user]Hi"
        assert text(PLAIN, messages=[system, *USER]).count("Be brief.") == 1

    def test_a_system_message_that_the_template_refuses_goes_to_the_first_user(self) -> None:
        messages = [{"role": "system", "content": "Be brief."}, *USER]
        assert text(NO_SYSTEM, messages=messages) == "[user]Be brief.\n\nHi[assistant]"

    def test_other_refusals_are_reported_in_the_templates_words(self) -> None:
        source = "{{ raise_exception('roles must alternate') }}"
        with pytest.raises(TemplateError, match="roles must alternate"):
            text(source)

    def test_a_template_that_fails_in_any_way_is_reported(self) -> None:
        with pytest.raises(TemplateError):
            text("{{ messages[0].content / 0 }}")

    def test_a_template_that_is_none_is_reported_at_once(self) -> None:
        with pytest.raises(ModelTemplateError, match=r"broken: line 1: Expected an expression"):
            chat_template("{% for %}")

    @pytest.mark.parametrize(
        "attack",
        [
            "{{ ''.__class__.__mro__ }}",
            "{{ ''.__class__.__base__.__subclasses__() }}",
            "{{ messages.append(1) }}",
            "{{ raise_exception.__globals__['json'] }}",
            "{{ cycler.__init__.__globals__ }}",
            "{% for i in range(10**9) %}x{% endfor %}",
        ],
    )
    def test_a_template_cannot_reach_beyond_its_sandbox(self, attack: str) -> None:
        with pytest.raises(TemplateError):
            text(attack)

    def test_templates_see_their_special_tokens_and_the_filters_they_are_used_to(self) -> None:
        assert text("{{ bos_token }}{{ messages[0]|tojson }}") == '<bos>{"role": "user", "content": "Hi"}'

    def test_unicode_and_braces_in_a_message_are_only_text(self) -> None:
        content = "{{ 7*7 }} {% raise %} 日本 🐍"
        assert content in text(PLAIN, messages=[{"role": "user", "content": content}])


class TestHistory:
    @pytest.mark.parametrize("source", [GEMMA4, QWEN3, DEEPSEEK, PLAIN, ALWAYS_THINKS])
    def test_the_next_turn_begins_with_this_ones_history(self, source: str) -> None:
        template = chat_template(source)
        first = template.prompt(USER, OFF)
        history = first.text[: first.history_chars]
        then = template.prompt([*answered("Hello"), {"role": "user", "content": "More"}], OFF)
        assert "Hi" in history
        assert then.text.startswith(history)

    def test_the_answers_own_turn_is_not_part_of_it(self) -> None:
        prompt = chat_template(QWEN3).prompt(USER, OFF)
        assert prompt.text[prompt.history_chars :] == "<|im_start|>assistant\n<think>\n\n</think>\n\n"


class TestRealModel:
    def test_smollm2_has_no_thinking_block(self, smollm2_model: Model) -> None:
        source = smollm2_model.chat_template()
        assert source is not None
        template = chat_template(source)
        assert template.family is None
        template.check(OFF)
        assert template.prompt(USER, OFF).text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")

    def test_the_random_gemma4_is_recognised(self, gemma4_model: Model) -> None:
        source = gemma4_model.chat_template()
        assert source is not None
        family = chat_template(source).family
        assert family is not None
        assert family.name == "gemma4"


class TestToolResults:
    """A template may go on in the model's own turn after a tool's result, as Gemma 4's does."""

    GOES_ON = (
        "{% for m in messages %}{% if m.role == 'tool' %}<result>{{ m.content }}</result>"
        "{% elif m.tool_calls %}<turn>model\n{% for c in m.tool_calls %}<call>{{ c.function.name }}</call>{% endfor %}"
        "{% else %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt and messages[-1].role != 'tool' %}"
        "<turn>model\n<|channel>thought\n<channel|>{% endif %}"
    )
    MESSAGES = (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "sunny"},
    )

    def test_thinking_stays_closed_by_a_ban_where_the_template_has_no_closed_block(self) -> None:
        prompt = chat_template(self.GOES_ON).prompt(self.MESSAGES, OFF)
        assert prompt.text.endswith("<result>sunny</result>")
        assert prompt.closed_by_ban
        assert prompt.history_chars == len(prompt.text)

    def test_elsewhere_and_for_those_that_think_nothing_is_banned(self) -> None:
        template = chat_template(self.GOES_ON)
        assert not template.prompt(USER, OFF).closed_by_ban
        assert not template.prompt(self.MESSAGES, ON).closed_by_ban
        assert not template.prompt(self.MESSAGES, Thinking(prefill="<x>")).closed_by_ban

    def test_calls_without_their_results_are_no_answer_to_be_continued(self) -> None:
        prompt = chat_template(self.GOES_ON).prompt(self.MESSAGES[:2], OFF)
        assert "<call>f</call>" in prompt.text
