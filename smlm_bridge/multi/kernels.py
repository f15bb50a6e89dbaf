"""Windows of a tabulated PSF, compiled: narrow bands of weights along x, then along y."""

import math

import numpy as np
from numpy.typing import NDArray

from smlm_bridge._compile import compiled_freely

Floats = NDArray[np.float64]
Frames = NDArray[np.float32]
Indices = NDArray[np.int64]

_REACH = 5.3  # standard deviations of a sample's spread that are followed: exp(-14) of its height is left out


@compiled_freely
def band_size(sigma_nm: float, pixel_nm: float, sample_nm: float, integrate: bool) -> int:
    """Samples that a pixel sees along one axis."""
    reach = _REACH * sigma_nm + (0.5 * pixel_nm if integrate else 0.0)
    return int(2.0 * reach / sample_nm) + 2


@compiled_freely
def _weigh(
    centre_nm: float,
    variance: float,
    pixel_nm: float,
    sample_nm: float,
    samples: int,
    integrate: bool,
    first: Indices,
    weights: Frames,
    by_position: Frames,
    by_variance: Frames,
) -> int:
    """Weights (S, K) of samples in every pixel, and their derivatives; returns K that is used.

    Pixel i sees the samples ``first[i]`` and after it. Samples beyond the table have no weight.
    """
    sigma = math.sqrt(variance)
    count = (band_size(sigma, pixel_nm, sample_nm, integrate) + 3) // 4 * 4
    half = 0.5 * pixel_nm
    reach = _REACH * sigma + (half if integrate else 0.0)
    middle = samples // 2
    top = sample_nm / math.sqrt(2.0 * math.pi * variance)
    root = 1.0 / math.sqrt(2.0 * variance)
    # Of every sample, what lies to the left of a pixel's left edge: that is its neighbour's right edge.
    before, density_before = np.full(samples, -1.0), np.zeros(samples)
    for i in range(len(first)):
        away = (i + 0.5) * pixel_nm - centre_nm
        begin = math.ceil((away - reach) / sample_nm) + middle
        first[i] = min(max(begin, 0), samples - 1)
        for k in range(count):
            j = first[i] + k
            distance = away - (j - middle) * sample_nm
            if j >= samples or abs(distance) > reach + sample_nm:
                weights[i, k] = by_position[i, k] = by_variance[i, k] = 0.0
            elif integrate:
                right, left = distance + half, distance - half
                if i == 0:
                    before[j] = math.erf(left * root)
                    density_before[j] = top * math.exp(-0.5 * left * left / variance)
                after, density = math.erf(right * root), top * math.exp(-0.5 * right * right / variance)
                weights[i, k] = 0.5 * (after - before[j]) * sample_nm
                by_position[i, k] = density_before[j] - density
                by_variance[i, k] = (left * density_before[j] - right * density) / (2.0 * variance)
                before[j], density_before[j] = after, density
            else:
                square = distance * distance / variance
                weight = top * math.exp(-0.5 * square) * pixel_nm
                weights[i, k] = weight
                by_position[i, k] = weight * distance / variance
                by_variance[i, k] = weight * (square - 1.0) / (2.0 * variance)
    return count


@compiled_freely
def _combine(
    weights: Frames, row: int, count: int, source: Frames, first: int, target: Frames, at: int
) -> None:
    """Add rows of ``source`` from the first on, with a row of weights, to a row of ``target``: four at a time."""
    for k in range(0, count, 4):
        j = first + k
        a, b, c, d = weights[row, k], weights[row, k + 1], weights[row, k + 2], weights[row, k + 3]
        for i in range(target.shape[1]):
            target[at, i] += (
                a * source[j, i] + b * source[j + 1, i] + c * source[j + 2, i] + d * source[j + 3, i]
            )


