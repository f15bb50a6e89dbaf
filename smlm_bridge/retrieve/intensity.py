"""Intensity of incoherent fields and its gradient: where retrieval spends its time.

Pupil samples and image points both lie symmetrically about zero. Split into even and odd parts along either
axis, the Fourier matrix falls apart into a real cosine and a real sine matrix of half the size, a quarter of
the arithmetic. numba does what is not a product of matrices. Its inner loops read and write few rows at a time:
the compiler checks that rows do not overlap before it computes many numbers at once, and gives up on many rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smlm_bridge.optics.folded import folded_lines

RealArray = NDArray[np.float32]
P = ParamSpec("P")
R = TypeVar("R")
_RUN_SLICES = 4  # go through the products together; what belongs to them stays in the cache


def half_transform(points: Tensor, k_axis: Tensor) -> Tensor:
    """(2, ceil(M/2), N/2) cosines and sines from the positive wave vectors to the points not below zero.

    ``points`` (M,) in nm and ``k_axis`` (N,) in rad/nm are symmetric about zero, N is even.
    """
    angle = points[points.numel() // 2 :, None].double() * k_axis[k_axis.numel() // 2 :].double()
    return torch.stack([torch.cos(angle), torch.sin(angle)]).float()


@dataclass(frozen=True)
class Transform:
    """From the pupil to the image, the same for all slices.

    Parameters
    ----------
    base : (F, N, N) complex
        The incoherent fields.
    kz_per_nm, k_axis_per_nm : (N, N), (N,)
        What a shift of the focus, and one along x or y, does to the phase.
    rows, columns
        From ``half_transform``.
    shape
        Rows and columns of the image.
    """

    base: Tensor
    kz_per_nm: Tensor
    k_axis_per_nm: Tensor
    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]

    @cached_property
    def lines(self) -> RealArray:
        """(4, 2, F, h, h) the fields in the quadrants of the pupil."""
        return cast("RealArray", folded_lines(self.base).numpy())

    @cached_property
    def along(self) -> tuple[Tensor, Tensor]:
        """(4, my, h) and (4, mx, h): the matrices along y and x for (parity y, parity x)."""
        return self.rows.repeat_interleave(2, 0), self.columns.repeat(2, 1, 1)

    @cached_property
    def wave_vectors(self) -> Tensor:
        """(3, N * N) rad/nm by which focus, x and y turn the samples of the quadrants."""
        kx, ky = (k.expand_as(self.kz_per_nm) for k in (self.k_axis_per_nm, self.k_axis_per_nm[:, None]))
        return torch.stack([_quadrants(k).flatten() for k in (self.kz_per_nm, kx, ky)])

    def phasors(self, log_amplitude: Tensor, phase: Tensor, moved_nm: Tensor) -> tuple[Tensor, Tensor]:
        """(E, 4, h, h) real and imaginary part at focus, x and y (E, 3) of the slices."""
        amplitude = torch.exp(_quadrants(log_amplitude))
        angle = torch.addmm(_quadrants(phase).view(1, -1), moved_nm, self.wave_vectors, alpha=-1)
        angle = angle.view(-1, *amplitude.shape)
        return torch.cos(angle).mul_(amplitude), torch.sin(angle).mul_(amplitude)


@dataclass(frozen=True)
class Filter:
    """From points to pixels along one axis, both symmetric about zero; by parity, like the transform.

    Parameters
    ----------
    weights : (2, p, m)
        From the m points not below zero to the p pixels not below zero, for even and for odd images.
    slopes : (2, p, m)
        Their derivative with respect to what is fitted, the logarithm of the blur.
    """

    weights: Tensor
    slopes: Tensor

    @classmethod
    def of(cls, weights: Tensor, slopes: Tensor) -> "Filter":
        """From those of all pixels and points, (P, M) each."""
        return cls(_by_parity(weights), _by_parity(slopes))


def _by_parity(weights: Tensor) -> Tensor:
    pixels, points = weights.shape
    to_right, to_left = (
        weights[pixels // 2 :, points // 2 :],
        weights[pixels // 2 :, : (points + 1) // 2].flip(1),
    )
    even, odd = to_right + to_left, to_right - to_left
    if points % 2:
        even[:, 0] /= 2  # the middle is its own mirror image
    return torch.stack([even, odd])


def _quadrants(samples: Tensor) -> Tensor:
    """(4, h, h) of (N, N), each from the middle outwards, in the order of ``optics.folded``."""
    half = samples.shape[-1] // 2
    below, above = samples[half:], samples[:half].flip(0)
    parts = [below[:, half:], below[:, :half].flip(1), above[:, half:], above[:, :half].flip(1)]
    return torch.stack(parts)


def _whole(quadrants: Tensor) -> Tensor:
    """(N, N) from its quadrants."""
    below, above = (
        torch.cat([left.flip(1), right], 1) for right, left in quadrants.view(2, 2, *quadrants.shape[1:])
    )
    return torch.cat([above.flip(0), below])


class Intensity(torch.autograd.Function):
    """Sum over fields of the squared modulus, seen through the pixels' filter; differentiable once.

    All pupils of a slice share one phasor, so one (N, N) complex sum carries the gradient of everything.
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_amplitude: Tensor,
        phase: Tensor,
        moved_nm: Tensor,
        log_blur: Tensor,
        scale: Tensor,
        optics: Transform,
        filters: tuple[Filter, Filter],
    ) -> Tensor:
        """(E, H, W) images from (N, N) log amplitude and phase, and focus, x and y (E, 3) of the slices.

        ``filters`` along y and x are those of ``log_blur``; ``scale`` is a factor of the images.
        """
        fields, half = optics.lines.shape[2:4]
        my, mx = optics.rows.shape[1], optics.columns.shape[1]
        rows, columns = optics.along
        phasors = optics.phasors(log_amplitude, phase, moved_nm)
        to_rows, to_columns = filters[0].weights.repeat(2, 1, 1) * scale, filters[1].weights
        images = torch.empty(len(moved_nm), *optics.shape)
        differentiable, kept = any(ctx.needs_input_grad), []
        for run in _runs(len(images)):
            real, imag = (part[run].numpy() for part in phasors)
            parts = torch.empty(2, 2, half, len(real), 2 * fields * half)
            _turn(optics.lines, real, imag, parts.numpy())
            along_y = torch.bmm(rows, parts.view(4, half, -1))
            field = torch.bmm(along_y.view(4, -1, half), columns.mT).view(2, 2, my, len(real), -1)
            density = torch.empty(2, 2, my, len(real), mx)
            _square(field.numpy(), density.numpy())
            lines = torch.bmm(to_rows, density.view(4, my, -1))
            pixels = torch.bmm(lines.view(2, -1, mx), to_columns.mT)
            _mirror(pixels.view(2, 2, -1, len(real), pixels.shape[2]).numpy(), images[run].numpy())
            if differentiable:
                kept.append((field, density, lines))
        ctx.kept, ctx.phasors, ctx.optics, ctx.filters = kept, phasors, optics, filters
        ctx.to_rows, ctx.scale = to_rows, scale.detach()
        ctx.save_for_backward(images)
        return images

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Adjoint of ``forward``, step by step backwards; uses up what was kept."""
        optics, filters = ctx.optics, ctx.filters
        half, (my, mx) = optics.lines.shape[-1], (optics.rows.shape[1], optics.columns.shape[1])
        rows, columns = optics.along
        gradient, (images,) = upstream[0].contiguous(), ctx.saved_tensors
        (real, imag), kept = ctx.phasors, ctx.kept
        for_real, for_imag = torch.zeros_like(real), torch.zeros_like(imag)
        by_rows, by_columns = torch.zeros_like(ctx.to_rows), torch.zeros_like(filters[1].weights)
        for run, (field, density, lines) in zip(_runs(len(gradient)), kept, strict=True):
            count = field.shape[3]
            parts = torch.empty(2, 2, by_rows.shape[1], count, by_columns.shape[1])
            _unmirror(gradient[run].numpy(), parts.numpy())
            pixels = parts.view(2, -1, parts.shape[4])
            of_lines = torch.bmm(pixels, filters[1].weights).view(4, -1, count * mx)
            if ctx.needs_input_grad[3]:
                by_columns.baddbmm_(pixels.mT, lines.view(2, -1, mx))
                by_rows.baddbmm_(of_lines, density.view(4, my, -1).mT)
            _weigh(field.numpy(), torch.bmm(ctx.to_rows.mT, of_lines).view(density.shape).numpy())
            along_y = torch.bmm(field.view(4, -1, mx), columns)
            parts = torch.bmm(rows.mT, along_y.view(4, my, -1)).view(2, 2, half, count, -1)
            _unfold(parts.numpy(), optics.lines, for_real[run].numpy(), for_imag[run].numpy())
        ctx.kept = None
        for_amplitude = (real * for_real).addcmul_(imag, for_imag).sum(0)
        turned = real.mul_(for_imag).sub_(imag.mul_(for_real))
        return (
            2 * _whole(for_amplitude),
            2 * _whole(turned.sum(0)),
            -2 * (turned.flatten(1) @ optics.wave_vectors.T),
            ((by_columns * filters[1].slopes).sum() + ctx.scale * _twice(by_rows, filters[0].slopes)).view(1),
            torch.dot(gradient.flatten(), images.flatten()) / ctx.scale,
            None,
            None,
        )


def _twice(one: Tensor, other: Tensor) -> Tensor:
    """Sum of the products of (4, ...), x's parity first, with (2, ...)."""
    return (one.view(2, *other.shape) * other).sum()


