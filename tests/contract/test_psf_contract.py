"""What every PSF promises (psf.protocol), held against every PSF."""

import dataclasses

import pytest
import torch

from smlm_bridge.optics.dipole import Dipole
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.bead import BeadPSF
from smlm_bridge.psf.gaussian import GaussianPSF
from smlm_bridge.psf.protocol import PSF, AnalyticPSF
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.psf.spectrum import SumPSF, spectral_psf
from smlm_bridge.psf.spline import SplinePSF

PIXEL = 110.0
SHAPE = (23, 27)
OPTICS = Optics(1.49, 1.518, 1.33, 670.0, PIXEL, focus_nm=300.0)
PUPIL = Pupil.flat(40, {6: 0.6, 7: 0.2})

WOBBLING = Dipole.partly_mobile(polar_deg=60.0, azimuth_deg=25.0, mobility=0.3)


def of(optics: Optics, *, blur_nm: float = 0.0) -> PupilPSF:
    return PupilPSF.of(optics, PUPIL, blur_nm=blur_nm, dtype=torch.float64)


def table(psf: PupilPSF) -> SplinePSF:
    return SplinePSF.tabulate(psf, z_range_nm=(0.0, 800.0), reach_nm=3300.0)


MAKERS = {
    "gaussian": lambda: GaussianPSF(Gaussian((130.0, 150.0), (100.0, 500.0), (400.0, 400.0)), PIXEL),
    "gaussian-sampled": lambda: GaussianPSF(Gaussian((130.0, 150.0)), PIXEL, 40.0, integrate=False),
    "vectorial": lambda: of(OPTICS),
    "vectorial-blurred": lambda: of(OPTICS, blur_nm=60.0),
    "vectorial-sampled": lambda: of(dataclasses.replace(OPTICS, pixel_integration=False)),
    "analyser": lambda: of(dataclasses.replace(OPTICS, analyser_deg=30.0)),
    "scalar": lambda: of(dataclasses.replace(OPTICS, model="scalar", supercritical=False)),
    "scalar-fresnel": lambda: of(dataclasses.replace(OPTICS, model="scalar", apodisation="fresnel")),
    "dipole": lambda: PupilPSF.of(OPTICS, PUPIL, dipole=WOBBLING, dtype=torch.float64),
    "spectrum": lambda: spectral_psf(OPTICS, PUPIL, {640.0: 1.0, 680.0: 2.0}, dtype=torch.float64),
    "bead": lambda: BeadPSF(of(dataclasses.replace(OPTICS, pixel_integration=False)), 100.0, layers=2),
    "spline": lambda: table(of(OPTICS)),
    "spline-sampled": lambda: table(of(dataclasses.replace(OPTICS, pixel_integration=False), blur_nm=60.0)),
}


@pytest.fixture(scope="module", params=MAKERS)
def psf(request: pytest.FixtureRequest) -> PSF:
    return MAKERS[request.param]()


