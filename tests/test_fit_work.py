"""Detection and fits over a movie."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.special import erf

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.detect import DetectOptions
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit import FitMovieOptions, Spot, fit_work
from smlm_bridge.fit.work import box_px, fitted_psf
from smlm_bridge.frames import Work, in_blocks
from smlm_bridge.locs import validate
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.pair import PairCalibration
from smlm_bridge.transform import Transform

PIXEL = 100.0
OPTICS = Optics(1.4, 1.518, 1.33, 670.0, PIXEL)
WIDTHS = Gaussian((130.0, 140.0), (200.0, 600.0), (350.0, 350.0))
CAMERA = Camera(offset=100.0, e_per_adu=0.5)
LENS = Calibration(OPTICS, gaussian=WIDTHS, camera=CAMERA, z_range_nm=(0.0, 800.0))
OPTIONS = FitMovieOptions(detect=DetectOptions(threshold="2.5*std(Wave.F1)"), least_p=1e-4)


@dataclass(frozen=True)
class Movie:
    """Frames in memory as a source."""

    counts: NDArray[np.generic]
    first_frame: int = 0
    x0: int = 0
    y0: int = 0

    @property
    def n_frames(self) -> int:
        return len(self.counts)

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        return self.counts[start:stop]


def render(
    truth: pd.DataFrame, frames: int, height: int, width: int, gaussian: Gaussian
) -> NDArray[np.float64]:
    """Expected photons above no background."""
    mean = np.zeros((frames, height, width))
    sigma = gaussian.widths_nm(truth["z_nm"].to_numpy())
    for row, (sx, sy) in zip(truth.itertuples(), sigma, strict=True):
        along = [
            0.5 * np.diff(erf((np.arange(count + 1) * PIXEL - place) / (np.sqrt(2) * s)))
            for count, place, s in ((width, row.x_nm, sx), (height, row.y_nm, sy))
        ]
        mean[row.frame] += row.photons * along[1][:, None] * along[0]
    return mean


def scene(frames: int = 6, *, seed: int = 0) -> pd.DataFrame:
    """Emitters on a grid of their own in each frame, far enough apart."""
    draw = np.random.default_rng(seed)
    y, x = np.meshgrid(np.arange(14, 70, 20), np.arange(14, 90, 20), indexing="ij")
    count = x.size * frames
    return pd.DataFrame(
        {
            "frame": np.repeat(np.arange(frames), x.size),
            "x_nm": (np.tile(x.ravel(), frames) + draw.uniform(-2, 2, count)) * PIXEL,
            "y_nm": (np.tile(y.ravel(), frames) + draw.uniform(-2, 2, count)) * PIXEL,
            "z_nm": draw.uniform(150, 650, count),
            "photons": 4000.0,
        }
    )


def record(mean: NDArray[np.float64], *, seed: int = 1) -> NDArray[np.uint16]:
    return (np.random.default_rng(seed).poisson(mean + 10) * 2 + 100).astype(np.uint16)


def matched(table: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Each row's nearest emitter of its frame, behind it."""
    pairs = table.merge(truth, on="frame", suffixes=("", "_true"))
    distance = np.hypot(pairs["x_nm"] - pairs["x_nm_true"], pairs["y_nm"] - pairs["y_nm_true"])
    pairs = pairs[distance < 150]
    return pairs.reset_index(drop=True)


def whole(movie: Movie, work: Work) -> pd.DataFrame:
    """One table of all blocks."""
    blocks = list(in_blocks(movie, work))
    assert not any(block.failed for block in blocks)
    return validate(pd.concat([block.table for block in blocks], ignore_index=True))


def localized(counts: NDArray[np.generic], **source: int) -> pd.DataFrame:
    return whole(Movie(counts, **source), replace(fit_work(LENS, OPTIONS), block_pixels=20_000))


def test_every_emitter_once_with_honest_error_bars() -> None:
    truth = scene()
    table = localized(record(render(truth, 6, 70, 96, WIDTHS))[:, None])
    pairs = matched(table, truth)
    assert len(pairs) == len(truth)
    assert len(table) <= len(truth) + 2
    for axis in "xyz":
        pull = (pairs[f"{axis}_nm"] - pairs[f"{axis}_nm_true"]) / pairs[f"uncertainty_{axis}_nm"]
        assert 0.75 < pull.std() < 1.3
        assert abs(pull.mean()) < 0.5
    np.testing.assert_allclose(pairs["photons"].mean(), 4000, rtol=0.02)


