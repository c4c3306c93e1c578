"""A specialist beside its masked parent: what counts as rounding, what as a flip, and what as wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from coe.engine.spec import LoadSpec
from coe.surgery.cut.cut import cut, kept_experts
from coe.surgery.errors import VerificationError
from coe.surgery.parent import Parent
from coe.surgery.verify.agreement import (
    EXACT_WEIGHTS,
    ROUNDED_WEIGHTS,
    Agreement,
    Kept,
    Run,
    agree,
    agree_apart,
    compare_runs,
    tolerance_of,
)
from fakes import random_moe
from fakes.random_moe import random_mask, write_random_moe

N_LAYERS, N_TOKENS, N_USED, N_KEPT, N_VOCAB = 3, 8, 2, 5, 50
KEPT = Kept((0, 2, 3), np.array([[0, 2, 4, 6, 8]] * N_LAYERS))


# --- the judgement ------------------------------------------------------------------------------------------------


def a_run() -> Run:
    """Random scores, and the choice that they make."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((N_LAYERS, N_TOKENS, N_KEPT)).astype(np.float32)
    best = np.argsort(-scores, axis=-1)[..., :N_USED]
    chosen = np.take_along_axis(np.broadcast_to(KEPT.experts[:, None, :], scores.shape), best, axis=-1)
    return Run(rng.standard_normal((N_TOKENS, N_VOCAB)).astype(np.float32), chosen.astype(np.int32), scores)


def changed(run: Run, **at: tuple[Any, float]) -> Run:
    """A copy with values added: changed(run, logits=((3, 7), 1.0))."""
    fields = {}
    for name, (index, difference) in at.items():
        array = getattr(run, name).copy()
        array[index] += difference
        fields[name] = array
    return replace(run, **fields)


def flipped(run: Run, row: int, position: int, *, margin: float) -> tuple[Run, Run]:
    """Parent and specialist whose second choice differs there; their scores are `margin` apart, and cross over."""
    ranked = np.argsort(-run.scores[row, position])
    second, third = int(ranked[N_USED - 1]), int(ranked[N_USED])
    scores = run.scores.copy()
    scores[row, position, third] = scores[row, position, second] - margin
    parent = replace(run, scores=scores)
    crossed = scores.copy()
    crossed[row, position, third] += 2 * margin
    chosen = run.chosen.copy()
    chosen[row, position, N_USED - 1] = KEPT.experts[row, third]
    return parent, replace(run, scores=crossed, chosen=chosen)


def judged(parent: Run, specialist: Run) -> Agreement:
    return compare_runs(4, parent, specialist, KEPT, EXACT_WEIGHTS)


def test_equal_runs_agree_to_the_last_bit() -> None:
    found = judged(a_run(), a_run())
    assert found == Agreement(N_TOKENS, N_TOKENS, 0, 0.0, (), ())


def test_rounding_is_no_problem_and_is_measured() -> None:
    found = judged(a_run(), changed(a_run(), logits=((3, 7), 0.004), scores=((1, 3, 0), 0.002)))
    assert found.problems == ()
    assert found.equal == N_TOKENS - 1
    assert found.largest == pytest.approx(0.004 / a_run().logits[3].std(), rel=1e-3)


def test_logits_further_apart_are_named_by_their_position() -> None:
    (problem,) = judged(a_run(), changed(a_run(), logits=((3, 7), 0.5))).problems
    assert problem.startswith("Document 4: the logits differ by 0.")
    assert "at position 3" in problem


def test_scores_further_apart_are_named_by_their_layer() -> None:
    (problem,) = judged(a_run(), changed(a_run(), scores=((1, 6, 2), 0.5))).problems
    assert "router's scores in layer 2" in problem
    assert "at position 6" in problem


def test_a_small_difference_everywhere_is_no_rounding() -> None:
    everywhere = changed(a_run(), logits=((slice(None), 0), 0.03))
    (problem,) = judged(a_run(), everywhere).problems
    assert "at a tenth of positions" in problem


def test_logits_that_are_no_numbers_are_a_problem() -> None:
    assert judged(a_run(), changed(a_run(), logits=((5, 1), np.nan))).problems


