"""`coe serve` with specialists that share a resident: masks of the tiny trained parent that come with the demo."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.demo.curriculum import questions
from coe.surgery.mask import Mask
from fakes.demo_college import DOMAINS, MASKS, PARENT, college_roster
from fakes.server_process import ServerProcess, run_coe

pytestmark = pytest.mark.server

ASKED = {domain: [q.text for q in questions(domain) if q.held_out][3:40:9] for domain in DOMAINS}


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(college_roster(tmp_path_factory.mktemp("sharing"))) as server:
        yield server


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The same, each loaded by itself from a file that was cut."""
    with ServerProcess(college_roster(tmp_path_factory.mktemp("apart"), defaults={"share": False})) as server:
        yield server


def say(server: ServerProcess, model: str, text: str, **fields: Any) -> tuple[str, str, int]:
    """The answer, how warm its specialist was, and the prompt's tokens that were cached."""
    answer = server.chat(text, model=model, max_tokens=40, **fields).raise_for_status()
    body = answer.json()
    cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    return body["choices"][0]["message"]["content"], answer.headers["x-coe-residency"], cached


def test_one_worker_is_all_of_them_and_says_what_each_by_itself_says(
    sharing: ServerProcess, apart: ServerProcess
) -> None:
    """At home, where the answers are sure; away the two may round apart."""
    workers = set()
    for number in range(4):
        for name in DOMAINS:
            text = ASKED[name][number]
            assert say(sharing, name, text)[0] == say(apart, name, text)[0]
            workers |= set(sharing.workers())
    assert len(workers) == 1
    assert len(apart.workers()) == 3


def test_masks_of_other_tools_share_a_resident_and_answer_as_ours_do(sharing: ServerProcess, tmp_path: Path) -> None:
    dropped, matrix = tmp_path / "drop.json", tmp_path / "matrix.npy"
    gone = [np.flatnonzero(~row).tolist() for row in Mask.load(MASKS["math"]).matrix()]
    dropped.write_text(json.dumps({"per_layer_drop": gone}))
    np.save(matrix, Mask.load(MASKS["chemistry"]).matrix())
    theirs: dict[str, Path] = {"math": dropped, "chemistry": matrix, "python": MASKS["python"]}
    with ServerProcess(college_roster(tmp_path, masks=theirs)) as server:
        for name in DOMAINS:
            assert say(server, name, ASKED[name][0])[0] == say(sharing, name, ASKED[name][0])[0]
        assert len(server.workers()) == 1


def test_an_answer_says_whether_the_resident_had_to_change(sharing: ServerProcess) -> None:
    say(sharing, "python", "What is 1 + 1?")
    found = [say(sharing, name, "What is 1 + 1?")[1] for name in ("math", "math", "chemistry", "math")]
    assert found == ["swapped", "warm", "swapped", "swapped"]
    assert sharing.http.get("/v1/models/math").json()["coe"]["warm"]
    assert not sharing.http.get("/v1/models/chemistry").json()["coe"]["warm"]


def test_a_conversation_that_returns_goes_on_from_its_cache(sharing: ServerProcess) -> None:
    text = ASKED["math"][0]
    say(sharing, "math", text)
    prompt = sharing.chat(text, model="math").json()["usage"]["prompt_tokens"]
    for name in ("chemistry", "python", "chemistry"):
        say(sharing, name, ASKED[name][1])
    _, residency, cached = say(sharing, "math", text)
    assert (residency, cached) == ("swapped", prompt - 1), "the last token is evaluated again: the next one hangs on it"


