"""Offset, gain and read noise of a camera from movies, pixel by pixel (photon transfer; Huang et al. 2013).

Movies are read block by block; memory holds a few frames' worth of sums. Variances come from differences of
successive frames, so that slow drift of the lamp does not count, and its flicker, common to all pixels, is
taken out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected

Floats = NDArray[np.float64]
Blocks = Iterable[NDArray[Any]]

LEAST_FRAMES = 10
_SATURATED = 1e-3  # share of the pixels at the largest value
_DARK_SHARE = 0.05  # of the pixels of a flat that may be darker than the dark
_TILE_PX = 8
_BINS = 24
_LEAST_BINS = 5
_MEDIAN_OF_CHI2 = 1 - 2 / (9 * (_TILE_PX**2 - 1))  # Wilson & Hilferty 1931, cubed below
_REAL_SPREAD = 0.2  # of the expected error: less differs between pixels than can be measured
_EM_EXCESS = 2.0


@dataclass(frozen=True)
class Moments:
    """What a movie says of each pixel.

    Parameters
    ----------
    mean, variance : (H, W)
        Counts, and their variance from differences of successive frames.
    frames
        How many.
    flicker
        Variance of the mean of all pixels beyond their own noise: that of the lamp.
    saturated
        Share of the values that are the largest of all.
    """

    mean: Floats
    variance: Floats
    frames: int
    flicker: float
    saturated: float


@dataclass(frozen=True)
class CameraEstimate:
    """An estimated camera, and what was noticed."""

    camera: Camera
    notes: tuple[str, ...]


def moments(blocks: Blocks, *, name: str = "the movie") -> Moments:
    """Sum up a movie, given as blocks (T, H, W) in order.

    Raises
    ------
    InputRejected
        If it has fewer than 10 frames, or values that are not finite.
    """
    total = squared = np.zeros(())
    reference = last = None
    frames, jumps = 0, 0.0
    top, at_top, values = -np.inf, 0, 0
    for block in blocks:
        counts = np.asarray(block, dtype=np.float64)
        if not np.isfinite(counts).all():
            raise InputRejected(f"{name} has values that are not finite.")
        if reference is None:  # near the mean, so that sums of squares keep their digits
            reference = counts[0].copy()
        total = total + (counts - reference).sum(axis=0)
        chain = counts if last is None else np.concatenate([last[None], counts])
        steps = np.diff(chain, axis=0)
        squared = squared + (steps**2).sum(axis=0)
        jumps += float((steps.mean(axis=(1, 2)) ** 2).sum())
        last, frames, values = counts[-1], frames + len(counts), values + counts.size
        highest = float(counts.max())
        found = int(np.count_nonzero(counts == highest))
        at_top = found + (at_top if highest == top else 0) if highest >= top else at_top
        top = max(top, highest)
    if reference is None or frames < LEAST_FRAMES:
        raise InputRejected(
            f"{name} has {frames} frame(s); {LEAST_FRAMES} or more are needed to see noise, "
            "some hundred are better."
        )
    mean, variance = reference + total / frames, squared / (2 * (frames - 1))
    flicker = jumps / (2 * (frames - 1)) - float(variance.mean()) / variance.size
    return Moments(mean, variance, frames, flicker, at_top / values)


def _shot_noise(dark: Moments, flat: Moments) -> tuple[Floats, Floats]:
    """Light of a flat above dark, and its variance without read noise and the lamp's flicker.

    The flicker moves all pixels at once, each in proportion to its light.
    """
    light = flat.mean - dark.mean
    noise = flat.variance - dark.variance
    chance = 3 * float(flat.variance.mean()) / flat.variance.size
    if flat.flicker > chance:
        noise = noise - flat.flicker * (light / float(light.mean())) ** 2
    return light, noise


def photon_transfer(
    dark: Moments, flats: Sequence[Moments], *, em_gain: float = 1.0, quantum_efficiency: float = 1.0
) -> CameraEstimate:
    """The camera from a dark movie and evenly lit ones.

    The gain of a pixel is the slope of its variance over its mean, through its dark values: with D the mean
    above dark, V the variance above dark, sum(V D) / sum(D^2) over the flats (Huang et al. 2013, Eq. S3).
    What differs less from pixel to pixel than it can be measured is one number; in between, maps are drawn
    towards their mean by how well they are known.

    Parameters
    ----------
    dark, flats
        Moments of a movie without light, and of one or more levels of light.
    em_gain
        Above 1: the multiplication doubles the variance of the light.
    quantum_efficiency
        Recorded only.

    Raises
    ------
    InputRejected
        If sizes differ, a flat is saturated, darker than the dark or without shot noise.
    """
    if not flats:
        raise InputRejected("the gain needs light: give flat movies (--flat), or one movie alone.")
    for number, flat in enumerate(flats, start=1):
        _check_flat(dark, flat, f"flat movie {number}")
    light, noise = (np.stack(part) for part in zip(*(_shot_noise(dark, flat) for flat in flats), strict=True))
    power = (light**2).sum(axis=0)
    slope = (noise * light).sum(axis=0) / np.maximum(power, 1e-12)  # ADU of variance per ADU of mean
    lit = np.sqrt(power) > 0.2 * np.median(np.sqrt(power))
    middle = float(np.median(slope[lit]))
    if not middle > 0:
        raise InputRejected(
            f"the variance does not grow with the light (slope {middle:.3g} ADU). Are the flats averages, or "
            "compressed? Record single raw frames."
        )
    frames = sum(flat.frames for flat in flats)
    # Variance from differences of N frames: relative error sqrt(3 / N); V also misses the dark variance's.
    error = (
        middle * np.sqrt(3.0 / frames) * float(np.median(flats[-1].variance / np.maximum(noise[-1], 1e-12)))
    )
    gain, gain_note = _shrunk(np.where(lit & (slope > 0), slope, middle), middle, error, "gain")
    excess = _EM_EXCESS if em_gain > 1 else 1.0
    e_per_adu = excess * em_gain / gain
    offset, offset_note = _map_or_number(dark.mean, np.sqrt(dark.variance.mean() / dark.frames), "offset")
    spread = np.sqrt(dark.variance)
    read, read_note = _map_or_number(
        spread, float(np.median(spread)) * np.sqrt(0.75 / dark.frames), "read noise"
    )
    camera = Camera(offset, _small(e_per_adu), _small(read * e_per_adu), quantum_efficiency, em_gain)
    notes = [gain_note, offset_note, read_note]
    if em_gain > 1:
        notes.append(f"EM gain {em_gain:g}: twice the shot noise was taken for the excess of multiplication.")
    elif middle > 10:
        notes.append(
            f"one photo-electron is {middle:.0f} ADU: for an EMCCD give --em-gain, or gain and noise are wrong."
        )
    return CameraEstimate(camera, tuple(note for note in notes if note))


def _check_flat(dark: Moments, flat: Moments, name: str) -> None:
    if flat.mean.shape != dark.mean.shape:
        raise InputRejected(
            f"{name} is {flat.mean.shape}, the dark movie {dark.mean.shape} (rows, columns). "
            "Record the same region."
        )
    if flat.saturated > _SATURATED:
        raise InputRejected(
            f"{name} is saturated: {100 * flat.saturated:.1f} % of its values are the largest. Use less light."
        )
    darker = float((flat.mean <= dark.mean).mean())
    if darker > _DARK_SHARE:
        raise InputRejected(
            f"{100 * darker:.0f} % of the pixels are brighter in the dark movie than in {name}. Were "
            "the two swapped, or the offset changed?"
        )
    if not dark.variance.any():
        raise InputRejected("the dark movie does not vary at all: it is no raw recording.")


Value = Any  # a number or an (H, W) map


def _shrunk(values: Floats, middle: float, error: float, what: str) -> tuple[Value, str]:
    """The map drawn towards its middle by how well it is known, or the middle alone, and a remark."""
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    real = max(spread**2 - error**2, 0.0)
    if real < (_REAL_SPREAD * error) ** 2 + 1e-12 * middle**2:
        return (
            middle,
            f"{what}: one number; pixels differ less than can be seen ({100 * error / middle:.1f} %).",
        )
    weight = real / (real + error**2)
    return middle + weight * (values - middle), ""


def _map_or_number(values: Floats, error: float, what: str) -> tuple[Value, str]:
    """The map, or its mean where pixels differ no more than they are known."""
    spread = float(np.std(values))
    if spread**2 < 1.2 * error**2:
        return float(np.mean(values)), f"{what}: one number; pixels do not differ measurably."
    return values, ""


def _small(value: Value) -> Value:
    return value.astype(np.float32) if isinstance(value, np.ndarray) else float(value)


def single_movie(
    blocks: Blocks, *, offset: float | None = None, em_gain: float = 1.0, quantum_efficiency: float = 1.0
) -> CameraEstimate:
    """The camera from any movie with bright and dim places, by the noise in the frames themselves.

    In tiles of 8 x 8 pixels the difference of two successive frames has a variance that grows with the mean
    of the tile; the median over tiles of like mean ignores the few in which something blinks. A line through
    variance over mean gives the gain; where it crosses zero the light is none (offset), up to the read noise.

    Parameters
    ----------
    blocks
        The movie, blocks (T, H, W) in order.
    offset
        Counts without light, where known: then the read noise follows, too.
    em_gain, quantum_efficiency
        As in ``photon_transfer``.

    Raises
    ------
    InputRejected
        If the movie has fewer than 10 frames, is saturated, smaller than a few tiles or too even.
    """
    means, variances = _tiles(blocks)
    edges = np.quantile(means, np.linspace(0, 1, _BINS + 1))
    which = np.clip(np.searchsorted(edges, means, side="right") - 1, 0, _BINS - 1)
    present = [k for k in range(_BINS) if np.count_nonzero(which == k) >= 5]
    level = np.array([np.median(means[which == k]) for k in present])
    noise = np.array([np.median(variances[which == k]) for k in present]) / _MEDIAN_OF_CHI2**3
    contrast = float(np.ptp(level)) / max(float(np.median(np.sqrt(noise))), 1e-12) if len(level) else 0.0
    if len(level) < _LEAST_BINS or not noise.any() or (offset is None and contrast < 1.0):
        raise InputRejected(
            "the movie is too even to tell the gain from the offset: no bright and dim places. Give --offset, or "
            "dark and flat movies."
        )
    slope, intercept = _line(level, noise)
    if not slope > 0:
        raise InputRejected(
            f"the noise does not grow with the light (slope {slope:.3g}): is it a raw movie? Give "
            "dark and flat movies."
        )
    excess = _EM_EXCESS if em_gain > 1 else 1.0
    e_per_adu = excess * em_gain / slope
    if offset is None:
        found, read = -intercept / slope, 0.0
        notes = [
            "from one movie offset and read noise cannot be told apart: this offset makes up for a read "
            "noise of 0. Give --offset, or a dark movie."
        ]
    else:
        found, read = float(offset), float(np.sqrt(max(intercept + slope * offset, 0.0))) * e_per_adu
        notes = []
    return CameraEstimate(Camera(found, e_per_adu, read, quantum_efficiency, em_gain), tuple(notes))


def _tiles(blocks: Blocks) -> tuple[Floats, Floats]:
    """Mean and variance of all tiles of all pairs of successive frames, at most some ten million."""
    means, variances, frames = [], [], 0
    top, at_top, values = -np.inf, 0, 0
    for block in blocks:
        counts = np.asarray(block, dtype=np.float64)
        frames, values = frames + len(counts), values + counts.size
        highest = float(counts.max())
        at_top = (
            int(np.count_nonzero(counts == highest)) + (at_top if highest == top else 0)
            if highest >= top
            else at_top
        )
        top = max(top, highest)
        rows, columns = (n // _TILE_PX for n in counts.shape[1:])
        pairs = counts[: len(counts) // 2 * 2, : rows * _TILE_PX, : columns * _TILE_PX]
        if not pairs.size:
            continue
        shape = (len(pairs) // 2, 2, rows, _TILE_PX, columns, _TILE_PX)
        first, second = np.moveaxis(pairs.reshape(shape), 1, 0)
        difference = second - first
        means.append((0.5 * (first + second)).mean(axis=(2, 4)).ravel())
        variances.append(0.5 * difference.var(axis=(2, 4), ddof=0).ravel() * _TILE_PX**2 / (_TILE_PX**2 - 1))
    if frames < LEAST_FRAMES or not means:
        raise InputRejected(
            f"the movie has {frames} frame(s) or is smaller than {_TILE_PX} px; {LEAST_FRAMES} frames "
            "or more are needed."
        )
    if at_top / values > _SATURATED:
        raise InputRejected(
            f"the movie is saturated: {100 * at_top / values:.1f} % of its values are the largest."
        )
    return np.concatenate(means), np.concatenate(variances)


def _line(level: Floats, noise: Floats) -> tuple[float, float]:
    """Slope and intercept through bins, each as uncertain as its value, outliers weighted down."""
    weight = 1 / np.maximum(noise, 1e-12)
    slope = intercept = 0.0
    for _ in range(20):
        system = np.stack([level, np.ones_like(level)], axis=1) * weight[:, None]
        slope, intercept = (float(v) for v in np.linalg.lstsq(system, noise * weight, rcond=None)[0])
        expected = np.maximum(slope * level + intercept, 0.05 * noise)
        apart = np.abs(noise / expected - 1)
        scale = max(1.4826 * float(np.median(apart)), 1e-6)
        weight = 1 / (expected * np.sqrt(1 + (apart / (2 * scale)) ** 2))
    return slope, intercept
