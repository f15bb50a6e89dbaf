"""What every figure of ours shares: canvas, PNG bytes, the colours of z, scale bars."""

import io
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

FONT_PT: Final = 9
DPI: Final = 110
#: Colours of series, distinguishable with every common colour blindness (Okabe & Ito 2008).
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"

_SMALLER_DPI: Final = (DPI, 85, 65, 50)
_Z_SPAN: Final = (0.06, 0.94)  # of turbo: its ends are nearly black
_SCALE_BAR_SHARE: Final = 0.22


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure with a canvas of its own."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure, *, dpi: int = DPI, max_bytes: int | None = None) -> bytes:
    """The figure as PNG; with ``max_bytes`` at a lower resolution where it would be larger."""
    choices = [dpi] if max_bytes is None else [dpi, *(lower for lower in _SMALLER_DPI if lower < dpi)]
    data = b""
    for choice in choices:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=choice, metadata={"Software": None})
        data = buffer.getvalue()
        if max_bytes is None or len(data) <= max_bytes:
            break
    return data


def z_lut() -> NDArray[np.float64]:
    """(256, 3) colours of z, all of full brightness so that darkness is free to mean density."""
    colours = colormaps["turbo"](np.linspace(*_Z_SPAN, 256))[:, :3]
    return np.asarray(colours / colours.max(axis=1, keepdims=True))


def z_colours(z_range_nm: tuple[float, float]) -> ScalarMappable:
    """The colour scale of z for circles and colour bars."""
    return ScalarMappable(Normalize(*z_range_nm), ListedColormap(z_lut()))


def plain_axes(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Labels in one size, and no box around the data."""
    axes.set_title(title, fontsize=FONT_PT + 1, loc="left")
    axes.set_xlabel(x, fontsize=FONT_PT)
    axes.set_ylabel(y, fontsize=FONT_PT)
    axes.tick_params(labelsize=FONT_PT - 1)
    axes.spines[["top", "right"]].set_visible(False)


def no_ticks(axes: Axes, *, title: str = "") -> None:
    """A picture without axes; its scale comes from a scale bar or from the text."""
    axes.set_title(title, fontsize=FONT_PT)
    axes.set_xticks([])
    axes.set_yticks([])


def colour_bar(
    figure: Figure, mappable: ScalarMappable, axes: Axes | Sequence[Axes], label: str, **placing: Any
) -> None:
    """A colour bar with its unit."""
    bar = figure.colorbar(mappable, ax=axes, **({"shrink": 0.85, "pad": 0.015, "aspect": 30} | placing))
    bar.set_label(label, fontsize=FONT_PT)
    bar.ax.tick_params(labelsize=FONT_PT - 1)


def round_length(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not longer than ``length``."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(step * power for step in (5, 2, 1) if step * power <= length * (1 + 1e-9))


def length_text(length_nm: float) -> str:
    """A length in nm or µm."""
    return f"{length_nm:g} nm" if length_nm < 1000 else f"{length_nm / 1000:g} µm"


def scale_bar(axes: Axes, *, width_nm: float, small: bool = False) -> None:
    """A white bar of a round length, bottom right, with its length above it.

    Parameters
    ----------
    axes
        Axes of an image.
    width_nm
        Width of what the axes show.
    small
        For a picture the size of a stamp.
    """
    length_nm = round_length((2 if small else 1) * _SCALE_BAR_SHARE * width_nm)
    box, bar = (0.25, 0.03) if small else (0.085, 0.013)
    share = length_nm / width_nm
    # Placed in shares of the axes, so that it looks alike in every field.
    place = axes.transAxes
    for x, y, width, height, colour, alpha in (
        (0.955 - share, 0.015, share + 0.03, box, "black", 0.55),
        (0.97 - share, 0.03, share, bar, "white", 1.0),
    ):
        axes.add_patch(Rectangle((x, y), width, height, color=colour, alpha=alpha, lw=0, transform=place))
    axes.text(
        0.97 - share / 2, 0.039 + bar, length_text(length_nm), transform=place, color="white",
        fontsize=FONT_PT - (1.5 if small else 0), ha="center", va="bottom",
    )  # fmt: skip
