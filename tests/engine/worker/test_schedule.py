"""What the batch loop does next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coe.engine.worker.schedule import (
    CacheView,
    Occupant,
    Placement,
    Room,
    Work,
    choose_slot,
    common_prefix,
    make_room,
    plan_step,
    reusable,
)

WORKS = st.lists(
    st.builds(
        Work,
        sequence=st.integers(0, 99),
        pending=st.integers(1, 700),
        boundary=st.integers(0, 700),
        scored=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda work: work.sequence,
)
OCCUPANTS = st.lists(
    st.builds(
        Occupant,
        slot=st.integers(0, 99),
        cells=st.integers(0, 100),
        busy=st.booleans(),
        age=st.integers(0, 10_000),
    ),
    max_size=8,
    unique_by=(lambda occupant: occupant.slot, lambda occupant: occupant.age),
)

HELD = st.lists(st.tuples(st.text("ab", max_size=8), st.booleans()), min_size=1, max_size=4)


def cache(slot: int, tokens: str, *, busy: bool = False, last_used: int = 0, **more: int) -> CacheView:
    return CacheView(slot, [ord(char) for char in tokens], busy, last_used, **more)


def ids(text: str) -> list[int]:
    return [ord(char) for char in text]


class TestPlanStep:
    def test_generating_sequences_go_before_prompts(self) -> None:
        works = [Work(0, pending=100), Work(1, pending=1), Work(2, pending=1)]
        assert plan_step(works, 10, 10) == [(1, 1), (2, 1), (0, 8)]

    def test_prompts_share_what_is_left_in_order(self) -> None:
        works = [Work(0, pending=6), Work(1, pending=6), Work(2, pending=6)]
        assert plan_step(works, 10, 10) == [(0, 6), (1, 4)]

    def test_a_short_prompt_does_not_wait_for_a_long_one_that_is_being_read(self) -> None:
        assert plan_step([Work(0, pending=20_000), Work(1, pending=50)], 512) == [(0, 462), (1, 50)]
        assert plan_step([Work(0, pending=20_000), Work(1, pending=50), Work(2, pending=1)], 512)[0] == (2, 1)

    def test_the_nearest_to_its_end_goes_first_and_the_oldest_has_its_share(self) -> None:
        works = [Work(0, pending=900), Work(1, pending=700), Work(2, pending=60), Work(3, pending=800)]
        assert plan_step(works, 100) == [(0, 25), (1, 15), (2, 60)]
        assert plan_step(works, 1) == [(0, 1)]

    def test_a_share_that_is_not_wanted_goes_to_the_others(self) -> None:
        assert plan_step([Work(0, pending=40, boundary=3), Work(1, pending=900)], 100) == [(0, 3), (1, 97)]

    def test_a_prompt_stops_at_its_boundary(self) -> None:
        assert plan_step([Work(0, pending=9, boundary=4)], 100, 1) == [(0, 4)]

    def test_a_passed_boundary_is_none(self) -> None:
        assert plan_step([Work(0, pending=9, boundary=0)], 100, 1) == [(0, 9)]

    @given(WORKS, st.integers(1, 64))
    def test_a_plan_fits_the_batch_and_never_exceeds_what_is_pending(self, works: list[Work], n_batch: int) -> None:
        plan = plan_step(works, n_batch, max(1, len(works)))
        pending = {work.sequence: work.pending for work in works}
        assert sum(count for _, count in plan) <= n_batch
        assert len({sequence for sequence, _ in plan}) == len(plan)
        assert all(1 <= count <= pending[sequence] for sequence, count in plan)

    @given(WORKS, st.integers(1, 64))
    def test_no_room_is_left_while_a_prompt_wants_it(self, works: list[Work], n_batch: int) -> None:
        wanted = sum(min(work.pending, work.boundary or work.pending) for work in works)
        assert sum(count for _, count in plan_step(works, n_batch)) == min(wanted, n_batch)

    @given(WORKS, st.integers(8, 64))
    def test_the_oldest_prompt_is_read_on_whoever_comes(self, works: list[Work], n_batch: int) -> None:
        plan = dict(plan_step(works, n_batch))
        prompts = [work for work in works if work.pending > 1]
        if prompts:
            room = n_batch - (len(works) - len(prompts))
            oldest = prompts[0]
            share = min(oldest.pending, oldest.boundary or oldest.pending, room / 4)
            assert plan.get(oldest.sequence, 0) >= share

    @given(WORKS, st.integers(1, 64))
    def test_there_is_always_something_to_do_while_something_is_pending(self, works: list[Work], n_batch: int) -> None:
        assert bool(plan_step(works, n_batch, max(1, len(works)))) == bool(works)

    @given(WORKS, st.integers(8, 64))
    def test_no_stream_stalls_while_a_prompt_is_read(self, works: list[Work], n_batch: int) -> None:
        planned = {sequence for sequence, _ in plan_step(works, n_batch, max(1, len(works)))}
        assert {work.sequence for work in works if work.pending == 1} <= planned

    def test_a_scored_prompt_goes_by_outputs_and_leaves_the_rest_of_the_batch_to_others(self) -> None:
        works = [Work(0, pending=100, scored=True), Work(1, pending=1), Work(2, pending=50)]
        assert plan_step(works, 64, 9) == [(1, 1), (0, 7), (2, 50)], "the last of 50 wants an output, too"
        assert plan_step(works, 64, 200) == [(1, 1), (0, 16), (2, 47)]

    def test_of_two_scored_prompts_the_oldest_has_a_share_and_the_nearest_the_rest(self) -> None:
        works = [Work(0, pending=100, scored=True), Work(1, pending=40, scored=True)]
        assert plan_step(works, 64, 32) == [(0, 8), (1, 24)]

    @given(WORKS, st.integers(1, 64), st.integers(0, 64))
    def test_no_more_logits_are_wanted_than_there_is_room_for(self, works: list[Work], n_batch: int, more: int) -> None:
        n_outputs = max(1, len(works)) + more
        by_sequence = {work.sequence: work for work in works}
        plan = plan_step(works, n_batch, n_outputs)
        outputs = [count if by_sequence[at].scored else int(count == by_sequence[at].pending) for at, count in plan]
        assert sum(outputs) <= n_outputs


class TestReusable:
    def test_the_shared_beginning_is_reused(self) -> None:
        assert reusable(ids("abcx"), cache(0, "abcdef")) == (3, False)

    def test_one_token_is_always_left_to_evaluate(self) -> None:
        assert reusable(ids("abc"), cache(0, "abc")) == (2, False)
        assert reusable(ids("a"), cache(0, "abc")) == (0, False)

    def test_going_on_needs_nothing_of_a_sliding_window(self) -> None:
        view = cache(0, "abcdef", forgotten_before=4, window=2)
        assert reusable(ids("abcdefgh"), view) == (6, False)

    def test_going_back_needs_the_window_before_that_position(self) -> None:
        tokens, prompt = "abcdefghij", ids("abcdefX")  # shares 6; a window of 2 needs positions from 4 on
        assert reusable(prompt, cache(0, tokens, forgotten_before=4, window=2)) == (6, False)
        assert reusable(prompt, cache(0, tokens, forgotten_before=5, window=2)) == (0, False)

    def test_a_checkpoint_brings_back_what_was_forgotten(self) -> None:
        view = cache(0, "abcdefghij", forgotten_before=8, window=2, checkpoint=5)
        assert reusable(ids("abcdefX"), view) == (5, True)

    def test_a_checkpoint_behind_the_shared_part_is_no_use(self) -> None:
        view = cache(0, "abcdefghij", forgotten_before=8, window=2, checkpoint=7)
        assert reusable(ids("abcdefX"), view) == (0, False)

    def test_a_recurrent_state_is_only_good_at_its_end(self) -> None:
        state = cache(0, "abc", forgotten_before=2, window=1)
        assert reusable(ids("abcd"), state) == (3, False)
        assert reusable(ids("abX"), state) == (0, False)


class TestChooseSlot:
    def test_a_conversation_that_goes_on_takes_its_own_cells(self) -> None:
        caches = [cache(0, "other talk", last_used=1), cache(1, "hello there", last_used=2)]
        assert choose_slot(ids("hello there, again"), caches) == Placement(1, reused=11)

    def test_a_shared_system_prompt_is_copied_and_its_conversation_left_alone(self) -> None:
        caches = [cache(0, "system: " + "long talk of one person", last_used=9), cache(1, "unrelated", last_used=3)]
        assert choose_slot(ids("system: another"), caches) == Placement(1, reused=8, copy_from=0)

    def test_an_empty_slot_is_taken_before_a_conversation_is_lost(self) -> None:
        caches = [cache(0, "a conversation", last_used=1), cache(1, "", last_used=7)]
        assert choose_slot(ids("new"), caches) == Placement(1, reused=0)

    def test_the_least_recently_used_conversation_is_lost_first(self) -> None:
        caches = [cache(0, "one", last_used=5), cache(1, "two", last_used=2), cache(2, "three", last_used=8)]
        assert choose_slot(ids("new"), caches) == Placement(1, reused=0)

    def test_cells_are_copied_from_a_busy_slot_too(self) -> None:
        caches = [cache(0, "system: asked", busy=True), cache(1, "")]
        assert choose_slot(ids("system: more"), caches) == Placement(1, reused=9 - 1, copy_from=0)

    def test_nothing_is_copied_for_a_prompt_that_may_not_share(self) -> None:
        caches = [cache(0, "system: asked", busy=True), cache(1, "")]
        assert choose_slot(ids("system: more"), caches, share=False) == Placement(1, reused=0)

    def test_nothing_is_copied_that_only_a_checkpoint_could_bring_back(self) -> None:
        donor = cache(0, "system: asked and answered", busy=True, forgotten_before=20, window=2, checkpoint=8)
        assert choose_slot(ids("system: more"), [donor, cache(1, "")]) == Placement(1, reused=0)

    def test_there_is_no_place_while_all_are_busy(self) -> None:
        assert choose_slot(ids("x"), [cache(0, "a", busy=True), cache(1, "", busy=True)]) is None

    @given(
        st.lists(st.tuples(st.text("ab", max_size=8), st.booleans()), min_size=1, max_size=4), st.text("ab", min_size=1)
    )
    def test_a_placement_is_idle_and_what_it_reuses_is_really_there(
        self, held: list[tuple[str, bool]], prompt: str
    ) -> None:
        caches = [cache(i, tokens, busy=busy, last_used=i) for i, (tokens, busy) in enumerate(held)]
        placement = choose_slot(ids(prompt), caches)
        if placement is None:
            assert all(busy for _, busy in held)
            return
        source = caches[placement.slot if placement.copy_from is None else placement.copy_from]
        assert not caches[placement.slot].busy
        assert placement.reused < len(prompt)
        assert placement.reused <= common_prefix(ids(prompt), list(source.tokens))


class TestMakeRoom:
    def test_nothing_goes_while_there_is_room(self) -> None:
        assert make_room(10, [Occupant(0, 50, False, 1), Occupant(1, 40, True, 2)], 100) == Room((), ())

    def test_idle_caches_go_first_the_least_recently_used_before_the_others(self) -> None:
        occupants = [Occupant(0, 30, False, 9), Occupant(1, 30, False, 2), Occupant(2, 40, True, 1)]
        assert make_room(20, occupants, 100) == Room(drop=(1,), preempt=())

    def test_then_the_youngest_sequences_go(self) -> None:
        occupants = [Occupant(0, 40, True, 1), Occupant(1, 30, True, 3), Occupant(2, 30, True, 2)]
        assert make_room(10, occupants, 100) == Room(drop=(), preempt=(1,))

    def test_a_newcomer_preempts_none(self) -> None:
        occupants = [Occupant(0, 40, True, 1), Occupant(1, 50, True, 3)]
        assert make_room(20, occupants, 100, preempt=False) is None

    @given(st.integers(0, 200), OCCUPANTS, st.integers(0, 300))
    def test_what_is_left_fits_and_the_oldest_sequence_stays(
        self, need: int, occupants: list[Occupant], cells: int
    ) -> None:
        room = make_room(need, occupants, cells)
        busy = sorted((o for o in occupants if o.busy), key=lambda o: o.age)
        if room is None:
            assert need + sum(o.cells for o in busy[:1]) > cells
            return
        gone = {*room.drop, *room.preempt}
        assert need + sum(o.cells for o in occupants if o.slot not in gone) <= cells
        assert not any(o.slot in room.preempt for o in busy[:1])
        assert not any(o.slot in room.drop for o in busy)

    @given(st.lists(st.integers(0, 50), max_size=200), st.integers(0, 200))
    def test_the_common_prefix_is_found(self, tokens: list[int], at: int) -> None:
        other = [*tokens[:at], -1, *tokens[at:]]
        assert common_prefix(tokens, other) == min(at, len(tokens))
