"""Movies of microscopes' own formats: ND2, CZI, LIF, NDTiff and OME-Zarr, as planes like those of a TIFF.

Their readers come with the extra ``movies`` and are imported when such a file is opened.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from smlm_bridge._optional import require
from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError
from smlm_bridge.io.tiff import NM_PER_UNIT, camera_offset_adu, plane_order, plausible_pixel_nm

EXTRA: Final = "movies"
#: Files by extension; folders by what lies in them.
FILE_SUFFIXES: Final = (".nd2", ".czi", ".lif")
_NDTIFF_INDEX: Final = "NDTiff.index"
_ZARR_MARKS: Final = ("zarr.json", ".zgroup", ".zattrs")
_LETTER: Final = {"time": "T", "z": "Z", "channel": "C"}

Planes = NDArray[np.intp]


class OpenMovie(Protocol):
    """An opened file: planes by their numbers, counted in C order over the axes before y and x."""

    def read(self, planes: Planes) -> NDArray[Any]:
        """Pixels (n, H, W) of the planes (n,)."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class _Content:
    """What a reader finds: axes before y and x with their lengths, a plane's size and type, metadata."""

    axes: str
    lengths: tuple[int, ...]
    height: int
    width: int
    dtype: np.dtype[Any]
    pixel_nm: float | None
    camera_offset: float | None


@dataclass(frozen=True)
class VendorMovie:
    """One movie; the fields have the meaning they have in ``io.tiff.Movie``."""

    path: Path
    plane: Planes
    height: int
    width: int
    dtype: np.dtype[Any]
    pixel_nm: float | None
    camera_offset: float | None
    declared: int
    files: frozenset[Path]

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
        """Never: a reader of such a format says so itself, as an error."""
        return False

    def open(self) -> OpenMovie:
        """Open the file for reading."""
        return _guarded(self.path, lambda: _OPENERS[_kind(self.path)](self.path))[0]


def is_vendor_movie(path: Path) -> bool:
    """Whether the path is a movie of one of these formats."""
    return _kind(path) != ""


def inspect_vendor(path: Path) -> VendorMovie:
    """Find out what a file holds, without reading its pixels.

    Raises
    ------
    InputRejected
        If it cannot be read, or its axes are no movie's.
    MissingDependency
        If its reader is not installed.
    """
    opened, content = _guarded(path, lambda: _OPENERS[_kind(path)](path))
    opened.close()
    # The axes have names here: one that is neither time, height nor channel is positions, scenes or the like.
    foreign = any(axis not in "TZC" and n > 1 for axis, n in zip(content.axes, content.lengths, strict=True))
    order = None if foreign else plane_order(content.axes, content.lengths)
    if order is None:
        sizes = ", ".join(f"{axis}: {n}" for axis, n in zip(content.axes, content.lengths, strict=True))
        raise InputRejected(
            f"image {path} has the axes {sizes} before y and x; a movie has time (T, or Z without T) and "
            "channels (C). Save one position or scene alone as TIFF (Fiji: Bio-Formats)."
        )
    return VendorMovie(
        path=path,
        plane=order,
        height=content.height,
        width=content.width,
        dtype=content.dtype.newbyteorder("="),
        pixel_nm=content.pixel_nm,
        camera_offset=content.camera_offset,
        declared=len(order),
        files=frozenset([path.resolve()]),
    )


def read_vendor(movie: VendorMovie, planes: Planes, opened: OpenMovie) -> NDArray[Any]:
    """Pixels (n, H, W) of the given planes.

    Raises
    ------
    SmlmError
        If the file is damaged.
    """
    try:
        pixels = np.asarray(opened.read(planes))
    except Exception as error:  # every library raises its own
        raise SmlmError(f"image {movie.path} is damaged, a frame cannot be read: {error}.") from error
    if pixels.shape != (planes.size, movie.height, movie.width):
        raise SmlmError(f"image {movie.path} is damaged: a block of frames has the shape {pixels.shape}.")
    return pixels.astype(movie.dtype, copy=False)


def _kind(path: Path) -> str:
    if path.is_dir():
        if (path / _NDTIFF_INDEX).exists():
            return "ndtiff"
        return "zarr" if any((path / name).exists() for name in _ZARR_MARKS) else ""
    return path.suffix.lower().lstrip(".") if path.suffix.lower() in FILE_SUFFIXES else ""


def _guarded(path: Path, opening: Callable[[], tuple[OpenMovie, _Content]]) -> tuple[OpenMovie, _Content]:
    try:
        return opening()
    except (InputRejected, MissingDependency):
        raise
    except Exception as error:  # every library raises its own
        raise InputRejected(f"image {path} is damaged or no such file: {error}.") from error


@dataclass(frozen=True)
class _ByPlane:
    """A movie whose library reads one plane at a time."""

    plane: Callable[[int], NDArray[Any]]
    closing: Callable[[], object]

    def read(self, planes: Planes) -> NDArray[Any]:
        return np.stack([self.plane(int(number)) for number in planes])

    def close(self) -> None:
        self.closing()


