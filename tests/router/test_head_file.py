"""The head's file: written, read, and refused."""

from dataclasses import replace

import numpy as np
import pytest

from coe.router.domains import DOMAINS
from coe.router.encoder import DIMENSIONS, STATES
from coe.router.head import HeadError
from coe.router.head_file import load_head, save_head
from coe.router.training_prompts import shipped_prompts
from fakes.heads import EMBEDDING, hidden_head


def test_the_shipped_head_holds_the_prompts_embeddings():
    head = load_head()
    assert head.prompts is not None
    assert head.prompts.shape == (len(shipped_prompts()), DIMENSIONS)
    for half in (head.prompts[:, :STATES], head.prompts[:, STATES:]):
        np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=0.02)


def test_embeddings_of_other_prompts_are_not_used(tmp_path, monkeypatch):
    save_head(load_head(), tmp_path / "head.npz")
    monkeypatch.setattr("coe.router.head_file.prompts_digest", lambda: "another")
    assert load_head(tmp_path / "head.npz").prompts is None


def test_a_head_is_read_as_it_was_written(tmp_path):
    before = hidden_head()
    save_head(before, tmp_path / "head.npz")
    after = load_head(tmp_path / "head.npz")
    vector = before.vector("a ship")
    found = after.probabilities(vector, EMBEDDING)
    np.testing.assert_allclose(found, before.probabilities(vector, EMBEDDING), atol=0.02)
    assert found.max() > 2 / len(DOMAINS)


def test_a_head_without_a_hidden_layer_can_be_read(tmp_path):
    before = hidden_head()
    save_head(replace(before, joint=replace(before.joint, hidden=None)), tmp_path / "head.npz")
    after = load_head(tmp_path / "head.npz")
    assert after.joint.hidden is None
    np.testing.assert_allclose(after.probabilities(after.vector("a ship"), EMBEDDING), 1 / len(DOMAINS), atol=1e-6)


def test_a_hidden_layer_of_another_width_is_refused(tmp_path):
    before = hidden_head()
    narrow = replace(before.joint.hidden, inward=before.joint.hidden.inward[:100])
    save_head(replace(before, joint=replace(before.joint, hidden=narrow)), tmp_path / "head.npz")
    with pytest.raises(HeadError, match=rf"inward has the shape \(100, 6\) in place of \({DIMENSIONS}, 6\)"):
        load_head(tmp_path / "head.npz")
