"""The exact likelihood of an EMCCD's pixel, as a table that compiled and general fits read alike.

The electrons of a pixel are Poisson with mean mu, each is multiplied to an exponential number of electrons, and
read noise adds. In photo-electrons x the density without read noise is exp(-mu) at x = 0 and
sqrt(mu / x) exp(-x - mu) I1(2 sqrt(mu x)) above (Basden et al. 2003; Mortensen et al. 2010, Supplement); with it,
that is convolved with a Gaussian (Hirsch et al. 2013). The part of pixels that saw no electron is a formula; the
logarithm of the other over mu is smooth, and far out a parabola, in sqrt(mu) and sqrt(x): cubic splines hold it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import i1e

from smlm_bridge.camera import excess_factor

Floats = NDArray[np.float64]

STEP: Final = 0.05  # of sqrt(mu), and of the data's coordinate
LEAST_NOISE_E: Final = 0.02  # read noise over gain that is taken for none
LEAST_MEAN_E: Final = 1e-3
LARGEST_ROOT: Final = 10.0
_STEPS_A_SIGMA = 3.0  # of the read noise, where no electron came
_FARTHEST_SIGMA = 10.0
_NODES = 48


@dataclass(frozen=True, eq=False)
class GainTable:
    """Log-density and information of a pixel of one camera.

    Parameters
    ----------
    coefficients : (A + 2, B + 2)
        Of cubic B-splines of the log-density of pixels that saw electrons, over mu, at sqrt(mu) from 0 and the
        data's coordinate x / (x^2 + bend^4)^(1/4) from ``first``, both in steps of ``STEP``.
    information : (A,)
        Of a pixel about its mean, times the mean, at sqrt(mu); from ``LARGEST_ROOT`` on it is 1/2.
    first, bend
        Of the data's coordinate.
    noise_e
        Read noise over gain, photo-electrons.
    """

    coefficients: Floats
    information: Floats
    first: float
    bend: float
    noise_e: float

    @property
    def least(self) -> float:
        """Data below count as this: no electron can be told from none."""
        return -_FARTHEST_SIGMA * self.noise_e


@lru_cache(maxsize=16)
def gain_table(read_noise_e: float) -> GainTable:
    """The table of a camera whose read noise over gain is ``read_noise_e`` (photo-electrons)."""
    noise = max(float(read_noise_e), LEAST_NOISE_E)
    bend = noise / (_STEPS_A_SIGMA * STEP)
    roots: Floats = STEP * np.arange(round(LARGEST_ROOT / STEP) + 1, dtype=np.float64)
    first = float(coordinate(np.array(-_FARTHEST_SIGMA * noise), bend))
    mean = LARGEST_ROOT**2
    last = float(coordinate(np.array(mean + 12 * np.sqrt(2 * mean + noise**2) + 40), bend))
    places: Floats = first + STEP * np.arange(int(np.ceil((last - first) / STEP)) + 1, dtype=np.float64)
    table = _log_light(_data(places, bend), roots[:, None] ** 2, noise)
    coefficients = _spline(_spline(table).T).T
    information = 1 / excess_factor(roots**2, noise)
    return GainTable(np.ascontiguousarray(coefficients), information, first, bend, noise)


def coordinate(x: Floats, bend: float) -> Floats:
    """Of data x: like x / bend about 0, like sqrt(x) far above."""
    return np.asarray(x / np.sqrt(np.sqrt(x * x + bend**4)))


def _data(places: Floats, bend: float) -> Floats:
    """The data at coordinates: w^2 = x^2 / sqrt(x^2 + bend^4) solved for x."""
    square = places**2
    return np.asarray(np.sign(places) * np.sqrt(0.5 * square * (square + np.sqrt(square**2 + 4 * bend**4))))


def log_density(x: Floats, mean: Floats, noise_e: float) -> Floats:
    """Logarithm of the density of data ``x`` for means ``mean`` > 0 (broadcast), by quadrature."""
    none = -mean - 0.5 * (x / noise_e) ** 2 - np.log(noise_e * np.sqrt(2 * np.pi))
    return np.asarray(np.logaddexp(none, _log_light(x, mean, noise_e) + np.log(mean)))


def _log_light(x: Floats, mean: Floats, noise_e: float) -> Floats:
    """Logarithm of the part of the density that saw electrons, over the mean."""
    x, mean = np.broadcast_arrays(x, mean)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    # What the read noise brings to x from light y > 0.
    reach = (_FARTHEST_SIGMA - 1) * noise_e
    low = np.maximum(x - reach, 0.0)
    high = np.maximum(x, 0.0) + reach
    total = np.full(x.shape, -np.inf)
    for node, weight in zip(nodes, weights, strict=True):
        y = 0.5 * ((high - low) * node + high + low)
        twice = np.maximum(2 * np.sqrt(y * mean), 1e-6)
        light = np.log(2 * i1e(twice) / twice) - (np.sqrt(y) - np.sqrt(mean)) ** 2
        blur = -0.5 * ((x - y) / noise_e) ** 2 - np.log(noise_e * np.sqrt(2 * np.pi))
        total = np.logaddexp(total, light + blur + np.log(0.5 * (high - low) * weight))
    return total


def _spline(values: Floats) -> Floats:
    """(n + 2, ...) coefficients of the uniform cubic B-spline through values (n, ...), not-a-knot at both ends."""
    n = len(values)
    system = np.zeros((n + 2, n + 2))
    for offset, weight in enumerate((1 / 6, 4 / 6, 1 / 6)):
        system[np.arange(n), np.arange(n) + offset] = weight
    system[n, :5] = system[n + 1, -5:] = (-1, 4, -6, 4, -1)
    return np.linalg.solve(system, np.concatenate([values, np.zeros((2, *values.shape[1:]))]))
