"""Localizations to a picture: histogram, averaged shifted histogram, or one Gaussian per localization.

All three are linear in the localizations, so a picture is a histogram followed by a filter; where there are
few localizations for many pixels, their spots are added one block at a time instead. Positions keep the
origin of ``conventions``: pixel (i, j) of the picture covers x in [j, j + 1) pixel_nm and y in [i, i + 1)
pixel_nm from ``origin_nm``.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import convolve1d, gaussian_filter

from smlm_bridge.conventions import PIXEL_CENTRE
from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import validate

Method = Literal["gaussian", "histogram", "ash"]

#: Largest picture: three such arrays of float32 (counts, z, one layer) are held at once.
MAX_PIXELS: Final = 400_000_000
#: Width of the Gaussian spots in pixels of the picture: narrower ones would flicker with their position in
#: the pixel, wider ones (also "unknown", 9999 nm) are as good as invisible.
SIGMA_PX: Final = (0.5, 10.0)
_REACH_SIGMA: Final = 4.0  # beyond it a spot has 1e-4 of its light
_SPOT_COST: Final = 10.0  # time to add one value at a given place, against one step of a filter
_SPOT_VALUES: Final = 4_000_000  # added at once
_SIGMA_STEP: Final = 1.25  # ratio of neighbouring spot widths: at most 12 % off
_LINEAR_VARIANCE_PX2: Final = 1 / 6  # mean variance that dealing a point to two pixels per axis adds
_Z_PERCENTILES: Final = (1, 99)
_WHITE_QUANTILE: Final = 0.99
_SAMPLE: Final = 2_000_000  # pixels looked at for the brightness, and coloured at once

FloatImage = NDArray[np.float32]


@dataclass(frozen=True)
class Rendered:
    """A picture of localizations.

    Parameters
    ----------
    counts : (H, W)
        Localizations per pixel. Their sum is ``shown``, less what spots at the edge throw over it.
    mean_z_nm : (H, W) or None
        Mean z of what lies in the pixel, NaN where there is nothing; None for a table without z.
    pixel_nm
        Pixel of the picture.
    extent_nm
        Left, right, bottom, top: the outer edges, as ``imshow(extent=...)`` takes them (y runs downwards).
    z_range_nm
        Heights at the two ends of the colour scale; None for a table without z.
    shown
        Localizations that lie inside the picture.
    """

    counts: FloatImage
    mean_z_nm: FloatImage | None
    pixel_nm: float
    extent_nm: tuple[float, float, float, float]
    z_range_nm: tuple[float, float] | None
    shown: int


def render(
    locs: pd.DataFrame,
    *,
    pixel_nm: float,
    field_nm: tuple[float, float],
    method: Method = "gaussian",
    origin_nm: tuple[float, float] = (0.0, 0.0),
    z_range_nm: tuple[float, float] | None = None,
    sigma_px: tuple[float, float] = SIGMA_PX,
    shifts: int = 2,
) -> Rendered:
    """Render a table of localizations.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``. Localizations outside the field are left out.
    pixel_nm
        Pixel of the picture.
    field_nm
        Height and width of the field; rounded up to whole pixels.
    method
        ``"histogram"``: one count per localization. ``"ash"``: averaged shifted histogram (Scott 1985), as in
        ThunderSTORM. ``"gaussian"``: a spot of standard deviation ``uncertainty_xy_nm`` and volume 1 per
        localization, in steps of 25 %; where the uncertainty is missing, the table's median, else one pixel.
    origin_nm
        x, y of the top-left corner of the field.
    z_range_nm
        Ends of the colour scale; None takes the 1st and 99th percentile of z.
    sigma_px
        Least and largest standard deviation of a spot, in pixels of the picture.
    shifts
        Shifts per axis of ``"ash"``.

    Raises
    ------
    InputRejected
        If the picture would have more than 400 million pixels, or an argument is out of its range.
    """
    shape = picture_shape(pixel_nm, field_nm)
    _check(method, sigma_px, shifts, z_range_nm)
    table = validate(locs)
    x = (table["x_nm"].to_numpy() - origin_nm[0]) / pixel_nm
    y = (table["y_nm"].to_numpy() - origin_nm[1]) / pixel_nm
    inside = (x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])
    x, y, table = x[inside], y[inside], table[inside]
    z = table["z_nm"].to_numpy() if "z_nm" in table else None
    sigma = _sigma_px(table, pixel_nm, sigma_px) if method == "gaussian" else None
    counts = _image(shape, x, y, None, sigma, method, shifts)
    mean_z = None
    if z is not None:
        mean_z = _image(shape, x, y, z, sigma, method, shifts)
        with np.errstate(divide="ignore", invalid="ignore"):
            np.divide(mean_z, counts, out=mean_z)
        mean_z[counts <= 0] = np.nan
    left, top = origin_nm
    return Rendered(
        counts,
        mean_z,
        pixel_nm,
        (left, left + shape[1] * pixel_nm, top + shape[0] * pixel_nm, top),
        None if z is None else z_range_nm or robust_range(z),
        int(inside.sum()),
    )


def robust_range(values: NDArray[Any]) -> tuple[float, float]:
    """The 1st and the 99th percentile, at least 1 apart; (0, 1) without values."""
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, _Z_PERCENTILES))
    return (low, high) if high - low >= 1 else (low - 0.5, low + 0.5)


def colour_by_z(
    rendered: Rendered, lut: NDArray[np.floating[Any]], *, gamma: float = 0.7, white: float | None = None
) -> NDArray[np.uint8]:
    """Hue from z, brightness from density.

    Parameters
    ----------
    rendered
        A picture with z.
    lut : (N, 3)
        Colours from the lower to the upper end of ``rendered.z_range_nm``, 0 to 1; best all equally bright.
    gamma
        Exponent of the density; below 1 lifts the faint.
    white
        Density (localizations per pixel) of full brightness; None takes the 99th percentile of those above 0.

    Returns
    -------
    (H, W, 3) RGB on black.

    Raises
    ------
    InputRejected
        If the picture has no z (use ``colour_by_density``) or the table of colours is not (N, 3).
    """
    if rendered.mean_z_nm is None or rendered.z_range_nm is None:
        raise InputRejected(
            "this picture has no z to colour by; use colour_by_density, or a table with z_nm."
        )
    low, high = rendered.z_range_nm
    colours, last = _checked_lut(lut), len(lut) - 1
    scale = _full_brightness(rendered.counts) if white is None else white
    picture = np.empty((*rendered.counts.shape, 3), np.uint8)
    for rows in _row_blocks(rendered.counts.shape):
        level = np.clip(rendered.counts[rows] / scale, 0, 1) ** gamma
        place = np.nan_to_num((rendered.mean_z_nm[rows] - low) / (high - low))
        index = np.clip(np.rint(place * last), 0, last).astype(np.intp)
        picture[rows] = np.rint(level[..., None] * colours[index] * 255)
    return picture


def colour_by_density(
    rendered: Rendered, lut: NDArray[np.floating[Any]], *, gamma: float = 0.7, white: float | None = None
) -> NDArray[np.uint8]:
    """(H, W, 3) RGB by density alone; parameters and errors as in ``colour_by_z``."""
    colours, last = _checked_lut(lut), len(lut) - 1
    scale = _full_brightness(rendered.counts) if white is None else white
    picture = np.empty((*rendered.counts.shape, 3), np.uint8)
    for rows in _row_blocks(rendered.counts.shape):
        level = np.clip(rendered.counts[rows] / scale, 0, 1) ** gamma
        picture[rows] = np.rint(colours[np.rint(level * last).astype(np.intp)] * 255)
    return picture


def picture_shape(pixel_nm: float, field_nm: tuple[float, float]) -> tuple[int, int]:
    """Height and width in whole pixels of the picture of a field (height, width).

    Raises
    ------
    InputRejected
        If they are not above 0, or more than 400 million together.
    """
    if not (math.isfinite(pixel_nm) and pixel_nm > 0):
        raise InputRejected(f"pixel_nm {pixel_nm} must be a length above 0 in nm, for example 10.")
    if not all(math.isfinite(length) and length > 0 for length in field_nm):
        raise InputRejected(f"field_nm {field_nm} must be a height and a width above 0 in nm.")
    # A field of 3 pixels stays 3 pixels where the division leaves 3.0000000001.
    height, width = (max(1, math.ceil(length / pixel_nm - 1e-9)) for length in field_nm)
    if height * width > MAX_PIXELS:
        least = math.ceil(math.sqrt(field_nm[0] * field_nm[1] / MAX_PIXELS) * 1.001)
        raise InputRejected(
            f"a picture of {width} x {height} pixels ({height * width / 1e6:.0f} million) is too large; at "
            f"most {MAX_PIXELS / 1e6:.0f} million. Use pixel_nm of {least} or more instead of {pixel_nm:g}, "
            "or a smaller field."
        )
    return height, width


def _check(
    method: str, sigma_px: tuple[float, float], shifts: int, z_range_nm: tuple[float, float] | None
) -> None:
    if method not in get_args(Method):
        raise InputRejected(f"method '{method}' is not one of {', '.join(get_args(Method))}.")
    if not SIGMA_PX[0] <= sigma_px[0] <= sigma_px[1] < 1000:
        raise InputRejected(
            f"sigma_px {sigma_px} must be two widths of {SIGMA_PX[0]} pixels or more, in order."
        )
    if shifts < 1:
        raise InputRejected(f"shifts {shifts} must be 1 or more (ThunderSTORM's default is 2).")
    if z_range_nm is not None and not z_range_nm[0] < z_range_nm[1]:
        raise InputRejected(f"z_range_nm {z_range_nm} must be two heights, the lower first.")


def _sigma_px(table: pd.DataFrame, pixel_nm: float, limits: tuple[float, float]) -> NDArray[np.float64]:
    """Width of every localization's spot, rounded on a logarithmic scale so that few filters serve all."""
    if "uncertainty_xy_nm" not in table:
        return np.full(len(table), float(np.clip(1.0, *limits)))
    sigma = table["uncertainty_xy_nm"].to_numpy() / pixel_nm
    known = np.isfinite(sigma) & (sigma > 0)
    sigma = np.where(known, sigma, np.median(sigma[known]) if known.any() else 1.0)
    steps = np.rint(np.log(np.clip(sigma, *limits) / limits[0]) / math.log(_SIGMA_STEP))
    return np.clip(limits[0] * _SIGMA_STEP**steps, *limits)


