"""`coe eval-router`, `coe fit-thresholds` and `coe train-router`."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coe.router.conversation import Conversation
from coe.router.head_file import SHIPPED, load_head, save_head
from coe.router.supervisor import Supervisor
from coe.router.thresholds import load_thresholds
from coe.server.cli import app
from coe.server.commands.router import _sort
from coe.server.roster.load import load_roster
from coe.server.runtime.college import supervisor_of
from fakes.server_process import call_coe, write_roster

QUESTIONS = [
    ("math", "Solve the equation 3x + 7 = 22 for x"),
    ("python", "Write a Python function that sorts a list of dictionaries"),
    ("law", "Can my landlord evict me without notice under the lease?"),
    ("general", "Give me a recipe for tomato soup"),
] * 6


def labelled(folder: Path) -> Path:
    path = folder / "labelled.jsonl"
    path.write_text("".join(json.dumps({"label": label, "text": text}) + "\n" for label, text in QUESTIONS))
    return path


@pytest.mark.slow
def test_eval_router_prints_and_draws_the_figures(tmp_path: Path) -> None:
    picture = tmp_path / "figures.png"
    result = call_coe("eval-router", str(labelled(tmp_path)), "--plot", str(picture))
    assert result.returncode == 0, result.stderr
    for figure in ("macro F1", "calibration error", "right of the surest 80%", "99th percentile"):
        assert figure in result.stdout
    assert "100.0 %" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


async def test_a_text_that_comes_again_is_sorted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def probabilities(self: Supervisor, conversation: Conversation) -> tuple[dict[str, float], str]:
        asked.append(conversation.passages[0].text)
        return dict.fromkeys(self.labels, 0.0), "fake"

    monkeypatch.setattr(Supervisor, "probabilities", probabilities)
    found = await _sort(labelled(tmp_path), Supervisor([], encoder="none"))
    assert len(asked) == len(set(asked)) == len(found.milliseconds) == 4
    assert len(found.probabilities) == len(found.paths) == len(found.labels) == len(QUESTIONS)


@pytest.mark.slow
def test_fitted_thresholds_are_what_a_roster_then_uses(tmp_path: Path) -> None:
    fitted = tmp_path / "thresholds.json"
    questions = [{"label": "law", "text": f"Is clause {i} of my lease void?"} for i in range(30)]
    path = tmp_path / "law.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    result = call_coe("fit-thresholds", str(path), "--output", str(fitted))
    assert result.returncode == 0, result.stderr
    assert "wrong specialist" in result.stdout
    assert "law" in load_thresholds(fitted)
    roster = write_roster(tmp_path, {"law": {"domains": ["law"]}}, router={"thresholds": "thresholds.json"})
    supervisor = supervisor_of(load_roster(roster))
    assert supervisor.settings.threshold_of("law") == load_thresholds(fitted)["law"]


@pytest.mark.slow
def test_a_bad_line_ends_each_command_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"label": "cooking", "text": "a"}\n')
    for command in ("eval-router", "fit-thresholds", "train-router"):
        result = call_coe(
            command, str(path), *(("--output", str(tmp_path / "x.npz")) if command != "eval-router" else ())
        )
        assert result.returncode == 1
        assert "bad.jsonl:1" in result.stderr
        assert ("`examples` in a roster" if command == "train-router" else "--roster") in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.slow
def test_labels_of_a_rosters_own_domains_are_known(tmp_path: Path) -> None:
    examples = [f"How do I {verb} the sail of a yacht in the wind?" for verb in
                ("set", "reef", "trim", "fold", "mend", "hoist", "furl", "clean", "dry", "buy")]  # fmt: skip
    roster = write_roster(tmp_path, {"sail": {"domains": ["sailing"], "examples": examples}})
    path = tmp_path / "q.jsonl"
    path.write_text('{"label": "sailing", "text": "How do I repair the sail of my yacht?"}\n')
    result = call_coe("eval-router", str(path), "--roster", str(roster))
    assert result.returncode == 0, result.stderr
    assert "sailing" in result.stdout


@pytest.mark.slow
def test_a_picture_is_of_the_kind_that_its_name_ends_in(tmp_path: Path) -> None:
    result = call_coe("eval-router", str(labelled(tmp_path)), "--plot", str(tmp_path / "figures.JPG"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "figures.JPG").read_bytes().startswith(b"\xff\xd8\xff")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where `coe train-router` would have written a head; nothing is fitted."""
    written: list[Path] = []

    def train(questions: Path, output: Path, *_: object, **__: object) -> dict[str, object]:
        written.append(output)
        return {}

    monkeypatch.setattr("coe.router.training.train.train", train)
    monkeypatch.setattr("coe.router.encoder.find_encoder", lambda setting: "found")
    monkeypatch.setattr("coe.router.encoder.load_encoder", lambda source: (None, ""))
    return written


