"""What a process needs to localize blocks of one movie: plain values that travel to other machines."""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smlm_bridge import __version__
from smlm_bridge.camera import Camera
from smlm_bridge.frames import Work
from smlm_bridge.io.images import FrameSource, open_frames
from smlm_bridge.io.model import find_model, load_model
from smlm_bridge.localize import LocalizeOptions, localize_work
from smlm_bridge.model import Model


@dataclass(frozen=True)
class Recipe:
    """How one movie is localized.

    Parameters
    ----------
    inputs
        Files, folders or patterns of the movie, as absolute paths.
    model
        File of the network, absolute.
    camera
        Of the region that is read.
    frames, roi, threshold
        As ``io.images.open_frames`` and ``LocalizeOptions`` take them.
    device, threads
        Where the network runs; they do not change the table.
    """

    inputs: tuple[str, ...]
    model: str
    camera: Camera
    frames: tuple[int, int] | None = None
    roi: tuple[int, int, int, int] | None = None
    threshold: float | None = None
    device: str = "cpu"
    threads: int | None = None

    @contextmanager
    def opened(self) -> Iterator[tuple[FrameSource, Work]]:
        """The movie, and what is done with its frames; the network is loaded once a process."""
        with open_frames(self.inputs, frames=self.frames, roi=self.roi) as source:
            yield source, self.work()

    def work(self) -> Work:
        """What is done with the frames."""
        network = loaded_model(self.model, self.threads, self.device)
        return localize_work(network, camera=self.camera, options=LocalizeOptions(threshold=self.threshold))

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the table, for the manifest of its parts."""
        return {
            "made_by": f"smlm_bridge {__version__}, localize",
            "input": [_file_mark(path) for path in self.inputs],
            "model_sha256": hashlib.sha256(Path(self.model).read_bytes()).hexdigest(),
            "camera": _camera_mark(self.camera),
            "frames": None if self.frames is None else list(self.frames),
            "roi": None if self.roi is None else list(self.roi),
            "threshold": self.threshold,
        }


@functools.lru_cache(maxsize=2)
def loaded_model(path: str, threads: int | None, device: str) -> Model:
    """A model, loaded once a process."""
    return load_model(path, threads=threads, device=device)


def absolute_model(path_or_name: str) -> str:
    """The file of a model given as a path or the name of a shipped one, as other processes find it."""
    return str(find_model(path_or_name).resolve())


def _file_mark(path: str) -> list[Any]:
    """A file by name, size and time of its last change; a folder or pattern by name."""
    file = Path(path)
    if not file.is_file():
        return [path]
    state = file.stat()
    return [path, state.st_size, state.st_mtime_ns]


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
