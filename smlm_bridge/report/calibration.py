"""The page about one calibration: does the retrieved microscope explain the bead?"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.report import page as html
from smlm_bridge.report.bead_figures import sections_png, slices_png, trends_png
from smlm_bridge.report.crlb import crlb_plot_png
from smlm_bridge.report.pupil_figures import pupil_png, zernike_png

if TYPE_CHECKING:
    from smlm_bridge.retrieve.result import BeadFit, Retrieval, Uncertainty

_TWIN_SHOWN: Final = 8  # coefficients
_PLENTY_NM: Final = 1.0  # two slices closer than this have no direction

_BEAD_COLUMNS: Final = (
    "stack", "x (nm)", "y (nm)", "focus (nm)", "walk x, y (nm)", "photons", "correlation", "part of the fit",
)  # fmt: skip


def calibration_page(
    retrieval: "Retrieval",
    stack_zyx: NDArray[Any],
    *,
    title: str,
    crlb: pd.DataFrame | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """One self-contained HTML page about a calibration.

    Parameters
    ----------
    retrieval
        What ``smlm_bridge.retrieve`` returned.
    stack_zyx : (Z, Y, X)
        The measured stack, in the counts of ``retrieval.model_stack``.
    title
        Heading, for example the name of the stack.
    crlb
        The bound over z as ``crlb.crlb_table`` returns, or None.
    provenance
        How the calibration was made; None takes the calibration's own.

    Returns
    -------
    HTML below 3 MB.

    Raises
    ------
    InputRejected
        If the stack and the model differ in shape.
    """
    measured = np.asarray(stack_zyx, dtype=np.float32)
    if measured.shape != retrieval.model_stack.shape:
        raise InputRejected(
            f"the measured stack {measured.shape} and the model {retrieval.model_stack.shape} differ in "
            "shape; give the stack that was calibrated, (z, y, x)."
        )
    calibration, doubt = retrieval.calibration, retrieval.uncertainty
    one, window = _first_bead(retrieval, measured)
    parts = [html.paragraph(_sentence(retrieval))]
    parts += [html.warning(text) for text in retrieval.warnings]
    parts += [html.heading("Direction of z"), html.paragraph(_step_text(retrieval.focus_nm))]
    parts += _twin_parts(retrieval.twin)
    parts += [
        html.heading("Measured, model, residual"),
        html.image(
            slices_png(retrieval, measured), alt="Slices of the measured stack, the model, the residual"
        ),
        html.paragraph(
            "Measured and model share one grey scale in each slice, from 0 to the slice's peak; the residual "
            "is model minus measured, from minus to plus a quarter of that peak (blue: model too dark).",
            muted=True,
        ),
        html.heading(
            "Sections through the bead" + (" of the first row below" if one is not retrieval else "")
        ),
        html.image(sections_png(one, window), alt="x-z and y-z sections of the stack and the model"),
        html.heading("Slice by slice"),
        html.image(trends_png(one, window), alt="Correlation, photons and background over the focus"),
    ]
    if calibration.pupil is not None:
        parts += [
            html.heading("Pupil"),
            html.image(pupil_png(calibration.pupil), alt="Phase and amplitude of the pupil"),
            html.image(
                zernike_png(retrieval.zernike_rad, None if doubt is None else doubt.sigma_rad),
                alt="Zernike coefficients",
            ),
        ]
        parts += [] if doubt is None else [html.paragraph(_doubt_text(doubt), muted=True)]
    if len(retrieval.beads) > 1:
        parts += [html.heading("Beads"), html.grid(_BEAD_COLUMNS, [_bead_row(b) for b in retrieval.beads])]
    if crlb is not None:
        parts += [
            html.heading("Best possible precision"),
            html.image(crlb_plot_png(crlb), alt="Bound over z"),
        ]
    parts += [html.heading("Numbers"), html.pairs(_numbers(retrieval))]
    parts += [html.heading("Microscope"), html.pairs(_microscope(retrieval))]
    made = calibration.provenance if provenance is None else provenance
    parts += [html.heading("How this was made"), html.pairs(made)] if made else []
    return html.page(title, parts)


def _doubt_text(doubt: "Uncertainty") -> str:
    return (
        "Error bars: one standard deviation, from the inverse Fisher information times the dispersion of the "
        f"residuals. Noll 11 (spherical) correlates {doubt.spherical_focus_correlation:+.2f} with the focus, "
        f"which is known to {doubt.focus_sigma_nm:.1f} nm, and up to "
        f"{doubt.spherical_amplitude_correlation:+.2f} with the radial amplitude: near 1 or -1 the images hardly "
        "tell the two apart."
    )


def _bead_row(bead: "BeadFit") -> tuple[Any, ...]:
    place = (bead.stack + 1, round(bead.x_nm), round(bead.y_nm))
    if bead.rejected:
        return (*place, "", "", "", "", f"set aside: {bead.rejected}")
    drift = ", ".join(f"{value:+.0f}" for value in bead.drift_nm)
    correlation = f"{bead.mean_slice_correlation:.4f}"
    return (*place, f"{bead.focus_nm:+.0f}", drift, round(bead.photons), correlation, "fitted")


def _first_bead(
    retrieval: "Retrieval", measured: NDArray[np.float32]
) -> "tuple[Retrieval, NDArray[np.float32]]":
    """Of several beads the first one's window alone; a field holds other light too."""
    if sum(not bead.rejected for bead in retrieval.beads) < 2 or (edges := retrieval.beads[0].window) is None:
        return retrieval, measured
    cut = np.s_[:, edges[0] : edges[1], edges[2] : edges[3]]
    pixel = retrieval.calibration.optics.pixel_nm
    x, y, z = retrieval.bead_xyz_nm
    one = replace(
        retrieval,
        model_stack=retrieval.model_stack[cut],
        residual=retrieval.residual[cut],
        bead_xyz_nm=(x - edges[2] * pixel, y - edges[0] * pixel, z),
        mean_slice_correlation=retrieval.beads[0].mean_slice_correlation,
    )
    return one, measured[cut]


