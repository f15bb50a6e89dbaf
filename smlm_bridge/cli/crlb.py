"""``crlb``: the best possible precision of a calibration over z and photons."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smlm_bridge.cli.common import Run, SetupReader, file_option, output_option, setup_options, verb
from smlm_bridge.cli.reporting import Summary
from smlm_bridge.cli.values import SEQUENCE
from smlm_bridge.errors import InputRejected, UsageError

if TYPE_CHECKING:
    from smlm_bridge.calibration import Calibration
    from smlm_bridge.crlb import Unknowns
    from smlm_bridge.psf.protocol import PSF

WAVELENGTH_STEP_NM = 0.5
DEFAULT_HEIGHTS = 41


@verb(
    "crlb",
    units="lengths in nm, photons in photo-electrons, background likewise per pixel (of each channel).",
    example="smlm-bridge crlb tetrapod.psf.h5 -o crlb.csv --photons 5000 --background 20 --z-nm 0:4000:100",
)
@click.argument("calibration", metavar="CAL")
@output_option("The table, .csv.", required=False)
@file_option("--plot", "A picture of the bound over z, and over photons if several are given, .png.")
@click.option("--photons", type=SEQUENCE, default="5000", show_default=True,
              help="Of the emitter; of several, the table has a row for each height and number.")  # fmt: skip
@click.option(
    "--background", type=click.FloatRange(min=0), default=20.0, show_default=True, help="Per pixel."
)
@click.option("--z-nm", type=SEQUENCE, help="Heights, the stop included; absent: the calibration's range.")
@click.option("--window-px", type=click.IntRange(min=5), default=81, show_default=True,
              help="Side of the window that is seen of the emitter.")  # fmt: skip
@click.option("--exact-emccd", is_flag=True,
              help="The exact information of an EMCCD's output instead of twice the shot noise.")  # fmt: skip
@click.option("--unknown-zernike", type=click.IntRange(min=2), multiple=True, metavar="NOLL",
              help="An aberration (Noll index) that is estimated too; may be repeated.")  # fmt: skip
@click.option("--unknown-wavelength", is_flag=True, help="The emission wavelength is estimated too.")
@setup_options(optics=False)
def command(
    run: Run,
    calibration: str,
    *,
    output: Path | None,
    plot: Path | None,
    photons: tuple[float, ...],
    background: float,
    z_nm: tuple[float, ...] | None,
    window_px: int,
    exact_emccd: bool,
    unknown_zernike: tuple[int, ...],
    unknown_wavelength: bool,
    setup: SetupReader,
) -> Summary:
    """Compute the Cramér-Rao bound of CAL for an emitter in the middle of a window.

    No unbiased estimator is more precise; x, y, z, photons and background are estimated together. With
    --photons A:B:S the table runs over photons too. Of --setup
    only [camera] is read; options of the camera win over the calibration's.
    """
    run.outputs(output, plot)
    if min(photons) <= 0:
        raise UsageError(f"--photons {min(photons):g} must be above 0, for example 5000 or 500:10000:500.")
    import numpy as np

    from smlm_bridge._optional import require
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.io.calibration import load_calibration

    torch = require("torch", extra="train")
    from smlm_bridge.crlb import crlb_table

    known = load_calibration(calibration)
    heights = z_nm or tuple(float(z) for z in np.linspace(*known.z_range_nm, DEFAULT_HEIGHTS))
    table = crlb_table(
        known.psf(device=run.device, dtype=torch.float64),
        setup(known.camera).camera or known.camera,
        z_nm=heights,
        photons=photons if len(photons) > 1 else photons[0],
        background=background,
        size_px=window_px,
        device=run.device,
        unknowns=_unknowns(known, unknown_zernike, wavelength=unknown_wavelength, device=run.device),
        exact_emccd=exact_emccd,
    )
    if output is not None:
        with atomic_output(output, overwrite=run.overwrite) as temporary:
            table.to_csv(temporary, index=False)
    if plot is not None:
        from smlm_bridge.report import crlb_plot_png

        with atomic_output(plot, overwrite=run.overwrite) as temporary:
            temporary.write_bytes(crlb_plot_png(table))
    values = {str(name): table[name].tolist() for name in table}
    return Summary(values, table.round(3).to_string(index=False))


def _unknowns(
    known: "Calibration", zernike: tuple[int, ...], *, wavelength: bool, device: str = "cpu"
) -> "Unknowns":
    import torch

    from smlm_bridge.crlb import Extra, Unknowns
    from smlm_bridge.psf.spectrum import spectral_psf

    optics, pupil = known.optics, known.pupil
    if pupil is None and (zernike or wavelength):
        raise InputRejected(
            "--unknown-zernike and --unknown-wavelength need a calibration with a pupil; this one has none. "
            "Calibrate with a pupil, or leave them out."
        )
    if pupil is None or not wavelength:
        return Unknowns(zernike)

    def psf_at(wavelength_nm: float) -> "PSF":
        spectrum = {wavelength_nm: 1.0}
        return spectral_psf(
            optics, pupil, spectrum, blur_nm=known.blur_nm, device=device, dtype=torch.float64
        )

    return Unknowns(zernike, (Extra("wavelength_nm", psf_at, optics.wavelength_nm, WAVELENGTH_STEP_NM),))
