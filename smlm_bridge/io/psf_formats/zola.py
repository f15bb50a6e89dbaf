"""ZOLA-3D's calibrations, ``.json`` (Aristov et al. 2018).

Lengths in um, phases in rad. The first index of ZOLA's images and pupils is the column, x; the angle of its
Zernikes is atan2(row, column), they are in the order of OSA/ANSI, 1 at the edge where ours have RMS 1. Its model
is scalar, samples pixels at their centres, takes water of 1.33 until told otherwise and, like ours, transforms
with exp(+i k x) and moves the focus into the sample with exp(-i k_z focus).
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.psf_formats import Request, heights
from smlm_bridge.io.psf_formats.grids import on_grid
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.optics.zernike import noll_to_nm

SAMPLE_INDEX = 1.33
_LARGEST_FILE = 50_000_000
_MOST_ZERNIKES = 500
_SIZE = 128  # of the Fourier transform in ZOLA, a power of two
_SAMPLES = 128  # of our pupil where the file has Zernikes


def read(path: Path, request: Request) -> Calibration:
    """Read a calibration of one bead or several.

    Raises
    ------
    InputRejected
        If the file is no JSON, lacks a key, or has a value that is not finite or absurd.
    """
    content = _load(path)
    pixel_um = _number(path, content, "sizePix", 0.005, 2.0)
    apodised = content.get("withApoFactor", False)
    optics = request.optics(
        {
            "numerical_aperture": _number(path, content, "NA", 0.05, 2.0),
            "immersion_index": _number(path, content, "index", 1.0, 2.5),
            "sample_index": SAMPLE_INDEX,
            "wavelength_nm": 1000 * _number(path, content, "wavelength", 0.2, 2.0),
            "pixel_nm": 1000 * pixel_um,
            "model": "scalar",
            "pixel_integration": False,
            "apodisation": "aplanatic" if apodised is True else None,
        }
    )
    is_zernike = content.get("zernikedPSF")
    if not isinstance(is_zernike, bool):
        raise InputRejected(f"'{path}': zernikedPSF is missing or neither true nor false.")
    pupil = _of_zernikes(path, content) if is_zernike else _of_pixels(path, content, optics)
    return Calibration(
        optics,
        pupil,
        camera=request.camera,
        z_range_nm=heights(optics, request),
        blur_nm=1000 * pixel_um * _number(path, content, "sigmaGaussianKernel", 0.0, 20.0),
        provenance={
            "made_by": request.made_by, "source": path.name, "format": "ZOLA-3D JSON",
            "z_step_nm": 1000 * _number(path, content, "zstep", 0.0, 10.0),
        },
    )  # fmt: skip


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputRejected(
                f"'{path}' is larger than {_LARGEST_FILE // 10**6} MB; no calibration of ZOLA is."
            )
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputRejected(f"'{path}' cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputRejected):
            raise
        raise InputRejected(f"'{path}' is not JSON, so no calibration of ZOLA: {error}.") from error
    if not isinstance(content, dict):
        raise InputRejected(f"'{path}' is no JSON object, so no calibration of ZOLA.")
    return content


def _number(path: Path, content: dict[str, Any], name: str, low: float, high: float) -> float:
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputRejected(f"'{path}': {name} is missing or not a number.")
    if not low <= value <= high:
        hint = " Lengths of ZOLA are in um." if low <= value / 1000 <= high else ""
        raise InputRejected(f"'{path}': {name} = {value:g} is outside {low:g} to {high:g}.{hint}")
    return float(value)


def _vector(path: Path, content: dict[str, Any], name: str, most: int) -> NDArray[np.float64]:
    try:
        values = np.asarray(content.get(name), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputRejected(f"'{path}': {name} is not a list of numbers.") from error
    if values.ndim != 1 or not 0 < values.size <= most or not np.isfinite(values).all():
        raise InputRejected(f"'{path}': {name} is missing or not a list of 1 to {most} finite numbers.")
    return values


def _of_zernikes(path: Path, content: dict[str, Any]) -> Pupil:
    values = _vector(path, content, "zernike", _MOST_ZERNIKES)
    modes = osa_modes(len(values))
    for name, column in (("radial", 0), ("azimuthal", 1)):
        if name in content:
            given = _vector(path, content, name, _MOST_ZERNIKES)
            if not np.array_equal(given, [mode[column] for mode in modes]):
                raise InputRejected(
                    f"'{path}': {name} is not the order n, m = -n to n by 2 that ZOLA writes."
                )
    nolls = noll_indices(len(values))
    coefficients = {
        nolls[mode]: float(value) / edge_value(*mode)
        for mode, value in zip(modes, values, strict=True)
        if value
    }
    return Pupil.flat(_SAMPLES, dict(sorted(coefficients.items())))


def _of_pixels(path: Path, content: dict[str, Any], optics: Optics) -> Pupil:
    size = round(_number(path, content, "sizeFFT", 8, 4096))
    size = 2 ** math.ceil(math.log2(size))
    pitch = _pitch(optics, size)
    inside, half = _disk(size, pitch)
    values = _vector(path, content, "pixelPhaseValue", size * size)
    if len(values) != np.count_nonzero(inside):
        raise InputRejected(
            f"'{path}' has {len(values)} phases; a pupil of this NA, wavelength and pixel has "
            f"{np.count_nonzero(inside)} samples."
        )
    phase = np.zeros((2 * half, 2 * half))
    phase[inside] = values
    return Pupil(phase.T, np.ones_like(phase), pitch)  # theirs is (x, y)


def _pitch(optics: Optics, size: int) -> float:
    """Spacing of ZOLA's samples in units of the pupil radius."""
    return optics.wavelength_nm / (optics.numerical_aperture * size * optics.pixel_nm)


