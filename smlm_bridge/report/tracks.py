"""The page about tracks: trajectories, mean squared displacement, diffusion, lengths and steps."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.locs import validate
from smlm_bridge.post.diffusion import CONFIDENCE, Diffusion, Msd
from smlm_bridge.post.tracks import NONE, Integers, trajectories
from smlm_bridge.report import page as html
from smlm_bridge.report.figures import (
    BLUE,
    FONT_PT,
    GREY,
    ORANGE,
    colour_bar,
    new_figure,
    plain_axes,
    to_png,
    z_colours,
)

_MOST_DRAWN: Final = 3000  # longest tracks first: more are a carpet
_PICTURE_BYTES: Final = 950_000
_SHOWN_ROWS: Final = 20

Floats = NDArray[np.float64]


def tracks_page(
    locs: pd.DataFrame,
    number: Integers,
    *,
    title: str,
    msd: Msd | None = None,
    diffusion: Diffusion | None = None,
    steps_nm: Floats | None = None,
    max_step_nm: float | None = None,
    warnings: tuple[str, ...] = (),
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """One self-contained HTML page about the tracks of a table.

    Parameters
    ----------
    locs, number
        The table and the track of every row (``post.tracks``).
    title
        Heading, for example the name of the table.
    msd, diffusion
        What ``post.diffusion`` found, where it did.
    steps_nm, max_step_nm
        Lengths of the steps, and the longest that was allowed.
    warnings
        Sentences to be marked.
    provenance
        How it was made; anything that can be shown as text.
    """
    table = validate(locs)
    rows = trajectories(table, number)
    parts = [html.paragraph(_sentence(table, number, rows)), *map(html.warning, warnings)]
    if diffusion is not None:
        parts += [html.heading("Diffusion"), html.pairs(_numbers(diffusion))]
    if len(rows):
        parts += [
            html.heading("Trajectories"),
            html.image(_trajectories(table, number, rows), alt="Trajectories in the plane"),
        ]
    if msd is not None:
        text = (
            f"Mean over all pairs of detections of all tracks; the band has {CONFIDENCE:.0%} confidence, by a "
            "bootstrap over tracks."
        )
        parts += [
            html.heading("Mean squared displacement"),
            html.image(_msd(msd, diffusion), alt="Mean squared displacement over time"),
            html.paragraph(text, muted=True),
        ]
    if len(rows):
        shown = rows.sort_values("detections", ascending=False, kind="stable").head(_SHOWN_ROWS)
        from_one = {
            name: shown[name] + FIRST_FRAME_IN_FILES for name in ("track", "first_frame", "last_frame")
        }
        shown = shown.assign(**from_one)
        parts += [
            html.heading("Lengths and steps"),
            html.image(_histograms(rows, steps_nm, max_step_nm), alt="Histograms of lengths and steps"),
            html.heading(f"The {len(shown)} longest tracks"),
            html.grid(list(shown.columns), shown.itertuples(index=False)),
        ]
    if provenance:
        parts += [html.heading("How this was made"), html.pairs(provenance)]
    return html.page(title, parts)


def _sentence(table: pd.DataFrame, number: Integers, rows: pd.DataFrame) -> str:
    text = f"{len(rows)} tracks of {int(np.sum(number != NONE))} localizations (of {len(table)} in the table)"
    if rows.empty:
        return text + "."
    return f"{text}; median length {html.shown(float(rows['detections'].median()))} detections."


def _numbers(found: Diffusion) -> dict[str, Any]:
    low, high = found.interval_um2_s
    within = f"{CONFIDENCE:.0%} within {low:.4g} to {high:.4g}"
    values: dict[str, Any] = {
        "diffusion coefficient (µm²/s)": f"{found.coefficient_um2_s:.4g}, {within}",
        "localization error per axis (nm)": found.error_nm,
    }
    if found.alpha is not None and found.alpha_interval is not None:
        low, high = found.alpha_interval
        text = f"{found.alpha:.2f}, {CONFIDENCE:.0%} within {low:.2f} to {high:.2f} (1 is free diffusion)"
        values["exponent"] = text
    return values | {"lags fitted": found.fit_lags, "tracks": found.tracks}


def _trajectories(table: pd.DataFrame, number: Integers, rows: pd.DataFrame) -> bytes:
    """The longest tracks, coloured by time."""
    longest = rows.nlargest(_MOST_DRAWN, "detections")["track"].to_numpy()
    drawn = np.flatnonzero(np.isin(number, longest))
    frame = table["frame"].to_numpy()
    drawn = drawn[np.lexsort((frame[drawn], number[drawn]))]
    place = table[["x_nm", "y_nm"]].to_numpy()[drawn] / 1000
    together = np.diff(number[drawn]) == 0
    lines = np.stack([place[:-1], place[1:]], axis=1)[together]
    figure = new_figure(8.0, 6.4)
    axes = figure.add_subplot()
    span = float(frame[drawn].min() + 1), float(max(frame[drawn].max() + 1, frame[drawn].min() + 2))
    colours = z_colours(span)
    axes.add_collection(
        LineCollection(list(lines), colors=colours.to_rgba(frame[drawn][1:][together] + 1), linewidths=0.9)
    )
    axes.plot(*place.T, ",", color=GREY, alpha=0.5)
    axes.set_aspect("equal", adjustable="datalim")
    axes.autoscale()
    axes.invert_yaxis()
    colour_bar(figure, colours, axes, "frame")
    more = f" (the {len(longest)} longest)" if len(rows) > len(longest) else ""
    plain_axes(axes, title=f"Tracks{more}", x="x (µm)", y="y (µm, down)")
    return to_png(figure, max_bytes=_PICTURE_BYTES)


def _msd(msd: Msd, diffusion: Diffusion | None) -> bytes:
    figure = new_figure(10.0, 3.6)
    for axes, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
        axes.fill_between(msd.lag_s, msd.low_um2, msd.high_um2, color=BLUE, alpha=0.25, lw=0)
        axes.plot(msd.lag_s, msd.msd_um2, "o-", color=BLUE, ms=3.5, lw=1.0)
        if diffusion is not None:
            time = msd.lag_s[: diffusion.fit_lags]
            level = msd.msd_um2[: time.size]
            rise = 2 * msd.dimensions * diffusion.coefficient_um2_s
            weight = msd.pairs[: time.size] / time**2
            offset = np.average(level - rise * time, weights=weight)
            axes.plot(time, offset + rise * time, color=ORANGE, lw=1.8, label="fit")
            axes.legend(frameon=False, fontsize=FONT_PT)
        axes.set_xscale(scale)
        axes.set_yscale(scale)
        axes.tick_params(which="minor", labelbottom=False, labelleft=False)
        plain_axes(axes, x="time (s)", y=f"MSD in {msd.dimensions}-D (µm²)")
    return to_png(figure)


def _histograms(rows: pd.DataFrame, steps_nm: Floats | None, max_step_nm: float | None) -> bytes:
    figure = new_figure(10.0, 2.8)
    lengths, steps = figure.subplots(1, 2)
    longest = int(rows["detections"].max())
    lengths.hist(rows["detections"], bins=min(60, longest), range=(0.5, longest + 0.5), color=BLUE)
    lengths.set_yscale("log")
    plain_axes(lengths, x="detections of a track", y="tracks")
    if steps_nm is not None and steps_nm.size:
        steps.hist(steps_nm, bins=60, color=BLUE)
    if max_step_nm is not None:
        steps.axvline(max_step_nm, color=ORANGE, lw=1.3, label="longest allowed")
        steps.legend(frameon=False, fontsize=FONT_PT)
    plain_axes(steps, x="step from frame to frame (nm)", y="steps")
    return to_png(figure)
