"""``register``: the transform between two channels, from beads or from the data themselves."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from smlm_bridge.cli.common import (
    Run,
    SetupReader,
    file_option,
    output_option,
    required,
    setup_options,
    verb,
)
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.errors import InputRejected, UsageError

if TYPE_CHECKING:
    import pandas as pd


@verb(
    "register",
    units="lengths in nm, positions from the corner of each channel's own frame.",
    example="smlm-bridge register beads_left.csv beads_right.csv -o T.json --plot T.png",
)
@click.argument("beads", metavar="BEADS1 BEADS2", nargs=-1)
@click.option(
    "--self",
    "emitters",
    nargs=2,
    metavar="LOCS1 LOCS2",
    help="Tables of one recording of both channels, instead of beads.",
)
@output_option("The transform from channel 1 to channel 2, .json.")
@click.option(
    "--transform",
    "kind",
    type=click.Choice(["affine", "polynomial"]),
    default="affine",
    show_default=True,
    help="polynomial: for channels distorted against each other.",
)
@click.option(
    "--degree", type=click.IntRange(2, 3), default=2, show_default=True, help="Of the polynomial transform."
)
@click.option(
    "--radius-nm",
    type=float,
    default=500.0,
    show_default=True,
    help="Beads farther apart under the best affine transform are no pair.",
)
@file_option("--initial", "A transform that is right up to a shift; absent: rotations and mirrors are tried.")
@file_option("--plot", "A picture of the errors of held-out beads, .png.")
@click.option("--pixel-nm", type=float, help="Camera pixel in the sample, for images; absent: the file's.")
@click.option(
    "--sigma-nm", type=float, default=130.0, show_default=True, help="About the width of a bead in images."
)
@setup_options(optics=False)
def command(
    run: Run,
    beads: tuple[str, ...],
    *,
    emitters: tuple[str, str] | None,
    output: Path,
    kind: Literal["affine", "polynomial"],
    degree: int,
    radius_nm: float,
    initial: Path | None,
    plot: Path | None,
    pixel_nm: float | None,
    sigma_nm: float,
    setup: SetupReader,
) -> Summary:
    """Find the transform from channel 1 to channel 2 from BEADS1 and BEADS2, or --self LOCS1 LOCS2.

    BEADS1 and BEADS2 are tables, or images of beads, which are fitted. Beads or emitters of one frame are paired;
    the channels may be shifted, turned and mirrored. The error is that of beads that were held out.
    """
    if (emitters is None) == (not beads) or (beads and len(beads) != 2):
        raise UsageError("give two tables or images of beads, BEADS1 BEADS2, or --self LOCS1 LOCS2.")
    run.outputs(output, plot)
    from smlm_bridge import __version__
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.io.calibration import load_transform, save_transform
    from smlm_bridge.register import RegisterOptions, register, register_self
    from smlm_bridge.transform import Transform

    known = RegisterOptions(kind, degree, radius_nm, run.given_seed or 0)
    begin = None if initial is None else load_transform(initial)
    first, second = (_table(name, pixel_nm, sigma_nm, setup) for name in emitters or beads)
    result = (register_self if emitters else register)(first, second, known, initial=begin)
    found = result.transform
    made = {
        "made_by": f"smlm_bridge {__version__}, register",
        "channels": [Path(name).name for name in emitters or beads],
        **found.provenance,
    }
    transform = Transform(found.kind, found.coefficients, found.centre_nm, found.scale_nm, made)
    save_transform(output, transform, overwrite=run.overwrite)
    if plot is not None:
        from smlm_bridge.report.register import registration_png

        with atomic_output(plot, overwrite=run.overwrite) as temporary:
            temporary.write_bytes(registration_png(result))
    values: dict[str, object] = {
        "target_registration_error_nm": result.target_registration_error_nm,
        "target_registration_error_sd_nm": result.target_registration_error_sd_nm,
        "inliers": len(result.first),
        "beads": result.beads,
        "localizations": [len(first), len(second)],
        "transform": kind,
        "photon_ratio": result.photon_ratio,
        "photon_ratio_interval": result.photon_ratio_interval,
    }
    return Summary(values, aligned({"transform file": str(output), **values}))


def _table(name: str, pixel_nm: float | None, sigma_nm: float, setup: SetupReader) -> "pd.DataFrame":
    """A table, or the beads of an image."""
    from smlm_bridge.io.formats import format_of, read

    if format_of(name) is not None:
        return read(name, pixel_nm=pixel_nm)
    import pandas as pd

    from smlm_bridge.bead_fields import locate_beads
    from smlm_bridge.camera import Camera
    from smlm_bridge.cli.movies import camera_of
    from smlm_bridge.io.images import open_frames

    with open_frames(name) as source:
        if source.n_channels != 1:
            raise InputRejected(f"{name} has {source.n_channels} channels; give one image for each channel.")
        known = setup()
        if pixel_nm is None:
            pixel_nm = known.optics.pixel_nm if known.optics else source.pixel_nm
        pixel = required(pixel_nm, f"the size of a pixel is not in {name}: give --pixel-nm.")
        camera = camera_of(source, known.camera or Camera(offset=source.camera_offset or 0.0))
        tables = [
            locate_beads(
                source.read(n, n + 1)[:, 0], pixel_nm=pixel, camera=camera, sigma_nm=sigma_nm, frame=n
            )
            for n in range(source.n_frames)
        ]
    return pd.concat(tables, ignore_index=True)
