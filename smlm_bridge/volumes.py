"""Frames to a table by a network of volumes: tile by tile, so that no whole volume is ever held. No torch."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.frames import Work
from smlm_bridge.localize import LocalizeOptions, Span, spans
from smlm_bridge.model import Cameras, Model, Run, check_channels, photons_of, seen_by_all
from smlm_bridge.networks.decode_volume import decode_volume
from smlm_bridge.networks.volume_grid import VolumeGrid

_CONTEXT_TILE_PX: Final = 256
_TILE_VOXELS: Final = 8_000_000  # of one tile's volume; the network holds about five tensors of this size
_LEAST_TILE_PX: Final = 8


def volume_work(
    model: Model,
    *,
    camera: Cameras = None,
    options: LocalizeOptions = LocalizeOptions(),  # noqa: B008 - frozen
    corner_nm: tuple[float, float] = (0.0, 0.0),
) -> Work:
    """What is done with the frames of a movie to localize its emitters with a network of volumes.

    The table has positions and ``confidence`` (the peak's value over the highest, no probability); the network
    knows no uncertainties, so those are NaN, and it counts no photons.

    Parameters
    ----------
    model
        Of the system ``volume``; its calibration knows the cameras unless ``camera`` is given.
    camera
        Of the movie's region, or those of two channels.
    options
        ``threshold`` is the least value of a peak as a share of the highest.
    corner_nm
        As ``localize.localize_work`` takes it.

    Raises
    ------
    InputRejected
        If the model returns no volumes.
    """
    if model.info.volume is None or model.stages is None:
        raise InputRejected(
            f"the model '{model.info.name}' (system {model.info.system}) returns no volumes. Use "
            "localize.localize_work."
        )
    grid, stages = model.info.volume, model.stages

    def find(counts: NDArray[np.generic]) -> pd.DataFrame:
        photons = photons_of(counts, model, camera, corner_nm=corner_nm)
        tables = [_one_frame(frame[None], model, grid, stages, options) for frame in photons]
        frame = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        table = _table(pd.concat(tables, ignore_index=True).assign(frame=frame))
        return seen_by_all(table, model, photons.shape[2:], corner_nm=corner_nm)

    nothing = decode_volume(np.zeros((1, 1, 1), np.float32), grid, pixel_nm=1.0, threshold=0.5)
    return Work(
        find=find,
        empty=_table(pd.DataFrame({**nothing, "frame": np.zeros(0, np.int64)})),
        check=lambda counts: check_channels(counts, model, camera),
        pixel_nm=model.info.calibration.optics.pixel_nm,
        block_pixels=options.block_pixels,
        context=model.info.context_frames,
        stands_at=model.info.calibration.optics.stands_at,
    )


def tile_px(grid: VolumeGrid, most: int) -> int:
    """Side of the tiles of the volume, camera pixels: as large as the voxels that may be held, and ``most``."""
    seen = math.isqrt(_TILE_VOXELS // (grid.planes * grid.upsampling**2))
    return min(most, max(_LEAST_TILE_PX, seen - 2 * (grid.tail_reach_px + grid.peak_reach_px)))


def _one_frame(
    photons: NDArray[np.float32],
    model: Model,
    grid: VolumeGrid,
    stages: tuple[Run, Run],
    options: LocalizeOptions,
) -> pd.DataFrame:
    """Emitters of one frame (1, C, H, W)."""
    info = model.info
    threshold = info.threshold if options.threshold is None else options.threshold
    height, width = photons.shape[2:]
    step = info.size_step
    padded = np.pad(photons, [(0, 0), (0, 0), (0, -height % step), (0, -width % step)], mode="edge")
    tables = [
        pd.DataFrame(_peaks(volume, rows, columns, grid, info.calibration.optics.pixel_nm, threshold))
        for rows, columns, volume in _volumes(padded, model, grid, stages, tile_px(grid, options.tile_px))
    ]
    return pd.concat(tables, ignore_index=True)


def _volumes(
    photons: NDArray[np.float32], model: Model, grid: VolumeGrid, stages: tuple[Run, Run], core: int
) -> Iterator[tuple[Span, Span, NDArray[np.float32]]]:
    """The volume in tiles.

    What looks far is computed once for a wide tile at camera resolution; of its features small tiles are refined,
    each as far beyond its own edge as the refinement and the decoder look.
    """
    context, tail = stages
    margin = grid.tail_reach_px + grid.peak_reach_px
    halo = (
        -(-(model.info.reach_px - grid.tail_reach_px + margin) // model.info.size_step) * model.info.size_step
    )
    wide = -(-max(core, _CONTEXT_TILE_PX) // core) * core
    rows_all, columns_all = (spans(side, core, margin) for side in photons.shape[2:])
    for far_rows in spans(photons.shape[2], wide, halo):
        for far_columns in spans(photons.shape[3], wide, halo):
            features = context(photons[:, :, far_rows.seen, far_columns.seen])
            for rows in _within(rows_all, far_rows):
                for columns in _within(columns_all, far_columns):
                    part = features[:, :, _moved(rows, far_rows), _moved(columns, far_columns)]
                    yield rows, columns, tail(part)[0]


def _within(tiles: list[Span], wide: Span) -> list[Span]:
    return [tile for tile in tiles if wide.own.start <= tile.own.start < wide.own.stop]


def _moved(tile: Span, wide: Span) -> slice:
    """What a tile sees, in what the wide one sees."""
    return slice(tile.seen.start - wide.seen.start, tile.seen.stop - wide.seen.start)


def _peaks(
    volume: NDArray[np.float32],
    rows: Span,
    columns: Span,
    grid: VolumeGrid,
    pixel_nm: float,
    threshold: float,
) -> dict[str, NDArray[np.float64]]:
    """Emitters whose peak a tile answers for, from the corner of the frame."""
    found = decode_volume(volume, grid, pixel_nm=pixel_nm, threshold=threshold)
    row, column = (
        found[name] / grid.upsampling + span.seen.start for name, span in (("row", rows), ("column", columns))
    )
    own = (row >= rows.own.start) & (row < rows.own.stop)
    own &= (column >= columns.own.start) & (column < columns.own.stop)
    found["x_nm"] += columns.seen.start * pixel_nm
    found["y_nm"] += rows.seen.start * pixel_nm
    return {name: values[own] for name, values in found.items()}


def _table(found: pd.DataFrame) -> pd.DataFrame:
    """The decoder's arrays under the names of ``locs.SCHEMA``, in the order of frames."""
    table = found[["frame", "x_nm", "y_nm", "z_nm"]].copy()
    table["uncertainty_xy_nm"] = np.nan
    table["uncertainty_z_nm"] = np.nan
    table["confidence"] = found["confidence"]
    return table
