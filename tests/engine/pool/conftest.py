"""A pool's world of fakes: what it loads, and its clock."""

from __future__ import annotations

import asyncio

import pytest

from fakes.pool_world import Clock, FakeLoader


@pytest.fixture
def loader() -> FakeLoader:
    """Starts residents that are none."""
    return FakeLoader()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The loop's timers go by it, too."""
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", clock.call_later)
    return clock
