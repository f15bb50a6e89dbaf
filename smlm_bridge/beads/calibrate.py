"""Bead stacks to a calibration by averaging: no optics is fitted, the PSF is what the beads look like."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.beads.average import Average, average
from smlm_bridge.beads.find import isolated_beads
from smlm_bridge.beads.widths import astigmatic_law, lens_angle_rad, slice_widths
from smlm_bridge.calibration import MAX_SPLINE_BOX_PX, Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.conventions import PIXEL_CENTRE, paraxial_focus_nm
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.psf.cubic_spline import CubicSpline

Floats = NDArray[np.float64]

_LEAST_SLICES = 6
_MARGIN_PX = 3  # about the box, so that moved beads have an edge
_SMOOTH_NM = 200.0  # period in z that is damped by half; optics makes none below 500 nm
_FARTHEST_PX = 4.0
# A Gaussian fits beads behind a cylindrical lens with an RRSE of about 0.15 and a correlation of 0.98.
_WORST_RRSE, _LEAST_CORRELATION = 0.3, 0.93
_LEAST_TURN = 1.5  # change of the ratio of both widths over z: below, heights can hardly be told


@dataclass(frozen=True)
class BeadOptions:
    """How beads become a calibration.

    Parameters
    ----------
    z_step_nm
        Travel of the focus from slice to slice, positive into the sample.
    first_focus_nm
        Focus of slice 0; None puts the sharpest slices at the focus of the microscope.
    box_px
        Width of the window about a bead, odd, up to 31.
    """

    z_step_nm: float
    first_focus_nm: float | None = None
    box_px: int = 31

    def __post_init__(self) -> None:
        if not (math.isfinite(self.z_step_nm) and 1 <= abs(self.z_step_nm) <= 2000):
            raise InputRejected(
                f"z_step_nm {self.z_step_nm:g} must be a step of 1 to 2000 nm, negative away from the sample."
            )
        if self.box_px % 2 == 0 or not 7 <= self.box_px <= MAX_SPLINE_BOX_PX:
            raise InputRejected(f"box_px {self.box_px} must be odd, 7 to {MAX_SPLINE_BOX_PX}.")


@dataclass(frozen=True)
class BeadResult:
    """A calibration of averaged beads.

    Parameters
    ----------
    calibration
        The calibration.
    rrse, mean_slice_correlation
        The model against the beads that were used, with photons and background of every slice free.
    beads, used
        Found, and kept after the outliers.
    model_stack : (Z, Y, X)
        The model of the first stack, in its counts.
    widths_nm : (Z, 3)
        Heights and fitted widths of the slices (``"gaussian"`` only, else empty).
    heights_nm : (Z,)
        Height of an emitter that looks like each slice, in the order of the stack.
    positions : DataFrame
        ``frame`` (the stack, from 0), ``x_nm``, ``y_nm`` and ``photons`` of the beads that were used.
    window_yx
        Rows and columns of a bead of the first stack that was used; None if there is none.
    warnings
        What speaks against using the calibration.
    """

    calibration: Calibration
    rrse: float
    mean_slice_correlation: float
    beads: int
    used: int
    model_stack: NDArray[np.float32]
    widths_nm: Floats
    heights_nm: Floats
    positions: pd.DataFrame
    window_yx: tuple[slice, slice] | None = None
    warnings: tuple[str, ...] = ()


def calibrate_beads(
    stacks: Sequence[NDArray[Any]],
    optics: Optics,
    options: BeadOptions,
    *,
    kind: Literal["spline", "gaussian"],
    camera: Camera | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> BeadResult:
    """Find beads, align them in three dimensions, average, and describe the average.

    An emitter at height z under a focus f looks like a bead on the coverslip under the focus f - z n_i / n_m
    (paraxially); so slices become heights.

    Parameters
    ----------
    stacks
        Counts (Z, Y, X), all with the same slices.
    optics
        The microscope; its ``focus_nm`` is the focus of later measurements.
    options
        See there.
    kind
        ``"spline"`` or ``"gaussian"``.
    camera
        For photo-electrons; None takes a count for one.
    on_step
        Called with steps done and all steps.

    Raises
    ------
    InputRejected
        If stacks differ or are too short, no bead stands alone, or (``"gaussian"``) too few slices are sharp or
        the beads look like no Gaussian.
    """
    report = on_step or (lambda done, total: None)
    known = camera or Camera()
    photons = _photons(stacks, known)
    places = [isolated_beads(stack, box_px=options.box_px) for stack in photons]
    if not any(len(place) for place in places):
        raise InputRejected(
            f"no bead stands alone in {len(stacks)} stack(s): none has {options.box_px} px around it without "
            "another. Give a smaller --box-px, or a field with fewer beads."
        )
    report(1, 4)
    windows = np.concatenate([_windows(s, p, options.box_px) for s, p in zip(photons, places, strict=True)])
    mean = average(windows, farthest=(len(photons[0]) / 4, _FARTHEST_PX))
    report(2, 4)
    volume = _smooth(mean.volume, abs(options.z_step_nm))
    heights = _heights(volume, optics, options)
    if heights[0] > heights[-1]:
        volume, heights = volume[::-1], heights[::-1]
    describe = _spline if kind == "spline" else _gaussian
    calibration, centre, widths = describe(volume, heights, optics, known)
    report(3, 4)
    provenance = {"beads": int(mean.used.sum()), "z_step_nm": options.z_step_nm, "box_px": options.box_px}
    calibration = replace(calibration, provenance=provenance | {"method": f"averaged beads, {kind}"})
    model, rrse, correlation = _score(photons, places, mean, calibration, options, heights, centre)
    report(4, 4)
    if kind == "gaussian" and (rrse > _WORST_RRSE or correlation < _LEAST_CORRELATION):
        raise InputRejected(
            f"these beads are no Gaussian: it leaves {100 * rrse:.0f} % of them unexplained (allowed are "
            f"{100 * _WORST_RRSE:.0f}) at a correlation of {correlation:.2f} ({_LEAST_CORRELATION} is needed). "
            "Calibrate with --psf pupil or spline."
        )
    counts = known.expected(model)
    return BeadResult(
        calibration,
        rrse,
        correlation,
        len(windows),
        int(mean.used.sum()),
        counts.astype(np.float32),
        widths,
        heights if options.z_step_nm < 0 else heights[::-1],
        _positions(places, windows, mean, centre, options, optics.pixel_nm),
        _first_window(places[0], mean, options.box_px),
        _doubts(calibration, rrse),
    )


def _positions(
    places: list[NDArray[np.intp]],
    windows: Floats,
    mean: Average,
    centre: tuple[float, float],
    options: BeadOptions,
    pixel_nm: float,
) -> pd.DataFrame:
    """Where the beads stand, and the light in their windows at the brightest height."""
    corner = np.concatenate(places) - options.box_px // 2
    at = corner + np.array(centre) - mean.shifts[:, 1:] + PIXEL_CENTRE
    table = pd.DataFrame(
        {
            "frame": np.repeat(np.arange(len(places)), [len(place) for place in places]),
            "x_nm": at[:, 1] * pixel_nm,
            "y_nm": at[:, 0] * pixel_nm,
            "photons": windows.sum(axis=(2, 3)).max(axis=1),
        }
    )
    return table[mean.used].reset_index(drop=True)


def _first_window(places: NDArray[np.intp], mean: Average, box_px: int) -> tuple[slice, slice] | None:
    """Where the first bead of the first stack that was used stands."""
    used = np.flatnonzero(mean.used[: len(places)])
    if not used.size:
        return None
    row, column = (int(value) - box_px // 2 for value in places[used[0]])
    return slice(row, row + box_px), slice(column, column + box_px)


def _doubts(calibration: Calibration, rrse: float) -> tuple[str, ...]:
    """What speaks against using a calibration."""
    doubts = []
    if rrse > _WORST_RRSE:
        doubts.append(f"the model leaves {100 * rrse:.0f} % of the beads unexplained; look at the report.")
    if calibration.gaussian is not None:
        widths = calibration.gaussian.widths_nm(np.linspace(*calibration.z_range_nm, 50))
        ratio = widths[:, 0] / widths[:, 1]
        if ratio.max() / ratio.min() < _LEAST_TURN:
            doubts.append(
                f"the ratio of the widths along x and y stays between {ratio.min():.2f} and {ratio.max():.2f} "
                "over z: this PSF is not astigmatic, and heights above and below its focus look alike."
            )
    return tuple(doubts)


def _photons(stacks: Sequence[NDArray[Any]], camera: Camera) -> list[Floats]:
    slices = {stack.shape[0] for stack in stacks}
    if any(stack.ndim != 3 for stack in stacks) or len(slices) != 1:
        raise InputRejected(
            f"bead stacks are (z, y, x) with the same number of slices, got {[s.shape for s in stacks]}."
        )
    if slices.pop() < _LEAST_SLICES:
        raise InputRejected(f"a bead stack has {_LEAST_SLICES} slices or more, got {stacks[0].shape[0]}.")
    photons = [camera.to_photons(stack).astype(np.float64) for stack in stacks]
    if not all(np.isfinite(stack).all() for stack in photons):
        raise InputRejected("a bead stack has values that are not finite.")
    return photons


def _windows(stack: Floats, places: NDArray[np.intp], box_px: int) -> Floats:
    """(B, Z, S, S) windows about beads, the median of each slice's rim taken out."""
    size = box_px + 2 * _MARGIN_PX
    padded = np.pad(stack, ((0, 0), *[(_MARGIN_PX, _MARGIN_PX)] * 2), mode="edge")
    half = box_px // 2
    cut = [padded[:, r - half : r - half + size, c - half : c - half + size] for r, c in places]
    if not cut:
        return np.empty((0, len(stack), size, size))
    windows = np.stack(cut)
    rim = np.ones((size, size), dtype=bool)
    rim[_MARGIN_PX + 1 : -_MARGIN_PX - 1, _MARGIN_PX + 1 : -_MARGIN_PX - 1] = False
    return windows - np.median(windows[..., rim], axis=-1)[..., None, None]


