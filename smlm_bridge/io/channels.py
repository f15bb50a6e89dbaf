"""Two channels as one movie: an axis C, a second movie beside the first, or two parts of one chip."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.io.images import FrameSource, open_frames

Region = tuple[int, int, int, int]

HALVES: Final = ("left-right", "top-bottom")
SPLIT_FORM: Final = "left-right, top-bottom or X,Y,W,H;X,Y,W,H (column, row, width, height of each channel)"
_REGION: Final = re.compile(r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*")


def split_regions(split: str, width: int, height: int) -> tuple[Region, Region]:
    """The parts of a chip of ``width`` x ``height`` pixels that are channel 1 and channel 2.

    Parameters
    ----------
    split
        ``left-right`` or ``top-bottom`` (a middle column or row of an odd size belongs to neither), or two regions
        ``X,Y,W,H;X,Y,W,H``.

    Raises
    ------
    InputRejected
        If it is something else, a region lies outside, or the regions differ in size.
    """
    if split == "left-right":
        return (0, 0, width // 2, height), (width - width // 2, 0, width // 2, height)
    if split == "top-bottom":
        return (0, 0, width, height // 2), (0, height - height // 2, width, height // 2)
    first, second = parsed_split(split)
    for x, y, w, h in (first, second):
        if w < 1 or h < 1 or x + w > width or y + h > height:
            raise InputRejected(
                f"the channel {x},{y},{w},{h} of --split does not lie within the frames of {width}x{height} px "
                "(columns x rows)."
            )
    return first, second


def parsed_split(split: str) -> tuple[Region, Region]:
    """Two regions from ``X,Y,W,H;X,Y,W,H``.

    Raises
    ------
    InputRejected
        If the text is not that, or the regions differ in size.
    """
    parts = [_REGION.fullmatch(part) for part in split.split(";")]
    found = [part.groups() for part in parts if part is not None]
    if len(parts) != 2 or len(found) != 2:
        raise InputRejected(f"a split is {SPLIT_FORM}, got '{split}'.")
    first, second = ((int(x), int(y), int(w), int(h)) for x, y, w, h in found)
    if first[2:] != second[2:]:
        raise InputRejected(
            f"the channels of --split are {first[2]}x{first[3]} and {second[2]}x{second[3]} px; give regions of "
            "one size."
        )
    return first, second


class ChannelSource:
    """Two channels read as one movie; use it as a context manager. It is read as ``io.images.FrameSource`` is.

    Attributes
    ----------
    n_frames, n_channels, height, width, dtype, first_frame, pixel_nm, camera_offset
        As of ``FrameSource``; the size is that of each channel's region.
    x0, y0
        Column and row of channel 1's first pixel within its own movie: what positions of a table refer to.
    corners_px
        Column and row of each channel's first pixel on its own chip.
    roi_px, channel_shape
        Column and row where the region begins within each channel; rows and columns of the whole channel.
    """

    n_channels = 2

    def __init__(
        self, sources: Sequence[FrameSource], channels: Sequence[Region], roi: Region | None
    ) -> None:
        """Take one opened movie a channel, or one for both, the part of its frames that is the channel, and the
        region that is wanted of either.
        """
        parts = [_within(channel, roi) for channel in channels]
        self._sources, self._parts = tuple(sources), tuple(parts)
        self.roi_px = (0, 0) if roi is None else roi[:2]
        self.channel_shape = (channels[0][3], channels[0][2])
        first = sources[0]
        self.n_frames, self.first_frame = first.n_frames, first.first_frame
        self.pixel_nm, self.camera_offset = first.pixel_nm, first.camera_offset
        _, _, self.width, self.height = parts[0]
        self.dtype: np.dtype[Any] = np.result_type(*{source.dtype for source in sources})
        self.corners_px = tuple((x, y) for x, y, _, _ in parts)
        self.x0, self.y0 = self.corners_px[0]

    @property
    def description(self) -> dict[str, Any]:
        """What the files say of themselves, to be shown."""
        files = sum(source.description["files"] for source in self._sources)
        size = [self.height, self.width]
        return {**self._sources[0].description, "files": files, "channels": 2, "size_px": size}

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames ``start`` to ``stop`` (from 0 within the chosen frames, end excluded), (n, 2, H, W)."""
        frames = [source.read(start, stop)[:, 0] for source in self._sources]
        if len(frames) == 1:
            frames = frames * 2
        channels = [
            pixels[:, y : y + height, x : x + width]
            for pixels, (x, y, width, height) in zip(frames, self._parts, strict=True)
        ]
        return np.stack(channels, axis=1).astype(self.dtype, copy=False)

    def close(self) -> None:
        """Close all files."""
        for source in self._sources:
            source.close()

    def __enter__(self) -> Self:
        """The source itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        self.close()


Movie = FrameSource | ChannelSource


def open_channels(
    paths: str | Path | Sequence[str | Path],
    *,
    channel2: str | Path | Sequence[str | Path] = (),
    split: str | None = None,
    frames: tuple[int, int] | None = None,
    roi: Region | None = None,
) -> Movie:
    """Open a movie of one or two channels.

    Parameters
    ----------
    paths, frames
        As ``io.images.open_frames`` takes them; an axis C of the files is channels.
    channel2
        A second movie, of channel 2, with as many frames; empty for none.
    split
        How two channels lie on one chip, see ``split_regions``; None for not at all.
    roi
        Region in pixels, of each channel, from the channel's own corner.

    Raises
    ------
    InputRejected
        As ``open_frames``; if both ``channel2`` and ``split`` are given, or either beside an axis C, or the two
        movies differ in size or length.
    """
    second = [channel2] if isinstance(channel2, str | Path) else list(channel2)
    if second and split is not None:
        raise InputRejected(
            "channel 2 is a movie of its own (--channel2) or a part of the chip (--split), not both."
        )
    if not second and split is None:
        return open_frames(paths, frames=frames, roi=roi)
    opened: list[FrameSource] = []
    try:
        opened.append(open_frames(paths, frames=frames))
        if second:
            opened.append(open_frames(second, frames=frames))
            regions: tuple[Region, ...] = tuple((0, 0, source.width, source.height) for source in opened)
        else:
            regions = split_regions(str(split), opened[0].width, opened[0].height)
        _check_pair(opened)
        return ChannelSource(opened, regions, roi)
    except BaseException:
        for source in opened:
            source.close()
        raise


def _check_pair(sources: Sequence[FrameSource]) -> None:
    """Refuse movies that are no single channels, or that differ."""
    for source in sources:
        if source.n_channels != 1:
            raise InputRejected(
                f"a movie has {source.n_channels} channels already; --channel2 and --split go with movies of one."
            )
    first, second = sources[0], sources[-1]
    if (first.width, first.height) != (second.width, second.height):
        raise InputRejected(
            f"the frames of channel 1 are {first.width}x{first.height} px, those of channel 2 "
            f"{second.width}x{second.height} px; cut them to one size first."
        )
    if first.n_frames != second.n_frames:
        raise InputRejected(
            f"channel 1 has {first.n_frames} frames, channel 2 {second.n_frames}. Choose those that both have "
            f"(--frames 1:{min(first.n_frames, second.n_frames)})."
        )


def _within(region: Region, roi: Region | None) -> Region:
    """The part ``roi`` of a channel, on its chip."""
    if roi is None:
        return region
    x, y, width, height = roi
    if min(x, y) < 0 or min(width, height) < 1 or x + width > region[2] or y + height > region[3]:
        raise InputRejected(
            f"the region {x},{y},{width},{height} (column, row, width, height) does not lie within a channel of "
            f"{region[2]}x{region[3]} px (columns x rows)."
        )
    return region[0] + x, region[1] + y, width, height
