"""The decision itself: plain calls over plain values."""

import pytest

from coe.router import Candidate, NoSpecialist, Settings, choose
from coe.router.supervisor import serving

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


def test_an_unavailable_fallback_is_no_fallback():
    decision = choose({"math": 0.5, "law": 0.5}, (MATH, unavailable(CHAT)), fallback="chat")
    assert decision.specialist == "math"


def test_of_two_specialists_for_one_domain_the_first_in_the_roster_answers_unless_the_other_is_warm():
    asked = {"python": 0.9, "general": 0.1}
    assert choose(asked, ROSTER, fallback="chat").specialist == "coder"
    decision = choose(asked, ROSTER, fallback="chat", warm=["python"])
    assert decision.specialist == "python"
    assert "warm" in decision.reason


def test_of_two_that_nearly_tie_the_warm_one_answers():
    asked = {"math": 0.49, "physics": 0.47, "law": 0.04}
    settings = Settings(threshold=0.4)
    assert choose(asked, ROSTER, fallback="chat", settings=settings).specialist == "math"
    assert choose(asked, ROSTER, fallback="chat", settings=settings, warm=["physics"]).specialist == "physics"


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


def test_a_conversation_keeps_its_specialist_while_the_subject_is_in_doubt():
    kept = choose({"law": 0.5, "medicine": 0.45, "math": 0.05}, ROSTER, fallback=None, current="math")
    assert kept.specialist == "math"


def test_a_short_follow_up_needs_a_much_clearer_lead_to_move_a_conversation():
    asked = {"math": 0.2, "physics": 0.8}
    assert choose(asked, ROSTER, fallback="chat", current="math", follow_up=True).specialist == "math"
    assert choose(asked, ROSTER, fallback="chat", current="math", follow_up=False).specialist == "physics"


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


def test_chores_go_to_what_is_warm():
    decision = choose({}, ROSTER, fallback="chat", warm=["physics"], chore="title")
    assert (decision.specialist, decision.path) == ("physics", "rules")
    assert "title" in decision.reason
    assert choose({}, ROSTER, fallback="chat", warm=["physics", "chat"], chore="title").specialist == "chat"
    assert choose({}, ROSTER, fallback="chat", chore="tags").specialist == "chat"
    assert choose({}, ROSTER, fallback=None, chore="tags").specialist == "math"


def test_a_conversation_that_says_nothing_goes_to_the_fallback():
    decision = choose({}, ROSTER, fallback="chat")
    assert (decision.specialist, decision.confidence, decision.path) == ("chat", 0.0, "fallback")


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
