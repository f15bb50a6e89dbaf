"""The astigmatic Gaussian that stands in for a pupil where no phase is known."""

import math
from dataclasses import dataclass

from smlm_bridge.errors import InputRejected


@dataclass(frozen=True)
class Gaussian:
    """Widths of an astigmatic Gaussian over z.

    sigma(z) = sigma_0 sqrt(1 + ((z - c) / d)^2) along x and y (Huang et al. 2008, Eq. 1, without its higher
    orders).

    Parameters
    ----------
    sigma_nm
        In-focus standard deviations (x, y).
    focus_nm
        Heights of best focus (x, y) above the coverslip.
    depth_nm
        Distances over which the variance doubles (x, y); ``inf`` for a width that does not depend on z.

    Raises
    ------
    InputRejected
        If a value is not a number or a width or depth is not above 0.
    """

    sigma_nm: tuple[float, float]
    focus_nm: tuple[float, float] = (0.0, 0.0)
    depth_nm: tuple[float, float] = (float("inf"), float("inf"))

    def __post_init__(self) -> None:
        for name in ("sigma_nm", "focus_nm", "depth_nm"):
            x, y = (float(value) for value in getattr(self, name))
            object.__setattr__(self, name, (x, y))
        if not all(map(math.isfinite, self.sigma_nm + self.focus_nm)):
            raise InputRejected(
                f"Gaussian sigma {self.sigma_nm} and focus {self.focus_nm} nm must be finite."
            )
        if not (min(self.sigma_nm) > 0 and self.depth_nm[0] > 0 and self.depth_nm[1] > 0):
            raise InputRejected(
                f"Gaussian widths must be above 0, got sigma {self.sigma_nm}, depth {self.depth_nm} nm."
            )
