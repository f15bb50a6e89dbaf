"""Camera and post-processing of ThunderSTORM: options, checked before Java sees them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from smlm_bridge.bridge.jars import Version
from smlm_bridge.bridge.macro import Value
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected

#: Steps below which ThunderSTORM interpolates linearly instead of smoothing.
_LINEAR_BELOW: Final = 4


def camera_options(camera: Camera, pixel_nm: float, version: Version) -> dict[str, Value]:
    """Options of ``Camera setup``, so that ThunderSTORM's photons are our photo-electrons.

    The quantum efficiency is always 1: ThunderSTORM would divide by it. Every option is given, for an absent one
    becomes its default, not what it was.

    Raises
    ------
    InputRejected
        If the camera has maps (ThunderSTORM knows numbers), or the pixel has no size.
    """
    positive("pixel_nm", pixel_nm)
    for name in ("offset", "e_per_adu", "read_noise_e"):
        if isinstance(getattr(camera, name), np.ndarray):
            raise InputRejected(
                f"the camera's {name} is a map, and ThunderSTORM knows one number for all pixels. Give a "
                "number (the map's median), or take our own engine."
            )
    em = camera.em_gain > 1
    chosen: dict[str, Value] = {
        "pixelsize": float(pixel_nm),
        "photons2adu": float(camera.e_per_adu),
        "offset": float(camera.offset),
        "isemgain": em,
    }
    if em:
        chosen["gainem"] = float(camera.em_gain)
    if version == "dev":
        chosen["quantumefficiency"] = 1.0
        if not em:
            chosen["readoutnoise"] = float(camera.read_noise_e)
    return chosen


def positive(name: str, value: float) -> None:
    """Refuse what is no number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise InputRejected(f"{name} is {value}; it must be a number above 0.")


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputRejected(f"{name} is {value}; it must lie between 0 and 1.")


@dataclass(frozen=True)
class CrossCorrelation:
    """Drift by cross-correlation of pictures of ``steps`` equally filled parts of the movie.

    Parameters
    ----------
    steps
        Parts.
    magnification
        Pixels of the pictures a camera pixel.
    smoothing
        Share of the steps that smooths a point (dev only). ThunderSTORM's own default, 0.25, fails with its own
        default of 5 steps, so it is 0.5 here.
    """

    steps: int = 5
    magnification: float = 5.0
    smoothing: float = 0.5

    def __post_init__(self) -> None:
        positive("magnification", self.magnification)
        _share("smoothing", self.smoothing)
        if self.steps < 2:
            raise InputRejected(f"steps is {self.steps}; drift needs 2 or more.")
        if self.steps >= _LINEAR_BELOW and int(self.smoothing * self.steps) < 2:
            least = math.ceil(200 / self.steps) / 100
            raise InputRejected(
                f"smoothing {self.smoothing:g} of {self.steps} steps is less than two steps, which ThunderSTORM "
                f"cannot smooth with; give smoothing {least:g} or more, or more steps."
            )

    def options(self, version: Version) -> dict[str, Value]:
        """As ThunderSTORM's macros have them."""
        chosen: dict[str, Value] = {
            "method": "Cross correlation",
            "steps": self.steps,
            "magnification": float(self.magnification),
            "showcorrelations": False,
        }
        return chosen | ({"ccsmoothingbandwidth": float(self.smoothing)} if version == "dev" else {})


@dataclass(frozen=True)
class Fiducials:
    """Drift by beads: what stays within ``distance_nm`` in at least ``on_time_ratio`` of the frames."""

    distance_nm: float = 40.0
    on_time_ratio: float = 0.1
    smoothing: float = 0.25

    def __post_init__(self) -> None:
        positive("distance_nm", self.distance_nm)
        _share("on_time_ratio", self.on_time_ratio)
        _share("smoothing", self.smoothing)

    def options(self, version: Version) -> dict[str, Value]:
        """As ThunderSTORM's macros have them."""
        return {
            "method": "Fiducial markers",
            "distancethr": float(self.distance_nm),
            "ontimeratio": float(self.on_time_ratio),
            "smoothingbandwidth": float(self.smoothing),
        }


