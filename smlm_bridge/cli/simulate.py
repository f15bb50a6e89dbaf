"""``simulate``: frames with ground truth from a calibration."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from smlm_bridge.cli.common import (
    Run,
    SetupReader,
    file_option,
    output_option,
    setup_options,
    verb,
)
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import RANGE, SIZE
from smlm_bridge.errors import InputRejected, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from smlm_bridge.calibration import Calibration
    from smlm_bridge.camera import Camera
    from smlm_bridge.optics.microscope import Optics
    from smlm_bridge.pair import PairCalibration
    from smlm_bridge.simulate.scene import Ranges, Scene

Pair = tuple[float, float]
FRAMES_AT_ONCE = 50
LARGEST_COUNT = 65535


@dataclass(frozen=True)
class _Plan:
    """What is simulated: number and size of the frames, emitters or a density, a border without emitters."""

    frames: int
    shape: tuple[int, int]
    emitters: int | None
    clear_nm: float | None


@verb(
    "simulate",
    units="lengths in nm, density per square micrometre and frame, photons and background in photo-electrons "
    "(per pixel).",
    example="smlm-bridge simulate tetrapod.psf.h5 -o frames.tif --truth truth.csv --frames 100 --emitters 20 "
    "--size-px 121x121 --photons 10000:60000 --background 20:30 --z-nm 2000:6000 --seed 1",
)
@click.argument("calibration", metavar="CAL")
@output_option("Frames, TIFF of 16 bit (counts of the camera).")
@file_option("--truth", "Ground truth as a ThunderSTORM table.")
@click.option(
    "--frames", type=click.IntRange(min=1), default=100, show_default=True, help="Number of frames."
)
@click.option("--emitters", type=click.IntRange(min=0), help="Exactly this many in every frame.")
@click.option("--density-um2", type=RANGE, help="Emitters per square micrometre, uniform over the frames.")
@click.option("--size-px", type=SIZE, default="64x64", show_default=True, help="Rows x columns.")
@click.option("--photons", type=RANGE, default="1000:10000", show_default=True, help="Of an emitter.")
@click.option(
    "--photons-law",
    type=click.Choice(["uniform", "loguniform"]),
    default="uniform",
    show_default=True,
    help="How they are drawn from the range.",
)
@click.option(
    "--background", type=RANGE, default="10:100", show_default=True, help="Level of a frame, per pixel."
)
@click.option("--z-nm", type=RANGE, help="Heights; absent: the calibration's range.")
@click.option("--clear-nm", type=float, help="Border without emitters; absent: 0 with --emitters, else some "
              "stand outside the frame too.")  # fmt: skip
@file_option("--channel2", "Of two channels: the frames of channel 2; absent: -o has an axis C.")
@click.option("--split", type=click.Choice(["left-right", "top-bottom"]),
              help="Of two channels: both side by side on one chip.")  # fmt: skip
@click.option(
    "--lifetime-frames",
    type=click.FloatRange(min=0, min_open=True),
    help="Emitters blink: mean time on, in frames, exponential; --photons are those of a whole frame. Absent: "
    "every emitter is on in one frame.",
)
@setup_options(optics=False)
def command(
    run: Run,
    calibration: str,
    *,
    output: Path,
    truth: Path | None,
    frames: int,
    emitters: int | None,
    density_um2: Pair | None,
    size_px: tuple[int, int],
    photons: Pair,
    photons_law: Literal["uniform", "loguniform"],
    background: Pair,
    z_nm: Pair | None,
    clear_nm: float | None,
    channel2: Path | None,
    split: str | None,
    lifetime_frames: float | None,
    setup: SetupReader,
) -> Summary:
    """Simulate frames of emitters with the PSF and camera of CAL (a calibration, a model or a shipped name).

    Of --setup only [camera] is read; options of the camera win over the calibration's. The truth holds the
    emitters inside the frame.

    CAL of two channels (see join) makes frames of two: on an axis C, with --channel2 in a file each, with --split
    side by side. --size-px and --background are those of each channel, --photons those of both together, positions
    of the truth those in channel 1.
    """
    if emitters is not None and density_um2 is not None:
        raise UsageError("--emitters and --density-um2 contradict each other; give one of them.")
    if channel2 is not None and split is not None:
        raise UsageError(
            "--channel2 (two files) and --split (one chip) contradict each other; give one of them."
        )
    if emitters is not None and lifetime_frames is not None:
        raise UsageError(
            "--emitters asks for as many in every frame, emitters that blink (--lifetime-frames) differ in "
            "number. Give --density-um2."
        )
    run.outputs(output, truth, channel2)
    from smlm_bridge._optional import require
    from smlm_bridge.io.calibration import load_channels
    from smlm_bridge.io.images import write_stack
    from smlm_bridge.io.thunderstorm import write_table
    from smlm_bridge.pair import with_cameras

    require("torch", extra="train")
    known = load_channels(calibration)
    known = with_cameras(known, [setup(c.camera).camera or c.camera for c in known.channels])
    if len(known.channels) == 1 and (channel2 or split):
        raise UsageError("--channel2 and --split are for the calibration of two channels (see join).")
    for channel in known.channels:
        _check_maps(channel.camera, size_px)
    ranges = _ranges(z_nm or known.z_range_nm, photons, photons_law, density_um2, background)
    ranges = replace(ranges, lifetime_frames=lifetime_frames or 0.0)
    if emitters is not None and clear_nm is None:
        clear_nm = 0.0
    counts, table = _simulate(run, known, ranges, _Plan(frames, size_px, emitters, clear_nm))
    if truth is not None:
        write_table(truth, table, overwrite=run.overwrite)
    pixel_nm = known.channels[0].optics.pixel_nm
    for path, stack, axes in _files(counts, output, channel2, split):
        write_stack(path, stack, pixel_nm=pixel_nm, axes=axes, overwrite=run.overwrite)
    values = {"frames": frames, "emitters": len(table), "seed": run.seed}
    return Summary(
        values, aligned({"frames file": str(output), "truth file": truth and str(truth), **values})
    )


def _ranges(
    z_nm: Pair,
    photons: Pair,
    law: Literal["uniform", "loguniform"],
    density_um2: Pair | None,
    background: Pair,
) -> "Ranges":
    from smlm_bridge.simulate.background import BackgroundRanges
    from smlm_bridge.simulate.scene import Ranges

    ranges = Ranges(
        z_nm=z_nm, photons=photons, photons_law=law, background=BackgroundRanges(constant=background)
    )
    return replace(ranges, density_um2=density_um2) if density_um2 else ranges


def _files(
    counts: "NDArray[np.uint16]", output: Path, channel2: Path | None, split: str | None
) -> "list[tuple[Path, NDArray[np.uint16], str]]":
    """Which pixels of counts (T, C, H, W) go into which file, and their axes."""
    import numpy as np

    if counts.shape[1] == 1:
        return [(output, counts[:, 0], "TYX")]
    if channel2 is not None:
        return [(output, counts[:, 0], "TYX"), (channel2, counts[:, 1], "TYX")]
    if split is not None:
        return [
            (output, np.concatenate([counts[:, 0], counts[:, 1]], 2 if split == "left-right" else 1), "TYX")
        ]
    return [(output, counts, "TCYX")]


def _simulate(
    run: Run, known: "Calibration | PairCalibration", ranges: "Ranges", plan: _Plan
) -> "tuple[NDArray[np.uint16], pd.DataFrame]":
    """(T, C, H, W) counts and the table of the emitters in them; on the device a bounded number of frames."""
    import numpy as np
    import pandas as pd
    import torch

    from smlm_bridge.simulate.channels import views
    from smlm_bridge.simulate.render import in_label_set, record, render

    generator = torch.Generator(run.device).manual_seed(run.seed)
    psfs = [channel.psf(device=run.device) for channel in known.channels]
    pixel_nm = known.channels[0].optics.pixel_nm
    counts = np.empty((plan.frames, len(psfs), *plan.shape), np.uint16)
    scene_of = _scenes(ranges, generator, plan, pixel_nm)
    tables = []
    with run.steps("simulating") as on_step:
        for start in range(0, plan.frames, FRAMES_AT_ONCE):
            stop = min(start + FRAMES_AT_ONCE, plan.frames)
            scene = scene_of(start, stop)
            seen = views(scene, known, ranges, generator)
            for number, (view, psf, channel) in enumerate(zip(seen, psfs, known.channels, strict=True)):
                recorded = record(view, render(view, psf), channel.camera, generator)
                if (brightest := float(recorded.max())) > LARGEST_COUNT:
                    warnings.warn(
                        f"counts up to {brightest:.0f} are cut at {LARGEST_COUNT} (16 bit).", stacklevel=2
                    )
                counts[start:stop, number] = recorded.clamp(0, LARGEST_COUNT).cpu().numpy()
            inside = in_label_set(scene, pixel_nm=pixel_nm, min_photons=0.0)
            tables.append(_truth(inside, known.optics, first_frame=start))
            on_step(stop, plan.frames)
    return counts, pd.concat(tables, ignore_index=True)


def _scenes(
    ranges: "Ranges", generator: "torch.Generator", plan: _Plan, pixel_nm: float
) -> "Callable[[int, int], Scene]":
    """The scene of some frames; emitters that blink are drawn for the whole movie at once."""
    from smlm_bridge.simulate.blinking import draw_blinking, frames_of
    from smlm_bridge.simulate.scene import draw

    settings: dict[str, Any] = {"shape": plan.shape, "pixel_nm": pixel_nm, "clear_nm": plan.clear_nm}
    if ranges.lifetime_frames:
        movie = draw_blinking(ranges, generator, sequences=1, frames=plan.frames, **settings)
        return lambda start, stop: frames_of(movie, start, stop)
    return lambda start, stop: draw(
        ranges, generator, frames=stop - start, emitters=plan.emitters, **settings
    )


def _truth(scene: "Scene", optics: "Optics", *, first_frame: int) -> "pd.DataFrame":
    """The emitters of a scene as a table; the background is that of the emitter's pixel."""
    import pandas as pd

    column, row = (scene.xyz_nm[:, axis].div(optics.pixel_nm).long() for axis in (0, 1))
    background = scene.background[scene.frame, row, column]
    xyz = scene.xyz_nm.double().cpu().numpy()
    x, y = optics.stands_at(xyz[:, :2]).T
    return pd.DataFrame(
        {
            "frame": scene.frame.cpu().numpy() + first_frame,
            "x_nm": x,
            "y_nm": y,
            "z_nm": xyz[:, 2],
            "photons": scene.photons.double().cpu().numpy(),
            "background": background.double().cpu().numpy(),
        }
    )


def _check_maps(camera: "Camera", shape: tuple[int, int]) -> None:
    """Refuse camera maps of another size than the frames."""
    for name in ("offset", "e_per_adu", "read_noise_e"):
        value = getattr(camera, name)
        if not isinstance(value, int | float) and value.shape != shape:
            raise InputRejected(
                f"the camera's {name} map is {value.shape[0]}x{value.shape[1]}, the frames are "
                f"{shape[0]}x{shape[1]}. Give --size-px {value.shape[0]}x{value.shape[1]}, or numbers."
            )
