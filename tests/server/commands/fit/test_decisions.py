"""`coe fit`'s pure decisions: which experts are tried, how many residents fit, what the verdict says."""

from __future__ import annotations

import pytest

from coe.engine.pool.places import HOST, Memory
from coe.server.commands.fit.values import (
    Model,
    Need,
    Row,
    Table,
    Way,
    context_text,
    fits_always,
    most_experts,
    n_residents,
    parse_budget,
    titles,
)
from coe.server.commands.fit.verdict import verdict
from coe.server.roster.values import InvalidError
from fakes.pool_world import CARD, both, host

GIB = 2**30
SHORT, LONG = 16_384, 65_536
BUDGET = host(16 * GIB)
IQ4, Q4, Q8 = (
    Model(title, f"{title}.gguf", size * GIB, 128) for title, size in (("IQ4_XS", 13), ("Q4_K_M", 16), ("Q8_0", 26))
)


def row(model: Model, short: float, long: float | None = None, n_keep: int = 128, way: Way | None = None) -> Row:
    """Memory in GiB at both contexts; another GiB at the longer one where that is not given."""
    needs = {SHORT: Need(host(int(short * GIB))), LONG: Need(host(int((long or short + 1) * GIB)))}
    kept = way or (Way.WHOLE if n_keep == model.n_expert else Way.CUT)
    return Row(model, kept, n_keep, model.n_bytes * n_keep // max(1, model.n_expert), needs)


def said(*rows: Row, budget: Memory = BUDGET) -> str:
    return verdict(Table(budget, (SHORT, LONG), rows, on_gpu=False))


# --- counting -------------------------------------------------------------------------------------------------------


def test_residents_are_counted_where_they_lie() -> None:
    assert n_residents(Need(host(5)), host(16)) == 3
    assert n_residents(Need(host(17)), host(16)) == 0
    assert n_residents(Need(both(5, 4)), both(16, 9)) == 2, "host memory beside the card is the bound"
    assert n_residents(Need(both(5, 4)), both(16, 100)) == 3
    assert n_residents(Need(None), host(16)) == 0


def test_residents_that_may_go_to_any_card_are_counted_on_all_of_them() -> None:
    cards = Memory({"CUDA0": 16, "CUDA1": 8, HOST: 100})
    one = Memory({"CUDA0": 5, HOST: 1})
    assert n_residents(Need(one, cards=("CUDA0", "CUDA1")), cards) == 4
    assert n_residents(Need(one), cards) == 3
    assert n_residents(Need(Memory({"CUDA0": 12, "CUDA1": 5})), cards) == 1, "one that lies on both"


@pytest.mark.parametrize(
    ("need", "budget", "step", "most"),
    [
        (host(100), host(100), 1, 10),
        (host(100), host(96), 1, 9),
        (host(100), host(95), 1, 9),
        (host(100), host(94), 1, 8),
        (host(100), host(94), 4, 8),
        (host(100), host(1), 1, 0),
        (both(100, 3), both(90, 3), 1, 8),
        (None, host(100), 1, 0),
    ],
)
def test_the_sum_says_about_how_many_experts_fit(need: Memory | None, budget: Memory, step: int, most: int) -> None:
    assert most_experts(Need(need), budget, 5, 10, step) == most


def test_fewer_experts_than_a_sum_of_nothing_are_none() -> None:
    assert most_experts(Need(host(100)), host(50), 0, 10, 1) == 0


def test_a_row_fits_always_where_it_fits_with_the_longest_context() -> None:
    assert fits_always(row(IQ4, 14, 16), BUDGET)
    assert not fits_always(row(IQ4, 14, 17), BUDGET)


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (["gemma-4-26b-IQ4_XS.gguf", "gemma-4-26b-Q4_K_M.gguf"], ["IQ4_XS", "Q4_K_M"]),
        (["a/x-Q4.gguf", "a/x-Q8.gguf"], ["Q4", "Q8"]),
        (["x-Q4_K_M.gguf", "x-Q4_K_S.gguf"], ["Q4_K_M", "Q4_K_S"]),
        (["x.gguf", "x-Q8.gguf"], ["x", "x-Q8"]),
        (["one-Q4.gguf"], ["one-Q4"]),
        (["same.gguf", "same.gguf"], ["same", "same"]),
    ],
)
def test_titles_leave_out_what_all_begin_with(files: list[str], shown: list[str]) -> None:
    assert titles(files) == shown


def test_contexts_as_people_say_them() -> None:
    assert [context_text(tokens) for tokens in (16_384, 65_536, 1000)] == ["16k", "64k", "1000"]


# --- the verdict ----------------------------------------------------------------------------------------------------


def test_a_whole_parent_that_fits_is_said_first_and_a_college_saves_nothing() -> None:
    assert said(row(IQ4, 14, 15)) == (
        "IQ4_XS fits whole at 16k and 64k. For one model at a time serve it whole: a college saves nothing but memory "
        "that is there."
    )


