"""Drift in x and y by redundant cross-correlation of rendered segments (Wang et al. 2014, Opt. Express 22)."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from smlm_bridge.post.drift_aim import gaussian_peak

FloatArray = NDArray[np.float64]

#: Side of a rendered segment: a larger field gets larger pixels.
MAX_SIDE_PX: Final = 1024
#: Every pair of segments is correlated, so their number is squared in time; neighbours are joined beyond it.
MAX_SEGMENTS: Final = 60
_PIXEL_KERNELS: Final = 2.5
_WINDOW_PX: Final = 5
_FARTHEST_SHARE: Final = 0.25  # of the field: drift between any two segments
_OUTLIER_MADS: Final = 4.0
_OUTLIER_PX: Final = 0.2
_REJECTIONS: Final = 4


def rcc(
    x_nm: FloatArray, y_nm: FloatArray, bounds: NDArray[np.int64], *, kernel_nm: float
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Drift of every segment from the shifts between all pairs of them.

    Parameters
    ----------
    x_nm, y_nm : (n,)
        Positions, ordered by frame.
    bounds : (segments + 1,)
        Segment s holds the rows ``bounds[s]:bounds[s + 1]``.
    kernel_nm
        Precision of the localizations times sqrt(2); pixels of the pictures are 2.5 times as large, or
        larger in a large field.

    Returns
    -------
    drift_nm : (segments, 2)
        x and y, zero in the first segment. Segments beyond ``MAX_SEGMENTS`` share those of their neighbours.
    lost : (segments,)
        Segments whose pairs all disagree with the rest.
    """
    count = bounds.size - 1
    group = np.arange(count) * min(count, MAX_SEGMENTS) // count
    joined = np.append(bounds[np.flatnonzero(np.diff(group, prepend=-1))], bounds[-1])
    extent = max(np.ptp(x_nm), np.ptp(y_nm))
    pixel_nm = max(_PIXEL_KERNELS * kernel_nm, extent / (MAX_SIDE_PX - 1))
    spectra, shape = _spectra(x_nm, y_nm, joined, pixel_nm)
    first, second = np.triu_indices(joined.size - 1, k=1)
    shift = np.array([_shift(spectra[a], spectra[b], shape) for a, b in zip(first, second, strict=True)])
    drift, lost = _consensus(shift, first, second, joined.size - 1)
    return drift[group][:, ::-1] * pixel_nm, lost[group]


def _spectra(
    x_nm: FloatArray, y_nm: FloatArray, bounds: NDArray[np.int64], pixel_nm: float
) -> tuple[NDArray[np.complex64], tuple[int, int]]:
    """Fourier transforms of the segments' histograms, smoothed by one pixel."""
    row = ((y_nm - y_nm.min()) / pixel_nm).astype(np.int64)
    column = ((x_nm - x_nm.min()) / pixel_nm).astype(np.int64)
    height, width = (int(np.ceil((1 + _FARTHEST_SHARE) * (axis.max() + 1))) for axis in (row, column))
    shape = fft.next_fast_len(max(height, 32), real=True), fft.next_fast_len(max(width, 32), real=True)
    wave_y, wave_x = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    smooth = np.exp(-2 * np.pi**2 * (wave_y**2 + wave_x**2) / 2).astype(np.float32)  # both pictures: one px
    spectra = np.empty((bounds.size - 1, *smooth.shape), np.complex64)
    index = row * shape[1] + column
    for s in range(bounds.size - 1):
        picture = np.bincount(index[bounds[s] : bounds[s + 1]], minlength=shape[0] * shape[1])
        spectra[s] = fft.rfft2(picture.reshape(shape).astype(np.float32)) * smooth
    return spectra, shape


def _shift(a: NDArray[np.complex64], b: NDArray[np.complex64], shape: tuple[int, int]) -> tuple[float, float]:
    """Shift (y, x) of picture b against picture a in pixels."""
    correlation = fft.irfft2(np.conj(a) * b, s=shape)
    best_y, best_x = np.unravel_index(np.argmax(correlation), shape)
    near = np.arange(-_WINDOW_PX, _WINDOW_PX + 1)
    window = correlation[np.ix_((best_y + near) % shape[0], (best_x + near) % shape[1])]
    y, x, _ = gaussian_peak(window.astype(np.float64), 1.0)
    whole = [(best + n // 2) % n - n // 2 for best, n in zip((int(best_y), int(best_x)), shape, strict=True)]
    return whole[0] + y, whole[1] + x


def _consensus(
    shift: FloatArray, first: NDArray[np.int64], second: NDArray[np.int64], count: int
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Drift that explains the shifts between all pairs, without those that disagree with the others."""
    design = np.zeros((first.size, count))
    pairs = np.arange(first.size)
    design[pairs, first], design[pairs, second] = -1.0, 1.0
    kept = np.ones(first.size, np.bool_)
    lost = np.zeros(count, np.bool_)
    drift = np.zeros((count, 2))
    for _ in range(_REJECTIONS):
        drift[:] = np.linalg.lstsq(design[kept], shift[kept], rcond=None)[0]
        off = np.abs(shift - design @ drift).max(axis=1)
        limit = max(_OUTLIER_PX, _OUTLIER_MADS * 1.4826 * float(np.median(off[kept])))
        kept = off <= limit
        lost = np.bincount(np.concatenate([first[kept], second[kept]]), minlength=count) == 0
    return drift - drift[0], lost
