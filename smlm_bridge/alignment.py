"""How two clouds of points lie to each other: shift, rotation and mirror by cross-correlation, then RANSAC.

The cross-correlation of two clouds is the histogram of the differences between their points: under the right
rotation and mirror all true pairs fall into one bin, whatever the shift. Several peaks are followed; each is
fitted by RANSAC (Fischler & Bolles 1981), grown over the field, and the one with most pairs beyond chance is
kept if chance cannot explain it (a contrario: Moisan & Stival 2004).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import binom

from smlm_bridge.matching import Cloud, FloatArray, Indices, Pairs, mutual_pairs, trimmed

_PAIRS = 30_000  # compared in one search
_ROWS = 20_000  # of channel 1 that a peak is tried on
_CHANCE_PER_BOX = 0.1  # points of channel 2 in the box of 3 x 3 bins
_LEAST_ROWS = 60
_MOST_BINS = 1500  # along an axis
_LEAST_BIN_NM = 100.0
_PEAKS = 10
_TRIPLES = 500
_LOG10_FALSE_ALARMS = -2.0


def align(
    first: Cloud,
    second: Cloud,
    predicted_nm: FloatArray,
    *,
    turned: bool,
    radius_nm: float,
    rng: np.random.Generator,
) -> tuple[Pairs | None, int]:
    """The affine transform under which the clouds share most points, beyond what chance would give.

    Parameters
    ----------
    first, second
        Channels 1 and 2; frames count from 0 without gaps, and pairs lie in one frame.
    predicted_nm : (N, 2)
        Where channel 2 may show the points of ``first``, up to a shift and, if ``turned``, rotation and mirror.
    radius_nm
        Distance up to which points are paired once the transform is known.

    Returns
    -------
    pairs
        None where chance explains as many.
    shared
        Beads paired by the best transform that was found.
    """
    most = 0
    for view in _views(first, second, predicted_nm, rng):
        tried = [
            (_verified(peak, view, first, second, predicted_nm, radius_nm, rng), peak)
            for peak in _peaks(view, first, second, predicted_nm, turned=turned)
        ]
        judged = [(_judged(pairs, first, second), peak, pairs) for pairs, peak in tried if pairs is not None]
        if not judged:
            continue
        (excess, alarms, shared), _, best = max(judged, key=lambda item: (round(item[0][0]), -item[1].turn))
        most = max(most, shared)
        if excess > 0 and alarms < _LOG10_FALSE_ALARMS:
            return best, shared
    return None, most


@dataclass(frozen=True, eq=False)
class _View:
    """A part of channel 1 that is compared: its rows, and all pairs with rows of channel 2 in their frames."""

    rows: Indices
    of_rows: Indices
    second: Indices


@dataclass(frozen=True, eq=False)
class _Peak:
    """A linear map and a shift under which many pairs agree; ``turn`` is larger the more it changes."""

    matrix: FloatArray
    origin_nm: FloatArray
    shift_nm: FloatArray
    count: int
    turn: float
    bin_nm: float

    def predict(self, xy_nm: FloatArray) -> FloatArray:
        return (xy_nm - self.origin_nm) @ self.matrix.T + self.shift_nm


def _views(first: Cloud, second: Cloud, predicted: FloatArray, rng: np.random.Generator) -> Iterator[_View]:
    """Whole frames at random where there are many, else parts of one large frame: the middle and the quarters."""
    frames = int(max(first.frame.max(), second.frame.max())) + 1
    in_first, in_second = (np.bincount(cloud.frame, minlength=frames) for cloud in (first, second))
    work = in_first * in_second
    order = rng.permutation(np.flatnonzero(work))
    if not order.size:
        return
    order = order[: max(1, int(np.searchsorted(np.cumsum(work[order]), _PAIRS, side="right")))]
    chosen = np.zeros(frames, bool)
    chosen[order] = True
    rows = np.flatnonzero(chosen[first.frame])
    if work[order].sum() <= _PAIRS:
        yield _joined(rows, first, second, in_second)
        return
    quarters = np.quantile(predicted[rows], [0.25, 0.5, 0.75], axis=0)
    for row, column in ((1, 1), (0, 0), (0, 2), (2, 0), (2, 2)):
        middle = np.array([quarters[column, 0], quarters[row, 1]])
        near = np.argsort(((predicted[rows] - middle) ** 2).sum(axis=1))
        yield _joined(
            rows[near[: max(_LEAST_ROWS, _PAIRS // int(in_second[order].max()))]], first, second, in_second
        )


def _joined(rows: Indices, first: Cloud, second: Cloud, in_second: Indices) -> _View:
    """All pairs of these rows with rows of channel 2 in the same frame."""
    by_frame = np.argsort(second.frame, kind="stable")
    start = np.concatenate([[0], np.cumsum(in_second)[:-1]])
    frame = first.frame[rows]
    count = in_second[frame]
    of_rows = np.repeat(np.arange(len(rows)), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return _View(rows, of_rows, by_frame[np.repeat(start[frame], count) + within])


def _peaks(view: _View, first: Cloud, second: Cloud, predicted: FloatArray, *, turned: bool) -> list[_Peak]:
    """The highest peaks of the cross-correlation over rotations, mirrors and shifts."""
    here, there = predicted[view.rows], second.xy_nm[view.second]
    origin, middle = here.mean(axis=0), (there.min(axis=0) + there.max(axis=0)) / 2
    here, there = here - origin, there - middle
    reach, far = (float(np.hypot(*points.T).max()) for points in (here, there))
    width = _bin_nm(second, reach + far)
    step = min(width / max(reach, width), math.pi / 8)
    angles = np.concatenate([[0.0], np.arange(-math.pi, math.pi, step)]) if turned else np.zeros(1)
    side = math.ceil(2 * (reach + far) / width) + 3
    boxes, found = np.zeros((side, side), np.int32), []
    for mirror in (1.0, -1.0) if turned else (1.0,):
        for angle in angles:
            c, s = math.cos(angle), math.sin(angle)
            matrix = np.array([[c, -s * mirror], [s, c * mirror]])
            away = there - (here @ matrix.T)[view.of_rows]
            count, shift = _highest(away, reach + far, width, boxes)
            turn = abs(angle) + (10.0 if mirror < 0 else 0.0)
            found.append(_Peak(matrix, origin, shift + middle, count, turn, width))
    found.sort(key=lambda peak: (-peak.count, peak.turn))
    return _distinct(found, step)


def _bin_nm(second: Cloud, span: float) -> float:
    """Side of a bin in which chance puts few points: from the density of channel 2 in a frame."""
    extent = np.maximum(np.ptp(second.xy_nm, axis=0), 1.0)
    density = len(second) / len(np.unique(second.frame)) / float(extent.prod())
    width = math.sqrt(_CHANCE_PER_BOX / 9 / density)
    return max(min(width, float(extent.max()) / 60), _LEAST_BIN_NM, 2 * span / _MOST_BINS)


def _highest(away: FloatArray, span: float, width: float, boxes: NDArray[np.int32]) -> tuple[int, FloatArray]:
    """Points in the fullest box of 3 x 3 bins, and their median; ``boxes`` is zero before and after."""
    cells = ((away + span) / width).astype(np.int64) + 1
    count, x, y = _fullest(cells, boxes)
    inside = (np.abs(cells - np.array([x, y])) <= 1).all(axis=1)
    return count, np.asarray(np.median(away[inside], axis=0))


@njit(cache=True, nogil=True)
def _fullest(cells: Indices, boxes: NDArray[np.int32]) -> tuple[int, int, int]:  # pragma: no cover (compiled)
    """Count and middle of the box of 3 x 3 bins with most cells: only bins that are hit are visited."""
    best, at_x, at_y = 0, 0, 0
    for n in range(len(cells)):
        for x in range(cells[n, 0] - 1, cells[n, 0] + 2):
            for y in range(cells[n, 1] - 1, cells[n, 1] + 2):
                boxes[x, y] += 1
                if boxes[x, y] > best:
                    best, at_x, at_y = boxes[x, y], x, y
    for n in range(len(cells)):
        boxes[cells[n, 0] - 1 : cells[n, 0] + 2, cells[n, 1] - 1 : cells[n, 1] + 2] = 0
    return best, at_x, at_y


def _distinct(sorted_peaks: list[_Peak], step: float) -> list[_Peak]:
    """The first few that are not neighbours of one before."""
    kept: list[_Peak] = []
    for peak in sorted_peaks:
        if len(kept) == _PEAKS:
            break
        near = (
            np.abs(peak.matrix - other.matrix).max() < 3 * step
            and np.abs(peak.shift_nm - other.shift_nm).max() < 4 * peak.bin_nm
            for other in kept
        )
        if not any(near):
            kept.append(peak)
    return kept


def _verified(
    peak: _Peak,
    view: _View,
    first: Cloud,
    second: Cloud,
    predicted: FloatArray,
    radius_nm: float,
    rng: np.random.Generator,
) -> Pairs | None:
    """The affine transform that grows from a peak: RANSAC where it was found, then the whole field."""
    begin = peak.predict(predicted)
    i, j = mutual_pairs(begin[view.rows], first.rows(view.rows), second, 2 * peak.bin_nm)
    i = view.rows[i]
    agreeing = ransac_affine(first.xy_nm[i], second.xy_nm[j], tolerance_nm=peak.bin_nm / 2, rng=rng)
    if agreeing is None:
        return None
    gate = 2 * peak.bin_nm
    found = trimmed((first.xy_nm[i[agreeing]], second.xy_nm[j[agreeing]]), 1, gate)
    some = np.arange(len(first))
    if len(first) > _ROWS:
        some = np.union1d(rng.choice(some, _ROWS, replace=False), view.rows)
    part = first.rows(some)
    for coarse in (gate, gate / 2, 0.0, 0.0):
        if found is None:
            return None
        gate = max(coarse, radius_nm)
        a, b = mutual_pairs(found.map(part.xy_nm), part, second, gate)
        found = trimmed((part.xy_nm[a], second.xy_nm[b]), 1, gate)
    return None if found is None else Pairs(some[a[found.first]], b[found.second], found.map, found.gate_nm)


def ransac_affine(
    xy_nm: FloatArray, to_nm: FloatArray, *, tolerance_nm: float, rng: np.random.Generator
) -> NDArray[np.bool_] | None:
    """Which pairs agree with the affine transform of three of them that most pairs agree with.

    Fischler & Bolles 1981: 500 random triples. None where fewer than four agree or all lie on one line.
    """
    count = len(xy_nm)
    if count < 4:
        return None
    triples = (
        rng.random((_TRIPLES, count)).argsort(axis=1)[:, :3]
        if count < 50
        else rng.integers(0, count, (_TRIPLES, 3))
    )
    corners = np.concatenate([xy_nm, np.ones((count, 1))], axis=1)
    unit = max(float(np.ptp(xy_nm, axis=0).max()), 1.0)
    corners[:, :2] = (xy_nm - xy_nm.mean(axis=0)) / unit
    systems = corners[triples]
    sound = np.abs(np.linalg.det(systems)) > 1e-6
    if not sound.any():
        return None
    solutions = np.linalg.solve(systems[sound], to_nm[triples[sound]])
    away = ((corners @ solutions - to_nm) ** 2).sum(axis=2)
    agreeing = away <= tolerance_nm**2
    best = agreeing[int(agreeing.sum(axis=1).argmax())]
    return np.asarray(best) if best.sum() >= 4 else None


def _judged(pairs: Pairs, first: Cloud, second: Cloud) -> tuple[float, float, int]:
    """Beads beyond chance, log10 of the expected number of false alarms, and beads paired.

    Any three pairs make an affine transform; the others agree by chance with the probability that a point of
    channel 2 lies within the gate. All choices of three pairs are counted (Moisan & Stival 2004).
    """
    extent = np.maximum(np.ptp(second.xy_nm, axis=0), 1.0)
    a_frame = len(second) / len(np.unique(second.frame))
    chance = min(a_frame * math.pi * pairs.gate_nm**2 / float(extent.prod()), 1.0)
    beads = len(np.unique(first.bead)) if len(first) <= _ROWS else min(_ROWS, len(np.unique(first.bead)))
    shared = len(np.unique(first.bead[pairs.first]))
    beads = max(beads, shared)
    log_choices = float(gammaln(beads + 1) - gammaln(beads - 2) - math.log(6)) + 3 * math.log(
        max(a_frame, 3.0)
    )
    log_tail = float(binom.logsf(shared - 4, beads - 3, chance)) if shared > 3 else 0.0
    return shared - beads * chance, (log_choices + log_tail) / math.log(10), shared
