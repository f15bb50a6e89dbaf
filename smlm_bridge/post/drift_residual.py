"""Motion that a drift curve left in: what localizations of one frame have in common, however far apart.

Halves of the localizations cannot tell of motion quicker than the segments, for both halves average over it. Here
every second segment is the reference; each localization of the others is compared with the reference around it,
which gives a displacement. Errors of localization and the structure around a place differ from place to place,
motion of the sample does not: the mean product of displacements of one frame from different places is the variance
of the motion that is left, without a noise term.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_WINDOW_CELLS: Final = 2.0  # standard deviation of the window around a localization
_REACH_CELLS: Final = 5
_TILE_CELLS: Final = 24  # places in one tile are not compared: they see the same reference
_LEAST_GAIN: Final = 0.15  # the structure shows no displacement
_LEAST_ROWS: Final = 200
_MOST_ROWS: Final = 50_000  # compared with the reference: whole frames, drawn
_GAIN_ROWS: Final = 5000
_JOINED: Final = (1, 4, 16)  # consecutive frames taken for one: more pairs, where the motion is slow enough
_WIDEST_CELLS: Final = 6000  # a larger field is looked at in its middle


@dataclass(frozen=True)
class Residual:
    """Motion that is left, per axis of x and y: its rms in nm, and how many standard errors it is above none."""

    rms_nm: float
    significance: float


def residual_motion(
    frame: NDArray[np.int64],
    xy_nm: FloatArray,
    segment: NDArray[np.int64],
    *,
    cell_nm: float,
) -> Residual | None:
    """Motion of the whole field, from frame to frame or slower, that corrected positions still have.

    Parameters
    ----------
    frame : (n,)
        Ascending.
    xy_nm : (n, 2)
        Corrected positions.
    segment : (n,)
        Every second one is the reference for the others.
    cell_nm
        Side of the cells in which the reference is counted; about the precision times sqrt(2).

    Returns
    -------
    None where the table cannot tell: few localizations in a frame, one place only, or no structure.
    """
    middle = np.abs(xy_nm - np.median(xy_nm, axis=0)).max(axis=1) < 0.5 * _WIDEST_CELLS * cell_nm
    frame, xy_nm, segment = frame[middle], xy_nm[middle], segment[middle]
    low = xy_nm.min(axis=0) - (_REACH_CELLS + 1) * cell_nm
    cells = (xy_nm - low) / cell_nm
    width, height = (int(span) + 2 * _REACH_CELLS + 2 for span in np.ptp(cells, axis=0))
    known = segment % 2 == 0
    whole = cells[known].astype(np.int64)
    reference = np.bincount(whole[:, 1] * width + whole[:, 0], minlength=width * height)
    image = reference.reshape(height, width).astype(np.float32)
    compared = np.flatnonzero(~known & _drawn(frame, int(np.count_nonzero(~known))))
    moved, seen = _displacements(cells[compared], image)
    compared, moved = compared[seen], moved[seen]
    if compared.size < _LEAST_ROWS:
        return None
    asked = cells[compared]
    gain = _gain(asked[:: -(-len(asked) // _GAIN_ROWS)], image)
    if gain < _LEAST_GAIN:
        return None
    moved = (moved - moved.mean(axis=0)) * (cell_nm / gain)
    tiles = (asked // _TILE_CELLS).astype(np.int64)
    place = tiles[:, 1] * (width // _TILE_CELLS + 1) + tiles[:, 0]
    found = [_common(frame[compared] // joined, place, segment[compared], moved) for joined in _JOINED]
    return max((one for one in found if one is not None), key=lambda one: one.significance, default=None)


def _drawn(frame: NDArray[np.int64], rows: int) -> NDArray[np.bool_]:
    """Rows of frames drawn so that about ``_MOST_ROWS`` of ``rows`` stay; a fixed draw, in step with no period."""
    share = min(1.0, _MOST_ROWS / max(rows, 1))
    chosen = np.random.default_rng(0).random(int(frame[-1] - frame[0]) + 1) < share
    return np.asarray(chosen[frame - frame[0]])


def _gain(asked: FloatArray, reference: NDArray[np.float32]) -> float:
    """How much of a true displacement is seen, measured by moving all places by half a cell to either side."""
    seen = []
    for axis in (0, 1):
        half = np.zeros(2)
        half[axis] = 0.5
        ahead, behind = (_displacements(asked + sign * half, reference) for sign in (1, -1))
        both = ahead[1] & behind[1]
        seen.append(float((ahead[0] - behind[0])[both, axis].mean()) if both.any() else 0.0)
    return float(np.mean(seen))


def _common(
    frame: NDArray[np.int64], place: NDArray[np.int64], segment: NDArray[np.int64], moved: FloatArray
) -> Residual | None:
    """Variance of what different places of a frame share; its error from how it scatters over the segments."""
    key = (frame - frame[0]) * (place.max() + 1) + place
    groups, index = np.unique(key, return_inverse=True)
    of_tile = np.stack([np.bincount(index, moved[:, 0]), np.bincount(index, moved[:, 1]), np.bincount(index)])
    at = groups // (place.max() + 1)
    of_frame = np.stack([np.bincount(at, values) for values in of_tile])
    squares = np.stack([np.bincount(at, values**2) for values in of_tile])
    products, pairs = 0.5 * (of_frame**2 - squares)[:2].sum(axis=0), (of_frame**2 - squares)[2]
    of_segment = np.zeros(at.max() + 1, np.int64)
    of_segment[frame - frame[0]] = segment
    products, pairs = np.bincount(of_segment, products), np.bincount(of_segment, pairs)
    if pairs.sum() <= 0 or np.count_nonzero(pairs) < 2:
        return None
    variance = products.sum() / pairs.sum()
    error = float(np.sqrt(((products - variance * pairs) ** 2).sum())) / pairs.sum()
    return Residual(float(np.sqrt(max(variance, 0.0))), float(variance / error) if error > 0 else 0.0)


@njit(cache=True, nogil=True)
def _displacements(
    places: FloatArray, reference: NDArray[np.float32]
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Displacement of every place from the reference around it, under a Gaussian window, in cells; and if any."""
    moved = np.zeros((len(places), 2))
    seen = np.zeros(len(places), np.bool_)
    size = 2 * _REACH_CELLS + 1
    along_x, along_y = np.empty(size), np.empty(size)
    weight_x, weight_y = np.empty(size), np.empty(size)
    for i in range(len(places)):
        left, top = int(places[i, 0]) - _REACH_CELLS, int(places[i, 1]) - _REACH_CELLS
        if left < 0 or top < 0 or left + size > reference.shape[1] or top + size > reference.shape[0]:
            continue
        for k in range(size):
            along_x[k] = left + k + 0.5 - places[i, 0]
            along_y[k] = top + k + 0.5 - places[i, 1]
            weight_x[k] = np.exp(-0.5 * (along_x[k] / _WINDOW_CELLS) ** 2)
            weight_y[k] = np.exp(-0.5 * (along_y[k] / _WINDOW_CELLS) ** 2)
        total, sum_x, sum_y = 0.0, 0.0, 0.0
        for row in range(size):
            for column in range(size):
                count = reference[top + row, left + column]
                if count > 0:
                    weight = count * weight_y[row] * weight_x[column]
                    total += weight
                    sum_x += weight * along_x[column]
                    sum_y += weight * along_y[row]
        if total > 0:
            moved[i, 0], moved[i, 1] = -sum_x / total, -sum_y / total
            seen[i] = True
    return moved, seen
