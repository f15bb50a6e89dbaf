"""ThunderSTORM's detector for a movie that is localized elsewhere, in this process or in others."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.bridge.engines import Engine, EngineOptions, find_candidates, open_engine
from smlm_bridge.bridge.jars import find_thunderstorm
from smlm_bridge.camera import Camera
from smlm_bridge.detect import DetectOptions


@dataclass(frozen=True)
class ThunderstormFinder:
    """ThunderSTORM's detector as a value: it travels to other processes and starts Java where it is called.

    Made by ``thunderstorm_finder``; ``str`` of it says what finds.
    """

    options: EngineOptions
    name: str

    def __str__(self) -> str:
        return self.name

    def __call__(
        self,
        counts: NDArray[Any],
        options: DetectOptions | None = None,
        *,
        pixel_nm: float,
        camera: Camera | None = None,
    ) -> pd.DataFrame:
        """See ``detect.detect_frames``."""
        engine, wanted = _shared(self.options), options or DetectOptions()
        return find_candidates(engine, counts, wanted, pixel_nm=pixel_nm, camera=camera or Camera())


@functools.lru_cache(maxsize=1)
def _shared(options: EngineOptions) -> Engine:
    return open_engine(options)


def thunderstorm_finder(options: EngineOptions | None = None) -> ThunderstormFinder | None:
    """ThunderSTORM's detector for ``localize``; None where there is no ThunderSTORM. Starts no Java."""
    wanted = options or EngineOptions()
    plugin = find_thunderstorm(wanted.plugins, fiji=wanted.fiji)
    if plugin is None:
        return None
    return ThunderstormFinder(replace(wanted, plugins=plugin.jar), f"thunderstorm {plugin.label}")
