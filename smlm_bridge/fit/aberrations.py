"""A pupil whose aberrations differ from emitter to emitter: what a fit with Zernike parameters looks through."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smlm_bridge.errors import InputRejected
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.psf.pupil_psf import PupilPSF


@dataclass(frozen=True)
class AberratedPSF(PupilPSF):
    """A pupil's PSF whose emitters carry Zernike coefficients behind their positions.

    ``images`` and ``derivatives`` take (E, 3 + J) instead of (E, 3): x, y, z and the coefficients (rad) that are
    added to the pupil's phase; ``maps`` (J, N, N) are their polynomials.
    """

    maps: Tensor | None = None

    @classmethod
    def over(cls, psf: PSF, noll: Sequence[int]) -> "AberratedPSF":
        """Let the aberrations ``noll`` of a pupil's PSF vary.

        Raises
        ------
        InputRejected
            If the PSF has no pupil.
        """
        if not isinstance(psf, PupilPSF) or psf.pupil is None:
            raise InputRejected(
                f"aberrations (Noll {', '.join(map(str, noll))}) can be fitted with a pupil only, not with "
                f"{type(psf).__name__}. Calibrate with --psf pupil, or leave them out."
            )
        maps = torch.as_tensor(psf.pupil.zernike_maps(list(noll))).to(psf.field.k_axis_per_nm)
        return cls(psf.field, psf.pixel_nm, psf.blur_nm, psf.integrate, psf.pupil, maps)

    @property
    def _radial(self) -> bool:
        return False

    def _pupils(self, xyz_nm: Tensor, away_nm: Tensor) -> Tensor:
        assert self.maps is not None
        phase = torch.einsum("ej,jyx->eyx", xyz_nm[:, 3:], self.maps)
        turned = torch.polar(torch.ones_like(phase), phase)
        return super()._pupils(xyz_nm, away_nm) * turned[:, :, None]
