"""How well the images determine the coefficients: the inverse Fisher information of the final fit."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from smlm_bridge.optics.zernike import zernike_basis
from smlm_bridge.retrieve.jitter import all_images
from smlm_bridge.retrieve.model import BeadModel, Parameters
from smlm_bridge.retrieve.objective import BeadData, linear_fit
from smlm_bridge.retrieve.result import REPORTED_NOLL, Uncertainty

_STEP_RAD, _STEP_POSITION, _STEP_FOCUS, _STEP_BLUR = 0.02, 0.1, 0.05, 0.02
_SPHERICAL = 11
_SLICES = 10  # the information is scaled up to all of them


def uncertainty(model: BeadModel, p: Parameters, data: BeadData, *, slices: int) -> Uncertainty:
    """Covariance of Zernike coefficients about ``p``; ``slices`` were fitted, of which ``data`` has some.

    A coefficient here is what a further aberration of that shape would do; the smoothness prior plays no part.
    Photons and background of every slice are projected out of each derivative.
    """
    every = max(1, len(data.photons) // _SLICES)
    data = data.at(range(0, len(data.photons), every))
    axis = np.linspace(-1, 1, model.samples, endpoint=False) + 1 / model.samples
    shape = (model.samples, model.samples)
    zernikes = torch.as_tensor(
        zernike_basis(
            list(REPORTED_NOLL), np.broadcast_to(axis, shape), np.broadcast_to(axis[:, None], shape)
        ),
        dtype=torch.float32,
    )
    changes: list[tuple[Callable[[float], Parameters], float]] = []
    for z in zernikes:
        changes.append((lambda s, z=z: replace(p, phase=p.phase + s * z), _STEP_RAD))  # type: ignore[misc]
    for z in model.radials:
        changes.append((lambda s, z=z: replace(p, log_amplitude=p.log_amplitude + s * z), _STEP_RAD))  # type: ignore[misc]
    for number in range(len(p.position)):
        for index in range(4):
            unit = torch.zeros_like(p.position)
            unit[number].view(-1)[index] = 1
            changes.append((lambda s, u=unit: replace(p, position=p.position + s * u), _STEP_POSITION))  # type: ignore[misc]
    changes.append((lambda s: replace(p, focus=p.focus + s), _STEP_FOCUS))
    changes.append((lambda s: replace(p, log_blur=p.log_blur + s), _STEP_BLUR))
    images = all_images(model, p, data)
    photons, background = linear_fit(images, data)
    weights = data.kept_weights
    columns = []
    for change, step in changes:
        slope = (all_images(model, change(step), data) - all_images(model, change(-step), data)) / (2 * step)
        columns.append(_projected(photons[:, None, None] * slope, images, weights, data).flatten())
    jacobian = torch.stack(columns).double()
    fisher = (jacobian @ jacobian.T).numpy() * (slices / len(data.photons))
    rest = data.photons - photons[:, None, None] * images - background[:, None, None]
    dispersion = float((weights * rest.square()).sum() / (weights > 0).sum())
    scale = np.sqrt(fisher.diagonal()).clip(1e-30)
    covariance = np.linalg.pinv(fisher / np.outer(scale, scale), rcond=1e-9, hermitian=True)
    covariance *= dispersion / np.outer(scale, scale)
    count, radial = len(REPORTED_NOLL), len(model.radials)
    focus = len(changes) - 2
    sigma = np.sqrt(covariance.diagonal())
    correlation = covariance / np.outer(sigma, sigma)
    spherical = REPORTED_NOLL.index(_SPHERICAL)
    with_amplitude = correlation[spherical, count : count + radial]
    unit_nm = float(model.focus_offset_nm(replace(p, focus=torch.ones(1)))[0])
    return Uncertainty(
        REPORTED_NOLL,
        np.asarray(covariance[:count, :count], dtype=np.float64),
        float(sigma[focus] * unit_nm),
        float(correlation[spherical, focus]),
        float(with_amplitude[np.abs(with_amplitude).argmax()]),
    )


def _projected(slope: Tensor, images: Tensor, weights: Tensor, data: BeadData) -> Tensor:
    """Weighted derivative without what photons and background of the slice could take over."""
    root = weights.sqrt()
    terms = [root * images] + ([root] if data.threshold is None else [])
    rest = root * slope
    kept: list[Tensor] = []
    for term in terms:
        for other in kept:
            term = term - (term * other).sum((1, 2), keepdim=True) * other
        term = term / term.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-30)
        kept.append(term)
        rest = rest - (rest * term).sum((1, 2), keepdim=True) * term
    return rest
