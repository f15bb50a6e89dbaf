"""What is fitted: Gaussians that need no torch, and PSFs of several channels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.psf.cubic_spline import CubicSpline
from smlm_bridge.transform import Transform

if TYPE_CHECKING:
    from smlm_bridge.psf.protocol import PSF


@dataclass(frozen=True)
class Spot:
    """A round Gaussian integrated over pixels, for positions in 2-D.

    Parameters
    ----------
    sigma_nm
        Its standard deviation, or where the fit begins.
    pixel_nm
        Camera pixel.
    free
        Whether the width is fitted.

    Raises
    ------
    InputRejected
        If a length is not above 0.
    """

    sigma_nm: float
    pixel_nm: float
    free: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.sigma_nm < float("inf") and 0 < self.pixel_nm < float("inf")):
            raise InputRejected(
                f"sigma_nm {self.sigma_nm:g} and pixel_nm {self.pixel_nm:g} must be above 0 nm."
            )


@dataclass(frozen=True)
class AstigmaticSpot:
    """A Gaussian integrated over pixels whose widths tell the height.

    Parameters
    ----------
    gaussian
        Its widths over z.
    pixel_nm
        Camera pixel.
    z_range_nm
        Heights for which the widths hold.
    blur_nm
        Standard deviation of an additional blur.

    Raises
    ------
    InputRejected
        If a width is not above 0 within the range, or a length is absurd.
    """

    gaussian: Gaussian
    pixel_nm: float
    z_range_nm: tuple[float, float]
    blur_nm: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.pixel_nm < float("inf") and 0 <= self.blur_nm < float("inf")):
            raise InputRejected(
                f"pixel_nm {self.pixel_nm:g} must be above 0 nm and blur_nm {self.blur_nm:g} not below."
            )
        low, high = self.z_range_nm
        if not low < high:
            raise InputRejected(f"z_range_nm {self.z_range_nm} must be two heights, the lower first.")
        self.gaussian.widths_nm([low + (high - low) * i / 100 for i in range(101)])


if TYPE_CHECKING:
    AnyPSF = Spot | AstigmaticSpot | CubicSpline | PSF


@dataclass(frozen=True)
class Channels:
    """PSFs of two channels that see each emitter at once: biplane, pairs.

    Parameters
    ----------
    psfs
        Of the first and of the second channel, with pixels of one size.
    transform
        Takes positions of the first channel to the second, nm from the corners of the frames.
    photon_ratio
        Photons in the second channel over those in the first.

    Raises
    ------
    InputRejected
        If the pixels differ or the ratio is not above 0.
    """

    psfs: "tuple[AnyPSF, AnyPSF]"
    transform: Transform
    photon_ratio: float = 1.0

    def __post_init__(self) -> None:
        first, second = (psf.pixel_nm for psf in self.psfs)
        if abs(first / second - 1) > 1e-6:
            raise InputRejected(
                f"the channels' pixels are {first:g} and {second:g} nm; they must be the same."
            )
        if not 0 < self.photon_ratio < float("inf"):
            raise InputRejected(f"photon_ratio {self.photon_ratio:g} must be above 0.")

    @property
    def pixel_nm(self) -> float:
        """Camera pixel."""
        return self.psfs[0].pixel_nm
