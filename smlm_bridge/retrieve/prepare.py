"""From counts as recorded to the windows that are fitted: checked, cut, converted and weighted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.retrieve.checks import bead_centre, censoring_threshold, check_stack, count_beads
from smlm_bridge.retrieve.find import Spot, find_beads
from smlm_bridge.retrieve.objective import BeadData, joined, variance_from_data
from smlm_bridge.retrieve.result import RetrieveOptions
from smlm_bridge.retrieve.start import window_limit_px

FAINT_FLOOR = 0.01  # model error, relative to the peak, in the weights

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Bead:
    """Where a bead was cut out.

    Parameters
    ----------
    stack
        Number of its stack.
    window
        Rows and columns of that stack.
    light
        Above the background, summed, in counts.
    """

    stack: int
    window: Window
    light: float


@dataclass(frozen=True)
class Problem:
    """What is fitted, and how to get back to the stacks.

    Parameters
    ----------
    data
        Every slice of every window, bead by bead.
    beads
        In the order of ``data``.
    aside
        Number of the stack and spot of every bead that was found and not cut out.
    slices
        Of each stack that are fitted.
    read_variance : (B, H, W)
        Of the camera, in photo-electrons squared.
    camera
        For whole planes of the stacks.
    thresholds
        Smallest count kept in each thresholded stack, or None.
    """

    data: BeadData
    beads: tuple[Bead, ...]
    aside: tuple[tuple[int, Spot], ...]
    slices: list[int]
    read_variance: Tensor
    camera: Camera
    thresholds: tuple[float | None, ...]

    @property
    def fitted(self) -> list[int]:
        """Of all slices of ``data``, those that are fitted."""
        planes = len(self.data.photons) // len(self.beads)
        return [number * planes + i for number in range(len(self.beads)) for i in self.slices]

    def of(self, chosen: Sequence[int]) -> "Problem":
        """Only these beads."""
        return replace(
            self,
            data=self.data.of(chosen),
            beads=tuple(self.beads[i] for i in chosen),
            read_variance=self.read_variance[list(chosen)],
        )


def prepare(
    stacks: Sequence[NDArray[np.generic]], optics: Optics, options: RetrieveOptions, *, camera: Camera | None
) -> Problem:
    """Check and cut the stacks; see ``fit.retrieve`` for the arguments and ``checks`` for what is rejected."""
    for stack in stacks:
        check_stack(stack)
    if len({len(stack) for stack in stacks}) != 1:
        raise InputRejected(
            f"the stacks have {', '.join(str(len(stack)) for stack in stacks)} planes; a joint fit needs the "
            "same planes of each. Cut them to the same planes."
        )
    slices = _fit_slices(options.fit_slices, len(stacks[0]))
    thresholds = tuple(censoring_threshold(stack) for stack in stacks)
    if len({threshold is None for threshold in thresholds}) != 1:
        raise InputRejected(
            "some of the stacks had their small values set to 0 and others not: these cannot be fitted "
            "together. Give the stacks as recorded."
        )
    used = camera or Camera()
    if thresholds[0] is not None:  # the offset went with the background before the stack was thresholded
        used = replace(used, offset=0.0)
    largest = window_limit_px(optics, options.pupil_samples)
    beads, aside = _beads(stacks, optics.pixel_nm, largest)
    travel, focus = _scan(len(stacks[0]), options)
    parts, read = [], []
    for number, bead in enumerate(beads):
        part, variance = _cut_out(stacks[bead.stack], bead, used, thresholds[bead.stack])
        moved = torch.zeros(len(travel), 2)
        which = torch.full((len(travel),), number)
        parts.append(BeadData(*part, focus, travel, moved, which))
        read.append(variance)
    return Problem(joined(parts), tuple(beads), tuple(aside), slices, torch.stack(read), used, thresholds)


def _beads(
    stacks: Sequence[NDArray[np.generic]], pixel_nm: float, largest: int
) -> tuple[list[Bead], list[tuple[int, Spot]]]:
    """All windows, of one size; the bead of median brightness first, since the brightest are often clumps."""
    centres: list[tuple[int, int, int]] = []
    aside: list[tuple[int, Spot]] = []
    size = [largest, largest]
    for number, stack in enumerate(stacks):
        if count_beads(stack, pixel_nm=pixel_nm) > 1:
            kept, others, half = find_beads(stack, pixel_nm=pixel_nm, largest_px=largest)
            centres += [(number, spot.row, spot.column) for spot in kept]
            aside += [(number, spot) for spot in others]
            size = [min(n, 2 * half + 1) for n in size]
        else:
            centre = bead_centre(stack, pixel_nm=pixel_nm)
            centres.append((number, *centre))
            size = [
                min(n, len(range(length)[_cut(c, length, largest)]))
                for n, length, c in zip(size, stack.shape[1:], centre, strict=True)
            ]
    beads = []
    for number, row, column in centres:
        _, height, width = stacks[number].shape
        alone = len(centres) == 1
        cuts = [
            _cut(c, length, largest) if alone and length <= largest else _exactly(c, length, n)
            for c, length, n in zip((row, column), (height, width), size, strict=True)
        ]
        part = stacks[number][:, cuts[0], cuts[1]].astype(np.float64)
        light = float((part - np.median(part, (1, 2), keepdims=True)).clip(0).sum())
        beads.append(Bead(number, (cuts[0], cuts[1]), light))
    order = sorted(range(len(beads)), key=lambda i: beads[i].light)
    middle = order[len(order) // 2]
    beads.insert(0, beads.pop(middle))
    return beads, aside


def _cut_out(
    stack: NDArray[np.generic], bead: Bead, camera: Camera, threshold: float | None
) -> tuple[tuple[Tensor, Tensor, Tensor | None], Tensor]:
    """Photons, weights and threshold of the slices of a window, and the camera's read variance."""
    rows, columns = bead.window
    part = stack[:, rows, columns]
    local = camera.crop(rows.start, columns.start, *part.shape[1:])
    photons = torch.from_numpy(local.to_photons(part))
    least = None
    if threshold is not None:
        least = torch.full((len(stack),), threshold * float(np.mean(local.e_per_adu)) / local.em_gain)
    noise = np.broadcast_to(np.asarray(local.read_noise_e, dtype=np.float32) / local.em_gain, part.shape[1:])
    read = torch.from_numpy(noise.copy()).square()
    variance = variance_from_data(photons, read_variance=read, relative_floor=FAINT_FLOOR)
    return (photons, 1 / variance, least), read


def _scan(count: int, options: RetrieveOptions) -> tuple[Tensor, Tensor]:
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


def _exactly(centre: int, length: int, size: int) -> slice:
    """``size`` pixels about a centre, pushed inside."""
    first = min(max(centre - size // 2, 0), length - size)
    return slice(first, first + size)
