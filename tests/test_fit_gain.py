"""The exact likelihood of EM gain: a density, the same in both solvers, worth most where photons are few."""

import numpy as np
import pytest
from scipy.special import ndtr

from smlm_bridge.camera import Camera, excess_factor
from smlm_bridge.fit import FitOptions, Spot, fit_boxes, kernels
from smlm_bridge.fit.compiled import _gain
from smlm_bridge.fit.gain import gain_table, log_density

NOISES = (0.0, 0.1, 0.5)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("mean", [0.02, 1.0, 30.0])
def test_the_density_has_the_moments_of_its_process(noise: float, mean: float) -> None:
    noise = max(noise, 0.02)
    x = np.linspace(-12 * noise, mean + 14 * np.sqrt(2 * mean + 1) + 30, 200_001)
    density = np.exp(log_density(x, np.array(mean), noise)) * (x[1] - x[0])
    assert density.sum() == pytest.approx(1.0, abs=1e-6)
    assert density @ x == pytest.approx(mean, rel=1e-5)
    assert density @ (x - mean) ** 2 == pytest.approx(2 * mean + noise**2, rel=1e-5)


def drawn(mean: np.ndarray, noise: float) -> np.ndarray:
    draw = np.random.default_rng(0)
    electrons = draw.poisson(mean)
    light = np.where(electrons > 0, draw.gamma(np.maximum(electrons, 1)), 0.0)
    return np.asarray(light + noise * draw.normal(size=mean.shape))


@pytest.mark.parametrize("noise", NOISES)
def test_the_table_is_the_density_and_both_solvers_read_it_alike(noise: float) -> None:
    table = gain_table(noise)
    mean = 10 ** np.random.default_rng(1).uniform(-2, 2.4, 400)  # also beyond the table
    x = drawn(mean, table.noise_e)
    found = np.array([kernels._electrons(_gain((table,)), 0, a, b) for a, b in zip(x, mean, strict=True)])
    step = 1e-4 * mean
    up, down = (log_density(x, mean + sign * step, table.noise_e) for sign in (1, -1))
    np.testing.assert_allclose(found[:, 0], log_density(x, mean, table.noise_e), atol=2e-3)
    scale = np.sqrt(2 * mean)  # of a score, about one over its standard deviation
    np.testing.assert_allclose(found[:, 1] * scale, (up - down) / (2 * step) * scale, atol=3e-3)
    np.testing.assert_allclose(found[:, 2] * mean, 1 / excess_factor(mean, table.noise_e), rtol=5e-3)
    torch = pytest.importorskip("torch")
    from smlm_bridge.fit.electrons import Electrons

    general = Electrons.of(table, torch.zeros(1, dtype=torch.float64))(torch.tensor(x), torch.tensor(mean))
    np.testing.assert_allclose(torch.stack(general, 1).numpy(), found, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("noise", NOISES)
def test_scores_vanish_on_average_and_vary_as_the_information_says(noise: float) -> None:
    gain = _gain((gain_table(noise),))
    for mean in (0.3, 3.0, 40.0):
        x = drawn(np.full(20_000, mean), gain.numbers[0, 3])
        score = np.array([kernels._electrons(gain, 0, value, mean)[1] for value in x])
        information = kernels._electrons(gain, 0, 1.0, mean)[2]
        assert abs(score.mean()) < 4 * score.std() / np.sqrt(len(x))
        assert score.var() == pytest.approx(information, rel=0.05)


def test_few_photons_are_worth_more_than_half() -> None:
    """On a dark background the exact fit beats that of the high-signal limit, and knows how good it is."""
    camera = Camera(em_gain=200.0, read_noise_e=20.0)
    edges = (np.arange(10) - 4.6) / 1.3
    along = np.diff(ndtr(edges))
    mean = np.repeat((150.0 * along[:, None] * along + 0.15)[None], 4000, 0)
    boxes = drawn(mean, 0.1).astype(np.float32)
    spot, corners = Spot(130.0, 100.0, free=False), np.zeros((len(boxes), 2), int)
    exact, plain = (
        fit_boxes(boxes, corners, spot, camera=camera, options=FitOptions(exact_emccd=e))
        for e in (True, False)
    )
    better, worse = (found["x_nm"][found.ok].std() for found in (exact, plain))
    assert better < 0.97 * worse
    said = np.sqrt((exact.bound("x_nm")[exact.ok] ** 2).mean())
    assert said == pytest.approx(better, rel=0.06)
    assert abs(exact["photons"][exact.ok].mean() / 150.0 - 1) < 0.02