def _sentence(retrieval: "Retrieval") -> str:
    slices, height, width = retrieval.model_stack.shape
    return (
        f"{slices} slices of {width} × {height} pixels. The model differs from the data by "
        f"{100 * retrieval.rrse:.1f} % (RRSE); the mean correlation of a slice is "
        f"{retrieval.mean_slice_correlation:.4f}."
    )


def _step_text(focus_nm: NDArray[np.float64]) -> str:
    first, last = float(focus_nm[0]), float(focus_nm[-1])
    if len(focus_nm) < 2 or abs(last - first) < _PLENTY_NM:
        return "The focus does not move through this stack."
    step = (last - first) / (len(focus_nm) - 1)
    way = "into the sample" if step > 0 else "out of the sample"
    return (
        f"The focus was taken to move {way}: from {first:.0f} to {last:.0f} nm (objective travel) in "
        f"steps of {step:+.0f} nm. If the stage moved the other way, every z comes out mirrored: calibrate "
        "again with the opposite sign of --z-step-nm. The images themselves can hardly tell."
    )


def _twin_parts(twin: Mapping[str, Any]) -> list[str]:
    """The mirrored solution beside the chosen one, with a warning where it fits better."""
    if not isinstance(chosen := twin.get("chosen"), Mapping):
        return []
    names = ("rrse", "mean_slice_correlation")
    rows = [
        (what, *(scores.get(n) for n in names)) for what, scores in (("chosen", chosen), ("mirrored", twin))
    ]
    parts = [html.grid(("coarse fit", "RRSE", "mean correlation"), rows)]
    if isinstance(others := twin.get("zernike_rad"), Mapping) and not twin.get("told_apart", True):
        largest = sorted(others, key=lambda j: -abs(others[j]))[:_TWIN_SHOWN]
        shown = ", ".join(f"Z{j} {others[j]:+.2f}" for j in largest)
        parts.append(
            html.paragraph(
                "The data cannot tell the two apart. Largest coefficients of the mirrored one (rad): "
                f"{shown}.",
                muted=True,
            )
        )
    if (difference := twin.get("log_likelihood_difference")) is not None and difference < 0:
        text = "The mirrored solution fits slightly better than the chosen one"
        parts.insert(0, html.warning(f"{text}. Make sure that the sign of --z-step-nm is right."))
    return parts


def _numbers(retrieval: "Retrieval") -> dict[str, Any]:
    angle = retrieval.calibration.optics.analyser_deg
    x, y, z = retrieval.bead_xyz_nm
    return {
        "RRSE": retrieval.rrse,
        "mean correlation of a slice": retrieval.mean_slice_correlation,
        "held-out slices": retrieval.held_out or "none: all slices were fitted",
        "blur (nm, standard deviation)": retrieval.calibration.blur_nm,
        "analyser": "none" if angle is None else f"{angle:g}°",
        "log-likelihood of the analysers": retrieval.analysers,
        "log-likelihood": retrieval.log_likelihood,
        "bead (nm)": f"x {x:.0f}, y {y:.0f}, z {z:.0f}",
        "photons per slice (median)": float(np.median(retrieval.photons)),
        "background per pixel (median)": float(np.median(retrieval.background)),
        "time (s)": retrieval.seconds,
    }


def _microscope(retrieval: "Retrieval") -> dict[str, Any]:
    optics = retrieval.calibration.optics
    low, high = retrieval.calibration.z_range_nm
    return {
        "numerical aperture": optics.numerical_aperture,
        "index of immersion, sample": (optics.immersion_index, optics.sample_index),
        "wavelength (nm)": optics.wavelength_nm,
        "pixel (nm)": optics.pixel_nm,
        "model": f"{optics.model}, {'with' if optics.supercritical else 'without'} supercritical light",
        "z range (nm)": f"{low:.0f} to {high:.0f}",
        "calibration": retrieval.calibration.hash,
    }
