"""The super-resolved picture, and a frame with its localizations drawn over it."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from smlm_bridge.locs import validate
from smlm_bridge.post.render import SIGMA_PX, colour_by_density, colour_by_z, render, robust_range
from smlm_bridge.report.figures import (
    colour_bar,
    new_figure,
    no_ticks,
    round_length,
    scale_bar,
    to_png,
    z_colours,
    z_lut,
)

#: A table of fewer frames and fewer localizations is shown beside its first frame.
FEW_FRAMES: Final = 10
FEW_LOCALIZATIONS: Final = 2000

_PICTURE_PX: Final = 1400  # longer side of the super-resolved picture
_FINEST_PIXEL_NM: Final = 5.0
#: Least spot width in pixels of the picture, for tables below some number of localizations: each must show.
_LEAST_SIGMA_PX: Final = {500: 3.0, FEW_LOCALIZATIONS: 2.0, 20_000: 1.2}
_WIDE: Final = 2.0  # fields wider than this stand above each other
_CIRCLE_PX: Final = 3.5  # radius in camera pixels
_ONE_COLOUR: Final = "#ffd24d"


@dataclass(frozen=True)
class Field:
    """What the camera saw.

    Parameters
    ----------
    frame_shape
        Rows and columns.
    pixel_nm
        Camera pixel.
    origin_px
        First column and row, of a region of the movie.
    """

    frame_shape: tuple[int, int]
    pixel_nm: float
    origin_px: tuple[int, int] = (0, 0)

    @property
    def size_nm(self) -> tuple[float, float]:
        """Height and width."""
        return self.frame_shape[0] * self.pixel_nm, self.frame_shape[1] * self.pixel_nm

    @property
    def origin_nm(self) -> tuple[float, float]:
        """x, y of the top-left corner."""
        return self.origin_px[0] * self.pixel_nm, self.origin_px[1] * self.pixel_nm

    def size_in(self, longer: float) -> tuple[float, float]:
        """Width and height in inches of a picture whose longer side is given; never a mere stripe."""
        height, width = self.size_nm
        scale = longer / max(height, width)
        return max(width * scale, longer / 4), max(height * scale, longer / 4)


def preview_png(
    locs: pd.DataFrame,
    *,
    frame_shape: tuple[int, int],
    pixel_nm: float,
    first_frame: NDArray[Any] | None = None,
    first_frame_index: int = 0,
    origin_px: tuple[int, int] = (0, 0),
    z_range_nm: tuple[float, float] | None = None,
) -> bytes:
    """The picture of a table of localizations: hue is z, brightness is density.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``.
    frame_shape
        Rows and columns of a frame.
    pixel_nm
        Camera pixel.
    first_frame : (H, W)
        Shown with circles around its localizations beside the picture if there are fewer than 10 frames and
        2000 localizations.
    first_frame_index
        Its number in the table, from 0.
    origin_px
        First column and row of the frames, where they are a region of the movie.
    z_range_nm
        Ends of the colour scale; None takes the 1st and 99th percentile of z, rounded.

    Returns
    -------
    A PNG.
    """
    locs = validate(locs)
    field = Field(frame_shape, pixel_nm, origin_px)
    z_range = z_range_nm or shown_z_range(locs)
    few = locs["frame"].nunique() < FEW_FRAMES and len(locs) < FEW_LOCALIZATIONS
    width, height = field.size_in(7.5)
    if first_frame is None or not few:
        figure = new_figure(width + (0.9 if z_range else 0.2), height + 0.4)
        draw_superresolved(figure, figure.add_subplot(), locs, field=field, z_range_nm=z_range)
    else:
        beside = width <= _WIDE * height
        figure = new_figure(*((2 * width + 1.1, height + 0.4) if beside else (width + 0.9, 2 * height + 0.8)))
        places = figure.subplots(*((1, 2) if beside else (2, 1)))
        draw_overlay(
            places[0], first_frame, locs, frame_index=first_frame_index, field=field, z_range_nm=z_range
        )
        draw_superresolved(figure, places[1], locs, field=field, z_range_nm=z_range, bar_beside=list(places))
    return to_png(figure, dpi=160)


def shown_z_range(locs: pd.DataFrame) -> tuple[float, float] | None:
    """Round ends for the colour scale of z; None for a table without z or rows."""
    if "z_nm" not in locs or locs.empty:
        return None
    low, high = robust_range(locs["z_nm"].to_numpy())
    step = max(round_length((high - low) / 10), 1.0)
    return float(np.floor(low / step) * step), float(np.ceil(high / step) * step)


def draw_superresolved(
    figure: Figure,
    axes: Axes,
    locs: pd.DataFrame,
    *,
    field: Field,
    z_range_nm: tuple[float, float] | None,
    bar_beside: list[Axes] | None = None,
) -> None:
    """Draw the rendered table with scale bar, colour bar and the number of localizations."""
    least = next((sigma for below, sigma in _LEAST_SIGMA_PX.items() if len(locs) < below), SIGMA_PX[0])
    picture = render(
        locs,
        pixel_nm=max(max(field.size_nm) / _PICTURE_PX, _FINEST_PIXEL_NM),
        field_nm=field.size_nm,
        origin_nm=field.origin_nm,
        z_range_nm=z_range_nm,
        sigma_px=(least, SIGMA_PX[1]),
    )
    if z_range_nm is None:
        shade = np.repeat(np.linspace(0, 1, 256)[:, None], 3, axis=1)
        colours = colour_by_density(picture, shade)
    else:
        colours = colour_by_z(picture, z_lut())
        colour_bar(figure, z_colours(z_range_nm), bar_beside or axes, "z (nm)")
    axes.imshow(colours, extent=picture.extent_nm, aspect="equal")
    frames = _count(locs["frame"].nunique(), "frame")
    shown = f"{_count(picture.shown, 'localization')} in {frames}" if picture.shown else "No localizations"
    no_ticks(axes, title=shown)
    scale_bar(axes, width_nm=field.size_nm[1])


def draw_overlay(
    axes: Axes,
    frame: NDArray[Any],
    locs: pd.DataFrame,
    *,
    frame_index: int,
    field: Field,
    z_range_nm: tuple[float, float] | None,
) -> None:
    """Draw one camera frame with a circle around every localization, coloured by z."""
    here = locs[locs["frame"] == frame_index]
    finite = frame[np.isfinite(frame)].astype(float)
    low, high = np.percentile(finite, (1, 99.8)) if finite.size else (0.0, 1.0)
    left, top = field.origin_nm
    height, width = field.size_nm
    extent = (left, left + width, top + height, top)
    axes.imshow(frame, cmap="gray", vmin=low, vmax=max(high, low + 1e-9), extent=extent, aspect="equal")
    colours: Any = _ONE_COLOUR
    if z_range_nm is not None and "z_nm" in here:
        colours = z_colours(z_range_nm).to_rgba(here["z_nm"].to_numpy())
    diameter = np.full(len(here), 2 * _CIRCLE_PX * field.pixel_nm)
    circles = EllipseCollection(
        diameter, diameter, np.zeros(len(here)), units="xy", offsets=here[["x_nm", "y_nm"]].to_numpy(),
        offset_transform=axes.transData, facecolors="none", edgecolors=colours, linewidths=0.9,
    )  # fmt: skip
    axes.add_collection(circles)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    no_ticks(axes, title=f"Frame {frame_index + 1}: {_count(len(here), 'localization')}")
    scale_bar(axes, width_nm=width)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}".replace(",", " ") + ("" if number == 1 else "s")
