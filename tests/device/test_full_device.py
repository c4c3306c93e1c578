"""A device without room: what could not be had is said, and nothing else is blamed."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from random_model import Shape, write_random_model

from coe.engine.errors import EngineError, LoadError
from coe.engine.llama.model import Model
from coe.engine.pool.resident import WorkerResident
from coe.engine.spec import LoadSpec
from fakes.device import cards

pytestmark = [pytest.mark.device, pytest.mark.model]

GIB = 2**30


def more_than_there_is() -> int:
    """Bytes that no device here has. They are asked for in one piece: what is asked for in small ones is promised by a
    software device, and then taken of the host until nothing is left."""
    return 2 * max(max(card.total_bytes for card in cards()), 16 * GIB)


@pytest.fixture
def too_large(tmp_path: Path) -> Path:
    """A sound model of which one tensor is larger than any device: a file with a hole in its end."""
    small = write_random_model(tmp_path / "small.gguf", Shape(layers=2, full_attention_every=2))
    reader = gguf.GGUFReader(small)
    path = tmp_path / "large.gguf"
    writer = gguf.GGUFWriter(path, "gemma4")
    experts = Shape().experts
    rows = more_than_there_is() // (4 * experts * 2 * Shape().width) + 1
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, sub = field.types[0], field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        value = rows if field.name.endswith("expert_feed_forward_length") else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=sub)
    room = 4096
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        if tensor.name.endswith("ffn_gate_up_exps.weight"):
            shape[1] = 2 * rows
        elif tensor.name.endswith("ffn_down_exps.weight"):
            shape[2] = rows
        n_bytes = 4
        for size in shape:
            n_bytes *= size
        room += n_bytes + 32  # each begins at a multiple of that
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), n_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + room)
    return path


def test_weights_that_do_not_fit_are_no_damaged_file(too_large: Path) -> None:
    with pytest.raises(EngineError) as caught:
        Model(LoadSpec(too_large, context_tokens=256, parallel=1, threads=1, mmap=False))
    said = f"{caught.value.message} {caught.value.remedy}"
    assert "memory" in said
    assert "file is whole" not in said


async def test_a_worker_says_so_too_and_ends(too_large: Path) -> None:
    with pytest.raises(EngineError) as caught:
        await WorkerResident.start(LoadSpec(too_large, context_tokens=256, parallel=1, threads=1, mmap=False), {})
    said = f"{caught.value.message} {caught.value.remedy}"
    assert "memory" in said
    assert "file is whole" not in said


async def test_a_cache_that_does_not_fit_names_the_context(tmp_path: Path) -> None:
    shape = Shape(layers=2, full_attention_every=2, heads=64, kv_heads=64, head=256, context=2**20)
    path = write_random_model(tmp_path / "wide.gguf", shape)
    row = 2 * shape.kv_heads * shape.head  # bytes of a cell's keys
    cells = 256 * (more_than_there_is() // row // 256 + 1)
    with pytest.raises(LoadError, match=f"no context of {cells} tokens: no room on") as caught:
        await WorkerResident.start(LoadSpec(path, context_tokens=cells, parallel=1, threads=1), {})
    assert "context_tokens" in caught.value.remedy
