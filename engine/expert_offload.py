"""Expert offload: which layers leave their experts in host memory, so that the rest fits a GPU. A pure choice."""

from __future__ import annotations

from collections.abc import Sequence


def layers_on_cpu(needed_bytes: int, budget_bytes: int, expert_bytes: Sequence[int]) -> int | None:
    """How many layers, from the first, must leave their experts in host memory for the rest to fit the budget.

    needed_bytes: with all experts on the device. expert_bytes: of each layer, those without experts included.
    None when it does not fit even without any.
    """
    for layers in range(len(expert_bytes) + 1):
        if needed_bytes - sum(expert_bytes[:layers]) <= budget_bytes:
            return layers
    return None
