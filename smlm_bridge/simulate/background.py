"""Backgrounds: a constant, a gradient, a super-Gaussian glow (a cell) and Perlin noise (structure)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from smlm_bridge.errors import InputRejected


@dataclass(frozen=True)
class BackgroundRanges:
    """What backgrounds are drawn from; photo-electrons per pixel, parts add up, each drawn for every frame.

    Parameters
    ----------
    constant
        Level, uniform.
    gradient
        Largest rise from one side of the frame to the other.
    glow
        Peak of a rotated super-Gaussian (Nehme et al. 2020 use one for the cell's autofluorescence), uniform.
    glow_width_px
        Its standard deviations along both axes, uniform.
    perlin
        Amplitude of noise of periods of 8, 16 and 32 pixels, randomly weighted (Möckl et al. 2020), uniform.

    Raises
    ------
    InputRejected
        If a value is negative or not a number, or a range does not start with its lower end.
    """

    constant: tuple[float, float] = (10.0, 100.0)
    gradient: float = 0.0
    glow: tuple[float, float] = (0.0, 0.0)
    glow_width_px: tuple[float, float] = (24.0, 50.0)
    perlin: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("constant", "glow", "glow_width_px", "perlin"):
            low, high = getattr(self, name)
            if not 0 <= low <= high < math.inf:
                raise InputRejected(
                    f"ranges: background {name} = {low}:{high} must be two numbers from 0, the lower first."
                )
        if not 0 <= self.gradient < math.inf:
            raise InputRejected(f"ranges: background gradient = {self.gradient} must be a number from 0.")
        if self.glow[1] > 0 and self.glow_width_px[0] <= 0:
            raise InputRejected(f"ranges: background glow_width_px = {self.glow_width_px} must be above 0.")


def is_uneven(background: Mapping[str, Any]) -> bool:
    """Whether backgrounds are more than a level; ``background`` as in ``ModelInfo.ranges``."""
    glows = (float(background.get(name, (0.0, 0.0))[1]) for name in ("glow", "perlin"))
    return float(background.get("gradient", 0.0)) > 0 or any(glow > 0 for glow in glows)


def draw_background(
    ranges: BackgroundRanges, generator: torch.Generator, *, frames: int, shape: tuple[int, int]
) -> Tensor:
    """(frames, H, W) mean background, >= 0."""
    device = generator.device

    def uniform(ends: tuple[float, float]) -> Tensor:
        return ends[0] + torch.rand((frames, 1, 1), generator=generator, device=device) * (ends[1] - ends[0])

    level = uniform(ranges.constant).expand(-1, *shape)
    y = torch.arange(shape[0], device=device)[None, :, None] - (shape[0] - 1) / 2
    x = torch.arange(shape[1], device=device)[None, None, :] - (shape[1] - 1) / 2
    if ranges.gradient > 0:
        angle, rise = uniform((0.0, 2 * math.pi)), uniform((0.0, ranges.gradient))
        level = level + rise * (0.5 + (x * torch.cos(angle) + y * torch.sin(angle)) / (shape[0] + shape[1]))
    if ranges.glow[1] > 0:
        level = level + uniform(ranges.glow) * _glow(
            x - uniform((-10, 10)), y - uniform((-10, 10)), ranges, uniform
        )
    if ranges.perlin[1] > 0:
        level = level + uniform(ranges.perlin) * _perlin(generator, frames=frames, shape=shape)
    return level.clamp_min(0.0)


def _glow(
    x: Tensor, y: Tensor, ranges: BackgroundRanges, uniform: Callable[[tuple[float, float]], Tensor]
) -> Tensor:
    angle = uniform((-math.pi / 4, math.pi / 4))
    along = (x * torch.cos(angle) + y * torch.sin(angle)) / uniform(ranges.glow_width_px)
    across = (y * torch.cos(angle) - x * torch.sin(angle)) / uniform(ranges.glow_width_px)
    return torch.exp(-(((along**2 + across**2) / 2) ** 2))


def _perlin(generator: torch.Generator, *, frames: int, shape: tuple[int, int]) -> Tensor:
    """Noise in 0..1 from coarse random grids, interpolated; octaves have random weights."""
    total = torch.zeros((frames, *shape), device=generator.device)
    weights = torch.rand((3, frames, 1, 1), generator=generator, device=generator.device)
    for octave, period in enumerate((8, 16, 32)):
        grid = (frames, 1, shape[0] // period + 4, shape[1] // period + 4)
        coarse = torch.rand(grid, generator=generator, device=generator.device)
        size = ((grid[2]) * period, (grid[3]) * period)
        fine = interpolate(coarse, size=size, mode="bicubic", align_corners=False)[:, 0, period:, period:]
        total = total + weights[octave] * fine[:, : shape[0], : shape[1]]
    return (total / weights.sum(0).clamp_min(1e-6)).clamp(0.0, 1.0)
