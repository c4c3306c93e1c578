"""What the tap sees of the router is what the router did; what it forbids is not chosen."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from numpy.typing import NDArray

from coe.engine.llama.context import Context
from coe.engine.llama.ggml import tensor_get
from coe.engine.llama.model import Model
from coe.engine.spec import LoadSpec
from coe.surgery.architectures import Experts
from coe.surgery.parent import Parent
from coe.surgery.profile import tap as tap_module
from coe.surgery.profile.tap import Observation, TapError, TappedContext
from fakes.random_moe import ARCHITECTURES, write_random_moe
from fakes.weight import brings

TOKENS = [int(token) for token in np.random.default_rng(1).integers(10, 300, 90)]

Open = Callable[..., TappedContext]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tapped")


@pytest.fixture
@brings("model")
def tapped(folder: Path) -> Iterator[Open]:
    """tapped("olmoe", logits=True): a context over a tiny random model of an architecture."""
    opened: list[TappedContext] = []

    def make(architecture: str = "gemma4", experts: Experts | None = None, **wanted: Any) -> TappedContext:
        path = folder / f"{architecture}.gguf"
        if not path.exists():
            write_random_moe(path, architecture=architecture, experts=8, experts_used=3)
        spec = LoadSpec(path, context_tokens=128, parallel=2, threads=1)
        opened.append(TappedContext(Model(spec), spec, experts or Parent.open(path).experts, **wanted))
        return opened[-1]

    yield make
    for context in opened:
        context.close()
        context.model.close()


def softmax(scores: NDArray[Any]) -> NDArray[np.float64]:
    exponents = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def best(seen: Observation) -> NDArray[np.int64]:
    assert seen.scores is not None
    return np.argsort(-seen.scores, axis=2, kind="stable")[:, :, : seen.chosen.shape[2]]


@pytest.mark.parametrize("architecture", ["gemma4", "qwen3moe", "llama", "granitemoe", "qwen3next"])
def test_choices_and_weights_are_those_of_the_routers_logits(tapped: Open, architecture: str) -> None:
    _, seen = tapped(architecture, scores=True).evaluate(TOKENS)
    assert seen.scores is not None
    chosen = best(seen)
    weights = np.take_along_axis(softmax(seen.scores), chosen, 2)
    np.testing.assert_array_equal(seen.chosen, chosen)
    np.testing.assert_allclose(seen.weights, weights / weights.sum(2, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("architecture", ["olmoe", "qwen2moe"])
def test_weights_that_an_architecture_does_not_normalise_are_taken_as_they_are(tapped: Open, architecture: str) -> None:
    _, seen = tapped(architecture, scores=True).evaluate(TOKENS)
    assert seen.scores is not None
    np.testing.assert_allclose(seen.weights, np.take_along_axis(softmax(seen.scores), best(seen), 2), rtol=1e-5)
    assert (seen.weights.sum(2) < 0.999).any()


def test_weights_of_a_softmax_over_the_chosen_alone(tapped: Open) -> None:
    _, seen = tapped("gpt-oss", scores=True).evaluate(TOKENS)
    assert seen.scores is not None
    np.testing.assert_array_equal(seen.chosen, best(seen))
    np.testing.assert_allclose(
        seen.weights, softmax(np.take_along_axis(seen.scores, seen.chosen.astype(np.int64), 2)), rtol=1e-5
    )


@pytest.mark.parametrize("architecture", ["glm4moe", "deepseek2"])
def test_choices_by_biased_probabilities(tapped: Open, architecture: str) -> None:
    _, seen = tapped(architecture, scores=True).evaluate(TOKENS)
    np.testing.assert_array_equal(seen.chosen, best(seen))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_sees_every_token_though_nobody_wants_its_logits(tapped: Open, architecture: str) -> None:
    _, without = tapped(architecture).evaluate(TOKENS)
    logits, beside = tapped(architecture, logits=True).evaluate(TOKENS)
    np.testing.assert_array_equal(without.chosen, beside.chosen)
    np.testing.assert_array_equal(without.weights, beside.weights)
    assert without.chosen.shape == (2, len(TOKENS), 3)
    assert logits is not None
    assert logits.shape[0] == len(TOKENS)


@pytest.mark.parametrize("architecture", ["gemma4", "olmoe"])
def test_logits_are_those_of_a_context_that_nobody_watches(tapped: Open, architecture: str) -> None:
    watched = tapped(architecture, logits=True, scores=True, norms=True)
    logits, _ = watched.evaluate(TOKENS)
    plain = Context(watched.model, LoadSpec(Path(), context_tokens=128, parallel=2, threads=1), all_logits=True)
    assert plain.decode((token, at, 0, True) for at, token in enumerate(TOKENS)) == 0
    assert logits is not None
    np.testing.assert_array_equal(logits[-1], plain.logits(len(TOKENS) - 1))
    np.testing.assert_array_equal(logits[7], plain.logits(7))
    plain.close()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forbidden_experts_are_not_chosen_and_the_others_are_as_their_scores_say(
    tapped: Open, architecture: str
) -> None:
    blocked = np.zeros((2, 8), np.bool_)
    blocked[0, [1, 2, 6]] = blocked[1, [0, 7]] = True
    context = tapped(architecture, scores=True, logits=True, blocked=blocked)
    masked_logits, masked = context.evaluate(TOKENS)
    assert masked.scores is not None
    assert np.isneginf(masked.scores[0][:, blocked[0]]).all()
    for row in range(2):
        assert not blocked[row, masked.chosen[row]].any()
    np.testing.assert_array_equal(masked.chosen, best(masked))
    context.tap.blocked = None
    free_logits, free = context.evaluate(TOKENS)
    assert masked_logits is not None
    assert blocked[0, free.chosen[0]].any()
    assert not np.array_equal(masked_logits, free_logits)


def test_norms_and_peaks_are_those_of_the_experts_outputs(tapped: Open, folder: Path) -> None:
    context = tapped(norms=True)
    _, seen = context.evaluate(TOKENS)
    inputs = _node(context.model, b"ffn_norm_2-0")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "gemma4.gguf").tensors}

    def weight(name: str) -> NDArray[np.float64]:
        tensor = tensors[f"blk.0.{name}"]
        return np.asarray(tensor.data, np.float64).reshape(tensor.shape[::-1])

    gate, up = weight("ffn_gate_exps.weight"), weight("ffn_up_exps.weight")
    down, scale = weight("ffn_down_exps.weight"), weight("ffn_down_exps.scale")
    assert seen.norms is not None
    assert seen.peaks is not None
    assert (seen.norms > 0).all()  # of every token in every layer, the last too
    for at in (0, 1, len(TOKENS) - 1):
        for rank, expert in enumerate(seen.chosen[0, at]):
            gated = gate[expert] @ inputs[at]
            gelu = 0.5 * gated * (1 + np.tanh(np.sqrt(2 / np.pi) * (gated + 0.044715 * gated**3)))
            output = scale[expert] * (down[expert] @ (gelu * (up[expert] @ inputs[at])))
            norm = seen.weights[0, at, rank] * np.linalg.norm(output)
            assert seen.norms[0, at, rank] == pytest.approx(norm, rel=2e-3)
            assert seen.peaks[0, at, rank] == pytest.approx(np.abs(output).max(), rel=2e-3)


def _node(model: Model, name: bytes) -> NDArray[np.float64]:
    """A node's values after a decode of TOKENS, read without the tap."""
    found: list[NDArray[np.float64]] = []

    @lib.ggml_backend_sched_eval_callback
    def on_node(address: int, asked: bool, _: Any) -> bool:
        node = tap_module.GgmlTensor.from_address(address)
        if node.name != name or asked:
            return node.name == name
        values = (ctypes.c_float * (node.ne[0] * node.ne[1]))()
        tensor_get(address, values, 0, ctypes.sizeof(values))  # a device's memory is out of the processor's reach
        found.append(np.array(values, np.float64).reshape(node.ne[1], node.ne[0]))
        return True

    context = Context(model, LoadSpec(Path(), context_tokens=128, parallel=2, threads=1), on_node=on_node)
    context.decode((token, at, 0, False) for at, token in enumerate(TOKENS))
    context.close()
    return found[0]


