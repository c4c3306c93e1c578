"""A load for real: where its buffers lie, as llama.cpp logs them, and what its changes in place move."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.engine import child
from coe.engine.spec import LoadSpec
from coe.engine.worker import trial
from fakes.sharing_models import College

MIB = 2**20


def test_buffers_are_read_from_llama_cpps_own_lines() -> None:
    log = [
        "load_tensors:      Vulkan0 model buffer size =    10.50 MiB",
        "load_tensors:  Vulkan_Host model buffer size =     2.25 MiB",
        "llama_kv_cache:    Vulkan0 KV buffer size =     3.00 MiB",
        "llama_kv_cache:    Vulkan0 KV buffer size =     1.00 MiB",
        "llama_memory_recurrent:        CPU RS buffer size =     0.50 MiB",
        "sched_reserve:    Vulkan0 compute buffer size =     4.00 MiB",
        "llama_context:        CPU  output buffer size =     0.25 MiB",
        "llama_kv_cache: size =    4.00 MiB (   256 cells,   3 layers,  1/1 seqs)",
    ]
    assert trial.buffers_by_place(log) == {
        "Vulkan0": {"model": round(10.5 * MIB), "KV": 4 * MIB, "compute": 4 * MIB},
        "Vulkan_Host": {"model": round(2.25 * MIB)},
        "CPU": {"RS": MIB // 2, "output": MIB // 4},
    }


async def tried(spec: LoadSpec) -> dict[str, object]:
    answer = await child.run("coe.engine.worker.trial", {"spec": spec.to_json()}, title="A trial load")
    assert isinstance(answer, dict)
    return answer


@pytest.mark.model
async def test_a_model_by_itself_is_loaded_twice_and_changes_nothing(random_gemma4: Path) -> None:
    found = await tried(LoadSpec(random_gemma4, context_tokens=512, parallel=2, threads=1))
    assert {kind for kinds in found["buffers"].values() for kind in kinds} >= {"model", "KV", "compute"}  # type: ignore[attr-defined]
    assert found["changes"] == []
    assert found["load_s"] > 0  # type: ignore[operator]


@pytest.mark.model
async def test_each_specialist_is_changed_to_in_turns(tmp_path: Path) -> None:
    college = College.random(tmp_path, masks_only="c")
    found = await tried(college.spec("a"))
    assert len(found["changes"]) == 3 * 3  # type: ignore[arg-type]
    assert all(change["moved_bytes"] >= change["changed_bytes"] > 0 for change in found["changes"])  # type: ignore[attr-defined]
