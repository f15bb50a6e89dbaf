"""The camera: counts to photo-electrons and back, and the noise in between.

Photo-electrons = (ADU - offset) * e_per_adu / em_gain. Every photon number is a detected photo-electron.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from smlm_bridge._optional import require
from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    from torch import Generator, Tensor

Number = float | NDArray[np.float32]
FloatArray = NDArray[np.float64]

_LEAST_NOISE: Final = 0.02  # read noise over gain that is taken for none, in electrons: it costs below 1 %
_MEANS: Final = np.geomspace(1e-3, 300.0, 80)  # beyond, the factor is 2 within 0.3 %
_FLOOR: Final = 1e-13  # of the highest density: below is rounding of the transform


@dataclass(frozen=True)
class Camera:
    """An EMCCD, sCMOS or CCD camera.

    Parameters
    ----------
    offset
        ADU without light; a number or an (H, W) map.
    e_per_adu
        Electrons at the read-out amplifier per ADU; a number or a map.
    read_noise_e
        RMS electrons at the amplifier, before division by ``em_gain``; a number or a map.
    quantum_efficiency
        Recorded only: photons are detected photo-electrons everywhere.
    em_gain
        Above 1 means EMCCD, whose multiplication adds excess noise.
    """

    offset: Number = 0.0
    e_per_adu: Number = 1.0
    read_noise_e: Number = 0.0
    quantum_efficiency: float = 1.0
    em_gain: float = 1.0

    def __post_init__(self) -> None:
        for name in ("offset", "e_per_adu", "read_noise_e"):
            value = getattr(self, name)
            if not isinstance(value, int | float):
                value = np.asarray(value, dtype=np.float32)
                value = float(value) if value.ndim == 0 else value
                object.__setattr__(self, name, value)
            if isinstance(value, np.ndarray) and value.ndim != 2:
                raise InputRejected(f"a camera map of {name} has the shape of a frame, got {value.shape}.")
            if not np.isfinite(value).all():
                raise InputRejected(f"camera {name} has values that are not finite.")
        if np.min(self.e_per_adu) <= 0:
            raise InputRejected(
                f"e_per_adu {np.min(self.e_per_adu):g} must be above 0 (electrons per count)."
            )
        if np.min(self.read_noise_e) < 0:
            raise InputRejected(f"read_noise_e {np.min(self.read_noise_e):g} must not be negative.")
        if not 0 < self.quantum_efficiency <= 1:
            raise InputRejected(f"quantum_efficiency {self.quantum_efficiency:g} must lie in 0 to 1.")
        if not (np.isfinite(self.em_gain) and self.em_gain >= 1):
            raise InputRejected(f"em_gain {self.em_gain:g} must be 1 (no EM gain) or above.")

    @property
    def excess_noise_factor(self) -> float:
        """Variance of the signal over the Poisson variance: 2 for an EMCCD at high signal, else 1."""
        return 2.0 if self.em_gain > 1 else 1.0

    def crop(self, y0: int, x0: int, height: int, width: int) -> "Camera":
        """The camera of a region of interest; maps are cut, numbers stay."""

        def cut(value: Number) -> Number:
            if isinstance(value, np.ndarray):
                return value[y0 : y0 + height, x0 : x0 + width]
            return value

        return Camera(
            cut(self.offset),
            cut(self.e_per_adu),
            cut(self.read_noise_e),
            self.quantum_efficiency,
            self.em_gain,
        )

    def to_photons(self, frames: NDArray[np.generic]) -> NDArray[np.float32]:
        """Counts (..., H, W) to photo-electrons, float32.

        Raises
        ------
        InputRejected
            If a calibration map and the frames differ in size.
        """
        for name in ("offset", "e_per_adu", "read_noise_e"):
            value = getattr(self, name)
            if isinstance(value, np.ndarray) and value.shape != frames.shape[-2:]:
                raise InputRejected(
                    f"the camera's {name} map is {value.shape}, the frames are {frames.shape[-2:]} (rows, "
                    "columns). Give a map of the same region, or a number."
                )
        photons = np.asarray(frames, dtype=np.float32) - np.asarray(self.offset, dtype=np.float32)
        photons *= np.asarray(self.e_per_adu, dtype=np.float32) / np.float32(self.em_gain)
        return photons

    def expected(self, photons: NDArray[np.floating]) -> NDArray[np.float64]:
        """Mean counts for the given mean photo-electrons (..., H, W)."""
        return np.asarray(photons, dtype=np.float64) * self.em_gain / self.e_per_adu + self.offset

    def variance_photons(self, photons: NDArray[np.floating]) -> NDArray[np.float64]:
        """Variance of ``to_photons`` of a recorded frame whose mean is ``photons``.

        Shot noise times the excess factor (Robbins & Hadwen 2003, high-signal limit), plus read noise
        referred to the input (Huang 2013).
        """
        read = np.asarray(self.read_noise_e, dtype=np.float64) / self.em_gain
        variance: NDArray[np.float64] = self.excess_noise_factor * np.maximum(photons, 0.0) + read**2
        return variance

    def information_variance(self, photons: NDArray[np.floating]) -> NDArray[np.float64]:
        """Variance v for which 1 / v is exactly a pixel's Fisher information about its mean ``photons``.

        For an EMCCD by ``excess_factor``, of a map of read noise by its RMS; it lies below ``variance_photons``
        at low signal, where the electrons' distribution is far from a Gaussian. For other cameras it is
        ``variance_photons``, which is exact without read noise and with it slightly too large
        (Huang et al. 2013; tested).
        """
        if self.em_gain == 1:
            return self.variance_photons(photons)
        read = float(np.sqrt(np.mean(np.square(self.read_noise_e)))) / self.em_gain
        mean = np.maximum(np.asarray(photons, dtype=np.float64), _MEANS[0])
        variance: NDArray[np.float64] = mean * excess_factor(mean, read)
        return variance

    def sample(self, photons: "Tensor", generator: "Generator") -> "Tensor":
        """Draw recorded counts (ADU, not rounded) for mean photo-electrons (..., H, W) >= 0.

        EM multiplication is a gamma distribution with the number of electrons as shape (Basden 2003).
        """
        torch = require("torch", extra="train")

        def like(value: Number) -> Any:
            return torch.as_tensor(value, dtype=photons.dtype, device=photons.device)

        electrons = torch.poisson(photons, generator=generator)
        if self.em_gain > 1:
            electrons = torch._standard_gamma(electrons, generator=generator) * self.em_gain
        read_noise = like(self.read_noise_e)
        if torch.any(read_noise > 0):
            noise = torch.randn(
                photons.shape, dtype=photons.dtype, device=photons.device, generator=generator
            )
            electrons = electrons + noise * read_noise
        counts: Tensor = electrons / like(self.e_per_adu) + like(self.offset)
        return counts


def excess_factor(mean_e: FloatArray, read_noise_e: float) -> FloatArray:
    """Variance that would carry a pixel's information, over its mean: 1 / (mean * Fisher information).

    Parameters
    ----------
    mean_e
        Expected photo-electrons, any shape; held in the range 1e-3 to 300, beyond which it is level.
    read_noise_e
        RMS read noise referred to the input: electrons at the amplifier over the gain.

    Returns
    -------
    Factors in the shape of ``mean_e``, from about 1.3 at low signal to 2; read noise included.
    """
    table = _table(max(float(read_noise_e), _LEAST_NOISE))
    at = np.log(np.clip(mean_e, _MEANS[0], _MEANS[-1]))
    return np.asarray(np.interp(at, np.log(_MEANS), table))


@lru_cache(maxsize=16)
def _table(noise: float) -> FloatArray:
    return np.array([1 / (mean * _information(mean, noise)) for mean in _MEANS])


def _information(mean: float, noise: float) -> float:
    """Fisher information about ``mean``, by inverting characteristic functions.

    The output's is exp(mean (1 / (1 - i k) - 1) - noise^2 k^2 / 2), its derivative by the mean a factor more.
    """
    step = 0.4 * noise  # the noise passes no frequency beyond pi over this
    low = -10 * noise
    high = mean + 12 * np.sqrt(2 * mean + noise**2) + 40 + 10 * noise
    count = 1 << int(np.ceil(np.log2((high - low) / step)))
    k = 2 * np.pi * np.fft.rfftfreq(count, step)
    turned = 1 / (1 - 1j * k) - 1
    spectrum = np.exp(mean * turned - (noise * k) ** 2 / 2 - 1j * k * low)
    density = np.fft.irfft(np.conj(spectrum), count) / step
    slope = np.fft.irfft(np.conj(spectrum * turned), count) / step
    seen = density > _FLOOR * density.max()
    return float(np.sum(slope[seen] ** 2 / density[seen]) * step)
