"""No child process outlives a parent that is killed: each kind of child is asked for as the project asks for it.

The child waits where its work begins, on an input file that is a FIFO: once both ends are open, it is at work.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml

from coe.surgery.parent import Parent
from fakes.child_modules import KilledParent
from fakes.random_moe import write_random_moe

pytestmark = pytest.mark.slow

WRITTEN = ("quantising",)  # kinds of which the FIFO is the output: it holds 64 KiB

BEGINNING = """
import asyncio
from pathlib import Path
from coe.engine.spec import LoadSpec
path, folder = Path({fifo!r}), Path({folder!r})
"""

# What the parent does, with the FIFO as `path`.
KINDS = {
    "the dry run of a load": """
        from coe.engine.pool.memory import predict
        asyncio.run(predict(LoadSpec(path)))
    """,
    "the check of a build": """
        from coe.server.runtime.builds.process import prepare
        from coe.surgery.build.job import BuildOrder, Job, Machine
        order = BuildOrder("small", path, corpus=("law.txt",), experts=4, out=path.with_name("small.gguf"))
        asyncio.run(prepare(Job.of(path.parent, "small"), order, Machine(), None))
    """,
    "a build": """
        from coe.server.runtime.builds.process import BuildProcess
        from coe.surgery.build.job import BuildOrder, Job, Machine
        order = BuildOrder("small", path, corpus=("law.txt",), experts=4, out=path.with_name("small.gguf"))
        job = Job.of(path.parent, "small")
        job.write_order(order, Machine())
        asyncio.run(BuildProcess(job).run())
    """,
    "reading headers for groups": """
        from coe.engine.swap.groups import Contender, find_groups
        asyncio.run(find_groups([Contender("a", LoadSpec(path))]))
    """,
    "hashing": """
        from coe.server.runtime.hashing import Hashing
        async def hash():
            work = Hashing([path], lambda: False)
            work.start()
            await work.wait()
        asyncio.run(hash())
    """,
    "making specialists of masks": """
        from coe.server.roster.load import load_roster
        from coe.server.runtime.mask_models import prepare_masks
        asyncio.run(prepare_masks(load_roster(folder / "roster.yaml")))
    """,
    "quantising": """
        from coe.surgery.cut.quantize import quantize_file
        quantize_file(folder / "parent.gguf", path, "Q8_0")
    """,
    "the agreement of two models": """
        from coe.surgery.verify.agreement import agree_apart
        agree_apart(path, path, {})
    """,
    "a server for one command": """
        from coe.server.commands._server import own_server
        with own_server(path):
            pass
    """,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a roster of one mask, which is the FIFO, and its parent."""
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf"))
    entry = {"name": "law", "mask": "fifo", "domains": ["law"], "context_tokens": 256}
    roster = {"version": 1, "router": {"encoder": "none"}, "parent": {"model": "random", "file": str(parent.path)}}
    (tmp_path / "roster.yaml").write_text(yaml.safe_dump({**roster, "specialists": [entry]}))
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_dies_with_its_parent(kind: str, folder: Path) -> None:
    fifo = folder / "fifo"
    beginning = BEGINNING.format(fifo=str(fifo), folder=str(folder))
    with contextlib.closing(KilledParent(fifo, beginning, KINDS[kind], written=kind in WRITTEN)) as parent:
        assert not parent.child_outlives()
