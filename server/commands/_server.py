"""A server of one's own, for commands that need one: started for a roster, and ended with the command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# However the command ends, its server ends with it.
_SERVE: Final = (
    "import sys; from coe.engine.process import die_with; die_with(int(sys.argv.pop(1))); "
    "from coe.server.cli import main; main()"
)
_STOP_S: Final = 180.0  # it ends what it is doing first


class ServerStartError(Exception):
    """The server did not start; its own words, and what to do."""


@contextlib.contextmanager
def own_server(roster: Path) -> Iterator[str]:
    """The address of a `coe serve` for the roster, on a free port; it ends with the block.

    Raises ServerStartError where it ends instead of getting ready.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(os.getpid()), "serve", "--port", "0", "--roster", str(roster)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        try:
            address = _address(process)
            if address is None:
                log.seek(0)
                raise ServerStartError(f"The server did not start:\n{log.read().strip()}")
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _address(process: subprocess.Popen[str]) -> str | None:
    """What the server announces; None when it has ended."""
    assert process.stdout is not None
    for line in process.stdout:
        if " is ready at " in line:
            return line.rsplit(" ", 1)[-1].strip().removesuffix("/v1")
    process.wait()
    return None
