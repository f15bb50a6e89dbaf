"""``evaluate``: score a table of localizations against the ground truth."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from smlm_bridge.cli.common import PATH, Run, verb
from smlm_bridge.cli.reporting import Summary, aligned

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.evaluate import Matches


@verb(
    "evaluate",
    units="lengths in nm, photons in photo-electrons; jaccard, recall, precision 0 to 1, efficiency in %.",
    example="smlm-bridge evaluate localizations.csv truth.csv --radius-nm 150 --json",
)
@click.argument("locs", type=PATH)
@click.argument("truth", type=PATH)
@click.option("--radius-nm", type=float, default=150.0, show_default=True, help="Largest distance of a pair.")
@click.option(
    "--match",
    "mode",
    type=click.Choice(["3d", "lateral"]),
    default="3d",
    show_default=True,
    help="Distance in 3-D, or lateral only.",
)
@click.option(
    "--challenge", is_flag=True, help="Match as the SMLM challenge: lateral <= 250, |dz| <= 500 nm."
)
@click.option("--min-photons", type=float, help="Emitters of the truth at or below do not count.")
@click.option(
    "--min-photons-rule",
    type=click.Choice(["ignore", "remove"]),
    default="ignore",
    show_default=True,
    help="Their pairs are neither right nor wrong, or they are taken out before matching.",
)
@click.option("--border-nm", type=float, default=0.0, help="Leave out what is this close to the edge.")
@click.option("--pixel-nm", type=float, help="Pixel for tables whose lengths are in pixels.")
@click.option("--calibration", help="PSF for rmse_over_crlb; the truth needs photons and background.")
def command(
    run: Run,
    locs: Path,
    truth: Path,
    *,
    radius_nm: float,
    mode: Literal["3d", "lateral"],
    challenge: bool,
    min_photons: float | None,
    min_photons_rule: Literal["ignore", "remove"],
    border_nm: float,
    pixel_nm: float | None,
    calibration: str | None,
) -> Summary:
    """Score the table LOCS against the table TRUTH: pairs per frame, Jaccard index, errors, efficiency.

    rmse_lateral_nm is sqrt(mean(dx^2 + dy^2)); efficiency is the mean of the lateral and the axial one (Sage
    et al. 2019). With --calibration the errors are compared with the best possible (rmse_over_crlb).
    """
    from smlm_bridge.evaluate import Options, evaluate
    from smlm_bridge.io.thunderstorm import read_table

    options = Options(
        radius_nm=radius_nm,
        mode=mode,
        challenge=challenge,
        min_photons=min_photons,
        min_photons_rule=min_photons_rule,
        border_nm=border_nm,
    )
    emitters = read_table(truth, pixel_nm=pixel_nm)
    matches, scores = evaluate(read_table(locs, pixel_nm=pixel_nm), emitters, options=options)
    ratio = None if calibration is None else _over_crlb(run, calibration, emitters, matches)
    values = {**asdict(scores), "rmse_over_crlb": ratio}
    return Summary(values, aligned(values))
