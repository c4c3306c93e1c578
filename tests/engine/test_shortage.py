"""Want of memory, as it is read from logs, and who else holds a card."""

from __future__ import annotations

import os

import pytest

from coe.engine.cards import HOST
from coe.engine.errors import LoadError, OutOfMemoryError
from coe.engine.shortage import CardUser, Shortage, find_shortage, parse_users

MIB = 2**20


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [
                "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8192.00 MiB on device 0: cudaMalloc failed: "
                "out of memory",
                "alloc_tensor_range: failed to allocate CUDA0 buffer of size 8589934592",
                "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
            ],
            Shortage("CUDA0", 8192 * MIB),
        ),
        (
            [
                "ggml_vulkan: Device memory allocation of size 1048576 failed.",
                "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
                "ggml_gallocr_reserve_n_impl: failed to allocate Vulkan1 buffer of size 1048576",
                "llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers",
            ],
            Shortage("Vulkan1", MIB),
        ),
        (["ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory"], Shortage()),
        (
            [
                "ROCm error: out of memory",
                "  current device: 1, in function alloc at ggml-cuda.cu:489",
                "  hipMalloc(&ptr, size)",
            ],
            Shortage("ROCm1"),
        ),
        (["error: failed to allocate Metal buffer of 4096 bytes (out of memory)"], Shortage("", 4096)),
        (["failed to allocate MTL0_Private buffer of size 4096"], Shortage("MTL0", 4096)),
        (["failed to allocate CUDA_Host buffer of size 4096"], Shortage(HOST, 4096)),
        (["failed to allocate CPU_REPACK buffer of size 4096"], Shortage(HOST, 4096)),
        (["output_reserve: failed to allocate output buffer of size 64.00 MiB"], Shortage(HOST, 64 * MIB)),
        (["decode: failed to allocate graph"], Shortage()),
        (["error loading model: missing tensor 'blk.0.attn_k.weight'"], None),
        (["CUDA error: an illegal memory access was encountered", "  current device: 0, in function x"], None),
        ([], None),
    ],
)
def test_it_is_read_from_what_was_logged(lines: list[str], expected: Shortage | None) -> None:
    assert find_shortage(lines) == expected


def test_the_error_tells_what_was_asked_what_was_free_and_who_holds_it() -> None:
    shortage = Shortage("CUDA0", 8192 * MIB, 3072 * MIB)
    error = OutOfMemoryError.of("a.gguf cannot be loaded", shortage, [CardUser(7, "blender", 2048 * MIB)])
    assert isinstance(error, LoadError)
    assert error.message == (
        "a.gguf cannot be loaded: no room on CUDA0: a buffer of 8.00 GiB was asked for, and 3.00 GiB were free."
    )
    assert "blender (pid 7) holds 2.00 GiB" in str(error)
    assert "blender" not in error.message, "a client is not told of other programs"
    assert error.shortage == shortage


def test_of_host_memory_it_names_its_own_remedy() -> None:
    error = OutOfMemoryError.of("a.gguf cannot be loaded", Shortage(HOST, 4096))
    assert error.message == "a.gguf cannot be loaded: no room in host memory: a buffer of 4 KiB was asked for."
    assert "pool.host_budget" in error.remedy


@pytest.mark.parametrize(
    ("shortage", "had"),
    [
        (Shortage("CUDA0", 300, 100, need_bytes=900), 700),  # 600 were taken, and 100 left
        (Shortage("CUDA0", 300, 5000, need_bytes=900), 899),  # a driver that tells no free memory that moves
        (Shortage("CUDA0", 300, 100), None),
        (Shortage("CUDA0", 300, None, need_bytes=900), None),
    ],
)
def test_what_the_process_had_follows_from_what_it_lacked(shortage: Shortage, had: int | None) -> None:
    assert shortage.had_bytes == had


def test_other_processes_are_read_from_nvidia_smi() -> None:
    told = ["999999999, /opt/a, b/blender, 2048", "999999998, game.exe, [N/A]", "", "No running processes found"]
    first, second = parse_users(told)
    assert first == CardUser(999999999, "blender", 2048 * MIB)
    assert str(first) == "blender (pid 999999999) holds 2.00 GiB"
    assert str(second) == "game.exe (pid 999999998) uses it"


def test_a_process_is_known_by_its_own_name() -> None:
    (own,) = parse_users([f"{os.getpid()}, /somewhere/else, 1"])
    assert own.name not in ("", "else")
