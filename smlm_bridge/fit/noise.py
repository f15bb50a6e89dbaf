"""Boxes of photo-electrons to numbers with a Poisson likelihood, whatever the camera (see ``kernels``)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, gammaln

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit.gain import GainTable, gain_table

Floats = NDArray[np.float64]

# Fourth cumulant of a pixel over its mean: 1 of a Poisson variable, 4! of a sum of exponential ones.
_POISSON_KURTOSIS, _EM_KURTOSIS = 1.0, 24.0


@dataclass(frozen=True, eq=False)
class Counts:
    """Data and the part of their expectation that is the camera's, both (N, C, side * side).

    ``scale`` is the inverse of the excess factor, ``kurtosis`` that of a pixel's photo-electrons. ``gain`` is
    there where the exact likelihood of EM gain counts: a table for each channel, for ``data`` and expectation with
    shift and scale undone.
    """

    data: NDArray[np.float32]
    shift: NDArray[np.float32]
    scale: float
    kurtosis: float
    gain: tuple[GainTable, ...] = ()

    @classmethod
    def of(
        cls,
        boxes: NDArray[np.floating],
        corners: NDArray[np.integer],
        cameras: Sequence[Camera],
        *,
        exact_emccd: bool = True,
    ) -> "Counts":
        """Prepare boxes (N, C, side, side) whose first pixels are ``corners`` (N, C, 2), row before column.

        Raises
        ------
        InputRejected
            If one channel has EM gain and another has not, or a box reaches beyond a camera's map.
        """
        factors = {camera.excess_noise_factor for camera in cameras}
        if len(factors) != 1:
            raise InputRejected(
                "one channel has EM gain and the other has not; fit cameras of one kind together."
            )
        scale = 1 / factors.pop()
        count, channels, side = boxes.shape[:3]
        shift = np.empty((count, channels, side * side), np.float32)
        for channel, camera in enumerate(cameras):
            shift[:, channel] = scale**2 * _read_variance(camera, corners[:, channel], side)
        data = scale * boxes.reshape(count, channels, side * side).astype(np.float32) + shift
        # Without read noise nothing explains less than no photon; with it, cutting would bias dim boxes.
        data = np.where(shift > 0, data, np.maximum(data, 0)).astype(np.float32)
        if scale == 1:
            return cls(data, shift, scale, _POISSON_KURTOSIS)
        gain = tuple(gain_table(_noise_of(camera)) for camera in cameras) if exact_emccd else ()
        return cls(data, shift, scale, _EM_KURTOSIS, gain)

    def log_likelihood(self, objective: Floats) -> Floats:
        """(N,) from the objective, 2 sum (mean - data log mean), or minus twice the likelihood of EM gain."""
        if self.gain:
            return np.asarray(-0.5 * objective)
        constant = gammaln(np.maximum(self.data, 0) + 1).sum(axis=(1, 2), dtype=np.float64)
        return np.asarray(-0.5 * objective - constant)

    def p_value(self, chi2: Floats, variance: Floats, parameters: int) -> Floats:
        """Chance of a larger chi^2: a gamma variable of its mean and variance under the model."""
        pixels = self.data.shape[1] * self.data.shape[2]
        share = max(pixels - parameters, 1) / pixels
        mean = pixels * share
        unit = share * np.maximum(variance, 1e-12) / mean
        return np.asarray(1.0 - gammainc(mean / unit, chi2 / unit))


def _noise_of(camera: Camera) -> float:
    """Read noise over gain; of a map its RMS, rounded so that maps of regions share a table."""
    return round(float(np.sqrt(np.mean(np.square(camera.read_noise_e)))) / camera.em_gain, 3)


def _read_variance(camera: Camera, corners: NDArray[np.integer], side: int) -> Floats:
    """(N, side * side), or (1, 1) where the camera has no map; photo-electrons squared."""
    read = np.asarray(camera.read_noise_e, dtype=np.float64) / camera.em_gain
    if read.ndim == 0:
        return np.asarray(read**2).reshape(1, 1)
    rows, columns = read.shape
    reach = corners.max(axis=0, initial=0) + side
    if corners.size and (corners.min() < 0 or reach[0] > rows or reach[1] > columns):
        raise InputRejected(
            f"boxes reach to row {reach[0]} and column {reach[1]} (first {corners.min(axis=0)}), beyond the "
            f"camera's read noise map of {rows} x {columns}. Give the map of these frames."
        )
    row, column = (corners[:, axis, None] + np.arange(side) for axis in (0, 1))
    return np.asarray((read**2)[row[:, :, None], column[:, None, :]].reshape(len(corners), side * side))
