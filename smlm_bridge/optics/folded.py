"""The matrix Fourier transform by parity: a quarter of the work, over real numbers.

A pupil's samples lie symmetrically about its middle and a window's points about theirs. Along one axis
sum over k of P(k) exp(i k x) is then the sum over k > 0 of (P(k) + P(-k)) cos(k x) + i (P(k) - P(-k)) sin(k x),
and -x differs by the sign of the second term alone: half the samples, half the points, and real matrices. Nothing
is neglected. numba does what is not a product of matrices, so it is for processors, and without gradients:
``propagate`` has the plain transform.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smlm_bridge._compile import compiled_freely

Integers = NDArray[np.int64]
Reals = NDArray[Any]  # of the caller's precision, float32 or float64
Complex = NDArray[Any]


def folded_lines(base: Tensor) -> Tensor:
    """(4, 2, F, h, h) real and imaginary parts of fields (F, N, N) in the quadrants of the pupil.

    Quadrants (+y, +x), (+y, -x), (-y, +x), (-y, -x), each from the middle outwards. The middle row and column of
    an odd N are in two of them, with half their amplitude.
    """
    outwards, inwards, share = _halves(base.shape[-1])
    weight = torch.as_tensor(share[:, None] * share).to(base.real)
    quadrants = [base[:, y][:, :, x] * weight for y in (outwards, inwards) for x in (outwards, inwards)]
    return torch.stack([torch.stack([field.real, field.imag]) for field in quadrants]).contiguous()


def folded_rings(index: Tensor) -> Integers:
    """(h, h) the ring of each sample of a quadrant, from those of all samples (N * N,)."""
    n = round(index.numel() ** 0.5)
    outwards, _, _ = _halves(n)
    return np.ascontiguousarray(index.view(n, n)[outwards][:, outwards].numpy())


def _halves(count: int) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    """Places of an axis from its middle outwards, their mirror images, and the share of either."""
    half = (count + 1) // 2
    outwards = torch.arange(count - half, count)
    share = np.ones(half)
    share[0] = 0.5 if count % 2 else 1.0
    return outwards, count - 1 - outwards, share


@dataclass(frozen=True)
class FoldedWaves:
    """Waves along one axis from the samples k >= 0 to the points x >= 0 of a symmetric window.

    Parameters
    ----------
    matrices : (2, P', h)
        cos(k x) and sin(k x).
    k_half : (h,)
        The samples, rad/nm.
    points
        P, of which P' = ceil(P / 2) are not negative.
    """

    matrices: Tensor
    k_half: Tensor
    points: int

    @classmethod
    def of(cls, k_axis_per_nm: Tensor, points: int, pitch_nm: float) -> "FoldedWaves":
        """From samples (N,) to ``points`` points ``pitch_nm`` apart, symmetric about 0."""
        half = (points + 1) // 2
        first = 0.5 if points % 2 == 0 else 0.0
        k = k_axis_per_nm[k_axis_per_nm.numel() // 2 :]
        x = (torch.arange(half, device=k.device, dtype=k.dtype) + first) * pitch_nm
        phase = x[:, None] * k
        return cls(torch.stack([torch.cos(phase), torch.sin(phase)]), k, points)


def folded_intensity(
    lines: Tensor,
    rings: Integers,
    phasors: Tensor,
    away_nm: Tensor,
    along_y: FoldedWaves,
    along_x: FoldedWaves,
) -> Tensor:
    """(E, P, Q) squared fields, summed over F, at the points of a symmetric window.

    Parameters
    ----------
    lines, rings
        From ``folded_lines`` and ``folded_rings``.
    phasors : (E, U) complex
        Factor of each ring for each emitter.
    away_nm : (E, 2)
        x and y of the window's middle from the emitter.
    along_y, along_x
        The points.
    """
    emitters, half = len(phasors), lines.shape[-1]
    fields = lines.shape[2]
    turns = [
        torch.polar(torch.ones_like(p), p) for p in (away_nm[:, a, None] * along_x.k_half for a in (0, 1))
    ]
    parts = lines.new_empty((emitters, 2, 2, half, 2, fields, half))
    _fold(lines.numpy(), rings, phasors.numpy(), turns[1].numpy(), turns[0].numpy(), parts.numpy())
    rows, columns = along_y.matrices.shape[1], along_x.matrices.shape[1]
    along = torch.matmul(along_y.matrices[:, None], parts.view(emitters, 2, 2, half, -1))
    lying = along.view(emitters, 2, 2, rows * 2 * fields, half)
    parities = torch.matmul(lying, along_x.matrices.mT)
    image = lines.new_empty((emitters, along_y.points, along_x.points))
    _square(parities.view(emitters, 2, 2, rows, 2, fields, columns).numpy(), image.numpy())
    return image


@compiled_freely
def _fold(
    lines: Reals, rings: Integers, phasors: Complex, to_y: Complex, to_x: Complex, parts: Reals
) -> None:
    """Parts (E, 2, 2, h, 2, F, h), even and odd along y and x, of the lines times phasors and plane waves."""
    half, fields = lines.shape[4], lines.shape[2]
    turn = np.empty((4, 2, half), lines.dtype)
    for e in range(len(phasors)):
        for j in range(half):
            yr, yi = to_y[e, j].real, to_y[e, j].imag
            for i in range(half):
                xr, xi = to_x[e, i].real, to_x[e, i].imag
                c = phasors[e, rings[j, i]]
                ar, ai = yr * c.real - yi * c.imag, yr * c.imag + yi * c.real
                br, bi = yr * c.real + yi * c.imag, yr * c.imag - yi * c.real
                turn[0, 0, i], turn[0, 1, i] = ar * xr - ai * xi, ar * xi + ai * xr
                turn[1, 0, i], turn[1, 1, i] = ar * xr + ai * xi, ai * xr - ar * xi
                turn[2, 0, i], turn[2, 1, i] = br * xr - bi * xi, br * xi + bi * xr
                turn[3, 0, i], turn[3, 1, i] = br * xr + bi * xi, bi * xr - br * xi
            for f in range(fields):
                for k in range(2):  # real and imaginary part
                    sign = lines.dtype.type(1 if k else -1)
                    for i in range(half):
                        a = (
                            lines[0, 0, f, j, i] * turn[0, k, i]
                            + sign * lines[0, 1, f, j, i] * turn[0, 1 - k, i]
                        )
                        b = (
                            lines[1, 0, f, j, i] * turn[1, k, i]
                            + sign * lines[1, 1, f, j, i] * turn[1, 1 - k, i]
                        )
                        c = (
                            lines[2, 0, f, j, i] * turn[2, k, i]
                            + sign * lines[2, 1, f, j, i] * turn[2, 1 - k, i]
                        )
                        d = (
                            lines[3, 0, f, j, i] * turn[3, k, i]
                            + sign * lines[3, 1, f, j, i] * turn[3, 1 - k, i]
                        )
                        parts[e, 0, 0, j, k, f, i] = (a + b) + (c + d)
                        parts[e, 0, 1, j, k, f, i] = (a - b) + (c - d)
                        parts[e, 1, 0, j, k, f, i] = (a + b) - (c + d)
                        parts[e, 1, 1, j, k, f, i] = (a - b) - (c - d)


@compiled_freely
def _square(parities: Reals, image: Reals) -> None:
    """Image (E, P, Q) from the field's parts (E, 2, 2, P', 2, F, Q'), even and odd along y and x.

    The field at (+x, +y) is (ee - oo) + i (eo + oe), y's parity first; mirrored, the odd ones change their sign.
    """
    rows, fields, columns = parities.shape[3], parities.shape[5], parities.shape[6]
    height, width = image.shape[1:]
    sums = np.empty((4, columns), image.dtype)
    for e in range(len(image)):
        for p in range(rows):
            sums[:] = 0
            for f in range(fields):
                for q in range(columns):
                    eer, eei = parities[e, 0, 0, p, 0, f, q], parities[e, 0, 0, p, 1, f, q]
                    eor, eoi = parities[e, 0, 1, p, 0, f, q], parities[e, 0, 1, p, 1, f, q]
                    oer, oei = parities[e, 1, 0, p, 0, f, q], parities[e, 1, 0, p, 1, f, q]
                    oor, ooi = parities[e, 1, 1, p, 0, f, q], parities[e, 1, 1, p, 1, f, q]
                    ar, ai, br, bi = eer - oor, eei - ooi, eor + oer, eoi + oei
                    cr, ci, dr, di = eer + oor, eei + ooi, eor - oer, eoi - oei
                    sums[0, q] += (ar - bi) ** 2 + (ai + br) ** 2
                    sums[1, q] += (ar + bi) ** 2 + (ai - br) ** 2
                    sums[2, q] += (cr - di) ** 2 + (ci + dr) ** 2
                    sums[3, q] += (cr + di) ** 2 + (ci - dr) ** 2
            below, above = height - rows + p, rows - 1 - p
            for q in range(columns):
                right, left = width - columns + q, columns - 1 - q
                image[e, below, right], image[e, above, left] = sums[0, q], sums[1, q]
                image[e, above, right], image[e, below, left] = sums[2, q], sums[3, q]
