"""Is this a stack of one bead that can be fitted? What was done to it before?"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label, sum_labels

from smlm_bridge.errors import InputRejected

_CENSORED_FRACTION = 0.2
_CENSORED_GAP = 4.0
_BEAD_SMOOTHING_NM = 300.0
_BEAD_LEVEL = 0.25  # of the brightest spot of the projection along z
_BEAD_SHARE = 0.3  # of the light of the brightest spot
_SATURATED_PIXELS = 8


def check_stack(stack: NDArray[np.generic]) -> None:
    """Reject what cannot be a bead stack.

    Raises
    ------
    InputRejected
        If it is not (z, y, x), has one plane, values that are not finite, no signal, or is saturated.
    """
    if stack.ndim != 3:
        raise InputRejected(f"a bead stack has three axes (z, y, x), got shape {stack.shape}.")
    planes, height, width = stack.shape
    if planes < 2:
        raise InputRejected(
            "the bead stack has one plane: one focus cannot tell a phase from its mirror image. "
            "Give a stack of one bead at several focus positions."
        )
    if min(height, width) < 9:
        raise InputRejected(
            f"the planes are {height} x {width} pixels; at least 9 x 9 are needed around a bead."
        )
    if not (np.issubdtype(stack.dtype, np.integer) or np.issubdtype(stack.dtype, np.floating)):
        raise InputRejected(f"the bead stack holds {stack.dtype}, not numbers of counts.")
    if not np.isfinite(stack).all():
        raise InputRejected(
            "the bead stack has values that are not finite (NaN or infinity). Remove those planes."
        )
    if stack.max() == stack.min():
        raise InputRejected(
            f"the bead stack is constant ({stack.max():g} everywhere): there is no bead in it."
        )
    saturated = int((stack == stack.max()).sum(axis=(1, 2)).max())
    if saturated >= _SATURATED_PIXELS and stack.max() > 100:
        raise InputRejected(
            f"the bead stack is saturated: {saturated} pixels of one plane have the largest value, "
            f"{stack.max():g}. Record it again with less light or a shorter exposure."
        )


def censoring_threshold(stack: NDArray[np.generic]) -> float | None:
    """Smallest value kept in a stack whose small values were set to 0, or None for a stack as recorded.

    A threshold shows as many exact zeros and a gap above them that is wide against the spacing of the values
    that follow; dim Poisson counts have the zeros but no gap.
    """
    if stack.min() != 0 or (stack == 0).mean() < _CENSORED_FRACTION:
        return None
    values = np.unique(stack)[1:22].astype(np.float64)
    if len(values) < 3:
        return None
    spacing = float(np.median(np.diff(values)))
    return float(values[0]) if values[0] >= _CENSORED_GAP * spacing else None


def count_beads(stack: NDArray[np.generic], *, pixel_nm: float) -> int:
    """Beads that share the light of the field."""
    return len(_spots(stack, pixel_nm)[1])


def bead_centre(stack: NDArray[np.generic], *, pixel_nm: float) -> tuple[int, int]:
    """Row and column of the bead: the centre of the light summed along z.

    An engineered PSF spreads over microns in one plane, but its parts meet where the sum along z is bright.

    Raises
    ------
    InputRejected
        If no bead stands out, or it stands at the edge.
    """
    smooth, bright, spots = _spots(stack, pixel_nm)
    inside = spots == bright[0]
    rows, columns = np.nonzero(inside)
    weight = smooth[inside]
    row, column = (weight @ rows) / weight.sum(), (weight @ columns) / weight.sum()
    if not (3 <= row < stack.shape[1] - 3 and 3 <= column < stack.shape[2] - 3):
        raise InputRejected(
            f"the bead stands at row {row:.0f}, column {column:.0f}, at the edge of {stack.shape[1:]} "
            "pixels: much of its light is cut off. Cut the stack so that the bead stands in its middle."
        )
    return round(row), round(column)


def _spots(
    stack: NDArray[np.generic], pixel_nm: float
) -> tuple[NDArray[np.float64], list[int], NDArray[np.signedinteger]]:
    """The smoothed sum along z, the labels of the bright spots, the brightest first, and the map of labels."""
    projection = stack.astype(np.float64).sum(0)
    projection -= np.median(np.concatenate([projection[[0, -1]].ravel(), projection[:, [0, -1]].ravel()]))
    smooth: NDArray[np.float64] = gaussian_filter(np.maximum(projection, 0), _BEAD_SMOOTHING_NM / pixel_nm)
    if smooth.max() <= 0:
        raise InputRejected("no bead stands out of the background. Give a stack cut around one bright bead.")
    spots, count = label(smooth > _BEAD_LEVEL * smooth.max())
    light = np.asarray(sum_labels(smooth, spots, np.arange(1, count + 1)))
    order = [int(i) + 1 for i in np.argsort(-light) if light[i] > _BEAD_SHARE * light.max()]
    return smooth, order, np.asarray(spots)
