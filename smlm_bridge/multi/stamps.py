"""Images of emitters in small windows, with analytic derivatives, from a tabulated PSF.

A tabulated image is a product of matrices, weights along y times the table at height z times weights along x,
and the weights are Gaussians (or their integrals over a pixel): every derivative is such a product again.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smlm_bridge.psf.resample import SPREAD
from smlm_bridge.psf.spline import SplinePSF
from smlm_bridge.transform import Transform

Floats = NDArray[np.float64]

#: What ``Stamps.images`` returns along its second axis.
ORDERS = ("image", "x_nm", "y_nm", "z_nm", "blur_nm2")
_CHUNK = 16
_SUM_PLANES = 24


@dataclass(frozen=True)
class Stamps:
    """Renders windows of one channel.

    Parameters
    ----------
    psf
        The table; only what windows need of it.
    half_px
        A window has 2 half_px + 1 pixels a side, with the emitter in its middle pixel.
    z_range_nm
        Heights that the table holds.
    transform
        Takes positions of the first channel, which all others speak of, to this one; None where they are the same.
    """

    psf: SplinePSF
    half_px: int
    z_range_nm: tuple[float, float]
    transform: Transform | None = None

    @classmethod
    def of(cls, psf: SplinePSF, *, z_range_nm: tuple[float, float], lost: float = 0.01) -> "Stamps":
        """The smallest windows outside of which lies less than the share ``lost`` of the light, at any height."""
        most = int(psf.reach_nm / psf.pixel_nm) - 1
        heights = torch.linspace(*z_range_nm, _SUM_PLANES)
        centre = torch.full_like(heights, (most + 0.5) * psf.pixel_nm)
        side = 2 * most + 1
        with torch.no_grad():
            images = psf.images(torch.stack([centre, centre, heights], 1), (side, side))
        held = torch.stack(
            [
                images[:, most - half : most + half + 1, most - half : most + half + 1].sum((1, 2)).amin()
                for half in range(1, most + 1)
            ]
        )
        enough = int((held < (1 - lost) * held[-1]).sum()) + 1
        half = min(most, enough)
        keep = math.ceil(((half + 1.5) * psf.pixel_nm + 4 * psf.blur_nm) / psf.sample_nm)
        middle = psf.coefficients.shape[1] // 2
        rows = slice(max(0, middle - keep), middle + keep + 1)
        table = psf.coefficients[:, rows, rows].contiguous()
        return cls(replace(psf, coefficients=table), half, z_range_nm)

    @property
    def side_px(self) -> int:
        """Pixels of a window's side."""
        return 2 * self.half_px + 1

    def here(self, xy_nm: Floats) -> Floats:
        """Positions (n, 2) of the first channel in this one."""
        return xy_nm if self.transform is None else self.transform.apply(xy_nm)

    def corners(self, xy_nm: Floats) -> NDArray[np.int64]:
        """(n, 2) column and row of the first pixel of each window."""
        return np.floor(self.here(xy_nm) / self.psf.pixel_nm).astype(np.int64) - self.half_px

    def images(self, xyz_nm: Floats, blur_nm2: Floats, corners: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, 5, S, S) images and their derivatives by ``ORDERS``.

        Parameters
        ----------
        xyz_nm : (n, 3)
            Positions, in the first channel's frame.
        blur_nm2 : (n,)
            Variance of an additional Gaussian blur.
        corners : (n, 2)
            First pixels of the windows.
        """
        local = xyz_nm.copy()
        local[:, :2] = self.here(xyz_nm[:, :2])
        local[:, :2] -= corners * self.psf.pixel_nm
        where = torch.as_tensor(local, dtype=torch.float32)
        spread = torch.as_tensor(blur_nm2, dtype=torch.float32)
        with torch.no_grad():
            parts = [
                self._images(where[i : i + _CHUNK], spread[i : i + _CHUNK])
                for i in range(0, len(where), _CHUNK)
            ]
        side = self.side_px
        if not parts:
            return np.zeros((0, len(ORDERS), side, side), np.float32)
        images: NDArray[np.float32] = torch.cat(parts).numpy()
        if self.transform is not None:  # derivatives by x and y of the first channel
            turn = self.transform.slopes(xyz_nm[:, :2]).astype(np.float32)
            images[:, 1:3] = np.einsum("nij,nihw->njhw", turn, images[:, 1:3])
        return images

    def _images(self, xyz_nm: Tensor, blur_nm2: Tensor) -> Tensor:
        variance = blur_nm2 + (self.psf.blur_nm**2 + (SPREAD * self.psf.sample_nm) ** 2)
        y, y_x, y_v = (w.contiguous() for w in self._weights(xyz_nm[:, 1], variance))
        x, x_x, x_v = (w.mT.contiguous() for w in self._weights(xyz_nm[:, 0], variance))
        plane, slope = self._planes(xyz_nm[:, 2])
        across = plane @ x
        return torch.stack(
            [
                y @ across,
                y @ (plane @ x_x),
                y_x @ across,
                y @ (slope @ x),
                y_v @ across + y @ (plane @ x_v),
            ],
            dim=1,
        )

    def _weights(self, position_nm: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, S, M) weights of the samples in the pixels; their derivatives by position and by variance."""
        psf, count = self.psf, self.psf.coefficients.shape[1]
        samples = (torch.arange(count) - count // 2) * psf.sample_nm
        pixels = (torch.arange(self.side_px) + 0.5) * psf.pixel_nm
        distance = pixels[:, None] - samples - position_nm[:, None, None]
        var = variance[:, None, None]
        if not psf.integrate:
            scale = psf.pixel_nm * psf.sample_nm / torch.sqrt(2 * math.pi * var)
            square = distance.square() / var
            weight = torch.exp((-0.5 * square).clamp_min(-25.0)) * scale
            return weight, weight * distance / var, weight * (square - 1) / (2 * var)
        half = psf.pixel_nm / 2
        root = torch.rsqrt(2 * var)
        ends = (distance + half, distance - half)
        density = [
            torch.exp((-0.5 * u.square() / var).clamp_min(-25.0)) / torch.sqrt(2 * math.pi * var)
            for u in ends
        ]
        weight = 0.5 * (torch.erf(ends[0] * root) - torch.erf(ends[1] * root))
        by_position = density[1] - density[0]
        by_variance = (ends[1] * density[1] - ends[0] * density[0]) / (2 * var)
        return weight * psf.sample_nm, by_position * psf.sample_nm, by_variance * psf.sample_nm

    def _planes(self, z_nm: Tensor) -> tuple[Tensor, Tensor]:
        """(n, M, M) tables at the heights and their derivatives (uniform cubic B-spline)."""
        psf = self.psf
        count = psf.coefficients.shape[0]
        position = ((z_nm - psf.z_first_nm) / psf.z_step_nm).clamp(0.0, count - 3 - 1e-4)
        first = position.floor()
        t = position - first
        values = (
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        )
        slopes = (-((1 - t) ** 2) / 2, (3 * t**2 - 4 * t) / 2, (-3 * t**2 + 2 * t + 1) / 2, t**2 / 2)
        index = first.long()
        planes = [psf.coefficients[index + k] for k in range(4)]
        plane = sum(v[:, None, None] * p for v, p in zip(values, planes, strict=True))
        slope = sum(v[:, None, None] * p for v, p in zip(slopes, planes, strict=True))
        assert isinstance(plane, Tensor)
        assert isinstance(slope, Tensor)
        return plane, slope / psf.z_step_nm


Window = tuple[slice, slice, slice, slice]


def windows(corners: NDArray[np.int64], side: int, shape: tuple[int, ...]) -> list[Window]:
    """For each window its rows and columns in a frame (H, W), and the part of the window that they are."""
    height, width = shape
    found = []
    for x, y in corners:
        top, left = max(0, y), max(0, x)
        bottom, right = max(top, min(height, y + side)), max(left, min(width, x + side))
        own = (slice(top - y, bottom - y), slice(left - x, right - x))
        found.append((slice(top, bottom), slice(left, right), *own))
    return found


def add_windows(frame: NDArray[np.float32], images: NDArray[np.floating], corners: NDArray[np.int64]) -> None:
    """Add windows (n, S, S) to a frame (H, W) in place."""
    places = windows(corners, images.shape[-1], frame.shape)
    for image, (rows, columns, own_rows, own_columns) in zip(images, places, strict=True):
        frame[rows, columns] += image[own_rows, own_columns]
