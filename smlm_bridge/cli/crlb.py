"""``crlb``: the best possible precision of a calibration over z."""

from pathlib import Path

import click

from smlm_bridge.cli.common import Run, SetupReader, file_option, output_option, setup_options, verb
from smlm_bridge.cli.reporting import Summary
from smlm_bridge.cli.values import SEQUENCE

DEFAULT_HEIGHTS = 41
SIGMAS = ("sigma_x_nm", "sigma_y_nm", "sigma_z_nm", "sigma_photons", "sigma_background")


@verb(
    "crlb",
    units="lengths in nm, photons in photo-electrons, background likewise per pixel (of each channel).",
    example="smlm-bridge crlb tetrapod.psf.h5 -o crlb.csv --photons 5000 --background 20 --z-nm 0:4000:100",
)
@click.argument("calibration", metavar="CAL")
@output_option("The table, .csv.", required=False)
@file_option("--plot", "A picture of the bound over z, .png.")
@click.option("--photons", type=click.FloatRange(min=0, min_open=True), default=5000.0, show_default=True,
              help="Of the emitter.")  # fmt: skip
@click.option(
    "--background", type=click.FloatRange(min=0), default=20.0, show_default=True, help="Per pixel."
)
@click.option("--z-nm", type=SEQUENCE, help="Heights, the stop included; absent: the calibration's range.")
@click.option("--window-px", type=click.IntRange(min=5), default=81, show_default=True,
              help="Side of the window that is seen of the emitter.")  # fmt: skip
@setup_options(optics=False)
def command(
    run: Run,
    calibration: str,
    *,
    output: Path | None,
    plot: Path | None,
    photons: float,
    background: float,
    z_nm: tuple[float, ...] | None,
    window_px: int,
    setup: SetupReader,
) -> Summary:
    """Compute the Cramér-Rao bound of CAL for an emitter in the middle of a window.

    No unbiased estimator is more precise; x, y, z, photons and background are estimated together. Of --setup
    only [camera] is read; options of the camera win over the calibration's.
    """
    run.outputs(output, plot)
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
        photons=photons,
        background=background,
        size_px=window_px,
        device=run.device,
    )
    if output is not None:
        with atomic_output(output, overwrite=run.overwrite) as temporary:
            table.to_csv(temporary, index=False)
    if plot is not None:
        from smlm_bridge.report import crlb_plot_png

        with atomic_output(plot, overwrite=run.overwrite) as temporary:
            temporary.write_bytes(crlb_plot_png(table))
    values = {name: table[name].tolist() for name in ("z_nm", *SIGMAS)}
    return Summary(values, table.round(3).to_string(index=False))
