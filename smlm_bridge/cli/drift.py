"""``drift``: estimate the drift of a table, take it out, save it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smlm_bridge.cli.common import PATH, Run, file_option, output_option, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.verbs import refuse_not_built
from smlm_bridge.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.post.drift import Drift

BUILT_ENGINES = ("auto", "aim", "rcc")
DEFAULT_SEED = 0


@verb(
    "drift",
    units="lengths in nm; frames count from 1 in the files.",
    example="smlm-bridge drift localizations.csv -o corrected.csv --save drift.json --plot drift.png",
)
@click.argument("locs", type=PATH)
@output_option("The corrected table, .csv.", required=False)
@file_option("--save", "The drift as ThunderSTORM's JSON.")
@file_option("--plot", "A picture of the drift, .png.")
@click.option(
    "--engine",
    type=click.Choice([*BUILT_ENGINES, "thunderstorm"]),
    default="auto",
    show_default=True,
    help="aim: coincidences with all other frames (auto takes it); rcc: redundant cross-correlation.",
)
@file_option("--apply", "Take out this drift (ThunderSTORM's JSON) instead of estimating one.")
@click.option(
    "--segment-frames", type=click.IntRange(min=1), help="Frames that share one estimate; absent: chosen."
)
@click.option("--pixel-nm", type=float, help="Pixel for tables and drifts whose lengths are in pixels.")
def command(
    run: Run,
    locs: Path,
    *,
    output: Path | None,
    save: Path | None,
    plot: Path | None,
    engine: str,
    apply: Path | None,
    segment_frames: int | None,
    pixel_nm: float | None,
) -> Summary:
    """Estimate the drift of the table LOCS and take it out.

    The localizations are always split at random into halves, each is estimated, and split_half_rms_nm says
    how much the two differ; a warning follows where that is too much. z is corrected too where LOCS has z and
    enough molecules that were seen several times.
    """
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.io.drift import save_drift
    from smlm_bridge.io.thunderstorm import read_table, write_table
    from smlm_bridge.post.drift import apply_drift

    if output is None and save is None and plot is None:
        raise UsageError("nothing would be written; give -o TABLE.csv, --save DRIFT.json or --plot F.png.")
    if apply is not None and segment_frames is not None:
        raise UsageError("--segment-frames is for an estimate; leave it out beside --apply.")
    if engine not in BUILT_ENGINES:
        refuse_not_built(f"the engine '{engine}' of 'drift'")
    run.outputs(output, save, plot)
    table = read_table(locs, pixel_nm=pixel_nm)
    drift = _drift(run, table, engine, apply, segment_frames, pixel_nm)
    if not run.quiet:
        for text in (*drift.warnings, *_outside(table, drift)):
            print(f"Warning: {text}", file=sys.stderr)
    if output is not None:
        write_table(output, apply_drift(table, drift), overwrite=run.overwrite)
    if save is not None:
        save_drift(save, drift, overwrite=run.overwrite)
    if plot is not None:
        from smlm_bridge.report.drift import drift_plot_png

        with atomic_output(plot, overwrite=run.overwrite) as temporary:
            temporary.write_bytes(drift_plot_png(drift))
    values: dict[str, object] = {
        "engine": drift.engine,
        "max_drift_nm": drift.max_drift_nm,
        "split_half_rms_nm": drift.split_half_rms_nm,
        "split_half_z_rms_nm": drift.split_half_z_rms_nm,
        "z_corrected": drift.z_nm is not None and "z_nm" in table,
        "localizations": len(table),
        "warnings": list(drift.warnings),
    }
    return Summary(values, aligned({name: value for name, value in values.items() if name != "warnings"}))


def _drift(
    run: Run,
    table: "pd.DataFrame",
    engine: str,
    apply: Path | None,
    segment_frames: int | None,
    pixel_nm: float | None,
) -> "Drift":
    from smlm_bridge.io.drift import load_drift
    from smlm_bridge.post.drift import DriftOptions, estimate_drift

    if apply is not None:
        return load_drift(apply, pixel_nm=pixel_nm)
    seed = DEFAULT_SEED if run.given_seed is None else run.given_seed
    known: dict[str, object] = {"engine": engine, "segment_frames": segment_frames, "seed": seed}
    return estimate_drift(table, DriftOptions(**known))  # type: ignore[arg-type]


def _outside(table: "pd.DataFrame", drift: "Drift") -> list[str]:
    frame = table["frame"]
    count = int(((frame < drift.frame[0]) | (frame > drift.frame[-1])).sum())
    first, last = drift.frame[0] + 1, drift.frame[-1] + 1
    text = (
        f"{count} localizations lie outside the drift's frames {first} to {last}; its ends were held there."
    )
    return [text] if count else []