def _runs(count: int) -> list[slice]:
    return [slice(i, min(i + _RUN_SLICES, count)) for i in range(0, count, _RUN_SLICES)]


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call, once for all runs; sums may be taken in any order."""
    try:
        compiled = numba.njit(nogil=True, cache=True, fastmath=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        compiled = numba.njit(nogil=True, fastmath=True)(function)
    return cast("Callable[P, R]", compiled)


@compiled
def _add_and_subtract(one: RealArray, other: RealArray) -> None:
    """Even and odd part of two mirror images, or back (twice over)."""
    for i in range(one.size):
        a, b = one[i], other[i]
        one[i] = a + b
        other[i] = a - b


@compiled
def _turn(lines: RealArray, real: RealArray, imag: RealArray, parts: RealArray) -> None:
    """Parts (parity y, parity x, h, E, 2 F h) of the fields times phasors; real and imaginary parts, fields, x."""
    _, _, fields, half, _ = lines.shape
    for e in range(real.shape[0]):
        for j in range(half):
            for q in range(4):
                c, s, out = real[e, q, j], imag[e, q, j], parts[q // 2, q % 2, j, e]
                for f in range(fields):
                    a, b = lines[q, 0, f, j], lines[q, 1, f, j]
                    first, second = f * half, (fields + f) * half
                    for i in range(half):
                        out[first + i] = c[i] * a[i] - s[i] * b[i]
                    for i in range(half):
                        out[second + i] = c[i] * b[i] + s[i] * a[i]
            _add_and_subtract(parts[0, 0, j, e], parts[1, 0, j, e])
            _add_and_subtract(parts[0, 1, j, e], parts[1, 1, j, e])
            _add_and_subtract(parts[0, 0, j, e], parts[0, 1, j, e])
            _add_and_subtract(parts[1, 0, j, e], parts[1, 1, j, e])


@compiled
def _square(field: RealArray, density: RealArray) -> None:
    """Density (parity x, parity y, my, E, mx) of the field (parity y, parity x, my, E, 2 F mx).

    With a = ee - oo, b = eo + oe, c = ee + oo, d = eo - oe (y's parity first), the field is a + i b where x and y
    are positive, a - i b where both are negative, c + i d where y is, c - i d where x is. It is left as these.
    """
    rows, columns = density.shape[2], density.shape[4]
    each = field.shape[4] // 2
    power, twist = np.empty((2, columns), np.float32), np.empty((2, columns), np.float32)
    for y in range(rows):
        for e in range(density.shape[3]):
            _add_and_subtract(field[0, 0, y, e], field[1, 1, y, e])
            _add_and_subtract(field[0, 1, y, e], field[1, 0, y, e])
            power[:] = 0
            twist[:] = 0
            for pair in range(2):
                one, other = field[1 - pair, 1 - pair, y, e], field[pair, 1 - pair, y, e]
                p, t = power[pair], twist[pair]
                for f in range(0, each, columns):
                    ar, ai = one[f : f + columns], one[each + f : each + f + columns]
                    br, bi = other[f : f + columns], other[each + f : each + f + columns]
                    for x in range(columns):
                        p[x] += 0.5 * (ar[x] * ar[x] + ai[x] * ai[x] + br[x] * br[x] + bi[x] * bi[x])
                    for x in range(columns):
                        t[x] += ai[x] * br[x] - ar[x] * bi[x]
            for parity in range(2):  # x and y alike, then x or y
                same, mixed = density[parity, parity, y, e], density[1 - parity, parity, y, e]
                sign = np.float32(1 - 2 * parity)
                for x in range(columns):
                    same[x] = power[0, x] + sign * power[1, x]
                for x in range(columns):
                    mixed[x] = twist[0, x] + sign * twist[1, x]


@compiled
def _weigh(field: RealArray, gradient: RealArray) -> None:
    """From a, b, c, d to half the gradient with respect to the parities of the field, in its place."""
    rows, columns = gradient.shape[2], gradient.shape[4]
    each = field.shape[4] // 2
    s, t = np.empty(columns, np.float32), np.empty(columns, np.float32)
    half = np.float32(0.5)
    for y in range(rows):
        for e in range(gradient.shape[3]):
            for pair in range(2):
                sign = np.float32(1 - 2 * pair)
                even, odd = gradient[0, 0, y, e], gradient[1, 1, y, e]
                for x in range(columns):
                    s[x] = half * (even[x] + sign * odd[x])
                even, odd = gradient[1, 0, y, e], gradient[0, 1, y, e]
                for x in range(columns):
                    t[x] = half * (even[x] + sign * odd[x])
                one, other = field[1 - pair, 1 - pair, y, e], field[pair, 1 - pair, y, e]
                for f in range(0, each, columns):
                    ar, ai = one[f : f + columns], one[each + f : each + f + columns]
                    br, bi = other[f : f + columns], other[each + f : each + f + columns]
                    for x in range(columns):
                        u, v = ar[x], bi[x]
                        ar[x] = s[x] * u - t[x] * v
                        bi[x] = s[x] * v - t[x] * u
                    for x in range(columns):
                        u, v = ai[x], br[x]
                        ai[x] = s[x] * u + t[x] * v
                        br[x] = s[x] * v + t[x] * u
            _add_and_subtract(field[0, 0, y, e], field[1, 1, y, e])
            _add_and_subtract(field[0, 1, y, e], field[1, 0, y, e])


@compiled
def _mirror(parts: RealArray, images: RealArray) -> None:
    """Images (E, H, W) from their parities (parity x, parity y, rows, E, columns)."""
    height, width = images.shape[1:]
    for y in range(parts.shape[2]):
        below, above = height // 2 + y, (height - 1) // 2 - y
        for e in range(images.shape[0]):
            top, bottom = images[e, above], images[e, below]
            for x in range(parts.shape[4]):
                right, left = width // 2 + x, (width - 1) // 2 - x
                ee, oo = parts[0, 0, y, e, x], parts[1, 1, y, e, x]
                eo, oe = parts[1, 0, y, e, x], parts[0, 1, y, e, x]
                bottom[right], top[left] = ee + oo + eo + oe, ee + oo - eo - oe
                top[right], bottom[left] = ee - oo + eo - oe, ee - oo - eo + oe


@compiled
def _unmirror(gradient: RealArray, parts: RealArray) -> None:
    """Adjoint of ``_mirror``."""
    height, width = gradient.shape[1:]
    for y in range(parts.shape[2]):
        below, above = height // 2 + y, (height - 1) // 2 - y
        # The middle row and column of an odd number stand in two quadrants.
        of_row = np.float32(0.5 if below == above else 1.0)
        for e in range(gradient.shape[0]):
            top, bottom = gradient[e, above], gradient[e, below]
            for x in range(parts.shape[4]):
                right, left = width // 2 + x, (width - 1) // 2 - x
                share = of_row * np.float32(0.5) if right == left else of_row
                pp, mm, mp, pm = bottom[right], top[left], top[right], bottom[left]
                parts[0, 0, y, e, x] = share * (pp + mm + mp + pm)
                parts[1, 1, y, e, x] = share * (pp + mm - mp - pm)
                parts[1, 0, y, e, x] = share * (pp - mm + mp - pm)
                parts[0, 1, y, e, x] = share * (pp - mm - mp + pm)


@compiled
def _unfold(parts: RealArray, lines: RealArray, for_real: RealArray, for_imag: RealArray) -> None:
    """Half the gradient with respect to the phasors, added to zeros; the parts are used up."""
    _, _, fields, half, _ = lines.shape
    for e in range(for_real.shape[0]):
        for j in range(half):
            _add_and_subtract(parts[0, 0, j, e], parts[1, 0, j, e])
            _add_and_subtract(parts[0, 1, j, e], parts[1, 1, j, e])
            _add_and_subtract(parts[0, 0, j, e], parts[0, 1, j, e])
            _add_and_subtract(parts[1, 0, j, e], parts[1, 1, j, e])
            for q in range(4):
                c, s, out = for_real[e, q, j], for_imag[e, q, j], parts[q // 2, q % 2, j, e]
                for f in range(fields):
                    a, b = lines[q, 0, f, j], lines[q, 1, f, j]
                    first, second = f * half, (fields + f) * half
                    for i in range(half):
                        c[i] += out[first + i] * a[i] + out[second + i] * b[i]
                    for i in range(half):
                        s[i] += out[second + i] * a[i] - out[first + i] * b[i]