def _smooth(volume: Floats, step_nm: float) -> Floats:
    """Whittaker's smoother along z with third differences (Eilers 2003); slow changes stay as they are."""
    count = len(volume)
    difference = np.diff(np.eye(count), n=3, axis=0)
    strength = (_SMOOTH_NM / (2 * math.pi * step_nm)) ** 6
    system = np.eye(count) + strength * difference.T @ difference
    smooth = np.linalg.solve(system, volume.reshape(count, -1)).reshape(volume.shape)
    cut = np.clip(smooth[:, _MARGIN_PX:-_MARGIN_PX, _MARGIN_PX:-_MARGIN_PX], 0, None)
    return np.asarray(cut / cut.sum(axis=(1, 2)).max())


def _heights(volume: Floats, optics: Optics, options: BeadOptions) -> Floats:
    """Height of an emitter that looks like each slice, slice 0 first: (focus_nm - focus of slice) n_m / n_i."""
    index = np.arange(len(volume))
    if options.first_focus_nm is None:
        sharpness = (volume**2).sum(axis=(1, 2)) / volume.sum(axis=(1, 2)).clip(1e-12) ** 2
        # The middle of all sharp slices: an astigmatic bead has two focal lines.
        weight = np.clip(sharpness - (sharpness.max() + sharpness.min()) / 2, 0, None)
        travel = (index - (weight * index).sum() / weight.sum()) * options.z_step_nm
    else:
        travel = options.first_focus_nm + index * options.z_step_nm
    focus = paraxial_focus_nm(optics.focus_nm, optics.sample_index, optics.immersion_index)
    return np.asarray(focus - travel * optics.sample_index / optics.immersion_index)


