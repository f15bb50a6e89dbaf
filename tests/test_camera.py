"""The camera: counts, photo-electrons and noise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected

MAPS = Camera(
    offset=np.linspace(90, 110, 12).reshape(3, 4),
    e_per_adu=np.linspace(0.3, 0.6, 12).reshape(3, 4),
    read_noise_e=np.linspace(0.5, 6.0, 12).reshape(3, 4),
)


@given(
    photons=st.floats(0, 1e5),
    offset=st.floats(-100, 1000),
    e_per_adu=st.floats(0.01, 20),
    gain=st.floats(1, 1000),
)
def test_to_photons_undoes_expected(photons: float, offset: float, e_per_adu: float, gain: float) -> None:
    camera = Camera(offset, e_per_adu, em_gain=gain)
    counts = camera.expected(np.full((1, 2, 2), photons))
    # The counts are single precision: half a unit of their last place, in photo-electrons.
    slack = np.abs(counts).max() * 2**-22 * e_per_adu / gain + 2**-22 * (
        photons + abs(offset) * e_per_adu / gain
    )
    np.testing.assert_allclose(camera.to_photons(counts), photons, atol=slack + 1e-12)


def test_to_photons_undoes_expected_with_maps() -> None:
    photons = np.arange(12.0).reshape(1, 3, 4) * 50
    np.testing.assert_allclose(MAPS.to_photons(MAPS.expected(photons)), photons, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_every_kind_of_pixel_becomes_float32(dtype: type) -> None:
    photons = Camera(offset=100.0).to_photons(np.full((2, 3, 4), 90, dtype))
    assert photons.dtype == np.float32
    assert (photons == -10).all()


def sampled(camera: Camera, photons: float, count: int = 4000) -> np.ndarray:
    shape = camera.read_noise_e.shape if isinstance(camera.read_noise_e, np.ndarray) else (3, 4)
    mean = torch.full((count, *shape), photons, dtype=torch.float64)
    counts = camera.sample(mean, torch.Generator().manual_seed(5))
    return camera.to_photons(counts.numpy()).astype(np.float64)


@pytest.mark.parametrize("photons", [0.0, 3.0, 40.0])
def test_maps_have_the_mean_and_variance_they_say(photons: float) -> None:
    drawn = sampled(MAPS, photons)
    variance = MAPS.variance_photons(np.full((3, 4), photons))
    np.testing.assert_allclose(drawn.mean(0), photons, atol=5 * np.sqrt(variance.max() / len(drawn)))
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.15)


def test_emccd_doubles_the_variance_at_high_signal() -> None:
    camera = Camera(offset=200.0, e_per_adu=5.0, read_noise_e=40.0, em_gain=300.0)
    drawn = sampled(camera, 200.0)
    assert camera.excess_noise_factor == 2.0
    assert drawn.mean() == pytest.approx(200, rel=0.01)
    assert drawn.var() / camera.variance_photons(np.array(200.0)) == pytest.approx(1.0, rel=0.05)
    assert drawn.var() == pytest.approx(400, rel=0.05)


def test_emccd_without_light_shows_read_noise_only() -> None:
    camera = Camera(read_noise_e=30.0, em_gain=300.0)
    drawn = sampled(camera, 0.0)
    assert np.isfinite(drawn).all()
    assert drawn.std() == pytest.approx(0.1, rel=0.05)


def test_without_read_noise_counts_are_poisson_numbers() -> None:
    drawn = sampled(Camera(), 7.0)
    assert (drawn == np.round(drawn)).all()
    assert drawn.var() == pytest.approx(7.0, rel=0.05)


def test_the_generator_is_the_only_source_of_randomness() -> None:
    photons = torch.full((4, 3, 4), 20.0)
    one, two, three = (MAPS.sample(photons, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_crop_cuts_maps_and_keeps_numbers() -> None:
    part = Camera(offset=MAPS.offset, e_per_adu=0.5, em_gain=3.0, quantum_efficiency=0.9).crop(1, 2, 2, 2)
    np.testing.assert_array_equal(part.offset, np.asarray(MAPS.offset)[1:3, 2:4])
    assert (part.e_per_adu, part.em_gain, part.quantum_efficiency) == (0.5, 3.0, 0.9)


def test_numbers_of_numpy_are_numbers() -> None:
    camera = Camera(np.float32(100), np.int64(2), np.float64(1.5))
    assert (camera.offset, camera.e_per_adu, camera.read_noise_e) == (100.0, 2.0, 1.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"e_per_adu": 0.0}, "above 0"),
        ({"e_per_adu": np.array([[1.0, -1.0]])}, "above 0"),
        ({"read_noise_e": -1.0}, "negative"),
        ({"offset": float("nan")}, "finite"),
        ({"offset": np.array([[1.0, np.inf]])}, "finite"),
        ({"offset": np.zeros(3)}, "shape of a frame"),
        ({"em_gain": 0.5}, "em_gain"),
        ({"em_gain": float("nan")}, "em_gain"),
        ({"quantum_efficiency": 1.2}, "quantum_efficiency"),
        ({"quantum_efficiency": 0.0}, "quantum_efficiency"),
    ],
)
def test_what_no_camera_has_is_rejected(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputRejected, match=words):
        Camera(**arguments)


def test_maps_of_another_size_are_rejected() -> None:
    with pytest.raises(InputRejected, match="offset map"):
        MAPS.to_photons(np.zeros((1, 4, 3)))
