"""`coe serve`: from a roster file to a listening server."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from rich.console import Console

from coe.engine.errors import EngineError
from coe.router.errors import RouterError

from ..api.app import make_app
from ..api.keys import forget_keys, read_keys, readable_by_others
from ..roster.load import load_roster
from ..roster.models import Roster
from ..roster.source import RosterError
from ..roster.values import AUTO
from ..runtime.availability import Unavailable
from ..runtime.college import College
from ._exposure import Exposure, Opened, exposure
from .doctor import gpu_warning

_log = logging.getLogger(__name__)

NOTHING_OPENED = Opened()
_FORCED_EXIT = 130  # what shells give for a Ctrl-C


def serve(
    path: Path, *, host: str | None, port: int | None, out: Console, err: Console, opened: Opened = NOTHING_OPENED
) -> int:
    """Serve until told to stop. Returns the exit code: 1 when the roster or this machine does not allow it."""
    if (warning := gpu_warning()) is not None:
        err.print(warning, style="bold red", markup=False)
    try:
        roster = load_roster(path)
        keys = read_keys(roster)
        forget_keys(roster)
        host = host or roster.server.host
        listener = listen(host, roster.server.port if port is None else port)
        reach = exposure(roster.server, host, listener.getsockname()[0], keys, opened)
    except RosterError as error:
        for problem in error.problems:
            err.print(str(problem), markup=False, soft_wrap=True)
        err.print(f"{path} has {len(error.problems)} error(s); nothing was started.", markup=False)
        return 1
    except (ValueError, OSError) as error:
        err.print(str(error), markup=False, style="red", soft_wrap=True)
        return 1
    for problem in roster.warnings:
        err.print(str(problem), markup=False, style="yellow")
    for file in readable_by_others(roster):
        err.print(f"{file} holds keys, and others can read it: chmod 600 {file}", markup=False, style="yellow")
    if reach.warning:
        err.print(reach.warning, markup=False, style="bold red", soft_wrap=True)
        _log.warning("%s", reach.warning)
    try:
        return asyncio.run(_serve(roster, reach, listener, out, err))
    except KeyboardInterrupt:
        return 0


def listen(host: str, port: int) -> socket.socket:
    """Bind before anything is loaded: a taken port is best known at once. Raises OSError with the remedy."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With its protocol named: asyncio sends frames at once only on sockets that say they are TCP. Elsewhere the
        # second frame of a kept connection waits for the client's acknowledgement, 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()  # another that has bound the same port meanwhile fails here, and not after its models load
    except (OSError, OverflowError) as error:
        raise OSError(
            f"Cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}. "
            "Choose another with --port, or end what listens there."
        ) from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server, that says when it is ready, and that a second Ctrl-C ends at once."""

    def __init__(self, config: uvicorn.Config, announce: str, out: Console) -> None:
        super().__init__(config)
        self._announce = announce
        self._out = out

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._out.print(self._announce, markup=False, soft_wrap=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            # A second Ctrl-C: nothing is waited for, not even the tasks' own ends. Workers go with this process.
            os._exit(_FORCED_EXIT)


async def _serve(roster: Roster, reach: Exposure, listener: socket.socket, out: Console, err: Console) -> int:
    reading = f"Reading {roster.path}, and asking llama.cpp what each model would take ..."
    out.print(reading, markup=False, soft_wrap=True)
    try:
        college = await College.open(roster)
        await college.supervisor.start()
    except (EngineError, RouterError) as error:
        err.print(str(error), markup=False, style="red", soft_wrap=True)
        return 1
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        make_app(college, reach.keys, hosts=reach.hosts),
        log_config=None,
        access_log=False,
        # A second Ctrl-C ends at once; without one, running answers are waited for.
        timeout_graceful_shutdown=None,
        h11_max_incomplete_event_size=64 * 1024,
    )
    key_lines = reach.key_lines(shown=out.is_terminal)
    server = _Server(config, announcement(college, host, port, key_lines, with_key=bool(reach.keys)), out)
    await server.serve(sockets=[listener])
    return 0 if server.started else 1


def announcement(college: College, host: str, port: int, key_lines: Sequence[str] = (), *, with_key: bool) -> str:
    """What a person needs to begin: address, models, a request to try, what to enter in a chat client.

    key_lines: where keys are that the server made.
    """
    reach = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    base = f"http://{reach}:{port}/v1"
    width = max(len(name) for name in [AUTO, *college.catalog.availability])
    lines = ["", f"College of Experts is ready at {base}", "", f"  {AUTO:{width}}  the supervisor chooses"]
    for name, item in college.catalog.availability.items():
        entry = item.entry
        about = entry.description or ""
        mark = f"unavailable: {item.reason} {item.remedy}" if isinstance(item, Unavailable) else about
        absent = isinstance(item, Unavailable) and item.location.path is None
        if absent and entry.build and entry.on_missing == "build":
            mark = f"{about} To be built when it is asked for.".strip()
        lines.append(f"  {name:{width}}  {mark}".rstrip())
    key = " -H 'Authorization: Bearer KEY'" if with_key else ""
    body = '{"model":"auto","messages":[{"role":"user","content":"What is 27 + 35?"}]}'
    lines += [
        "",
        f"Try:         curl -s {base}/chat/completions{key} -H 'content-type: application/json' -d '{body}'",
        f"Open WebUI:  Settings > Connections > OpenAI API: URL {base}, key "
        + ("one of yours" if with_key else "anything"),
        *key_lines,
        "Stop:        Ctrl-C; a second one stops at once",
        "",
    ]
    return "\n".join(lines)
