"""How well a model fits a bead stack: weights, censored pixels, photons by projection, priors, the minimiser.

Photons and background of every slice enter linearly and are solved for inside each evaluation (variable
projection, Golub & Pereyra 1973). At that minimum the loss does not depend on them to first order, so they
carry no gradient. Pixels that somebody set to zero below a threshold are censored: they say that the value was
below the threshold (Tobin 1958), and before the noise is known, that the model is (see ``chi2``).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from smlm_bridge.retrieve.chi2 import ACTIVE_SET_PASSES, Chi2
from smlm_bridge.retrieve.descent import Vector, descend
from smlm_bridge.retrieve.model import NEIGHBOURS, BeadModel, Parameters

_SMOOTHING_PX = 5
_SPREAD_WEIGHT, _SPREAD_WIDTH = 3.0, 1 / 64  # width in units of the sampled square
# Strength of the smoothness priors relative to a normalised misfit; amplitude is known better than phase.
_PHASE_PRIOR = 1e-3
_AMPLITUDE_PRIOR = 4e-3
_AMPLITUDE_SIZE_PRIOR = 2e-3  # else amplitude hides where the phase is wrong


@dataclass(frozen=True)
class BeadData:
    """A window of the stack, ready to be fitted.

    Parameters
    ----------
    photons : (E, H, W)
        Data in photo-electrons (in counts where the camera is unknown).
    weights : (E, H, W)
        Inverse variances.
    threshold : (E,)
        Smallest value that was kept in a thresholded stack, whose zeros are censored; None otherwise.
    focus_nm, travel : (E,)
        Nominal focus of each slice, and the same on -1 to 1.
    shift_nm : (E, 2)
        Known x, y jitter of the stage.
    bead : (E,)
        Number of the bead that a slice shows.
    dispersion
        Of thresholded data: the residuals' variance times the weight; 0 as long as it is not known.
    """

    photons: Tensor
    weights: Tensor
    threshold: Tensor | None
    focus_nm: Tensor
    travel: Tensor
    shift_nm: Tensor
    bead: Tensor
    dispersion: float = 0.0

    def at(self, indices: Sequence[int]) -> "BeadData":
        """Only these slices."""
        i = list(indices)
        return BeadData(
            self.photons[i],
            self.weights[i],
            None if self.threshold is None else self.threshold[i],
            self.focus_nm[i],
            self.travel[i],
            self.shift_nm[i],
            self.bead[i],
            self.dispersion,
        )

    def of(self, beads: Sequence[int]) -> "BeadData":
        """Only these beads, numbered anew in the order given."""
        parts = [self.at(torch.nonzero(self.bead == number)[:, 0].tolist()) for number in beads]
        return joined([replace(part, bead=torch.full_like(part.bead, i)) for i, part in enumerate(parts)])

    def cropped(self, size: int) -> "BeadData":
        """The central ``size`` pixels or fewer; an odd number is taken off nowhere, so the centre stays."""
        h, w = self.photons.shape[1:]
        cut_y, cut_x = max(0, (h - size) // 2), max(0, (w - size) // 2)
        window = (slice(None), slice(cut_y, h - cut_y), slice(cut_x, w - cut_x))
        return replace(self, photons=self.photons[window], weights=self.weights[window])

    def reversed_scan(self) -> "BeadData":
        """The same images with the focus travelling the other way about its zero."""
        return replace(self, focus_nm=-self.focus_nm)

    @cached_property
    def target(self) -> Tensor:
        """(E, H, W) what the model is compared to: the data, or the threshold in censored pixels."""
        if self.threshold is None:
            return self.photons
        return torch.where(self.photons > 0, self.photons, self.threshold[:, None, None])

    @cached_property
    def kept_weights(self) -> Tensor:
        """(E, H, W) weights of the pixels that are not censored."""
        return self.weights if self.threshold is None else self.weights * (self.photons > 0)

    @cached_property
    def least_residual(self) -> Tensor:
        """(E, H, W) 0 in censored pixels, where only too bright a model is wrong, else minus infinity."""
        return torch.where(self.photons > 0, -math.inf, 0.0)

    @cached_property
    def scale(self) -> float:
        """Weighted energy of the data above its weighted mean (above zero where zeros are censored)."""
        if self.threshold is not None:
            return float((self.weights * self.photons.square()).sum())
        mean = (self.weights * self.photons).sum((1, 2)) / self.weights.sum((1, 2))
        return float((self.weights * (self.photons - mean[:, None, None]).square()).sum())


def joined(parts: Sequence[BeadData]) -> BeadData:
    """The slices of several beads, whose windows have one shape, one after the other."""
    thresholds = [part.threshold for part in parts if part.threshold is not None]
    return BeadData(
        torch.cat([part.photons for part in parts]),
        torch.cat([part.weights for part in parts]),
        torch.cat(thresholds) if thresholds else None,
        torch.cat([part.focus_nm for part in parts]),
        torch.cat([part.travel for part in parts]),
        torch.cat([part.shift_nm for part in parts]),
        torch.cat([part.bead for part in parts]),
        max(part.dispersion for part in parts),
    )


def variance_from_data(photons: Tensor, *, read_variance: Tensor | float, relative_floor: float) -> Tensor:
    """Variance of each pixel from the smoothed data.

    The floor, relative to the peak, keeps faint rings from outweighing the peaks of an inexact model.
    """
    smooth = torch.nn.functional.avg_pool2d(
        photons[:, None], _SMOOTHING_PX, stride=1, padding=_SMOOTHING_PX // 2, count_include_pad=False
    )[:, 0]
    return smooth.clamp_min(0) + relative_floor * photons.max() + read_variance + 1e-6


def linear_fit(images: Tensor, data: BeadData) -> tuple[Tensor, Tensor]:
    """Photons (>= 0) and background of every slice, (E,) each; the background of a thresholded stack is 0."""
    with torch.no_grad():
        d, w = data.photons, data.weights
        if data.threshold is None:
            s = w.sum((1, 2))
            m, mean = (w * images).sum((1, 2)) / s, (w * d).sum((1, 2)) / s
            centred = images - m[:, None, None]
            photons = (w * centred * d).sum((1, 2)) / (w * centred.square()).sum((1, 2)).clamp_min(1e-30)
            photons = photons.clamp_min(0)
            return photons, mean - photons * m
        censored = w - data.kept_weights
        weighted = data.kept_weights * images
        above, below = (weighted * d).sum((1, 2)), (weighted * images).sum((1, 2))
        photons = above / below.clamp_min(1e-30)
        for _ in range(ACTIVE_SET_PASSES):
            weighted = censored * (photons[:, None, None] * images > data.threshold[:, None, None]) * images
            numerator = above + data.threshold * weighted.sum((1, 2))
            photons = numerator / (below + (weighted * images).sum((1, 2))).clamp_min(1e-30)
        return photons, torch.zeros_like(photons)


def residuals(images: Tensor, data: BeadData) -> Tensor:
    """(E, H, W) model minus data, censored pixels only where the model exceeds the threshold."""
    photons, background = linear_fit(images, data)
    if data.threshold is None:
        return photons[:, None, None] * images + (background[:, None, None] - data.target)
    return torch.maximum(photons[:, None, None] * images - data.target, data.least_residual)


def misfit(model: BeadModel, p: Parameters, data: BeadData) -> Tensor:
    """Weighted squared residuals relative to the weighted data: 0 is perfect, 1 is no model at all."""
    images = model.images(p, data.focus_nm, data.travel, data.shift_nm, data.bead)
    chi2: Tensor = Chi2.apply(images, data.photons, data.weights, data.threshold, data.dispersion)
    return chi2 / data.scale


def log_likelihood(misfit_value: float, data: BeadData) -> float:
    """Gaussian log-likelihood with the unknown dispersion (gain, model error) profiled out.

    Only differences between fits of the same data mean something.
    """
    weights = data.weights[data.kept_weights > 0]
    chi2 = max(misfit_value * data.scale, 1e-30)
    dispersion = math.log(2 * math.pi * chi2 / weights.numel())
    return 0.5 * (float(torch.log(weights).sum()) - weights.numel() * (dispersion + 1))


def prior(model: BeadModel, p: Parameters) -> Tensor:
    """Smoothness of the phase (of its phasor, so that wraps are free) and of the log amplitude."""
    value: Tensor = _Roughness.apply(model.total_phase(p), model.total_log_amplitude(p), model)
    return value


class _Roughness(torch.autograd.Function):
    """``prior`` with its gradient in one sweep."""

    @staticmethod
    def forward(ctx: Any, phase: Tensor, log_amplitude: Tensor, model: BeadModel) -> Tensor:
        """Of (N, N) phase and log amplitude."""
        amplitude, inside = log_amplitude.numpy(), model.inside.numpy()
        area = np.float32(inside.sum())
        cosine, sine = np.cos(phase.numpy()), np.sin(phase.numpy())
        for_amplitude = (2 * _AMPLITUDE_SIZE_PRIOR / area) * amplitude * inside
        for_phase = np.zeros_like(cosine)
        total = 0.5 * float((for_amplitude * amplitude).sum())
        for axis, (light, pairs) in enumerate(model.neighbours):
            first, second = NEIGHBOURS[axis]
            weight = (2 * _PHASE_PRIOR / area) * light
            along = cosine[first] * cosine[second] + sine[first] * sine[second]
            total += float((weight * (1 - along)).sum())
            slope = weight * (sine[second] * cosine[first] - cosine[second] * sine[first])
            for_phase[second] += slope
            for_phase[first] -= slope
            change = amplitude[second] - amplitude[first]
            slope = (2 * _AMPLITUDE_PRIOR / area) * pairs * change
            total += 0.5 * float((slope * change).sum())
            for_amplitude[second] += slope
            for_amplitude[first] -= slope
        ctx.gradients = (torch.from_numpy(for_phase), torch.from_numpy(for_amplitude))
        return phase.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """As found on the way forward."""
        return (*(gradient * upstream[0] for gradient in ctx.gradients), None)


GEOMETRY = ("position", "focus", "log_blur")
SMOOTH = ("zernike", "radial", *GEOMETRY)
PIXEL_MAPS = ("phase", "log_amplitude")
PIXELWISE = (*PIXEL_MAPS, *GEOMETRY)


@lru_cache(maxsize=8)
def _spread(samples: int) -> Tensor:
    """Fourier transfer that lets a step of one pupil sample pull its surroundings along.

    Smooth changes of the pupil are what the images ask for first; in these coordinates they are short steps,
    and L-BFGS needs fewer iterations. Positive everywhere, so no pupil is out of reach.
    """
    y = torch.fft.fftfreq(samples)[:, None] * samples
    x = torch.fft.rfftfreq(samples) * samples
    cycles = y.square() + x.square()
    return 1 + _SPREAD_WEIGHT * torch.exp(-2 * (math.pi * _SPREAD_WIDTH) ** 2 * cycles)


class _Steps:
    """Steps away from a starting point as one vector, in which smooth changes of the pupil are short."""

    def __init__(self, start: Parameters, free: Sequence[str], samples: int) -> None:
        self._start = {name: getattr(start, name) for name in free}
        self._ends = np.cumsum([there.numel() for there in self._start.values()])
        self._spread = _spread(samples)

    def none(self) -> Vector:
        """No step."""
        return np.zeros(int(self._ends[-1]), np.float32)

    def point(self, flat: Vector) -> dict[str, Tensor]:
        """The free fields after the steps, to be differentiated."""
        parts = zip(self._start.items(), np.split(flat, self._ends[:-1]), strict=True)
        return {
            name: (there + self._spread_out(name, torch.from_numpy(step).view(there.shape))).requires_grad_()
            for (name, there), step in parts
        }

    def gradient(self, of_fields: Sequence[Tensor]) -> Vector:
        """With respect to the steps, from those of the fields."""
        parts = zip(self._start, of_fields, strict=True)
        flat = torch.cat([self._spread_out(name, gradient).flatten() for name, gradient in parts])
        return cast("Vector", flat.numpy())

    def _spread_out(self, name: str, step: Tensor) -> Tensor:
        """Its own adjoint."""
        if name not in PIXEL_MAPS:
            return step
        wide: Tensor = torch.fft.irfft2(torch.fft.rfft2(step) * self._spread, s=step.shape)
        return wide


def minimise(
    model: BeadModel,
    start: Parameters,
    data: BeadData,
    *,
    free: Sequence[str],
    iterations: int,
    on_evaluation: Callable[[], None],
) -> tuple[Parameters, float]:
    """L-BFGS over the fields named in ``free``.

    Returns
    -------
    The best parameters met (never worse than ``start``) and their loss, prior included.
    """
    steps = _Steps(start, free, model.samples)
    best, best_loss = start, math.inf

    def value_and_gradient(flat: Vector) -> tuple[float, Vector]:
        nonlocal best, best_loss
        fields = steps.point(flat)
        p = replace(start, **fields)
        loss = misfit(model, p, data) + prior(model, p)
        gradients = torch.autograd.grad(loss, list(fields.values()))
        if (value := float(loss.detach())) < best_loss:
            best_loss = value
            best = replace(start, **{name: there.detach() for name, there in fields.items()})
        on_evaluation()
        return value, steps.gradient(gradients)

    most = iterations + iterations // 4
    descend(value_and_gradient, steps.none(), iterations=iterations, evaluations=most)
    return best, best_loss
