"""The server's log: what each verbosity shows, and the request's id in every line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from coe.engine.logs import LLAMA_LOGGER, REQUEST_ID, for_request
from coe.server.commands._logs import LogFormat, set_up


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging as it was."""
    root, ours, llama = logging.getLogger(), logging.getLogger("coe"), logging.getLogger(LLAMA_LOGGER)
    before = root.handlers[:], root.level, ours.level, llama.level
    yield
    root.handlers[:] = before[0]
    for logger, level in zip((root, ours, llama), before[1:], strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize(
    ("verbosity", "seen"),
    [(0, ["happens"]), (1, ["happens", "decides"]), (2, ["happens", "decides", "llama.cpp"])],
)
def test_decisions_are_shown_before_what_llama_cpp_says(
    verbosity: int, seen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(verbosity, LogFormat.JSON)
    logging.getLogger("coe.server").info("happens")
    logging.getLogger("coe.engine.pool.pool").debug("decides")
    logging.getLogger(LLAMA_LOGGER).debug("llama.cpp")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == seen


def test_a_line_carries_the_id_of_the_request_it_is_about(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up(0, LogFormat.TEXT)
    log = logging.getLogger("coe.server")
    log.info("of none")
    token = REQUEST_ID.set("req-1")
    log.info("of this")
    log.info("of another", extra=for_request("req-2"))
    REQUEST_ID.reset(token)
    none, this, another = capsys.readouterr().err.splitlines()
    assert none.endswith("INFO    of none")
    assert this.endswith("[req-1] of this")
    assert another.endswith("[req-2] of another")


def test_a_json_line_is_one_object_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(0, LogFormat.JSON)
    try:
        raise KeyError("two\nlines")
    except KeyError:
        logging.getLogger("coe.server").exception("it failed: %s", "é\nx", extra=for_request("req-3"))
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"], told["request_id"]) == (
        "error",
        "coe.server",
        "it failed: é\nx",
        "req-3",
    )
    assert "KeyError" in told["exception"]
    assert told["time"].endswith("+00:00")


FORGED = "law\n12:00:00 INFO    [req-9] all is well\r\x1b[2J\x9b31m\u2028\u202e\x7f\x00"


def test_no_text_can_forge_a_line_or_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(0, LogFormat.TEXT)
    logging.getLogger("coe.server").info("loading %s", FORGED, extra=for_request(FORGED))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said.splitlines()) == 1
    assert all(c.isprintable() for c in said.rstrip("\n"))
    assert r"law\n12:00:00" in said
    assert r"\x1b[2J\x9b31m\u2028\u202e\x7f\x00" in said


def test_a_traceback_is_indented_and_its_message_forges_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(0, LogFormat.TEXT)
    try:
        raise KeyError("x") from ValueError(FORGED)
    except KeyError:
        logging.getLogger("coe.server").exception("it failed")
    first, *rest = capsys.readouterr().err.rstrip("\n").split("\n")
    assert first.endswith("it failed")
    assert len(rest) > 3
    assert all(line.startswith("  ") for line in rest)
    assert all(line.isprintable() for line in rest)


def test_a_json_line_is_one_line_to_every_reader_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(0, LogFormat.JSON)
    written = FORGED + r"\x41 \u0041 é"
    logging.getLogger("coe.server").info("%s", written, extra=for_request(FORGED))
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert all(c.isprintable() for c in said.rstrip("\n"))
    told = json.loads(said)
    assert (told["message"], told["request_id"]) == (written, FORGED)


def test_a_traceback_says_what_failed_and_where_and_quotes_no_request(capsys: pytest.CaptureFixture[str]) -> None:
    for form in LogFormat:
        set_up(2, form)
        try:
            try:
                int("the prompt")
            except ValueError as error:
                raise FileNotFoundError(2, "No such file", "model.gguf") from error
        except OSError:
            logging.getLogger("uvicorn.error").exception("it failed")
        said = capsys.readouterr().err
        assert "ValueError" in said
        assert "prompt" not in said.replace('int("the prompt")', "").replace(r"int(\"the prompt\")", "")
        assert "model.gguf" in said, "what speaks of the machine stays"
        assert "test_logs.py" in said
