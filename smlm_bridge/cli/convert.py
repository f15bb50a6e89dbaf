"""``convert``: tables and masks into other formats."""

from pathlib import Path
from typing import Literal

import click

from smlm_bridge.cli.common import PATH, Run, SetupReader, required, setup_options, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import RANGE
from smlm_bridge.cli.verbs import refuse_not_built
from smlm_bridge.io.formats import FORMATS as TABLES
from smlm_bridge.io.formats import format_of

# What is no table; _sml.mat is one, and x.psf.h5 is not.
EXTENSIONS = {".psf.h5": "calibration", ".mat": "mask", ".tif": "mask", ".tiff": "mask"}
FORMATS = (*TABLES, "mask", "calibration")
HALF_Z_RANGE_NM = 2000.0


@verb(
    "convert",
    units="lengths in nm, frames from 1; masks in rad.",
    example="smlm-bridge convert tetrapod.mat tetrapod.psf.h5 --setup microscope.toml --z-nm 0:4000",
)
@click.argument("source", metavar="IN", type=PATH)
@click.argument("target", metavar="OUT", type=PATH)
@click.option(
    "--from", "from_format", metavar="FORMAT", help=f"Force the format of IN: {', '.join(FORMATS)}."
)
@click.option("--to", "to_format", metavar="FORMAT", help="Force the format of OUT, likewise.")
@click.option(
    "--thunderstorm-version",
    type=click.Choice(["1.3", "dev"]),
    default="dev",
    show_default=True,
    help="Names of the columns of a ThunderSTORM table.",
)
@click.option(
    "--z-nm", type=RANGE, help="Heights a calibration made of a mask is for; absent: about the focus."
)
@click.option("--blur-nm", type=float, default=0.0, help="Its Gaussian blur (standard deviation).")
@setup_options(mask=True)
def command(
    run: Run,
    source: Path,
    target: Path,
    *,
    from_format: str | None,
    to_format: str | None,
    thunderstorm_version: Literal["1.3", "dev"],
    z_nm: tuple[float, float] | None,
    blur_nm: float,
    setup: SetupReader,
) -> Summary:
    """Convert IN to OUT, by their extensions.

    Tables into each other: .csv (ThunderSTORM), .parquet, .hdf5 (Picasso), _sml.mat (SMAP), .h5 (DECODE),
    .smlm, and the SMLM challenge's (--from or --to challenge). Picasso, SMAP and DECODE want --pixel-nm; in
    theirs it is known already when they are read. Rows that the format cannot hold are left out and counted
    on stderr; rows is what OUT has.

    A designed phase mask (.mat, TIFF) into a calibration (.psf.h5), which needs the microscope and the relay
    of the mask: --setup, or options of the same names. Of a mask's default heights the focus is the middle.
    """
    kind_in, kind_out = from_format or _format(source), to_format or _format(target)
    if kind_in in TABLES and kind_out in TABLES:
        run.outputs(target)
        rows = _table(
            source,
            target,
            kinds=(kind_in, kind_out),
            pixel_nm=setup.given["pixel_nm"],
            version=thunderstorm_version,
            overwrite=run.overwrite,
        )
        return Summary({"rows": rows}, f"{target}: {rows} rows")
    if (kind_in, kind_out) == ("mask", "calibration"):
        run.outputs(target)
        return _mask(run, source, target, z_nm=z_nm, blur_nm=blur_nm, setup=setup)
    refuse_not_built(f"converting {kind_in} ({source}) to {kind_out} ({target})")


def _format(path: Path) -> str:
    if table := format_of(path):
        return table
    for extension, name in EXTENSIONS.items():
        if path.name.lower().endswith(extension):
            return name
    return f"'{path.suffix or 'no extension'}'"


def _table(
    source: Path,
    target: Path,
    *,
    kinds: tuple[str, str],
    pixel_nm: float | None,
    version: Literal["1.3", "dev"],
    overwrite: bool,
) -> int:
    """Convert a table and return the number of rows written."""
    from smlm_bridge.io import formats

    table = formats.read(source, name=kinds[0], pixel_nm=pixel_nm)
    if kinds[1] == "thunderstorm":
        from smlm_bridge.io.thunderstorm import write_table

        write_table(target, table, version=version, overwrite=overwrite)
        return len(table)
    return formats.write(target, table, name=kinds[1], pixel_nm=pixel_nm, overwrite=overwrite)


def _mask(
    run: Run,
    source: Path,
    target: Path,
    *,
    z_nm: tuple[float, float] | None,
    blur_nm: float,
    setup: SetupReader,
) -> Summary:
    from smlm_bridge import __version__
    from smlm_bridge.calibration import Calibration
    from smlm_bridge.camera import Camera
    from smlm_bridge.conventions import paraxial_focus_nm
    from smlm_bridge.io.calibration import save_calibration
    from smlm_bridge.io.setup import load_mask

    known = SetupReader(setup.path, {**setup.given, "file": str(source)})()
    optics = required(known.optics, "a mask needs the microscope: give --setup FILE.toml with [optics].")
    assert known.mask is not None  # its file is given, so the relay was checked
    pupil = load_mask(known.mask, optics)
    if z_nm is None:
        focus = paraxial_focus_nm(optics.focus_nm, optics.sample_index, optics.immersion_index)
        low = max(0.0, focus - HALF_Z_RANGE_NM)
        z_nm = (low, low + 2 * HALF_Z_RANGE_NM)
    provenance = {
        "made_by": f"smlm_bridge {__version__}, convert",
        "mask": source.name,
        "variable": known.mask.variable,
        "slm_pixel_um": known.mask.slm_pixel_um,
        "relay_focal_mm": known.mask.relay_focal_mm,
        "magnification": known.mask.magnification,
    }
    calibration = Calibration(
        optics=optics,
        pupil=pupil,
        camera=known.camera or Camera(),
        z_range_nm=z_nm,
        blur_nm=blur_nm,
        provenance=provenance,
    )
    save_calibration(target, calibration, overwrite=run.overwrite)
    values = {
        "rows": None,
        "pupil_diameter_px": 2.0 / pupil.sample_pitch,
        "z_range_nm": list(z_nm),
        "hash": calibration.hash,
    }
    return Summary(values, aligned({"calibration": str(target), **values}))
