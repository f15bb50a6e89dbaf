"""The page about one run of ``localize``."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.coverage import Coverage
from smlm_bridge.locs import SCHEMA, validate
from smlm_bridge.report import page as html
from smlm_bridge.report.coverage import coverage_parts
from smlm_bridge.report.figures import BLUE, ORANGE, colour_bar, new_figure, plain_axes, to_png, z_colours
from smlm_bridge.report.preview import Field, draw_overlay, draw_superresolved, shown_z_range

_PICTURE_BYTES: Final = 950_000  # of each of at most two pictures: the page stays below 3 MB
_HISTOGRAMS: Final = {
    "photons": "photons",
    "background": "background (photons per pixel)",
    "uncertainty_xy_nm": "lateral uncertainty (nm)",
    "uncertainty_z_nm": "axial uncertainty (nm)",
    "z_nm": "z (nm)",
    "probability": "probability",
}
_SHOWN_FAILURES: Final = 20
_MOST_BINS: Final = 500


def localization_page(
    locs: pd.DataFrame,
    *,
    frame_shape: tuple[int, int],
    pixel_nm: float,
    title: str,
    example_frame: NDArray[Any] | None = None,
    example_frame_index: int = 0,
    failed_frames: Mapping[int, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    n_frames: int | None = None,
    origin_px: tuple[int, int] = (0, 0),
    z_range_nm: tuple[float, float] | None = None,
    coverage: Coverage | None = None,
) -> str:
    """One self-contained HTML page about a table of localizations.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``; may be empty or without z.
    frame_shape
        Rows and columns of a frame.
    pixel_nm
        Camera pixel.
    title
        Heading, for example the name of the movie.
    example_frame : (H, W)
        Shown with circles around its localizations.
    example_frame_index
        Its number in the table, from 0.
    failed_frames
        Frame (from 0) to reason.
    provenance
        How the table was made; anything that can be shown as text.
    n_frames
        Frames of the movie; None takes the last one in the table.
    origin_px
        First column and row of the frames, where they are a region of the movie.
    z_range_nm
        Ends of the colour scale; None takes the 1st and 99th percentile of z, rounded.
    coverage
        Whether the model is meant for these frames; None leaves that out.

    Returns
    -------
    HTML below 3 MB.
    """
    locs = validate(locs)
    failed = dict(failed_frames or {})
    last = max([-1, *failed, *([int(locs["frame"].max())] if len(locs) else [])]) + 1
    frames = max(n_frames or 0, last)
    field = Field(frame_shape, pixel_nm, origin_px)
    z_range = z_range_nm or shown_z_range(locs)
    parts = [html.paragraph(_sentence(locs, frames, field))]
    parts += [html.warning(text) for text in _warnings(locs, failed)]
    if coverage is not None:
        say = html.paragraph if coverage.light == "green" else html.warning
        parts.append(say(f"Is the model meant for these data? {coverage.headline}; see below."))
    parts += [
        html.heading("Super-resolved picture"),
        html.image(_superresolved(locs, field, z_range), alt="Super-resolved picture of all localizations"),
        html.paragraph(_picture_text(z_range is not None), muted=True),
    ]
    if example_frame is not None:
        overlay = _example(locs, example_frame, example_frame_index, field, z_range)
        parts += [
            html.heading("Example frame"),
            html.image(overlay, alt="One frame with a circle around every localization"),
        ]
    parts += [html.heading("Distributions"), html.image(_histograms(locs), alt="Histograms of the columns")]
    parts += [
        html.heading("Localizations per frame"),
        html.image(_per_frame(locs, frames, failed), alt="Number of localizations over the movie"),
        html.heading("Columns"),
        html.grid(("column", "unit", "median", "5 %", "95 %", "rows given"), _column_rows(locs)),
    ]
    if failed:
        parts += [html.heading("Failed frames"), *_failures(failed)]
    if coverage is not None:
        parts += [html.heading("Is the model meant for these data?"), *coverage_parts(coverage)]
    if provenance:
        parts += [html.heading("How this was made"), html.pairs(provenance)]
    return html.page(title, parts)


def _sentence(locs: pd.DataFrame, frames: int, field: Field) -> str:
    height, width = (length / 1000 for length in field.size_nm)
    density = f", {len(locs) / frames / (height * width):.3g} per µm² and frame" if frames else ""
    return (
        f"{len(locs)} localizations in {frames} frames of {field.frame_shape[1]} × {field.frame_shape[0]} "
        f"pixels ({width:.4g} × {height:.4g} µm, {field.pixel_nm:g} nm per pixel){density}."
    )


def _warnings(locs: pd.DataFrame, failed: Mapping[int, str]) -> list[str]:
    found = []
    if locs.empty:
        found.append(
            "No localization was found. Check the camera (offset, e_per_adu), that the model was made for "
            "this PSF, and the threshold."
        )
    if failed:
        found.append(f"{len(failed)} frames failed; the reasons are listed below.")
    return found


def _picture_text(has_z: bool) -> str:
    spot = "Each localization is a Gaussian as wide as its lateral uncertainty"
    return f"{spot}. Hue is z, brightness is density." if has_z else f"{spot}. The table has no z."


def _superresolved(locs: pd.DataFrame, field: Field, z_range: tuple[float, float] | None) -> bytes:
    width, height = field.size_in(9.0)
    figure = new_figure(width + 0.8, height + 0.3)
    draw_superresolved(figure, figure.add_subplot(), locs, field=field, z_range_nm=z_range)
    return to_png(figure, max_bytes=_PICTURE_BYTES)


def _example(
    locs: pd.DataFrame, frame: NDArray[Any], index: int, field: Field, z_range: tuple[float, float] | None
) -> bytes:
    width, height = field.size_in(9.0)
    figure = new_figure(width + 0.8, height + 0.3)
    axes = figure.add_subplot()
    draw_overlay(axes, frame, locs, frame_index=index, field=field, z_range_nm=z_range)
    if z_range is not None:
        colour_bar(figure, z_colours(z_range), axes, "z (nm)")
    return to_png(figure, max_bytes=_PICTURE_BYTES)


def _histograms(locs: pd.DataFrame) -> bytes:
    figure = new_figure(10.0, 4.8)
    for axes, (name, label) in zip(figure.subplots(2, 3).flat, _HISTOGRAMS.items(), strict=True):
        plain_axes(axes, x=label, y="localizations")
        values = _given(locs, name)
        if values.size == 0:
            axes.text(0.5, 0.5, "not in this table", transform=axes.transAxes, ha="center", color="#777777")
            axes.set_xticks([])
            axes.set_yticks([])
            continue
        _histogram(axes, values)
    return to_png(figure)


def _histogram(axes: Axes, values: NDArray[np.float64]) -> None:
    """The bulk of the values with the median marked; the farthest 1 % would squeeze it."""
    low, high = np.percentile(values, (0, 99) if values.min() >= 0 else (0.5, 99.5))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    axes.hist(values, bins=min(60, max(10, int(np.sqrt(values.size)))), range=(low, high), color=BLUE)
    median = float(np.median(values))
    axes.axvline(median, color=ORANGE, linewidth=1.5)
    axes.set_title(f"median {html.shown(median)}", fontsize=9, loc="right", color=ORANGE)


def _given(locs: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """The usable values of a column."""
    if name not in locs:
        return np.zeros(0)
    values = locs[name].to_numpy(dtype=float)
    return np.asarray(values[np.isfinite(values)])


def _per_frame(locs: pd.DataFrame, frames: int, failed: Mapping[int, str]) -> bytes:
    figure = new_figure(10.0, 2.6)
    axes = figure.add_subplot()
    counts = np.bincount(locs["frame"].to_numpy(), minlength=max(frames, 1))
    # A long movie is averaged over blocks of frames: one point a frame would only show noise.
    block = -(-counts.size // _MOST_BINS)
    edges = np.append(np.arange(0, counts.size, block), counts.size)
    mean = np.add.reduceat(counts, edges[:-1]) / np.diff(edges)
    axes.stairs(mean, edges + FIRST_FRAME_IN_FILES - 0.5, fill=True, color=BLUE, linewidth=1.0)
    if failed:
        axes.plot(
            np.array(sorted(failed)) + FIRST_FRAME_IN_FILES, np.zeros(len(failed)), "x", color=ORANGE,
            clip_on=False, label="failed frame",
        )  # fmt: skip
        axes.legend(fontsize=8, frameon=False, loc="upper right")
    axes.set_ylim(bottom=0)
    label = "localizations per frame" if block == 1 else f"mean of {block} frames"
    plain_axes(axes, x="frame (from 1)", y=label)
    axes.margins(x=0.01)
    return to_png(figure)


def _column_rows(locs: pd.DataFrame) -> list[tuple[Any, ...]]:
    rows = []
    for column in SCHEMA:
        values = _given(locs, column.name)
        if column.name not in locs or column.name == "frame":
            continue
        low, median, high = np.percentile(values, (5, 50, 95)) if values.size else (np.nan,) * 3
        rows.append((column.name, column.unit, float(median), float(low), float(high), values.size))
    return rows


def _failures(failed: Mapping[int, str]) -> list[str]:
    first = sorted(failed)[:_SHOWN_FAILURES]
    parts = [html.grid(("frame (from 1)", "reason"), [(f + FIRST_FRAME_IN_FILES, failed[f]) for f in first])]
    if len(failed) > len(first):
        parts.append(html.paragraph(f"… and {len(failed) - len(first)} more."))
    return parts
