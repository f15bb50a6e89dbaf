"""The PSF of a pupil: matrix Fourier transform straight onto the camera's pixels."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.dipole import Dipole
from smlm_bridge.optics.folded import FoldedWaves, folded_intensity
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.propagate import (
    PupilField,
    axial_wave_vectors,
    columns_of,
    density_scale,
    image_field,
    phasors,
    pupil_field,
    ring_phasors,
    sum_of_products,
    waves,
)
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.resample import Grid, band_limited_weights

# Complex numbers held at once: a processor's cache on the CPU, a quarter of a gigabyte elsewhere.
_CHUNK_ELEMENTS = {"cpu": 600_000, "else": 16_000_000}


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
    pupil
        Where the field comes from; needed for derivatives by Zernike coefficients only.
    """

    field: PupilField
    pixel_nm: float
    blur_nm: float = 0.0
    integrate: bool = True
    pupil: Pupil | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        optics: Optics,
        pupil: Pupil,
        *,
        blur_nm: float = 0.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        dipole: Dipole | None = None,
    ) -> "PupilPSF":
        """The PSF of a microscope, of freely rotating dipoles if nothing else is said."""
        field = pupil_field(optics, pupil, device=device, dtype=dtype, dipole=dipole)
        return cls(field, optics.pixel_nm, blur_nm, optics.pixel_integration, pupil)

    def images(self, xyz_nm: Tensor, shape: tuple[int, int], *, blur_nm: Tensor | None = None) -> Tensor:
        """Expected fraction of photons in every pixel; see ``protocol.PSF.images``."""
        xyz_nm = xyz_nm.to(self.field.k_axis_per_nm)
        window = _Window(self, shape, xyz_nm, blur_nm)
        parts = [self._images(xyz_nm[i], window, i) for i in window.chunks()]
        return torch.cat(parts) if parts else xyz_nm.new_zeros((0, *shape))

    def derivatives(
        self,
        xyz_nm: Tensor,
        shape: tuple[int, int],
        *,
        blur_nm: Tensor | None = None,
        zernike: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Images and their analytic derivatives: the pupil times -i k_x, -i k_y, i k_z and i Z_j.

        Parameters
        ----------
        xyz_nm, shape, blur_nm
            As for ``images``.
        zernike
            Noll indices of the Zernike coefficients to differentiate by.

        Returns
        -------
        (E, H, W) fractions as ``images`` gives, and (E, 3 + len(zernike), H, W) derivatives by x, y, z (per nm)
        and the coefficients (per rad); about as many times an image's cost as there are derivatives.

        Raises
        ------
        InputRejected
            If Zernike derivatives are asked of a PSF that does not know its pupil's samples.
        """
        if zernike and self.pupil is None:
            raise InputRejected(
                "derivatives by Zernike coefficients need the pupil's samples. Make the PSF by PupilPSF.of."
            )
        xyz_nm = xyz_nm.to(self.field.k_axis_per_nm)
        window = _Window(self, shape, xyz_nm, blur_nm)
        maps = self.field.k_axis_per_nm.new_zeros((0, *self.field.area_share.shape))
        if zernike and self.pupil is not None:
            maps = torch.as_tensor(self.pupil.zernike_maps(zernike)).to(maps)
        pieces = [self._derivatives(xyz_nm[i], window, i, maps) for i in window.chunks()]
        if not pieces:
            return xyz_nm.new_zeros((0, *shape)), xyz_nm.new_zeros((0, 3 + len(maps), *shape))
        fractions, slopes = zip(*pieces, strict=True)
        return torch.cat(fractions), torch.cat(slopes)

    def _images(self, xyz_nm: Tensor, window: "_Window", part: slice) -> Tensor:
        away = window.middle_nm - xyz_nm[:, :2]
        if self._radial and is_plain(self.field.base, xyz_nm):
            rings = ring_phasors(self.field, xyz_nm[:, 2])
            squared = folded_intensity(
                self.field.folded_lines, self.field.folded_rings, rings, away, window.along_y, window.along_x
            )
        else:
            image = image_field(columns_of(self._pupils(xyz_nm, away), window.kx), window.ky)
            squared = sum_of_products(image, image)
        power, _ = self.field.power_at(xyz_nm[:, 2])
        squared = window.without_repeats(squared, away)
        return window.onto_pixels(squared, part) * (density_scale(self.field) / power)[:, None, None]

    @property
    def _radial(self) -> bool:
        """Whether emitters differ by factors alone that depend on the distance from the pupil's middle."""
        return True

    def _pupils(self, xyz_nm: Tensor, away_nm: Tensor) -> Tensor:
        """(E, N, F, N) pupils that bring the emitters to their places in the window."""
        factor = phasors(self.field, xyz_nm[:, 2])
        to_x, to_y = (waves(self.field, away_nm[:, i, None])[:, 0] for i in (0, 1))
        factor = factor * to_y[:, :, None] * to_x[:, None, :]
        return self.field.lines * factor[:, :, None]

    def _derivatives(
        self, xyz_nm: Tensor, window: "_Window", part: slice, maps: Tensor
    ) -> tuple[Tensor, Tensor]:
        away = window.middle_nm - xyz_nm[:, :2]
        pupils = self._pupils(xyz_nm, away)
        ky, kx = window.ky, window.kx
        slope = -1j * self.field.k_axis_per_nm  # of a plane wave as the emitter moves along its axis
        columns = columns_of(pupils, kx)
        image = image_field(columns, ky)
        power, power_slope = self.field.power_at(xyz_nm[:, 2])
        scale = (density_scale(self.field) / power)[:, None, None]
        density = sum_of_products(image, image) * scale

        def through(factor: Tensor) -> Tensor:
            """The density's change, of pupils times a factor (E or 1, N, N)."""
            field = image_field(columns_of(pupils * factor[:, :, None], kx), ky)
            return sum_of_products(image, field) * (2 * scale)

        by_x = sum_of_products(image, image_field(columns_of(pupils, kx * slope), ky)) * (2 * scale)
        by_y = sum_of_products(image, image_field(columns, ky * slope)) * (2 * scale)
        by_z = through(axial_wave_vectors(self.field, xyz_nm[:, 2]))
        by_z = by_z - density * (power_slope / power)[:, None, None]
        slopes = [by_x, by_y, by_z, *(through(1j * zernike[None]) for zernike in maps)]
        density, *slopes = (window.without_repeats(values, away) for values in (density, *slopes))
        stacked = torch.stack([window.onto_pixels(change, part) for change in slopes], dim=1)
        return window.onto_pixels(density, part), stacked


class _Window:
    """How a window of pixels is sampled: at their centres, or on a finer grid that is filtered onto them.

    ``kx`` (Q, N) and ``ky`` (P, N) are the waves that lead from the pupil to the samples, about ``middle_nm``;
    ``along_x`` and ``along_y`` the same by parity.
    """

    def __init__(self, psf: PupilPSF, shape: tuple[int, int], xyz_nm: Tensor, blur_nm: Tensor | None) -> None:
        self._psf, self._shape, self._count = psf, shape, xyz_nm.shape[0]
        self._grid: Grid | None = None
        self._weights: list[Tensor] = []
        self.middle_nm = xyz_nm.new_tensor([shape[1], shape[0]]) * (psf.pixel_nm / 2)
        plain = not psf.integrate and psf.blur_nm == 0.0 and blur_nm is None
        if self._count and not plain:
            self._filter(xyz_nm, blur_nm)

    @cached_property
    def along_x(self) -> FoldedWaves:
        """Waves from the pupil to the samples along x, by parity."""
        return FoldedWaves.of(self._psf.field.k_axis_per_nm, *self._samples(0))

    @cached_property
    def along_y(self) -> FoldedWaves:
        """Likewise along y."""
        return FoldedWaves.of(self._psf.field.k_axis_per_nm, *self._samples(1))

    @cached_property
    def kx(self) -> Tensor:
        """(Q, N) waves from the pupil to the samples along x."""
        return self._waves(0)

    @cached_property
    def ky(self) -> Tensor:
        """(P, N) likewise along y."""
        return self._waves(1)

    def _waves(self, axis: int) -> Tensor:
        return waves(self._psf.field, self._points(axis))

    def _points(self, axis: int) -> Tensor:
        """(P,) the samples' distances from the window's middle along x (0) or y (1)."""
        points, pitch = self._samples(axis)
        k_axis = self._psf.field.k_axis_per_nm
        return (torch.arange(points, device=k_axis.device, dtype=k_axis.dtype) - (points - 1) / 2) * pitch

    def without_repeats(self, values: Tensor, away_nm: Tensor) -> Tensor:
        """(E, P, Q) values at the samples, 0 where they are nearer to a repetition of the emitter than to it.

        ``away_nm`` (E, 2) is the window's middle from the emitters.
        """
        half = self._psf.field.period_nm / 2
        for axis in (0, 1):
            points, pitch = self._samples(axis)
            reach = (points - 1) / 2 * pitch
            if len(away_nm) and reach + float(away_nm[:, axis].detach().abs().max()) > half:
                near = (self._points(axis) + away_nm[:, axis, None]).abs() <= half
                values = values * (near[:, None, :] if axis == 0 else near[:, :, None])
        return values

    def _filter(self, xyz_nm: Tensor, blur_nm: Tensor | None) -> None:
        psf = self._psf
        variance = xyz_nm.new_full((1,), psf.blur_nm**2)
        if blur_nm is not None:
            variance = variance + blur_nm.to(xyz_nm) ** 2
        # The gradient of a root at 0 is infinite; a width of 1e-3 nm is none.
        sigma = torch.sqrt(variance + 1e-6)
        self._grid = Grid.for_image(
            pixel_nm=psf.pixel_nm,
            cut_off_per_nm=psf.field.cut_off_per_nm,
            largest_blur_nm=float(sigma.detach().max()),
        )
        self._weights = [
            band_limited_weights(self._grid, count, blur_nm=sigma, integrate=psf.integrate)
            for count in self._shape
        ]

    def _samples(self, axis: int) -> tuple[int, float]:
        """Number and distance of the samples along x (0) or y (1), symmetric about the window's middle."""
        count = self._shape[1 - axis]
        if self._grid is None:
            return count, self._psf.pixel_nm
        return (count + 2 * self._grid.margin_px) * self._grid.oversampling, self._grid.pitch_nm

    def chunks(self) -> list[slice]:
        """Parts of the emitters whose arrays fit into the cache, or the memory."""
        n = self._psf.field.k_axis_per_nm.numel()
        fine = 1 if self._grid is None else self._grid.oversampling
        rows, columns = (fine * count for count in self._shape)
        each = self._psf.field.base.shape[0] * (n * (n + columns) + rows * columns) + n * n
        kind = self._psf.field.base.device.type
        size = max(1, _CHUNK_ELEMENTS.get(kind, _CHUNK_ELEMENTS["else"]) // each)
        return [slice(i, min(i + size, self._count)) for i in range(0, self._count, size)]

    def onto_pixels(self, density: Tensor, part: slice) -> Tensor:
        """(E, H, W) fractions from densities per nm^2 at the points."""
        if self._grid is None:
            return density * self._psf.pixel_nm**2
        to_rows, to_columns = (w if w.shape[0] == 1 else w[part] for w in self._weights)
        return to_rows @ density @ to_columns.mT


def is_plain(*tensors: Tensor) -> bool:
    """Whether tensors are numbers in a processor's memory that nobody differentiates by."""
    for tensor in tensors:
        if tensor.device.type != "cpu" or (tensor.requires_grad and torch.is_grad_enabled()):
            return False
        if torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
            return False
        try:
            tensor.untyped_storage()
        except RuntimeError:  # what torch.func differentiates has no memory of its own
            return False
    return True
