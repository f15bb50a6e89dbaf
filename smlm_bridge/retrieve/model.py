"""The image of one bead: pupil parameters and geometry in, the fraction of its light per pixel out.

The same physics as ``psf.pupil_psf``, arranged for one bead at many focus positions: all slices share the
pupil, and blur, bead and pixel are one separable filter that is exact for the band-limited intensity.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates
from torch import Tensor

from smlm_bridge.optics.bead import bead_layers
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.propagate import pupil_field
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.optics.zernike import zernike_basis
from smlm_bridge.retrieve.intensity import Filter, Intensity, Transform, half_transform

ZERNIKE_NOLL = tuple(range(5, 67))  # piston, tilts and defocus are bead position and focus instead
RADIAL_NOLL = (4, 11, 22)
# One sample and the next, along y and along x.
NEIGHBOURS = ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:]))
_MARGIN_PX = range(2, 10)  # light just outside the window that blur and pixels bring in
_AT_ONCE = 8  # numbers that a processor computes together
_DRIFT_SCALE_NM = 30.0  # brings the geometry to the size of a phase in rad, for the optimiser's sake
_FOCUS_SCALE_NM = 100.0
_START_BLUR_NM = 90.0
_FLAT_NM = (120.0, 300.0)  # thicker beads take one more layer each


@dataclass(frozen=True)
class Parameters:
    """What is fitted, all dimensionless and of order one.

    Parameters
    ----------
    phase, log_amplitude : (N, N)
        Pixel-wise phase (rad) and log amplitude.
    zernike : (len(ZERNIKE_NOLL),)
        Smooth part of the phase, rad RMS.
    radial : (len(RADIAL_NOLL),)
        Smooth radial part of the log amplitude.
    position : (B, 2, 2)
        x, y of every bead in its window (row 0) and their change over half the scan (row 1), in units of 30 nm.
    focus : (B,)
        Offset of the focus of every bead, in units of 100 nm.
    log_blur : (1,)
        Logarithm of the blur in nm, the bead's own size excluded.
    """

    phase: Tensor
    log_amplitude: Tensor
    zernike: Tensor
    radial: Tensor
    position: Tensor
    focus: Tensor
    log_blur: Tensor

    @classmethod
    def initial(
        cls, phase: NDArray[np.floating], *, xy_nm: tuple[float, float], focus_nm: float
    ) -> "Parameters":
        """Full transmission and the given (N, N) phase; one bead at ``xy_nm`` from the window's centre."""
        start = torch.as_tensor(np.asarray(phase, dtype=np.float32))
        return cls(
            start,
            torch.zeros_like(start),
            torch.zeros(len(ZERNIKE_NOLL)),
            torch.zeros(len(RADIAL_NOLL)),
            torch.zeros(1, 2, 2),
            torch.zeros(1),
            torch.full((1,), math.log(_START_BLUR_NM)),
        ).moved(xy_nm=xy_nm, focus_nm=focus_nm)

    @property
    def blur_nm(self) -> Tensor:
        """(1,) blur without the bead."""
        return torch.exp(self.log_blur)

    def moved(self, *, xy_nm: tuple[float, float] = (0.0, 0.0), focus_nm: float = 0.0) -> "Parameters":
        """All beads and the focus shifted."""
        shift = torch.tensor([xy_nm, (0.0, 0.0)], dtype=torch.float32) / _DRIFT_SCALE_NM
        return replace(
            self, position=self.position + shift, focus=self.focus + float(focus_nm) / _FOCUS_SCALE_NM
        )

    def moved_each(self, xy_nm: Tensor, walk_nm: Tensor) -> "Parameters":
        """Every bead shifted by its row of (B, 2) x, y, and its walk over half the scan changed."""
        return replace(self, position=self.position + torch.stack([xy_nm, walk_nm], 1) / _DRIFT_SCALE_NM)

    def resampled(self, samples: int) -> "Parameters":
        """The same pupil on ``samples`` points along an axis; through phasors, so wraps do no harm."""
        if samples == self.phase.shape[0]:
            return self
        phase, amplitude = self.phase.detach().numpy(), self.log_amplitude.detach().numpy()
        source = _axis(phase.shape[0])
        inside = np.hypot(source[:, None], source[None]) <= 1
        fill = tuple(distance_transform_edt(~inside, return_distances=False, return_indices=True))
        at = (_axis(samples) - source[0]) / (source[1] - source[0])
        points = np.stack(np.meshgrid(at, at, indexing="ij"))

        def sample(values: NDArray[np.floating]) -> NDArray[np.floating]:
            return np.asarray(map_coordinates(values[fill], points, order=1, mode="nearest"))

        new_phase = np.arctan2(sample(np.sin(phase)), sample(np.cos(phase))).astype(np.float32)
        return replace(
            self, phase=torch.from_numpy(new_phase), log_amplitude=torch.from_numpy(sample(amplitude)).float()
        )


