"""Images of emitters in small windows, with analytic derivatives, from a tabulated PSF.

A tabulated image is a product of matrices, weights along y times the table at height z times weights along x,
and the weights are Gaussians (or their integrals over a pixel): every derivative is such a product again. The
matrices are narrow bands, which ``kernels`` makes use of.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.multi.kernels import render
from smlm_bridge.psf.resample import SPREAD
from smlm_bridge.psf.spline import SplinePSF
from smlm_bridge.transform import Transform

Floats = NDArray[np.float64]

#: What ``Stamps.images`` returns along its second axis.
ORDERS = ("image", "x_nm", "y_nm", "z_nm", "blur_nm2")
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

    def images(
        self, xyz_nm: Floats, blur_nm2: Floats, corners: NDArray[np.int64], *, derivatives: bool = True
    ) -> NDArray[np.float32]:
        """(n, 5, S, S) images and their derivatives by ``ORDERS``, or (n, 1, S, S) the images alone.

        Parameters
        ----------
        xyz_nm : (n, 3)
            Positions, in the first channel's frame.
        blur_nm2 : (n,)
            Variance of an additional Gaussian blur.
        corners : (n, 2)
            First pixels of the windows.
        derivatives
            Whether they are wanted.

        Raises
        ------
        InputRejected
            If a position or blur is not finite: compiled code would read beyond the table.
        """
        if not (np.isfinite(xyz_nm).all() and np.isfinite(blur_nm2).all()):
            raise InputRejected("the fit left the numbers: a position or blur is not finite.")
        local = np.array(xyz_nm, float)
        local[:, :2] = self.here(xyz_nm[:, :2])
        local[:, :2] -= corners * self.psf.pixel_nm
        out = np.empty(
            (len(local), len(ORDERS) if derivatives else 1, self.side_px, self.side_px), np.float32
        )
        if not len(out):
            return out
        first, shares = self._planes(local[:, 2])
        variance = np.asarray(blur_nm2, float) + (self.psf.blur_nm**2 + (SPREAD * self.psf.sample_nm) ** 2)
        psf = self.psf
        render(
            self._table, first, shares, local[:, :2].copy(), variance,
            psf.pixel_nm, psf.sample_nm, psf.integrate, out,
        )  # fmt: skip
        if derivatives and self.transform is not None:  # by x and y of the first channel
            turn = self.transform.slopes(xyz_nm[:, :2]).astype(np.float32)
            out[:, 1:3] = np.einsum("nij,nihw->njhw", turn, out[:, 1:3])
        return out

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        """(Z, M, M) coefficients with x along the second axis."""
        return np.ascontiguousarray(self.psf.coefficients.numpy().transpose(0, 2, 1), np.float32)

    def _planes(self, z_nm: Floats) -> tuple[NDArray[np.int64], Floats]:
        """(n,) first of four planes and (n, 2, 4) their shares in image and slope (uniform cubic B-spline)."""
        psf = self.psf
        position = np.clip((z_nm - psf.z_first_nm) / psf.z_step_nm, 0.0, len(psf.coefficients) - 3 - 1e-4)
        first = np.floor(position)
        t = position - first
        values = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
        slopes = [-((1 - t) ** 2), 3 * t**2 - 4 * t, -3 * t**2 + 2 * t + 1, t**2]
        shares = np.stack([np.stack(values, 1) / 6, np.stack(slopes, 1) / (2 * psf.z_step_nm)], axis=1)
        return first.astype(np.int64), shares


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
