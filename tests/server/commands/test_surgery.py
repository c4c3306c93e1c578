"""The surgery commands as a person types them: a specialist made by hand, one made by the roster, and every slip."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from random_model import Shape, write_random_model
from typer.testing import CliRunner

from coe.engine.gguf.reader import read_header
from coe.server.cli import app
from coe.surgery.build.job import BuildState, Job
from coe.surgery.formats import read_mask
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.profile.profile import Profile
from coe.surgery.study.document_counts import DocumentCounts
from coe.surgery.study.matrix import TransferMatrix
from fakes import taught
from fakes.random_moe import write_random_moe
from fakes.server_process import GIVE_UP_S, run_coe, write_roster

COMMANDS = ("profile", "plan", "mask", "mask-of", "cut", "verify", "compare", "inspect", "eval", "build")
LINES = 40


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: a random parent of 8 experts, sums with their answers, and a text."""
    write_random_model(tmp_path / "parent.gguf", Shape(experts=8))
    sums = [{"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(LINES)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sums))
    (tmp_path / "text.txt").write_text("\n\n".join(f"Paragraph {n} tells of {n * n} things." for n in range(60)))
    (tmp_path / "shapes.json").write_text("[[0, 1]]")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def taught_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: the trained parent, chemistry and law as corpora, and an exam in each."""
    (tmp_path / "parent.gguf").symlink_to(taught.PARENT)
    for domain in ("chemistry", "law"):
        taught.write_corpus(tmp_path / f"{domain}.jsonl", taught.corpus(domain, 80))
        taught.write_exam(tmp_path / f"{domain}-exam.jsonl", taught.exam(domain, 30))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def coe(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def done(*arguments: str) -> str:
    """What a command that works prints."""
    result = coe(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def refused(*arguments: str) -> str:
    """The one line of a command that does not work."""
    result = coe(*arguments)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.strip() and "━" not in line]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


def profiled(*more: str) -> str:
    return done("profile", "parent.gguf", "--corpus", "sums.jsonl", "-o", "p.npz", "--threads", "1", *more)


def planned(name: str, *more: str) -> str:
    return done("plan", "p.npz", "--experts", "4", "-o", name, *more)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    printed = done(command, "--help")
    assert "Usage" in printed
    assert "--help" in printed


def test_coe_alone_names_the_surgery_commands() -> None:
    printed = done()
    assert all(command in printed for command in COMMANDS)


@pytest.mark.model
def test_a_specialist_made_by_hand_knows_its_domain_and_no_far_one(taught_folder: Path) -> None:
    said = done("profile", "parent.gguf", "--corpus", "chemistry.jsonl", "-o", "p.npz", "--threads", "1")
    assert "80 documents" in said
    assert "coe plan p.npz --experts 32" in said
    assert "coe cut" in done("plan", "p.npz", "--experts", "32", "--recipe", "top-k", "-o", "m.json", "--picture",
                             "m.png", "--pin", "0:3")  # fmt: skip
    mask = Mask.load(taught_folder / "m.json")
    assert 3 in mask.keep[0]
    assert taught.nearest(mask) == "chemistry"
    assert (taught_folder / "m.png").read_bytes().startswith(b"\x89PNG")
    assert "32 of 64 experts" in done("cut", "parent.gguf", "m.json", "-o", "s.gguf")
    assert read_header(taught_folder / "s.gguf").metadata["gemma4.expert_count"] == 32
    said = done("verify", "parent.gguf", "s.gguf", "m.json")
    assert "Everything is as the mask says" in said
    assert re.search(r"(All|Of) \d+ positions .*have the masked parent's logits", said)
    inspected = done("inspect", "s.gguf")
    assert "gemma4, 32 experts, 4 a token" in inspected
    assert "0-3" in inspected
    asked = ("--questions", "chemistry=chemistry-exam.jsonl", "--questions", "law=law-exam.jsonl")
    options = ("--max-tokens", str(taught.ANSWER_TOKENS), "--context", "256", "--threads", "1")
    done("eval", "specialist=s.gguf", *asked, "--beside", "parent.gguf", "-o", "matrix.json", *options)
    matrix = TransferMatrix.from_json(json.loads((taught_folder / "matrix.json").read_text()))
    accuracies = matrix.accuracies()
    assert min(accuracies["parent"].values()) >= 0.9
    assert accuracies["specialist"]["chemistry"] >= 0.9
    assert accuracies["specialist"]["law"] <= 0.3


@pytest.mark.model
def test_cut_without_provenance_and_with_everything_kept_is_the_parent_again(folder: Path) -> None:
    profiled()
    done("plan", "p.npz", "--experts", "8", "-o", "all.json")
    done("cut", "parent.gguf", "all.json", "-o", "s.gguf", "--no-provenance")
    assert (folder / "s.gguf").read_bytes() == (folder / "parent.gguf").read_bytes()


@pytest.mark.model
def test_verify_fails_on_a_file_that_is_not_what_the_mask_says(folder: Path) -> None:
    profiled()
    planned("m.json")
    planned("other.json", "--recipe", "top-k", "--criterion", "random", "--seed", "5")
    done("cut", "parent.gguf", "m.json", "-o", "s.gguf")
    result = coe("verify", "parent.gguf", "s.gguf", "other.json")
    assert result.exit_code == 1
    assert "layers" in result.stderr
    assert "Everything" not in result.stdout


@pytest.mark.model
def test_several_files_classes_and_profiles_come_together(folder: Path) -> None:
    done("profile", "parent.gguf", "--corpus", "sums=sums.jsonl", "text.txt", "--class", "prose", "-o", "a.npz",
         "--norms", "--threads", "1")  # fmt: skip
    profile = Profile.load(folder / "a.npz")
    assert profile.classes == ("sums", "prose")
    assert profile.norms is not None
    profiled()
    said = done("plan", "a.npz", "p.npz", "--experts", "4", "-o", "m.json", "--criterion", "frequency", "--second",
                "a.npz", "--cap", "1", "--pin-super-experts")  # fmt: skip
    assert "uper experts" in said
    recipe = Mask.load(folder / "m.json").provenance.recipe
    assert (recipe["criterion"], recipe["reasoning_cap"]) == ("frequency", 1)


@pytest.mark.model
def test_a_drop_map_takes_weights_and_a_preset_says_what_of_it_is_exact(folder: Path) -> None:
    done("profile", "parent.gguf", "--corpus", "sums=sums.jsonl", "prose=text.txt", "-o", "a.npz", "--norms")
    done("plan", "a.npz", "--experts", "4", "-o", "m.json", "--recipe", "drop-map", "--weight", "sums=2", "--weight",
         "prose=0.5")  # fmt: skip
    assert Mask.load(folder / "m.json").provenance.recipe["weights"] == {"sums": 2.0, "prose": 0.5}
    assert "no weight" in refused("plan", "a.npz", "--experts", "4", "--recipe", "drop-map", "--weight", "sums")


@pytest.mark.model
def test_until_stable_draws_a_curve_and_says_whether_it_settled(folder: Path) -> None:
    said = profiled("--until-stable", "--experts", "4")
    assert "give more" in said, "so small a corpus settles nothing"
    assert (folder / "p.growth.png").exists()


@pytest.mark.model
def test_answers_of_the_parent_are_written_beside_the_profile(taught_folder: Path) -> None:
    asked = taught.corpus("law", 40)
    lines = [json.dumps({"question": question.text, "answer": "not looked at"}) + "\n" for question in asked]
    (taught_folder / "asked.jsonl").write_text("".join(lines))
    said = done("profile", "parent.gguf", "--corpus", "asked.jsonl", "-o", "p.npz", "--answer", "--max-tokens", "64",
                "--context", "256", "--threads", "1")  # fmt: skip
    assert f"{len(asked)} of {len(asked)} answered" in said
    answers = [json.loads(line) for line in (taught_folder / "p.asked.answers.jsonl").read_text().splitlines()]
    assert sum(one["answer"] == question.answer for one, question in zip(answers, asked, strict=True)) >= 36
    assert int(Profile.load(taught_folder / "p.npz").documents.sum()) == len(asked)


@pytest.mark.model
def test_documents_apart_say_whether_a_corpus_is_one_domain(taught_folder: Path) -> None:
    def said_of(*corpora: str) -> str:
        (taught_folder / "corpus.jsonl").write_text("".join((taught_folder / name).read_text() for name in corpora))
        return done("profile", "parent.gguf", "--corpus", "corpus.jsonl", "-o", "p.npz", "--threads", "1",
                    "--per-document", "--experts", "32")  # fmt: skip

    assert "Nothing speaks for more than one domain" in said_of("chemistry.jsonl")
    assert len(DocumentCounts.load(taught_folder / "p.npz").names) == 80
    said = said_of("chemistry.jsonl", "law.jsonl")
    assert "The corpus looks like 2 domains" in said
    assert "part 2" in said
    assert "part 3" not in said


@pytest.mark.model
def test_masks_are_compared_drawn_and_told_with_accuracies(folder: Path) -> None:
    profiled()
    for name, seed in (("a", "1"), ("b", "2"), ("c", "3")):
        planned(f"{name}.json", "--recipe", "top-k", "--criterion", "random", "--seed", seed)
    row = {"a": 0.5, "b": 0.4, "c": 0.3}
    shares = {"parent": row, "a": {**row, "b": 0.3}, "b": {**row, "c": 0.2}, "c": {**row, "a": 0.1}}
    (folder / "shares.json").write_text(json.dumps(shares))
    said = done("compare", "a.json", "b.json", "third=c.json", "--profile", "a=p.npz", "--profile", "b=p.npz",
                "--profile", "third=p.npz", "--pictures", "pictures", "-o", "all.json")  # fmt: skip
    assert "Jaccard" in said
    assert "cosine" in said
    assert "third" in said
    assert {path.name for path in (folder / "pictures").iterdir()} >= {"masks.png", "overlap.png", "jaccard.png"}
    assert json.loads((folder / "all.json").read_text())["comparison"]["names"] == ["a", "b", "third"]
    assert "Pearson r" in done("compare", "a.json", "b.json", "c.json", "--accuracies", "shares.json")


def test_masks_of_others_are_read_with_their_parent(folder: Path) -> None:
    (folder / "drop.json").write_text(json.dumps({str(layer): [0, 1, 2] for layer in range(3)}))
    (folder / "keep.json").write_text(json.dumps({str(layer): [2, 3, 4, 5, 6] for layer in range(3)}))
    assert "5 of 8" in done("cut", "parent.gguf", "drop.json", "-o", "s.gguf", "--kind", "drop")
    result = coe("compare", "drop.json", "keep.json", "--parent", "parent.gguf")
    assert result.exit_code == 1
    assert "--kind" in result.stderr


def test_a_mask_of_another_tool_becomes_one_of_ours(folder: Path) -> None:
    (folder / "drop.json").write_text(json.dumps({str(layer): [0, 1, 2] for layer in range(3)}))
    assert "--kind" in refused("mask", "drop.json", "--parent", "parent.gguf")
    said = done("mask", "drop.json", "--parent", "parent.gguf", "--kind", "drop", "-o", "ours.json")
    assert "ours.json: 5 of 8 experts in 3 layers (0-2) of" in said
    assert "from drop.json, read as the dropped ones." in said
    again = done("mask", "ours.json", "--parent", "parent.gguf", "-o", "again.json")
    assert "from ours.json, one of ours already, made from drop.json." in again
    identity = Parent.open(folder / "parent.gguf").identity()
    assert Mask.load(folder / "ours.json") == read_mask(folder / "drop.json", identity, kind="drop")
    done("mask", "ours.json", "--parent", "parent.gguf", "-o", "again.json")
    assert (folder / "again.json").read_bytes() == (folder / "ours.json").read_bytes()
    assert "5 of 8" in done("cut", "parent.gguf", "ours.json", "-o", "s.gguf")


def test_a_mask_of_ours_becomes_one_of_another_tool_without_its_parent(folder: Path) -> None:
    (folder / "drop.json").write_text(json.dumps({str(layer): [0, 1, 2] for layer in range(3)}))
    assert "Add --parent" in refused("mask", "drop.json", "--kind", "drop")
    done("mask", "drop.json", "--parent", "parent.gguf", "--kind", "drop", "-o", "ours.json")
    assert "without the parent's hash" in done("mask", "ours.json", "--as", "drop-map", "-o", "back.json")
    assert json.loads((folder / "back.json").read_text()) == json.loads((folder / "drop.json").read_text())
    done("mask", "ours.json", "--as", "matrix", "-o", "m.npy")
    assert "5 of 8" in done("cut", "parent.gguf", "m.npy", "-o", "s.gguf")
    assert "drop-map, keep-list, matrix" in refused("mask", "ours.json", "--as", "list")


@pytest.mark.model
def test_a_ranking_is_cut_at_another_number_of_experts(folder: Path) -> None:
    profiled()
    planned("m.json", "--recipe", "top-k")
    planned_keeps = Mask.load(folder / "m.json").n_keep
    said = done("cut", "parent.gguf", "m.json", "-o", "s.gguf", "--experts", "0.75")
    assert "6 of 8 experts" in said
    assert read_header(folder / "s.gguf").count("expert_count") == 6
    assert "Everything is as the mask says" in done("verify", "parent.gguf", "s.gguf", "m.json", "--experts", "0.75")
    told = refused("verify", "parent.gguf", "s.gguf", "m.json")  # one line, and none for each tensor
    assert "s.gguf keeps 6 experts a layer, and the mask 4." in told
    assert "--experts 6" in told
    assert "3 of 8" in done("mask", "m.json", "--experts", "3", "-o", "fewer.json")
    assert Mask.load(folder / "fewer.json").keeping(planned_keeps).keep == Mask.load(folder / "m.json").keep
    for count, says in (("9", "has 8 experts"), ("some", "no number of experts"), ("1.5", "no share"), ("1", "uses")):
        assert says in refused("cut", "parent.gguf", "m.json", "-o", "s.gguf", "--experts", count)


@pytest.mark.model
def test_a_mask_of_ours_says_its_recipe_and_belongs_to_its_parent(folder: Path) -> None:
    profiled()
    planned("m.json", "--recipe", "top-k")
    assert "from m.json, planned by top-k." in done("mask", "m.json", "--parent", "parent.gguf", "-o", "copy.json")
    assert Mask.load(folder / "copy.json") == Mask.load(folder / "m.json")
    write_random_model(folder / "other.gguf", Shape(experts=8), seed=1)
    assert "was made for" in refused("mask", "m.json", "--parent", "other.gguf", "-o", "copy.json")
    assert Mask.load(folder / "copy.json") == Mask.load(folder / "m.json")


@pytest.mark.model
def test_questions_are_asked_of_a_model_and_of_its_parent(folder: Path) -> None:
    options = ("--max-tokens", "3", "--context", "256", "--threads", "1")
    said = done("eval", "parent.gguf", "--questions", "sums.jsonl", "--beside", "parent.gguf", "-o", "r.json", *options)
    assert "accuracy" in said
    assert "McNemar" in said
    assert json.loads((folder / "r.json").read_text())["paired"]["difference"] == 0
    said = done("eval", "one=parent.gguf", "two=parent.gguf", "--questions", "sums=sums.jsonl", "--beside",
                "parent.gguf", "-o", "m.json", *options)  # fmt: skip
    assert "two" in said
    assert json.loads((folder / "m.json").read_text())["visitors"] == ["one", "two"]
    assert "--beside" in refused("eval", "parent.gguf", "two=parent.gguf", "--questions", "sums.jsonl", *options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("profile", "parent.gguf"), "--corpus"),
        (("profile", "nowhere.gguf", "--corpus", "text.txt"), "nowhere.gguf"),
        (("profile", "parent.gguf", "--corpus", "nowhere.txt"), "nowhere.txt"),
        (("profile", "text.txt", "--corpus", "text.txt"), "text.txt"),
        (("plan", "nowhere.npz", "--experts", "4"), "coe profile"),
        (("plan", "text.txt", "--experts", "4"), "no profile"),
        (("cut", "parent.gguf", "nowhere.json", "-o", "s.gguf"), "coe plan"),
        (("mask", "nowhere.json", "--parent", "parent.gguf"), "coe plan"),
        (("mask", "text.txt", "--parent", "parent.gguf"), "neither JSON nor .npy"),
        (("mask", "sums.jsonl", "--parent", "parent.gguf", "-o", "sums.jsonl"), "is itself read"),
        (("compare", "shapes.json"), "coe mask FILE"),
        (("verify", "parent.gguf", "nowhere.gguf", "nowhere.json"), "nowhere.json"),
        (("inspect", "nowhere.gguf"), "nowhere.gguf"),
        (("compare", "nowhere.json", "nobody.json"), "coe plan"),
        (("eval", "parent.gguf", "--questions", "nowhere.jsonl"), "nowhere.jsonl"),
        (("eval", "parent.gguf", "--questions", "text.txt"), "JSON"),
    ],
)
def test_a_slip_is_one_line_that_names_it(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(*arguments)


@pytest.mark.model
@pytest.mark.parametrize(
    "arguments",
    [
        ("profile", "aborts.gguf", "--corpus", "text.txt"),
        ("profile", "aborts.gguf", "--corpus", "text.txt", "--per-document"),
        ("profile", "aborts.gguf", "--corpus", "text.txt", "--cpu-expert-layers", "1"),
        ("profile", "aborts.gguf", "--corpus", "sums.jsonl", "--answer"),
        ("eval", "aborts.gguf", "--questions", "sums.jsonl"),
        ("eval", "parent.gguf", "--questions", "sums.jsonl", "--beside", "aborts.gguf"),
        ("eval", "one=parent.gguf", "two=aborts.gguf", "--questions", "sums.jsonl", "--beside", "parent.gguf"),
    ],
)
def test_a_file_that_llama_cpp_aborts_on_gets_a_sentence(folder: Path, arguments: tuple[str, ...]) -> None:
    # 32 of 48 experts in 16 layers are more nodes than llama.cpp makes room for in its graph.
    write_random_moe(
        folder / "aborts.gguf",
        architecture="llama",
        layers=16,
        experts=48,
        experts_used=32,
        embedding=32,
        expert_ff=16,
    )
    line = refused(*arguments)
    assert re.search(
        r"dry run of aborts\.gguf .*SIGABRT.*: ggml\.c:\d+: GGML_ASSERT\(obj_new\) failed\. The file", line
    )


@pytest.mark.model
def test_nothing_that_is_read_is_written_over(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for arguments in (
        ("profile", "parent.gguf", "--corpus", "sums.jsonl", "-o", "parent.gguf"),
        ("profile", "parent.gguf", "--corpus", "sums.jsonl", "-o", "sums.jsonl"),
    ):
        assert "is itself read" in refused(*arguments)
    assert {path: path.read_bytes() for path in before} == before
    profiled()
    assert "is itself read" in refused("plan", "p.npz", "--experts", "4", "-o", "p.npz")
    assert "count twice" in refused("plan", "p.npz", "p.npz", "--experts", "4", "-o", "m.json")


@pytest.mark.model
def test_wrong_plans_say_what_may_be_written(folder: Path) -> None:
    profiled()
    assert "9" in refused("plan", "p.npz", "--experts", "9")
    assert "top-k" in refused("plan", "p.npz", "--experts", "4", "--recipe", "guessing")
    assert "gate-mass" in refused("plan", "p.npz", "--experts", "4", "--criterion", "guessing")
    assert "3:17" in refused("plan", "p.npz", "--experts", "4", "--pin", "three")
    assert "norms" in refused("plan", "p.npz", "--experts", "4", "--criterion", "reap")


# --- builds ---------------------------------------------------------------------------------------------------


@pytest.fixture
def roster(folder: Path) -> Callable[..., Path]:
    """roster(experts=4, ...): an entry `small` that is built from the sums."""
    (folder / "models").mkdir()
    (folder / "parent.gguf").rename(folder / "models" / "parent.gguf")

    def write(**build: Any) -> Path:
        entry = {"package": None, "pattern": None, "context_tokens": 256, "threads": 1}
        asked = {"corpus": ["sums.jsonl"], "experts": 4, "max_tokens": 4, **build}
        return write_roster(
            folder, {"small": {**entry, "build": asked}}, parent={"model": "random", "file": "parent.gguf"}
        )

    return write


@pytest.mark.model
def test_a_build_is_kept_aside_and_released_when_accepted(roster: Callable[..., Path], folder: Path) -> None:
    path = str(roster())
    first = run_coe("build", "small", "--roster", path)
    assert first.returncode == 3, first.stderr
    assert "kept aside" in first.stdout
    assert "--accept" in first.stdout
    assert "kept-aside" in done("build", "--roster", path)
    second = run_coe("build", "small", "--accept", "--roster", path)
    assert second.returncode == 0, second.stderr
    assert (folder / "models" / "built" / "small.gguf").exists()
    assert "report" in second.stdout
    assert "released" in done("build", "--roster", path)


@pytest.mark.model
def test_a_build_that_fails_says_why_and_exits_with_1(roster: Callable[..., Path]) -> None:
    path = str(roster(experts=9))
    result = run_coe("build", "small", "--roster", path)
    assert result.returncode == 1
    assert "has 8" in result.stderr
    assert "Traceback" not in result.stderr
    assert "no specialist" in refused("build", "nobody", "--roster", path)


@pytest.mark.model
def test_ctrl_c_stops_a_build_and_the_same_command_goes_on(roster: Callable[..., Path], folder: Path) -> None:
    path = str(roster())
    job = Job.of(folder / "models", "small")
    command = [sys.executable, "-m", "coe.server.cli", "build", "small", "--roster", path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and "profile" not in job.records():
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=GIVE_UP_S)
    assert process.returncode == 130, stderr
    assert "goes on from there" in stderr
    assert job.progress().state is BuildState.STOPPED
    before = job.records()["profile"]
    again = run_coe("build", "small", "--roster", path)
    assert again.returncode == 3, again.stderr
    assert job.records()["profile"] == before


@pytest.mark.model
def test_check_shows_what_is_to_be_built_and_how_large_it_will_be(roster: Callable[..., Path], folder: Path) -> None:
    path = roster()
    checked = done("check", str(path))
    assert "to be built" in checked
    assert "coe build small" in checked
    assert "~" in checked
    content = yaml.safe_load(path.read_text())
    content["specialists"][0]["build"]["corpus"] = ["nowhere.jsonl"]
    path.write_text(yaml.safe_dump(content))
    result = coe("check", str(path))
    assert result.exit_code == 1
    assert "nowhere.jsonl" in result.output
