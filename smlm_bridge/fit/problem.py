"""A fit before it is solved and right after: what the compiled and the general solver share.

Parameters stand in the order x, y, shape (height or width), photons, one background a channel, aberrations; x and
y in pixels from the corner of the first channel's box, heights in nm, widths in pixels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.fit.noise import Counts
from smlm_bridge.fit.options import FitOptions
from smlm_bridge.fit.result import FitResult, Status

if TYPE_CHECKING:
    from smlm_bridge.fit.models import AnyPSF

Floats = NDArray[np.float64]

LEAST_PHOTONS, LEAST_BACKGROUND = 1.0, 0.01
LEAST_WIDTH_PX: Final = 0.3
_MOST = 1e12
_LARGEST_ABERRATION_RAD = 3.0
_NEAR = 1e-6


@dataclass(frozen=True, eq=False)
class Problem:
    """N boxes of C channels and what is to be found in each.

    Parameters
    ----------
    psfs, shares : (C,)
        PSF and part of the photons of each channel.
    counts, side
        The boxes and their side.
    matrix, origin : (N, C, 2, 2), (N, C, 2)
        Take a position in the first channel's box to one in each channel's, pixels, x before y.
    corners : (N, 2)
        Row and column of the first pixel of the first channel's box.
    pixel_nm
        Camera pixel.
    shape
        Name of the shape parameter, ``z_nm`` or ``psf_sigma_nm``; None where it is held.
    shapes : (S,)
        Its starts, and ``shape_range`` what is allowed; pixels or nm.
    starts : (N, P)
        Where to begin, not a number where that is to be found.
    options
        See ``FitOptions``.
    """

    psfs: "tuple[AnyPSF, ...]"
    shares: Floats
    counts: Counts
    side: int
    matrix: Floats
    origin: Floats
    corners: NDArray[np.integer]
    pixel_nm: float
    shape: str | None
    shapes: Floats
    shape_range: tuple[float, float]
    starts: Floats
    options: FitOptions

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.psfs)

    @property
    def size(self) -> int:
        """Number of parameters, the held ones included."""
        return 4 + self.channels + len(self.options.zernike)

    @property
    def held(self) -> NDArray[np.bool_]:
        """(P,) which parameters are not fitted."""
        held = np.zeros(self.size, np.bool_)
        held[2] = self.shape is None
        return held

    @property
    def limits(self) -> tuple[Floats, Floats, Floats]:
        """Lower and upper bounds and largest steps (P,)."""
        low, high = self.shape_range
        backgrounds, aberrations = np.ones(self.channels), np.ones(len(self.options.zernike))
        side = float(self.side)
        lower = [0.0, 0.0, low, LEAST_PHOTONS, *(LEAST_BACKGROUND * backgrounds)]
        upper = [side, side, high, _MOST, *(_MOST * backgrounds)]
        # A leap over more than a start's neighbourhood would make the starts pointless.
        leap = (high - low) / max(2, len(self.shapes))
        step = [1.0, 1.0, leap, _MOST, *(_MOST * backgrounds)]
        far = _LARGEST_ABERRATION_RAD * aberrations
        return np.array([*lower, *-far]), np.array([*upper, *far]), np.array([*step, *(0.5 * aberrations)])

    @property
    def least_apart(self) -> float:
        """Heights closer than this are one solution."""
        low, high = self.shape_range
        return 0.5 * (high - low) / len(self.shapes)


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found, in the units of ``Problem``.

    ``objective`` is 2 sum (mean - data log mean), ``ended`` 0 converged, 1 limited, 2 stuck; ``other`` is a second
    solution with its own objective, not a number where there is none.
    """

    values: Floats
    bounds: Floats
    objective: Floats
    chi2: Floats
    chi2_variance: Floats
    iterations: NDArray[np.int64]
    ended: NDArray[np.int64]
    other: Floats
    other_objective: Floats


def finish(problem: Problem, found: Solution) -> FitResult:
    """Name, scale and judge what was found."""
    kept = ~problem.held
    names = ["x_nm", "y_nm", problem.shape or "", "photons", "background", "background2"][
        : 4 + problem.channels
    ]
    names += [f"zernike_{noll}" for noll in problem.options.zernike]
    pixel = problem.pixel_nm
    scale = np.ones(problem.size)
    scale[:2] = pixel
    scale[2] = pixel if problem.shape == "psf_sigma_nm" else 1.0
    shift = np.zeros((len(found.values), problem.size))
    shift[:, :2] = problem.corners[:, ::-1] * pixel
    other_likelihood, other = _second(problem, found)
    return FitResult(
        names=tuple(name for name, keep in zip(names, kept, strict=True) if keep),
        values=(found.values * scale + shift)[:, kept],
        bounds=(found.bounds * scale)[:, kept],
        log_likelihood=problem.counts.log_likelihood(found.objective),
        chi2=found.chi2,
        p_value=problem.counts.p_value(found.chi2, found.chi2_variance, int(kept.sum())),
        iterations=found.iterations,
        status=_status(problem, found),
        other=(other * scale + shift)[:, kept],
        other_log_likelihood=other_likelihood,
    )


def _second(problem: Problem, found: Solution) -> tuple[Floats, Floats]:
    """Likelihoods and parameters of the second solutions that count: nearly as likely and truly elsewhere."""
    behind = 0.5 * (found.other_objective - found.objective)
    inside = _inside(problem, found.other)
    counts = (behind < problem.options.ambiguous_within) & inside
    likelihood = np.where(counts, problem.counts.log_likelihood(found.other_objective), np.nan)
    return likelihood, np.where(counts[:, None], found.other, np.nan)


def _inside(problem: Problem, values: Floats) -> NDArray[np.bool_]:
    """Whether x, y and shape lie off their bounds."""
    lower, upper, _ = problem.limits
    margin = _NEAR * (upper - lower)[:3]
    off = (values[:, :3] > lower[:3] + margin) & (values[:, :3] < upper[:3] - margin)
    if problem.shape is None:
        off[:, 2] = True
    return np.asarray(off.all(axis=1))


def _status(problem: Problem, found: Solution) -> NDArray[np.int64]:
    """The most telling reason of each fit."""
    status = np.asarray(found.ended, dtype=np.int64).copy()
    status[~np.isfinite(found.bounds[:, ~problem.held]).all(axis=1)] = Status.UNDETERMINED
    lower, upper, _ = problem.limits
    near = _NEAR * (upper - lower)
    at_edge = (found.values <= lower + near) | (found.values >= upper - near)
    if problem.shape is not None:
        status[at_edge[:, 2]] = Status.Z_EDGE if problem.shape == "z_nm" else Status.UNDETERMINED
    status[at_edge[:, :2].any(axis=1)] = Status.LEFT_BOX
    status[found.values[:, 3] <= 2 * LEAST_PHOTONS] = Status.NO_LIGHT
    return status
