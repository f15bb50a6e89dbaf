"""From the drift of segments to the drift of every frame: splines, cut where the sample jumped."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline, make_smoothing_spline

FloatArray = NDArray[np.float64]

_LEAST_SMOOTHED: Final = 5  # points that cross-validation needs
_LEAST_PIECE: Final = 3  # segments on either side of a jump: fewer are an outlier
_JUMP_STEPS: Final = 8.0  # times the usual step from segment to segment


def curve_through(
    middle: FloatArray,
    drift: FloatArray,
    frames: NDArray[np.int64],
    *,
    jump_nm: float,
    smooth: bool = False,
) -> FloatArray:
    """A cubic spline through the segments, zero in the first frame; beyond them straight for one more, then held.

    Where the drift steps by more than ``jump_nm`` and more than eight times its usual step, and stays there,
    the sample jumped: either side gets its own spline, and the step lies half-way between the two segments.

    Parameters
    ----------
    middle : (segments,)
        Mean frame of the localizations of every segment, ascending.
    drift : (segments, axes)
        Their drift in nm.
    frames : (F,)
        Consecutive frames.
    jump_nm
        Least length of a jump.
    smooth
        Let the spline pass as far from the segments as cross-validation finds noise (Craven & Wahba 1979):
        right for segments shorter than the drift's own time; coarser ones would lose drift with the noise.

    Returns
    -------
    (F, axes) in nm.
    """
    cuts = _jumps(drift, jump_nm)
    first = np.searchsorted(frames, 0.5 * (middle[cuts] + middle[cuts - 1]), side="right")
    knots = np.split(np.arange(middle.size), cuts)
    parts = np.split(frames, first)
    curves = [_spline(middle[k], drift[k], part, smooth) for k, part in zip(knots, parts, strict=True)]
    curve = np.concatenate(curves)
    return np.asarray(curve - curve[0])


def _jumps(drift: FloatArray, jump_nm: float) -> NDArray[np.intp]:
    """Segments before which the sample jumped."""
    step = np.linalg.norm(np.diff(drift, axis=0), axis=1)
    high = step > max(jump_nm, _JUMP_STEPS * float(np.median(step)))
    kept: list[int] = []
    for cut in np.flatnonzero(high) + 1:
        if cut - (kept[-1] if kept else 0) >= _LEAST_PIECE and len(drift) - cut >= _LEAST_PIECE:
            kept.append(int(cut))
    return np.array(kept, np.intp)


def _spline(middle: FloatArray, drift: FloatArray, frames: NDArray[np.int64], smooth: bool) -> FloatArray:
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
        curve[:, axis] = spline(inside) + slope * (np.clip(at, -1.0, knots[-1] + 1.0) - inside)
    return curve
