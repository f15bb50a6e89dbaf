"""One TIFF file (or one OME set of files) as planes: what it holds, where each lies, and reading them."""

import html
import json
import logging
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import tifffile
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError

# Without a handler of its own the library's complaints about files that we refuse anyway land on stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

#: An axis without a name, or a channel axis of a file without time, is channels up to this length.
MAX_CHANNELS: Final = 4

#: Lengths as files name their units, in nm.
NM_PER_UNIT: Final = {
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1.0),
    **dict.fromkeys(("um", "µm", "μm", "\\u00B5m", "micron", "microns", "micrometer", "micrometre"), 1e3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e6),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e7),
}
_MOST_PLANES: Final = 10_000_000
_PLAUSIBLE_PIXEL_NM = (1.0, 1e5)  # outside, the resolution is a printer's
_MICRO_MANAGER_TAG: Final = 51123
# As Hamamatsu's cameras call it, and as people do; the number may stand in an object of its own (PropVal).
_OFFSET: Final = re.compile(
    r"(?:conversion[ _]?factor[ _]?offset|camera[ _]?offset)[^\d\n,;}]{1,24}?(\d+(?:\.\d+)?)", re.IGNORECASE
)


@dataclass(frozen=True)
class Movie:
    """The planes of one file.

    ``plane`` (frames, channels) holds the number of each complete frame's planes; ``series`` and ``page`` say
    where the library finds a plane, ``offset`` the byte where it starts if all planes are stored raw.
    ``declared`` is the number of frames the file promises, None if it is cut off and does not say.
    """

    path: Path
    plane: NDArray[np.intp]
    series: NDArray[np.intp]
    page: NDArray[np.intp]
    offset: NDArray[np.int64] | None
    height: int
    width: int
    dtype: np.dtype[Any]
    stored_dtype: np.dtype[Any]
    pixel_nm: float | None
    declared: int | None
    files: frozenset[Path]
    camera_offset: float | None = None

    @property
    def n_frames(self) -> int:
        """Frames that can be read."""
        return len(self.plane)

    @property
    def n_channels(self) -> int:
        """Channels of a frame."""
        return int(self.plane.shape[1])

    @property
    def cut_off(self) -> bool:
        """Whether the file ends before its last frame."""
        return self.declared != self.n_frames


def inspect(path: Path) -> Movie:
    """Find out what a TIFF file holds, without reading its pixels.

    Raises
    ------
    InputRejected
        If the file is missing, empty, no TIFF, an RGB image or of an order of axes that is no movie.
    MissingDependency
        If its compression needs another package.
    """
    tif = open_tiff(path)
    with tif:
        try:
            _chain_is_broken(path)  # before the library follows it: it would never end in a circle
            return _inspect(path, tif)
        except (InputRejected, MissingDependency):
            raise
        except Exception as error:  # a damaged file fails anywhere in the parser, with any exception
            raise InputRejected(f"image {path} is damaged and cannot be read: {error}.") from error


