"""Frames to a table: the network over a movie of any length, in bounded memory."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.frames import Block, Frames, Work, in_blocks
from smlm_bridge.model import Cameras, Model, check_channels, photons_of, seen_by_all
from smlm_bridge.networks.decode import decode
from smlm_bridge.networks.maps import MAP_NAMES

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalizeOptions:
    """How to localize.

    Parameters
    ----------
    threshold
        Least probability; None takes the model's.
    tile_px
        Larger frames are cut into tiles of this size, with an overlap: the result does not depend on it.
    block_pixels
        Pixels given to the network at once: bounds the memory.
    """

    threshold: float | None = None
    tile_px: int = 512
    block_pixels: int = 400_000

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputRejected(
                f"threshold {self.threshold} must lie between 0 and 1 (probability of an emitter)."
            )
        if self.tile_px < 64 or self.block_pixels < 1:
            raise InputRejected(
                f"tile_px {self.tile_px} must be 64 or more, block_pixels {self.block_pixels} 1 or more."
            )


def localize(
    source: Frames,
    model: Model,
    *,
    camera: Cameras = None,
    options: LocalizeOptions = LocalizeOptions(),
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[Block]:
    """Localize every frame of a movie, block by block, in order.

    Parameters
    ----------
    source
        The movie.
    model
        The network; its calibration knows the cameras unless ``camera`` is given.
    camera, options
        See ``Cameras`` and ``LocalizeOptions``.
    on_step
        Called with (frames done, frames in all).

    Yields
    ------
    Block
        A frame that cannot be read or is not finite is reported in ``failed``; the rest goes on.

    Raises
    ------
    InputRejected
        If no frame can be localized: the model takes other channels, or a map of the camera has another size.
    """
    yield from in_blocks(source, localize_work(model, camera=camera, options=options), on_step=on_step)


def localize_work(
    model: Model,
    *,
    camera: Cameras = None,
    options: LocalizeOptions = LocalizeOptions(),
    corner_nm: tuple[float, float] = (0.0, 0.0),
) -> Work:
    """What is done with the frames of a movie to localize its emitters with a network; see ``localize``.

    ``corner_nm`` is where the movie's region begins within either channel (x, y): a pair's transform is that of
    whole frames. Emitters that lie outside the second channel's frames are left out.
    """
    if model.info.box_px:
        raise InputRejected(
            f"the model '{model.info.name}' takes boxes of single emitters, not frames. Use singles.single_work."
        )
    _refuse_volumes(model)
    return Work(
        find=lambda counts: localize_frames(
            counts, model, camera=camera, options=options, corner_nm=corner_nm
        ),
        empty=_table({name: np.zeros(0) for name in (*MAP_NAMES, "image", "x_nm", "y_nm")}),
        check=lambda counts: check_channels(counts, model, camera),
        pixel_nm=model.info.calibration.optics.pixel_nm,
        block_pixels=options.block_pixels,
        context=model.info.context_frames,
        stands_at=model.info.calibration.optics.stands_at,
    )


def localize_frames(
    counts: NDArray[np.generic],
    model: Model,
    *,
    camera: Cameras,
    options: LocalizeOptions,
    corner_nm: tuple[float, float] = (0.0, 0.0),
) -> pd.DataFrame:
    """Localize frames (T, C, H, W) in counts; frames count from 0, x and y from the corner of this array.

    A model that looks at neighbouring frames takes their channels, too: (T, (2k + 1) C, H, W), see
    ``frames.Work.context``. ``corner_nm`` as for ``localize_work``.

    Raises
    ------
    InputRejected
        If the number of channels is not the model's or a value is not finite.
    """
    info = model.info
    _refuse_volumes(model)
    photons = photons_of(counts, model, camera, corner_nm=corner_nm)
    threshold = info.threshold if options.threshold is None else options.threshold
    pixel_nm = info.calibration.optics.pixel_nm
    maps = run_tiled(photons, model, tile_px=options.tile_px, block_pixels=options.block_pixels)
    found = decode(maps, pixel_nm=pixel_nm, threshold=threshold)
    return seen_by_all(_table(found), model, photons.shape[2:], corner_nm=corner_nm)


def _refuse_volumes(model: Model) -> None:
    if model.info.volume is not None:
        raise InputRejected(f"the model '{model.info.name}' returns volumes. Use volumes.volume_work.")


def run_tiled(
    photons: NDArray[np.float32], model: Model, *, tile_px: int, block_pixels: int
) -> NDArray[np.float32]:
    """Maps (T, 10, H, W) of frames (T, C, H, W) of any size.

    Every tile sees as far beyond its own edge as the network looks, on the network's own grid, so that the
    maps do not depend on the tiling.
    """
    info = model.info
    step = info.size_step
    height, width = photons.shape[2:]
    padding = [(0, 0), (0, 0), (0, -height % step), (0, -width % step)]
    padded = np.pad(photons, padding, mode="edge")
    halo = -(-info.reach_px // step) * step
    core = max(step, tile_px // step * step)
    maps = np.empty((photons.shape[0], len(MAP_NAMES), *padded.shape[2:]), np.float32)
    for rows in spans(padded.shape[2], core, halo):
        for columns in spans(padded.shape[3], core, halo):
            tile = padded[:, :, rows.seen, columns.seen]
            count = max(1, block_pixels // (tile.shape[2] * tile.shape[3]))
            for first in range(0, len(tile), count):
                out = model.run(tile[first : first + count])
                maps[first : first + count, :, rows.own, columns.own] = out[:, :, rows.inner, columns.inner]
    return maps[:, :, :height, :width]


@dataclass(frozen=True)
class Span:
    """A tile along one axis: what it answers for, what it sees, and where the first lies in the second."""

    own: slice
    seen: slice
    inner: slice


def spans(length: int, core: int, halo: int) -> list[Span]:
    """Cut one axis into tiles of at most ``core`` that see ``halo`` further, where there is more."""
    if length <= core + 2 * halo:
        whole = slice(0, length)
        return [Span(whole, whole, whole)]
    tiles = []
    for start in range(0, length, core):
        stop = min(length, start + core)
        seen = slice(max(0, start - halo), min(length, stop + halo))
        tiles.append(Span(slice(start, stop), seen, slice(start - seen.start, stop - seen.start)))
    return tiles


def _table(found: dict[str, NDArray[np.float64]]) -> pd.DataFrame:
    """The decoder's arrays under the names of ``locs.SCHEMA``."""
    lateral = np.sqrt((found["sigma_x_nm"] ** 2 + found["sigma_y_nm"] ** 2) / 2)
    return pd.DataFrame(
        {
            "frame": found["image"].astype(np.int64),
            "x_nm": found["x_nm"],
            "y_nm": found["y_nm"],
            "z_nm": found["z_nm"],
            "photons": found["photons"],
            "background": found["background"],
            "uncertainty_xy_nm": lateral,
            "uncertainty_z_nm": found["sigma_z_nm"],
            "uncertainty_x_nm": found["sigma_x_nm"],
            "uncertainty_y_nm": found["sigma_y_nm"],
            "uncertainty_photons": found["sigma_photons"],
            "probability": found["probability"],
        }
    )
