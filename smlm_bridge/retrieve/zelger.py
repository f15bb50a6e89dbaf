"""The published approach, for comparison: few Zernike modes, every slice normalised, absolute differences.

After Zelger et al. 2018 (Opt. Express 26, 33166): Noll 2 to 37 and 56, each image divided by its sum, tilt and
high-NA defocus taken out of the result. Here the modulus is smoothed where the model is right, so that L-BFGS can
follow it, and blur and position are free as in our own fit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from smlm_bridge.optics.zernike import zernike_basis
from smlm_bridge.retrieve.model import BeadModel, Parameters
from smlm_bridge.retrieve.objective import BeadData

NOLL = (*range(2, 38), 56)
START_FOCUS_NM = (0.0, -400.0, 400.0)
_ROUND_OFF = 0.02  # of the mean pixel: differences below it count quadratically


def fit_modes(
    model: BeadModel,
    starts: Sequence[tuple[Parameters, Tensor]],
    data: BeadData,
    *,
    iterations: int,
    on_evaluation: Callable[[], None],
) -> tuple[Parameters, Tensor]:
    """The best parameters over the starts, whose phase holds the modes, and their coefficients (J,) in rad."""
    basis = _modes(model.samples)
    target = _normalised(_above_background(data))
    small = _ROUND_OFF * float(target.mean())
    best: tuple[float, Parameters, Tensor] = (math.inf, *starts[0])
    for p, coefficients in starts:
        free = [coefficients.clone().requires_grad_(), p.log_blur.clone().requires_grad_()]
        optimiser = torch.optim.LBFGS(
            free, max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
        )

        def point(p: Parameters = p, free: list[Tensor] = free) -> Parameters:
            return replace(p, phase=torch.tensordot(free[0], basis, 1), log_blur=free[1])

        def loss(point: Callable[[], Parameters] = point) -> Tensor:
            images = model.images(point(), data.focus_nm, data.travel, data.shift_nm, data.bead)
            off = _normalised(images) - target
            return (torch.sqrt(off.square() + small**2) - small).sum()

        def closure(optimiser: torch.optim.LBFGS = optimiser, loss: Callable[[], Tensor] = loss) -> float:
            optimiser.zero_grad()
            value = loss()
            value.backward()  # type: ignore[no-untyped-call]
            on_evaluation()
            return float(value.detach())

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            value = float(loss())
            if value < best[0]:
                found = point()
                kept = replace(found, phase=found.phase.detach(), log_blur=found.log_blur.detach())
                best = (value, kept, free[0].detach())
    return best[1], best[2]


def with_modes(p: Parameters, coefficients: Tensor, samples: int) -> Parameters:
    """The same modes on another number of samples."""
    empty = torch.zeros(samples, samples)
    return replace(p, phase=torch.tensordot(coefficients, _modes(samples), 1), log_amplitude=empty)


def _modes(samples: int) -> Tensor:
    axis = (np.arange(samples) - (samples - 1) / 2) * 2.0 / samples
    shape = (samples, samples)
    basis = zernike_basis(list(NOLL), np.broadcast_to(axis, shape), np.broadcast_to(axis[:, None], shape))
    return torch.as_tensor(basis, dtype=torch.float32)


def _normalised(images: Tensor) -> Tensor:
    return images / images.sum((1, 2), keepdim=True).clamp_min(1e-30)


def _above_background(data: BeadData) -> Tensor:
    if data.threshold is not None:
        return data.photons
    rim = torch.cat([data.photons[:, [0, -1]].flatten(1), data.photons[:, :, [0, -1]].flatten(1)], 1)
    return data.photons - rim.median(1).values[:, None, None]