class BeadModel:
    """Images of one bead near the coverslip, differentiable in ``Parameters``.

    Parameters
    ----------
    optics
        Microscope; its own ``focus_nm`` is not used, the scan brings the focus.
    samples
        Pupil samples along one axis.
    shape
        Rows and columns of the window.
    bead_diameter_nm
        The bead rests on the coverslip: its centre stands one radius above it. Across, its image is blurred by
        a Gaussian of the sphere's standard deviation, diameter / sqrt(20); along z, a bead too thick to be flat
        is a stack of layers (``optics.bead``), whose light near the coverslip differs.
    """

    def __init__(
        self, optics: Optics, samples: int, shape: tuple[int, int], *, bead_diameter_nm: float
    ) -> None:
        self.optics, self.samples, self.shape = optics, samples, shape
        self.bead_sigma_nm = bead_diameter_nm / math.sqrt(20)
        field = pupil_field(optics, Pupil.flat(samples))
        heights, shares, _ = bead_layers(bead_diameter_nm, _layers(bead_diameter_nm))
        layers = []
        for height, share in zip(heights + bead_diameter_nm / 2, shares, strict=True):
            decay = torch.exp(-field.kz_sample_per_nm.imag * float(height))
            to_layer = torch.polar(decay, field.kz_sample_per_nm.real * float(height))
            layers.append(field.base * to_layer * math.sqrt(share))
        self.base = torch.cat(layers).resolve_conj().contiguous()
        self.k_axis, self.kz_immersion = field.k_axis_per_nm, field.kz_immersion_per_nm
        self._base_power = (self.base.real.square() + self.base.imag.square()).sum(0)
        self._base_power /= field.area_share.clamp_min(1e-6)
        self.power = self._base_power / self._base_power.max()
        axis = _axis(samples)
        x, y = np.broadcast_to(axis, (samples, samples)), np.broadcast_to(axis[:, None], (samples, samples))
        self.zernikes = torch.as_tensor(zernike_basis(list(ZERNIKE_NOLL), x, y), dtype=torch.float32)
        self.radials = torch.as_tensor(zernike_basis(list(RADIAL_NOLL), x, y), dtype=torch.float32)
        self.inside = self.power > 0
        # Nyquist of the intensity is wavelength / 4 NA; its spectrum fades towards the cutoff: 10 % are free.
        self._oversampling = math.ceil(
            optics.pixel_nm * 4 * optics.numerical_aperture / optics.wavelength_nm / 1.1
        )
        self._pitch_nm = optics.pixel_nm / self._oversampling
        self._transform = Transform(
            self.base,
            self.kz_immersion,
            self.k_axis,
            self._to_points(shape[0]),
            self._to_points(shape[1]),
            shape,
        )
        self._filters = [self._filter(count) for count in shape]

    @cached_property
    def neighbours(self) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Along y and x, of each sample and the next: the light of the darker one, and whether both have any."""
        power, inside = self.power.numpy(), self.inside.numpy()
        return [(np.minimum(power[a], power[b]), inside[a] & inside[b]) for a, b in NEIGHBOURS]

    def total_phase(self, p: Parameters) -> Tensor:
        """(N, N) phase in rad."""
        return _with_modes(p.phase, p.zernike, self.zernikes)

    def total_log_amplitude(self, p: Parameters) -> Tensor:
        """(N, N) logarithm of the amplitude transmission."""
        return _with_modes(p.log_amplitude, p.radial, self.radials)

    def position_nm(self, p: Parameters, travel: Tensor, bead: Tensor | None = None) -> Tensor:
        """(E, 2) x, y of a bead from its window's centre; ``travel`` (E,) runs from -1 to 1."""
        at = p.position[torch.zeros(len(travel), dtype=torch.long) if bead is None else bead]
        xy: Tensor = (at[:, 0] + at[:, 1] * travel[:, None]) * _DRIFT_SCALE_NM
        return xy

    def focus_offset_nm(self, p: Parameters) -> Tensor:
        """(B,) offset of the focus of every bead."""
        return p.focus * _FOCUS_SCALE_NM

    def images(
        self,
        p: Parameters,
        focus_nm: Tensor,
        travel: Tensor,
        shift_nm: Tensor | None = None,
        bead: Tensor | None = None,
    ) -> Tensor:
        """(E, H, W) fraction of the light in every pixel; focus (E,), x, y shifts (E, 2), bead's number (E,)."""
        log_amplitude = self.total_log_amplitude(p)
        power = (self._base_power * torch.exp(2 * log_amplitude)).sum()
        xy = self.position_nm(p, travel, bead)
        if shift_nm is not None:
            xy = xy + shift_nm
        offset = self.focus_offset_nm(p)
        focus = focus_nm + (
            offset[torch.zeros_like(focus_nm, dtype=torch.long)] if bead is None else offset[bead]
        )
        dk = float(self.k_axis[1] - self.k_axis[0])
        scale = (dk / (2 * math.pi)) ** 2 * self.optics.pixel_nm**2 / power
        moved = torch.cat([focus[:, None], xy], 1)
        images: Tensor = Intensity.apply(
            log_amplitude, self.total_phase(p), moved, p.log_blur, scale, self._transform, self._blurred(p)
        )
        return images

    def gauge_terms(self) -> NDArray[np.float64]:
        """(3, N, N) phases of a bead 1 nm further along x and y, and of a focus 1 nm further in."""
        axis, kz = self.k_axis.double().numpy(), self.kz_immersion.double().numpy()
        return -np.stack(
            [np.broadcast_to(axis, kz.shape), np.broadcast_to(axis[:, None], kz.shape), kz - kz.mean()]
        )

    def _to_points(self, count: int) -> Tensor:
        points = (torch.arange(self._fine(count)) - (self._fine(count) - 1) / 2) * self._pitch_nm
        return half_transform(points, self.k_axis)

    def _fine(self, count: int) -> int:
        return (count + 2 * self._margin(count)) * self._oversampling

    def _margin(self, count: int) -> int:
        """Pixels; of half of all points, which the transform computes, few or none are left over."""

        def left_over(margin: int) -> int:
            return math.ceil((count + 2 * margin) * self._oversampling / 2) % _AT_ONCE

        return min(_MARGIN_PX, key=lambda margin: (-left_over(margin) % _AT_ONCE, margin))

    def _filter(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Frequencies, cosines over the lags, and the lag of each pair of pixel and sample."""
        fine = self._fine(count)
        nyquist = 0.5 / self._pitch_nm
        frequency = torch.linspace(0, nyquist, fine + 1)
        step = torch.full_like(frequency, 2 * nyquist / fine)
        step[[0, -1]] /= 2
        # Distance from pixel to sample in half samples, which are whole numbers for every oversampling.
        pixel = 2 * torch.arange(count) + (2 * self._margin(count) + 1)
        pixel = pixel * self._oversampling - 1
        lag = (pixel[:, None] - 2 * torch.arange(fine)).abs()
        distance = torch.arange(int(lag.max()) + 1) * (self._pitch_nm / 2)
        cosines = torch.cos(2 * math.pi * distance[:, None] * frequency) * step * self._pitch_nm
        return frequency, cosines, lag

    def _blurred(self, p: Parameters) -> tuple[Filter, Filter]:
        """What blur, bead and pixel make of the light along y and x."""
        known: dict[int, Filter] = {}
        variance, blur2 = self.bead_sigma_nm**2, p.blur_nm.detach().square()
        for count, (frequency, cosines, lag) in zip(self.shape, self._filters, strict=True):
            if count in known:
                continue
            decay = 2 * math.pi**2 * frequency.square()
            transfer = torch.exp(-decay * (blur2 + variance))
            if self.optics.pixel_integration:
                transfer = transfer * torch.sinc(frequency * self.optics.pixel_nm)
            parts = cosines @ torch.stack([transfer, -2 * decay * blur2 * transfer], 1)
            known[count] = Filter.of(parts[:, 0][lag], parts[:, 1][lag])
        return known[self.shape[0]], known[self.shape[1]]


def _with_modes(samples: Tensor, coefficients: Tensor, modes: Tensor) -> Tensor:
    """(N, N) samples plus modes (J, N, N); of a pixel-wise fit there are none, and it asks a thousand times."""
    if not coefficients.requires_grad and not coefficients.any():
        return samples
    total: Tensor = samples + torch.tensordot(coefficients, modes, 1)
    return total


def _layers(diameter_nm: float) -> int:
    """Layers that a bead needs: one for as long as it is thin against the depth of field."""
    return 1 + sum(diameter_nm > limit for limit in _FLAT_NM)


def _axis(samples: int) -> NDArray[np.float64]:
    return np.asarray((np.arange(samples) - (samples - 1) / 2) * (2.0 / samples), dtype=np.float64)
