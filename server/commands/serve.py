"""`coe serve`: from a roster file to a listening server."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal, cast

import uvicorn
from rich.console import Console

from coe.engine.errors import EngineError, ShuttingDownError
from coe.router.errors import RouterError

from ..api.app import make_app
from ..api.connections import ConnectionLimits, Connections
from ..api.keys import forget_keys, read_keys, readable_by_others
from ..api.protocol import BoundedProtocol
from ..roster.addresses import base_url, is_everywhere
from ..roster.load import load_roster
from ..roster.models import Roster
from ..roster.source import RosterError
from ..roster.values import AUTO
from ..runtime.availability import Servable, Unavailable
from ..runtime.college import College
from ..runtime.dump import state_lines
from ..runtime.metrics import Running
from ._descriptors import open_descriptors, raise_descriptor_limit
from ._exposure import Exposure, Opened, exposure
from ._listen import listen
from .doctor import gpu_warning

_log = logging.getLogger(__name__)

NOTHING_OPENED = Opened()
_FORCED_EXIT = 130  # what shells give for a Ctrl-C
_LAST_FRAMES_S: Final = 2.0  # for error frames to leave, once the answers under way have been ended
_MAX_HEAD_BYTES: Final = 64 * 1024  # of a request's line and headers
_ACCEPTED_AT_A_TIME: Final = 16
_OLLAMA_ITSELF: Final = "Ollama itself may be running there: end it (systemctl stop ollama). "
_QUEUE: Final = 512  # clients that the kernel keeps until they are accepted


def serve(
    path: Path,
    *,
    host: str | None,
    port: int | None,
    out: Console,
    err: Console,
    opened: Opened = NOTHING_OPENED,
    ollama_port: int | Literal[False] | None = None,
) -> int:
    """Serve until told to stop. Returns the exit code: 1 when the roster or this machine does not allow it.

    host, port, ollama_port: the roster's where left out. ollama_port: False for none.
    """
    if (warning := gpu_warning()) is not None:
        err.print(warning, style="bold red", markup=False)
    try:
        roster = load_roster(path)
        keys = read_keys(roster)
        forget_keys(roster)
        host = roster.server.host if host is None else host
        port = roster.server.port if port is None else port
        listeners = [listen(host, port)]
        second = roster.server.ollama_port if ollama_port is None else ollama_port
        if second is False:
            second = None
        elif second is not None and (second != port or not port):  # else one port is both
            listeners.append(listen(host, second, option="--ollama-port", taken=_OLLAMA_ITSELF))
        reach = exposure(roster.server, host, listeners[0].getsockname()[0], keys, opened)
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
        return asyncio.run(_serve(roster, reach, listeners, out, err, for_ollama=second is not None))
    except KeyboardInterrupt:
        return 0


class _Server(uvicorn.Server):
    """uvicorn's server, that says when it is ready, and ends in bounded time.

    serving ── Ctrl-C, SIGTERM ──> draining ── all answers have ended ──────> closing ──> exit code 0
                                      │  └──── shutdown_s ──> answers fail ──────^
                                      └── a second signal ──> exit code 130 at once
    """

    def __init__(
        self, config: uvicorn.Config, college: College, connections: Connections, announce: str, out: Console
    ) -> None:
        super().__init__(config)
        self._college = college
        self._connections = connections
        self._shutdown_s = college.roster.server.shutdown_s
        self._announce = announce
        self._out = out
        self._told_by = ""  # the signal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        descriptors = raise_descriptor_limit()
        await super().startup(sockets)
        self._connections.fit(descriptors, open_descriptors())
        for listener in sockets or []:
            listener.listen(_QUEUE)  # uvicorn gave it the number of clients to accept at a time
        if self.started:
            self._out.print(self._announce, markup=False, soft_wrap=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            # Nothing is waited for, not even the tasks' own ends. Workers go with this process.
            os._exit(_FORCED_EXIT)
        self.should_exit = True
        self._told_by = signal.Signals(sig).name

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if n_answers := len(self.server_state.tasks):
            which = "for 1 request under way" if n_answers == 1 else f"for {n_answers} requests under way"
            again = "Ctrl-C or SIGTERM once more ends at once"
            _log.info("%s: waiting up to %g s %s, which fail then; %s", self._told_by, self._shutdown_s, which, again)
        else:
            _log.info("%s: the server stops", self._told_by)
        ending = asyncio.create_task(self._end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_answers(self) -> None:
        """After shutdown_s the answers under way fail, each in its own words; clients that do not read are cut off."""
        await asyncio.sleep(self._shutdown_s)
        _log.warning(
            "%d requests were not answered within %g s and fail", len(self.server_state.tasks), self._shutdown_s
        )
        self._college.pool.refuse(ShuttingDownError())
        await asyncio.sleep(_LAST_FRAMES_S)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


async def _serve(
    roster: Roster, reach: Exposure, listeners: list[socket.socket], out: Console, err: Console, *, for_ollama: bool
) -> int:
    """listeners: the port, and that of Ollama where it is another. for_ollama: whether there is one."""
    reading = f"Reading {roster.path}, and asking llama.cpp what each model would take ..."
    out.print(reading, markup=False, soft_wrap=True)
    try:
        college = await College.open(roster)
        await college.supervisor.start()
    except (EngineError, RouterError) as error:
        err.print(str(error), markup=False, style="red", soft_wrap=True)
        return 1
    host, port = listeners[0].getsockname()[:2]
    ollama_port = listeners[-1].getsockname()[1] if for_ollama else None
    limits = ConnectionLimits(most=roster.server.max_connections)
    connections = Connections(limits)
    connections.watch_accepts(asyncio.get_running_loop())
    app = make_app(college, reach.keys, hosts=reach.hosts, ollama_port=ollama_port)
    config = uvicorn.Config(
        app,
        http=cast(Any, partial(BoundedProtocol, connections)),  # it wants a class, and calls it
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # any program here may send X-Forwarded-For: the journal names both
        # The server ends them itself, with an error each; this is for what would not end by that.
        timeout_graceful_shutdown=int(roster.server.shutdown_s + 2 * _LAST_FRAMES_S) + 1,
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        timeout_keep_alive=int(limits.idle_s),
        # As many clients are accepted at a time; asyncio tries as often when descriptors run out.
        backlog=_ACCEPTED_AT_A_TIME,
    )
    key_lines = reach.key_lines(shown=out.is_terminal)
    announce = announcement(college, host, port, key_lines, with_key=bool(reach.keys), ollama_port=ollama_port)
    server = _Server(config, college, connections, announce, out)
    running = app.state.metrics.running
    running.connections = lambda: connections.open
    if hasattr(signal, "SIGUSR1"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _dump, college, running)
    await server.serve(sockets=listeners)
    return 0 if server.started else 1


def _dump(college: College, running: Running) -> None:
    """SIGUSR1: the server's state into its log."""
    for line in state_lines(college, running):
        _log.info("state: %s", line)


