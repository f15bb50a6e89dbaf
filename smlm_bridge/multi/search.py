"""Where a frame's residual asks for another emitter: matched filters of the PSF at many heights.

The gain is that of the log-likelihood, to second order, when an emitter of the best brightness is added at a
pixel and height: (sum r p / v)^2 / (2 sum p^2 / v), with residual r, image p and variance v.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from smlm_bridge.multi.stamps import Stamps

Floats = NDArray[np.float64]
Frames = NDArray[np.float32]


@dataclass(frozen=True)
class Candidates:
    """Places that ask for an emitter, best first.

    Parameters
    ----------
    xyz_nm : (n, 3)
        Centres of pixels, and heights of the bank.
    photons : (n, C)
        Brightness of each channel there.
    gain : (n,)
        Gain of the log-likelihood.
    """

    xyz_nm: Floats
    photons: Floats
    gain: Floats

    def take(self, which: NDArray[np.bool_]) -> "Candidates":
        """Those of them."""
        return Candidates(self.xyz_nm[which], self.photons[which], self.gain[which])

    def joined(self, others: "Candidates") -> "Candidates":
        """These and others."""
        return Candidates(
            np.concatenate([self.xyz_nm, others.xyz_nm]),
            np.concatenate([self.photons, others.photons]),
            np.concatenate([self.gain, others.gain]),
        )


class Bank:
    """Images of the PSF at evenly spaced heights, to be moved over a frame.

    Parameters
    ----------
    stamps
        One a channel.
    z_nm, step_nm
        Heights, and about how far apart they are.
    blur_nm2
        One for all channels, or one for each.
    inside
        Only places whose windows lie inside of what is given: several times faster for a small piece.
    """

    def __init__(
        self,
        stamps: Sequence[Stamps],
        *,
        z_nm: tuple[float, float],
        step_nm: float,
        blur_nm2: Sequence[float],
        inside: bool = False,
    ) -> None:
        """Render the images of every channel."""
        self._inside = inside
        count = max(2, round((z_nm[1] - z_nm[0]) / step_nm) + 1)
        self.z_nm = np.linspace(*z_nm, count)
        self.stamps = list(stamps)
        self._images = [
            _centred(part, self.z_nm, blur_nm2[min(c, len(blur_nm2) - 1)])
            for c, part in enumerate(self.stamps)
        ]
        self._shape: tuple[int, int] | None = None
        self._spectra: list[tuple[NDArray[np.complex64], NDArray[np.complex64]]] = []

    def candidates(
        self,
        residual: Frames,
        variance: Frames,
        *,
        least_gain: float,
        apart_px: int,
        most: int,
        corners: Sequence[NDArray[np.integer]] | None = None,
    ) -> Candidates:
        """Local maxima of the gain.

        Parameters
        ----------
        residual, variance : (C, H, W)
            Data minus model, and what its square is expected to be.
        least_gain
            Of a candidate.
        apart_px
            Two candidates are at least this far apart along x or y.
        most
            Number of candidates.
        corners : C of (2,)
            Column and row of each channel's first pixel within its frame; None: these are frames. Positions are
            from the first pixel of channel 1.
        """
        corners = [corner + self._skipped for corner in corners or [np.zeros(2, int)] * len(residual)]
        gain, photons = self._gain(residual, variance, corners)
        best = gain.max(axis=0)
        peak = (best == maximum_filter(best, 2 * apart_px + 1)) & (best > least_gain)
        rows, columns = np.nonzero(peak)
        order = np.argsort(-best[rows, columns])[:most]
        rows, columns = rows[order], columns[order]
        height = gain[:, rows, columns].argmax(axis=0)
        pixel = self.stamps[0].psf.pixel_nm
        x, y = ((places + self._skipped + 0.5) * pixel for places in (columns, rows))
        xyz = np.stack([x, y, self.z_nm[height]], axis=1)
        bright = np.stack([part[height, rows, columns] for part in photons], axis=1)
        return Candidates(xyz, np.maximum(bright, 1.0).astype(float), best[rows, columns].astype(float))

    def _gain(
        self, residual: Frames, variance: Frames, corners: Sequence[NDArray[np.integer]]
    ) -> tuple[Frames, list[Frames]]:
        """(Z, h, w) gain on the pixels of channel 1 that are searched, and brightness of each channel.

        ``corners`` are those of what is searched.
        """
        self._prepare(residual.shape[1:])
        gains, photons = [], []
        for c, (once, square) in enumerate(self._spectra):
            weight = 1.0 / variance[c]
            overlap = self._correlated(residual[c] * weight, once, c)
            power = np.maximum(self._correlated(weight, square, c), 1e-12)
            positive = np.maximum(overlap, 0.0)
            bright = positive / power
            gain = 0.5 * bright * positive
            if self.stamps[c].transform is not None:
                row, column, there = self._nearest(c, gain.shape[1:], corners)
                gain, bright = (values[:, row, column] * there for values in (gain, bright))
            gains.append(gain)
            photons.append(bright.astype(np.float32))
        return np.sum(gains, axis=0), photons

    def _nearest(
        self, channel: int, shape: tuple[int, ...], corners: Sequence[NDArray[np.integer]]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
        """Row and column (H, W) where a channel shows the pixels of channel 1, and whether it does."""
        row, column = np.indices(shape).reshape(2, -1)
        here = (np.stack([column, row], axis=1) + corners[0] + 0.5) * self.stamps[0].psf.pixel_nm
        own = self.stamps[channel]
        place = np.floor(own.here(here) / own.psf.pixel_nm).astype(np.intp) - corners[channel]
        last = np.array(shape[::-1]) - 1
        there = ((place >= 0) & (place <= last)).all(axis=1)
        place = np.clip(place, 0, last)
        return place[:, 1].reshape(shape), place[:, 0].reshape(shape), there.reshape(shape)

    def _prepare(self, shape: tuple[int, int]) -> None:
        """Spectra of the bank for frames of one size."""
        if shape == self._shape:
            return
        self._shape = shape
        self._spectra = []
        for images in self._images:
            size = self._padded
            both = [
                np.conj(scipy.fft.rfft2(part, s=size, axes=(1, 2))).astype(np.complex64)
                for part in (images, images**2)
            ]
            self._spectra.append((both[0], both[1]))

    @property
    def _padded(self) -> tuple[int, int]:
        assert self._shape is not None
        beyond = 0 if self._inside else max(part.side_px for part in self.stamps) - 1
        rows, columns = (scipy.fft.next_fast_len(length + beyond, real=True) for length in self._shape)
        return rows, columns

    @property
    def _skipped(self) -> int:
        """Pixels from the edge of what is given that are not searched."""
        return max(part.half_px for part in self.stamps) if self._inside else 0

    def _correlated(self, image: Frames, spectra: NDArray[np.complex64], channel: int) -> Frames:
        """(Z, h, w) sums of an image times the bank around every pixel that is searched."""
        assert self._shape is not None
        height, width = self._shape
        half = self.stamps[channel].half_px
        size = self._padded
        if not self._inside:
            spectrum = scipy.fft.rfft2(np.pad(image, ((half, 0), (half, 0))), s=size)
            product = scipy.fft.irfft2(spectrum * spectra, s=size, axes=(1, 2))
            return np.asarray(product[:, :height, :width], np.float32)
        inverse = _inverse_at(
            size, self._skipped - half, (height - 2 * self._skipped, width - 2 * self._skipped)
        )
        return inverse(scipy.fft.rfft2(image, s=size) * spectra)


@lru_cache(maxsize=8)
def _inverse_at(
    size: tuple[int, int], first: int, shape: tuple[int, int]
) -> Callable[[NDArray[np.complex64]], NDArray[np.float32]]:
    """The inverse of ``rfft2`` at rows and columns from ``first`` on, as products of matrices: fast where few."""
    row, column = (first + np.arange(length) for length in shape)
    down = np.exp(2j * np.pi / size[0] * np.outer(row, np.arange(size[0]))) / size[0]
    kept = np.arange(size[1] // 2 + 1)
    twice = np.where((kept == 0) | (2 * kept == size[1]), 1.0, 2.0)[:, None] / size[1]
    across = twice * np.exp(2j * np.pi / size[1] * np.outer(kept, column))
    rows = down.astype(np.complex64)
    real, imaginary = across.real.astype(np.float32), -across.imag.astype(np.float32)

    def inverse(spectra: NDArray[np.complex64]) -> NDArray[np.float32]:
        """(Z, rows, columns) of spectra (Z, H, W // 2 + 1)."""
        half_way = rows @ spectra
        return np.asarray(half_way.real @ real + half_way.imag @ imaginary)

    return inverse


def _centred(stamps: Stamps, z_nm: Floats, blur_nm2: float) -> Frames:
    """(Z, S, S) images of an emitter in the middle of the middle pixel."""
    stamps = replace(stamps, transform=None)
    centre = (stamps.half_px + 0.5) * stamps.psf.pixel_nm
    xyz = np.stack([np.full_like(z_nm, centre), np.full_like(z_nm, centre), z_nm], axis=1)
    corners = np.zeros((len(z_nm), 2), np.int64)
    return stamps.images(xyz, np.full(len(z_nm), blur_nm2), corners, derivatives=False)[:, 0]
