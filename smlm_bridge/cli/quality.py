"""``quality``: precision and resolution of a table from the data alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge.cli.common import PATH, Run, file_option, verb
from smlm_bridge.cli.reporting import Summary, aligned

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.post.quality import Quality

DEFAULT_SEED = 0


@verb(
    "quality",
    units="lengths in nm, densities per um^2 and frame, photons in photo-electrons.",
    example="smlm-bridge quality corrected.csv --report quality.html --json",
)
@click.argument("locs", type=PATH)
@file_option("--report", "A self-contained page, .html.")
@click.option(
    "--link-distance-nm",
    type=click.FloatRange(min=0),
    help="Merge blinks closer than this before the FRC; absent: 5 times the precision; 0: merge nothing.",
)
@click.option(
    "--gap-frames",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Longest dark time of a blink.",
)
@click.option(
    "--blocks",
    type=click.IntRange(min=2),
    default=50,
    show_default=True,
    help="Blocks of time dealt to the two halves of the FRC.",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=4, show_default=True, help="How often they are dealt."
)
@click.option("--frc-pixel-nm", type=float, help="Pixel of the correlated pictures; absent: chosen.")
@file_option("--truth", "Ground truth: also errors over the claimed uncertainties.")
@click.option(
    "--radius-nm", type=float, default=150.0, show_default=True, help="Largest distance to the truth."
)
@click.option("--pixel-nm", type=float, help="Camera pixel, for tables in pixels.")
def command(
    run: Run,
    locs: Path,
    *,
    report: Path | None,
    link_distance_nm: float | None,
    gap_frames: int,
    blocks: int,
    repeats: int,
    frc_pixel_nm: float | None,
    truth: Path | None,
    radius_nm: float,
    pixel_nm: float | None,
) -> Summary:
    """Assess the table LOCS: take one that is corrected for drift and not merged.

    frc_nm: the movie is cut into blocks of time, dealt at random to two halves; blinks are merged before; the
    resolution is where the correlation of the two pictures falls below 1/7. frc_corrected_nm leaves out what
    molecules add that return later. nena_nm: the lateral precision, from neighbours in consecutive frames.
    precision_nm and zscore_sd: the same by axis, and over what the table claims (1 where it is right).
    """
    run.outputs(report)
    import numpy as np

    from smlm_bridge.io.formats import read
    from smlm_bridge.post.quality import QualityOptions, assess

    options = QualityOptions(
        link_distance_nm=link_distance_nm,
        gap_frames=gap_frames,
        blocks=blocks,
        repeats=repeats,
        frc_pixel_nm=frc_pixel_nm,
    )
    table = read(locs, pixel_nm=pixel_nm)
    seed = DEFAULT_SEED if run.given_seed is None else run.given_seed
    with run.steps("correlating") as on_step:
        quality = assess(table, options, rng=np.random.default_rng(seed), on_step=on_step)
    scores = None if truth is None else _scores(table, read(truth, pixel_nm=pixel_nm), radius_nm)
    values: dict[str, Any] = {**_values(table, quality), "seed": seed}
    if scores is not None:
        spread = [float(np.nanstd(c)) if np.isfinite(c).any() else None for c in scores.T]
        values |= {"truth_zscore_sd": spread, "matched": len(scores)}
    if report is not None:
        from smlm_bridge.io.atomic import atomic_output
        from smlm_bridge.report.quality import quality_page

        page = quality_page(table, quality, title=locs.name, z_scores=scores, provenance=values)
        with atomic_output(report, overwrite=run.overwrite) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return Summary(values, aligned(values))


def _scores(table: "pd.DataFrame", truth: "pd.DataFrame", radius_nm: float) -> Any:
    """Errors over claimed uncertainties of what lies near an emitter of the truth."""
    from smlm_bridge.evaluate import Options, evaluate
    from smlm_bridge.post.quality import z_scores

    matches, _ = evaluate(table, truth, options=Options(radius_nm=radius_nm))
    return z_scores(table, matches.loc_index, matches.difference_nm)


def _values(table: "pd.DataFrame", quality: "Quality") -> dict[str, Any]:
    resolution, precision, local = quality.frc, quality.nena, quality.local
    return {
        "localizations": quality.localizations,
        "molecules": quality.molecules,
        "frames": quality.frames,
        "frc_nm": resolution.resolution_nm,
        "frc_spread_nm": resolution.spread_nm,
        "frc_corrected_nm": resolution.corrected_nm,
        "frc_spurious": resolution.spurious,
        "frc_split": f"{resolution.blocks} blocks of time, blinks within {quality.link_distance_nm:.3g} nm merged",
        "frc_note": resolution.note,
        "nena_nm": None if precision is None else precision.sigma_nm,
        "nena_error_nm": None if precision is None else precision.standard_error_nm,
        "precision_nm": None if local is None else local.sigma_nm.tolist(),
        "zscore_sd": None if local is None else local.zscore_sd.tolist(),
        "median_photons": float(table["photons"].median()) if "photons" in table and len(table) else None,
        "density_per_um2": quality.density_per_um2,
    }
