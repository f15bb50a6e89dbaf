"""One estimate of a drift, by any engine: segments, their shifts, and the curve through them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.post.drift_aim import aim
from smlm_bridge.post.drift_curve import curve_through
from smlm_bridge.post.drift_fiducials import fiducial_drift, mark_fiducials
from smlm_bridge.post.drift_pairs import pair_drift
from smlm_bridge.post.drift_rcc import rcc

FloatArray = NDArray[np.float64]
Indices = NDArray[np.int64]

_SEGMENT_FRAMES: Final = {"aim": 50, "rcc": 500}
# Localizations: more add little, and a longer segment blurs the drift.
_SEGMENT_WANTED: Final = {"aim": 1500, "rcc": 15_000}
# Localizations: segments that need not be long, so noise can be told from drift.
_SEGMENT_SMOOTHED: Final = 1000
_SEGMENT_LEAST: Final = 400  # fewer lose their track on filaments
_LEAST_SEGMENTS: Final = 5
_PAIR_SEGMENTS: Final = 400  # the equations of the pairs are dense
_PAIR_SEGMENT_WANTED: Final = 100
_FIDUCIAL_SEGMENTS: Final = 400
_KERNEL_NM: Final = (20.0, 60.0)
_REACH_KERNELS: Final = 3
_PLACE_KERNELS: Final = 3  # lateral distance of pairs
_JUMP_KERNELS: Final = 2
_UNKNOWN_NM: Final = 9999.0
_ONE_SIGMA: Final = 0.68


@dataclass(frozen=True)
class Rows:
    """Localizations ordered by frame, and what the estimate needs to know of all of them.

    ``edges`` are the first frames of the segments, and the end; ``sigma_xy_nm`` and ``sigma_z_nm`` the typical
    uncertainties (None: not known); ``kernel_nm`` the lateral one times sqrt(2), within limits; ``given`` tells
    whether the segments' length was asked for; ``marker`` numbers the fiducials where these are the rows.
    """

    frame: Indices
    xyz_nm: FloatArray
    edges: Indices
    engine: str
    kernel_nm: float
    sigma_xy_nm: float | None
    sigma_z_nm: float | None
    given: bool
    marker: Indices | None = None

    def part(self, chosen: NDArray[np.bool_]) -> "Rows":
        """Some of the localizations, in the same segments."""
        marker = None if self.marker is None else np.unique(self.marker[chosen], return_inverse=True)[1]
        return replace(self, frame=self.frame[chosen], xyz_nm=self.xyz_nm[chosen], marker=marker)

    def half(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        """One of two random halves: of the fiducials where there are several, else of the rows."""
        if self.marker is not None and self.marker.max() > 0:
            return np.asarray((rng.permutation(int(self.marker.max()) + 1) % 2 == 0)[self.marker])
        return np.asarray(rng.permutation(self.frame.size) % 2 == 0)


@dataclass(frozen=True)
class Curves:
    """Drift (F, 2 or 3) over all frames, and how far it can be trusted.

    ``lost`` is the share of segments that had to be left out; ``coarse_nm`` the rms by which the curve in x and y
    changes if every second segment is left out: large where the drift is quicker than the segments.
    """

    xyz_nm: FloatArray
    lost: float
    coarse_nm: float = 0.0


def rows_of(
    table: pd.DataFrame,
    engine: str,
    *,
    segment_frames: int | None,
    fiducials_nm: Sequence[tuple[float, float]] | None,
    fiducial_radius_nm: float,
) -> Rows:
    """What the engine works on; parameters as in ``DriftOptions``."""
    table = table.sort_values("frame", kind="stable")
    sigma_xy = _typical(table, "uncertainty_xy_nm")
    kernel = float(np.clip(np.sqrt(2) * (sigma_xy or 0.0), *_KERNEL_NM))
    first, last = int(table["frame"].iloc[0]), int(table["frame"].iloc[-1])
    marker = None
    if engine == "fiducials":
        marker = mark_fiducials(table, fiducials_nm, kernel_nm=kernel, radius_nm=fiducial_radius_nm)
        table, marker = table[marker >= 0], marker[marker >= 0]
        length = segment_frames or -(-(last - first + 1) // _FIDUCIAL_SEGMENTS)
        edges = np.append(np.arange(first, last + 1, length), last + 1)
    else:
        edges = _edges(table["frame"].to_numpy(), segment_frames, "rcc" if engine == "rcc" else "aim")
    names = [name for name in ("x_nm", "y_nm", "z_nm") if name in table]
    return Rows(
        table["frame"].to_numpy(),
        table[names].to_numpy(np.float64),
        edges,
        engine,
        kernel,
        sigma_xy,
        _typical(table, "uncertainty_z_nm"),
        given=segment_frames is not None,
        marker=marker,
    )


def _typical(table: pd.DataFrame, name: str) -> float | None:
    """Median of the uncertainties that say something."""
    if name not in table:
        return None
    values = table[name].to_numpy()
    values = values[(values > 0) & (values < _UNKNOWN_NM)]
    return float(np.median(values)) if values.size else None


def _edges(frame: Indices, given: int | None, engine: str) -> Indices:
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


def curves(rows: Rows, seed: int, *, check: bool = False) -> Curves:
    """Estimate every axis of some rows over all frames; ``check`` also finds ``coarse_nm``."""
    if rows.marker is not None:
        return _by_fiducials(rows, rows.marker)
    bounds = np.searchsorted(rows.frame, rows.edges)
    segment = np.repeat(np.arange(bounds.size - 1), np.diff(bounds))
    middle, filled = _middles(rows, segment, rows.edges)
    x, y = rows.xyz_nm[:, 0], rows.xyz_nm[:, 1]
    if rows.engine == "rcc":
        drift, lost = rcc(x, y, bounds, kernel_nm=rows.kernel_nm)
    else:
        reach = _REACH_KERNELS * rows.kernel_nm
        drift, lost = aim(x, y, bounds, cell_nm=rows.kernel_nm, reach_nm=reach, kernel_nm=rows.kernel_nm)
    frames = np.arange(rows.edges[0], rows.edges[-1])
    kept = ~lost & filled
    if kept.sum() < 2:
        return Curves(np.zeros((frames.size, 2)), 1.0)
    dense = rows.frame.size >= _SEGMENT_SMOOTHED * (rows.edges.size - 1)
    smooth = rows.engine != "rcc" and not rows.given and dense
    jump = _JUMP_KERNELS * rows.kernel_nm
    curve = curve_through(middle[kept], drift[kept], frames, jump_nm=jump, smooth=smooth)
    coarse = 0.0
    if check:
        coarse = _coarseness(middle[kept], drift[kept], frames, curve, jump_nm=jump, smooth=smooth)
    curve = _by_pairs(rows, curve, frames, seed)
    return Curves(curve, 1.0 - int(kept.sum()) / int(filled.sum()), coarse)


def _coarseness(
    middle: FloatArray, drift: FloatArray, frames: Indices, curve: FloatArray, *, jump_nm: float, smooth: bool
) -> float:
    half = np.unique(np.append(np.arange(0, middle.size, 2), middle.size - 1))
    other = curve_through(middle[half], drift[half], frames, jump_nm=jump_nm, smooth=smooth)
    change = np.abs(other - curve - np.median(other - curve, axis=0))
    return float(
        np.quantile(change, _ONE_SIGMA)
    )  # one jump, which falls between other segments, does not count


def _middles(rows: Rows, segment: Indices, edges: Indices) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Mean frame of the rows of every segment, and whether it has any."""
    number = np.bincount(segment, minlength=edges.size - 1)
    total = np.bincount(segment, rows.frame, edges.size - 1)
    middle: FloatArray = np.asarray(0.5 * (edges[:-1] + edges[1:] - 1), np.float64)
    np.divide(total, number, out=middle, where=number > 0)
    return middle, number > 0


