"""Laws of optics that the PSFs obey, each against a computation of its own."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.propagate import defocused, intensity
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.gaussian import GaussianPSF
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.psf.resample import Grid, band_limited_weights
from smlm_bridge.psf.spline import SplinePSF

OPTICS = Optics(1.49, 1.518, 1.33, 670.0, 110.0, focus_nm=300.0)
MATCHED = Optics(1.40, 1.518, 1.518, 600.0, 100.0)
PUPIL = Pupil.flat(48, {6: 0.6, 7: 0.2})


def of(optics: Optics, pupil: Pupil = PUPIL, *, blur_nm: float = 0.0) -> PupilPSF:
    return PupilPSF.of(optics, pupil, blur_nm=blur_nm, dtype=torch.float64)


def at(x: float, y: float, z: float) -> torch.Tensor:
    return torch.tensor([[x, y, z]], dtype=torch.float64)


def random_pupil(seed: int, samples: int = 48) -> Pupil:
    generator = np.random.default_rng(seed)
    phase = gaussian_filter(generator.normal(size=(samples, samples)), 4.0) * 12
    return Pupil(phase, np.ones((samples, samples)))


@pytest.mark.parametrize("integrate", [True, False])
@pytest.mark.parametrize("model", ["vectorial", "scalar"])
def test_energy_over_a_whole_period(model: str, integrate: bool) -> None:
    """A pupil of N samples repeats after N wavelength / 2 NA; over one period Parseval's sum is exact."""
    period = 48 * OPTICS.wavelength_nm / (2 * OPTICS.numerical_aperture)
    pixels = round(period / 110)
    optics = dataclasses.replace(OPTICS, model=model, pixel_nm=period / pixels, pixel_integration=integrate)
    psf = of(optics)
    image = psf.images(at(0.5 * period, 0.5 * period, 450.0), (pixels, pixels))
    pupils = defocused(psf.field, torch.tensor([450.0], dtype=torch.float64))
    parseval = float(pupils.abs().square().sum() / psf.field.power(pupils))
    assert float(image.sum()) == pytest.approx(parseval, abs=1e-9 if not integrate else 1e-4)
    assert 0.985 < parseval < 1  # the rest is the light of a sharp edge that leaves the period


@pytest.mark.parametrize("model", ["vectorial", "scalar"])
def test_energy_is_one_on_a_large_camera(model: str) -> None:
    psf = of(dataclasses.replace(OPTICS, model=model), Pupil.flat(256))
    image = psf.images(at(250 * 110, 250 * 110, 300.0), (500, 500))
    assert 0.996 < float(image.sum()) < 1


