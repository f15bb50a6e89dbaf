"""``axial-scan``: reference positions of emitters from a focal stack, to score snapshots with."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smlm_bridge.cli.common import PATH, Run, SetupReader, output_option, required, setup_options, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.camera import Camera
    from smlm_bridge.cli.reporting import OnStep
    from smlm_bridge.io.images import FrameSource


@verb(
    "axial-scan",
    units="lengths in nm; z is the height in the sample, positive away from the objective.",
    example="smlm-bridge axial-scan scan.tif -o reference.csv --z-step-nm 100 --index-factor 0.8 --pixel-nm 110",
)
@click.argument("stack", type=PATH)
@output_option("The reference: one row an emitter, to be the TRUTH of 'evaluate'.")
@click.option(
    "--z-step-nm",
    type=float,
    required=True,
    help="Travel of the focus from slice to slice, positive into the sample.",
)
@click.option(
    "--first-focus-nm", type=float, default=0.0, show_default=True, help="Focus of the first slice."
)
@click.option(
    "--index-factor",
    type=float,
    default=1.0,
    show_default=True,
    help="Height in the sample over travel of the focus, for the step of the refractive index.",
)
@click.option(
    "--detector-threshold",
    metavar="EXPR",
    default="2*std(Wave.F1)",
    show_default=True,
    help="As of 'detect'.",
)
@click.option(
    "--radius-px",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="The mean intensity is that of 2 r + 1 by 2 r + 1 pixels.",
)
@click.option(
    "--fit-nm",
    type=float,
    default=400.0,
    show_default=True,
    help="Travel to either side of the brightest slice that the parabola is fitted to.",
)
@click.option(
    "--link-distance-nm",
    type=float,
    default=250.0,
    show_default=True,
    help="Detections of neighbouring slices closer than this are one emitter.",
)
@click.option(
    "--min-slices",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Emitters detected in fewer slices are left out.",
)
@click.option(
    "--frame", type=click.IntRange(min=1), default=1, show_default=True, help="Frame of the snapshot, from 1."
)
@click.option(
    "--pixel-nm", type=float, help="Camera pixel in the sample; absent: the setup's, then the file's."
)
@setup_options(optics=False)
def command(
    run: Run,
    stack: Path,
    *,
    output: Path,
    z_step_nm: float,
    first_focus_nm: float,
    index_factor: float,
    detector_threshold: str,
    radius_px: int,
    fit_nm: float,
    link_distance_nm: float,
    min_slices: int,
    frame: int,
    pixel_nm: float | None,
    setup: SetupReader,
) -> Summary:
    """Find where each emitter of the focal stack STACK is in focus.

    The spots of the standard PSF are detected in every slice; the detections of one emitter lie above one
    another. A parabola through the mean intensity around it gives its z. The table is the truth for
    'smlm-bridge evaluate SNAPSHOT.csv reference.csv'; its bias_nm shows a shift between the two.
    """
    run.outputs(output)
    from smlm_bridge.camera import Camera
    from smlm_bridge.io.formats import write
    from smlm_bridge.io.images import open_frames
    from smlm_bridge.post.axial_scan import ScanOptions, axial_scan

    options = ScanOptions(
        index_factor=index_factor,
        radius_px=radius_px,
        fit_nm=fit_nm,
        link_distance_nm=link_distance_nm,
        min_slices=min_slices,
    )
    known = setup()
    with open_frames(str(stack)) as source:
        if pixel_nm is None:
            pixel_nm = known.optics.pixel_nm if known.optics else source.pixel_nm
        pixel_nm = required(
            pixel_nm, "the size of a pixel is not in the file: give --pixel-nm, or --setup FILE.toml."
        )
        if source.n_channels != 1:
            raise InputRejected(f"a focal stack has one channel, {stack} has {source.n_channels}.")
        counts = source.read(0, source.n_frames)[:, 0]
        camera = known.camera or Camera()
        with run.steps("detecting") as on_step:
            detections = _detections(source, detector_threshold, pixel_nm, camera, on_step)
    reference = axial_scan(
        camera.to_photons(counts),
        detections,
        options,
        pixel_nm=pixel_nm,
        z_step_nm=z_step_nm,
        first_focus_nm=first_focus_nm,
    )
    write(output, reference.assign(frame=frame - 1), overwrite=run.overwrite)
    values = {
        "slices": len(counts),
        "detections": len(detections),
        "emitters": len(reference),
        "z_range_nm": [float(reference["z_nm"].min()), float(reference["z_nm"].max())]
        if len(reference)
        else None,
        "pixel_nm": pixel_nm,
    }
    return Summary(values, aligned({"table": str(output), **values}))


def _detections(
    source: "FrameSource", threshold: str, pixel_nm: float, camera: "Camera", on_step: "OnStep"
) -> "pd.DataFrame":
    """The spots of every slice."""
    import pandas as pd

    from smlm_bridge.detect import DetectOptions, detect

    options = DetectOptions(threshold=threshold)
    tables = []
    for block in detect(source, options, pixel_nm=pixel_nm, camera=camera, on_step=on_step):
        for number, reason in block.failed.items():
            raise InputRejected(f"slice {number + 1}: {reason}")
        tables.append(block.table)
    return pd.concat(tables, ignore_index=True)
