"""What a process needs to localize blocks of one movie: plain values that travel to other machines."""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from smlm_bridge import __version__
from smlm_bridge._optional import require
from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.detect import DetectOptions, Finder, detect_frames
from smlm_bridge.errors import InputRejected
from smlm_bridge.frames import Work
from smlm_bridge.io.calibration import load_channels
from smlm_bridge.io.channels import Movie, open_channels
from smlm_bridge.io.images import movie_files
from smlm_bridge.io.model import find_model, load_model
from smlm_bridge.io.shipped import find_shipped
from smlm_bridge.localize import LocalizeOptions, localize_work
from smlm_bridge.model import Model
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.pair import PairCalibration
from smlm_bridge.singles import SingleMovieOptions, single_work
from smlm_bridge.volumes import volume_work

if TYPE_CHECKING:
    from smlm_bridge.multi.frame import Refiner

_MOST_MARKS = 16
_BLOCK_PIXELS = 400_000


@dataclass(frozen=True)
class Recipe:
    """How one movie is localized.

    Parameters
    ----------
    inputs
        Files, folders or patterns of the movie, as absolute paths.
    model
        File of the network, absolute; None to detect and fit with ``calibration``.
    camera
        Of the region that is read.
    frames, roi, threshold
        As ``io.images.open_frames`` and ``LocalizeOptions`` take them.
    refine
        Whether all emitters of a frame are then fitted together (``multi``).
    device, threads
        Where the network runs; they do not change the table.
    calibration
        File of the PSF that is fitted, absolute; beside a model it replaces the model's.
    detect
        How candidates of fits are found; None for the default.
    finder
        What finds them if not our own detector; its text names it, and it travels to other processes.
    channel2, split
        Where channel 2 is if not on an axis of the files, as ``io.channels.open_channels`` takes them.
    camera2
        Of channel 2's region.
    """

    inputs: tuple[str, ...]
    model: str | None
    camera: Camera | None
    frames: tuple[int, int] | None = None
    roi: tuple[int, int, int, int] | None = None
    threshold: float | None = None
    refine: bool = False
    device: str = "cpu"
    threads: int | None = None
    calibration: str | None = None
    detect: DetectOptions | None = None
    finder: Finder | None = None
    channel2: tuple[str, ...] = ()
    split: str | None = None
    camera2: Camera | None = None

    @property
    def tool(self) -> "Tool":
        """What localizes, loaded once a process."""
        return loaded_tool(self.model, self.calibration, self.threads, self.device)

    @contextmanager
    def opened(self) -> Iterator[tuple[Movie, Work]]:
        """The movie, and what is done with its frames; the network is loaded once a process."""
        with self.source() as source:
            yield source, self.work()

    def source(self) -> Movie:
        """The movie, to be closed."""
        return open_channels(
            self.inputs, channel2=self.channel2, split=self.split, frames=self.frames, roi=self.roi
        )

    def work(self) -> Work:
        """What is done with the frames."""
        tool = self.tool
        if tool.model is not None and tool.model.info.box_px:
            work = self._single_work(tool.model)
        elif tool.model is not None:
            options = LocalizeOptions(threshold=self.threshold)
            made = localize_work if tool.model.info.volume is None else volume_work
            work = made(tool.model, camera=self.cameras, options=options, corner_nm=self.corner_nm)
        elif self.refine:
            # A joint fit finds its own candidates with the PSF itself, whatever its shape.
            work = nothing_found(tool.calibration.optics)
        else:
            from smlm_bridge.fit.work import FitMovieOptions, fit_work

            found = FitMovieOptions(
                detect=self.detect or DetectOptions(), finder=self.finder or detect_frames
            )
            return fit_work(tool.calibration, found, camera=self.cameras, corner_nm=self.corner_nm)
        if not self.refine:
            return work
        require("torch", extra="train")
        from smlm_bridge.multi.work import refined

        refiner = _refiner(self.model, self.calibration, self.threads, self.device, self.corner_nm)
        cameras = self.cameras or tuple(channel.camera for channel in tool.calibration.channels)
        return refined(work, refiner, cameras)

    @property
    def cameras(self) -> Camera | tuple[Camera, Camera] | None:
        """Of the channels; those that are not given are the calibration's."""
        channels = self.tool.calibration.channels
        if self.camera is None or len(channels) == 1:
            return self.camera
        return self.camera, self.camera2 or channels[1].camera

    @property
    def corner_nm(self) -> tuple[float, float]:
        """Where the region begins within each channel."""
        x, y = (0, 0) if self.roi is None else self.roi[:2]
        pixel_nm = self.tool.calibration.channels[0].optics.pixel_nm
        return x * pixel_nm, y * pixel_nm

    def _single_work(self, network: Model) -> Work:
        """Of a network of single emitters: detect, cut boxes, infer."""
        if self.threshold is not None:
            raise InputRejected(
                f"the model '{network.info.name}' of single emitters gives no probability, so it takes no "
                "--threshold. Leave it out."
            )
        found = SingleMovieOptions(detect=self.detect or DetectOptions(), finder=self.finder or detect_frames)
        return single_work(network, camera=self.cameras, options=found, corner_nm=self.corner_nm)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the table, for the manifest of its parts."""
        return {
            "made_by": f"smlm_bridge {__version__}, localize",
            "input": self.marks(),
            "model_sha256": _file_hash(self.model),
            "calibration_sha256": _file_hash(self.calibration),
            "camera": None if self.camera is None else _camera_mark(self.camera),
            "frames": None if self.frames is None else list(self.frames),
            "roi": None if self.roi is None else list(self.roi),
            "threshold": self.threshold,
            "refine": self.refine,
            "detect": None if self.detect is None else json.loads(json.dumps(asdict(self.detect))),
            "finder": None if self.finder is None else str(self.finder),
            "channel2": [_file_mark(path) for path in movie_files(self.channel2)] if self.channel2 else None,
            "split": self.split,
            "camera2": None if self.camera2 is None else _camera_mark(self.camera2),
        }

    def marks(self) -> list[Any]:
        """The files of the movie by name, size and time of their last change; many of them by a hash of that."""
        marks = [_file_mark(path) for path in movie_files(self.inputs)]
        if len(marks) <= _MOST_MARKS:
            return marks
        return [len(marks), hashlib.sha256(json.dumps(marks).encode()).hexdigest()]


@dataclass(frozen=True)
class Tool:
    """What localizes: a network, or the PSF that is fitted."""

    name: str
    calibration: Calibration | PairCalibration
    model: Model | None
    ranges: Mapping[str, Any]

    @property
    def channels(self) -> int:
        """Channels that the frames must have."""
        return len(self.calibration.channels) if self.model is None else self.model.info.channels


@functools.lru_cache(maxsize=2)
def loaded_tool(model: str | None, calibration: str | None, threads: int | None, device: str) -> Tool:
    """A network or a calibration, or both, loaded once a process.

    Raises
    ------
    InputRejected
        If neither is given, a file is none, or a pair of channels is given for a network of one.
    """
    known = None if calibration is None else load_channels(calibration)
    if model is None:
        if calibration is None or known is None:
            raise InputRejected("give a model, or a calibration to detect and fit with.")
        return Tool(Path(calibration).name, known, None, {})
    network = load_model(model, threads=threads, device=device)
    if known is not None:
        if len(known.channels) != network.info.channels:
            raise InputRejected(
                f"{calibration} has {len(known.channels)} channel(s), the model {network.info.channels}. Give the "
                "calibration of the same channels."
            )
        network = replace(network, info=replace(network.info, calibration=known))
    return Tool(network.info.name, network.info.calibration, network, network.info.ranges)


@functools.lru_cache(maxsize=2)
def _refiner(
    model: str | None,
    calibration: str | None,
    threads: int | None,
    device: str,
    corner_nm: tuple[float, float],
) -> "Refiner":
    from smlm_bridge.multi.work import refiner_of

    tool = loaded_tool(model, calibration, threads, device)
    return refiner_of(tool.calibration, ranges=tool.ranges, corner_nm=corner_nm)


def nothing_found(optics: Optics) -> Work:
    """A work that finds nothing: where a joint fit begins without candidates."""
    empty = pd.DataFrame({name: pd.Series(dtype="float64") for name in ("x_nm", "y_nm", "z_nm")})
    empty.insert(0, "frame", pd.Series(dtype="int64"))
    return Work(
        lambda _counts: empty,
        empty,
        lambda _counts: None,
        optics.pixel_nm,
        _BLOCK_PIXELS,
        stands_at=optics.stands_at,
    )


def absolute_calibration(path_or_name: str) -> str:
    """The file of a calibration, or of the shipped model that holds it, as other processes find it."""
    found = find_shipped(path_or_name)
    return str((found or Path(path_or_name)).resolve())


def absolute_model(path_or_name: str) -> str:
    """The file of a model given as a path or the name of a shipped one, as other processes find it."""
    return str(find_model(path_or_name).resolve())


def _file_hash(path: str | None) -> str | None:
    return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _file_mark(file: Path) -> list[Any]:
    """A file by name, size and time of its last change; a folder that is one movie by name."""
    if not file.is_file():
        return [str(file)]
    state = file.stat()
    return [str(file), state.st_size, state.st_mtime_ns]


def _camera_mark(camera: Camera) -> dict[str, Any]:
    """The camera's numbers; a map by its hash."""
    marks: dict[str, Any] = {}
    for name in ("offset", "e_per_adu", "read_noise_e", "em_gain"):
        value = getattr(camera, name)
        if isinstance(value, np.ndarray):
            marks[name] = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        else:
            marks[name] = float(value)
    return marks
