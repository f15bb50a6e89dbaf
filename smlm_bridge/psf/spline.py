"""A tabulated PSF: what training and bulk rendering use, hundreds of times cheaper than the pupil.

The image is tabulated on planes of z, on samples finer than half the optical cut-off; between planes a cubic
B-spline interpolates (Unser 1999), within a plane shift, blur and pixel integration are one separable product
of matrices, exact for band-limited images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from smlm_bridge.errors import InputRejected
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.psf.resample import SPREAD, pixel_weight_slopes, pixel_weights

_CHUNK_ELEMENTS = {"cpu": 4_000_000, "else": 24_000_000}  # what a cache holds, what fills a GPU
_NYQUIST_SHARE = 0.65
_MARGIN_SAMPLES = 12  # rendered around the table and cut off: the sharpening reaches this far
_LEAST_PLANES = 4


@dataclass(frozen=True)
class SplinePSF:
    """A PSF from a table (see ``protocol.PSF``).

    Parameters
    ----------
    coefficients : (Z, M, M) tensor
        B-spline coefficients in z of the intensity per nm^2 at samples centred on the emitter, sharpened by a
        Gaussian of ``resample.SPREAD`` samples, which rendering spreads again.
    z_first_nm, z_step_nm
        Height of the first coefficient's knot and spacing of the knots.
    sample_nm
        Lateral spacing of the samples.
    pixel_nm, blur_nm, integrate
        As in ``PupilPSF``.
    """

    coefficients: Tensor
    z_first_nm: float
    z_step_nm: float
    sample_nm: float
    pixel_nm: float
    blur_nm: float
    integrate: bool

    @classmethod
    def tabulate(
        cls,
        psf: PupilPSF,
        *,
        z_range_nm: tuple[float, float],
        reach_nm: float,
        z_step_nm: float = 40.0,
    ) -> "SplinePSF":
        """Tabulate a pupil's PSF over a z-range and out to ``reach_nm`` from the emitter along x and y.

        ``z_step_nm`` of 40 keeps the interpolation below 1e-3 of the peak for apertures up to 1.5 (tested).
        """
        # Two thirds of the Nyquist spacing of the intensity leave room for the spread.
        cut_off_per_nm = psf.field.cut_off_per_nm
        sample_nm = min(psf.pixel_nm, _NYQUIST_SHARE * math.pi / cut_off_per_nm)
        half = math.ceil(reach_nm / sample_nm) + _MARGIN_SAMPLES
        planes = max(_LEAST_PLANES, math.ceil((z_range_nm[1] - z_range_nm[0]) / z_step_nm) + 1)
        z = z_range_nm[0] + z_step_nm * np.arange(planes)
        size = 2 * half + 1
        point = PupilPSF(psf.field, sample_nm, 0.0, integrate=False)
        centre = (half + 0.5) * sample_nm
        xyz = torch.tensor([[centre, centre, height] for height in z], dtype=torch.float64)
        table = point.images(xyz, (size, size)).double().cpu().numpy() / sample_nm**2
        table = _sharpen(table, cut_off=cut_off_per_nm * sample_nm)
        table = table[:, _MARGIN_SAMPLES:-_MARGIN_SAMPLES, _MARGIN_SAMPLES:-_MARGIN_SAMPLES]
        return cls(
            torch.as_tensor(_uniform_spline(table), dtype=torch.float32).to(psf.field.base.device),
            float(z_range_nm[0]),
            z_step_nm,
            sample_nm,
            psf.pixel_nm,
            psf.blur_nm,
            psf.integrate,
        )

    @property
    def reach_nm(self) -> float:
        """Distance from the emitter along x or y to which the table goes."""
        return (self.coefficients.shape[1] - 1) / 2 * self.sample_nm

    @property
    def z_range_nm(self) -> tuple[float, float]:
        """Heights of the table's first and last plane."""
        return self.z_first_nm, self.z_first_nm + (self.coefficients.shape[0] - 3) * self.z_step_nm

    def images(self, xyz_nm: Tensor, shape: tuple[int, int], *, blur_nm: Tensor | None = None) -> Tensor:
        """Expected fraction of photons in every pixel; see ``protocol.PSF.images``.

        Heights beyond the table take its first or last plane.
        """
        size = self.coefficients.shape[1]
        chunk = self._chunk(2 * size * size + shape[0] * (size + shape[1]))
        parts = [
            self._images(xyz_nm[i : i + chunk], shape, None if blur_nm is None else blur_nm[i : i + chunk])
            for i in range(0, xyz_nm.shape[0], chunk)
        ]
        return torch.cat(parts) if parts else xyz_nm.new_zeros((0, *shape))

    def derivatives(
        self,
        xyz_nm: Tensor,
        shape: tuple[int, int],
        *,
        blur_nm: Tensor | None = None,
        zernike: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Images and their analytic derivatives by x, y, z; see ``protocol.AnalyticPSF``.

        An image is a product of matrices, and so is every derivative: about two images' cost for all three.

        Raises
        ------
        InputRejected
            If Zernike derivatives are asked: a table has no pupil.
        """
        if zernike:
            raise InputRejected(
                f"a tabulated PSF has no derivatives by Zernike coefficients {tuple(zernike)}. Use a PupilPSF."
            )
        size = self.coefficients.shape[1]
        chunk = self._chunk(4 * size * size + 2 * shape[0] * (size + shape[1]))
        pieces = [
            self._derivatives(
                xyz_nm[i : i + chunk], shape, None if blur_nm is None else blur_nm[i : i + chunk]
            )
            for i in range(0, xyz_nm.shape[0], chunk)
        ]
        if not pieces:
            return xyz_nm.new_zeros((0, *shape)), xyz_nm.new_zeros((0, 3, *shape))
        fractions, slopes = zip(*pieces, strict=True)
        return torch.cat(fractions), torch.cat(slopes)

    def _chunk(self, each: int) -> int:
        """Emitters at once, of ``each`` numbers."""
        kind = self.coefficients.device.type
        return max(1, _CHUNK_ELEMENTS.get(kind, _CHUNK_ELEMENTS["else"]) // each)

    def _derivatives(
        self, xyz_nm: Tensor, shape: tuple[int, int], blur_nm: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sigma = self._sigma(xyz_nm, blur_nm)
        (y, x), (by_y, by_x) = self._weights(xyz_nm, shape, sigma), self._weight_slopes(xyz_nm, shape, sigma)
        basis, slope, index = self._basis(xyz_nm[:, 2])
        # Both products with the table at once: reading it costs more than multiplying.
        along_x = self._planes(basis, index) @ torch.cat([x, by_x], dim=1).mT
        steeper = self._planes(slope, index) @ x.mT
        both = y @ along_x
        columns = shape[1]
        slopes = [both[:, :, columns:], by_y @ along_x[:, :, :columns], y @ steeper]
        return both[:, :, :columns], torch.stack(slopes, dim=1)

    def _images(self, xyz_nm: Tensor, shape: tuple[int, int], blur_nm: Tensor | None) -> Tensor:
        y, x = self._weights(xyz_nm, shape, self._sigma(xyz_nm, blur_nm))
        basis, _, index = self._basis(xyz_nm[:, 2])
        return y @ self._planes(basis, index) @ x.mT

    def _sigma(self, xyz_nm: Tensor, blur_nm: Tensor | None) -> Tensor:
        """(E,) standard deviations of the Gaussian that spreads every sample."""
        variance = xyz_nm.new_full((xyz_nm.shape[0],), self.blur_nm**2)
        if blur_nm is not None:
            variance = variance + blur_nm**2
        return torch.sqrt(variance + (SPREAD * self.sample_nm) ** 2)

    def _grid(self, xyz_nm: Tensor, shape: tuple[int, int], axis: int) -> tuple[Tensor, Tensor]:
        """Centres of the pixels (P,) and positions of the samples (E, M) along an axis, 0 for y."""
        half = (self.coefficients.shape[1] - 1) / 2
        samples = torch.arange(2 * half + 1, device=xyz_nm.device, dtype=xyz_nm.dtype) - half
        pixels = torch.arange(shape[axis], device=xyz_nm.device, dtype=xyz_nm.dtype) + 0.5
        return pixels * self.pixel_nm, xyz_nm[:, 1 - axis, None] + samples * self.sample_nm

    def _weights(self, xyz_nm: Tensor, shape: tuple[int, int], sigma: Tensor) -> list[Tensor]:
        """(E, P, M) weights of the samples in the pixels along y and x."""
        return [
            pixel_weights(
                *self._grid(xyz_nm, shape, axis),
                pixel_nm=self.pixel_nm,
                sample_pitch_nm=self.sample_nm,
                blur_nm=sigma,
                integrate=self.integrate,
            )
            for axis in (0, 1)
        ]

    def _weight_slopes(self, xyz_nm: Tensor, shape: tuple[int, int], sigma: Tensor) -> list[Tensor]:
        """Derivatives of ``_weights`` as the emitter moves."""
        return [
            pixel_weight_slopes(
                *self._grid(xyz_nm, shape, axis),
                pixel_nm=self.pixel_nm,
                sample_pitch_nm=self.sample_nm,
                blur_nm=sigma,
                integrate=self.integrate,
            )
            for axis in (0, 1)
        ]

    def _basis(self, z_nm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(E, 4) values of the cubic B-splines that reach ``z_nm``, (E, 4) slopes, and (E,) first indices."""
        count = self.coefficients.shape[0]
        # A spline through n knots has n + 2 coefficients; knot j belongs to coefficients j, j + 1, j + 2.
        knot = (z_nm - self.z_first_nm) / self.z_step_nm
        inside = (knot >= 0.0) & (knot <= count - 3 - 1e-4)  # beyond, images stay the same
        position = torch.where(inside, knot, knot.detach().clamp(0.0, count - 3 - 1e-4))
        first = position.floor().detach()
        t = position - first
        basis = torch.stack(
            [
                (1 - t) ** 3 / 6,
                (3 * t**3 - 6 * t**2 + 4) / 6,
                (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
                t**3 / 6,
            ],
            dim=1,
        )
        slope = torch.stack(
            [
                -((1 - t) ** 2) / 2,
                (3 * t**2 - 4 * t) / 2,
                (-3 * t**2 + 2 * t + 1) / 2,
                t**2 / 2,
            ],
            dim=1,
        )
        return basis, slope * (inside / self.z_step_nm)[:, None], first.long()

    def _planes(self, basis: Tensor, index: Tensor) -> Tensor:
        """(E, M, M) sums of four tables from ``index`` on, with the weights ``basis`` (E, 4)."""
        flat = self.coefficients.flatten(1)
        tables = index[:, None] + torch.arange(basis.shape[1], device=index.device)
        if basis.dtype == flat.dtype:  # one pass over the table: sums of whole planes cost ten times as much
            planes = embedding_bag(tables, flat, per_sample_weights=basis, mode="sum")
        else:
            planes = (basis[:, None] @ flat[tables].to(basis.dtype))[:, 0]
        return planes.view(-1, *self.coefficients.shape[1:])


def _sharpen(table: NDArray[np.float64], *, cut_off: float) -> NDArray[np.float64]:
    """Take a Gaussian of ``SPREAD`` samples out of images (Z, M, M) of band limit ``cut_off`` rad a sample.

    Above the cut-off the gain stays level, so that the edge of the table does not ring.
    """
    steps = [2 * np.pi * np.fft.fftfreq(table.shape[1]), 2 * np.pi * np.fft.rfftfreq(table.shape[2])]
    gain_y, gain_x = (np.exp(0.5 * (SPREAD * np.minimum(np.abs(s), cut_off)) ** 2) for s in steps)
    spectrum = np.fft.rfft2(table) * gain_y[:, None] * gain_x
    return np.fft.irfft2(spectrum, s=table.shape[1:])


def _uniform_spline(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Z + 2, ...) coefficients of the cubic B-spline through planes (Z, ...), not-a-knot at both ends."""
    n = table.shape[0]
    system = np.zeros((n + 2, n + 2))
    for offset, weight in enumerate((1 / 6, 4 / 6, 1 / 6)):
        system[np.arange(n), np.arange(n) + offset] = weight
    system[n, :5] = system[n + 1, -5:] = (-1, 4, -6, 4, -1)
    right = np.concatenate([table.reshape(n, -1), np.zeros((2, table[0].size))])
    return np.linalg.solve(system, right).reshape(n + 2, *table.shape[1:])
