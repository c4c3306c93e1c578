"""What is kept of answers: whose it is, and when it goes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from coe.server.api.responses.store import ResponseStore, Stored, size_of

ANNA, BERT = b"anna", b"bert"


def stored(name: str, text: str = "Hi", size: int = 100) -> Stored:
    output = [{"id": f"msg_{name}", "type": "message", "content": text}]
    return Stored({"id": name, "output": output}, [{"role": "user", "content": "Hello"}], size)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def store(**bounds: Any) -> ResponseStore:
    return ResponseStore(bounds.pop("max_bytes", 2**20), **bounds)


def test_what_was_put_is_found_by_its_owner_alone() -> None:
    kept = store()
    assert kept.put(ANNA, stored("a"))
    found = kept.get(ANNA, "a")
    assert found is not None
    items, size = found.conversation
    assert [item.get("id") for item in items] == [None, "msg_a"]
    assert size == 100 + size_of(found.response["output"])
    assert kept.get(BERT, "a") is None
    assert kept.item(ANNA, "msg_a") == found.response["output"][0]
    assert kept.item(BERT, "msg_a") is None
    assert not kept.delete(BERT, "a")
    assert kept.get(ANNA, "a") is not None


def test_what_was_deleted_is_gone_with_its_items() -> None:
    kept = store()
    kept.put(ANNA, stored("a"))
    assert kept.delete(ANNA, "a")
    assert (kept.get(ANNA, "a"), kept.item(ANNA, "msg_a"), kept.n_bytes, len(kept)) == (None, None, 0, 0)
    assert not kept.delete(ANNA, "a")


def test_the_least_recently_used_goes_first() -> None:
    kept = store(max_responses=2)
    for name in ("a", "b"):
        kept.put(ANNA, stored(name))
    kept.get(ANNA, "a")
    kept.put(ANNA, stored("c"))
    assert [kept.get(ANNA, name) is not None for name in "abc"] == [True, False, True]
    assert kept.item(ANNA, "msg_b") is None


def test_after_its_age_it_is_gone() -> None:
    clock = Clock()
    kept = store(max_age_s=10, clock=clock)
    kept.put(ANNA, stored("a"))
    clock.now_s = 9
    kept.put(ANNA, stored("b"))
    assert kept.get(ANNA, "a") is not None
    clock.now_s = 10
    assert kept.get(ANNA, "a") is None
    assert len(kept) == 1


def test_what_is_larger_than_the_store_is_not_kept_and_costs_nothing_else_its_place() -> None:
    kept = store(max_bytes=10_000)
    kept.put(ANNA, stored("a"))
    assert not kept.put(ANNA, stored("b", "x" * 10_000))
    assert not kept.put(ANNA, stored("c", size=10_000))
    assert kept.get(ANNA, "a") is not None
    assert not ResponseStore(0).put(ANNA, stored("a", size=0))


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from([ANNA, BERT]), st.integers(0, 6000))))
def test_it_never_holds_more_than_it_may_and_counts_what_it_holds(puts: list[tuple[str, bytes, int]]) -> None:
    kept = ResponseStore(10_000, max_responses=3)
    for number, (name, owner, size) in enumerate(puts):
        if number % 4 == 3:
            kept.delete(owner, f"{name}{number - 1}")
        kept.put(owner, stored(f"{name}{number}", size=size))
        assert kept.n_bytes <= 10_000
        assert len(kept) <= 3
    for number, (name, owner, _) in enumerate(puts):
        kept.delete(owner, f"{name}{number}")
    assert (kept.n_bytes, len(kept)) == (0, 0)


def test_a_size_counts_all_that_is_in_a_value() -> None:
    assert size_of({"a": ["x" * 1000]}) > 1000
    assert size_of({"a": ["é" * 1000, {"b": "y" * 500}]}) > size_of({"a": ["é" * 1000]}) + 500
