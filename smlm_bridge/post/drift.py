"""Drift of the sample: estimated from the localizations themselves, and taken out of the table.

Estimating and applying are separate. Every estimate is checked by splitting the localizations (or the
fiducials) at random into halves and estimating each: where the two disagree, the result carries a warning. That
check sees noise and lost tracks; it cannot see what both halves share. Drift that is quicker than the segments
shows when every second segment is left out or, where it swings within them, in what the localizations of a frame
have in common (``drift_residual``), and is warned of too; a pattern fixed to the camera is not seen.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import validate
from smlm_bridge.post.drift_estimate import Curves, Rows, curves, rows_of
from smlm_bridge.post.drift_residual import Residual, residual_motion

FloatArray = NDArray[np.float64]
Engine = Literal["auto", "aim", "comet", "rcc", "fiducials"]

#: Fewer localizations than this hold no drift that could be told from noise.
MIN_LOCALIZATIONS: Final = 100
#: Halves that differ by more (rms, nm), and by more than the precision of the table, disagree.
DISAGREEMENT_NM: Final = 10.0
#: ``auto`` is ``comet`` below so many localizations, where it is better and as quick; ``aim`` from there on.
COMET_BELOW: Final = 50_000
#: A fiducial whose place is given moves no farther from it.
FIDUCIAL_RADIUS_NM: Final = 500.0

#: Motion that is left (rms, nm) and blurs as much is told, if it stands out of its error so many times.
LEFT_NM: Final = 5.0
_SIGNIFICANT: Final = 5.0

_LOST_SHARE: Final = 0.02
_FEW_SEGMENTS: Final = 8


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
    residual_rms_nm
        Motion that the corrected localizations of a frame still share, rms per axis in x and y; None where it does
        not stand out of its error, or was not computed.
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
    residual_rms_nm: float | None = None
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
        ``"aim"``: in x and y coincidences of a segment with all others (after Ma et al. 2024), in z the overlap
        of pairs. ``"comet"``: the overlap of all pairs in x, y and z at once (after Reinkensmeier et al. 2026),
        started from ``aim``; best for few localizations. ``"auto"``: ``comet`` below ``COMET_BELOW``
        localizations, else ``aim``. ``"rcc"``: redundant cross-correlation of rendered segments (Wang et al.
        2014), slower and blind to quick drift. ``"fiducials"``: beads seen in most frames.
    segment_frames
        Frames that share one estimate; None chooses by the number of localizations.
    seed
        Of the split into halves.
    fiducials_nm
        x, y of the beads; None finds them. Only for ``"fiducials"``, which ``"auto"`` becomes if it is given.
    fiducial_radius_nm
        A bead whose place is given moves no farther from it.
    """

    engine: Engine = "auto"
    segment_frames: int | None = None
    seed: int = 0
    fiducials_nm: tuple[tuple[float, float], ...] | None = None
    fiducial_radius_nm: float = FIDUCIAL_RADIUS_NM

    def __post_init__(self) -> None:
        if self.engine not in get_args(Engine):
            raise InputRejected(
                f"the engine '{self.engine}' is unknown; there are {', '.join(get_args(Engine))}."
            )
        if self.segment_frames is not None and self.segment_frames < 1:
            raise InputRejected(f"segment_frames must be 1 or more, got {self.segment_frames}.")
        if self.fiducials_nm is not None and (
            self.engine not in ("auto", "fiducials") or not np.isfinite(self.fiducials_nm).all()
        ):
            raise InputRejected(
                f"places of fiducials are finite x, y in nm, for the engine fiducials, not {self.engine}."
            )
        if not 0 < self.fiducial_radius_nm < np.inf:
            raise InputRejected(f"fiducial_radius_nm must be above 0 nm, got {self.fiducial_radius_nm:g}.")

    def chosen(self, localizations: int) -> str:
        """The engine that ``auto`` stands for."""
        if self.engine != "auto":
            return self.engine
        if self.fiducials_nm is not None:
            return "fiducials"
        return "comet" if localizations < COMET_BELOW else "aim"


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
        Engine, segments, fiducials, seed.

    Returns
    -------
    The drift of every frame from the first to the last of the table.

    Raises
    ------
    InputRejected
        If there are too few localizations, they are spread too far, or fiducials are not found.
    """
    options = options or DriftOptions()
    table = validate(locs)
    if len(table) < MIN_LOCALIZATIONS:
        raise InputRejected(
            f"{len(table)} localizations hold no drift that could be told from noise; at least "
            f"{MIN_LOCALIZATIONS} are needed, and thousands for a good estimate. Lower the threshold of the "
            "localization, or leave the drift in."
        )
    engine = options.chosen(len(table))
    rows = rows_of(
        table,
        engine,
        segment_frames=options.segment_frames,
        fiducials_nm=options.fiducials_nm,
        fiducial_radius_nm=options.fiducial_radius_nm,
    )
    frames = np.arange(rows.edges[0], rows.edges[-1])
    if rows.edges.size < 3:
        zero = np.zeros(frames.size)
        text = f"{frames.size} frame(s) make one segment only: no drift was estimated, it is zero."
        return Drift(frames, zero, zero, engine=engine, warnings=(text,))
    whole = curves(rows, options.seed, check=True)
    half = rows.half(np.random.default_rng(options.seed))
    halves = [curves(rows.part(half), options.seed).xyz_nm, curves(rows.part(~half), options.seed).xyz_nm]
    axes = min(curve.shape[1] for curve in (whole.xyz_nm, *halves))
    rms = (halves[0][:, :axes] - halves[1][:, :axes]).std(axis=0)
    lateral = float(np.sqrt((rms[:2] ** 2).mean()))
    axial = float(rms[2]) if axes == 3 else None
    x, y, *rest = whole.xyz_nm.T
    left = _left(rows, whole.xyz_nm[:, :2])
    return Drift(
        frames,
        x,
        y,
        z_nm=rest[0] if axes == 3 else None,
        engine=engine,
        max_drift_nm=float(np.hypot(x, y).max()),
        split_half_rms_nm=lateral,
        split_half_z_rms_nm=axial,
        residual_rms_nm=None if left is None else left.rms_nm,
        warnings=_warnings(rows, whole, lateral, axial, left=left, has_z="z_nm" in table),
    )


def _left(rows: Rows, curve: FloatArray) -> Residual | None:
    """Motion that the curve left in the localizations; None where it does not stand out of its error."""
    xy = rows.xyz_nm[:, :2] - curve[rows.frame - rows.edges[0]]
    segment = np.searchsorted(rows.edges, rows.frame, side="right") - 1
    found = residual_motion(rows.frame, xy, segment, cell_nm=rows.kernel_nm)
    return None if found is None or found.significance < _SIGNIFICANT else found


def _warnings(
    rows: Rows, whole: Curves, lateral: float, axial: float | None, *, left: Residual | None, has_z: bool
) -> tuple[str, ...]:
    texts = []
    advice = "Do not trust it before you have looked at its plot; longer segments may help."
    if lateral > max(DISAGREEMENT_NM, rows.sigma_xy_nm or 0.0):
        texts.append(f"the halves of the localizations disagree by {lateral:.1f} nm rms in x and y. {advice}")
    if axial is not None and axial > max(DISAGREEMENT_NM, 0.5 * (rows.sigma_z_nm or 0.0)):
        texts.append(f"the halves of the localizations disagree by {axial:.1f} nm rms in z. {advice}")
    texts += _quick(rows, whole, left)
    if whole.lost > _LOST_SHARE and rows.marker is not None:
        texts.append(f"{100 * whole.lost:.0f} % of the movie shows no fiducial. {advice}")
    elif whole.lost > _LOST_SHARE:
        texts.append(f"{100 * whole.lost:.0f} % of the segments found no match with the others. {advice}")
    if has_z and axial is None:
        texts.append("too few places with several localizations for a drift in z: z is left as it is.")
    if rows.marker is not None and rows.marker.max() == 0:
        texts.append("one fiducial only: if it moves by itself, that is taken for drift.")
    return tuple(texts)


def _quick(rows: Rows, whole: Curves, left: Residual | None) -> list[str]:
    """Warnings of drift that is quicker than the segments."""
    texts = []
    segments = rows.edges.size - 1
    if whole.coarse_nm > DISAGREEMENT_NM:
        texts.append(
            f"the segments are too long for this drift: without every second one the curve moves by "
            f"{whole.coarse_nm:.1f} nm in x and y. More localizations, or shorter segments, would follow it."
        )
    elif rows.marker is None and not rows.given and segments < _FEW_SEGMENTS:
        texts.append(
            f"so few localizations make {segments} segments only: drift that is quicker is not followed, and the "
            "halves cannot tell."
        )
    blur = max(LEFT_NM, 0.5 * (rows.sigma_xy_nm or 0.0))
    if left is not None and left.rms_nm > blur:
        texts.append(
            f"the localizations of a frame still move together, by {left.rms_nm:.1f} nm rms in x and y: the "
            "sample moves quicker than the segments, or the curve is wrong in places. Shorter segments follow it "
            "where there are localizations enough; else this blur stays in the picture."
        )
    return texts
