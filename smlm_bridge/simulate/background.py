"""Backgrounds: a constant, a gradient, a super-Gaussian glow (a cell) and Perlin noise (structure)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate


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
        Amplitude of noise with equal parts of periods of 8, 16 and 32 pixels (Möckl et al. 2020), uniform.
    """

    constant: tuple[float, float] = (10.0, 100.0)
    gradient: float = 0.0
    glow: tuple[float, float] = (0.0, 0.0)
    glow_width_px: tuple[float, float] = (24.0, 50.0)
    perlin: tuple[float, float] = (0.0, 0.0)


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
        level = level + uniform(ranges.glow) * _glow(x - uniform((-10, 10)), y - uniform((-10, 10)), ranges, uniform)
    if ranges.perlin[1] > 0:
        level = level + uniform(ranges.perlin) * _perlin(generator, frames=frames, shape=shape)
    return level.clamp_min(0.0)


def _glow(x: Tensor, y: Tensor, ranges: BackgroundRanges, uniform: "object") -> Tensor:
    assert callable(uniform)
    angle = uniform((-math.pi / 4, math.pi / 4))
    along = (x * torch.cos(angle) + y * torch.sin(angle)) / uniform(ranges.glow_width_px)
    across = (y * torch.cos(angle) - x * torch.sin(angle)) / uniform(ranges.glow_width_px)
    glow: Tensor = torch.exp(-(((along**2 + across**2) / 2) ** 2))
    return glow


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
