"""Profiles of routers that were never run: for tests of what is decided from profiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coe.surgery.parent import Identity
from coe.surgery.profile.profile import Profile


def identity(
    *,
    layers: int = 3,
    experts: int = 16,
    used: int = 4,
    groups: int = 1,
    name: str = "parent",
    first_layer: int = 0,
    architecture: str = "gemma4",
) -> Identity:
    """A parent that is no file."""
    numbers = tuple(range(first_layer, first_layer + layers))
    return Identity(name, name * 8, architecture, numbers, experts, used, groups)


def routed(
    parent: Identity,
    tokens: int,
    rng: np.random.Generator,
    logits: NDArray[np.float64] | None = None,
    *,
    norms: bool = True,
    name: str = "all",
) -> Profile:
    """The profile of a router that draws each token's experts by `logits` [L, E] plus noise."""
    n_layers, n_expert, n_used = len(parent.layers), parent.n_expert, parent.n_used
    if logits is None:
        logits = rng.normal(size=(n_layers, n_expert))
    noisy = logits[None] + rng.gumbel(size=(tokens, n_layers, n_expert))
    chosen = np.argsort(-noisy, axis=2)[:, :, :n_used]
    mass = np.exp(np.take_along_axis(noisy, chosen, 2))
    mass /= mass.sum(2, keepdims=True)
    profile = Profile.empty(parent, [name], norms=norms, corpus_sha256=f"corpus of {name}")
    _, layer, rank = np.indices(chosen.shape)
    np.add.at(profile.selections[0], (layer, chosen, rank), 1)
    np.add.at(profile.weights[0], (layer, chosen, rank), mass)
    if profile.norms is not None and profile.peaks is not None:
        sizes = rng.uniform(0.5, 2.0, (n_layers, n_expert))
        np.add.at(profile.norms[0], (layer, chosen), mass * sizes[layer, chosen])
        profile.peaks[:] = rng.uniform(1.0, 2.0, (n_layers, n_expert))
    return replace(profile, tokens=np.array([tokens]), documents=np.array([1]))