def test_a_conversation_goes_back_to_the_one_of_two_residents_that_has_read_it(tmp_path: Path) -> None:
    # Reading counts as slow whatever this machine is: else the choice would hang on how busy it is.
    router = {"encoder": "none", "prompt_tokens_per_s": 20}
    roster = college_roster(tmp_path, pool={"most_shared": 2}, router=router)
    with ServerProcess(roster) as server:
        asked = f"{ASKED['math'][0]} {ASKED['math'][1]}"
        said = say(server, "math", asked)[0]
        say(server, "chemistry", ASKED["chemistry"][0])  # there; meanwhile a second resident is loaded as math
        server.until(lambda: {one["specialist"] for one in warm_residents(server)} == {"math", "chemistry"})
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        messages.append({"role": "user", "content": ASKED["math"][2]})
        _, residency, cached = say(server, "math", "", messages=messages)
        assert residency == "swapped"
        assert cached > 0
        assert say(server, "math", "What is 3 + 4?")[1] == "warm", "others go where they need not wait"


def warm_residents(server: ServerProcess) -> list[dict[str, Any]]:
    """Of those that share."""
    return [one for one in server.pool()["residents"] if one["state"] == "warm" and len(one["specialists"]) > 1]


def test_no_specialist_reads_another_s_cache(sharing: ServerProcess) -> None:
    text = "What is 1234 + 4321?"
    say(sharing, "math", text)
    first, again = (say(sharing, "chemistry", text)[2] for _ in range(2))
    assert first < 8 < again, "at most the turn's beginning, from a conversation of its own"


async def test_two_that_stream_at_once_say_what_they_say_alone(sharing: ServerProcess) -> None:
    client = sharing.async_openai()

    async def stream(name: str, text: str) -> str:
        chunks = await client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=40, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices])

    asked = [(name, text) for name in DOMAINS for text in ASKED[name][:3]]
    alone = [await stream(*each) for each in asked]
    together = await asyncio.gather(*(stream(*each) for each in asked))
    await client.close()
    assert together == alone


def test_the_pool_and_the_metrics_say_what_the_resident_is(sharing: ServerProcess) -> None:
    say(sharing, "chemistry", "What is the chemical symbol of iron?")
    before = sharing.metric("coe_resident_swaps_total")
    say(sharing, "python", "What does Python give for 2 + 2?")
    (shared,) = (r for r in sharing.pool()["residents"] if len(r["specialists"]) > 1)
    assert shared["specialists"] == list(DOMAINS)
    assert shared["specialist"] == "python"
    sharing.until(lambda: sharing.metric("coe_resident_swaps_total") > before)
    assert sharing.metric("coe_resident_swapped_bytes_total") > 0
    assert sharing.metric("coe_wait_seconds_count", residency="swapped") > 0


def test_masks_take_no_room_on_the_disk(sharing: ServerProcess, apart: ServerProcess) -> None:
    def used(folder: Path) -> int:
        return sum(file.stat().st_blocks * 512 for file in folder.rglob("*.gguf"))

    with_files, without = (
        used(Path(server._errors.name).parent / "models") for server in (apart, sharing)
    )  # st_blocks: a hole takes none
    assert with_files > 3 * 1_000_000
    assert without < 300_000, "one header for all three"


def test_a_worker_that_dies_is_replaced_and_what_it_was_does_not_matter(sharing: ServerProcess) -> None:
    say(sharing, "chemistry", "What is the chemical symbol of iron?")
    (worker,) = sharing.workers()
    os.kill(worker, signal.SIGKILL)
    sharing.until(lambda: not sharing.pool()["residents"])
    answer, residency, _ = say(sharing, "math", "What is 27 + 35?")
    assert (residency, answer.split()[-1]) == ("loaded", "62")


def test_what_has_to_make_room_goes_and_comes_back(tmp_path: Path) -> None:
    roster = college_roster(tmp_path, pool={"vram_budget": "245 MiB"})
    with ServerProcess(roster) as server:
        assert say(server, "math", "What is 27 + 35?")[1] == "loaded"
        assert server.chat(model="general").headers["x-coe-residency"] == "loaded"
        assert [r["specialists"] for r in server.pool()["residents"]] == [["general"]]
        assert say(server, "python", "What does Python give for 2 + 2?")[1] == "loaded"
        assert say(server, "math", "What is 27 + 35?")[1] == "swapped"


