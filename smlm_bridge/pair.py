"""Two channels that see each emitter at once, as one calibration."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import h5py

from smlm_bridge.calibration import LEAST_RANGE_NM, Calibration
from smlm_bridge.calibration_file import (
    VERSION,
    checked_hash,
    from_bytes,
    group_of,
    numbers,
    provenance,
    to_bytes,
)
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.transform import Resampling, Transform

_CHANNELS: Final = ("channel1", "channel2")
_MAX_RATIO = 1000.0


@dataclass(frozen=True)
class PairCalibration:
    """Two channels that see each emitter at once.

    Parameters
    ----------
    first, second
        The channels. Heights mean the same in both.
    transform
        Takes positions (nm) of the first channel to the second.
    photon_ratio
        Photons of an emitter in the second channel over those in the first, each over an unbounded camera.
    provenance
        Where it comes from. Anything JSON can hold.

    Raises
    ------
    InputRejected
        If the ratio is not within 0.001 to 1000 or the channels have no heights in common.
    """

    first: Calibration
    second: Calibration
    transform: Transform
    photon_ratio: float = 1.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "photon_ratio", float(self.photon_ratio))
        if not 1 / _MAX_RATIO <= self.photon_ratio <= _MAX_RATIO:
            raise InputRejected(
                f"photon_ratio {self.photon_ratio:g} must lie in 0.001 to 1000: photons of channel 2 over those "
                "of channel 1."
            )
        low, high = self.z_range_nm
        if high - low < LEAST_RANGE_NM:
            raise InputRejected(
                f"the channels were calibrated at heights {self.first.z_range_nm} and {self.second.z_range_nm} "
                "nm, which have nothing in common. Calibrate both from one stack."
            )

    @property
    def channels(self) -> tuple[Calibration, Calibration]:
        """First and second channel."""
        return self.first, self.second

    @property
    def optics(self) -> Optics:
        """Of channel 1, in whose frames positions are."""
        return self.first.optics

    @property
    def camera(self) -> Camera:
        """Of channel 1; ``channels`` has both."""
        return self.first.camera

    @property
    def pixels_nm(self) -> tuple[float, float]:
        """Camera pixels of both channels."""
        return self.first.optics.pixel_nm, self.second.optics.pixel_nm

    def resampling(self, shape: tuple[int, int], corner_nm: tuple[float, float] = (0.0, 0.0)) -> Resampling:
        """What brings frames of channel 2 onto those of channel 1, both (H, W).

        ``corner_nm`` (x, y) is where the frames begin within either channel: a region cut from both.
        """
        return Resampling(self.transform.between(corner_nm), self.pixels_nm, shape, shape)

    @property
    def z_range_nm(self) -> tuple[float, float]:
        """Heights for which both channels were made."""
        (low1, high1), (low2, high2) = self.first.z_range_nm, self.second.z_range_nm
        return max(low1, low2), min(high1, high2)

    @property
    def hash(self) -> str:
        """SHA-256 over both channels, the transform and the ratio (not the provenance)."""
        transform = self.transform
        numbers = [transform.kind, transform.centre_nm, transform.scale_nm, transform.coefficients.tolist()]
        content = [self.first.hash, self.second.hash, numbers, self.photon_ratio]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The pair as an HDF5 file in memory; the schema is described in ``docs/reference``."""
        return to_bytes(self.hash, VERSION, self._write)

    def _write(self, file: h5py.Group) -> None:
        file.attrs["photon_ratio"] = self.photon_ratio
        file.attrs["transform"] = self.transform.to_json()
        file.attrs["provenance"] = json.dumps(dict(self.provenance))
        for name, channel in zip(_CHANNELS, self.channels, strict=True):
            channel.write(file.create_group(name))

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "calibration") -> Self:
        """Read what ``to_bytes`` wrote.

        Raises
        ------
        InputRejected
            As ``Calibration.from_bytes``, and if it is a single channel.
        """
        return from_bytes(data, name, cls.of_file)

    @classmethod
    def of_file(cls, file: h5py.File) -> Self:
        """Read an open file, and compare with its hash; see ``from_bytes``."""
        if "channel1" not in file:
            raise InputRejected(
                "this is a single channel, and a pair is wanted. Make one: smlm-bridge join CAL1 CAL2 --transform "
                "T.json --photon-ratio R -o PAIR.psf.h5"
            )
        if unknown := set(file) - set(_CHANNELS):
            raise InputRejected(f"unknown parts {sorted(unknown)}; a newer program may know them.")
        first, second = (Calibration.read(group_of(file, name)) for name in _CHANNELS)
        text = file.attrs["transform"]
        if not isinstance(text, str):
            raise InputRejected("the transform is not text.")
        transform = Transform.from_json(text, name="the transform inside")
        pair = cls(first, second, transform, numbers(file, "photon_ratio", 1)[0], provenance(file))
        return checked_hash(file, pair)


#: One channel or two.
AnyCalibration = Calibration | PairCalibration


def with_cameras(calibration: AnyCalibration, cameras: Sequence[Camera]) -> AnyCalibration:
    """The same calibration with other cameras, one a channel."""
    channels = [replace(known, camera=own) for known, own in zip(calibration.channels, cameras, strict=True)]
    if isinstance(calibration, PairCalibration):
        return replace(calibration, first=channels[0], second=channels[1])
    return channels[0]


def read_calibration(data: bytes, *, name: str = "calibration") -> Calibration | PairCalibration:
    """Read one channel or a pair, whichever it is.

    Raises
    ------
    InputRejected
        As ``Calibration.from_bytes``.
    """

    def read(file: h5py.File) -> Calibration | PairCalibration:
        return PairCalibration.of_file(file) if "channel1" in file else Calibration.of_file(file)

    return from_bytes(data, name, read)