def test_several_documents_of_one_decode_do_not_see_each_other(tapped: Open) -> None:
    context = tapped()
    one, other = TOKENS[:30], TOKENS[30:55]
    _, alone = context.evaluate(other)
    context.forget_all()
    both = context.observe(
        [(token, at, 0) for at, token in enumerate(one)] + [(token, at, 1) for at, token in enumerate(other)]
    )
    np.testing.assert_array_equal(both.chosen[:, 30:], alone.chosen)


def test_values_that_lie_on_a_device_are_fetched_and_written_back(
    tapped: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = np.zeros((2, 8), np.bool_)
    blocked[:, 2:5] = True
    context = tapped(scores=True, norms=True, blocked=blocked)
    _, read = context.evaluate(TOKENS)
    monkeypatch.setattr(tap_module, "buffer_is_host", lambda buffer: False)
    _, fetched = context.evaluate(TOKENS)
    for name in ("chosen", "weights", "scores", "norms", "peaks"):
        np.testing.assert_array_equal(getattr(fetched, name), getattr(read, name))


def test_an_interrupt_waits_for_the_decode_to_end(tapped: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tapped()
    read = context.tap._read

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(context.tap, "_read", read)
        signal.raise_signal(signal.SIGINT)
        return read(*arguments)

    monkeypatch.setattr(context.tap, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        context.evaluate(TOKENS)
    assert (context.tap.rows_seen == len(TOKENS)).all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_goes_wrong_in_the_hook_is_raised_after_the_decode(tapped: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tapped()
    _, before = context.evaluate(TOKENS)

    def fail(*_: Any) -> Any:
        raise ValueError("in the hook")

    with monkeypatch.context() as patched:
        patched.setattr(context.tap, "_read", fail)
        with pytest.raises(ValueError, match="in the hook"):
            context.evaluate(TOKENS)
    _, after = context.evaluate(TOKENS)
    np.testing.assert_array_equal(after.chosen, before.chosen)


def test_a_graph_without_the_nodes_of_the_table_is_refused_by_its_layers(tapped: Open, folder: Path) -> None:
    tapped().close()
    experts = Parent.open(folder / "gemma4.gguf").experts
    unnamed = replace(experts, architecture=replace(experts.architecture, weights="ffn_moe_other"))
    with pytest.raises(TapError, match=r"layers \[0, 1\] were not seen"):
        tapped(experts=unnamed)
