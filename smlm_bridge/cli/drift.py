"""``drift``: estimate the drift of a table, take it out, save it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smlm_bridge.cli.common import PATH, Run, file_option, output_option, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.thunderstorm_group import Where, where_options
from smlm_bridge.cli.values import PAIR
from smlm_bridge.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.post.drift import Drift, DriftOptions

BUILT_ENGINES = ("auto", "aim", "comet", "rcc", "fiducials")
DEFAULT_SEED = 0
PLOT_EXTENSION = ".drift.png"


@verb(
    "drift",
    units="lengths in nm; frames count from 1 in the files.",
    example="smlm-bridge drift localizations.csv -o corrected.csv --save drift.json",
)
@click.argument("locs", type=PATH)
@output_option("The corrected table.", required=False)
@file_option("--save", "The drift as ThunderSTORM's JSON.")
@file_option(
    "--plot", "A picture of the drift; absent: beside the first output, with .drift.png for its extension."
)
@click.option(
    "--engine",
    type=click.Choice([*BUILT_ENGINES, "thunderstorm"]),
    default="auto",
    show_default=True,
    help="aim: coincidences with all other frames (auto takes it from 50 000 localizations on); comet: overlap "
    "of all pairs in x, y, z (auto takes it below); rcc: redundant cross-correlation; fiducials: beads; "
    "thunderstorm: its cross-correlation.",
)
@click.option(
    "--fiducial",
    "fiducials",
    type=PAIR,
    multiple=True,
    help="X,Y of a bead in nm, for the engine fiducials; repeat for more. Absent: what is seen in half of the "
    "frames.",
)
@click.option(
    "--fiducial-radius-nm",
    type=float,
    default=500.0,
    show_default=True,
    help="A given bead moves no farther from its place.",
)
@file_option("--apply", "Take out this drift (ThunderSTORM's JSON) instead of estimating one.")
@click.option(
    "--segment-frames", type=click.IntRange(min=1), help="Frames that share one estimate; absent: chosen."
)
@click.option("--pixel-nm", type=float, help="Pixel for tables and drifts whose lengths are in pixels.")
@where_options()
def command(
    run: Run,
    locs: Path,
    *,
    output: Path | None,
    save: Path | None,
    plot: Path | None,
    engine: str,
    fiducials: tuple[tuple[float, float], ...],
    fiducial_radius_nm: float,
    apply: Path | None,
    segment_frames: int | None,
    pixel_nm: float | None,
    where: Where,
) -> Summary:
    """Estimate the drift of the table LOCS and take it out.

    The localizations (or the beads) are always split at random into halves, each is estimated, and
    split_half_rms_nm says how much the two differ; residual_rms_nm is the motion that the localizations of
    a frame still share. A warning follows where either is too much, and the drift is always drawn. z is
    corrected too where LOCS has z and enough molecules that were seen several times.
    """
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.io.drift import save_drift
    from smlm_bridge.io.formats import read, write
    from smlm_bridge.post.drift import DriftOptions, apply_drift
    from smlm_bridge.report.drift import drift_plot_png

    if output is None and save is None and plot is None:
        raise UsageError("nothing would be written; give -o TABLE.csv, --save DRIFT.json or --plot F.png.")
    if apply is not None and (segment_frames is not None or fiducials):
        raise UsageError(
            "--segment-frames and --fiducial are for an estimate; leave them out beside --apply."
        )
    if engine == "thunderstorm" and apply is None and pixel_nm is None:
        raise UsageError("--engine thunderstorm correlates in camera pixels: give --pixel-nm.")
    where.only_for("--engine thunderstorm", engine == "thunderstorm" and apply is None)
    plot = plot or (output or save or locs).with_suffix(PLOT_EXTENSION)
    run.outputs(output, save, plot)
    table = read(locs, pixel_nm=pixel_nm)
    known: dict[str, object] = {
        "engine": "auto" if engine == "thunderstorm" else engine,
        "segment_frames": segment_frames,
        "seed": DEFAULT_SEED if run.given_seed is None else run.given_seed,
        "fiducials_nm": fiducials or None,
        "fiducial_radius_nm": fiducial_radius_nm,
    }
    if engine == "thunderstorm" and apply is None:
        drift = _thunderstorm(run, where, table, pixel_nm)
    else:
        drift = _drift(table, DriftOptions(**known), apply, pixel_nm)  # type: ignore[arg-type]
    if not run.quiet:
        for text in (*drift.warnings, *_outside(table, drift)):
            print(f"Warning: {text}", file=sys.stderr)
    if output is not None:
        write(output, apply_drift(table, drift), pixel_nm=pixel_nm, overwrite=run.overwrite)
    if save is not None:
        save_drift(save, drift, overwrite=run.overwrite)
    with atomic_output(plot, overwrite=run.overwrite) as temporary:
        temporary.write_bytes(drift_plot_png(drift))
    values: dict[str, object] = {
        "engine": drift.engine,
        "max_drift_nm": drift.max_drift_nm,
        "split_half_rms_nm": drift.split_half_rms_nm,
        "split_half_z_rms_nm": drift.split_half_z_rms_nm,
        "residual_rms_nm": drift.residual_rms_nm,
        "z_corrected": drift.z_nm is not None and "z_nm" in table,
        "localizations": len(table),
        "plot": str(plot),
        "warnings": list(drift.warnings),
    }
    return Summary(values, aligned({name: value for name, value in values.items() if name != "warnings"}))


def _thunderstorm(run: Run, where: Where, table: "pd.DataFrame", pixel_nm: float | None) -> "Drift":
    """By ThunderSTORM's cross-correlation; without the plugin by our own of the same algorithm, which is said."""
    from smlm_bridge.bridge import engines

    assert pixel_nm is not None
    return engines.drift(where.engine(run), table, pixel_nm=pixel_nm)


def _drift(
    table: "pd.DataFrame", options: "DriftOptions", apply: Path | None, pixel_nm: float | None
) -> "Drift":
    from smlm_bridge.io.drift import load_drift
    from smlm_bridge.post.drift import estimate_drift

    return estimate_drift(table, options) if apply is None else load_drift(apply, pixel_nm=pixel_nm)


def _outside(table: "pd.DataFrame", drift: "Drift") -> list[str]:
    frame = table["frame"]
    count = int(((frame < drift.frame[0]) | (frame > drift.frame[-1])).sum())
    first, last = drift.frame[0] + 1, drift.frame[-1] + 1
    text = (
        f"{count} localizations lie outside the drift's frames {first} to {last}; its ends were held there."
    )
    return [text] if count else []
