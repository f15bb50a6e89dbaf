"""Points of two channels that are one emitter, and the polynomial between them: match, fit, trim, repeat."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

FloatArray = NDArray[np.float64]
Indices = NDArray[np.int64]

_GATE_SIGMAS = 3.7  # 99.9 % of the pairs, if errors are normal
_LEAST_GATE_NM = 5.0
_CYCLES = 20


@dataclass(frozen=True, eq=False)
class Cloud:
    """Localizations of one channel: positions (N, 2) in nm, the frame (N,) and the bead (N,) of each."""

    xy_nm: FloatArray
    frame: Indices
    bead: Indices

    def __len__(self) -> int:
        return len(self.frame)

    def rows(self, chosen: Indices) -> "Cloud":
        """Some of the localizations."""
        return Cloud(self.xy_nm[chosen], self.frame[chosen], self.bead[chosen])


@dataclass(frozen=True, eq=False)
class Polynomial:
    """A polynomial of u = (xy - centre_nm) / scale_nm; coefficients (T, 2) in the order of ``Transform``."""

    degree: int
    coefficients: FloatArray
    centre_nm: FloatArray
    scale_nm: float

    def __call__(self, xy_nm: FloatArray) -> FloatArray:
        """Positions (N, 2) of channel 1 in channel 2."""
        return self.terms(xy_nm) @ self.coefficients

    def terms(self, xy_nm: FloatArray) -> FloatArray:
        """The terms (N, T): 1, u_x, u_y, u_x^2, u_x u_y, u_y^2, ..."""
        x, y = ((xy_nm - self.centre_nm) / self.scale_nm).T
        powers = ((n - k, k) for n in range(self.degree + 1) for k in range(n + 1))
        return np.stack([x**i * y**j for i, j in powers], axis=1)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Rows of channel 1 and of channel 2 (M,) that are one emitter, the map between them, and their gate."""

    first: Indices
    second: Indices
    map: Polynomial
    gate_nm: float


def terms_of(degree: int) -> int:
    """Number of coefficients of one coordinate."""
    return (degree + 1) * (degree + 2) // 2


def fit_polynomial(xy_nm: FloatArray, to_nm: FloatArray, degree: int) -> Polynomial:
    """The polynomial of least squares from (N, 2) to (N, 2)."""
    centre = xy_nm.mean(axis=0)
    scale = max(float(np.abs(xy_nm - centre).max()), 1.0)
    empty = Polynomial(degree, np.zeros((terms_of(degree), 2)), centre, scale)
    coefficients = np.linalg.lstsq(empty.terms(xy_nm), to_nm, rcond=None)[0]
    return Polynomial(degree, np.asarray(coefficients, dtype=np.float64), centre, scale)


def mutual_pairs(
    predicted_nm: FloatArray, first: Cloud, second: Cloud, gate_nm: float
) -> tuple[Indices, Indices]:
    """Rows of both clouds that are each other's nearest in their frame, closer than the gate.

    Parameters
    ----------
    predicted_nm : (N, 2)
        Where channel 2 should show the localizations of ``first``.
    first, second
        The channels.
    gate_nm
        Farther apart than this they are no pair.
    """
    # Frames are kept apart along a third axis.
    here = np.column_stack([predicted_nm, first.frame * (4 * gate_nm)])
    there = np.column_stack([second.xy_nm, second.frame * (4 * gate_nm)])
    to_second = np.asarray(cKDTree(there).query(here, distance_upper_bound=gate_nm)[1])
    to_first = np.asarray(cKDTree(here).query(there, distance_upper_bound=gate_nm)[1])
    rows = np.flatnonzero(to_second < len(there))
    rows = rows[to_first[to_second[rows]] == rows]
    return rows, np.asarray(to_second[rows], dtype=np.int64)


def trimmed(pairs: tuple[FloatArray, FloatArray], degree: int, gate_nm: float) -> Pairs | None:
    """The polynomial of the pairs within 3.7 robust standard deviations of it; ``first`` says which these are.

    Returns
    -------
    None where no more are left than the polynomial has coefficients.
    """
    xy, to = pairs
    kept = np.ones(len(xy), bool)
    fitted, limit = None, gate_nm
    for _ in range(_CYCLES):
        if kept.sum() <= terms_of(degree):
            return None
        fitted = fit_polynomial(xy[kept], to[kept], degree)
        away = np.hypot(*(fitted(xy) - to).T)
        # The median of a Rayleigh distribution is sigma sqrt(2 log 2); the fit took its part of the freedom.
        freedom = max(1.0 - terms_of(degree) / kept.sum(), 0.1)
        sigma = float(np.median(away)) / math.sqrt(2 * math.log(2) * freedom)
        limit = min(max(_GATE_SIGMAS * sigma, _LEAST_GATE_NM), gate_nm)
        again = away <= limit
        if (again == kept).all():
            break
        kept = again
    assert fitted is not None
    rows = np.flatnonzero(kept)
    return Pairs(rows, rows, fitted, limit) if len(rows) > terms_of(degree) else None


def settle(
    first: Cloud, second: Cloud, predicted_nm: FloatArray, *, degree: int, gate_nm: float
) -> Pairs | None:
    """Match, fit a polynomial, and match again until the pairs stay.

    Parameters
    ----------
    first, second
        The channels.
    predicted_nm : (N, 2)
        Where channel 2 should show the localizations of ``first``, before the first fit.
    degree
        Of the polynomial.
    gate_nm
        Of the first matching; it narrows with what is left between the pairs.

    Returns
    -------
    None where no more pairs are left than the polynomial has coefficients.
    """
    found: Pairs | None = None
    for _ in range(_CYCLES):
        i, j = mutual_pairs(predicted_nm, first, second, gate_nm)
        fitted = trimmed((first.xy_nm[i], second.xy_nm[j]), degree, gate_nm)
        if fitted is None:
            return None
        before = found
        found = Pairs(i[fitted.first], j[fitted.second], fitted.map, fitted.gate_nm)
        if before is not None and _same(before, found):
            break
        predicted_nm, gate_nm = found.map(first.xy_nm), min(gate_nm, 3 * found.gate_nm)
    return found


def _same(one: Pairs, other: Pairs) -> bool:
    return np.array_equal(one.first, other.first) and np.array_equal(one.second, other.second)
