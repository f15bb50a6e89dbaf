"""The astigmatic Gaussian that stands in for a pupil where no phase is known."""

from dataclasses import dataclass

from smlm_bridge.errors import InputRejected


@dataclass(frozen=True)
class Gaussian:
    """Widths of an astigmatic Gaussian over z.

    sigma(z) = sigma_0 sqrt(1 + ((z - c) / d)^2) along x and y (Huang et al. 2008, Eq. 1, without higher orders).

    Parameters
    ----------
    sigma_nm
        In-focus standard deviations (x, y).
    focus_nm
        Heights of best focus (x, y) above the coverslip.
    depth_nm
        Distances over which the variance doubles (x, y); ``inf`` for a width that does not depend on z.
    """

    sigma_nm: tuple[float, float]
    focus_nm: tuple[float, float] = (0.0, 0.0)
    depth_nm: tuple[float, float] = (float("inf"), float("inf"))

    def __post_init__(self) -> None:
        if min(self.sigma_nm) <= 0 or min(self.depth_nm) <= 0:
            raise InputRejected(f"Gaussian widths must be above 0, got sigma {self.sigma_nm}, depth {self.depth_nm} nm.")
