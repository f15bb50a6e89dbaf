"""Zernike polynomials with Noll's index and normalisation (Noll 1976, Eqs. 1-3 and Table 1)."""

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def noll_to_nm(noll: int) -> tuple[int, int]:
    """Radial order n and signed azimuthal order m of a Noll index; m > 0 is cos (even index), m < 0 is sin.

    Raises
    ------
    ValueError
        If ``noll`` is below 1.
    """
    if noll < 1:
        raise ValueError(f"Noll indices count from 1, got {noll}.")
    n = (math.isqrt(8 * noll - 7) - 1) // 2
    within = noll - n * (n + 1) // 2 - 1
    m = within + (n + within) % 2
    return n, (m if noll % 2 == 0 else -m)


def zernike(noll: int, x: FloatArray, y: FloatArray) -> FloatArray:
    """Z_noll at the points (x, y) in units of the pupil radius; RMS 1 over the unit disk.

    Points outside the disk get the polynomial's continuation, so that a soft pupil edge has no step.
    """
    n, m = noll_to_nm(noll)
    order = abs(m)
    r2 = x * x + y * y
    radial = np.zeros_like(r2)
    for k in range((n - order) // 2 + 1):
        coefficient = (-1) ** k * math.factorial(n - k)
        coefficient //= (
            math.factorial(k) * math.factorial((n + order) // 2 - k) * math.factorial((n - order) // 2 - k)
        )
        radial += coefficient * r2 ** ((n - order) // 2 - k)
    azimuthal = (x + 1j * y) ** order  # r^m e^{i m phi}: the factor r^m completes the radial polynomial
    norm = math.sqrt(n + 1) if m == 0 else math.sqrt(2 * (n + 1))
    values: FloatArray = norm * radial * (azimuthal.real if m >= 0 else azimuthal.imag)
    return values


def zernike_basis(noll: list[int], x: FloatArray, y: FloatArray) -> FloatArray:
    """(len(noll), ...) stack of ``zernike``."""
    return np.stack([zernike(j, x, y) for j in noll]) if noll else np.zeros((0, *x.shape))
