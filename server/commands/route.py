"""`coe route`: dry-run routing of a text, or of a file of them; no model is loaded."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from coe.engine.files import open_stream
from coe.router.choose import Decision
from coe.router.conversation import Conversation
from coe.router.errors import RouterError
from coe.router.supervisor import Supervisor

from ..roster.builtin import demo_roster
from ..roster.load import load_roster
from ..roster.source import RosterError
from ..runtime.college import supervisor_of
from ._lines import print_line

_SHOWN = 5  # of the ranking; --json prints all of it
STDIN = Path("-")
_LONGEST_LINE = 64 * 2**20


@dataclass(frozen=True)
class RouteQuery:
    """A conversation to be routed: OpenAI chat messages, and the client's name for it where it has one."""

    messages: Sequence[Mapping[str, Any]]
    session: str | None = None


def query_of_text(text: str) -> RouteQuery:
    """A conversation of one human message."""
    return RouteQuery([{"role": "user", "content": text}])


def parse_query(line: bytes) -> RouteQuery:
    """A line of a file of questions. Raises ValueError, which says what is wrong with the line and what to write."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8: save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}): write one object a line") from error
    if not isinstance(value, dict) or ("text" in value) == ("messages" in value):
        raise ValueError('write {"text": "..."} or {"messages": [...]}')
    session = value.get("session")
    if session is not None and not isinstance(session, str):
        raise ValueError("`session` is the name of a conversation: write a text")
    if "text" in value:
        if not isinstance(value["text"], str):
            raise ValueError("`text` is no text: write the question in quotes")
        return RouteQuery(query_of_text(value["text"]).messages, session)
    messages = value["messages"]
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise ValueError('`messages` is no conversation: write [{"role": "user", "content": "..."}, ...]')
    return RouteQuery(messages, session)


def route_text(roster: Path, text: str, *, as_json: bool, out: Console, err: Console) -> int:
    """Print the decision on one text. Returns the exit code."""

    async def decide(supervisor: Supervisor) -> int:
        decision, ms = await _decide(supervisor, query_of_text(text))
        if as_json:
            out.print_json(json.dumps(_facts(decision, ms)))
            return 0
        out.print(f"{decision.specialist}  (confidence {decision.confidence:.2f}: {decision.reason})", markup=False)
        for ranked in decision.ranking[:_SHOWN]:
            out.print(f"  {ranked.score:6.3f}  {ranked.specialist}", markup=False)
        return 0

    return _with_supervisor(roster, decide, err)


def route_file(roster: Path, questions: Path, *, as_json: bool, out: Console, err: Console) -> int:
    """Print a decision for each line of a file, in order and as soon as it is made, as a server would make them that
    gets one request after the other. A line that cannot be read is named on `err`, and the exit code is 1.

    questions: the file, or STDIN.
    """

    async def decide(supervisor: Supervisor) -> int:
        code, empty = 0, True
        for number, line in enumerate(iter(lambda: lines.readline(_LONGEST_LINE + 1), b""), start=1):
            if len(line) > _LONGEST_LINE:
                print_line(err, f"{questions}, line {number} is longer than {_LONGEST_LINE // 2**20} MiB.")
                return 1
            if not line.strip():
                continue
            empty = False
            try:
                query = parse_query(line)
            except ValueError as error:
                print_line(err, f"{questions}, line {number}: {error}.")
                code = 1
                continue
            decision, ms = await _decide(supervisor, query)
            if as_json:
                told = json.dumps({"line": number, **_facts(decision, ms)})
            else:
                told = f"{number:6}  {decision.specialist}  {decision.confidence:.2f}  {decision.reason}"
            print_line(out, told)
        if empty:
            print_line(err, f'{questions} holds no question: a line is {{"text": "..."}}.')
        return code

    try:
        lines = sys.stdin.buffer if questions == STDIN else open_stream(questions)
    except OSError as error:
        print_line(err, f"{questions} cannot be read: {error.strerror}.")
        return 1
    try:
        with lines:
            code = _with_supervisor(roster, decide, err)
        out.file.flush()  # here, where a failure is answered, and not as the interpreter ends
        return code
    except OSError as error:
        why = f"reading the questions or writing the decisions failed: {error.strerror}"
        print_line(err, f"{questions}: stopped, since {why}.")
        # What stdout still holds would be written again as the interpreter ends; that failure would exit with 120.
        # Source: Python's docs, signal, "Note on SIGPIPE".
        if out.file is sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _with_supervisor(path: Path, decide: Callable[[Supervisor], Awaitable[int]], err: Console) -> int:
    try:
        supervisor = supervisor_of(load_roster(path))
    except RosterError as error:
        for problem in error.problems:
            print_line(err, str(problem))
        return 1
    except RouterError as error:
        print_line(err, str(error))
        return 1

    which = f"{path}, the built-in one; --roster FILE for yours" if path == demo_roster() else path
    print_line(err, f"Roster: {which}")
    logging.getLogger("coe.router").addHandler(logging.NullHandler())  # what it warns of is printed below

    async def run() -> int:
        try:
            await supervisor.start()
            for warning in supervisor.warnings:
                print_line(err, warning)
            return await decide(supervisor)
        finally:
            supervisor.close()

    try:
        return asyncio.run(run())
    except RouterError as error:
        print_line(err, str(error))
        return 1


async def _decide(supervisor: Supervisor, query: RouteQuery) -> tuple[Decision, float]:
    started = perf_counter()
    conversation = Conversation.from_messages(query.messages, tasks=supervisor.tasks)
    decision = await supervisor.decide(conversation, session_id=query.session)
    return decision, (perf_counter() - started) * 1000


def _facts(decision: Decision, ms: float) -> dict[str, Any]:
    return {
        "domain": decision.domain,
        "specialist": decision.specialist,
        "confidence": decision.confidence,
        "ranking": [asdict(ranked) for ranked in decision.ranking],
        "path": decision.path,
        "reason": decision.reason,
        "ms": round(ms, 2),
    }
