"""The astigmatic Gaussian: what ThunderSTORM's users start from, and the simplest PSF to test against."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.psf.resample import pixel_weights

# Nodes (in half pixels) and weights of the three-point rule: 1e-4 of the peak where the width is half a pixel.
_GAUSS_POINTS = ((-math.sqrt(0.6), 5 / 18), (0.0, 8 / 18), (math.sqrt(0.6), 5 / 18))


@dataclass(frozen=True)
class GaussianPSF:
    """An astigmatic Gaussian (see ``protocol.PSF``).

    Parameters
    ----------
    gaussian
        Its widths.
    pixel_nm, blur_nm, integrate
        As in ``PupilPSF``.
    """

    gaussian: Gaussian
    pixel_nm: float
    blur_nm: float = 0.0
    integrate: bool = True

    def images(self, xyz_nm: Tensor, shape: tuple[int, int], *, blur_nm: Tensor | None = None) -> Tensor:
        """Expected fraction of photons in every pixel; see ``protocol.PSF.images``."""
        extra = self.blur_nm**2 if blur_nm is None else self.blur_nm**2 + blur_nm**2
        variance = [self.gaussian.variance_nm2(xyz_nm[:, 2], axis) + extra for axis in (0, 1)]
        if self.gaussian.angle_rad:
            return self._rotated(xyz_nm, shape, variance)
        factors = []
        for axis in (1, 0):
            centres = (
                torch.arange(shape[1 - axis], device=xyz_nm.device, dtype=xyz_nm.dtype) + 0.5
            ) * self.pixel_nm
            weights = pixel_weights(
                centres,
                xyz_nm[:, axis, None],
                pixel_nm=self.pixel_nm,
                sample_pitch_nm=1.0,
                blur_nm=torch.sqrt(variance[axis]),
                integrate=self.integrate,
            )
            factors.append(weights[..., 0])
        return torch.einsum("ey,ex->eyx", factors[0], factors[1])

    def _rotated(self, xyz_nm: Tensor, shape: tuple[int, int], variance: list[Tensor]) -> Tensor:
        """Widths along turned axes are not separable: Gauss-Legendre points in every pixel (or its centre)."""
        points = _GAUSS_POINTS if self.integrate else ((0.0, 1.0),)
        cosine, sine = math.cos(self.gaussian.angle_rad), math.sin(self.gaussian.angle_rad)
        norm = self.pixel_nm**2 / (2 * math.pi * torch.sqrt(variance[0] * variance[1]))
        total = xyz_nm.new_zeros((xyz_nm.shape[0], *shape))
        for (at_y, weight_y), (at_x, weight_x) in itertools.product(points, points):
            dy, dx = (
                (torch.arange(shape[i], device=xyz_nm.device, dtype=xyz_nm.dtype) + 0.5 + at / 2)
                * self.pixel_nm
                - xyz_nm[:, 1 - i, None]
                for i, at in ((0, at_y), (1, at_x))
            )
            first = (dx * cosine)[:, None, :] - (dy * sine)[:, :, None]
            second = (dx * sine)[:, None, :] + (dy * cosine)[:, :, None]
            exponent = first**2 / variance[0][:, None, None] + second**2 / variance[1][:, None, None]
            total = total + weight_y * weight_x * torch.exp(-0.5 * exponent)
        return total * norm[:, None, None]
