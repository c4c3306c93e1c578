"""The pool with specialists that share residents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from coe.engine.errors import LoadError, UnavailableError
from coe.engine.pool.placement import Distances
from coe.engine.pool.pool import Pool
from coe.engine.pool.types import Entry, PoolLimits
from coe.engine.spec import LoadSpec, Member, Sharing
from coe.engine.swap.plan import Pair
from fakes.pool_world import LONG_S, Clock, FakeLoader, ask, booked, host, turns

# court lies near law; poetry is another name for law's weights.
BYTES = {("law", "court"): 10, ("law", "math"): 50, ("court", "math"): 60}
BYTES |= {("law", "poetry"): 0, ("court", "poetry"): 10, ("math", "poetry"): 50}
DISTANCES = Distances([Pair(one, other, 0, changed) for (one, other), changed in BYTES.items()])
NAMES = ("law", "court", "math", "poetry")

NewPool = Callable[..., Pool]


def entries(names: Sequence[str] = NAMES, *, stamp: str = "", pinned: Sequence[str] = ()) -> dict[str, Entry]:
    """Specialists of 400 bytes a resident that all share, and "alone" that does not."""
    members = tuple(Member(name, Path(f"{name}.gguf"), stamp=stamp) for name in names)
    spec = LoadSpec(members[0].path, parallel=2, sharing=Sharing(members))
    shared = {name: Entry(spec, host(400), pinned=name in pinned, distances=DISTANCES) for name in names}
    return {**shared, "alone": Entry(LoadSpec(Path("alone.gguf"), parallel=2), host(400))}


@pytest.fixture
async def new_pool(loader: FakeLoader, clock: Clock) -> AsyncIterator[NewPool]:
    pools: list[Pool] = []

    def make(budget: int = 400, *, pinned: Sequence[str] = (), **settings: Any) -> Pool:
        pools.append(Pool(entries(pinned=pinned), PoolLimits(host(budget), **settings), loader, clock=clock))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()


async def used(pool: Pool, name: str) -> str:
    """Ask, and let go at once; gives how warm it was."""
    lease = await pool.lease(name, max_wait_s=LONG_S)
    lease.release()
    await turns()
    return lease.residency


def are(pool: Pool) -> list[str]:
    """What the residents are now."""
    return sorted(resident.specialist for resident in pool.status().residents)


async def test_one_resident_serves_them_all_and_says_how(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool()
    assert [await used(pool, name) for name in ("law", "law", "math", "court", "law")] == [
        "loaded", "warm", "swapped", "swapped", "swapped",
    ]  # fmt: skip
    assert loader.loads == ["law.gguf"]


async def test_the_resident_is_loaded_as_what_was_asked_for(new_pool: NewPool, loader: FakeLoader) -> None:
    assert await used(new_pool(), "math") == "loaded"
    assert loader.loads == ["math.gguf"]
    assert loader.specs[0].sharing is not None
    assert loader.specs[0].sharing.first == "math"


async def test_two_names_for_the_same_weights_need_no_swap(new_pool: NewPool) -> None:
    pool = new_pool()
    assert [await used(pool, name) for name in ("law", "poetry", "law")] == ["loaded", "warm", "warm"]


async def test_the_warm_specialist_is_what_the_resident_is_now(new_pool: NewPool) -> None:
    pool = new_pool()
    assert not pool.is_warm("law")
    await used(pool, "law")
    assert [name for name in NAMES if pool.is_warm(name)] == ["law", "poetry"]
    near, far, cold = (pool.ready_in_s(name) for name in ("court", "math", "alone"))
    assert 0 < near < far < cold


async def test_answers_of_other_specialists_are_no_reason_to_wait(new_pool: NewPool) -> None:
    pool = new_pool()
    first, second = [await pool.lease("law", max_wait_s=LONG_S) for _ in range(2)]
    others = [await pool.lease(name, max_wait_s=LONG_S) for name in ("math", "math", "court")]
    assert [lease.residency for lease in (first, second, *others)] == [
        "loaded", "warm", "swapped", "warm", "swapped",
    ]  # fmt: skip
    third = ask(pool, "poetry")
    await turns()
    assert not third.done(), "each of them has two places, and poetry is law"
    first.release()
    assert (await third).residency == "swapped"


async def test_no_more_residents_than_different_weights_however_many_come(
    new_pool: NewPool, loader: FakeLoader
) -> None:
    pool = new_pool(budget=10_000)
    held = [await pool.lease(name, max_wait_s=LONG_S) for name in (*NAMES, *reversed(NAMES))]
    for _ in range(5):
        for name in NAMES:
            await used(pool, name)
    assert len(loader.loads) == 3, "law and poetry are the same"
    for lease in held:
        lease.release()
    for name in NAMES:
        await used(pool, name)
    assert len(loader.loads) == 3


async def test_a_specialist_that_is_served_no_more_is_refused_and_its_resident_goes(new_pool: NewPool) -> None:
    pool = new_pool(pinned=["law"])
    held = await pool.lease("alone", max_wait_s=LONG_S)
    asked = ask(pool, "law")
    await turns()
    pool.serve({"alone": entries()["alone"]})
    with pytest.raises(UnavailableError):
        await asked
    held.release()
    pool.serve(entries(pinned=["law"]))
    (await pool.lease("law", max_wait_s=LONG_S)).release()
    pool.serve({"alone": entries()["alone"]})
    assert await used(pool, "alone") == "loaded", "a pin on what is gone holds no room"
    assert are(pool) == ["alone"]


async def test_with_room_to_spare_the_one_displaced_is_loaded_again(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool(budget=800)
    await used(pool, "law")
    loader.hold("law.gguf")
    assert await used(pool, "math") == "swapped", "no request waits for a load where a swap does"
    assert loader.loads == ["law.gguf", "law.gguf"]
    loader.release("law.gguf")
    await turns()
    assert are(pool) == ["law", "math"]
    assert await used(pool, "law") == "warm"
    assert await used(pool, "court") == "swapped"
    assert are(pool) == ["court", "math"], "the nearer one was changed"


async def test_a_conversation_goes_back_to_the_resident_that_has_read_it(new_pool: NewPool) -> None:
    pool = new_pool(budget=800)
    lease = await pool.lease("law", max_wait_s=LONG_S)
    home = lease.resident
    lease.release()
    assert await used(pool, "math") == "swapped"  # where law was; another becomes law meanwhile
    await turns()
    assert are(pool) == ["law", "math"]
    lease = await pool.lease("law", max_wait_s=LONG_S, read_by=home, read_s=1.0)
    assert (lease.resident, lease.residency) == (home, "swapped")
    lease.release()
    lease = await pool.lease("law", max_wait_s=LONG_S, read_by=home, read_s=0.0)
    assert lease.residency == "warm", "a conversation of nothing goes where it is quickest"
    lease.release()
    assert await pool.unload("law")
    lease = await pool.lease("law", max_wait_s=LONG_S, read_by=home, read_s=1.0)
    assert lease.residency == "loaded"
    lease.release()


async def test_a_conversation_moves_where_changes_are_slower_than_reading_it_again(
    new_pool: NewPool, loader: FakeLoader
) -> None:
    pool = new_pool(budget=800)
    lease = await pool.lease("law", max_wait_s=LONG_S)
    home = lease.resident
    loader.residents["law.gguf"].activity |= {"swaps": 2, "swapped_bytes": 100, "change_s": 5.0}
    lease.release()
    await used(pool, "math")
    await turns()
    assert are(pool) == ["law", "math"]
    for read_s, residency in ((4.0, "warm"), (6.0, "swapped")):
        lease = await pool.lease("law", max_wait_s=LONG_S, read_by=home, read_s=read_s)
        assert lease.residency == residency, "the change takes five seconds"
        lease.release()


async def test_no_more_residents_than_the_settings_say(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool(budget=10_000, most_shared=2)
    for name in ("law", "math", "court", "law", "math"):
        await used(pool, name)
    assert len(loader.loads) == 2
    assert booked(pool) == 800


async def test_a_resident_more_that_cannot_be_loaded_does_no_harm(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool(budget=800)
    await used(pool, "law")
    loader.failures["law.gguf"] = LoadError("no memory")
    assert await used(pool, "math") == "swapped"
    assert await used(pool, "court") == "swapped"
    assert await used(pool, "law") == "swapped"
    assert loader.loads == ["law.gguf", "law.gguf"], "and it is not tried again at once"
    assert pool.failed_loads == 1


async def test_others_take_the_room_of_the_least_recently_used(new_pool: NewPool) -> None:
    pool = new_pool(budget=800)
    await used(pool, "law")
    await used(pool, "math")
    assert are(pool) == ["law", "math"]
    await used(pool, "alone")
    assert len(pool.status().residents) == 2
    assert await used(pool, "court") == "swapped"


async def test_a_pinned_specialist_keeps_one_resident_in_memory(new_pool: NewPool) -> None:
    pool = new_pool(budget=800, pinned=["court"])
    await used(pool, "law")
    await used(pool, "math")
    assert [resident.pinned for resident in pool.status().residents] == [True, False]
    await used(pool, "alone")
    assert [resident.pinned for resident in pool.status().residents] == [True, False]


async def test_a_group_that_is_made_anew_takes_over_when_the_old_one_is_idle(
    new_pool: NewPool, loader: FakeLoader
) -> None:
    pool = new_pool(budget=800, most_shared=1)
    held = await pool.lease("law", max_wait_s=LONG_S)
    idle = await used(pool, "alone")
    assert idle == "loaded"
    pool.serve(entries(stamp="new"))
    asked = ask(pool, "math")
    await turns()
    assert (await asked).residency == "loaded"
    assert len(loader.loads) == 3
    held.release()
    await turns()
    assert are(pool) == ["math"], "the old one went with its last answer, and what was idle made room"


async def test_all_that_can_become_a_specialist_are_unloaded_together(new_pool: NewPool) -> None:
    pool = new_pool(budget=800)
    await used(pool, "law")
    await used(pool, "math")
    held = await pool.lease("math", max_wait_s=LONG_S)
    assert not await pool.unload("court")
    held.release()
    assert await pool.unload("court")
    assert not pool.is_resident("law")
    assert not await pool.unload("law"), "nothing is there any more"


async def test_names_for_one_load_are_warm_together(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool()
    spec = LoadSpec(Path("one.gguf"), parallel=2)
    pool.serve({name: Entry(spec, host(4)) for name in ("general", "poet")})
    assert [await used(pool, name) for name in ("general", "poet", "general")] == ["loaded", "warm", "warm"]
    assert pool.is_warm("poet")
    assert loader.loads == ["one.gguf"]
