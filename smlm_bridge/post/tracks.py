"""Which localizations are one particle that moves, or one that stays: tracks and clusters.

``track`` follows particles from frame to frame with trackpy (Crocker and Grier 1996). ``cluster`` groups what
lies densely over all frames with DBSCAN (Ester et al. 1996), the way telomeres that hardly move were told apart
beside learned PSF pairs (Nehme et al. 2021). Both give a number a row; the table gets it as the column ``track``.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge._optional import require
from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import POSITION, validate

#: The number of a row that belongs to no track or cluster.
NONE: Final = -1

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
OnStep = Callable[[int, int], None]
Dimensions = Literal[2, 3]


def track(
    locs: pd.DataFrame,
    max_step_nm: float,
    *,
    max_step_z_nm: float | None = None,
    gap_frames: int = 0,
    min_frames: int = 1,
    dimensions: Dimensions = 2,
    on_step: OnStep | None = None,
) -> Integers:
    """Number the tracks: particles followed from frame to frame so that the sum of squared steps is least.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``, frames in any order.
    max_step_nm
        Longest step from a detection of a particle to its next.
    max_step_z_nm
        The same along z, the two being half-axes of an ellipsoid; None takes ``max_step_nm``.
    gap_frames
        Frames a particle may be missing within its track.
    min_frames
        Tracks with fewer detections are left out.
    dimensions
        Steps in x, y, or in x, y, z.
    on_step
        Called with (rows done, rows in all).

    Returns
    -------
    (N,) numbers from 0 in the order of first detection, ``NONE`` for rows of no track.

    Raises
    ------
    InputRejected
        If an argument is out of its range, the table is not valid, or particles lie so densely that the steps
        cannot be told apart.
    MissingDependency
        If trackpy is not installed.
    """
    table = validate(locs)
    reach = _reach(max_step_nm, max_step_z_nm, dimensions, table)
    if gap_frames < 0 or min_frames < 1:
        raise InputRejected(f"gap_frames {gap_frames} must be 0 or more, min_frames {min_frames} 1 or more.")
    if table.empty:
        return np.zeros(0, np.int64)
    linking = require("trackpy.linking", extra="tracks")
    # In units of the longest step: a sphere for trackpy, whatever the axes.
    place = table[list(POSITION[:dimensions])].to_numpy() / reach
    order = np.argsort(table["frame"].to_numpy(), kind="stable")
    frame = table["frame"].to_numpy()[order]
    number = np.empty(len(table), np.int64)
    done = 0
    try:
        with _quiet("trackpy"):
            for _, particles in linking.link_iter(
                _frames(frame, place[order], gap_frames), 1.0, memory=gap_frames
            ):
                number[order[done : done + len(particles)]] = particles
                done += len(particles)
                if on_step is not None:
                    on_step(done, len(table))
    except linking.SubnetOversizeException as error:
        raise InputRejected(
            f"particles lie too densely in frame {frame[done]} (from 0) to be followed over steps of "
            f"{max_step_nm:g} nm: too many compete for one another's places. Give a smaller max_step_nm, or "
            "filter the table."
        ) from error
    return _renumber(number, order, min_frames)


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Keep what a library reports about every frame off the terminal."""
    log = logging.getLogger(library)
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)


def _reach(max_step_nm: float, max_step_z_nm: float | None, dimensions: int, table: pd.DataFrame) -> Floats:
    """The longest step along each axis."""
    steps = [max_step_nm, max_step_nm, max_step_nm if max_step_z_nm is None else max_step_z_nm]
    if not all(math.isfinite(step) and step > 0 for step in steps):
        raise InputRejected(
            f"max_step_nm {max_step_nm}, max_step_z_nm {max_step_z_nm}: give lengths above 0 in nm; about "
            "three times the typical step from frame to frame."
        )
    if dimensions not in (2, 3) or (dimensions == 3 and "z_nm" not in table):
        raise InputRejected(f"dimensions {dimensions}: 2, or 3 for a table with z_nm, are allowed.")
    return np.array(steps[:dimensions])


def _frames(frame: Integers, place: Floats, gap_frames: int) -> Iterator[tuple[int, Floats]]:
    """The places in every frame; of a long run of empty frames only as many as end every track."""
    present, starts = np.unique(frame, return_index=True)
    number = 0
    for k, start in enumerate(starts):
        missing = int(present[k] - present[k - 1]) - 1 if k else 0
        for _ in range(min(missing, gap_frames + 1)):
            yield number, place[:0]
            number += 1
        stop = starts[k + 1] if k + 1 < len(starts) else len(frame)
        yield number, place[start:stop]
        number += 1


