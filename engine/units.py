"""Numbers as people read them."""

from __future__ import annotations

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30


def size_text(n_bytes: int) -> str:
    """`12.30 GiB`, `620 MiB`, `3.8 MiB`, `144 KiB`, `17 bytes`, `0 MiB`; a difference keeps its sign."""
    size = abs(n_bytes)
    sign = "-" if n_bytes < 0 else ""
    if size >= 1000 * _MIB:
        return f"{sign}{size / _GIB:.2f} GiB"
    if size >= 10 * _MIB or not size:
        return f"{sign}{size / _MIB:.0f} MiB"
    if size >= _MIB:
        return f"{sign}{size / _MIB:.1f} MiB"
    return f"{sign}{size / _KIB:.0f} KiB" if size >= _KIB else f"{sign}{size} bytes"
