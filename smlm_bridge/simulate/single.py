"""Boxes with one emitter near the middle: what a network of single emitters is trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from smlm_bridge.errors import InputRejected
from smlm_bridge.simulate.scene import Ranges, Scene, draw


@dataclass(frozen=True)
class SingleRanges(Ranges):
    """``Ranges`` of boxes with one emitter; its densities, margins and least photons are not used.

    Parameters
    ----------
    wander_px
        The emitter stands up to this far from the middle of its box, along x and along y, uniform.
    zernike_rad
        Aberrations that are added to the pupil's, uniform: (Noll index, lowest, highest), rad RMS.

    Raises
    ------
    InputRejected
        If an index is below 4 or occurs twice, or a range is no range.
    """

    wander_px: float = 1.0
    zernike_rad: tuple[tuple[int, float, float], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.wander_px <= 5:
            raise InputRejected(f"ranges: wander_px = {self.wander_px} must lie in 0 to 5 pixels.")
        rows = tuple(_aberration(row) for row in self.zernike_rad)
        if len({row[0] for row in rows}) < len(rows):
            raise InputRejected(f"ranges: zernike_rad = {rows} names an aberration twice.")
        object.__setattr__(self, "zernike_rad", rows)

    @property
    def noll(self) -> tuple[int, ...]:
        """Noll indices of the aberrations."""
        return tuple(row[0] for row in self.zernike_rad)


def _aberration(row: Sequence[Any]) -> tuple[int, float, float]:
    """One row of ``zernike_rad``, checked; 2, 3 and 4 are the position itself."""
    try:
        index, low, high = int(row[0]), float(row[1]), float(row[2])
        good = len(row) == 3 and index == row[0] and index > 4 and -math.pi <= low < high <= math.pi
    except (TypeError, ValueError, IndexError):
        good = False
    if not good:
        raise InputRejected(
            f"ranges: zernike_rad has {row!r}; each row is a Noll index above 4 and two coefficients within "
            "pi rad, the lower first, for example [5, -0.5, 0.5]. Lower indices are x, y and z."
        )
    return index, low, high


def draw_singles(
    ranges: SingleRanges, generator: torch.Generator, *, boxes: int, side: int, pixel_nm: float
) -> tuple[Scene, Tensor]:
    """Draw boxes with one emitter each.

    Parameters
    ----------
    ranges
        What to draw from.
    generator
        The only source of randomness.
    boxes, side, pixel_nm
        How many, their rows and columns, the camera pixel.

    Returns
    -------
    scene
        A box a frame. With aberrations ``xyz_nm`` has their coefficients behind the positions, (E, 3 + J).
    truth : (boxes, 5 + J)
        x, y from the box's centre, z, photons, mean background, coefficients.
    """
    clear = (side / 2 - ranges.wander_px) * pixel_nm
    scene = draw(
        ranges,
        generator,
        frames=boxes,
        shape=(side, side),
        pixel_nm=pixel_nm,
        emitters=1,
        clear_nm=clear,
    )
    drawn = torch.rand((boxes, len(ranges.noll)), generator=generator, device=generator.device)
    ends = drawn.new_tensor(ranges.zernike_rad).reshape(-1, 3)
    aberrations = ends[:, 1] + drawn * (ends[:, 2] - ends[:, 1])
    centre = scene.xyz_nm.new_tensor([side / 2 * pixel_nm, side / 2 * pixel_nm, 0.0])
    level = scene.background.mean((1, 2))
    truth = torch.cat([scene.xyz_nm - centre, torch.stack([scene.photons, level], dim=1), aberrations], dim=1)
    if ranges.noll:
        scene = replace(scene, xyz_nm=torch.cat([scene.xyz_nm, aberrations], dim=1))
    return scene, truth
