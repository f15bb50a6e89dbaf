"""ThunderSTORM where it is installed, else our own implementation: the same verbs, and they say which ran."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.bridge.gateway import BackEnd, GatewayOptions, Mode, gateway
from smlm_bridge.bridge.jars import (
    FIJI_VARIABLE,
    PLUGINS_VARIABLE,
    Plugin,
    fiji_directory,
    find_thunderstorm,
)
from smlm_bridge.bridge.modules import (
    Analysis,
    Connectivity,
    DifferenceOfGaussians,
    GaussianEstimator,
    IntegratedGaussian,
    LocalMaximum,
    NoEstimator,
    WaveletFilter,
)
from smlm_bridge.bridge.settings import CrossCorrelation, Density, DriftFile, Fiducials, Merging
from smlm_bridge.bridge.thunderstorm import ThunderStorm, open_thunderstorm
from smlm_bridge.camera import Camera
from smlm_bridge.detect import DetectOptions, crop_boxes, detect_frames
from smlm_bridge.detect import detect as detect_frames_of
from smlm_bridge.errors import InputRejected
from smlm_bridge.frames import Block, Frames, Work, in_blocks
from smlm_bridge.io.drift import load_drift
from smlm_bridge.post.drift import Drift, DriftOptions, apply_drift, estimate_drift
from smlm_bridge.post.drift_cross_correlation import cross_correlation_drift
from smlm_bridge.post.filter import by_density, by_expression, without_duplicates
from smlm_bridge.post.merge import merge

OWN: Final = "smlm_bridge"


@dataclass(frozen=True)
class Engine:
    """What does the work: ThunderSTORM, or with ``storm`` None our own implementation."""

    storm: ThunderStorm | None = None

    @property
    def name(self) -> str:
        """``thunderstorm`` with its version, or ``smlm_bridge``."""
        return OWN if self.storm is None else f"thunderstorm {self.storm.label}"

    @property
    def back_end(self) -> str | None:
        """``ij1`` or ``pyimagej``; None where nothing of Java runs."""
        return None if self.storm is None else self.storm.gateway.back_end

    @property
    def note(self) -> str | None:
        """What to tell where ThunderSTORM is absent."""
        if self.storm is not None:
            return None
        return (
            "ThunderSTORM was not found, so our own implementation ran. To run the plugin, give --plugins (its "
            f"jar or folder) or --fiji, or set {PLUGINS_VARIABLE} or SMLM_BRIDGE_FIJI."
        )


@dataclass(frozen=True)
class EngineOptions:
    """Where ThunderSTORM is and how its ImageJ is started.

    Parameters
    ----------
    plugins, fiji
        See ``jars.find_thunderstorm``.
    mode
        See ``GatewayOptions``.
    back_end
        ``auto``: ``pyimagej`` where a Fiji is given or named by ``SMLM_BRIDGE_FIJI``, and pyimagej is installed
        and can drive that Fiji; else ``ij1``, which needs nothing of a Fiji but ThunderSTORM.
    """

    plugins: Path | None = None
    fiji: Path | None = None
    mode: Mode = "headless"
    back_end: BackEnd = "auto"


def open_engine(options: EngineOptions | None = None) -> Engine:
    """ThunderSTORM if it is found, else our own implementation.

    ImageJ 1 needs no Fiji, and no network once ImageJ is in the local Maven repository or a jar is given.
    """
    wanted = options or EngineOptions()
    plugin = find_thunderstorm(wanted.plugins, fiji=wanted.fiji)
    return Engine() if plugin is None else Engine(_opened(plugin, wanted))


def _opened(plugin: Plugin, wanted: EngineOptions) -> ThunderStorm:
    fiji = _fiji_to_drive(wanted)
    if fiji is None:
        options = GatewayOptions(back_end="ij1", mode=wanted.mode, plugins=(plugin.jar,))
    else:
        own = plugin.jar.is_relative_to(fiji / "plugins")  # pyimagej loads the plugins of a Fiji itself
        options = GatewayOptions(
            back_end="pyimagej", mode=wanted.mode, fiji=fiji, plugins=() if own else (plugin.jar,)
        )
    return open_thunderstorm(gateway(options), plugin)


def _fiji_to_drive(wanted: EngineOptions) -> Path | None:
    """The Fiji that pyimagej starts; None for ImageJ 1.

    Raises
    ------
    InputRejected
        If pyimagej is asked for and no Fiji is given, or one that it cannot drive.
    """
    if wanted.back_end == "ij1":
        return None
    try:
        fiji = fiji_directory(wanted.fiji)
    except InputRejected:
        if wanted.back_end == "pyimagej":
            raise
        return None
    if wanted.back_end == "pyimagej":
        if fiji is None:
            raise InputRejected(
                f"the back end pyimagej needs a Fiji directory: give --fiji, or set {FIJI_VARIABLE}."
            )
        return fiji
    return fiji if importlib.util.find_spec("imagej") is not None else None


def detect(
    engine: Engine,
    frames: NDArray[Any],
    *,
    camera: Camera,
    pixel_nm: float,
    threshold: str = "std(Wave.F1)",
    scale: float = 2.0,
    order: int = 3,
) -> pd.DataFrame:
    """Candidates by ThunderSTORM's wavelet detector; see ``smlm_bridge.detect.detect_frames``."""
    if engine.storm is None:
        options = DetectOptions(threshold=threshold, wavelet_scale=scale, wavelet_order=order)
        return detect_frames(frames, options, pixel_nm=pixel_nm, camera=camera)
    return engine.storm.detect(
        frames,
        camera=camera,
        pixel_nm=pixel_nm,
        filter=WaveletFilter(scale=scale, order=order),
        detector=LocalMaximum(threshold=threshold),
    )


