"""``rerender``: re-render localizations and compare with the frames."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge.cli.common import (
    PATH,
    Run,
    SetupReader,
    file_option,
    output_option,
    setup_options,
    verb,
)
from smlm_bridge.cli.movies import cameras_of, channel_options, check_channels
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import FRAMES, ROI
from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from smlm_bridge.calibration import Calibration
    from smlm_bridge.camera import Camera
    from smlm_bridge.io.channels import Movie
    from smlm_bridge.pair import AnyCalibration, PairCalibration
    from smlm_bridge.psf.protocol import PSF
    from smlm_bridge.transform import Transform

REACH_PX = 45
MOST_CORRECTED = 100


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
@file_option(
    "--correct", "Fit aberrations, focus and blur to the frames first, and write CAL so corrected, .psf.h5."
)
@click.option("--frames", type=FRAMES, help="First and last frame, from 1, both included.")
@click.option("--roi", type=ROI, help="Region in pixels: column, row, width, height.")
@channel_options
@setup_options(optics=False)
def command(
    run: Run,
    locs: Path,
    frames_in: str,
    calibration: str,
    *,
    output: Path | None,
    residual: Path | None,
    correct: Path | None,
    frames: tuple[int, int] | None,
    roi: tuple[int, int, int, int] | None,
    channel2: str | None,
    split: str | None,
    setup: SetupReader,
) -> Summary:
    """Render the table LOCS with the PSF of CAL and compare with FRAMES, frame by frame.

    Photons and a bilinear background with nodes every 40 pixels are fitted anew, so that only positions and
    PSF are judged: explained_signal = 1 - sum (data - model)^2 / sum (data - background)^2. Of --setup only
    [camera] is read; options of the camera win over the calibration's.

    CAL of two channels takes FRAMES of two (an axis C, --channel2 or --split); positions are those of channel 1,
    photons are fitted in each channel, and explained_signal has a number for each.

    --correct is for a sample that aberrates otherwise than the beads, or a designed mask that was never measured:
    Zernike coefficients (Noll 5 to 28) and blur of each channel, tilt and defocus of the second relative to the
    first, and all emitters are fitted together, to all --frames at once; a few frames with bright emitters at many
    heights are enough. Localize with the file it writes.
    """
    check_channels(channel2, split)
    run.outputs(output, residual, correct)
    from smlm_bridge._optional import require
    from smlm_bridge.io.calibration import check_name, load_channels, save_calibration
    from smlm_bridge.io.channels import open_channels
    from smlm_bridge.io.images import write_stack
    from smlm_bridge.io.thunderstorm import read_table
    from smlm_bridge.pair import with_cameras

    require("torch", extra="train")
    if correct is not None:
        check_name(correct)
    known = load_channels(calibration)
    pixel_nm = known.channels[0].optics.pixel_nm
    table = read_table(locs, pixel_nm=pixel_nm)
    x, y = known.optics.seen_at(table[["x_nm", "y_nm"]].to_numpy()).T
    table = table.assign(x_nm=x, y_nm=y)
    with open_channels(frames_in, channel2=channel2 or (), split=split, frames=frames, roi=roi) as source:
        if source.n_channels != len(known.channels):
            raise InputRejected(
                f"{calibration} is for {len(known.channels)} channel(s), {frames_in} has {source.n_channels}. "
                "Give the right channels (--channel2, --split), or a calibration of as many."
            )
        whole = [setup(c.camera).camera or c.camera for c in known.channels]
        cameras = cameras_of(source, whole)
        told: dict[str, Any] = {}
        if correct is not None:
            known, table, told = _corrected(
                run, source, table, with_cameras(known, cameras), made_on=Path(frames_in).name
            )
        channels = [
            _Channel(channel.psf(device=run.device), camera, transform)
            for channel, camera, transform in zip(
                known.channels, cameras, _transforms(known, source), strict=True
            )
        ]
        result = _render_all(run, source, table, channels)
    axes = "TYX" if len(channels) == 1 else "TCYX"
    for path, stack in ((output, result.model), (residual, result.residual)):
        if path is not None:
            kept = stack[:, 0] if len(channels) == 1 else stack
            write_stack(path, kept, pixel_nm=pixel_nm, axes=axes, overwrite=run.overwrite)
    if correct is not None:
        save_calibration(correct, with_cameras(known, whole), overwrite=run.overwrite)
    values = {
        "explained_signal": result.explained,
        "frames": len(result.model),
        "localizations": result.localizations,
        **told,
    }
    return Summary(values, aligned(values))


def _corrected(
    run: Run, source: "Movie", table: "pd.DataFrame", known: "AnyCalibration", *, made_on: str
) -> "tuple[AnyCalibration, pd.DataFrame, dict[str, Any]]":
    """The calibration fitted to the frames, the emitters as fitted with it, and what is told of it."""
    import numpy as np
    import pandas as pd

    from smlm_bridge.pair import PairCalibration
    from smlm_bridge.retrieve.in_situ import correct_in_situ

    if source.n_frames > MOST_CORRECTED:
        raise InputRejected(
            f"--correct takes at most {MOST_CORRECTED} frames, of {source.n_frames} given; a few with many bright "
            "emitters say enough. Choose them with --frames A:B."
        )
    pixel_nm = known.optics.pixel_nm
    corner = np.array([*source.roi_px, 0]) * pixel_nm
    here = known
    if isinstance(known, PairCalibration):
        here = replace(known, transform=known.transform.between((float(corner[0]), float(corner[1]))))
    by_frame: dict[Any, Any] = dict(tuple(table.groupby("frame")))
    numbers = range(source.first_frame, source.first_frame + source.n_frames)
    found = [_within_reach(_positions(by_frame.get(k), source, pixel_nm), source, pixel_nm) for k in numbers]
    counts = source.read(0, source.n_frames)
    cameras = [channel.camera for channel in known.channels]
    photons = [
        np.stack([own.to_photons(image) for own, image in zip(cameras, frame, strict=True)])
        for frame in counts
    ]
    with run.steps("correcting") as on_step:
        result = correct_in_situ(photons, found, here, on_step=on_step)
    first_pixel = np.array([source.x0, source.y0, 0.0]) * pixel_nm
    fitted = [pd.DataFrame(xyz + first_pixel, columns=["x_nm", "y_nm", "z_nm"]) for xyz in result.xyz_nm]
    told = {
        "rrse": list(result.rrse),
        "blur_nm": [channel.blur_nm for channel in result.calibration.channels],
        "zernike_rad": [{str(noll): value for noll, value in added.items()} for added in result.zernike_rad],
    }
    for frame, rows in zip(numbers, fitted, strict=True):
        rows.insert(0, "frame", frame)
    made = result.calibration
    provenance = {**made.provenance, "corrected_on": made_on}
    if isinstance(made, PairCalibration) and isinstance(known, PairCalibration):
        return replace(made, transform=known.transform, provenance=provenance), pd.concat(fitted), told
    return replace(made, provenance=provenance), pd.concat(fitted), told


@dataclass(frozen=True)
class _Channel:
    """What one channel is rendered with; ``transform`` takes positions of channel 1's region to its own."""

    psf: "PSF"
    camera: "Camera"
    transform: "Transform | None"

    def moved(self, xyz_nm: "NDArray[np.float64]") -> "NDArray[np.float64]":
        """Positions (E, 3) in this channel's region."""
        import numpy as np

        if self.transform is None or not len(xyz_nm):
            return xyz_nm
        return np.column_stack([self.transform.apply(xyz_nm[:, :2]), xyz_nm[:, 2]])


