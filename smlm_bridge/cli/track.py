"""``track``: follow particles from frame to frame, or group them by density; diffusion."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from smlm_bridge.cli.common import PATH, Run, file_option, output_option, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.post.diffusion import Diffusion, Msd
    from smlm_bridge.post.tracks import Floats, Integers

DEFAULT_SEED = 0
NEAR_THE_LONGEST = 0.8
SHARE_NEAR = 0.02


@verb(
    "track",
    units="lengths in nm, times in ms, diffusion in um^2/s; frames from 1.",
    example="smlm-bridge track locs.csv -o tracks.csv --max-step-nm 400 --frame-ms 20 --report tracks.html",
)
@click.argument("locs", type=PATH)
@output_option("The table with the column track.")
@click.option(
    "--method",
    type=click.Choice(["link", "dbscan"]),
    default="link",
    show_default=True,
    help="link: frame to frame (trackpy); dbscan: what lies densely over all frames.",
)
@click.option("--max-step-nm", type=float, help="link: longest step from frame to frame. Required for it.")
@click.option("--max-step-z-nm", type=float, help="link: the same along z; absent: as --max-step-nm.")
@click.option(
    "--gap-frames",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="link: frames a particle may be missing.",
)
@click.option("--cluster-radius-nm", type=float, help="dbscan: neighbours are this close. Required for it.")
@click.option(
    "--cluster-least",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="dbscan: least neighbours, itself among them, in the core of a cluster.",
)
@click.option(
    "--min-frames",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Tracks of fewer detections are left out.",
)
@click.option(
    "--dimensions",
    type=click.Choice(["2", "3"]),
    default="2",
    show_default=True,
    help="Steps and displacements in x, y, or in x, y, z.",
)
@click.option("--frame-ms", type=float, help="Time from frame to frame; without it no diffusion is fitted.")
@click.option(
    "--exposure",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Share of that time during which light is collected.",
)
@click.option(
    "--fit-lags", type=click.IntRange(min=2), default=4, show_default=True, help="Lags of the diffusion fit."
)
@file_option("--trajectories", "A table with one row a track, .csv.")
@file_option("--report", "A self-contained page, .html.")
@click.option("--pixel-nm", type=float, help="Camera pixel, for tables in pixels.")
def command(
    run: Run,
    locs: Path,
    *,
    output: Path,
    method: Literal["link", "dbscan"],
    max_step_nm: float | None,
    max_step_z_nm: float | None,
    gap_frames: int,
    cluster_radius_nm: float | None,
    cluster_least: int,
    min_frames: int,
    dimensions: str,
    frame_ms: float | None,
    exposure: float,
    fit_lags: int,
    trajectories: Path | None,
    report: Path | None,
    pixel_nm: float | None,
) -> Summary:
    """Follow the particles of the table LOCS.

    Every row gets the number of its track, from 1; rows of no track are left out. With --frame-ms the mean
    squared displacement is fitted: diffusion_um2_s with its 95 % interval, and the exponent alpha (1 is free
    diffusion). For the method dbscan a track is a cluster, for particles that stay about their places.
    """
    run.outputs(output, trajectories, report)
    _check_method(method, max_step_nm, cluster_radius_nm)
    from smlm_bridge.io.formats import read, write
    from smlm_bridge.post import tracks

    table = read(locs, pixel_nm=pixel_nm)
    axes: tracks.Dimensions = 3 if dimensions == "3" else 2
    if method == "link":
        assert max_step_nm is not None
        with run.steps("linking") as on_step:
            number = tracks.track(
                table,
                max_step_nm,
                max_step_z_nm=max_step_z_nm,
                gap_frames=gap_frames,
                min_frames=min_frames,
                dimensions=axes,
                on_step=on_step,
            )
    else:
        assert cluster_radius_nm is not None
        number = tracks.cluster(
            table, cluster_radius_nm, least=cluster_least, min_frames=min_frames, dimensions=axes
        )
    found = _Found(table, number, tracks.step_lengths_nm(table, number, dimensions=axes))
    if frame_ms is not None:
        found = _with_diffusion(run, found, axes, frame_ms, exposure, fit_lags)
    warnings = _warnings(found, max_step_nm if axes == 2 or max_step_z_nm is None else None)
    if not run.quiet:
        for text in warnings:
            print(f"Warning: {text}", file=sys.stderr)
    kept = number != tracks.NONE
    write(output, table[kept].assign(track=number[kept] + 1), pixel_nm=pixel_nm, overwrite=run.overwrite)
    values = _values(found)
    _write(
        run,
        found,
        values,
        warnings,
        trajectories=trajectories,
        report=report,
        max_step_nm=max_step_nm,
        name=locs.name,
    )
    return Summary(values, aligned({"table": str(output), **values}))


@dataclass(frozen=True)
class _Found:
    table: "pd.DataFrame"
    number: "Integers"
    steps_nm: "Floats"
    msd: "Msd | None" = None
    diffusion: "Diffusion | None" = None


def _check_method(method: str, max_step_nm: float | None, cluster_radius_nm: float | None) -> None:
    if method == "link" and max_step_nm is None:
        raise UsageError("give --max-step-nm, about three times the typical step from frame to frame.")
    if method == "dbscan" and cluster_radius_nm is None:
        raise UsageError("the method dbscan needs --cluster-radius-nm, about three times the uncertainty.")


def _with_diffusion(
    run: Run, found: _Found, axes: Literal[2, 3], frame_ms: float, exposure: float, fit_lags: int
) -> _Found:
    import numpy as np

    from smlm_bridge.post.diffusion import fit_diffusion, mean_squared_displacement

    seed = DEFAULT_SEED if run.given_seed is None else run.given_seed
    msd = mean_squared_displacement(
        found.table,
        found.number,
        frame_s=frame_ms / 1000,
        dimensions=axes,
        rng=np.random.default_rng(seed),
    )
    fitted = None
    if msd is not None and msd.lag_s.size >= 2:
        fitted = fit_diffusion(msd, fit_lags=fit_lags, exposure=exposure)
    return _Found(found.table, found.number, found.steps_nm, msd, fitted)


def _warnings(found: _Found, max_step_nm: float | None) -> tuple[str, ...]:
    """Steps that pile up at the longest allowed one: longer ones were cut off."""
    import numpy as np

    if max_step_nm is None or found.steps_nm.size == 0:
        return ()
    share = float(np.mean(found.steps_nm > NEAR_THE_LONGEST * max_step_nm))
    if share <= SHARE_NEAR:
        return ()
    return (
        f"{share:.0%} of the steps are longer than {NEAR_THE_LONGEST:.0%} of --max-step-nm {max_step_nm:g}: "
        "longer ones were cut off and the diffusion comes out too small, or neighbours were mixed up. Try a "
        "larger --max-step-nm, or fewer particles at once.",
    )


def _values(found: _Found) -> dict[str, Any]:
    import numpy as np

    from smlm_bridge.post.tracks import NONE

    kept = found.number[found.number != NONE]
    fitted = found.diffusion
    values: dict[str, Any] = {
        "localizations_in": len(found.table),
        "localizations_out": kept.size,
        "tracks": int(kept.max(initial=-1)) + 1,
        "median_detections": float(np.median(np.bincount(kept))) if kept.size else None,
        "median_step_nm": float(np.median(found.steps_nm)) if found.steps_nm.size else None,
    }
    if fitted is None:
        return values | {"diffusion_um2_s": None}
    return values | {
        "diffusion_um2_s": fitted.coefficient_um2_s,
        "diffusion_interval_um2_s": list(fitted.interval_um2_s),
        "error_nm": fitted.error_nm,
        "alpha": fitted.alpha,
        "alpha_interval": None if fitted.alpha_interval is None else list(fitted.alpha_interval),
    }


def _write(
    run: Run,
    found: _Found,
    values: dict[str, Any],
    warnings: tuple[str, ...],
    *,
    trajectories: Path | None,
    report: Path | None,
    max_step_nm: float | None,
    name: str,
) -> None:
    """Write the rows of the tracks and the page that were asked for."""
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.post import tracks

    if trajectories is not None:
        rows = tracks.trajectories(found.table, found.number)
        for column in ("track", "first_frame", "last_frame"):
            rows[column] += 1
        with atomic_output(trajectories, overwrite=run.overwrite) as temporary:
            rows.to_csv(temporary, index=False, float_format="%.3f", lineterminator="\n")
    if report is not None:
        from smlm_bridge.report.tracks import tracks_page

        page = tracks_page(
            found.table,
            found.number,
            title=name,
            msd=found.msd,
            diffusion=found.diffusion,
            steps_nm=found.steps_nm,
            max_step_nm=max_step_nm,
            warnings=warnings,
            provenance=values,
        )
        with atomic_output(report, overwrite=run.overwrite) as temporary:
            temporary.write_text(page, encoding="utf-8")
