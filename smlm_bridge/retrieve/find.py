"""Where are the beads of a raw field, and which of them stand alone?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter

from smlm_bridge.errors import InputRejected

_SMOOTHING_NM = 300.0
_BEAD_LEVEL = 0.25  # of the brightest bead: fainter ones are not fitted
_NEIGHBOUR_LEVEL = 0.1  # of the brightest bead: fainter ones do no harm
_APART_NM = 700.0  # two maxima closer than this are one bead
_LIGHT_SHARE = 0.97  # of a bead's light inside the window
_NOISE_LEVEL = 4.0
_MARGIN_PX = 4
_LEAST_HALF_PX = 8
_CLEAR = 1.5  # half windows: a neighbour this far off leaves the window to one bead

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Spot:
    """A bead seen in a field.

    Parameters
    ----------
    row, column
        Pixel of its centre.
    light
        Of the smoothed sum over z, relative to the brightest.
    reason
        Why it cannot be used; empty for a bead that can.
    """

    row: int
    column: int
    light: float
    reason: str = ""


def find_beads(
    stack: NDArray[np.generic], *, pixel_nm: float, largest_px: int
) -> tuple[list[Spot], list[Spot], int]:
    """Isolated beads of a raw field (z, y, x), those set aside with the reason, and half the window in pixels.

    Beads are maxima of the sum along z: an engineered PSF spreads over microns in one plane, but its parts
    meet there. The window holds nearly all light of the bead that stands most alone.

    Raises
    ------
    InputRejected
        If no bead stands alone.
    """
    projection = stack.astype(np.float64).sum(0)
    projection -= np.median(projection)
    smooth = gaussian_filter(projection, _SMOOTHING_NM / pixel_nm)
    size = 2 * max(1, round(_APART_NM / pixel_nm)) + 1
    peaks = (smooth == maximum_filter(smooth, size)) & (smooth > _NEIGHBOUR_LEVEL * smooth.max())
    rows, columns = np.nonzero(peaks)
    light = smooth[rows, columns] / smooth.max()
    between = np.maximum(abs(rows[:, None] - rows), abs(columns[:, None] - columns)).astype(float)
    np.fill_diagonal(between, np.inf)
    nearest = between.min(1) if len(rows) > 1 else np.full(len(rows), np.inf)
    half = _half_window(stack, rows, columns, light, nearest, largest_px // 2)
    kept: list[Spot] = []
    aside: list[Spot] = []
    for row, column, amount, neighbour in zip(rows, columns, light, nearest, strict=True):
        edge = min(row, column, stack.shape[1] - 1 - row, stack.shape[2] - 1 - column)
        if amount < _BEAD_LEVEL:
            reason = (
                f"has {100 * amount:.0f} % of the brightest bead's light, below {100 * _BEAD_LEVEL:.0f} %"
            )
        elif edge < half:
            reason = f"stands {edge} pixels from the edge; its window needs {half}"
        elif neighbour < _CLEAR * half:
            reason = f"has a neighbour {neighbour:.0f} pixels away; {_CLEAR * half:.0f} are needed"
        else:
            reason = ""
        (aside if reason else kept).append(Spot(int(row), int(column), float(amount), reason))
    if not kept:
        raise InputRejected(
            f"of {len(rows)} beads in the field none stands alone (for example, one {aside[0].reason}). "
            "Give a field with fewer beads, or a stack cut around one bead."
        )
    return kept, aside, half


def _half_window(
    stack: NDArray[np.generic],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    light: FloatArray,
    nearest: FloatArray,
    largest: int,
) -> int:
    """Half the window that holds the light of the bright bead with the most room around it."""
    edge = np.minimum(
        np.minimum(rows, columns),
        np.minimum(stack.shape[1] - 1 - rows, stack.shape[2] - 1 - columns),
    )
    room = np.minimum(edge, nearest / _CLEAR) * (light >= _BEAD_LEVEL)
    best = int(room.argmax())
    reach = int(min(room[best], largest))
    if reach < _LEAST_HALF_PX:
        return _LEAST_HALF_PX
    row, column = int(rows[best]), int(columns[best])
    part = stack[:, row - reach : row + reach + 1, column - reach : column + reach + 1].astype(np.float64)
    rim = np.concatenate(
        [part[:, [0, -1]].reshape(len(part), -1), part[:, :, [0, -1]].reshape(len(part), -1)], 1
    )
    background = np.median(rim, 1)[:, None, None]
    noise = np.median(np.abs(rim - background[:, :, 0]), 1)[:, None, None]
    signal = np.where(part - background > _NOISE_LEVEL * 1.48 * noise, part - background, 0.0).sum(0)
    axis = np.abs(np.arange(2 * reach + 1) - reach)
    ring = np.maximum(axis[:, None], axis)
    inside = np.cumsum(np.bincount(ring.ravel(), weights=signal.ravel()))
    found = int(np.searchsorted(inside, _LIGHT_SHARE * inside[-1])) + _MARGIN_PX
    return int(np.clip(found, _LEAST_HALF_PX, reach))
