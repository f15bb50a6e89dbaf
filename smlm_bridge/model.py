"""A trained model: what it was trained for, what runs it, and what it is given. No torch, no files."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.networks.volume_grid import VolumeGrid
from smlm_bridge.pair import AnyCalibration, PairCalibration, read_calibration

FORMAT = "smlm_bridge model"
#: What is written where it is enough, and of models of two channels.
PLAIN_VERSION, VERSION = 1, 2
_INFO_KEY, _CALIBRATION_KEY = "smlm_bridge", "smlm_bridge.calibration"
_LARGEST_METADATA = 64_000_000
_MOST_CONTEXT = 1

SINGLE = "single"  # the system whose models take boxes
VOLUME = "volume"  # the system whose models return volumes
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
#: Of one channel, or of both; None is those of the model's calibration.
Cameras = Camera | tuple[Camera, Camera] | None


@dataclass(frozen=True)
class ModelInfo:
    """What travels inside a model's file.

    Parameters
    ----------
    name, system, purpose
        Name of the model, of the learned system, and what it is for.
    calibration
        The whole calibration it was trained on; of two channels with the transform between them.
    ranges
        The training space, as ``simulate.scene.Ranges.to_json`` gives it.
    channels
        Input channels: those of the calibration. The second has been brought onto the pixels of the first
        (``pair.PairCalibration.resampling``).
    size_step, reach_px
        Height and width of the input are multiples of the first; an output pixel depends on input pixels up
        to the second away.
    threshold
        Default detection threshold of the decoder.
    training, scores
        How it was trained and what it scores; anything JSON can hold.
    box_px
        Side of the boxes that a model of single emitters (system ``single``) takes; 0 of one that takes frames.
    context_frames
        Frames before and after each frame that the network looks at: 0, or 1 of a model of three frames, whose
        input has their channels in the order of time: those of the first frame, then those of the next.
    coverage
        What the training space looks like to ``coverage``, as its ``Reference.to_json`` gives it; may be empty.
    volume
        The voxels that a model of the system ``volume`` returns; its ``threshold`` is a share of their height.
    """

    name: str
    system: str
    purpose: str
    calibration: AnyCalibration
    ranges: Mapping[str, Any]
    channels: int
    size_step: int
    reach_px: int
    threshold: float = 0.5
    training: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    box_px: int = 0
    context_frames: int = 0
    coverage: Mapping[str, Any] = field(default_factory=dict)
    volume: VolumeGrid | None = None

    @property
    def inputs(self) -> int:
        """Channels of the network's input: those of a frame and of its neighbours."""
        return self.channels * (2 * self.context_frames + 1)

    @property
    def one_channel(self) -> Calibration:
        """The calibration of a model of one channel.

        Raises
        ------
        InputRejected
            If it is a pair.
        """
        if isinstance(self.calibration, PairCalibration):
            raise InputRejected(f"the model '{self.name}' takes two channels, and one is wanted here.")
        return self.calibration

    def to_metadata(self) -> dict[str, str]:
        """Text for the ``metadata_props`` of an ONNX file."""
        info = {
            "format": FORMAT,
            "version": VERSION if isinstance(self.calibration, PairCalibration) else PLAIN_VERSION,
            "name": self.name,
            "system": self.system,
            "purpose": self.purpose,
            "ranges": dict(self.ranges),
            "channels": self.channels,
            "size_step": self.size_step,
            "reach_px": self.reach_px,
            "threshold": self.threshold,
            "training": dict(self.training),
            "scores": dict(self.scores),
            "calibration_hash": self.calibration.hash,
        }
        if self.box_px:
            info["box_px"] = self.box_px
        if self.context_frames:
            info["context_frames"] = self.context_frames
        if self.coverage:
            info["coverage"] = dict(self.coverage)
        if self.volume is not None:
            info["volume"] = self.volume.to_json()
        calibration = base64.b64encode(self.calibration.to_bytes()).decode("ascii")
        return {_INFO_KEY: json.dumps(info), _CALIBRATION_KEY: calibration}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, name: str) -> "ModelInfo":
        """Read what ``to_metadata`` wrote.

        Raises
        ------
        InputRejected
            If the metadata is not ours, of another version, incomplete or inconsistent.
        """
        if _INFO_KEY not in metadata or _CALIBRATION_KEY not in metadata:
            raise InputRejected(
                f"{name} is an ONNX file, but not a model of smlm_bridge: it carries no calibration. "
                "Use a model that 'smlm-bridge train' wrote or 'smlm-bridge models' lists."
            )
        if sum(map(len, metadata.values())) > _LARGEST_METADATA:
            raise InputRejected(f"{name}: the metadata is larger than {_LARGEST_METADATA // 1_000_000} MB.")
        try:
            info = json.loads(metadata[_INFO_KEY])
            if info["format"] != FORMAT or info["version"] not in (PLAIN_VERSION, VERSION):
                raise InputRejected(
                    f"{name} is '{info['format']}' version {info['version']}; this program reads versions "
                    f"{PLAIN_VERSION} to {VERSION}. Use the program version that wrote it, or train again."
                )
            data = base64.b64decode(metadata[_CALIBRATION_KEY], validate=True)
            calibration = read_calibration(data, name=f"the calibration inside {name}")
            texts = {key: str(info[key]) for key in ("name", "system", "purpose")}
            tables = {key: dict(info[key]) for key in ("ranges", "training", "scores")}
            numbers = {key: int(info[key]) for key in ("channels", "size_step", "reach_px")}
            numbers |= {key: int(info.get(key, 0)) for key in ("box_px", "context_frames")}
            tables["coverage"] = dict(info.get("coverage", {}))
            volume = VolumeGrid.from_json(dict(info["volume"])) if "volume" in info else None
            threshold, digest = float(info["threshold"]), info["calibration_hash"]
        except InputRejected:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InputRejected(f"{name}: the metadata of the model is damaged ({error!r}).") from error
        if digest != calibration.hash:
            raise InputRejected(f"{name}: the calibration inside is not the one the model was trained on.")
        if not (
            1 <= numbers["channels"] <= 8
            and 1 <= numbers["size_step"] <= 64
            and 0 <= numbers["reach_px"] <= 4096
            and 0 <= numbers["box_px"] <= 64
            and 0 <= numbers["context_frames"] <= (0 if numbers["box_px"] else _MOST_CONTEXT)
            and (numbers["box_px"] > 0) == (texts["system"] == SINGLE)
            and (volume is not None) == (texts["system"] == VOLUME)
            and (isinstance(calibration, Calibration) or numbers["channels"] == len(calibration.channels))
        ):
            raise InputRejected(f"{name}: {numbers} are no sizes of a network.")
        if not 0 < threshold < 1:
            raise InputRejected(f"{name}: the detection threshold {threshold} is no probability.")
        parts: dict[str, Any] = {**texts, **tables, **numbers}
        return cls(calibration=calibration, threshold=threshold, volume=volume, **parts)


