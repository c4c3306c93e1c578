"""Matrices that no card multiplies by: llama.cpp leaves them in host memory without a word, whatever it is told.

A Vulkan device takes no tensor beyond a size of its own (maxStorageBufferRange, maxBufferSize). llama.cpp asks each
device before it places a weight, by an operation of a whole batch with it, and this asks in the same way.
Source: llama-model-loader.cpp, weight_buft_supported; ggml-vulkan.cpp, ggml_backend_vk_device_supports_op.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

from .devices import card_handles
from .ggml import F32, I32, InitParams, ggml_function

_pointer, _i64 = ctypes.c_void_p, ctypes.c_int64
_init: Final = ggml_function("ggml_init", _pointer, InitParams)
_free: Final = ggml_function("ggml_free", None, _pointer)
_new: Final = ggml_function("ggml_new_tensor_3d", _pointer, _pointer, ctypes.c_int, _i64, _i64, _i64)
_multiply: Final = ggml_function("ggml_mul_mat", _pointer, _pointer, _pointer, _pointer)
_multiply_chosen: Final = ggml_function("ggml_mul_mat_id", _pointer, _pointer, _pointer, _pointer, _pointer)
_supports: Final = ggml_function("ggml_backend_dev_supports_op", ctypes.c_bool, _pointer, _pointer)

_TOKENS: Final = 512  # of the batch that llama.cpp asks for
# Every Vulkan device takes so much of a tensor. Source: Vulkan, Required Limits, maxStorageBufferRange.
_ALWAYS_BYTES: Final = 2**27
_ROOM: Final = 2**14  # for four tensors without their data


def is_refused(kind: int, shape: Sequence[int], n_bytes: int, n_experts_used: int, named: Sequence[str] = ()) -> bool:
    """Whether none of the cards (see `devices.card_handles`) multiplies by a matrix; False where there is no card.

    kind: ggml's number of its type. shape: in ggml's order; a third dimension is of experts, as many of which are used
    for a token. n_bytes: of the matrix.
    """
    if len(shape) not in (2, 3):
        return False
    n_used = max(1, n_experts_used)
    result_bytes = 4 * shape[1] * _TOKENS * (n_used if len(shape) == 3 else 1)
    if max(n_bytes, result_bytes) <= _ALWAYS_BYTES:
        return False
    handles = card_handles(named)
    return bool(handles) and not any(takes(handle, kind, shape, n_used) for handle in handles)


def takes(handle: Any, kind: int, shape: Sequence[int], n_used: int) -> bool:
    """Whether a device (ggml_backend_dev_t) multiplies a batch by a matrix, or by those of each token's experts."""
    width, rows, *experts = shape
    context = _init(InitParams(_ROOM, None, True))
    try:
        matrix = _new(context, kind, width, rows, *(experts or [1]))
        if experts:
            chosen = _new(context, I32, n_used, _TOKENS, 1)
            operation = _multiply_chosen(context, matrix, _new(context, F32, width, n_used, _TOKENS), chosen)
        else:
            operation = _multiply(context, matrix, _new(context, F32, width, _TOKENS, 1))
        return bool(_supports(handle, operation))
    finally:
        _free(context)
