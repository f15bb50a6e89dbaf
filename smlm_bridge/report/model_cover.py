"""The cover picture of a model package: a frame, and what the model finds in it."""

from typing import Any

import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.report.figures import FONT_PT, new_figure, no_ticks, to_png, z_colours
from smlm_bridge.report.preview import Field, draw_overlay

_LARGEST_BYTES = 480_000  # bioimage.io asks for less than 500 kB
_SIZE_IN = (8.0, 4.0)  # two to one, as bioimage.io shows it


def model_cover_png(
    frame: NDArray[Any], locs: pd.DataFrame, *, pixel_nm: float, z_range_nm: tuple[float, float]
) -> bytes:
    """PNG, two to one, below 500 kB: left the frame, right the same with circles coloured by z.

    Parameters
    ----------
    frame : (H, W)
        Counts.
    locs
        Localizations of this frame, which is frame 0.
    pixel_nm, z_range_nm
        Of the model.
    """
    figure = new_figure(*_SIZE_IN)
    left, right = figure.subplots(1, 2)
    field = Field(frame.shape, pixel_nm, (0, 0))
    for axes, shown in ((left, locs[:0]), (right, locs)):
        draw_overlay(axes, frame, shown, frame_index=0, field=field, z_range_nm=z_range_nm)
    no_ticks(left, title="Camera frame")
    no_ticks(right, title=f"{len(locs)} localizations")
    bar = figure.colorbar(z_colours(z_range_nm), ax=right, shrink=0.9, pad=0.02)
    bar.set_label("z (nm)", fontsize=FONT_PT)
    bar.ax.tick_params(labelsize=FONT_PT - 1)
    return to_png(figure, max_bytes=_LARGEST_BYTES)
