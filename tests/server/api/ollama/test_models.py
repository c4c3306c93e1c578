"""Models as Ollama's clients list them, and what would change them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coe.engine.pool.admission import State
from coe.server.api.ollama.cards import card_of, cards, number_text, running
from coe.server.roster.models import Roster
from coe.server.runtime.college import College
from fakes.listed_college import Listed, answered, resident


async def test_tags_list_what_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "math.gguf").write_bytes(b"12345")
    _, _, told = await answered(Listed(folder=tmp_path), "/api/tags", {}, method="GET")
    models = {entry["name"]: entry for entry in told["models"]}
    assert list(models) == ["auto:latest", "math:latest", "Sums:7b", "law:latest"]
    assert all(entry["model"] == name and len(entry["digest"]) == 64 for name, entry in models.items())
    math = models["math:latest"]
    assert math["size"] == 5
    kind = {"family": "gemma4", "parameter_size": "13.9B", "quantization_level": "Q4_K_M"}
    assert math["details"] | kind == math["details"]
    assert math["capabilities"] == ["completion", "tools"]
    assert models["law:latest"]["capabilities"] == ["completion", "thinking"]
    assert models["auto:latest"]["capabilities"] == ["completion", "tools", "thinking"]
    assert models["auto:latest"]["details"]["context_length"] == 32768


async def test_one_that_is_filled_from_its_parent_has_the_size_of_its_weights(tmp_path: Path) -> None:
    college = Listed(folder=tmp_path)
    law = college.catalog.availability["law"]
    filled = replace(law.location, sources=(tmp_path / "parent.gguf",))
    college.catalog.availability["law"] = replace(law, location=filled)
    _, _, told = await answered(college, "/api/tags", {}, method="GET")
    assert {entry["name"]: entry["size"] for entry in told["models"]}["law:latest"] == 100


@pytest.mark.parametrize("field", ["model", "name"])
async def test_show_tells_capabilities_context_and_template(field: str, tmp_path: Path) -> None:
    _, _, told = await answered(Listed(folder=tmp_path), "/api/show", {field: "MATH:latest"})
    assert told["capabilities"] == ["completion", "tools"]
    info = told["model_info"]
    assert info["general.architecture"] == "gemma4"
    assert info["gemma4.context_length"] == 16384
    assert next(key for key in info if "context_length" in key) == "gemma4.context_length"
    assert "tools" in told["template"]
    parameters = dict(line.split(maxsplit=1) for line in told["parameters"].splitlines())
    assert (parameters["num_ctx"], parameters["num_predict"], parameters["temperature"]) == ("16384", "99", "0.6")
    assert told["system"] == "Be exact."


@pytest.mark.parametrize("name", ["law", "auto"])
async def test_show_of_one_that_fills_the_middle_speaks_of_a_suffix(name: str) -> None:
    college = Listed()
    _, _, told = await answered(college, "/api/show", {"model": name})
    assert "insert" not in told["capabilities"]
    assert ".Suffix" not in told["template"]
    college.catalog.availability["law"] = replace(college.catalog.availability["law"], infill=True)
    _, _, told = await answered(college, "/api/show", {"model": name})
    assert "insert" in told["capabilities"]
    assert "{{ .Suffix }}" in told["template"]


async def test_show_of_one_without_tools_does_not_speak_of_them(tmp_path: Path) -> None:
    _, _, told = await answered(Listed(folder=tmp_path), "/api/show", {"model": "law"})
    assert "tools" not in told["template"]
    assert told["model_info"]["coe.context_length"] == 32768, "nothing is known of its file"


@pytest.mark.parametrize(("body", "status"), [({"model": "gone"}, 503), ({"model": "x"}, 404), ({"name": 3}, 400)])
async def test_show_of_what_is_not_there(body: dict[str, Any], status: int) -> None:
    got, _, told = await answered(Listed(), "/api/show", body)
    assert (got, isinstance(told["error"], str)) == (status, True)


def test_what_is_in_memory_stays_longest_first(tmp_path: Path) -> None:
    college = Listed(folder=tmp_path, ttl_s=600)
    college.residents = [resident("math", idle_s=100), resident("law"), resident("gone"), resident("", State.LOADING)]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    law, math = running(cast(College, college), now)
    assert (law["name"], math["name"]) == ("law:latest", "math:latest")
    assert math["expires_at"] == "2026-01-01T00:08:20.000000Z"
    assert law["expires_at"] > "2200", "it is pinned"
    assert (law["size"], law["size_vram"]) == (130, 123)
    assert (math["size"], math["size_vram"]) == (123, 0), "no memory beside it is counted: there is no GPU"
    assert math["context_length"] == 16384


def test_a_pinned_files_digest_is_its_own_and_others_change_with_their_files() -> None:
    college = Listed()
    of_math = card_of(cast(College, college), "math").digest
    college.catalog.stamps = lambda name: (f"{name} 2",)
    assert card_of(cast(College, college), "math").digest != of_math
    pinned = {"name": "math", "file": "math.gguf", "sha256": "ab" * 32}
    college.roster = Roster.model_validate({"specialists": [pinned]})
    assert card_of(cast(College, college), "math").digest == "ab" * 32


@pytest.mark.parametrize(
    ("number", "text"),
    [(13_900_000_000, "13.9B"), (7_000_000_000, "7B"), (134_515_008, "134.5M"), (0, ""), (1500, "1.5K")],
)
def test_numbers_of_parameters(number: int, text: str) -> None:
    assert number_text(number) == text


def test_the_sentence_encoder_is_listed_by_its_names() -> None:
    college = Listed()
    encoder = SimpleNamespace(name="all-minilm", positions=256)
    college.embeddings = SimpleNamespace(encoder=encoder, is_encoder=lambda name: name == "all-minilm")
    card = cards(cast(College, college))[-1]
    assert (card.name, card.capabilities, card.context_tokens) == ("all-minilm", ["embedding"], 256)
    assert card_of(cast(College, college), "all-minilm") == card
    assert (card.details["embedding_length"], card.files) == (384, ())


# --- what would change models -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "method"),
    [("/api/create", "POST"), ("/api/copy", "POST"), ("/api/push", "POST"), ("/api/delete", "DELETE")],
)
async def test_models_are_the_rosters_matter(path: str, method: str) -> None:
    status, _, told = await answered(Listed(), path, {"model": "math"}, method=method)
    assert status == 400
    assert "roster.yaml" in told["error"]


async def test_a_pull_of_what_is_there_is_done_and_any_other_is_refused() -> None:
    _, _, told = await answered(Listed(), "/api/pull", {"model": "math:latest"})
    assert [line["status"] for line in told] == ["pulling manifest", "success"]
    _, _, told = await answered(Listed(), "/api/pull", {"name": "math", "stream": False})
    assert told == {"status": "success"}
    status, _, told = await answered(Listed(), "/api/pull", {"model": "llama3"})
    assert status == 404
    assert "coe pull" in told["error"]
