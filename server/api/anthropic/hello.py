"""What Anthropic's agents ask of a server before they know anything of it: whether it is there."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI

from ..openapi import gives
from .described import ERROR

HELLO_PATH: Final = "/api/hello"


def add_hello(app: FastAPI) -> None:
    """Serve the path; no key is wanted."""

    @app.get(HELLO_PATH, responses=gives({"type": "object"}, ERROR))
    async def hello() -> dict[str, str]:
        """It is there."""
        return {"message": "hello"}
