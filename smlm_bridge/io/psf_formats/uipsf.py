"""uiPSF's results, ``.h5`` (Liu et al. 2024).

Attribute ``params``: the configuration as JSON, lengths in um. ``/res/pupil`` (P, P) is magnitude, phase,
aperture and apodisation in one complex array, rows y, on samples at (k - (P - 1)/2) 2/P; like ours it is
transformed with exp(+i k x) and the focus moves into the sample with exp(-i k_z focus). Slice i of
``/res/I_model`` has its focus at -(i - (Nz - 1)/2) dz: heights rise with the slice. ``/res/zernike_coeff`` [1]
are phases in rad by Noll's index - 1. ``/locres/coeff`` is (64, planes, rows, columns), m = power of dx + 4 of dy
+ 16 of dz, of the sum of a slice.

uiPSF's vectorial amplitude is not ours (no factor sqrt(cos_i) / cos_m of the interface), so the images of an
imported pupil come from our model with its phase and magnitude.
"""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.formats.hdf5 import open_hdf5, subgroup
from smlm_bridge.io.psf_formats import Request, focus_height_nm, heights
from smlm_bridge.io.psf_formats.grids import on_grid
from smlm_bridge.io.psf_formats.knots import checked_coefficients, one_knot_a_pixel, values_at_knots
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.optics.zernike import zernike_basis
from smlm_bridge.psf.cubic_spline import POWERS, CubicSpline

_LARGEST_PUPIL = 2048
_LARGEST_COEFF = 64 * 31 * 31 * 2000
_SAME_PHASE_RAD = 1e-3
_MOST_MODES = 400


def read(path: Path, request: Request) -> Calibration:
    """Read the pupil of one channel, or its spline where there is no pupil.

    Raises
    ------
    InputRejected
        If the file is damaged, has several channels, or lacks a field.
    """
    with open_hdf5(path, "a result of uiPSF") as file:
        params = _params(path, file)
        optics = request.optics(_optics(path, params))
        provenance = {"made_by": request.made_by, "source": path.name, "format": "uiPSF .h5"}
        res = subgroup(path, file, "res")
        if "channel0" in res:
            raise InputRejected(
                f"'{path}' holds several channels; one is read. Learn each alone, convert and join "
                "(smlm-bridge join)."
            )
        pupil = _pupil(path, res)
        if pupil is None:
            return _of_spline(path, file, optics, params, request)
        sigma = _array(path, res, "sigma", 1, 16) if "sigma" in res else np.zeros(2)
        return Calibration(
            optics,
            pupil,
            camera=request.camera,
            z_range_nm=heights(optics, request),
            blur_nm=float(np.mean(np.abs(sigma))) * optics.pixel_nm,
            provenance=provenance,
        )


def _params(path: Path, file: h5py.File) -> dict[str, Any]:
    text = file.attrs.get("params")
    try:
        params = json.loads(text) if isinstance(text, str | bytes) else None
    except ValueError as error:
        raise InputRejected(f"'{path}': the attribute 'params' is not JSON: {error}.") from error
    if not isinstance(params, dict):
        raise InputRejected(f"'{path}' has no attribute 'params': is it a result of uiPSF?")
    return params


def _optics(path: Path, params: dict[str, Any]) -> dict[str, Any]:
    kind = str(params.get("PSFtype", "vector"))
    return {
        "numerical_aperture": _number(path, params, "option.imaging.NA"),
        "immersion_index": _number(path, params, "option.imaging.RI.imm"),
        "sample_index": _number(path, params, "option.imaging.RI.med"),
        "wavelength_nm": 1000 * _number(path, params, "option.imaging.emission_wavelength"),
        "pixel_nm": 1000 * _number(path, params, "pixel_size.x"),
        "model": "vectorial" if "vector" in kind else "scalar",
    }


def _number(path: Path, params: dict[str, Any], name: str) -> float:
    value: Any = params
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise InputRejected(f"'{path}': params lack the number {name}.")
    return float(value)