def _by_pairs(rows: Rows, curve: FloatArray, frames: Indices, seed: int) -> FloatArray:
    """The curve with z beside it; for the engine ``comet`` x and y are from pairs too."""
    axes = rows.xyz_nm.shape[1]
    if axes == 2 and rows.engine != "comet":
        return curve
    start = np.zeros((frames.size, axes))
    start[:, :2] = curve
    offset = rows.frame - frames[0]
    if rows.given:
        edges = rows.edges
    else:
        count = int(np.clip(rows.frame.size // _PAIR_SEGMENT_WANTED, 2, min(_PAIR_SEGMENTS, frames.size)))
        edges = frames[0] + np.arange(count + 1) * frames.size // count
    segment = np.searchsorted(edges, rows.frame, side="right") - 1
    found = pair_drift(
        rows.xyz_nm - start[offset],
        segment,
        edges.size - 1,
        radius_nm=_PLACE_KERNELS * rows.kernel_nm,
        sigma_nm=(rows.sigma_xy_nm, rows.sigma_xy_nm, rows.sigma_z_nm)[:axes],
        rng=np.random.default_rng(seed),
    )
    if found is None:
        return curve
    middle, filled = _middles(rows, segment, edges)
    before = start[np.clip(np.rint(middle).astype(np.int64) - frames[0], 0, frames.size - 1)]
    jump = _JUMP_KERNELS * rows.kernel_nm
    shift = (found + before)[filled]
    knots, smooth = middle[filled], not rows.given
    if rows.engine == "comet":
        curve = curve_through(knots, shift[:, :2], frames, jump_nm=jump, smooth=smooth)
    if axes == 3:
        height = curve_through(knots, shift[:, 2:], frames, jump_nm=jump, smooth=smooth)
        curve = np.hstack([curve, height])
    return curve


def _by_fiducials(rows: Rows, marker: Indices) -> Curves:
    segment = np.searchsorted(rows.edges, rows.frame, side="right") - 1
    drift = fiducial_drift(rows.xyz_nm, segment, rows.edges.size - 1, marker)
    middle, filled = _middles(rows, segment, rows.edges)
    frames = np.arange(rows.edges[0], rows.edges[-1])
    jump = _JUMP_KERNELS * rows.kernel_nm
    parts = [drift[filled][:, :2], drift[filled][:, 2:]]
    found = [curve_through(middle[filled], part, frames, jump_nm=jump, smooth=not rows.given)
             for part in parts if part.shape[1]]  # fmt: skip
    return Curves(np.hstack(found), 1.0 - float(filled.mean()))
