"""Pages of the list of models."""

from __future__ import annotations

from typing import Any

import pytest

from coe.server.api.models import _page
from coe.server.runtime.errors import RequestError

IDS = ["auto", "general", "law", "math"]


@pytest.mark.parametrize(
    ("asked", "page", "more"),
    [
        ({}, IDS, False),
        ({"limit": "2"}, ["auto", "general"], True),
        ({"limit": "2", "after_id": "general"}, ["law", "math"], False),
        ({"after_id": "math"}, [], False),
        ({"limit": "2", "before_id": "math"}, ["general", "law"], True),
        ({"before_id": "auto"}, [], False),
        ({"limit": "1000"}, IDS, False),
    ],
)
def test_a_page(asked: dict[str, str], page: list[str], more: bool) -> None:
    assert _page(IDS, asked) == (page, more)


@pytest.mark.parametrize(
    "asked",
    [
        *({"limit": value} for value in ("0", "-1", "1001", "many", "", "²", "1e2")),
        {"after_id": "x"},
        {"before_id": ""},
    ],
)
def test_a_page_that_cannot_be_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as error:
        _page(IDS, asked)
    assert error.value.param in asked
