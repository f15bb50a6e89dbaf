"""Precision of localizations from the data alone: detections of one molecule in consecutive frames.

A molecule that is seen in two frames running gives a pair whose distance is due to the errors alone. NeNA fits
the distribution of all such distances (Endesfelder et al. 2014); ``local_precision`` splits it by axis and by
place, and compares it with the uncertainties that the table claims.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial import cKDTree

from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import validate

#: Farthest pair looked at; errors are below 60 nm by far.
REACH_NM: Final = 200.0
LEAST_PAIRS: Final = 100

_BINS: Final = 120
_ROUNDS: Final = 4  # of fitting, each over a range taken from the one before
_RANGE_SIGMA: Final = 8.0  # the distances fitted: a pair of one molecule lies at about 1.4 sigma
_EM_ROUNDS: Final = 50
_UNKNOWN_NM: Final = 9999.0  # what tables hold for "no usable uncertainty"
_CLAIMED: Final = (
    ("uncertainty_x_nm", "uncertainty_xy_nm"),
    ("uncertainty_y_nm", "uncertainty_xy_nm"),
    ("uncertainty_z_nm", "uncertainty_z_nm"),
)

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Nena:
    """What ``nena`` finds.

    Attributes
    ----------
    sigma_nm, standard_error_nm
        Lateral precision of one localization, per axis, and the standard error of the fit.
    edges_nm, counts, fitted
        Histogram of the distances, (B + 1), (B), and the fitted curve at the middles of its bins, (B).
    pairs
        Number of pairs in the histogram.
    molecule_share
        Share of them that the fit gives to pairs of one molecule.
    """

    sigma_nm: float
    standard_error_nm: float
    edges_nm: Floats
    counts: NDArray[np.int64]
    fitted: Floats
    pairs: int
    molecule_share: float


@dataclass(frozen=True)
class LocalPrecision:
    """What ``local_precision`` finds; values of z are NaN for a table without it.

    Attributes
    ----------
    sigma_nm
        (3,) precision in x, y, z.
    reported_nm
        (3,) root mean square of the uncertainties that the table gives to the same localizations, NaN where
        it gives none.
    zscore_sd
        (3,) standard deviation of a pair's difference over what its two uncertainties foretell: 1 where
        they are right, above 1 where they are too small.
    map_nm
        (Y, X) lateral precision by place, NaN where there are too few pairs.
    map_extent_nm
        Left, right, bottom, top edge of the map.
    pairs
        Number of pairs.
    """

    sigma_nm: Floats
    reported_nm: Floats
    zscore_sd: Floats
    map_nm: Floats
    map_extent_nm: tuple[float, float, float, float]
    pairs: int


def consecutive_pairs(locs: pd.DataFrame, reach_nm: float = REACH_NM) -> tuple[Indices, Indices]:
    """Row numbers of every localization that has a neighbour in the next frame, and of its nearest one.

    Raises
    ------
    InputRejected
        If the reach is not a length above 0 or the table is not valid.
    """
    if not (math.isfinite(reach_nm) and reach_nm > 0):
        raise InputRejected(f"reach_nm {reach_nm} must be a length above 0 in nm, for example {REACH_NM:g}.")
    table = validate(locs)
    if len(table) < 2:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    place = np.empty((len(table), 3))
    place[:, :2] = table[["x_nm", "y_nm"]]
    # Frames as a third axis, farther apart than the reach: one search serves all of them.
    place[:, 2] = table["frame"].to_numpy() * (4.0 * reach_nm)
    ahead = place + np.array([0.0, 0.0, 4.0 * reach_nm])
    distance, nearest = cKDTree(place).query(ahead, distance_upper_bound=reach_nm)
    first = np.flatnonzero(np.isfinite(distance))
    return first, np.asarray(nearest, dtype=np.intp)[first]


def nena(locs: pd.DataFrame, *, reach_nm: float = REACH_NM) -> Nena | None:
    """Lateral precision from the nearest neighbours in consecutive frames (Endesfelder et al. 2014).

    The distances d are fitted by a share of pairs of one molecule, d/(2 s^2) exp(-d^2/(4 s^2)), and of
    neighbours that are other molecules: a Gaussian and a straight line through 0, as published.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``, not merged: merging leaves no pairs.
    reach_nm
        Farthest neighbour looked at.

    Returns
    -------
    Nena, or None for fewer than ``LEAST_PAIRS`` pairs.

    Raises
    ------
    InputRejected
        As ``consecutive_pairs``.
    """
    first, second = consecutive_pairs(locs, reach_nm)
    if first.size < LEAST_PAIRS:
        return None
    place = locs[["x_nm", "y_nm"]].to_numpy(np.float64)
    distance = np.hypot(*(place[second] - place[first]).T)
    sigma = max(_mode(distance) / math.sqrt(2), 1e-3 * reach_nm)
    for _ in range(_ROUNDS):
        reach = min(reach_nm, _RANGE_SIGMA * sigma)
        edges = np.linspace(0, reach, _BINS + 1)
        counts = np.histogram(distance, edges)[0]
        if counts.sum() < LEAST_PAIRS:
            return None
        values, error = _fit(edges, counts, sigma)
        sigma = values[1]
    fitted = _model(values, edges)
    share = float(np.clip(values[0] / max(counts.sum(), 1), 0, 1))
    return Nena(float(sigma), error, edges, counts, fitted, int(counts.sum()), share)


def _mode(distance: Floats) -> float:
    """The most frequent distance of the nearer half."""
    counts, edges = np.histogram(distance, 40, range=(0, np.median(distance) * 2))
    smooth = np.convolve(counts, np.ones(3), "same")
    return float(edges[np.argmax(smooth)] + np.diff(edges[:2])[0] / 2)


def _model(values: Floats, edges: Floats) -> Floats:
    """Expected counts of the bins; values are pairs of one molecule, sigma, others, their centre, width, slope.

    The first term is integrated over the bin.
    """
    own, sigma, others, centre, width, slope = values
    middle, step = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    molecules = own * -np.diff(np.exp(-((edges / (2 * sigma)) ** 2)))
    hump = np.exp(-(((middle - centre) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
    return np.asarray(molecules + step * (others * hump + slope * middle))


def _fit(edges: Floats, counts: NDArray[np.int64], sigma: float) -> tuple[Floats, float]:
    """Parameters of the model and the standard error of sigma."""
    total, reach = float(counts.sum()), edges[-1]
    weight = 1 / np.sqrt(np.maximum(counts, 1))
    start = np.array(
        [0.8 * total, min(sigma, 0.45 * reach), 0.02 * total, reach, 0.5 * reach, 0.1 * total / reach**2]
    )
    low = np.array([0, 1e-3 * reach, 0, 0.5 * reach, 0.15 * reach, 0])
    high = np.array([2 * total, reach, 10 * total, 3 * reach, 3 * reach, 4 * total / reach**2])

    def misfit(values: Floats) -> Floats:
        return np.asarray(weight * (_model(values, edges) - counts))

    found = least_squares(
        misfit,
        np.clip(start, low + 1e-9 * high, high * (1 - 1e-9)),
        bounds=(low, high),
        x_scale=np.maximum(np.abs(start), 1e-6 * high),
    )
    jacobian = np.asarray(found.jac, dtype=np.float64)
    covariance = np.linalg.pinv(jacobian.T @ jacobian)
    return np.asarray(found.x), float(math.sqrt(max(covariance[1, 1], 0)))


def local_precision(
    locs: pd.DataFrame, sigma_nm: float, *, tiles: int = 12, least_pairs: int = 30
) -> LocalPrecision | None:
    """Precision by axis and by place, and the table's own uncertainties held against it.

    The pairs of ``consecutive_pairs`` within 5 sqrt(2) ``sigma_nm`` are a mixture of those of one molecule,
    normally distributed (of three widths), and of others, evenly spread over the disc; expectation maximisation
    weighs them.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``, not merged.
    sigma_nm
        A first guess, as ``nena`` gives it.
    tiles
        Tiles of the map along the longer side of the field.
    least_pairs
        Fewest pairs of a tile, in weight.

    Returns
    -------
    LocalPrecision, or None for fewer than ``LEAST_PAIRS`` pairs.

    Raises
    ------
    InputRejected
        If ``sigma_nm`` is not a length above 0 or the table is not valid.
    """
    if not (math.isfinite(sigma_nm) and sigma_nm > 0):
        raise InputRejected(f"sigma_nm {sigma_nm} must be a length above 0 in nm.")
    table = validate(locs)
    reach = 5 * math.sqrt(2) * sigma_nm
    first, second = consecutive_pairs(table, reach)
    if first.size < LEAST_PAIRS:
        return None
    names = [name for name in ("x_nm", "y_nm", "z_nm") if name in table]
    place = table[names].to_numpy(np.float64)
    step = place[second] - place[first]
    weight = _same_molecule(step[:, :2], reach, sigma_nm)
    sigma, reported, zscore = (np.full(3, np.nan) for _ in range(3))
    for axis in range(len(names)):
        sigma[axis] = _spread(step[:, axis], weight) / math.sqrt(2)
        errors = claimed_sigma_nm(table, axis)
        if errors is None:
            continue
        variance = errors[first] ** 2 + errors[second] ** 2
        known = np.isfinite(variance)
        if weight[known].sum() > 0:
            reported[axis] = math.sqrt(np.average(variance[known], weights=weight[known]) / 2)
            zscore[axis] = _spread(step[known, axis] / np.sqrt(variance[known]), weight[known])
    grid, extent = _map(place[first, :2], np.sum(step[:, :2] ** 2, axis=1) / 4, weight, tiles, least_pairs)
    return LocalPrecision(sigma, reported, zscore, grid, extent, first.size)


def _same_molecule(step: Floats, reach: float, sigma_nm: float) -> Floats:
    """Probability that a pair is of one molecule; those are three Gaussians, as bright ones are more precise."""
    variance = 2 * sigma_nm**2 * np.array([0.25, 1.0, 4.0])[:, None] * np.ones(2)
    share = np.full(3, 0.3)
    squared = step**2
    weight = np.ones(len(step))
    for _ in range(_EM_ROUNDS):
        density = np.exp(-(squared @ (1 / variance).T) / 2) / (2 * math.pi * np.sqrt(variance.prod(axis=1)))
        own = share * density
        own /= own.sum(axis=1, keepdims=True) + (1 - share.sum()) / (math.pi * reach**2)
        share = own.mean(axis=0) * (1 - 1e-6)
        total = np.maximum(own.sum(axis=0), 1e-12)
        variance = np.maximum((own.T @ squared) / total[:, None], (1e-3 * sigma_nm) ** 2)
        weight = own.sum(axis=1)
    return np.asarray(weight)


def _spread(values: Floats, weight: Floats) -> float:
    """Weighted root mean square of what lies within 5 of its own: z is not bounded by the search."""
    inside = np.ones(len(values), bool)
    spread = math.nan
    for _ in range(10):
        if weight[inside].sum() <= 0:
            return math.nan
        spread = math.sqrt(np.average(values[inside] ** 2, weights=weight[inside]))
        inside = np.abs(values) <= 5 * max(spread, 1e-12)
    return spread


def claimed_sigma_nm(table: pd.DataFrame, axis: int) -> Floats | None:
    """The table's own uncertainty along axis 0, 1, 2 (x, y, z), NaN where a row has none; None without one."""
    name = next((name for name in _CLAIMED[axis] if name in table), None)
    return None if name is None else usable(table[name])


def usable(uncertainty: pd.Series) -> Floats:
    """Uncertainties with NaN for what stands for "not known" in tables: 0, 9999 and what is not finite."""
    values = uncertainty.to_numpy(np.float64)
    return np.where((values > 0) & (values < _UNKNOWN_NM), values, np.nan)


def _map(
    place: Floats, variance: Floats, weight: Floats, tiles: int, least: int
) -> tuple[Floats, tuple[float, float, float, float]]:
    """Root mean variance per tile, and the edges of the map."""
    low, high = place.min(axis=0), place.max(axis=0)
    side = max(float((high - low).max()), 1e-9) / tiles
    size = np.maximum(np.ceil((high - low) / side - 1e-9).astype(int), 1)
    cell = np.minimum(((place - low) / side).astype(int), size - 1)
    flat = cell[:, 1] * size[0] + cell[:, 0]
    total = np.bincount(flat, weight, minlength=size.prod())
    summed = np.bincount(flat, weight * variance, minlength=size.prod())
    enough = total >= least
    grid = np.sqrt(np.where(enough, summed / np.where(enough, total, 1), np.nan)).reshape(size[1], size[0])
    right, bottom = low + size * side
    return grid, (float(low[0]), float(right), float(bottom), float(low[1]))
