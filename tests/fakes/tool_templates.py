# ruff: noqa: E501 -- texts of models and schemas, a line each
"""Small chat templates of the families that write calls of tools, in the forms that their models' templates have."""

from __future__ import annotations

from typing import Final

_TOOLS = "{% if tools %}[tools]{% for tool in tools %}{{ tool | tojson }}{% endfor %}[/tools]\n{% endif %}"
_EACH_CALL = "{% for c in m.tool_calls %}{% set f = c.function %}"


def _template(calls: str, *, result: str = "{{ m.content }}") -> str:
    """Turns of [role]...[end]; `calls` writes the calls of a message `m`, `result` a tool's."""
    return (
        _TOOLS
        + "{% for m in messages %}[{{ m.role }}]\n"
        + "{% if m.role == 'tool' %}"
        + result
        + "{% elif m.tool_calls %}{{ m.content }}"
        + calls
        + "{% else %}{{ m.content }}{% endif %}[end]\n{% endfor %}"
        + "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )


_XML = (
    "{% if m.tool_calls %}"
    + _EACH_CALL
    + "\nOPEN\n<function={{ f.name }}>\n{% for key, value in f.arguments | items %}"
    "<parameter={{ key }}>{{ 'LINE' }}{{ value }}{{ 'LINE' }}</parameter>\n{% endfor %}</function>\nCLOSE"
    "{% endfor %}{% endif %}"
)
_REFUSES_LONG_IDS = "{% if c.id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}"
_GEMMA_VALUES = (
    "{% macro written(v) %}{% if v is string %}<|\"|>{{ v }}<|\"|>{% elif v is boolean %}{{ 'true' if v else 'false' }}"
    "{% elif v is mapping %}{ {%- for key, inner in v | dictsort %}{{ key }}:{{ written(inner) }}{{ ',' if not loop.last }}"
    "{%- endfor %}}{% elif v is sequence %}[{% for inner in v %}{{ written(inner) }}{{ ',' if not loop.last }}{% endfor %}]"
    "{% else %}{{ v }}{% endif %}{% endmacro %}"
    "{% macro declared(p) %}{% for key, v in p.properties | dictsort %}{{ key }}:{{ '{' }}"
    "{% if v.properties %}properties:{ {{- declared(v) -}} },{% endif %}{% if v.nullable %}nullable:true,{% endif %}"
    'type:<|"|>{{ v.type | upper }}<|"|>}{{ "," if not loop.last }}{% endfor %}{% endmacro %}'
)

TEMPLATES: Final[dict[str, str]] = {
    "hermes": _template(
        _EACH_CALL
        + '\n<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>{% endfor %}'
    ),
    "qwen-xml": _template(_XML.replace("OPEN", "<tool_call>").replace("CLOSE", "</tool_call>").replace("LINE", "\\n")),
    "seed-oss": _template(
        _XML.replace("OPEN", "<seed:tool_call>").replace("CLOSE", "</seed:tool_call>").replace("LINE", "")
    ),
    "glm": _template(
        _EACH_CALL
        + "\n<tool_call>{{ f.name }}\n{% for key, value in f.arguments | items %}<arg_key>{{ key }}</arg_key>\n"
        "<arg_value>{{ value if value is string else value | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}"
    ),
    "minimax": _template(
        "\n<minimax:tool_call>"
        + _EACH_CALL
        + '\n<invoke name="{{ f.name }}">\n{% for key, value in f.arguments | items %}<parameter name="{{ key }}">'
        "{{ value if value is string else value | tojson }}</parameter>\n{% endfor %}</invoke>{% endfor %}"
        "\n</minimax:tool_call>"
    ),
    "kimi": _template(
        "<|tool_calls_section_begin|>" + _EACH_CALL + "<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}"
        "<|tool_call_argument_begin|>{{ f.arguments | tojson }}<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>",
        result="## {{ m.tool_call_id }}\n{{ m.content }}",
    ),
    "deepseek": "{% for m in messages %}{% if m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>"
    "{% elif m.tool_calls %}[assistant]\n{{ m.content }}<｜tool▁calls▁begin｜>"
    + _EACH_CALL
    + "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments | tojson }}<｜tool▁call▁end｜>{% endfor %}"
    "<｜tool▁calls▁end｜>[end]\n{% else %}[{{ m.role }}]\n{{ m.content }}[end]\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}",
    "mistral": _template(
        _EACH_CALL
        + _REFUSES_LONG_IDS
        + "[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]{{ f.arguments | tojson }}{% endfor %}",
        result="{{ m.tool_call_id }}: {{ m.content }}",
    ),
    "mistral-list": _template(
        "[TOOL_CALLS]["
        + _EACH_CALL
        + _REFUSES_LONG_IDS
        + '{{ (f | tojson)[:-1] }}, "id": "{{ c.id }}"}{{ ", " if not loop.last }}{% endfor %}]',
        result="{{ m.tool_call_id }}: {{ m.content }}",
    ),
    "apriel": _template(
        "<tool_calls>["
        + _EACH_CALL
        + '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}{{ ", " if not loop.last }}{% endfor %}]</tool_calls>'
    ),
    "nemotron": _template(
        "<TOOLCALL>["
        + _EACH_CALL
        + '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}{{ ", " if not loop.last }}{% endfor %}]</TOOLCALL>'
    ),
    "llama3": _TOOLS
    + "{% for m in messages %}{% if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n{{ m.content | tojson }}"
    "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{% if m.tool_calls %}"
    "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}{% set f = m.tool_calls[0].function %}"
    '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}{% endif %}'
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "harmony": _TOOLS + "{% for m in messages %}{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}"
    "{% if m.content and m.thinking %}{{ raise_exception('one of both') }}{% endif %}"
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant to=functions.{{ f.name }}<|channel|>commentary json<|message|>{{ f.arguments | tojson }}<|call|>"
    "{% elif m.role == 'tool' %}<|start|>functions to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>"
    "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    "gemma4": _GEMMA_VALUES + "{% for tool in tools or [] %}<|tool>declaration:{{ tool.function.name }}{{ '{' }}"
    "{{ declared(tool.function.parameters) }}{{ '}' }}<tool|>{% endfor %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|tool_response>response:{{ m.name }}{value:{{ written(m.content) }}}"
    "<tool_response|>{% else %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if m.reasoning %}<|channel>thought\n{{ m.reasoning }}<channel|>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls %}<|tool_call>call:{{ c.function.name }}{{ written(c.function.arguments) }}<tool_call|>"
    "{% endfor %}{% if not m.tool_calls %}<turn|>\n{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'tool' %}<|turn>model\n{% endif %}",
}