def test_of_several_the_finest_that_fits_is_named() -> None:
    assert said(row(Q8, 27), row(Q4, 15.5), row(IQ4, 14)).startswith("Q4_K_M fits whole at 16k.")


def test_where_the_whole_fits_it_is_said_what_fewer_experts_give() -> None:
    line = said(
        row(IQ4, 14, 17),
        row(IQ4, 12, 15, n_keep=112),
        row(IQ4, 7.5, 10, n_keep=64),
        row(Q4, 17),
        row(Q4, 14, 15, n_keep=96),
    )
    assert line.startswith("IQ4_XS fits whole at 16k. For one model at a time serve it whole; a college pays")
    assert "112 of 128 experts in IQ4_XS leave room for 64k" in line
    assert "96 of 128 experts in Q4_K_M fit, finer weights of fewer experts" in line
    assert "64 of 128 experts in IQ4_XS fit 2 times" in line


def test_where_no_whole_parent_fits_the_most_experts_that_do_are_named() -> None:
    line = said(row(Q4, 17), row(Q4, 15, n_keep=112), row(Q4, 10, n_keep=64), row(Q8, 27), row(Q8, 15, n_keep=64))
    assert line == (
        "None of the models fits whole at 16k. 112 of 128 experts in Q4_K_M do: a college holds more of it than "
        "fits whole, or 64 of 128 experts in Q8_0, finer weights of fewer experts."
    )


def test_experts_in_host_memory_are_the_other_way() -> None:
    budget = both(16 * GIB, 64 * GIB)
    need = Need(Memory({CARD: 15 * GIB, HOST: 8 * GIB}), cpu_expert_layers=12)
    offloaded = Row(Q4, Way.OFFLOADED, 128, Q4.n_bytes, {SHORT: need, LONG: need})
    whole = Row(Q4, Way.WHOLE, 128, Q4.n_bytes, dict.fromkeys((SHORT, LONG), Need(Memory({CARD: 17 * GIB}))))
    assert said(whole, offloaded, budget=budget) == (
        "Q4_K_M does not fit whole at 16k. Q4_K_M with the experts of 12 layers in host memory does, slower."
    )


def test_where_nothing_fits_the_least_that_is_asked_for_is_told() -> None:
    line = said(row(Q8, 27), row(Q4, 18), row(Q4, 17, n_keep=64))
    assert line == "Nothing fits at 16k: 64 of 128 experts in Q4_K_M would take 17.00 GiB, and there are 16.00 GiB."


def test_a_dense_model_has_nothing_to_cut() -> None:
    dense = Model("qwen3-8b", "qwen3-8b.gguf", 5 * GIB, 0)
    assert said(row(dense, 6, n_keep=0, way=Way.WHOLE)) == (
        "qwen3-8b, whole and dense, fits at 16k and 64k. It has no experts to cut."
    )


TRAINED = Model("Q4_K_M", "Q4_K_M.gguf", 16 * GIB, 128, trained_tokens=SHORT)


def test_a_context_that_the_model_was_not_trained_for_is_neither_said_to_fit_nor_a_gain() -> None:
    assert said(row(TRAINED, 14, 15)).startswith("Q4_K_M fits whole at 16k. ")
    short_of_long = row(TRAINED, 14, 17), row(TRAINED, 12, 15, n_keep=112)
    assert "64k" not in said(*short_of_long)
    assert "64k" in said(row(Q4, 14, 17), row(Q4, 12, 15, n_keep=112))


def test_where_all_contexts_are_longer_than_it_was_trained_for_they_are_said_to_fit() -> None:
    barely = Model("Q4_K_M", "Q4_K_M.gguf", 16 * GIB, 128, trained_tokens=512)
    assert said(row(barely, 14, 15)).startswith("Q4_K_M fits whole at 16k and 64k.")


@pytest.mark.parametrize("text", ["0", "0 GiB", "1 B", "0.0001 GiB", "200 TiB", "-5 GiB", "16", "much"])
def test_a_budget_that_can_be_none_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(InvalidError) as raised:
        parse_budget(text)
    assert text in str(raised.value)
    assert "GiB`" in raised.value.remedy


@pytest.mark.parametrize(("text", "n_bytes"), [("1 MiB", 2**20), ("15GiB", 15 * GIB), (str(GIB), GIB)])
def test_a_budget_is_a_size_or_a_number_of_bytes(text: str, n_bytes: int) -> None:
    assert parse_budget(text) == n_bytes


def test_what_could_not_be_predicted_is_no_verdict() -> None:
    unknown = Row(Q4, Way.WHOLE, 128, Q4.n_bytes, {SHORT: Need(None), LONG: Need(None)})
    assert said(unknown) == "Nothing is known of what would fit."
    assert said() == "Nothing is known of what would fit."
