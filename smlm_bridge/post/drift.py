"""Drift of the sample: estimated from the localizations themselves, and taken out of the table.

Estimating and applying are separate. Every estimate is checked by splitting the localizations at random into
halves and estimating each: where the two disagree, the result carries a warning. That check sees noise and
lost tracks; it cannot see what both halves share: a pattern fixed to the camera, or drift that is quicker than
the segments.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline, make_smoothing_spline

from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import validate
from smlm_bridge.post.drift_aim import aim
from smlm_bridge.post.drift_rcc import rcc
from smlm_bridge.post.drift_z import z_drift

FloatArray = NDArray[np.float64]
Engine = Literal["auto", "aim", "rcc"]

#: Fewer localizations than this hold no drift that could be told from noise.
MIN_LOCALIZATIONS: Final = 100
#: Halves that differ by more (rms, nm), and by more than the precision of the table, disagree.
DISAGREEMENT_NM: Final = 10.0

_SEGMENT_FRAMES: Final = {"aim": 50, "rcc": 500}
# Localizations: more add little, and a longer segment blurs the drift.
_SEGMENT_WANTED: Final = {"aim": 1500, "rcc": 15_000}
_SEGMENT_SMOOTHED: Final = (
    1000  # localizations: segments that need not be long, so noise can be told from drift
)
_SEGMENT_LEAST: Final = 400  # fewer lose their track on filaments
_LEAST_SEGMENTS: Final = 5
_LEAST_SMOOTHED: Final = 5  # points that cross-validation needs
_KERNEL_NM: Final = (20.0, 60.0)
_REACH_KERNELS: Final = 3
_PLACE_KERNELS: Final = 2  # lateral distance of pairs for z
_UNKNOWN_NM: Final = 9999.0
_LOST_SHARE: Final = 0.02


@dataclass(frozen=True)
class Drift:
    """Drift of the sample frame by frame: a corrected position is the position minus the drift.

    Parameters
    ----------
    frame : (F,)
        Consecutive frames, from 0 for the movie's first.
    x_nm, y_nm : (F,)
        Drift; an estimate is zero in its first frame.
    z_nm : (F,) or None
        None where z was not estimated.
    engine
        What estimated it.
    max_drift_nm
        Largest lateral distance from the first frame.
    split_half_rms_nm
        Rms difference per axis in x and y of the estimates from two random halves, means removed; the
        estimate from all is about half as wrong. None where it was not computed (a drift from a file).
    split_half_z_rms_nm
        Likewise in z.
    warnings
        What to know before it is trusted.

    Raises
    ------
    InputRejected
        If frames are not consecutive, lengths differ, or a value is not finite.
    """

    frame: NDArray[np.int64]
    x_nm: FloatArray
    y_nm: FloatArray
    z_nm: FloatArray | None = None
    engine: str = "file"
    max_drift_nm: float = 0.0
    split_half_rms_nm: float | None = None
    split_half_z_rms_nm: float | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        curves = [self.x_nm, self.y_nm] + ([] if self.z_nm is None else [self.z_nm])
        if self.frame.size == 0 or (np.diff(self.frame) != 1).any() or self.frame[0] < 0:
            raise InputRejected("a drift needs consecutive frames from 0 on, at least one.")
        if any(curve.shape != self.frame.shape or not np.isfinite(curve).all() for curve in curves):
            raise InputRejected("a drift needs one finite value a frame for each of its axes.")

    def at(self, frame: NDArray[np.int64]) -> FloatArray:
        """(n, 3) drift in x, y and z at the given frames; z is zero where it was not estimated.

        Before its first and after its last frame the drift is held.
        """
        index = np.clip(frame - self.frame[0], 0, self.frame.size - 1)
        z = np.zeros(self.frame.size) if self.z_nm is None else self.z_nm
        return np.stack([self.x_nm[index], self.y_nm[index], z[index]], axis=1)


@dataclass(frozen=True)
class DriftOptions:
    """How a drift is estimated.

    Parameters
    ----------
    engine
        ``"aim"``: coincidences with all other frames, the best we have, and ``"auto"``'s choice. ``"rcc"``:
        redundant cross-correlation of rendered segments (Wang et al. 2014), slower and blind to quick drift.
    segment_frames
        Frames that share one estimate; None chooses by the number of localizations.
    seed
        Of the split into halves.
    """

    engine: Engine = "auto"
    segment_frames: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.engine not in get_args(Engine):
            raise InputRejected(
                f"the engine '{self.engine}' is unknown; there are {', '.join(get_args(Engine))}."
            )
        if self.segment_frames is not None and self.segment_frames < 1:
            raise InputRejected(f"segment_frames must be 1 or more, got {self.segment_frames}.")


@dataclass(frozen=True)
class _Rows:
    """Localizations ordered by frame, and what the estimate needs to know of all of them."""

    frame: NDArray[np.int64]
    xyz_nm: FloatArray
    edges: NDArray[np.int64]
    engine: str
    kernel_nm: float
    sigma_z_nm: float | None
    smooth: bool

    def part(self, chosen: NDArray[np.bool_]) -> "_Rows":
        """Some of the localizations, in the same segments."""
        return replace(self, frame=self.frame[chosen], xyz_nm=self.xyz_nm[chosen])


@dataclass(frozen=True)
class _Curves:
    """Drift (F, 2 or 3) over all frames, and the share of segments that had to be left out."""

    xyz_nm: FloatArray
    lost: float


def apply_drift(locs: pd.DataFrame, drift: Drift) -> pd.DataFrame:
    """Take the drift out of a table.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``.
    drift
        Of the same movie. Outside its frames its first and its last value hold.

    Returns
    -------
    The table with x_nm, y_nm and, where both have it, z_nm corrected; the rest is as it was.
    """
    table = validate(locs)
    moved = drift.at(table["frame"].to_numpy())
    for index, name in enumerate(("x_nm", "y_nm", "z_nm")):
        if name in table:
            table[name] = table[name] - moved[:, index]
    return table


def estimate_drift(locs: pd.DataFrame, options: DriftOptions | None = None) -> Drift:
    """Estimate the drift of a movie from its localizations.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``, in any order. Its uncertainties set the widths of the search.
    options
        Engine, segments, seed.

    Returns
    -------
    The drift of every frame from the first to the last of the table.

    Raises
    ------
    InputRejected
        If there are too few localizations.
    """
    options = options or DriftOptions()
    table = validate(locs)
    engine = "aim" if options.engine == "auto" else options.engine
    if len(table) < MIN_LOCALIZATIONS:
        raise InputRejected(
            f"{len(table)} localizations hold no drift that could be told from noise; at least "
            f"{MIN_LOCALIZATIONS} are needed, and thousands for a good estimate. Lower the threshold of the "
            "localization, or leave the drift in."
        )
    rows = _rows(table, engine, options.segment_frames)
    frames = np.arange(rows.frame[0], rows.frame[-1] + 1)
    if rows.edges.size < 3:
        zero = np.zeros(frames.size)
        text = f"{frames.size} frame(s) make one segment only: no drift was estimated, it is zero."
        return Drift(frames, zero, zero, engine=engine, warnings=(text,))
    whole = _curves(rows, options.seed)
    half = np.random.default_rng(options.seed).permutation(rows.frame.size) % 2 == 0
    halves = [_curves(rows.part(half), options.seed).xyz_nm, _curves(rows.part(~half), options.seed).xyz_nm]
    axes = min(curve.shape[1] for curve in (whole.xyz_nm, *halves))
    rms = (halves[0][:, :axes] - halves[1][:, :axes]).std(axis=0)
    lateral = float(np.sqrt((rms[:2] ** 2).mean()))
    axial = float(rms[2]) if axes == 3 else None
    x, y, *rest = whole.xyz_nm.T
    return Drift(
        frames,
        x,
        y,
        z_nm=rest[0] if axes == 3 else None,
        engine=engine,
        max_drift_nm=float(np.hypot(x, y).max()),
        split_half_rms_nm=lateral,
        split_half_z_rms_nm=axial,
        warnings=_warnings(rows, whole, lateral, axial, has_z="z_nm" in table),
    )


def _warnings(
    rows: _Rows, whole: _Curves, lateral: float, axial: float | None, *, has_z: bool
) -> tuple[str, ...]:
    texts = []
    advice = "Do not trust it before you have looked at its plot; longer segments may help."
    if lateral > max(DISAGREEMENT_NM, rows.kernel_nm / np.sqrt(2)):
        texts.append(f"the halves of the localizations disagree by {lateral:.1f} nm rms in x and y. {advice}")
    if axial is not None and axial > max(2 * DISAGREEMENT_NM, rows.sigma_z_nm or 0.0):
        texts.append(f"the halves of the localizations disagree by {axial:.1f} nm rms in z. {advice}")
    if whole.lost > _LOST_SHARE:
        texts.append(f"{100 * whole.lost:.0f} % of the segments found no match with the others. {advice}")
    if has_z and axial is None:
        texts.append("too few places with several localizations for a drift in z: z is left as it is.")
    return tuple(texts)


def _rows(table: pd.DataFrame, engine: str, segment_frames: int | None) -> _Rows:
    table = table.sort_values("frame", kind="stable")
    frame = table["frame"].to_numpy()
    names = [name for name in ("x_nm", "y_nm", "z_nm") if name in table]
    kernel = np.sqrt(2) * (_typical(table, "uncertainty_xy_nm") or 0.0)
    edges = _edges(frame, segment_frames, engine)
    dense = frame.size >= _SEGMENT_SMOOTHED * (edges.size - 1)
    return _Rows(
        frame,
        table[names].to_numpy(np.float64),
        edges,
        engine,
        float(np.clip(kernel, *_KERNEL_NM)),
        _typical(table, "uncertainty_z_nm"),
        smooth=engine == "aim" and segment_frames is None and dense,
    )


def _typical(table: pd.DataFrame, name: str) -> float | None:
    """Median of the uncertainties that say something."""
    if name not in table:
        return None
    values = table[name].to_numpy()
    values = values[(values > 0) & (values < _UNKNOWN_NM)]
    return float(np.median(values)) if values.size else None


def _edges(frame: NDArray[np.int64], given: int | None, engine: str) -> NDArray[np.int64]:
    """First frame of every segment, and the end: equal times, merged where there are few localizations."""
    first, frames = int(frame[0]), int(frame[-1] - frame[0]) + 1
    least = min(_SEGMENT_LEAST, frame.size // _LEAST_SEGMENTS)
    per_frame = frame.size / frames
    if given is None:
        wanted = int(np.ceil(_SEGMENT_WANTED[engine] / per_frame))
        length = min(wanted, _SEGMENT_FRAMES[engine], -(-frames // _LEAST_SEGMENTS))
        length = max(length, int(np.ceil(least / per_frame)))
    else:
        length, least = given, min(least, _SEGMENT_LEAST // 20)
    edges = np.append(np.arange(first, first + frames, length), first + frames)
    rows = np.searchsorted(frame, edges)
    kept = [0]
    for index in range(1, edges.size - 1):
        enough = 2 * (rows[index] - rows[kept[-1]]) >= least and 2 * (frame.size - rows[index]) >= least
        if enough:
            kept.append(index)
    return np.append(edges[kept], edges[-1])


def _curves(rows: _Rows, seed: int) -> _Curves:
    """Estimate every axis of some rows over all frames."""
    bounds = np.searchsorted(rows.frame, rows.edges)
    count = bounds.size - 1
    segment = np.repeat(np.arange(count), np.diff(bounds))
    filled = np.diff(bounds) > 0
    total = np.bincount(segment, rows.frame, count)
    middle = np.divide(total, np.diff(bounds), out=0.5 * (rows.edges[:-1] + rows.edges[1:] - 1), where=filled)
    x, y = rows.xyz_nm[:, 0], rows.xyz_nm[:, 1]
    if rows.engine == "aim":
        reach = _REACH_KERNELS * rows.kernel_nm
        drift, lost = aim(x, y, bounds, cell_nm=rows.kernel_nm, reach_nm=reach, kernel_nm=rows.kernel_nm)
    else:
        drift, lost = rcc(x, y, bounds, kernel_nm=rows.kernel_nm)
    frames = np.arange(rows.edges[0], rows.edges[-1])
    kept = ~lost & filled
    if kept.sum() < 2:
        return _Curves(np.zeros((frames.size, 2)), 1.0)
    curves = _interpolate(middle[kept], drift[kept], frames, smooth=rows.smooth)
    if rows.xyz_nm.shape[1] == 3:
        xyz = rows.xyz_nm.copy()
        xyz[:, :2] -= curves[rows.frame - frames[0]]
        found = z_drift(
            xyz,
            segment,
            count,
            radius_nm=_PLACE_KERNELS * rows.kernel_nm,
            sigma_z_nm=rows.sigma_z_nm,
            rng=np.random.default_rng(seed),
        )
        if found is not None:
            curves = np.hstack([curves, _interpolate(middle[filled], found[filled, None], frames)])
    return _Curves(curves, 1.0 - int(kept.sum()) / int(filled.sum()))


def _interpolate(
    middle: FloatArray, drift: FloatArray, frames: NDArray[np.int64], *, smooth: bool = False
) -> FloatArray:
    """(F, axes): a cubic spline through the segments, straight before and after, zero in the first frame.

    ``smooth`` lets it pass as far from them as cross-validation finds noise (Craven & Wahba 1979): right for
    segments shorter than the drift's own time; coarser ones would lose drift with the noise.
    """
    unit = float(np.diff(middle).mean())
    knots, at = (middle - middle[0]) / unit, (frames - middle[0]) / unit
    inside = np.clip(at, 0.0, knots[-1])
    curve = np.empty((frames.size, drift.shape[1]))
    for axis, values in enumerate(drift.T):
        if smooth and values.size >= _LEAST_SMOOTHED and np.ptp(values) > 0:
            spline = make_smoothing_spline(knots, values)
        else:
            spline = make_interp_spline(knots, values, k=min(3, values.size - 1))
        slope = spline.derivative()(np.where(at < 0, 0.0, knots[-1]))
        curve[:, axis] = spline(inside) + slope * (at - inside)
    return np.asarray(curve - curve[0])
