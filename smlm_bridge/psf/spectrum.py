"""Light of several wavelengths: the incoherent sum of their PSFs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.dipole import Dipole
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.psf.pupil_psf import PupilPSF


@dataclass(frozen=True)
class SumPSF:
    """A weighted sum of PSFs of one camera (see ``protocol.PSF``).

    Parameters
    ----------
    parts
        The PSFs.
    shares
        Share of the detected photons in each; they sum to 1.
    """

    parts: tuple[PSF, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.shares) or not self.parts:
            raise InputRejected(
                f"{len(self.parts)} PSFs and {len(self.shares)} shares: give one share for each PSF."
            )
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise InputRejected(f"the shares {self.shares} must not be negative and sum to 1.")
        if len({part.pixel_nm for part in self.parts}) > 1:
            raise InputRejected("PSFs of different pixels cannot be summed. Use one camera's pixel for all.")

    @property
    def pixel_nm(self) -> float:
        """Camera pixel."""
        return self.parts[0].pixel_nm

    def images(self, xyz_nm: Tensor, shape: tuple[int, int], *, blur_nm: Tensor | None = None) -> Tensor:
        """Expected fraction of photons in every pixel; see ``protocol.PSF.images``."""
        each = (
            share * part.images(xyz_nm, shape, blur_nm=blur_nm)
            for share, part in zip(self.shares, self.parts, strict=True)
        )
        total = next(each)
        for image in each:
            total = total + image
        return total


def spectral_psf(
    optics: Optics,
    pupil: Pupil,
    spectrum: Mapping[float, float],
    *,
    blur_nm: float = 0.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    dipole: Dipole | None = None,
) -> SumPSF:
    """The PSF of an emission spectrum.

    Parameters
    ----------
    optics, pupil
        Microscope and aberrations at ``optics.wavelength_nm``. The phases are optical paths, so they scale by
        that over the wavelength (no dispersion).
    spectrum
        Wavelength (nm) to detected photons, in any unit; three to five lines do for a broad filter.
    blur_nm, device, dtype, dipole
        As for ``PupilPSF.of``.

    Raises
    ------
    InputRejected
        If the spectrum is empty or has no light.
    """
    total = sum(spectrum.values())
    if not total > 0 or min(spectrum.values()) < 0:
        raise InputRejected(
            f"the spectrum {dict(spectrum)} must give photons >= 0 for each wavelength in nm, some above 0."
        )
    parts = []
    for wavelength_nm in spectrum:
        scale = optics.wavelength_nm / wavelength_nm
        aberrations = {noll: value * scale for noll, value in pupil.zernike_rad.items()}
        there = replace(pupil, phase_rad=pupil.phase_rad * scale, zernike_rad=aberrations)
        seen = replace(optics, wavelength_nm=wavelength_nm)
        parts.append(PupilPSF.of(seen, there, blur_nm=blur_nm, device=device, dtype=dtype, dipole=dipole))
    return SumPSF(tuple(parts), tuple(photons / total for photons in spectrum.values()))
