"""Drop-map settings of published models (presets), and how much of each is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .methods import DropMap

_GENERIC: Final = ("generic_math", "generic_logic", "generic_code", "generic_science", "generic_creative")


@dataclass(frozen=True)
class Preset:
    """A published recipe.

    n_keep:       experts a layer of the published model, of 128.
    shared_scale: factor on the shared expert, the last step of the recipe; `cut` applies it where it has an effect.
    exact:        what the model card states.
    assumed:      what it does not, and what stands here instead.
    """

    name: str
    method: DropMap
    n_keep: int
    shared_scale: float
    exact: tuple[str, ...]
    assumed: tuple[str, ...]
    source: str


_STATED: Final = (
    "class weights",
    "aggregation: max over classes of weight x place, breadth bonus 0.5, places by rank within layer and class",
    "alpha 2.0, the 16 highest of a layer protected, outliers above 1e4 set to the layer's median",
    "98 of 128 experts, shared expert x 1.2",
)
_ASSUMED: Final = (
    "which experts the floor protects and how many a layer: the published floor map is not in the card, so sizes "
    "and experts come from the profile's own generic classes",
    "ties: the lowest index wins; the card breaks them by a baseline map that it does not contain",
    "the outlier threshold is compared with the mean norm of a choice, not with its sum over a corpus",
)


def _preset(
    name: str, targeted: dict[str, float], source: str, exact: tuple[str, ...], assumed: tuple[str, ...]
) -> Preset:
    weights = {**dict.fromkeys(_GENERIC, 1.0), "generic_code": 3.0, **targeted}
    generic = tuple(one for one in weights if one.startswith("generic_"))
    return Preset(
        name, DropMap(weights, floor_classes=generic), 98, 1.2, (*_STATED, *exact), (*_ASSUMED, *assumed), source
    )


_V6: Final = {"targeted_humaneval": 0.0, "targeted_humanevalplus": 0.0, "targeted_lcb_medium_55": 2.0}
_V7: Final = {"generic_multilingual": 0.0, **_V6}
_BAND: Final = "the floor's band of 24 to 40 experts a layer"

PRESETS: Final[dict[str, Preset]] = {
    preset.name: preset
    for preset in (
        _preset(
            "v6",
            _V6,
            "model card of gemma-4-A4B-98e-v6-coder-it (C6v3lcb)",
            (),
            (f"{_BAND}: the card names a floor map without its band, this is the later recipe's",),
        ),
        _preset(
            "v7",
            {**_V7, "targeted_gpqa": 1.5},
            "model card of gemma-4-A4B-98e-v7-coderx-it, column v7-coder",
            (_BAND,),
            (),
        ),
        _preset(
            "v7-coderx",
            {**_V7, "targeted_gpqa": 0.0},
            "model card of gemma-4-A4B-98e-v7-coderx-it (fs2440)",
            (_BAND,),
            (),
        ),
    )
}
