"""A bead stack beside its model: slices, sections, and how well each slice fits."""

from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from smlm_bridge.calibration import Calibration
from smlm_bridge.report.figures import (
    BLUE,
    FONT_PT,
    GREY,
    ORANGE,
    colour_bar,
    new_figure,
    no_ticks,
    plain_axes,
    scale_bar,
    to_png,
)

if TYPE_CHECKING:
    from smlm_bridge.retrieve.result import Retrieval

FloatStack = NDArray[np.float32]

_SLICES: Final = 9
_PEAK_PERCENTILE: Final = 99.9
_RESIDUAL_SHARE: Final = 0.25  # of the peak, at the ends of the residual's colours
_BYTES: Final = 700_000
_WINDOW_SHARE: Final = 0.9  # of the model's light inside the window that is shown


class Compared(Protocol):
    """A model beside a stack: a retrieval, or an average of beads."""

    @property
    def calibration(self) -> Calibration:
        """Of which the pixel is taken."""
        ...

    @property
    def model_stack(self) -> FloatStack:
        """(Z, Y, X) in the stack's counts."""
        ...

    @property
    def residual(self) -> FloatStack:
        """Model minus measured."""
        ...

    @property
    def focus_nm(self) -> NDArray[np.float64]:
        """(Z,) of the slices."""
        ...


def slices_png(retrieval: Compared, measured: FloatStack) -> bytes:
    """Measured, model and residual of about nine slices through the stack."""
    chosen = np.unique(np.linspace(0, len(measured) - 1, _SLICES).round().astype(int))
    window = _window(retrieval.model_stack)
    pixel_nm = retrieval.calibration.optics.pixel_nm
    rows = {
        "measured": measured[chosen][window],
        "model": retrieval.model_stack[chosen][window],
        "residual": retrieval.residual[chosen][window],
    }
    _, height, width = rows["measured"].shape
    cell = 1.22
    figure = new_figure(cell * len(chosen) + 0.9, cell * 3 * height / width + 0.7)
    places = figure.subplots(3, len(chosen), squeeze=False)
    for column, index in enumerate(chosen):
        peak = _peak(measured[index])
        for row, (name, images) in enumerate(rows.items()):
            axes = places[row, column]
            half = _RESIDUAL_SHARE * peak
            colours = ("RdBu_r", -half, half) if name == "residual" else ("gray", 0.0, peak)
            axes.imshow(images[column], cmap=colours[0], vmin=colours[1], vmax=colours[2])
            no_ticks(axes)
            if column == 0:
                axes.set_ylabel(name, fontsize=FONT_PT)
        places[0, column].set_title(
            f"slice {index}\n{retrieval.focus_nm[index] / 1000:+.2f} µm", fontsize=FONT_PT - 1
        )
    scale_bar(places[0, 0], width_nm=width * pixel_nm, small=True)
    figure.supxlabel("slice number from 0, and its focus (objective travel)", fontsize=FONT_PT)
    return to_png(figure, max_bytes=_BYTES)


