"""A server for one command: a child process that serves a roster on a free port, and ends with the command."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from coe.engine import child
from coe.engine.child import Report

from ..api.keys import ADMIN_VARIABLE, CHAT_VARIABLE
from ..roster.addresses import LOOPBACK
from ._logs import LogFormat, set_up
from .serve import serve

_PROCESS: Final = "coe.server.commands._server"
_READY: Final = re.compile(r" is ready at (\S+)/v1")
_STOP_S: Final = 180.0  # it ends what it is doing first


class ServerStartError(Exception):
    """The server did not start; its own words, and what to do."""


@contextlib.contextmanager
def own_server(roster: Path) -> Iterator[str]:
    """The address of a `coe serve` for the roster, on a free port; it ends with the block.

    Raises ServerStartError where it ends instead of getting ready.
    """
    running = contextlib.AsyncExitStack()
    with asyncio.Runner() as runner:
        try:
            yield runner.run(_start(roster, running))
        finally:
            runner.run(running.aclose())


async def _start(roster: Path, running: contextlib.AsyncExitStack) -> str:
    """The server's address once it is ready; `running` ends it."""
    # With its secrets, for the roster may name a variable that holds keys; those of a server beside it are not its own.
    environment = {name: value for name, value in os.environ.items() if name not in (CHAT_VARIABLE, ADMIN_VARIABLE)}
    server = await running.enter_async_context(
        child.started(_PROCESS, {"roster": str(roster)}, title="The server", environment=environment)
    )
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ended = asyncio.create_task(server.answer(address.set_result))
    running.push_async_callback(_stop, server, ended)
    await asyncio.wait([address, ended], return_when=asyncio.FIRST_COMPLETED)
    if not address.done():
        raise ServerStartError(f"The server did not start:\n{server.output.decode('utf-8', 'replace').strip()}")
    return address.result()


async def _stop(server: child.Child, ended: asyncio.Task[Any]) -> None:
    await server.stop(signal.SIGINT, _STOP_S)
    await asyncio.gather(ended, return_exceptions=True)


# --- in the child ---------------------------------------------------------------------------------------------


class _Announcement(io.TextIOBase):
    """What the server prints for a person; the address in it is reported."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def write(self, text: str) -> int:
        """See io.TextIOBase."""
        if match := _READY.search(text):
            self._report(match[1])
        return len(text)


def main(job: dict[str, str], report: Report) -> int:
    """What the child does: it serves until it is told to stop. Its answer is the exit code of `coe serve`.

    It is for one command alone, and so for this machine alone, wherever the roster listens.
    """
    set_up(0, LogFormat.TEXT)
    out = Console(file=_Announcement(report))  # type: ignore[arg-type]  # rich asks for IO[str], and writes to it
    return serve(Path(job["roster"]), host=LOOPBACK, port=0, ollama_port=False, out=out, err=Console(stderr=True))
