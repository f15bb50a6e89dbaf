"""A rendered table as a PNG of exactly its pixels, with scale bar and scale of z."""

import io
from typing import Final

import numpy as np
from matplotlib import colormaps
from matplotlib.image import imsave
from numpy.typing import NDArray

from smlm_bridge.post.render import Rendered, colour_by_density, colour_by_z
from smlm_bridge.report.figures import FONT_PT, new_figure, scale_bar, to_png, z_colours, z_lut

#: Smaller pictures have no room for a scale.
LEAST_PX: Final = 128
_LARGEST_PX: Final = 2**16 - 1  # of matplotlib's canvas
_LONGER_IN: Final = 6.0  # letters grow with the picture


def colours(picture: Rendered, *, by_z: bool) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: brightness is density, hue is z or, without it, that of hot bodies.

    Raises
    ------
    InputRejected
        If z is asked for and the picture has none.
    """
    if by_z:
        return colour_by_z(picture, z_lut())
    return colour_by_density(picture, colormaps["hot"](np.linspace(0, 1, 256))[:, :3])


def picture_png(picture: Rendered, *, by_z: bool) -> bytes:
    """A PNG with one pixel for each of the picture's.

    Sides below 128 pixels leave the scales out, and so do sides above 65535.

    Raises
    ------
    InputRejected
        If z is asked for and the picture has none.
    """
    rgb = colours(picture, by_z=by_z)
    height, width = rgb.shape[:2]
    if min(height, width) < LEAST_PX or max(height, width) > _LARGEST_PX:
        return _bare_png(rgb)
    dpi = round(max(height, width) / _LONGER_IN)
    figure = new_figure((width + 0.01) / dpi, (height + 0.01) / dpi)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.set_axis_off()
    axes.imshow(rgb, extent=picture.extent_nm, aspect="auto", interpolation="none")
    scale_bar(axes, width_nm=width * picture.pixel_nm)
    if by_z and picture.z_range_nm is not None:
        place = axes.inset_axes((0.03, 0.05, 0.02, 0.3))
        bar = figure.colorbar(z_colours(picture.z_range_nm), cax=place)
        bar.set_label("z (nm)", color="white", fontsize=FONT_PT - 1)
        bar.ax.tick_params(colors="white", labelsize=FONT_PT - 2)
        bar.outline.set_visible(False)
    return to_png(figure, dpi=dpi)


def _bare_png(rgb: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, rgb, format="png")
    return buffer.getvalue()
