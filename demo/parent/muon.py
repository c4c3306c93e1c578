"""Muon, an optimiser for matrices: each step's momentum is made orthogonal, so that every direction moves alike.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Muon:
    """Moves matrices; stacks of them [N, rows, columns] are N matrices."""

    def __init__(self, parameters: Sequence[Tensor], decay: float, momentum: float = 0.95) -> None:
        self._parameters, self._decay, self._momentum = parameters, decay, momentum
        self.momenta = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move each parameter against its gradient."""
        for parameter, momentum in zip(self._parameters, self.momenta, strict=True):
            assert parameter.grad is not None
            momentum.lerp_(parameter.grad, 1 - self._momentum)
            update = _orthogonal(parameter.grad.lerp(momentum, self._momentum))
            rows, columns = parameter.shape[-2:]
            parameter.mul_(1 - rate * self._decay)
            parameter.add_(update, alpha=-rate * math.sqrt(max(1.0, rows / columns)))


def _orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought near one, by a polynomial iterated five times."""
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x: Tensor = matrix if wide else matrix.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT
