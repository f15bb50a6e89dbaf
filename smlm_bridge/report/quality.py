"""The page about the quality of a table."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.locs import POSITION, validate
from smlm_bridge.post.frc import THRESHOLD, Frc
from smlm_bridge.post.nena import LocalPrecision, Nena, usable
from smlm_bridge.post.quality import Quality
from smlm_bridge.report import page as html
from smlm_bridge.report.figures import (
    BLUE,
    FONT_PT,
    GREEN,
    GREY,
    ORANGE,
    colour_bar,
    new_figure,
    plain_axes,
    to_png,
)

_MOST_BINS: Final = 400
_HISTOGRAMS: Final = {
    "photons": "photons",
    "uncertainty_xy_nm": "lateral uncertainty (nm)",
    "uncertainty_z_nm": "axial uncertainty (nm)",
}
_AXES: Final = ("x", "y", "z")
_HONEST: Final = (0.8, 1.25)  # standard deviation of errors over sigma outside which a warning is worth it

Floats = NDArray[np.float64]


def quality_page(
    locs: pd.DataFrame,
    quality: Quality,
    *,
    title: str,
    z_scores: Floats | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """One self-contained HTML page about the quality of a table.

    Parameters
    ----------
    locs
        The table that was assessed.
    quality
        What ``post.quality.assess`` found.
    title
        Heading, for example the name of the table.
    z_scores
        (M, 3) errors against a known truth over the claimed uncertainties, where there is one.
    provenance
        How it was made; anything that can be shown as text.
    """
    locs = validate(locs)
    parts = [html.paragraph(_sentence(quality)), html.pairs(_numbers(locs, quality))]
    parts += [html.warning(text) for text in _warnings(quality, z_scores)]
    parts += [
        html.heading("Resolution: Fourier ring correlation"),
        *_frc_parts(quality.frc),
        html.heading("Precision: nearest neighbours in consecutive frames (NeNA)"),
        *_nena_parts(quality.nena),
    ]
    if quality.local is not None:
        parts += [html.heading("Precision by axis and by place"), *_local_parts(quality.local)]
    if z_scores is not None:
        parts += [html.heading("Errors over the claimed uncertainty (truth known)"), *_zscore_parts(z_scores)]
    parts += [
        html.heading("Light and uncertainty"),
        html.image(_histograms(locs), alt="Histograms of photons and uncertainties"),
        html.heading("Density per frame"),
        html.image(_density(locs, quality), alt="Localizations per square micrometre over the frames"),
    ]
    if provenance:
        parts += [html.heading("How this was made"), html.pairs(provenance)]
    return html.page(title, parts)


def _sentence(quality: Quality) -> str:
    merged = (
        f"{quality.molecules} after blinks within {quality.link_distance_nm:.3g} nm were merged"
        if quality.link_distance_nm
        else "blinks were not merged"
    )
    return f"{quality.localizations} localizations in {quality.frames} frames; {merged}."


def _numbers(locs: pd.DataFrame, quality: Quality) -> dict[str, Any]:
    found, precision = quality.frc, quality.nena
    values: dict[str, Any] = {
        "resolution by FRC (nm)": found.resolution_nm,
        "the same without recurring molecules (nm)": found.corrected_nm,
        "precision by NeNA (nm)": None if precision is None else precision.sigma_nm,
    }
    for name, label in _HISTOGRAMS.items():
        given = _given(locs, name)
        values[f"median {label}"] = float(np.median(given)) if given.size else None
    return values | {"localizations per µm² and frame": quality.density_per_um2}


def _warnings(quality: Quality, z_scores: Floats | None) -> list[str]:
    found = []
    if quality.frc.note:
        found.append(f"No resolution by Fourier ring correlation: {quality.frc.note}.")
    if quality.nena is None:
        found.append(
            "No precision by NeNA: too few molecules are seen in two frames running. A merged table has none."
        )
    if quality.local is not None:
        for axis, spread in zip(_AXES, quality.local.zscore_sd, strict=True):
            if np.isfinite(spread) and not _HONEST[0] <= spread <= _HONEST[1]:
                side = "smaller" if spread > 1 else "larger"
                found.append(
                    f"The table's uncertainties in {axis} are {side} than what repeated detections of one "
                    f"molecule show (by a factor of {max(spread, 1 / spread):.2f})."
                )
    return found


def _frc_parts(found: Frc) -> list[str]:
    text = (
        f"The frames were cut into {found.blocks} blocks of time, dealt to two halves at random, and the two "
        f"pictures (pixel {found.pixel_nm:g} nm) correlated. The resolution is where the curve falls below "
        "1/7. The corrected curve leaves out what molecules that return after their blink add; it relies on "
        "the uncertainties of the table."
    )
    if found.frequency_per_nm.size == 0:
        return [html.paragraph(text, muted=True)]
    figure = new_figure(10.0, 3.4)
    axes = figure.add_subplot()
    frequency = found.frequency_per_nm
    axes.plot(frequency, found.curve, color=BLUE, lw=1.4, label="curve")
    if np.isfinite(found.corrected).any():
        axes.plot(frequency, found.corrected, color=GREEN, lw=1.1, label="without recurring molecules")
    axes.axhline(THRESHOLD, color=GREY, lw=0.8, ls="--", label="1/7")
    if found.resolution_nm is not None:
        axes.axvline(1 / found.resolution_nm, color=ORANGE, lw=1.2)
        spread = "" if found.spread_nm is None else f" ± {found.spread_nm:.2g}"
        axes.set_title(
            f"{found.resolution_nm:.3g}{spread} nm", fontsize=FONT_PT + 1, color=ORANGE, loc="right"
        )
    shown = [1 / nm for nm in (found.resolution_nm, found.corrected_nm) if nm is not None]
    axes.set_xlim(0, min(frequency[-1], 2.5 * max(shown)) if shown else frequency[-1])
    axes.set_ylim(-0.15, 1.05)
    axes.legend(frameon=False, fontsize=FONT_PT, loc="upper center")
    plain_axes(axes, x="spatial frequency (1/nm)", y="correlation")
    return [html.image(to_png(figure), alt="Fourier ring correlation"), html.paragraph(text, muted=True)]


def _nena_parts(found: Nena | None) -> list[str]:
    if found is None:
        return [html.paragraph("Not available for this table.")]
    figure = new_figure(10.0, 3.0)
    axes = figure.add_subplot()
    axes.stairs(found.counts, found.edges_nm, fill=True, color=BLUE, alpha=0.55, label="pairs")
    middle = (found.edges_nm[1:] + found.edges_nm[:-1]) / 2
    axes.plot(middle, found.fitted, color=ORANGE, lw=1.5, label="fit")
    axes.legend(frameon=False, fontsize=FONT_PT)
    plain_axes(axes, x="distance of nearest neighbours in consecutive frames (nm)", y="pairs")
    text = (
        f"Lateral precision per axis {found.sigma_nm:.3g} ± {found.standard_error_nm:.2g} nm from "
        f"{found.pairs} pairs, {found.molecule_share:.0%} of them of one molecule."
    )
    return [html.paragraph(text), html.image(to_png(figure), alt="NeNA")]


def _local_parts(found: LocalPrecision) -> list[str]:
    rows = [
        (axis, found.sigma_nm[k], found.reported_nm[k], found.zscore_sd[k]) for k, axis in enumerate(_AXES)
    ]
    header = ("axis", "precision from pairs (nm)", "claimed by the table (nm)", "difference over claim, sd")
    figure = new_figure(6.0, 4.6)
    axes = figure.add_subplot()
    left, right, bottom, top = (edge / 1000 for edge in found.map_extent_nm)
    shown = axes.imshow(found.map_nm, extent=(left, right, bottom, top), cmap="viridis", interpolation="none")
    colour_bar(figure, shown, axes, "lateral precision (nm)")
    plain_axes(axes, x="x (µm)", y="y (µm)")
    return [
        html.grid(header, rows),
        html.paragraph("The last column is 1 where the claimed uncertainties are right.", muted=True),
        html.image(to_png(figure), alt="Lateral precision over the field"),
    ]


def _zscore_parts(scores: Floats) -> list[str]:
    figure = new_figure(10.0, 2.6)
    grid = np.linspace(-5, 5, 201)
    normal = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    rows = []
    for k, axes in enumerate(figure.subplots(1, len(POSITION))):
        values = scores[np.isfinite(scores[:, k]), k]
        plain_axes(axes, x=f"error in {_AXES[k]} over its uncertainty", y="share")
        if values.size == 0:
            continue
        axes.hist(values, bins=40, range=(-5, 5), density=True, color=BLUE, alpha=0.6)
        axes.plot(grid, normal, color=ORANGE, lw=1.3)
        within = float(np.mean(np.abs(values) <= 1))
        rows.append((_AXES[k], values.size, float(values.mean()), float(values.std()), within))
    header = ("axis", "pairs", "mean", "sd (1 is right)", "share within 1 (0.683 is right)")
    return [html.grid(header, rows), html.image(to_png(figure), alt="Errors over uncertainties")]


def _histograms(locs: pd.DataFrame) -> bytes:
    figure = new_figure(10.0, 2.6)
    for axes, (name, label) in zip(figure.subplots(1, 3), _HISTOGRAMS.items(), strict=True):
        plain_axes(axes, x=label, y="localizations")
        values = _given(locs, name)
        if values.size == 0:
            axes.text(0.5, 0.5, "not in this table", transform=axes.transAxes, ha="center", color=GREY)
            continue
        high = max(float(np.percentile(values, 99)), float(values.min()) + 1e-9)
        axes.hist(values, bins=60, range=(min(0.0, float(values.min())), high), color=BLUE)
        median = float(np.median(values))
        axes.axvline(median, color=ORANGE, lw=1.3)
        axes.set_title(f"median {html.shown(median)}", fontsize=FONT_PT, loc="right", color=ORANGE)
    return to_png(figure)


def _given(locs: pd.DataFrame, name: str) -> Floats:
    """Values that are one: 0 and 9999 stand for an uncertainty that is not known."""
    if name not in locs:
        return np.zeros(0)
    values = usable(locs[name]) if name.startswith("uncertainty") else locs[name].to_numpy(np.float64)
    return np.asarray(values[np.isfinite(values)])


def _density(locs: pd.DataFrame, quality: Quality) -> bytes:
    """A long movie is averaged over blocks of frames."""
    figure = new_figure(10.0, 2.4)
    axes = figure.add_subplot()
    first = quality.first_frame
    counts = np.bincount(locs["frame"].to_numpy() - first, minlength=max(quality.frames, 1))
    block = -(-counts.size // _MOST_BINS)
    edges = np.append(np.arange(0, counts.size, block), counts.size)
    mean = np.add.reduceat(counts, edges[:-1]) / np.diff(edges)
    area = quality.area_um2 or 1.0
    axes.stairs(mean / area, edges + first + FIRST_FRAME_IN_FILES - 0.5, fill=True, color=BLUE)
    axes.set_ylim(bottom=0)
    unit = "localizations per µm²" if quality.area_um2 else "localizations"
    plain_axes(axes, x="frame (from 1)", y=unit if block == 1 else f"{unit},\nmean of {block} frames")
    return to_png(figure)
