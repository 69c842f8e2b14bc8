"""The Muon optimizer of Keller Jordan et al. (2024).

Described at https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WEIGHT_DECAY = 0.01


class Muon:
    """Momentum whose update is made nearly orthogonal, for weight matrices.

    Args:
        weights: The matrices to train.
        momentum: Share of the earlier gradients that an update keeps.
    """

    def __init__(self, weights: Sequence[Tensor], momentum: float = 0.95) -> None:
        self._weights = list(weights)
        self._velocities = [torch.zeros_like(weight) for weight in self._weights]
        self._momentum = momentum

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Updates the weights from their gradients.

        Args:
            lr: The learning rate.
        """
        for weight, velocity in zip(self._weights, self._velocities, strict=True):
            gradient = weight.grad
            if gradient is None:
                continue
            velocity.lerp_(gradient, 1 - self._momentum)
            update = orthogonal(gradient.lerp(velocity, self._momentum))
            scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
            weight.mul_(1 - WEIGHT_DECAY * lr).add_(update, alpha=-lr * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximates the nearest semi-orthogonal matrix by five Newton-Schulz steps.

    The coefficients are those of Keller Jordan et al.; they trade exactness for speed.

    Args:
        matrix: Any matrix.

    Returns:
        A matrix of the same shape whose singular values are roughly one, apart from those that
        were close to zero.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide: Tensor = matrix.T if tall else matrix
    wide = wide / (torch.linalg.matrix_norm(wide) + 1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.T if tall else wide