def open_tiff(path: Path) -> tifffile.TiffFile:
    """Open a TIFF file, or say why it is none."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
        if not start:
            raise InputRejected(f"image {path} is empty (0 bytes).")
        return tifffile.TiffFile(path)
    except OSError as error:
        raise InputRejected(f"image {path} cannot be read: {error.strerror or error}.") from error
    except InputRejected:
        raise
    except Exception as error:
        raise InputRejected(
            f"image {path} is not a TIFF image (it starts with {start!r}). "
            "Save it as TIFF, for example in Fiji."
        ) from error


def _inspect(path: Path, tif: tifffile.TiffFile) -> Movie:
    series = list(tif.series)
    first = series[0]
    _check_kind(path, series)
    layouts = [(s.axes[:-2], s.shape[:-2]) for s in series]
    recovered = tif.is_imagej and first.kind != "imagej" and len(tif.pages) == 1
    if recovered:  # ImageJ's movie, cut off before the list of its pages, or some other program's single page
        layouts = [_imagej_layout(tif.imagej_metadata or {})]
    promised_planes = sum(math.prod(lead) for _, lead in layouts)
    if not 0 < promised_planes <= _MOST_PLANES:
        raise InputRejected(
            f"image {path} says that it has {promised_planes} planes; 1 to {_MOST_PLANES} in a file can be read."
        )
    order = _orders(path, layouts)
    height, width = first.shape[-2:]
    dtype = np.dtype(first.dtype)
    counts = [int(np.prod(lead)) for _, lead in layouts]
    offset, readable = None, 0
    if all(s.dataoffset is not None and not s.is_multifile for s in series):
        offset = _offsets(series, counts, height * width * dtype.itemsize)
        readable = int(np.sum(offset + height * width * dtype.itemsize <= path.stat().st_size))
    else:
        counts = [len(s) for s in series]
        readable = _readable_pages(path, series)
    whole = np.all(order < readable, axis=1)
    frames = len(order) if whole.all() else int(np.argmin(whole))
    promised = recovered or (len(series) == 1 and first.kind in ("imagej", "ome", "shaped"))
    movie = Movie(
        path=path,
        plane=order[:frames],
        series=np.repeat(np.arange(len(series)), counts),
        page=np.concatenate([np.arange(count) for count in counts]),
        offset=offset,
        height=height,
        width=width,
        dtype=dtype.newbyteorder("="),
        stored_dtype=dtype.newbyteorder(tif.byteorder),
        pixel_nm=_pixel_nm(tif),
        declared=len(order) if promised or not _chain_is_broken(path) else None,
        files=_files(path, first),
        camera_offset=_camera_offset(tif),
    )
    if frames and offset is None:
        read_planes(movie, movie.plane[0, :1], tif)  # a missing decompressor is told before the work starts
    return movie


def _files(path: Path, series: Any) -> frozenset[Path]:
    """The files over which the planes are spread."""
    if not series.is_multifile:
        return frozenset([path.resolve()])
    return frozenset(Path(page.parent.filehandle.path).resolve() for page in series)


def _check_kind(path: Path, series: Sequence[Any]) -> None:
    first = series[0]
    # Whole planes as "samples" are how tifffile stores any array of 3 or 4 frames: an axis without a meaning.
    if first.axes.endswith("S"):
        raise InputRejected(
            f"image {path} is an RGB picture; camera frames have one value a pixel. "
            "Give the raw movie, or split the colours (Fiji: Image > Color > Split Channels)."
        )
    if not first.axes.endswith("YX") or (first.dataoffset is None and first[0].shape != first.shape[-2:]):
        raise InputRejected(
            f"image {path} has pages of axes {first.axes}, shape {first.shape}; frames are (y, x). "
            "Save it as a TIFF stack, for example in Fiji."
        )
    if np.dtype(first.dtype).kind not in "uif":
        raise InputRejected(
            f"image {path} has pixels of type {first.dtype}; allowed are integers and floats."
        )
    if len(series) > 1 and first.kind == "ome":
        raise InputRejected(
            f"image {path} holds {len(series)} OME images (positions or scenes), one movie is allowed. "
            "Save one of them alone, for example in Fiji (Bio-Formats)."
        )
    page = first.keyframe
    if first.dataoffset is None and len(page.dataoffsets) < math.prod(page.chunked):
        raise InputRejected(
            f"image {path} is damaged: of the {math.prod(page.chunked)} pieces of its first frame of "
            f"{page.imagewidth}x{page.imagelength} px it has {len(page.dataoffsets)}. Copy it again."
        )
    sizes = sorted({s.shape[-2:] for s in series})
    if len(sizes) > 1 or len({s.dtype for s in series}) > 1:
        raise InputRejected(
            f"image {path} holds pages of different sizes or types "
            f"({', '.join(f'{w}x{h}' for h, w in sizes)} px); all frames of a movie are alike."
        )


def _imagej_layout(metadata: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Axes and lengths of an ImageJ stack from its description, in the order on disk (XYCZT)."""
    lengths = tuple(int(metadata.get(name, 1)) for name in ("frames", "slices", "channels"))
    if np.prod(lengths) > 1:
        return "TZC", lengths
    return "T", (int(metadata.get("images", 1)),)


def _orders(path: Path, layouts: Sequence[tuple[str, tuple[int, ...]]]) -> NDArray[np.intp]:
    """Plane numbers (frames, channels) of all series of a file, one after the other in time."""
    parts: list[NDArray[np.intp]] = []
    start = 0
    for axes, lead in layouts:
        order = plane_order(axes, lead)
        if order is None or (parts and order.shape[1] != parts[0].shape[1]):
            sizes = ", ".join(f"{axis}: {n}" for axis, n in zip(axes, lead, strict=True))
            raise InputRejected(
                f"image {path} has the axes {sizes} before y and x; a movie has time (T, or Z without T) and "
                "channels (C). Rearrange it (Fiji: Image > Hyperstacks > Re-order), or give one axis a file."
            )
        parts.append(order + start)
        start += order.size
    return np.concatenate(parts)


