"""``evaluate``: score a table of localizations against the ground truth."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from smlm_bridge.cli.common import PATH, Run, file_option, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import PAIR
from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.calibration import Calibration
    from smlm_bridge.camera import Camera
    from smlm_bridge.evaluate import Matches, Options
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
    "--challenge",
    is_flag=True,
    help="Match as the SMLM challenge: lateral <= 250, |dz| <= 500 nm; 'challenge' is its whole score.",
)
@file_option("--wobble", "Table z, dx, dy in nm that is added to the truth, .csv.")
@file_option("--save-wobble", "Write the wobble of LOCS, localized beads, against TRUTH to this .csv.")
@click.option("--field-nm", type=PAIR, help="Width,height of the field; absent: what the truth spans.")
@click.option(
    "--density-bins", type=click.IntRange(min=1), help="Also score groups of frames by their density."
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
    wobble: Path | None,
    save_wobble: Path | None,
    field_nm: tuple[float, float] | None,
    density_bins: int | None,
    min_photons: float | None,
    min_photons_rule: Literal["ignore", "remove"],
    border_nm: float,
    pixel_nm: float | None,
    background: float | None,
    calibration: str | None,
) -> Summary:
    """Score the table LOCS against the table TRUTH: pairs per frame, Jaccard index, errors, efficiency.

    rmse_lateral_nm is sqrt(mean(dx^2 + dy^2)); efficiency is the mean of the lateral and the axial one (Sage
    et al. 2019). With --calibration the errors are compared with the best possible (rmse_over_crlb). TRUTH may
    be ThunderSTORM's or the challenge's ground truth. The challenge's own score leaves out its border (450 nm
    of 6400, or of --field-nm) and is given for all emitters and for the brightest three quarters.
    """
    from smlm_bridge.challenge import add_wobble
    from smlm_bridge.evaluate import Options, evaluate

    run.outputs(save_wobble)

    options = Options(
        radius_nm=radius_nm,
        mode=mode,
        challenge=challenge,
        min_photons=min_photons,
        min_photons_rule=min_photons_rule,
        border_nm=border_nm,
        field_nm=field_nm,
    )
    emitters, found = _read(truth, pixel_nm), _read(locs, pixel_nm)
    if save_wobble is not None:
        _save_wobble(run, save_wobble, found, emitters)
    shift = _read_wobble(wobble) if wobble is not None else None
    given = emitters
    if shift is not None:
        emitters = add_wobble(emitters, shift)
    matches, scores = evaluate(found, emitters, options=options)
    ratio = None
    if calibration is not None:
        if background is not None:
            emitters["background"] = background
        ratio = _over_crlb(run, calibration, emitters, matches)
    values = {**asdict(scores), "rmse_over_crlb": ratio}
    if challenge:
        values["challenge"] = _challenge(run, found, given, shift, field_nm)
    if density_bins is not None:
        values["by_density"] = _by_density(found, emitters, options, density_bins)
    return Summary(values, aligned(values))


def _read(path: Path, pixel_nm: float | None) -> "pd.DataFrame":
    """A table by its extension; text also as a submission to the challenge, which has no header."""
    from smlm_bridge.io.formats import format_of, read

    text = format_of(path) in ("thunderstorm", None)
    return read(path, name="challenge" if text else None, pixel_nm=pixel_nm)


def _read_wobble(path: Path) -> "pd.DataFrame":
    import pandas as pd

    from smlm_bridge.io.delimited import read_header, read_rows

    header = read_header(path)
    rows = read_rows(path, header, numeric=header.labels)
    names = {label: label.partition(" [")[0].removesuffix("_nm") + "_nm" for label in header.labels}
    return pd.DataFrame({names[label]: rows.column(label).to_numpy() for label in header.labels})


def _save_wobble(run: Run, path: Path, locs: "pd.DataFrame", truth: "pd.DataFrame") -> None:
    from smlm_bridge.challenge import estimate_wobble
    from smlm_bridge.io.atomic import atomic_output

    wobble = estimate_wobble(locs, truth)
    wobble.columns = ["z [nm]", "dx [nm]", "dy [nm]"]
    with atomic_output(path, overwrite=run.overwrite) as temporary:
        wobble.to_csv(temporary, index=False, float_format="%.3f")


def _challenge(
    run: Run,
    locs: "pd.DataFrame",
    truth: "pd.DataFrame",
    wobble: "pd.DataFrame | None",
    field_nm: tuple[float, float] | None,
) -> dict[str, object] | None:
    """Both scores of 2016; nothing for a larger field that was not given, whose border is not known."""
    from smlm_bridge.challenge import BORDER_NM, FIELD_NM, challenge_scores

    field = field_nm or FIELD_NM
    outside = bool((truth["x_nm"] > field[0]).any() or (truth["y_nm"] > field[1]).any())
    if "photons" not in truth or outside:
        if not run.quiet:
            print(
                "Warning: no score of the challenge: the truth has no photons, or is larger than "
                f"{field[0]:g} x {field[1]:g} nm (give --field-nm).",
                file=sys.stderr,
            )
        return None
    every, bright = challenge_scores(locs, truth, wobble=wobble, field_nm=field)
    return {
        "field_nm": list(field),
        "border_nm": BORDER_NM,
        "all": asdict(every),
        "brightest_three_quarters": asdict(bright),
    }


def _by_density(
    locs: "pd.DataFrame", truth: "pd.DataFrame", options: "Options", groups: int
) -> list[dict[str, object]]:
    from smlm_bridge.challenge import scores_by_density

    field = options.field_nm or (float(truth["x_nm"].max()), float(truth["y_nm"].max()))
    known = scores_by_density(locs, truth, groups, options=replace(options, field_nm=field), field_nm=field)
    return [{"density_um2": one.density_um2, "frames": one.frames, **asdict(one.scores)} for one in known]


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
