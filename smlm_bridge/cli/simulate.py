"""``simulate``: frames with ground truth from a calibration."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from smlm_bridge.cli.common import (
    Run,
    SetupReader,
    file_option,
    not_built,
    output_option,
    setup_options,
    verb,
)
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import RANGE, SIZE
from smlm_bridge.errors import InputRejected, UsageError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from smlm_bridge.calibration import Calibration
    from smlm_bridge.camera import Camera
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
@not_built("--lifetime-frames")
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
    setup: SetupReader,
) -> Summary:
    """Simulate frames of emitters with the PSF and camera of CAL (a calibration, a model or a shipped name).

    Of --setup only [camera] is read; options of the camera win over the calibration's. The truth holds the
    emitters inside the frame.
    """
    if emitters is not None and density_um2 is not None:
        raise UsageError("--emitters and --density-um2 contradict each other; give one of them.")
    run.outputs(output, truth)
    from smlm_bridge._optional import require
    from smlm_bridge.io.calibration import load_calibration
    from smlm_bridge.io.images import write_stack
    from smlm_bridge.io.thunderstorm import write_table

    require("torch", extra="train")
    known = load_calibration(calibration)
    known = replace(known, camera=setup(known.camera).camera or known.camera)
    _check_maps(known.camera, size_px)
    ranges = _ranges(z_nm or known.z_range_nm, photons, photons_law, density_um2, background)
    if emitters is not None and clear_nm is None:
        clear_nm = 0.0
    counts, table = _simulate(run, known, ranges, _Plan(frames, size_px, emitters, clear_nm))
    if truth is not None:
        write_table(truth, table, overwrite=run.overwrite)
    write_stack(output, counts, pixel_nm=known.optics.pixel_nm, overwrite=run.overwrite)
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


def _simulate(
    run: Run, known: "Calibration", ranges: "Ranges", plan: _Plan
) -> "tuple[NDArray[np.uint16], pd.DataFrame]":
    """(T, H, W) counts and the table of the emitters in them; on the device a bounded number of frames."""
    import numpy as np
    import pandas as pd
    import torch

    from smlm_bridge.simulate.render import in_label_set, record, render
    from smlm_bridge.simulate.scene import draw

    generator = torch.Generator(run.device).manual_seed(run.seed)
    psf = known.psf(device=run.device)
    pixel_nm = known.optics.pixel_nm
    counts = np.empty((plan.frames, *plan.shape), np.uint16)
    tables = []
    with run.steps("simulating") as on_step:
        for start in range(0, plan.frames, FRAMES_AT_ONCE):
            stop = min(start + FRAMES_AT_ONCE, plan.frames)
            scene = draw(
                ranges,
                generator,
                frames=stop - start,
                shape=plan.shape,
                pixel_nm=pixel_nm,
                emitters=plan.emitters,
                clear_nm=plan.clear_nm,
            )
            recorded = record(scene, render(scene, psf), known.camera, generator)
            if (brightest := float(recorded.max())) > LARGEST_COUNT:
                warnings.warn(
                    f"counts up to {brightest:.0f} are cut at {LARGEST_COUNT} (16 bit).", stacklevel=2
                )
            counts[start:stop] = recorded.clamp(0, LARGEST_COUNT).cpu().numpy()
            inside = in_label_set(scene, pixel_nm=pixel_nm, min_photons=0.0)
            tables.append(_truth(inside, pixel_nm=pixel_nm, first_frame=start))
            on_step(stop, plan.frames)
    return counts, pd.concat(tables, ignore_index=True)


def _truth(scene: "Scene", *, pixel_nm: float, first_frame: int) -> "pd.DataFrame":
    """The emitters of a scene as a table; the background is that of the emitter's pixel."""
    import pandas as pd

    column, row = (scene.xyz_nm[:, axis].div(pixel_nm).long() for axis in (0, 1))
    background = scene.background[scene.frame, row, column]
    x, y, z = scene.xyz_nm.double().cpu().numpy().T
    return pd.DataFrame(
        {
            "frame": scene.frame.cpu().numpy() + first_frame,
            "x_nm": x,
            "y_nm": y,
            "z_nm": z,
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