def test_a_flip_at_a_near_tie_is_shown_and_excuses_what_comes_after_it() -> None:
    parent, specialist = flipped(a_run(), 1, 3, margin=0.001)
    after = changed(specialist, logits=((slice(3, None), 0), 3.0), scores=((2, slice(3, None), 0), 3.0))
    found = judged(parent, after)
    assert found.problems == ()
    (flip,) = found.flips
    assert (flip.document, flip.position, flip.layer) == (4, 3, 2)
    assert len(flip.parent_experts) == len(flip.specialist_experts) == 1
    assert flip.margin < 0.01
    assert found.reached == N_TOKENS - 3


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"logits": ((2, 0), 3.0)},  # an earlier position
        {"scores": ((2, 2, 0), 3.0)},
        {"scores": ((1, 4, 0), 3.0)},  # the same layer: its router comes before what the flip changes
        {"scores": ((0, 5, 0), 3.0)},  # an earlier layer
    ],
    ids=str,
)
def test_a_flip_excuses_nothing_that_it_cannot_have_reached(elsewhere: dict[str, Any]) -> None:
    parent, specialist = flipped(a_run(), 1, 3, margin=0.001)
    assert judged(parent, changed(specialist, **elsewhere)).problems


def test_flips_behind_a_flip_need_no_near_tie_of_their_own() -> None:
    parent, specialist = flipped(a_run(), 0, 2, margin=0.001)
    chosen = specialist.chosen.copy()
    chosen[2, 5] = [KEPT.experts[2, 0], KEPT.experts[2, 1]]
    chosen[1, 2] = [KEPT.experts[1, 3], KEPT.experts[1, 4]]
    found = judged(parent, replace(specialist, chosen=chosen))
    assert found.problems == ()
    assert [(flip.position, flip.layer) for flip in found.flips] == [(2, 0)]


def test_another_choice_from_the_same_scores_is_no_near_tie() -> None:
    run = a_run()
    chosen = run.chosen.copy()
    worst = int(np.argmin(run.scores[1, 3]))
    chosen[1, 3, 1] = KEPT.experts[1, worst]
    (problem,) = judged(run, replace(run, chosen=chosen)).problems
    assert "which is no near-tie" in problem
    assert "position 3, layer 2" in problem


def test_the_same_experts_in_another_order_are_no_flip() -> None:
    run = a_run()
    assert judged(run, replace(run, chosen=run.chosen[..., ::-1])).flips == ()


def test_a_near_tie_of_groups_is_one_too() -> None:
    kept = Kept((0,), np.array([[0, 1, 2, 4, 5, 6]]), group_size=4)
    scores = np.array([[[3.0, 1.0, 0.0, 2.001, 2.0, -5.0]]], np.float32)  # sums of the best two: 4 and 4.001
    logits = np.zeros((1, 4), np.float32)
    logits[0, 0] = 1
    parent = Run(logits, np.array([[[4, 5]]], np.int32), scores)
    other = scores.copy()
    other[0, 0, 0] += 0.002
    specialist = Run(logits, np.array([[[0, 1]]], np.int32), other)
    found = compare_runs(0, parent, specialist, kept, EXACT_WEIGHTS)
    assert found.problems == ()
    assert found.flips[0].margin < 0.001


def test_the_positions_of_its_text_add_up() -> None:
    parent, specialist = flipped(a_run(), 1, 3, margin=0.001)
    apart = changed(specialist, logits=((1, 7), 0.004))
    found = judged(parent, apart)
    assert found.text == (
        f"Of {N_TOKENS} positions 2 have the masked parent's logits to the last bit, 1 differs in rounding, by "
        f"{found.largest:.2g} standard deviations at most, {N_TOKENS - 3} lie at or behind a near-tie of the router "
        "that fell the other way, and cannot be compared."
    )
    assert judged(a_run(), a_run()).text == (
        f"All {N_TOKENS} positions have the masked parent's logits to the last bit."
    )


def test_its_text_calls_what_is_wrong_neither_rounding_nor_a_near_tie() -> None:
    parent, specialist = flipped(a_run(), 1, 3, margin=0.001)
    far = changed(specialist, logits=((1, 7), 0.5))
    text = judged(parent, far).text
    assert "1 differs by" in text
    assert "rounding" not in text
    assert "near-tie" not in text


def test_quantised_weights_may_round_further(tmp_path: Path) -> None:
    plain = Parent.open(write_random_moe(tmp_path / "a.gguf"))
    packed = Parent.open(write_random_moe(tmp_path / "b.gguf", quantised=Type.Q8_0))
    assert tolerance_of(plain.headers) == EXACT_WEIGHTS
    assert tolerance_of(packed.headers) == ROUNDED_WEIGHTS


