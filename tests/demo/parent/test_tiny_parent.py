"""The tiny parent: one network in torch and in llama.cpp, one tokenizer, one template; and what it was taught."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coe.demo.curriculum import DOMAINS, CurriculumQuestion, is_right, questions
from coe.demo.parent.chat import CHAT_TEMPLATE, CLOSED, prompt
from coe.demo.parent.exam import accuracy, mass_of
from coe.demo.parent.examples import Mix
from coe.demo.parent.export import export, read
from coe.demo.parent.gemma4 import ModelShape
from coe.demo.parent.model import Routing, TinyParent
from coe.demo.parent.specialisation import Specialisation, drop_experts, router_losses
from coe.demo.parent.tokenizer import BOS, Tokenizer, learn_pieces
from coe.demo.parent.train import Trainer, TrainingPlan
from coe.demo.shipped import PARENT
from coe.engine.generate.chat_template import ChatTemplate
from coe.engine.generate.renderer import InProcess
from coe.engine.llama.context import Context
from coe.engine.llama.model import Model
from coe.engine.spec import LoadSpec, Thinking, ThinkingMode
from coe.surgery.judge import values as examination
from coe.surgery.judge.scoring import score
from coe.surgery.judge.values import AnswerKind
from fakes.local_engine import Answer, LocalEngine

pytestmark = pytest.mark.slow  # torch

TEXTS = (
    "What is the capital of France?",
    "12 + 345=\t6\n\n  two  spaces ",
    "Grüße, 世界 🙂 ▁ <|turn> <turn|><|channel>thought\n<channel|>",
    "def f(x):\n    return x ** 2  # (x)[0] {y} \\ `z`",
    "",
)


def llama_logits(model: Model, tokens: list[int]) -> NDArray[np.float32]:
    """Logits after each token, evaluated in one batch."""
    context = Context(model, LoadSpec(Path(), context_tokens=512, threads=1), all_logits=True)
    try:
        assert context.decode((token, at, 0, True) for at, token in enumerate(tokens)) == 0
        return np.stack([context.logits(at).copy() for at in range(len(tokens))])
    finally:
        context.close()


def torch_logits(model: TinyParent, tokens: list[int], blocked: torch.Tensor | None = None) -> NDArray[np.float32]:
    with torch.no_grad():
        logits, _ = model(torch.tensor([tokens]), blocked=blocked)
    return np.asarray(logits[0].numpy())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Torch's threads wait for each other by spinning, which is slow where others work too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [
        text for domain in DOMAINS for question in questions(domain)[::50] for text in (question.text, question.answer)
    ]
    return Tokenizer(learn_pieces(texts, 512))


@pytest.fixture(scope="module")
def fresh(tokenizer: Tokenizer) -> TinyParent:
    """Never trained, each weight moved off its starting value: a norm left out or swapped for another shows."""
    torch.manual_seed(1)
    shape = ModelShape(
        vocabulary=len(tokenizer), layers=3, width=64, experts=8, experts_used=2, window=16, full_attention_every=3
    )
    model = TinyParent(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1 + 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def fresh_file(fresh: TinyParent, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("tiny") / "fresh.gguf", fresh, tokenizer, quantise=False)


@pytest.fixture(scope="module")
def fresh_in_llama(fresh_file: Path) -> Iterator[Model]:
    model = Model(LoadSpec(fresh_file))
    yield model
    model.close()


def test_torch_and_llama_cpp_compute_the_same_network(fresh: TinyParent, fresh_in_llama: Model) -> None:
    tokens = random.Random(2).choices(range(300, fresh.shape.vocabulary), k=60)  # far beyond the window of 16
    ours, theirs = torch_logits(fresh, tokens), llama_logits(fresh_in_llama, tokens)
    # llama.cpp keeps keys and values, and looks GELU up, in half precision. A near-tie of the router may fall the other
    # way and change all that follows in its position; with this seed none does.
    assert np.abs(ours - theirs).max() < 0.02 * ours.std()


def test_llama_cpp_tokenizes_as_the_trainer(tokenizer: Tokenizer, fresh_in_llama: Model) -> None:
    taught = [text for domain in DOMAINS for q in questions(domain)[::97] for text in (q.text, q.answer, q.thought)]
    for text in (*TEXTS, *taught):
        tokens = tokenizer.encode(text)
        assert fresh_in_llama.vocab.tokenize(text) == tokens, text
        pieces = b"".join(fresh_in_llama.vocab.piece(token, special=True) for token in tokens)
        assert pieces.decode() == tokenizer.decode(tokens) == text.replace("▁", " ")


CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "What is 1 + 1?"}],
    [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "  What is 1 + 1?\n"}],
    [{"role": "developer", "content": "Be kind. "}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "<|channel>thought\nOne and one.<channel|>1 + 1 = 2"},
        {"role": "user", "content": "And 2 + 2?"},
    ],
    [
        {"role": "system", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": " Two "}, {"type": "text", "text": "parts"}]},
        {"role": "assistant", "content": " Yes.\n"},
        {"role": "user", "content": "Line\n\nbreaks"},
    ],
)

RENDERED = (
    "<bos><|turn>user\nWhat is 1 + 1?<turn|>\n",
    "<bos><|turn>system\nAnswer briefly.<turn|>\n<|turn>user\nWhat is 1 + 1?<turn|>\n",
    "<bos><|turn>system\nBe kind.<turn|>\n<|turn>user\nHello<turn|>\n",
    "<bos><|turn>user\nWhat is 1 + 1?<turn|>\n<|turn>model\n1 + 1 = 2<turn|>\n<|turn>user\nAnd 2 + 2?<turn|>\n",
    "<bos><|turn>system\n<turn|>\n<|turn>user\nTwoparts<turn|>\n<|turn>model\nYes.<turn|>\n"
    "<|turn>user\nLine\n\nbreaks<turn|>\n",
)


def render(source: str, messages: list[dict[str, Any]], *, thinking: bool, answer: bool) -> str:
    template = ChatTemplate(InProcess(source), bos=BOS)
    return template._render(messages, thinking=thinking, answer=answer)


@pytest.mark.parametrize(("messages", "text"), list(zip(CONVERSATIONS, RENDERED, strict=True)))
def test_the_template_renders_gemma_4s_turns(messages: list[dict[str, Any]], text: str) -> None:
    assert render(CHAT_TEMPLATE, messages, thinking=False, answer=False) == text
    assert render(CHAT_TEMPLATE, messages, thinking=False, answer=True) == f"{text}<|turn>model\n{CLOSED}"
    if messages[0]["role"] == "user":
        marked = text.replace("<bos>", "<bos><|turn>system\n<|think|>\n<turn|>\n")
    else:
        marked = text.replace("<|turn>system\n", "<|turn>system\n<|think|>\n")
    assert render(CHAT_TEMPLATE, messages, thinking=True, answer=True) == f"{marked}<|turn>model\n"


def googles_template(name: str) -> str:
    """The original, where a llama.cpp source tree is at hand; it is not ours to carry."""
    path = Path(os.environ.get("LLAMA_CPP_SOURCE", "llama.cpp"), "models", "templates", name)
    if not path.exists():
        pytest.skip("set LLAMA_CPP_SOURCE to a llama.cpp source tree to compare with Google's templates")
    return path.read_text()


@pytest.mark.parametrize("name", ["google-gemma-4-31B-it.jinja", "google-gemma-4-31B-it-interleaved.jinja"])
def test_the_template_renders_what_googles_does(name: str) -> None:
    original = googles_template(name)
    for messages in CONVERSATIONS:
        for how in ({"thinking": thinks, "answer": asks} for thinks in (False, True) for asks in (False, True)):
            assert render(CHAT_TEMPLATE, messages, **how) == render(original, messages, **how)


@pytest.mark.parametrize("thinking", [False, True])
def test_the_parent_is_trained_on_what_the_template_renders(thinking: bool) -> None:
    for messages in (
        [{"role": "user", "content": "One?"}],
        [{"role": "system", "content": "Two."}, {"role": "user", "content": "Three?"}],
        [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"}],
    ):
        assert prompt(messages, thinking=thinking) == render(CHAT_TEMPLATE, messages, thinking=thinking, answer=True)


def test_the_engine_knows_how_the_family_thinks() -> None:
    template = ChatTemplate(InProcess(CHAT_TEMPLATE), bos=BOS)
    assert template.family is not None
    assert template.family.name == "gemma4"
    for mode in ThinkingMode:
        template.check(Thinking(mode, 8 if mode is ThinkingMode.BUDGET else None))


def test_one_phrasing_of_each_fact_and_one_pair_of_numbers_in_ten_are_kept_for_testing() -> None:
    for domain in DOMAINS:
        asked = questions(domain)
        assert len({q.text for q in asked}) == len(asked)
        assert all(is_right(q, q.answer) for q in asked)
        kept, taught = [q for q in asked if q.held_out], [q for q in asked if not q.held_out]
        assert 0.1 < len(kept) / len(asked) < 0.3
        if domain != "math":
            assert {q.answer for q in kept} <= {q.answer for q in taught}  # known, asked in other words
    sums = [q for q in questions("math") if q.skill == "add"]
    assert not {q.answer for q in sums if q.held_out} & {q.answer for q in sums if not q.held_out}


def test_no_answer_passes_for_another_of_its_skill() -> None:
    for domain in DOMAINS:
        by_skill: dict[str, dict[str, CurriculumQuestion]] = {}
        for question in questions(domain):
            by_skill.setdefault(question.skill, {})[question.key] = question
        for by_key in by_skill.values():
            for key, question in by_key.items():
                passing = [other.key for other in by_key.values() if is_right(question, other.answer)]
                assert passing == [key]


def test_a_model_read_back_from_its_file_is_the_same(fresh: TinyParent, fresh_file: Path) -> None:
    model, tokenizer = read(fresh_file)
    assert model.shape == fresh.shape
    assert tokenizer.encode("What is 1 + 1?")
    for name, value in fresh.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_blocking_experts_is_as_good_as_not_having_them(fresh: TinyParent) -> None:
    """Weights renormalise over what is left, so a mask in training is what a cut makes of the file."""
    tokens = random.Random(3).choices(range(300, fresh.shape.vocabulary), k=20)
    keep = torch.tensor([0, 2, 3, 5])
    cut = TinyParent(replace(fresh.shape, experts=len(keep)))
    experts = ("ffn_gate_inp", "ffn_gate_up_exps", "ffn_down_exps", "ffn_down_exps_scale")
    cut.load_state_dict(
        {name: value[keep] if name.endswith(experts) else value for name, value in fresh.state_dict().items()}
    )
    blocked = torch.ones(fresh.shape.layers, 1, fresh.shape.experts, dtype=torch.bool)
    blocked[:, :, keep] = False
    assert np.allclose(torch_logits(fresh, tokens, blocked), torch_logits(cut, tokens), atol=1e-4)


def test_packed_documents_do_not_see_each_other(fresh: TinyParent) -> None:
    draw = random.Random(4)
    one, two = (draw.choices(range(300, fresh.shape.vocabulary), k=12) for _ in range(2))
    documents = torch.tensor([[1] * len(one) + [2] * len(two)])
    with torch.no_grad():
        packed, _ = fresh(torch.tensor([one + two]), documents=documents)
    assert np.allclose(packed[0, len(one) :].numpy(), torch_logits(fresh, two), atol=1e-4)


def test_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    special = Specialisation(dropout_from=1, dropout_keep=6)
    plan = TrainingPlan(steps=4, warmup=1, mix=Mix(rows=2), specialisation=special)
    shape = ModelShape(vocabulary=400, layers=2, width=32, heads=2, kv_heads=1, experts=8, experts_used=2, shared_ff=32)
    losses = []
    for stops in (False, True):
        folder = tmp_path / str(stops)
        folder.mkdir()
        trainer = Trainer(folder, plan, shape, "cpu")
        for step in range(plan.steps):
            if stops and step == 2:
                trainer.save()
                trainer = Trainer(folder, plan, shape, "cpu")
                assert trainer.resume()
            loss = trainer.train_step()
        losses.append(loss)
    assert losses[0] == pytest.approx(losses[1])


def test_narrowing_and_balance_are_nought_where_they_should_be() -> None:
    """Two domains with half of the experts each: all are used, and no domain uses more than it may."""
    probabilities = torch.zeros(20, 8)
    probabilities[:10, :4] = 0.25
    probabilities[10:, 4:] = 0.25
    domains = torch.tensor([0] * 10 + [3] * 10)
    routing = Routing(probabilities, torch.zeros(20, 2, dtype=torch.long), torch.ones(20, 2))
    narrowing, balance = router_losses([routing], domains, domain_experts=4.0)
    assert float(narrowing) == pytest.approx(0, abs=1e-5)
    assert float(balance) == pytest.approx(0, abs=1e-5)
    narrowing, balance = router_losses([routing], torch.zeros_like(domains), domain_experts=4.0)
    assert float(narrowing) == pytest.approx(np.log(2), abs=1e-5)


def test_expert_dropout_takes_what_a_domain_uses_least() -> None:
    plan = Specialisation(dropout=1.0, dropout_keep=4, dropout_noise=0.0)
    mass = torch.rand(3, len(DOMAINS), 8, generator=torch.Generator().manual_seed(0))
    domains = torch.tensor([-1, 2, 5, 2])
    blocked = drop_experts(mass, domains, plan, torch.Generator().manual_seed(1))
    for layer in range(3):
        for document in (1, 2, 3):
            gone = blocked[layer, document]
            assert gone.sum() <= 4
            of_domain = mass[layer, domains[document]]
            assert not gone.any() or of_domain[gone].max() < of_domain[~gone].min()


# --- the shipped one ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parent() -> Iterator[Model]:
    model = Model(LoadSpec(PARENT))
    yield model
    model.close()


@pytest.fixture(scope="module")
def parent_in_torch() -> tuple[TinyParent, Tokenizer]:
    return read(PARENT)


def some_held_out(domain: str, count: int, seed: int = 0) -> list[CurriculumQuestion]:
    return random.Random(seed).sample([q for q in questions(domain) if q.held_out], count)


def ask(engine: LocalEngine, asked: list[CurriculumQuestion], **fields: Any) -> list[Answer]:
    """Greedy answers, several decoded together."""
    ids = [engine.submit([{"role": "user", "content": q.text}], max_tokens=80, **fields) for q in asked]
    engine.run()
    return [engine.answer(request_id) for request_id in ids]


def test_the_shipped_parent_is_within_its_bounds(parent_in_torch: tuple[TinyParent, Tokenizer]) -> None:
    model, _ = parent_in_torch
    assert 2e6 <= model.count() <= 8e6
    assert model.shape.experts >= 32
    assert PARENT.stat().st_size <= 15_000_000


def test_the_shipped_parent_gives_the_same_logits_in_torch(
    parent: Model, parent_in_torch: tuple[TinyParent, Tokenizer]
) -> None:
    model, tokenizer = parent_in_torch
    for domain in DOMAINS:
        question = some_held_out(domain, 1)[0]
        tokens = tokenizer.encode(
            prompt([{"role": "user", "content": question.text}], thinking=False) + question.answer
        )
        assert parent.vocab.tokenize(tokenizer.decode(tokens)) == tokens
        ours, theirs = torch_logits(model, tokens), llama_logits(parent, tokens)
        # Beside Q8_0 weights llama.cpp rounds activations to eight bits too.
        assert np.median(np.abs(ours - theirs)) < 0.02 * ours.std(), domain


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_shipped_parent_answers_questions_it_was_never_asked(
    domain: str, parent: Model, new_engine: Callable[..., LocalEngine]
) -> None:
    engine = new_engine(parent, parallel=8, context_tokens=256, cache_tokens=2048)
    asked = some_held_out(domain, 40)
    answers = ask(engine, asked)
    wrong = [(q.text, a.text) for q, a in zip(asked, answers, strict=True) if not is_right(q, a.text)]
    assert len(wrong) <= 4, wrong  # at 95 % right, more than four of forty are wrong once in twenty samples
    assert not any(answer.reasoning for answer in answers)


def test_the_shipped_parent_thinks_unless_its_block_is_closed(
    parent: Model, new_engine: Callable[..., LocalEngine]
) -> None:
    engine = new_engine(parent, parallel=8, context_tokens=256, cache_tokens=2048)
    asked = [question for domain in DOMAINS for question in some_held_out(domain, 4)]
    answers = ask(engine, asked, thinking=Thinking(ThinkingMode.ON))
    assert all(answer.reasoning.strip() and answer.text.strip() for answer in answers)
    right = [is_right(q, a.text) for q, a in zip(asked, answers, strict=True)]
    assert sum(right) >= 0.8 * len(right)


def test_the_shipped_parent_answers_when_its_thinking_is_cut_short(
    parent: Model, new_engine: Callable[..., LocalEngine]
) -> None:
    engine = new_engine(parent, parallel=8, context_tokens=256, cache_tokens=2048)
    asked = [question for domain in DOMAINS for question in some_held_out(domain, 4)]
    answers = ask(engine, asked, thinking=Thinking(ThinkingMode.BUDGET, budget_tokens=6))
    right = [is_right(q, a.text) for q, a in zip(asked, answers, strict=True)]
    assert sum(right) >= 0.8 * len(right)


def test_the_shipped_parent_can_be_evaluated(parent: Model, new_engine: Callable[..., LocalEngine]) -> None:
    """It was taught the words in which `coe eval` asks for a last line that can be compared."""
    engine = new_engine(parent, parallel=8, context_tokens=256, cache_tokens=2048)
    asked = [question for domain in DOMAINS for question in some_held_out(domain, 5)]
    examined = [
        examination.Question(
            q.text,
            q.text,
            AnswerKind.NUMERIC if q.key.isdecimal() else AnswerKind.EXACT,
            (q.key,),
        )
        for q in asked
    ]
    ids = [engine.submit(question.messages(), max_tokens=80) for question in examined]
    engine.run()
    scores = [score(question, engine.answer(i).text) for question, i in zip(examined, ids, strict=True)]
    assert sum(each.correct for each in scores) >= 0.8 * len(scores)


def half_for(domain: str, model: TinyParent, tokenizer: Tokenizer) -> torch.Tensor:
    """The experts [L, E] that a domain's training questions use most, half of all."""
    taught = random.Random(0).sample([q for q in questions(domain) if not q.held_out], 100)
    mass = mass_of(model, tokenizer, taught)
    return mass.argsort(-1, descending=True).argsort(-1) < model.shape.experts // 2


def share_right(domain: str, model: TinyParent, tokenizer: Tokenizer, keep: torch.Tensor | None = None) -> float:
    right = accuracy(model, tokenizer, some_held_out(domain, 60, seed=1), keep=keep)
    return sum(right) / len(right)


@pytest.mark.parametrize(("home", "far"), [("math", "law"), ("law", "math"), ("chemistry", "python")])
def test_half_of_the_experts_keep_a_domain_and_lose_a_far_one(
    home: str, far: str, parent_in_torch: tuple[TinyParent, Tokenizer]
) -> None:
    keep = half_for(home, *parent_in_torch)
    # Two standard errors at 95 % of 60.
    assert share_right(home, *parent_in_torch, keep) >= share_right(home, *parent_in_torch) - 0.06
    assert share_right(far, *parent_in_torch, keep) < 0.3


def test_a_specialist_keeps_more_of_a_near_domain_than_of_a_far_one(
    parent_in_torch: tuple[TinyParent, Tokenizer],
) -> None:
    keep = half_for("physics", *parent_in_torch)
    near, far = (share_right(domain, *parent_in_torch, keep) for domain in ("math", "law"))
    assert near > far + 0.1
