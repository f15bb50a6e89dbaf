"""Frames to candidates: the local maxima of a band-passed frame, their windows and their centroids.

The default is ThunderSTORM's detector (Ovesny 2014; wavelet of Izeddin 2012): second level of an undecimated
B-spline wavelet transform, local maxima above the standard deviation of the first level.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from smlm_bridge.bandpass import (
    LARGEST_SIGMA_PX,
    blur,
    bspline_kernel,
    gaussian_kernel,
    local_maxima,
    wavelet_levels,
)
from smlm_bridge.camera import Camera
from smlm_bridge.conventions import pixel_centre_nm
from smlm_bridge.errors import InputRejected
from smlm_bridge.expression import Expression, parse
from smlm_bridge.frames import Block, Frames, Work, in_blocks

Floats = NDArray[np.float64]

Border = Literal["drop", "shift"]

DETECTORS: Final = ("wavelet", "dog")
WAVELET_VARIABLES: Final = ("Wave.I", "Wave.F", "Wave.F1", "Wave.F2")
DOG_VARIABLES: Final = ("DoG.I", "DoG.F", "DoG.G1", "DoG.G2")
#: What a threshold may use.
VARIABLES: Final = ("I", "F", *WAVELET_VARIABLES, *DOG_VARIABLES)
CACHED_PIXELS: Final = 150_000  # filtered at once: a few images of so many pixels stay in a processor's cache


@dataclass(frozen=True)
class DetectOptions:
    """How to detect.

    Parameters
    ----------
    detector
        ``wavelet`` (ThunderSTORM's) or ``dog``, the difference of two Gaussians.
    threshold
        Least value of a maximum, in counts above the camera's offset: a formula (``smlm_bridge.expression``)
        of ``I`` (the frame above the offset), ``F`` (the detector's band-passed frame), ``Wave.I``,
        ``Wave.F1`` (the wavelet's first level), ``Wave.F`` and ``Wave.F2`` (its second), ``DoG.I``,
        ``DoG.G1`` and ``DoG.G2`` (the two blurred frames), ``DoG.F`` (their difference); one number a frame.
    connectivity
        Neighbours a maximum is compared with: 8, or 4 without the diagonal ones.
    wavelet_order, wavelet_scale
        Order of the B-spline (3 is quadratic), and its scale in pixels.
    dog_sigma_px
        Standard deviations of the narrower and the wider Gaussian.
    block_pixels
        Pixels read at once: bounds the memory.
    """

    detector: Literal["wavelet", "dog"] = "wavelet"
    threshold: str = "std(Wave.F1)"
    connectivity: Literal[4, 8] = 8
    wavelet_order: int = 3
    wavelet_scale: float = 2.0
    dog_sigma_px: tuple[float, float] = (1.0, 1.6)
    block_pixels: int = 4_000_000

    def __post_init__(self) -> None:
        if self.detector not in DETECTORS:
            raise InputRejected(f"detector {self.detector!r} is unknown; allowed are {', '.join(DETECTORS)}.")
        if self.connectivity not in (4, 8):
            raise InputRejected(f"connectivity {self.connectivity} is unknown; allowed are 4 and 8.")
        if self.block_pixels < 1:
            raise InputRejected(f"block_pixels {self.block_pixels} must be 1 or more.")
        narrow, wide = self.dog_sigma_px
        if not 0 < narrow < wide <= LARGEST_SIGMA_PX:
            raise InputRejected(
                f"dog_sigma_px {narrow:g} and {wide:g}: the first must be above 0 and the second larger, up to "
                f"{LARGEST_SIGMA_PX:g} px. ThunderSTORM's are 1.0 and 1.6."
            )
        bspline_kernel(self.wavelet_order, self.wavelet_scale)
        if self.formula.is_array:
            raise InputRejected(
                f"the threshold '{self.threshold}' has a value for each pixel, and a frame has one threshold. "
                "Take a number of it: std(...), mean(...), max(...)."
            )
        if self.formula.is_truth:
            raise InputRejected(
                f"the threshold '{self.threshold}' is true or false, and a threshold is a number of counts, for "
                "example 2*std(Wave.F1)."
            )

    @cached_property
    def formula(self) -> Expression:
        """The threshold, parsed."""
        return parse(self.threshold, VARIABLES)


class Finder(Protocol):
    """What finds candidates in frames: ``detect_frames``, or another program's detector."""

    def __call__(
        self,
        counts: NDArray[np.generic],
        options: DetectOptions = ...,
        *,
        pixel_nm: float,
        camera: Camera | None = None,
    ) -> pd.DataFrame:
        """A table as ``detect_frames`` gives it."""
        ...


def detect_frames(
    counts: NDArray[np.generic],
    options: DetectOptions = DetectOptions(),
    *,
    pixel_nm: float,
    camera: Camera | None = None,
) -> pd.DataFrame:
    """Detect candidates in frames (T, H, W) in counts.

    A pixel is a candidate if its band-passed value is at least the frame's threshold and no neighbour's is
    larger; equal neighbours are both kept, and so are pixels at the edge. A frame of one value has none.

    Parameters
    ----------
    counts
        Frames (T, H, W) in ADU.
    options
        See ``DetectOptions``.
    pixel_nm
        Camera pixel in the sample.
    camera
        Only its offset counts; None has none. A frame that lies below it somewhere is raised to a minimum of
        0, as in ThunderSTORM.

    Returns
    -------
    DataFrame
        ``frame``, ``row``, ``column`` from 0 within this array, in this order; ``x_nm`` and ``y_nm``, the
        centre of that pixel; ``value``, the band-passed frame there, in ADU.

    Raises
    ------
    InputRejected
        If the array is no (T, H, W), the camera's map has another size, a pixel is not finite, or the
        threshold of a frame is not (a division by 0).
    """
    if counts.ndim != 3:
        raise InputRejected(f"detection takes frames (frame, row, column), got an array of {counts.shape}.")
    _check_pixel(pixel_nm)
    camera = camera or Camera()
    camera.to_photons(counts[:0])  # refuses a map of another size
    if not counts.size:
        return _table(np.zeros((4, 0)), pixel_nm)
    block = max(1, min(options.block_pixels, CACHED_PIXELS) // (counts.shape[1] * counts.shape[2]))
    found = []
    for first in range(0, len(counts), block):
        frame, row, column, value = _maxima(counts[first : first + block], first, options, camera)
        found.append(np.stack([frame + first, row, column, value]))
    return _table(np.concatenate(found, axis=1), pixel_nm)


def detect(
    source: Frames,
    options: DetectOptions = DetectOptions(),
    *,
    pixel_nm: float,
    camera: Camera | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[Block]:
    """Detect candidates in every frame of a movie of one channel, block by block, in order.

    Parameters
    ----------
    source
        The movie.
    options, pixel_nm, camera
        As in ``detect_frames``; the camera is that of the source's region.
    on_step
        Called with (frames done, frames in all).

    Yields
    ------
    Block
        ``frame``, ``row``, ``column``, ``x_nm`` and ``y_nm`` refer to the whole input movie. A frame that
        cannot be read or has no threshold is reported in ``failed``; the rest goes on.

    Raises
    ------
    InputRejected
        If no frame can be worked on: several channels, no pixel size, a camera's map of another size.
    """
    _check_pixel(pixel_nm)
    known = camera or Camera()
    work = Work(
        find=lambda counts: detect_frames(counts[:, 0], options, pixel_nm=pixel_nm, camera=known),
        empty=_table(np.zeros((4, 0)), pixel_nm),
        check=lambda counts: _check(counts, known),
        pixel_nm=pixel_nm,
        block_pixels=options.block_pixels,
    )
    yield from in_blocks(source, work, on_step=on_step)


def box_corners(
    detections: pd.DataFrame, size: int, shape: tuple[int, int], *, border: Border = "drop"
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where the square windows around detections begin.

    Parameters
    ----------
    detections
        ``row`` and ``column``, as ``detect_frames`` gives them.
    size
        Side of the window in pixels, odd.
    shape
        Rows and columns of the frame.
    border
        What becomes of a window that reaches beyond the frame: ``drop`` it, as ThunderSTORM does, or ``shift`` it
        inside, so that the detection is no longer in its middle.

    Returns
    -------
    corners : (K, 2)
        Row and column of the first pixel of each window, in the order of the detections.
    kept : (N,) bool
        Which detections have a window.

    Raises
    ------
    InputRejected
        If the size is even or below 1, or the border rule unknown.
    """
    if size < 1 or size % 2 == 0:
        raise InputRejected(f"a box of {size} px has no middle pixel; give an odd size, for example 13.")
    if border not in ("drop", "shift"):
        raise InputRejected(f"the border rule {border!r} is unknown; allowed are drop and shift.")
    first = detections[["row", "column"]].to_numpy(np.intp) - size // 2
    last = np.array(shape) - size
    if border == "shift" and last.min() >= 0:
        return np.clip(first, 0, last), np.ones(len(first), np.bool_)
    kept = np.asarray(((first >= 0) & (first <= last)).all(axis=1))
    return first[kept], kept


def crop_boxes(
    frames: NDArray[Any], detections: pd.DataFrame, size: int, *, border: Border = "drop"
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Square windows around detections.

    Parameters
    ----------
    frames
        (T, H, W) or (T, C, H, W).
    detections
        ``frame``, ``row`` and ``column`` within ``frames``, as ``detect_frames`` gives them.
    size, border
        As for ``box_corners``.

    Returns
    -------
    boxes : (K, size, size) or (K, C, size, size)
        A copy, in the order of the detections; unless shifted, the detection's pixel is in the middle.
    kept : (N,) bool
        Which detections have a box.

    Raises
    ------
    InputRejected
        If the size is even or below 1, the border rule unknown, or a detection's frame is not there.
    """
    corners, kept = box_corners(detections, size, (frames.shape[-2], frames.shape[-1]), border=border)
    frame = detections["frame"].to_numpy(np.intp)
    if frame.size and not 0 <= frame.min() <= frame.max() < len(frames):
        raise InputRejected(
            f"detections in frames {frame.min()} to {frame.max()} (from 0), but {len(frames)} frames were "
            "given. Give detections and frames of one block."
        )
    return cut(frames, frame[kept], corners, size), kept


def cut(
    frames: NDArray[Any], frame: NDArray[np.integer], corners: NDArray[np.integer], size: int
) -> NDArray[Any]:
    """Windows (K, [C,] size, size) of frames (T, [C,] H, W) that begin at ``corners`` (K, 2), as a copy."""
    if not len(frame):
        return np.zeros((0, *frames.shape[1:-2], size, size), frames.dtype)
    windows = sliding_window_view(frames, (size, size), axis=(-2, -1))
    return np.ascontiguousarray(windows[frame, ..., corners[:, 0], corners[:, 1], :, :])


def coarse_centroid(boxes: NDArray[Any]) -> Floats:
    """Centre of mass of boxes (K, S, S) above the mean of their outermost pixels: a start for a fit.

    Returns
    -------
    (K, 2)
        x and y in pixels from the centre of the middle pixel; 0 where no pixel is above.

    Raises
    ------
    InputRejected
        If the boxes are not (K, S, S) with S of 3 or more.
    """
    if boxes.ndim != 3 or boxes.shape[1] != boxes.shape[2] or boxes.shape[1] < 3:
        raise InputRejected(f"boxes are (number, size, size) with a size of 3 or more, got {boxes.shape}.")
    edge = np.ones(boxes.shape[1:], bool)
    edge[1:-1, 1:-1] = False
    light = np.maximum(boxes - boxes[:, edge].mean(axis=1, dtype=np.float64)[:, None, None], 0.0)
    position = np.arange(boxes.shape[1]) - (boxes.shape[1] - 1) / 2
    total = light.sum(axis=(1, 2))
    moment = np.stack([light.sum(axis=1) @ position, light.sum(axis=2) @ position], axis=1)
    return np.asarray(moment / np.where(total > 0, total, 1.0)[:, None], dtype=np.float64)


def _check_pixel(pixel_nm: float) -> None:
    if not (np.isfinite(pixel_nm) and pixel_nm > 0):
        raise InputRejected(f"pixel_nm {pixel_nm:g} must be above 0 nm.")


def _check(counts: NDArray[np.generic], camera: Camera) -> None:
    """Refuse what would fail in every frame."""
    if counts.ndim != 4 or counts.shape[1] != 1:
        raise InputRejected(
            f"detection takes one channel, the frames have the shape {counts.shape[1:]} (channel, row, "
            "column). Give one channel."
        )
    camera.to_photons(counts[:0])


def _table(found: Floats, pixel_nm: float) -> pd.DataFrame:
    """The table of (4, N): frame, row, column, value."""
    frame, row, column = found[:3].astype(np.int64)
    return pd.DataFrame(
        {
            "frame": frame,
            "x_nm": pixel_centre_nm(column, pixel_nm),
            "y_nm": pixel_centre_nm(row, pixel_nm),
            "row": row,
            "column": column,
            "value": found[3],
        }
    )


def _maxima(
    counts: NDArray[np.generic], first: int, options: DetectOptions, camera: Camera
) -> tuple[NDArray[Any], ...]:
    """Frame, row, column and value of the candidates of one block whose first frame is ``first``."""
    images = counts.astype(np.float64) - camera.offset
    low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
    bad = ~(np.isfinite(low) & np.isfinite(high))
    if bad.any():
        raise InputRejected(f"frame {first + int(np.argmax(bad))} (from 0) has pixels that are not finite.")
    if (low < 0).any():
        images -= np.minimum(low, 0.0)[:, None, None]
    planes = _planes(images, options)
    threshold = options.formula.evaluate(planes, axis=(1, 2))
    least = np.broadcast_to(threshold.reshape(-1), len(images)).copy()
    flat = low == high
    bad = ~np.isfinite(least) & ~flat
    if bad.any():
        frame = int(np.argmax(bad))
        raise InputRejected(
            f"the threshold '{options.threshold}' is {least[frame]:g} in frame {first + frame} (from 0); give "
            "a formula that is a finite number in every frame."
        )
    # One value everywhere, as of a dropped frame: every pixel would tie with its neighbours.
    least[flat] = np.inf
    found = local_maxima(planes["F"], least, connectivity=options.connectivity)
    where = np.unravel_index(np.flatnonzero(found), found.shape)
    return (*where, planes["F"][where])


def _planes(images: Floats, options: DetectOptions) -> dict[str, Floats]:
    """``F`` and whatever else the threshold uses, all (T, H, W)."""
    planes = dict.fromkeys(("I", "Wave.I", "DoG.I"), images)
    if options.detector == "wavelet" or _uses(options.formula, WAVELET_VARIABLES[1:]):
        kernel = bspline_kernel(options.wavelet_order, options.wavelet_scale)
        first, second = wavelet_levels(images, kernel)
        planes |= {"Wave.F": second, "Wave.F1": first, "Wave.F2": second}
    if options.detector == "dog" or _uses(options.formula, DOG_VARIABLES[1:]):
        for name, sigma in zip(("DoG.G1", "DoG.G2"), options.dog_sigma_px, strict=True):
            planes[name] = blur(images, gaussian_kernel(sigma))
        planes["DoG.F"] = planes["DoG.G1"] - planes["DoG.G2"]
    planes["F"] = planes["Wave.F" if options.detector == "wavelet" else "DoG.F"]
    return planes


def _uses(formula: Expression, names: Collection[str]) -> bool:
    return not formula.names.isdisjoint(names)
