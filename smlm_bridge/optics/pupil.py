"""The pupil of the microscope: aberrations, a designed mask and the transmission, as plain arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected

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
