"""Fits with PSFs in torch: the same as the compiled ones where both can, aberrations, pairs, and the bound."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from smlm_bridge.camera import Camera  # noqa: E402
from smlm_bridge.crlb import crlb  # noqa: E402
from smlm_bridge.errors import InputRejected  # noqa: E402
from smlm_bridge.fit import AstigmaticSpot, Channels, FitOptions, fit_boxes  # noqa: E402
from smlm_bridge.optics.gaussian import Gaussian  # noqa: E402
from smlm_bridge.optics.microscope import Optics  # noqa: E402
from smlm_bridge.optics.pupil import Pupil  # noqa: E402
from smlm_bridge.psf.cubic_spline_psf import CubicSplinePSF, tabulate  # noqa: E402
from smlm_bridge.psf.gaussian import GaussianPSF  # noqa: E402
from smlm_bridge.psf.pupil_psf import PupilPSF  # noqa: E402
from smlm_bridge.transform import Transform  # noqa: E402

SIDE, PIXEL = 13, 110.0
OPTICS = Optics(1.49, 1.518, 1.33, 670.0, PIXEL, focus_nm=500.0)
RANGE = FitOptions(z_range_nm=(0.0, 1000.0))
Floats = NDArray[np.float64]


def vectorial(**zernike: float) -> PupilPSF:
    return PupilPSF.of(OPTICS, Pupil.flat(40, {6: 0.6} | {int(k[1:]): v for k, v in zernike.items()}))


def draw(count: int, *, seed: int = 0, z_nm: tuple[float, float] = (200.0, 700.0)) -> Floats:
    generator = np.random.default_rng(seed)
    xy = (SIDE / 2 + generator.uniform(-0.5, 0.5, (count, 2))) * PIXEL
    return np.column_stack([xy, generator.uniform(*z_nm, count)])


def boxes_of(psf: object, xyz: Floats, *, photons: float = 2000.0, seed: int = 1) -> Floats:
    share = psf.images(torch.as_tensor(xyz), (SIDE, SIDE)).double().numpy()  # type: ignore[attr-defined]
    return np.random.default_rng(seed).poisson(photons * share + 10).astype(float)


def corners(count: int) -> NDArray[np.int64]:
    return np.zeros((count, 2), np.int64)


READ_NOISE_E = np.linspace(1, 3, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)


@pytest.mark.parametrize(
    "camera",
    [Camera(read_noise_e=READ_NOISE_E), Camera(em_gain=200.0, read_noise_e=20.0)],
    ids=["sCMOS", "EMCCD"],
)
def test_both_ways_find_the_same(camera: Camera) -> None:
    gaussian = Gaussian((130.0, 140.0), (200.0, 600.0), (350.0, 350.0))
    spot = AstigmaticSpot(gaussian, PIXEL, (0.0, 1000.0))
    psf = GaussianPSF(gaussian, PIXEL)
    boxes = boxes_of(psf, draw(60))
    if camera.em_gain > 1:
        generator = np.random.default_rng(2)
        boxes = generator.gamma(np.maximum(boxes, 1)) * (boxes > 0) + 0.1 * generator.normal(size=boxes.shape)
    compiled = fit_boxes(boxes, corners(60), spot, camera=camera)
    general = fit_boxes(boxes, corners(60), psf, camera=camera, options=RANGE)
    assert compiled.names == general.names
    assert (np.abs(compiled.values - general.values) < 0.02 * compiled.bounds).all()
    np.testing.assert_allclose(general.bounds, compiled.bounds, rtol=0.01)
    np.testing.assert_allclose(general.log_likelihood, compiled.log_likelihood, atol=1e-3)
    np.testing.assert_allclose(general.p_value, compiled.p_value, atol=1e-2)
    np.testing.assert_array_equal(general.status, compiled.status)


def test_a_turned_lens_goes_the_general_way() -> None:
    gaussian = Gaussian((130.0, 140.0), (200.0, 600.0), (350.0, 350.0), angle_rad=0.5)
    xyz = draw(20)
    boxes = boxes_of(GaussianPSF(gaussian, PIXEL), xyz, photons=20_000.0)
    result = fit_boxes(boxes, corners(20), AstigmaticSpot(gaussian, PIXEL, (0.0, 1000.0)))
    assert (np.abs(result.values[:, :3] - xyz) < 5 * result.bounds[:, :3]).all()


def test_a_pupil_and_its_spline_agree() -> None:
    psf = vectorial(z7=0.2)
    boxes = boxes_of(psf, draw(40))
    spline = tabulate(psf, z_range_nm=RANGE.z_range_nm or (0, 1), size_px=19)
    fast = fit_boxes(boxes, corners(40), spline)
    slow = fit_boxes(boxes, corners(40), psf, options=RANGE)
    assert (np.abs(fast.values - slow.values) < 0.06 * slow.bounds).all()
    again = fit_boxes(boxes, corners(40), CubicSplinePSF(spline), options=RANGE)
    assert (np.abs(fast.values - again.values) < 0.02 * slow.bounds).all()


def test_aberrations_are_found_in_each_box() -> None:
    """0.3 rad of astigmatism that the calibration does not know: found by the aware fit, missed by the rigid."""
    xyz = draw(40, z_nm=(300.0, 600.0))
    boxes = boxes_of(vectorial(z5=0.3), xyz, photons=20_000.0)
    rigid = fit_boxes(boxes, corners(40), vectorial(), options=RANGE)
    aware = fit_boxes(
        boxes, corners(40), vectorial(), options=dataclasses.replace(RANGE, zernike=(5,), z_starts=3)
    )
    assert aware.names[-1] == "zernike_5"
    pull = (aware["zernike_5"] - 0.3) / aware.bound("zernike_5")
    assert abs(pull.mean()) < 4 / np.sqrt(40)
    assert 0.7 < pull.std() < 1.35
    assert (aware.log_likelihood > rigid.log_likelihood + 20).all()
    assert np.median(aware.p_value) > 0.1 > np.median(rigid.p_value)


def test_a_pair_of_pupils() -> None:
    near, far = (
        PupilPSF.of(dataclasses.replace(OPTICS, focus_nm=focus), Pupil.flat(40)) for focus in (300.0, 700.0)
    )
    xyz = draw(30)
    boxes = np.stack([boxes_of(near, xyz), boxes_of(far, xyz, seed=2)], axis=1)
    pair = Channels((near, far), Transform.identity())
    result = fit_boxes(boxes, corners(30), pair, options=RANGE)
    error = (result.values[:, :3] - xyz) / result.bounds[:, :3]
    assert np.abs(error).max() < 4.5
    np.testing.assert_allclose(result["photons"].mean(), 4000, rtol=0.02)


def test_what_the_general_fit_refuses() -> None:
    psf = GaussianPSF(Gaussian((130.0, 140.0)), PIXEL)
    box = np.ones((1, SIDE, SIDE))
    with pytest.raises(InputRejected, match="for which heights"):
        fit_boxes(box, corners(1), psf)
    with pytest.raises(InputRejected, match="with a pupil only"):
        fit_boxes(box, corners(1), psf, options=dataclasses.replace(RANGE, zernike=(5,)))


def confirm(
    images: int,
    within: float,
    cameras: dict[str, Camera],
    heights: tuple[float, ...],
    *,
    photons: float = 3000.0,
) -> None:
    """The deviation of fits of the vectorial PSF is the bound."""
    psf = PupilPSF.of(OPTICS, Pupil.flat(64, {6: 0.6}), dtype=torch.float64)
    spline = tabulate(psf, z_range_nm=(0.0, 1000.0), size_px=21, z_step_nm=30.0)
    generator = torch.Generator().manual_seed(7)
    one = torch.ones(1, dtype=torch.float64)
    for camera in cameras.values():
        for height in heights:
            at = torch.tensor([[6.68 * PIXEL, 6.36 * PIXEL, height]], dtype=torch.float64)
            mean = photons * psf.images(at, (SIDE, SIDE)) + 15
            counts = camera.sample(mean.expand(images, -1, -1), generator).numpy()
            result = fit_boxes(camera.to_photons(counts), corners(images), spline, camera=camera)
            limit = crlb(psf, camera, at, photons * one, 15 * one, shape=(SIDE, SIDE), exact_emccd=True)
            bound = limit[0].numpy()
            std = result.values[result.ok].std(0)
            np.testing.assert_allclose(std[:3] / bound[:3], 1.0, atol=within)
            assert result.ok.mean() > 0.999


def test_the_vectorial_bound_is_reached() -> None:
    confirm(1200, 0.09, {"sCMOS": Camera(read_noise_e=1.6)}, (400.0,))


@pytest.mark.slow
def test_the_vectorial_bound_is_reached_within_three_percent() -> None:
    cameras = {
        "Poisson": Camera(),
        "sCMOS": Camera(read_noise_e=1.6),
        "EMCCD": Camera(em_gain=300.0, read_noise_e=30.0),
    }
    # The bound is that of many photons: at 2000 an EMCCD's x far from focus was 3 % above it (the benchmark).
    confirm(10_000, 0.03, cameras, (250.0, 400.0, 550.0), photons=8000.0)
