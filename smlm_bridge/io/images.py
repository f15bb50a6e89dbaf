"""Camera frames and bead stacks from disk, frames in bounded memory, and stacks back to disk."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import tifffile
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.movies import (
    FILE_SUFFIXES,
    OpenMovie,
    VendorMovie,
    inspect_vendor,
    is_vendor_movie,
    read_vendor,
)
from smlm_bridge.io.tiff import Movie, inspect, open_tiff, read_planes

_SUFFIXES: Final = (".tif", ".tiff", ".btf", ".tf8")
_OME_SUFFIXES: Final = (".ome.tif", ".ome.tiff")
_OPEN_FILES = 4
_BIGTIFF_BYTES = 2**32 - 2**25  # a classic TIFF addresses 4 GiB; the rest is room for the pages' tags


class FrameSource:
    """A movie on disk, of one or many files, read block by block; use it as a context manager.

    Attributes
    ----------
    n_frames, n_channels, height, width
        Size of what ``read`` gives, within the chosen frames and region.
    dtype
        Type of the pixels as stored (the common type where files differ).
    first_frame
        Number of the first frame within the whole input, from 0.
    x0, y0
        Column and row of the region's first pixel within the whole frame.
    pixel_nm
        Pixel size that the file states, None if it does not.
    camera_offset
        Counts (ADU) without light that the file states, None if it does not.
    """

    def __init__(
        self, movies: Sequence[Movie | VendorMovie], frames: tuple[int, int], roi: tuple[int, int, int, int]
    ) -> None:
        """Take inspected files and checked limits; see ``open_frames``."""
        self._movies = tuple(movies)
        self._ends = np.cumsum([movie.n_frames for movie in movies])
        self._open: dict[int, tifffile.TiffFile | OpenMovie] = {}
        self.first_frame, stop = frames
        self.n_frames = stop - self.first_frame
        self.n_channels = movies[0].n_channels
        self.x0, self.y0, self.width, self.height = roi
        self.dtype: np.dtype[Any] = np.result_type(*{movie.dtype for movie in movies})
        self.pixel_nm = movies[0].pixel_nm
        self.camera_offset = movies[0].camera_offset

    @property
    def corners_px(self) -> tuple[tuple[int, int], ...]:
        """Column and row of the region's first pixel, for each channel."""
        return ((self.x0, self.y0),) * self.n_channels

    @property
    def roi_px(self) -> tuple[int, int]:
        """Column and row where the region begins within each channel."""
        return self.x0, self.y0

    @property
    def channel_shape(self) -> tuple[int, int]:
        """Rows and columns of the whole frames."""
        return self._movies[0].height, self._movies[0].width

    @property
    def description(self) -> dict[str, Any]:
        """What the files say of themselves, to be shown."""
        return {
            "files": len(self._movies),
            "frames": self.n_frames,
            "channels": self.n_channels,
            "size_px": [self.height, self.width],
            "dtype": str(self.dtype),
            "pixel_nm": self.pixel_nm,
            "camera_offset": self.camera_offset,
        }

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames ``start`` to ``stop`` (from 0 within the chosen frames, end excluded), (n, C, H, W).

        Raises
        ------
        InputRejected
            If the range lies outside.
        SmlmError
            If a file is damaged or was shortened meanwhile.
        """
        if not 0 <= start <= stop <= self.n_frames:
            raise InputRejected(f"frames {start} to {stop} asked for, the source has {self.n_frames}.")
        blocks = []
        frame, end = start + self.first_frame, stop + self.first_frame
        while frame < end:
            number = int(np.searchsorted(self._ends, frame, side="right"))
            last = min(end, int(self._ends[number]))
            blocks.append(self._read_movie(number, frame, last))
            frame = last
        if not blocks:
            return np.empty((0, self.n_channels, self.height, self.width), self.dtype)
        return (blocks[0] if len(blocks) == 1 else np.concatenate(blocks)).astype(self.dtype, copy=False)

    def _read_movie(self, number: int, start: int, stop: int) -> NDArray[Any]:
        """Frames of one file, counted within the whole input, cut to the region."""
        movie = self._movies[number]
        before = int(self._ends[number]) - movie.n_frames
        planes = movie.plane[start - before : stop - before]
        if isinstance(movie, VendorMovie):
            pixels = read_vendor(movie, planes.ravel(), self._opened(number))
        else:
            raw = movie.offset is not None
            pixels = read_planes(movie, planes.ravel(), None if raw else self._opened(number))
        pixels = pixels[:, self.y0 : self.y0 + self.height, self.x0 : self.x0 + self.width]
        return np.ascontiguousarray(pixels).reshape(*planes.shape, self.height, self.width)

    def _opened(self, number: int) -> Any:
        """The file, kept open: finding its pages again is slow. Only a few, as systems limit open files."""
        if number not in self._open:
            while len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            movie = self._movies[number]
            self._open[number] = movie.open() if isinstance(movie, VendorMovie) else open_tiff(movie.path)
        return self._open[number]

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Self:
        """The source itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        self.close()


