"""Drift as ThunderSTORM's cross-correlation estimates it (Ovesny et al. 2014; the smoothing of its dev version).

Parts of the movie with equal numbers of localizations are drawn as averaged shifted histograms; each is
correlated with the first, coarsely to find the peak and finely to refine it by radial symmetry (Parthasarathy
2012). The parts' drifts are smoothed by robust local regression (Cleveland 1979) and joined by a cubic spline.
Here to give ThunderSTORM's numbers where it is not installed; ``estimate_drift`` has better engines.
"""

from itertools import pairwise
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.interpolate import CubicSpline

from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import validate
from smlm_bridge.post.drift import Drift

Floats = NDArray[np.float64]
Spectra = list[NDArray[np.complex128]]

_WINDOW_PX: Final = 11
_SMOOTHED_FROM: Final = 4  # parts; fewer are joined linearly
_ROBUST_ROUNDS: Final = 2
_STEEP: Final = float(np.finfo(np.float32).max) / 1e5
_HISTOGRAM: Final = np.array([1.0, 2.0, 1.0])


def cross_correlation_drift(
    locs: pd.DataFrame,
    *,
    pixel_nm: float,
    steps: int = 5,
    magnification: float = 5.0,
    smoothing: float = 0.5,
) -> Drift:
    """Drift of a movie by cross-correlation of its parts with the first.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``.
    pixel_nm
        Camera pixel.
    steps
        Parts of the movie.
    magnification
        Pixels of the fine pictures a camera pixel.
    smoothing
        Share of the parts that the regression at a part sees.

    Returns
    -------
    Drift
        Of every frame from the first to the last; zero is ThunderSTORM's, the middle of the first part.

    Raises
    ------
    InputRejected
        If a setting is out of range, a position is negative, or there are fewer frames or localizations than
        parts.
    """
    table = validate(locs).sort_values("frame", kind="stable", ignore_index=True)
    _check(table, pixel_nm, steps, magnification, smoothing)
    frame = table["frame"].to_numpy()
    xy = table[["x_nm", "y_nm"]].to_numpy() / pixel_nm
    bounds = _parts(frame, steps)
    size = np.ceil(xy.max(axis=0)).astype(np.int64)
    fine = _spectra(xy, bounds, size, magnification)
    coarse = _spectra(xy, bounds, size, 1.0)
    drift = np.zeros((steps, 2))
    for part in range(1, steps):
        shift = _shift(fine, coarse, part, drift[part - 1] / magnification, magnification)
        drift[part] = shift * magnification
    centre = (frame[bounds[:-1]] + frame[bounds[1:] - 1]) / 2.0
    frames = np.arange(frame[0], frame[-1] + 1)
    curve = np.stack([_curve(centre, axis, frames, smoothing) for axis in (drift / magnification).T], axis=1)
    curve *= pixel_nm
    return Drift(
        frames,
        curve[:, 0],
        curve[:, 1],
        engine="cross-correlation",
        max_drift_nm=float(np.hypot(*(curve - curve[0]).T).max()),
    )


def _check(table: pd.DataFrame, pixel_nm: float, steps: int, magnification: float, smoothing: float) -> None:
    if not (np.isfinite(pixel_nm) and pixel_nm > 0 and np.isfinite(magnification) and magnification > 0):
        raise InputRejected(f"pixel_nm {pixel_nm:g} and magnification {magnification:g} must be above 0.")
    if steps < 2 or (steps >= _SMOOTHED_FROM and int(smoothing * steps) < 2) or not 0 <= smoothing <= 1:
        raise InputRejected(
            f"{steps} parts smoothed by a share of {smoothing:g}: 2 parts or more, and from {_SMOOTHED_FROM} on "
            "a share (up to 1) that holds two of them."
        )
    if len(table) < steps or table["frame"].nunique() < steps:
        raise InputRejected(f"{len(table)} localizations or their frames are too few for {steps} parts.")
    if (table[["x_nm", "y_nm"]].to_numpy() < 0).any():
        raise InputRejected(
            "positions below 0 lie outside the picture; shift the table by its least x and y."
        )


