"""The page about a calibration of averaged beads: does the spline, or the Gaussian, look like the beads?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.calibration import Calibration
from smlm_bridge.report import page as html
from smlm_bridge.report.bead_figures import FloatStack, slices_png
from smlm_bridge.report.crlb import crlb_plot_png
from smlm_bridge.report.figures import BLUE, FONT_PT, ORANGE, new_figure, plain_axes, to_png

if TYPE_CHECKING:
    from smlm_bridge.beads import BeadResult


@dataclass(frozen=True)
class _Seen:
    """One bead beside its model."""

    calibration: Calibration
    model_stack: FloatStack
    residual: FloatStack
    focus_nm: NDArray[np.float64]


def averaged_page(
    results: "Sequence[BeadResult]",
    stacks_zyx: Sequence[NDArray[Any]],
    *,
    title: str,
    crlb: pd.DataFrame | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> str:
    """One self-contained HTML page about ``beads.calibrate_beads``, of one channel or of each of two.

    Parameters
    ----------
    results
        What it returned.
    stacks_zyx : each (Z, Y, X)
        The first stack of each channel, in counts.
    title
        Heading, for example the name of the stack.
    crlb
        The bound over z as ``crlb.crlb_table`` returns, or None.
    numbers
        Of both channels together.

    Returns
    -------
    HTML.
    """
    parts = [html.pairs(numbers)] if numbers else []
    for number, (result, stack) in enumerate(zip(results, stacks_zyx, strict=True), 1):
        parts += [html.heading(f"Channel {number}")] if len(results) > 1 else []
        parts += _channel_parts(result, stack)
    if crlb is not None:
        parts += [
            html.heading("Best possible precision"),
            html.image(crlb_plot_png(crlb), alt="Bound over z"),
            html.paragraph("For 5000 photons on a background of 20 a pixel.", muted=True),
        ]
    return html.page(title, parts)


def _channel_parts(result: "BeadResult", stack_zyx: NDArray[Any]) -> list[str]:
    """What there is to say of one channel."""
    known = result.calibration
    what = "a cubic spline of their average" if known.spline is not None else "an astigmatic Gaussian"
    low, high = known.z_range_nm
    parts = [
        html.paragraph(
            f"{result.used} of {result.beads} beads, described by {what} for z from {low:.0f} to {high:.0f} nm: "
            f"residual {100 * result.rrse:.1f} % (RRSE), mean correlation of the slices "
            f"{result.mean_slice_correlation:.4f}."
        )
    ]
    parts += [html.warning(text) for text in result.warnings]
    if result.window_yx is not None:
        measured = np.asarray(stack_zyx, dtype=np.float32)[(slice(None), *result.window_yx)]
        model = result.model_stack[(slice(None), *result.window_yx)]
        travel = -result.heights_nm * known.optics.immersion_index / known.optics.sample_index
        seen = _Seen(known, model, model - measured, travel - travel[0])
        parts += [
            html.heading("Measured, model, residual"),
            html.image(slices_png(seen, measured), alt="Slices of a bead, the model, the residual"),
            html.paragraph(
                "The first bead that was used; the focus counts from slice 0. Measured and model share one grey "
                "scale in each slice, from 0 to the slice's peak; the residual is model minus measured, from "
                "minus to plus a quarter of that peak (blue: model too dark).",
                muted=True,
            ),
        ]
    if known.gaussian is not None:
        parts += [
            html.heading("Widths over z"),
            html.image(widths_png(result), alt="Widths of the slices and the law laid through them"),
        ]
    numbers = {
        "beads found": result.beads,
        "beads used": result.used,
        "RRSE": result.rrse,
        "mean slice correlation": result.mean_slice_correlation,
        "z range (nm)": list(known.z_range_nm),
        "hash": known.hash,
    }
    parts += [html.heading("Numbers"), html.pairs(numbers)]
    return [*parts, html.heading("How this was made"), html.pairs(dict(known.provenance))]


def widths_png(result: "BeadResult") -> bytes:
    """Widths of the slices along both axes, and the law of the calibration over its heights."""
    gaussian = result.calibration.gaussian
    assert gaussian is not None
    low, high = result.calibration.z_range_nm
    z = np.linspace(low, high, 200)
    law = gaussian.widths_nm(z)
    figure = new_figure(6.5, 3.8)
    axes = figure.add_subplot()
    heights = result.widths_nm[:, 0]
    for axis, (name, colour) in enumerate((("first axis (x)", BLUE), ("second axis (y)", ORANGE))):
        axes.plot(heights, result.widths_nm[:, 1 + axis], "o", color=colour, markersize=3)
        axes.plot(z, law[:, axis], color=colour, label=name)
    axes.set_ylim(0, 1.6 * float(law.max()))
    axes.axvspan(low, high, color="#0000000c", linewidth=0)
    plain_axes(axes, title="", x="z (nm); shaded: what is used", y="standard deviation (nm)")
    axes.legend(fontsize=FONT_PT, frameon=False)
    return to_png(figure, dpi=150)
