"""Pages of the list of models, and what each can do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coe.server.api.models import _page, capabilities_of
from coe.server.runtime.errors import RequestError
from fakes.listed_college import Listed

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


@pytest.mark.parametrize(("infill", "told"), [(True, True), (False, False), (None, False)])
def test_who_fills_the_middle_says_so(infill: bool | None, told: bool) -> None:
    law = replace(Listed().catalog.availability["law"], infill=infill)
    assert ("insert" in capabilities_of(law)) is told
