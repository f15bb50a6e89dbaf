"""``detect``: candidates of emitters in frames, as ThunderSTORM finds them."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from smlm_bridge.cli.common import (
    Run,
    SetupReader,
    not_built,
    output_option,
    required,
    setup_options,
    verb,
)
from smlm_bridge.cli.movies import camera_of
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.thunderstorm_group import Where, where_options
from smlm_bridge.cli.values import FRAMES, RANGE, ROI
from smlm_bridge.errors import InputRejected, SmlmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pandas as pd

    from smlm_bridge.frames import Block
    from smlm_bridge.io.images import FrameSource

DETECTOR = Literal["wavelet", "dog", "thunderstorm"]


@verb(
    "detect",
    units="x, y in nm, from the outer top-left corner of the whole movie; row and column in pixels from 0; "
    "value and thresholds in counts (ADU); frames from 1.",
    example="smlm-bridge detect movie.tif -o candidates.csv --pixel-nm 110 --offset 100 "
    "--detector-threshold '2*std(Wave.F1)'",
)
@click.argument("frames_in", metavar="FRAMES...", nargs=-1, required=True)
@output_option("ThunderSTORM table, .csv, with the columns row, column and value.")
@click.option(
    "--detector",
    type=click.Choice(["wavelet", "dog", "thunderstorm"]),
    default="wavelet",
    show_default=True,
    help="B-spline wavelet, difference of Gaussians, or ThunderSTORM itself where it is found.",
)
@click.option(
    "--detector-threshold",
    metavar="EXPR",
    default="std(Wave.F1)",
    show_default=True,
    help="Least value of a maximum: a number or a formula as in ThunderSTORM.",
)
@click.option(
    "--connectivity",
    type=click.Choice(["4", "8"]),
    default="8",
    show_default=True,
    help="Neighbours a maximum is compared with.",
)
@click.option("--wavelet-order", type=int, default=3, show_default=True, help="Order of the B-spline.")
@click.option("--wavelet-scale", type=float, default=2.0, show_default=True, help="Its scale in pixels.")
@click.option(
    "--dog-sigma-px", type=RANGE, default="1.0:1.6", show_default=True, help="Widths of the two Gaussians."
)
@click.option(
    "--pixel-nm", type=float, help="Camera pixel in the sample; absent: the setup's, then the file's."
)
@click.option("--frames", type=FRAMES, help="First and last frame, from 1, both included.")
@click.option("--roi", type=ROI, help="Region in pixels: column, row, width, height.")
@not_built("--channel2", "--split")
@where_options()
@setup_options(optics=False)
def command(
    run: Run,
    frames_in: tuple[str, ...],
    *,
    output: Path,
    detector: DETECTOR,
    detector_threshold: str,
    connectivity: str,
    wavelet_order: int,
    wavelet_scale: float,
    dog_sigma_px: tuple[float, float],
    pixel_nm: float | None,
    frames: tuple[int, int] | None,
    roi: tuple[int, int, int, int] | None,
    setup: SetupReader,
    where: Where,
) -> Summary:
    """Find candidates of emitters in FRAMES: TIFF files in order, a folder or a quoted pattern.

    Local maxima of the band-passed frame, at whole pixels; the default is ThunderSTORM's detector. A threshold
    may use I (the frame above the camera's offset), F (band-passed), Wave.F1, Wave.F2, DoG.G1, DoG.G2, the
    functions std, var, mean, median, max, min, sum and abs, and arithmetic. Of the camera only the offset
    counts; absent, that of the file. A frame that fails is left out and named.
    """
    where.only_for("--detector thunderstorm", detector == "thunderstorm")
    run.outputs(output)
    from smlm_bridge.camera import Camera
    from smlm_bridge.detect import DetectOptions, detect
    from smlm_bridge.io.images import open_frames
    from smlm_bridge.io.thunderstorm import write_table

    options = DetectOptions(
        detector="wavelet" if detector == "thunderstorm" else detector,
        threshold=detector_threshold,
        connectivity=8 if connectivity == "8" else 4,
        wavelet_order=wavelet_order,
        wavelet_scale=wavelet_scale,
        dog_sigma_px=dog_sigma_px,
    )
    known = setup()
    with open_frames(frames_in, frames=frames, roi=roi) as source, run.steps("detecting") as on_step:
        _check(source)
        if pixel_nm is None:
            pixel_nm = known.optics.pixel_nm if known.optics else source.pixel_nm
        pixel_nm = required(
            pixel_nm, "the size of a pixel is not in the file: give --pixel-nm, or --setup FILE.toml."
        )
        camera = camera_of(source, known.camera or Camera(offset=source.camera_offset or 0.0))
        search = _thunderstorm(run, where) if detector == "thunderstorm" else detect
        blocks = search(source, options, pixel_nm=pixel_nm, camera=camera, on_step=on_step)
        table, failed = _collect(blocks, source)
    write_table(output, table, overwrite=run.overwrite)
    values = {
        "frames": source.n_frames,
        "detections": len(table),
        "failed_frames": len(failed),
        "failures": {frame + 1: reason for frame, reason in failed.items()},
        "pixel_nm": pixel_nm,
        "movie": source.description,
    }
    return Summary(values, aligned({"table": str(output), **values}))


def _thunderstorm(run: Run, where: Where) -> "Callable[..., Iterator[Block]]":
    """ThunderSTORM's own detector; without the plugin ours of the same algorithm, which is said."""
    from functools import partial

    from smlm_bridge.bridge import engines

    return partial(engines.detect_movie, where.engine(run))


def _check(source: "FrameSource") -> None:
    if source.n_channels != 1:
        raise InputRejected(
            f"detection takes one channel, the frames have {source.n_channels}. Give one channel."
        )


def _collect(blocks: "Iterable[Block]", source: "FrameSource") -> "tuple[pd.DataFrame, dict[int, str]]":
    """One table of all blocks, and the frames that failed (from 0) with the reason."""
    import pandas as pd

    tables: list[pd.DataFrame] = []
    failed: dict[int, str] = {}
    for block in blocks:
        tables.append(block.table)
        failed.update(block.failed)
    if failed and len(failed) == source.n_frames:
        raise SmlmError(f"every frame failed; frame {min(failed) + 1}: {failed[min(failed)]}")
    return pd.concat(tables, ignore_index=True), failed
