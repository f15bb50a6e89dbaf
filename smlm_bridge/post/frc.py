"""Fourier ring correlation: the resolution of a super-resolved picture (Nieuwenhuizen et al. 2013).

The movie is cut into blocks of time, the blocks are dealt to two halves at random, and the pictures of the two
halves are correlated ring by ring in Fourier space. The resolution is the inverse of the spatial frequency at
which the curve falls below 1/7. A molecule that is seen in both halves correlates with itself: blinks are
merged before (``post.merge``), blocks keep what is left of a blink in one half, and what returns later is
estimated and taken out in the corrected curve.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.fft import next_fast_len, rfft2
from scipy.ndimage import gaussian_filter1d
from scipy.signal.windows import tukey

from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import validate
from smlm_bridge.post.nena import claimed_sigma_nm

THRESHOLD: Final = 1 / 7
BLOCKS: Final = 50
REPEATS: Final = 4

_PIXEL_NM: Final = 10.0
_SMALLEST_PIXEL_NM: Final = 2.0
_PIXELS_A_SIGMA: Final = 3.0  # finer pixels show nothing: beyond the precision the curve is down
_MOST_PIXELS: Final = 3e8  # of the field
_LARGEST_SIDE_PX: Final = 4096  # of one tile of a large field
_SMALLEST_SIDE_PX: Final = 64
_PIXELS_AT_CROSSING: Final = 4.0  # frequencies nearer to the pixel's own are attenuated
_TAPER: Final = 1 / 8  # of each side: the field's edges must not correlate (Nieuwenhuizen 2013)
_FIRST_RING: Final = 8  # what is an eighth of the field or larger is the shape of the field
_SMOOTHING: Final = 1 / 60  # of the rings, standard deviation
_LEAST_H: Final = 0.02  # below it, dividing by it shows noise only

Floats = NDArray[np.float64]
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Frc:
    """What ``frc`` finds.

    Attributes
    ----------
    resolution_nm, spread_nm
        Mean and standard deviation over the repeats; None where the curve does not cross 1/7.
    corrected_nm
        The same from the curve without the spurious correlation of molecules seen again and again; None where
        it does not cross or cannot be estimated.
    spurious
        Estimated mean number of further rows of the same molecule, of a row (Q of Nieuwenhuizen 2013).
    frequency_per_nm, curve, corrected
        Middle of the rings, the smoothed curve and the corrected one, (R,), means over the repeats.
    pixel_nm, blocks
        Of the pictures that were correlated.
    localizations
        Rows that took part.
    note
        Why there is no resolution, else empty.
    """

    resolution_nm: float | None
    spread_nm: float | None
    corrected_nm: float | None
    spurious: float | None
    frequency_per_nm: Floats
    curve: Floats
    corrected: Floats
    pixel_nm: float
    blocks: int
    localizations: int
    note: str


def frc(
    locs: pd.DataFrame,
    *,
    blocks: int = BLOCKS,
    repeats: int = REPEATS,
    pixel_nm: float | None = None,
    sigma_nm: float | None = None,
    rng: np.random.Generator,
    on_step: OnStep | None = None,
) -> Frc:
    """Fourier ring correlation of two halves made of blocks of time.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``; merge the blinks first.
    blocks
        Blocks of equal numbers of frames, dealt to the halves at random; fewer where there are fewer frames.
    repeats
        How often they are dealt.
    pixel_nm
        Of the pictures; None starts with 10 nm and halves it until the resolution is four pixels or more.
    sigma_nm
        Precision of a row, for the corrected curve, where the table has no ``uncertainty_xy_nm``.
    rng
        Source of randomness.
    on_step
        Called with (dealings done, dealings in all).

    Raises
    ------
    InputRejected
        If an argument is out of its range or the table is not valid.
    """
    if blocks < 2 or repeats < 1:
        raise InputRejected(f"blocks {blocks} must be 2 or more, repeats {repeats} 1 or more.")
    if pixel_nm is not None and not (math.isfinite(pixel_nm) and pixel_nm > 0):
        raise InputRejected(f"pixel_nm {pixel_nm} must be a length above 0 in nm.")
    table = validate(locs)
    block = _blocks(table["frame"].to_numpy(), blocks)
    count = int(block.max(initial=-1)) + 1
    if count < 2:
        return _nothing(len(table), count, "a movie of one frame cannot be cut into blocks of time")
    place = table[["x_nm", "y_nm"]].to_numpy()
    errors = _errors(table, sigma_nm)
    halves = [rng.permutation(np.arange(count) % 2 == 0)[block] for _ in range(repeats)]
    size = pixel_nm or _PIXEL_NM
    smallest = _smallest_pixel_nm(place, errors)
    while True:
        found = _resolution(_rings(place, halves, size, on_step), errors, count, len(table))
        if pixel_nm is not None or size / 2 < smallest or not _wants_finer(found):
            return found
        size /= 2


def _wants_finer(found: Frc) -> bool:
    """Whether the pixels decide: the crossing is close to their own frequency, or beyond it."""
    if found.resolution_nm is not None:
        return found.resolution_nm < _PIXELS_AT_CROSSING * found.pixel_nm
    return bool(found.curve[-max(found.curve.size // 10, 1) :].mean() >= THRESHOLD)


def _smallest_pixel_nm(place: Floats, errors: Floats | None) -> float:
    """The finest pixel that is worth its time."""
    area = float(np.prod(np.maximum(np.ptp(place, axis=0), 1.0)))
    sigma = _SMALLEST_PIXEL_NM * _PIXELS_A_SIGMA if errors is None else float(np.quantile(errors, 0.1))
    return max(sigma / _PIXELS_A_SIGMA, math.sqrt(area / _MOST_PIXELS))


def _blocks(frame: NDArray[np.int64], blocks: int) -> NDArray[np.int64]:
    """Number of the block of every row; blocks without rows are left out."""
    if frame.size == 0:
        return np.zeros(0, np.int64)
    first, last = int(frame.min()), int(frame.max())
    edges = np.linspace(first, last + 1, min(blocks, last - first + 1) + 1)
    number = np.searchsorted(edges, frame, side="right") - 1
    return np.asarray(np.unique(number, return_inverse=True)[1], dtype=np.int64)


def _errors(table: pd.DataFrame, sigma_nm: float | None) -> Floats | None:
    """Usable uncertainties of the rows, or the one given."""
    values = claimed_sigma_nm(table, 0)
    if values is not None and np.isfinite(values).any():
        return np.asarray(values[np.isfinite(values)])
    return None if sigma_nm is None else np.array([sigma_nm])


@dataclass(frozen=True)
class _Rings:
    """Sums over the rings, one row a dealing (P, R): the halves' product and their two powers."""

    pixel_nm: float
    frequency: Floats
    pixels: Floats
    product: Floats
    powers: tuple[Floats, Floats]
    rows: float  # weighted by the square of the taper, as they count in the powers


