"""The fit of any PSF in torch: the method of ``kernels``, all boxes of a chunk at once, on whatever device.

Expected images and derivatives come from the PSF; everything else is the same for all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smlm_bridge.crlb import derivatives
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit.aberrations import AberratedPSF
from smlm_bridge.fit.electrons import Electrons
from smlm_bridge.fit.models import AstigmaticSpot, Spot
from smlm_bridge.fit.problem import Problem, Solution
from smlm_bridge.psf.cubic_spline import CubicSpline
from smlm_bridge.psf.cubic_spline_psf import CubicSplinePSF
from smlm_bridge.psf.gaussian import GaussianPSF
from smlm_bridge.psf.protocol import PSF

if TYPE_CHECKING:
    from smlm_bridge.fit.models import AnyPSF

#: Fraction (M, n) and its derivatives (M, 3 + J, n) by x, y, z in nm and aberrations, at (M, 3 + J).
Images = Callable[[Tensor], tuple[Tensor, Tensor]]

CONVERGED, LIMITED, STUCK = 0, 1, 2
_CHUNK_ELEMENTS = 20_000_000  # numbers of the derivatives held at once
_DAMPED, _MOST_DAMPED = 0.1, 1e8
_SCREENING = 3
_TINY = 1e-9
_SINGULAR = 1e-12


def solve(problem: Problem) -> Solution:
    """Fit every box."""
    images = [_images(psf, problem) for psf in problem.psfs]
    each = problem.channels * problem.side**2 * problem.size * 4
    chunk = max(1, _CHUNK_ELEMENTS // each)
    count = len(problem.counts.data)
    parts = [_Chunk.of(problem, images, slice(i, i + chunk)).solve() for i in range(0, max(count, 1), chunk)]
    joined = [np.concatenate([part[k] for part in parts]) for k in range(len(parts[0]))]
    values, bounds, objective, chi2, variance, iterations, ended, other, other_objective = joined
    return Solution(
        values,
        bounds,
        objective,
        chi2,
        variance,
        iterations.astype(np.int64),
        ended.astype(np.int64),
        other,
        other_objective,
    )


def _images(psf: "AnyPSF", problem: Problem) -> Images:
    """How to compute a channel's images."""
    shape = (problem.side, problem.side)
    noll = problem.options.zernike
    if isinstance(psf, Spot):
        raise InputRejected(
            "a Spot is fitted alone or beside another Spot; give each channel a PSF that knows heights."
        )
    known: PSF
    if isinstance(psf, AstigmaticSpot):
        known = GaussianPSF(psf.gaussian, psf.pixel_nm, psf.blur_nm)
    elif isinstance(psf, CubicSpline):
        known = CubicSplinePSF(psf)
    else:
        known = psf
    if noll:
        aberrated = AberratedPSF.over(known, noll)

        def with_aberrations(at: Tensor) -> tuple[Tensor, Tensor]:
            fraction, slopes = aberrated.derivatives(at, shape, zernike=noll)
            return fraction.flatten(1), slopes.flatten(2)

        return with_aberrations

    def by_position(at: Tensor) -> tuple[Tensor, Tensor]:
        fraction, slopes = derivatives(known, at, at.new_ones(len(at)), shape=shape)
        return fraction.flatten(1), slopes[:, :3].flatten(2)

    return by_position


