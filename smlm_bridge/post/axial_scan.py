"""Reference positions from a focal stack: where each emitter is in focus, for scoring snapshots.

A snapshot with an engineered PSF is taken, the mask is switched off and the focus is scanned through the same
sample. In every slice the standard PSF's spots are detected; the detections of one emitter lie above one another.
The mean intensity around an emitter over the slices is largest in focus, and a parabola through it gives the
emitter's z (the reference of Nehme et al. 2021 for fixed telomeres).
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree

from smlm_bridge.conventions import PIXEL_CENTRE
from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import validate
from smlm_bridge.post.link import link

Floats = NDArray[np.float64]

_ROUNDS: Final = 12
_RING_PX: Final = 2  # beyond the window: the level that the photons are counted above


@dataclass(frozen=True)
class ScanOptions:
    """How ``axial_scan`` works.

    Parameters
    ----------
    index_factor
        Height in the sample over travel of the objective: about sample_index/immersion_index for small angles,
        0.8 in Nehme et al. (2021), at NA 1.49 from oil into water; 1 gives the travel itself.
    radius_px
        The mean intensity is that of a square of 2 radius_px + 1 pixels.
    fit_nm
        The parabola is fitted to slices up to this travel from the brightest one.
    link_distance_nm
        Detections of neighbouring slices closer than this are one emitter.
    gap_slices
        Slices an emitter may be missed in between.
    min_slices
        Emitters detected in fewer slices are left out.
    """

    index_factor: float = 1.0
    radius_px: int = 2
    fit_nm: float = 400.0
    link_distance_nm: float = 250.0
    gap_slices: int = 1
    min_slices: int = 3

    def __post_init__(self) -> None:
        lengths = (self.index_factor, self.fit_nm, self.link_distance_nm)
        if not all(math.isfinite(value) and value > 0 for value in lengths):
            raise InputRejected(
                f"index_factor {self.index_factor}, fit_nm {self.fit_nm} and link_distance_nm "
                f"{self.link_distance_nm} must be above 0."
            )
        if self.radius_px < 1 or self.gap_slices < 0 or self.min_slices < 1:
            raise InputRejected(
                f"radius_px {self.radius_px} and min_slices {self.min_slices} must be 1 or more, gap_slices "
                f"{self.gap_slices} 0 or more."
            )


def axial_scan(
    stack: NDArray[Any],
    detections: pd.DataFrame,
    options: ScanOptions = ScanOptions(),
    *,
    pixel_nm: float,
    z_step_nm: float,
    first_focus_nm: float = 0.0,
) -> pd.DataFrame:
    """Locate the emitters of a focal stack.

    Parameters
    ----------
    stack
        (Z, H, W) slices in photo-electrons.
    detections
        A table as in ``smlm_bridge.locs`` whose ``frame`` is the slice from 0, for example of
        ``detect.detect_frames``.
    options
        See ``ScanOptions``.
    pixel_nm
        Camera pixel.
    z_step_nm
        Travel of the focus from slice to slice, positive into the sample.
    first_focus_nm
        Focus of slice 0 on the same scale.

    Returns
    -------
    DataFrame
        One row an emitter, ``frame`` 0: ``x_nm``, ``y_nm`` its centre in the sharpest slice, ``z_nm``
        = index_factor times the focus of the parabola's vertex, ``photons`` in the window of that slice above
        the ring around it, ``uncertainty_z_nm`` of the fit, ``slices`` the number of detections. Emitters whose
        vertex lies outside the stack, at a slice's edge of the frame, or whose parabola opens upwards are left
        out.

    Raises
    ------
    InputRejected
        If the stack is not (Z, H, W) with three slices or more, a length is out of its range, or the detections
        lie outside the stack.
    """
    volume = np.asarray(stack, dtype=np.float64)
    _check(volume, detections, pixel_nm, z_step_nm, first_focus_nm)
    table = validate(detections)
    emitters = _emitters(table, options)
    side = 2 * options.radius_px + 1
    mean = uniform_filter(volume, (0, side, side), mode="nearest")
    column, row = (np.floor(emitters[name] / pixel_nm).to_numpy(np.int64) for name in ("x_nm", "y_nm"))
    margin = options.radius_px + _RING_PX
    inside = (np.minimum(column, row) >= margin) & (column < volume.shape[2] - margin)
    inside &= row < volume.shape[1] - margin
    emitters, column, row = emitters[inside], column[inside], row[inside]
    seen = emitters["first"].to_numpy(), emitters["last"].to_numpy()
    vertex, error = _vertices(mean[:, row, column].T, seen, options.fit_nm / abs(z_step_nm))
    good = np.isfinite(vertex)
    emitters, column, row = emitters[good], column[good], row[good]
    vertex, error = vertex[good], error[good]
    x, y, photons = _centres(volume, np.rint(vertex).astype(np.int64), row, column, options.radius_px)
    scale = options.index_factor
    found = pd.DataFrame(
        {
            "frame": np.zeros(len(vertex), np.int64),
            "x_nm": (column + PIXEL_CENTRE + x) * pixel_nm,
            "y_nm": (row + PIXEL_CENTRE + y) * pixel_nm,
            "z_nm": scale * (first_focus_nm + z_step_nm * vertex),
            "photons": photons,
            "uncertainty_z_nm": scale * abs(z_step_nm) * error,
            "slices": emitters["slices"].to_numpy(np.int64),
        }
    )
    return _once(found, vertex, options.link_distance_nm)


def _check(
    volume: Floats, detections: pd.DataFrame, pixel_nm: float, z_step_nm: float, first_focus_nm: float
) -> None:
    if volume.ndim != 3 or volume.shape[0] < 3:
        raise InputRejected(
            f"a focal stack is (slice, row, column) with three slices or more, got the shape {volume.shape}."
        )
    if not np.isfinite(volume).all():
        raise InputRejected("the focal stack has pixels that are not finite.")
    if not (math.isfinite(pixel_nm) and pixel_nm > 0 and math.isfinite(first_focus_nm)):
        raise InputRejected(f"pixel_nm {pixel_nm} must be above 0, first_focus_nm {first_focus_nm} a length.")
    if not math.isfinite(z_step_nm) or z_step_nm == 0:
        raise InputRejected(
            f"z_step_nm {z_step_nm} is the travel of the focus from slice to slice, positive into the sample."
        )
    if len(detections) and (detections["frame"].max() >= len(volume) or detections["frame"].min() < 0):
        raise InputRejected(
            f"the detections have the slice {detections['frame'].max()} (from 0), the stack has {len(volume)}."
        )


def _emitters(table: pd.DataFrame, options: ScanOptions) -> pd.DataFrame:
    """Mean place and number of slices of every emitter that was detected often enough."""
    flat = table[["frame", "x_nm", "y_nm"]]
    number = link(flat, options.link_distance_nm, gap_frames=options.gap_slices)
    groups = flat.groupby(number)
    span = {"slices": groups.size(), "first": groups["frame"].min(), "last": groups["frame"].max()}
    emitters = groups[["x_nm", "y_nm"]].median().assign(**span)
    return emitters[emitters["slices"] >= options.min_slices]


def _once(found: pd.DataFrame, vertex: Floats, distance_nm: float) -> pd.DataFrame:
    """Of emitters at one place and height, whose detections were linked in pieces, the one with most."""
    order = np.lexsort((-found["photons"].to_numpy(), -found["slices"].to_numpy()))
    place = np.column_stack([found["x_nm"] / distance_nm, found["y_nm"] / distance_nm, vertex])[order]
    pairs = (
        cKDTree(place).query_pairs(1.0, output_type="ndarray") if len(place) else np.zeros((0, 2), np.intp)
    )
    kept = np.delete(order, np.unique(pairs.max(axis=1))) if len(pairs) else order
    return found.iloc[kept].sort_values(["x_nm", "y_nm"], ignore_index=True)


def _vertices(
    curves: Floats, seen: tuple[NDArray[np.int64], NDArray[np.int64]], reach: float
) -> tuple[Floats, Floats]:
    """Vertex (in slices) of a parabola through the brightest part of every curve (E, Z), and its error.

    The brightest slice is looked for among those from the first to the last detection: another emitter may lie
    above. NaN where the parabola opens upwards or its vertex lies outside the slices fitted.
    """
    count, slices = curves.shape
    if count == 0:
        return np.zeros(0), np.zeros(0)
    number = np.arange(slices)
    inside = (number >= seen[0][:, None]) & (number <= seen[1][:, None])
    top = np.where(inside, curves, -np.inf).argmax(axis=1)
    half = max(1, round(reach))
    # The whole range stays within the stack: near its ends the parabola is through the slices there are.
    offset = np.arange(-half, half + 1)
    at = top[:, None] + offset
    known = ((at >= 0) & (at < slices)).astype(np.float64)
    value = np.take_along_axis(curves, np.clip(at, 0, slices - 1), axis=1)
    scale = np.maximum(np.abs(value).max(axis=1, keepdims=True), 1e-12)
    power = (offset / half)[:, None] ** np.arange(3)
    normal = np.einsum("et,ti,tj->eij", known, power, power)
    right = np.einsum("et,ti->ei", known * value / scale, power)
    enough = known.sum(axis=1) >= 3
    normal[~enough] = np.eye(3)
    level, slope, bend = np.linalg.solve(normal, right[..., None])[..., 0].T
    good = enough & (bend < 0)
    bend = np.where(good, bend, -1.0)
    place = -slope / (2 * bend)
    residual = known * (
        value / scale - level[:, None] - slope[:, None] * power[:, 1] - bend[:, None] * power[:, 2]
    )
    variance = np.sum(residual**2, axis=1) / np.maximum(known.sum(axis=1) - 3, 1)
    covariance = np.linalg.inv(normal) * variance[:, None, None]
    gradient = np.stack([np.zeros(count), -1 / (2 * bend), slope / (2 * bend**2)], axis=1)
    error = np.sqrt(np.einsum("ei,eij,ej->e", gradient, covariance, gradient)) * half
    vertex = top + place * half
    good &= (np.abs(place) <= 1) & (vertex >= 0) & (vertex <= slices - 1)
    return np.where(good, vertex, np.nan), np.where(good, error, np.nan)


def _centres(
    volume: Floats, slices: NDArray[np.int64], row: NDArray[np.int64], column: NDArray[np.int64], radius: int
) -> tuple[Floats, Floats, Floats]:
    """Centre from the middle pixel in pixels, x and y, and the sum above the ring around the window.

    The centre is that of mass under a Gaussian window that follows it, so that the window's edge has no pull.
    """
    outer = radius + _RING_PX
    span = np.arange(-outer, outer + 1)
    boxes = volume[slices[:, None, None], row[:, None, None] + span[:, None], column[:, None, None] + span]
    ring = np.maximum(np.abs(span[:, None]), np.abs(span)) > radius
    level = np.median(boxes[:, ring], axis=1) if len(boxes) else np.zeros(0)
    light = boxes - level[:, None, None]
    x, y = np.zeros(len(boxes)), np.zeros(len(boxes))
    for _ in range(_ROUNDS):
        across, along = (np.exp(-((span - centre[:, None]) ** 2) / radius**2) for centre in (x, y))
        weighed = light * across[:, None, :] * along[:, :, None]
        total = np.maximum(weighed.sum(axis=(1, 2)), 1e-12)
        # Twice the step: of a spot as wide as the window, half of it is the window's.
        x = np.clip(x + 2 * (weighed.sum(axis=1) @ span / total - x), -radius, radius)
        y = np.clip(y + 2 * (weighed.sum(axis=2) @ span / total - y), -radius, radius)
    inner = slice(_RING_PX, -_RING_PX)
    return x, y, np.asarray(light[:, inner, inner].sum(axis=(1, 2)))
