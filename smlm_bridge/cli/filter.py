"""``filter``: keep the localizations that fulfil an expression, lie in a region, are dense or unique."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from smlm_bridge.cli.common import PATH, Run, output_option, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import RANGE
from smlm_bridge.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd


@verb(
    "filter",
    units="as in the table: nm, photo-electrons, frames from 1.",
    example='smlm-bridge filter locs.csv "uncertainty_xy < 20 & z > -300" -o good.csv',
)
@click.argument("locs", type=PATH)
@click.argument("expression", metavar="[EXPR]", required=False)
@output_option("The table of what is kept.")
@click.option("--x-nm", type=RANGE, help="Region: ends in x, the upper one not included.")
@click.option("--y-nm", type=RANGE, help="Likewise in y.")
@click.option("--z-nm", type=RANGE, help="Likewise in z.")
@click.option(
    "--duplicates-nm",
    metavar="NM|EXPR",
    help="Of localizations of one frame this close keep the most certain; a length, or as uncertainty_xy.",
)
@click.option("--density-radius-nm", type=float, help="Keep what has neighbours, of all frames, this close.")
@click.option(
    "--density-neighbours", type=int, default=5, show_default=True, help="How many of them at least."
)
@click.option(
    "--density-dimensions",
    type=click.Choice(["2", "3"]),
    default="2",
    show_default=True,
    help="Distance in x, y, or in x, y, z.",
)
@click.option("--pixel-nm", type=float, help="Camera pixel, for tables in pixels.")
def command(
    run: Run,
    locs: Path,
    expression: str | None,
    *,
    output: Path,
    x_nm: tuple[float, float] | None,
    y_nm: tuple[float, float] | None,
    z_nm: tuple[float, float] | None,
    duplicates_nm: str | None,
    density_radius_nm: float | None,
    density_neighbours: int,
    density_dimensions: str,
    pixel_nm: float | None,
) -> Summary:
    """Keep the rows of the table LOCS for which EXPR is true.

    EXPR names columns as ThunderSTORM does (x, intensity, uncertainty_xy) and knows + - * / ^, comparisons,
    & | !, parentheses, abs, mean, std, median, min, max, sum. The steps run in the order region, EXPR,
    duplicates, density, each on what the one before has left.
    """
    steps = (x_nm, y_nm, z_nm, expression, duplicates_nm, density_radius_nm)
    if all(step is None for step in steps):
        raise UsageError(
            'nothing to filter by: give EXPR, for example "uncertainty_xy < 20", or one of --x-nm, --y-nm, '
            "--z-nm, --duplicates-nm, --density-radius-nm."
        )
    run.outputs(output)
    from smlm_bridge.io.formats import read, write
    from smlm_bridge.post.filter import by_density, by_expression, in_region, without_duplicates

    table = read(locs, pixel_nm=pixel_nm)
    kept: pd.DataFrame = in_region(table, x_nm=x_nm, y_nm=y_nm, z_nm=z_nm)
    if expression is not None:
        kept = by_expression(kept, expression)
    if duplicates_nm is not None:
        kept = without_duplicates(kept, duplicates_nm)
    if density_radius_nm is not None:
        dimensions: Literal[2, 3] = 3 if density_dimensions == "3" else 2
        kept = by_density(kept, density_radius_nm, neighbours=density_neighbours, dimensions=dimensions)
    write(output, kept, pixel_nm=pixel_nm, overwrite=run.overwrite)
    values = {"localizations_in": len(table), "localizations_out": len(kept)}
    return Summary(values, aligned({"table": str(output), **values}))
