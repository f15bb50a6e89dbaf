"""The setup file (TOML): microscope, designed mask and camera of an experiment."""

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.formats.mat5 import read_mat
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil

FloatArray = NDArray[np.float64]

MAX_PHASE_RAD = 200.0  # an unwrapped mask reaches some 30 rad; degrees and levels reach 255 and beyond


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class _OpticsTable(_Table):
    numerical_aperture: float
    immersion_index: float
    sample_index: float
    wavelength_nm: float
    pixel_nm: float
    focus_nm: float = 0.0
    model: Literal["vectorial", "scalar"] = "vectorial"
    supercritical: bool = True
    analyser_deg: float | None = None
    coverslip_index: float | None = None
    pixel_integration: bool = True
    apodisation: Literal["none", "aplanatic", "fresnel"] | None = None
    coverslip_thickness_nm: float | None = None
    design_coverslip_nm: float | None = None
    design_coverslip_index: float | None = None
    design_immersion_index: float | None = None
    working_distance_nm: float | None = None
    field_scale: float = 1.0
    field_centre_nm: tuple[float, float] = (0.0, 0.0)


class _MaskTable(_Table):
    file: str
    variable: str | None = None
    slm_pixel_um: float
    relay_focal_mm: float
    magnification: float


class _CameraTable(_Table):
    offset: float | str = 0.0
    e_per_adu: float | str = 1.0
    read_noise_e: float | str = 0.0
    quantum_efficiency: float = 1.0
    em_gain: float = 1.0


_TABLES: Mapping[str, type[_Table]] = {"optics": _OpticsTable, "mask": _MaskTable, "camera": _CameraTable}
#: Keys of ``[optics]``.
OPTICS_KEYS = tuple(_OpticsTable.model_fields)
_CAMERA_MAPS = ("offset", "e_per_adu", "read_noise_e")
_SPOKEN = {
    "na": "numerical_aperture",
    "lambda": "wavelength_nm",
    "emission_nm": "wavelength_nm",
    "pixel_size_nm": "pixel_nm",
    "n_oil": "immersion_index",
    "n_water": "sample_index",
    "nfp": "focus_nm",
    "baseline": "offset",
    "gain": "e_per_adu",
    "qe": "quantum_efficiency",
    "polariser_deg": "analyser_deg",
}


@dataclass(frozen=True)
class MaskSpec:
    """A designed phase mask in the pupil: a file of phases and the relay that images the pupil on its grid.

    Parameters
    ----------
    file
        ``.mat`` or TIFF with phases in rad.
    slm_pixel_um
        Pixel of the grid.
    relay_focal_mm
        Focal length of the relay lens.
    magnification
        Of objective and tube lens.
    variable
        Name of the array in a ``.mat`` file with several; None takes the only one.
    """

    file: Path
    slm_pixel_um: float
    relay_focal_mm: float
    magnification: float
    variable: str | None = None

    def __post_init__(self) -> None:
        """Refuse slips of units."""
        _check_scale("slm_pixel_um", self.slm_pixel_um, 1.0, 500.0, {1e3: "mm", 1e6: "m", 1e-3: "nm"})
        _check_scale("relay_focal_mm", self.relay_focal_mm, 5.0, 2000.0, {1e3: "m", 10.0: "cm", 1e-3: "um"})
        _check_scale("magnification", self.magnification, 2.0, 1000.0, {})

    def pupil_diameter_px(self, numerical_aperture: float) -> float:
        """Diameter of the pupil in pixels of the grid.

        2 f NA / sqrt(M^2 - NA^2) / pixel, from Abbe's sine condition.
        """
        sine = numerical_aperture / math.sqrt(self.magnification**2 - numerical_aperture**2)
        return 2.0 * self.relay_focal_mm * 1000.0 * sine / self.slm_pixel_um


@dataclass(frozen=True)
class Setup:
    """What a setup file and the options beside it say; None where they say nothing."""

    optics: Optics | None = None
    mask: MaskSpec | None = None
    camera: Camera | None = None


def load_setup(
    path: Path | None, overrides: Mapping[str, object] | None = None, *, camera: Camera | None = None
) -> Setup:
    """Read a setup file; options win over its values.

    Parameters
    ----------
    path
        TOML with the tables ``[optics]``, ``[mask]`` and ``[camera]``; None for options alone. Paths in it
        are relative to its folder.
    overrides
        Key (the names of the file are unique) to value; None is no value. Paths are relative to the current
        folder.
    camera
        Known already (from a calibration): what neither file nor options say stays as it is there.

    Raises
    ------
    InputRejected
        If the file is missing or no TOML, a key is unknown or missing, or a value is not allowed; the message
        names the nearest key and the likely slip of units.
    """
    tables = {} if path is None else _read_toml(path)
    folder = Path() if path is None else path.parent
    where = "the options" if path is None else f"'{path}'"
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    checked: dict[str, dict[str, Any]] = {}
    for name, table in _TABLES.items():
        values = {key: _from_folder(key, value, folder) for key, value in tables.get(name, {}).items()}
        values |= {key: value for key, value in given.items() if key in table.model_fields}
        if values:
            checked[name] = _check_table(name, values, where)
    unknown = set(given) - {key for table in _TABLES.values() for key in table.model_fields}
    if unknown:
        _reject_key(sorted(unknown)[0], None, "the options")
    mask = checked.get("mask")
    return Setup(
        optics=Optics(**checked["optics"]) if "optics" in checked else None,
        mask=MaskSpec(**{**mask, "file": Path(mask["file"])}) if mask else None,
        camera=_camera(checked["camera"], camera or Camera()) if "camera" in checked else camera,
    )


