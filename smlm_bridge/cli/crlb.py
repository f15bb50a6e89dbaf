"""``crlb``: the best possible precision of a calibration over z and photons."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge.cli.common import Run, SetupReader, file_option, output_option, setup_options, verb
from smlm_bridge.cli.reporting import Summary
from smlm_bridge.cli.values import SEQUENCE
from smlm_bridge.errors import InputRejected, UsageError

if TYPE_CHECKING:
    from smlm_bridge.calibration import Calibration
    from smlm_bridge.camera import Camera
    from smlm_bridge.crlb import Unknowns
    from smlm_bridge.crlb_channels import Channel
    from smlm_bridge.pair import PairCalibration
    from smlm_bridge.psf.protocol import PSF

WAVELENGTH_STEP_NM = 0.5
LARGEST_PUPIL_ERROR = 0.1
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
@click.option("--unknown-ratio", is_flag=True,
              help="Of two channels: the photons of each are estimated (colour), not their sum.")  # fmt: skip
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
    unknown_ratio: bool,
    setup: SetupReader,
) -> Summary:
    """Compute the Cramér-Rao bound of CAL for an emitter in the middle of a window.

    No unbiased estimator is more precise; x, y, z, photons and background are estimated together. With
    --photons A:B:S the table runs over photons too. Of --setup
    only [camera] is read; options of the camera win over the calibration's.

    CAL of two channels (see join): the bound of both fitted together. Photons are those of both channels,
    sigma_background is that of channel 1 and sigma_background_2 that of channel 2.
    """
    run.outputs(output, plot)
    if min(photons) <= 0:
        raise UsageError(f"--photons {min(photons):g} must be above 0, for example 5000 or 500:10000:500.")
    import numpy as np

    from smlm_bridge._optional import require
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.io.calibration import load_channels

    torch = require("torch", extra="train")
    from smlm_bridge.crlb import crlb_table
    from smlm_bridge.crlb_channels import crlb_channels_table
    from smlm_bridge.pair import PairCalibration

    known = load_channels(calibration)
    if unknown_ratio and not isinstance(known, PairCalibration):
        raise UsageError(
            "--unknown-ratio is for the calibration of two channels (see join); this one has one."
        )
    grid: dict[str, Any] = {
        "z_nm": z_nm or tuple(float(z) for z in np.linspace(*known.z_range_nm, DEFAULT_HEIGHTS)),
        "photons": photons if len(photons) > 1 else photons[0],
        "size_px": window_px,
        "device": run.device,
        "exact_emccd": exact_emccd,
    }
    parts = [
        (
            channel.psf(device=run.device, dtype=torch.float64),
            setup(channel.camera).camera or channel.camera,
            _unknowns(channel, unknown_zernike, wavelength=unknown_wavelength, device=run.device),
        )
        for channel in known.channels
    ]
    if isinstance(known, PairCalibration):
        seen = channels_of(known, parts, background=background)
        table = crlb_channels_table(seen, free_ratio=unknown_ratio, **grid)
    else:
        psf, camera, unknowns = parts[0]
        table = crlb_table(psf, camera, background=background, unknowns=unknowns, **grid)
    if output is not None:
        with atomic_output(output, overwrite=run.overwrite) as temporary:
            table.to_csv(temporary, index=False)
    if plot is not None:
        from smlm_bridge.report import crlb_plot_png

        with atomic_output(plot, overwrite=run.overwrite) as temporary:
            temporary.write_bytes(crlb_plot_png(table))
    errors = _pupil_errors(known, window_px)
    values = {**{str(name): table[name].tolist() for name in table}, "pupil_error": errors}
    return Summary(values, table.round(3).to_string(index=False))


def _pupil_errors(known: "Calibration | PairCalibration", window_px: int) -> list[float | None]:
    """Of each channel, how far images of its pupil are from those of twice the samples; told if it is much."""
    from smlm_bridge.psf.sampling import sampling_error

    errors: list[float | None] = []
    for channel in known.channels:
        if channel.pupil is None:
            errors.append(None)
            continue
        error = sampling_error(
            channel.optics, channel.pupil, window_px=window_px, z_range_nm=channel.z_range_nm
        )
        errors.append(error)
        # A phase given sample by sample is what its samples say; only smooth ones have a truth in between.
        if error > LARGEST_PUPIL_ERROR and not channel.pupil.phase_rad.any():
            warnings.warn(
                f"the pupil's {channel.pupil.phase_rad.shape[0]} samples are few for {window_px} px over z "
                f"{channel.z_range_nm[0]:.0f} to {channel.z_range_nm[1]:.0f} nm: images change by "
                f"{100 * error:.1f} % with twice as many. Take a smaller --window-px, or a calibration with more "
                "samples.",
                stacklevel=2,
            )
    return errors


def channels_of(
    known: "Calibration | PairCalibration",
    parts: "Sequence[tuple[PSF, Camera, Unknowns]]",
    *,
    background: float,
) -> "list[Channel]":
    """The channels, those of a pair as they see an emitter in the middle of where the transform was made."""
    from smlm_bridge.crlb_channels import Channel
    from smlm_bridge.pair import PairCalibration

    if not isinstance(known, PairCalibration):
        psf, camera, unknowns = parts[0]
        return [Channel(psf, camera, 1.0, background, unknowns=unknowns)]
    slopes = known.transform.slopes([known.transform.centre_nm])[0]
    there = (float(slopes[0, 0]), float(slopes[0, 1]), 0.0), (float(slopes[1, 0]), float(slopes[1, 1]), 0.0)
    second = known.photon_ratio / (1 + known.photon_ratio)
    (psf1, camera1, unknowns1), (psf2, camera2, unknowns2) = parts
    return [
        Channel(psf1, camera1, 1 - second, background, unknowns=unknowns1),
        Channel(psf2, camera2, second, background, there, unknowns2),
    ]


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