def _image(
    shape: tuple[int, int],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    sigma: NDArray[np.float64] | None,
    method: Method,
    shifts: int,
) -> FloatImage:
    """Sum of the localizations' spots, each times its weight (1 for None)."""
    if sigma is None:
        image = _histogram(shape, x, y, weights)
        if method == "ash" and shifts > 1:
            # Averaging histograms of shifted coarse bins is a triangular filter on the fine one (Scott 1985).
            triangle = (shifts - np.abs(np.arange(1 - shifts, shifts))) / shifts**2
            for axis in (0, 1):
                convolve1d(image, triangle, axis=axis, output=image, mode="constant")
        return image
    total = np.zeros(shape, np.float32)
    for width in np.unique(sigma):
        chosen = sigma == width
        group = x[chosen], y[chosen], None if weights is None else weights[chosen]
        # n spots of t x t values, or t steps along either axis for every pixel.
        if _SPOT_COST * chosen.sum() * (2 * _REACH_SIGMA * width) < 2 * total.size:
            _add_spots(total, *group, width)
        else:
            layer = _dealt(shape, *group)
            narrower = math.sqrt(width**2 - _LINEAR_VARIANCE_PX2)
            gaussian_filter(layer, narrower, output=layer, mode="constant", truncate=_REACH_SIGMA)
            total += layer[1:-1, 1:-1]
    return total


