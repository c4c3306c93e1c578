"""Last words: which of a process's lines says why it ended."""

from __future__ import annotations

import pytest

from coe.engine.last_words import is_device_error, last_words


def test_the_most_telling_line_is_the_last_word() -> None:
    assert last_words(b"x.c: GGML_ASSERT(x)\nFatal Python error: Aborted\n  File 'y'\n") == "x.c: GGML_ASSERT(x)"
    assert last_words(b"one\n\n two \n\n") == "two"
    assert last_words(b"") == ""


def test_a_source_file_is_named_without_the_folders_of_who_compiled_it() -> None:
    output = b"/tmp/build-1/ggml/src/ggml.c:1814: GGML_ASSERT(o) failed"
    assert last_words(output) == "ggml.c:1814: GGML_ASSERT(o) failed"
    assert last_words(b"[x] a/b.gguf: GGML_ASSERT(a/b) failed") == "[x] a/b.gguf: GGML_ASSERT(a/b) failed"
    output = b"/w/src/ggml-cuda.cu:1664: fatal error\nFatal Python error: Aborted\n  File /x/y.py, line 3"
    assert last_words(output) == "ggml-cuda.cu:1664: fatal error"


@pytest.mark.parametrize(
    ("output", "word"),
    [
        (
            "CUDA error: an illegal memory access was encountered\n  current device: 0, in function sync at a.cu:9\n"
            "  cudaStreamSynchronize(s)\n/w/ggml-cuda.cu:109: CUDA error\nFatal Python error: Aborted",
            "CUDA error: an illegal memory access was encountered",
        ),
        ("ROCm error: out of memory\n/w/ggml-cuda.cu:109: ROCm error", "ROCm error: out of memory"),
        ("MUSA error: unknown\n/w/ggml-cuda.cu:109: MUSA error", "MUSA error: unknown"),
        (
            "ggml_vulkan: Device memory allocation of size 1073741824 failed.\nggml_vulkan: Requested buffer",
            "ggml_vulkan: Device memory allocation of size 1073741824 failed.",
        ),
        ("ggml_vulkan: device lost on NVIDIA H9\nterminate called", "ggml_vulkan: device lost on NVIDIA H9"),
        (
            "terminate called after throwing an instance of 'vk::OutOfDeviceMemoryError'\n"
            "  what():  vk::Device::allocateMemory: ErrorOutOfDeviceMemory\nFatal Python error: Aborted",
            "what():  vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        ),
        (
            "ggml_metal_synchronize: error: command buffer 0 failed with status 5\nlast",
            "ggml_metal_synchronize: error: command buffer 0 failed with status 5",
        ),
    ],
)
def test_an_error_of_a_gpu_says_more_than_what_follows_from_it(output: str, word: str) -> None:
    assert last_words(output.encode()) == word
    assert is_device_error(word)


@pytest.mark.parametrize(
    "line", ["ggml_vulkan: Found 1 Vulkan devices:", "ggml_cuda_init: found 1 CUDA devices", "error loading model"]
)
def test_what_a_backend_tells_in_passing_is_no_error_of_a_gpu(line: str) -> None:
    assert not is_device_error(line)
