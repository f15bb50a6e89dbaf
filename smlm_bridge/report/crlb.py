"""The bound over z and photons as a picture."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from smlm_bridge.errors import InputRejected
from smlm_bridge.report.figures import BLUE, FONT_PT, GREEN, ORANGE, new_figure, plain_axes, to_png

_SERIES = (
    ("sigma_x_nm", "x", BLUE, "-"),
    ("sigma_y_nm", "y", ORANGE, "--"),
    ("sigma_z_nm", "z", GREEN, "-."),
)
_MOST_LINES = 7
_LOG_FROM = 20.0  # ratio of the largest to the smallest value from which a logarithmic axis shows more


def crlb_plot_png(table: pd.DataFrame) -> bytes:
    """The lowest standard deviations of x, y and z over the height of the emitter, and over its photons.

    Parameters
    ----------
    table
        Columns ``z_nm``, ``sigma_x_nm``, ``sigma_y_nm``, ``sigma_z_nm``, as ``crlb.crlb_table`` returns; with
        several ``photons`` one panel each for x, y and z, over z with a line for each number of photons, or
        over photons where there is one height.

    Returns
    -------
    A PNG.

    Raises
    ------
    InputRejected
        If a column is missing.
    """
    _check(table)
    if "photons" in table and len(np.unique(table["photons"])) > 1:
        figure = new_figure(9.0, 3.6)
        draw_over_photons(list(figure.subplots(1, 3, sharex=True, sharey=True)), table)
    else:
        figure = new_figure(6.5, 4.2)
        draw_crlb(figure.add_subplot(), table)
    return to_png(figure, dpi=150)


def _check(table: pd.DataFrame) -> None:
    missing = [name for name in ("z_nm", *(s[0] for s in _SERIES)) if name not in table]
    if missing:
        raise InputRejected(
            f"the table of the bound has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, table))}. Give the table that the verb crlb writes."
        )


def draw_crlb(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the bound of one number of photons over z into axes."""
    _check(table)
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


def draw_over_photons(panels: list[Axes], table: pd.DataFrame) -> None:
    """Draw the bound of several numbers of photons into three panels, for x, y and z."""
    single = len(np.unique(table["z_nm"])) == 1
    photons = np.unique(table["photons"])
    shown = photons[
        np.unique(np.linspace(0, len(photons) - 1, min(len(photons), _MOST_LINES)).round().astype(int))
    ]
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(shown)))
    for panel, (name, label, colour, _) in zip(panels, _SERIES, strict=True):
        if single:
            line = table.sort_values("photons")
            panel.plot(line["photons"], line[name], "o-", color=colour, markersize=3)
            panel.set_xscale("log")
            _plain_log(panel.xaxis)
        else:
            for count, shade in zip(shown, shades, strict=True):
                line = table[table["photons"] == count].sort_values("z_nm")
                panel.plot(line["z_nm"], line[name], color=shade, label=f"{count:g}")
        panel.set_yscale("log")
        _plain_log(panel.yaxis)
        plain_axes(panel, title=f"σ {label} (nm)", x="photons" if single else "z (nm)")
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("lowest standard deviation (nm)", fontsize=FONT_PT)
    if not single:
        panels[-1].legend(
            title="photons", fontsize=FONT_PT - 1, title_fontsize=FONT_PT - 1, frameon=False,
            loc="center left", bbox_to_anchor=(1.0, 0.5),
        )  # fmt: skip


def _plain_log(axis: Axis) -> None:
    """Label 1, 2, 5, 10, 20 ... as they are, not as powers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
