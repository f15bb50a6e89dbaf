"""Weighted squares of a model against data, photons and background of each slice solved for, in one sweep.

The same numbers as ``objective.linear_fit`` and ``objective.residuals``, with the gradient. At the minimum over
photons and background the squares do not depend on them to first order, so the gradient holds them fixed.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smlm_bridge.retrieve.intensity import compiled

RealArray = NDArray[np.float32]
ACTIVE_SET_PASSES = 2


class Chi2(torch.autograd.Function):
    """Sum over pixels and slices of the weighted squared residuals of (E, H, W) images."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, photons: Tensor, weights: Tensor, threshold: Tensor | None
    ) -> Tensor:
        """``threshold`` (E,) marks thresholded data, whose zeros are censored."""
        gradient = torch.empty_like(images)
        arrays = (images.contiguous().numpy(), photons.numpy(), weights.numpy())
        if threshold is None:
            total = _with_background(*arrays, gradient.numpy())
        else:
            total = _censored(*arrays, threshold.numpy(), gradient.numpy())
        ctx.gradient = gradient
        return images.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Photons and background held fixed."""
        return ctx.gradient * upstream[0], None, None, None


@compiled
def _with_background(images: RealArray, photons: RealArray, weights: RealArray, gradient: RealArray) -> float:
    total = 0.0
    for e in range(images.shape[0]):
        m, d, w, g = images[e].ravel(), photons[e].ravel(), weights[e].ravel(), gradient[e].ravel()
        s = sm = sd = 0.0
        for i in range(m.size):
            s += w[i]
            sm += w[i] * m[i]
            sd += w[i] * d[i]
        middle, mean = sm / s, sd / s
        above = below = 0.0
        for i in range(m.size):
            above += w[i] * (m[i] - middle) * (d[i] - mean)
            below += w[i] * (m[i] - middle) ** 2
        amount = max(above / max(below, 1e-30), 0.0)
        level = mean - amount * middle
        for i in range(m.size):
            r = amount * m[i] + level - d[i]
            total += w[i] * r * r
            g[i] = 2 * w[i] * r * amount
    return total


@compiled
def _censored(
    images: RealArray, photons: RealArray, weights: RealArray, threshold: RealArray, gradient: RealArray
) -> float:
    total = 0.0
    for e in range(images.shape[0]):
        m, d, w, g = images[e].ravel(), photons[e].ravel(), weights[e].ravel(), gradient[e].ravel()
        least = threshold[e]
        above = below = 0.0
        for i in range(m.size):
            if d[i] > 0:
                above += w[i] * d[i] * m[i]
                below += w[i] * m[i] * m[i]
        amount = above / max(below, 1e-30)
        for _ in range(ACTIVE_SET_PASSES):
            numerator, denominator = above, below
            for i in range(m.size):
                if d[i] <= 0 and amount * m[i] > least:
                    numerator += w[i] * least * m[i]
                    denominator += w[i] * m[i] * m[i]
            amount = numerator / max(denominator, 1e-30)
        for i in range(m.size):
            r = amount * m[i] - (d[i] if d[i] > 0 else least)
            if d[i] <= 0 and r < 0:
                r = 0.0
            total += w[i] * r * r
            g[i] = 2 * w[i] * r * amount
    return total
