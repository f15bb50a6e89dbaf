"""Sparse peak search against max-pooling of the whole volume."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import center_of_mass, maximum_filter

from smlm_bridge.errors import InputRejected
from smlm_bridge.networks.peaks import centres_of_gravity, find_peaks


def pooled(volume: np.ndarray, threshold: float, radius: int) -> np.ndarray:
    """Every voxel that equals the maximum of its cube: what dense max-pooling finds."""
    highest = maximum_filter(volume, 2 * radius + 1, mode="constant", cval=-np.inf)
    return np.argwhere((volume == highest) & (volume > threshold))


def first_of_equals(volume: np.ndarray, threshold: float, radius: int) -> np.ndarray:
    """As ``pooled``, by two maxima: of what stands earlier in reading order, and of what stands later."""
    before = np.ones((2 * radius + 1,) * 3, bool)
    before.reshape(-1)[before.size // 2 :] = False
    if radius == 0:
        return np.argwhere(volume > threshold)
    earlier = maximum_filter(volume, footprint=before, mode="constant", cval=-np.inf)
    later = maximum_filter(volume, footprint=before[::-1, ::-1, ::-1], mode="constant", cval=-np.inf)
    return np.argwhere((volume > earlier) & (volume >= later) & (volume > threshold))


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    radius=st.integers(0, 4),
    levels=st.sampled_from([2, 5, 10**6]),
    threshold=st.sampled_from([0.0, 0.3, 0.9]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=120, deadline=None)
def test_it_is_max_pooling(shape, radius, levels, threshold, seed) -> None:
    """With few levels nearly every cube has ties; volumes smaller than a cube are among them."""
    volume = np.random.default_rng(seed).integers(-1, levels, shape).astype(np.float32) / np.float32(levels)
    every = find_peaks(volume, threshold=threshold, radius=radius, every_tie=True)
    np.testing.assert_array_equal(every, pooled(volume, threshold, radius))
    first = find_peaks(volume, threshold=threshold, radius=radius)
    np.testing.assert_array_equal(first, first_of_equals(volume, threshold, radius))


def test_it_is_max_pooling_on_a_large_volume() -> None:
    volume = np.random.default_rng(1).gamma(0.2, 1.0, (23, 57, 48)).astype(np.float32)
    wanted = pooled(volume, 0.5, 4)
    assert len(wanted) > 30
    np.testing.assert_array_equal(find_peaks(volume, threshold=0.5, radius=4), wanted)


def test_more_peaks_than_the_first_room() -> None:
    volume = np.zeros((3, 60, 60), np.float32)
    volume[1, 1::3, 1::3] = np.arange(1, 401).reshape(20, 20)
    assert len(find_peaks(volume, threshold=0.0, radius=1)) == 400


def test_a_saturated_emitter_is_found_once() -> None:
    volume = np.zeros((9, 20, 20), np.float32)
    volume[4, 9:11, 9:12] = 800.0
    assert find_peaks(volume, threshold=80.0, radius=4).tolist() == [[4, 9, 9]]
    assert len(find_peaks(volume, threshold=80.0, radius=4, every_tie=True)) == 6
    assert len(find_peaks(volume, threshold=800.0, radius=4)) == 0


def test_centres_of_gravity() -> None:
    volume = np.random.default_rng(2).normal(1.0, 1.0, (12, 15, 14)).astype(np.float32)
    peaks = find_peaks(volume, threshold=0.5, radius=2)
    assert len(peaks) > 5
    centres = centres_of_gravity(volume, peaks, radius=2)
    for peak, centre in zip(peaks, centres, strict=True):
        low = np.maximum(peak - 2, 0)
        cube = volume[tuple(slice(a, b) for a, b in zip(low, peak + 3, strict=True))].clip(0).astype(float)
        np.testing.assert_allclose(centre, low + center_of_mass(cube), rtol=1e-12)


def test_nothing_above_the_threshold() -> None:
    volume = np.zeros((2, 3, 4), np.float32)
    peaks = find_peaks(volume, threshold=0.0, radius=4)
    assert peaks.shape == (0, 3)
    assert centres_of_gravity(volume, peaks, radius=4).shape == (0, 3)


@pytest.mark.parametrize("wrong", [{"threshold": -1.0}, {"radius": -1}, {"threshold": np.nan}])
def test_what_cannot_be(wrong) -> None:
    with pytest.raises(InputRejected, match="from 0"):
        find_peaks(np.zeros((2, 2, 2), np.float32), **{"threshold": 0.0, "radius": 1, **wrong})
    with pytest.raises(InputRejected, match="three axes"):
        find_peaks(np.zeros((2, 2), np.float32), threshold=0.0, radius=1)