def test_positions_refer_to_the_whole_movie() -> None:
    truth = scene(2)
    counts = record(render(truth, 2, 70, 96, WIDTHS))[:, None]
    plain, moved = localized(counts), localized(counts, first_frame=5, x0=11, y0=3)
    np.testing.assert_allclose(moved["x_nm"], plain["x_nm"] + 1100)
    np.testing.assert_allclose(moved["y_nm"], plain["y_nm"] + 300)
    np.testing.assert_array_equal(moved["frame"], plain["frame"] + 5)


def test_camera_maps_are_those_of_the_frame() -> None:
    truth = scene(3)
    draw = np.random.default_rng(4)
    offset = draw.uniform(90, 300, (70, 96)).astype(np.float32)
    noise = draw.uniform(0.5, 3, (70, 96)).astype(np.float32)
    photons = draw.poisson(render(truth, 3, 70, 96, WIDTHS) + 10) + draw.normal(size=(3, 70, 96)) * noise
    camera = Camera(offset=offset, e_per_adu=0.5, read_noise_e=noise)
    counts = (photons / 0.5 + offset).astype(np.float32)[:, None]
    table = whole(Movie(counts), fit_work(LENS, OPTIONS, camera=camera))
    assert len(matched(table, truth)) >= 0.97 * len(truth)
    with pytest.raises(InputRejected, match="map"):
        list(in_blocks(Movie(counts[..., :50]), fit_work(LENS, OPTIONS, camera=camera)))


def test_a_flat_gaussian_gives_two_dimensions() -> None:
    flat = Calibration(OPTICS, gaussian=Gaussian((130.0, 130.0)), camera=CAMERA)
    assert isinstance(fitted_psf(flat, 7), Spot)
    truth = scene(2)
    counts = record(render(truth, 2, 70, 96, Gaussian((130.0, 130.0))))[:, None]
    table = whole(Movie(counts), fit_work(flat, OPTIONS))
    assert "z_nm" not in table
    pairs = matched(table, truth)
    assert len(pairs) == len(truth)
    np.testing.assert_allclose(pairs["psf_sigma_nm"].mean(), 130, atol=1)


def test_two_channels() -> None:
    far = replace(LENS, gaussian=replace(WIDTHS, focus_nm=(300.0, 700.0)))
    shift = Transform.affine(np.eye(2), (330.0, -210.0))
    pair = PairCalibration(LENS, far, shift, 0.5)
    truth = scene(3)
    second = truth.assign(x_nm=truth["x_nm"] + 330, y_nm=truth["y_nm"] - 210, photons=2000.0)
    means = [render(truth, 3, 70, 96, WIDTHS), render(second, 3, 70, 96, far.gaussian or WIDTHS)]
    counts = np.stack([record(m, seed=s) for s, m in enumerate(means)], axis=1)
    work = fit_work(pair, OPTIONS)
    table = whole(Movie(counts), work)
    pairs = matched(table, truth)
    assert len(pairs) >= 0.97 * len(truth)
    np.testing.assert_allclose(pairs["photons"].mean(), 6000, rtol=0.02)
    with pytest.raises(InputRejected, match="2 channel"):
        list(in_blocks(Movie(counts[:, :1]), work))


def test_an_empty_movie_has_the_same_columns() -> None:
    dark = np.full((2, 1, 40, 40), 100, np.uint16)
    work = fit_work(LENS, OPTIONS)
    table = next(in_blocks(Movie(dark), work)).table
    assert len(table) == 0
    assert list(table.columns) == list(work.empty.columns)


def test_boxes_hold_the_light() -> None:
    assert box_px(LENS) == 2 * int(np.ceil(3 * WIDTHS.widths_nm([0.0, 800.0]).max() / PIXEL)) + 1
    narrow = replace(LENS, gaussian=Gaussian((80.0, 80.0)))
    assert box_px(narrow) == 7


def test_a_pupil_is_made_into_a_spline() -> None:
    pytest.importorskip("torch")
    from smlm_bridge.optics.pupil import Pupil
    from smlm_bridge.psf.cubic_spline import CubicSpline

    pupil = Calibration(OPTICS, Pupil.flat(32, {6: 0.6}), camera=CAMERA, z_range_nm=(0.0, 600.0))
    psf = fitted_psf(pupil, 9)
    assert isinstance(psf, CubicSpline)
    assert 7 <= box_px(pupil) <= 41
    kept = replace(pupil, spline=psf)
    assert fitted_psf(kept, 9) is psf
    with pytest.raises(InputRejected, match="smaller size_px"):
        fitted_psf(kept, 25)


@pytest.mark.parametrize(("change", "words"), [({"size_px": 8}, "odd"), ({"least_p": 1.0}, "least_p")])
def test_options_that_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(InputRejected, match=words):
        FitMovieOptions(**change)  # type: ignore[arg-type]