def announcement(
    college: College,
    host: str,
    port: int,
    key_lines: Sequence[str] = (),
    *,
    with_key: bool,
    ollama_port: int | None = None,
) -> str:
    """What a person needs to begin: address, models, a request to try, what to enter in a chat client.

    key_lines: where keys are that the server made. ollama_port: the second port, None without one.
    """
    base = f"{base_url(host, port)}/v1"
    width = max(len(name) for name in [AUTO, *college.catalog.availability])
    shutdown_s = college.roster.server.shutdown_s
    lines = ["", f"College of Experts is ready at {base}", "", f"  {AUTO:{width}}  the supervisor chooses"]
    for name, item in college.catalog.availability.items():
        entry = item.entry
        about = entry.description or ""
        mark = f"unavailable: {item.reason} {item.remedy}" if isinstance(item, Unavailable) else about
        if isinstance(item, Servable) and item.chat_fault is not None:
            mark = f"{about} Answers no chats: {item.chat_fault.message}".strip()
        absent = isinstance(item, Unavailable) and item.location.path is None
        if absent and entry.build and entry.on_missing == "build":
            mark = f"{about} To be built when it is asked for.".strip()
        lines.append(f"  {name:{width}}  {mark}".rstrip())
    key = " -H 'Authorization: Bearer KEY'" if with_key else ""
    body = '{"model":"auto","messages":[{"role":"user","content":"What is 27 + 35?"}]}'
    if is_everywhere(host):
        which = f"port {port}" if ollama_port is None else f"ports {port} and {ollama_port}"
        lines += ["", f"Other machines reach it by this one's name or address, with the {which}."]
    chat = shlex.quote(f"{base}/chat/completions")  # an IPv6 address stands in brackets, which a shell expands
    lines += [
        "",
        f"Try:         curl -s {chat}{key} -H 'content-type: application/json' -d '{body}'",
        f"Open WebUI:  Settings > Connections > OpenAI API: URL {base}, key "
        + ("one of yours" if with_key else "anything"),
        *([f"Ollama:      {base_url(host, ollama_port)} for its clients"] if ollama_port is not None else []),
        *key_lines,
        f"Stop:        Ctrl-C, which lets answers end for {shutdown_s:g} s; a second one stops at once",
        "",
    ]
    return "\n".join(lines)