def _centre(volume: Floats) -> tuple[float, float]:
    """Position (y, x) of the bead in the box: the centroid of the sharpest slices' light."""
    sharpness = (volume**2).sum(axis=(1, 2))
    image = volume[np.argsort(-sharpness)[:5]].mean(axis=0)
    weight = np.clip(image - 0.2 * image.max(), 0, None)
    y, x = np.indices(image.shape)
    return float((weight * y).sum() / weight.sum()), float((weight * x).sum() / weight.sum())


Described = tuple[Calibration, tuple[float, float], Floats]


def _spline(volume: Floats, heights: Floats, optics: Optics, camera: Camera) -> Described:
    centre = _centre(volume)
    spline = CubicSpline.of_stack(
        volume,
        pixel_nm=optics.pixel_nm,
        z_first_nm=float(heights[0]),
        z_step_nm=float(heights[1] - heights[0]),
        centre=centre,
    )
    z_range = (float(heights[0]), float(heights[-1]))
    return Calibration(optics, camera=camera, z_range_nm=z_range, spline=spline), centre, np.empty((0, 3))


def _gaussian(volume: Floats, heights: Floats, optics: Optics, camera: Camera) -> Described:
    angle = lens_angle_rad(volume)
    found = slice_widths(volume, angle)
    widths = found[:, :2] * optics.pixel_nm
    law, usable = astigmatic_law(heights, widths, angle_rad=angle)
    sharp = heights[usable > 0]
    x, y = np.median(found[usable > 0, 2:], axis=0)
    calibration = Calibration(
        optics, gaussian=law, camera=camera, z_range_nm=(float(sharp.min()), float(sharp.max()))
    )
    return calibration, (float(y), float(x)), np.column_stack([heights, widths])


