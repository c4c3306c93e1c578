"""Last words: the line in which a library says why it takes its process down, found among all that it printed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

MOST_CHARS: Final = 500  # of last words

# Errors of a GPU, which its backend tells before it ends the process. Source: ggml-cuda.cu, ggml_cuda_error (ROCm and
# MUSA are the same code under another name); ggml-vulkan.cpp; ggml-metal-context.m; vulkan.hpp, the exceptions' texts.
_OF_DEVICE: Final = re.compile(
    r"\b(CUDA|ROCm|MUSA) error: "
    r"|\bggml_vulkan: (device (lost|fault) on|error |Error: |Compute pipeline creation failed)"
    r"|\bggml_metal\w*: error: "
    r"|\bvk::\w[\w:]*: Error\w+"
)
# Memory that was refused, which need not be the end: some of it is asked for elsewhere then.
_REFUSED: Final = re.compile(r"cudaMalloc failed: |\bggml_vulkan: (Device memory|Memory) allocation of size")
# An assertion names the file by its path on the machine that compiled it; GGML_ABORT says no more than that and why.
_SOURCE: Final = re.compile(r"\S*?[^/\s]+\.(c|cc|cpp|cu|cuh|h|hpp|m|mm):\d+: ")
_SOURCE_FOLDER: Final = re.compile(r"\S*/(?=[^/\s]+:\d+: )")
# What a library prints when it takes its process down; what says more comes first.
_TELLING: Final = (
    _OF_DEVICE,
    re.compile(r"GGML_ASSERT|GGML_ABORT|ggml_abort"),
    re.compile(f"^{_SOURCE.pattern}"),
    re.compile(r"what\(\):"),
    _REFUSED,
    re.compile("Fatal Python error"),
    re.compile("MemoryError"),
)

# How a backend, and llama.cpp after it, say that a GPU has too little memory: for a buffer, or for its own runtime.
# Source: the backends' files above; llama-model.cpp and the memory modules, what they throw.
_NO_MEMORY: Final = re.compile(
    r"\b(CUDA|ROCm|MUSA) error: .*(out of memory|ALLOC_FAILED|MEMORY_ALLOCATION)"
    r"|ErrorOutOf(Device|Host)Memory"
    r"|\b(unable|failed) to allocate (?!CPU)\S+ buffer"
    r"|\bfailed to allocate (buffer for|compute) "
    r"|kIOGPUCommandBufferCallbackErrorOutOfMemory"
    f"|{_REFUSED.pattern}"
)


def is_device_error(line: str) -> bool:
    """Whether a GPU's backend says in this line that the GPU failed, or refused memory."""
    return bool(_OF_DEVICE.search(line) or _REFUSED.search(line))


def is_no_device_memory(words: str) -> bool:
    """Whether an error of a load on a GPU, or the last words of it, mean that the GPU's memory did not suffice."""
    return _NO_MEMORY.search(words) is not None


def telling_line(lines: Sequence[str]) -> str | None:
    """The line in which a library said why it takes the process down, None where there is none."""
    line = next((line for mark in _TELLING for line in reversed(lines) if mark.search(line)), None)
    if line is None:
        return None
    source = _SOURCE.search(line)
    return _SOURCE_FOLDER.sub("", line[:MOST_CHARS], count=1) if source is not None else line[:MOST_CHARS]


def last_words(output: bytes) -> str:
    """The most telling line of what a process printed, the last one where none stands out; "" for no output."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    return (telling_line(lines) or (lines[-1] if lines else ""))[:MOST_CHARS]
