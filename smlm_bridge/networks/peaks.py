"""Local maxima of a volume and their centres of gravity, looking only where the volume is above a threshold.

The answer is that of max-pooling the whole volume; almost none of it lies above the threshold, so almost none of
it is compared.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected

P = ParamSpec("P")
R = TypeVar("R")
Volume = NDArray[np.float32]
Index = NDArray[np.int64]


def find_peaks(volume: Volume, *, threshold: float, radius: int, every_tie: bool = False) -> Index:
    """Voxels above a threshold that no voxel of the cube around them exceeds.

    Cubes are cut at the faces of the volume. What is above the threshold is compared with its neighbours and with
    nothing else; the memory beyond the volume is that of one plane.

    Parameters
    ----------
    volume : (D, H, W)
        Finite numbers.
    threshold
        From 0; a peak is above it, not at it.
    radius
        A cube has 2 ``radius`` + 1 voxels along every axis.
    every_tie
        Of voxels of one cube with the very same value the first in reading order (plane, row, column) is the peak,
        so that a saturated emitter is found once; True makes all of them peaks, as max-pooling does. Without equal
        voxels above the threshold in one cube both give the same.

    Returns
    -------
    (P, 3) plane, row and column of each peak, in reading order.

    Raises
    ------
    InputRejected
        If the volume has not three axes, the threshold is negative, or the radius below 0.
    """
    if volume.ndim != 3 or not 0 <= threshold < np.inf or radius < 0:
        raise InputRejected(
            f"a volume of shape {volume.shape}, threshold {threshold}, radius {radius}: give three axes (plane, "
            "row, column), and a threshold and a radius from 0."
        )
    volume = np.ascontiguousarray(volume, np.float32)
    least, width = np.float32(threshold), volume.shape[2]
    found = [np.zeros((0, 3), np.int64)]
    for number, plane in enumerate(volume):
        places = np.flatnonzero(plane > least)
        if places.size:
            places = places[_keep(volume, number, places, radius, every_tie)]
            found.append(np.stack([np.full_like(places, number), *np.divmod(places, width)], axis=1))
    return np.concatenate(found)


def centres_of_gravity(volume: Volume, peaks: Index, *, radius: int) -> NDArray[np.float64]:
    """Mean position of the cube around every peak, weighted by the volume.

    Parameters
    ----------
    volume : (D, H, W)
        What is negative has no weight.
    peaks : (P, 3)
        As ``find_peaks`` gives them.
    radius
        Cubes as in ``find_peaks``.

    Returns
    -------
    (P, 3) plane, row and column as fractions of voxels; whole numbers are the centres of voxels.
    """
    return _centres(np.ascontiguousarray(volume, np.float32), peaks, radius)


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call, once for all runs; numba has no types of its own."""
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        compiled = numba.njit(nogil=True)(function)
    return cast("Callable[P, R]", compiled)


@_compiled
def _keep(volume: Volume, plane: int, places: Index, radius: int, every_tie: bool) -> NDArray[np.bool_]:
    """Which of the voxels of a plane, given by their place in it, are peaks."""
    width = volume.shape[2]
    kept = np.empty(len(places), np.bool_)
    for n in range(len(places)):
        kept[n] = _is_peak(volume, plane, places[n] // width, places[n] % width, radius, every_tie)
    return kept


@_compiled
def _is_peak(volume: Volume, k: int, i: int, j: int, radius: int, every_tie: bool) -> bool:
    planes, height, width = volume.shape
    value = volume[k, i, j]
    if radius > 0:  # on the slope of a peak a direct neighbour is higher: most candidates end here
        before, after = max(j - 1, 0), min(j + 1, width - 1)
        above, below = max(i - 1, 0), min(i + 1, height - 1)
        if max(volume[k, i, before], volume[k, i, after], volume[k, above, j], volume[k, below, j]) > value:
            return False
    for z in range(max(k - radius, 0), min(k + radius + 1, planes)):
        for y in range(max(i - radius, 0), min(i + radius + 1, height)):
            earlier = z < k or (z == k and y < i)
            for x in range(max(j - radius, 0), min(j + radius + 1, width)):
                other = volume[z, y, x]
                if other > value:
                    return False
                if other == value and not every_tie and (earlier or (z == k and y == i and x < j)):
                    return False
    return True


@_compiled
def _centres(volume: Volume, peaks: Index, radius: int) -> NDArray[np.float64]:
    planes, height, width = volume.shape
    centres = np.empty((len(peaks), 3))
    for p in range(len(peaks)):
        k, i, j = peaks[p]
        total = along_z = along_y = along_x = 0.0
        for z in range(max(k - radius, 0), min(k + radius + 1, planes)):
            for y in range(max(i - radius, 0), min(i + radius + 1, height)):
                for x in range(max(j - radius, 0), min(j + radius + 1, width)):
                    weight = np.float64(max(volume[z, y, x], np.float32(0.0)))
                    total += weight
                    along_z += weight * (z - k)
                    along_y += weight * (y - i)
                    along_x += weight * (x - j)
        centres[p, 0] = k + along_z / total
        centres[p, 1] = i + along_y / total
        centres[p, 2] = j + along_x / total
    return centres
