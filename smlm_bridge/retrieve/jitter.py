"""Jitter of the stage from slice to slice: where each image lies, given the pupil."""

from dataclasses import replace

import torch
from torch import Tensor

from smlm_bridge.retrieve.model import BeadModel, Parameters
from smlm_bridge.retrieve.objective import BeadData, linear_fit

_CHUNK_SLICES = 32
_STEP_NM = 10.0
_EXPECTED_NM = 30.0  # jitter of a poor stage; keeps dim slices where they are
_PASSES, _FEW_BEADS = 2, 4


def all_images(model: BeadModel, p: Parameters, data: BeadData) -> Tensor:
    """(E, H, W) fractions of light of every slice, without gradient, a few slices at a time."""
    with torch.no_grad():
        count = len(data.photons)
        parts = [data.at(range(i, min(i + _CHUNK_SLICES, count))) for i in range(0, count, _CHUNK_SLICES)]
        return torch.cat([model.images(p, d.focus_nm, d.travel, d.shift_nm, d.bead) for d in parts])


def registered(model: BeadModel, p: Parameters, data: BeadData) -> tuple[Parameters, BeadData]:
    """Fit the x, y jitter of every slice with the pupil held; mean and slope go into the bead's position and walk.

    Photons, background and shifts together by Gauss-Newton steps on the pixels that are not censored. A bead
    stack is some 10 nm unsteady on a good stage, as much as a tenth of its images' blur.
    """
    count = len(data.photons)
    parts = [range(i, min(i + _CHUNK_SLICES, count)) for i in range(0, count, _CHUNK_SLICES)]
    for _ in range(_PASSES if len(p.position) <= _FEW_BEADS else 1):
        steps = torch.cat([_shift_step(model, p, data.at(part)) for part in parts])
        data = replace(data, shift_nm=data.shift_nm + steps)
    middle, walk = torch.zeros(len(p.position), 2), torch.zeros(len(p.position), 2)
    rest = data.shift_nm.clone()
    for number in range(len(p.position)):
        own = data.bead == number
        line = torch.stack([torch.ones_like(data.travel[own]), data.travel[own]], 1)
        middle[number], walk[number] = amounts = torch.linalg.lstsq(line, rest[own]).solution
        rest[own] -= line @ amounts
    return p.moved_each(middle, walk), replace(data, shift_nm=rest)


def _shift_step(model: BeadModel, p: Parameters, data: BeadData) -> Tensor:
    """(E, 2) x, y in nm towards the minimum of the weighted squares."""
    images = all_images(model, p, data)
    photons, background = linear_fit(images, data)
    slopes = []
    for axis in torch.eye(2) * _STEP_NM:
        ahead, behind = (
            all_images(model, p, replace(data, shift_nm=data.shift_nm + s * axis)) for s in (1, -1)
        )
        slopes.append(photons[:, None, None] * (ahead - behind) / (2 * _STEP_NM))
    columns = [*slopes, images, *([torch.ones_like(images)] if data.threshold is None else [])]
    terms = torch.stack(columns, 1).flatten(2).double()
    weights = data.kept_weights.flatten(1).double()
    rest = data.photons - photons[:, None, None] * images - background[:, None, None]
    rest = rest.flatten(1).double()
    weighted = terms * weights[:, None]
    normal, right = weighted @ terms.mT, (weighted @ rest[:, :, None])[:, :, 0]
    scale = normal.diagonal(dim1=1, dim2=2).clamp_min(1e-30).sqrt()
    dispersion = (weights * rest.square()).sum(1) / (weights > 0).sum(1)
    # The prior on the shift, as wide as the noise of this slice makes the measurement.
    normal[:, [0, 1], [0, 1]] += (dispersion / _EXPECTED_NM**2)[:, None]
    right[:, :2] -= (dispersion / _EXPECTED_NM**2)[:, None] * data.shift_nm
    scaled = normal / (scale[:, :, None] * scale[:, None])
    scaled = scaled + 1e-9 * torch.eye(scaled.shape[-1], dtype=scaled.dtype)
    solution: Tensor = torch.linalg.solve(scaled, right / scale) / scale
    return solution[:, :2].float()