@compiled_freely
def _mix(table: Frames, first: int, share: Floats, out: Frames) -> None:
    """The sum of four planes (M, M) of the table, with shares."""
    a, b, c, d = np.float32(share[0]), np.float32(share[1]), np.float32(share[2]), np.float32(share[3])
    for i in range(table.shape[1]):
        for j in range(table.shape[2]):
            out[i, j] = (
                a * table[first, i, j]
                + b * table[first + 1, i, j]
                + c * table[first + 2, i, j]
                + d * table[first + 3, i, j]
            )


@compiled_freely
def render(
    table: Frames,
    first_plane: Indices,
    shares: Floats,
    xy_nm: Floats,
    variance: Floats,
    pixel_nm: float,
    sample_nm: float,
    integrate: bool,
    out: Frames,
) -> None:
    """Windows of emitters, and their derivatives where there is room for them.

    Parameters
    ----------
    table : (Z, M, M)
        Coefficients of the samples; x goes along the second axis, y along the third.
    first_plane : (n,)
        First of the four planes of each emitter.
    shares : (n, 2, 4)
        Shares of the planes in the image, and in its derivative by z.
    xy_nm : (n, 2)
        Of the emitters, from the corner of their windows.
    variance : (n,)
        Of the Gaussian that spreads every sample, nm^2.
    out : (n, 1 or 5, S, S)
        Image; by x, y, z and variance.
    """
    orders, side, samples = out.shape[1], out.shape[2], table.shape[1]
    most = (band_size(math.sqrt(variance.max()), pixel_nm, sample_nm, integrate) + 3) // 4 * 4
    x, x_x, x_v = (
        np.empty((side, most), np.float32),
        np.empty((side, most), np.float32),
        np.empty((side, most), np.float32),
    )
    y, y_y, y_v = (
        np.empty((side, most), np.float32),
        np.empty((side, most), np.float32),
        np.empty((side, most), np.float32),
    )
    from_x, from_y = np.empty(side, np.int64), np.empty(side, np.int64)
    # Bands may reach beyond the last sample: zeros lie there.
    plane, slope = (
        np.zeros((samples + most, samples), np.float32),
        np.zeros((samples + most, samples), np.float32),
    )
    # What is summed along x, and the same turned, so that sums along y run along memory, too.
    lines = np.empty((4, side, samples), np.float32)
    turned = np.zeros((4, samples + most, side), np.float32)
    for n in range(len(out)):
        place = xy_nm[n]
        count = _weigh(place[0], variance[n], pixel_nm, sample_nm, samples, integrate, from_x, x, x_x, x_v)
        _weigh(place[1], variance[n], pixel_nm, sample_nm, samples, integrate, from_y, y, y_y, y_v)
        _mix(table, first_plane[n], shares[n, 0], plane)
        image, by_x, by_v, by_z = lines[0], lines[1], lines[2], lines[3]
        lines[:] = 0.0
        for q in range(side):
            _combine(x, q, count, plane, from_x[q], image, q)
        if orders > 1:
            _mix(table, first_plane[n], shares[n, 1], slope)
            for q in range(side):
                _combine(x_x, q, count, plane, from_x[q], by_x, q)
                _combine(x_v, q, count, plane, from_x[q], by_v, q)
                _combine(x, q, count, slope, from_x[q], by_z, q)
        for order in range(1 if orders == 1 else 4):
            turned[order, :samples] = lines[order].T
        image, by_x, by_v, by_z = turned[0], turned[1], turned[2], turned[3]
        out[n] = 0.0
        for p in range(side):
            _combine(y, p, count, image, from_y[p], out[n, 0], p)
        if orders > 1:
            for p in range(side):
                _combine(y, p, count, by_x, from_y[p], out[n, 1], p)
                _combine(y_y, p, count, image, from_y[p], out[n, 2], p)
                _combine(y, p, count, by_z, from_y[p], out[n, 3], p)
                _combine(y_v, p, count, image, from_y[p], out[n, 4], p)
                _combine(y, p, count, by_v, from_y[p], out[n, 4], p)
