"""Drift in x and y by counting coincidences: an adaptive intersection maximization of our own.

A segment of frames is laid over a histogram of all that is already corrected; the shift with the most
coincidences is the drift of that segment (the idea of AIM: Ma et al. 2024). Ours finds the peak as the maximum
of the counts under a Gaussian window, by Newton's method, and from the second pass on it takes a segment
out of the reference before the two are compared: no segment can confirm itself.
"""

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected

FloatArray = NDArray[np.float64]

#: Cells of the reference histogram (4 bytes each).
MAX_CELLS: Final = 250_000_000
_WIDER: Final = 6  # times the reach, where a segment has lost its reference
_NEWTON_STEPS: Final = 12
_CONVERGED: Final = 1e-4  # cells
_FARTHEST: Final = 1.5  # cells from the best whole shift
_RECENTRED: Final = 8
_WEAK: Final = 0.4  # of the usual height: the peak may be elsewhere
_STRONGER: Final = 1.5  # what another peak must be to be believed
_FOLLOW: Final = 0.2  # weight of a segment in the usual height


def aim(
    x_nm: FloatArray,
    y_nm: FloatArray,
    bounds: NDArray[np.int64],
    *,
    cell_nm: float,
    reach_nm: float,
    kernel_nm: float,
    passes: int = 3,
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Drift of every segment against all the others.

    Parameters
    ----------
    x_nm, y_nm : (n,)
        Positions, ordered by frame.
    bounds : (segments + 1,)
        Segment s holds the rows ``bounds[s]:bounds[s + 1]``.
    cell_nm
        Side of the cells in which coincidences are counted.
    reach_nm
        Largest drift from one segment to the next that is looked for first; a segment whose peak
        is weak or at the border looks six times as far.
    kernel_nm
        Width (standard deviation) of the window under which the peak of the counts is sought; about
        the precision of the localizations times sqrt(2).
    passes
        The first compares a segment with those before it, every further one with all others.

    Returns
    -------
    drift_nm : (segments, 2)
        x and y; the first segment is at zero after the first pass.
    lost : (segments,)
        Segments whose peak ran off whatever was searched.

    Raises
    ------
    InputRejected
        If the field has more than ``MAX_CELLS`` cells.
    """
    radius = max(2, round(reach_nm / cell_nm))
    margin = _WIDER * radius + 1
    low = np.array([y_nm.min(), x_nm.min()]) - margin * cell_nm
    shape = np.ceil((np.array([y_nm.max(), x_nm.max()]) - low) / cell_nm).astype(np.int64) + margin + 1
    if shape[0] * shape[1] > MAX_CELLS:
        raise InputRejected(
            f"the localizations span {np.ptp(x_nm):.0f} nm x {np.ptp(y_nm):.0f} nm, which is more than "
            f"{MAX_CELLS} cells of {cell_nm:g} nm. Remove stray localizations, check the units, or take the "
            "engine rcc."
        )
    reference = np.zeros((int(shape[0]), int(shape[1])), np.int32)
    drift = np.zeros((bounds.size - 1, 2))
    lost = np.zeros(bounds.size - 1, np.bool_)
    y, x = (y_nm - low[0]) / cell_nm, (x_nm - low[1]) / cell_nm
    _follow(y, x, bounds, reference, drift, lost, radius, kernel_nm / cell_nm, passes)
    return drift[:, ::-1] * cell_nm, lost


@njit(cache=True, nogil=True)
def _add(y: FloatArray, x: FloatArray, shift: FloatArray, reference: NDArray[np.int32], weight: int) -> None:
    """Add the points, moved back by ``shift``, to the reference, or take them out (weight -1)."""
    for i in range(y.size):
        row, column = int(np.floor(y[i] - shift[0])), int(np.floor(x[i] - shift[1]))
        if 0 <= row < reference.shape[0] and 0 <= column < reference.shape[1]:
            reference[row, column] += weight


@njit(cache=True, nogil=True)
def _count(
    y: FloatArray, x: FloatArray, shift: FloatArray, reference: NDArray[np.int32], radius: int
) -> FloatArray:
    """Coincidences with the reference at every whole shift of cells about ``shift``."""
    counts = np.zeros((2 * radius + 1, 2 * radius + 1))
    rows, columns = reference.shape
    for i in range(y.size):
        row, column = int(np.floor(y[i] - shift[0])), int(np.floor(x[i] - shift[1]))
        if radius <= row < rows - radius and radius <= column < columns - radius:
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    counts[radius - dy, radius - dx] += reference[row + dy, column + dx]
    return counts


@njit(cache=True, nogil=True)
def gaussian_peak(counts: FloatArray, sigma: float) -> tuple[float, float, float]:
    """Where the counts under a Gaussian window are most.

    Parameters
    ----------
    counts : (2 r + 1, 2 r + 1)
        Values at whole shifts.
    sigma
        Width of the window, in steps of the counts.

    Returns
    -------
    y, x
        The place, counted from the middle; at the border it is a whole step, and the true one may be outside.
    height
        The counts under the window there, less their mean.
    """
    size = counts.shape[0]
    radius = size // 2
    offset = np.arange(size) - radius
    window = np.exp(-0.5 * ((offset.reshape(-1, 1) - offset.reshape(1, -1)) / sigma) ** 2)
    raised = counts - counts.mean()
    smooth = window @ raised @ window
    best = int(np.argmax(smooth))
    height = smooth[best // size, best % size]
    start_y, start_x = float(best // size - radius), float(best % size - radius)
    if max(abs(start_y), abs(start_x)) >= radius:
        return start_y, start_x, height
    y, x = start_y, start_x
    for _ in range(_NEWTON_STEPS):
        uy, ux = (offset - y) / sigma, (offset - x) / sigma
        wy, wx = np.exp(-0.5 * uy**2), np.exp(-0.5 * ux**2)
        along_x, along_y = raised @ wx, wy @ raised
        value = (wy * along_x).sum()
        gy, gx = (wy * uy * along_x).sum(), (wx * ux * along_y).sum()
        hyy = (wy * uy * uy * along_x).sum() - value
        hxx = (wx * ux * ux * along_y).sum() - value
        hxy = ((wy * uy) @ raised * (wx * ux)).sum()
        determinant = hyy * hxx - hxy * hxy
        if determinant <= 0 or hyy >= 0:
            return start_y, start_x, height
        step_y = (hxy * gx - hxx * gy) / determinant * sigma
        step_x = (hxy * gy - hyy * gx) / determinant * sigma
        y, x = y + step_y, x + step_x
        if max(abs(y - start_y), abs(x - start_x)) > _FARTHEST:
            return start_y, start_x, height
        if max(abs(step_y), abs(step_x)) < _CONVERGED:
            break
    return y, x, height


@njit(cache=True, nogil=True)
def _locate(
    y: FloatArray,
    x: FloatArray,
    shift: FloatArray,
    reference: NDArray[np.int32],
    radius: int,
    sigma: float,
    expected: float,
) -> float:
    """Move ``shift`` to the peak of the coincidences and return its height; -1, and no move, if it runs off."""
    start = shift.copy()
    dy, dx, height = gaussian_peak(_count(y, x, shift, reference, radius), sigma)
    border = max(abs(dy), abs(dx)) >= radius
    if border or height < _WEAK * expected:
        far_y, far_x, far = gaussian_peak(_count(y, x, shift, reference, radius * _WIDER), sigma)
        if border or far > _STRONGER * height:
            dy, dx = far_y, far_x
    shift[0] += dy
    shift[1] += dx
    for _ in range(_RECENTRED):
        if max(abs(dy), abs(dx)) <= radius / 2:
            return height
        # The window cuts a peak off its middle: count again about it.
        dy, dx, height = gaussian_peak(_count(y, x, shift, reference, radius), sigma)
        shift[0] += dy
        shift[1] += dx
    shift[:] = start
    return -1.0


@njit(cache=True, nogil=True)
def _follow(
    y: FloatArray,
    x: FloatArray,
    bounds: NDArray[np.int64],
    reference: NDArray[np.int32],
    drift: FloatArray,
    lost: NDArray[np.bool_],
    radius: int,
    sigma: float,
    passes: int,
) -> None:
    """Fill ``drift`` and ``lost``, segment by segment, pass by pass."""
    typical = 0.0  # height of a peak for one localization against one of the reference
    held = 0
    for turn in range(passes):
        for s in range(bounds.size - 1):
            ys, xs = y[bounds[s] : bounds[s + 1]], x[bounds[s] : bounds[s + 1]]
            if turn > 0:
                _add(ys, xs, drift[s], reference, -1)
                held -= ys.size
            elif s > 0:
                drift[s] = drift[s - 1]
            pairs = ys.size * held
            if pairs > 0:
                height = _locate(ys, xs, drift[s], reference, radius, sigma, typical * pairs)
                lost[s] = height < 0
                if not lost[s]:
                    typical += (_FOLLOW if typical > 0 else 1.0) * (height / pairs - typical)
            _add(ys, xs, drift[s], reference, 1)
            held += ys.size
