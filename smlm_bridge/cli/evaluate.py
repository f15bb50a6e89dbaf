"""``evaluate``: score a table of localizations against the ground truth."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from smlm_bridge.cli.common import PATH, Run, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.calibration import Calibration
    from smlm_bridge.camera import Camera
    from smlm_bridge.evaluate import Matches
    from smlm_bridge.psf.protocol import PSF

WINDOW_PX = 61
AT_ONCE = 64
Z_MARGIN_NM = 100.0


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
@click.option("--background", type=float, help="Per pixel, for the CRLB; absent: the truth's.")
@click.option(
    "--calibration", metavar="CAL", help="PSF for rmse_over_crlb; the truth needs photons and background."
)
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
    background: float | None,
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
    ratio = None
    if calibration is not None:
        if background is not None:
            emitters["background"] = background
        ratio = _over_crlb(run, calibration, emitters, matches)
    values = {**asdict(scores), "rmse_over_crlb": ratio}
    return Summary(values, aligned(values))


def _over_crlb(
    run: Run, calibration: str, truth: "pd.DataFrame", matches: "Matches"
) -> tuple[float | None, float | None, float | None]:
    """RMSE over the root mean square bound of the matched emitters, each alone in the middle of a window."""
    import numpy as np

    from smlm_bridge._optional import require
    from smlm_bridge.evaluate import rmse_over_bound
    from smlm_bridge.io.calibration import load_calibration

    if missing := [name for name in ("z_nm", "photons", "background") if name not in truth]:
        raise InputRejected(
            f"the truth lacks {', '.join(missing)}, which the CRLB needs. Give a truth with these columns"
            + (", or --background." if missing == ["background"] else ".")
        )
    torch = require("torch", extra="train")
    from smlm_bridge.crlb import crlb

    known = load_calibration(calibration)
    z = truth["z_nm"]
    psf = _fast_psf(known, (z.min() - Z_MARGIN_NM, z.max() + Z_MARGIN_NM), device=run.device)
    camera = _mean_camera(known.camera)
    chosen = truth.iloc[matches.truth_index]
    pixel_nm = known.optics.pixel_nm
    xyz = chosen[["x_nm", "y_nm", "z_nm"]].to_numpy(np.float64, copy=True)
    xyz[:, :2] = xyz[:, :2] % pixel_nm + WINDOW_PX // 2 * pixel_nm
    rest = chosen[["photons", "background"]].to_numpy(np.float64, copy=True)
    bound = np.full((len(truth), 3), np.nan)
    with run.steps("bound") as on_step:
        for start in range(0, len(chosen), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            position, light = (torch.as_tensor(a[part], device=run.device) for a in (xyz, rest))
            shape = (WINDOW_PX, WINDOW_PX)
            sigma = crlb(psf, camera, position, light[:, 0], light[:, 1], shape=shape)
            bound[matches.truth_index[part]] = sigma[:, :3].cpu().numpy()
            on_step(min(start + AT_ONCE, len(chosen)), len(chosen))
    return rmse_over_bound(matches, bound)


def _fast_psf(known: "Calibration", z_range_nm: tuple[float, float], *, device: str) -> "PSF":
    """The PSF as a table where it is a pupil's: there may be a hundred thousand emitters."""
    from smlm_bridge.psf.pupil_psf import PupilPSF
    from smlm_bridge.psf.spline import SplinePSF

    psf = known.psf(device=device)
    if not isinstance(psf, PupilPSF):
        return psf
    return SplinePSF.tabulate(psf, z_range_nm=z_range_nm, reach_nm=(WINDOW_PX // 2 + 1) * psf.pixel_nm)


def _mean_camera(camera: "Camera") -> "Camera":
    """The camera with the means of its maps: for emitters whose pixels are not looked up."""
    import numpy as np

    means = {name: float(np.mean(getattr(camera, name))) for name in ("offset", "e_per_adu", "read_noise_e")}
    return replace(camera, **means)
