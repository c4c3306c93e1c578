"""ggml's tensors as they lie in memory: the struct, held against the library before it is trusted, and its calls."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Final

from llama_cpp._ggml import libggml

from ..errors import LayoutError

F32: Final = 0  # ggml.h, enum ggml_type
F16: Final = 1
I32: Final = 26

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t


class GgmlTensor(ctypes.Structure):
    """Source: ggml.h, struct ggml_tensor, of the pinned version; `require_layout` holds it against the library."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class InitParams(ctypes.Structure):
    """Source: ggml.h, struct ggml_init_params."""

    _fields_ = (("mem_size", _size), ("mem_buffer", _pointer), ("no_alloc", ctypes.c_bool))


NAME_OFFSET: Final[int] = GgmlTensor.name.offset


def ggml_function(name: str, result: Any, *arguments: Any) -> Any:
    """One of ggml's functions with its types declared."""
    function = getattr(libggml, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


buffer_is_host: Final = ggml_function("ggml_backend_buffer_is_host", ctypes.c_bool, _pointer)
buffer_name: Final = ggml_function("ggml_backend_buffer_name", ctypes.c_char_p, _pointer)
n_bytes: Final = ggml_function("ggml_nbytes", _size, _pointer)
tensor_get: Final = ggml_function("ggml_backend_tensor_get", None, _pointer, _pointer, _size, _size)
tensor_set: Final = ggml_function("ggml_backend_tensor_set", None, _pointer, _pointer, _size, _size)


@functools.cache
def require_layout() -> None:
    """Raises LayoutError when the library's struct ggml_tensor is not the one declared here."""

    i64 = ctypes.c_int64
    new = ggml_function("ggml_new_tensor_2d", _pointer, _pointer, ctypes.c_int, i64, i64)
    view_2d = ggml_function("ggml_view_2d", _pointer, _pointer, _pointer, i64, i64, _size, _size)
    add = ggml_function("ggml_add", _pointer, _pointer, _pointer, _pointer)
    set_name = ggml_function("ggml_set_name", _pointer, _pointer, ctypes.c_char_p)
    context = ggml_function("ggml_init", _pointer, InitParams)(InitParams(2**16, None, False))
    whole = new(context, I32, 6, 5)
    view = view_2d(context, whole, 2, 5, 24, 4)
    total = add(context, view, view)
    set_name(view, b"view")
    tensor, seen, summed = (GgmlTensor.from_address(address) for address in (whole, view, total))
    agrees = (
        (tensor.type, tuple(tensor.ne), tuple(tensor.nb)) == (I32, (6, 5, 1, 1), (4, 24, 120, 120))
        and (tuple(seen.ne), seen.nb[1], seen.view_src, seen.view_offs) == ((2, 5, 1, 1), 24, whole, 4)
        and seen.data == tensor.data + 4
        and (summed.src[0], summed.src[1], summed.src[2]) == (view, view, None)
        and seen.name == b"view"
        and ggml_function("ggml_get_name", _pointer, _pointer)(view) == view + NAME_OFFSET
        and n_bytes(whole) == 120
    )
    ggml_function("ggml_free", None, _pointer)(context)
    if not agrees:
        raise LayoutError(
            "This build of llama.cpp lays its tensors out in another way than the one this program was written for.",
            "Install the pinned llama-cpp-python.",
        )