def _array(path: Path, group: h5py.Group, name: str, ndim: int, largest: int) -> NDArray[Any]:
    link = group.get(name, getlink=True)
    dataset = group[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise InputRejected(f"'{path}': {group.name}/{name} is missing or no array of this file.")
    if dataset.ndim != ndim or dataset.size > largest or dataset.dtype.kind not in "iufc":
        raise InputRejected(
            f"'{path}': {group.name}/{name} of shape {dataset.shape} is not {ndim}-D or too large."
        )
    values: NDArray[Any] = dataset[()]
    if not np.isfinite(values).all():
        raise InputRejected(f"'{path}': {group.name}/{name} has values that are not finite.")
    return values


def _pupil(path: Path, res: h5py.Group) -> Pupil | None:
    if "pupil" not in res:
        return None
    field = _array(path, res, "pupil", 2, _LARGEST_PUPIL**2)
    size = field.shape[0]
    if field.shape != (size, size) or size < 8 or not np.abs(field).any():
        raise InputRejected(f"'{path}': /res/pupil of shape {field.shape} is no square pupil with light.")
    amplitude = np.abs(field).astype(float)
    own = isinstance(res.get("apodization", getlink=True), h5py.HardLink)
    if own and getattr(res["apodization"], "ndim", 0) == 2:  # without apodisation it is the number 1
        factor = np.abs(_array(path, res, "apodization", 2, _LARGEST_PUPIL**2))
        if factor.shape != field.shape:
            raise InputRejected(f"'{path}': /res/apodization of shape {factor.shape} is not the pupil's.")
        amplitude = np.divide(amplitude, factor, out=np.zeros_like(amplitude), where=factor > 0)
    phase = np.where(amplitude > 0, np.angle(field), 0.0)
    rho = (np.arange(size) - (size - 1) / 2) * 2 / size
    inside = rho[:, None] ** 2 + rho**2 < 1
    # uiPSF cuts at the edge; ours is soft there and wants the samples beyond as well.
    amplitude[~inside] = np.median(amplitude[inside])
    coefficients = _coefficients(path, res, field, inside, rho)
    if coefficients is not None:
        return Pupil(np.zeros_like(phase), amplitude, 2 / size, coefficients)
    return Pupil(phase, amplitude, 2 / size)


def _coefficients(
    path: Path, res: h5py.Group, field: NDArray[Any], inside: NDArray[np.bool_], rho: NDArray[np.float64]
) -> dict[int, float] | None:
    """Zernikes by Noll's index, where they are all of the phase."""
    if "zernike_coeff" not in res:
        return None
    both = _array(path, res, "zernike_coeff", 2, 2 * _MOST_MODES)
    if both.shape[0] != 2:
        raise InputRejected(f"'{path}': /res/zernike_coeff of shape {both.shape} is not (2, modes).")
    values = both[1].real.astype(float)
    y, x = np.meshgrid(rho, rho, indexing="ij")
    phase = np.tensordot(values, zernike_basis(list(range(1, len(values) + 1)), x, y), axes=1)
    seen = inside & (np.abs(field) > 0)
    apart = np.angle(field * np.exp(-1j * phase))[seen]
    if np.abs(np.angle(np.exp(1j * (apart - np.median(apart))))).max() > _SAME_PHASE_RAD:
        return None
    return {k + 1: float(value) for k, value in enumerate(values) if value}


def _of_spline(
    path: Path, file: h5py.File, optics: Optics, params: dict[str, Any], request: Request
) -> Calibration:
    locres = subgroup(path, file, "locres")
    coeff = checked_coefficients(_array(path, locres, "coeff", 4, _LARGEST_COEFF), "/locres/coeff", path)
    if coeff.shape[0] != POWERS:
        raise InputRejected(f"'{path}': /locres/coeff of shape {coeff.shape} is not ({POWERS}, z, y, x).")
    step = 1000 * _number(path, params, "pixel_size.z") * optics.sample_index / optics.immersion_index
    coefficients = coeff.transpose(1, 2, 3, 0)
    planes, rows, columns = coefficients.shape[:3]
    # The emitter of uiPSF stands in the middle of the box and in focus at the middle plane.
    spline = CubicSpline(
        coefficients.astype(np.float32),
        (rows / 2, columns / 2),
        focus_height_nm(optics) - planes / 2 * step,
        step,
        optics.pixel_nm,
    )
    low, high = spline.z_range_nm
    return Calibration(
        optics,
        camera=request.camera,
        z_range_nm=request.z_range_nm or (low, high),
        provenance={"made_by": request.made_by, "source": path.name, "format": "uiPSF .h5, spline"},
        spline=spline,
    )


def write(path: Path, calibration: Calibration, request: Request) -> list[str]:
    """Write model images and their spline, and the pupil where there is one."""
    optics = calibration.optics
    spline = one_knot_a_pixel(calibration, request)
    ratio = optics.sample_index / optics.immersion_index
    box = spline.coefficients.shape[2] + 1
    images = values_at_knots(spline.coefficients).astype(np.float32)
    lost = [_shift(spline, calibration)] if abs(_offset(spline, calibration)) > 1 else []
    with h5py.File(path, "w") as file:
        file.attrs["params"] = json.dumps(_configuration(calibration, spline.z_step_nm / ratio, box))
        res, locres = file.create_group("res"), file.create_group("locres")
        res["I_model"] = images
        res["I_model_reverse"] = images[::-1]
        res["offset"] = np.float32(images.min())
        res["sigma"] = np.full(2, calibration.blur_nm / optics.pixel_nm)
        coeff = spline.coefficients.transpose(3, 0, 1, 2)
        locres.create_dataset("coeff", data=coeff, compression="gzip", shuffle=True)
        if calibration.pupil is not None:
            _write_pupil(res, calibration.pupil)
            lost += _lost(optics)
    return lost


def _offset(spline: CubicSpline, calibration: Calibration) -> float:
    low, high = spline.z_range_nm
    return (low + high) / 2 - focus_height_nm(calibration.optics)


def _shift(spline: CubicSpline, calibration: Calibration) -> str:
    return (
        f"uiPSF's middle slice is its focus; in this spline it is z = {sum(spline.z_range_nm) / 2:.0f} nm, "
        f"{_offset(spline, calibration):+.0f} nm from the focus."
    )


def _lost(optics: Optics) -> list[str]:
    focus = f"uiPSF takes a focus of 0 for its pupil; here it is {optics.focus_nm:g} nm."
    lost = [focus] if optics.focus_nm else []
    if optics.model == "vectorial":
        lost.append("uiPSF's vectorial amplitude differs from ours; /res/I_model are our images.")
    if optics.analyser_deg is not None:
        lost.append("uiPSF has no analyser; its pupil is left without.")
    return lost


def _configuration(calibration: Calibration, dz_nm: float, box: int) -> dict[str, Any]:
    optics = calibration.optics
    kind = {"pupil": "zernike", "spline": "voxel", "gaussian": "voxel"}[calibration.psf_kind]
    if kind == "zernike":
        assert calibration.pupil is not None
        kind = "zernike" if not calibration.pupil.phase_rad.any() else "pupil"
        kind += "_vector" if optics.model == "vectorial" else ""
    pixel_um = optics.pixel_nm / 1000
    imaging = {
        "NA": optics.numerical_aperture,
        "emission_wavelength": optics.wavelength_nm / 1000,
        "RI": {
            "imm": optics.immersion_index,
            "med": optics.sample_index,
            "cov": optics.coverslip_index or optics.immersion_index,
        },
    }
    return {
        "PSFtype": kind,
        "channeltype": "single",
        "pixel_size": {"x": pixel_um, "y": pixel_um, "z": dz_nm / 1000},
        "roi": {"roi_size": [box, box]},
        "option": {"imaging": imaging, "model": {"bin": 1, "with_apoid": False}},
    }


def _write_pupil(res: h5py.Group, pupil: Pupil) -> None:
    size = max(16, round(2 / pupil.sample_pitch))
    rho = (np.arange(size) - (size - 1) / 2) * 2 / size
    phase, amplitude = on_grid(pupil, rho)
    aperture = rho[:, None] ** 2 + rho**2 < 1
    res["pupil"] = (amplitude * np.exp(1j * phase) * aperture).astype(np.complex64)
    res["apodization"] = np.ones((size, size), dtype=np.complex64)
    count = max([*pupil.zernike_rad, 1])
    values = np.zeros((2, count), dtype=np.float32)
    values[0, 0] = 1.0
    for noll, value in pupil.zernike_rad.items():
        values[1, noll - 1] = value
    res["zernike_coeff"] = values
