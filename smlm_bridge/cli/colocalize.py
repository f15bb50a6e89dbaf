"""``colocalize``: how the localizations of two tables lie to each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from smlm_bridge.cli.common import PATH, Run, file_option, output_option, verb
from smlm_bridge.cli.reporting import Summary, aligned

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.post.colocalization import Colocalization


@verb(
    "colocalize",
    units="lengths in nm; cbc from -1 to 1.",
    example="smlm-bridge colocalize green.csv red.csv -o green_cbc.csv --output2 red_cbc.csv",
)
@click.argument("locs", type=PATH)
@click.argument("other", type=PATH)
@output_option("LOCS with the columns cbc, nn_dist and nn_count.")
@file_option("--output2", "OTHER with the same columns.")
@click.option(
    "--radius-step-nm",
    type=float,
    default=50.0,
    show_default=True,
    help="The radii are 1, 2, ... times this.",
)
@click.option("--steps", type=click.IntRange(min=2), default=10, show_default=True, help="How many radii.")
@click.option(
    "--dimensions",
    type=click.Choice(["2", "3"]),
    default="2",
    show_default=True,
    help="Distance in x, y, or in x, y, z.",
)
@click.option("--pixel-nm", type=float, help="Camera pixel, for tables in pixels.")
def command(
    run: Run,
    locs: Path,
    other: Path,
    *,
    output: Path,
    output2: Path | None,
    radius_step_nm: float,
    steps: int,
    dimensions: str,
    pixel_nm: float | None,
) -> Summary:
    """Coordinate-based colocalization of the tables LOCS and OTHER, and nearest neighbours (Malkusch 2012).

    Every row gets cbc (+1: both densities grow alike around it, 0: unrelated, -1: one grows and the other
    falls), nn_dist, the distance of the nearest row of the other table, and nn_count, how many of them lie
    within the largest radius; where none does, cbc is 0. The two channels must be registered before.
    """
    run.outputs(output, output2)
    from smlm_bridge.io.formats import read, write
    from smlm_bridge.post.colocalization import colocalize

    tables = read(locs, pixel_nm=pixel_nm), read(other, pixel_nm=pixel_nm)
    axes: Literal[2, 3] = 3 if dimensions == "3" else 2
    found = []
    for here, there in (tables, tables[::-1]):
        with run.steps("counting neighbours") as on_step:
            settings: dict[str, Any] = {"radius_step_nm": radius_step_nm, "steps": steps, "dimensions": axes}
            found.append(colocalize(here, there, **settings, on_step=on_step))
    for path, table, result in zip((output, output2), tables, found, strict=True):
        if path is not None:
            write(path, _with_columns(table, result), pixel_nm=pixel_nm, overwrite=run.overwrite)
    values: dict[str, Any] = {
        "localizations": [len(table) for table in tables],
        "mean_cbc": [_mean(result.cbc) for result in found],
        "median_distance_nm": [_median(result.distance_nm) for result in found],
        "without_neighbour": [int((result.neighbours[:, -1] == 0).sum()) for result in found],
    }
    return Summary(values, aligned({"table": str(output), **values}))


def _with_columns(table: "pd.DataFrame", found: "Colocalization") -> "pd.DataFrame":
    import numpy as np

    return table.assign(
        **{
            "cbc": np.nan_to_num(found.cbc, nan=0.0),
            "nn_dist [nm]": found.distance_nm,  # ThunderSTORM's name of it
            "nn_count": found.neighbours[:, -1],
        }
    )


def _mean(values: Any) -> float | None:
    """Mean of what is defined."""
    import numpy as np

    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _median(values: Any) -> float | None:
    import numpy as np

    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else None
