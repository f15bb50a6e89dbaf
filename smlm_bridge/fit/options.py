"""How to fit."""

import math
from dataclasses import dataclass

from smlm_bridge.errors import InputRejected


@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Parameters
    ----------
    z_range_nm
        Heights that are allowed; None takes the PSF's own. A PSF that does not know its own needs it.
    z_starts
        Heights from which a fit begins, evenly over the range, of which the likeliest is kept; None takes one
        every 250 nm, at least 3.
    tolerance
        A fit has converged when another step would raise twice the log-likelihood by less: the estimate is then
        within the root of it, 0.01, of a standard deviation.
    iterations
        Most steps of a fit.
    ambiguous_within
        A second solution is reported if its log-likelihood is smaller by less than this: 3 is a ratio of 20.
    zernike
        Noll indices of aberrations that are fitted in each box, with a pupil only.
    threads
        Processors for the fits that need no torch.
    exact_emccd
        Whether cameras with EM gain are fitted with the exact likelihood of their output (read noise included),
        and bounds are those of its information. Else counts are halved and taken as Poisson: variance and bounds
        of the high-signal limit.

    Raises
    ------
    InputRejected
        If a value is out of its range.
    """

    z_range_nm: tuple[float, float] | None = None
    z_starts: int | None = None
    tolerance: float = 1e-4
    iterations: int = 50
    ambiguous_within: float = 3.0
    zernike: tuple[int, ...] = ()
    threads: int = 1
    exact_emccd: bool = True

    def __post_init__(self) -> None:
        if self.z_range_nm is not None and not self.z_range_nm[0] < self.z_range_nm[1]:
            raise InputRejected(f"z_range_nm {self.z_range_nm} must be two heights, the lower first.")
        if self.z_starts is not None and self.z_starts < 1:
            raise InputRejected(f"z_starts {self.z_starts} must be 1 or more.")
        if not (0 < self.tolerance < 1 and self.iterations >= 1 and self.threads >= 1):
            raise InputRejected(
                f"tolerance {self.tolerance:g} must lie in 0 to 1, iterations {self.iterations} and threads "
                f"{self.threads} be 1 or more."
            )
        if not self.ambiguous_within >= 0:
            raise InputRejected(f"ambiguous_within {self.ambiguous_within} must not be negative.")
        if any(noll < 4 for noll in self.zernike):
            raise InputRejected(
                f"zernike {self.zernike}: a box cannot tell piston, tip and tilt (Noll 1 to 3) from the position; "
                "give indices from 4."
            )

    def heights(self, z_range_nm: tuple[float, float]) -> list[float]:
        """Where fits begin."""
        low, high = z_range_nm
        count = self.z_starts or max(3, math.ceil((high - low) / 250.0))
        return [low + (high - low) * (i + 0.5) / count for i in range(count)]
