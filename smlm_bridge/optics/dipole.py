"""How the dipole of an emitter turns while it shines: free, fixed, or within limits."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.microscope import Optics

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Dipole:
    """The second moments of an emission dipole: all that an image of incoherent light can depend on.

    Parameters
    ----------
    moments : 3 x 3
        Mean of p p^T over the emission, p the unit vector of the dipole in x, y (image), z (height); of trace
        1 and without negative eigenvalues.

    Raises
    ------
    InputRejected
        If the moments are not those of a unit vector.
    """

    moments: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        matrix = np.asarray(self.moments, dtype=np.float64)
        object.__setattr__(self, "moments", tuple(tuple(float(v) for v in row) for row in matrix.tolist()))
        ok = matrix.shape == (3, 3) and bool(np.isfinite(matrix).all()) and np.allclose(matrix, matrix.T)
        if not (ok and abs(np.trace(matrix) - 1) < 1e-6 and np.linalg.eigvalsh(matrix).min() > -1e-6):
            raise InputRejected(
                f"the second moments {self.moments} are not those of a dipole: symmetric 3 x 3, trace 1, no "
                "negative eigenvalue. Use Dipole.free, fixed, partly_mobile or slow."
            )

    @classmethod
    def free(cls) -> "Dipole":
        """Rotates freely and much faster than the fluorescence lifetime: the mean over all directions."""
        return cls(_rows(np.eye(3) / 3))

    @classmethod
    def fixed(cls, *, polar_deg: float, azimuth_deg: float) -> "Dipole":
        """Stands still, ``polar_deg`` from the optical axis, ``azimuth_deg`` from x towards y."""
        return cls.partly_mobile(polar_deg=polar_deg, azimuth_deg=azimuth_deg, mobility=0.0)

    @classmethod
    def partly_mobile(cls, *, polar_deg: float, azimuth_deg: float, mobility: float) -> "Dipole":
        """Wobbles fast about a direction: (1 - mobility) p p^T + mobility I / 3.

        A ``mobility`` of 0 is a fixed dipole, of 1 a free one; 1 - mobility is the rotational constraint gamma
        of Zhang, Lu & Lew 2020.
        """
        if not (math.isfinite(polar_deg) and math.isfinite(azimuth_deg) and 0 <= mobility <= 1):
            raise InputRejected(
                f"a dipole at polar angle {polar_deg}, azimuth {azimuth_deg} degrees with mobility {mobility}: "
                "the angles must be finite and the mobility from 0 (fixed) to 1 (free)."
            )
        polar, azimuth = math.radians(polar_deg), math.radians(azimuth_deg)
        p = np.array(
            [math.sin(polar) * math.cos(azimuth), math.sin(polar) * math.sin(azimuth), math.cos(polar)]
        )
        return cls(_rows((1 - mobility) * np.outer(p, p) + mobility * np.eye(3) / 3))

    @classmethod
    def slow(cls, optics: Optics, *, z_nm: float) -> "Dipole":
        """Rotates freely, but slowly against the lifetime, at a quantum yield of 1.

        Every orientation then emits the same number of photons, whatever the interface does to its rate, so
        each counts by the inverse of its total power at the height ``z_nm`` (``power.dipole_power``).
        """
        from smlm_bridge.optics.power import dipole_power

        total = dipole_power(optics, z_nm).total
        weights = np.array([1 / total.horizontal, 1 / total.horizontal, 1 / total.vertical])
        return cls(_rows(np.diag(weights / weights.sum())))

    @property
    def axes(self) -> FloatArray:
        """(n, 3) incoherent dipoles that together have these moments; n from 1 (fixed) to 3."""
        values, vectors = np.linalg.eigh(np.asarray(self.moments))
        kept = values > 1e-9
        result: FloatArray = (vectors[:, kept] * np.sqrt(values[kept])).T
        return result


def _rows(matrix: FloatArray) -> tuple[tuple[float, float, float], ...]:
    return tuple((float(a), float(b), float(c)) for a, b, c in matrix)
