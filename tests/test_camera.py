"""The camera: counts, photo-electrons and noise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smlm_bridge.camera import Camera, excess_factor
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


def test_excess_factor_of_an_emccd() -> None:
    """Exact values for a gain of 300 and 30 e of read noise (shared/specs/psf.md, 4)."""
    mean = np.array([0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0])
    wanted = [1.36, 1.44, 1.55, 1.72, 1.89, 1.95, 1.98, 2.00]
    np.testing.assert_allclose(excess_factor(mean, 0.1), wanted, atol=8e-3)


def test_excess_factor_without_read_noise_is_that_of_the_closed_form() -> None:
    """Poisson-gamma without noise: an atom at 0 and a Bessel density (Basden et al. 2003)."""
    from scipy.special import ive

    mean, step = 3.0, 1e-6
    root = (np.arange(600_000) + 0.5) * 1.6e-5  # x = root^2 thins the nodes where the density is smooth
    x, dx = root**2, 2 * root * 1.6e-5

    def density(m: float) -> np.ndarray:
        inner = 2 * np.sqrt(m * x)
        return np.exp(inner - m - x) * np.sqrt(m / x) * ive(1, inner)

    slope = (density(mean + step) - density(mean - step)) / (2 * step)
    information = np.exp(-mean) + np.sum(slope**2 / density(mean) * dx)
    assert float(excess_factor(np.array(mean), 0.0)) == pytest.approx(1 / (mean * information), rel=0.01)


def test_information_variance_is_the_variance_of_other_cameras() -> None:
    photons = np.array([[0.5, 3.0], [20.0, 400.0]])
    for camera in (Camera(), Camera(read_noise_e=1.6)):
        np.testing.assert_array_equal(camera.information_variance(photons), camera.variance_photons(photons))
    emccd = Camera(read_noise_e=30.0, em_gain=300.0)
    ratio = emccd.information_variance(photons) / emccd.variance_photons(photons)
    assert (ratio < 1).all()
    assert ratio[1, 1] == pytest.approx(1.0, abs=3e-3)
    mapped = Camera(read_noise_e=np.full((2, 2), 30.0), em_gain=300.0)
    np.testing.assert_allclose(mapped.information_variance(photons), emccd.information_variance(photons))


def test_information_of_an_emccd_is_that_of_its_samples() -> None:
    """The score's variance over drawn pixels, with the density of a fine histogram at two close means."""
    camera, mean, step, count = Camera(read_noise_e=30.0, em_gain=300.0), 2.0, 0.1, 4_000_000
    edges = np.linspace(-0.6, 25, 400)

    def histogram(at: float, seed: int) -> np.ndarray:
        counts = camera.sample(
            torch.full((count,), at, dtype=torch.float32), torch.Generator().manual_seed(seed)
        )
        return np.histogram(camera.to_photons(counts.numpy()[None, :]), edges)[0] / count

    low, high = histogram(mean - step, 1), histogram(mean + step, 2)
    middle = (low + high) / 2
    seen = middle > 0
    noise = np.sum(seen) * 2 / count / (2 * step) ** 2  # of the histograms themselves
    information = np.sum((high - low)[seen] ** 2 / middle[seen]) / (2 * step) ** 2 - noise
    wanted = float(camera.information_variance(np.array(mean)))
    assert 1 / information == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize(("mean", "alpha"), [(0.5, 0.182), (2.0, 0.453), (10.0, 0.798), (50.0, 0.951)])
def test_variance_with_read_noise_is_slightly_cautious(mean: float, alpha: float) -> None:
    """Poisson and Gaussian noise of 1.6 e, summed exactly (alpha also in shared/specs/psf.md, 4)."""
    from scipy.stats import norm, poisson

    electrons, x = np.arange(160), np.linspace(-12, 140, 6001)
    chance = poisson.pmf(electrons, mean)
    spread = norm.pdf(x[:, None], electrons, 1.6)
    density, slope = spread @ chance, spread @ (chance * (electrons / mean - 1))
    seen = density > 1e-200
    information = np.sum(slope[seen] ** 2 / density[seen]) * (x[1] - x[0])
    assert mean * information == pytest.approx(alpha, abs=2e-3)
    assert 1.0 <= float(Camera(read_noise_e=1.6).variance_photons(np.array(mean))) * information < 1.13