def test_a_trained_head_goes_to_the_current_folder_and_how_to_use_it_is_said(
    tmp_path: Path, trained: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train-router", str(labelled(tmp_path))])
    assert result.exit_code == 0, result.output
    assert trained == [Path("head.npz")]
    assert f"router: {{head: {tmp_path / 'head.npz'}}}" in result.output


def test_the_shipped_head_is_replaced_where_it_is_named_only(tmp_path: Path, trained: list[Path]) -> None:
    result = CliRunner().invoke(app, ["train-router", str(labelled(tmp_path)), "-o", str(SHIPPED)])
    assert result.exit_code == 0, result.output
    assert trained == [SHIPPED]
    assert "Rosters that name no head use it." in result.output


def test_a_head_is_not_written_over_the_questions_or_the_embeddings(tmp_path: Path, trained: list[Path]) -> None:
    questions = labelled(tmp_path).rename(tmp_path / "own.json")
    head = str(tmp_path / "own.npz")
    for arguments in ([head], [str(tmp_path / "other.npz"), "--embeddings", str(tmp_path / "other.npz")]):
        result = CliRunner().invoke(app, ["train-router", str(questions), "-o", *arguments])
        assert result.exit_code == 1
    assert trained == []


def test_the_embeddings_are_not_written_over_the_heads_description(tmp_path: Path, trained: list[Path]) -> None:
    kept = tmp_path / "own.json"
    command = ["train-router", str(labelled(tmp_path)), "-o", str(tmp_path / "own.npz"), "--embeddings", str(kept)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "400"})
    assert result.exit_code == 1
    assert f"{kept} cannot hold both the head's description and the embeddings" in result.output
    assert trained == []


def test_training_without_an_encoder_is_refused(tmp_path: Path, trained: list[Path]) -> None:
    command = ["train-router", str(labelled(tmp_path)), "-o", str(tmp_path / "own.npz"), "--encoder", "none"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "leave --encoder out, or name a folder" in result.output
    assert "pip install" not in result.output
    assert trained == []


@pytest.mark.parametrize("command", ["eval-router", "fit-thresholds", "train-router"])
def test_questions_that_are_not_there_are_said_to_be_missing(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [command, "none.jsonl"])
    assert result.exit_code == 1
    assert result.output.strip() == "There is no file none.jsonl."
    (tmp_path / "folder.jsonl").mkdir()
    result = CliRunner().invoke(app, [command, "folder.jsonl"])
    assert result.exit_code == 1
    assert "folder.jsonl is a folder" in result.output


def test_a_folder_that_cannot_be_written_to_need_not_be_made(tmp_path: Path) -> None:
    questions = str(labelled(tmp_path))
    locked = CliRunner().invoke(app, ["fit-thresholds", questions, "-o", "/proc/th.json"])
    assert locked.exit_code == 1
    assert "the folder /proc cannot be written to" in locked.output
    assert "make" not in locked.output
    below_a_file = CliRunner().invoke(app, ["fit-thresholds", questions, "-o", f"{questions}/th.json"])
    assert below_a_file.exit_code == 1
    assert "is no folder" in " ".join(below_a_file.output.split())


@pytest.mark.slow
def test_thresholds_are_not_fitted_on_few_questions(tmp_path: Path) -> None:
    path, fitted = tmp_path / "few.jsonl", tmp_path / "thresholds.json"
    path.write_text(json.dumps({"label": "math", "text": "Solve 3x + 7 = 22 for x"}) + "\n")
    result = call_coe("fit-thresholds", str(path), "--output", str(fitted))
    assert result.returncode == 1
    assert "no domain has the 20 answers that a threshold needs" in result.stderr
    assert result.stdout == ""
    assert not fitted.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        ("eval-router", "--plot", "none/figures.png"),
        ("fit-thresholds", "--output", "none/thresholds.json"),
        ("train-router", "--output", "none/head.npz"),
        ("train-router", "--output", "head.json"),
        ("fit-thresholds", "--output", "labelled.jsonl"),
        ("eval-router", "--plot", "figures.txt"),
        ("eval-router", "--plot", "figures"),
    ],
)
def test_what_cannot_be_written_is_said_before_any_work(tmp_path: Path, command: str, option: str, name: str) -> None:
    questions = labelled(tmp_path)
    before = questions.read_bytes()
    result = call_coe(command, str(questions), option, str(tmp_path / name))
    assert result.returncode == 1
    assert str(tmp_path / name) in result.stderr
    assert "name" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert questions.read_bytes() == before


