"""The camera estimated from simulated movies, and movies that cannot tell it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from smlm_bridge.camera import Camera
from smlm_bridge.camera_calibration import Moments, moments, photon_transfer, single_movie
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.setup import load_setup

SHAPE = (40, 48)
MAPS = np.random.default_rng(4)
OFFSET = 100 + MAPS.normal(0, 2.0, SHAPE)
GAIN = 2.2 * (1 + MAPS.normal(0, 0.05, SHAPE))  # ADU per electron
READ = 1.4 * np.exp(MAPS.normal(0, 0.3, SHAPE))  # electrons


def scmos(light: float | np.ndarray, frames: int, seed: int, flicker: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    lamp = 1 + flicker * generator.normal(0, 1, (frames, 1, 1))
    electrons = generator.poisson(light * lamp * np.ones((frames, *SHAPE)))
    counts = (electrons + generator.normal(0, READ, (frames, *SHAPE))) * GAIN + OFFSET
    return np.clip(np.round(counts), 0, 65535).astype(np.uint16)


def blocks(movie: np.ndarray, size: int = 64) -> Iterator[np.ndarray]:
    return (movie[i : i + size] for i in range(0, len(movie), size))


@pytest.fixture(scope="module")
def dark() -> Moments:
    return moments(blocks(scmos(0.0, 600, 1)))


def test_moments_do_not_depend_on_the_blocks() -> None:
    movie = scmos(50.0, 60, 2)
    one, other = moments([movie]), moments(blocks(movie, 7))
    np.testing.assert_allclose(one.mean, other.mean)
    np.testing.assert_allclose(one.variance, other.variance)
    np.testing.assert_allclose(one.mean, movie.mean(axis=0))
    assert one.variance.mean() == pytest.approx(movie.var(axis=0, ddof=1).mean(), rel=0.03)


@pytest.mark.parametrize("flicker", [0.0, 0.01])
def test_maps_of_an_scmos_come_back(dark: Moments, flicker: float) -> None:
    flats = [
        moments(blocks(scmos(level, 600, 10 + i, flicker))) for i, level in enumerate((60.0, 200.0, 500.0))
    ]
    camera = photon_transfer(dark, flats).camera
    assert isinstance(camera.offset, np.ndarray)
    assert isinstance(camera.e_per_adu, np.ndarray)
    assert isinstance(camera.read_noise_e, np.ndarray)
    assert np.abs(camera.offset - OFFSET).std() < 0.25
    assert np.median(camera.e_per_adu * GAIN) == pytest.approx(1.0, abs=0.02)
    error = (camera.e_per_adu * GAIN - 1).std()
    assert error < (0.05 if flicker else 0.045)  # one number for all would leave 0.05
    assert np.corrcoef(1 / camera.e_per_adu.ravel(), GAIN.ravel())[0, 1] > 0.5
    assert np.median(camera.read_noise_e / READ) == pytest.approx(1.0, abs=0.05)
    assert np.corrcoef(camera.read_noise_e.ravel(), READ.ravel())[0, 1] > 0.9


def test_an_even_camera_gets_numbers() -> None:
    generator = np.random.default_rng(3)

    def movie(light: float) -> np.ndarray:
        electrons = generator.poisson(light, (300, *SHAPE)) + generator.normal(0, 5.0, (300, *SHAPE))
        return np.round(electrons / 0.8 + 200).astype(np.uint16)

    estimate = photon_transfer(moments([movie(0.0)]), [moments([movie(400.0)])])
    assert estimate.camera.e_per_adu == pytest.approx(0.8, rel=0.02)
    assert estimate.camera.read_noise_e == pytest.approx(5.0, rel=0.03)
    assert estimate.camera.offset == pytest.approx(200.0, abs=0.05)
    assert len(estimate.notes) == 3


def test_an_emccd_needs_its_gain() -> None:
    true = Camera(200.0, 12.0, 60.0, 0.9, 150.0)
    generator = np.random.default_rng(5)

    def movie(light: float) -> np.ndarray:
        electrons = generator.gamma(generator.poisson(light, (300, *SHAPE)), true.em_gain)
        return np.round((electrons + generator.normal(0, 60.0, (300, *SHAPE))) / 12.0 + 200)

    measured = moments([movie(0.0)]), [moments([movie(40.0)])]
    estimate = photon_transfer(*measured, em_gain=150.0, quantum_efficiency=0.9)
    assert estimate.camera.e_per_adu == pytest.approx(12.0, rel=0.04)
    assert estimate.camera.read_noise_e == pytest.approx(60.0, rel=0.05)
    assert any("EM gain 150" in note for note in estimate.notes)
    assert any("--em-gain" in note for note in photon_transfer(*measured).notes)


def scene(frames: int) -> np.ndarray:
    """Dim and bright places, and a tenth of the frames with something that blinks."""
    generator = np.random.default_rng(6)
    y, x = np.indices((96, 96))
    light = 10 + 150 * np.exp(-((x - 50) ** 2 + (y - 40) ** 2) / 600)
    movie = np.repeat(light[None], frames, 0)
    for t in range(0, frames, 2):
        r, c = generator.integers(5, 90, 2)
        movie[t, r - 2 : r + 3, c - 2 : c + 3] += 100
    return np.round((generator.poisson(movie) + generator.normal(0, 1.5, movie.shape)) / 0.45 + 100)


def test_one_movie_gives_the_gain_and_with_the_offset_the_read_noise() -> None:
    movie = scene(60)
    alone = single_movie(blocks(movie, 20))
    assert alone.camera.e_per_adu == pytest.approx(0.45, rel=0.05)
    # Where the variance would vanish: the offset less the read noise's share.
    assert alone.camera.offset == pytest.approx(100 - 1.5**2 / 0.45, abs=3.0)
    assert "cannot be told apart" in alone.notes[0]
    known = single_movie(blocks(movie, 20), offset=100.0)
    assert known.camera.e_per_adu == pytest.approx(0.45, rel=0.05)
    assert known.camera.read_noise_e == pytest.approx(1.5, abs=0.8)


def test_what_cannot_tell_the_camera_is_said(dark: Moments) -> None:
    flat = moments(blocks(scmos(300.0, 60, 20)))
    with pytest.raises(InputRejected, match="1 frame"):
        moments([scmos(300.0, 1, 1)])
    with pytest.raises(InputRejected, match="0 frame"):
        moments([])
    with pytest.raises(InputRejected, match="saturated"):
        photon_transfer(dark, [moments([np.minimum(scmos(300.0, 60, 20), 800)])])
    with pytest.raises(InputRejected, match="swapped"):
        photon_transfer(flat, [dark])
    with pytest.raises(InputRejected, match="same region"):
        photon_transfer(dark, [moments([scmos(300.0, 60, 20)[:, :20]])])
    with pytest.raises(InputRejected, match="raw frames"):
        photon_transfer(dark, [moments([np.repeat(scmos(300.0, 1, 9), 60, axis=0)])])
    with pytest.raises(InputRejected, match="no raw recording"):
        photon_transfer(moments([np.full((20, *SHAPE), 100.0)]), [flat])
    with pytest.raises(InputRejected, match="--flat"):
        photon_transfer(dark, [])
    with pytest.raises(InputRejected, match="not finite"):
        moments([np.full((20, *SHAPE), np.nan)])
    with pytest.raises(InputRejected, match="too even"):
        single_movie([np.random.default_rng(1).normal(100, 2, (20, 64, 64))])
    with pytest.raises(InputRejected, match="3 frame"):
        single_movie([np.ones((3, 64, 64))])


def test_the_verb_writes_a_setup_that_is_read_back(tmp_path: Path) -> None:
    from smlm_bridge.cli import main

    tifffile.imwrite(tmp_path / "dark.tif", scmos(0.0, 100, 1))
    tifffile.imwrite(tmp_path / "flat.tif", scmos(300.0, 100, 2))
    output = tmp_path / "camera.toml"
    arguments = [
        "camera",
        str(tmp_path / "dark.tif"),
        "--flat",
        str(tmp_path / "flat.tif"),
        "-o",
        str(output),
    ]
    assert main([*arguments, "--quiet"]) == 0
    camera = load_setup(output).camera
    assert camera is not None
    assert np.median(camera.e_per_adu) == pytest.approx(1 / 2.2, rel=0.03)
    assert isinstance(camera.offset, np.ndarray)
    assert camera.offset.shape == SHAPE
    assert main([*arguments, "--quiet"]) == 3  # exists
    assert main([*arguments, "--overwrite", "--offset", "100"]) == 2
