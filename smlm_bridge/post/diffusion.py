"""How particles move: mean squared displacement with confidence, and the diffusion that fits it.

Every confidence interval is a bootstrap over tracks (Efron 1979): displacements of one track overlap and depend
on one another, tracks do not.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import POSITION, validate
from smlm_bridge.post.tracks import NONE, Dimensions, Integers

LAGS: Final = 20
FIT_LAGS: Final = 4
CONFIDENCE: Final = 0.95

_DRAWS: Final = 1000
_AT_ONCE: Final = 4_000_000  # weights of the bootstrap held at once
_NM2_PER_UM2: Final = 1e6
_LEAST_TRACKS: Final = 2
_LEAST_LAGS: Final = 4  # for an exponent beside an amplitude and an offset
_EXPONENTS: Final = np.linspace(0.05, 2.0, 196)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Msd:
    """Mean squared displacement of all tracks together.

    Attributes
    ----------
    lag_s, msd_um2
        (L,) times and means over every pair of detections so far apart.
    low_um2, high_um2
        (L,) ends of the confidence interval of each.
    pairs, tracks
        (L,) pairs and tracks behind each.
    draws_um2
        (B, L) the bootstrap's means.
    dimensions
        Of the displacements.
    frame_s
        Time from frame to frame.
    """

    lag_s: Floats
    msd_um2: Floats
    low_um2: Floats
    high_um2: Floats
    pairs: Integers
    tracks: Integers
    draws_um2: Floats
    dimensions: int
    frame_s: float


@dataclass(frozen=True)
class Diffusion:
    """What fits the mean squared displacement; every interval has the confidence of ``CONFIDENCE``.

    Attributes
    ----------
    coefficient_um2_s, interval_um2_s
        Diffusion coefficient by a straight line through the first lags.
    error_nm
        Localization error per axis that the line's offset stands for; None where the offset is negative.
    alpha, alpha_interval
        Exponent of MSD = 2 d (G t^alpha + error^2): 1 is free diffusion, below 1 is confined; None where there
        are too few lags.
    fit_lags, tracks
        Lags of the straight line, and tracks behind the first of them.
    """

    coefficient_um2_s: float
    interval_um2_s: tuple[float, float]
    error_nm: float | None
    alpha: float | None
    alpha_interval: tuple[float, float] | None
    fit_lags: int
    tracks: int


def mean_squared_displacement(
    locs: pd.DataFrame,
    number: Integers,
    *,
    frame_s: float,
    dimensions: Dimensions = 2,
    lags: int = LAGS,
    rng: np.random.Generator,
) -> Msd | None:
    """Mean squared displacement over time, of all pairs of detections of all tracks.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``.
    number
        (N,) the track of every row, as ``post.tracks.track`` gives it; one detection a frame.
    frame_s
        Time from frame to frame.
    dimensions
        Displacements in x, y, or in x, y, z.
    lags
        Most lags, in frames.
    rng
        Source of randomness of the bootstrap.

    Returns
    -------
    Msd, or None where fewer than two tracks have two detections in consecutive frames. Lags after the first
    that fewer than two tracks reach are left out.

    Raises
    ------
    InputRejected
        If an argument is out of its range or the table is not valid.
    """
    table = validate(locs)
    if not (math.isfinite(frame_s) and frame_s > 0) or lags < 1:
        raise InputRejected(f"frame_s {frame_s} must be a time above 0 in s, lags {lags} 1 or more.")
    if dimensions == 3 and "z_nm" not in table:
        raise InputRejected("the table has no z_nm; displacements are then in 2 dimensions.")
    sums, counts = _per_track(table, number, dimensions, lags)
    reached = (counts > 0).sum(axis=0)
    usable = int(np.argmin(np.append(reached, 0) >= _LEAST_TRACKS))
    if usable == 0:
        return None
    sums, counts = sums[:, :usable] / _NM2_PER_UM2, counts[:, :usable]
    kept = counts.any(axis=1)
    draws = _bootstrap(sums[kept], counts[kept], rng)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, (tail, 1 - tail), axis=0)
    return Msd(
        lag_s=np.arange(1, usable + 1, dtype=np.float64) * frame_s,
        msd_um2=sums.sum(axis=0) / counts.sum(axis=0),
        low_um2=low,
        high_um2=high,
        pairs=counts.sum(axis=0),
        tracks=reached[:usable],
        draws_um2=draws,
        dimensions=dimensions,
        frame_s=frame_s,
    )


def _per_track(table: pd.DataFrame, number: Integers, dimensions: int, lags: int) -> tuple[Floats, Integers]:
    """Sums of squared displacements (nm^2) and numbers of pairs, (tracks, lags)."""
    rows = np.flatnonzero(number != NONE)
    rows = rows[np.lexsort((table["frame"].to_numpy()[rows], number[rows]))]
    frame = table["frame"].to_numpy()[rows]
    place = table[list(POSITION[:dimensions])].to_numpy()[rows]
    tracks = np.unique(number[rows], return_inverse=True)[1]
    total = int(tracks.max(initial=-1)) + 1
    sums, counts = np.zeros((total, lags)), np.zeros((total, lags), np.int64)
    if total == 0:
        return sums, counts
    # One key a row, tracks farther apart than any lag.
    key = tracks * (int(np.ptp(frame)) + lags + 1) + (frame - frame.min())
    for lag in range(1, lags + 1):
        partner = np.minimum(np.searchsorted(key, key + lag), len(key) - 1)
        paired = np.flatnonzero(key[partner] == key + lag)
        squared = np.sum((place[partner[paired]] - place[paired]) ** 2, axis=1)
        sums[:, lag - 1] = np.bincount(tracks[paired], squared, minlength=total)
        counts[:, lag - 1] = np.bincount(tracks[paired], minlength=total)
    return sums, counts


def _bootstrap(sums: Floats, counts: Integers, rng: np.random.Generator) -> Floats:
    """Means over tracks drawn with replacement, (B, L); NaN where none of those drawn reaches a lag."""
    size = len(sums)
    result = np.empty((_DRAWS, sums.shape[1]))
    step = max(1, _AT_ONCE // size)
    share = np.full(size, 1 / size)
    for start in range(0, _DRAWS, step):
        part = slice(start, min(start + step, _DRAWS))
        weight = rng.multinomial(size, share, size=part.stop - part.start).astype(np.float64)
        below = weight @ counts
        result[part] = np.divide(weight @ sums, below, out=np.full(below.shape, np.nan), where=below > 0)
    for column in result.T:  # a lag that few tracks reach: no draw of it is better than the others' median
        column[np.isnan(column)] = np.nanmedian(column)
    return result


def fit_diffusion(msd: Msd, *, fit_lags: int = FIT_LAGS, exposure: float = 1.0) -> Diffusion:
    """Diffusion coefficient and exponent of a mean squared displacement.

    MSD(t) = 2 d (D (t - R) + error^2), where d is the number of axes and R = exposure·frame_s/3 is what the
    motion during the exposure takes away (Berglund 2010); a line through the first lags, weighted by the number
    of pairs over the squared lag. Few lags are best where the error is small (Michalet 2010).

    Parameters
    ----------
    msd
        As ``mean_squared_displacement`` gives it.
    fit_lags
        Lags of the straight line, 2 or more; fewer where there are fewer.
    exposure
        Share of the frame time during which light is collected.

    Raises
    ------
    InputRejected
        If there are fewer than two lags or an argument is out of its range.
    """
    if not 0 <= exposure <= 1 or fit_lags < 2:
        raise InputRejected(
            f"exposure {exposure} must be a share from 0 to 1, fit_lags {fit_lags} 2 or more."
        )
    used = min(fit_lags, msd.lag_s.size)
    if used < 2:
        raise InputRejected("a diffusion fit needs tracks of three frames or more; follow particles longer.")
    axes = 2 * msd.dimensions
    slope, offset = _line(
        msd.lag_s[:used], np.vstack([msd.msd_um2, msd.draws_um2])[:, :used], msd.pairs[:used]
    )
    coefficient = slope / axes
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(coefficient[1:], (tail, 100 - tail))
    variance = offset[0] / axes + coefficient[0] * exposure * msd.frame_s / 3
    alpha = _exponents(msd)
    interval = None
    if alpha is not None:
        ends = np.nanpercentile(alpha[1:], (tail, 100 - tail))
        interval = float(ends[0]), float(ends[1])
    return Diffusion(
        coefficient_um2_s=float(coefficient[0]),
        interval_um2_s=(float(low), float(high)),
        error_nm=float(1000 * math.sqrt(variance)) if variance >= 0 else None,
        alpha=None if alpha is None else float(alpha[0]),
        alpha_interval=interval,
        fit_lags=used,
        tracks=int(msd.tracks[0]),
    )


def _line(time: Floats, values: Floats, pairs: Integers) -> tuple[Floats, Floats]:
    """Slope and offset of every row of ``values`` by weighted least squares."""
    weight = pairs / time**2
    mean_time = np.average(time, weights=weight)
    mean = np.average(values, axis=1, weights=weight)
    slope = ((values - mean[:, None]) * weight) @ (time - mean_time) / (weight @ (time - mean_time) ** 2)
    return slope, mean - slope * mean_time


def _exponents(msd: Msd) -> Floats | None:
    """The exponent of the means and of every draw, by the least weighted squares over a grid of exponents.

    For one exponent the rest is a straight line in t^alpha, its offset at least 0.
    """
    if msd.lag_s.size < _LEAST_LAGS:
        return None
    values = np.vstack([msd.msd_um2, msd.draws_um2])
    lag = np.arange(1, msd.lag_s.size + 1, dtype=np.float64)
    weight = msd.pairs / lag**2
    weight /= weight.sum()
    best = np.full(len(values), np.inf)
    exponent = np.full(len(values), np.nan)
    for alpha in _EXPONENTS:
        power = lag**alpha
        middle, mean = weight @ power, values @ weight
        slope = ((values - mean[:, None]) * weight) @ (power - middle) / (weight @ (power - middle) ** 2)
        offset = mean - slope * middle
        through = (values * weight) @ power / (weight @ power**2)
        slope, offset = np.where(offset < 0, through, slope), np.maximum(offset, 0)
        left = (values - slope[:, None] * power - offset[:, None]) ** 2 @ weight
        better = left < best
        best[better], exponent[better] = left[better], alpha
    return exponent