def sections_png(retrieval: "Retrieval", measured: FloatStack) -> bytes:
    """x-z and y-z sections through the bead, of the stack, the model and the residual."""
    _, height, width = measured.shape
    pixel_um = retrieval.calibration.optics.pixel_nm / 1000
    column = int(np.clip(retrieval.bead_xyz_nm[0] / 1000 / pixel_um, 0, width - 1))
    row = int(np.clip(retrieval.bead_xyz_nm[1] / 1000 / pixel_um, 0, height - 1))
    stacks = {"measured": measured, "model": retrieval.model_stack, "residual": retrieval.residual}
    focus = retrieval.focus_nm / 1000
    half_step = (focus[-1] - focus[0]) / max(len(focus) - 1, 1) / 2 or 0.05
    ends = (focus[0] - half_step, focus[-1] + half_step)
    seen = _window(retrieval.model_stack)[:0:-1]
    figure = new_figure(10.5, 5.6)
    places = figure.subplots(2, 3, sharey=True)
    for along, cut, line in ((0, np.s_[:, row, :], places[0]), (1, np.s_[:, :, column], places[1])):
        peak = _peak(measured[cut])
        length = (width, height)[along] * pixel_um
        for axes, (name, stack) in zip(line, stacks.items(), strict=True):
            limit = _RESIDUAL_SHARE * peak
            colours = ("RdBu_r", -limit, limit) if name == "residual" else ("gray", 0.0, peak)
            # Slice 0 is the first row of the array; the axis shows its focus whichever way the stage moved.
            shown = axes.imshow(
                stack[cut], cmap=colours[0], vmin=colours[1], vmax=colours[2], aspect="auto", origin="lower",
                extent=(0, length, *ends),
            )  # fmt: skip
            axes.set_xlim(seen[along].start * pixel_um, seen[along].stop * pixel_um)
            axes.set_ylim(min(ends), max(ends))
            plain_axes(axes, title=name if along == 0 else "", x=f"{'xy'[along]} (µm)")
            if name != "measured":
                colour_bar(figure, shown, axes, "counts", shrink=0.9, aspect=25)
        line[0].set_ylabel("focus (µm)", fontsize=FONT_PT)
    return to_png(figure, max_bytes=_BYTES)


def trends_png(retrieval: "Retrieval", measured: FloatStack) -> bytes:
    """Correlation, photons and background of every slice over the focus."""
    focus = retrieval.focus_nm / 1000
    figure = new_figure(10.5, 2.7)
    left, middle, right = figure.subplots(1, 3)
    correlation = slice_correlation(measured, _as_recorded(retrieval.model_stack, measured))
    _line(left, focus, correlation, "correlation with the model", BLUE)
    left.axhline(retrieval.mean_slice_correlation, color=GREY, linewidth=0.8, linestyle=":")
    left.set_ylim(top=min(1.0, left.get_ylim()[1]))
    _line(middle, focus, retrieval.photons, "photons of the bead", ORANGE)
    middle.set_ylim(bottom=0)
    middle.yaxis.set_major_formatter(EngFormatter(sep=""))
    _line(right, focus, retrieval.background, "background per pixel (photons)", ORANGE)
    return to_png(figure)


def slice_correlation(measured: FloatStack, model: FloatStack) -> NDArray[np.float64]:
    """(Z,) Pearson correlation of every slice with its model; 0 for a constant slice."""
    a, b = (v.reshape(len(v), -1).astype(np.float64) for v in (measured, model))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.where(norm > 0, norm, 1.0))


def _as_recorded(model: FloatStack, measured: FloatStack) -> FloatStack:
    """The model with the threshold of the data applied, as retrieval scores it."""
    from smlm_bridge.retrieve.checks import censoring_threshold  # brings torch; only calibrations need it

    threshold = censoring_threshold(measured)
    return model if threshold is None else np.where(model < threshold, np.float32(0), model)


def _line(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], label: str, colour: str) -> None:
    axes.plot(x, y, ".-", color=colour, linewidth=1.2, markersize=4)
    plain_axes(axes, x="focus (µm)", y=label)
    axes.grid(alpha=0.3)


def _peak(image: NDArray[np.float32]) -> float:
    return max(float(np.percentile(image, _PEAK_PERCENTILE)), 1e-6)


def _window(model: FloatStack) -> tuple[slice, slice, slice]:
    """The square window (all, rows, columns) about the middle that holds most light of the model."""
    _, height, width = model.shape
    light = np.clip(model - np.median(model, axis=(1, 2), keepdims=True), 0, None).sum(
        axis=0, dtype=np.float64
    )
    y, x = np.indices((height, width))
    distance = np.maximum(np.abs(y - (height - 1) / 2), np.abs(x - (width - 1) / 2)).astype(int)
    inside = np.cumsum(np.bincount(distance.ravel(), weights=light.ravel()))
    if inside[-1] <= 0:
        return np.s_[:, 0:height, 0:width]
    half = int(np.searchsorted(inside, _WINDOW_SHARE * inside[-1])) + 2
    cut_y, cut_x = (max(0, (length - 1) // 2 - half) for length in (height, width))
    return np.s_[:, cut_y : height - cut_y, cut_x : width - cut_x]