@contextmanager
def _closed_on_error(closing: Callable[[], object]) -> Iterator[None]:
    try:
        yield
    except Exception:
        closing()
        raise


def _nd2(path: Path) -> tuple[OpenMovie, _Content]:
    """Nikon; frames are numbered over all axes but channel, y and x."""
    file = require("nd2", extra=EXTRA).ND2File(path)
    with _closed_on_error(file.close):
        sizes: dict[str, int] = {axis: int(n) for axis, n in file.sizes.items()}
        if "S" in sizes:
            raise _rgb(path)
        axes = [axis for axis in sizes if axis not in "CYX"]
        channels = sizes.get("C", 1)

        def plane(number: int) -> NDArray[Any]:
            frame = np.asarray(file.read_frame(number // channels))
            return np.asarray(frame.reshape(channels, sizes["Y"], sizes["X"])[number % channels])

        content = _Content(
            "".join(axes) + "C",
            (*(sizes[axis] for axis in axes), channels),
            sizes["Y"],
            sizes["X"],
            np.dtype(file.dtype),
            plausible_pixel_nm(1e3 * float(file.voxel_size().x)),
            camera_offset_adu(file.text_info),
        )
        return _ByPlane(plane, file.close), content


def _czi(path: Path) -> tuple[OpenMovie, _Content]:
    """Zeiss; one sub-block a plane."""
    file = require("czifile", extra=EXTRA).CziFile(path)
    with _closed_on_error(file.close):
        found: dict[tuple[int, ...], Any] = {}
        axes, shape = "", (0, 0)
        for entry in file.filtered_subblock_directory:
            if tuple(entry.shape) != tuple(entry.stored_shape):
                continue  # a smaller copy for zooming
            at = dict(zip(entry.axes, zip(entry.start, entry.shape, strict=True), strict=True))
            axes = "".join(axis for axis in entry.axes if axis not in "YX0")
            if at.get("0", (0, 1))[1] > 1:
                raise _rgb(path)
            place = tuple(at[axis][0] for axis in axes)
            if place in found or any(at[axis][1] > 1 for axis in axes):
                raise InputRejected(
                    f"image {path} is a mosaic of tiles, not a movie; save one tile alone as TIFF."
                )
            found[place], shape = entry, (at["Y"][1], at["X"][1])
        if not found:
            raise InputRejected(f"image {path} holds no frames.")
        places = [sorted({place[i] for place in found}) for i in range(len(axes))]
        lengths = tuple(map(len, places))

        def plane(number: int) -> NDArray[Any]:
            index = np.unravel_index(number, lengths)
            entry = found[tuple(values[i] for values, i in zip(places, index, strict=True))]
            return np.asarray(entry.data_segment().data()).reshape(shape)

        if len(found) < np.prod(lengths, dtype=int):
            raise InputRejected(
                f"image {path} is cut off: it holds {len(found)} of {np.prod(lengths, dtype=int)} planes. "
                "Copy it again from where it was recorded."
            )
        xml = str(file.metadata())
        scale = re.search(r'<Distance Id="X">\s*<Value>([^<]+)</Value>', xml)
        content = _Content(
            axes,
            lengths,
            *shape,
            np.dtype(file.dtype),
            plausible_pixel_nm(1e9 * float(scale[1])) if scale else None,
            camera_offset_adu(xml),
        )
        return _ByPlane(plane, file.close), content


def _lif(path: Path) -> tuple[OpenMovie, _Content]:
    """Leica; the one image, or the one that has more frames than one."""
    file = require("liffile", extra=EXTRA).LifFile(path)
    with _closed_on_error(file.close):
        images = [image for image in file.images if {"Y", "X"} <= set(image.sizes)]
        movies = [image for image in images if image.size > image.sizes["Y"] * image.sizes["X"]] or images
        if len(movies) != 1:
            names = ", ".join(str(image.name) for image in movies) or "none"
            raise InputRejected(
                f"image {path} holds {len(movies)} movies ({names}), one is allowed. Save one alone as TIFF "
                "(Fiji: Bio-Formats)."
            )
        image, sizes = movies[0], {str(axis): int(n) for axis, n in movies[0].sizes.items()}
        if "S" in sizes:
            raise _rgb(path)
        axes = [axis for axis in sizes if axis not in ("Y", "X")]
        lengths = tuple(sizes[axis] for axis in axes)

        def plane(number: int) -> NDArray[Any]:
            index = np.unravel_index(number, lengths) if axes else ()
            return np.asarray(image.frame(**{axis: int(i) for axis, i in zip(axes, index, strict=True)}))

        x_m = np.asarray(image.coords.get("X", ()))
        content = _Content(
            "".join(axis[0] for axis in axes),
            lengths,
            sizes["Y"],
            sizes["X"],
            np.dtype(image.dtype),
            plausible_pixel_nm(1e9 * abs(float(x_m[1] - x_m[0]))) if x_m.size > 1 else None,
            camera_offset_adu(str(image.attrs)),
        )
        return _ByPlane(plane, file.close), content


def _ndtiff(path: Path) -> tuple[OpenMovie, _Content]:
    """Micro-Manager's NDTiff: a folder, an image for every set of coordinates."""
    with redirect_stdout(io.StringIO()):  # it reports its progress there, where results belong
        dataset = require("ndtiff", extra=EXTRA).Dataset(str(path))
    with _closed_on_error(dataset.close):
        places = dataset.get_image_coordinates_list()
        names = sorted(
            {name for place in places for name in place}, key=lambda n: ("TZC".find(_LETTER.get(n, "")), n)
        )
        values = [sorted({place[name] for place in places}, key=str if _has_text(places, name) else None)
                  for name in names]  # fmt: skip
        lengths = tuple(map(len, values))
        if len(places) < np.prod(lengths, dtype=int):
            raise InputRejected(
                f"image {path} is not complete: it holds {len(places)} of {np.prod(lengths, dtype=int)} images. "
                "Let the acquisition finish, or copy it again from where it was recorded."
            )

        def place(number: int) -> dict[str, Any]:
            index = np.unravel_index(number, lengths)
            return {name: each[i] for name, each, i in zip(names, values, index, strict=True)}

        first = np.asarray(dataset.read_image(**place(0)))
        if first.ndim != 2:
            raise _rgb(path)
        metadata = {**(dataset.summary_metadata or {}), **(dataset.read_metadata(**place(0)) or {})}
        pixel_um = metadata.get("PixelSizeUm", metadata.get("PixelSize_um"))
        content = _Content(
            "".join(_LETTER.get(name, name[:1].upper()) for name in names),
            lengths,
            int(first.shape[0]),
            int(first.shape[1]),
            first.dtype,
            plausible_pixel_nm(1e3 * float(pixel_um)) if pixel_um else None,
            camera_offset_adu(metadata),
        )
        return _ByPlane(
            lambda number: np.asarray(dataset.read_image(**place(number))), dataset.close
        ), content


def _has_text(places: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(isinstance(place.get(name), str) for place in places)


@dataclass(frozen=True)
class _Zarr:
    """An array of OME-Zarr: whole blocks at once, for a chunk may hold many frames."""

    array: Any
    lengths: tuple[int, ...]

    def read(self, planes: Planes) -> NDArray[Any]:
        index = np.unravel_index(planes, self.lengths) if self.lengths else ()
        low = [int(i.min()) for i in index]
        block = np.asarray(
            self.array[tuple(slice(a, int(i.max()) + 1) for a, i in zip(low, index, strict=True))]
        )
        if not self.lengths:
            return block[None]
        return np.asarray(block[tuple(i - a for i, a in zip(index, low, strict=True))])

    def close(self) -> None:
        """Nothing stays open."""


def _zarr(path: Path) -> tuple[OpenMovie, _Content]:
    """OME-Zarr 0.4 and 0.5: the finest level of the first image."""
    group = require("zarr", extra=EXTRA).open_group(str(path), mode="r")
    attributes = dict(group.attrs)
    images = attributes.get("ome", attributes).get("multiscales")
    if not images:
        raise InputRejected(
            f"folder {path} is Zarr without the multiscales of OME-Zarr; save it as OME-Zarr or TIFF."
        )
    level, axes = images[0]["datasets"][0], images[0]["axes"]
    names = [str(axis["name"] if isinstance(axis, Mapping) else axis).upper() for axis in axes]
    if names[-2:] != ["Y", "X"]:
        raise InputRejected(f"image {path} has the axes {', '.join(names)}; the last two must be y and x.")
    array = group[level["path"]]
    lengths = tuple(int(n) for n in array.shape[:-2])
    scales = [
        step["scale"][-1] for step in level.get("coordinateTransformations", ()) if step["type"] == "scale"
    ]
    unit = NM_PER_UNIT.get(str(axes[-1].get("unit"))) if isinstance(axes[-1], Mapping) else None
    content = _Content(
        "".join(name[0] for name in names[:-2]),
        lengths,
        int(array.shape[-2]),
        int(array.shape[-1]),
        np.dtype(array.dtype),
        plausible_pixel_nm(float(np.prod(scales)) * unit) if scales and unit else None,
        camera_offset_adu(attributes),
    )
    return _Zarr(array, lengths), content


def _rgb(path: Path) -> InputRejected:
    return InputRejected(
        f"image {path} is an RGB picture; camera frames have one value a pixel. Give the raw movie."
    )


_OPENERS: Final[Mapping[str, Callable[[Path], tuple[OpenMovie, _Content]]]] = {
    "nd2": _nd2,
    "czi": _czi,
    "lif": _lif,
    "ndtiff": _ndtiff,
    "zarr": _zarr,
}