@dataclass(frozen=True)
class Model:
    """A model ready to run.

    ``run`` takes photo-electrons: frames (B, C, H, W), C being ``info.inputs``, and returns maps (B, 10, H, W); or
    of a model of single emitters boxes (B, C, S, S), and returns estimates (B, 2K) as ``networks.estimates`` names
    them. ``features`` takes the same and returns what the last layer sees, (B, F, H, W) or (B, F); None where that
    is not known. A model of volumes returns (B, D, uH, uW) as ``info.volume`` says; its ``stages`` are the part of
    the network at camera resolution, frames to features (B, F, H, W), and the rest.
    """

    info: ModelInfo
    run: Run
    features: Run | None = None
    stages: tuple[Run, Run] | None = None


def cameras_of(model: Model, camera: Cameras) -> tuple[Camera, ...]:
    """The cameras of a model's channels: what is given, else those of its calibration."""
    if isinstance(camera, tuple):
        return camera
    return tuple(camera or channel.camera for channel in model.info.calibration.channels)


def photons_of(
    counts: NDArray[np.generic],
    model: Model,
    camera: Cameras,
    *,
    corner_nm: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float32]:
    """Photo-electrons of frames (T, C, H, W), all of them finite, channel 2 on the pixels of channel 1.

    Raises
    ------
    InputRejected
        If the number of channels is not the model's or a value is not finite.
    """
    check_channels(counts, model, camera)
    known = model.info.calibration
    if isinstance(known, PairCalibration):
        photons = _of_both(counts, known, cameras_of(model, camera), corner_nm)
    else:
        photons = cameras_of(model, camera)[0].to_photons(counts)
    if not np.isfinite(photons).all():
        bad = int(np.count_nonzero(~np.isfinite(photons)))
        raise InputRejected(f"{bad} pixels are not finite numbers.")
    return photons


def _of_both(
    counts: NDArray[np.generic],
    pair: PairCalibration,
    cameras: Sequence[Camera],
    corner_nm: tuple[float, float],
) -> NDArray[np.float32]:
    """Photo-electrons of frames (T, n C, H, W) of a pair, the channels of a frame behind each other."""
    photons = np.empty(counts.shape, np.float32)
    photons[:, 0::2] = cameras[0].to_photons(counts[:, 0::2])
    resampling = pair.resampling((counts.shape[2], counts.shape[3]), corner_nm)
    photons[:, 1::2] = resampling(cameras[1].to_photons(counts[:, 1::2]))
    return photons


def seen_by_all(
    table: pd.DataFrame, model: Model, shape: tuple[int, ...], *, corner_nm: tuple[float, float]
) -> pd.DataFrame:
    """The rows of emitters that lie within the second channel's frames (H, W), too; of one channel all rows."""
    known = model.info.calibration
    if not isinstance(known, PairCalibration) or not len(table):
        return table
    there = known.transform.between(corner_nm).apply(table[["x_nm", "y_nm"]].to_numpy(np.float64))
    size = np.array(shape[::-1]) * known.second.optics.pixel_nm
    inside = ((there >= 0) & (there <= size)).all(axis=1)
    return pd.DataFrame(table[inside].reset_index(drop=True))


def check_channels(counts: NDArray[np.generic], model: Model, camera: Cameras) -> None:
    """Refuse what would fail in every frame."""
    frames = 2 * model.info.context_frames + 1
    if counts.shape[1] != frames * model.info.channels:
        raise InputRejected(
            f"the model takes {model.info.channels} channel(s), the frames have {counts.shape[1] / frames:g}. "
            "Choose another model, or give the right channels."
        )
    for known in cameras_of(model, camera):
        known.to_photons(counts[:0, :1])