def _score(
    photons: list[Floats],
    places: list[NDArray[np.intp]],
    mean: Average,
    calibration: Calibration,
    options: BeadOptions,
    heights: Floats,
    centre: tuple[float, float],
) -> tuple[Floats, float, float]:
    """Model of the first stack, and how well the model fits all beads that were used."""
    slices = heights if options.z_step_nm < 0 else heights[::-1]  # in the order of the stack
    wrong = total = 0.0
    correlations: list[float] = []
    model = np.zeros_like(photons[0])
    model += np.median(photons[0], axis=(1, 2), keepdims=True)
    stack_of = np.repeat(np.arange(len(places)), [len(place) for place in places])
    half, box = options.box_px // 2, options.box_px
    height_step = abs(heights[1] - heights[0]) * math.copysign(1.0, slices[-1] - slices[0])
    low, high = calibration.z_range_nm
    for number, (row, column) in enumerate(np.concatenate(places)):
        if not mean.used[number]:
            continue
        shift = mean.shifts[number]
        window = np.s_[:, row - half : row - half + box, column - half : column - half + box]
        data = photons[stack_of[number]][window]
        position = [(centre[i] - shift[1 + i] + PIXEL_CENTRE) * calibration.optics.pixel_nm for i in (0, 1)]
        z = slices + shift[0] * height_step
        xyz = np.column_stack(
            [np.full(len(z), position[1]), np.full(len(z), position[0]), np.clip(z, low, high)]
        )
        fitted = _scaled(_render(calibration, xyz, box), data)
        seen = (z >= low - 1) & (z <= high + 1)
        wrong += float(((fitted - data)[seen] ** 2).sum())
        total += float((data[seen] ** 2).sum())
        pairs = zip(fitted[seen], data[seen], strict=True)
        correlations += [
            float(np.corrcoef(m.ravel(), d.ravel())[0, 1])
            for m, d in pairs
            if np.ptp(m) > 0 and np.ptp(d) > 0
        ]
        if stack_of[number] == 0:
            model[window] = fitted
    return model, math.sqrt(wrong / max(total, 1e-12)), float(np.mean(correlations))


def _render(calibration: Calibration, xyz: Floats, box: int) -> Floats:
    if calibration.spline is not None:
        return calibration.spline.images(xyz, (box, box))
    import torch

    with torch.no_grad():
        images: Floats = calibration.psf().images(torch.from_numpy(xyz), (box, box)).double().numpy()
    return images


def _scaled(images: Floats, data: Floats) -> Floats:
    """Photons and background of every slice by least squares."""
    mean_image, mean_data = images.mean(axis=(1, 2), keepdims=True), data.mean(axis=(1, 2), keepdims=True)
    inner = images - mean_image
    power = (inner**2).sum(axis=(1, 2), keepdims=True)
    slope = (inner * (data - mean_data)).sum(axis=(1, 2), keepdims=True) / np.maximum(power, 1e-30)
    slope = np.clip(slope, 0, None)
    return np.asarray(mean_data + slope * inner)
