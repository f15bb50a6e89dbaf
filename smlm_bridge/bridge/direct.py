"""ThunderSTORM's own classes called directly, without table or window."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.bridge.java import java_class, jpype
from smlm_bridge.bridge.modules import LocalMaximum, NonMaximumSuppression, WaveletFilter
from smlm_bridge.bridge.settings import CrossCorrelation
from smlm_bridge.camera import Camera
from smlm_bridge.conventions import FIRST_FRAME_IN_FILES, pixel_centre_nm
from smlm_bridge.errors import InputRejected, UsageError
from smlm_bridge.expression import parse
from smlm_bridge.locs import POSITION, validate
from smlm_bridge.post.colocalization import RADIUS_STEP_NM, STEPS, Colocalization
from smlm_bridge.post.drift import Drift

if TYPE_CHECKING:
    from smlm_bridge.bridge.thunderstorm import ThunderStorm


def detect(
    storm: "ThunderStorm",
    frames: NDArray[Any],
    *,
    camera: Camera,
    pixel_nm: float,
    filter: WaveletFilter,
    detector: LocalMaximum | NonMaximumSuppression,
) -> pd.DataFrame:
    """See ``ThunderStorm.detect``."""
    if frames.ndim != 3:
        raise InputRejected(f"detection takes frames (frame, row, column), got an array of {frames.shape}.")
    if isinstance(camera.offset, np.ndarray):
        raise UsageError("ThunderSTORM knows one camera offset for all pixels; give --offset a number.")
    formula = parse(str(detector.threshold), ("I", "F", "Wave.I", "Wave.F", "Wave.F1", "Wave.F2"))
    samples = int(2 * np.ceil(filter.order * filter.scale / 2) - 1)
    rows: list[NDArray[np.float64]] = []

    def one(index: int) -> NDArray[np.float64]:
        image = frames[index].astype(np.float32) - np.float32(camera.offset)
        image -= min(float(image.min()), 0.0)
        height, width = image.shape
        wavelet = storm.java_class("filters.CompoundWaveletFilter")(filter.order, filter.scale, samples)
        processor = java_class("ij.process.FloatProcessor")
        module = jpype()
        filtered = wavelet.filterImage(processor(width, height, module.JArray(module.JFloat)(image.ravel())))
        first = np.array(wavelet.exportVariables(False).get("F1").getPixels()).reshape(height, width)
        second = np.array(filtered.getPixels()).reshape(height, width)
        planes = dict.fromkeys(("I", "Wave.I"), image) | dict.fromkeys(("F", "Wave.F", "Wave.F2"), second)
        planes["Wave.F1"] = first
        wide = {name: plane.astype(np.float64)[None] for name, plane in planes.items()}
        threshold = float(np.asarray(formula.evaluate(wide, axis=(1, 2))).reshape(-1)[0])
        finder = _detector(storm, detector, threshold)
        points = finder.detectMoleculeCandidates(filtered)
        found = np.array([(point.getX().doubleValue(), point.getY().doubleValue()) for point in points])
        found = found.reshape(-1, 2).round().astype(np.int64)
        value = second[found[:, 1], found[:, 0]]
        return np.column_stack([np.full(len(found), index), found[:, 1], found[:, 0], value])

    storm.gateway.call(
        lambda: rows.extend(one(index) for index in range(len(frames))), what="ThunderSTORM's detection"
    )
    found = np.concatenate(rows) if rows else np.zeros((0, 4))
    column: Any = found[:, 2].astype(np.int64)
    row: Any = found[:, 1].astype(np.int64)
    table = pd.DataFrame(
        {
            "frame": found[:, 0].astype(np.int64),
            "x_nm": pixel_centre_nm(column, pixel_nm),
            "y_nm": pixel_centre_nm(row, pixel_nm),
            "row": row,
            "column": column,
            "value": found[:, 3],
        }
    )
    return table.sort_values(["frame", "row", "column"], ignore_index=True)


def _detector(storm: "ThunderStorm", detector: LocalMaximum | NonMaximumSuppression, threshold: float) -> Any:
    text = repr(threshold)
    if isinstance(detector, LocalMaximum):
        found = storm.java_class("detectors.LocalMaximaDetector")
        return found(int(detector.connectivity[0]), text)
    found = storm.java_class("detectors.NonMaxSuppressionDetector")
    return found(detector.radius, text)


def cross_correlation(
    storm: "ThunderStorm", locs: pd.DataFrame, settings: CrossCorrelation, *, pixel_nm: float
) -> Drift:
    """See ``ThunderStorm.cross_correlation``."""
    table = validate(locs)
    if table.empty:
        raise InputRejected("a table without localizations has no drift.")
    module = jpype()
    array = module.JArray(module.JDouble)
    frame = table["frame"].to_numpy(np.float64) + FIRST_FRAME_IN_FILES
    x, y = (array(table[name].to_numpy() / pixel_nm) for name in ("x_nm", "y_nm"))
    smoothing = (float(settings.smoothing),) if storm.version == "dev" else ()
    estimator = storm.java_class("drift.CorrelationDriftEstimator")
    found = storm.gateway.call(
        lambda: estimator.estimateDriftFromCoords(
            x, y, array(frame), settings.steps, float(settings.magnification), *smoothing, -1, -1, False
        ),
        what="ThunderSTORM's cross-correlation",
    )
    first, last = int(frame.min()), int(frame.max())
    points = [found.getInterpolatedDrift(float(number)) for number in range(first, last + 1)]
    drift = np.array([(float(point.x), float(point.y)) for point in points]) * pixel_nm
    return Drift(
        np.arange(first, last + 1) - FIRST_FRAME_IN_FILES,
        drift[:, 0],
        drift[:, 1],
        engine=f"thunderstorm {storm.label}",
        max_drift_nm=float(np.hypot(*(drift - drift[0]).T).max()),
    )


def colocalize(
    storm: "ThunderStorm",
    locs: pd.DataFrame,
    other: pd.DataFrame,
    *,
    radius_step_nm: float = RADIUS_STEP_NM,
    steps: int = STEPS,
    dimensions: Literal[2, 3] = 2,
) -> Colocalization:
    """See ``ThunderStorm.colocalize``."""
    tables = validate(locs), validate(other)
    axes = list(POSITION[:dimensions])
    if any(table.empty or axes[-1] not in table for table in tables):
        raise InputRejected(f"colocalization takes two tables with localizations and {', '.join(axes)}.")
    module = jpype()
    matrix = module.JArray(module.JDouble, 2)
    places = [matrix(table[axes].to_numpy().tolist()) for table in tables]

    def action() -> Colocalization:
        found = storm.java_class("colocalization.CBC")(*places, float(radius_step_nm), steps)
        cbc = np.array(found.calculateFirstChannelCBC())
        within = np.array([list(row) for row in found.firstChannelNeighborsInDistance]).T
        radii = np.sqrt(np.array(found.squaredRadiusDomain))
        nearest = np.array(found.firstChannelNearestNeighborDistances)
        return Colocalization(cbc, nearest, within.astype(np.int64), radii)

    result: Colocalization = storm.gateway.call(action, what="ThunderSTORM's colocalization")
    return result
