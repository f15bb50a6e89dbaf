"""``merge``: merge the blinks of a molecule in several frames."""

from pathlib import Path
from typing import Literal

import click

from smlm_bridge.cli.common import PATH, Run, output_option, verb
from smlm_bridge.cli.reporting import Summary, aligned


@verb(
    "merge",
    units="lengths in nm, photons in photo-electrons.",
    example="smlm-bridge merge locs.csv -o merged.csv --distance-nm 30 --gap-frames 2",
)
@click.argument("locs", type=PATH)
@output_option("The merged table.")
@click.option(
    "--distance-nm",
    type=float,
    default=20.0,
    show_default=True,
    help="Detections closer than this to a molecule's last detection belong to it.",
)
@click.option(
    "--gap-frames", type=int, default=1, show_default=True, help="Longest dark time within a molecule."
)
@click.option(
    "--z-weight",
    type=float,
    default=0.1,
    show_default=True,
    help="Factor of differences in z within the distance; 0 ignores z.",
)
@click.option(
    "--mode",
    type=click.Choice(["weighted", "thunderstorm"]),
    default="weighted",
    show_default=True,
    help="Means weighted by 1/sigma^2 with recombined uncertainties, or ThunderSTORM's plain means.",
)
@click.option(
    "--pixel-nm",
    type=float,
    help="Camera pixel: for tables in pixels, and for the uncertainty of the mode thunderstorm.",
)
def command(
    run: Run,
    locs: Path,
    *,
    output: Path,
    distance_nm: float,
    gap_frames: int,
    z_weight: float,
    mode: Literal["weighted", "thunderstorm"],
    pixel_nm: float | None,
) -> Summary:
    """Merge the detections of one molecule in the table LOCS.

    In every frame, a detection goes to the molecule whose last detection is nearest. Photons are summed and
    detections counted.
    """
    run.outputs(output)
    from smlm_bridge.io.formats import read, write
    from smlm_bridge.post.merge import merge

    table = read(locs, pixel_nm=pixel_nm)
    merged = merge(table, distance_nm, gap_frames=gap_frames, z_weight=z_weight, mode=mode, pixel_nm=pixel_nm)
    write(output, merged, pixel_nm=pixel_nm, overwrite=run.overwrite)
    values = {
        "localizations_in": len(table),
        "localizations_out": len(merged),
        "mean_detections": float(merged["detections"].mean()) if len(merged) else None,
    }
    return Summary(values, aligned({"table": str(output), **values}))