def open_frames(
    paths: str | Path | Sequence[str | Path],
    *,
    frames: tuple[int, int] | None = None,
    roi: tuple[int, int, int, int] | None = None,
) -> FrameSource:
    """Open a movie: TIFF, BigTIFF, ImageJ or OME-TIFF files (joined in time), folders or glob patterns.

    With the extra ``movies`` also .nd2, .czi and .lif files, and the folders of NDTiff and OME-Zarr.

    Files of a folder or pattern are taken in natural order (frame2 before frame10), files of a list in its
    order; the further files of an OME set count once. Axes: T, or Z without T, is time; C is channels, and so
    is a short axis without a name after time.

    Parameters
    ----------
    paths
        Files, folders or patterns.
    frames
        First and last frame, from 1, both included; None for all.
    roi
        Column, row, width and height of the region in pixels; None for the whole frame.

    Raises
    ------
    InputRejected
        If nothing is found, a file is no movie or cut off (the message says how many frames are readable),
        files differ in size, or the frames or the region lie outside.
    MissingDependency
        If the format or the compression of a file needs another package.
    """
    movies: list[Movie | VendorMovie] = []
    seen: set[Path] = set()
    for path in _files([paths] if isinstance(paths, str | Path) else paths):
        if path.resolve() in seen:
            continue
        movie = inspect_vendor(path) if is_vendor_movie(path) else inspect(path)
        seen |= movie.files if len(movie.files) > 1 else set()
        movies.append(movie)
    _check_alike(movies)
    span = _check_frames(movies, frames)
    return FrameSource(movies, span, _check_roi(movies[0], roi))


def movie_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files of folders and patterns, each a movie of its own, in natural order.

    Raises
    ------
    InputRejected
        If nothing is found.
    """
    return list(dict.fromkeys(path.resolve() for path in _files(paths)))


def _files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that the given files, folders and patterns stand for."""
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir() and not is_vendor_movie(path):
            known = (*_SUFFIXES, *FILE_SUFFIXES)
            inside = [p for p in path.iterdir() if p.suffix.lower() in known and not p.name.startswith(".")]
            if not inside:
                raise InputRejected(
                    f"folder {given} holds no TIFF images or other movies ({', '.join(known)})."
                )
            found += sorted(inside, key=_natural)
        elif path.exists():
            found.append(path)
        elif glob.has_magic(os.fspath(given)):
            matches = sorted(
                (Path(match) for match in glob.glob(os.fspath(given), recursive=True)), key=_natural
            )
            if not matches:
                raise InputRejected(f"no file matches the pattern {given}.")
            found += matches
        else:
            raise InputRejected(f"image {given} does not exist.")
    if not found:
        raise InputRejected("no images were given; give a file, a folder or a pattern.")
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key that takes digits as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _check_alike(movies: Sequence[Movie | VendorMovie]) -> None:
    first = movies[0]
    for movie in movies:
        if (movie.height, movie.width, movie.n_channels) != (first.height, first.width, first.n_channels):
            raise InputRejected(
                f"the frames of {movie.path} are {movie.width}x{movie.height} px with {movie.n_channels} "
                f"channel(s), those of {first.path} {first.width}x{first.height} px with {first.n_channels}; "
                "files of one movie are alike."
            )


