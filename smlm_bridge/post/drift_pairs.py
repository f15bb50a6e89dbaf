"""Drift in x, y and z at once from pairs of localizations that lie at one place.

Two localizations of one molecule differ by the drift between their frames. Every pair of segments gets such
differences, and the drift of all segments is the one under which the pairs overlap most: the sum over pairs of
a Gaussian of what is left of their difference (the objective of COMET, Reinkensmeier et al. 2026,
10.64898/2026.03.27.714864). It is
maximised by iteratively reweighted least squares, with a Gaussian that narrows (graduated non-convexity, Blake
& Zisserman 1987), so that pairs of different molecules lose their say.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

FloatArray = NDArray[np.float64]
Indices = NDArray[np.int64]

#: More pairs than this cost time and gain nothing; localizations are thinned out at random instead.
MAX_PAIRS: Final = 1_500_000
#: Below so many pairs a segment the answer is noise.
MIN_PAIRS_PER_SEGMENT: Final = 20.0
_NARROWING: Final = 0.6
_LAST_STEPS: Final = 4
_CLOSE_PAIRS: Final = 100
_STIFFNESS: Final = 1e-3


def pair_drift(
    xyz_nm: FloatArray,
    segment: Indices,
    segments: int,
    *,
    radius_nm: float,
    sigma_nm: tuple[float | None, ...],
    rng: np.random.Generator,
) -> FloatArray | None:
    """Drift of every segment along all axes of the positions.

    Parameters
    ----------
    xyz_nm : (n, 2 or 3)
        Positions, already roughly corrected in x and y.
    segment : (n,)
        Segment of each localization.
    segments
        Their number.
    radius_nm
        Lateral distance up to which two localizations count as one place.
    sigma_nm
        Typical precision along each of the axes; None takes it from pairs within one segment.
    rng
        For thinning out.

    Returns
    -------
    (segments, axes) drift in nm, the mean of which is zero; None if there are too few pairs.
    """
    first, second = _pairs(xyz_nm[:, :2], radius_nm, rng)
    difference = xyz_nm[first] - xyz_nm[second]
    a, b = segment[first], segment[second]
    apart = a != b
    if np.count_nonzero(apart) < MIN_PAIRS_PER_SEGMENT * segments:
        return None
    spread = [
        np.sqrt(2.0) * known if known else _spread(column[~apart], column)
        for known, column in zip(sigma_nm, difference.T, strict=True)
    ]
    return _solve(difference[apart], a[apart], b[apart], segments, width_nm=1.5 * np.array(spread))


def _pairs(xy_nm: FloatArray, radius_nm: float, rng: np.random.Generator) -> tuple[Indices, Indices]:
    tree = cKDTree(xy_nm)
    count = (int(tree.count_neighbors(tree, radius_nm)) - len(xy_nm)) // 2
    kept = np.arange(len(xy_nm))
    if count > MAX_PAIRS:
        kept = np.flatnonzero(rng.random(len(xy_nm)) < np.sqrt(MAX_PAIRS / count))
        tree = cKDTree(xy_nm[kept])
    pairs = tree.query_pairs(radius_nm, output_type="ndarray")
    return kept[pairs[:, 0]], kept[pairs[:, 1]]


def _spread(close: FloatArray, others: FloatArray) -> float:
    """Standard deviation of differences, of pairs that drift cannot have moved where there are enough."""
    sample = close if close.size >= _CLOSE_PAIRS else others
    return max(1.0, 1.4826 * float(np.median(np.abs(sample))))


def _solve(
    difference: FloatArray, a: Indices, b: Indices, segments: int, *, width_nm: FloatArray
) -> FloatArray:
    drift = np.zeros((segments, difference.shape[1]))
    width = np.maximum(width_nm, difference.std(axis=0))
    last = 0
    while last < _LAST_STEPS:
        residual = difference - drift[a] + drift[b]
        weight = np.exp(-0.5 * ((residual / width) ** 2).sum(axis=1))
        coupling = np.bincount(a * segments + b, weight, segments**2).reshape(segments, segments)
        coupling += coupling.T
        degree = coupling.sum(axis=1)
        pull = np.stack([_pull(weight * column, a, b, segments) for column in difference.T], axis=1)
        # A weak spring between neighbours carries the drift over segments without pairs.
        spring = np.full(segments - 1, _STIFFNESS * degree.mean())
        coupling += np.diag(spring, 1) + np.diag(spring, -1)
        laplacian = np.diag(coupling.sum(axis=1)) - coupling + degree.mean() / segments
        drift = np.linalg.solve(laplacian, pull)
        last += bool((width == width_nm).all())
        width = np.maximum(width_nm, width * _NARROWING)
    return np.asarray(drift - drift.mean(axis=0))


def _pull(weighted: FloatArray, a: Indices, b: Indices, segments: int) -> FloatArray:
    return np.asarray(np.bincount(a, weighted, segments) - np.bincount(b, weighted, segments))
