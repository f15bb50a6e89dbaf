"""The transform by parity is the plain one, whatever the numbers of samples and points, and who differentiates."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from smlm_bridge.optics.dipole import Dipole  # noqa: E402
from smlm_bridge.optics.microscope import Optics  # noqa: E402
from smlm_bridge.optics.propagate import defocused, intensity  # noqa: E402
from smlm_bridge.optics.pupil import Pupil  # noqa: E402
from smlm_bridge.psf.pupil_psf import PupilPSF, is_plain  # noqa: E402

WATER = Optics(1.49, 1.518, 1.33, 670.0, 110.0, focus_nm=300.0)
# Nothing here is symmetric, so that a swapped sign or axis shows.
ABERRATED = {5: -0.4, 6: 0.6, 7: 0.5, 9: 0.3, 10: -0.2}
PLACES = [[900.0, 1300.0, 250.0], [1500.0, 700.0, -120.0], [1000.0, 1000.0, 0.0]]


def psf_of(samples: int, *, integrate: bool, dtype: object, **changes: object) -> PupilPSF:
    optics = replace(WATER, pixel_integration=integrate, **changes)
    return PupilPSF.of(optics, Pupil.flat(samples, ABERRATED), dtype=dtype)


@pytest.mark.parametrize("samples", [64, 51])
@pytest.mark.parametrize("shape", [(21, 21), (20, 13), (1, 2)])
@pytest.mark.parametrize("integrate", [False, True])
def test_images_are_those_of_the_plain_transform(
    samples: int, shape: tuple[int, int], integrate: bool
) -> None:
    places = torch.tensor(PLACES)
    for dtype, bar in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        psf = psf_of(samples, integrate=integrate, dtype=dtype)
        plain, _ = psf.derivatives(places.to(dtype), shape)
        fast = psf.images(places.to(dtype), shape)
        assert fast.dtype == dtype
        assert (fast - plain).abs().max() <= bar * plain.max()


@pytest.mark.parametrize(
    "changes",
    [{"model": "scalar"}, {"analyser_deg": 30.0}, {"sample_index": 1.518}, {"supercritical": False}],
)
def test_every_number_of_fields(changes: dict[str, object]) -> None:
    psf = psf_of(64, integrate=True, dtype=torch.float64, **changes)
    places = torch.tensor(PLACES, dtype=torch.float64)
    plain, _ = psf.derivatives(places, (15, 17))
    assert (psf.images(places, (15, 17)) - plain).abs().max() <= 1e-13 * plain.max()


def test_fixed_dipoles() -> None:
    dipole = Dipole.partly_mobile(polar_deg=60.0, azimuth_deg=20.0, mobility=0.4)
    psf = PupilPSF.of(WATER, Pupil.flat(48, ABERRATED), dtype=torch.float64, dipole=dipole)
    places = torch.tensor(PLACES, dtype=torch.float64)
    plain, _ = psf.derivatives(places, (15, 15))
    assert (psf.images(places, (15, 15)) - plain).abs().max() <= 1e-13 * plain.max()


def test_points_are_those_of_the_field_itself() -> None:
    """Against the sum over the pupil at single points, without any window."""
    psf = psf_of(64, integrate=False, dtype=torch.float64)
    x, y, z = PLACES[0]
    steps = (torch.arange(15, dtype=torch.float64) + 0.5) * 110.0
    pupils = defocused(psf.field, torch.tensor([z], dtype=torch.float64))
    density = intensity(psf.field, pupils, steps - y, steps - x)[0]
    image = psf.images(torch.tensor([[x, y, z]], dtype=torch.float64), (15, 15))[0]
    torch.testing.assert_close(image, density * 110.0**2, rtol=1e-9, atol=1e-12 * float(image.max()))


def test_integrating_pixels_are_their_mean_over_many_points() -> None:
    """Gauss-Legendre over each pixel, six points an axis: beyond rounding for a band-limited image."""
    nodes, weights = torch.from_numpy(np.array(np.polynomial.legendre.leggauss(6)))
    psf = psf_of(64, integrate=True, dtype=torch.float64)
    pupils = defocused(psf.field, torch.tensor([250.0], dtype=torch.float64))
    centres = (torch.arange(15, dtype=torch.float64) + 0.5) * 110.0
    points = (centres[:, None] + nodes * 55.0).flatten()
    density = intensity(psf.field, pupils, points - 1300.0, points - 900.0)[0].view(15, 6, 15, 6)
    mean = torch.einsum("iajb,a,b->ij", density, weights / 2, weights / 2) * 110.0**2
    image = psf.images(torch.tensor([[900.0, 1300.0, 250.0]], dtype=torch.float64), (15, 15))[0]
    assert (image - mean).abs().max() <= 1e-4 * mean.max()


def test_gradients_go_the_plain_way() -> None:
    psf = psf_of(48, integrate=True, dtype=torch.float64)
    places = torch.tensor(PLACES, dtype=torch.float64)
    assert is_plain(places)
    wanted = places.clone().requires_grad_()
    assert not is_plain(wanted)
    with torch.no_grad():
        assert is_plain(wanted)
    psf.images(wanted, (9, 9)).sum().backward()
    _, slopes = psf.derivatives(places, (9, 9))
    torch.testing.assert_close(wanted.grad, slopes.sum((2, 3)), rtol=1e-7, atol=1e-12)
    seen = []
    torch.func.jvp(lambda p: seen.append(is_plain(p)) or p, (places,), (places,))
    assert seen == [False]
    with torch.autograd.forward_ad.dual_level():
        assert not is_plain(torch.autograd.forward_ad.make_dual(places, places))
