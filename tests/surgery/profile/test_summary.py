"""The summary of a profile: how concentrated the router was."""

from __future__ import annotations

import pytest

from coe.surgery.parent import Identity
from coe.surgery.profile.profile import Profile
from coe.surgery.profile.summary import summarize, summary_line


def test_the_summary_says_how_concentrated_a_layer_is() -> None:
    profile = Profile.empty(Identity("p", "0" * 64, "gemma4", (0, 3), n_expert=8, n_used=2), ["all"])
    profile.selections[0, :, :, 0] = [[8] * 8, [24, 8, 0, 0, 0, 0, 0, 0]]
    profile.weights[...] = profile.selections
    profile.tokens[0] = 32
    even, narrow = summarize(profile)
    assert (even.entropy, even.top_half, even.top_quarter, even.never_used) == (pytest.approx(1), 0.5, 0.25, 0)
    assert (narrow.top_half, narrow.top_quarter, narrow.never_used) == (1.0, 1.0, 6)
    assert narrow.entropy < 0.3
    assert "in layer 3; 6 of 16 experts were never used" in summary_line(profile)
