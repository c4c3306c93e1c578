"""Clients in their default settings, each against one server whose model's template knows no tools.

Where an answer is compared with a second one, the question is one whose answer the model is sure of: llama.cpp rounds
by where in its cache a conversation lies, and of two words that are nearly as likely another comes then.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.server_process import ServerProcess, write_roster
from fakes.weight import brings


@pytest.fixture(scope="session")
@brings("server")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two specialists for `auto`, with a context for agents; the roster makes them greedy and short, for clients
    leave both to the server."""
    roomy = {"context_tokens": 8192, "cache_tokens": 16384, "sampling": {"temperature": 0}, "max_tokens": 96}
    specialists = {"general": roomy, "law": {**roomy, "domains": ["law"]}}
    with ServerProcess(write_roster(tmp_path_factory.mktemp("clients"), specialists, fallback="general")) as server:
        yield server


@pytest.fixture
def base_url(agents: ServerProcess) -> str:
    """What a client is told."""
    return f"{agents.url}/v1"


@pytest.fixture(scope="session")
@brings("server")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One with the sentence encoder on board, which clients may call by another name."""
    router = {"encoder_aliases": ["all-minilm"]}
    with ServerProcess(write_roster(tmp_path_factory.mktemp("encoding"), {"general": {}}, router=router)) as server:
        yield server
