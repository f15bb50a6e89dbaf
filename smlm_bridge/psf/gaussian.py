"""The astigmatic Gaussian: what ThunderSTORM's users start from, and the simplest PSF to test against."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.psf.resample import pixel_weights


@dataclass(frozen=True)
class GaussianPSF:
    """An astigmatic Gaussian (see ``protocol.PSF``).

    Parameters
    ----------
    gaussian
        Its widths.
    pixel_nm, blur_nm, integrate
        As in ``PupilPSF``.
    """

    gaussian: Gaussian
    pixel_nm: float
    blur_nm: float = 0.0
    integrate: bool = True

    def images(self, xyz_nm: Tensor, shape: tuple[int, int], *, blur_nm: Tensor | None = None) -> Tensor:
        """Expected fraction of photons in every pixel; see ``protocol.PSF.images``."""
        factors = []
        for axis in (1, 0):
            sigma0, focus, depth = (
                getattr(self.gaussian, name)[axis] for name in ("sigma_nm", "focus_nm", "depth_nm")
            )
            variance = sigma0**2 * (1 + ((xyz_nm[:, 2] - focus) / depth) ** 2) + self.blur_nm**2
            if blur_nm is not None:
                variance = variance + blur_nm**2
            centres = (
                torch.arange(shape[1 - axis], device=xyz_nm.device, dtype=xyz_nm.dtype) + 0.5
            ) * self.pixel_nm
            weights = pixel_weights(
                centres,
                xyz_nm[:, axis, None],
                pixel_nm=self.pixel_nm,
                sample_pitch_nm=1.0,
                blur_nm=torch.sqrt(variance),
                integrate=self.integrate,
            )
            factors.append(weights[..., 0])
        return torch.einsum("ey,ex->eyx", factors[0], factors[1])
