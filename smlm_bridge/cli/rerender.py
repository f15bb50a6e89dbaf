"""``rerender``: re-render localizations and compare with the frames."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge.cli.common import (
    PATH,
    Run,
    SetupReader,
    file_option,
    not_built,
    output_option,
    setup_options,
    verb,
)
from smlm_bridge.cli.movies import camera_of
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import FRAMES, ROI
from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from smlm_bridge.camera import Camera
    from smlm_bridge.io.images import FrameSource
    from smlm_bridge.psf.protocol import PSF

REACH_PX = 45


@verb(
    "rerender",
    units="positions in nm, frames from 1; the model in the counts of the frames.",
    example="smlm-bridge rerender table.csv movie.tif tetrapod.psf.h5 -o model.tif --residual rest.tif",
)
@click.argument("locs", type=PATH)
@click.argument("frames_in", metavar="FRAMES")
@click.argument("calibration", metavar="CAL")
@output_option("The rendered model, .tif.", required=False)
@file_option("--residual", "Frames minus model, .tif.")
@click.option("--frames", type=FRAMES, help="First and last frame, from 1, both included.")
@click.option("--roi", type=ROI, help="Region in pixels: column, row, width, height.")
@not_built("--channel2", "--split")
@setup_options(optics=False)
def command(
    run: Run,
    locs: Path,
    frames_in: str,
    calibration: str,
    *,
    output: Path | None,
    residual: Path | None,
    frames: tuple[int, int] | None,
    roi: tuple[int, int, int, int] | None,
    setup: SetupReader,
) -> Summary:
    """Render the table LOCS with the PSF of CAL and compare with FRAMES, frame by frame.

    Photons and a bilinear background with nodes every 40 pixels are fitted anew, so that only positions and
    PSF are judged: explained_signal = 1 - sum (data - model)^2 / sum (data - background)^2. Of --setup only
    [camera] is read; options of the camera win over the calibration's.
    """
    run.outputs(output, residual)
    from smlm_bridge._optional import require
    from smlm_bridge.io.calibration import load_calibration
    from smlm_bridge.io.images import open_frames, write_stack
    from smlm_bridge.io.thunderstorm import read_table

    require("torch", extra="train")
    known = load_calibration(calibration)
    pixel_nm = known.optics.pixel_nm
    table = read_table(locs, pixel_nm=pixel_nm)
    psf = known.psf(device=run.device)
    with open_frames(frames_in, frames=frames, roi=roi) as source:
        if source.n_channels != 1:
            raise InputRejected(
                f"{frames_in} has {source.n_channels} channels; one is allowed (pairs are not built)."
            )
        camera = camera_of(source, setup(known.camera).camera or known.camera)
        result = _render_all(run, source, table, psf, camera)
    for path, stack in ((output, result.model), (residual, result.residual)):
        if path is not None:
            write_stack(path, stack, pixel_nm=pixel_nm, overwrite=run.overwrite)
    values = {
        "explained_signal": [result.explained],
        "frames": len(result.model),
        "localizations": result.localizations,
    }
    return Summary(values, aligned(values))


@dataclass(frozen=True)
class _Rendered:
    """(T, H, W) model and residual in counts, and the figure of merit over all frames."""

    model: "NDArray[np.float32]"
    residual: "NDArray[np.float32]"
    explained: float | None
    localizations: int


def _render_all(
    run: Run, source: "FrameSource", table: "pd.DataFrame", psf: "PSF", camera: "Camera"
) -> _Rendered:
    import numpy as np

    from smlm_bridge.rerender import explained_signal, rerender_frame

    first = source.first_frame
    table = table[table["frame"].between(first, first + source.n_frames - 1)]
    by_frame: dict[Any, Any] = dict(tuple(table.groupby("frame")))
    model = np.empty((source.n_frames, source.height, source.width), np.float32)
    residual = np.empty_like(model)
    fitted, used = [], 0
    with run.steps("rendering") as on_step:
        for index in range(source.n_frames):
            counts = source.read(index, index + 1)[0, 0]
            xyz = _positions(by_frame.get(first + index), source, psf.pixel_nm)
            result = rerender_frame(camera.to_photons(counts), xyz, psf, reach_px=REACH_PX)
            model[index] = camera.expected(result.model)
            residual[index] = counts - model[index]
            fitted.append(result)
            used += len(xyz)
            on_step(index + 1, source.n_frames)
    return _Rendered(model, residual, explained_signal(fitted), used)


def _positions(rows: "pd.DataFrame | None", source: "FrameSource", pixel_nm: float) -> "NDArray[np.float64]":
    """(E, 3) positions from the corner of the region; those whose light cannot reach it are left out."""
    import numpy as np

    if rows is None:
        return np.zeros((0, 3))
    if "z_nm" not in rows:
        rows = rows.assign(z_nm=0.0)
    corner = np.array([source.x0, source.y0, 0.0]) * pixel_nm
    xyz = rows[["x_nm", "y_nm", "z_nm"]].to_numpy(np.float64) - corner
    size = np.array([source.width, source.height]) * pixel_nm
    reach = (REACH_PX - 1) * pixel_nm
    inside = ((xyz[:, :2] > -reach) & (xyz[:, :2] < size + reach)).all(1)
    return np.asarray(xyz[inside], dtype=np.float64)
