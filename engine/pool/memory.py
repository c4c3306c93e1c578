"""What residents will take, asked of dry runs; and what is free now."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import EngineError, ModelFileError
from ..spec import Footprint, LoadSpec, Thinking

_PROBE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Prediction:
    """A dry run's result. refused: thinking policies the model cannot carry out, name -> why."""

    footprint: Footprint
    refused: Mapping[str, str]


async def _probe(job: Mapping[str, Any], what: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "coe.engine.worker.probe",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is the server's to answer, not a dry run's
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(json.dumps(job).encode()), _PROBE_TIMEOUT_S)
    except TimeoutError:
        raise ModelFileError(f"A dry run of {what} did not end in {_PROBE_TIMEOUT_S:.0f} s.") from None
    finally:
        if process.returncode is None:
            process.kill()
    last = (err.decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
    if process.returncode and process.returncode < 0:
        raise ModelFileError(
            f"llama.cpp crashed on a dry run of {what} (signal {-process.returncode}): {last}",
            "The file is damaged, or of a kind that this llama.cpp cannot run.",
        )
    if process.returncode or not out:
        raise EngineError(f"The dry run of {what} failed (exit {process.returncode}): {last}", "Run coe doctor.")
    answer: dict[str, Any] = json.loads(out)
    if "error" in answer:
        kind = getattr(errors, answer["error"], EngineError)
        raise kind(answer["message"], answer["remedy"])
    return answer


async def predict(spec: LoadSpec, policies: Mapping[str, Thinking] | None = None) -> Prediction:
    """What loading a spec would take, and whether its thinking policies hold; nothing is loaded.

    Raises ModelFileError when the file cannot be loaded at all.
    """
    asked = {name: asdict(policy) for name, policy in (policies or {}).items()}
    answer = await _probe({"spec": spec.to_json(), "policies": asked}, spec.path.name)
    sizes = {**answer["footprint"], "notes": tuple(answer["footprint"]["notes"])}
    return Prediction(Footprint(**sizes), answer["refused"])


async def free_device_bytes() -> int | None:
    """Free memory of the GPUs as another process sees it, None without a GPU."""
    answer = await _probe({}, "the devices")
    gpus = [device for device in answer["devices"] if device["kind"] == "gpu"]
    return sum(device["free_bytes"] for device in gpus) if gpus else None


def available_host_bytes() -> int:
    """Host memory that can be had without swapping. Source: /proc/meminfo, MemAvailable."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise EngineError("This system does not say how much memory it has.", "Set pool.vram_budget in the roster.")


async def budget_bytes(asked: int | None, margin_bytes: int) -> tuple[int, str]:
    """The budget and where it comes from: the roster's figure, or what is free now less a margin."""
    if asked is not None:
        return asked, "set in the roster"
    free = await free_device_bytes()
    if free is not None:
        return max(0, free - margin_bytes), "free GPU memory less the margin"
    host = await asyncio.get_running_loop().run_in_executor(None, available_host_bytes)
    return max(0, host - margin_bytes), "available host memory less the margin; no GPU was found"
