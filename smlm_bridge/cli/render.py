"""``render``: a table of localizations to a picture."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smlm_bridge.cli.common import PATH, Run, output_option, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import RANGE, SEQUENCE
from smlm_bridge.errors import InputRejected, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.post.render import Method, Rendered

PICTURES = (".png", ".tif", ".tiff")


@verb(
    "render",
    units="lengths in nm; a TIFF holds localizations per pixel.",
    example="smlm-bridge render locs.csv -o picture.png --pixel-nm 10 --z-color",
)
@click.argument("locs", type=PATH)
@output_option("The picture: .png (colours, scale bar), .tif or .ome.tif (numbers).")
@click.option("--pixel-nm", type=float, default=10.0, show_default=True, help="Pixel of the picture.")
@click.option(
    "--method",
    type=click.Choice(["ash", "gaussian", "histogram"]),
    default="gaussian",
    show_default=True,
    help="Averaged shifted histogram, a spot as wide as the uncertainty, or counts.",
)
@click.option("--z-color", is_flag=True, help="Colour by z; a TIFF then has red, green, blue as channels.")
@click.option(
    "--z-nm", type=RANGE, help="With --z-color: ends of its scale; absent: 1st and 99th percentile."
)
@click.option(
    "--z-slices-nm", type=SEQUENCE, help="Edges of slices: the TIFF gets one picture a slice, upwards in z."
)
@click.option("--x-nm", type=RANGE, help="Left and right edge; absent: what the table spans.")
@click.option("--y-nm", type=RANGE, help="Upper and lower edge, likewise.")
@click.option(
    "--camera-pixel-nm", type=float, help="Pixel of the camera, for tables whose lengths are in pixels."
)
def command(
    run: Run,
    locs: Path,
    *,
    output: Path,
    pixel_nm: float,
    method: "Method",
    z_color: bool,
    z_nm: tuple[float, float] | None,
    z_slices_nm: tuple[float, ...] | None,
    x_nm: tuple[float, float] | None,
    y_nm: tuple[float, float] | None,
    camera_pixel_nm: float | None,
) -> Summary:
    """Draw the table LOCS."""
    if output.suffix.lower() not in PICTURES:
        raise UsageError(f"output {output}: a picture is {', '.join(PICTURES)}.")
    if z_slices_nm is not None and (z_color or z_nm is not None or output.suffix.lower() == ".png"):
        raise UsageError("--z-slices-nm makes a stack of numbers: give .tif, without --z-color and --z-nm.")
    run.outputs(output)
    from smlm_bridge.io.formats import read
    from smlm_bridge.post.render import render

    table = read(locs, pixel_nm=camera_pixel_nm)
    (left, right), (top, bottom) = (
        _edges(table, name, ends, pixel_nm) for name, ends in (("x_nm", x_nm), ("y_nm", y_nm))
    )
    if z_slices_nm is not None:
        return _slices(
            run, table, z_slices_nm, output, pixel_nm, method, (left, top), (bottom - top, right - left)
        )
    picture = render(
        table if z_color else table.drop(columns="z_nm", errors="ignore"),
        pixel_nm=pixel_nm,
        field_nm=(bottom - top, right - left),
        method=method,
        origin_nm=(left, top),
        z_range_nm=z_nm,
    )
    _write(run, output, picture, z_color=z_color)
    height, width = picture.counts.shape
    values = {
        "localizations_in": len(table),
        "localizations_out": picture.shown,
        "size_px": [height, width],
        "origin_nm": [left, top],
        "z_range_nm": picture.z_range_nm,
    }
    return Summary(values, aligned({"picture": str(output), **values}))


def _slices(
    run: Run,
    table: "pd.DataFrame",
    edges_nm: tuple[float, ...],
    output: Path,
    pixel_nm: float,
    method: "Method",
    origin_nm: tuple[float, float],
    field_nm: tuple[float, float],
) -> Summary:
    from smlm_bridge.io.images import write_stack
    from smlm_bridge.post.render_slices import render_slices

    stack = render_slices(
        table, edges_nm, pixel_nm=pixel_nm, field_nm=field_nm, method=method, origin_nm=origin_nm
    )
    step = edges_nm[1] - edges_nm[0]
    write_stack(output, stack, pixel_nm=pixel_nm, slice_nm=step, axes="ZYX", overwrite=run.overwrite)
    x, y, z = (table[name] for name in ("x_nm", "y_nm", "z_nm"))
    inside = (z >= edges_nm[0]) & (z < edges_nm[-1]) & (x >= origin_nm[0]) & (y >= origin_nm[1])
    inside &= (x < origin_nm[0] + stack.shape[2] * pixel_nm) & (y < origin_nm[1] + stack.shape[1] * pixel_nm)
    values = {
        "localizations_in": len(table),
        "localizations_out": int(inside.sum()),
        "size_px": list(stack.shape[1:]),
        "origin_nm": list(origin_nm),
        "z_range_nm": [edges_nm[0], edges_nm[-1]],
        "slices": len(stack),
    }
    return Summary(values, aligned({"picture": str(output), **values}))


def _edges(
    table: "pd.DataFrame", name: str, ends: tuple[float, float] | None, pixel_nm: float
) -> tuple[float, float]:
    """Two edges of the picture: those given, or whole pixels from the movie's corner around the table."""
    if ends is not None:
        return ends
    if table.empty:
        raise InputRejected("the table has no rows, so it spans no field; give --x-nm and --y-nm.")
    if not (math.isfinite(pixel_nm) and pixel_nm > 0):
        raise UsageError(f"--pixel-nm {pixel_nm} must be a length above 0 in nm, for example 10.")
    first = math.floor(table[name].min() / pixel_nm)
    last = math.floor(table[name].max() / pixel_nm)
    return first * pixel_nm, (last + 1) * pixel_nm


def _write(run: Run, output: Path, picture: "Rendered", *, z_color: bool) -> None:
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.io.images import write_stack
    from smlm_bridge.report.picture import colours, picture_png

    if output.suffix.lower() == ".png":
        data = picture_png(picture, by_z=z_color)
        with atomic_output(output, overwrite=run.overwrite) as temporary:
            temporary.write_bytes(data)
    elif z_color:
        rgb = colours(picture, by_z=True).transpose(2, 0, 1)
        write_stack(output, rgb, pixel_nm=picture.pixel_nm, axes="CYX", overwrite=run.overwrite)
    else:
        write_stack(output, picture.counts, pixel_nm=picture.pixel_nm, axes="YX", overwrite=run.overwrite)
