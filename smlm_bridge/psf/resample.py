"""Separable weights that take samples of an image plane onto camera pixels, blurred and integrated.

Samples of a band-limited image are spread by a Gaussian of ``SPREAD`` samples, which makes their sum smooth;
the spread is taken out again, by ``sharpened`` (the samples' weights) or in a table's own spectrum, so that
it leaves no blur in the image.
"""

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

SPREAD: Final = 0.7  # standard deviation in samples: the copies of the spectrum fall below 1e-4


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

    Each sample stands for the light of its own cell (``sample_pitch_nm`` wide); the light is spread by a
    Gaussian of standard deviation ``blur_nm`` and either integrated over the pixel or read at its centre and
    multiplied by the pixel's width. Exact for a band-limited image once the blur reaches ``SPREAD`` samples.

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
        # Cut at 7 standard deviations: further out come denormal numbers, which cost a factor of ten.
        exponent = (-0.5 * (distance / sigma) ** 2).clamp_min(-25.0)
        weights = torch.exp(exponent) * (pixel_nm / (math.sqrt(2 * math.pi) * sigma))
    return weights * sample_pitch_nm


def sharpened(weights: Tensor) -> Tensor:
    """Take a Gaussian of ``SPREAD`` samples out of weights (..., S), along the samples.

    exp(SPREAD^2 theta^2 / 2) to second order in 1 - cos(theta), theta the phase step from sample to sample:
    within 2 % of the inverse up to theta = 1.2, beyond the optical cut-off of ``PupilPSF``.
    """
    first = SPREAD**2
    second = first / 6 + first**2 / 2
    inner, near, far = 1 + first + 1.5 * second, -first / 2 - second, second / 4
    count = weights.shape[-1]
    wide = pad(weights, (2, 2))
    return (
        inner * weights
        + near * (wide[..., 1 : count + 1] + wide[..., 3 : count + 3])
        + far * (wide[..., :count] + wide[..., 4:])
    )