def test_a_parent_that_is_replaced_is_noticed_and_read_again(tmp_path: Path) -> None:
    parent = tmp_path / "parent.gguf"
    shutil.copy(PARENT, parent)
    with ServerProcess(college_roster(tmp_path, parent)) as server:
        say(server, "math", "What is 27 + 35?")
        shutil.copy(PARENT, tmp_path / "beside.gguf")
        (tmp_path / "beside.gguf").replace(parent)
        refused = server.chat("What is 27 + 35?", model="chemistry")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_file_changed")
        assert "retry-after" in refused.headers
        server.until(lambda: server.chat("What is 27 + 35?", model="chemistry").status_code == 200)
        assert say(server, "math", "What is 27 + 35?")[0].endswith("62")


def test_a_parent_that_was_away_is_served_again_once_it_is_back(tmp_path: Path) -> None:
    parent, away = tmp_path / "parent.gguf", tmp_path / "away.gguf"
    shutil.copy(PARENT, parent)
    with ServerProcess(college_roster(tmp_path, parent)) as server:
        say(server, "math", "What is 27 + 35?")
        parent.rename(away)
        assert server.chat("What is 27 + 35?", model="chemistry").status_code == 503
        server.until(lambda: not server.http.get("/v1/models/chemistry").json()["coe"]["available"])
        refused = server.chat("What is 27 + 35?", model="chemistry").json()["error"]
        assert (refused["code"], "parent.gguf" in refused["message"]) == ("specialist_unavailable", True)
        server.until(lambda: not any(len(r["specialists"]) > 1 for r in server.pool()["residents"]))
        away.rename(parent)
        assert say(server, "math", "What is 27 + 35?")[0].endswith("62")


def test_where_memory_is_short_conversations_are_not_kept_for_later(tmp_path: Path) -> None:
    roster = college_roster(tmp_path, pool={"vram_budget": "600 MiB", "ram_budget": "2 GiB"})
    done = run_coe("check", str(roster))
    assert "4 of 4 can be served." in done.stdout, done.stdout


UNKNOWN_LAYOUT = """
import coe.engine.llama.ggml as ggml
from coe.engine.errors import LayoutError
def refuse():
    raise LayoutError("llama.cpp lays its tensors out in a way that is not known.")
ggml.require_layout = refuse
"""


def test_where_the_feature_cannot_work_plain_loading_serves(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(UNKNOWN_LAYOUT)
    with ServerProcess(college_roster(tmp_path), env={"PYTHONPATH": str(tmp_path)}) as server:
        answers = [say(server, name, ASKED[name][0])[1] for name in ("math", "chemistry", "math")]
        assert answers == ["loaded", "loaded", "warm"]
        assert "cannot share a resident: llama.cpp lays its tensors out" in server.log()


NO_OVERWRITING = """
import coe.engine.swap.weights as weights
from coe.engine.errors import LayoutError
def refuse(model, spec):
    raise LayoutError("The device turns tensors about.")
weights.find_weights = refuse
"""


def test_a_device_that_cannot_be_overwritten_is_found_out_with_the_first_load(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_OVERWRITING)
    with ServerProcess(college_roster(tmp_path), env={"PYTHONPATH": str(tmp_path)}) as server:
        assert say(server, "math", "What is 27 + 35?")[0].endswith("62")
        assert say(server, "chemistry", "What is the chemical symbol of iron?")[1] == "loaded"
        assert "are loaded by themselves: The device turns tensors about." in server.log()


def test_check_says_who_shares_and_what_a_change_moves(tmp_path: Path) -> None:
    done = run_coe("check", str(college_roster(tmp_path)))
    assert done.returncode == 0, done.stdout
    said = " ".join(done.stdout.split())
    assert "math + chemistry + python" in said
    for one, other in combinations(DOMAINS, 2):
        assert re.search(rf"{one} and {other} [\d.]+ [KM]iB [\d.]+ [KM]iB", said), said
    assert "3 at work:" in said
    assert "general shares with no other" in said
    assert "4 of 4 can be served." in said
