"""Fits a hidden layer (multilayer perceptron) over the sentence embedding, for what no linear classifier can tell.

One layer of rectified units, and past it a linear path, which the head adds to its linear weights. Fitted with the
cross-entropy of all labels together by Adam (Kingma and Ba 2015, decay of the weights as Loshchilov and Hutter 2019),
in numpy: scikit-learn's has neither dropout nor smoothed labels, and torch is no dependency of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..head import Floats, Hidden, softmax

UNITS = 2048
DROPPED = 0.6  # share of the units left out at each step
NOISE = 0.2  # standard deviation added to embeddings whose numbers have a mean square of 1
SMOOTHING = 0.05  # share of a label that is spread over all labels
PASSES = 12
BATCH = 256
STEP = 2e-3  # falls to nothing over the passes
DECAY = 1e-2
MOMENTUM, SECOND_MOMENT, TINY = 0.9, 0.99, 1e-8


@dataclass(frozen=True)
class Fitted:
    """The hidden layer, and the linear path past it: (n_dimensions, n_labels) and (n_labels,)."""

    hidden: Hidden
    linear: Floats
    bias: Floats


def fit_hidden(
    embeddings: Floats, labels: NDArray[Any], weights: NDArray[Any], n_labels: int, *, units: int = UNITS, seed: int = 0
) -> Fitted:
    """Fit to embeddings (n, n_dimensions), labels (n,) below n_labels and sample weights (n,).

    The scores of each row add up to 0 over the labels. The same input and seed give the same layer.
    """
    draw = np.random.default_rng(seed)
    n, n_dimensions = embeddings.shape
    scale = np.float32(1 / np.sqrt(np.mean(np.square(embeddings))))
    wanted = np.full((n, n_labels), SMOOTHING / n_labels, np.float32)
    wanted[np.arange(n), labels] += np.float32(1 - SMOOTHING)
    share = (weights / weights.mean()).astype(np.float32)[:, None]

    def uniform(n_in: int, *shape: int) -> Floats:
        return draw.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(n_in))

    inward, inward_bias = uniform(n_dimensions, n_dimensions, units), uniform(n_dimensions, units)
    outward, bias = uniform(units, units, n_labels), np.zeros(n_labels, np.float32)
    linear = np.zeros((n_dimensions, n_labels), np.float32)
    parameters = [inward, inward_bias, outward, bias, linear]
    adam = _Adam(parameters, n_steps=PASSES * -(-n // BATCH))
    for rows in _batches(draw, n):
        read = embeddings[rows] * scale
        read += np.float32(NOISE) * draw.standard_normal(read.shape, np.float32)
        kept = (draw.random((len(rows), units), np.float32) >= DROPPED) * np.float32(1 / (1 - DROPPED))
        unit = np.maximum(read @ inward + inward_bias, 0)
        kept *= unit > 0  # from here on: how much of a unit's input passes
        unit *= kept
        error = (softmax(unit @ outward + read @ linear + bias) - wanted[rows]) * share[rows] / np.float32(len(rows))
        back = (error @ outward.T) * kept
        adam.step([read.T @ back, back.sum(axis=0), unit.T @ error, error.sum(axis=0), read.T @ error])
    for scored in (outward, linear, bias):
        scored -= scored.mean(axis=-1, keepdims=True)
    return Fitted(Hidden(inward * scale, inward_bias, outward), linear * scale, bias)


def _batches(draw: np.random.Generator, n: int) -> Iterator[NDArray[np.int64]]:
    for _ in range(PASSES):
        order = draw.permutation(n)
        for start in range(0, n, BATCH):
            yield order[start : start + BATCH]


class _Adam:
    """Changes the parameters in place, without a new array for any of its sums: that is half of the time."""

    def __init__(self, parameters: list[Floats], n_steps: int) -> None:
        self._parameters, self._n_steps, self._done = parameters, n_steps, 0
        self._first = [np.zeros_like(one) for one in parameters]
        self._second = [np.zeros_like(one) for one in parameters]
        self._change = [np.empty_like(one) for one in parameters]

    def step(self, gradients: list[Floats]) -> None:
        """Takes the gradients' memory for its own sums."""
        length = STEP * (1 - self._done / self._n_steps)
        self._done += 1
        first_scale, second_scale = 1 - MOMENTUM**self._done, 1 - SECOND_MOMENT**self._done
        moments = zip(self._parameters, gradients, self._first, self._second, self._change, strict=True)
        for parameter, gradient, first, second, change in moments:
            # first += (1 - MOMENTUM) * (gradient - first)
            np.subtract(gradient, first, out=change)
            change *= 1 - MOMENTUM
            first += change
            # second += (1 - SECOND_MOMENT) * (gradient * gradient - second)
            np.multiply(gradient, gradient, out=change)
            change -= second
            change *= 1 - SECOND_MOMENT
            second += change
            # parameter -= (length / first_scale) * first / (np.sqrt(second / second_scale) + TINY)
            np.divide(second, second_scale, out=change)
            np.sqrt(change, out=change)
            change += TINY
            np.multiply(first, length / first_scale, out=gradient)
            gradient /= change
            parameter *= 1 - length * DECAY
            parameter -= gradient