def _rings(place: Floats, halves: list[NDArray[np.bool_]], pixel_nm: float, on_step: OnStep | None) -> _Rings:
    """Correlate the halves of every dealing, tile by tile of the field."""
    low = place.min(axis=0)
    index = ((place - low) / pixel_nm).astype(np.int64)
    extent = int(index.max()) + 1
    tiles = -(-extent // _LARGEST_SIDE_PX)
    side = next_fast_len(max(-(-extent // tiles), _SMALLEST_SIDE_PX), real=True)
    tile = index // side
    taper = tukey(side, 2 * _TAPER, sym=False).astype(np.float32)
    along, across = np.fft.fftfreq(side) * side, np.arange(side // 2 + 1)
    ring = np.rint(np.hypot(along[:, None], across)).astype(np.int32)
    half_plane = np.where((across == 0) | (2 * across == side), 1.0, 2.0) * np.ones((side, 1))
    rings = side // 2
    pixels = np.asarray(np.bincount(ring.ravel(), half_plane.ravel())[:rings], dtype=np.float64)
    product, first, second = (np.zeros((len(halves), rings)) for _ in range(3))
    rows = 0.0

    def ring_sum(values: NDArray[np.float32]) -> Floats:
        return np.asarray(np.bincount(ring.ravel(), (values * half_plane).ravel())[:rings], np.float64)

    used = np.unique(tile, axis=0)
    for done, corner in enumerate(used):
        inside = (tile == corner).all(axis=1)
        pixel = index[inside] - corner * side
        flat = pixel[:, 1] * side + pixel[:, 0]
        rows += float(np.sum((taper[pixel[:, 0]] * taper[pixel[:, 1]]) ** 2))

        def transform(chosen: NDArray[np.bool_], flat: NDArray[np.int64] = flat) -> NDArray[np.complex64]:
            picture = np.bincount(flat[chosen], minlength=side * side).astype(np.float32).reshape(side, side)
            return np.asarray(rfft2(picture * taper[:, None] * taper))

        whole = transform(np.ones(flat.size, bool))
        for number, half in enumerate(halves):
            one = transform(half[inside])
            other = whole - one
            product[number] += ring_sum((one * other.conj()).real)
            first[number] += ring_sum(one.real**2 + one.imag**2)
            second[number] += ring_sum(other.real**2 + other.imag**2)
            if on_step is not None:
                on_step(done * len(halves) + number + 1, len(used) * len(halves))
    frequency = np.arange(rings) / (side * pixel_nm)
    return _Rings(pixel_nm, frequency, pixels, product, (first, second), rows)


def _resolution(rings: _Rings, errors: Floats | None, blocks: int, rows: int) -> Frc:
    """Curves and crossings of all dealings."""
    curves = _smooth(rings, _ratio(rings.product, rings.powers))
    found = [_crossing_nm(rings.frequency, curve) for curve in curves]
    resolution, spread = _mean(found)
    spurious, own = _spurious(rings, errors)
    corrected = np.full_like(curves, np.nan)
    if own is not None:
        taken = rings.product - own, (rings.powers[0] - own, rings.powers[1] - own)
        corrected = _smooth(rings, _ratio(*taken))
    note = ""
    if resolution is None:
        above = curves.mean() >= THRESHOLD
        note = (
            f"the curve stays above 1/7 up to the pixels of {rings.pixel_nm:g} nm"
            if above
            else "the curve stays below 1/7: the two halves have no structure in common"
        )
    return Frc(
        resolution_nm=resolution,
        spread_nm=spread,
        corrected_nm=_mean([_crossing_nm(rings.frequency, curve) for curve in corrected])[0],
        spurious=spurious,
        frequency_per_nm=rings.frequency,
        curve=curves.mean(axis=0),
        corrected=corrected.mean(axis=0),
        pixel_nm=rings.pixel_nm,
        blocks=blocks,
        localizations=rows,
        note=note,
    )


def _ratio(product: Floats, powers: tuple[Floats, Floats]) -> Floats:
    size = np.sqrt(np.maximum(powers[0], 0) * np.maximum(powers[1], 0))
    return np.where(size > 0, product / np.where(size > 0, size, 1.0), 0.0)


def _smooth(rings: _Rings, curves: Floats, width: float = _SMOOTHING) -> Floats:
    """Weighted by the pixels of the rings; not narrower than one ring."""
    deviation = max(1.0, width * rings.frequency.size)
    weight = gaussian_filter1d(rings.pixels, deviation, mode="nearest")
    return np.asarray(gaussian_filter1d(curves * rings.pixels, deviation, axis=-1, mode="nearest") / weight)


def _crossing_nm(frequency: Floats, curve: Floats) -> float | None:
    """Inverse of the frequency at which a curve first falls below the threshold."""
    above = np.flatnonzero(curve[_FIRST_RING : max(frequency.size // 4, _FIRST_RING + 1)] >= THRESHOLD)
    if above.size == 0:
        return None
    start = _FIRST_RING + int(above[0])
    below = np.flatnonzero(curve[start:] < THRESHOLD)
    if below.size == 0:
        return None
    k = start + int(below[0])
    share = (curve[k - 1] - THRESHOLD) / (curve[k - 1] - curve[k])
    return float(1 / (frequency[k - 1] + share * (frequency[k] - frequency[k - 1])))


def _mean(found: list[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the repeats, None unless most of them crossed."""
    values = [value for value in found if value is not None]
    if 2 * len(values) <= len(found):
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _spurious(rings: _Rings, errors: Floats | None) -> tuple[float | None, Floats | None]:
    """Further rows of the same molecule per row, and what they add to product and powers, (R,).

    The product of the halves is rows/4 (Q + S(q)) H(q) a pixel, where S is the structure and H(q) the
    decay by the errors, the squared mean of exp(-2 pi^2 sigma^2 q^2); S falls with q, Q stays (Nieuwenhuizen
    et al. 2013, online methods). Pixels count as another error of a twelfth of their square.
    """
    if errors is None:
        return None, None
    edges = np.quantile(errors, np.linspace(0, 1, 41))
    variance = ((edges[1:] + edges[:-1]) / 2) ** 2 + rings.pixel_nm**2 / 12
    decay = np.exp(-2 * (math.pi * rings.frequency[:, None]) ** 2 * variance).mean(axis=1) ** 2
    plain = rings.product.mean(axis=0) / rings.pixels / (rings.rows / 4)
    usable = (decay >= _LEAST_H) & (rings.frequency > 0)
    if usable.sum() < 10:
        return None, None
    level = _smooth(rings, plain, 3 * _SMOOTHING)[usable] / _smooth(rings, decay, 3 * _SMOOTHING)[usable]
    spurious = max(float(level.min()), 0.0)
    return spurious, rings.rows / 4 * spurious * decay * rings.pixels


def _nothing(rows: int, blocks: int, note: str) -> Frc:
    none = np.zeros(0)
    return Frc(None, None, None, None, none, none, none, _PIXEL_NM, blocks, rows, note)