def _read_toml(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputRejected(
            f"the setup '{path}' cannot be read ({error.strerror}). Give a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputRejected(f"the setup '{path}' is not TOML: {error}.") from error
    for name, table in tables.items():
        if name in _TABLES and isinstance(table, dict):
            continue
        if isinstance(table, dict):
            near = difflib.get_close_matches(name, _TABLES, n=1)
            hint = f" Did you mean [{near[0]}]?" if near else ""
            raise InputRejected(
                f"'{path}' has an unknown table [{name}]; allowed are {_listed(_TABLES)}.{hint}"
            )
        if name in _TABLES:
            raise InputRejected(f"'{path}': {name} must be a table [{name}], got {table!r}.")
        _reject_key(name, None, f"'{path}' outside any table")
    return tables


def _from_folder(key: str, value: object, folder: Path) -> object:
    """Paths in the file are relative to the file."""
    if key in ("file", *_CAMERA_MAPS) and isinstance(value, str):
        return str(folder / value)
    return value


def _check_table(name: str, values: dict[str, Any], where: str) -> dict[str, Any]:
    table = _TABLES[name]
    for key in values:
        if key not in table.model_fields:
            _reject_key(key, name, where, values[key])
    try:
        return table.model_validate(values).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "missing":
            missing = [str(item["loc"][0]) for item in error.errors() if item["type"] == "missing"]
            raise InputRejected(
                f"[{name}] of {where} lacks {', '.join(missing)}. Add to the setup, or give as option: "
                f"{' '.join(_option(key) for key in missing)}."
            ) from error
        allowed = "a number or the path of a TIFF" if name == "camera" and key != "em_gain" else first["msg"]
        raise InputRejected(f"[{name}] {key} = {values[key]!r} in {where}: {allowed}.") from error


def _reject_key(key: str, table: str | None, where: str, value: object = None) -> NoReturn:
    """Name the nearest valid key; a wrong unit or a wrong table is said as such."""
    homes = {known: name for name, fields in _TABLES.items() for known in fields.model_fields}
    own = [known for known, home in homes.items() if table in (None, home)]
    spoken = _SPOKEN.get(key.lower())
    near = [spoken] if spoken else difflib.get_close_matches(key.lower(), own, n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(key.lower(), homes, n=1, cutoff=0.8)
    hint = ""
    if near:
        known = near[0]
        hint = f" Did you mean {known} in [{homes[known]}]?"
        factors = {"um": 1e3, "mm": 1e6, "m": 1e9, "angstrom": 0.1}
        stem, _, unit = key.rpartition("_")
        if known == f"{stem}_nm" and unit in factors and isinstance(value, int | float):
            hint = f" Lengths are in nm: {known} = {value * factors[unit]:g}."
    place = f"[{table}] of {where}" if table else where
    raise InputRejected(f"unknown key '{key}' in {place}.{hint} Allowed: {', '.join(own)}.")


def _camera(values: dict[str, Any], known: Camera) -> Camera:
    maps = {key: _number_or_map(key, value) for key, value in values.items() if key in _CAMERA_MAPS}
    given: dict[str, Any] = {**values, **maps}
    return replace(known, **given)


def _number_or_map(key: str, value: float | str) -> float | NDArray[np.float32]:
    """A camera value: a number, or a TIFF with one value a pixel."""
    if not isinstance(value, str):
        return float(value)
    return _read_tiff(Path(value), f"the camera map of {key}").astype(np.float32)


def _read_tiff(path: Path, what: str) -> FloatArray:
    import tifffile

    try:
        array = np.squeeze(np.asarray(tifffile.imread(path), dtype=np.float64))
    except OSError as error:
        raise InputRejected(f"{what}, '{path}', cannot be read ({error.strerror or error}).") from error
    except (tifffile.TiffFileError, ValueError) as error:
        raise InputRejected(f"{what}, '{path}', is not a TIFF of numbers ({error}).") from error
    if array.ndim != 2:
        raise InputRejected(
            f"{what}, '{path}', has the shape {array.shape}; allowed is one plane (rows, columns)."
        )
    return array


def load_mask(spec: MaskSpec, optics: Optics) -> Pupil:
    """Read a designed phase mask into a pupil, on its own grid (no resampling).

    The grid is cut symmetrically to the smallest size of the same parity that covers the pupil, so its centre
    stays the centre. Mask files follow the published simulators (Nehme et al. 2020): the image is the forward
    transform, kernel exp(-i k x). A ``Pupil`` is propagated with exp(+i k x), so the mask is turned by 180
    degrees; a mask with a tilt towards +x displaces the image towards +x.

    Parameters
    ----------
    spec
        File and relay; the pupil is ``2 f NA / sqrt(M^2 - NA^2) / pixel`` samples wide.
    optics
        For the numerical aperture.

    Returns
    -------
    Pupil
        Phase in rad, amplitude one, ``pitch`` two over the diameter in samples.

    Raises
    ------
    InputRejected
        If the file has no array, several, or one that is no phase in rad covering the pupil.
    """
    phase = _read_mask(spec)
    if not np.isfinite(phase).all():
        count = np.count_nonzero(~np.isfinite(phase))
        raise InputRejected(f"the mask '{spec.file}' has {count} values that are not finite; write 0 there.")
    largest = float(np.abs(phase).max())
    if largest > MAX_PHASE_RAD:
        raise InputRejected(
            f"the mask '{spec.file}' reaches {largest:g}; phases are expected in rad, within "
            f"{MAX_PHASE_RAD:g}. Is it in degrees or modulator levels? Multiply by pi/180 or 2 pi/levels."
        )
    diameter = spec.pupil_diameter_px(optics.numerical_aperture)
    cut = np.ascontiguousarray(_cut_to_pupil(phase, diameter, spec)[::-1, ::-1])
    return Pupil(cut, np.ones_like(cut), pitch=2.0 / diameter)


def _cut_to_pupil(phase: FloatArray, diameter: float, spec: MaskSpec) -> FloatArray:
    rows, columns = phase.shape
    where = f"the mask '{spec.file}' is {rows} x {columns}"
    if (rows - columns) % 2:
        raise InputRejected(
            f"{where}: one side is odd, the other even, so it has no common centre. Crop one line."
        )
    side = min(rows, columns)
    if side < diameter - 0.5:
        raise InputRejected(
            f"{where} and the pupil {diameter:.1f} pixels wide: the mask does not cover it. Check "
            f"slm_pixel_um = {spec.slm_pixel_um:g}, relay_focal_mm = {spec.relay_focal_mm:g} and "
            f"magnification = {spec.magnification:g}."
        )
    if diameter < 8:
        raise InputRejected(
            f"the pupil is only {diameter:.1f} pixels of the mask wide. Check slm_pixel_um = "
            f"{spec.slm_pixel_um:g}, relay_focal_mm = {spec.relay_focal_mm:g}, magnification = "
            f"{spec.magnification:g}."
        )
    # Samples at both ends reach rho = 1: (size - 1) / 2 >= diameter / 2.
    size = math.ceil(diameter) + 1
    size = min(size + (side - size) % 2, side)
    top, left = (rows - size) // 2, (columns - size) // 2
    return phase[top : top + size, left : left + size].copy()


def _read_mask(spec: MaskSpec) -> FloatArray:
    if not spec.file.is_file():
        raise InputRejected(
            f"the mask '{spec.file}' does not exist. Give a .mat or TIFF file of phases in rad."
        )
    if spec.file.suffix.lower() in (".tif", ".tiff"):
        return _read_tiff(spec.file, "the mask")
    if spec.file.suffix.lower() != ".mat":
        raise InputRejected(f"the mask '{spec.file}' is neither .mat nor TIFF; other formats are not read.")
    arrays = _read_mat(spec.file)
    if spec.variable is not None:
        if spec.variable in arrays:
            return arrays[spec.variable]
        raise InputRejected(
            f"the mask '{spec.file}' has no 2-D array '{spec.variable}'; it has {_listed(arrays) or 'none'}."
        )
    if len(arrays) != 1:
        advice = (
            f"choose one: variable = {next(iter(arrays))!r}" if arrays else "give one array of phases in rad"
        )
        raise InputRejected(
            f"the mask '{spec.file}' has {len(arrays)} 2-D arrays ({_listed(arrays) or 'none'}); {advice}."
        )
    return next(iter(arrays.values()))


def _read_mat(path: Path) -> dict[str, FloatArray]:
    """Every real 2-D array of a .mat file that is no scalar or vector."""
    return {
        name: value.astype(np.float64)
        for name, value in read_mat(path).items()
        if isinstance(value, np.ndarray) and value.ndim == 2 and min(value.shape) > 1
    }


def _check_scale(name: str, value: float, low: float, high: float, slips: Mapping[float, str]) -> None:
    if math.isfinite(value) and low <= value <= high:
        return
    hint = ""
    for factor, unit in slips.items():
        if low <= value * factor <= high:
            hint = f" It looks like {unit}: did you mean {value * factor:g}?"
            break
    raise InputRejected(f"[mask] {name} = {value:g} is outside {low:g} to {high:g}.{hint}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"
