"""Poisson deviance, and what it is where a model is right: its mean and variance at every expected level."""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve, uniform_filter
from scipy.special import gammaln, xlogy

Floats = NDArray[np.float64]

_MEANS: Final = np.geomspace(1e-3, 150.0, 90)  # beyond, the series in 1 / mean is exact to 1e-4
_LEAST: Final = 1e-3
# Second differences along both axes (Immerkaer 1996): smooth light cancels, white noise of variance 1 gives 36.
_DIFFERENCES: Final = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
_MEDIAN_OF_HALF_NORMAL: Final = 0.6745
_SMOOTH_PX: Final = 7  # a smaller window would call dark what is so by chance, with little noise
_DARK: Final = 50.0  # per cent of the pixels that are dark enough to show the read noise


def deviance(photons: Floats, mean: Floats) -> Floats:
    """Poisson deviance of every pixel, 2 (d log(d / m) - d + m); negative data count as 0."""
    seen, expected = np.maximum(photons, 0.0), np.maximum(mean, _LEAST)
    return np.asarray(2.0 * (xlogy(seen, seen / expected) - seen + expected))


def deviance_moments(mean: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of the deviance of a Poisson variable of this mean; 1 and 2 at high levels."""
    mu = np.maximum(np.asarray(mean, np.float64), _LEAST)
    at = np.log(np.minimum(mu, _MEANS[-1]))
    first, second = (np.interp(at, np.log(_MEANS), row) for row in _moments())
    high = mu > _MEANS[-1]
    return np.where(high, 1 + 1 / (6 * mu), first), np.where(high, 2 + 2 / (3 * mu), second)


@lru_cache(maxsize=1)
def _moments() -> tuple[Floats, Floats]:
    counts = np.arange(0, 400, dtype=np.float64)[:, None]
    weight = np.exp(xlogy(counts, _MEANS) - _MEANS - gammaln(counts + 1))
    values = deviance(np.broadcast_to(counts, weight.shape), np.broadcast_to(_MEANS, weight.shape))
    mean = (weight * values).sum(0)
    return mean, (weight * values**2).sum(0) - mean**2


def extra_read_variance(
    photons: NDArray[np.floating],
    *,
    camera_variance: float,
    excess: float,
    read_noise_e: tuple[float, float],
) -> float:
    """Variance of read noise beyond the camera's in one image (H, W), within what was trained.

    Where a model was trained for a range of read noise, only the image itself says how much there is: from
    second differences of its darker half, less the shot noise there.
    """
    low, high = (value**2 for value in read_noise_e)
    if high <= low:
        return low
    level = uniform_filter(np.asarray(photons, np.float64), _SMOOTH_PX)
    rough = np.abs(convolve(np.asarray(photons, np.float64), _DIFFERENCES))
    dark = level <= np.percentile(level, _DARK)
    variance = (np.median(rough[dark]) / _MEDIAN_OF_HALF_NORMAL) ** 2 / 36.0
    shot = excess * max(float(level[dark].mean()), 0.0)
    return float(np.clip(variance - shot - camera_variance, low, high))
