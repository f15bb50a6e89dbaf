"""What an efficient estimator would find in a simulated image: the target of an unbiased network.

A network that learns from the truth ends at the mean of what is likely, and where an image says little, that lies
towards the middle of the range: the errors are small, below the bound of unbiased estimates even, and the means
wrong. One step of Fisher scoring from the truth is, to first order, the maximum-likelihood estimate of the very
image (Le Cam 1956), and its mean is the truth. It needs the score, the slope of the log-likelihood at the truth,
which whoever simulates an image knows (Brehmer et al. 2020, PNAS 117:5242, train on it).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smlm_bridge.camera import Camera
from smlm_bridge.crlb import bound_of
from smlm_bridge.simulate.scene import Scene

_LEAST_VARIANCE = 1e-3
# Information of a prior as wide as the network's unit: what an image does not determine keeps the truth as target.
_PRIOR = 1.0


@dataclass(frozen=True)
class Expected:
    """Expected images of single emitters.

    Parameters
    ----------
    photons, variance : (B, S, S)
        Expected photo-electrons and their variance.
    slopes : (B, K, S, S)
        Derivatives of ``photons`` by the parameters.
    """

    photons: Tensor
    variance: Tensor
    slopes: Tensor

    @classmethod
    def of(cls, scene: Scene, camera: Camera, light: Tensor, slopes: Tensor) -> "Expected":
        """From a scene's emitters ``light`` (B, S, S) and the slopes; noise as ``Camera.variance_photons``."""
        mean = (scene.background + light.to(scene.background)).clamp_min(0.0)
        read = torch.as_tensor(camera.read_noise_e).to(mean).square()
        read = (read + scene.read_noise_e[:, None, None].square()) / camera.em_gain**2
        return cls(mean, camera.excess_noise_factor * mean + read, slopes.to(mean))


def together(parts: Sequence[Expected]) -> Expected:
    """The images of an emitter in all channels as one, all pixels in a row.

    ``slopes`` are by the parameters of the first channel, and then by the backgrounds of the others.
    """
    if len(parts) == 1:
        return parts[0]
    slopes = []
    for number, part in enumerate(parts):
        known, own = part.slopes[:, :5], torch.zeros_like(part.slopes[:, :1])
        others = [own] * (len(parts) - 1)
        if number:
            others[number - 1] = known[:, 4:]
            known = torch.cat([known[:, :4], own], dim=1)
        slopes.append(torch.cat([known, *others], dim=1))
    return Expected(
        beside([part.photons for part in parts]), beside([part.variance for part in parts]), beside(slopes)
    )


def beside(images: Sequence[Tensor]) -> Tensor:
    """Images (..., h, w) of several sizes as one (..., 1, P); of one alone, the image."""
    if len(images) == 1:
        return images[0]
    return torch.cat([image.flatten(-2) for image in images], dim=-1)[..., None, :]


def bound(seen: Expected, parameters: int) -> Tensor:
    """(B, parameters) lowest standard deviations of the first parameters, all of them estimated together."""
    slopes = (seen.slopes / seen.variance.clamp_min(_LEAST_VARIANCE).sqrt()[:, None]).flatten(2).double()
    return bound_of(slopes @ slopes.mT)[:, :parameters]


def efficient_step(photons: Tensor, seen: Expected, units: Tensor) -> Tensor:
    """From the truth to what an efficient estimator finds in images.

    Parameters
    ----------
    photons : (R, B, S, S)
        R recordings of every image, photo-electrons.
    seen
        What was expected, of B images.
    units : (B, K)
        Physical change for a change by one of each parameter.

    Returns
    -------
    (R, B, K) inverse information times score, in the parameters' own units.
    """
    noise = seen.variance.clamp_min(_LEAST_VARIANCE).sqrt()
    slopes = (seen.slopes * units[:, :, None, None] / noise[:, None]).flatten(2)
    residual = ((photons - seen.photons) / noise).flatten(2)
    prior = _PRIOR * torch.eye(slopes.shape[1], dtype=slopes.dtype, device=slopes.device)
    factor = torch.linalg.cholesky(slopes @ slopes.mT + prior)
    return torch.cholesky_solve(slopes @ residual.permute(1, 2, 0), factor).permute(2, 0, 1)