def detect_movie(
    engine: Engine,
    source: Frames,
    options: DetectOptions | None = None,
    *,
    pixel_nm: float,
    camera: Camera | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[Block]:
    """Candidates in every frame of a movie, block by block, as ``smlm_bridge.detect.detect`` gives them.

    ThunderSTORM takes of the options threshold, connectivity and wavelet; its memory is bounded by the blocks.
    """
    wanted, known = options or DetectOptions(), camera or Camera()
    if engine.storm is None:
        yield from detect_frames_of(source, wanted, pixel_nm=pixel_nm, camera=known, on_step=on_step)
        return

    def find(counts: NDArray[Any]) -> pd.DataFrame:
        return find_candidates(engine, counts[:, 0], wanted, pixel_nm=pixel_nm, camera=known)

    def check(counts: NDArray[Any]) -> None:
        if counts.shape[1] != 1:
            raise InputRejected(f"ThunderSTORM takes one channel, the frames have {counts.shape[1]}.")

    columns = ("frame", "x_nm", "y_nm", "row", "column", "value")
    empty = pd.DataFrame({name: pd.Series(dtype="float64") for name in columns})
    work = Work(find, empty, check, pixel_nm, wanted.block_pixels)
    yield from in_blocks(source, work, on_step=on_step)


def find_candidates(
    engine: Engine,
    counts: NDArray[Any],
    options: DetectOptions,
    *,
    pixel_nm: float,
    camera: Camera,
) -> pd.DataFrame:
    """Candidates in frames (T, H, W); ThunderSTORM takes of the options threshold, connectivity and wavelet."""
    if engine.storm is None:
        return detect_frames(counts, options, pixel_nm=pixel_nm, camera=camera)
    neighbours: Connectivity = "8-neighbourhood" if options.connectivity == 8 else "4-neighbourhood"
    return engine.storm.detect(
        counts,
        camera=camera,
        pixel_nm=pixel_nm,
        filter=WaveletFilter(scale=options.wavelet_scale, order=options.wavelet_order),
        detector=LocalMaximum(options.threshold, neighbours),
    )


def run(
    engine: Engine,
    frames: NDArray[Any],
    analysis: Analysis | None = None,
    *,
    camera: Camera,
    pixel_nm: float,
    timeout_s: float | None = None,
) -> pd.DataFrame:
    """An analysis of frames (T, H, W) in ADU; see ``ThunderStorm.run``.

    Raises
    ------
    InputRejected
        If our own implementation has no such filter, detector or estimator.
    """
    wanted = analysis or Analysis()
    if engine.storm is not None:
        return engine.storm.run(frames, wanted, camera=camera, pixel_nm=pixel_nm, timeout_s=timeout_s)
    found = detect_frames(frames, _own_detection(wanted), pixel_nm=pixel_nm, camera=camera)
    if isinstance(wanted.estimator, NoEstimator):
        return found[["frame", "x_nm", "y_nm"]]
    return _own_fit(frames, found, wanted.estimator, camera=camera, pixel_nm=pixel_nm)


def _own_detection(analysis: Analysis) -> DetectOptions:
    chosen = analysis.filter
    if not isinstance(analysis.detector, LocalMaximum):
        raise _not_ours(analysis.detector.LABEL, "Local maximum")
    options = DetectOptions(
        threshold=analysis.detector.threshold,
        connectivity=8 if analysis.detector.connectivity.startswith("8") else 4,
    )
    if isinstance(chosen, WaveletFilter):
        return replace(options, wavelet_scale=chosen.scale, wavelet_order=chosen.order)
    if isinstance(chosen, DifferenceOfGaussians):
        return replace(options, detector="dog", dog_sigma_px=(chosen.sigma1, chosen.sigma2))
    raise _not_ours(chosen.LABEL, f"{WaveletFilter.LABEL}, {DifferenceOfGaussians.LABEL}")


def _not_ours(label: str, ours: str) -> InputRejected:
    return InputRejected(
        f"without ThunderSTORM there is no '{label}'; our own implementation has {ours}. Take it, or install "
        "ThunderSTORM and give --plugins."
    )


def _own_fit(
    frames: NDArray[Any], found: pd.DataFrame, estimator: Any, *, camera: Camera, pixel_nm: float
) -> pd.DataFrame:
    from smlm_bridge.fit import FitOptions, Spot, Status, fit_boxes

    if not isinstance(estimator, IntegratedGaussian) or estimator.method != "Maximum likelihood":
        method = f" ({estimator.method})" if isinstance(estimator, GaussianEstimator) else ""
        raise _not_ours(f"{estimator.LABEL}{method}", f"{IntegratedGaussian.LABEL} (Maximum likelihood)")
    if estimator.multi_emitter is not None or estimator.full_image_fitting:
        raise _not_ours("multi-emitter or full-image fitting", "one emitter a window")
    boxes, inside = crop_boxes(camera.to_photons(frames), found, 2 * estimator.fitradius + 1)
    kept = found[inside].reset_index(drop=True)
    corners = kept[["row", "column"]].to_numpy() - estimator.fitradius
    # ThunderSTORM counts an offset below 0 up; read noise is not in its likelihood.
    spot = Spot(estimator.sigma * pixel_nm, pixel_nm)
    fitted = fit_boxes(boxes, corners, spot, camera=replace(camera, read_noise_e=0.0), options=FitOptions())
    table = fitted.table(kept["frame"].to_numpy())
    near = np.abs(table[["x_nm", "y_nm"]].to_numpy() - kept[["x_nm", "y_nm"]].to_numpy()).max(axis=1)
    good = np.isin(fitted.status, (Status.CONVERGED, Status.LIMITED))
    kept_rows: pd.DataFrame = table[good & (near <= estimator.fitradius * pixel_nm)]
    return kept_rows.reset_index(drop=True)


def drift(
    engine: Engine,
    locs: pd.DataFrame,
    settings: CrossCorrelation | Fiducials | DriftFile | None = None,
    *,
    pixel_nm: float,
) -> Drift:
    """Drift of a table, by ThunderSTORM's algorithm; apply it with ``post.drift.apply_drift``.

    Fiducials of our own implementation are found by our own rules; cross-correlation is ThunderSTORM's.
    """
    wanted = settings or CrossCorrelation()
    if isinstance(wanted, DriftFile):
        return load_drift(wanted.path, pixel_nm=pixel_nm)
    if engine.storm is not None:
        if isinstance(wanted, CrossCorrelation):
            return engine.storm.cross_correlation(locs, wanted, pixel_nm=pixel_nm)
        engine.storm.load(locs, pixel_nm=pixel_nm)
        return replace(engine.storm.drift(wanted)[1], engine=engine.name)
    if isinstance(wanted, Fiducials):
        return estimate_drift(locs, DriftOptions(engine="fiducials"))
    return cross_correlation_drift(
        locs,
        pixel_nm=pixel_nm,
        steps=wanted.steps,
        magnification=wanted.magnification,
        smoothing=wanted.smoothing,
    )


def corrected(
    engine: Engine,
    locs: pd.DataFrame,
    settings: CrossCorrelation | Fiducials | DriftFile | None = None,
    *,
    pixel_nm: float,
) -> tuple[pd.DataFrame, Drift]:
    """The table without its drift, and the drift."""
    found = drift(engine, locs, settings, pixel_nm=pixel_nm)
    return apply_drift(locs, found), found


def merged(
    engine: Engine, locs: pd.DataFrame, settings: Merging | None = None, *, pixel_nm: float
) -> pd.DataFrame:
    """Blinks merged."""
    wanted = settings or Merging()
    if engine.storm is not None:
        engine.storm.load(locs, pixel_nm=pixel_nm)
        return engine.storm.merge(wanted)
    if wanted.frames_per_molecule:
        raise _not_ours("frames per molecule", "no limit")
    return merge(
        locs,
        wanted.distance_nm,
        gap_frames=wanted.off_frames,
        z_weight=wanted.z_weight,
        mode="thunderstorm",
    )


def filtered(engine: Engine, locs: pd.DataFrame, formula: str, *, pixel_nm: float) -> pd.DataFrame:
    """The rows for which a formula is true."""
    if engine.storm is None:
        return by_expression(locs, formula)
    engine.storm.load(locs, pixel_nm=pixel_nm)
    return engine.storm.filter(formula)


def dense(
    engine: Engine, locs: pd.DataFrame, settings: Density | None = None, *, pixel_nm: float
) -> pd.DataFrame:
    """The rows that have neighbours."""
    wanted = settings or Density()
    if engine.storm is None:
        return by_density(locs, wanted.radius_nm, neighbours=wanted.neighbours, dimensions=wanted.dimensions)
    engine.storm.load(locs, pixel_nm=pixel_nm)
    return engine.storm.density(wanted)


def unique(
    engine: Engine, locs: pd.DataFrame, radius: str | float = "uncertainty_xy", *, pixel_nm: float
) -> pd.DataFrame:
    """Of rows of one frame within a radius, the most certain."""
    if engine.storm is None:
        return without_duplicates(locs, radius)
    engine.storm.load(locs, pixel_nm=pixel_nm)
    return engine.storm.duplicates(radius)
