"""A fluorescent bead: a ball, filled evenly with dye, whose image is the PSF summed over its volume."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import j1, roots_jacobi

from smlm_bridge.errors import InputRejected

FloatArray = NDArray[np.float64]
LARGEST_DIAMETER_NM = 500.0  # beyond, the points lie further apart than the PSF is wide


def bead_layers(diameter_nm: float, layers: int = 4) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Slices of a bead: exact for an image that is a polynomial of degree 2 * layers - 1 in z.

    Parameters
    ----------
    diameter_nm
        Of the bead, >= 0.
    layers
        Number of slices.

    Returns
    -------
    (L,) heights above the bead's centre, (L,) shares of the volume, (L,) radii of the discs (nm), by Gauss-Jacobi
    quadrature with the area of a slice as weight.
    """
    if not 0 <= diameter_nm <= LARGEST_DIAMETER_NM:
        raise InputRejected(
            f"a bead of {diameter_nm:g} nm is outside 0 to {LARGEST_DIAMETER_NM:g} nm. Is it in nanometres?"
        )
    nodes, weights = roots_jacobi(layers, 1, 1)
    radius = diameter_nm / 2
    return radius * nodes, weights / weights.sum(), radius * np.sqrt(1 - nodes**2)


def bead_points(diameter_nm: float, layers: int = 4) -> tuple[FloatArray, FloatArray]:
    """(P, 3) offsets (x, y, z) from the bead's centre and (P,) shares of its volume, seven points a layer.

    The seven points of a disc are Radon's rule (1948), exact to degree 5.
    """
    heights, shares, radii = bead_layers(diameter_nm, layers)
    angle = np.arange(6) * math.pi / 3
    ring = np.sqrt(2 / 3) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    disc = np.concatenate([np.zeros((1, 2)), ring])
    disc_share = np.array([1 / 4, *[1 / 8] * 6])
    points = np.concatenate(
        [
            np.broadcast_to(radii[:, None, None] * disc, (layers, 7, 2)),
            np.repeat(heights, 7).reshape(-1, 7, 1),
        ],
        axis=2,
    )
    return points.reshape(-1, 3), np.outer(shares, disc_share).ravel()


def disc_transfer(frequency_per_nm: FloatArray, radius_nm: float) -> FloatArray:
    """2 J_1(u) / u, u = 2 pi f r: what a disc's slice of a bead passes of a spatial frequency in its plane."""
    u = 2 * np.pi * np.asarray(frequency_per_nm, dtype=np.float64) * radius_nm
    safe = np.where(u == 0, 1.0, u)
    return np.where(u == 0, 1.0, 2 * j1(safe) / safe)


def ball_transfer(frequency_per_nm: FloatArray, diameter_nm: float) -> FloatArray:
    """3 (sin u - u cos u) / u^3, u = pi f D: what a bead passes of a spatial frequency in three dimensions."""
    u = np.pi * np.asarray(frequency_per_nm, dtype=np.float64) * diameter_nm
    safe = np.where(u < 1e-3, 1.0, u)
    exact = 3 * (np.sin(safe) - safe * np.cos(safe)) / safe**3
    return np.where(u < 1e-3, 1 - u**2 / 10, exact)