def _transforms(known: "Calibration | PairCalibration", source: "Movie") -> "list[Transform | None]":
    """For each channel, from the region of channel 1 to its own."""
    from smlm_bridge.pair import PairCalibration

    if not isinstance(known, PairCalibration):
        return [None]
    x, y = (value * known.channels[0].optics.pixel_nm for value in source.roi_px)
    return [None, known.transform.between((x, y))]


@dataclass(frozen=True)
class _Rendered:
    """The model and what is left, in counts (T, C, H, W); explained signal of each channel; emitters used."""

    model: "NDArray[np.float32]"
    residual: "NDArray[np.float32]"
    explained: list[float | None]
    localizations: int


def _render_all(
    run: Run, source: "Movie", table: "pd.DataFrame", channels: "Sequence[_Channel]"
) -> _Rendered:
    import numpy as np

    from smlm_bridge.rerender import Rerendered, explained_signal, rerender_frame

    first = source.first_frame
    table = table[table["frame"].between(first, first + source.n_frames - 1)]
    by_frame: dict[Any, Any] = dict(tuple(table.groupby("frame")))
    model = np.empty((source.n_frames, len(channels), source.height, source.width), np.float32)
    residual = np.empty_like(model)
    fitted: list[list[Rerendered]] = [[] for _ in channels]
    used = 0
    with run.steps("rendering") as on_step:
        for index in range(source.n_frames):
            counts = source.read(index, index + 1)[0]
            everywhere = _positions(by_frame.get(first + index), source, channels[0].psf.pixel_nm)
            for number, channel in enumerate(channels):
                xyz = _within_reach(channel.moved(everywhere), source, channel.psf.pixel_nm)
                photons = channel.camera.to_photons(counts[number])
                result = rerender_frame(photons, xyz, channel.psf, reach_px=REACH_PX)
                model[index, number] = channel.camera.expected(result.model)
                residual[index, number] = counts[number] - model[index, number]
                fitted[number].append(result)
                used += len(xyz) if number == 0 else 0
            on_step(index + 1, source.n_frames)
    return _Rendered(model, residual, [explained_signal(frames) for frames in fitted], used)


def _positions(rows: "pd.DataFrame | None", source: "Movie", pixel_nm: float) -> "NDArray[np.float64]":
    """(E, 3) positions from the corner of channel 1's region."""
    import numpy as np

    if rows is None:
        return np.zeros((0, 3))
    if "z_nm" not in rows:
        rows = rows.assign(z_nm=0.0)
    corner = np.array([source.x0, source.y0, 0.0]) * pixel_nm
    return rows[["x_nm", "y_nm", "z_nm"]].to_numpy(np.float64) - corner


def _within_reach(xyz: "NDArray[np.float64]", source: "Movie", pixel_nm: float) -> "NDArray[np.float64]":
    """Positions whose light can reach the region; the others are left out."""
    import numpy as np

    size = np.array([source.width, source.height]) * pixel_nm
    reach = (REACH_PX - 1) * pixel_nm
    inside = ((xyz[:, :2] > -reach) & (xyz[:, :2] < size + reach)).all(1)
    return np.asarray(xyz[inside], dtype=np.float64)
