"""Isolated beads in a stack."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]

_DIMMEST = 0.2  # of the brightest bead
_NEIGHBOUR = 0.1  # brightness of a neighbour, against a bead, that disturbs it
_NOISE = 6.0  # standard deviations above the level of the field


def isolated_beads(stack: Floats, *, box_px: int) -> NDArray[np.intp]:
    """Pixels (B, 2), row and column, of beads that stand alone, the brightest first.

    Beads are maxima of the light of all slices above each slice's median. One stands alone if its box lies in
    the field and no other maximum within the width of a box reaches a tenth of it.

    Parameters
    ----------
    stack : (Z, Y, X)
        Photo-electrons.
    box_px
        Width of the window about a bead.
    """
    level = np.median(stack, axis=(1, 2), keepdims=True)
    light = ndimage.gaussian_filter(np.clip(stack - level, 0, None).mean(0), box_px / 10)
    peaks = np.argwhere(light == ndimage.maximum_filter(light, size=max(3, box_px // 3)))
    height = light[tuple(peaks.T)] - np.median(light)
    spread = 1.4826 * np.median(np.abs(light - np.median(light)))
    real = (height > _NOISE * spread) & (height > 0)
    peaks, height = peaks[real], height[real]
    order = np.argsort(-height)
    peaks, height = peaks[order], height[order]
    distance = np.abs(peaks[:, None] - peaks[None]).max(axis=2)
    close = (distance < box_px) & (distance > 0) & (height[None] > _NEIGHBOUR * height[:, None])
    half = box_px // 2
    inside = ((peaks >= half) & (peaks < np.array(light.shape) - half)).all(axis=1)
    bright = height > _DIMMEST * height.max(initial=0.0)
    alone: NDArray[np.intp] = peaks[inside & bright & ~close.any(axis=1)]
    return alone
