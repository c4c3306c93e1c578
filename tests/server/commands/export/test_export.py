"""`coe export`: a mask becomes a file that answers as the mask does; files are referred to, linked or copied."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from coe.engine.errors import NoRoomToTryError
from coe.engine.gguf.records import read_records, text
from coe.engine.pool.memory import Budget, Prediction
from coe.engine.spec import Footprint, LoadSpec
from coe.server.cli import app
from coe.server.commands.export import experts
from coe.server.roster.models import Roster
from coe.server.runtime import predictions
from coe.server.runtime.budget import Room
from coe.surgery.cut.cut import cut
from coe.surgery.formats import read_mask
from coe.surgery.parent import Parent
from fakes.demo_college import MASKS, college_roster
from fakes.full_disk import files_of_at_most
from fakes.pool_world import both
from fakes.random_encoder import POOLING, write_decoder, write_encoder
from fakes.server_process import ServerProcess, write_roster

QUESTIONS = ("What is 27 + 35?", "What is 48 - 11?", "Solve x + 3 = 9.")
MIB = 2**20
PARENT = MASKS["math"].parents[1] / "college-parent.gguf"


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)


def coe(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def done(*arguments: str | Path) -> str:
    result = coe(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def refused(*arguments: str | Path) -> str:
    result = coe(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    [line] = [line for line in result.stderr.splitlines() if line.strip() and "━" not in line]
    return str(line)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """A roster of the demo's masks."""
    return college_roster(tmp_path / "roster")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A roster of specialists with files: one, one in two parts, and one that is not there."""
    models = tmp_path / "models"
    models.mkdir()
    parent = MASKS["math"].parents[1] / "college-parent.gguf"
    for name in ("one.gguf", "two-00001-of-00002.gguf", "two-00002-of-00002.gguf"):
        (models / name).write_bytes(parent.read_bytes())
    entries = {
        name: {"package": None, "pattern": None, "file": f"{file}.gguf", "aliases": [f"the-{name}"]}
        for name, file in (("one", "one"), ("two", "two-00001-of-00002"), ("absent", "absent"))
    }
    return write_roster(tmp_path / "roster", entries, models_dir=str(models))


@pytest.mark.server
def test_an_exported_mask_answers_as_the_mask_does(masks: Path, tmp_path: Path) -> None:
    said = done("math", "--for", "gguf", "-r", masks, "-o", "out")
    assert "32 of 64 experts" in said
    assert f"Next: llama-server -m {tmp_path / 'out/math.gguf'} -c 512" in said
    roster = yaml.safe_load(masks.read_text())
    exported = {**roster["specialists"][0], "name": "exported", "file": str(tmp_path / "out/math.gguf")}
    del exported["mask"]
    roster["specialists"].append(exported)
    masks.write_text(yaml.safe_dump(roster))
    with ServerProcess(masks) as server:
        for question in QUESTIONS:
            answers = [server.chat(question, model=name, max_tokens=40).json() for name in ("math", "exported")]
            [mask, file] = [answer["choices"][0]["message"]["content"] for answer in answers]
            assert mask == file
            assert mask


def test_a_file_that_is_there_is_not_cut_again_and_one_of_another_mask_is(masks: Path, tmp_path: Path) -> None:
    path = tmp_path / "math/math.gguf"
    done("math", "--for", "gguf", "-r", masks)
    before, made_by = path.stat(), text(read_records(path)["coe.surgery.mask_sha256"])
    assert "is there already" in done("math", "--for", "ollama", "-r", masks)
    assert path.stat().st_ino == before.st_ino

    roster = yaml.safe_load(masks.read_text())
    roster["specialists"][0]["mask"] = str(MASKS["chemistry"])
    masks.write_text(yaml.safe_dump(roster))
    assert "32 of 64" in done("math", "--for", "ollama", "-r", masks)
    assert text(read_records(path)["coe.surgery.mask_sha256"]) not in (None, made_by)


def test_a_modelfile_lies_beside_and_an_older_one_that_was_changed_is_kept(masks: Path, tmp_path: Path) -> None:
    said = done("math", "--for", "ollama", "-r", masks)
    path = tmp_path / "math/Modelfile"
    assert f"Next: ollama create math -f {path}" in said
    assert "FROM ./math.gguf" in path.read_text()
    assert "as it was" not in done("math", "--for", "ollama", "-r", masks)
    path.write_text("FROM mine\n")
    assert f"as it was: {path}.bak" in done("math", "--for", "ollama", "-r", masks)
    assert path.with_name("Modelfile.bak").read_text() == "FROM mine\n"


def test_a_file_that_no_mask_made_is_not_written_over(masks: Path, tmp_path: Path) -> None:
    path = tmp_path / "math/math.gguf"
    path.parent.mkdir()
    path.write_bytes(b"precious")
    assert "nothing says that it was cut here" in refused("math", "--for", "gguf", "-r", masks)
    assert path.read_bytes() == b"precious"
    path.write_bytes(PARENT.read_bytes())
    assert "was not cut out of a parent" in refused("math", "--for", "gguf", "-r", masks)
    assert path.read_bytes() == PARENT.read_bytes()


def _truncated(path: Path) -> None:
    os.truncate(path, MIB)


def _with_more_behind(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(4096))


def _with_other_bytes_within(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) * 3 // 4
    content[middle : middle + 64] = bytes(byte ^ 1 for byte in content[middle : middle + 64])
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_truncated, "truncated: it has 1,048,576 bytes"),
        (_with_more_behind, "bytes and its tensors need"),
        (_with_other_bytes_within, r"bytes that no expert|other bytes than the parent"),
    ],
)
def test_a_cut_that_was_damaged_is_cut_again_and_why_is_said(
    damage: Callable[[Path], None], told: str, masks: Path, tmp_path: Path
) -> None:
    path = tmp_path / "math/math.gguf"
    done("math", "--for", "gguf", "-r", masks)
    sound = path.read_bytes()
    damage(path)
    assert re.search(f"was damaged, and is cut again: .*({told})", done("math", "--for", "gguf", "-r", masks))
    assert path.read_bytes() == sound
    assert "is there already, with the parent's bytes" in done("math", "--for", "gguf", "-r", masks)


def test_a_damaged_file_whose_origin_cannot_be_read_is_refused_with_the_damage(masks: Path, tmp_path: Path) -> None:
    path = tmp_path / "math/math.gguf"
    done("math", "--for", "gguf", "-r", masks)
    os.truncate(path, 1000)
    said = refused("math", "--for", "gguf", "-r", masks)
    assert "nothing says that it was cut here" in said
    assert "damaged" in said or "ends within its header" in said
    assert path.stat().st_size == 1000


@pytest.mark.server
def test_a_cut_of_another_file_type_is_refused_with_the_true_reason(masks: Path, tmp_path: Path) -> None:
    path = tmp_path / "math/math.gguf"
    path.parent.mkdir()
    parent = Parent.open(PARENT)
    mask = read_mask(MASKS["math"], parent.identity(lambda count: None))
    cut(parent, mask, path, quantize="Q8_0")
    before = path.read_bytes()
    assert "another file type" in refused("math", "--for", "gguf", "-r", masks)
    assert path.read_bytes() == before


def _decoder_pooled_by_mean(path: Path) -> Path:
    return write_decoder(path, POOLING.MEAN)


@pytest.mark.parametrize(
    ("write", "context", "longest"),
    [(write_encoder, 2048, "64"), (_decoder_pooled_by_mean, 1024, "1024")],
    ids=["trained on less than the context", "on more"],
)
def test_a_model_for_embeddings_is_told_the_longest_text_that_it_takes(
    write: Callable[[Path], Path], context: int, longest: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "bert.gguf")
    roster = embedding_roster(tmp_path, file, context)
    [line] = [line for line in done("bert", "--for", "gguf", "-r", roster).splitlines() if line.startswith("Next:")]
    flags = f"--embeddings --batch-size {longest} --ubatch-size {longest}"
    assert line == f"Next: llama-server -m {file} -c {longest} {flags}"

    said = done("bert", "--for", "ollama", "-r", roster)
    modelfile = (tmp_path / "bert/Modelfile").read_text()
    assert f"PARAMETER num_ctx {longest}\nPARAMETER num_batch {longest}\n" in modelfile
    assert "ollama run" not in said

    done("bert", "--for", "llama-swap", "-r", roster)
    swap = yaml.safe_load((tmp_path / "bert/llama-swap.yaml").read_text())["models"]["bert"]["cmd"]
    assert f"--ctx-size {longest}\n" in swap
    assert flags.replace(" --", "\n--") in swap

    done("bert", "--for", "lmstudio", "-r", roster)
    model = yaml.safe_load((tmp_path / "bert/hub/models/coe/bert/model.yaml").read_text())
    keys = ("embedding.load.contextLength", "embedding.load.llama.evalBatchSize")
    assert model["config"]["load"]["fields"] == [{"key": key, "value": int(longest)} for key in keys]
    assert model["config"]["operation"]["fields"] == []


def test_a_model_that_reads_texts_in_pieces_needs_no_batch_of_their_length(tmp_path: Path) -> None:
    file = write_decoder(tmp_path / "qwen.gguf")
    said = done("bert", "--for", "gguf", "-r", embedding_roster(tmp_path, file, 2048))
    assert f"Next: llama-server -m {file} -c 2048 --embeddings\n" in said


def embedding_roster(folder: Path, file: Path, context: int) -> Path:
    entry = {"package": None, "pattern": None, "file": str(file), "embeddings": True, "context_tokens": context}
    return write_roster(folder / "roster", {"bert": entry})


def test_a_full_disk_leaves_nothing_half_written(masks: Path, tmp_path: Path) -> None:
    with files_of_at_most(MIB):
        assert "could not be written to its end" in refused("math", "--for", "ollama", "-r", masks)
    assert list((tmp_path / "math").iterdir()) == []


def test_a_file_is_referred_to_by_its_path(files: Path, tmp_path: Path) -> None:
    file = tmp_path / "models/one.gguf"
    assert f"{file} is referred to where it lies; --copy" in done("the-one", "--for", "ollama", "-r", files)
    assert f"FROM {file}" in (tmp_path / "one/Modelfile").read_text()
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["Modelfile"]
    assert f"-m {file}" in done("one", "--for", "gguf", "-r", files, "-o", "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("budget_bytes", "flag", "note"),
    [(700, None, None), (500, "--n-cpu-moe 2", "came to --n-cpu-moe 2"), (299, "--cpu-moe", "came to --cpu-moe")],
)
def test_llama_swap_is_told_what_auto_comes_to_here(
    files: Path, monkeypatch: pytest.MonkeyPatch, budget_bytes: int, flag: str | None, note: str | None
) -> None:
    """Of a model of four layers, with experts of 100 bytes each beside 300 others."""

    async def predict(spec: LoadSpec, *_: Any) -> Prediction:
        kept = 0 if spec.cpu_expert_layers < 0 else 4 - spec.cpu_expert_layers
        return Prediction(Footprint(300 + 100 * kept, 0, 0), {}, on_gpu=True, expert_bytes=(100,) * 4)

    monkeypatch.setattr(predictions, "predict", predict)
    have_room(monkeypatch, budget_bytes)
    said = done("one", "--for", "llama-swap", "-r", with_auto(files))
    command = yaml.safe_load(Path("one/llama-swap.yaml").read_text())["models"]["one"]["cmd"]
    assert [line for line in command.splitlines() if "cpu-moe" in line] == ([flag] if flag else [])
    assert (f"`cpu_expert_layers: auto` {note} with" in said) if note else ("auto" not in said)


@pytest.mark.model
@pytest.mark.host("it is about a machine without a GPU")
def test_llama_swap_is_told_that_auto_is_not_known_here(files: Path) -> None:
    said = done("one", "--for", "llama-swap", "-r", with_auto(files))
    assert "`cpu_expert_layers: auto` is left out: this machine has no GPU." in said
    assert "add --n-cpu-moe" in said
    assert "cpu-moe" not in Path("one/llama-swap.yaml").read_text()


def test_where_auto_cannot_be_tried_llama_swap_is_told_why(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def predict(spec: LoadSpec, *_: Any) -> Prediction:
        raise NoRoomToTryError("dry run of one.gguf", 5)

    monkeypatch.setattr(predictions, "predict", predict)
    have_room(monkeypatch, 700)
    said = done("one", "--for", "llama-swap", "-r", with_auto(files))
    assert "is left out: The GPU has no room for a dry run of one.gguf; 5 bytes of its memory were free. Where" in said


def test_ollama_places_experts_itself_and_no_load_is_tried_for_it(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(predictions, "predict")
    assert "are placed as Ollama sees fit" in done("one", "--for", "ollama", "-r", with_auto(files))


def have_room(monkeypatch: pytest.MonkeyPatch, card_bytes: int) -> None:
    async def room(roster: Roster) -> Room:
        return Room(Budget(both(card_bytes, 1000), "played"), {})

    monkeypatch.setattr(experts, "find_room", room)


def with_auto(roster: Path) -> Path:
    """The roster with `cpu_expert_layers: auto`."""
    told = yaml.safe_load(roster.read_text())
    for entry in told["specialists"]:
        entry["cpu_expert_layers"] = "auto"
    roster.write_text(yaml.safe_dump(told))
    return roster


def test_a_file_is_copied_whole_and_once(files: Path, tmp_path: Path) -> None:
    file, copy = tmp_path / "models/one.gguf", tmp_path / "one/one.gguf"
    assert f"{copy} is a copy of {file}" in done("one", "--for", "ollama", "--copy", "-r", files)
    assert copy.read_bytes() == file.read_bytes()
    assert "FROM ./one.gguf" in (tmp_path / "one/Modelfile").read_text()
    inode = copy.stat().st_ino
    done("one", "--for", "ollama", "--copy", "-r", files)
    assert copy.stat().st_ino == inode
    os.utime(copy, (1, 1))
    assert "is another file" in refused("one", "--for", "ollama", "--copy", "-r", files)


def test_a_copy_that_finds_no_room_leaves_nothing(files: Path, tmp_path: Path) -> None:
    with files_of_at_most(MIB):
        assert "File too large" in refused("one", "--for", "gguf", "--copy", "-r", files)
    assert list((tmp_path / "one").iterdir()) == []


def test_lm_studio_finds_a_link_two_levels_down(files: Path, tmp_path: Path) -> None:
    link = tmp_path / "one/models/coe/one-gguf/one.gguf"
    for _ in range(2):
        assert f"{link} is a link to" in done("one", "--for", "lmstudio", "-r", files)
        assert link.readlink() == tmp_path / "models/one.gguf"
    assert (tmp_path / "one/hub/models/coe/one/model.yaml").is_file()
    done("one", "--for", "lmstudio", "--copy", "-r", files)
    assert not link.is_symlink()


def test_parts_keep_their_names_and_are_all_there(files: Path, tmp_path: Path) -> None:
    said = done("two", "--for", "ollama", "--copy", "-r", files)
    assert "split into 2 files" in said
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {"two-00001-of-00002.gguf", "two-00002-of-00002.gguf", "Modelfile"}


@pytest.mark.parametrize(
    ("name", "told"), [("absent", "absent.gguf"), ("poetry", "no specialist 'poetry'.*one, two, absent")]
)
def test_what_cannot_be_exported_says_why(files: Path, name: str, told: str) -> None:
    assert re.search(told, refused(name, "--for", "gguf", "-r", files))


def test_a_mask_whose_parent_is_not_there_says_so(tmp_path: Path) -> None:
    roster = college_roster(tmp_path / "roster", parent=tmp_path / "gone.gguf")
    assert "parent of math is not there" in refused("math", "--for", "gguf", "-r", roster)


def test_a_roster_with_mistakes_names_them(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("specialists: 3\n")
    assert "specialists" in refused("math", "--for", "gguf", "-r", "bad.yaml")


def test_another_program_is_none_that_is_known(masks: Path) -> None:
    result = coe("math", "--for", "vllm", "-r", masks)
    assert result.exit_code == 2
    assert "ollama" in result.output
