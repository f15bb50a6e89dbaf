"""The cubic-spline PSF in numpy: a table of polynomials, one a voxel (Babcock & Zhuang 2017; Li 2018).

It holds what SMAP's and Picasso's spline calibrations hold and is fitted without torch;
``cubic_spline_psf.CubicSplinePSF`` shows it to what needs a PSF in torch.
"""

from dataclasses import dataclass

import numpy as np
import scipy.interpolate
from numpy.typing import ArrayLike, NDArray

from smlm_bridge.conventions import PIXEL_CENTRE
from smlm_bridge.errors import InputRejected

Floats = NDArray[np.float64]

POWERS = 64  # 4 powers along each of z, y, x
_LEAST_KNOTS = 4


@dataclass(frozen=True, eq=False)
class CubicSpline:
    """A PSF from piecewise cubic polynomials.

    The image is known at knots: planes of z, and in each plane ``samples_per_px`` knots a pixel and axis. The
    value at a knot is the fraction of the photons in the pixel whose centre lies there. Between the knots
    (k, j, i) and (k + 1, j + 1, i + 1), with dz, dy, dx from 0 to 1,

        f = sum over m of coefficients[k, j, i, m] dx^(m % 4) dy^(m // 4 % 4) dz^(m // 16).

    Parameters
    ----------
    coefficients : (Z, Y, X, 64) float32
        One polynomial a voxel; there is one knot more than voxels along each axis.
    centre : (y, x)
        Where the emitter stands, in knots from the first one along y and x.
    z_first_nm, z_step_nm
        Height of the first plane of knots, and their spacing, above 0.
    pixel_nm
        Camera pixel.
    samples_per_px
        Knots a pixel and axis.

    Raises
    ------
    InputRejected
        If the coefficients are not (Z, Y, X, 64) or not finite, the centre lies outside, or a length is not
        above 0.
    """

    coefficients: NDArray[np.float32]
    centre: tuple[float, float]
    z_first_nm: float
    z_step_nm: float
    pixel_nm: float
    samples_per_px: int = 1

    def __post_init__(self) -> None:
        coefficients = np.ascontiguousarray(self.coefficients, dtype=np.float32)
        if coefficients.ndim != 4 or coefficients.shape[3] != POWERS or not coefficients.size:
            raise InputRejected(
                f"spline coefficients are (Z, Y, X, {POWERS}), one cubic polynomial a voxel; got an array of "
                f"{coefficients.shape}."
            )
        if not np.isfinite(coefficients).all():
            raise InputRejected("spline coefficients must be finite; make the calibration again.")
        object.__setattr__(self, "coefficients", coefficients)
        y, x = (float(value) for value in self.centre)
        object.__setattr__(self, "centre", (y, x))
        if not (0 <= y <= coefficients.shape[1] and 0 <= x <= coefficients.shape[2]):
            raise InputRejected(
                f"the spline's centre (y {y:g}, x {x:g}) lies outside its {coefficients.shape[1]} x "
                f"{coefficients.shape[2]} voxels."
            )
        lengths = (self.z_step_nm, self.pixel_nm)
        if not (np.isfinite([*lengths, self.z_first_nm]).all() and min(lengths) > 0):
            raise InputRejected(
                f"z_step_nm {self.z_step_nm:g} and pixel_nm {self.pixel_nm:g} must be above 0, z_first_nm "
                f"{self.z_first_nm:g} finite. A stack of falling heights is turned round first."
            )
        if self.samples_per_px < 1:
            raise InputRejected(f"samples_per_px {self.samples_per_px} must be 1 or more.")

    @classmethod
    def of_stack(
        cls,
        stack: ArrayLike,
        *,
        pixel_nm: float,
        z_first_nm: float,
        z_step_nm: float,
        centre: tuple[float, float] | None = None,
        samples_per_px: int = 1,
    ) -> "CubicSpline":
        """The spline through images (Z, Y, X), twice continuously differentiable, not-a-knot at the edges.

        Parameters
        ----------
        stack
            The fraction of the photons in each pixel; plane 0 is the lowest. At least 4 along each axis.
        pixel_nm, z_first_nm, z_step_nm, samples_per_px
            As in ``CubicSpline``.
        centre : (y, x)
            Of the emitter in the images, in samples from the first; None is their middle.

        Raises
        ------
        InputRejected
            If the stack is not (Z, Y, X) with 4 or more along each axis, or not finite.
        """
        values = np.asarray(stack, dtype=np.float64)
        if values.ndim != 3 or min(values.shape) < _LEAST_KNOTS:
            raise InputRejected(
                f"a spline goes through a stack (z, y, x) of {_LEAST_KNOTS} or more along each axis, got "
                f"{values.shape}."
            )
        if not np.isfinite(values).all():
            raise InputRejected("the stack has values that are not finite.")
        powers = values
        # The axis after next is always the next to be interpolated: scipy puts (power, voxel) in front.
        for axis in (0, 2, 4):
            knots = np.arange(powers.shape[axis])
            powers = scipy.interpolate.CubicSpline(knots, powers, axis=axis).c[::-1]
        ordered = powers.transpose(5, 3, 1, 4, 2, 0)  # (Z, Y, X, power of dz, of dy, of dx)
        y, x = centre if centre is not None else ((n - 1) / 2 for n in values.shape[1:])
        return cls(
            ordered.reshape(*ordered.shape[:3], POWERS).astype(np.float32),
            (y, x),
            z_first_nm,
            z_step_nm,
            pixel_nm,
            samples_per_px,
        )

    @property
    def z_range_nm(self) -> tuple[float, float]:
        """Heights of the first and the last plane; the image does not change beyond."""
        return self.z_first_nm, self.z_first_nm + self.coefficients.shape[0] * self.z_step_nm

    def images(self, xyz_nm: ArrayLike, shape: tuple[int, int]) -> Floats:
        """Fractions of photons of emitters at (E, 3) in a window of (H, W) pixels, as ``protocol.PSF.images``.

        Beyond the table there is no light; heights outside take its first or last plane.

        Returns
        -------
        (E, H, W)
        """
        xyz = np.asarray(xyz_nm, dtype=np.float64).reshape(-1, 3)
        planes = self.coefficients.shape[0]
        height = np.clip((xyz[:, 2] - self.z_first_nm) / self.z_step_nm, 0.0, planes)
        k = np.minimum(height.astype(np.intp), planes - 1)
        (j, dy), (i, dx) = (self._voxels(xyz[:, 1 - axis], shape[axis], axis) for axis in (0, 1))
        powers = np.arange(4)
        weights = np.einsum(
            "ea,eb,ec->eabc", (height - k)[:, None] ** powers, dy[:, None] ** powers, dx[:, None] ** powers
        ).reshape(-1, POWERS)
        out = np.zeros((len(xyz), *shape))
        inside = [
            (index >= 0) & (index < self.coefficients.shape[1 + axis]) for axis, index in enumerate((j, i))
        ]
        # Row by row: all polynomials of a window at once would need megabytes an emitter.
        for row in range(shape[0]):
            e = np.flatnonzero(inside[0][:, row])
            columns = np.clip(i[e], 0, self.coefficients.shape[2] - 1)
            found = self.coefficients[k[e, None], j[e, row, None], columns]
            out[e, row] = np.einsum("exm,em->ex", found, weights[e]) * inside[1][e]
        return out

    def _voxels(self, position_nm: Floats, count: int, axis: int) -> tuple[NDArray[np.intp], Floats]:
        """Voxel (E, count) of each pixel of an axis, and how far into it (E,) the pixel's centre lies."""
        step = self.samples_per_px
        first = self.centre[axis] + (PIXEL_CENTRE - position_nm / self.pixel_nm) * step
        whole = np.floor(first)
        return whole.astype(np.intp)[:, None] + step * np.arange(count), first - whole
