"""The page of the coverage check: the light, the reasons, and the worst boxes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.coverage import Coverage, Worst
from smlm_bridge.report import page as html
from smlm_bridge.report.figures import FONT_PT, new_figure, no_ticks, to_png

_COLUMNS: Final = 3
_RESIDUAL: Final = 5.0  # standard deviations of the noise at the ends of the colours
_MEANING: Final = {
    "green": "Green: the data look like what the model was trained for.",
    "yellow": "Yellow: some of the data are not what the model was trained for; read the reasons.",
    "red": "Red: the model was not made for these data; do not use its numbers before the reasons are dealt with.",
    "unknown": "Unknown: there was too little to judge.",
}
_TESTS: Final = {
    "ranges": "height, brightness or background outside of the training range",
    "deviance": "Poisson deviance of the box rendered again",
    "likelihood": "likelihood that a step away from the prediction would gain",
    "aberration": "residual like that of an aberration",
    "features": "distance of the network's features from those in training",
}
_NAMES: Final = {"z_nm": "height"}


def coverage_parts(coverage: Coverage) -> list[str]:
    """The parts of a page about a coverage check, for a page of its own or within another."""
    say = html.paragraph if coverage.light == "green" else html.warning
    parts = [say(_MEANING[coverage.light]), *(say(reason) for reason in coverage.reasons)]
    if coverage.flagged_fraction is None:
        return parts
    rows: dict[str, Any] = {
        "flagged fraction": f"{coverage.flagged_fraction:.1%} of {coverage.boxes} boxes",
        **{f"by {_TESTS[name]}": f"{share:.1%}" for name, share in coverage.by_test.items()},
    }
    for name, shift in coverage.shifts.items():
        rows[f"mean of '{name}' over all boxes"] = f"{shift:+.2f} standard deviations of one box"
    for name, (low, high) in coverage.suggested_ranges.items():
        rows[f"training range of {name} that would hold these data"] = f"{low:.4g} to {high:.4g}"
    parts.append(html.pairs(rows))
    if coverage.worst:
        parts += [
            html.heading("The worst boxes"),
            html.paragraph(
                "Data, the prediction rendered again with the model's PSF, and the residual over its noise (blue "
                f"-{_RESIDUAL:g} to red {_RESIDUAL:g}). A score above 1 is flagged; about 1.5 % of boxes are in "
                "data that the model was made for.",
                muted=True,
            ),
            html.image(
                _gallery(coverage.worst), alt="Data, rendered prediction and residual of the worst boxes"
            ),
        ]
    return parts


def coverage_page(coverage: Coverage, *, title: str, provenance: Mapping[str, Any] | None = None) -> str:
    """One self-contained HTML page.

    Parameters
    ----------
    coverage
        What ``coverage.coverage`` found.
    title
        Heading, for example the name of the movie.
    provenance
        How it was made; anything that can be shown as text.
    """
    parts = coverage_parts(coverage)
    if provenance:
        parts += [html.heading("How this was made"), html.pairs(provenance)]
    return html.page(title, parts)


def _gallery(worst: Sequence[Worst]) -> bytes:
    """Data, rendered prediction and residual of each box; data alone where nothing was rendered."""
    rows = -(-len(worst) // _COLUMNS)
    figure = new_figure(3.7 * _COLUMNS, 1.5 * rows)
    groups = np.atleast_2d(figure.subfigures(rows, _COLUMNS, squeeze=False))
    for group, one in zip(groups.ravel(), worst, strict=False):
        why = _NAMES.get(one.why, one.why)
        frame = one.frame + FIRST_FRAME_IN_FILES
        group.suptitle(
            f"frame {frame}, z {one.xyz_nm[2]:.0f} nm: {why} {one.score:.1f}", fontsize=FONT_PT - 1
        )
        pictures = [one.data] if one.model is None else [one.data, one.model]
        low, high = float(min(map(np.min, pictures))), float(max(map(np.max, pictures)))
        axes = group.subplots(1, 3, gridspec_kw={"wspace": 0.04, "top": 0.84, "bottom": 0.02})
        for axis, picture in zip(axes, pictures, strict=False):
            axis.imshow(picture, vmin=low, vmax=high, cmap="gray")
        if one.model is not None:
            noise = np.sqrt(np.maximum(one.model + one.read_variance, 1.0))
            axes[2].imshow((one.data - one.model) / noise, vmin=-_RESIDUAL, vmax=_RESIDUAL, cmap="RdBu_r")
        for axis in axes:
            no_ticks(axis)
            axis.set_frame_on(False)
    return to_png(figure)
