"""The bound over z as a picture."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from smlm_bridge.errors import InputRejected
from smlm_bridge.report.figures import BLUE, FONT_PT, GREEN, ORANGE, new_figure, plain_axes, to_png

_SERIES = (
    ("sigma_x_nm", "x", BLUE, "-"),
    ("sigma_y_nm", "y", ORANGE, "--"),
    ("sigma_z_nm", "z", GREEN, "-."),
)
_LOG_FROM = 20.0  # ratio of the largest to the smallest value from which a logarithmic axis shows more


def crlb_plot_png(table: pd.DataFrame) -> bytes:
    """The lowest standard deviations of x, y and z over the height of the emitter.

    Parameters
    ----------
    table
        Columns ``z_nm``, ``sigma_x_nm``, ``sigma_y_nm``, ``sigma_z_nm``, as ``crlb.crlb_table`` returns.

    Returns
    -------
    A PNG.

    Raises
    ------
    InputRejected
        If a column is missing.
    """
    figure = new_figure(6.5, 4.2)
    draw_crlb(figure.add_subplot(), table)
    return to_png(figure, dpi=150)


def draw_crlb(axes: Axes, table: pd.DataFrame) -> None:
    """Draw ``crlb_plot_png`` into axes."""
    missing = [name for name in ("z_nm", *(s[0] for s in _SERIES)) if name not in table]
    if missing:
        raise InputRejected(
            f"the table of the bound has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, table))}. Give the table that the verb crlb writes."
        )
    table = table.sort_values("z_nm")
    marker = "o" if len(table) < 40 else ""
    for name, label, colour, style in _SERIES:
        axes.plot(
            table["z_nm"], table[name], style, color=colour, marker=marker, markersize=3, label=f"σ {label}"
        )
    values = table[[s[0] for s in _SERIES]].to_numpy(dtype=float)
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size and positive.max() > _LOG_FROM * positive.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    plain_axes(
        axes,
        title="Cramér–Rao bound: best possible precision",
        x="z, height above the coverslip (nm)",
        y="standard deviation (nm)",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=FONT_PT, frameon=False, ncols=3)
