"""``convert``: tables and masks into other formats."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from smlm_bridge.cli.common import PATH, Run, SetupReader, required, setup_options, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import RANGE
from smlm_bridge.cli.verbs import refuse_not_built

if TYPE_CHECKING:
    import pandas as pd

# Longest first: x.psf.h5 is a calibration, x.h5 is not.
EXTENSIONS = {
    ".psf.h5": "calibration",
    ".csv": "thunderstorm",
    ".tsv": "thunderstorm",
    ".txt": "thunderstorm",
    ".parquet": "parquet",
    ".mat": "mask",
    ".tif": "mask",
    ".tiff": "mask",
}
TABLES = ("thunderstorm", "parquet")
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

    Built: tables .csv (ThunderSTORM) and .parquet into each other; a designed phase mask (.mat, TIFF) into a
    calibration (.psf.h5), which needs the microscope and the relay of the mask: --setup, or options of the
    same names. Of a mask's default heights the focus is the middle.
    """
    kind_in, kind_out = from_format or _format(source), to_format or _format(target)
    if kind_in in TABLES and kind_out in TABLES:
        run.outputs(target)
        table = _read(source, kind_in, setup.given["pixel_nm"])
        _write(target, kind_out, table, version=thunderstorm_version, overwrite=run.overwrite)
        return Summary({"rows": len(table)}, f"{target}: {len(table)} rows")
    if (kind_in, kind_out) == ("mask", "calibration"):
        run.outputs(target)
        return _mask(run, source, target, z_nm=z_nm, blur_nm=blur_nm, setup=setup)
    refuse_not_built(f"converting {kind_in} ({source}) to {kind_out} ({target})")


def _format(path: Path) -> str:
    for extension, name in EXTENSIONS.items():
        if path.name.lower().endswith(extension):
            return name
    return f"'{path.suffix or 'no extension'}'"


def _read(path: Path, kind: str, pixel_nm: float | None) -> "pd.DataFrame":
    if kind == "parquet":
        from smlm_bridge.io.parquet import read_parquet

        return read_parquet(path)
    from smlm_bridge.io.thunderstorm import read_table

    return read_table(path, pixel_nm=pixel_nm)


def _write(
    path: Path, kind: str, table: "pd.DataFrame", *, version: Literal["1.3", "dev"], overwrite: bool
) -> None:
    if kind == "parquet":
        from smlm_bridge.io.parquet import write_parquet

        write_parquet(path, table, overwrite=overwrite)
        return
    from smlm_bridge.io.thunderstorm import write_table

    write_table(path, table, version=version, overwrite=overwrite)


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
