"""Which detections are one molecule: linking over frames.

A molecule is active from a detection on, and while it is dark for no more than ``gap_frames`` frames. In every
frame, detections take the active molecule whose last detection is nearest; the others start a molecule.
ThunderSTORM's rule differs where several detections of a frame lie near one molecule, and is the other choice.
"""

import math
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import validate

#: ThunderSTORM's defaults.
DISTANCE_NM: Final = 20.0
GAP_FRAMES: Final = 1
Z_WEIGHT: Final = 0.1

_FARTHEST_CELL: Final = 2.0**60

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
#: Frames, places and cells of the rows; the row last put into every bucket, and the one below each row.
_Grid = tuple[Integers, Floats, Integers, Integers, Integers]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def link(
    locs: pd.DataFrame,
    distance_nm: float = DISTANCE_NM,
    *,
    gap_frames: int = GAP_FRAMES,
    z_weight: float = Z_WEIGHT,
    one_a_frame: bool = True,
) -> Integers:
    """Number the molecules: one number a row, from 0 in the order of first detection.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``, frames in any order.
    distance_nm
        Detections closer than this to a molecule's last detection are linked to it.
    gap_frames
        Longest dark time between two detections of a molecule, in frames.
    z_weight
        Factor of differences in z within the distance; unused for a table without z.
    one_a_frame
        Whether a molecule takes at most one detection a frame, the nearest pairs first; else as ThunderSTORM:
        the detections of a frame, in the order of the table, each look for the molecule that was nearest when
        the frame began, and are linked if they are closer than ``distance_nm`` to its last detection by now,
        which may be of the same frame.

    Raises
    ------
    InputRejected
        If an argument is out of its range or the table is not valid.
    """
    _check(distance_nm, gap_frames, z_weight)
    table = validate(locs)
    place = np.zeros((len(table), 3))
    place[:, :2] = table[["x_nm", "y_nm"]]
    if "z_nm" in table:
        place[:, 2] = z_weight * table["z_nm"].to_numpy()
    if np.abs(place).max(initial=0.0) / distance_nm > _FARTHEST_CELL:
        raise InputRejected(
            f"positions up to {np.abs(place).max():g} nm are too far apart to be linked within "
            f"{distance_nm:g} nm; check the units of the table."
        )
    frame = table["frame"].to_numpy()
    # x and y too: of several detections in a frame, the order of the rows must not decide, but for ThunderSTORM.
    order = np.lexsort((place[:, 1], place[:, 0], frame) if one_a_frame else (frame,))
    rule = _link_rows if one_a_frame else _link_in_order
    molecule = np.empty(len(table), np.int64)
    # One type of each argument, for numba compiles anew for every other.
    molecule[order] = rule(frame[order], place[order], float(distance_nm), int(gap_frames))
    return molecule


def _check(distance_nm: float, gap_frames: int, z_weight: float) -> None:
    if not (math.isfinite(distance_nm) and distance_nm > 0):
        raise InputRejected(
            f"distance_nm {distance_nm} must be a length above 0 in nm; about three times the typical "
            f"uncertainty, for example {DISTANCE_NM:g}."
        )
    if gap_frames != int(gap_frames) or gap_frames < 0:
        raise InputRejected(f"gap_frames {gap_frames} must be a whole number of dark frames, 0 or more.")
    if not (math.isfinite(z_weight) and z_weight >= 0):
        raise InputRejected(f"z_weight {z_weight} must be 0 (z is ignored) or more; 1 counts z as x and y.")


def _compiled(function: _Function) -> _Function:
    """Compile at the first call, once for all processes; numba has no types of its own."""
    return cast("_Function", njit(cache=True, nogil=True)(function))


@_compiled
def _bucket(x: int, y: int, buckets: int) -> int:
    """Place of a cell in a table of 2^n buckets (the hash of Teschner et al. 2003)."""
    return ((x * 73856093) ^ (y * 19349663)) & (buckets - 1)


@_compiled
def _ascending(values: Floats) -> Integers:
    """The order of few values, equals by their place (Shell 1959); numba takes seconds to compile argsort."""
    order = np.arange(len(values))
    step = len(values) // 2
    while step > 0:
        for i in range(step, len(values)):
            k, j = order[i], i
            while j >= step and (values[k], k) < (values[order[j - step]], order[j - step]):
                order[j] = order[j - step]
                j -= step
            order[j] = k
        step //= 2
    return order


@_compiled
def _link_rows(frame: Integers, place: Floats, distance: float, gap: int) -> Integers:
    """The molecule of every row; frames ascend. Active rows hang in buckets of cells as wide as the distance."""
    rows = len(frame)
    buckets = 1
    while buckets < 2 * rows:
        buckets *= 2
    head = np.full(buckets, -1)
    behind = np.full(rows, -1)
    superseded = np.zeros(rows, np.bool_)
    cell = np.floor(place[:, :2] / distance).astype(np.int64)
    molecule = np.full(rows, -1)
    last = np.full(rows, -1)  # the last detection of every molecule
    found = 0
    start = 0
    while start < rows:
        stop = start
        while stop < rows and frame[stop] == frame[start]:
            stop += 1
        now, before, gaps = _pairs(start, stop, frame, place, cell, head, behind, superseded, distance, gap)
        for k in _ascending(gaps):
            if molecule[now[k]] < 0 and not superseded[before[k]]:
                molecule[now[k]] = molecule[before[k]]
                superseded[before[k]] = True
        for row in range(start, stop):
            if molecule[row] < 0:
                molecule[row] = found
                found += 1
            if last[molecule[row]] >= 0:
                superseded[last[molecule[row]]] = True
            last[molecule[row]] = row
            place_in = _bucket(cell[row, 0], cell[row, 1], buckets)
            behind[row] = head[place_in]
            head[place_in] = row
        start = stop
    return molecule


