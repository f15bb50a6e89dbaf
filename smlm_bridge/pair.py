"""Two channels that see each emitter at once, as one calibration."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from smlm_bridge.errors import InputRejected
from smlm_bridge.transform import Transform

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
