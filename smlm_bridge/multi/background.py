"""A smooth background under emitters: cubic B-splines on few nodes with a weak penalty (Eilers & Marx 1996)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Smooth:
    """A background over a box of pixels.

    Parameters
    ----------
    basis : (H*W, K)
        Splines.
    penalty : (K, K)
        Sum of squares of second differences of neighbouring coefficients.
    """

    basis: NDArray[np.float32]
    penalty: Floats


@lru_cache(maxsize=64)
def smooth(shape: tuple[int, int], node_px: float) -> Smooth:
    """The background of a box (H, W) with nodes every ``node_px`` pixels or denser."""
    axes = [_axis(length, node_px) for length in shape]
    basis = np.einsum("yi,xj->yxij", *(basis for basis, _ in axes)).reshape(shape[0] * shape[1], -1)
    (_, rough_y), (_, rough_x) = axes
    penalty = np.kron(rough_y, np.eye(len(rough_x))) + np.kron(np.eye(len(rough_y)), rough_x)
    return Smooth(np.ascontiguousarray(basis, np.float32), penalty)


def smoothed(image: NDArray[np.float32], node_px: float) -> NDArray[np.float32]:
    """An image (H, W) by unweighted least squares on the splines of ``smooth``, one axis after the other."""
    for axis in (0, 1):
        basis, roughness = _axis(image.shape[axis], node_px)
        projection = basis @ np.linalg.solve(basis.T @ basis + 1e-3 * roughness, basis.T)
        image = np.moveaxis(np.tensordot(projection, image, axes=(1, axis)), 0, axis)
    return image.astype(np.float32)


def _axis(length: int, node_px: float) -> tuple[Floats, Floats]:
    """(length, k) cubic B-splines and (k, k) penalty of one axis."""
    spans = max(1, round(length / node_px))
    position = (np.arange(length) + 0.5) / length * spans
    first = np.minimum(position.astype(int), spans - 1)
    t = position - first
    values = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    basis = np.zeros((length, spans + 3))
    for k, value in enumerate(values):
        basis[np.arange(length), first + k] = value / 6
    second = np.diff(np.eye(spans + 3), n=2, axis=0)
    return basis, second.T @ second
