"""Steps of ``thunderstorm`` over a table: drift, merge, filter, render."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from smlm_bridge.cli.common import PATH, Run, output_option
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.thunderstorm_group import Command, Where, step
from smlm_bridge.cli.values import SIZE
from smlm_bridge.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.bridge.engines import Engine

RENDERERS = ("ash", "gaussian", "histogram", "scatter")


@step(
    "drift",
    units="lengths in nm; frames from 1.",
    example="smlm-bridge thunderstorm drift locs.csv -o corrected.csv --pixel-nm 100 --steps 10",
)
@click.argument("locs", type=PATH)
@output_option("The corrected table.", required=False)
@click.option("--save", type=PATH, help="The drift as ThunderSTORM's JSON.")
@click.option(
    "--method",
    type=click.Choice(["cross-correlation", "fiducials", "file"]),
    default="cross-correlation",
    show_default=True,
    help="How the drift is estimated.",
)
@click.option("--load", type=PATH, help="The drift to take out, for the method file.")
@click.option("--steps", type=int, default=5, show_default=True, help="Parts of the movie.")
@click.option(
    "--magnification",
    type=float,
    default=5.0,
    show_default=True,
    help="Pixels of the picture a camera pixel.",
)
@click.option("--smoothing", type=float, help="Share of the parts (0.5), or of the frames (0.25, fiducials).")
@click.option("--distance-nm", type=float, default=40.0, show_default=True, help="A fiducial stays within.")
@click.option("--on-time-ratio", type=float, default=0.1, show_default=True, help="Frames a fiducial is in.")
@click.option("--pixel-nm", type=float, required=True, help="Camera pixel.")
def drift(
    run: Run,
    locs: Path,
    *,
    output: Path | None,
    save: Path | None,
    method: str,
    load: Path | None,
    steps: int,
    magnification: float,
    smoothing: float | None,
    distance_nm: float,
    on_time_ratio: float,
    pixel_nm: float,
    where: Where,
) -> Summary:
    """Estimate the drift of the table LOCS as ThunderSTORM does and take it out."""
    if output is None and save is None:
        raise UsageError("nothing would be written; give -o TABLE.csv or --save DRIFT.json.")
    if (method == "file") != (load is not None):
        raise UsageError("--method file and --load DRIFT.json belong together.")
    run.outputs(output, save)
    from smlm_bridge.bridge import engines
    from smlm_bridge.bridge.settings import CrossCorrelation, DriftFile, Fiducials
    from smlm_bridge.io.drift import save_drift
    from smlm_bridge.io.formats import read, write

    settings: Any = CrossCorrelation(steps, magnification, 0.5 if smoothing is None else smoothing)
    if method == "fiducials":
        settings = Fiducials(distance_nm, on_time_ratio, 0.25 if smoothing is None else smoothing)
    elif load is not None:
        settings = DriftFile(load)
    table = read(locs, pixel_nm=pixel_nm)
    engine = where.engine(run)
    corrected, found = engines.corrected(engine, table, settings, pixel_nm=pixel_nm)
    if output is not None:
        write(output, corrected, pixel_nm=pixel_nm, overwrite=run.overwrite)
    if save is not None:
        save_drift(save, found, overwrite=run.overwrite)
    values = {
        "engine": engine.name,
        "back_end": engine.back_end,
        "localizations": len(table),
        "max_drift_nm": found.max_drift_nm,
    }
    return Summary(values, aligned(values))


def _table_step(
    run: Run, locs: Path, output: Path, pixel_nm: float, engine: "Engine", action: Command
) -> Summary:
    """Read a table, do something to it, write it."""
    run.outputs(output)
    from smlm_bridge.io.formats import read, write

    table = read(locs, pixel_nm=pixel_nm)
    left = action(engine, table)
    write(output, left, pixel_nm=pixel_nm, overwrite=run.overwrite)
    values = {
        "engine": engine.name,
        "back_end": engine.back_end,
        "localizations_in": len(table),
        "localizations_out": len(left),
    }
    return Summary(values, aligned({"table": str(output), **values}))


@step(
    "merge",
    units="lengths in nm.",
    example="smlm-bridge thunderstorm merge locs.csv -o merged.csv --pixel-nm 100 --distance-nm 30",
)
@click.argument("locs", type=PATH)
@output_option("The merged table.")
@click.option(
    "--distance-nm",
    type=float,
    default=20.0,
    show_default=True,
    help="Detections this close are one molecule.",
)
@click.option("--off-frames", type=int, default=1, show_default=True, help="Longest dark time.")
@click.option("--frames-per-molecule", type=int, default=0, show_default=True, help="0: no limit.")
@click.option("--z-weight", type=float, default=0.1, show_default=True, help="Factor of differences in z.")
@click.option("--pixel-nm", type=float, required=True, help="Camera pixel.")
def merge(
    run: Run,
    locs: Path,
    *,
    output: Path,
    distance_nm: float,
    off_frames: int,
    frames_per_molecule: int,
    z_weight: float,
    pixel_nm: float,
    where: Where,
) -> Summary:
    """Merge the blinks of molecules in the table LOCS as ThunderSTORM does."""
    from smlm_bridge.bridge import engines
    from smlm_bridge.bridge.settings import Merging

    settings = Merging(distance_nm, off_frames, frames_per_molecule, z_weight)
    engine = where.engine(run)
    return _table_step(
        run, locs, output, pixel_nm, engine, lambda e, t: engines.merged(e, t, settings, pixel_nm=pixel_nm)
    )


@step(
    "filter",
    units="lengths in nm, photons in photo-electrons; frames from 1.",
    example="smlm-bridge thunderstorm filter locs.csv 'intensity>500' -o good.csv --pixel-nm 100",
)
@click.argument("locs", type=PATH)
@click.argument("formula", required=False)
@output_option("The table of what is kept.")
@click.option("--density-radius-nm", type=float, help="Keep what has neighbours this close.")
@click.option("--density-neighbours", type=int, default=5, show_default=True, help="How many at least.")
@click.option(
    "--density-dimensions",
    type=click.Choice(["2", "3"]),
    default="2",
    show_default=True,
    help="Distance in x, y or in x, y, z.",
)
@click.option("--duplicates", metavar="NM|EXPR", help="Of rows of a frame this close keep the most certain.")
@click.option("--pixel-nm", type=float, required=True, help="Camera pixel.")
def filter_table(
    run: Run,
    locs: Path,
    formula: str | None,
    *,
    output: Path,
    density_radius_nm: float | None,
    density_neighbours: int,
    density_dimensions: str,
    duplicates: str | None,
    pixel_nm: float,
    where: Where,
) -> Summary:
    """Filter the table LOCS as ThunderSTORM does: by FORMULA, then duplicates, then density."""
    if formula is None and density_radius_nm is None and duplicates is None:
        raise UsageError("nothing to filter by: give FORMULA, --duplicates or --density-radius-nm.")
    from smlm_bridge.bridge import engines
    from smlm_bridge.bridge.settings import Density

    dimensions: Literal[2, 3] = 3 if density_dimensions == "3" else 2
    density = density_radius_nm and Density(density_radius_nm, density_neighbours, dimensions)

    def action(engine: "Engine", table: "pd.DataFrame") -> "pd.DataFrame":
        if formula is not None:
            table = engines.filtered(engine, table, formula, pixel_nm=pixel_nm)
        if duplicates is not None:
            table = engines.unique(engine, table, _radius(duplicates), pixel_nm=pixel_nm)
        return engines.dense(engine, table, density, pixel_nm=pixel_nm) if density else table

    engine = where.engine(run)
    return _table_step(run, locs, output, pixel_nm, engine, action)


def _radius(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


@step(
    "render",
    units="size in camera pixels.",
    example="smlm-bridge thunderstorm render locs.csv -o picture.tif --pixel-nm 100 --size-px 256x256",
)
@click.argument("locs", type=PATH)
@output_option("The picture, .tif, float32.")
@click.option(
    "--renderer", type=click.Choice(RENDERERS), default="ash", show_default=True, help="How it is drawn."
)
@click.option(
    "--magnification",
    type=float,
    default=5.0,
    show_default=True,
    help="Pixels of the picture a camera pixel.",
)
@click.option("--size-px", type=SIZE, required=True, help="Rows and columns of the camera.")
@click.option("--pixel-nm", type=float, required=True, help="Camera pixel.")
def render(
    run: Run,
    locs: Path,
    *,
    output: Path,
    renderer: str,
    magnification: float,
    size_px: tuple[int, int],
    pixel_nm: float,
    where: Where,
) -> Summary:
    """Draw the table LOCS by ThunderSTORM's renderers; without the plugin take the verb render."""
    run.outputs(output)
    from smlm_bridge.bridge import modules
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.io.formats import read

    storm = where.plugin("smlm-bridge render")
    kinds: dict[str, type[modules.Renderer]] = {
        "ash": modules.AveragedShiftedHistograms,
        "gaussian": modules.NormalizedGaussian,
        "histogram": modules.Histograms,
        "scatter": modules.ScatterPlot,
    }
    table = read(locs, pixel_nm=pixel_nm)
    storm.load(table, pixel_nm=pixel_nm)
    picture = storm.render(kinds[renderer](magnification=magnification), size_px=size_px)
    import tifffile

    with atomic_output(output, overwrite=run.overwrite) as temporary:
        tifffile.imwrite(temporary, picture, photometric="minisblack")
    values = {
        "engine": f"thunderstorm {storm.label}",
        "back_end": storm.gateway.back_end,
        "localizations": len(table),
        "size": list(picture.shape),
    }
    return Summary(values, aligned({"picture": str(output), **values}))
