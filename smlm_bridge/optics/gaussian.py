"""The astigmatic Gaussian that stands in for a pupil where no phase is known."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smlm_bridge.errors import InputRejected

Curve = Literal["defocus", "polynomial"]


@dataclass(frozen=True)
class Gaussian:
    """Widths of an astigmatic Gaussian over z.

    With t = (z - focus) / depth, along x and along y

    * ``"defocus"``: sigma(z) = sigma_0 sqrt(1 + t^2 + third t^3 + fourth t^4) (Huang et al. 2008, Eq. 1);
    * ``"polynomial"``: sigma(z) = sigma_0 (1 + t^2 + third t^3) (ThunderSTORM's polynomial calibration).

    Parameters
    ----------
    sigma_nm
        In-focus standard deviations (x, y).
    focus_nm
        Heights of best focus (x, y) above the coverslip.
    depth_nm
        Distances over which the variance (``"defocus"``) or the width (``"polynomial"``) doubles (x, y); ``inf``
        for a width that does not depend on z.
    third, fourth
        Higher orders (x, y).
    curve
        Which of the two laws.
    angle_rad
        Of the lens: the widths belong to (dx cos - dy sin) and (dx sin + dy cos), as in ThunderSTORM.

    Raises
    ------
    InputRejected
        If a value is not a number or a width or depth is not above 0.
    """

    sigma_nm: tuple[float, float]
    focus_nm: tuple[float, float] = (0.0, 0.0)
    depth_nm: tuple[float, float] = (float("inf"), float("inf"))
    third: tuple[float, float] = (0.0, 0.0)
    fourth: tuple[float, float] = (0.0, 0.0)
    curve: Curve = "defocus"
    angle_rad: float = 0.0

    def __post_init__(self) -> None:
        for name in ("sigma_nm", "focus_nm", "depth_nm", "third", "fourth"):
            x, y = (float(value) for value in getattr(self, name))
            object.__setattr__(self, name, (x, y))
        object.__setattr__(self, "angle_rad", float(self.angle_rad))
        if not all(map(math.isfinite, self.sigma_nm + self.focus_nm)):
            raise InputRejected(
                f"Gaussian sigma {self.sigma_nm} and focus {self.focus_nm} nm must be finite."
            )
        if not (min(self.sigma_nm) > 0 and self.depth_nm[0] > 0 and self.depth_nm[1] > 0):
            raise InputRejected(
                f"Gaussian widths must be above 0, got sigma {self.sigma_nm}, depth {self.depth_nm} nm."
            )
        if not all(map(math.isfinite, (*self.third, *self.fourth, self.angle_rad))):
            raise InputRejected(
                f"Gaussian higher orders {self.third}, {self.fourth} and angle {self.angle_rad} must be finite."
            )
        if self.curve not in ("defocus", "polynomial"):
            raise InputRejected(f"the curve of a Gaussian is defocus or polynomial, got {self.curve!r}.")
        if self.curve == "polynomial" and any(self.fourth):
            raise InputRejected(f"a polynomial Gaussian has no fourth order, got {self.fourth}.")

    @property
    def is_plain(self) -> bool:
        """Whether sigma, focus and depth say everything (calibration files of version 1 hold nothing else)."""
        return self == Gaussian(self.sigma_nm, self.focus_nm, self.depth_nm)

    def variance_nm2(self, z_nm: Any, axis: int) -> Any:
        """Variance at heights along x (``axis`` 0) or y (1); arrays and tensors alike."""
        t = (z_nm - self.focus_nm[axis]) / self.depth_nm[axis]
        growth = 1 + t**2 + self.third[axis] * t**3 + self.fourth[axis] * t**4
        if self.curve == "polynomial":
            growth = growth**2
        return self.sigma_nm[axis] ** 2 * growth

    def widths_nm(self, z_nm: ArrayLike) -> NDArray[np.float64]:
        """(Z, 2) standard deviations along x and y at heights (Z,).

        Raises
        ------
        InputRejected
            If a width is not above 0 there: the curve was made for other heights.
        """
        heights = np.atleast_1d(np.asarray(z_nm, dtype=np.float64))
        variance = np.stack([self.variance_nm2(heights, axis) for axis in (0, 1)], axis=1)
        t = np.stack([(heights - f) / d for f, d in zip(self.focus_nm, self.depth_nm, strict=True)], axis=1)
        negative = variance <= 0
        if self.curve == "polynomial":
            negative |= 1 + t**2 + np.asarray(self.third) * t**3 <= 0
        if negative.any():
            raise InputRejected(
                f"the Gaussian has no width at z = {heights[negative.any(axis=1)][0]:.0f} nm. Give a smaller "
                "range of heights, or calibrate again."
            )
        widths: NDArray[np.float64] = np.sqrt(variance)
        return widths
