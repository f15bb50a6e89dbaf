"""Band-pass filters of frames and their local maxima, compiled: what ``detect`` is made of.

The wavelet is undecimated ("a trous"), with a B-spline as smoothing kernel (Izeddin 2012; Ovesny 2014).
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from smlm_bridge._compile import compiled
from smlm_bridge.errors import InputRejected

Floats = NDArray[np.float64]

LARGEST_KERNEL_PX: Final = 101
GAUSSIAN_REACH: Final = 4.0  # in standard deviations: what is cut off is below 1e-4 of the kernel
LARGEST_SIGMA_PX: Final = LARGEST_KERNEL_PX / (2 * GAUSSIAN_REACH)


def bspline_kernel(order: int = 3, scale: float = 2.0) -> Floats:
    """The wavelet's smoothing kernel: a B-spline sampled at whole pixels, with sum 1 and an odd length.

    ThunderSTORM's default, order 3 at scale 2, is [1, 4, 6, 4, 1] / 16.

    Raises
    ------
    InputRejected
        If the order is below 1, or the kernel would be longer than 101 pixels.
    """
    if order != int(order) or order < 1 or not 0 < order * scale <= LARGEST_KERNEL_PX:
        raise InputRejected(
            f"a B-spline of order {order:g} and scale {scale:g}: the order is a whole number from 1, and order "
            f"times scale (the kernel's length in pixels) above 0 and at most {LARGEST_KERNEL_PX}."
        )
    reach = math.ceil(order * scale / 2) - 1
    t = np.arange(-reach, reach + 1) / scale + order / 2
    # De Boor's recursion; column j is the spline moved by j, B_q(t - j).
    moved = t[:, None] - np.arange(order)
    spline = ((moved >= 0) & (moved < 1)).astype(np.float64)
    for q in range(2, order + 1):
        s = moved[:, : order - q + 1]
        spline = (s * spline[:, :-1] + (q - s) * spline[:, 1:]) / (q - 1)
    return np.asarray(spline[:, 0] / spline[:, 0].sum(), dtype=np.float64)


def gaussian_kernel(sigma_px: float) -> Floats:
    """A sampled Gaussian with sum 1, cut off at 4 standard deviations."""
    reach = math.ceil(GAUSSIAN_REACH * sigma_px)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    return np.asarray(kernel / kernel.sum(), dtype=np.float64)


def wavelet_levels(images: Floats, kernel: Floats) -> tuple[Floats, Floats]:
    """The first two levels of frames (T, H, W), V0 - V1 and V1 - V2: V is the successively smoothed frame.

    The second smoothing has the same kernel with a zero between every two of its values. The frame's edge is
    repeated as far as that reaches, and zeros lie beyond: as in ThunderSTORM, whose second level therefore
    depends on the background within two pixels (for the default kernel) of the edge.
    """
    first, second = np.empty_like(images), np.empty_like(images)
    _wavelet_levels(images, _half(kernel), first, second)
    return first, second


def blur(images: Floats, kernel: Floats) -> Floats:
    """Frames (T, H, W) smoothed along both axes, their edge repeated."""
    out = np.empty_like(images)
    _blur(images, _half(kernel), out)
    return out


def local_maxima(images: Floats, least: Floats, *, connectivity: int) -> NDArray[np.bool_]:
    """Mark in (T, H, W) the pixels of at least ``least`` (T,) that none of the 4 or 8 neighbours exceeds."""
    found = np.empty(images.shape, np.bool_)
    _local_maxima(images, least, connectivity == 8, found)
    return found


def _half(kernel: Floats) -> Floats:
    """A symmetric kernel from its centre outwards."""
    return np.ascontiguousarray(kernel[len(kernel) // 2 :])


@compiled
def _smooth(image: Floats, half: Floats, step: int, scratch: Floats, out: Floats) -> None:
    """Convolve (H, W) along both axes, zeros beyond the edge; kernel from its centre outwards, with holes."""
    height, width = image.shape
    centre = half[0]
    for y in range(height):
        target = scratch[y]
        source = image[y]
        for x in range(width):
            target[x] = centre * source[x]
        for k in range(1, len(half)):
            far = k * step
            weight = half[k]
            if y >= far and y + far < height:
                above, below = image[y - far], image[y + far]
                for x in range(width):
                    target[x] += weight * (above[x] + below[x])
            elif y >= far or y + far < height:
                other = image[y - far] if y >= far else image[y + far]
                for x in range(width):
                    target[x] += weight * other[x]
    for y in range(height):
        target = out[y]
        source = scratch[y]
        for x in range(width):
            target[x] = centre * source[x]
        for k in range(1, len(half)):
            far = k * step
            weight = half[k]
            # Slices, not source[x + far]: an index that may be negative keeps the loop from being vectorised.
            later, here = source[far:], target[far:]
            for x in range(len(later)):
                target[x] += weight * later[x]
            for x in range(len(here)):
                here[x] += weight * source[x]


@compiled
def _pad(image: Floats, pad: int, out: Floats) -> None:
    """Copy (H, W) into the middle of (H + 2 pad, W + 2 pad) and repeat its edge around it."""
    height, width = image.shape
    for y in range(out.shape[0]):
        row = min(max(y - pad, 0), height - 1)
        out[y, pad : pad + width] = image[row]
        out[y, :pad] = image[row, 0]
        out[y, pad + width :] = image[row, width - 1]


@compiled
def _wavelet_levels(images: Floats, half: Floats, first: Floats, second: Floats) -> None:
    _, height, width = images.shape
    pad = 2 * (len(half) - 1)
    padded = np.empty((height + 2 * pad, width + 2 * pad))
    scratch, v1, v2 = np.empty_like(padded), np.empty_like(padded), np.empty_like(padded)
    for t in range(len(images)):
        _pad(images[t], pad, padded)
        _smooth(padded, half, 1, scratch, v1)
        _smooth(v1, half, 2, scratch, v2)
        for y in range(height):
            image, high, middle = images[t, y], first[t, y], second[t, y]
            once, twice = v1[y + pad, pad : pad + width], v2[y + pad, pad : pad + width]
            for x in range(width):
                high[x] = image[x] - once[x]
                middle[x] = once[x] - twice[x]


@compiled
def _blur(images: Floats, half: Floats, out: Floats) -> None:
    _, height, width = images.shape
    pad = len(half) - 1
    padded = np.empty((height + 2 * pad, width + 2 * pad))
    scratch, smooth = np.empty_like(padded), np.empty_like(padded)
    for t in range(len(images)):
        _pad(images[t], pad, padded)
        _smooth(padded, half, 1, scratch, smooth)
        out[t] = smooth[pad : pad + height, pad : pad + width]


@compiled
def _local_maxima(images: Floats, least: Floats, diagonal: bool, found: NDArray[np.bool_]) -> None:
    frames, height, width = images.shape
    for t in range(frames):
        threshold = least[t]
        image = images[t]
        for y in range(height):
            for x in range(width):
                value = image[y, x]
                peak = value >= threshold
                if peak:
                    for v in range(max(y - 1, 0), min(y + 2, height)):
                        for u in range(max(x - 1, 0), min(x + 2, width)):
                            if image[v, u] > value and (diagonal or v == y or u == x):
                                peak = False
                found[t, y, x] = peak
