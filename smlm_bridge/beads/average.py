"""Align beads with each other in three dimensions and average them (as Li et al. 2018)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]

_ROUNDS = 4
_LEAST_CORRELATION = 0.7
_OUTLIER = 4.0  # robust standard deviations of the correlation
_UPSAMPLED = 0.02  # px or slices: beads that move less have settled


@dataclass(frozen=True)
class Average:
    """Beads on each other.

    Parameters
    ----------
    volume : (Z, S, S)
        Mean of the aligned beads, each of mean sum 1 a slice.
    shifts : (B, 3)
        From each bead to the average, in slices and pixels along z, y, x.
    correlation : (B,)
        Of each bead with the average.
    used : (B,)
        Beads in the average; the others are outliers.
    """

    volume: Floats
    shifts: Floats
    correlation: Floats
    used: NDArray[np.bool_]


def average(beads: Floats, *, farthest: tuple[float, float]) -> Average:
    """Align and average beads (B, Z, S, S) without background.

    Each round correlates every bead with the mean of the others' round before; beads that correlate far worse
    than the rest are left out.

    Parameters
    ----------
    beads
        Windows about the beads, background taken out.
    farthest
        Largest shift in slices and in pixels.
    """
    scaled = beads / beads.sum(axis=(2, 3)).mean(axis=1).clip(1e-9)[:, None, None, None]
    shifts = np.zeros((len(beads), 3))
    used = np.ones(len(beads), dtype=bool)
    mean, correlation = scaled[0], np.ones(len(beads))
    for _ in range(_ROUNDS if len(beads) > 1 else 0):
        moved = np.stack([_moved(bead, shift) for bead, shift in zip(scaled, shifts, strict=True)])
        change = np.stack([_offset(bead, mean, farthest) for bead in moved])
        shifts = np.clip(
            shifts + change, [-farthest[0], *[-farthest[1]] * 2], [farthest[0], *[farthest[1]] * 2]
        )
        moved = np.stack([_moved(bead, shift) for bead, shift in zip(scaled, shifts, strict=True)])
        # Only differences between beads mean anything: the average stays where the beads are.
        centre = np.median(shifts[used], axis=0)
        mean = moved[used].mean(axis=0)
        correlation = np.array([np.corrcoef(bead.ravel(), mean.ravel())[0, 1] for bead in moved])
        used = _alike(correlation)
        if np.abs(change).max() < _UPSAMPLED:
            break
        shifts = shifts - centre
    moved = np.stack([_moved(bead, shift) for bead, shift in zip(scaled, shifts, strict=True)])
    return Average(moved[used].mean(axis=0), shifts, correlation, used)


def _alike(correlation: Floats) -> NDArray[np.bool_]:
    middle = np.median(correlation)
    spread = max(1.4826 * float(np.median(np.abs(correlation - middle))), 0.005)
    good = (correlation > middle - _OUTLIER * spread) & (correlation > _LEAST_CORRELATION)
    good[np.argmax(correlation)] = True
    return good


def _moved(bead: Floats, shift: Floats) -> Floats:
    result: Floats = ndimage.shift(bead, shift, order=3, mode="nearest")
    return result


def _offset(bead: Floats, mean: Floats, farthest: tuple[float, float]) -> Floats:
    """Shift (z, y, x) that takes the bead onto the mean: the peak of their correlation, by parabolas."""
    shape = [2 * n for n in bead.shape]
    spectra = [np.fft.rfftn(volume - volume.mean(), shape, axes=(0, 1, 2)) for volume in (mean, bead)]
    correlation = np.fft.fftshift(np.fft.irfftn(spectra[0] * spectra[1].conj(), shape, axes=(0, 1, 2)))
    middle = np.array(shape) // 2
    reach = np.maximum(1, np.round([farthest[0], farthest[1], farthest[1]])).astype(int)
    reach = np.minimum(reach, middle - 2)
    window = tuple(slice(m - r, m + r + 1) for m, r in zip(middle, reach, strict=True))
    peak = (
        np.array(np.unravel_index(np.argmax(correlation[window]), [2 * r + 1 for r in reach]))
        + middle
        - reach
    )
    offset = np.zeros(3)
    for axis in range(3):
        index = [int(p) for p in peak]
        below, above = index.copy(), index.copy()
        below[axis], above[axis] = below[axis] - 1, above[axis] + 1
        left, top, right = (float(correlation[tuple(i)]) for i in (below, index, above))
        bend = left - 2 * top + right
        offset[axis] = peak[axis] - middle[axis] + (0.5 * (left - right) / bend if bend < 0 else 0.0)
    return offset
