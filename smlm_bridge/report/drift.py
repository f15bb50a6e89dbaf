"""A drift as a picture: over the frames, and in the plane."""

import textwrap

from smlm_bridge.post.drift import Drift
from smlm_bridge.report.figures import BLUE, FONT_PT, GREEN, GREY, ORANGE, new_figure, plain_axes, to_png

_LINE_CHARACTERS = 110


def drift_plot_png(drift: Drift) -> bytes:
    """Draw x, y and z over the frames and the path in the plane, with the split-half check and warnings.

    Returns
    -------
    A PNG.
    """
    figure = new_figure(9.0, 4.0)
    over_time, plane = figure.subplots(1, 2, width_ratios=[1.7, 1.0])
    frame = drift.frame + 1
    for name, values, colour in (
        ("x", drift.x_nm, BLUE), ("y", drift.y_nm, ORANGE), ("z", drift.z_nm, GREEN)
    ):  # fmt: skip
        if values is not None:
            over_time.plot(frame, values, color=colour, lw=1.2, label=name)
    over_time.legend(frameon=False, fontsize=FONT_PT)
    plain_axes(over_time, title=f"Drift ({drift.engine})", x="frame", y="drift / nm")
    plane.plot(drift.x_nm, drift.y_nm, color=GREY, lw=1.0)
    plane.plot(drift.x_nm[:1], drift.y_nm[:1], "o", color=GREEN, ms=5, label="first frame")
    plane.set_aspect("equal", adjustable="datalim")
    plane.invert_yaxis()
    plane.legend(frameon=False, fontsize=FONT_PT)
    plain_axes(plane, title=_check(drift), x="x / nm", y="y / nm (down)")
    if drift.warnings:
        text = "\n".join(textwrap.fill("Warning: " + line, _LINE_CHARACTERS) for line in drift.warnings)
        figure.suptitle(text, fontsize=FONT_PT, color=ORANGE, ha="left", x=0.01, parse_math=False)
    return to_png(figure, dpi=150)


def _check(drift: Drift) -> str:
    if drift.split_half_rms_nm is None:
        return "no split-half check"
    z = "" if drift.split_half_z_rms_nm is None else f", z {drift.split_half_z_rms_nm:.1f}"
    return f"halves differ by {drift.split_half_rms_nm:.1f}{z} nm rms"
