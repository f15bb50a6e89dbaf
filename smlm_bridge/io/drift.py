"""Drift in ThunderSTORM's JSON: piecewise polynomials over the frame, counted from 1.

ThunderSTORM knows x and y; z and how the drift was estimated stand under a key of our own, which it ignores.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, PPoly

from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.post.drift import Drift

FloatArray = NDArray[np.float64]

_OWN: Final = "smlm_bridge"
_EXACT_NM: Final = 1e-3
_KNOT_FRAMES: Final = (64, 32, 16, 8, 4, 2, 1)
_PLOTTED: Final = 200
_NM_PER: Final = {"NANOMETER": 1.0, "MICROMETER": 1e3}

_MOST_FRAMES = 20_000_000


def save_drift(path: str | Path, drift: Drift, *, overwrite: bool = False) -> None:
    """Write a drift as ThunderSTORM's JSON.

    Raises
    ------
    InputRejected
        If the output exists and ``overwrite`` is false, or cannot be written.
    """
    with atomic_output(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(to_thunderstorm_json(drift), allow_nan=False), encoding="utf-8")


def load_drift(path: str | Path, *, pixel_nm: float | None = None) -> Drift:
    """Read a drift from ThunderSTORM's JSON, ours or theirs.

    Parameters
    ----------
    path
        The file.
    pixel_nm
        For drifts in pixels, which ThunderSTORM's cross-correlation writes.

    Raises
    ------
    InputRejected
        If the file is missing or is no such JSON.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputRejected(f"the drift {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputRejected(
            f"{path} is no JSON ({error}); a drift is the file drift --save writes."
        ) from error
    if not isinstance(content, dict):
        raise InputRejected(f"{path} holds no drift: its JSON is no object.")
    return from_thunderstorm_json(content, pixel_nm=pixel_nm)


def to_thunderstorm_json(drift: Drift) -> dict[str, Any]:
    """The drift as the object ThunderSTORM loads: nm, frames from 1, exact to 0.001 nm at every frame."""
    frame = drift.frame.astype(np.float64) + FIRST_FRAME_IN_FILES
    shown = np.unique(np.linspace(0, frame.size - 1, _PLOTTED).astype(np.int64))
    own: dict[str, Any] = {
        "engine": drift.engine,
        "max_drift_nm": drift.max_drift_nm,
        "split_half_rms_nm": drift.split_half_rms_nm,
        "split_half_z_rms_nm": drift.split_half_z_rms_nm,
        "warnings": list(drift.warnings),
    }
    if drift.z_nm is not None:
        own["zFunction"] = _pieces(frame, drift.z_nm)
    return {
        "scale": 1.0,
        "xFunction": _pieces(frame, drift.x_nm),
        "yFunction": _pieces(frame, drift.y_nm),
        "driftDataFrame": frame[shown].tolist(),
        "driftDataX": drift.x_nm[shown].tolist(),
        "driftDataY": drift.y_nm[shown].tolist(),
        "minFrame": int(frame[0]),
        "maxFrame": int(frame[-1]),
        "units": "NANOMETER",
        _OWN: own,
    }


def from_thunderstorm_json(content: Mapping[str, Any], *, pixel_nm: float | None = None) -> Drift:
    """The drift of such an object, at every frame from ``minFrame`` to ``maxFrame``.

    Raises
    ------
    InputRejected
        If a key is missing or malformed, the unit is unknown, or it is pixels and ``pixel_nm`` is not given.
    """
    unit = content.get("units")
    factor = pixel_nm if unit == "PIXEL" else _NM_PER.get(str(unit))
    if unit == "PIXEL" and pixel_nm is None:
        raise InputRejected(
            "the drift is in pixels; give the size of the pixel in nm (pixel_nm, --pixel-nm)."
        )
    if factor is None:
        raise InputRejected(f"the drift's units are {unit!r}; known are PIXEL, {', '.join(_NM_PER)}.")
    own = content.get(_OWN, {})
    try:
        first, last = int(content["minFrame"]), int(content["maxFrame"])
        if not 0 <= last - first < _MOST_FRAMES:
            raise ValueError(f"frames {first} to {last}; 1 to {_MOST_FRAMES} are allowed")
        frame = np.arange(first, last + 1)
        x, y = (_values(content[name], frame) * factor for name in ("xFunction", "yFunction"))
        z = _values(own["zFunction"], frame) if "zFunction" in own else None
        return Drift(
            frame - FIRST_FRAME_IN_FILES,
            x,
            y,
            z_nm=z,
            engine=own.get("engine", "file"),
            max_drift_nm=float(own.get("max_drift_nm", np.hypot(x - x[0], y - y[0]).max())),
            split_half_rms_nm=own.get("split_half_rms_nm"),
            split_half_z_rms_nm=own.get("split_half_z_rms_nm"),
            warnings=tuple(own.get("warnings", ())),
        )
    except InputRejected:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError) as error:
        raise InputRejected(
            f"this is no drift of ThunderSTORM ({type(error).__name__}: {error}); it needs xFunction and "
            "yFunction with knots and polynomials, minFrame, maxFrame and units."
        ) from error


def _pieces(frame: FloatArray, values: FloatArray) -> dict[str, Any]:
    """Knots and polynomials in (t - knot), ascending powers, on the fewest knots that are exact enough."""
    if frame.size == 1:  # two knots are the least that ThunderSTORM's polynomials have
        return {"knots": [frame[0], frame[0] + 1], "polynomials": [{"coefficients": [values[0]]}], "n": 1}
    for step in _KNOT_FRAMES:
        chosen = np.unique(np.append(np.arange(0, frame.size, step), frame.size - 1))
        spline = CubicSpline(frame[chosen], values[chosen], bc_type="natural")
        if np.abs(spline(frame) - values).max() <= _EXACT_NM:
            break
    pieces = [{"coefficients": row} for row in spline.c[::-1].T.tolist()]
    return {"knots": frame[chosen].tolist(), "polynomials": pieces, "n": len(pieces)}


def _values(function: Mapping[str, Any], frame: NDArray[np.int64]) -> FloatArray:
    """The polynomials at every frame; the first and the last go on beyond their knots."""
    knots = np.asarray(function["knots"], np.float64)
    rows = [list(piece["coefficients"]) for piece in function["polynomials"]]
    if len(rows) != knots.size - 1 or (np.diff(knots) <= 0).any():
        raise ValueError(f"{len(rows)} polynomials do not fit {knots.size} knots")
    powers = np.zeros((max(map(len, rows)), len(rows)))
    for index, row in enumerate(rows):
        powers[: len(row), index] = row
    return np.asarray(PPoly(powers[::-1], knots)(frame), np.float64)
