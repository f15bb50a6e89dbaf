"""The pupil of the microscope: aberrations, a designed mask and the transmission, as plain arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.zernike import zernike_basis

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Pupil:
    """Phase and amplitude over the pupil.

    Sample ``k`` of either axis lies at ``rho = (k - (N - 1) / 2) * pitch`` in units of the pupil radius (the
    numerical aperture); axis 0 is y, axis 1 is x, both in image orientation. Samples beyond rho = 1 are
    allowed (a designed mask on a modulator) and are not used.

    Parameters
    ----------
    phase_rad : (N, N) array
        Free pixel-wise phase.
    amplitude : (N, N) array
        Amplitude transmission, >= 0; the objective's own apodisation is part of the propagation, not of this.
    pitch
        Spacing of the samples; None means ``2 / N``, the pupil just covered.
    zernike_rad
        Noll index to coefficient (rad RMS), added to ``phase_rad``.
    """

    phase_rad: FloatArray
    amplitude: FloatArray
    pitch: float | None = None
    zernike_rad: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        phase = np.asarray(self.phase_rad, dtype=np.float64)
        amplitude = np.asarray(self.amplitude, dtype=np.float64)
        object.__setattr__(self, "phase_rad", phase)
        object.__setattr__(self, "amplitude", amplitude)
        if phase.ndim != 2 or phase.shape[0] != phase.shape[1] or phase.shape[0] < 8:
            raise InputRejected(f"a pupil is a square array of at least 8 x 8 samples, got {phase.shape}.")
        if amplitude.shape != phase.shape:
            raise InputRejected(f"amplitude {amplitude.shape} and phase {phase.shape} differ in shape.")
        if not (np.isfinite(phase).all() and np.isfinite(amplitude).all()):
            raise InputRejected("the pupil has values that are not finite.")
        if (amplitude < 0).any():
            raise InputRejected("the pupil's amplitude is negative somewhere; a sign belongs into the phase.")
        if self.pitch is None:
            object.__setattr__(self, "pitch", 2.0 / phase.shape[0])
        if not 0 < self.sample_pitch * phase.shape[0] < 100:
            raise InputRejected(f"pitch {self.pitch} is not a spacing in units of the pupil radius.")
        for noll, value in self.zernike_rad.items():
            if noll < 1 or not np.isfinite(value):
                raise InputRejected(f"Zernike coefficient {noll}: {value} (Noll index from 1, finite rad).")

    @classmethod
    def flat(cls, samples: int = 64, zernike_rad: Mapping[int, float] | None = None) -> "Pupil":
        """A pupil of full transmission with the given Zernike aberrations."""
        shape = (samples, samples)
        return cls(np.zeros(shape), np.ones(shape), zernike_rad=dict(zernike_rad or {}))

    def zernike_maps(self, noll: Sequence[int]) -> FloatArray:
        """(len(noll), N, N) Zernike polynomials on the samples of this pupil."""
        axis = self.rho_axis
        x, y = np.broadcast_arrays(axis, axis[:, None])
        return zernike_basis(list(noll), x, y)

    def transmitting(self, coefficients: Sequence[float]) -> "Pupil":
        """The same pupil behind a radial amplitude transmission.

        Parameters
        ----------
        coefficients
            c_1, c_2, ... of the amplitude 1 + c_1 rho^2 + c_2 rho^4 + ..., rho from 0 to 1 at the aperture's
            edge; held at 0 where the polynomial is negative.
        """
        axis = self.rho_axis
        rho2 = axis**2 + axis[:, None] ** 2
        values = np.polynomial.polynomial.polyval(np.minimum(rho2, 1.0), [1.0, *coefficients])
        return replace(self, amplitude=self.amplitude * np.maximum(values, 0.0))

    def measured(self, amplitude: FloatArray, *, diameter_px: float) -> "Pupil":
        """The same pupil behind a measured amplitude transmission.

        Parameters
        ----------
        amplitude : (H, W) array
            Amplitude (the square root of an intensity) in the back focal plane, in image orientation, the
            optical axis in the middle of the array; interpolated linearly onto the samples, its edge beyond.
        diameter_px
            Diameter of the aperture in its pixels.

        Raises
        ------
        InputRejected
            If the array is no image of finite numbers >= 0, or does not cover the aperture.
        """
        given = np.asarray(amplitude, dtype=np.float64)
        if given.ndim != 2 or not np.isfinite(given).all() or (given < 0).any():
            raise InputRejected(
                f"a measured transmission is an image of finite amplitudes >= 0, got the shape {given.shape}"
                f"{'' if given.ndim == 2 else ', which is no image'}. Mask what was not measured."
            )
        if not 2 <= diameter_px <= min(given.shape):
            raise InputRejected(
                f"an aperture of {diameter_px:g} pixels does not lie within the measured image of "
                f"{given.shape[1]} x {given.shape[0]}. Give the aperture's diameter in pixels of the image."
            )
        at = self.rho_axis * diameter_px / 2
        points = np.meshgrid(*(at + (count - 1) / 2 for count in given.shape), indexing="ij")
        sampled = map_coordinates(given, np.stack(points), order=1, mode="nearest")
        return replace(self, amplitude=self.amplitude * sampled)

    def refined(self) -> "Pupil":
        """The same pupil on twice the samples: Zernikes exactly, the rest of the field interpolated linearly."""
        n = self.phase_rad.shape[0]
        axis = (np.arange(2 * n) - 0.5) / 2
        points = np.meshgrid(axis, axis, indexing="ij")
        field = np.exp(1j * self.phase_rad)
        turned, inner = (
            map_coordinates(part, points, order=1, mode="nearest") for part in (field.real, field.imag)
        )
        amplitude = map_coordinates(self.amplitude, points, order=1, mode="nearest")
        return Pupil(np.arctan2(inner, turned), amplitude, self.sample_pitch / 2, self.zernike_rad)

    @property
    def sample_pitch(self) -> float:
        """Spacing of the samples in units of the pupil radius."""
        assert self.pitch is not None
        return self.pitch

    @property
    def rho_axis(self) -> FloatArray:
        """(N,) coordinates of the samples along either axis, in units of the pupil radius."""
        n = self.phase_rad.shape[0]
        axis: FloatArray = (np.arange(n) - (n - 1) / 2) * self.sample_pitch
        return axis
