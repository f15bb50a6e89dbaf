"""Separable weights that take samples of an image plane onto camera pixels, blurred and integrated."""

import math

import torch
from torch import Tensor


def pixel_weights(
    pixel_centre_nm: Tensor,
    sample_nm: Tensor,
    *,
    pixel_nm: float,
    sample_pitch_nm: float,
    blur_nm: Tensor,
    integrate: bool,
) -> Tensor:
    """Weights of the samples in each pixel along one axis.

    Each sample stands for the light of its own cell (``sample_pitch_nm`` wide); the light is spread by a Gaussian
    of standard deviation ``blur_nm`` and either integrated over the pixel or read at its centre and multiplied by
    the pixel's width. Exact for a band-limited image once the blur reaches about 0.7 sample pitches.

    Parameters
    ----------
    pixel_centre_nm : (P,) tensor
        Centres of the pixels.
    sample_nm : (..., S) tensor
        Positions of the samples; leading axes are emitters.
    pixel_nm, sample_pitch_nm
        Width of a pixel and spacing of the samples.
    blur_nm : (...) tensor
        Standard deviation for each emitter, > 0.
    integrate
        Whether pixels integrate.

    Returns
    -------
    (..., P, S) weights, for samples that are densities per nm.
    """
    distance = pixel_centre_nm[:, None] - sample_nm[..., None, :]
    sigma = blur_nm[..., None, None]
    if integrate:
        root = math.sqrt(0.5) / sigma
        half = pixel_nm / 2
        weights = 0.5 * (torch.erf((distance + half) * root) - torch.erf((distance - half) * root))
    else:
        # Cut at 7 standard deviations: further out the numbers would be denormal, which costs a factor of ten.
        exponent = (-0.5 * (distance / sigma) ** 2).clamp_min(-25.0)
        weights = torch.exp(exponent) * (pixel_nm / (math.sqrt(2 * math.pi) * sigma))
    return weights * sample_pitch_nm
