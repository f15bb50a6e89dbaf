"""Localizations against the truth: gated optimal matching per frame, Jaccard index, RMSE and efficiency.

Definitions follow the SMLM challenge (Sage et al., Nature Methods 16, 387, 2019): lateral RMSE is
sqrt(mean(dx^2 + dy^2)), not per axis; the efficiency weighs the Jaccard index against the RMSE.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from smlm_bridge import locs as table
from smlm_bridge.errors import InputRejected, UsageError

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

CHALLENGE_LATERAL_NM: Final = 250.0
CHALLENGE_AXIAL_NM: Final = 500.0
_ALPHA_LATERAL, _ALPHA_AXIAL = 1.0, 0.5  # 1/nm: weights of the RMSE in the efficiency (Sage 2019)
_SEARCH_MARGIN = 1 + 1e-9  # the tree's rounding must not lose a pair at the edge


@dataclass(frozen=True)
class Options:
    """How ``evaluate`` matches and what it counts.

    Parameters
    ----------
    radius_nm
        A pair counts if its distance is below this.
    mode
        Distance in 3-D, or lateral only; tables without z are matched laterally in either mode.
    axial_radius_nm
        A pair must also have |dz| below this; None for no such limit.
    challenge
        The SMLM challenge's matching instead: greedy nearest in 3-D, lateral <= 250 nm and |dz| <= 500 nm.
    min_photons
        Threshold on the photons of the truth; None counts every emitter.
    min_photons_rule
        ``ignore``: emitters at or below the threshold take part in the matching, but their pairs are neither
        right nor wrong, and they are not missed. ``remove``: they are taken out before, except where an
        emitter is the only one in its frame.
    border_nm
        Localizations and emitters this close to the edge of the field, or closer, are left out.
    field_nm
        Width and height of the field for ``border_nm``; None takes the largest x and y of the truth.
    """

    radius_nm: float = 150.0
    mode: Literal["3d", "lateral"] = "3d"
    axial_radius_nm: float | None = None
    challenge: bool = False
    min_photons: float | None = None
    min_photons_rule: Literal["ignore", "remove"] = "ignore"
    border_nm: float = 0.0
    field_nm: tuple[float, float] | None = None


@dataclass(frozen=True)
class Matches:
    """Pairs of a localization and an emitter.

    Attributes
    ----------
    loc_index, truth_index
        Row numbers (from 0) of the pairs in the two tables, (M,).
    difference_nm
        Localization minus truth, (M, 3): x, y, z; z is NaN where a table has none.
    n_locs, n_truth
        How many localizations and emitters count, matched or not.
    """

    loc_index: Indices
    truth_index: Indices
    difference_nm: Floats
    n_locs: int
    n_truth: int


@dataclass(frozen=True)
class Scores:
    """What ``scores`` finds; ratios are 0 where there is nothing to divide by, lengths None.

    ``jaccard``, ``recall`` and ``precision`` lie in 0 to 1, ``efficiency`` is in percent, at most 100.
    """

    jaccard: float
    recall: float
    precision: float
    rmse_lateral_nm: float | None
    rmse_axial_nm: float | None
    bias_nm: tuple[float | None, float | None, float | None]
    matched: int
    n_locs: int
    n_truth: int
    efficiency: float | None


def evaluate(
    locs: pd.DataFrame, truth: pd.DataFrame, *, options: Options | None = None
) -> tuple[Matches, Scores]:
    """Match localizations with the truth and score them.

    Parameters
    ----------
    locs, truth
        Tables as in ``smlm_bridge.locs``; ``truth`` needs ``photons`` for ``min_photons``.
    options
        How; None for a gate of 150 nm in 3-D.

    Returns
    -------
    Matches, Scores
        The pairs, with the row numbers of the tables given, and the figures of merit over all frames.

    Raises
    ------
    InputRejected
        If a table lacks a needed column or has positions that are not finite.
    UsageError
        If an option has no meaning.
    """
    options = options or Options()
    locs, truth = table.validate(locs), table.validate(truth)
    keep_locs, keep_truth = np.ones(len(locs), bool), np.ones(len(truth), bool)
    if options.border_nm > 0:
        field = options.field_nm or (truth["x_nm"].max(), truth["y_nm"].max())
        keep_locs &= inside_border(locs, options.border_nm, field_nm=field)
        keep_truth &= inside_border(truth, options.border_nm, field_nm=field)
    if options.min_photons is not None and options.min_photons_rule == "remove":
        keep_truth &= bright_or_alone(truth, options.min_photons)
    pool_locs, pool_truth = locs[keep_locs], truth[keep_truth]
    if options.challenge:
        matches = match_challenge(pool_locs, pool_truth)
    else:
        matches = match(
            pool_locs,
            pool_truth,
            radius_nm=options.radius_nm,
            mode=options.mode,
            axial_radius_nm=options.axial_radius_nm,
        )
    if options.min_photons is not None and options.min_photons_rule == "ignore":
        matches = ignore_dim(matches, pool_truth, min_photons=options.min_photons)
    matches = replace(
        matches,
        loc_index=np.flatnonzero(keep_locs)[matches.loc_index],
        truth_index=np.flatnonzero(keep_truth)[matches.truth_index],
    )
    return matches, scores(matches)


def match(
    locs: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    radius_nm: float = 150.0,
    mode: Literal["3d", "lateral"] = "3d",
    axial_radius_nm: float | None = None,
) -> Matches:
    """Pair localizations with emitters of the same frame: as many pairs as the gate allows, then the closest.

    Among all one-to-one pairings whose distances are below ``radius_nm`` this is one with the most pairs and,
    among those, the smallest sum of distances (Kuhn 1955, on each connected group of candidates).

    Parameters
    ----------
    locs, truth
        Tables as in ``smlm_bridge.locs``.
    radius_nm
        Largest distance, itself excluded.
    mode
        Distance in 3-D or lateral; without z in both tables it is lateral.
    axial_radius_nm
        Largest \\|dz\\|, itself excluded.

    Raises
    ------
    InputRejected
        If a table lacks a frame or position.
    UsageError
        If a radius is not above 0 or the mode unknown.
    """
    if not radius_nm > 0 or not (axial_radius_nm is None or axial_radius_nm > 0):
        raise UsageError(f"matching radii must be above 0 nm, got {radius_nm} and {axial_radius_nm}.")
    if mode not in ("3d", "lateral"):
        raise UsageError(f"matching mode {mode!r} is unknown; allowed are 3d and lateral.")
    locs, truth = table.validate(locs), table.validate(truth)
    loc, emitter, difference = _candidates(locs, truth, radius_nm=radius_nm, flat=mode == "lateral")
    distance = _length(difference if mode == "3d" else difference[:, :2])
    gate = distance < radius_nm
    if axial_radius_nm is not None:
        gate &= ~(np.abs(difference[:, 2]) >= axial_radius_nm)  # NaN, no z at all, passes
    loc, emitter, difference = loc[gate], emitter[gate], difference[gate]
    chosen = _assign(loc, emitter, distance[gate], radius_nm)
    return Matches(loc[chosen], emitter[chosen], difference[chosen], len(locs), len(truth))


def match_challenge(
    locs: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    lateral_nm: float = CHALLENGE_LATERAL_NM,
    axial_nm: float = CHALLENGE_AXIAL_NM,
) -> Matches:
    """Pair as the SMLM challenge does: repeatedly the nearest unpaired two in 3-D, both limits included.

    Raises
    ------
    InputRejected
        If a table lacks a frame or position.
    """
    locs, truth = table.validate(locs), table.validate(truth)
    loc, emitter, difference = _candidates(locs, truth, radius_nm=lateral_nm, flat=True)
    gate = (_length(difference[:, :2]) <= lateral_nm) & ~(np.abs(difference[:, 2]) > axial_nm)
    loc, emitter, difference = loc[gate], emitter[gate], difference[gate]
    order = np.argsort(_length(difference), kind="stable")
    chosen = order[_greedy(loc[order], emitter[order])]
    return Matches(loc[chosen], emitter[chosen], difference[chosen], len(locs), len(truth))


def _length(difference: Floats) -> Floats:
    """Euclidean length of the rows, without the coordinates that do not exist (NaN)."""
    return np.asarray(np.sqrt(np.nansum(difference**2, axis=1)), dtype=np.float64)


def _candidates(
    locs: pd.DataFrame, truth: pd.DataFrame, *, radius_nm: float, flat: bool
) -> tuple[Indices, Indices, Floats]:
    """All pairs of one frame within the radius (and a hair beyond): rows and differences (K, 3).

    One search for all frames: the frame is one more coordinate, stretched beyond the radius.
    """
    has_z = "z_nm" in locs and "z_nm" in truth
    names = ["x_nm", "y_nm", "z_nm"] if has_z else ["x_nm", "y_nm"]
    xyz = [frame[names].to_numpy(np.float64) for frame in (locs, truth)]
    if not len(locs) or not len(truth):
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros((0, 3))
    stretch = 2 * radius_nm * _SEARCH_MARGIN
    used = 2 if flat else len(names)
    points = [
        np.column_stack([positions[:, :used], frame["frame"].to_numpy() * stretch])
        for positions, frame in zip(xyz, (locs, truth), strict=True)
    ]
    near = cKDTree(points[0]).sparse_distance_matrix(
        cKDTree(points[1]), radius_nm * _SEARCH_MARGIN, output_type="ndarray"
    )
    order = np.lexsort((near["j"], near["i"]))  # the tree's order is its own affair
    loc, emitter = near["i"][order].astype(np.intp), near["j"][order].astype(np.intp)
    difference = np.full((len(loc), 3), np.nan)
    difference[:, : len(names)] = xyz[0][loc] - xyz[1][emitter]
    return loc, emitter, difference


def _assign(loc: Indices, emitter: Indices, distance: Floats, radius_nm: float) -> Indices:
    """The candidates to keep: most pairs, then the smallest sum of distances."""
    if not len(loc):
        return np.zeros(0, np.intp)
    _, row = np.unique(loc, return_inverse=True)
    _, column = np.unique(emitter, return_inverse=True)
    rows, columns = int(row.max()) + 1, int(column.max()) + 1
    graph = coo_array((np.ones(len(row)), (row, rows + column)), shape=(rows + columns, rows + columns))
    groups, group = connected_components(graph, directed=False)
    # A group with one localization or one emitter has one pair, its closest; most groups are like that.
    single = (np.bincount(group[:rows], minlength=groups) == 1) | (
        np.bincount(group[rows:], minlength=groups) == 1
    )
    order = np.lexsort((distance, group[row]))
    starts = np.flatnonzero(np.diff(group[row][order], prepend=-1))
    chosen = [order[starts][single]]
    stops = np.append(starts[1:], len(order))
    for start, stop in zip(starts[~single], stops[~single], strict=True):
        members = order[start:stop]
        chosen.append(members[_assign_group(row[members], column[members], distance[members], radius_nm)])
    return np.sort(np.concatenate(chosen))


def _assign_group(row: Indices, column: Indices, distance: Floats, radius_nm: float) -> Indices:
    """The same for one connected group, by the Hungarian method."""
    rows, r = np.unique(row, return_inverse=True)
    columns, c = np.unique(column, return_inverse=True)
    # Dearer than all allowed pairs together, so that one more allowed pair is always worth it.
    forbidden = radius_nm * (min(len(rows), len(columns)) + 1)
    cost = np.full((len(rows), len(columns)), forbidden)
    cost[r, c] = distance
    edge = np.full(cost.shape, -1, dtype=np.intp)
    edge[r, c] = np.arange(len(row))
    picked = edge[linear_sum_assignment(cost)]
    return picked[picked >= 0]


def _greedy(loc: Indices, emitter: Indices) -> Indices:
    """Greedy one-to-one choice among candidates sorted by distance.

    The first candidate of both its localization and its emitter is always chosen; a few rounds of that are
    the greedy choice of one pair after the other.
    """
    left = np.arange(len(loc))
    chosen = []
    while len(left):
        first_loc = np.zeros(len(left), bool)
        first_loc[np.unique(loc[left], return_index=True)[1]] = True
        first_emitter = np.zeros(len(left), bool)
        first_emitter[np.unique(emitter[left], return_index=True)[1]] = True
        new = left[first_loc & first_emitter]
        chosen.append(new)
        left = left[~(np.isin(loc[left], loc[new]) | np.isin(emitter[left], emitter[new]))]
    return np.sort(np.concatenate(chosen)) if chosen else left


def inside_border(
    locs: pd.DataFrame, border_nm: float, *, field_nm: tuple[float, float]
) -> NDArray[np.bool_]:
    """Which rows lie more than ``border_nm`` from every edge of a field of width and height ``field_nm``."""
    inside = np.ones(len(locs), bool)
    for name, size in zip(("x_nm", "y_nm"), field_nm, strict=True):
        inside &= ((locs[name] > border_nm) & (locs[name] < size - border_nm)).to_numpy()
    return inside


def bright_or_alone(truth: pd.DataFrame, min_photons: float) -> NDArray[np.bool_]:
    """Which emitters have more than ``min_photons`` or are the only one of their frame.

    The rule of DeepSTORM3D's (Nehme 2020) evaluation.
    """
    alone = ~truth["frame"].duplicated(keep=False).to_numpy()
    return (_photons(truth) > min_photons) | alone


def ignore_dim(matches: Matches, truth: pd.DataFrame, *, min_photons: float) -> Matches:
    """Leave pairs and missed emitters with at most ``min_photons`` out of the count (challenge's rule)."""
    bright = _photons(truth) > min_photons
    counted = bright[matches.truth_index]
    return Matches(
        matches.loc_index[counted],
        matches.truth_index[counted],
        matches.difference_nm[counted],
        matches.n_locs - int(np.sum(~counted)),
        int(np.sum(bright)),
    )


def _photons(truth: pd.DataFrame) -> Floats:
    if "photons" not in truth:
        raise InputRejected(
            "a threshold on photons needs them in the truth, which has no column photons "
            '("intensity [photon]" in a file).'
        )
    return truth["photons"].to_numpy(np.float64)


def scores(matches: Matches) -> Scores:
    """Figures of merit of all frames together.

    TP are the pairs, FP the other localizations, FN the other emitters: Jaccard = TP / (TP + FP + FN).
    Efficiency = 100 - sqrt((100 - JI%)^2 + alpha^2 RMSE^2), alpha 1/nm laterally and 0.5/nm axially (Sage
    2019); the mean of both, or the lateral one without z.
    """
    matched = len(matches.loc_index)
    union = matches.n_locs + matches.n_truth - matched
    jaccard = matched / union if union else 0.0
    lateral = axial = efficiency = None
    bias: tuple[float | None, float | None, float | None] = (None, None, None)
    if matched:
        dx, dy, dz = matches.difference_nm.T
        lateral = float(np.sqrt(np.mean(dx**2 + dy**2)))
        bias = (float(dx.mean()), float(dy.mean()), None)
        efficiencies = [_efficiency(jaccard, lateral, _ALPHA_LATERAL)]
        if np.isfinite(dz).all():
            axial = float(np.sqrt(np.mean(dz**2)))
            bias = (*bias[:2], float(dz.mean()))
            efficiencies.append(_efficiency(jaccard, axial, _ALPHA_AXIAL))
        efficiency = float(np.mean(efficiencies))
    return Scores(
        jaccard=jaccard,
        recall=matched / matches.n_truth if matches.n_truth else 0.0,
        precision=matched / matches.n_locs if matches.n_locs else 0.0,
        rmse_lateral_nm=lateral,
        rmse_axial_nm=axial,
        bias_nm=bias,
        matched=matched,
        n_locs=matches.n_locs,
        n_truth=matches.n_truth,
        efficiency=efficiency,
    )


def _efficiency(jaccard: float, rmse_nm: float, alpha: float) -> float:
    return 100.0 - float(np.hypot(100.0 - 100.0 * jaccard, alpha * rmse_nm))


def rmse_over_bound(
    matches: Matches, bound_nm: NDArray[Any]
) -> tuple[float | None, float | None, float | None]:
    """RMSE over a lower bound for each of x, y, z: 1 for an efficient estimator.

    Parameters
    ----------
    matches
        The pairs.
    bound_nm
        Standard deviation that theory allows for each emitter of the truth, (n_truth, 3), for example
        sqrt(CRLB). Of the matched emitters the root mean square is taken, as of the errors.

    Returns
    -------
    tuple
        The ratio along x, y, z; None without pairs, without z, or where a bound is not finite and above 0.

    Raises
    ------
    InputRejected
        If the bounds do not cover the emitters.
    """
    bound = np.asarray(bound_nm, dtype=np.float64)
    least = int(matches.truth_index.max()) + 1 if len(matches.truth_index) else 0
    if bound.ndim != 2 or bound.shape[1] != 3 or len(bound) < least:
        raise InputRejected(f"bounds have the shape (emitters of the truth, 3), got {bound.shape}.")
    bound = bound[matches.truth_index]
    ratios: list[float | None] = []
    for difference, allowed in zip(matches.difference_nm.T, bound.T, strict=True):
        usable = len(difference) and np.isfinite(difference).all() and np.isfinite(allowed).all()
        if usable and (allowed > 0).all():
            ratios.append(float(np.sqrt(np.mean(difference**2) / np.mean(allowed**2))))
        else:
            ratios.append(None)
    return ratios[0], ratios[1], ratios[2]
