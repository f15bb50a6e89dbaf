"""``convert``: tables, masks and calibrations into other formats."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from smlm_bridge.cli.common import PATH, Run, SetupReader, required, setup_options, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import RANGE
from smlm_bridge.errors import UsageError
from smlm_bridge.io.formats import FORMATS as TABLES
from smlm_bridge.io.formats import format_of as table_format_of
from smlm_bridge.io.psf_formats import FORMATS as PSFS
from smlm_bridge.io.psf_formats import format_of as psf_format_of

if TYPE_CHECKING:
    from smlm_bridge.calibration import Calibration
    from smlm_bridge.io.psf_formats import Request

# What is no table; _sml.mat is one, and x.psf.h5 is not.
EXTENSIONS = {
    ".psf.h5": "calibration", ".onnx": "calibration", ".mat": "mask", ".tif": "mask", ".tiff": "mask"
}  # fmt: skip
FORMATS = (*TABLES, *PSFS, "mask", "calibration")
NO_OPTICS = "the microscope is missing: give --setup FILE.toml with [optics], or options of the same names."


@verb(
    "convert",
    units="lengths in nm, frames from 1; masks in rad.",
    example="smlm-bridge convert bead_3dcal.mat astigmatic.psf.h5 --setup microscope.toml",
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
@click.option("--z-nm", type=RANGE,
              help="Heights the calibration is for; absent: those of IN, or about the focus.")  # fmt: skip
@click.option("--blur-nm", type=float, default=0.0, help="Gaussian blur (standard deviation) with a mask.")
@click.option("--box-px", type=int, default=31, show_default=True,
              help="Width of the spline that is written for SMAP or uiPSF, odd.")  # fmt: skip
@click.option("--z-step-nm", type=float, default=50.0, show_default=True, help="Spacing of its planes.")
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
    box_px: int,
    z_step_nm: float,
    setup: SetupReader,
) -> Summary:
    """Convert IN to OUT, by their extensions.

    Tables into each other: .csv (ThunderSTORM), .parquet, .hdf5 (Picasso), _sml.mat (SMAP), .h5 (DECODE),
    .smlm, and the SMLM challenge's (--from or --to challenge). Picasso, SMAP and DECODE want --pixel-nm; in
    theirs it is known already when they are read. Rows that the format cannot hold are left out and counted
    on stderr; rows is what OUT has.

    A designed phase mask (.mat, TIFF) into a calibration (.psf.h5) and back, which needs the microscope and the
    relay of the mask: --setup, or options of the same names.

    PSFs of other programs into a calibration and back: _3dcal.mat (SMAP's spline), .h5 (uiPSF), .json
    (ZOLA-3D), .yaml (ThunderSTORM's astigmatism). What their files do not say of the microscope comes from
    --setup or options; where no heights are known, the focus is the middle.
    """
    kinds = _kinds(source, target, from_format, to_format)
    if kinds[0] in TABLES and kinds[1] in TABLES:
        run.outputs(target)
        rows = _table(
            source,
            target,
            kinds=kinds,
            pixel_nm=setup.given["pixel_nm"],
            version=thunderstorm_version,
            overwrite=run.overwrite,
        )
        return Summary({"rows": rows}, f"{target}: {rows} rows")
    physics = (*PSFS, "mask", "calibration")
    if kinds[0] not in physics or kinds[1] not in physics or kinds[0] == kinds[1]:
        hint = " A table for SMAP ends in _sml.mat." if target.suffix.lower() == ".mat" else ""
        raise UsageError(
            f"{source} ({kinds[0]}) cannot become {target} ({kinds[1]}): tables become tables, PSFs and masks "
            f"become calibrations or PSFs.{hint} Name another output, or give --from and --to."
        )
    run.outputs(target)
    request = _request(setup, z_nm=z_nm, box_px=box_px, z_step_nm=z_step_nm)
    if kinds[0] == "mask":
        calibration = _of_mask(source, request, setup, blur_nm=blur_nm)
    elif kinds[0] == "calibration":
        calibration = _loaded(source, z_nm)
    else:
        from smlm_bridge.io import psf_formats

        calibration = psf_formats.read(source, request, name=kinds[0])
    return _write(calibration, target, kinds[1], request, setup, overwrite=run.overwrite)


def _kinds(source: Path, target: Path, given_in: str | None, given_out: str | None) -> tuple[str, str]:
    """Formats of both files; what else is a table (.h5) is a PSF beside a calibration."""
    kind_in, kind_out = given_in or _format(source), given_out or _format(target)
    if kind_out in ("calibration", *PSFS) and given_in is None:
        kind_in = psf_format_of(source) or kind_in
    if kind_in in ("calibration", "mask", *PSFS) and given_out is None:
        kind_out = psf_format_of(target) or kind_out
    return kind_in, kind_out


def _format(path: Path) -> str:
    if table := table_format_of(path):
        return table
    if psf := psf_format_of(path):
        return psf
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


def _request(
    setup: SetupReader, *, z_nm: tuple[float, float] | None, box_px: int, z_step_nm: float
) -> "Request":
    """What the files do not say; of the microscope options win over the file, the file over the setup."""
    from smlm_bridge import __version__
    from smlm_bridge.camera import Camera
    from smlm_bridge.io.psf_formats import Request
    from smlm_bridge.io.setup import OPTICS_KEYS
    from smlm_bridge.optics.microscope import Optics

    if z_step_nm <= 0:
        raise UsageError(f"--z-step-nm {z_step_nm:g} must be above 0.")

    def optics(found: Any) -> Optics:
        own = {
            key: value for key, value in found.items() if setup.given.get(key) is None and value is not None
        }
        options = {key: value for key, value in own.items() if key in OPTICS_KEYS}
        microscope = SetupReader(setup.path, {**setup.given, **options})().optics
        if microscope is None:
            raise UsageError(NO_OPTICS)
        return microscope

    return Request(
        optics=optics,
        camera=SetupReader(setup.path, _camera_given(setup))().camera or Camera(),
        z_range_nm=z_nm,
        box_px=box_px,
        z_step_nm=z_step_nm,
        made_by=f"smlm_bridge {__version__}, convert",
    )


def _camera_given(setup: SetupReader) -> dict[str, Any]:
    names = ("offset", "e_per_adu", "read_noise_e", "quantum_efficiency", "em_gain")
    return {name: setup.given.get(name) for name in names}


def _loaded(source: Path, z_nm: tuple[float, float] | None) -> "Calibration":
    from dataclasses import replace

    from smlm_bridge.io.calibration import load_calibration

    calibration = load_calibration(source)
    return calibration if z_nm is None else replace(calibration, z_range_nm=z_nm)


def _of_mask(source: Path, request: "Request", setup: SetupReader, *, blur_nm: float) -> "Calibration":
    from smlm_bridge.calibration import Calibration
    from smlm_bridge.io.psf_formats import heights
    from smlm_bridge.io.setup import load_mask

    known = SetupReader(setup.path, {**setup.given, "file": str(source)})()
    optics = required(known.optics, "a mask needs the microscope: give --setup FILE.toml with [optics].")
    assert known.mask is not None  # its file is given, so the relay was checked
    provenance = {
        "made_by": request.made_by,
        "mask": source.name,
        "variable": known.mask.variable,
        "slm_pixel_um": known.mask.slm_pixel_um,
        "relay_focal_mm": known.mask.relay_focal_mm,
        "magnification": known.mask.magnification,
    }
    return Calibration(
        optics=optics,
        pupil=load_mask(known.mask, optics),
        camera=request.camera,
        z_range_nm=heights(optics, request),
        blur_nm=blur_nm,
        provenance=provenance,
    )


def _write(
    calibration: "Calibration",
    target: Path,
    kind: str,
    request: "Request",
    setup: SetupReader,
    *,
    overwrite: bool,
) -> Summary:
    notes: list[str] = []
    if kind == "calibration":
        from smlm_bridge.io.calibration import save_calibration

        save_calibration(target, calibration, overwrite=overwrite)
    elif kind == "mask":
        from smlm_bridge.io.psf_formats.mask import write_mask

        known = SetupReader(setup.path, {**setup.given, "file": str(target)})()
        assert known.mask is not None
        notes = write_mask(target, calibration, known.mask, overwrite=overwrite)
    else:
        from smlm_bridge.io import psf_formats

        notes = psf_formats.write(target, calibration, request, name=kind, overwrite=overwrite)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    values: dict[str, object] = {
        "rows": None,
        "psf": calibration.psf_kind,
        "z_range_nm": list(calibration.z_range_nm),
        "hash": calibration.hash,
        "notes": notes,
    }
    if calibration.pupil is not None:
        values["pupil_diameter_px"] = 2.0 / calibration.pupil.sample_pitch
    shown = {key: value for key, value in values.items() if key not in ("rows", "notes")}
    return Summary(values, aligned({"written": str(target), **shown}))
