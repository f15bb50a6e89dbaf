"""The exact likelihood of an EMCCD (``gain``) in torch, as ``kernels`` has it."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from smlm_bridge.fit.gain import LEAST_MEAN_E, STEP, GainTable

_LEAST_DATA = 1e-3  # photo-electrons, beyond the table


@dataclass(frozen=True, eq=False)
class Electrons:
    """A ``GainTable`` on a device."""

    coefficients: Tensor
    information: Tensor
    first: float
    bend: float
    noise_e: float

    @classmethod
    def of(cls, table: GainTable, like: Tensor) -> Self:
        """The table beside a tensor."""
        coefficients, information = (
            torch.as_tensor(t).to(like) for t in (table.coefficients, table.information)
        )
        return cls(coefficients, information, table.first, table.bend, table.noise_e)

    def __call__(self, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density of data x at a mean (photo-electrons), its slope and the information by the mean."""
        mean, x = mean.clamp_min(LEAST_MEAN_E), x.clamp_min(-10.0 * self.noise_e)
        u, v = mean.sqrt() / STEP, (x / (x * x + self.bend**4) ** 0.25 - self.first) / STEP
        rows, columns = len(self.information), self.coefficients.shape[1] - 2
        inside = (u < rows - 1) & (v < columns - 1)
        i, j = u.clamp(0, rows - 1.001).long(), v.clamp(0, columns - 1.001).long()
        t = u - i
        weight = ((1 - t) * self.information[i] + t * self.information[(i + 1).clamp_max(rows - 1)]) / mean
        value, slope = self._light(t, v - j, i * (columns + 2) + j, columns + 2)
        value, slope = value + mean.log(), slope / (2 * mean.sqrt() * STEP) + 1 / mean
        # Near 0 it may be that no electron came.
        none = -mean - 0.5 * (x / self.noise_e) ** 2 - math.log(self.noise_e * math.sqrt(2 * math.pi))
        share = torch.where(x < 10.0 * self.noise_e, torch.sigmoid(none - value), 0.0)
        near = torch.logaddexp(none, value), (1 - share) * slope - share, weight
        found = [
            torch.where(inside, one, other) for one, other in zip(near, self._many(x, mean), strict=True)
        ]
        return found[0], found[1], found[2]

    def _light(self, t: Tensor, s: Tensor, place: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """The spline and its slope along the mean at t and s from knots; ``place`` is the first coefficient's."""
        along, slopes = _weights(t)
        across, _ = _weights(s)
        table = self.coefficients.flatten()
        value, slope = torch.zeros_like(t), torch.zeros_like(t)
        for k in range(4):
            line = torch.zeros_like(t)
            for m in range(4):
                line = line + across[m] * table[place + k * stride + m]
            value, slope = value + along[k] * line, slope + slopes[k] * line
        return value, slope

    def _many(self, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where electrons are many; see ``kernels``."""
        weight = 1 / (2 * mean + self.noise_e**2)
        x, mean = (x + 0.5 * self.noise_e**2).clamp_min(_LEAST_DATA), mean + 0.5 * self.noise_e**2
        t = 2 * (mean * x).sqrt()
        e = 1 / (8 * t.clamp_min(1.0))
        first = (1 - e * (3 + e * (7.5 + e * 52.5))).clamp_min(0.1)
        zeroth = 1 + e * (1 + e * (4.5 + e * 37.5))
        constant = 0.5 * (mean / x).log() - 0.5 * (2 * math.pi * t).log() + first.log()
        return constant - (x.sqrt() - mean.sqrt()) ** 2, (x / mean).sqrt() * zeroth / first - 1, weight


def _weights(t: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Cubic B-splines at t of 0 to 1 between knots, and their slopes."""
    s = 1 - t
    values = [s**3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * s**3 - 6 * s**2 + 4) / 6, t**3 / 6]
    return values, [-0.5 * s**2, 1.5 * t**2 - 2 * t, 2 * s - 1.5 * s**2, 0.5 * t**2]
