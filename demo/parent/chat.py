"""The tiny parent's chat template (Jinja): Gemma 4's turns and thinking channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .tokenizer import BOS, CHANNEL, END_OF_CHANNEL, END_OF_TURN, THINK, TURN

OPENING: Final = f"{CHANNEL}thought\n"
CLOSED: Final = OPENING + END_OF_CHANNEL

# Text only. A system turn carries the thinking mark, and is written for its sake alone when the conversation has none;
# thinking of earlier answers is left out; the prompt closes the thinking block unless thinking is wanted.
CHAT_TEMPLATE: Final = """\
{%- macro without_thinking(text) -%}
  {%- for piece in text.split("<channel|>") -%}{{- piece.split("<|channel>")[0] -}}{%- endfor -%}
{%- endmacro -%}
{%- macro text_of(message) -%}
  {%- set parts = [{"type": "text", "text": message.content}] if message.content is string else message.content -%}
  {%- for part in parts or [] if part.type == "text" -%}
    {{- (without_thinking(part.text) if message.role == "assistant" else part.text) | trim -}}
  {%- endfor -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set thinks = enable_thinking is defined and enable_thinking -%}
{%- set begins_with_system = messages and messages[0].role in ("system", "developer") -%}
{%- if thinks and not begins_with_system -%}
  {{- "<|turn>system\\n<|think|>\\n<turn|>\\n" -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if loop.first and begins_with_system -%}
    {{- "<|turn>system\\n" ~ ("<|think|>\\n" if thinks else "") -}}
  {%- else -%}
    {{- "<|turn>" ~ ("model" if message.role == "assistant" else message.role) ~ "\\n" -}}
  {%- endif -%}
  {{- text_of(message) -}}
  {{- "<turn|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- "<|turn>model\\n" ~ ("" if thinks else "<|channel>thought\\n<channel|>") -}}
{%- endif -%}
"""


def prompt(turns: Sequence[Mapping[str, str]], *, thinking: bool) -> str:
    """What the template makes of a conversation that ends in a question, without running it.

    turns: messages with role and content, stripped, without thinking in them.
    """
    parts = [BOS]
    if thinking and turns[0]["role"] != "system":
        parts.append(f"{TURN}system\n{THINK}\n{END_OF_TURN}\n")
    for turn in turns:
        role = "model" if turn["role"] == "assistant" else turn["role"]
        mark = f"{THINK}\n" if thinking and role == "system" else ""
        parts.append(f"{TURN}{role}\n{mark}{turn['content']}{END_OF_TURN}\n")
    parts.append(f"{TURN}model\n" + ("" if thinking else CLOSED))
    return "".join(parts)
