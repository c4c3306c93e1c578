"""Reading a roster: what it gives, and what it says about mistakes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coe.engine.spec import LoadSpec, Sampling, Thinking, ThinkingMode
from coe.server.roster.load import load_roster
from coe.server.roster.model_files import matching_models
from coe.server.roster.models import Roster, Specialist
from coe.server.roster.source import RosterError
from coe.server.roster.values import parse_size
from fakes.rosters import load, problems_of

SMALL = """\
specialists:
  - name: math
    file: math.gguf
    domains: [math]
"""


def errors(folder: Path, text: str | bytes) -> list[str]:
    return [str(problem) for problem in problems_of(folder, text)]


def the_error(folder: Path, text: str | bytes) -> str:
    found = errors(folder, text)
    assert len(found) == 1, found
    return found[0]


def entry(folder: Path, *lines: str) -> str:
    """The only error of the small roster with more lines in its entry; the first of them is line 5."""
    return the_error(folder, SMALL + "".join(f"    {line}\n" for line in lines))


# What a right roster gives


def test_the_smallest_roster_takes_the_defaults_the_cards_recommend(tmp_path: Path) -> None:
    specialist = load(tmp_path, SMALL).specialists[0]
    assert specialist.default_sampling() == Sampling(temperature=0.6, repeat_penalty=1.05)
    assert specialist.thinking_policy() == Thinking(ThinkingMode.OFF)
    assert specialist.load_spec(Path("m.gguf")) == LoadSpec(Path("m.gguf"), context_tokens=16384, parallel=4)


def test_an_entry_inherits_what_it_does_not_say_and_sampling_key_by_key(tmp_path: Path) -> None:
    text = "defaults: {context_tokens: 4096, parallel: 2, sampling: {temperature: 0.3, top_k: 7}}\n" + SMALL
    specialist = load(tmp_path, text + "    parallel: 3\n    sampling: {top_k: 9}\n").specialists[0]
    assert (specialist.context_tokens, specialist.parallel) == (4096, 3)
    assert specialist.default_sampling() == Sampling(temperature=0.3, top_k=9)


def test_layers_are_written_as_words_and_reach_the_engine_as_numbers(tmp_path: Path) -> None:
    spec = (
        load(tmp_path, SMALL + "    gpu_layers: 12\n    cpu_expert_layers: all\n").specialists[0].load_spec(Path("m"))
    )
    assert (spec.gpu_layers, spec.cpu_expert_layers) == (12, -1)
    spec = (
        load(tmp_path, SMALL + "    gpu_layers: all\n    cpu_expert_layers: none\n").specialists[0].load_spec(Path("m"))
    )
    assert (spec.gpu_layers, spec.cpu_expert_layers) == (-1, 0)
    entry = load(tmp_path, SMALL + "    cpu_expert_layers: auto\n").specialists[0]
    assert (entry.cpu_expert_layers, entry.load_spec(Path("m")).cpu_expert_layers) == ("auto", 0)


@pytest.mark.parametrize(
    ("written", "policy"),
    [
        ("off", Thinking(ThinkingMode.OFF)),  # YAML 1.1 reads these two as booleans
        ("on", Thinking(ThinkingMode.ON)),
        ("'off'", Thinking(ThinkingMode.OFF)),
        ("{mode: on}", Thinking(ThinkingMode.ON)),
        ("{budget: 8192}", Thinking(ThinkingMode.BUDGET, 8192)),
        (r'{prefill: "<think></think>\n"}', Thinking(ThinkingMode.OFF, None, "<think></think>\n")),
    ],
)
def test_thinking_is_written_in_short(tmp_path: Path, written: str, policy: Thinking) -> None:
    assert load(tmp_path, SMALL + f"    thinking: {written}\n").specialists[0].thinking_policy() == policy


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [("15 GiB", 15 * 2**30), ("8MiB", 8 * 2**20), ("1.5 GB", 1_500_000_000), ("15 B", 15), (2**20, 2**20)],
)
def test_sizes_are_read_in_binary_and_decimal_units(written: object, size_bytes: int) -> None:
    assert parse_size(written) == size_bytes


@pytest.mark.parametrize("written", ["15 GiBs", "-3", -3, "", None, True, 1.5, "many"])
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(written)


def test_a_size_that_no_machine_has_is_refused() -> None:
    with pytest.raises(ValueError, match="more than any machine has"):
        parse_size("9" * 400 + " GiB")


@pytest.mark.parametrize(
    "line", ["threads: 100000", "context_tokens: 100000000000", "cache_tokens: 100000000000", "threads: -1"]
)
def test_numbers_that_would_end_a_worker_are_refused(tmp_path: Path, line: str) -> None:
    assert f"specialists[0].{line.split(':')[0]}" in entry(tmp_path, line)


@pytest.mark.parametrize("key", ["vram_budget", "vram_margin", "ram_budget"])
@pytest.mark.parametrize(("written", "meant"), [("15", "15 GiB"), ('"15"', "15 GiB"), ("8192", "8192 MiB")])
def test_a_size_without_a_unit_is_not_taken_for_bytes(tmp_path: Path, key: str, written: str, meant: str) -> None:
    with pytest.raises(RosterError, match=f"pool.{key}: .* has no unit and would be .* bytes. Write `{meant}`"):
        load(tmp_path, f"pool: {{{key}: {written}}}\n" + SMALL)


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("server: {port: 010000}", "server.port: YAML reads 010000 as 4096, in base 8. Write 4096 if"),
        ("pool: {idle_ttl_s: 1:30}", "pool.idle_ttl_s: YAML reads 1:30 as 90, in base 60. Write 90 if"),
        ("pool: {quiet_s: 1:30.5}", "in base 60"),
        ("defaults: {max_tokens: 0777}", "in base 8"),
    ],
)
def test_a_number_that_yaml_reads_in_another_base_is_not_taken(tmp_path: Path, line: str, read: str) -> None:
    assert read in the_error(tmp_path, f"{line}\n{SMALL}")
    for plain in ("0", "0.5", "0x10", "1_000"):
        assert not any("in base" in message for message in errors(tmp_path, f"pool: {{quiet_s: {plain}}}\n{SMALL}"))


def test_a_duration_with_a_unit_is_told_in_seconds(tmp_path: Path) -> None:
    with pytest.raises(RosterError, match=r"pool\.idle_ttl_s: '15m' should be a number\. Write seconds: 900"):
        load(tmp_path, "pool: {idle_ttl_s: 15m}\n" + SMALL)


def test_a_wait_of_days_is_doubted(tmp_path: Path) -> None:
    roster = load(tmp_path, "server: {max_wait_s: 120000}\n" + SMALL)
    assert any("33 hours" in str(doubt) and "Write 120 " in str(doubt) for doubt in roster.warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: a, file: a.gguf, revision: v1}", "`revision` goes with `repo`"),
        (f"{{name: a, mask: a.json, sha256: {'a' * 64}}}", "`sha256` goes with a file that is fetched"),
        ("{name: a, file: a.gguf, sha256: abc}", "is no SHA-256"),
        ("{name: a, repo: o/r, pattern: x, revision: '../x'}", "is no revision"),
    ],
)
def test_pins_that_pin_nothing_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RosterError, match=message):
        load(tmp_path, f"parent: {{file: p.gguf, model: m}}\nspecialists:\n  - {text}\n")


PUBLISHED = "mask_of: {repo: o/law, pattern: '*q4*'}"


def published(folder: Path, *entries: str, parent: str = "parent: {file: p.gguf, model: m}\n") -> Roster:
    lines = "".join(f"  - {{name: {chr(97 + number)}, domains: [law], {one}}}\n" for number, one in enumerate(entries))
    return load(folder, f"models_dir: here\n{parent}specialists:\n{lines}")


def test_a_published_specialist_is_an_entry_with_a_mask_in_the_models_folder(tmp_path: Path) -> None:
    specialist = published(tmp_path, PUBLISHED).specialists[0]
    assert specialist.mask_of is not None
    assert specialist.mask is not None
    path = Path(specialist.mask)
    assert path.parent == tmp_path / "here" / "masks"
    assert path.name.startswith("o--law-")


def test_masks_of_other_models_of_a_repository_lie_elsewhere_and_of_the_same_in_one_place(tmp_path: Path) -> None:
    roster = published(
        tmp_path,
        PUBLISHED,
        PUBLISHED,
        "mask_of: {repo: o/law, pattern: '*q8*'}",
        "mask_of: {repo: o/law, pattern: '*q4*', revision: v2}",
        "mask_of: {repo: o/tax, pattern: '*q4*'}",
    )
    first, again, *others = [specialist.mask for specialist in roster.specialists]
    assert first == again
    assert len({first, *others}) == 4
    assert roster.warnings == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (f"{PUBLISHED}, mask: a.json", "here are mask and mask_of"),
        (f"{PUBLISHED}, file: a.gguf", "here are file and mask_of"),
        (f"{PUBLISHED}, repo: o/r, pattern: x", "here are repo and mask_of"),
        (f"{PUBLISHED}, build: {{corpus: [a.jsonl], experts: 4}}", "here are mask_of and build"),
        ("mask_of: {pattern: x}", r"mask_of\.repo: This is missing"),
        ("mask_of: {repo: o/r}", r"mask_of\.pattern: This is missing"),
        ("mask_of: {repo: r, pattern: x}", "mask_of.repo"),
        ("mask_of: {repo: ../r, pattern: x}", "mask_of.repo"),
        ("mask_of: {repo: o/r, pattern: x, revision: '../x'}", "is no revision"),
        ("mask_of: {repo: o/r, pattern: x, sha256: a}", "unknown key"),
        ("mask_of: o/r", "should be keys and values"),
        (f"{PUBLISHED}, pattern: x", "goes with the `repo` of `mask_of`"),
        (f"{PUBLISHED}, revision: v1", "Write it into the block of `mask_of`"),
        (f"{PUBLISHED}, sha256: {'a' * 64}", "Pin the parent"),
        (f"{PUBLISHED}, embeddings: true", "gives no embeddings"),
    ],
)
def test_what_a_published_specialist_cannot_be_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(RosterError, match=message):
        published(tmp_path, entry)


def test_a_published_specialist_wants_a_parent(tmp_path: Path) -> None:
    with pytest.raises(RosterError, match=r"mask_of: There is no parent to cut it from\. Add `parent:`"):
        published(tmp_path, PUBLISHED, parent="")


def test_a_published_specialist_says_what_is_missing_of_it(tmp_path: Path) -> None:
    roster = published(tmp_path, PUBLISHED, parent="parent: {repo: o/p, pattern: '*', model: m}\n")
    specialist = roster.specialists[0]
    missing = roster.locate(specialist)
    assert "Neither its mask nor its parent is there" in missing.reason
    assert missing.remedy == f"Run: coe pull parent --masks --roster {roster.path}"
    (tmp_path / "here" / "o--p").mkdir(parents=True)
    (tmp_path / "here" / "o--p" / "p.gguf").write_bytes(b"GGUF")
    missing = roster.locate(specialist)
    assert missing.reason == "Its mask has not been fetched yet."
    assert missing.remedy == f"Run: coe pull --masks --roster {roster.path}"
    assert specialist.mask is not None
    Path(specialist.mask).parent.mkdir()
    Path(specialist.mask).write_text("{}")
    assert roster.locate(specialist).reason == "It has not been cut yet."


def test_one_repository_has_one_revision(tmp_path: Path) -> None:
    entries = "".join(f"  - {{name: {name}, repo: o/r, pattern: {name}, revision: {name}}}\n" for name in "ab")
    with pytest.raises(RosterError, match="at another revision"):
        load(tmp_path, "specialists:\n" + entries)


@pytest.mark.parametrize("file", ["~nosuchuser/x.gguf", "x" * 5000 + ".gguf"])
def test_a_path_that_cannot_be_is_a_file_that_is_not_there(tmp_path: Path, file: str) -> None:
    roster = load(tmp_path, f"specialists:\n  - {{name: math, file: {file}, domains: [math]}}\n")
    location = roster.locate(roster.specialists[0])
    assert location.path is None
    assert "There is no file" in location.reason


def test_a_specialist_is_found_by_name_and_by_alias(tmp_path: Path) -> None:
    roster = load(tmp_path, SMALL + "    aliases: ['owner/maths:q4', maths]\n")
    assert roster.find("math") is roster.find("owner/maths:q4") is roster.specialists[0]
    assert roster.find("maths") is not None
    assert roster.find("Math:latest") is roster.find("OWNER/maths:Q4") is roster.specialists[0]
    assert roster.find("math:7b") is None
    assert roster.find("physics") is None
    assert roster.find("auto") is None


def test_an_alias_that_ends_in_a_star_stands_for_all_names_that_begin_so(tmp_path: Path) -> None:
    other = "  - name: quick\n    file: q.gguf\n    aliases: [claude-haiku-*, claude-opus-5]\n"
    router = "router: {aliases: [claude-*, default]}\n"
    roster = load(tmp_path, router + SMALL + "    aliases: ['gpt-*']\n" + other)
    called = {"claude-haiku-4-5": "quick", "claude-opus-5": "quick", "claude-opus-5-5": "auto", "default": "auto"}
    called |= {"gpt-4o": "math", "gpt-": "math", "auto": "auto", "math": "math"}
    called |= {"Claude-Opus-5:latest": "quick", "CLAUDE-sonnet-5": "auto", "Auto:latest": "auto"}
    assert {name: roster.called(name) for name in called} == called
    assert roster.called("claude") is None
    assert roster.find("gpt-4o") is roster.specialists[0]
    assert roster.find("claude-opus-5-5") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("router: {aliases: [claude-*]}\n" + "SMALL    aliases: [claude-*]\n", "already calls `auto`"),
        ("router: {aliases: [math]}\nSMALL", "'math' already calls `auto`"),
        ("router: {aliases: [a, a]}\nSMALL", "stands here twice"),
        ("router: {aliases: ['*']}\nSMALL", "is not an alias"),
        ("router: {aliases: ['a*b']}\nSMALL", "`*` at the end alone"),
    ],
)
def test_a_name_calls_one(tmp_path: Path, text: str, says: str) -> None:
    assert says in the_error(tmp_path, text.replace("SMALL", SMALL))


def test_a_section_whose_settings_are_all_commented_out_says_nothing(tmp_path: Path) -> None:
    roster = load(tmp_path, "server:\n  # port: 1\npool:\nrouter:\nnotices:\ndefaults:\n" + SMALL)
    assert roster.server.port == 8000


def test_an_entry_shows_the_text_of_the_notice_it_names(tmp_path: Path) -> None:
    roster = load(tmp_path, "notices: {beta: Take care.}\n" + SMALL + "    notice: beta\n")
    assert roster.notice_of(roster.specialists[0]) == "Take care."


def test_a_byte_order_mark_and_merge_keys_are_understood(tmp_path: Path) -> None:
    text = (
        SMALL
        + "    sampling: &one {top_k: 5, top_p: 0.5}\n"
        + ("  - {name: law, file: l.gguf, domains: [law], sampling: {<<: *one, top_k: 6}}\n")
    )
    sampling = load(tmp_path, b"\xef\xbb\xbf" + text.encode()).specialists[1].sampling
    assert (sampling.top_k, sampling.top_p) == (6, 0.5)


# What a wrong roster is told


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one(tmp_path: Path) -> None:
    assert entry(tmp_path, "sampling:", "  temprature: 0.5") == (
        "specialists.yaml:6: specialists[0].sampling.temprature: unknown key. Did you mean temperature?"
    )


def test_a_known_key_in_the_wrong_place_is_told_its_place(tmp_path: Path) -> None:
    assert entry(tmp_path, "temperature: 0.5").endswith("It belongs under `sampling`.")
    assert "specialists" in the_error(tmp_path, "gpu_layers: 3\n" + SMALL)


def test_every_error_is_reported_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    found = errors(
        tmp_path,
        "fallback: maht\n"
        "pool: {vram_budget: huge}\n"
        "router: {threshold: 7}\n" + SMALL + "    parallel: many\n"
        "    sampling: {temperature: 1.5}\n"
        "  - name: math\n"
        "    colour: red\n",
    )
    assert [message.split(": ")[:2] for message in found] == [
        ["specialists.yaml:1", "fallback"],
        ["specialists.yaml:2", "pool.vram_budget"],
        ["specialists.yaml:3", "router.threshold"],
        ["specialists.yaml:8", "specialists[0].parallel"],
        ["specialists.yaml:9", "specialists[0].sampling.temperature"],
        ["specialists.yaml:10", "specialists[1]"],  # it names no model
        ["specialists.yaml:10", "specialists[1].name"],
        ["specialists.yaml:11", "specialists[1].colour"],
    ]


def test_the_bound_of_a_client_task_names_one(tmp_path: Path) -> None:
    own = "router: {client_tasks: {lunch: [menu]}, client_task_tokens: {lunch: 9, title: 0}}\n"
    assert load(tmp_path, own + SMALL).router.client_task_tokens == {"lunch": 9, "title": 0}
    message = the_error(tmp_path, "router: {client_task_tokens: {titel: 9}}\n" + SMALL)
    assert "'titel' is no client task" in message
    assert "Write one of: title, topic, emoji" in message


def test_a_key_written_twice_is_an_error_not_the_last_one(tmp_path: Path) -> None:
    message = entry(tmp_path, "parallel: 1", "parallel: 2")
    assert message.startswith("specialists.yaml:6: specialists[0].parallel:")
    assert "line 5" in message


def test_a_wrong_default_is_reported_once_where_it_is_written(tmp_path: Path) -> None:
    two = SMALL + "  - {name: law, file: l.gguf, domains: [law]}\n"
    for wrong in ("sampling: {temperature: 1.3}", "sampling: {top_k: x}", "parallel: 0"):
        message = the_error(tmp_path, f"defaults:\n  {wrong}\n" + two)
        assert message.startswith("specialists.yaml:2: defaults."), message


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("", "names no cards"),
        ("CUDA0", "[CUDA0]"),
        ("{CUDA0: 1}", "names no cards"),
        ("[]", "No card is named"),
        ("[0, 1]", "0 is not a card"),
        ("[CUDA0, 'CUDA 1']", "'CUDA 1' is not a card"),
        ("[CUDA0, CUDA0]", "named twice"),
    ],
)
def test_cards_that_are_none_are_told_once(tmp_path: Path, written: str, says: str) -> None:
    message = the_error(tmp_path, f"pool: {{devices: {written}}}\n{SMALL}")
    assert says in message
    assert "pool.devices:" in message


@pytest.mark.parametrize("written", ["[0, 0]", "[1.0e-30, 1]", "[1.0e+300, 1]", "[-1, 1]", "[.inf, 1]", "[.nan, 1]"])
def test_parts_that_llama_cpp_cannot_add_up_are_refused(tmp_path: Path, written: str) -> None:
    assert "tensor_split" in entry(tmp_path, f"tensor_split: {written}")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["repo: owner/name", "pattern: '*.gguf'"], "one source"),
        (["pattern: '*.gguf'"], "goes with"),
        (["sampling: {temperature: 1.0}"], "on_excess to allow"),
        (["sampling: {temperature: 0.7}", "sampling_bounds: {max_temperature: 0.5}"], "above sampling_bounds"),
        (["context_tokens: 4096", "cache_tokens: 1024"], "does not hold one full context"),
        (["context_tokens: 4096", "thinking: {budget: 4096}"], "does not fit a context"),
        (["thinking: {mode: on, budget: 5}"], "Write {budget: 8192}"),
        (["thinking: maybe"], "off or on or budget"),
        (["examples: [one, two]"], "at least 10"),
        (["on_missing: built"], "refuse or fallback or build"),
        (["gpu_layers: most"], "all"),
        (["gpu_layers: -1"], "all"),
        (["gpu_layers: auto"], "all"),
        (["cpu_expert_layers: some"], "none or all or auto"),
        (["cpu_expert_layers: -2"], "all"),
        (["parallel: true"], "whole number"),
        (["sampling: {min_p: 1e-1}"], "Write 0.1"),  # YAML 1.1 reads 1e-1 as text
        (["sampling: {top_p: .nan}"], "top_p"),
        (["mmap: 1"], "true or false"),
        (["aliases: maths"], "[maths]"),
        (["aliases: [auto]"], "supervisor"),
        (["aliases: [math]"], "already"),
        (["notice: absent"], "notices"),
        (["system_prompt: 12"], "quotes"),
        (["mmap:"], "nothing behind the colon"),
        (["kv_type: q4_0"], "f16 or q8_0"),
        (["description: 2024-13-45"], "quotes"),
    ],
)
def test_a_wrong_entry_is_told_what_to_write(tmp_path: Path, lines: list[str], says: str) -> None:
    message = entry(tmp_path, *lines)
    assert says in message
    assert "specialists[0]." in message


def test_a_repository_needs_a_pattern_that_stays_inside_it(tmp_path: Path) -> None:
    text = "specialists:\n  - name: a\n    domains: [law]\n    repo: owner/name\n"
    assert "*Q4_K_M*.gguf" in the_error(tmp_path, text)
    assert "leads out" in the_error(tmp_path, text + "    pattern: ../*.gguf\n")


@pytest.mark.parametrize("name", ["auto", "Math", "a b", "ä", "-a", "on", "12", "''"])
def test_names_that_clients_could_not_use_are_refused(tmp_path: Path, name: str) -> None:
    assert "specialists[0].name" in the_error(tmp_path, SMALL.replace("name: math", f"name: {name}"))


@pytest.mark.parametrize("preload", ["pool: {preload: [mth]}", "fallback: mth"])
def test_a_name_that_no_entry_has_is_told_the_nearest(tmp_path: Path, preload: str) -> None:
    assert "Did you mean math?" in the_error(tmp_path, preload + "\n" + SMALL)


def test_no_time_is_endless(tmp_path: Path) -> None:
    assert "server.max_wait_s: inf" in the_error(tmp_path, "server: {max_wait_s: .inf}\n" + SMALL)


def test_a_fallback_for_missing_models_needs_somebody_to_fall_back_on(tmp_path: Path) -> None:
    text = SMALL + "    on_missing: fallback\n"
    assert "fallback_warm" in the_error(tmp_path, "fallback_warm: false\n" + text)
    assert load(tmp_path, text).fallback_warm


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", "", "empty"),
        ("# nothing\n", "", "empty"),
        ("- a\n", ":1", "a list"),
        ("hello", ":1", "single value"),
        ("specialists: []\n", ":1", "at least one"),
        ("version: 1\n", ":1", "missing"),
        ("specialists: math\n", ":1", "a list"),
        ("specialists: [math]\n", ":1", "keys and values"),
        ("specialists:\n\t- name: a\n", ":2", "spaces"),
        ("specialists: [\n", ":2", "Not valid YAML"),
        ("a: 1\n---\nb: 2\n", ":2", "Not valid YAML"),
        ("a: 'x\x00y'\n", ":1", "U+0000"),
        ("a: !!python/object:os.system x\n" + SMALL, ":1", "cannot be read"),
        (b"a: 1\nb: \xff\n", ":2", "UTF-8"),
        (b"GGUF\x03\x00\x00\x00", "", "model file"),
        ("version: 2\n" + SMALL, ":1", "Write 1"),
    ],
)
def test_a_file_that_is_no_roster_is_told_so(tmp_path: Path, text: str | bytes, line: str, says: str) -> None:
    found = errors(tmp_path, text)
    assert any(message.startswith(f"specialists.yaml{line}: ") and says in message for message in found), found


def test_a_file_that_is_absent_or_a_folder_is_told_so(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "no.yaml", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(RosterError, match=says):
            load_roster(path)


def test_yaml_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)
    )
    assert any("more than 200,000 values" in message for message in errors(tmp_path, bomb + SMALL))
    assert any("nested too deeply" in message for message in errors(tmp_path, "a: " + "[" * 20000))
    assert any("refers to itself" in message for message in errors(tmp_path, "a: &a [*a]\n" + SMALL))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.integers(min_value=0, max_value=400),
    junk=st.one_of(
        st.binary(min_size=1, max_size=3), st.sampled_from([b"\n- ", b": ", b"[", b"{", b"*a", b"? ", b"<<"])
    ),
)
def test_whatever_is_typed_into_a_roster_it_is_read_or_refused_with_reasons(
    tmp_path: Path, position: int, junk: bytes
) -> None:
    text = (
        "server: {port: 1}\ndefaults: {sampling: {top_k: 3}}\nnotices: {n: x}\n" + SMALL + "    notice: n\n"
    ).encode()
    broken = text[: position % len(text)] + junk + text[position % len(text) :]
    problems = problems_of(tmp_path, broken)
    assert all(problem.message for problem in problems)


# Doubts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SMALL + "    sampling: {temperature: 0.8}\n", "loop more often"),
        (SMALL + "    sampling: {temperature: 1.2}\n    sampling_bounds: {on_excess: allow}\n", "loop more often"),
        (SMALL + "    sampling_bounds: {max_temperature: 1.5}\n", "1.0 and more"),
        (SMALL + "    max_tokens: 16384\n", "ends an answer earlier"),
        (SMALL + "    thinking: {budget: 16000}\n", "384 tokens for prompt"),
        (SMALL.replace("[math]", "[mathh]"), "Did you mean math?"),
        (SMALL.replace("    domains: [math]\n", ""), "never chooses"),
        ("server: {host: 0.0.0.0}\n" + SMALL, "api_keys"),
        (SMALL + "  - {name: b, file: math.gguf, domains: [law], parallel: 1}\n", "two residents"),
    ],
)
def test_what_is_allowed_but_doubtful_is_a_warning_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    (warning,) = load(tmp_path, text).warnings
    assert says in str(warning)
    assert warning.line is not None


def test_a_sound_roster_raises_no_doubts(tmp_path: Path) -> None:
    assert load(tmp_path, SMALL).warnings == ()


# Where models are


def made(path: Path, size: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def test_a_file_is_looked_for_in_the_models_folder_beside_the_roster(tmp_path: Path) -> None:
    roster = load(tmp_path, "models_dir: weights\n" + SMALL)
    absent = roster.locate(roster.specialists[0])
    assert absent.path is None
    assert "math.gguf" in absent.reason
    assert absent.remedy
    file = made(tmp_path / "weights" / "math.gguf", 5)
    found = roster.locate(roster.specialists[0])
    assert (found.path, found.size_bytes) == (file, 5)
    assert roster.specialists[0].locate(roster.models_path) == file


def from_repository() -> Specialist:
    return Specialist(name="coder", repo="Owner/a-model", pattern="*Q4_K_M*.gguf")


def test_a_download_is_found_by_pattern_whatever_its_case(tmp_path: Path) -> None:
    assert from_repository().location(tmp_path).remedy == "Run: coe pull coder"
    folder = tmp_path / "Owner--a-model"
    made(folder / "mmproj-Q4_K_M.gguf")
    made(folder / ".cache" / "huggingface" / "a-Q4_K_M.gguf")
    made(folder / "a-Q8_0.gguf")
    assert from_repository().locate(tmp_path) is None
    file = made(folder / "sub" / "a-q4_k_m.gguf")
    assert from_repository().locate(tmp_path) == file


def test_a_split_model_counts_as_one_and_is_there_only_when_whole(tmp_path: Path) -> None:
    folder = tmp_path / "Owner--a-model"
    first = made(folder / "a-Q4_K_M-00001-of-00003.gguf", 2)
    made(folder / "a-Q4_K_M-00003-of-00003.gguf", 2)
    lacking = from_repository().location(tmp_path)
    assert lacking.path is None
    assert "part 2" in lacking.reason
    made(folder / "a-Q4_K_M-00002-of-00003.gguf", 2)
    whole = from_repository().location(tmp_path)
    assert (whole.path, len(whole.files), whole.size_bytes) == (first, 3, 6)
    by_file = Specialist(name="coder", file="Owner--a-model/a-Q4_K_M-00001-of-00003.gguf").location(tmp_path)
    assert by_file == whole


def test_a_pattern_that_finds_two_models_is_to_be_narrowed(tmp_path: Path) -> None:
    for name in ("a-Q4_K_M.gguf", "a-CD-Q4_K_M.gguf"):
        made(tmp_path / "Owner--a-model" / name)
    location = from_repository().location(tmp_path)
    assert location.path is None
    assert "Narrow `pattern`" in location.remedy


def test_the_models_of_a_repository_are_grouped_by_their_parts() -> None:
    names = ["x-Q4-00002-of-00002.gguf", "x-Q4-00001-of-00002.gguf", "x-Q8.gguf", "README.md", "mmproj-x-Q8.gguf"]
    assert matching_models(names, "*.gguf") == [["x-Q4-00001-of-00002.gguf", "x-Q4-00002-of-00002.gguf"], ["x-Q8.gguf"]]


def test_a_package_is_searched_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carries_a_model"
    made(package / "model.Q4_1.gguf")
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    specialist = Specialist(name="tiny", package="carries-a-model", pattern="*.gguf")
    assert specialist.locate(tmp_path) == package / "model.Q4_1.gguf"
    assert "carries_a_model" not in sys.modules


def test_a_package_that_is_not_installed_is_to_be_installed(tmp_path: Path) -> None:
    location = Specialist(name="tiny", package="no_such_package_here", pattern="*").location(tmp_path)
    assert location.path is None
    assert location.remedy == "Install it: pip install no-such-package-here"
