"""The fits that need no torch: integrated Gaussians and cubic splines, by ``kernels``."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.fit import kernels
from smlm_bridge.fit.gain import GainTable
from smlm_bridge.fit.models import AstigmaticSpot, Spot
from smlm_bridge.fit.problem import Problem, Solution
from smlm_bridge.psf.cubic_spline import POWERS, CubicSpline

if TYPE_CHECKING:
    from smlm_bridge.fit.models import AnyPSF

Floats = NDArray[np.float64]


def can_fit(psfs: "tuple[AnyPSF, ...]") -> bool:
    """Whether these PSFs are fitted without torch: of one kind, and a Gaussian along the pixels' axes."""
    kinds = {type(psf) for psf in psfs}
    if len(kinds) != 1 or not kinds <= {Spot, AstigmaticSpot, CubicSpline}:
        return False
    return not any(isinstance(psf, AstigmaticSpot) and psf.gaussian.angle_rad for psf in psfs)


def solve(problem: Problem) -> Solution:
    """Fit every box."""
    counts, size = problem.counts, problem.size
    n = len(counts.data)
    lower, upper, step = problem.limits
    limits = kernels.Limits(
        lower,
        upper,
        step,
        problem.held,
        problem.options.tolerance,
        problem.options.iterations,
        problem.least_apart,
    )
    boxes = kernels.Boxes(
        counts.data, counts.shift, problem.matrix, problem.origin, counts.scale, _gain(counts.gain)
    )
    model = _model(problem)
    values, bounds = np.full((n, size), np.nan), np.full((n, size), np.nan)
    numbers, other = np.full((n, 6), np.nan), np.full((n, size + 1), np.nan)

    def part(first: int, stop: int) -> None:
        kernels.fit_all(
            model,
            boxes,
            problem.starts,
            problem.shapes,
            limits,
            counts.kurtosis,
            first,
            stop,
            values,
            bounds,
            numbers,
            other,
        )

    _spread(part, n, problem.options.threads)
    return Solution(
        values,
        bounds,
        objective=numbers[:, 0],
        chi2=numbers[:, 1],
        chi2_variance=numbers[:, 2],
        iterations=numbers[:, 3].astype(np.int64),
        ended=numbers[:, 4].astype(np.int64),
        other=other[:, :size],
        other_objective=other[:, size],
    )


def _spread(part: Callable[[int, int], None], n: int, threads: int) -> None:
    """Call ``part`` for consecutive ranges of the boxes, on as many threads: the kernels release Python's lock."""
    if n == 0:
        return  # not even a call, which compiles
    if threads == 1 or n < threads:
        part(0, n)
        return
    edges = [n * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, edges[:-1], edges[1:]))


def _model(problem: Problem) -> kernels.Model:
    constants = np.zeros((problem.channels, 12))
    table = np.zeros((1, 1, 1, 1, POWERS), np.float32)
    kind = kernels.WIDTH
    for channel, psf in enumerate(problem.psfs):
        if isinstance(psf, AstigmaticSpot):
            kind = kernels.GAUSSIAN
            constants[channel] = _gaussian(psf)
        elif isinstance(psf, CubicSpline):
            kind = kernels.SPLINE
            constants[channel, :5] = (*psf.centre, psf.samples_per_px, psf.z_first_nm, psf.z_step_nm)
    if kind == kernels.SPLINE:
        tables = [psf.coefficients for psf in problem.psfs if isinstance(psf, CubicSpline)]
        if len({t.shape for t in tables}) != 1:
            shapes = " and ".join(str(t.shape[:3]) for t in tables)
            raise InputRejected(f"the channels' splines have {shapes} voxels; make them of one size.")
        # Of one channel the table itself: a copy of some megabytes for every block would show. (One that must not
        # be written is another type to numba, which would compile everything again.)
        alone = len(tables) == 1 and tables[0].flags.writeable
        table = tables[0][None] if alone else np.stack(tables)
    return kernels.Model(kind, problem.side, constants, table, problem.shares)


def _gain(tables: tuple[GainTable, ...]) -> kernels.Gain:
    """Tables of one size; without EM gain empty ones."""
    if not tables:
        return kernels.Gain(False, np.zeros((1, 1, 1)), np.zeros((1, 1)), np.zeros((1, 4)))
    width = max(table.coefficients.shape[1] for table in tables)
    coefficients = np.zeros((len(tables), tables[0].coefficients.shape[0], width))
    for channel, table in enumerate(tables):
        coefficients[channel, :, : table.coefficients.shape[1]] = table.coefficients
    numbers = [[t.first, t.bend, t.coefficients.shape[1] - 2.0, t.noise_e] for t in tables]
    return kernels.Gain(True, coefficients, np.stack([t.information for t in tables]), np.array(numbers))


def _gaussian(psf: AstigmaticSpot) -> list[float]:
    gaussian = psf.gaussian
    axes = zip(
        gaussian.sigma_nm, gaussian.focus_nm, gaussian.depth_nm, gaussian.third, gaussian.fourth, strict=True
    )
    numbers = [
        value
        for sigma, focus, depth, third, fourth in axes
        for value in (sigma / psf.pixel_nm, focus, 1 / depth, third, fourth)
    ]
    return [*numbers, (psf.blur_nm / psf.pixel_nm) ** 2, float(gaussian.curve == "polynomial")]