def emitters(*rows: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


CENTRE = (13.6 * PIXEL, 11.3 * PIXEL, 333.0)


def test_is_a_psf(psf: PSF) -> None:
    assert isinstance(psf, PSF)
    assert psf.pixel_nm == PIXEL


def test_shape_and_no_emitters(psf: PSF) -> None:
    assert psf.images(emitters(CENTRE, CENTRE), SHAPE).shape == (2, *SHAPE)
    assert psf.images(torch.zeros((0, 3), dtype=torch.float64), SHAPE).shape == (0, *SHAPE)
    blur = torch.zeros(0, dtype=torch.float64)
    assert psf.images(torch.zeros((0, 3), dtype=torch.float64), SHAPE, blur_nm=blur).shape == (0, *SHAPE)


def test_single_precision_agrees_with_double(psf: PSF) -> None:
    position = emitters(CENTRE)
    double, single = psf.images(position, SHAPE), psf.images(position.float(), SHAPE)
    assert float((double - single).abs().max() / double.max()) < 1e-4


def test_a_fraction_of_the_light_lies_in_the_window(psf: PSF) -> None:
    total = float(psf.images(emitters(CENTRE), SHAPE).sum())
    assert 0.8 < total <= 1 + 1e-4


def test_practically_never_negative(psf: PSF) -> None:
    image = psf.images(emitters(CENTRE), SHAPE)
    assert float(image.min()) > -1e-4 * float(image.max())


def test_emitters_do_not_see_each_other(psf: PSF) -> None:
    many = emitters(CENTRE, (500.0, 700.0, 100.0), (2000.0, 300.0, 640.0))
    together = psf.images(many, SHAPE)
    alone = torch.cat([psf.images(row[None], SHAPE) for row in many])
    assert torch.allclose(together, alone, atol=1e-7)


def test_moving_by_a_pixel_moves_the_image_by_a_pixel(psf: PSF) -> None:
    x, y, z = CENTRE
    image = psf.images(emitters(CENTRE), SHAPE)[0]
    moved = psf.images(emitters((x + 3 * PIXEL, y - 2 * PIXEL, z)), SHAPE)[0]
    assert torch.allclose(moved[:-2, 3:], image[2:, :-3], rtol=1e-5, atol=1e-8)


def test_a_window_is_cut_out_of_a_larger_one(psf: PSF) -> None:
    small = psf.images(emitters(CENTRE), (SHAPE[0] - 5, SHAPE[1] - 4))[0]
    assert torch.allclose(small, psf.images(emitters(CENTRE), SHAPE)[0, :-5, :-4], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gradient_is_the_finite_difference(psf: PSF, axis: int) -> None:
    weights = torch.linspace(0, 3, SHAPE[0] * SHAPE[1], dtype=torch.float64).sin().reshape(SHAPE)
    position = emitters(CENTRE).requires_grad_()
    (psf.images(position, SHAPE)[0] * weights).sum().backward()
    assert position.grad is not None
    step = torch.zeros((1, 3), dtype=torch.float64)
    step[0, axis] = 0.5
    with torch.no_grad():
        up, down = (psf.images(position + s * step, SHAPE)[0] for s in (1, -1))
    assert float(position.grad[0, axis]) == pytest.approx(
        float(((up - down) * weights).sum()), rel=1e-4, abs=1e-9
    )


def test_gradient_by_blur_is_the_finite_difference(psf: PSF) -> None:
    blur = torch.tensor([70.0], dtype=torch.float64, requires_grad=True)
    psf.images(emitters(CENTRE), SHAPE, blur_nm=blur)[0, 11, 13].backward()
    assert blur.grad is not None
    with torch.no_grad():
        up, down = (psf.images(emitters(CENTRE), SHAPE, blur_nm=blur + s)[0, 11, 13] for s in (0.5, -0.5))
    assert float(blur.grad[0]) == pytest.approx(float(up - down), rel=1e-4)


def test_no_blur_is_the_same_as_a_blur_of_zero(psf: PSF) -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    plain, blurred = psf.images(emitters(CENTRE), SHAPE), psf.images(emitters(CENTRE), SHAPE, blur_nm=zero)
    assert float((plain - blurred).abs().max() / plain.max()) < 1e-3


def test_blurs_add_in_quadrature(psf: PSF) -> None:
    if isinstance(psf, SumPSF | BeadPSF):
        pytest.skip("made of PSFs, has no blur of its own")
    both = dataclasses.replace(psf, blur_nm=50.0)
    image = both.images(emitters(CENTRE), SHAPE, blur_nm=torch.tensor([120.0], dtype=torch.float64))
    once = dataclasses.replace(psf, blur_nm=130.0).images(emitters(CENTRE), SHAPE)
    assert float((image - once).abs().max() / once.max()) < 2e-4


@pytest.mark.parametrize("blurred", [False, True])
@pytest.mark.parametrize("z", [333.0, 0.0, -50.0])
def test_analytic_derivatives_are_those_of_autodiff(psf: PSF, z: float, blurred: bool) -> None:
    if not isinstance(psf, AnalyticPSF):
        pytest.skip("has no analytic derivatives")
    from smlm_bridge.crlb import differentiated

    position = emitters((*CENTRE[:2], z), (800.0, 900.0, z + 40.0))
    blur = torch.tensor([70.0, 30.0], dtype=torch.float64) if blurred else None
    fraction, slopes = psf.derivatives(position, SHAPE, blur_nm=blur)
    wanted, by_autodiff = differentiated(psf, position, SHAPE, blur_nm=blur)
    torch.testing.assert_close(fraction, wanted, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(slopes, by_autodiff, rtol=1e-7, atol=1e-12)
