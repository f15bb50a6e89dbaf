"""SMAP's spline calibrations, ``*_3dcal.mat`` (Li et al. 2018; Ries 2020).

``SXY.cspline.coeff{1}`` is (rows, columns, planes, 64): the first index is the image's row, y, and
f = sum over m of coeff[m] dy^(m % 4) dx^(m // 4 % 4) dz^(m // 16). ``x0`` and ``z0`` count from 1. Heights fall
with the plane: z = -(plane - z0) dz; ``dz`` is the travel of the objective, which SMAP multiplies by its
refractive index mismatch.

Ours are written with dz as the step of the emitter's height (no mismatch is left to correct), and say so in a
variable ``smlm_bridge``; other files get the paraxial ratio of sample to immersion index.
"""

from pathlib import Path
from typing import Any

import numpy as np

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.formats.mat5 import read_mat
from smlm_bridge.io.psf_formats import Request, focus_height_nm
from smlm_bridge.io.psf_formats.knots import (
    checked_coefficients,
    one_knot_a_pixel,
    turned_upside_down,
    values_at_knots,
)
from smlm_bridge.psf.cubic_spline import POWERS, CubicSpline


def read(path: Path, request: Request) -> Calibration:
    """Read the first region of one channel.

    Raises
    ------
    InputRejected
        If the file is damaged, has no spline, two channels, or values that make no sense.
    """
    content = read_mat(path)
    own = content.get("smlm_bridge")
    spline, step_nm, z0 = _spline(path, content)
    optics = request.optics({})
    if isinstance(own, dict):
        reference = _number(path, own, "z_at_z0_nm")
    else:
        reference = focus_height_nm(optics)
        step_nm *= optics.sample_index / optics.immersion_index
    planes = spline.shape[0]
    # Their planes from the highest to the lowest: ours are turned.
    rising = turned_upside_down(CubicSpline(spline, (0, 0), 0.0, 1.0, optics.pixel_nm))
    centre = _number(path, _cspline(path, content), "x0", (spline.shape[1] + 2) / 2) - 1
    result = CubicSpline(
        rising, (centre, centre), reference - (planes - (z0 - 1)) * step_nm, step_nm, optics.pixel_nm
    )
    low, high = result.z_range_nm
    return Calibration(
        optics,
        camera=request.camera,
        z_range_nm=request.z_range_nm or (low, high),
        provenance={"made_by": request.made_by, "source": path.name, "format": "SMAP _3dcal.mat"},
        spline=result,
    )


def _spline(
    path: Path, content: dict[str, Any]
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], float, float]:
    """(Z, Y, X, 64) coefficients in the order of the file, step and plane of z = 0."""
    cspline = _cspline(path, content)
    coeff = cspline.get("coeff")
    if isinstance(coeff, list):
        if len(coeff) > 1:
            raise InputRejected(
                f"'{path}' holds {len(coeff)} channels; one is read. Save each channel's calibration, convert "
                "both and join them (smlm-bridge join)."
            )
        coeff = coeff[0] if coeff else None
    array = checked_coefficients(coeff, "SXY.cspline.coeff", path)
    if array.shape[3] != POWERS:
        raise InputRejected(f"'{path}': SXY.cspline.coeff of shape {array.shape} is not (x, y, z, {POWERS}).")
    parted = array.reshape(*array.shape[:3], 4, 4, 4)  # rows, columns, planes, powers of dz, dx, dy
    ours = parted.transpose(2, 0, 1, 3, 5, 4).reshape(array.shape[2], *array.shape[:2], POWERS)
    step = _number(path, cspline, "dz")
    if not 0.5 <= step <= 2000:
        hint = " It looks like micrometres." if 0.0005 <= step <= 2 else ""
        raise InputRejected(f"'{path}': dz = {step:g} nm is no step between planes.{hint}")
    z0 = _number(path, cspline, "z0")
    if not -10 * array.shape[2] <= z0 <= 11 * array.shape[2]:
        raise InputRejected(f"'{path}': z0 = {z0:g} is no plane of {array.shape[2] + 1}.")
    return ours.astype(np.float32), step, z0


def _cspline(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The struct of the spline: in SXY, in its first region, or at the top of a stand-alone file."""
    holder = content.get("SXY", content)
    regions = holder if isinstance(holder, list) else [holder]
    if len(regions) > 1:
        raise InputRejected(
            f"'{path}' holds {len(regions)} regions or channels; one is read. Calibrate the whole field at once."
        )
    cspline = regions[0].get("cspline") if regions and isinstance(regions[0], dict) else None
    if not isinstance(cspline, dict):
        raise InputRejected(f"'{path}' has no SXY.cspline: is it a calibration of SMAP (_3dcal.mat)?")
    return cspline


def _number(path: Path, struct: dict[str, Any], name: str, default: float | None = None) -> float:
    value = struct.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, np.ndarray) or value.size != 1 or not np.isfinite(value).all():
        raise InputRejected(f"'{path}': {name} is missing or not one number.")
    return float(value.item())


def write(path: Path, calibration: Calibration, request: Request) -> list[str]:
    """Write a spline of the calibration's heights; see the module for the meaning of dz."""
    from scipy.io import savemat

    spline = one_knot_a_pixel(calibration, request)
    falling = turned_upside_down(spline)
    planes, rows, columns = falling.shape[:3]
    parted = falling.reshape(planes, rows, columns, 4, 4, 4)  # powers of dz, dy, dx
    coeff = np.empty((1, 1), dtype=object)
    coeff[0, 0] = parted.transpose(1, 2, 0, 3, 5, 4).reshape(rows, columns, planes, POWERS)
    z0 = planes // 2 + 1
    z_at_z0_nm = spline.z_first_nm + (planes - (z0 - 1)) * spline.z_step_nm
    psf = np.empty((1, 1), dtype=object)
    psf[0, 0] = values_at_knots(falling).transpose(1, 2, 0).astype(np.float32)
    cspline = {
        "coeff": coeff, "dz": spline.z_step_nm, "z0": float(z0), "x0": rows / 2 + 1, "mirror": 0.0,
        "normf": 1.0, "isspline": True,
    }  # fmt: skip
    infinite = np.array([[-np.inf, np.inf]])
    sxy = {
        "cspline": cspline, "PSF": psf, "Xrange": infinite, "Yrange": infinite, "Xrangeall": infinite,
        "Yrangeall": infinite, "posind": np.array([[1.0, 1.0]]), "EMon": float(calibration.camera.em_gain > 1),
        "gausscal": np.zeros((0, 0)), "cspline_all": np.zeros((0, 0)), "gauss_sx2_sy2": np.zeros((0, 0)),
        "gauss_zfit": np.zeros((0, 0)),
    }  # fmt: skip
    own = {"z_at_z0_nm": z_at_z0_nm, "made_by": request.made_by, "calibration_hash": calibration.hash}
    parameters = {"dz": spline.z_step_nm, "smlm_bridge": request.made_by}
    savemat(path, {"SXY": sxy, "parameters": parameters, "smlm_bridge": own}, do_compression=True)
    return [
        f"SMAP counts z from plane {z0}, which is z = {z_at_z0_nm:.0f} nm here; set its refractive index mismatch "
        "to 1.",
    ]