@pytest.mark.parametrize("integrate", [True, False])
def test_an_emitter_is_seen_once_on_a_camera_wider_than_the_pupils_period(integrate: bool) -> None:
    """48 samples repeat after 10.8 um; the frame is 22 um wide."""
    psf = of(dataclasses.replace(OPTICS, pixel_integration=integrate))
    for place in (at(900.0, 21_000.0, 300.0), at(11_000.0, 11_000.0, 300.0)):
        image = psf.images(place, (200, 200))
        assert 0.9 < float(image.sum()) < 1  # some falls beyond the frame
        column, row = (int(value) // 110 for value in place[0, :2])
        near = image[0, max(0, row - 48) : row + 48, max(0, column - 48) : column + 48]
        assert float(near.sum()) > 0.999 * float(image.sum())
        assert float(image.min()) > -1e-6
        again, slopes = psf.derivatives(place, (200, 200))
        torch.testing.assert_close(again, image)
        assert float(slopes[0, :, (row + 98) % 200].abs().max()) <= 1e-3 * float(slopes.abs().max())


@given(
    x=st.floats(0, 2200),
    y=st.floats(0, 2200),
    z=st.floats(0, 700),
    blur=st.floats(0, 200),
    size=st.integers(1, 40),
)
@settings(max_examples=25, deadline=None)
def test_no_window_holds_more_than_all_the_light(
    x: float, y: float, z: float, blur: float, size: int
) -> None:
    blurs = torch.tensor([blur], dtype=torch.float64)
    for psf in (of(OPTICS), GaussianPSF(Gaussian((130.0, 150.0)), 110.0)):
        assert float(psf.images(at(x, y, z), (size, 40), blur_nm=blurs).sum()) <= 1 + 1e-4


def test_gaussian_sums_to_one_on_a_large_window() -> None:
    psf = GaussianPSF(Gaussian((130.0, 150.0), (0.0, 400.0), (300.0, 300.0)), 110.0)
    image = psf.images(at(3300, 3300, 200), (60, 60))
    assert float(image.sum()) == pytest.approx(1.0, abs=1e-9)


def test_gaussian_has_the_variance_it_says() -> None:
    psf = GaussianPSF(Gaussian((130.0, 150.0), (0.0, 400.0), (300.0, 250.0)), 110.0)
    blur = torch.tensor([90.0], dtype=torch.float64)
    image = psf.images(at(3311, 3322, 200), (60, 60), blur_nm=blur)[0]
    centres = (torch.arange(60, dtype=torch.float64) + 0.5) * 110
    for axis, (sigma, focus, depth) in enumerate(((130.0, 0.0, 300.0), (150.0, 400.0, 250.0))):
        marginal = image.sum(axis)
        mean = float((marginal * centres).sum())
        variance = float((marginal * centres**2).sum()) - mean**2
        # Integration over a pixel adds a twelfth of its width squared (Sheppard).
        wanted = sigma**2 * (1 + ((200 - focus) / depth) ** 2) + 90**2 + 110**2 / 12
        assert mean == pytest.approx((3311, 3322)[axis], abs=1e-6)
        assert variance == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("analyser", [None, 0.0])
def test_mirror_symmetry_of_a_flat_pupil(analyser: float | None) -> None:
    psf = of(dataclasses.replace(OPTICS, analyser_deg=analyser), Pupil.flat(48))
    image = psf.images(at(10.5 * 110, 10.5 * 110, 500.0), (21, 21))[0]
    assert torch.allclose(image, image.flip(0), atol=1e-12)
    assert torch.allclose(image, image.flip(1), atol=1e-12)
    assert torch.allclose(image, image.T, atol=1e-12) == (analyser is None)


def test_analyser_turned_by_90_degrees_transposes() -> None:
    pupil = random_pupil(1)
    turned = Pupil(pupil.phase_rad.T, pupil.amplitude.T)
    x, y = (of(dataclasses.replace(OPTICS, analyser_deg=a), p) for a, p in ((0.0, pupil), (90.0, turned)))
    image = x.images(at(1200, 1100, 250), (21, 23))[0]
    assert torch.allclose(image, y.images(at(1100, 1200, 250), (23, 21))[0].T, atol=1e-12)
    assert not torch.allclose(image, of(OPTICS, pupil).images(at(1200, 1100, 250), (21, 23))[0], rtol=0.02)


def test_two_crossed_analysers_are_no_analyser() -> None:
    """The photons of the two channels add up to those of the free camera, whatever the angle."""
    fields = [of(dataclasses.replace(OPTICS, analyser_deg=a)).field for a in (25.0, 115.0)]
    free = of(OPTICS).field
    power = [f.base.abs().square().sum(0) for f in (*fields, free)]
    assert torch.allclose(power[0] + power[1], power[2], atol=1e-12)


@pytest.mark.parametrize("model", ["vectorial", "scalar"])
def test_matched_index_without_aberration_is_symmetric_in_z(model: str) -> None:
    psf = of(dataclasses.replace(MATCHED, model=model), Pupil.flat(48))
    up, down = (psf.images(at(1040, 1070, z), (21, 21)) for z in (400.0, -400.0))
    assert torch.allclose(up, down, atol=1e-12)


def test_scalar_twin() -> None:
    """(phase, z) and (phase negated and turned by 180 degrees, -z) make one image (psf of a real amplitude)."""
    optics = dataclasses.replace(MATCHED, model="scalar")
    pupil = random_pupil(2)
    twin = Pupil(-pupil.phase_rad[::-1, ::-1], pupil.amplitude)
    one, other = of(optics, pupil), of(optics, twin)
    assert torch.allclose(
        one.images(at(1040, 1070, 350), (21, 21)), other.images(at(1040, 1070, -350), (21, 21))
    )
    assert not torch.allclose(
        one.images(at(1040, 1070, 350), (21, 21)), one.images(at(1040, 1070, -350), (21, 21))
    )


@pytest.mark.parametrize(("aperture", "pixel_nm"), [(1.49, 110.0), (1.49, 160.0), (0.9, 300.0)])
def test_pixels_integrate(aperture: float, pixel_nm: float) -> None:
    """Against Gauss-Legendre quadrature of the field's intensity, five nodes a pixel and axis."""
    psf = of(dataclasses.replace(OPTICS, numerical_aperture=aperture, pixel_nm=pixel_nm))
    count, z = 15, 333.0
    x, y = (count / 2 * pixel_nm + shift for shift in (23.0, -31.0))
    nodes, weights = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(5))
    points = ((torch.arange(count)[:, None] + 0.5 + nodes / 2) * pixel_nm).flatten()
    pupils = defocused(psf.field, torch.tensor([z], dtype=torch.float64))
    fine = intensity(psf.field, pupils, points - y, points - x)[0]
    share = (weights / 2 * pixel_nm).repeat(count)
    reference = (fine * share[:, None] * share).reshape(count, 5, count, 5).sum((1, 3))
    image = psf.images(at(x, y, z), (count, count))[0]
    assert float((image - reference).abs().max() / reference.max()) < 3e-4


