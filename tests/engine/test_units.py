from __future__ import annotations

import pytest

from coe.engine.units import size_text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 MiB"),
        (17, "17 bytes"),
        (148_000, "145 KiB"),
        (4_000_000, "3.8 MiB"),
        (650 * 2**20, "650 MiB"),
        (1020 * 2**20, "1.00 GiB"),
        (int(12.3 * 2**30), "12.30 GiB"),
        (-4_000_000, "-3.8 MiB"),
    ],
)
def test_a_size_is_as_people_read_it(n_bytes: int, text: str) -> None:
    assert size_text(n_bytes) == text
