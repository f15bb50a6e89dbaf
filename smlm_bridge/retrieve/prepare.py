"""From counts as recorded to the window that is fitted: checked, cut, converted and weighted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.retrieve.checks import bead_centre, censoring_threshold, check_stack
from smlm_bridge.retrieve.objective import BeadData, variance_from_data
from smlm_bridge.retrieve.result import RetrieveOptions
from smlm_bridge.retrieve.start import window_limit_px

_FAINT_FLOOR = 0.01  # model error, relative to the peak, in the weights


@dataclass(frozen=True)
class Problem:
    """What is fitted, and how to get back to the stack.

    Parameters
    ----------
    data
        Every slice of the window.
    window
        Rows and columns of the stack.
    fitted
        Slices to fit.
    camera
        For whole planes of the stack.
    threshold
        Smallest count kept in a thresholded stack, or None.
    """

    data: BeadData
    window: tuple[slice, slice]
    fitted: list[int]
    camera: Camera
    threshold: float | None


def prepare(
    stack: NDArray[np.generic], optics: Optics, options: RetrieveOptions, *, camera: Camera | None
) -> Problem:
    """Check and cut the stack; see ``fit.retrieve`` for the arguments and ``checks`` for what is rejected."""
    check_stack(stack)
    fitted = _fit_slices(options.fit_slices, len(stack))
    threshold = censoring_threshold(stack)
    used = camera or Camera()
    if threshold is not None:
        used = replace(
            used, offset=0.0
        )  # the offset went with the background before the stack was thresholded
    row, column = bead_centre(stack, pixel_nm=optics.pixel_nm)
    largest = window_limit_px(optics, options.pupil_samples)
    window = (_cut(row, stack.shape[1], largest), _cut(column, stack.shape[2], largest))
    part = stack[:, window[0], window[1]]
    local = used.crop(window[0].start, window[1].start, *part.shape[1:])
    photons = torch.from_numpy(local.to_photons(part))
    least = None if threshold is None else threshold * float(np.mean(local.e_per_adu)) / local.em_gain
    read = torch.as_tensor(np.asarray(local.read_noise_e, dtype=np.float32) / local.em_gain).square()
    variance = variance_from_data(photons, read_variance=read, relative_floor=_FAINT_FLOOR)
    travel, focus = _scan(len(stack), options)
    return Problem(
        BeadData(photons, 1 / variance, least, focus, travel, torch.zeros(len(stack), 2)),
        window,
        fitted,
        used,
        threshold,
    )


def _scan(count: int, options: RetrieveOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Place in the scan from -1 to 1, and nominal focus (zero in the middle where the first is not known)."""
    middle = (count - 1) / 2
    steps = torch.arange(count, dtype=torch.float32)
    first = -middle * options.z_step_nm if options.first_focus_nm is None else options.first_focus_nm
    return (steps - middle) / middle, first + steps * options.z_step_nm


def _fit_slices(asked: Sequence[int] | None, count: int) -> list[int]:
    if asked is None:
        return list(range(count))
    slices = sorted({int(i) for i in asked})
    if len(slices) < 2 or slices[0] < 0 or slices[-1] >= count:
        raise InputRejected(
            f"fit_slices must name at least two of the slices 0 to {count - 1}, got {len(slices)}"
            + (f" from {slices[0]} to {slices[-1]}." if slices else ".")
        )
    return slices


def _cut(centre: int, size: int, largest: int) -> slice:
    if size <= largest:
        return slice(0, size)
    half = min(largest // 2, centre, size - 1 - centre)
    return slice(centre - half, centre + half + 1)
