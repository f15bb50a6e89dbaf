"""The compiled fit: Fisher scoring with Levenberg-Marquardt damping on the Poisson likelihood, box by box.

Laurence & Chromy 2010 for the objective; the curvature is the Fisher information (Smith et al. 2010), so that
the bound comes with the last step. All of it stands in this file: numba's cache does not see changes in others.

A pixel's data d and expectation mu are shifted and scaled, d' = f d + f^2 r^2 and mu' = f mu + f^2 r^2, with r
the read noise and f the inverse of the excess factor: then variance and mean of d' are both mu', and one Poisson
likelihood stands for CCD, sCMOS (Huang et al. 2013) and, nearly, EMCCD, whose exact one is in ``Gain``. Lengths
are pixels from the corner of the box.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
P = ParamSpec("P")
R = TypeVar("R")

WIDTH, GAUSSIAN, SPLINE = 0, 1, 2
#: Internal order of the parameters; a background for each channel follows. SHAPE is a height or a width.
X, Y, SHAPE, PHOTONS, BACKGROUND = 0, 1, 2, 3, 4
CONVERGED, LIMITED, STUCK = 0, 1, 2

_POWERS = 64
_DAMPED = 0.1  # a step damped more than this says nothing about convergence
_MOST_DAMPED = 1e8
_SCREENING = 3  # steps from every start before the best are followed
_TINY = 1e-9
_LEAST_VARIANCE = 1e-2  # of a Gaussian, pixels: a tenth of a pixel wide
_LOG_2, _LOG_MIDDLE = math.log(2.0), math.log(0.75)
# As in ``gain``: step of the table and its least mean; least data beyond the table, photo-electrons.
_STEP, _LEAST_MEAN, _LEAST_DATA = 0.05, 1e-3, 1e-3
_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


class Model(NamedTuple):
    """What is expected in a box.

    ``constants`` (C, 12): of a Gaussian, along x and then along y in-focus width, focus, 1 / depth, third and
    fourth order, then the blur's variance and whether the curve is a polynomial (pixels; heights in nm); of a
    spline, centre y, centre x, samples a pixel, first height, step. ``table`` (C, Z, Y, X, 64) of the spline.
    ``share`` (C,) of the photons.
    """

    kind: int
    side: int
    constants: Floats
    table: NDArray[np.float32]
    share: Floats


class Gain(NamedTuple):
    """The exact likelihood of an EMCCD, for each channel a ``gain.GainTable``; ``exact`` says whether it counts.

    ``coefficients`` (C, A + 2, B + 2), ``information`` (C, A), and ``numbers`` (C, 4): first, bend and number of
    the data's coordinates, and read noise.
    """

    exact: bool
    coefficients: Floats
    information: Floats
    numbers: Floats


class Boxes(NamedTuple):
    """``data`` and ``shift`` (N, C, n), and where an emitter appears in each channel's box.

    That is ``matrix`` (N, C, 2, 2) times its position in the first channel's, plus ``origin`` (N, C, 2).
    """

    data: NDArray[np.float32]
    shift: NDArray[np.float32]
    matrix: Floats
    origin: Floats
    scale: float
    gain: Gain


class Limits(NamedTuple):
    """Bounds and largest step of each parameter (P,), which are held, and when to stop."""

    lower: Floats
    upper: Floats
    step: Floats
    held: NDArray[np.bool_]
    tolerance: float
    iterations: int
    least_apart: float


class Work(NamedTuple):
    """Room for one box.

    ``basis`` and ``weighted`` (5, n); ``mean``, its memory as integers, its inverse, the objective's half slope by
    it, and integers (n,);
    ``axes`` (2, 3, side); small matrices.
    """

    basis: Floats
    weighted: Floats
    mean: Floats
    bits: NDArray[np.int64]
    whole: NDArray[np.int64]
    inverse: Floats
    pull: Floats
    axes: Floats
    local: Floats
    jacobian: Floats
    verdict: Floats
    slope: Floats
    information: Floats
    trial_slope: Floats
    trial_information: Floats
    factor: Floats
    move: Floats
    trial: Floats


def compiled(*, inline: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile at the first call, once for all runs; numba has no types of its own.

    ``inline`` is for what runs inside the loops: handing over the room costs more than the work.
    """

    def compiler(function: Callable[P, R]) -> Callable[P, R]:
        # Sums may be reordered; not-a-number keeps its meaning.
        freedom = {"reassoc", "contract", "arcp", "nsz"}
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": freedom}
        try:
            made = numba.njit(cache=True, forceinline=inline, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            made = numba.njit(forceinline=inline, **options)(function)
        return cast("Callable[P, R]", made)

    return compiler


@compiled(inline=True)
def _axis(centre: float, sigma: float, share: Floats, by_centre: Floats, by_sigma: Floats) -> None:
    """A Gaussian's share of each pixel of an axis and its derivatives (Smith et al. 2010, Eq. 4)."""
    inverse = 1.0 / sigma
    top = inverse / math.sqrt(2 * math.pi)
    t = -centre * inverse
    area, height = math.erf(t * math.sqrt(0.5)), top * math.exp(-0.5 * t * t)
    for i in range(len(share)):
        u = (i + 1 - centre) * inverse
        next_area, next_height = math.erf(u * math.sqrt(0.5)), top * math.exp(-0.5 * u * u)
        share[i] = 0.5 * (next_area - area)
        by_centre[i] = height - next_height
        by_sigma[i] = t * height - u * next_height
        t, area, height = u, next_area, next_height


@compiled(inline=True)
def _gaussian(kind: int, c: Floats, x: float, y: float, shape: float, axes: Floats, basis: Floats) -> None:
    side = axes.shape[2]
    for a in range(2):
        if kind == WIDTH:
            sigma, slope = shape, 1.0
        else:
            s = c[5 * a : 5 * a + 5]
            t = (shape - s[1]) * s[2]
            growth = 1 + t * t * (1 + t * (s[3] + t * s[4]))
            change = t * (2 + t * (3 * s[3] + t * 4 * s[4])) * s[2]
            if c[11] > 0:
                growth, change = growth * growth, 2 * growth * change
            sigma = math.sqrt(max(s[0] ** 2 * growth + c[10], _LEAST_VARIANCE))
            slope = 0.5 * s[0] ** 2 * change / sigma
        _axis(x if a == 0 else y, sigma, axes[a, 0], axes[a, 1], axes[a, 2])
        for i in range(side):
            axes[a, 2, i] *= slope
    for j in range(side):
        fy, dy, sy = axes[1, 0, j], axes[1, 1, j], axes[1, 2, j]
        first = j * side
        for i in range(side):
            basis[3, first + i] = fy * axes[0, 0, i]
            basis[0, first + i] = fy * axes[0, 1, i]
            basis[1, first + i] = dy * axes[0, 0, i]
            basis[2, first + i] = fy * axes[0, 2, i] + sy * axes[0, 0, i]


@compiled(inline=True)
def _spline(
    side: int,
    c: Floats,
    table: NDArray[np.float32],
    x: float,
    y: float,
    z: float,
    basis: Floats,
) -> None:
    planes, rows, columns, _ = table.shape
    samples = c[2]
    v, u = c[0] + (0.5 - y) * samples, c[1] + (0.5 - x) * samples
    w = min(max((z - c[3]) / c[4], 0.0), float(planes))
    j0, i0, k = math.floor(v), math.floor(u), min(int(w), planes - 1)
    dy, dx, dz = v - j0, u - i0, w - k
    weights = np.empty((4, _POWERS), np.float32)
    for m in range(_POWERS):
        a, b, e = m % 4, m // 4 % 4, m // 16
        px, py, pz = dx**a, dy**b, dz**e
        weights[0, m] = -samples * (a * dx ** max(a - 1, 0)) * py * pz
        weights[1, m] = -samples * px * (b * dy ** max(b - 1, 0)) * pz
        weights[2, m] = px * py * (e * dz ** max(e - 1, 0)) / c[4]
        weights[3, m] = px * py * pz
    step = int(samples)
    for row in range(side):
        j = j0 + row * step
        for column in range(side):
            i = i0 + column * step
            p = row * side + column
            if 0 <= j < rows and 0 <= i < columns:
                voxel = table[k, j, i]
                fx, fy, fz, f = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
                for m in range(_POWERS):
                    fx += voxel[m] * weights[0, m]
                    fy += voxel[m] * weights[1, m]
                    fz += voxel[m] * weights[2, m]
                    f += voxel[m] * weights[3, m]
                basis[0, p], basis[1, p], basis[2, p], basis[3, p] = fx, fy, fz, f
            else:
                basis[0, p], basis[1, p], basis[2, p], basis[3, p] = 0.0, 0.0, 0.0, 0.0


@compiled(inline=True)
def _expect(model: Model, boxes: Boxes, n: int, channel: int, theta: Floats, shift: Any, work: Work) -> None:
    """Fill the basis (derivatives by x, y, shape; fraction; 1) and the mean of one channel."""
    matrix, origin, scale = boxes.matrix[n, channel], boxes.origin[n, channel], boxes.scale
    x = matrix[0, 0] * theta[X] + matrix[0, 1] * theta[Y] + origin[0]
    y = matrix[1, 0] * theta[X] + matrix[1, 1] * theta[Y] + origin[1]
    basis, c = work.basis, model.constants[channel]
    if model.kind == SPLINE:
        _spline(model.side, c, model.table[channel], x, y, theta[SHAPE], basis)
    else:
        _gaussian(model.kind, c, x, y, theta[SHAPE], work.axes, basis)
    light = scale * theta[PHOTONS] * model.share[channel]
    dark = scale * theta[BACKGROUND + channel]
    fraction, mean = basis[3], work.mean
    for p in range(len(mean)):
        value = light * fraction[p] + dark + shift[p]
        mean[p] = value if value > _TINY else _TINY


@compiled(inline=True)
def _entropy(data: Any, mean: Floats, bits: NDArray[np.int64], whole: NDArray[np.int64]) -> float:
    """Sum of mean - data log(mean); ``bits`` is the memory of ``mean``.

    The logarithm is written out, because a call of the library's would keep the loop from being vectorised:
    exponent and mantissa m in 0.5 to 1, log m = 2 artanh((m - 1) / (m + 1)); its error is below 1e-12.
    """
    total = 0.0
    mantissa = whole.view(np.float64)
    for p in range(len(mean)):
        whole[p] = (bits[p] & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000
    for p in range(len(mean)):
        # 3/4 in the middle of the mantissas halves the argument of the series.
        t = (mantissa[p] - 0.75) / (mantissa[p] + 0.75)
        u = t * t
        series = 1 / 15 + u / 17
        series = 1 / 13 + u * series
        series = 1 / 11 + u * series
        series = 1 / 9 + u * series
        series = 1 / 7 + u * series
        series = 1 / 5 + u * series
        series = 1 / 3 + u * series
        exponent = np.float64((bits[p] >> 52) - 1022)
        log = exponent * _LOG_2 + (_LOG_MIDDLE + 2 * t * (1 + u * series))
        total += mean[p] - data[p] * log
    return total


@compiled(inline=True)
def _weights(t: float) -> tuple[float, float, float, float]:
    """Cubic B-splines at t of 0 to 1 between knots."""
    s = 1.0 - t
    return (
        s * s * s / 6,
        (3 * t * t * t - 6 * t * t + 4) / 6,
        (3 * s * s * s - 6 * s * s + 4) / 6,
        t * t * t / 6,
    )


@compiled()
def _electrons(gain: Gain, channel: int, x: float, mu: float) -> tuple[float, float, float]:
    """Log-density of data x at mean mu, both photo-electrons, its slope by mu, and the information about mu."""
    table, information, numbers = gain.coefficients[channel], gain.information[channel], gain.numbers[channel]
    noise = numbers[3]
    x, mu = max(x, -10.0 * noise), max(mu, _LEAST_MEAN)
    root = math.sqrt(mu)
    u, v = root / _STEP, (x / math.sqrt(math.sqrt(x * x + numbers[1] ** 4)) - numbers[0]) / _STEP
    if not (u < len(information) - 1 and v < numbers[2] - 1):
        return _many_electrons(x, mu, noise)
    i, j = int(u), max(int(v), 0)
    t = u - i
    weight = ((1 - t) * information[i] + t * information[i + 1]) / mu
    along = _weights(t)
    s = 1.0 - t
    slopes = -0.5 * s * s, 1.5 * t * t - 2 * t, 2 * s - 1.5 * s * s, 0.5 * t * t
    across = _weights(v - j)
    value, slope = 0.0, 0.0
    for k in range(4):
        row = table[i + k]
        line = across[0] * row[j] + across[1] * row[j + 1] + across[2] * row[j + 2] + across[3] * row[j + 3]
        value += along[k] * line
        slope += slopes[k] * line
    value += math.log(mu)
    slope = slope / (2 * root * _STEP) + 1 / mu
    if x < 10.0 * noise:  # or no electron came
        none = -mu - 0.5 * (x / noise) ** 2 - math.log(noise) - _HALF_LOG_2_PI
        share = 1 / (1 + math.exp(min(max(value - none, -50.0), 50.0)))
        value = max(value, none) + math.log1p(math.exp(-abs(value - none)))
        slope = (1 - share) * slope - share
    return value, slope, weight


@compiled()
def _many_electrons(x: float, mu: float, noise: float) -> tuple[float, float, float]:
    """The same of many electrons: read noise shifts both (Huang et al. 2013), Bessel functions are asymptotic."""
    weight = 1 / (2 * mu + noise * noise)
    x, mu = max(x + 0.5 * noise * noise, _LEAST_DATA), mu + 0.5 * noise * noise
    t = 2 * math.sqrt(mu * x)
    e = 1 / (8 * max(t, 1.0))
    first = 1 - e * (3 + e * (7.5 + e * 52.5))
    zeroth = 1 + e * (1 + e * (4.5 + e * 37.5))
    away = math.sqrt(x) - math.sqrt(mu)
    value = (
        -away * away + 0.5 * math.log(mu / x) - 0.5 * math.log(t) - _HALF_LOG_2_PI + math.log(max(first, 0.1))
    )
    return value, math.sqrt(x / mu) * zeroth / max(first, 0.1) - 1, weight


@compiled(inline=True)
def _assemble(model: Model, boxes: Boxes, n: int, kurtosis: float, work: Work) -> float:
    """Minus twice the log-likelihood at ``work.trial`` without its constants.

    Also half its gradient, the Fisher information, and Pearson's chi^2 with its variance under the model, which
    is more than twice the mean at few photons.
    """
    theta, slope, information = work.trial, work.trial_slope, work.trial_information
    slope[:] = 0.0
    information[:] = 0.0
    chi2, variance = 0.0, 0.0
    basis, weighted, mean, inverse, local = work.basis, work.weighted, work.mean, work.inverse, work.local
    drag = work.pull
    total = 0.0
    for channel in range(len(model.share)):
        data, shift = boxes.data[n, channel], boxes.shift[n, channel]
        _expect(model, boxes, n, channel, theta, shift, work)
        excess = kurtosis * boxes.scale**3
        for p in range(len(mean)):
            inverse[p] = 1.0 / mean[p]
            chi2 += (data[p] - mean[p]) ** 2 * inverse[p]
            variance += 2 + excess * (mean[p] - shift[p]) * inverse[p] ** 2
        if boxes.gain.exact:
            for p in range(len(mean)):
                x, mu = (data[p] - shift[p]) / boxes.scale, (mean[p] - shift[p]) / boxes.scale
                value, score, weight = _electrons(boxes.gain, channel, x, mu)
                total -= 2 * value
                drag[p], inverse[p] = -score / boxes.scale, weight / boxes.scale**2
        else:
            total += 2 * _entropy(data, mean, work.bits, work.whole)
            for p in range(len(mean)):
                drag[p] = 1.0 - data[p] * inverse[p]
        for a in range(5):
            one, scaled = basis[a], weighted[a]
            pull = 0.0
            for p in range(len(mean)):
                scaled[p] = one[p] * inverse[p]
                pull += one[p] * drag[p]
            local[a, 5] = pull
            for b in range(a + 1):
                two = basis[b]
                product = 0.0
                for p in range(len(mean)):
                    product += scaled[p] * two[p]
                local[a, b] = product
                local[b, a] = product
        _collect(model, boxes, n, channel, theta, work)
    work.verdict[2], work.verdict[3] = chi2, variance
    return total


@compiled(inline=True)
def _collect(model: Model, boxes: Boxes, n: int, channel: int, theta: Floats, work: Work) -> None:
    """Add a channel's sums by its own x, y, shape, fraction, 1 to those by the parameters (chain rule)."""
    jacobian, local, scale = work.jacobian, work.local, boxes.scale
    slope, information = work.trial_slope, work.trial_information
    jacobian[:] = 0.0
    light = scale * theta[PHOTONS] * model.share[channel]
    for a in range(2):
        for b in range(2):
            jacobian[a, b] = light * boxes.matrix[n, channel, a, b]
    jacobian[2, SHAPE] = light
    jacobian[3, PHOTONS] = scale * model.share[channel]
    jacobian[4, BACKGROUND + channel] = scale
    for a in range(5):
        for q in range(len(theta)):
            if jacobian[a, q] == 0.0:
                continue
            slope[q] += jacobian[a, q] * local[a, 5]
            for b in range(5):
                factor = jacobian[a, q] * local[a, b]
                for r in range(q + 1):
                    information[q, r] += factor * jacobian[b, r]


@compiled(inline=True)
def _factorise(information: Floats, damping: float, frozen: NDArray[np.bool_], factor: Floats) -> bool:
    """Cholesky's factor of I + damping diag I, from I's lower triangle; unit rows for what is frozen."""
    for a in range(len(frozen)):
        for b in range(a + 1):
            value = information[a, b]
            if a == b:
                value *= 1.0 + damping
            if frozen[a] or frozen[b]:
                value = 1.0 if a == b else 0.0
            for k in range(b):
                value -= factor[a, k] * factor[b, k]
            if a == b:
                if not value > (0.0 if frozen[a] else 1e-12 * information[a, a]):
                    return False
                factor[a, a] = math.sqrt(value)
            else:
                factor[a, b] = value / factor[b, b]
    return True


@compiled(inline=True)
def _step(factor: Floats, slope: Floats, frozen: NDArray[np.bool_], move: Floats) -> float:
    """Solve for the step; returns by how much it should lower the objective."""
    size = len(slope)
    expected = 0.0
    for a in range(size):
        value = 0.0 if frozen[a] else -slope[a]
        for k in range(a):
            value -= factor[a, k] * move[k]
        move[a] = value / factor[a, a]
        expected += move[a] * move[a]
    for a in range(size - 1, -1, -1):
        value = move[a]
        for k in range(a + 1, size):
            value -= factor[k, a] * move[k]
        move[a] = value / factor[a, a]
    return expected


@compiled()
def _freeze(theta: Floats, slope: Floats, limits: Limits, frozen: NDArray[np.bool_]) -> None:
    """Hold what is held, and what lies on a bound that the likelihood pulls it beyond."""
    for a in range(len(theta)):
        low = theta[a] <= limits.lower[a] and slope[a] > 0
        high = theta[a] >= limits.upper[a] and slope[a] < 0
        frozen[a] = limits.held[a] or low or high


@compiled()
def _climb(
    model: Model, boxes: Boxes, n: int, theta: Floats, limits: Limits, kurtosis: float, work: Work, most: int
) -> tuple[float, int, int]:
    """Improve ``theta`` in at most ``most`` steps: the objective, the steps taken and how it ended.

    It has converged when the next step would raise the log-likelihood by less than half the tolerance. That
    step is taken, but information and chi^2 stay those before it.
    """
    size = len(theta)
    frozen = np.zeros(size, np.bool_)
    value, damping = np.inf, 0.0
    work.trial[:] = theta
    for iteration in range(most + 1):
        found = _assemble(model, boxes, n, kurtosis, work)
        if found <= value:
            theta[:] = work.trial
            work.slope[:] = work.trial_slope
            work.information[:] = work.trial_information
            work.verdict[:2] = work.verdict[2:]
            value = found
            damping = 0.0 if damping < 1e-2 else 0.1 * damping
        else:
            damping = max(10 * damping, 1e-1)
        if iteration == most:
            break
        _freeze(theta, work.slope, limits, frozen)
        while not _factorise(work.information, damping, frozen, work.factor):
            damping = max(10 * damping, 1e-3)
            if not damping < _MOST_DAMPED:
                return value, iteration, STUCK
        if not damping < _MOST_DAMPED:
            return value, iteration, STUCK
        expected = _step(work.factor, work.slope, frozen, work.move)
        for a in range(size):
            move = min(max(work.move[a], -limits.step[a]), limits.step[a])
            work.trial[a] = min(max(theta[a] + move, limits.lower[a]), limits.upper[a])
        if expected < limits.tolerance and damping <= _DAMPED:
            theta[:] = work.trial
            return value - expected, iteration + 1, CONVERGED
    return value, most, LIMITED


@compiled()
def _begin(model: Model, boxes: Boxes, n: int, limits: Limits, theta: Floats) -> None:
    """Centroid, photons and background above the mean of the outermost pixels."""
    side = model.side
    brightness = 0.0
    for channel in range(len(model.share)):
        data, shift = boxes.data[n, channel], boxes.shift[n, channel]
        border, count = 0.0, 0
        for p in range(side * side):
            row, column = p // side, p % side
            if row == 0 or column == 0 or row == side - 1 or column == side - 1:
                border += data[p] - shift[p]
                count += 1
        border /= count
        theta[BACKGROUND + channel] = border / boxes.scale
        total, along_x, along_y = 0.0, 0.0, 0.0
        for p in range(side * side):
            light = data[p] - shift[p] - border
            brightness += light
            if channel == 0 and light > 0:
                total += light
                along_x += light * (p % side + 0.5)
                along_y += light * (p // side + 0.5)
        if channel == 0:
            theta[X] = along_x / total if total > 0 else 0.5 * side
            theta[Y] = along_y / total if total > 0 else 0.5 * side
    theta[PHOTONS] = brightness / boxes.scale
    for a in range(len(theta)):
        if a != SHAPE:
            theta[a] = min(max(theta[a], limits.lower[a]), limits.upper[a])


@compiled()
def _bounds(work: Work, held: NDArray[np.bool_], out: Floats) -> None:
    """Square roots of the diagonal of the information's inverse; infinite if it has none, nan if held."""
    known = _factorise(work.information, 0.0, held, work.factor)
    row = work.move
    for a in range(len(held)):
        variance = 0.0
        for b in range(a, len(held)):
            value = 1.0 if a == b else 0.0
            for k in range(a, b):
                value -= work.factor[b, k] * row[k]
            row[b] = value / work.factor[b, b]
            variance += row[b] * row[b]
        out[a] = np.nan if held[a] else math.sqrt(variance) if known else np.inf


@compiled()
def _room(size: int, side: int) -> Work:
    pixels = side * side
    mean = np.ones(pixels)
    small = np.zeros((3, size, size))
    lines = np.zeros((4, size))
    return Work(
        np.ones((5, pixels)),
        np.ones((5, pixels)),
        mean,
        mean.view(np.int64),
        np.ones(pixels, np.int64),
        np.ones(pixels),
        np.ones(pixels),
        np.empty((2, 3, side)),
        np.empty((5, 6)),
        np.empty((5, size)),
        np.zeros(4),
        lines[0],
        small[0],
        lines[1],
        small[1],
        small[2],
        lines[2],
        lines[3],
    )


@compiled()
def _other(values: Floats, thetas: Floats, best: float, apart: float) -> int:
    """Index of the best start whose shape is ``apart`` from ``best``; -1 if there is none."""
    found = -1
    for s in range(len(values)):
        far = abs(thetas[s, SHAPE] - best) > apart
        if far and np.isfinite(values[s]) and (found < 0 or values[s] < values[found]):
            found = s
    return found


@compiled()
def fit_all(
    model: Model,
    boxes: Boxes,
    starts: Floats,
    shapes: Floats,
    limits: Limits,
    kurtosis: float,
    first: int,
    stop: int,
    theta: Floats,
    bound: Floats,
    numbers: Floats,
    other: Floats,
) -> None:
    """Fit the boxes ``first`` to ``stop``.

    Parameters
    ----------
    starts : (N, P)
        Where to begin; an x that is not a number asks for the centroid, a shape that is none for each of
        ``shapes`` (S,), of which the likeliest is kept.
    theta, bound : (N, P), numbers : (N, 6), other : (N, P + 1)
        Written: parameters; lowest standard deviations; objective, chi^2, its variance, iterations, status,
        and whether there is another solution; that solution and its objective.
    """
    size = theta.shape[1]
    work = _room(size, model.side)
    count = len(shapes)
    thetas, values = np.empty((count, size)), np.zeros(count)
    for n in range(first, stop):
        steps = 0
        for s in range(count):
            if np.isnan(starts[n, X]):
                _begin(model, boxes, n, limits, thetas[s])
            else:
                thetas[s] = starts[n]
            if np.isnan(starts[n, SHAPE]):
                thetas[s, SHAPE] = shapes[s]
            if count > 1:
                values[s], taken, _ = _climb(model, boxes, n, thetas[s], limits, kurtosis, work, _SCREENING)
                steps += taken
        theta[n] = thetas[np.argmin(values)]
        value, taken, status = _climb(model, boxes, n, theta[n], limits, kurtosis, work, limits.iterations)
        steps += taken
        numbers[n, 5] = 0.0
        second = _other(values, thetas, theta[n, SHAPE], limits.least_apart) if count > 1 else -1
        if second >= 0:
            rival = thetas[second]
            found, taken, ended = _climb(model, boxes, n, rival, limits, kurtosis, work, limits.iterations)
            steps += taken
            apart = abs(rival[SHAPE] - theta[n, SHAPE]) > limits.least_apart
            if found < value:
                beaten = theta[n].copy()
                theta[n] = rival
                rival[:] = beaten
                value, found, status = found, value, ended
            if apart:
                numbers[n, 5] = 1.0
                other[n, :size], other[n, size] = rival, found
            _climb(model, boxes, n, theta[n], limits, kurtosis, work, 0)
        _bounds(work, limits.held, bound[n])
        numbers[n, 0], numbers[n, 1], numbers[n, 2] = value, work.verdict[0], work.verdict[1]
        numbers[n, 3], numbers[n, 4] = steps, status
