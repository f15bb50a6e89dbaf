"""Intensity of incoherent fields and its gradient, slice by slice: where retrieval spends its time.

Pupil samples and image points both lie symmetrically about zero. Split into even and odd parts along either
axis, the Fourier matrix falls apart into a real cosine and a real sine matrix of half the size, a quarter of
the arithmetic; numba does the splitting, the optics of a slice stay in the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ComplexArray = NDArray[np.complex64]
RealArray = NDArray[np.float32]
P = ParamSpec("P")
R = TypeVar("R")


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
    odd
        Whether the numbers of rows and columns are odd.
    """

    base: Tensor
    kz_per_nm: Tensor
    k_axis_per_nm: Tensor
    rows: Tensor
    columns: Tensor
    odd: tuple[bool, bool]

    def phasor(self, phase: Tensor, focus_nm: Tensor, xy_nm: Tensor) -> Tensor:
        """(N, N) of one slice."""
        angle = torch.addcmul(phase, self.kz_per_nm, focus_nm, value=-1)
        angle -= (self.k_axis_per_nm * xy_nm[1])[:, None]
        angle -= self.k_axis_per_nm * xy_nm[0]
        return torch.polar(torch.ones_like(angle), angle)


class Intensity(torch.autograd.Function):
    """Sum over fields of the squared modulus, differentiable in log amplitude, phase, focus and position.

    All pupils of a slice share one phasor, so one (N, N) complex sum carries the gradient of everything.
    """

    @staticmethod
    def forward(
        ctx: Any, log_amplitude: Tensor, phase: Tensor, focus_nm: Tensor, xy_nm: Tensor, optics: Transform
    ) -> Tensor:
        """(E, H, W) images from (N, N) log amplitude and phase, focus (E,) and positions (E, 2)."""
        fields, n = optics.base.shape[:2]
        half, my, mx = n // 2, optics.rows.shape[1], optics.columns.shape[1]
        amplitude = torch.exp(log_amplitude)
        images = torch.empty(len(focus_nm), 2 * my - optics.odd[0], 2 * mx - optics.odd[1])
        parts = torch.empty(2, 2, half, 2, fields, half)
        across = optics.columns.mT.contiguous()
        kept = []
        for image, focus, xy in zip(images, focus_nm, xy_nm, strict=True):
            phasor = optics.phasor(phase, focus, xy)
            _fold_pupil(optics.base.numpy(), amplitude.numpy(), phasor.numpy(), parts.numpy())
            along_y = torch.matmul(optics.rows, parts.view(2, 2, half, -1))
            field = torch.bmm(along_y.view(2, -1, half), across).view(2, 2, my, 2, fields, mx)
            _square(field.numpy(), image.numpy())
            kept.append((phasor, field))
        ctx.kept, ctx.amplitude, ctx.optics = kept, amplitude, optics
        return images

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Adjoint of ``forward``, step by step backwards."""
        optics: Transform = ctx.optics
        fields, n = optics.base.shape[:2]
        half, my, mx = n // 2, optics.rows.shape[1], optics.columns.shape[1]
        weighted = torch.empty(2, 2, my, 2, fields, mx)
        for_amplitude, for_phase, of_slice = torch.zeros(n, n), torch.zeros(n, n), torch.empty(n, n)
        for_focus, for_xy = torch.empty(len(ctx.kept)), torch.empty(len(ctx.kept), 2)
        back = optics.rows.mT.contiguous()
        gradient = upstream[0].contiguous()
        for index, (phasor, field) in enumerate(ctx.kept):
            _weigh(field.numpy(), gradient[index].numpy(), weighted.numpy())
            along_y = torch.bmm(weighted.view(2, -1, mx), optics.columns)
            parts = torch.matmul(back, along_y.view(2, 2, my, -1)).view(2, 2, half, 2, fields, half)
            _unfold_gradient(
                parts.numpy(),
                optics.base.numpy(),
                ctx.amplitude.numpy(),
                phasor.numpy(),
                for_amplitude.numpy(),
                of_slice.numpy(),
            )
            for_phase += of_slice
            for_focus[index] = -(optics.kz_per_nm * of_slice).sum()
            for_xy[index, 0] = -(optics.k_axis_per_nm @ of_slice.sum(0))
            for_xy[index, 1] = -(optics.k_axis_per_nm @ of_slice.sum(1))
        return for_amplitude, for_phase, for_focus, for_xy, None


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call, once for all runs; sums may be taken in any order."""
    try:
        compiled = numba.njit(nogil=True, cache=True, fastmath=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        compiled = numba.njit(nogil=True, fastmath=True)(function)
    return cast("Callable[P, R]", compiled)


@compiled
def _fold_pupil(base: ComplexArray, amplitude: RealArray, phasor: ComplexArray, out: RealArray) -> None:
    """Parities of the pupil: (parity x, parity y, y, real and imaginary, field, x)."""
    fields, n, _ = base.shape
    h = n // 2
    for y in range(h):
        ya, yb = h + y, h - 1 - y
        for x in range(h):
            xa, xb = h + x, h - 1 - x
            aa = amplitude[ya, xa] * phasor[ya, xa]
            ab = amplitude[ya, xb] * phasor[ya, xb]
            ba = amplitude[yb, xa] * phasor[yb, xa]
            bb = amplitude[yb, xb] * phasor[yb, xb]
            for f in range(fields):
                paa, pab = base[f, ya, xa] * aa, base[f, ya, xb] * ab
                pba, pbb = base[f, yb, xa] * ba, base[f, yb, xb] * bb
                even_a, even_b, odd_a, odd_b = paa + pba, pab + pbb, paa - pba, pab - pbb
                value = even_a + even_b
                out[0, 0, y, 0, f, x], out[0, 0, y, 1, f, x] = value.real, value.imag
                value = odd_a + odd_b
                out[0, 1, y, 0, f, x], out[0, 1, y, 1, f, x] = value.real, value.imag
                value = even_a - even_b
                out[1, 0, y, 0, f, x], out[1, 0, y, 1, f, x] = value.real, value.imag
                value = odd_a - odd_b
                out[1, 1, y, 0, f, x], out[1, 1, y, 1, f, x] = value.real, value.imag


@compiled
def _square(field: RealArray, image: RealArray) -> None:
    """Intensity of the four quadrants: E(sx, sy) = A - sx sy D + i (sx B + sy C), sx and sy being signs."""
    _, _, my, _, fields, mx = field.shape
    height, width = image.shape
    quadrants = np.empty((4, mx), np.float32)
    for y in range(my):
        quadrants[:] = 0
        for f in range(fields):
            for x in range(mx):
                ar, ai = field[0, 0, y, 0, f, x], field[0, 0, y, 1, f, x]
                cr, ci = field[0, 1, y, 0, f, x], field[0, 1, y, 1, f, x]
                br, bi = field[1, 0, y, 0, f, x], field[1, 0, y, 1, f, x]
                dr, di = field[1, 1, y, 0, f, x], field[1, 1, y, 1, f, x]
                tr, ti, vr, vi = ar - dr, ai - di, br + cr, bi + ci
                quadrants[0, x] += (tr - vi) ** 2 + (ti + vr) ** 2
                quadrants[3, x] += (tr + vi) ** 2 + (ti - vr) ** 2
                tr, ti, vr, vi = ar + dr, ai + di, br - cr, bi - ci
                quadrants[1, x] += (tr - vi) ** 2 + (ti + vr) ** 2
                quadrants[2, x] += (tr + vi) ** 2 + (ti - vr) ** 2
        ya, yb = height - my + y, my - 1 - y
        for x in range(mx):
            xa, xb = width - mx + x, mx - 1 - x
            image[ya, xa], image[yb, xa] = quadrants[0, x], quadrants[1, x]
            image[ya, xb], image[yb, xb] = quadrants[2, x], quadrants[3, x]


@compiled
def _weigh(field: RealArray, gradient: RealArray, out: RealArray) -> None:
    """Gradient with respect to the parities of the field (conjugate, without the factor of 2)."""
    _, _, my, _, fields, mx = field.shape
    height, width = gradient.shape
    g = np.empty((4, mx), np.float32)
    for y in range(my):
        ya, yb = height - my + y, my - 1 - y
        for x in range(mx):
            xa, xb = width - mx + x, mx - 1 - x
            # The middle row and column of an odd number stand in two quadrants.
            share = np.float32(1.0)
            if ya == yb:
                share *= np.float32(0.5)
            if xa == xb:
                share *= np.float32(0.5)
            g[0, x], g[1, x] = share * gradient[ya, xa], share * gradient[yb, xa]
            g[2, x], g[3, x] = share * gradient[ya, xb], share * gradient[yb, xb]
        for f in range(fields):
            for x in range(mx):
                ar, ai = field[0, 0, y, 0, f, x], field[0, 0, y, 1, f, x]
                cr, ci = field[0, 1, y, 0, f, x], field[0, 1, y, 1, f, x]
                br, bi = field[1, 0, y, 0, f, x], field[1, 0, y, 1, f, x]
                dr, di = field[1, 1, y, 0, f, x], field[1, 1, y, 1, f, x]
                tr, ti, vr, vi = ar - dr, ai - di, br + cr, bi + ci
                r0, i0 = g[0, x] * (tr - vi), g[0, x] * (ti + vr)
                r3, i3 = g[3, x] * (tr + vi), g[3, x] * (ti - vr)
                tr, ti, vr, vi = ar + dr, ai + di, br - cr, bi - ci
                r1, i1 = g[1, x] * (tr - vi), g[1, x] * (ti + vr)
                r2, i2 = g[2, x] * (tr + vi), g[2, x] * (ti - vr)
                out[0, 0, y, 0, f, x], out[0, 0, y, 1, f, x] = r0 + r3 + r1 + r2, i0 + i3 + i1 + i2
                out[1, 1, y, 0, f, x], out[1, 1, y, 1, f, x] = r1 + r2 - r0 - r3, i1 + i2 - i0 - i3
                out[1, 0, y, 0, f, x], out[1, 0, y, 1, f, x] = i0 - i3 + i1 - i2, r3 - r0 + r2 - r1
                out[0, 1, y, 0, f, x], out[0, 1, y, 1, f, x] = i0 - i3 - i1 + i2, r3 - r0 - r2 + r1


@compiled
def _unfold_gradient(
    parts: RealArray,
    base: ComplexArray,
    amplitude: RealArray,
    phasor: ComplexArray,
    for_amplitude: RealArray,
    for_phase: RealArray,
) -> None:
    """For S = sum over fields of conj(gradient) times pupil: 2 Re S for log amplitude, -2 Im S for phase."""
    fields, n, _ = base.shape
    h = n // 2
    for y in range(h):
        ya, yb = h + y, h - 1 - y
        for x in range(h):
            xa, xb = h + x, h - 1 - x
            saa = sab = sba = sbb = np.complex64(0)
            for f in range(fields):
                ee = complex(parts[0, 0, y, 0, f, x], parts[0, 0, y, 1, f, x])
                oe = complex(parts[0, 1, y, 0, f, x], parts[0, 1, y, 1, f, x])
                eo = complex(parts[1, 0, y, 0, f, x], parts[1, 0, y, 1, f, x])
                oo = complex(parts[1, 1, y, 0, f, x], parts[1, 1, y, 1, f, x])
                a, b, c, d = ee + eo, ee - eo, oe + oo, oe - oo
                saa += (a + c).conjugate() * base[f, ya, xa]
                sab += (b + d).conjugate() * base[f, ya, xb]
                sba += (a - c).conjugate() * base[f, yb, xa]
                sbb += (b - d).conjugate() * base[f, yb, xb]
            for row, column, s in ((ya, xa, saa), (ya, xb, sab), (yb, xa, sba), (yb, xb, sbb)):
                value = s * phasor[row, column] * amplitude[row, column]
                for_amplitude[row, column] += 2 * value.real
                for_phase[row, column] = -2 * value.imag
