"""Everything a bead stack or a designed mask says about a microscope: what is saved, loaded and handed on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import h5py
import numpy as np

from smlm_bridge._optional import require
from smlm_bridge.calibration_file import (
    PLAIN_VERSION,
    VERSION,
    array_of,
    canonical,
    checked_hash,
    described,
    fields_of,
    from_bytes,
    group_of,
    numbers,
    provenance,
    to_bytes,
)
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.cubic_spline import POWERS, CubicSpline

if TYPE_CHECKING:
    import torch

    from smlm_bridge.psf.protocol import PSF

MAX_SPLINE_BOX_PX: Final = 31  # 64 numbers a voxel: beyond, a pupil is smaller and better
# Fields every file has; later ones are written, and hashed, only where they are not at their default.
_OPTICS: Final = (
    "numerical_aperture", "immersion_index", "sample_index", "wavelength_nm", "pixel_nm", "focus_nm", "model",
    "supercritical", "analyser_deg", "coverslip_index", "pixel_integration",
)  # fmt: skip
_MAY_BE_NONE: Final = ("analyser_deg", "coverslip_index")
_CAMERA: Final = ("offset", "e_per_adu", "read_noise_e", "quantum_efficiency", "em_gain")
_GAUSSIAN: Final = ("sigma_nm", "focus_nm", "depth_nm")
_SPLINE: Final = ("centre", "z_first_nm", "z_step_nm", "pixel_nm", "samples_per_px")
# Beyond these a value is a slip of units or damage, whatever the microscope.
_FARTHEST_NM, LEAST_RANGE_NM = 100_000.0, 10.0
_MAX_PHASE_RAD, _MAX_AMPLITUDE = 1000.0, 1000.0
_CAMERA_LIMITS: Final = {
    "offset": (-1e5, 1e6), "e_per_adu": (1e-4, 1e4), "read_noise_e": (0.0, 1e4), "em_gain": (1.0, 1e4)
}  # fmt: skip
_LARGEST_MAP = 16_384**2
_LARGEST_SPLINE = MAX_SPLINE_BOX_PX**2 * POWERS * 2000 * 16


@dataclass(frozen=True)
class Calibration:
    """A calibrated microscope.

    Parameters
    ----------
    optics
        Objective, media, wavelength, pixel and focus.
    pupil, gaussian
        The aberrations, or widths over z; not both.
    spline
        The PSF itself where there is neither, as measured on beads or by another program; beside one of them
        a table of it, for fits. Up to 31 pixels wide.
    camera
        The camera, or the default (one count is one photo-electron) where it is not known.
    z_range_nm
        Heights above the coverslip for which the calibration was made.
    blur_nm
        Standard deviation of the Gaussian blur of every image; 0 for a spline, which holds its own.
    provenance
        Where it comes from: program, version, input, seed, quality. Anything JSON can hold.

    Raises
    ------
    InputRejected
        If there is no PSF or too many, parts contradict each other, or a value is not physical.
    """

    optics: Optics
    pupil: Pupil | None = None
    gaussian: Gaussian | None = None
    camera: Camera = field(default_factory=Camera)
    z_range_nm: tuple[float, float] = (0.0, 1000.0)
    blur_nm: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    spline: CubicSpline | None = None

    def __post_init__(self) -> None:
        if self.pupil is not None and self.gaussian is not None:
            raise InputRejected("a calibration has either a pupil or a Gaussian, not both.")
        if self.pupil is None and self.gaussian is None and self.spline is None:
            raise InputRejected("a calibration needs a pupil, a Gaussian or a spline; it has none.")
        low, high = (float(z) for z in self.z_range_nm)
        object.__setattr__(self, "z_range_nm", (low, high))
        object.__setattr__(self, "blur_nm", float(self.blur_nm))
        _check_heights(low, high)
        if not (np.isfinite(self.blur_nm) and 0 <= self.blur_nm < 1000):
            raise InputRejected(f"blur_nm {self.blur_nm} must lie in 0 to 1000 nm.")
        _check_camera(self.camera)
        if self.pupil is not None:
            _check_pupil(self.pupil)
        if self.gaussian is not None:
            self.gaussian.widths_nm(np.linspace(low, high, 101))
        if self.spline is not None:
            self._check_spline(self.spline)

    def _check_spline(self, spline: CubicSpline) -> None:
        knots = np.array(spline.coefficients.shape[1:3]) + 1
        box = -(-int(knots.max()) // spline.samples_per_px)
        if box > MAX_SPLINE_BOX_PX:
            raise InputRejected(
                f"the spline is {box} px wide; allowed are {MAX_SPLINE_BOX_PX}, as it takes 64 numbers a voxel. "
                "Calibrate with --psf pupil, or cut it."
            )
        if abs(spline.pixel_nm / self.optics.pixel_nm - 1) > 1e-6:
            raise InputRejected(
                f"the spline's pixel is {spline.pixel_nm:g} nm, the microscope's {self.optics.pixel_nm:g} nm. "
                "They must be the same; correct pixel_nm."
            )
        low, high = spline.z_range_nm
        if self.z_range_nm[0] < low - 1 or self.z_range_nm[1] > high + 1:
            raise InputRejected(
                f"the spline reaches from z = {low:g} to {high:g} nm, z_range_nm {self.z_range_nm} further. Give "
                "heights within."
            )
        if self.psf_kind == "spline" and self.blur_nm:
            raise InputRejected(f"blur_nm {self.blur_nm} must be 0: a spline holds the blur of its images.")

    @property
    def psf_kind(self) -> str:
        """``"pupil"``, ``"gaussian"`` or ``"spline"``: what ``psf`` renders."""
        if self.pupil is not None:
            return "pupil"
        return "spline" if self.gaussian is None else "gaussian"

    @property
    def channels(self) -> tuple["Calibration", ...]:
        """The calibration itself; a ``PairCalibration`` has two."""
        return (self,)

    @property
    def hash(self) -> str:
        """SHA-256 over the physics (not the provenance): two calibrations with one hash give one PSF."""
        digest = hashlib.sha256()
        optics = {name: canonical(value) for name, value in described(self.optics, _OPTICS).items()}
        digest.update(json.dumps([optics, self.z_range_nm, self.blur_nm], sort_keys=True).encode())
        if self.gaussian is not None:
            digest.update(json.dumps(described(self.gaussian, _GAUSSIAN)).encode())
        if self.pupil is not None:
            zernike = sorted((int(j), float(c)) for j, c in self.pupil.zernike_rad.items())
            digest.update(json.dumps([zernike, self.pupil.sample_pitch]).encode())
            for array in (self.pupil.phase_rad, self.pupil.amplitude):
                digest.update(array.astype("<f4").tobytes())
        for value in described(self.camera, _CAMERA).values():
            digest.update(np.asarray(value, dtype="<f4").tobytes())
        if self.spline is not None:
            numbers = [getattr(self.spline, name) for name in _SPLINE]
            digest.update(json.dumps([numbers, self.spline.coefficients.shape]).encode())
            digest.update(self.spline.coefficients.astype("<f4").tobytes())
        return digest.hexdigest()

    def psf(self, *, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None) -> "PSF":
        """The PSF, ready to render.

        Raises
        ------
        MissingDependency
            If torch is not installed.
        """
        torch = require("torch", extra="train")
        if self.pupil is not None:
            from smlm_bridge.psf.pupil_psf import PupilPSF

            return PupilPSF.of(
                self.optics, self.pupil, blur_nm=self.blur_nm, device=device, dtype=dtype or torch.float32
            )
        if self.gaussian is not None:
            from smlm_bridge.psf.gaussian import GaussianPSF

            optics = self.optics
            return GaussianPSF(self.gaussian, optics.pixel_nm, self.blur_nm, optics.pixel_integration)
        from smlm_bridge.psf.cubic_spline_psf import CubicSplinePSF

        assert self.spline is not None
        return CubicSplinePSF(self.spline)

    def to_bytes(self) -> bytes:
        """The calibration as an HDF5 file in memory; the schema is described in ``docs/reference``."""
        return to_bytes(self.hash, self._version, self.write)

    @property
    def _version(self) -> int:
        """The least version that holds everything."""
        plain = self.spline is None and (self.gaussian is None or self.gaussian.is_plain)
        return PLAIN_VERSION if plain else VERSION

    def write(self, file: h5py.Group) -> None:
        """Write the parts into a file, or into the group of a channel."""
        file.attrs.update({"z_range_nm": self.z_range_nm, "blur_nm": self.blur_nm})
        file.attrs["provenance"] = json.dumps(dict(self.provenance))
        optics = described(self.optics, _OPTICS)
        file.create_group("optics").attrs.update({k: v for k, v in optics.items() if v is not None})
        camera = file.create_group("camera")
        for name, value in described(self.camera, _CAMERA).items():
            if isinstance(value, np.ndarray):
                camera.create_dataset(name, data=value, compression="gzip")
            else:
                camera.attrs[name] = value
        if self.gaussian is not None:
            file.create_group("gaussian").attrs.update(described(self.gaussian, _GAUSSIAN))
        if self.pupil is not None:
            group = file.create_group("pupil")
            group.attrs["pitch"] = self.pupil.sample_pitch
            group.attrs["zernike_noll"] = np.array(list(self.pupil.zernike_rad), dtype=np.int64)
            group.attrs["zernike_rad"] = np.array(list(self.pupil.zernike_rad.values()), dtype=np.float64)
            for name in ("phase_rad", "amplitude"):
                data = getattr(self.pupil, name).astype(np.float32)
                group.create_dataset(name, data=data, compression="gzip", shuffle=True)
        if self.spline is not None:
            group = file.create_group("spline")
            group.attrs.update({name: getattr(self.spline, name) for name in _SPLINE})
            data = self.spline.coefficients
            group.create_dataset("coefficients", data=data, compression="gzip", shuffle=True)

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "calibration") -> Self:
        """Read what ``to_bytes`` wrote.

        Raises
        ------
        InputRejected
            If it is no calibration, of another version, a field is missing, unknown, of another kind, not finite
            or absurd, the content does not fit its hash, or it is a pair of channels.
        """
        return from_bytes(data, name, cls.of_file)

    @classmethod
    def of_file(cls, file: h5py.File) -> Self:
        """Read an open file, and compare with its hash; see ``from_bytes``."""
        if "channel1" in file:
            raise InputRejected(
                "this is a pair of channels, and one channel is wanted. Give one of the calibrations that were "
                "joined."
            )
        return checked_hash(file, cls.read(file))

    @classmethod
    def read(cls, file: h5py.Group) -> Self:
        """Read what ``write`` wrote."""
        if unknown := set(file) - {"optics", "camera", "pupil", "gaussian", "spline"}:
            raise InputRejected(f"unknown parts {sorted(unknown)}; a newer program may know them.")
        low, high = numbers(file, "z_range_nm", 2)
        return cls(
            Optics(**fields_of(file, "optics", Optics, _OPTICS, _MAY_BE_NONE)),
            _read_pupil(group_of(file, "pupil")) if "pupil" in file else None,
            Gaussian(**fields_of(file, "gaussian", Gaussian, _GAUSSIAN)) if "gaussian" in file else None,
            Camera(**fields_of(file, "camera", Camera, _CAMERA)),
            (low, high),
            numbers(file, "blur_nm", 1)[0],
            provenance(file),
            _read_spline(group_of(file, "spline")) if "spline" in file else None,
        )


def _read_pupil(group: h5py.Group) -> Pupil:
    noll = np.atleast_1d(np.asarray(group.attrs["zernike_noll"], dtype=np.float64))
    values = np.atleast_1d(np.asarray(group.attrs["zernike_rad"], dtype=np.float64))
    if not np.array_equal(noll, np.round(noll)):
        raise InputRejected(f"zernike_noll {noll.tolist()} are not indices.")
    phase, amplitude = (array_of(group, name, 2, _LARGEST_MAP) for name in ("phase_rad", "amplitude"))
    coefficients = {int(j): float(c) for j, c in zip(noll, values, strict=True)}
    return Pupil(phase, amplitude, numbers(group, "pitch", 1)[0], coefficients)


def _read_spline(group: h5py.Group) -> CubicSpline:
    if unknown := set(group.attrs) - set(_SPLINE):
        raise InputRejected(f"unknown fields of the spline {sorted(unknown)}.")
    samples = numbers(group, "samples_per_px", 1)[0]
    if samples != round(samples):
        raise InputRejected(f"samples_per_px {samples} is not a whole number.")
    y, x = numbers(group, "centre", 2)
    lengths = {name: numbers(group, name, 1)[0] for name in _SPLINE[1:4]}
    coefficients = array_of(group, "coefficients", 4, _LARGEST_SPLINE)
    return CubicSpline(coefficients, (y, x), **lengths, samples_per_px=int(samples))


def _check_heights(low: float, high: float) -> None:
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputRejected(f"z_range_nm ({low}, {high}) must be two heights, the lower first.")
    if max(abs(low), abs(high)) > _FARTHEST_NM:
        raise InputRejected(f"z_range_nm ({low:g}, {high:g}) reaches beyond 100 um; heights are in nm.")
    if high - low < LEAST_RANGE_NM:
        raise InputRejected(
            f"z_range_nm ({low:g}, {high:g}) spans less than {LEAST_RANGE_NM:g} nm. It looks like micrometres: "
            f"did you mean {low * 1000:g} to {high * 1000:g} nm?"
        )


def _check_camera(camera: Camera) -> None:
    for name, (low, high) in _CAMERA_LIMITS.items():
        value = getattr(camera, name)
        if np.min(value) < low or np.max(value) > high:
            raise InputRejected(
                f"camera {name} from {np.min(value):g} to {np.max(value):g} is outside {low:g} to {high:g}; no "
                "camera is like that."
            )


def _check_pupil(pupil: Pupil) -> None:
    largest = float(np.abs(pupil.phase_rad).max())
    largest = max([largest, *(abs(value) for value in pupil.zernike_rad.values())])
    if largest > _MAX_PHASE_RAD:
        raise InputRejected(
            f"the pupil's phase reaches {largest:g} rad; is it in degrees or nm? It is in rad."
        )
    if not 0 < pupil.amplitude.max() <= _MAX_AMPLITUDE:
        raise InputRejected(
            f"the pupil's largest amplitude is {pupil.amplitude.max():g}; transmissions are near 1."
        )