@dataclass(frozen=True)
class DriftFile:
    """Drift that was saved, by ThunderSTORM or by this package."""

    path: Path

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise InputRejected(f"there is no drift file {self.path}.")

    def options(self, version: Version) -> dict[str, Value]:
        """As ThunderSTORM's macros have them."""
        return {"method": "Load from file", "path": Path(self.path).resolve(), "save": False}


@dataclass(frozen=True)
class Merging:
    """Merging of the blinks of a molecule."""

    distance_nm: float = 20.0
    off_frames: int = 1
    frames_per_molecule: int = 0
    z_weight: float = 0.1

    def __post_init__(self) -> None:
        positive("distance_nm", self.distance_nm)  # with 0, ThunderSTORM does nothing and says nothing
        if self.off_frames < 0 or self.frames_per_molecule < 0 or not self.z_weight >= 0:
            raise InputRejected("off_frames, frames_per_molecule and z_weight must be 0 or more.")

    def options(self) -> dict[str, Value]:
        """As ThunderSTORM's macros have them."""
        return {
            "zcoordweight": float(self.z_weight),
            "offframes": self.off_frames,
            "dist": float(self.distance_nm),
            "framespermolecule": self.frames_per_molecule,
        }


@dataclass(frozen=True)
class Density:
    """Keep what has neighbours, of all frames, within a radius."""

    radius_nm: float = 50.0
    neighbours: int = 5
    dimensions: Literal[2, 3] = 2

    def __post_init__(self) -> None:
        positive("radius_nm", self.radius_nm)
        if self.neighbours < 1 or self.dimensions not in (2, 3):
            raise InputRejected("neighbours must be 1 or more, and dimensions 2 or 3.")

    def options(self) -> dict[str, Value]:
        """As ThunderSTORM's macros have them."""
        return {
            "radius": float(self.radius_nm),
            "neighbors": self.neighbours,
            "dimensions": f"{self.dimensions}D",
        }


@dataclass(frozen=True)
class StageOffset:
    """z of a stage that scans: positions of ``frames_per_position`` frames, ``step_nm`` apart."""

    step_nm: float
    positions: int = 1
    frames_per_position: int = 1
    first_nm: float = 0.0

    def __post_init__(self) -> None:
        if self.positions < 1 or self.frames_per_position < 1:
            raise InputRejected("positions and frames_per_position must be 1 or more.")

    def options(self) -> dict[str, Value]:
        """As ThunderSTORM's macros have them."""
        return {
            "framesperstagepos": self.frames_per_position,
            "stagepositions": self.positions,
            "stagestep": float(self.step_nm),
            "firstposoffset": float(self.first_nm),
        }


@dataclass(frozen=True)
class Calibrating:
    """A 3-D calibration from a bead stack: step of the stage and half the range in nm."""

    stage_step_nm: float = 10.0
    z_range_nm: float = 400.0
    defocus: Literal["ThunderSTORM", "Huang '08"] = "ThunderSTORM"
    sigma: float = 1.6
    fitradius: int = 7
    method: Literal["Maximum likelihood", "Least squares", "Weighted Least squares"] = "Least squares"

    def __post_init__(self) -> None:
        positive("stage_step_nm", self.stage_step_nm)
        positive("z_range_nm", self.z_range_nm)
        positive("sigma", self.sigma)
        if self.defocus not in ("ThunderSTORM", "Huang '08"):
            raise InputRejected(f"defocus '{self.defocus}' is unknown; there are ThunderSTORM and Huang '08.")
        if self.fitradius < 1:
            raise InputRejected(f"fitradius is {self.fitradius}; it must be 1 or more.")
