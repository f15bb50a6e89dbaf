"""Widths of a bead slice by slice, and the astigmatic law over z (Huang et al. 2008; as ThunderSTORM)."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import erf

from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.gaussian import Gaussian

Floats = NDArray[np.float64]

_LEAST_SLICES = 6
_WIDEST = 3.5  # times the least width: further out a bead is no Gaussian
_LEAST_ANGLE_RAD = math.radians(3)
_NODES = (-math.sqrt(0.15), 0.0, math.sqrt(0.15))
_WEIGHTS = (5 / 18, 8 / 18, 5 / 18)


def slice_widths(volume: Floats, angle_rad: float = 0.0) -> Floats:
    """(Z, 4) widths along x and y and position x, y in pixels of each slice, NaN where no Gaussian fits."""
    found = np.full((len(volume), 4), np.nan)
    for i, image in enumerate(volume):
        fitted = _fit(image, angle_rad)
        if fitted is not None:
            found[i] = fitted[[3, 4, 1, 2]]
    return found


def lens_angle_rad(volume: Floats) -> float:
    """Angle of the astigmatism, -45 to 45 degrees, from the most elliptical slices; 0 below 3 degrees."""
    moments = np.array([_moments(image) for image in volume])
    ellipticity = np.hypot(moments[:, 0] - moments[:, 1], 2 * moments[:, 2]) / moments[:, :2].sum(axis=1)
    best = np.argsort(-np.asarray(ellipticity))[:8]
    # ThunderSTORM's turn: (dx cos - dy sin) has the first width, so the axis lies at minus its angle.
    double = np.exp(4j * 0.5 * np.arctan2(-2 * moments[best, 2], moments[best, 0] - moments[best, 1]))
    angle = float(np.angle((double * ellipticity[best]).sum()) / 4)
    return angle if abs(angle) > _LEAST_ANGLE_RAD else 0.0


def astigmatic_law(z_nm: Floats, widths_nm: Floats, *, angle_rad: float = 0.0) -> tuple[Gaussian, Floats]:
    """The law of widths (Z, 2) over heights (Z,), and which slices it was fitted to.

    Raises
    ------
    InputRejected
        If fewer than 6 slices are sharp enough.
    """
    usable = np.asarray(np.isfinite(widths_nm).all(axis=1))
    least = np.nanmin(np.where(usable[:, None], widths_nm, np.nan), axis=0) if usable.any() else np.zeros(2)
    usable &= (widths_nm < _WIDEST * least).all(axis=1)
    if np.count_nonzero(usable) < _LEAST_SLICES:
        raise InputRejected(
            f"only {np.count_nonzero(usable)} slices look like a Gaussian of any use, {_LEAST_SLICES} are needed: "
            "it is the model of a weak cylindrical lens. Calibrate other PSFs with --psf pupil or spline; of a "
            "cylindrical lens take finer steps about the focus."
        )
    laws = [_law(z_nm[usable], widths_nm[usable, axis]) for axis in (0, 1)]
    sigma, focus, depth, third, fourth = zip(*laws, strict=True)
    return Gaussian(sigma, focus, depth, third, fourth, angle_rad=angle_rad), usable.astype(float)


def _law(z_nm: Floats, width_nm: Floats) -> tuple[float, ...]:
    start = [float(width_nm.min()), float(z_nm[np.argmin(width_nm)]), 400.0, 0.0, 0.05]
    span = float(np.ptp(z_nm))

    def residual(p: Floats) -> Floats:
        t = (z_nm - p[1]) / p[2]
        # Above 3/4 of the square of the third order the growth has no zero: t^2 + a t^3 + b t^4 >= 0.
        fourth = p[4] + p[3] ** 2 / 4
        return np.asarray(p[0] * np.sqrt(1 + t**2 + p[3] * t**3 + fourth * t**4) - width_nm)

    bounds = (
        [1.0, z_nm.min() - span, 20.0, -2.0, 0.0],
        [10 * width_nm.max(), z_nm.max() + span, 50 * span, 2.0, 10.0],
    )
    fitted = least_squares(residual, start, bounds=bounds, x_scale=[100, 100, 100, 0.1, 0.1], loss="soft_l1")
    sigma, focus, depth, third, extra = (float(value) for value in fitted.x)
    return sigma, focus, depth, third, extra + third**2 / 4


def _moments(image: Floats) -> tuple[float, float, float]:
    """Second moments xx, yy, xy about the centroid of the light above a fifth of the peak."""
    weight = np.clip(image - 0.2 * image.max(), 0, None)
    total = max(float(weight.sum()), 1e-12)
    y, x = np.indices(image.shape)
    cx, cy = (weight * x).sum() / total, (weight * y).sum() / total
    dx, dy = x - cx, y - cy
    return tuple(float((weight * a * b).sum() / total) for a, b in ((dx, dx), (dy, dy), (dx, dy)))  # type: ignore[return-value]


def _fit(image: Floats, angle_rad: float) -> Floats | None:
    """Photons, x, y, widths and background of one slice by least squares; None where there is no peak."""
    xx, yy, _ = _moments(image)
    top = float(image.max())
    if not (math.isfinite(top) and top > 0):
        return None
    y, x = np.indices(image.shape)
    weight = np.clip(image - 0.2 * top, 0, None)
    cx, cy = (float((weight * axis).sum() / weight.sum()) for axis in (x, y))
    half = max(image.shape) / 2
    start = [float(np.clip(image, 0, None).sum()), cx, cy, *np.clip(np.sqrt([xx, yy]), 0.5, half - 0.1), 0.0]
    low = [0.0, cx - half, cy - half, 0.3, 0.3, -top]
    high = [np.inf, cx + half, cy + half, half, half, top]
    scale = [max(start[0], 1e-6), 1, 1, 1, 1, top]

    def residual(p: Floats) -> Floats:
        return (_model(image.shape, p, angle_rad) - image).ravel() / top

    fitted = least_squares(residual, start, bounds=(low, high), x_scale=scale, max_nfev=60)
    return np.asarray(fitted.x) if fitted.success else None


def _model(shape: tuple[int, ...], p: Floats, angle_rad: float) -> Floats:
    """A Gaussian integrated over pixels, on a background."""
    rows, columns = np.arange(shape[0]), np.arange(shape[1])
    if not angle_rad:
        factors = []
        for axis, centre, width in ((rows, p[2], p[4]), (columns, p[1], p[3])):
            root = math.sqrt(0.5) / width
            factors.append(0.5 * (erf((axis + 0.5 - centre) * root) - erf((axis - 0.5 - centre) * root)))
        return np.asarray(p[0] * np.outer(*factors) + p[5])
    cosine, sine = math.cos(angle_rad), math.sin(angle_rad)
    total = np.zeros(shape)
    for at_y, weight_y in zip(_NODES, _WEIGHTS, strict=True):
        for at_x, weight_x in zip(_NODES, _WEIGHTS, strict=True):
            dx, dy = columns[None, :] + at_x - p[1], rows[:, None] + at_y - p[2]
            first, second = dx * cosine - dy * sine, dx * sine + dy * cosine
            total += weight_x * weight_y * np.exp(-0.5 * ((first / p[3]) ** 2 + (second / p[4]) ** 2))
    return np.asarray(p[0] / (2 * math.pi * p[3] * p[4]) * total + p[5])