def _renumber(number: Integers, order: Integers, min_frames: int) -> Integers:
    """Numbers from 0 by first appearance in ``order``; groups of fewer rows than ``min_frames`` get ``NONE``."""
    groups, first, inverse, count = np.unique(
        number[order], return_index=True, return_inverse=True, return_counts=True
    )
    kept = (count >= min_frames) & (groups != NONE)
    rank = np.full(len(groups), NONE, np.int64)
    by_first = np.argsort(first)
    rank[by_first[kept[by_first]]] = np.arange(kept.sum())
    result = np.empty(len(number), np.int64)
    result[order] = rank[inverse]
    return result


def cluster(
    locs: pd.DataFrame,
    radius_nm: float,
    *,
    least: int = 5,
    min_frames: int = 1,
    dimensions: Dimensions = 2,
    z_weight: float = 1.0,
) -> Integers:
    """Number the clusters of all frames together, by DBSCAN (Ester et al. 1996).

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``.
    radius_nm
        Localizations this close are neighbours.
    least
        A localization with so many neighbours, itself among them, is in the core of a cluster.
    min_frames
        Clusters with fewer detections are left out.
    dimensions
        Distance in x, y, or in x, y, z.
    z_weight
        Factor of differences in z within the distance.

    Returns
    -------
    (N,) numbers from 0 in the order of first detection, ``NONE`` for rows of no cluster.

    Raises
    ------
    InputRejected
        If an argument is out of its range or the table is not valid.
    MissingDependency
        If scikit-learn is not installed.
    """
    table = validate(locs)
    if not (math.isfinite(radius_nm) and radius_nm > 0) or least < 1 or not 0 <= z_weight < math.inf:
        raise InputRejected(
            f"radius_nm {radius_nm} must be a length above 0 in nm, least {least} 1 or more, z_weight "
            f"{z_weight} 0 or more."
        )
    _reach(radius_nm, None, dimensions, table)
    if table.empty:
        return np.zeros(0, np.int64)
    dbscan = require("sklearn.cluster", extra="tracks").DBSCAN
    place = table[list(POSITION[:dimensions])].to_numpy() * np.array([1.0, 1.0, z_weight])[:dimensions]
    labels = dbscan(eps=radius_nm, min_samples=least).fit_predict(place)
    order = np.argsort(table["frame"].to_numpy(), kind="stable")
    return _renumber(np.asarray(labels, dtype=np.int64), order, min_frames)


def trajectories(locs: pd.DataFrame, number: Integers) -> pd.DataFrame:
    """One row a track: where and when it was, how far it went.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``.
    number
        (N,) as ``track`` or ``cluster`` gives it.

    Returns
    -------
    DataFrame
        ``track``, ``first_frame`` and ``last_frame`` (from 0), ``detections``, the means ``x_nm``, ``y_nm`` (and
        ``z_nm``), ``path_nm`` (sum of the steps), ``displacement_nm`` (first to last) and
        ``gyration_radius_nm`` (root mean square distance from the mean).
    """
    table = validate(locs).assign(track=number)
    table = table[table["track"] != NONE].sort_values(["track", "frame"], kind="stable", ignore_index=True)
    axes = [name for name in POSITION if name in table]
    groups = table.groupby("track", sort=True)
    mean = groups[axes].mean()
    first, last = groups[axes].first(), groups[axes].last()
    step = table[axes].diff().to_numpy(copy=True)
    step[table["track"].diff().to_numpy() != 0] = 0.0
    path = pd.Series(np.sqrt(np.sum(step**2, axis=1))).groupby(table["track"]).sum()
    off = (table[axes].to_numpy() - mean.loc[table["track"]].to_numpy()) ** 2
    gyration = pd.Series(off.sum(axis=1)).groupby(table["track"]).mean() ** 0.5
    result = pd.DataFrame(
        {
            "first_frame": groups["frame"].min(),
            "last_frame": groups["frame"].max(),
            "detections": groups.size(),
            **{name: mean[name] for name in axes},
            "path_nm": path,
            "displacement_nm": np.sqrt(((last - first) ** 2).sum(axis=1)),
            "gyration_radius_nm": gyration,
        }
    )
    return result.reset_index(names="track")


def step_lengths_nm(locs: pd.DataFrame, number: Integers, *, dimensions: Dimensions = 2) -> Floats:
    """Lengths of the steps between consecutive frames of the same track.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``.
    number
        (N,) as ``track`` gives it.
    dimensions
        Length in x, y, or in x, y, z.
    """
    table = validate(locs)
    order = np.lexsort((table["frame"].to_numpy(), number))
    order = order[number[order] != NONE]
    frame, group = table["frame"].to_numpy()[order], number[order]
    step = np.diff(table[list(POSITION[:dimensions])].to_numpy()[order], axis=0)
    kept = (np.diff(group) == 0) & (np.diff(frame) == 1)
    return np.asarray(np.sqrt(np.sum(step[kept] ** 2, axis=1)))