@_compiled
def _pairs(
    start: int,
    stop: int,
    frame: Integers,
    place: Floats,
    cell: Integers,
    head: Integers,
    behind: Integers,
    superseded: NDArray[np.bool_],
    distance: float,
    gap: int,
) -> tuple[Integers, Integers, Floats]:
    """Rows of this frame, the active rows near them, and their squared distances."""
    count = 0
    now = np.empty(64, np.int64)
    before = np.empty(64, np.int64)
    gaps = np.empty(64)
    for row in range(start, stop):
        for side in range(9):
            x, y = cell[row, 0] + side // 3 - 1, cell[row, 1] + side % 3 - 1
            place_in = _bucket(x, y, len(head))
            newer = -1
            other = head[place_in]
            while other >= 0:
                if frame[row] - frame[other] > gap + 1:
                    # The rows behind it are older still: none of them is needed again.
                    if newer < 0:
                        head[place_in] = -1
                    else:
                        behind[newer] = -1
                    break
                if not superseded[other] and cell[other, 0] == x and cell[other, 1] == y:
                    away = 0.0
                    for axis in range(3):
                        away += (place[row, axis] - place[other, axis]) ** 2
                    if away < distance * distance:
                        if count == len(now):
                            now = np.concatenate((now, np.empty_like(now)))
                            before = np.concatenate((before, np.empty_like(before)))
                            gaps = np.concatenate((gaps, np.empty_like(gaps)))
                        now[count], before[count], gaps[count] = row, other, away
                        count += 1
                newer = other
                other = behind[other]
    return now[:count], before[:count], gaps[:count]


@_compiled
def _link_in_order(frame: Integers, place: Floats, distance: float, gap: int) -> Integers:
    """The molecule of every row by ThunderSTORM's rule; frames ascend, rows of a frame come one after another."""
    rows = len(frame)
    buckets = 1
    while buckets < 2 * rows:
        buckets *= 2
    head = np.full(buckets, -1)
    behind = np.full(rows, -1)
    superseded = np.zeros(rows, np.bool_)
    cell = np.floor(place[:, :2] / distance).astype(np.int64)
    molecule = np.full(rows, -1)
    origin = np.full(rows, -1)  # the molecule's last detection when the row's frame began
    latest = np.arange(rows)  # of such an origin: the molecule's last detection by now
    grid = frame, place, cell, head, behind
    found = 0
    start = 0
    while start < rows:
        stop = start
        while stop < rows and frame[stop] == frame[start]:
            before = _nearest(stop, distance, 1, grid, superseded, gap)
            if before < 0:
                before = _drawn_near(stop, distance, grid, superseded, gap, origin, latest)
            if before >= 0 and _apart2(place, stop, latest[before]) < distance * distance:
                molecule[stop] = molecule[before]
                origin[stop] = before
                latest[before] = stop
            else:
                molecule[stop] = found
                found += 1
            place_in = _bucket(cell[stop, 0], cell[stop, 1], buckets)
            behind[stop] = head[place_in]
            head[place_in] = stop
            stop += 1
        for row in range(start, stop):
            if origin[row] >= 0:
                superseded[origin[row]] = True
                superseded[row] = latest[origin[row]] != row
        start = stop
    return molecule


@_compiled
def _apart2(place: Floats, one: int, other: int) -> float:
    """Squared distance of two rows."""
    away = 0.0
    for axis in range(3):
        away += (place[one, axis] - place[other, axis]) ** 2
    return away


@_compiled
def _nearest(
    row: int, radius: float, reach: int, grid: _Grid, superseded: NDArray[np.bool_], gap: int
) -> int:
    """The active row of earlier frames nearest to a row and nearer than the radius, some cells away; or -1."""
    frame, place, cell, head, behind = grid
    nearest, least = -1, radius * radius
    for x in range(cell[row, 0] - reach, cell[row, 0] + reach + 1):
        for y in range(cell[row, 1] - reach, cell[row, 1] + reach + 1):
            place_in = _bucket(x, y, len(head))
            newer = -1
            other = head[place_in]
            while other >= 0:
                if frame[row] - frame[other] > gap + 1:
                    # The rows behind it are older still: none of them is needed again.
                    if newer < 0:
                        head[place_in] = -1
                    else:
                        behind[newer] = -1
                    break
                earlier = frame[other] < frame[row] and not superseded[other]
                if earlier and cell[other, 0] == x and cell[other, 1] == y:
                    away = _apart2(place, row, other)
                    if away < least:
                        nearest, least = other, away
                newer = other
                other = behind[other]
    return nearest


@_compiled
def _drawn_near(
    row: int,
    distance: float,
    grid: _Grid,
    superseded: NDArray[np.bool_],
    gap: int,
    origin: Integers,
    latest: Integers,
) -> int:
    """The nearest active row where none is near but this frame's detections drew its molecule near; or -1."""
    frame, place, cell, head, behind = grid
    drawn, least = -1, np.inf
    for side in range(9):
        x, y = cell[row, 0] + side // 3 - 1, cell[row, 1] + side % 3 - 1
        other = head[_bucket(x, y, len(head))]
        while other >= 0 and frame[other] == frame[row]:
            before = origin[other]
            if before >= 0 and latest[before] == other and _apart2(place, row, other) < distance * distance:
                away = _apart2(place, row, before)
                if away < least:
                    drawn, least = before, away
            other = behind[other]
    if drawn < 0:
        return -1
    radius = math.sqrt(least)
    nearer = _nearest(row, radius, int(radius / distance) + 1, grid, superseded, gap)
    return drawn if nearer < 0 else nearer
