"""The cubic-spline table: exact at its knots, in numpy and in torch, with each axis where it belongs."""

import numpy as np
import pytest

from smlm_bridge.errors import InputRejected
from smlm_bridge.psf.cubic_spline import CubicSpline


def cubic(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A polynomial without any symmetry, which cubic splines hold exactly."""
    return 1 + 0.1 * x - 0.03 * y**2 + 0.002 * x * y * z + 0.001 * z**3 - 0.004 * x**3 * y


def table(samples: int = 1) -> CubicSpline:
    z, y, x = np.meshgrid(np.arange(5), np.arange(12), np.arange(13), indexing="ij")
    return CubicSpline.of_stack(
        cubic(z, y, x), pixel_nm=100.0, z_first_nm=-40.0, z_step_nm=20.0, samples_per_px=samples
    )


def test_a_polynomial_is_held_exactly() -> None:
    made = table()
    assert made.coefficients.shape == (4, 11, 12, 64)
    assert made.centre == (5.5, 6.0)
    assert made.z_range_nm == (-40.0, 40.0)
    place = np.array([[230.0, 310.0, -13.0]])
    found = made.images(place, (4, 5))[0]
    rows, columns = np.arange(4) + 0.5, np.arange(5) + 0.5
    wanted = cubic(np.array(27.0 / 20), 5.5 + rows[:, None] - 3.1, 6.0 + columns - 2.3)
    np.testing.assert_allclose(found, wanted, rtol=2e-5)


def test_samples_within_a_pixel() -> None:
    place = np.array([[230.0, 310.0, 5.0]])
    found = table(2).images(place, (3, 3))[0]
    rows = np.arange(3) + 0.5
    wanted = cubic(np.array(45.0 / 20), 5.5 + 2 * (rows[:, None] - 3.1), 6.0 + 2 * (rows - 2.3))
    np.testing.assert_allclose(found, wanted, rtol=2e-5)


def test_beyond_the_table_is_dark_and_heights_stop() -> None:
    made = table()
    far = made.images([[3000.0, 3000.0, 0.0]], (4, 4))
    assert not far.any()
    ends = made.images([[200.0, 200.0, 40.0], [200.0, 200.0, 900.0]], (4, 4))
    np.testing.assert_array_equal(ends[0], ends[1])


def test_torch_sees_the_same() -> None:
    torch = pytest.importorskip("torch")
    from smlm_bridge.psf.cubic_spline_psf import CubicSplinePSF
    from smlm_bridge.psf.protocol import PSF

    made = table()
    psf = CubicSplinePSF(made)
    assert isinstance(psf, PSF)
    places = np.random.default_rng(0).uniform([100, 100, -60], [500, 500, 60], (40, 3))
    at = torch.as_tensor(places)
    np.testing.assert_allclose(psf.images(at, (6, 7)).numpy(), made.images(places, (6, 7)), atol=1e-12)
    assert psf.images(at[:0], (6, 7)).shape == (0, 6, 7)
    with pytest.raises(InputRejected, match="cannot be blurred"):
        psf.images(at, (6, 7), blur_nm=torch.ones(40))


def test_torch_differentiates() -> None:
    torch = pytest.importorskip("torch")
    from smlm_bridge.psf.cubic_spline_psf import CubicSplinePSF

    psf = CubicSplinePSF(table())
    at = torch.tensor([[231.0, 312.0, 7.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: psf.images(p, (3, 4)), at, eps=1e-3, atol=1e-5)


def test_any_psf_becomes_a_table() -> None:
    torch = pytest.importorskip("torch")
    from smlm_bridge.optics.gaussian import Gaussian
    from smlm_bridge.psf.cubic_spline_psf import tabulate
    from smlm_bridge.psf.gaussian import GaussianPSF

    psf = GaussianPSF(Gaussian((130.0, 150.0), (100.0, 500.0), (400.0, 400.0)), 110.0)
    made = tabulate(psf, z_range_nm=(0.0, 600.0), size_px=17)
    places = np.random.default_rng(0).uniform([600, 600, 0], [820, 820, 600], (30, 3))
    wanted = psf.images(torch.as_tensor(places), (13, 13)).numpy()
    np.testing.assert_allclose(made.images(places, (13, 13)), wanted, atol=2e-4)
    with pytest.raises(InputRejected, match="lower height first"):
        tabulate(psf, z_range_nm=(1.0, 0.0), size_px=17)


GOOD = {"centre": (1.0, 1.0), "z_first_nm": 0.0, "z_step_nm": 10.0, "pixel_nm": 100.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coefficients": np.zeros((2, 2, 2, 63))}, "one cubic polynomial"),
        ({"coefficients": np.full((2, 2, 2, 64), np.nan)}, "finite"),
        ({"centre": (5.0, 1.0)}, "outside"),
        ({"z_step_nm": -10.0}, "turned round"),
        ({"samples_per_px": 0}, "samples_per_px"),
    ],
)
def test_what_is_refused(change: dict[str, object], words: str) -> None:
    given = {"coefficients": np.zeros((2, 2, 2, 64))} | GOOD | change
    with pytest.raises(InputRejected, match=words):
        CubicSpline(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 9, 9), (9, 9)])
def test_stacks_that_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputRejected, match="4 or more along each axis"):
        CubicSpline.of_stack(np.zeros(shape), pixel_nm=100.0, z_first_nm=0.0, z_step_nm=10.0)
