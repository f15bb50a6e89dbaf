"""A smooth background under emitters: cubic B-splines on few nodes with a weak penalty (Eilers & Marx 1996)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Smooth:
    """A background over a box of pixels: products of splines along y and along x, K in all.

    Whatever is summed over pixels is summed along one axis after the other.

    Parameters
    ----------
    along_y, along_x : (H, Ky), (W, Kx)
        Splines of each axis.
    penalty : (K, K)
        Sum of squares of second differences of neighbouring coefficients.
    """

    along_y: Floats
    along_x: Floats
    penalty: Floats

    def image(self, coefficients: Floats) -> NDArray[np.float32]:
        """(H, W) background of coefficients (K,)."""
        nodes = coefficients.reshape(self.along_y.shape[1], self.along_x.shape[1])
        return (self.along_y @ nodes @ self.along_x.T).astype(np.float32)

    def overlaps(self, images: NDArray[np.floating]) -> Floats:
        """(n, K) sums over pixels of images (n, H, W) times each spline."""
        count, height, width = images.shape
        sums = images.reshape(count * height, width) @ self.along_x.astype(np.float32)
        sums = self.along_y.T.astype(np.float32) @ sums.reshape(count, height, -1)
        return sums.reshape(count, -1).astype(np.float64)

    def gram(self, weight: NDArray[np.floating]) -> Floats:
        """(K, K) sums over pixels of a weight (H, W) times two splines."""
        (height, rows), (width, columns) = self.along_y.shape, self.along_x.shape
        of_y = (self.along_y[:, :, None] * self.along_y[:, None]).reshape(height, rows * rows)
        of_x = (self.along_x[:, :, None] * self.along_x[:, None]).reshape(width, columns * columns)
        sums = (of_y.T @ (weight @ of_x)).reshape(rows, rows, columns, columns)
        return np.asarray(sums.swapaxes(1, 2).reshape(rows * columns, rows * columns))


@lru_cache(maxsize=64)
def smooth(shape: tuple[int, int], node_px: float) -> Smooth:
    """The background of a box (H, W) with nodes every ``node_px`` pixels or denser."""
    (along_y, rough_y), (along_x, rough_x) = (_axis(length, node_px) for length in shape)
    penalty = np.kron(rough_y, np.eye(len(rough_x))) + np.kron(np.eye(len(rough_y)), rough_x)
    return Smooth(along_y, along_x, penalty)


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