# --- with llama.cpp -----------------------------------------------------------------------------------------------

VARIANTS: list[dict[str, Any]] = [
    *({"architecture": name} for name in random_moe.ARCHITECTURES),
    *({"architecture": name, "fused": True} for name in random_moe.FUSED),
    *({"architecture": name, "draft": True} for name in random_moe.DRAFTING),
    {"architecture": "deepseek2", "experts": 16, "groups": 4, "groups_used": 2, "dense_layers": 1},
    {"architecture": "deepseek2", "normalised": False, "choice_bias": False},
    {"architecture": "glm4moe", "normalised": False},
    {"architecture": "granitemoe", "shared": False},
    {"architecture": "gemma4", "parts": 3, "used_array": True},
    *({"architecture": "llama", "quantised": kind} for kind in (Type.Q5_0, Type.Q8_0, Type.F16, Type.MXFP4)),
    {"architecture": "gemma4", "quantised": Type.Q4_K, "embedding": 256, "expert_ff": 256},
]
TOKENS = np.random.default_rng(1).integers(9, 265, 100).tolist()


def loaded(path: Path) -> LoadSpec:
    return LoadSpec(path, gpu_layers=0, threads=1)


@pytest.mark.model
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_half_of_every_architectures_experts_computes_what_the_masked_parent_does(
    tmp_path: Path, variant: dict[str, Any]
) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", **variant))
    mask = random_mask(parent, parent.experts.n_expert // 2)
    cut(parent, mask, tmp_path / "out.gguf")
    found = agree(
        parent.path,
        tmp_path / "out.gguf",
        kept_experts(parent.experts, mask),
        tokens=TOKENS,
        load=loaded(parent.path),
    )
    assert found.problems == ()
    assert found.positions >= 100
    assert found.reached < found.positions / 2


@pytest.mark.model
def test_another_order_of_the_same_experts_computes_the_same(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", architecture="gpt-oss", experts=12))
    mask = random_mask(parent, 7)
    slots = {layer: tuple(np.random.default_rng(layer).permutation(kept).tolist()) for layer, kept in mask.keep.items()}
    assert slots != mask.keep
    cut(parent, mask, tmp_path / "ascending.gguf")
    cut(parent, mask, tmp_path / "permuted.gguf", slots=slots)
    for out, order in (("ascending.gguf", mask.keep), ("permuted.gguf", slots)):
        found = agree(parent.path, tmp_path / out, order, tokens=TOKENS, load=loaded(parent.path))
        assert found.problems == ()


@pytest.mark.model
def test_other_experts_compute_something_else(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf"))
    mask, other = random_mask(parent, 4), random_mask(parent, 4, seed=1)
    cut(parent, mask, tmp_path / "out.gguf")
    found = agree(parent.path, tmp_path / "out.gguf", other.keep, tokens=TOKENS, load=loaded(parent.path))
    assert any("router's scores in layer 0" in problem for problem in found.problems)


@pytest.mark.model
def test_the_process_that_runs_them_gives_back_what_it_found(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf"))
    mask, out = random_mask(parent, 4), tmp_path / "out.gguf"
    cut(parent, mask, out)
    steps: list[tuple[int, int]] = []
    load = loaded(out)
    apart = agree_apart(
        parent.path, out, mask.keep, tokens=TOKENS, load=load, progress=lambda *step: steps.append(step)
    )
    assert apart == agree(parent.path, out, mask.keep, tokens=TOKENS, load=load)
    assert apart.generated
    assert steps == [(step, 14) for step in range(1, 15)]  # 7 documents, each for both


@pytest.mark.slow
def test_a_file_that_llama_cpp_refuses_is_said_to_be_so(tmp_path: Path) -> None:
    path = write_random_moe(tmp_path / "m.gguf")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"post_ffw_norm_1", b"post_ffw_norm_9"))
    with pytest.raises(VerificationError, match=r"llama\.cpp cannot load m\.gguf: .*post_ffw_norm_1"):
        agree_apart(None, path, {})


@pytest.mark.slow
def test_a_process_that_llama_cpp_takes_down_is_reported(tmp_path: Path) -> None:
    path = write_random_moe(tmp_path / "m.gguf", experts=4, experts_used=5)
    with pytest.raises(VerificationError, match=r"ended by SIGABRT: .*GGML_ASSERT.*n_expert"):
        agree_apart(None, path, {}, load=loaded(path))