def _disk(size: int, pitch: float) -> tuple[NDArray[np.bool_], int]:
    """Which samples of the square about the pupil ZOLA keeps, and half the side of the square."""
    half = min(size // 2, math.ceil(1 / pitch) + 1)
    rho = (np.arange(2 * half) - half + 0.5) * pitch
    return rho[:, None] ** 2 + rho**2 <= 1, half


def write(path: Path, calibration: Calibration, request: Request) -> list[str]:
    """Write the pupil: Zernikes where it has nothing else, phases pixel by pixel otherwise."""
    pupil, optics = calibration.pupil, calibration.optics
    if pupil is None:
        raise InputRejected(
            f"a calibration of a {calibration.psf_kind} has no phase for ZOLA. Calibrate with --psf pupil."
        )
    content: dict[str, Any] = {
        "zstep": request.z_step_nm / 1000,
        "sizeFFT": _SIZE,
        "sizePix": optics.pixel_nm / 1000,
        "NA": optics.numerical_aperture,
        "index": optics.immersion_index,
        "wavelength": optics.wavelength_nm / 1000,
        "sigmaGaussianKernel": calibration.blur_nm / optics.pixel_nm,
        "zernikedPSF": not pupil.phase_rad.any(),
        "withApoFactor": optics.apodisation == "aplanatic",
    }
    if content["zernikedPSF"]:
        content |= _zernikes(pupil)
    else:
        pitch = _pitch(optics, _SIZE)
        inside, half = _disk(_SIZE, pitch)
        phase, _ = on_grid(pupil, np.asarray((np.arange(2 * half) - half + 0.5) * pitch))
        content["pixelPhaseValue"] = phase.T[inside].tolist()
    # ZOLA looks for its keys as text: no spaces.
    path.write_text(json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n", encoding="ascii")
    return _lost(calibration, pupil)


def _lost(calibration: Calibration, pupil: Pupil) -> list[str]:
    optics = calibration.optics
    lost = [f"ZOLA takes a focus of 0; here it is {optics.focus_nm:g} nm."] if optics.focus_nm else []
    if optics.model != "scalar":
        lost.append("ZOLA's model is scalar, this calibration is vectorial: images differ.")
    if np.ptp(pupil.amplitude) > 1e-6 * pupil.amplitude.max():
        lost.append("ZOLA has no amplitude; it is left out.")
    if optics.analyser_deg is not None:
        lost.append("ZOLA has no analyser; it is left out.")
    return lost


def _zernikes(pupil: Pupil) -> dict[str, Any]:
    nolls = noll_indices(_MOST_ZERNIKES)
    highest = max((noll_to_nm(j)[0] for j in pupil.zernike_rad), default=1)
    modes = osa_modes((highest + 1) * (highest + 2) // 2)
    values = [pupil.zernike_rad.get(nolls[mode], 0.0) * edge_value(*mode) for mode in modes]
    return {"azimuthal": [m for _, m in modes], "radial": [n for n, _ in modes], "zernike": values}


def osa_modes(count: int) -> list[tuple[int, int]]:
    """(n, m) of the first modes in the order of OSA/ANSI."""
    modes = ((n, m) for n in range(count) for m in range(-n, n + 1, 2))
    return [mode for mode, _ in zip(modes, range(count), strict=False)]


def noll_indices(count: int) -> dict[tuple[int, int], int]:
    """Noll's index of (n, m) for at least so many modes."""
    highest = osa_modes(count)[-1][0]
    return {noll_to_nm(j): j for j in range(1, (highest + 1) * (highest + 2) // 2 + 1)}


def edge_value(n: int, m: int) -> float:
    """Largest value of Noll's polynomial at the edge of the pupil, where ZOLA's is 1."""
    return math.sqrt(n + 1) if m == 0 else math.sqrt(2 * (n + 1))