def _check_frames(movies: Sequence[Movie | VendorMovie], frames: tuple[int, int] | None) -> tuple[int, int]:
    """First frame from 0 and the end, excluded."""
    total = sum(movie.n_frames for movie in movies)
    readable = 0
    for movie in movies:
        readable += movie.n_frames
        if movie.cut_off and (frames is None or frames[1] > readable):
            of = f" of {movie.declared}" if movie.declared else ""
            advice = f" To use them, choose frames 1:{readable} (--frames)." if readable else ""
            raise InputRejected(
                f"image {movie.path} is cut off: {movie.n_frames}{of} frame(s) are readable. "
                f"Copy it again from where it was recorded.{advice}"
            )
    if frames is None:
        return 0, total
    first, last = frames
    if not 1 <= first <= last <= total:
        raise InputRejected(f"frames {first}:{last} asked for, the movie has the frames 1:{total}.")
    return first - 1, last


def _check_roi(
    movie: Movie | VendorMovie, roi: tuple[int, int, int, int] | None
) -> tuple[int, int, int, int]:
    if roi is None:
        return 0, 0, movie.width, movie.height
    x, y, width, height = roi
    if min(x, y) < 0 or min(width, height) < 1 or x + width > movie.width or y + height > movie.height:
        raise InputRejected(
            f"the region {x},{y},{width},{height} (column, row, width, height) does not lie within the "
            f"frames of {movie.width}x{movie.height} px (columns x rows)."
        )
    return x, y, width, height


def read_stack(path: str | Path) -> NDArray[Any]:
    """Read a bead stack as a whole: (z, y, x), or (channel, z, y, x) if it has channels.

    Raises
    ------
    InputRejected
        As ``open_frames``; the axis Z, or T without Z, is the stack's.
    """
    with open_frames(path) as source:
        stack = np.moveaxis(source.read(0, source.n_frames), 1, 0)
    return stack[0] if len(stack) == 1 else stack


def write_stack(
    path: str | Path,
    array: NDArray[Any],
    *,
    pixel_nm: float | None = None,
    slice_nm: float | None = None,
    axes: str = "TYX",
    overwrite: bool = False,
) -> None:
    """Write a stack that ImageJ opens with its pixel size, whole or not at all.

    A name that ends in .ome.tif gives an OME-TIFF, and so does a stack above 4 GB (as BigTIFF), which Fiji opens
    through Bio-Formats.

    Parameters
    ----------
    path
        The file, .tif or .ome.tif.
    array
        Pixels in the order of ``axes``. ImageJ knows uint8, uint16 and float32; others become float32.
    pixel_nm
        Pixel size.
    slice_nm
        Distance of slices in z.
    axes
        One letter an axis: T, Z, C, and Y, X at the end; ImageJ's order is TZCYX.

    Raises
    ------
    InputRejected
        If axes and array do not fit, values do not fit float32, or the target cannot be written.
    """
    if len(axes) != array.ndim or not axes.endswith("YX") or not set(axes[:-2]) <= set("TZC"):
        raise InputRejected(
            f"axes {axes!r} do not describe an array of shape {array.shape}; give one letter an axis, T, Z "
            "and C before Y and X."
        )
    pixels = _imagej_pixels(array)
    options: dict[str, Any] = {"photometric": "minisblack", "metadata": {"axes": axes}}
    as_ome = Path(path).name.lower().endswith(_OME_SUFFIXES)
    if pixels.nbytes < _BIGTIFF_BYTES and not as_ome:
        options["imagej"] = True
        if pixel_nm:
            options["resolution"] = (1e3 / pixel_nm, 1e3 / pixel_nm)
            options["metadata"]["unit"] = "um"
        if slice_nm:
            options["metadata"]["spacing"] = slice_nm / 1e3
    else:
        options |= {"bigtiff": pixels.nbytes >= _BIGTIFF_BYTES, "ome": True}
        for axis, size in (("X", pixel_nm), ("Y", pixel_nm), ("Z", slice_nm)):
            if size:
                options["metadata"] |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "nm"}
    with atomic_output(path, overwrite=overwrite) as temporary:
        tifffile.imwrite(temporary, pixels, **options)


def _imagej_pixels(array: NDArray[Any]) -> NDArray[Any]:
    """The array in one of ImageJ's three types."""
    if array.dtype in (np.uint8, np.uint16, np.float32):
        return array
    converted = array.astype(np.float32)
    if array.dtype.kind in "ui" and not np.array_equal(
        converted.astype(np.float64), array.astype(np.float64)
    ):
        raise InputRejected(
            f"values of type {array.dtype} up to {array.max()} lose digits as float32, the widest type of "
            "ImageJ. Scale them, or store them as uint16."
        )
    return converted
