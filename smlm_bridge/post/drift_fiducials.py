"""Drift from fiducials: beads that are seen in nearly every frame, found in the table or given by place."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.post.link import link

FloatArray = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Share of the movie's frames in which a bead must be seen to be found without its place being given.
LEAST_SEEN: Final = 0.5
#: A bead whose path leaves that of the others by this many times their spread is no fiducial.
_OUTLIER_SPREADS: Final = 5.0
_LEAST_SPREAD_NM: Final = 2.0
_GAP_FRAMES: Final = 20
_LEAST_CHAIN: Final = 0.05  # of the frames: chains from which a bead is followed
_LEAST_GIVEN: Final = 5  # detections of a bead whose place is given
_MOST: Final = 200  # beads: more gain nothing
_FOLLOW: Final = 0.2  # weight of a detection in the running mean of a bead's place
_BLOCKS: Final = 500  # of frames, in which the paths of beads are compared
_REACH_KERNELS: Final = 5.0  # from one detection to the next
_ALTERNATIONS: Final = 50
_SETTLED_NM: Final = 1e-4


def mark_fiducials(
    table: pd.DataFrame,
    places_nm: Sequence[tuple[float, float]] | None = None,
    *,
    kernel_nm: float,
    radius_nm: float,
) -> Indices:
    """Number the fiducial of every row, from 0; -1 where there is none.

    Parameters
    ----------
    table
        A table as in ``smlm_bridge.locs``, ordered by frame.
    places_nm
        x, y of the fiducials; None takes every chain of detections that is seen in half of the frames.
    kernel_nm
        Precision of the localizations times sqrt(2).
    radius_nm
        A fiducial moves no farther from its place.

    Raises
    ------
    InputRejected
        If there is no fiducial, or none at one of the places.
    """
    if places_nm is not None:
        return _at_places(table, places_nm, kernel_nm=kernel_nm, radius_nm=radius_nm)
    frame, xy = table["frame"].to_numpy(), table[["x_nm", "y_nm"]].to_numpy()
    frames = int(frame[-1] - frame[0]) + 1
    track = _track(table, kernel_nm)
    seen = np.bincount(track)
    seeds = np.flatnonzero(seen >= _LEAST_CHAIN * frames)
    seeds = seeds[np.argsort(seen[seeds])[::-1]][:_MOST]
    marker = np.full(len(table), -1)
    best, count = int(seen.max()), 0
    for seed in seeds:
        start = np.flatnonzero(track == seed)[0]
        if marker[start] >= 0:
            continue
        near = np.flatnonzero((np.hypot(*(xy - xy[start]).T) <= radius_nm) & (marker < 0))
        chain = near[
            _follow(frame[near], xy[near], int(np.searchsorted(near, start)), _REACH_KERNELS * kernel_nm)
        ]
        best = max(best, chain.size)
        if chain.size >= LEAST_SEEN * frames:
            marker[chain] = count
            count += 1
    if count == 0:
        raise InputRejected(
            f"no fiducial was found: nothing is seen in {100 * LEAST_SEEN:.0f} % of the {frames} frames at one "
            f"place (the best in {100 * best / frames:.0f} %). Give their places (fiducials_nm, "
            "--fiducial X,Y), or take the engine aim, which needs none."
        )
    return _agreeing(table, marker)


def fiducial_drift(xyz_nm: FloatArray, segment: Indices, segments: int, marker: Indices) -> FloatArray:
    """Drift that all fiducials share, (segments, axes) in nm; NaN where none is seen.

    Position of marker m in segment s = place of m + drift of s, by alternating least squares.

    Parameters
    ----------
    xyz_nm : (n, axes)
        Positions of fiducials.
    segment, marker : (n,)
        Segment of each row, and its fiducial from 0.
    segments
        Number of segments.
    """
    count = np.bincount(segment, minlength=segments).astype(np.float64)
    seen = np.bincount(marker).astype(np.float64)
    place = _means(xyz_nm, marker, np.maximum(seen, 1.0))
    drift = np.zeros((segments, xyz_nm.shape[1]))
    for _ in range(_ALTERNATIONS):
        drift = _means(xyz_nm - place[marker], segment, np.maximum(count, 1.0))
        moved = _means(xyz_nm - drift[segment], marker, np.maximum(seen, 1.0))
        step, place = np.abs(moved - place).max(), moved
        if step < _SETTLED_NM:
            break
    drift[count == 0] = np.nan
    return drift


def _means(values: FloatArray, group: Indices, count: FloatArray) -> FloatArray:
    sums = [np.bincount(group, column, minlength=count.size) for column in values.T]
    return np.stack(sums, axis=1) / count[:, None]


def _track(table: pd.DataFrame, kernel_nm: float) -> Indices:
    return link(table[["frame", "x_nm", "y_nm"]], _REACH_KERNELS * kernel_nm, gap_frames=_GAP_FRAMES)


@njit(cache=True, nogil=True)
def _follow(frame: Indices, xy_nm: FloatArray, start: int, reach_nm: float) -> NDArray[np.bool_]:
    """The detections of one bead, followed both ways from a row: nearest to a running mean of its place.

    The mean, and not the last detection, so that a molecule that blinks beside a bead that was missed once
    does not lead away from it.
    """
    taken = np.zeros(frame.size, np.bool_)
    for step in (1, -1):
        y, x = xy_nm[start, 1], xy_nm[start, 0]
        row = start
        while 0 <= row < frame.size:
            now, best, nearest = frame[row], -1, reach_nm
            while 0 <= row < frame.size and frame[row] == now:
                distance = np.hypot(xy_nm[row, 0] - x, xy_nm[row, 1] - y)
                if distance < nearest:
                    best, nearest = row, distance
                row += step
            if best >= 0 and (step == 1 or now != frame[start]):
                taken[best] = True
                x += _FOLLOW * (xy_nm[best, 0] - x)
                y += _FOLLOW * (xy_nm[best, 1] - y)
    return taken


def _at_places(
    table: pd.DataFrame, places_nm: Sequence[tuple[float, float]], *, kernel_nm: float, radius_nm: float
) -> Indices:
    """At every place the chain of detections that is seen most."""
    marker = np.full(len(table), -1)
    frame, xy = table["frame"].to_numpy(), table[["x_nm", "y_nm"]].to_numpy()
    for number, place in enumerate(places_nm):
        rows = np.flatnonzero((np.hypot(*(xy - place).T) <= radius_nm) & (marker < 0))
        track = _track(table.iloc[rows], kernel_nm)
        seen = np.bincount(track, minlength=1)
        if seen.max() < _LEAST_GIVEN:
            raise InputRejected(
                f"there is no fiducial within {radius_nm:g} nm of x {place[0]:g}, y {place[1]:g} nm. Look its "
                "place up in the table, in nm from the outer corner of the first pixel."
            )
        start = int(np.flatnonzero(track == np.argmax(seen))[0])
        marker[rows[_follow(frame[rows], xy[rows], start, _REACH_KERNELS * kernel_nm)]] = number
    return marker


def _agreeing(table: pd.DataFrame, marker: Indices) -> Indices:
    """Without the fiducials that go their own way: from three on, a majority can tell."""
    kept = marker >= 0
    count = int(marker.max()) + 1
    if count < 3:
        return marker
    frame = table["frame"].to_numpy()[kept]
    block = np.unique((frame - frame.min()) * _BLOCKS // (np.ptp(frame) + 1), return_inverse=True)[1]
    blocks = int(block.max()) + 1
    cell = block * count + marker[kept]
    seen = np.bincount(cell, minlength=blocks * count).astype(np.float64)
    xy = table[["x_nm", "y_nm"]].to_numpy()[kept]
    with np.errstate(invalid="ignore"):  # a bead that is not seen in a block has no mean there
        path = _means(xy, cell, seen).reshape(blocks, count, 2)
    for _ in range(
        2
    ):  # places first from all their frames, then from what the others say they have in common
        path = path - np.nanmedian(path, axis=0)
        path = path - np.nanmedian(path, axis=1, keepdims=True)
    spread = np.sqrt(np.nanmean(path**2, axis=(0, 2)))
    good = spread <= _OUTLIER_SPREADS * max(float(np.median(spread)), _LEAST_SPREAD_NM)
    number = np.where(good, np.cumsum(good) - 1, -1)
    return np.where(marker >= 0, number[marker], -1)
