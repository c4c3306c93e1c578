"""From a profile to a mask (expert pruning): the selection methods carried out, and the provenance of their mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ParentMismatchError, ProfileError
from ..mask import ExpertSwap, Mask, Pin, Provenance, require_count
from ..profile.profile import Profile
from . import drop_map, three_pass
from .criteria import score
from .methods import DropMap, SelectionMethod, ThreePass, TopK
from .presets import PRESETS
from .selection import Kept, best, exchanged, pinned, ranked, top_k


def plan(
    profile: Profile,
    n_keep: int,
    method: SelectionMethod,
    *,
    criterion: str | None = None,
    second: Profile | None = None,
    pins: Sequence[Pin] = (),
    seed: int = 0,
) -> Mask:
    """The mask that a selection method makes of a profile; the same input gives the same mask.

    criterion: what experts are scored by. None for gate mass, and for the drop map its own score.
    second:    a profile of domain-neutral reasoning traces, for the third of the three passes; without it that pass
               is left out.
    pins:      experts that are kept whatever their score, super experts for example.
    Every exchange that a pass made is in the mask's provenance. Its ranking has what is kept before the rest; of both,
    what is pinned or protected (the whitelist, a drop map's floor) goes last, and then the higher score.

    Raises MaskError when n_keep or the pins cannot be, ProfileError when the profile lacks what the method needs,
    ParentMismatchError when the second profile is of another parent.
    """
    parent = profile.parent
    require_count(parent, n_keep)
    _require_tokens(profile)
    fixed = pinned(parent, pins, n_keep)
    settings: dict[str, Any] = {"n_keep": n_keep, "criterion": criterion or "gate-mass"}
    if criterion == "random":
        settings["seed"] = seed
    if second is not None and not isinstance(method, ThreePass):
        raise ProfileError(
            "This recipe makes no use of a second profile.", "Leave it out, or take the recipe three-pass."
        )
    match method:
        case TopK():
            settings = {"name": "top-k", **settings}
            scores = score(profile, settings["criterion"], seed=seed)
            kept, swaps = _first_pass(profile, scores, n_keep, fixed, pins)
            keys: tuple[NDArray[Any], ...] = (fixed, scores)
        case ThreePass():
            scores = score(profile, settings["criterion"], seed=seed)
            kept, swaps = _first_pass(profile, scores, n_keep, fixed, pins)
            reasoning = None
            if second is not None:
                _require_same_parent(profile, second)
                _require_tokens(second)
                reasoning = score(second, settings["criterion"], seed=seed)
            kept, later = three_pass.carry_out(profile, kept, method, scores, reasoning, fixed)
            swaps += later
            keys = (kept, fixed | three_pass.whitelist(profile, method), scores)
            settings = {"name": "three-pass", **settings, **_three_pass_settings(profile, method, second)}
        case DropMap():
            kept, swaps, keys = drop_map.carry_out(profile, n_keep, method, criterion, fixed, seed=seed)
            reasons = {(pin.layer, pin.expert): f"pinned: {pin.why}" for pin in pins}
            swaps = [ExpertSwap(s.layer, s.out, s.into, reasons.get((s.layer, s.into), s.why)) for s in swaps]
            settings = {"name": "drop-map", **settings, **_drop_map_settings(profile, method)}
            if criterion is None:
                settings["criterion"] = "alpha x norms + choices"
    provenance = Provenance(
        recipe=settings,
        corpus_sha256=profile.corpus_sha256,
        tokens=_tokens(profile),
        swaps=tuple(swaps),
        pins=tuple(sorted(pins, key=lambda pin: (pin.layer, pin.expert))),
        made_with=f"coe-runtime {version('coe-runtime')}",
    )
    return Mask.from_matrix(parent, kept, provenance, ranked(keys))


def _first_pass(
    profile: Profile, scores: drop_map.Scores, n_keep: int, fixed: Kept, pins: Sequence[Pin]
) -> tuple[Kept, list[ExpertSwap]]:
    parent = profile.parent
    kept = best((fixed, scores), n_keep, parent.n_groups)
    why = {(pin.layer, pin.expert): f"pinned: {pin.why}" for pin in pins}
    return kept, exchanged(parent, top_k(scores, n_keep, parent.n_groups), kept, why, "pinned")


def _three_pass_settings(profile: Profile, method: ThreePass, second: Profile | None) -> dict[str, Any]:
    settings = {
        **asdict(method),
        "rank_below": three_pass.rank_limit(method, profile.selections.shape[3]),
        "activations_at_least": three_pass.least_activations(method, profile.n_tokens),
    }
    if second is not None:
        settings |= {"reasoning_corpus_sha256": second.corpus_sha256, "reasoning_tokens": _tokens(second)}
    return settings


def _drop_map_settings(profile: Profile, method: DropMap) -> dict[str, Any]:
    preset = next((preset.name for preset in PRESETS.values() if preset.method == method), None)
    return {
        **({} if preset is None else {"preset": preset}),
        **asdict(method),
        "weights": drop_map.weights_of(profile, method),
        "floor_band": None if method.floor_band is None else list(method.floor_band),
        "floor_classes": list(method.floor_classes),
        "floor": {str(layer): size for layer, size in method.floor.items()},
    }


def _tokens(profile: Profile) -> dict[str, int]:
    return dict(zip(profile.classes, profile.tokens.tolist(), strict=True))


def _require_tokens(profile: Profile) -> None:
    if not profile.n_tokens or not np.any(profile.selections):
        raise ProfileError("The profile has seen no tokens.", "Profile a corpus first.")


def _require_same_parent(profile: Profile, second: Profile) -> None:
    if second.parent.sha256 != profile.parent.sha256:
        raise ParentMismatchError(
            f"The second profile is of {second.parent.name}, the first of {profile.parent.name}.",
            "Profile both with the same file.",
        )