@pytest.mark.parametrize("blur_nm", [15.0, 60.0, 150.0])
@pytest.mark.parametrize("integrate", [True, False])
def test_blur_is_a_gaussian_filter(blur_nm: float, integrate: bool) -> None:
    fine = dataclasses.replace(OPTICS, pixel_nm=110 / 11, pixel_integration=False)
    side, margin = 11, 6
    position = at((side / 2 + margin) * 110 + 23, (side / 2 + margin) * 110 - 31, 400)
    points = of(fine).images(position, (11 * (side + 2 * margin),) * 2)[0].numpy()
    points = gaussian_filter(points, blur_nm / fine.pixel_nm, truncate=6) * 11**2
    blocks = points.reshape(side + 2 * margin, 11, side + 2 * margin, 11)
    wanted = (blocks.mean((1, 3)) if integrate else blocks[:, 5, :, 5])[margin:-margin, margin:-margin]
    psf = of(dataclasses.replace(OPTICS, pixel_integration=integrate), blur_nm=blur_nm)
    position[:, :2] -= margin * 110
    image = psf.images(position, (side, side))[0].numpy()
    assert np.abs(image - wanted).max() / wanted.max() < 1e-3


@pytest.mark.parametrize("blur_nm", [0.0, 45.0])
@pytest.mark.parametrize("integrate", [True, False])
def test_filter_from_samples_to_pixels_is_blur_and_pixel(integrate: bool, blur_nm: float) -> None:
    """Up to the cut-off every wave comes through as the Gaussian and the pixel would pass it."""
    cut_off, pixel = 0.0279, 110.0
    grid = Grid.for_image(pixel_nm=pixel, cut_off_per_nm=cut_off, largest_blur_nm=blur_nm)
    sigma = torch.tensor([blur_nm], dtype=torch.float64)
    weights = band_limited_weights(grid, 5, blur_nm=sigma, integrate=integrate)[0]
    points, centres = grid.points(5, weights), (torch.arange(5, dtype=torch.float64) + 0.5) * pixel
    for k in np.linspace(0, cut_off, 9):
        passed = np.exp(-0.5 * (k * blur_nm) ** 2) * (np.sinc(k * pixel / 2 / np.pi) if integrate else 1.0)
        wanted = pixel * passed * torch.cos(k * centres + 0.4)
        torch.testing.assert_close(weights @ torch.cos(k * points + 0.4), wanted, rtol=0, atol=3e-4 * pixel)


@pytest.fixture(scope="module")
def spline() -> SplinePSF:
    return SplinePSF.tabulate(of(OPTICS), z_range_nm=(0.0, 900.0), reach_nm=2200.0)


@pytest.mark.parametrize("z", [0.0, 20.0, 333.0, 500.0, 899.0])
@pytest.mark.parametrize(("integrate", "blur_nm"), [(True, 0.0), (True, 80.0), (False, 80.0)])
def test_the_table_agrees_with_the_pupil(
    spline: SplinePSF, z: float, integrate: bool, blur_nm: float
) -> None:
    exact = dataclasses.replace(of(OPTICS), integrate=integrate, blur_nm=blur_nm)
    tabulated = dataclasses.replace(spline, integrate=integrate, blur_nm=blur_nm)
    position = at(1040, 1070, z)
    wanted, image = (psf.images(position, (19, 19)) for psf in (exact, tabulated))
    assert float((wanted - image).abs().max() / wanted.max()) < 1e-3


def test_the_table_agrees_without_any_smoothing(spline: SplinePSF) -> None:
    exact = dataclasses.replace(of(OPTICS), integrate=False)
    wanted = exact.images(at(1040, 1070, 333), (19, 19))
    image = dataclasses.replace(spline, integrate=False).images(at(1040, 1070, 333), (19, 19))
    assert float((wanted - image).abs().max() / wanted.max()) < 2e-3


def test_heights_beyond_the_table_take_its_end(spline: SplinePSF) -> None:
    assert torch.allclose(spline.images(at(900, 900, -500), (9, 9)), spline.images(at(900, 900, 0), (9, 9)))
    assert spline.z_range_nm == (0.0, 920.0)  # the next plane after 900
    beyond, end = (spline.images(at(900, 900, z), (9, 9)) for z in (5000.0, 920.0))
    assert torch.allclose(beyond, end, rtol=1e-4)


def test_the_table_goes_as_far_as_asked(spline: SplinePSF) -> None:
    assert spline.reach_nm >= 2200.0


def test_a_table_of_a_narrow_range() -> None:
    psf = SplinePSF.tabulate(of(OPTICS), z_range_nm=(300.0, 300.0), reach_nm=1000.0)
    wanted = of(OPTICS).images(at(500, 520, 300), (9, 9))
    assert float((psf.images(at(500, 520, 300), (9, 9)) - wanted).abs().max() / wanted.max()) < 1e-3
