"""How much light a dipole near the coverslip emits, where it goes, and how much of it the objective collects.

Powers are in units of what the same dipole emits in an unbounded sample medium (Lukosz & Kunz 1977; Novotny &
Hecht 2012, Eqs. 10.25 and 10.48). The lower half-space is integrated over the amplitudes of ``interface``, the
total over the dipole's own reflected field: that they and the upper half add up is a law of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from smlm_bridge.optics.interface import transmission
from smlm_bridge.optics.microscope import Optics

FloatArray = NDArray[np.float64]
_NODES = 200


@dataclass(frozen=True)
class ByOrientation:
    """A power for a dipole along z (vertical) and for one across it (horizontal)."""

    vertical: float
    horizontal: float

    @property
    def free(self) -> float:
        """Of a dipole that rotates freely and fast."""
        return (self.vertical + 2 * self.horizontal) / 3


@dataclass(frozen=True)
class DipolePower:
    """Where the light of a dipole goes.

    Parameters
    ----------
    collected
        Into the objective's aperture, as ``Optics.collected_aperture`` has it.
    lower, upper
        Into the half-space of the objective (below a coverslip of the immersion's index), and of the sample.
    total
        Of the dipole, from the field that the interface reflects onto it.
    """

    collected: ByOrientation
    lower: ByOrientation
    upper: ByOrientation
    total: ByOrientation


def dipole_power(optics: Optics, z_nm: float) -> DipolePower:
    """Powers of a dipole at the height ``z_nm`` >= 0 above the coverslip; lossless media."""
    height = max(z_nm, 0.0) * optics.wavenumber_per_nm
    return DipolePower(
        collected=_lower(optics, height, optics.collected_aperture),
        lower=_lower(optics, height, optics.immersion_index),
        upper=_upper(optics, height),
        total=_total(optics, height),
    )


def emitted_fraction(optics: Optics, z_nm: float) -> float:
    """Collected over emitted light of a freely rotating dipole at the height ``z_nm``.

    A PSF gives fractions of the collected photons; times this they are fractions of the emitted ones.
    """
    power = dipole_power(optics, z_nm)
    return power.collected.free / power.total.free


def _lower(optics: Optics, height: float, edge: float) -> ByOrientation:
    n_m = optics.sample_index
    breaks = (n_m, optics.immersion_index)

    def vertical(s: FloatArray) -> FloatArray:
        return np.asarray(_decay(s, n_m, height) * s * _squared(optics, s)[2])

    def horizontal(s: FloatArray) -> FloatArray:
        radial, tangential, _ = _squared(optics, s)
        return np.asarray(_decay(s, n_m, height) * s * (radial + tangential) / 2)

    factor = 3 / (4 * n_m * optics.immersion_index)
    return ByOrientation(
        factor * _integral(vertical, breaks, edge), factor * _integral(horizontal, breaks, edge)
    )


def _upper(optics: Optics, height: float) -> ByOrientation:
    n_m = optics.sample_index
    breaks = (n_m, optics.immersion_index)

    def waves(s: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        cos = np.sqrt(np.maximum(1 - (s / n_m) ** 2, 1e-30))
        r_s, r_p = _reflection(optics, s)
        echo = np.exp(2j * n_m * cos * height)
        across = np.abs(1 - r_p * echo) ** 2 * cos**2 + np.abs(1 + r_s * echo) ** 2
        return s / n_m, cos, np.abs(1 + r_p * echo) ** 2, across

    def vertical(s: FloatArray) -> FloatArray:
        sine, cos, up, _ = waves(s)
        return np.asarray(0.75 * sine**3 / cos * up / n_m)

    def horizontal(s: FloatArray) -> FloatArray:
        sine, cos, _, up = waves(s)
        return np.asarray(0.375 * sine / cos * up / n_m)

    return ByOrientation(_integral(vertical, breaks, n_m), _integral(horizontal, breaks, n_m))


def _total(optics: Optics, height: float) -> ByOrientation:
    n_m, n_i = breaks = (optics.sample_index, optics.immersion_index)

    def parts(s: FloatArray) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
        cos = np.sqrt((1 - (s / n_m) ** 2).astype(complex))
        return cos, s / n_m / cos * np.exp(2j * n_m * cos * height)

    def vertical(s: FloatArray) -> FloatArray:
        _, wave = parts(s)
        return np.asarray((1.5 * wave * (s / n_m) ** 2 * _reflection(optics, s)[1]).real / n_m)

    def horizontal(s: FloatArray) -> FloatArray:
        cos, wave = parts(s)
        r_s, r_p = _reflection(optics, s)
        return np.asarray((0.75 * wave * (r_s - cos**2 * r_p)).real / n_m)

    # Beyond both media the reflected field is in antiphase with the dipole and takes no power.
    edge = max(n_m, n_i)
    return ByOrientation(1 + _integral(vertical, breaks, edge), 1 + _integral(horizontal, breaks, edge))


def _reflection(optics: Optics, s: FloatArray) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Of the interface to a coverslip of the immersion's index, of the s and the p polarised field."""
    n_m, n_i = optics.sample_index, optics.immersion_index
    cos_m, cos_i = (np.sqrt((1 - (s / n) ** 2).astype(complex)) for n in (n_m, n_i))
    r_s = (n_m * cos_m - n_i * cos_i) / (n_m * cos_m + n_i * cos_i)
    r_p = (n_i * cos_m - n_m * cos_i) / (n_i * cos_m + n_m * cos_i)
    return r_s, r_p


def _squared(optics: Optics, s: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    light = transmission(optics, torch.as_tensor(s) ** 2)
    radial, tangential, axial = (
        part.abs().square().numpy() for part in (light.radial, light.tangential, light.axial)
    )
    return radial, tangential, axial


def _decay(s: FloatArray, n_m: float, height: float) -> FloatArray:
    return np.asarray(np.exp(-2 * height * np.sqrt(np.maximum(s**2 - n_m**2, 0.0))))


@lru_cache(maxsize=1)
def _gauss() -> tuple[FloatArray, FloatArray]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return nodes, weights


def _integral(
    function: Callable[[FloatArray], FloatArray], breaks: tuple[float, float], edge: float
) -> float:
    """Over s from 0 to ``edge``, by Gauss-Legendre between the critical angles, whose roots sin^2 tames."""
    nodes, weights = _gauss()
    turn = (nodes + 1) * np.pi / 4
    ends = [0.0, *(at for at in sorted(set(breaks)) if at < edge), edge]
    total = 0.0
    for low, high in pairwise(ends):
        s = low + (high - low) * np.sin(turn) ** 2
        total += float(function(s) @ (weights * np.pi / 4 * (high - low) * np.sin(2 * turn)))
    return total
