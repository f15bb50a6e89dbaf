"""Separable weights that take samples of an image plane onto camera pixels, blurred and integrated.

Two ways. ``band_limited_weights`` interpolates with a windowed sinc: few samples suffice, but they must lie on
a grid that halves the pixels evenly. ``pixel_weights`` spreads every sample by a Gaussian of ``SPREAD`` samples,
wherever it lies; a table takes the spread out of its own spectrum, so that it leaves no blur in the image.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import i0
from torch import Tensor

SPREAD: Final = 0.7  # standard deviation in samples: the copies of the spectrum fall below 1e-4
_BAND_SHARE: Final = 0.65  # of the samples' Nyquist band that the image may fill; the rest is transition
_STOP_DB: Final = 95.0  # suppression of the copies of the spectrum
_BLUR_REACH: Final = 3.5  # standard deviations of the blur that are followed beyond the interpolation's reach


@dataclass(frozen=True)
class Grid:
    """Samples along one axis of a window of pixels, and the interpolation between them.

    Parameters
    ----------
    oversampling
        Samples a pixel.
    margin_px
        Pixels around the window that are sampled too.
    pixel_nm, cut_off_per_nm
        Of the camera; and the largest spatial frequency of the image, rad/nm.
    """

    oversampling: int
    margin_px: int
    pixel_nm: float
    cut_off_per_nm: float

    @classmethod
    def for_image(cls, *, pixel_nm: float, cut_off_per_nm: float, largest_blur_nm: float) -> "Grid":
        """The coarsest grid that holds the image."""
        oversampling = math.ceil(pixel_nm * cut_off_per_nm / (math.pi * _BAND_SHARE))
        reach = _reach_nm(pixel_nm / oversampling, cut_off_per_nm) + _BLUR_REACH * largest_blur_nm
        return cls(oversampling, math.ceil(reach / pixel_nm), pixel_nm, cut_off_per_nm)

    @property
    def pitch_nm(self) -> float:
        """Distance of the samples."""
        return self.pixel_nm / self.oversampling

    def points(self, count: int, like: Tensor) -> Tensor:
        """(S,) positions of the samples of a window of ``count`` pixels, which begins at 0."""
        samples = torch.arange(
            -self.margin_px * self.oversampling,
            (count + self.margin_px) * self.oversampling,
            device=like.device,
            dtype=like.dtype,
        )
        return (samples + 0.5) * self.pitch_nm


def band_limited_weights(grid: Grid, count: int, *, blur_nm: Tensor, integrate: bool) -> Tensor:
    """(E, count, S) weights of a grid's samples in each pixel along one axis, for densities per nm.

    The cosine transform of interpolation, blur and pixel: exp(-2 pi^2 sigma^2 f^2) sinc(f p) times the
    spectrum of a sinc in a Kaiser window (Kaiser 1974), which is one up to the image's cut-off.

    Parameters
    ----------
    grid
        Where the samples are.
    count
        Pixels of the window.
    blur_nm : (E,) tensor
        Standard deviations of a Gaussian blur, >= 0; the weights are differentiable by them.
    integrate
        Whether pixels integrate or are read at their centres (times their width).
    """
    half_nm = _reach_nm(grid.pitch_nm, grid.cut_off_per_nm)
    reach = half_nm + grid.pixel_nm / 2 + _BLUR_REACH * float(blur_nm.detach().max())
    step = 1 / (2.2 * reach)
    top = 1 / grid.pitch_nm - grid.cut_off_per_nm / (2 * math.pi)  # where the interpolation's spectrum ends
    spectrum = _interpolation_spectrum(grid.pitch_nm, grid.cut_off_per_nm, step, math.ceil(top / step) + 1)
    frequency = torch.arange(len(spectrum), dtype=blur_nm.dtype, device=blur_nm.device) * step
    transfer = torch.as_tensor(spectrum, dtype=blur_nm.dtype, device=blur_nm.device)
    if integrate:
        transfer = transfer * torch.sinc(frequency * grid.pixel_nm)
    transfer = transfer * torch.exp(-2 * (math.pi * frequency) ** 2 * blur_nm[:, None] ** 2)
    # Distances from pixel to sample are whole numbers of half samples.
    pixel = (2 * torch.arange(count, device=blur_nm.device) + 1) * grid.oversampling
    sample = 2 * torch.arange(
        -grid.margin_px * grid.oversampling,
        (count + grid.margin_px) * grid.oversampling,
        device=blur_nm.device,
    )
    lag = (pixel[:, None] - sample - 1).abs()
    distance = torch.arange(int(reach / (grid.pitch_nm / 2)) + 1, device=blur_nm.device) * (grid.pitch_nm / 2)
    kernel = transfer @ torch.cos(2 * math.pi * frequency[:, None] * distance.to(frequency))
    kernel = torch.cat([kernel, kernel.new_zeros(kernel.shape[0], 1)], dim=1)
    return kernel[:, lag.clamp_max(distance.numel())] * (grid.pixel_nm * grid.pitch_nm)


def _reach_nm(pitch_nm: float, cut_off_per_nm: float) -> float:
    """Half the length of the Kaiser window whose transition fits between the image and its first copy."""
    transition = 2 * math.pi - 2 * cut_off_per_nm * pitch_nm  # rad a sample
    return (_STOP_DB - 7.95) / (2.285 * transition) / 2 * pitch_nm


@lru_cache(maxsize=64)
def _interpolation_spectrum(
    pitch_nm: float, cut_off_per_nm: float, step_per_nm: float, count: int
) -> NDArray[np.float64]:
    """(count,) cosine series of a sinc in a Kaiser window, by quadrature; its integral over x is one."""
    half = _reach_nm(pitch_nm, cut_off_per_nm)
    nodes, weights = np.polynomial.legendre.leggauss(160)
    x, dx = half * nodes, half * weights
    beta = 0.1102 * (_STOP_DB - 8.7)
    window = i0(beta * np.sqrt(1 - nodes**2)) / i0(beta)
    kernel = np.sinc(x / pitch_nm) / pitch_nm * window
    frequency = np.arange(count) * step_per_nm
    spectrum = np.cos(2 * np.pi * frequency[:, None] * x) @ (kernel * dx)
    spectrum *= 2 * step_per_nm / spectrum[0]
    spectrum[0] /= 2  # the constant of a cosine series
    return np.asarray(spectrum)


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
    sigma = blur_nm[..., None, None]
    if integrate:
        distance = pixel_centre_nm[:, None] - sample_nm[..., None, :]
        root = math.sqrt(0.5) / sigma
        half = pixel_nm / 2
        weights = 0.5 * (torch.erf((distance + half) * root) - torch.erf((distance - half) * root))
        return weights * sample_pitch_nm
    # Height and width of the Gaussian enter while the arrays are small: the time goes into passes over large ones.
    root = math.sqrt(0.5) / sigma
    distance = pixel_centre_nm[:, None] * root - sample_nm[..., None, :] * root
    log_height = torch.log(pixel_nm * sample_pitch_nm / (math.sqrt(2 * math.pi) * sigma))
    exponent = torch.addcmul(log_height, distance, distance, value=-1.0)
    # Cut at about 7 standard deviations: further out come denormal numbers, which cost a factor of ten.
    return torch.exp(exponent.clamp_min(-25.0))


def pixel_weight_slopes(
    pixel_centre_nm: Tensor,
    sample_nm: Tensor,
    *,
    pixel_nm: float,
    sample_pitch_nm: float,
    blur_nm: Tensor,
    integrate: bool,
) -> Tensor:
    """Derivatives of ``pixel_weights`` by ``sample_nm``, per nm; see there for the arguments."""
    distance = pixel_centre_nm[:, None] - sample_nm[..., None, :]
    sigma = blur_nm[..., None, None]

    def density(at: Tensor) -> Tensor:
        return torch.exp((-0.5 * (at / sigma) ** 2).clamp_min(-25.0)) / (math.sqrt(2 * math.pi) * sigma)

    if integrate:
        slopes = density(distance - pixel_nm / 2) - density(distance + pixel_nm / 2)
    else:
        slopes = density(distance) * pixel_nm * distance / sigma**2
    return slopes * sample_pitch_nm