def _add_spots(
    image: FloatImage,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    sigma: float,
) -> None:
    """Add a spot of width ``sigma`` and volume 1 (times its weight) at every position, block by block."""
    reach = math.ceil(_REACH_SIGMA * sigma)
    near = np.arange(-reach, reach + 1)
    block = max(1, _SPOT_VALUES // near.size**2)
    for first in range(0, len(x), block):
        part = slice(first, first + block)
        row, along_y = _profiles(y[part], near, sigma, image.shape[0])
        column, along_x = _profiles(x[part], near, sigma, image.shape[1])
        if weights is not None:
            along_y *= weights[part, None]
        values = along_y[:, :, None] * along_x[:, None, :]
        places = row[:, :, None] * image.shape[1] + column[:, None, :]
        np.add.at(image.reshape(-1), places.ravel(), values.ravel().astype(np.float32))


def _profiles(
    position: NDArray[np.float64], near: NDArray[np.intp], sigma: float, length: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Pixels around every position along one axis, and the spot's share in each; 0 outside the picture."""
    pixel = np.floor(position).astype(np.intp)[:, None] + near
    share = np.exp(-(((pixel + PIXEL_CENTRE - position[:, None]) / sigma) ** 2) / 2)
    share /= share.sum(axis=1, keepdims=True)
    share[(pixel < 0) | (pixel >= length)] = 0.0
    return np.clip(pixel, 0, length - 1), share


def _histogram(
    shape: tuple[int, int],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
) -> FloatImage:
    image = np.zeros(shape, np.float32)
    _count(image, x, y, _float32(weights, len(x)))
    return image


def _dealt(
    shape: tuple[int, int],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
) -> FloatImage:
    """Each point dealt to the four nearest pixel centres, so that its centre of mass is exact.

    The picture has a margin of one pixel, for points between the edge and the outermost centres.
    """
    image = np.zeros((shape[0] + 2, shape[1] + 2), np.float32)
    _deal(image, x - PIXEL_CENTRE, y - PIXEL_CENTRE, _float32(weights, len(x)))
    return image


@njit(cache=True, nogil=True)
def _count(image: FloatImage, x: NDArray[np.float64], y: NDArray[np.float64], value: FloatImage) -> None:
    for i in range(x.size):
        image[int(np.floor(y[i])), int(np.floor(x[i]))] += value[i]


@njit(cache=True, nogil=True)
def _deal(image: FloatImage, x: NDArray[np.float64], y: NDArray[np.float64], value: FloatImage) -> None:
    """Add every value to the four pixels around it; pixel (i, j) of the field is (i + 1, j + 1) here."""
    for i in range(x.size):
        column, row = int(np.floor(x[i])), int(np.floor(y[i]))
        right, lower = x[i] - column, y[i] - row
        image[row + 1, column + 1] += value[i] * (1 - right) * (1 - lower)
        image[row + 1, column + 2] += value[i] * right * (1 - lower)
        image[row + 2, column + 1] += value[i] * (1 - right) * lower
        image[row + 2, column + 2] += value[i] * right * lower


def _float32(weights: NDArray[np.float64] | None, count: int) -> FloatImage:
    return np.ones(count, np.float32) if weights is None else weights.astype(np.float32)


def _checked_lut(lut: NDArray[np.floating[Any]]) -> FloatImage:
    colours = np.asarray(lut, np.float32)
    if (
        colours.ndim != 2
        or colours.shape[1] != 3
        or len(colours) < 2
        or colours.min() < 0
        or colours.max() > 1
    ):
        raise InputRejected(f"lut must be (N, 3) colours from 0 to 1, got {colours.shape}.")
    return colours


def _full_brightness(counts: FloatImage) -> float:
    flat = counts.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)]
    positive = sample[sample > 0]
    if positive.size == 0:
        return float(flat.max(initial=0.0)) or 1.0
    return float(np.quantile(positive, _WHITE_QUANTILE))


def _row_blocks(shape: tuple[int, ...]) -> list[slice]:
    """Blocks of rows of bounded size: colouring needs many bytes a pixel."""
    rows = max(1, _SAMPLE // shape[1])
    return [slice(first, first + rows) for first in range(0, shape[0], rows)]
