"""Masks by hand, and the table that a model card published."""

from __future__ import annotations

import numpy as np

from coe.surgery.mask import Mask
from coe.surgery.study.compare import Comparison
from fakes.synthetic_profile import identity

PARENT = identity(layers=2, experts=8, used=2)


def mask(*keep: tuple[int, ...]) -> Mask:
    return Mask(PARENT, dict(enumerate(keep)))


THREE = {
    "a": mask((0, 1, 2, 3), (0, 1, 2, 3)),
    "b": mask((0, 1, 2, 4), (0, 4, 5, 6)),
    "c": mask((0, 5, 6, 7), (0, 1, 6, 7)),
}
# The third model card: visitor, target, accuracy in percent, its transfer, F-score, cosine.
VISITS = """
physics math 88.9 0.945 0.787 0.764
law math 18.5 0.197 0.485 0.440
chemistry physics 83.1 0.952 0.855 0.842
law physics 10.0 0.115 0.448 0.396
physics engineering 63.9 0.880 0.854 0.841
law engineering 12.4 0.170 0.421 0.367
math cs 90.2 1.089 0.723 0.700
law cs 51.2 0.618 0.485 0.437
physics chemistry 74.3 0.844 0.855 0.842
law chemistry 13.3 0.151 0.413 0.363
psychology biology 75.0 0.834 0.749 0.721
business biology 54.2 0.603 0.576 0.534
psychology economics 65.5 0.745 0.739 0.713
chemistry economics 65.5 0.745 0.571 0.535
math business 77.2 0.884 0.756 0.732
law business 13.9 0.159 0.541 0.499
biology psychology 65.0 0.782 0.749 0.721
engineering psychology 62.5 0.752 0.486 0.436
economics law 45.5 0.730 0.701 0.676
chemistry law 33.6 0.540 0.413 0.363
"""
PARENTS = {
    "math": 94.1, "chemistry": 88.1, "biology": 89.9, "economics": 87.9, "business": 87.3, "physics": 87.3,
    "psychology": 83.1, "cs": 82.9, "engineering": 72.6, "law": 62.3,
}  # fmt: skip
AT_HOME = {
    "math": 94.3, "chemistry": 88.5, "biology": 87.5, "economics": 84.6, "business": 83.9, "physics": 84.0,
    "psychology": 79.0, "cs": 81.1, "engineering": 71.1, "law": 58.9,
}  # fmt: skip


def published() -> tuple[Comparison, dict[str, dict[str, float]], list[float]]:
    names = tuple(PARENTS)
    overlap, cosine = np.eye(10), np.eye(10)
    accuracies: dict[str, dict[str, float]] = {name: {name: home} for name, home in AT_HOME.items()}
    stated = []
    for line in VISITS.split("\n")[1:-1]:
        visitor, target, *numbers = line.split()
        accuracy, efficiency, f, cos = map(float, numbers)
        a, b = names.index(visitor), names.index(target)
        overlap[a, b] = overlap[b, a] = f
        cosine[a, b] = cosine[b, a] = cos
        accuracies[visitor][target] = accuracy
        stated.append((visitor, target, efficiency))
    accuracies["parent"] = PARENTS
    # The card does not print the layers' spread; any numbers do that differ.
    spread = np.random.default_rng(0).random((10, 10))
    comparison = Comparison(
        names, (0,), (64,) * 10, overlap, overlap[:, :, None], overlap, overlap, cosine, spread, {0: 0}
    )
    return comparison, accuracies, stated
