"""The PSF of a pupil: matrix Fourier transform straight onto the camera's pixels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.propagate import PupilField, defocused, intensity, pupil_field
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.resample import SPREAD, pixel_weights, sharpened

# Complex numbers held at once: bounds the memory of a call to about a quarter of a gigabyte.
_CHUNK_ELEMENTS = 8_000_000
_BLUR_REACH = 5.0  # standard deviations of the blur that are followed beyond the edge of the window
_SAMPLES_A_PERIOD = 5.5  # of the finest detail that the optics pass, before pixels blur or integrate it


@dataclass(frozen=True)
class PupilPSF:
    """A PSF from optics and a pupil (see ``protocol.PSF``).

    Parameters
    ----------
    field
        The propagated pupil.
    pixel_nm
        Camera pixel.
    blur_nm
        Standard deviation of a Gaussian blur of every image (spectral width, stage jitter, camera MTF).
    integrate
        Whether pixels integrate the intensity or sample it at their centres.
    """

    field: PupilField
    pixel_nm: float
    blur_nm: float = 0.0
    integrate: bool = True

    @classmethod
    def of(
        cls,
        optics: Optics,
        pupil: Pupil,
        *,
        blur_nm: float = 0.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "PupilPSF":
        """The PSF of a microscope."""
        field = pupil_field(optics, pupil, device=device, dtype=dtype)
        return cls(field, optics.pixel_nm, blur_nm, optics.pixel_integration)

    def images(self, xyz_nm: Tensor, shape: tuple[int, int], *, blur_nm: Tensor | None = None) -> Tensor:
        """Expected fraction of photons in every pixel; see ``protocol.PSF.images``."""
        xyz_nm = xyz_nm.to(self.field.k_axis_per_nm)
        n = self.field.k_axis_per_nm.numel()
        fine = self._oversampling
        per_emitter = self.field.base.shape[0] * n * (n + fine * max(shape)) + fine**2 * shape[0] * shape[1]
        chunk = max(1, _CHUNK_ELEMENTS // per_emitter)
        parts = [
            self._images(xyz_nm[i : i + chunk], shape, None if blur_nm is None else blur_nm[i : i + chunk])
            for i in range(0, xyz_nm.shape[0], chunk)
        ]
        if not parts:
            return xyz_nm.new_zeros((0, *shape))
        return torch.cat(parts)

    def _images(self, xyz_nm: Tensor, shape: tuple[int, int], blur_nm: Tensor | None) -> Tensor:
        pupils = defocused(self.field, xyz_nm[:, 2])
        if not self.integrate and self.blur_nm == 0.0 and blur_nm is None:
            y, x = (self._centres(shape[i], xyz_nm) - xyz_nm[:, 1 - i, None] for i in (0, 1))
            return intensity(self.field, pupils, y, x) * self.pixel_nm**2
        variance = xyz_nm.new_full((xyz_nm.shape[0],), self.blur_nm**2)
        if blur_nm is not None:
            variance = variance + blur_nm.to(xyz_nm) ** 2
        oversampling = self._oversampling
        pitch = self.pixel_nm / oversampling
        sigma = torch.sqrt(variance + (SPREAD * pitch) ** 2)
        margin = math.ceil((_BLUR_REACH * float(sigma.detach().max()) + 2 * pitch) / self.pixel_nm)
        weights, points = [], []
        for i in (0, 1):
            samples = torch.arange(
                -margin * oversampling,
                (shape[i] + margin) * oversampling,
                device=xyz_nm.device,
                dtype=xyz_nm.dtype,
            )
            samples = (samples + 0.5) * pitch
            points.append(samples - xyz_nm[:, 1 - i, None])
            weights.append(
                sharpened(
                    pixel_weights(
                        self._centres(shape[i], xyz_nm),
                        samples.expand(xyz_nm.shape[0], -1),
                        pixel_nm=self.pixel_nm,
                        sample_pitch_nm=pitch,
                        blur_nm=sigma,
                        integrate=self.integrate,
                    )
                )
            )
        fine = intensity(self.field, pupils, points[0], points[1])
        return weights[0] @ fine @ weights[1].mT

    @property
    def _oversampling(self) -> int:
        """Samples a pixel and axis."""
        return math.ceil(self.pixel_nm * self.field.cut_off_per_nm * _SAMPLES_A_PERIOD / (2 * math.pi))

    def _centres(self, count: int, like: Tensor) -> Tensor:
        return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * self.pixel_nm
