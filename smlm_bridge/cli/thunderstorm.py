"""``thunderstorm``: ThunderSTORM's own steps, by the plugin where it is found, else by our implementation."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from smlm_bridge.cli import thunderstorm_tables
from smlm_bridge.cli.common import PATH, Run, SetupReader, output_option, required, setup_options
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.thunderstorm_group import Command, Where, command, step
from smlm_bridge.cli.values import FRAMES, ROI
from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from smlm_bridge.camera import Camera

__all__ = ["command", "thunderstorm_tables"]

FILTERS = ("wavelet", "box", "difference-of-boxes", "gaussian", "lowered-gaussian", "dog", "median", "none")
DETECTORS = ("local-maximum", "non-maximum", "centroid")
ESTIMATORS = ("integrated-gaussian", "gaussian", "astigmatic", "radial-symmetry", "centroid", "none")
METHODS = {"mle": "Maximum likelihood", "lsq": "Least squares", "wlsq": "Weighted Least squares"}


def _frames_options(function: Command) -> Command:
    options = (
        click.option("--frames", type=FRAMES, help="First and last frame, from 1, both included."),
        click.option("--roi", type=ROI, help="Region in pixels: column, row, width, height."),
        click.option("--pixel-nm", type=float, help="Camera pixel; absent: the setup's, then the file's."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _read(
    paths: tuple[str, ...],
    setup: SetupReader,
    *,
    frames: tuple[int, int] | None,
    roi: tuple[int, int, int, int] | None,
    pixel_nm: float | None,
) -> "tuple[NDArray[np.generic], Camera, float, tuple[int, int, int]]":
    """Counts (T, H, W), the camera of the region, the pixel, and frame, column and row where they begin."""
    import numpy as np

    from smlm_bridge.camera import Camera
    from smlm_bridge.cli.movies import camera_of
    from smlm_bridge.io.images import open_frames

    known = setup()
    with open_frames(paths, frames=frames, roi=roi) as source:
        if source.n_channels != 1:
            raise InputRejected(f"ThunderSTORM takes one channel, the frames have {source.n_channels}.")
        if pixel_nm is None:
            pixel_nm = known.optics.pixel_nm if known.optics else source.pixel_nm
        pixel_nm = required(pixel_nm, "the size of a pixel is not in the file: give --pixel-nm.")
        camera = camera_of(source, known.camera or Camera())
        counts = np.asarray(source.read(0, source.n_frames))[:, 0]
        begin = (source.first_frame, source.x0, source.y0)
    if counts.dtype not in (np.uint8, np.uint16, np.float32):
        whole = counts.dtype.kind in "iu" and counts.min() >= 0 and counts.max() <= np.iinfo(np.uint16).max
        counts = counts.astype(np.uint16 if whole else np.float32)
    return counts, camera, pixel_nm, begin


def _placed(table: "pd.DataFrame", begin: tuple[int, int, int], pixel_nm: float) -> "pd.DataFrame":
    """Frames and positions of the whole movie: ThunderSTORM counts from the region's corner."""
    frame, column, row = begin
    return table.assign(
        frame=table["frame"] + frame,
        x_nm=table["x_nm"] + column * pixel_nm,
        y_nm=table["y_nm"] + row * pixel_nm,
    )


@step(
    "run",
    units="lengths in nm, radii and sigma in pixels, photons in photo-electrons; frames from 1.",
    example="smlm-bridge thunderstorm run movie.tif -o locs.csv --pixel-nm 100 --offset 100 --e-per-adu 0.5",
)
@click.argument("frames_in", metavar="FRAMES...", nargs=-1, required=True)
@output_option("The table, .csv.")
@click.option(
    "--filter",
    "filter_name",
    type=click.Choice(FILTERS),
    default="wavelet",
    show_default=True,
    help="How a frame is filtered.",
)
@click.option(
    "--detector",
    type=click.Choice(DETECTORS),
    default="local-maximum",
    show_default=True,
    help="How candidates are found.",
)
@click.option("--threshold", default="std(Wave.F1)", show_default=True, help="Number or formula, in ADU.")
@click.option(
    "--estimator",
    type=click.Choice(ESTIMATORS),
    default="integrated-gaussian",
    show_default=True,
    help="How their positions are refined.",
)
@click.option("--method", type=click.Choice(list(METHODS)), default="mle", show_default=True)
@click.option("--sigma-px", type=float, default=1.6, show_default=True, help="Start of the PSF's width.")
@click.option("--fit-radius-px", type=int, default=3, show_default=True, help="Of the window.")
@click.option("--calibration", type=PATH, help="ThunderSTORM's .yaml, for the estimator astigmatic.")
@click.option("--multi-emitter", type=int, help="Most emitters a window; absent: one.")
@click.option("--timeout-s", type=float, help="Give up after so long.")
@_frames_options
@setup_options(optics=False)
def run_analysis(
    run: Run,
    frames_in: tuple[str, ...],
    *,
    output: Path,
    filter_name: str,
    detector: str,
    threshold: str,
    estimator: str,
    method: str,
    sigma_px: float,
    fit_radius_px: int,
    calibration: Path | None,
    multi_emitter: int | None,
    timeout_s: float | None,
    frames: tuple[int, int] | None,
    roi: tuple[int, int, int, int] | None,
    pixel_nm: float | None,
    setup: SetupReader,
    where: Where,
) -> Summary:
    """Localize FRAMES as ThunderSTORM's 'Run analysis' does."""
    run.outputs(output)
    from smlm_bridge.bridge import engines, modules
    from smlm_bridge.io.thunderstorm import write_table

    fitting: dict[str, Any] = {"sigma": sigma_px, "fitradius": fit_radius_px, "method": METHODS[method]}
    if multi_emitter is not None:
        fitting["multi_emitter"] = modules.MultiEmitter(nmax=multi_emitter)
    if estimator == "astigmatic":
        fitting["calibrationpath"] = required(
            calibration, "--estimator astigmatic needs --calibration C.yaml."
        )
    chosen: modules.Estimator = {
        "integrated-gaussian": lambda: modules.IntegratedGaussian(**fitting),
        "gaussian": lambda: modules.SampledGaussian(**fitting),
        "astigmatic": lambda: modules.EllipticalGaussian(**fitting),
        "radial-symmetry": lambda: modules.RadialSymmetry(fit_radius_px),
        "centroid": lambda: modules.CentroidOfNeighbourhood(fit_radius_px),
        "none": modules.NoEstimator,
    }[estimator]()
    analysis = modules.Analysis(_filter(filter_name), _detector(detector, threshold), chosen)
    counts, camera, pixel_nm, begin = _read(frames_in, setup, frames=frames, roi=roi, pixel_nm=pixel_nm)
    engine = where.engine(run)
    with run.steps("ThunderSTORM") as on_step:
        on_step(0, len(counts))
        found = engines.run(engine, counts, analysis, camera=camera, pixel_nm=pixel_nm, timeout_s=timeout_s)
        on_step(len(counts), len(counts))
    write_table(output, _placed(found, begin, pixel_nm), overwrite=run.overwrite)
    values = {
        "engine": engine.name,
        "back_end": engine.back_end,
        "frames": len(counts),
        "localizations": len(found),
        "pixel_nm": pixel_nm,
    }
    return Summary(values, aligned({"table": str(output), **values}))


