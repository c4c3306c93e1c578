"""No child process outlives a parent that is killed: each kind of child is asked for as the project asks for it.

The child is made to wait where its work begins, on a file that is a FIFO: once both ends are open, it is at work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from fakes.child_modules import parent_process
from fakes.server_process import children_of, ended

# What the parent does, with the FIFO as `path`.
KINDS = {
    "the dry run of a load": """
        from coe.engine.pool.memory import predict
        from coe.engine.spec import LoadSpec
        asyncio.run(predict(LoadSpec(path)))
    """,
}


def dies_with_its_parent(program: str, fifo: Path, env: Mapping[str, str] | None = None) -> None:
    """Kill the parent once its child has opened the FIFO; returns when the child is gone."""
    beginning = f"import asyncio\nfrom pathlib import Path\npath = Path({str(fifo)!r})\n"
    os.mkfifo(fifo)
    with parent_process(beginning, program, env) as parent, fifo.open("wb"):  # opens when the child has
        (child,) = children_of(parent.pid)
        watched = os.pidfd_open(child)
        parent.kill()
        assert ended(watched), "the child would wait for the FIFO as long as it is open"
        os.close(watched)


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_dies_with_its_parent(kind: str, tmp_path: Path) -> None:
    dies_with_its_parent(KINDS[kind], tmp_path / "fifo.gguf")