@pytest.mark.slow
def test_the_demos_roster_is_known_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"label": "elements", "text": "What is the chemical symbol of tin?"}\n')
    result = call_coe("eval-router", str(path), "--roster", "demo")
    assert result.returncode == 0, result.stderr
    assert "elements" in result.stdout


def test_a_roster_may_name_a_head_of_its_own(tmp_path: Path) -> None:
    head = replace(load_head(), labels=tuple(reversed(load_head().labels)))
    save_head(head, tmp_path / "own.npz")
    roster = write_roster(tmp_path, {"law": {"domains": ["law"]}}, router={"head": "own.npz", "encoder": "none"})
    supervisor = supervisor_of(load_roster(roster))
    asyncio.run(supervisor.start())
    supervisor.close()
    assert supervisor.labels == head.labels


def findings(folder: Path, specialists: dict[str, dict[str, list[str]]]) -> list[str]:
    return [problem.message for problem in load_roster(write_roster(folder, specialists)).warnings]


SAILS = [
    f"How do I {verb} a sail?"
    for verb in ("set", "reef", "trim", "fold", "mend", "hoist", "furl", "dry", "buy", "wash")
]


def test_domains_are_known_as_people_write_them(tmp_path: Path) -> None:
    assert findings(tmp_path, {"a": {"domains": ["Maths", "CS", "Health", "Computer Science"]}}) == []
    assert "'phisics'" in findings(tmp_path, {"a": {"domains": ["phisics"]}})[0]


def test_a_domain_is_known_once_one_of_its_specialists_has_examples(tmp_path: Path) -> None:
    sail = {"domains": ["sailing"], "examples": SAILS}
    assert findings(tmp_path, {"sail": sail, "other": {"domains": ["sailing"]}}) == []
    (unknown,) = findings(tmp_path, {"sail": {**sail, "domains": ["sailing", "boats"]}})
    assert "'boats'" in unknown


def test_examples_without_a_domain_teach_one_of_the_specialists_own_name(tmp_path: Path) -> None:
    roster = write_roster(tmp_path, {"sail": {"domains": [], "examples": SAILS}})
    assert load_roster(roster).warnings == ()
    supervisor = supervisor_of(load_roster(roster))
    asyncio.run(supervisor.start())
    supervisor.close()
    assert "sail" in supervisor.labels


def test_check_points_out_an_example_that_stands_under_two_domains(tmp_path: Path) -> None:
    shared = [f"How do I {verb} a sail?" for verb in ("set", "reef", "trim", "fold", "mend", "hoist", "furl", "dry")]
    roster = write_roster(
        tmp_path,
        {
            "sail": {"domains": ["sailing"], "examples": [*shared, "What is a jib?", "What is a yawl?"]},
            "boat": {"domains": ["boats"], "examples": [*shared, "What is a hull?", "What is a keel?"]},
        },
    )
    (warning,) = [problem.message for problem in load_roster(roster).warnings]
    assert "8 examples" in warning
    assert 'stand under "sailing" and "boats"' in warning
