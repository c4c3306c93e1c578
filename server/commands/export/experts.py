"""What `cpu_expert_layers: auto` comes to on this machine for a file that is loaded by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

from coe.engine.errors import EngineError
from coe.engine.pool.memory import Prediction
from coe.engine.spec import LoadSpec

from ...roster.models import Roster, Specialist
from ...runtime.budget import find_room
from ...runtime.fitting import load_by_itself
from .values import AutoExperts


def auto_experts(roster: Roster, specialist: Specialist, file: Path) -> AutoExperts:
    """By dry runs, each of some seconds, with the GPU memory that the roster's budget has now."""

    async def found() -> tuple[LoadSpec, Prediction]:
        return await load_by_itself(specialist, file, (await find_room(roster)).residents)

    try:
        load, prediction = asyncio.run(found())
    except EngineError as error:
        return AutoExperts(why=error.message.rstrip("."))
    if not prediction.on_gpu and specialist.gpu_layers:
        return AutoExperts(why="this machine has no GPU")
    return AutoExperts(load.cpu_expert_layers)
