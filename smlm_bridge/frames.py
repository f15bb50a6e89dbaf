"""A movie read in blocks, and work done on it block by block: what ``detect`` and ``localize`` share."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError

_LOG = logging.getLogger(__name__)

Counts = NDArray[np.generic]


class Frames(Protocol):
    """A movie that is read in blocks; ``io.images`` has the implementation for files."""

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        ...

    @property
    def first_frame(self) -> int:
        """Index (from 0) of the first frame within the whole input movie."""
        ...

    @property
    def x0(self) -> int:
        """First column within the whole input movie."""
        ...

    @property
    def y0(self) -> int:
        """First row within the whole input movie."""
        ...

    def read(self, start: int, stop: int) -> Counts:
        """(stop - start, C, H, W) counts."""
        ...


@dataclass(frozen=True)
class Block:
    """The result for one block of frames; ``failed`` maps a frame (index within the movie) to the reason."""

    first: int
    stop: int
    table: pd.DataFrame
    failed: dict[int, str]


@dataclass(frozen=True)
class Work:
    """What is done with the frames of a movie.

    Parameters
    ----------
    find
        Counts (T, C, H, W) to a table whose ``frame``, ``x_nm``, ``y_nm`` (and ``row``, ``column`` if there) refer
        to these counts; raises ``InputRejected`` for a frame it cannot work on.
    empty
        A table of ``find`` without rows.
    check
        Refuses, with ``InputRejected``, what would fail in every frame.
    pixel_nm
        Camera pixel.
    block_pixels
        Pixels that are worked on at once.
    """

    find: Callable[[Counts], pd.DataFrame]
    empty: pd.DataFrame
    check: Callable[[Counts], None]
    pixel_nm: float
    block_pixels: int


def in_blocks(
    source: Frames, work: Work, *, on_step: Callable[[int, int], None] | None = None
) -> Iterator[Block]:
    """Work through a movie in order; positions and frames of the tables refer to the whole input movie.

    A frame that cannot be read or worked on is reported in ``failed``; the rest goes on.

    Raises
    ------
    InputRejected
        If ``work.check`` refuses.
    """
    done, count = 0, 1
    while done < source.n_frames:
        stop = min(source.n_frames, done + count)
        block, pixels = _block(source, done, stop, work)
        if pixels:
            count = max(1, work.block_pixels // pixels)
        yield block
        done = stop
        if on_step is not None:
            on_step(done, source.n_frames)


def _block(source: Frames, start: int, stop: int, work: Work) -> tuple[Block, int]:
    """Frames start to stop, and how many pixels a frame has (0 if not known)."""
    try:
        counts = source.read(start, stop)
    except MissingDependency:
        raise
    except (SmlmError, OSError, ValueError) as error:
        return _one_by_one(error, source, start, stop, work)
    work.check(counts)
    try:
        table = work.find(counts)
    except InputRejected as error:
        return _one_by_one(error, source, start, stop, work)
    offsets = {
        "frame": source.first_frame + start,
        "x_nm": source.x0 * work.pixel_nm,
        "y_nm": source.y0 * work.pixel_nm,
        "column": source.x0,
        "row": source.y0,
    }
    for column in offsets.keys() & set(table.columns):
        table[column] += offsets[column]
    return Block(start, stop, table, {}), counts.shape[-2] * counts.shape[-1]


def _one_by_one(error: Exception, source: Frames, start: int, stop: int, work: Work) -> tuple[Block, int]:
    """What is left of a block that failed with ``error``: each frame alone, the bad ones reported."""
    if stop - start == 1:
        frame = source.first_frame + start
        _LOG.warning("frame %d: %s", frame + 1, error)
        return Block(start, stop, work.empty.copy(), {frame: str(error)}), 0
    parts = [_block(source, i, i + 1, work) for i in range(start, stop)]
    failed = {frame: reason for part, _ in parts for frame, reason in part.failed.items()}
    tables = [part.table for part, _ in parts if len(part.table)] or [work.empty]
    merged = pd.concat(tables, ignore_index=True)
    return Block(start, stop, merged, failed), max(pixels for _, pixels in parts)