@dataclass(frozen=True, eq=False)
class _Point:
    """What is known at a set of parameters (M, P): see ``kernels``."""

    objective: Tensor
    slope: Tensor
    information: Tensor
    chi2: Tensor
    variance: Tensor

    def update(self, where: Tensor, new: "_Point", which: Tensor) -> None:
        """Take over ``new[which]`` at the rows ``where``."""
        for name in ("objective", "slope", "information", "chi2", "variance"):
            getattr(self, name)[where] = getattr(new, name)[which]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Boxes that are fitted together; tensors in double precision on the PSF's device."""

    problem: Problem
    images: list[Images]
    data: Tensor
    shift: Tensor
    matrix: Tensor
    origin: Tensor
    starts: Tensor
    lower: Tensor
    upper: Tensor
    step: Tensor
    held: Tensor
    electrons: list[Electrons]

    @classmethod
    def of(cls, problem: Problem, images: list[Images], part: slice) -> "_Chunk":
        counts = problem.counts
        device = _device(problem.psfs)

        def tensor(array: object) -> Tensor:
            return torch.as_tensor(array, dtype=torch.float64, device=device)

        lower, upper, step = (tensor(limit) for limit in problem.limits)
        return cls(
            problem,
            images,
            data=tensor(counts.data[part]),
            shift=tensor(counts.shift[part]),
            matrix=tensor(problem.matrix[part]),
            origin=tensor(problem.origin[part]),
            starts=tensor(problem.starts[part]),
            lower=lower,
            upper=upper,
            step=step,
            held=torch.as_tensor(problem.held, device=device),
            electrons=[Electrons.of(table, lower) for table in counts.gain],
        )

    def solve(self) -> tuple[NDArray[np.generic], ...]:
        count, size = len(self.data), self.problem.size
        boxes = torch.arange(count, device=self.data.device)
        heights = self.problem.shapes
        given = bool(torch.isfinite(self.starts).all()) and count > 0
        thetas = [self.starts.clone()] if given else [self._begin(float(h)) for h in heights]
        steps = boxes.new_zeros(count)
        values = self.data.new_zeros((len(thetas), count))
        if len(thetas) > 1:
            for s, theta in enumerate(thetas):
                point, taken, _ = self._climb(theta, boxes, _SCREENING)
                values[s], steps = point.objective, steps + taken
        stacked = torch.stack(thetas)
        theta = stacked[values.argmin(0), boxes] if count else stacked[0]
        point, taken, ended = self._climb(theta, boxes, self.problem.options.iterations)
        steps = steps + taken
        other = self.data.new_full((count, size + 1), torch.nan)
        if len(thetas) > 1:
            steps = steps + self._rivals(stacked, values, theta, point, ended, other)
        columns = [theta, self._bounds(point.information), point.objective, point.chi2, point.variance]
        columns += [steps, ended, other[:, :size], other[:, size]]
        return tuple(column.cpu().numpy() for column in columns)

    def _begin(self, height: float) -> Tensor:
        """Centroid, photons and background above the mean of the outermost pixels."""
        side, scale = self.problem.side, self.problem.counts.scale
        light = ((self.data - self.shift) / scale).view(-1, self.problem.channels, side, side)
        edge = torch.ones((side, side), dtype=torch.bool, device=light.device)
        edge[1:-1, 1:-1] = False
        dark = light[:, :, edge].mean(2)
        above = light - dark[:, :, None, None]
        bright = above[:, 0].clamp_min(0)
        total = bright.sum((1, 2)).clamp_min(_TINY)
        axis = torch.arange(side, device=light.device, dtype=light.dtype) + 0.5
        theta = light.new_zeros((len(light), self.problem.size))
        theta[:, 0] = (bright.sum(1) @ axis) / total
        theta[:, 1] = (bright.sum(2) @ axis) / total
        theta[:, 2] = height
        theta[:, 3] = above.sum((1, 2, 3))
        theta[:, 4 : 4 + self.problem.channels] = dark
        begun: Tensor = theta.clamp(self.lower, self.upper)
        return begun

    def _assemble(self, theta: Tensor, boxes: Tensor) -> _Point:
        """Objective, half its gradient, information and chi^2 at (M, P) parameters of the boxes (M,)."""
        counts, pixel = self.problem.counts, self.problem.pixel_nm
        channels, size, scale = self.problem.channels, self.problem.size, counts.scale
        means, jacobians = [], []
        for channel, images in enumerate(self.images):
            matrix = self.matrix[boxes, channel]
            place = (matrix @ theta[:, :2, None])[..., 0] + self.origin[boxes, channel]
            at = torch.cat([place * pixel, theta[:, 2:3], theta[:, 4 + channels :]], 1)
            fraction, slopes = (part.double() for part in images(at))
            share = scale * float(self.problem.shares[channel])
            light = (share * theta[:, 3])[:, None]
            means.append(light * fraction + scale * theta[:, 4 + channel, None])
            jacobian = theta.new_zeros((len(theta), size, fraction.shape[1]))
            jacobian[:, :2] = torch.einsum("mab,man->mbn", matrix, slopes[:, :2]) * (light * pixel)[..., None]
            jacobian[:, 2] = light * slopes[:, 2]
            jacobian[:, 3] = share * fraction
            jacobian[:, 4 + channel] = scale
            jacobian[:, 4 + channels :] = light[..., None] * slopes[:, 3:]
            jacobians.append(jacobian)
        data, shift = self.data[boxes].flatten(1), self.shift[boxes].flatten(1)
        mean = (torch.cat(means, 1) + shift).clamp_min(_TINY)
        jacobian = torch.cat(jacobians, 2)
        excess = counts.kurtosis * scale**3
        value, pull, weight = self._likelihood(data, shift, mean)
        return _Point(
            objective=-2 * value.sum(1),
            slope=torch.einsum("mpn,mn->mp", jacobian, pull),
            information=(jacobian * weight[:, None]) @ jacobian.mT,
            chi2=((data - mean) ** 2 / mean).sum(1),
            variance=(2 + excess * (mean - shift) / mean**2).sum(1),
        )

    def _likelihood(self, data: Tensor, shift: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-likelihood of pixels (M, C * n), minus its slope by their mean, and the information about that."""
        if not self.electrons:
            return data * mean.log() - mean, 1 - data / mean, 1 / mean
        scale = self.problem.counts.scale
        x, mu = (((t - shift) / scale).view(len(t), len(self.electrons), -1) for t in (data, mean))
        parts = [one(x[:, c], mu[:, c]) for c, one in enumerate(self.electrons)]
        value, slope, weight = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        return value, -slope / scale, weight / scale**2

    def _climb(self, theta: Tensor, boxes: Tensor, most: int) -> tuple[_Point, Tensor, Tensor]:
        """Improve ``theta`` (M, P) of the boxes (M,) in place; the point reached, the steps and how it ended."""
        point = self._assemble(theta, boxes)
        steps = torch.zeros_like(boxes)
        ended = torch.full_like(boxes, LIMITED)
        damping = torch.zeros_like(point.objective)
        live = torch.arange(len(theta), device=theta.device)
        for _ in range(most):
            if not len(live):
                break
            move, expected, solved = self._moves(theta[live], point, live, damping[live])
            trial = (theta[live] + move.clamp(-self.step, self.step)).clamp(self.lower, self.upper)
            done = solved & (expected < self.problem.options.tolerance) & (damping[live] <= _DAMPED)
            steps[live] += 1
            theta[live[done]] = trial[done]
            point.objective[live[done]] -= expected[done]
            ended[live[done]] = CONVERGED
            going = live[~done]
            if len(going):
                self._try(theta, point, damping, going, trial[~done], solved[~done], boxes)
            stuck = damping[going] >= _MOST_DAMPED
            ended[going[stuck]] = STUCK
            live = going[~stuck]
        return point, steps, ended

    def _try(
        self,
        theta: Tensor,
        point: _Point,
        damping: Tensor,
        going: Tensor,
        trial: Tensor,
        solved: Tensor,
        boxes: Tensor,
    ) -> None:
        """Take the steps that lower the objective, damp the others more."""
        new = self._assemble(trial, boxes[going])
        better = solved & (new.objective <= point.objective[going])
        taken = going[better]
        theta[taken] = trial[better]
        point.update(taken, new, better)
        old = damping[going]
        damping[going] = torch.where(
            better, torch.where(old < 1e-2, 0.0, 0.1 * old), torch.clamp(10 * old, min=_DAMPED)
        )

    def _moves(
        self, theta: Tensor, point: _Point, live: Tensor, damping: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Damped scoring steps, by how much each should lower the objective, and which could be solved."""
        slope, information = point.slope[live], point.information[live]
        frozen = self.held | ((theta <= self.lower) & (slope > 0)) | ((theta >= self.upper) & (slope < 0))
        diagonal = torch.diagonal(information, dim1=1, dim2=2)
        frozen = frozen | (diagonal <= 0)
        scale = torch.where(frozen, 1.0, diagonal).rsqrt()
        unit = information * scale[:, :, None] * scale[:, None, :]
        unit = unit.masked_fill(frozen[:, :, None] | frozen[:, None, :], 0.0)
        unit = unit + torch.diag_embed(frozen.double() + damping[:, None] * ~frozen)
        factor, failed = torch.linalg.cholesky_ex(unit)
        pull = torch.where(frozen, 0.0, -slope * scale)[..., None]
        move = torch.cholesky_solve(pull, factor)[..., 0]
        expected = (move * pull[..., 0]).sum(1)
        solved = (failed == 0) & torch.isfinite(expected)
        return torch.where(solved[:, None], move * scale, 0.0), expected, solved

    def _rivals(
        self, thetas: Tensor, values: Tensor, theta: Tensor, point: _Point, ended: Tensor, other: Tensor
    ) -> Tensor:
        """Follow the best start elsewhere; the better solution becomes the first. Returns the steps taken."""
        apart = self.problem.least_apart
        far = (thetas[:, :, 2] - theta[None, :, 2]).abs() > apart
        open_to = values.masked_fill(~far, torch.inf)
        which = torch.nonzero(torch.isfinite(open_to).any(0))[:, 0]
        steps = torch.zeros_like(ended)
        if not len(which):
            return steps
        rival = thetas[open_to[:, which].argmin(0), which].clone()
        found, steps[which], how = self._climb(rival, which, self.problem.options.iterations)
        elsewhere = (rival[:, 2] - theta[which, 2]).abs() > apart
        better = found.objective < point.objective[which]
        old, old_value = theta[which].clone(), point.objective[which].clone()
        theta[which[better]] = rival[better]
        ended[which[better]] = how[better]
        loser = torch.where(better[:, None], old, rival)
        lost = torch.where(better, old_value, found.objective)
        point.update(which[better], found, better)
        other[which[elsewhere]] = torch.cat([loser, lost[:, None]], 1)[elsewhere]
        return steps

    def _bounds(self, information: Tensor) -> Tensor:
        """Square roots of the diagonal of the inverse; infinite if it has none, not a number for what is held."""
        free = torch.nonzero(~self.held)[:, 0]
        part = information[:, free][:, :, free]
        diagonal = torch.diagonal(part, dim1=1, dim2=2)
        scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
        factor, failed = torch.linalg.cholesky_ex(part * scale[:, :, None] * scale[:, None, :])
        singular = (failed != 0) | (torch.diagonal(factor, dim1=1, dim2=2).amin(1) ** 2 < _SINGULAR)
        factor = torch.where(singular[:, None, None], torch.eye(len(free)).to(factor), factor)
        variance = torch.diagonal(torch.cholesky_inverse(factor), dim1=1, dim2=2) * scale**2
        bounds = information.new_full(information.shape[:2], torch.nan)
        bounds[:, free] = torch.where(singular[:, None], torch.inf, variance.sqrt())
        return bounds


def _device(psfs: "tuple[AnyPSF, ...]") -> torch.device:
    """Where the first PSF that has tensors lives."""
    for psf in psfs:
        if isinstance(psf, CubicSplinePSF):
            return torch.device(psf.device)
        for holder in (psf, getattr(psf, "field", None)):
            for value in vars(holder).values() if holder is not None else ():
                if isinstance(value, Tensor):
                    return value.device
    return torch.device("cpu")
