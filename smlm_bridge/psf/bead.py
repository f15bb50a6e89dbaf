"""The image of a bead: any PSF summed over a ball."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smlm_bridge.optics.bead import bead_points
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.psf.pupil_psf import PupilPSF


@dataclass(frozen=True)
class BeadPSF:
    """Beads in place of points (see ``protocol.PSF``); the positions are those of their centres.

    Each point of the bead counts by the light that a dipole there sends into the aperture, which for a pupil's
    PSF depends on the height near the coverslip.

    Parameters
    ----------
    psf
        The PSF of a point.
    diameter_nm
        Of the bead. One that rests on the coverslip has its centre at half of it.
    layers
        Slices of the bead along z; four do up to 200 nm (tested).
    """

    psf: PSF
    diameter_nm: float
    layers: int = 4

    @property
    def pixel_nm(self) -> float:
        """Camera pixel."""
        return self.psf.pixel_nm

    def images(self, xyz_nm: Tensor, shape: tuple[int, int], *, blur_nm: Tensor | None = None) -> Tensor:
        """Expected fraction of photons in every pixel; see ``protocol.PSF.images``."""
        offsets, shares = (torch.as_tensor(a).to(xyz_nm) for a in bead_points(self.diameter_nm, self.layers))
        points = xyz_nm[:, None] + offsets
        count, each = points.shape[:2]
        if blur_nm is not None:
            blur_nm = blur_nm.repeat_interleave(each)
        images = self.psf.images(points.flatten(0, 1), shape, blur_nm=blur_nm).view(count, each, *shape)
        weights = shares.expand(count, each).to(images)
        if isinstance(self.psf, PupilPSF):
            heights = points[:, :, 2].flatten().to(images)
            weights = weights * self.psf.field.power_at(heights)[0].view(count, each)
        return torch.einsum("ep,epyx->eyx", weights / weights.sum(1, keepdim=True), images)
