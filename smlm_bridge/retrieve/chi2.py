"""Weighted squares of a model against data, photons and background of each slice solved for, in one sweep.

The same numbers as ``objective.linear_fit`` and ``objective.residuals``, with the gradient. At the minimum over
photons and background the squares do not depend on them to first order, so the gradient holds them fixed.

A pixel that was set to zero below a threshold t enters with the probability of a value below t (Tobin 1958):
-2 log Phi((t - model) / sigma), times the dispersion, which brings it to the scale of the weighted squares. As
the dispersion goes to zero, that becomes the square of what the model has above t.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr
from torch import Tensor

from smlm_bridge.retrieve.intensity import compiled

RealArray = NDArray[np.float32]
ACTIVE_SET_PASSES = 2
_NEWTON_STEPS = 2  # from the least-squares amount
_SURE = 4.5  # standard deviations below the threshold where a zero says nothing more
_FAR = -25.0  # where the normal distribution is taken from its asymptote
_PER_UNIT = 256  # entries of its table: interpolated, wrong by 2e-6
_ENTRIES = _FAR + np.arange(int((_SURE - _FAR) * _PER_UNIT) + 2) / _PER_UNIT
_LOG_SHARE = log_ndtr(_ENTRIES)
_HAZARD = np.exp(-0.5 * _ENTRIES**2 - _LOG_SHARE) / math.sqrt(2 * math.pi)


class Chi2(torch.autograd.Function):
    """Sum over pixels and slices of the weighted squared residuals of (E, H, W) images."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        photons: Tensor,
        weights: Tensor,
        threshold: Tensor | None,
        dispersion: float,
    ) -> Tensor:
        """``threshold`` (E,) marks thresholded data, whose zeros are censored; their variance is
        ``dispersion`` / weight."""
        gradient = torch.empty_like(images)
        arrays = (images.contiguous().numpy(), photons.numpy(), weights.numpy())
        if threshold is None:
            total = _with_background(*arrays, gradient.numpy())
        else:
            total = _censored(*arrays, threshold.numpy(), dispersion, gradient.numpy())
        ctx.gradient = gradient
        return images.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Photons and background held fixed."""
        return ctx.gradient * upstream[0], None, None, None, None


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
def _below(u: float) -> tuple[float, float]:
    """log Phi(u) for u up to _SURE, and its derivative."""
    if u < _FAR:
        return -0.5 * u * u - math.log(-u * math.sqrt(2 * math.pi)), -u - 1 / u
    place = (u - _FAR) * _PER_UNIT
    entry = min(max(int(place), 0), _LOG_SHARE.size - 2)  # also where u is not a number
    rest = place - entry
    value = _LOG_SHARE[entry] + rest * (_LOG_SHARE[entry + 1] - _LOG_SHARE[entry])
    return value, _HAZARD[entry] + rest * (_HAZARD[entry + 1] - _HAZARD[entry])


@compiled
def _censored(
    images: RealArray,
    photons: RealArray,
    weights: RealArray,
    threshold: RealArray,
    dispersion: float,
    gradient: RealArray,
) -> float:
    total = 0.0
    per_dispersion = np.float32(1 / dispersion if dispersion > 0 else 0.0)
    for e in range(images.shape[0]):
        m, d, w, g = images[e].ravel(), photons[e].ravel(), weights[e].ravel(), gradient[e].ravel()
        amount = _amount(m, d, w, threshold[e], dispersion)
        for i in range(m.size):
            if d[i] > 0:
                r = amount * m[i] - d[i]
                total += w[i] * r * r
                g[i] = 2 * w[i] * r * amount
                continue
            r = amount * m[i] - threshold[e]
            if dispersion > 0:
                per_sigma = np.sqrt(w[i] * per_dispersion)
                value, slope = 0.0, 0.0
                if -r * per_sigma < _SURE:
                    value, slope = _below(-r * per_sigma)
                total -= 2 * dispersion * value
                g[i] = 2 * dispersion * slope * per_sigma * amount
            else:
                r = max(r, 0.0)
                total += w[i] * r * r
                g[i] = 2 * w[i] * r * amount
    return total


@compiled
def _amount(m: RealArray, d: RealArray, w: RealArray, least: float, dispersion: float) -> float:
    """Photons of one slice at the minimum: by least squares, then by Newton's steps."""
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
    if dispersion <= 0:
        return amount
    per_dispersion = np.float32(1 / dispersion)
    for _ in range(_NEWTON_STEPS):
        downhill, curvature = above - amount * below, below
        for i in range(m.size):
            if d[i] <= 0:
                per_sigma = np.sqrt(w[i] * per_dispersion)
                u = (least - amount * m[i]) * per_sigma
                if u < _SURE:
                    slope = _below(u)[1]
                    downhill -= dispersion * per_sigma * slope * m[i]
                    curvature += w[i] * slope * (slope + u) * m[i] * m[i]
        amount = max(amount + downhill / max(curvature, 1e-30), 0.0)
    return amount
