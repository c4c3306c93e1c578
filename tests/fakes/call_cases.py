"""Every family with a writer of its calls, and text that may stand before them."""

from __future__ import annotations

from dataclasses import dataclass

from coe.engine.generate.tools.family import Family
from coe.engine.generate.tools.gemma4 import Gemma4
from coe.engine.generate.tools.glm import Glm
from coe.engine.generate.tools.harmony import Harmony
from coe.engine.generate.tools.hermes import Hermes
from coe.engine.generate.tools.json_list import Apriel, Nemotron
from coe.engine.generate.tools.llama3 import Llama3
from coe.engine.generate.tools.marked import DeepSeek, Kimi
from coe.engine.generate.tools.minimax import MiniMax
from coe.engine.generate.tools.mistral import Mistral, MistralList
from coe.engine.generate.tools.qwen_xml import QwenXml, SeedOss

from . import calls as written


@dataclass(frozen=True)
class Case:
    family: Family
    write: written.Writer
    before: str = "I look.\n"


CASES = {
    "gemma4": Case(Gemma4(), written.gemma4),
    "hermes": Case(Hermes(), written.hermes),
    "qwen_xml": Case(QwenXml(), written.xml("<tool_call>", "</tool_call>", "\n")),
    "seed_oss": Case(SeedOss(), written.xml("<seed:tool_call>", "</seed:tool_call>", "")),
    "glm": Case(Glm(), written.glm("")),
    "glm_lines": Case(Glm(), written.glm("\n")),
    "minimax": Case(MiniMax(), written.minimax),
    "kimi": Case(Kimi(), written.kimi),
    "deepseek": Case(DeepSeek(), written.deepseek),
    "mistral": Case(Mistral(), written.mistral),
    "mistral_ids": Case(Mistral(), written.mistral_ids),
    "mistral_list": Case(MistralList(), written.mistral_list),
    "mistral_list_newer": Case(MistralList(), written.mistral),
    "llama3": Case(Llama3(), written.llama3, before=""),
    "llama3_tagged": Case(Llama3(), written.llama3_tagged, before=""),
    "harmony": Case(Harmony(), written.harmony),
    "harmony_template": Case(Harmony(), written.harmony_of_the_template, before=""),
    "apriel": Case(Apriel(), written.json_list("<tool_calls>", "</tool_calls>")),
    "nemotron": Case(Nemotron(), written.json_list("<TOOLCALL>", "</TOOLCALL>")),
}
