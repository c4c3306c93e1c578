"""The decision itself: plain calls over plain values."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.router.choose import Candidate, NoSpecialist, SupervisorSettings, choose, first_token_s, serving

MATH = Candidate("math", ("math",), order=0)
PHYSICS = Candidate("physics", ("physics",), order=1)
CODER = Candidate("coder", ("coding", "python"), order=2)
PYTHON = Candidate("python", ("python",), order=3)
CHAT = Candidate("chat", ("general",), order=4)
ROSTER = (MATH, PHYSICS, CODER, PYTHON, CHAT)


def unavailable(candidate: Candidate) -> Candidate:
    return Candidate(candidate.name, candidate.domains, available=False, order=candidate.order)


def test_the_likeliest_domains_specialist_answers():
    decision = choose({"math": 0.9, "physics": 0.1}, ROSTER, fallback="chat")
    assert (decision.specialist, decision.domain, decision.path) == ("math", "math", "classifier")
    assert decision.confidence == pytest.approx(0.9)
    assert [r.specialist for r in decision.ranking][:2] == ["math", "physics"]


def test_below_the_threshold_the_fallback_answers():
    decision = choose({"math": 0.5, "physics": 0.4, "law": 0.1}, ROSTER, fallback="chat")
    assert (decision.specialist, decision.path) == ("chat", "fallback")
    assert decision.confidence == pytest.approx(0.5)


def test_without_a_fallback_doubt_goes_to_what_is_warm_and_else_to_the_likeliest():
    doubt = {"math": 0.5, "physics": 0.4, "law": 0.1}
    assert choose(doubt, ROSTER, fallback=None, warm=["coder"]).specialist == "coder"
    assert choose(doubt, ROSTER, fallback=None).specialist == "math"


def test_without_a_fallback_a_subject_nobody_serves_is_named():
    decision = choose({"law": 0.95, "math": 0.05}, (MATH, PHYSICS), fallback=None)
    assert (decision.specialist, decision.path) == ("math", "fallback")
    assert decision.reason == "law has no specialist, no fallback: the likeliest"


def test_an_unavailable_fallback_is_no_fallback():
    decision = choose({"math": 0.5, "law": 0.5}, (MATH, unavailable(CHAT)), fallback="chat")
    assert decision.specialist == "math"


def test_of_two_specialists_for_one_domain_the_first_in_the_roster_answers_unless_the_other_is_sooner():
    asked = {"python": 0.9, "general": 0.1}
    assert choose(asked, ROSTER, fallback="chat").specialist == "coder"
    decision = choose(asked, ROSTER, fallback="chat", costs={"coder": 4.0, "python": 0.0})
    assert decision.specialist == "python"
    assert "4.0 s sooner than coder" in decision.reason
    assert choose(asked, ROSTER, fallback="chat", costs={"coder": 4.0, "python": 4.0}).specialist == "coder"


@pytest.mark.parametrize(
    ("seconds", "weight", "answers"),
    [
        (0.0, 0.01, "math"),
        (0.15, 0.01, "math"),  # a swap in place costs less than the 0.02 that physics lacks
        (1.9, 0.01, "math"),
        (2.1, 0.01, "physics"),
        (0.15, 0.2, "physics"),
        (600.0, 0.0, "math"),
    ],
)
def test_of_two_that_nearly_tie_the_sooner_one_answers_if_the_time_outweighs_what_it_lacks(seconds, weight, answers):
    asked = {"math": 0.49, "physics": 0.47, "law": 0.04}
    settings = SupervisorSettings(threshold=0.4, residency_weight=weight)
    costs = {"math": seconds, "physics": 0.0}
    assert choose(asked, ROSTER, fallback="chat", costs=costs, settings=settings).specialist == answers


def test_no_time_saved_outweighs_more_than_the_margin():
    asked = {"math": 0.56, "physics": 0.44}
    settings = SupervisorSettings(threshold=0.4, residency_weight=1.0)
    assert choose(asked, ROSTER, fallback="chat", costs={"math": 3600.0}, settings=settings).specialist == "math"


def test_to_move_a_conversation_costs_the_prompt_that_would_be_read_again():
    asked = {"math": 0.36, "physics": 0.64}
    settings = SupervisorSettings(hysteresis=0.25)
    short = choose(asked, ROSTER, fallback="chat", current="math", costs={"physics": 0.2}, settings=settings)
    assert short.specialist == "physics"
    long = choose(asked, ROSTER, fallback="chat", current="math", costs={"physics": 12.0}, settings=settings)
    assert (long.specialist, long.path) == ("math", "session")


def test_a_clear_change_of_subject_moves_a_conversation_of_any_length():
    asked = {"math": 0.05, "physics": 0.95}
    assert choose(asked, ROSTER, fallback="chat", current="math", costs={"physics": 900.0}).specialist == "physics"


def test_a_conversation_whose_specialist_has_to_be_loaded_again_moves_a_little_more_easily():
    asked = {"math": 0.39, "physics": 0.61}
    assert choose(asked, ROSTER, fallback="chat", current="math").specialist == "math"
    assert choose(asked, ROSTER, fallback="chat", current="math", costs={"math": 20.0}).specialist == "physics"


SPEEDS = {"math": 1000.0, "physics": 1000.0, "chat": 500.0}


def test_who_has_the_conversation_in_its_cache_reads_the_newest_message_only():
    ready_s = {"math": 0.0, "physics": 0.15, "chat": 9.0}
    costs = first_token_s(ready_s, cached_by="math", n_chars=48_000, n_new_chars=400, tokens_per_s=SPEEDS)
    assert costs == pytest.approx({"math": 0.1, "physics": 12.15, "chat": 33.0})
    new = first_token_s(ready_s, cached_by=None, n_chars=400, n_new_chars=400, tokens_per_s=SPEEDS)
    assert new == pytest.approx({"math": 0.1, "physics": 0.25, "chat": 9.2})


def test_a_long_conversation_is_not_moved_by_a_lead_that_moves_a_short_one():
    asked = {"math": 0.36, "physics": 0.64}
    ready_s = {"math": 0.0, "physics": 0.15}
    answers = {}
    for n_chars in (800, 48_000):
        costs = first_token_s(ready_s, cached_by="math", n_chars=n_chars, n_new_chars=400, tokens_per_s=SPEEDS)
        answers[n_chars] = choose(asked, ROSTER, fallback="chat", current="math", costs=costs).specialist
    assert answers == {800: "physics", 48_000: "math"}


def test_a_domain_may_have_a_threshold_of_its_own():
    settings = SupervisorSettings(threshold=0.6, thresholds={"law": 0.9, "Maths": 0.3})
    roster = (*ROSTER, Candidate("law", ("law",), order=5))
    assert choose({"law": 0.8, "math": 0.2}, roster, fallback="chat", settings=settings).specialist == "chat"
    assert choose({"law": 0.95, "math": 0.05}, roster, fallback="chat", settings=settings).specialist == "law"
    assert choose({"math": 0.4, "law": 0.35}, roster, fallback="chat", settings=settings).specialist == "math"
    assert choose({"physics": 0.5, "law": 0.3}, roster, fallback="chat", settings=settings).specialist == "chat"


def test_settings_are_values_that_nobody_can_change():
    thresholds = {"law": 0.9}
    settings = SupervisorSettings(thresholds=thresholds)
    thresholds["law"] = 0.1
    assert settings.threshold_of("law") == 0.9
    assert {settings, SupervisorSettings(thresholds={"law": 0.9})} == {settings}
    assert settings != SupervisorSettings(thresholds={"law": 0.8})
    assert replace(settings, margin=0.1).threshold_of("law") == 0.9
    with pytest.raises(TypeError):
        settings.thresholds["law"] = 0.5


def test_coding_and_python_are_one_family_when_doubt_is_weighed():
    apart = (Candidate("coder", ("coding",)), PYTHON, CHAT)
    decision = choose({"python": 0.5, "coding": 0.4, "law": 0.1}, apart, fallback="chat")
    assert decision.specialist == "python"
    assert decision.confidence == pytest.approx(0.9)


def test_a_missing_specialist_is_replaced_by_its_parent_or_by_a_relative_that_transfers_well():
    assert serving("python", [Candidate("coder", ("coding",))]) == ["coder"]
    assert serving("computer_science", [PHYSICS, MATH]) == ["math"]
    assert serving("engineering", [MATH, PHYSICS]) == ["physics"]
    decision = choose({"computer_science": 0.9, "law": 0.1}, (MATH, CHAT), fallback="chat")
    assert decision.specialist == "math"
    assert "stands in" in decision.reason


def test_law_stands_in_for_no_science():
    law = Candidate("law", ("law",))
    for domain in ("math", "physics", "chemistry", "engineering", "computer_science", "business"):
        assert serving(domain, [law]) == []


def test_a_domain_nobody_serves_goes_to_the_fallback():
    decision = choose({"medicine": 0.95, "math": 0.05}, ROSTER, fallback="chat")
    assert (decision.specialist, decision.path) == ("chat", "fallback")
    assert "no specialist" in decision.reason


def test_the_reason_tells_a_domain_from_a_specialist_of_the_same_name():
    namesake, server = Candidate("math", ("law",)), Candidate("sums", ("math",), order=1)
    decision = choose({"math": 0.95, "law": 0.05}, (namesake, server), fallback=None)
    assert (decision.specialist, decision.reason) == ("sums", "the domain math 0.95, which sums serves")
    alone = choose({"math": 0.95, "law": 0.05}, (server,), fallback=None)
    assert alone.reason == "math 0.95"


def test_unavailable_specialists_are_never_chosen():
    decision = choose({"math": 1.0}, (unavailable(MATH), PHYSICS, CHAT), fallback="chat")
    assert decision.specialist == "physics"
    with pytest.raises(NoSpecialist):
        choose({"math": 1.0}, (unavailable(MATH),), fallback=None)


def test_a_conversation_keeps_its_specialist_unless_another_leads_clearly():
    kept = choose({"math": 0.4, "physics": 0.6}, ROSTER, fallback="chat", current="math")
    assert (kept.specialist, kept.path) == ("math", "session")
    moved = choose({"math": 0.05, "physics": 0.95}, ROSTER, fallback="chat", current="math")
    assert moved.specialist == "physics"
    assert "changed" in moved.reason


def test_what_is_in_doubt_but_no_longer_the_conversations_subject_goes_to_the_fallback():
    asked = {"law": 0.5, "medicine": 0.45, "math": 0.05}
    roster = (*ROSTER, Candidate("law", ("law",), order=5))
    left = choose(asked, roster, fallback="chat", current="math")
    assert (left.specialist, left.path) == ("chat", "fallback")
    assert choose(asked, roster, fallback=None, current="math").specialist == "math"
    near = {"law": 0.4, "medicine": 0.4, "math": 0.2}
    assert choose(near, roster, fallback="chat", current="math").specialist == "math"


def test_a_short_follow_up_needs_a_much_clearer_lead_to_move_a_conversation():
    asked = {"math": 0.2, "physics": 0.8}
    assert choose(asked, ROSTER, fallback="chat", current="math", follow_up=True).specialist == "math"
    assert choose(asked, ROSTER, fallback="chat", current="math", follow_up=False).specialist == "physics"


def test_of_several_specialists_for_the_subject_the_conversations_own_stays():
    asked = {"python": 0.5, "coding": 0.45, "math": 0.05}
    for current in ("coder", "python"):
        for costs in ({}, {"coder": 9.0}, {"python": 9.0}):
            assert choose(asked, ROSTER, fallback="chat", current=current, costs=costs).specialist == current


def test_a_sooner_equal_leads_by_as_much_as_the_likeliest():
    asked = {"python": 0.4, "coding": 0.35, "math": 0.25}
    assert choose(asked, ROSTER, fallback="chat", current="math").specialist == "coder"
    assert choose(asked, ROSTER, fallback="chat", current="math", costs={"coder": 4.0}).specialist == "python"


def test_small_talk_after_a_hard_question_moves_to_the_generalist():
    assert choose({"general": 0.95, "math": 0.05}, ROSTER, fallback="chat", current="math").specialist == "chat"
    bare = (MATH, Candidate("chat", ()))
    assert choose({"general": 0.95, "math": 0.05}, bare, fallback="chat", current="math").specialist == "chat"


def test_the_fallback_gives_a_conversation_back_when_a_specialist_is_clearly_meant():
    assert choose({"math": 0.97, "general": 0.03}, ROSTER, fallback="chat", current="chat").specialist == "math"


def test_nothing_changes_inside_a_tool_exchange():
    decision = choose({"physics": 1.0}, ROSTER, fallback="chat", current="coder", tool_exchange=True)
    assert (decision.specialist, decision.path) == ("coder", "session")


def test_a_specialist_that_became_unavailable_loses_its_conversation():
    decision = choose(
        {"math": 0.2, "physics": 0.8}, (unavailable(MATH), PHYSICS, CHAT), fallback="chat", current="math"
    )
    assert decision.specialist == "physics"


def test_a_decision_holds_the_numbers_that_it_compared():
    stays = choose({"math": 0.3, "physics": 0.5}, ROSTER, fallback="chat", current="math")
    assert stays.specialist == "math"
    assert (stays.weighed.lead, stays.weighed.needed_lead) == (pytest.approx(0.2), pytest.approx(0.25))
    assert "physics leads by 0.20 of 0.25" in stays.reason
    anew = choose({"math": 0.9, "physics": 0.1}, ROSTER, fallback="chat")
    assert (anew.weighed.threshold, anew.weighed.lead) == (0.6, None)
    assert choose({}, ROSTER, fallback="chat").weighed.threshold is None


def test_tasks_of_chat_clients_go_to_what_is_warm():
    decision = choose({}, ROSTER, fallback="chat", warm=["physics"], client_task="title")
    assert (decision.specialist, decision.path) == ("physics", "rules")
    assert "title" in decision.reason
    assert choose({}, ROSTER, fallback="chat", warm=["physics", "chat"], client_task="title").specialist == "chat"
    assert choose({}, ROSTER, fallback="chat", client_task="tags").specialist == "chat"
    assert choose({}, ROSTER, fallback=None, client_task="tags").specialist == "math"


def test_a_conversation_that_says_nothing_goes_to_the_fallback():
    decision = choose({}, ROSTER, fallback="chat")
    assert (decision.specialist, decision.confidence, decision.path) == ("chat", 0.0, "fallback")


def test_examples_without_a_domain_are_for_a_domain_of_the_specialists_own_name():
    sailor = Candidate("sail", (), examples=("How do I reef?",), order=9)
    assert choose({"sail": 0.9, "math": 0.1}, (*ROSTER, sailor), fallback="chat").specialist == "sail"
    assert Candidate("idle", ()).domains == ()


def test_domains_may_be_written_as_people_write_them():
    roster = (Candidate("cs", ("Computer Science",)), Candidate("maths", ("Maths",)))
    assert choose({"computer_science": 1.0}, roster, fallback=None).specialist == "cs"
    assert choose({"math": 1.0}, roster, fallback=None).specialist == "maths"


@pytest.mark.parametrize("probabilities", [{}, {"math": 0.5, "law": 0.5}, {"law": 1.0}, {"math": 1.0}])
@pytest.mark.parametrize("current", [None, "math", "chat", "gone"])
@pytest.mark.parametrize("fallback", [None, "chat", "gone"])
def test_every_decision_names_an_available_specialist_and_a_printable_reason(probabilities, current, fallback):
    decision = choose(probabilities, (MATH, unavailable(PHYSICS), CHAT), fallback=fallback, current=current)
    assert decision.specialist in ("math", "chat")
    assert 0 <= decision.confidence <= 1
    assert decision.reason.isascii()
    assert decision.reason.isprintable()


# --- whatever the numbers are -------------------------------------------------------------------------------------

NAMES = ("math", "physics", "coder", "python", "chat")
DOMAIN_NAMES = ("math", "physics", "engineering", "computer_science", "law", "coding", "python", "general")


@st.composite
def situations(draw, *, conversation=True):
    """Arguments of choose, as a dict, with at least one available candidate."""
    weights = draw(st.lists(st.floats(0.001, 1), min_size=len(DOMAIN_NAMES), max_size=len(DOMAIN_NAMES)))
    available = draw(st.sets(st.sampled_from(NAMES), min_size=1))
    someone = st.one_of(st.none(), st.sampled_from(NAMES))
    return {
        "probabilities": {d: w / sum(weights) for d, w in zip(DOMAIN_NAMES, weights, strict=True)},
        "candidates": [replace(c, available=c.name in available) for c in ROSTER],
        "fallback": draw(someone),
        "current": draw(someone) if conversation else None,
        "warm": draw(st.lists(st.sampled_from(NAMES), unique=True)),
        "costs": draw(st.dictionaries(st.sampled_from(NAMES), st.floats(0, 600))),
        "settings": SupervisorSettings(
            threshold=draw(st.floats(0, 1)),
            thresholds=draw(st.dictionaries(st.sampled_from(DOMAIN_NAMES), st.floats(0, 1), max_size=3)),
            margin=draw(st.floats(0, 0.3)),
            residency_weight=draw(st.floats(0, 0.2)),
        ),
        "follow_up": draw(st.booleans()),
    }


@given(situations(), st.booleans(), st.sampled_from((None, "title")))
def test_whoever_is_chosen_is_available_and_the_confidence_is_a_probability(situation, tool_exchange, client_task):
    decision = choose(**situation, tool_exchange=tool_exchange, client_task=client_task)
    assert decision.specialist in {c.name for c in situation["candidates"] if c.available}
    assert 0 <= decision.confidence <= 1
    assert decision.reason.isascii()
    assert {r.specialist for r in decision.ranking} == {c.name for c in situation["candidates"] if c.available}
    assert all(a.score >= b.score for a, b in zip(decision.ranking, decision.ranking[1:], strict=False))


@given(situations())
def test_without_a_weight_no_cost_changes_anything(situation):
    situation["settings"] = replace(situation["settings"], residency_weight=0.0)
    free = situation | {"costs": {}}
    assert choose(**situation) == choose(**free)


@given(situations(conversation=False), st.sampled_from(NAMES), st.floats(0, 600))
def test_who_becomes_slower_is_not_chosen_for_it(situation, name, more):
    before = choose(**situation).specialist
    costs = situation["costs"]
    after = choose(**situation | {"costs": costs | {name: costs.get(name, 0.0) + more}}).specialist
    assert after == before or after != name


@given(situations(), st.floats(0, 600))
def test_a_conversation_that_stays_also_stays_where_moving_costs_more(situation, more):
    current = situation["current"]
    costs = {n: situation["costs"].get(n, 0.0) for n in NAMES}
    if choose(**situation).specialist != current:
        return
    dearer = {n: seconds if n == current else seconds + more for n, seconds in costs.items()}
    assert choose(**situation | {"costs": dearer}).specialist == current


@given(situations(conversation=False))
def test_the_time_saved_costs_at_most_the_margin_in_probability(situation):
    settings = situation["settings"] = replace(situation["settings"], threshold=0.0, thresholds={})
    decision = choose(**situation)
    scores = {r.specialist: r.score for r in decision.ranking}
    free = choose(**situation | {"costs": {}})
    able = [c for c in situation["candidates"] if c.available]
    equals = any({free.specialist, decision.specialist} <= set(serving(d, able)) for d in DOMAIN_NAMES)
    lacking = scores[free.specialist] - scores[decision.specialist]
    assert equals or lacking <= settings.margin + 1e-3


@given(situations())
def test_inside_a_tool_exchange_nobody_moves(situation):
    current = situation["current"]
    decision = choose(**situation, tool_exchange=True)
    if any(c.name == current and c.available for c in situation["candidates"]):
        assert (decision.specialist, decision.path) == (current, "session")


@given(situations(conversation=False), st.floats(0, 1))
def test_a_higher_threshold_never_takes_a_question_from_the_fallback(situation, higher):
    settings = replace(situation["settings"], thresholds={})
    situation |= {"fallback": "chat", "candidates": ROSTER, "settings": settings}
    if choose(**situation).path == "fallback" and higher >= settings.threshold:
        assert choose(**situation | {"settings": replace(settings, threshold=higher)}).specialist == "chat"
