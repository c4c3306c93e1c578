"""Weight scaling (the cards' alpha): the shared expert's contribution times a constant, in the weights themselves.

The cards scale the shared FFN's down projection. In llama.cpp's graph of Gemma 4 a norm follows it and divides the
factor out again, so it goes into that norm's weight instead (`Architecture.shared_output`). Elsewhere the projection's
output is added as it is, and the projection takes the factor: element by element, or for quantised blocks in the
16-bit factors that a block's values are all proportional to. Nothing is quantised anew: the factors round to 16 bits
once more, and the values keep their steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from ..errors import CutError

# Where a block keeps the 16-bit floats that all its values are proportional to, in bytes from its beginning.
# Source: ggml-common.h, block_q4_0 and following.
_FACTORS: Final[dict[Type, tuple[int, ...]]] = {
    Type.Q4_0: (0,),
    Type.Q4_1: (0, 2),
    Type.Q5_0: (0,),
    Type.Q5_1: (0, 2),
    Type.Q8_0: (0,),
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.IQ4_NL: (0,),
    Type.IQ4_XS: (0,),
    Type.IQ3_S: (0,),
    Type.IQ3_XXS: (0,),
    Type.IQ2_S: (0,),
    Type.IQ2_XS: (0,),
    Type.IQ2_XXS: (0,),
}
_PLAIN: Final = (Type.F32, Type.F16, Type.BF16)


def scaling(name: str, kind: Type, factor: float) -> Callable[[bytes], bytes]:
    """A function that multiplies whole blocks of a tensor, as they lie in the file, by the factor.

    Raises CutError for a factor that is not a positive number, and for a type whose factors are no 16-bit floats.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise CutError(f"{factor} cannot scale the shared expert.", "Give a positive number, for example 1.2.")
    if kind not in (*_FACTORS, *_PLAIN):
        raise CutError(
            f"{name} is of the type {kind.name}, which cannot be scaled without quantising it anew.",
            "Cut without a shared scale, or use a parent that holds this tensor in another type.",
        )

    factor = float(np.float32(factor))  # as a file can say it

    def scale(data: bytes) -> bytes:
        if kind == Type.F32:
            return bytes(_product(np.frombuffer(data, np.float32), factor, name))
        if kind == Type.F16:
            return bytes(_product(np.frombuffer(data, np.float16), factor, name))
        if kind == Type.BF16:
            wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
            product = _product(wide.view(np.float32), factor, name).view(np.uint32)
            # To the nearest, ties to even. Source: ggml-impl.h, ggml_compute_fp32_to_bf16.
            return bytes(((product + 0x7FFF + ((product >> 16) & 1)) >> 16).astype(np.uint16))
        blocks = np.frombuffer(data, np.uint8).reshape(-1, GGML_QUANT_SIZES[kind][1]).copy()
        for at in _FACTORS[kind]:
            factors = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)
            blocks[:, at : at + 2] = _product(factors, factor, name).view(np.uint8)
        return bytes(blocks)

    return scale


def _product(values: NDArray[Any], factor: float, name: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        product = (values.astype(np.float64) * factor).astype(values.dtype)
    if not np.isfinite(product[np.isfinite(values)]).all():
        raise CutError(f"{name} times {factor} leaves the range of its type.", "Give a smaller shared scale.")
    return product
