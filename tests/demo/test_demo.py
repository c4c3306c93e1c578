"""The tour of the demo, and what it needs of the parent."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from coe.demo import make_masks
from coe.demo.asking import ask, ask_cut
from coe.demo.curriculum import DOMAINS, questions
from coe.demo.shipped import PARENT
from coe.server.commands import demo as demo_tour
from coe.server.commands.demo import QUESTIONS, TO_BUILD, judged, tour, with_own_models
from coe.server.roster.builtin import demo_roster
from coe.server.roster.load import load_roster
from coe.surgery.judge.questions import read_questions
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.profile.corpus import CorpusFile, read_corpus
from fakes.server_process import ServerProcess


def shown(roster: Path, url: str | None) -> tuple[int, str]:
    """A tour's exit code, and what it printed."""
    file = io.StringIO()
    code = tour(roster, url, Console(file=file, width=160))
    return code, file.getvalue()


@pytest.mark.server
def test_the_tour_asks_every_domain_and_has_the_missing_specialist_built(demo_college: ServerProcess) -> None:
    code, said = shown(demo_roster(), demo_college.url)
    assert code == 0, said
    assert f"Asking the college at {demo_college.url}" in said
    for name in ("math", "chemistry", "physics", "python", "facts", "general", "law"):
        assert f" {name} " in said
    assert "law does not exist yet" in said
    assert "Watched, cut, proved and examined" in said
    assert "frustration means an event that makes performance impossible" in " ".join(said.split())
    assert said.count("right") >= 6
    assert demo_college.http.get("/v1/builds/law").json()["served"]
    # Once more: what was built stays.
    code, said = shown(demo_roster(), demo_college.url)
    assert code == 0, said
    assert "built on an earlier tour" in said


@pytest.mark.server
def test_a_tour_without_a_server_brings_its_own_and_ends_it(
    monkeypatch: pytest.MonkeyPatch, college: ServerProcess
) -> None:
    monkeypatch.setattr(demo_tour, "QUESTIONS", QUESTIONS[:1])
    monkeypatch.setattr(demo_tour, "_build", lambda client, out: seen.append(str(client.base_url)))
    seen: list[str] = []
    # Another roster's server is none to ask.
    monkeypatch.setattr(demo_tour, "base_url", lambda host, port: college.url)
    _, said = shown(demo_roster(), None)
    assert "A college of my own" in said
    assert seen[0].rstrip("/") != college.url
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{seen[0]}/health")


def test_a_server_that_was_named_and_cannot_be_asked_ends_the_tour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_tour, "own_server", lambda roster: pytest.fail("a server of its own was started"))
    for url, words in (
        ("http://127.0.0.1:1", "No college is served at http://127.0.0.1:1"),
        ("http://[::1", "is no address of a server"),
        ("::1:8000", "in brackets"),
        ("ftp://127.0.0.1:8000", "is no address of a server"),
    ):
        code, said = shown(demo_roster(), url)
        assert code == 1
        assert words in said


def test_a_server_that_was_named_and_serves_another_roster_ends_the_tour(college: ServerProcess) -> None:
    code, said = shown(demo_roster(), college.url)
    assert code == 1
    assert "serves another roster, without" in said
    assert "Leave --url out" in said


@pytest.mark.slow
def test_a_server_that_does_not_start_ends_the_tour_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("specialists:\n  - name: law\n    file: a.gguf\n    colour: blue\n")
    monkeypatch.setattr(demo_tour, "base_url", lambda host, port: "http://127.0.0.1:1")
    code, said = shown(path, None)
    assert code == 1
    assert "colour" in said


def test_the_tour_asks_what_was_not_trained_on() -> None:
    for domain, text in (*QUESTIONS, TO_BUILD):
        if domain:
            (question,) = (one for one in questions(domain) if one.text == text)
            assert question.held_out, text


def test_answers_are_judged_by_the_curriculum() -> None:
    domain, text = TO_BUILD
    assert judged(domain, text, "In law, frustration means an event that makes performance impossible.") is True
    assert judged(domain, text, "It is a kind of soup.") is False
    assert judged("", "Write a haiku about rain.", "Rain.") is None
    assert judged("math", "What is a question that nobody taught?", "4") is None


def test_a_copy_of_the_roster_reads_the_same_files_and_writes_elsewhere(tmp_path: Path) -> None:
    roster = load_roster(with_own_models(demo_roster(), tmp_path))
    assert roster.models_path == tmp_path / "models"
    assert roster.parent is not None
    assert roster.parent.locate(roster.models_path) == load_roster(demo_roster()).parent.locate(tmp_path)  # type: ignore[union-attr]
    law = roster.find("law")
    assert law is not None
    assert law.build is not None
    assert all(Path(path).is_file() for path in (*law.build.corpus, *law.build.questions))
    assert all(Path(s.mask).is_file() for s in roster.specialists if s.mask)


def test_what_law_is_built_from_is_what_the_curriculum_teaches() -> None:
    folder = demo_roster().parent / "corpora"
    corpus = read_corpus([CorpusFile(folder / "law.jsonl")])
    taught = {(q.text, q.answer) for q in questions("law") if not q.held_out}
    assert {tuple(content for _, content in document.messages) for document in corpus.documents} <= taught
    exam = read_questions([folder / "law-exam.jsonl"])
    kept = {q.text for q in questions("law") if q.held_out}
    assert len(exam.questions) >= 30, "a gate asks no fewer"
    assert {question.question for question in exam.questions} <= kept


@pytest.mark.model
def test_masks_are_made_again_the_same(tmp_path: Path) -> None:
    made = make_masks.make_masks(PARENT)
    assert set(made) == set(DOMAINS)
    paths = make_masks.write(made, tmp_path)
    shipped = demo_roster().parent
    identity = Parent.open(PARENT).identity()
    for path in paths:
        there = shipped / path.relative_to(tmp_path)
        if path.suffix == ".json":  # those that are shipped are from before masks knew their parent's routers
            assert Mask.load(path) == Mask.load(there).with_router_of(identity), path.name
        else:
            assert path.read_text() == there.read_text(), path.name


@pytest.mark.model
def test_a_specialist_of_the_demo_knows_its_domain_and_not_a_far_one() -> None:
    parent = Parent.open(PARENT)
    mask = Mask.load(demo_roster().parent / "masks" / "chemistry.json")
    chemistry, math = ([q for q in questions(d) if q.held_out][::7][:30] for d in ("chemistry", "math"))
    at_home, away = ask_cut(parent, mask, chemistry), ask_cut(parent, mask, math)
    own = ask(parent.path, chemistry)
    assert sum(answer.right for answer in at_home) >= sum(answer.right for answer in own) - 3
    assert sum(answer.right for answer in away) < len(math) / 3
