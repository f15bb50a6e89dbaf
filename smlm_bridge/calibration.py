"""Everything a bead stack or a designed mask says about a microscope: what is saved, loaded and handed on."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from smlm_bridge._optional import require
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil

if TYPE_CHECKING:
    import torch

    from smlm_bridge.psf.protocol import PSF

FORMAT = "smlm_bridge calibration"
VERSION = 1
_MAPS = ("offset", "e_per_adu", "read_noise_e")
# What h5py and our own types raise when a file is damaged.
_DAMAGE = (TypeError, ValueError, OSError, AttributeError, RuntimeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Calibration:
    """A calibrated microscope.

    Parameters
    ----------
    optics
        Objective, media, wavelength, pixel and focus.
    pupil, gaussian
        Exactly one of them: the aberrations, or widths over z.
    camera
        The camera, or the default (one count is one photo-electron) where it is not known.
    z_range_nm
        Heights above the coverslip for which the calibration was made.
    blur_nm
        Standard deviation of the Gaussian blur of every image.
    provenance
        Where it comes from: program, version, input, seed, quality. Anything JSON can hold.
    """

    optics: Optics
    pupil: Pupil | None = None
    gaussian: Gaussian | None = None
    camera: Camera = field(default_factory=Camera)
    z_range_nm: tuple[float, float] = (0.0, 1000.0)
    blur_nm: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.pupil is None) == (self.gaussian is None):
            raise InputRejected("a calibration has either a pupil or a Gaussian, not both and not neither.")
        low, high = (float(z) for z in self.z_range_nm)
        object.__setattr__(self, "z_range_nm", (low, high))
        object.__setattr__(self, "blur_nm", float(self.blur_nm))
        if not (np.isfinite([low, high]).all() and low < high):
            raise InputRejected(f"z_range_nm {self.z_range_nm} must be two heights, the lower first.")
        if not (np.isfinite(self.blur_nm) and 0 <= self.blur_nm < 1000):
            raise InputRejected(f"blur_nm {self.blur_nm} must lie in 0 to 1000 nm.")

    @property
    def hash(self) -> str:
        """SHA-256 over the physics (not the provenance): two calibrations with one hash give one PSF."""
        digest = hashlib.sha256()
        optics = {name: _canonical(value) for name, value in asdict(self.optics).items()}
        digest.update(json.dumps([optics, self.z_range_nm, self.blur_nm], sort_keys=True).encode())
        if self.gaussian is not None:
            digest.update(json.dumps(asdict(self.gaussian)).encode())
        if self.pupil is not None:
            zernike = sorted((int(j), float(c)) for j, c in self.pupil.zernike_rad.items())
            digest.update(json.dumps([zernike, self.pupil.sample_pitch]).encode())
            for array in (self.pupil.phase_rad, self.pupil.amplitude):
                digest.update(array.astype("<f4").tobytes())
        for part in fields(self.camera):
            digest.update(np.asarray(getattr(self.camera, part.name), dtype="<f4").tobytes())
        return digest.hexdigest()

    def psf(self, *, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None) -> "PSF":
        """The PSF, ready to render.

        Raises
        ------
        MissingDependency
            If torch is not installed.
        """
        torch = require("torch", extra="train")
        if self.gaussian is not None:
            from smlm_bridge.psf.gaussian import GaussianPSF

            optics = self.optics
            return GaussianPSF(self.gaussian, optics.pixel_nm, self.blur_nm, optics.pixel_integration)
        from smlm_bridge.psf.pupil_psf import PupilPSF

        assert self.pupil is not None
        return PupilPSF.of(
            self.optics, self.pupil, blur_nm=self.blur_nm, device=device, dtype=dtype or torch.float32
        )

    def to_bytes(self) -> bytes:
        """The calibration as an HDF5 file in memory; the schema is described in ``docs/reference``."""
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.attrs.update(
                {"format": FORMAT, "version": VERSION, "provenance": json.dumps(dict(self.provenance))}
            )
            file.attrs.update({"z_range_nm": self.z_range_nm, "blur_nm": self.blur_nm})
            file.create_group("optics").attrs.update(
                {k: v for k, v in asdict(self.optics).items() if v is not None}
            )
            camera = file.create_group("camera")
            for part in fields(self.camera):
                value = getattr(self.camera, part.name)
                if isinstance(value, np.ndarray):
                    camera.create_dataset(part.name, data=value, compression="gzip")
                else:
                    camera.attrs[part.name] = value
            if self.gaussian is not None:
                file.create_group("gaussian").attrs.update(asdict(self.gaussian))
            if self.pupil is not None:
                group = file.create_group("pupil")
                group.attrs["pitch"] = self.pupil.sample_pitch
                group.attrs["zernike_noll"] = np.array(list(self.pupil.zernike_rad), dtype=np.int64)
                group.attrs["zernike_rad"] = np.array(list(self.pupil.zernike_rad.values()), dtype=np.float64)
                for name in ("phase_rad", "amplitude"):
                    data = getattr(self.pupil, name).astype(np.float32)
                    group.create_dataset(name, data=data, compression="gzip", shuffle=True)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "calibration") -> "Calibration":
        """Read what ``to_bytes`` wrote.

        Raises
        ------
        InputRejected
            If it is no calibration, of another version, or a field is missing, of another kind or not finite.
        """
        try:
            file = h5py.File(io.BytesIO(data), "r")
        except _DAMAGE as error:
            raise InputRejected(
                f"{name} is not an HDF5 file, so not a calibration (.psf.h5): {error}."
            ) from error
        with file:
            try:
                return cls._read(file, name)
            except InputRejected as error:
                raise InputRejected(f"{name}: {error}") from error
            except KeyError as error:
                raise InputRejected(f"{name} lacks a field of a calibration: {error.args[0]}.") from error
            except _DAMAGE as error:
                raise InputRejected(
                    f"{name} has a field of the wrong kind or is damaged: {error}."
                ) from error

    @classmethod
    def _read(cls, file: h5py.File, name: str) -> "Calibration":
        if file.attrs.get("format") != FORMAT:
            raise InputRejected("this HDF5 file is not a calibration of smlm_bridge (no 'format' mark).")
        if int(file.attrs["version"]) != VERSION:
            raise InputRejected(
                f"calibration version {file.attrs['version']}, this program reads version {VERSION}. "
                "Use the program version that wrote it, or calibrate again."
            )
        optics = {key: _plain(value) for key, value in file["optics"].attrs.items()}
        known = {part.name for part in fields(Optics)}
        if unknown := set(optics) - known:
            raise InputRejected(f"unknown optics fields {sorted(unknown)}.")
        for required in (
            "numerical_aperture",
            "immersion_index",
            "sample_index",
            "wavelength_nm",
            "pixel_nm",
        ):
            if required not in optics:
                raise KeyError(f"optics/{required}")
        camera = {key: _plain(value) for key, value in file["camera"].attrs.items()}
        camera.update({key: _map(file["camera"], key) for key in file["camera"] if key in _MAPS})
        pupil = gaussian = None
        if "gaussian" in file:
            widths: dict[str, Any] = {k: tuple(map(float, v)) for k, v in file["gaussian"].attrs.items()}
            gaussian = Gaussian(**widths)
        if "pupil" in file:
            group = file["pupil"]
            coefficients = zip(group.attrs["zernike_noll"], group.attrs["zernike_rad"], strict=True)
            pupil = Pupil(
                _map(group, "phase_rad"),
                _map(group, "amplitude"),
                float(group.attrs["pitch"]),
                {int(j): float(c) for j, c in coefficients},
            )
        low, high = (float(v) for v in file.attrs["z_range_nm"])
        provenance = json.loads(file.attrs["provenance"])
        if not isinstance(provenance, dict):
            raise InputRejected("the provenance is not a table of names and values.")
        return cls(
            Optics(**optics),
            pupil,
            gaussian,
            Camera(**camera),
            (low, high),
            float(file.attrs["blur_nm"]),
            provenance,
        )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _canonical(value: Any) -> Any:
    """One way to write a number: 110.0 and 110 are the same microscope."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_LARGEST_MAP = 16_384**2


def _map(group: Any, name: str) -> Any:
    """A 2-D array of the file itself; links and external storage could read other files of the reader."""
    dataset = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        if name not in group:
            raise KeyError(f"{group.name}/{name}".strip("/"))
        raise InputRejected(f"{name} is not an array stored in this file.")
    if dataset.ndim != 2 or dataset.size > _LARGEST_MAP:
        raise InputRejected(f"{name} of shape {dataset.shape} is not a 2-D map of a sensible size.")
    return dataset[()]
