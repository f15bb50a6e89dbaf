"""Splines of other programs: one knot a pixel, an odd box, the emitter at its middle knot."""

from math import comb

import numpy as np
from numpy.typing import NDArray

from smlm_bridge._optional import require
from smlm_bridge.calibration import MAX_SPLINE_BOX_PX, Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.psf_formats import Request
from smlm_bridge.psf.cubic_spline import POWERS, CubicSpline

Coefficients = NDArray[np.float32]


def one_knot_a_pixel(calibration: Calibration, request: Request) -> CubicSpline:
    """The calibration's PSF over its heights, with one knot a pixel and the emitter at the middle knot.

    A spline that is so already is taken as it is; all others are rendered and interpolated again.

    Raises
    ------
    InputRejected
        If the box is even or wider than 31 px.
    MissingDependency
        If it must be rendered and torch is not installed.
    """
    spline = calibration.spline
    if spline is not None and spline.samples_per_px == 1 and _is_centred(spline):
        return spline
    box = request.box_px
    if box % 2 == 0 or not 5 <= box <= MAX_SPLINE_BOX_PX:
        raise InputRejected(
            f"a spline of {box} px cannot be written; allowed are odd widths from 5 to {MAX_SPLINE_BOX_PX}."
        )
    low, high = calibration.z_range_nm
    planes = max(4, round((high - low) / request.z_step_nm) + 1)
    z = np.linspace(low, high, planes)
    middle = box / 2 * calibration.optics.pixel_nm
    xyz = np.column_stack([np.full((planes, 2), middle), z])
    return CubicSpline.of_stack(
        _images(calibration, xyz, box),
        pixel_nm=calibration.optics.pixel_nm,
        z_first_nm=low,
        z_step_nm=float(z[1] - z[0]),
    )


def _images(calibration: Calibration, xyz: NDArray[np.float64], box: int) -> NDArray[np.float64]:
    if calibration.psf_kind == "spline":
        assert calibration.spline is not None
        return calibration.spline.images(xyz, (box, box))
    torch = require("torch", extra="train")
    psf = calibration.psf(dtype=torch.float64)
    with torch.no_grad():
        images: NDArray[np.float64] = psf.images(torch.from_numpy(xyz), (box, box)).double().numpy()
    return images


def _is_centred(spline: CubicSpline) -> bool:
    _, rows, columns = spline.coefficients.shape[:3]
    return rows == columns and rows % 2 == 0 and spline.centre == (rows / 2, columns / 2)


def turned_upside_down(spline: CubicSpline) -> Coefficients:
    """(Z, Y, X, 64) coefficients of the same PSF with the planes in the opposite order."""
    # f(1 - t) = sum over p of c_p (1 - t)^p: the binomial theorem gives the powers of t.
    turn = np.array([[comb(p, q) * (-1) ** q for p in range(4)] for q in range(4)], dtype=float)
    parted = spline.coefficients[::-1].reshape(*spline.coefficients.shape[:3], 4, 16)
    turned = np.einsum("qp,zyxpr->zyxqr", turn, parted.astype(float))
    result: Coefficients = turned.reshape(spline.coefficients.shape).astype(np.float32)
    return result


def values_at_knots(coefficients: NDArray[np.floating]) -> NDArray[np.float64]:
    """(Z + 1, Y + 1, X + 1) values of (Z, Y, X, 64) coefficients at the knots."""
    powers = coefficients.astype(float).reshape(*coefficients.shape[:3], 4, 4, 4)
    # The last knot of an axis is the end of its last voxel: all powers of 1.
    for axis in range(3):
        inner = powers.take(0, axis=3)
        last = powers.take([-1], axis=axis).sum(axis=3)
        powers = np.concatenate([inner, last], axis=axis)
    return powers


def checked_coefficients(array: object, what: str, path: object) -> NDArray[np.float64]:
    """The array, if it can hold coefficients: four axes of lengths that make sense, all finite."""
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.dtype.kind not in "iuf":
        raise InputRejected(f"'{path}': {what} is not an array of numbers with four axes.")
    if POWERS not in array.shape or min(array.shape) < 1:
        raise InputRejected(
            f"'{path}': {what} of shape {array.shape} does not hold {POWERS} coefficients a voxel."
        )
    if not np.isfinite(array).all():
        raise InputRejected(f"'{path}': {what} has values that are not finite.")
    return array.astype(np.float64, copy=False)