def plane_order(axes: str, lead: Sequence[int]) -> NDArray[np.intp] | None:
    """Number of the plane of each frame and channel, (T, C), or None if the axes are no movie's.

    Parameters
    ----------
    axes
        Letters of the axes before y and x: T, Z, C, or any other for an axis without a meaning.
    lead
        Their lengths. Planes are numbered in C order.
    """
    kept = [i for i, n in enumerate(lead) if n > 1]
    channel = [i for i in kept if axes[i] == "C"]
    time = [i for i in kept if axes[i] != "C"]
    if len(time) == 2 and not channel:  # (t, 2, y, x) without names
        small = [i for i in reversed(time) if axes[i] not in "TZ" and lead[i] <= MAX_CHANNELS]
        channel, time = small[:1], [i for i in time if i not in small[:1]]
    if channel and not time and lead[channel[0]] > MAX_CHANNELS:  # a movie saved without saying so
        channel, time = [], channel
    if len(time) > 1 or len(channel) > 1:
        return None
    planes = np.arange(int(np.prod(lead)), dtype=np.intp).reshape(lead)
    planes = np.transpose(planes, [*time, *channel, *(i for i, n in enumerate(lead) if n == 1)])
    return planes.reshape(lead[time[0]] if time else 1, lead[channel[0]] if channel else 1)


def _offsets(series: Sequence[Any], counts: Sequence[int], plane_bytes: int) -> NDArray[np.int64]:
    """Byte where each plane starts in a file whose series are stored raw and in one piece each."""
    starts = [
        s.dataoffset + plane_bytes * np.arange(n, dtype=np.int64) for s, n in zip(series, counts, strict=True)
    ]
    return np.concatenate(starts)


def _readable_pages(path: Path, series: Sequence[Any]) -> int:
    """How many pages, from the first, are in the file with all their bytes."""
    pages = [page for s in series for page in s]
    missing = sum(page is None for page in pages)
    if missing:
        raise InputRejected(
            f"image {path} is part of a set of files, and {missing} of its {len(pages)} planes lie in files "
            "that are not there. Put all files of the set into one folder, under their first names."
        )
    readable = len(pages)
    while readable:  # what is missing is missing at the end
        page = pages[readable - 1]
        ends = np.add(page.dataoffsets, page.databytecounts)
        if len(ends) and ends.max() <= page.parent.filehandle.size:
            break
        readable -= 1
    return readable


def _chain_is_broken(path: Path) -> bool:
    """Whether the linked list of pages points beyond the end of the file (TIFF 6.0; BigTIFF).

    Raises
    ------
    InputRejected
        If it leads back to itself.
    """
    size, seen = path.stat().st_size, set()
    with open(path, "rb") as file:
        start = file.read(16)
        order = "<" if start[:2] == b"II" else ">"
        big = struct.unpack(order + "H", start[2:4])[0] == 43
        count_format, next_format, entry = (
            (order + "Q", order + "Q", 20) if big else (order + "H", order + "I", 12)
        )
        count_bytes, next_bytes = struct.calcsize(count_format), struct.calcsize(next_format)
        position = struct.unpack(next_format, start[8:16] if big else start[4:8])[0]
        while position:
            if position in seen:
                raise InputRejected(f"image {path} is damaged: its list of pages leads back to itself.")
            seen.add(position)
            if position > size:
                return True
            file.seek(position)
            raw = file.read(count_bytes)
            if len(raw) < count_bytes:
                return True
            end = position + count_bytes + entry * struct.unpack(count_format, raw)[0]
            if end + next_bytes > size:
                return True
            file.seek(end)
            following = struct.unpack(next_format, file.read(next_bytes))[0]
            position = following
    return False