def _filter(name: str) -> Any:
    from smlm_bridge.bridge import modules

    return {
        "wavelet": modules.WaveletFilter,
        "box": modules.BoxFilter,
        "difference-of-boxes": modules.DifferenceOfBoxes,
        "gaussian": modules.GaussianFilter,
        "lowered-gaussian": modules.LoweredGaussian,
        "dog": modules.DifferenceOfGaussians,
        "median": modules.MedianFilter,
        "none": modules.NoFilter,
    }[name]()


def _detector(name: str, threshold: str) -> Any:
    from smlm_bridge.bridge import modules

    return {
        "local-maximum": modules.LocalMaximum,
        "non-maximum": modules.NonMaximumSuppression,
        "centroid": modules.CentroidOfComponents,
    }[name](threshold)


@step(
    "calibrate",
    units="steps and ranges in nm, sigma in pixels.",
    example="smlm-bridge thunderstorm calibrate beads.tif -o cal.yaml --z-step-nm 10 --pixel-nm 100",
)
@click.argument("frames_in", metavar="STACK...", nargs=-1, required=True)
@output_option("ThunderSTORM's calibration, .yaml.")
@click.option("--z-step-nm", type=float, required=True, help="From slice to slice.")
@click.option("--z-range-nm", type=float, default=400.0, show_default=True, help="Half the range.")
@click.option(
    "--defocus",
    type=click.Choice(["quadratic", "huang"]),
    default="quadratic",
    show_default=True,
    help="Model of the widths over z.",
)
@click.option("--threshold", default="std(Wave.F1)", show_default=True, help="Number or formula, in ADU.")
@click.option("--fit-radius-px", type=int, default=7, show_default=True, help="Of the window.")
@_frames_options
@setup_options(optics=False)
def calibrate(
    run: Run,
    frames_in: tuple[str, ...],
    *,
    output: Path,
    z_step_nm: float,
    z_range_nm: float,
    defocus: str,
    threshold: str,
    fit_radius_px: int,
    frames: tuple[int, int] | None,
    roi: tuple[int, int, int, int] | None,
    pixel_nm: float | None,
    setup: SetupReader,
    where: Where,
) -> Summary:
    """Calibrate astigmatism from the bead stack STACK by ThunderSTORM; without it take the verb calibrate."""
    run.outputs(output)
    from smlm_bridge.bridge.modules import LocalMaximum
    from smlm_bridge.bridge.settings import Calibrating
    from smlm_bridge.io.atomic import atomic_output

    model: Literal["ThunderSTORM", "Huang '08"] = "Huang '08" if defocus == "huang" else "ThunderSTORM"
    settings = Calibrating(z_step_nm, z_range_nm, model, fitradius=fit_radius_px)
    detector = LocalMaximum(threshold)
    counts, camera, pixel_nm, _ = _read(frames_in, setup, frames=frames, roi=roi, pixel_nm=pixel_nm)
    storm = where.plugin("smlm-bridge calibrate --psf gaussian")
    with atomic_output(output, overwrite=run.overwrite) as temporary:
        storm.calibrate(counts, temporary, settings, camera=camera, pixel_nm=pixel_nm, detector=detector)
    values = {
        "engine": f"thunderstorm {storm.label}",
        "back_end": storm.gateway.back_end,
        "slices": len(counts),
        "pixel_nm": pixel_nm,
    }
    return Summary(values, aligned({"calibration": str(output), **values}))