def _parts(frame: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """First row of each part and the end: equal numbers of rows, each extended to the end of its last frame."""
    share = frame.size // steps
    bounds = [0]
    for _ in range(steps - 1):
        end = min(bounds[-1] + share, frame.size)
        # A frame stays whole; the very last row is left to the last part.
        end = max(end, min(int(np.searchsorted(frame, frame[end - 1], side="right")), frame.size - 1))
        bounds.append(end)
    bounds.append(frame.size)
    if (np.diff(bounds) <= 0).any():
        raise InputRejected(f"the localizations are too unevenly spread over the frames for {steps} parts.")
    return np.array(bounds)


def _spectra(xy: Floats, bounds: NDArray[np.int64], size: NDArray[np.int64], scale: float) -> Spectra:
    """Fourier transforms of the parts' averaged shifted histograms (2 shifts), padded to a power of two."""
    resolution = 1.0 / scale
    width, height = ((size + 0.0) / resolution).astype(np.int64)
    side = 1 << int(np.ceil(np.log2(max(width, height))))
    column, row = (xy / resolution).astype(np.int64).T
    inside = np.all(xy < size, axis=1)
    spectra = []
    for first, last in pairwise(bounds):
        here = np.flatnonzero(inside[first:last]) + first
        # One pixel of margin: what lies at the edge still reaches its neighbours.
        flat = (row[here] + 1) * (width + 2) + column[here] + 1
        counts = np.bincount(flat, minlength=(height + 2) * (width + 2)).reshape(height + 2, width + 2)
        picture = ndimage.convolve1d(counts.astype(np.float64), _HISTOGRAM, axis=0, mode="constant")
        picture = ndimage.convolve1d(picture, _HISTOGRAM, axis=1, mode="constant")[1:-1, 1:-1]
        spectra.append(fft.rfft2(picture, s=(side, side)))
    return spectra


def _correlation(spectra: Spectra, part: int) -> Floats:
    """Correlation of a part with the first; a part moved by d has its peak at the middle minus d."""
    product = spectra[0] * np.conj(spectra[part])
    side = product.shape[0]
    return np.asarray(fft.fftshift(fft.irfft2(product, s=(side, side))))


def _shift(fine: Spectra, coarse: Spectra, part: int, previous: Floats, scale: float) -> Floats:
    """Shift (x, y) of a part in camera pixels."""
    image = _correlation(coarse, part)
    side = image.shape[0]
    axis = np.arange(side)
    weight_x, weight_y = (
        np.exp(-((axis - (side // 2 - centre)) ** 2) / (2.0 * side**2)) for centre in previous
    )
    image = image * weight_y[:, None] * weight_x[None, :]
    row, column = np.unravel_index(int(np.argmax(image)), image.shape)
    peak = _refined(image, np.array([float(column), float(row)]))
    large = _correlation(fine, part)
    middle = large.shape[0] // 2
    peak = _refined(large, middle + scale * (peak - side // 2))
    return np.asarray((middle - peak) / scale)


def _refined(image: Floats, peak: Floats) -> Floats:
    """The peak (x, y) to a part of a pixel; near the edge as it is."""
    column, row = (int(value) for value in peak)
    half = _WINDOW_PX // 2
    side = image.shape[0]
    if not (half <= column < side - half and half <= row < side - half):
        return peak
    window = image[row - half : row + half + 1, column - half : column + half + 1]
    return np.array([column, row]) + radial_centre(window)


def radial_centre(window: Floats) -> Floats:
    """Centre of radial symmetry (x, y) from the middle of a window (Parthasarathy 2012, Nat. Methods 9)."""
    # Gradients along the two diagonals, at the corners of the pixels, smoothed by a 3 by 3 mean.
    antidiagonal = ndimage.uniform_filter(window[:-1, 1:] - window[1:, :-1], 3, mode="nearest")
    diagonal = ndimage.uniform_filter(window[:-1, :-1] - window[1:, 1:], 3, mode="nearest")
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = -(antidiagonal + diagonal) / (antidiagonal - diagonal)
    slope = np.where(np.isnan(slope), 0.0, np.where(np.isinf(slope), _STEEP, slope))
    position = np.arange(window.shape[0] - 1) - (window.shape[0] - 1) // 2 + 0.5
    x, y = np.meshgrid(position, position)
    intercept = y - slope * x
    strength = antidiagonal**2 + diagonal**2
    total = strength.sum()
    distance = np.hypot(x - (x * strength).sum() / total, y - (y * strength).sum() / total)
    weight = strength / distance / (slope**2 + 1.0)
    sw, smw, smmw = weight.sum(), (weight * slope).sum(), (weight * slope**2).sum()
    sbw, smbw = (weight * intercept).sum(), (weight * slope * intercept).sum()
    determinant = smw**2 - smmw * sw
    return np.asarray([smbw * sw - smw * sbw, smbw * smw - smmw * sbw] / determinant, dtype=np.float64)


def _curve(centre: Floats, drift: Floats, frames: NDArray[np.int64], smoothing: float) -> Floats:
    """The drift at every frame: smoothed, joined, and continued straight beyond the first and last part."""
    if centre.size < _SMOOTHED_FROM:
        inner = np.interp(frames, centre, drift)
        slopes = np.diff(drift)[[0, -1]] / np.diff(centre)[[0, -1]]
        ends = drift[[0, -1]]
    else:
        spline = CubicSpline(centre, _regression(centre, drift, smoothing), bc_type="natural")
        inner = spline(frames)
        slopes, ends = spline(centre[[0, -1]], 1), spline(centre[[0, -1]])
    before = ends[0] + slopes[0] * (frames - centre[0])
    after = ends[1] + slopes[1] * (frames - centre[-1])
    return np.where(frames < centre[0], before, np.where(frames > centre[-1], after, inner))


def _regression(x: Floats, y: Floats, share: float) -> Floats:
    """Robust local linear regression at the points themselves (Cleveland 1979)."""
    count = x.size
    points = int(share * count)
    left = np.zeros(count, np.int64)
    for i in range(1, count):
        start = left[i - 1]
        end = start + points
        left[i] = start + (end < count and x[end] - x[i] < x[i] - x[start])
    near = left[:, None] + np.arange(points)
    distance = np.abs(x[near] - x[:, None])
    tricube = np.maximum(1.0 - (distance / distance.max(axis=1, keepdims=True)) ** 3, 0.0) ** 3
    robust = np.ones(count)
    fitted = y.copy()
    for _ in range(_ROBUST_ROUNDS + 1):
        weight = tricube * robust[near]
        weight = weight / weight.sum(axis=1, keepdims=True)
        mean_x, mean_y = (weight * x[near]).sum(axis=1), (weight * y[near]).sum(axis=1)
        spread = (weight * x[near] ** 2).sum(axis=1) - mean_x**2
        joint = (weight * x[near] * y[near]).sum(axis=1) - mean_x * mean_y
        flat = np.sqrt(np.abs(spread)) < 1e-12
        beta = np.where(flat, 0.0, joint / np.where(flat, 1.0, spread))
        fitted = mean_y + beta * (x - mean_x)
        residual = np.abs(y - fitted)
        middle = np.sort(residual)[count // 2]
        if middle < 1e-12:
            break
        robust = np.maximum(1.0 - (residual / (6.0 * middle)) ** 2, 0.0) ** 2
    return fitted