def _pixel_nm(tif: tifffile.TiffFile) -> float | None:
    """Pixel size in nm from OME, ImageJ or TIFF metadata, None if there is none to be believed."""
    if tif.is_ome and tif.ome_metadata:
        pixels = re.search(r"<Pixels\b[^>]*>", tif.ome_metadata)
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', pixels[0])) if pixels else {}
        size, unit = attributes.get("PhysicalSizeX"), attributes.get("PhysicalSizeXUnit", "µm")
        scale = NM_PER_UNIT.get(html.unescape(unit))
        return plausible_pixel_nm(float(size) * scale) if size and scale else None
    tags = tif.pages.first.tags
    if "XResolution" not in tags:
        return None
    numerator, denominator = tags["XResolution"].value
    unit = (tif.imagej_metadata or {}).get("unit")
    if unit is None and "ResolutionUnit" in tags:
        unit = {2: "inch", 3: "cm"}.get(int(tags["ResolutionUnit"].value))
    scale = NM_PER_UNIT.get(str(unit))
    return plausible_pixel_nm(scale * denominator / numerator) if scale and numerator else None


def _camera_offset(tif: tifffile.TiffFile) -> float | None:
    """The camera's offset from what Micro-Manager wrote with the first frame, or ImageJ's notes."""
    tag = tif.pages.first.tags.get(_MICRO_MANAGER_TAG)
    return camera_offset_adu(tag.value if tag else (tif.imagej_metadata or {}).get("Info"))


def camera_offset_adu(metadata: Mapping[str, Any] | str | None) -> float | None:
    """Counts without light as metadata state them, None where they do not."""
    text = metadata if isinstance(metadata, str) else json.dumps(metadata, default=str, ensure_ascii=False)
    found = _OFFSET.search(text)
    return float(found[1]) if found else None


def plausible_pixel_nm(pixel_nm: float) -> float | None:
    """The size if it can be that of a camera's pixel in the sample, None if not."""
    low, high = _PLAUSIBLE_PIXEL_NM
    return pixel_nm if low <= pixel_nm <= high else None


def read_planes(movie: Movie, planes: NDArray[np.intp], tif: tifffile.TiffFile | None = None) -> NDArray[Any]:
    """Pixels (n, H, W) of the given planes, in the file's dtype and the machine's byte order.

    Parameters
    ----------
    movie
        The file.
    planes
        Numbers of planes, (n,).
    tif
        The file, opened; only used where planes are not stored raw, and opened for the call if not given.

    Raises
    ------
    SmlmError
        If the file is damaged or was shortened meanwhile.
    MissingDependency
        If its compression needs another package.
    """
    result = np.empty((planes.size, movie.height, movie.width), movie.dtype)
    try:
        if movie.offset is not None:
            _read_raw(movie, planes, result)
        elif tif is None:
            with open_tiff(movie.path) as opened:
                _read_pages(movie, planes, opened, result)
        else:
            _read_pages(movie, planes, tif, result)
    except SmlmError:
        raise
    except Exception as error:  # the decompressors raise each their own
        if "imagecodecs" in str(error):
            raise MissingDependency(
                f"image {movie.path} is compressed in a way that needs the package imagecodecs: "
                "pip install imagecodecs, or save the movie without compression."
            ) from error
        raise SmlmError(f"image {movie.path} is damaged, a frame cannot be read: {error}.") from error
    return result


def _read_raw(movie: Movie, planes: NDArray[np.intp], result: NDArray[Any]) -> None:
    """Read runs of planes that follow each other on disk with one call each."""
    assert movie.offset is not None
    offset = movie.offset[planes]
    plane_bytes = movie.height * movie.width * movie.dtype.itemsize
    if not len(offset):
        return
    starts = np.flatnonzero(np.diff(offset, prepend=-1 - plane_bytes) != plane_bytes)
    with open(movie.path, "rb") as file:
        for start, stop in zip(starts, [*starts[1:], len(offset)], strict=True):
            file.seek(int(offset[start]))
            block = result[start:stop]
            if file.readinto(block.data) != block.nbytes:
                raise ValueError("it ends too early")
    if not movie.stored_dtype.isnative:
        result.byteswap(inplace=True)


def _read_pages(movie: Movie, planes: NDArray[np.intp], tif: tifffile.TiffFile, result: NDArray[Any]) -> None:
    series = movie.series[planes]
    for number in np.unique(series):
        mine = np.flatnonzero(series == number)
        pixels = tif.asarray(key=movie.page[planes[mine]].tolist(), series=int(number))
        result[mine] = pixels.reshape(-1, movie.height, movie.width)
