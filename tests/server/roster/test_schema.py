"""The JSON schema of a roster: right rosters hold to it, typical mistakes do not, and it explains each key."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from coe.server.roster.models import (
    BuildSection,
    MaskOfSection,
    ParentEntry,
    PoolSection,
    Roster,
    RouterSection,
    SamplingBounds,
    SamplingSection,
    Section,
    ServerSection,
    Specialist,
    SpecialistSettings,
)
from coe.server.roster.schema import help_of, roster_schema
from coe.server.roster.values import InvalidError, parse_size
from fakes.reference_roster import REFERENCE, SAMPLES, TOP, block_text, explanation, section_text, without
from fakes.rosters import problems_of

SCHEMA = roster_schema()
ENTRY = "specialists:\n  - {name: law, file: law.gguf, domains: [law]}\n"


def mistakes(text: str) -> list[str]:
    """Where a roster does not hold to the schema, as paths of keys."""
    found = Draft7Validator(SCHEMA).iter_errors(yaml.safe_load(text))
    return [error.json_path for error in found]


def sample_rosters() -> Iterator[Any]:
    yield from (
        pytest.param(path.read_text(), id=f"{path.parent.name}/{path.stem}")
        for path in (REFERENCE, TOP / "demo/specialists.yaml", *SAMPLES)
    )
    lines = REFERENCE.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s*#[a-z_]+: ", line):  # a setting that is commented out
            text = "\n".join([*lines[:number], line.replace("#", "", 1), *lines[number + 1 :]])
            yield pytest.param(text, id=line.split(":")[0].strip(" #"))
    for document in (TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))):
        for block in re.findall(r"```yaml\n(.*?)```", document.read_text(), re.S):
            if "specialists:" in block:
                yield pytest.param(block, id=document.name)


def test_the_schema_is_one() -> None:
    Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("text", [*sample_rosters()])
def test_every_sample_roster_holds_to_the_schema(text: str) -> None:
    assert mistakes(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "server:\n" + ENTRY,  # all of its keys are commented out
        "defaults: {thinking: on}\n" + ENTRY,
        "defaults: {thinking: {mode: off}}\n" + ENTRY,
        "defaults: {thinking: {budget: 8192}, gpu_layers: all, cpu_expert_layers: none, share: false}\n" + ENTRY,
        "defaults: {gpu_layers: 5, cpu_expert_layers: auto}\n" + ENTRY,
        "pool: {vram_budget: 15 GiB, vram_margin: 0, ram_budget: 900mb, idle_ttl_s: 0.5}\n" + ENTRY,
        "pool: {vram_budget: 16000000000}\n" + ENTRY,
        "specialists:\n  - {name: law, domains: [law], file: x, context_tokens: 4096, sampling: {top_k: 20}}\n",
        "parent: {model: m, file: m.gguf}\nspecialists:\n  - name: law\n    domains: [law]\n"
        "    mask_of: {repo: o/r, pattern: x, revision: v1}\n",
        "parent: {model: m, file: m.gguf}\nspecialists:\n  - name: law\n    domains: [law]\n"
        "    build: {corpus: [law.jsonl], experts: 64, recipe: v7, bound: 2, parent: other.gguf}\n",
        "parent: {model: m, file: m.gguf}\nspecialists:\n  - name: law\n    domains: [law]\n"
        "    build: {corpus: [law.jsonl], experts: 64, recipe: {name: top-k, criterion: reap}, bound: {loss: 0.02}}\n",
    ],
)
def test_each_way_to_write_a_value_holds_to_the_schema(tmp_path: Path, text: str) -> None:
    assert problems_of(tmp_path, text) == (), "the loader takes it"
    assert mistakes(text) == []


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "$"),
        ("specialists: []\n", "$.specialists"),
        ("specialists:\n  - {file: law.gguf}\n", "$.specialists[0]"),  # no name
        ("specialists:\n  - {name: Law, file: law.gguf}\n", "$.specialists[0].name"),
        ("specialists:\n  - {name: auto, file: law.gguf}\n", "$.specialists[0].name"),
        ("specialists:\n  - {name: law, file: law.gguf, domains: law}\n", "$.specialists[0].domains"),
        ("specialists:\n  - {name: law, repo: law, pattern: x}\n", "$.specialists[0].repo"),
        ("specialists:\n  - {name: law, file: law.gguf, temperature: 0.5}\n", "$.specialists[0]"),
        ("specialists:\n  - {name: law, build: {corpus: [], experts: 4}}\n", "$.specialists[0].build"),
        ("specialists:\n  - {name: law, build: {corpus: [a], experts: 4, recipe: x}}\n", "$.specialists[0].build"),
        ("specialists:\n  - {name: law, build: {corpus: [a], experts: 4, bound: -1}}\n", "$.specialists[0].build"),
        ("specialists:\n  - {name: law, mask_of: {repo: o/r}}\n", "$.specialists[0].mask_of"),
        ("specialists:\n  - {name: law, mask_of: {repo: law, pattern: x}}\n", "$.specialists[0].mask_of"),
        ("specialists:\n  - {name: law, mask_of: {repo: o/r, pattern: x, file: y}}\n", "$.specialists[0].mask_of"),
        ("colour: red\n" + ENTRY, "$"),
        ("version: 2\n" + ENTRY, "$.version"),
        ("server: {port: 70000}\n" + ENTRY, "$.server"),
        ("server: {port: '8000'}\n" + ENTRY, "$.server"),
        ("server: {max_body_bytes: 8 megs}\n" + ENTRY, "$.server"),
        ("pool: {vram_budget: much}\n" + ENTRY, "$.pool"),
        ("pool: {vram_budget: 0}\n" + ENTRY, "$.pool"),
        ("pool: {idle_ttl_s: 0}\n" + ENTRY, "$.pool"),
        ("pool: {quiet_s: 1 min}\n" + ENTRY, "$.pool"),
        ("pool: {stall: 60}\n" + ENTRY, "$.pool"),
        ("router: {threshold: 60}\n" + ENTRY, "$.router"),
        ("defaults: {thinking: maybe}\n" + ENTRY, "$.defaults"),
        ("defaults: {gpu_layers: -1}\n" + ENTRY, "$.defaults"),
        ("defaults: {gpu_layers: none}\n" + ENTRY, "$.defaults"),
        ("defaults: {cpu_expert_layers: most}\n" + ENTRY, "$.defaults"),
        ("defaults: {share: often}\n" + ENTRY, "$.defaults"),
        ("defaults: {name: law}\n" + ENTRY, "$.defaults"),
        ("defaults: {sampling: {top_p: 0}}\n" + ENTRY, "$.defaults"),
        ("notices: {beta: 3}\n" + ENTRY, "$.notices"),
    ],
)
def test_typical_mistakes_do_not_hold_to_the_schema(tmp_path: Path, text: str, where: str) -> None:
    assert problems_of(tmp_path, text or "{}"), "the loader refuses it, too"
    assert where in mistakes(text or "{}")


def sizes(written: object) -> bool:
    margin = SCHEMA["definitions"]["PoolSection"]["properties"]["vram_margin"]
    return bool(Draft7Validator(margin).is_valid(written))


@example("16383")
@example("16384")
@example("020000.5")
@example("0.0")
@given(
    st.one_of(
        st.integers(-5, 2**60),
        st.integers(-5, 2**18).map(str),
        st.text("0123456789. kKmMgGtTiIbB", max_size=8),
        st.booleans(),
        st.floats(allow_nan=False),
        st.none(),
    )
)
def test_a_size_holds_to_the_schema_when_the_loader_takes_it(written: object) -> None:
    try:
        parse_size(written)
        taken = True
    except InvalidError as error:
        taken = "more than any machine" in str(error)  # which a pattern cannot tell
    if isinstance(written, float) and written.is_integer():
        return  # 4.0 is an integer to JSON, and no number of bytes to the loader
    assert sizes(written) == taken


SECTIONS: dict[str, list[type[Section]]] = {
    "server": [ServerSection],
    "pool": [PoolSection],
    "router": [RouterSection],
    "parent": [ParentEntry],
    "defaults": [SamplingSection, SamplingBounds, SpecialistSettings],
    "specialists": [Specialist, BuildSection, MaskOfSection],
}


def explained_keys() -> Iterator[Any]:
    """Each key where the reference explains it first: (model, key, section)."""
    for key in Roster.model_fields:
        if key != "specialists":
            yield pytest.param(Roster, key, "", id=key)
    for section, models in SECTIONS.items():
        for model in models:
            inherited = {name for base in model.__mro__[1:] for name in getattr(base, "model_fields", ())}
            elsewhere = inherited if model is not Specialist else set(SpecialistSettings.model_fields)
            if model is ParentEntry:
                elsewhere = elsewhere - {"file"}
            for key in model.model_fields:
                if key not in elsewhere:
                    yield pytest.param(model, key, section, id=f"{model.__name__}.{key}")


@pytest.mark.parametrize(("model", "key", "section"), [*explained_keys()])
def test_an_editor_shows_what_the_reference_says_of_a_key(model: type[Section], key: str, section: str) -> None:
    text = section_text(section) if section else re.sub(r"(?m)^ .*$", "", REFERENCE.read_text())
    if model is MaskOfSection:
        text = block_text("mask_of", text)
    elif model is Specialist:  # both have `repo` and `pattern`
        text = without("mask_of", text)
    assert explanation(key, text) == help_of(model)[key]


def test_every_key_has_help_and_an_entry_says_what_it_inherits() -> None:
    blocks = [SCHEMA, *SCHEMA["definitions"].values()]
    forms = [form for block in blocks for form in (block, *block.get("anyOf", ()))]
    keys = {name: key for form in forms for name, key in form.get("properties", {}).items()}
    assert {name for name, key in keys.items() if not key.get("description")} == set()
    entry = SCHEMA["definitions"]["Specialist"]["properties"]
    assert "as in `defaults`" in entry["context_tokens"]["description"]
    assert "default" not in entry["context_tokens"], "it is what `defaults` says"
    assert SCHEMA["definitions"]["SpecialistSettings"]["properties"]["context_tokens"]["default"] == 16384


@pytest.mark.slow
def test_the_command_prints_the_schema() -> None:
    command = [sys.executable, "-m", "coe.server.cli", "schema"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(printed.stdout) == json.loads(json.dumps(SCHEMA))
