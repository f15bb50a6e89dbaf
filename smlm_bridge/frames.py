"""A movie read in blocks, and work done on it block by block: what ``detect`` and ``localize`` share."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError

_LOG = logging.getLogger(__name__)

Counts = NDArray[np.generic]
Read = Callable[[int, int], Counts]


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
        Counts (T, (2k + 1) C, H, W), k being ``context``, to a table whose ``frame``, ``x_nm``, ``y_nm`` (and
        ``row``, ``column`` if there) refer to these counts; raises ``InputRejected`` for a frame it cannot
        work on.
    empty
        A table of ``find`` without rows.
    check
        Refuses, with ``InputRejected``, what would fail in every frame.
    pixel_nm
        Camera pixel.
    block_pixels
        Pixels that are worked on at once.
    context
        Frames before and after each frame that ``find`` looks at: their channels stand before and behind the
        frame's own, in the order of time. A neighbour that is not there (before the first frame, behind the
        last), cannot be read or is not finite is replaced by the frame itself.
    stands_at
        Takes positions (n, 2) in the image of the whole movie to those in the sample (``Optics.stands_at``);
        None where they are the same.
    """

    find: Callable[[Counts], pd.DataFrame]
    empty: pd.DataFrame
    check: Callable[[Counts], None]
    pixel_nm: float
    block_pixels: int
    context: int = 0
    stands_at: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None

    def own(self, counts: Counts) -> Counts:
        """The frames (T, C, H, W) themselves, of counts with their neighbours."""
        channels = counts.shape[1] // (2 * self.context + 1)
        return counts[:, self.context * channels : (self.context + 1) * channels]


def in_blocks(
    source: Frames,
    work: Work,
    *,
    start: int = 0,
    stop: int | None = None,
    n_frames: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[Block]:
    """Work through a movie in order; positions and frames of the tables refer to the whole input movie.

    The next frames are read while these are worked on. A frame that cannot be read or worked on is reported
    in ``failed``; the rest goes on.

    Parameters
    ----------
    source, work
        The movie, and what is done with its frames.
    start, stop
        Frames of the source (from 0, end excluded); None means to its end.
    n_frames
        Frames of the movie, beyond which no neighbours are looked at; None means all of the source.
    on_step
        Called with (frames done, frames in all).

    Raises
    ------
    InputRejected
        If ``work.check`` refuses.
    """
    end = source.n_frames if stop is None else stop
    read: Read = source.read
    if work.context:
        read = functools.partial(_with_neighbours, source, work.context, n_frames or source.n_frames)
    first, last = start, min(start + 1, end)
    # All reading ahead happens in one thread, and none while a frame is read again: a source is read by one.
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
        ahead = reader.submit(read, first, last)
        while first < end:
            failure: Exception | None = None
            try:
                counts = ahead.result()
            except MissingDependency:
                raise
            except (SmlmError, OSError, ValueError) as error:
                failure, count = error, last - first
            else:
                count = max(1, work.block_pixels // max(1, counts.shape[-2] * counts.shape[-1]))
            following = min(end, last + count)
            if failure is not None:
                block = _one_by_one(failure, read, source, (first, last), work)
            if last < end:
                ahead = reader.submit(read, last, following)
            if failure is None:
                block = _worked(counts, source, (first, last), work)
            yield block
            first, last = last, following
            if on_step is not None:
                on_step(first - start, end - start)


def whole_block(blocks: Iterable[Block], work: Work) -> Block:
    """The blocks of one stretch of frames, in order, as one block."""
    parts = list(blocks)
    tables = [part.table for part in parts if len(part.table)] or [work.empty]
    failed = {frame: reason for part in parts for frame, reason in part.failed.items()}
    return Block(parts[0].first, parts[-1].stop, pd.concat(tables, ignore_index=True), failed)


def _with_neighbours(source: Frames, context: int, n_frames: int, start: int, stop: int) -> Counts:
    """Counts of frames with those of their neighbours, as ``Work.context`` says.

    Each frame's depend on the movie alone, not on where a block begins or ends.
    """
    own = source.read(start, stop)
    around = (*range(max(0, start - context), start), *range(stop, min(n_frames, stop + context)))
    seen = {i: frame for i in around if (frame := _readable(source, i)) is not None}
    seen |= {start + i: frame for i, frame in enumerate(own)}
    usable = {i: frame for i, frame in seen.items() if np.isfinite(frame).all()}
    steps = range(-context, context + 1)
    return np.stack(
        [np.concatenate([usable.get(start + i + k, frame) for k in steps]) for i, frame in enumerate(own)]
    )


def _readable(source: Frames, number: int) -> Counts | None:
    """A frame (C, H, W), None if it is damaged."""
    try:
        frame: Counts = source.read(number, number + 1)[0]
    except MissingDependency:
        raise
    except (SmlmError, OSError, ValueError):
        return None
    return frame


def _worked(counts: Counts, source: Frames, span: tuple[int, int], work: Work) -> Block:
    """The result for frames that were read; the bad ones of them reported."""
    start, stop = span
    work.check(counts)
    try:
        table = work.find(counts)
    except InputRejected as error:
        return _one_by_one(error, lambda i, j: counts[i - start : j - start], source, span, work)
    offsets = {
        "frame": source.first_frame + start,
        "x_nm": source.x0 * work.pixel_nm,
        "y_nm": source.y0 * work.pixel_nm,
        "column": source.x0,
        "row": source.y0,
    }
    for column in offsets.keys() & set(table.columns):
        table[column] += offsets[column]
    if work.stands_at is not None:
        table[["x_nm", "y_nm"]] = work.stands_at(table[["x_nm", "y_nm"]].to_numpy(np.float64))
    return Block(start, stop, table, {})


def _one_by_one(error: Exception, read: Read, source: Frames, span: tuple[int, int], work: Work) -> Block:
    """What is left of a block that failed with ``error``: each frame alone, the bad ones reported."""
    start, stop = span
    if stop - start == 1:
        frame = source.first_frame + start
        _LOG.warning("frame %d: %s", frame + 1, error)
        return Block(start, stop, work.empty.copy(), {frame: str(error)})
    parts = []
    for i in range(start, stop):
        try:
            counts = read(i, i + 1)
        except (SmlmError, OSError, ValueError) as reason:
            parts.append(_one_by_one(reason, read, source, (i, i + 1), work))
        else:
            parts.append(_worked(counts, source, (i, i + 1), work))
    return whole_block(parts, work)
