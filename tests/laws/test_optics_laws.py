"""The optics against other programs, the energy balance of a dipole, and sums that must come out."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smlm_bridge.optics.bead import ball_transfer, bead_layers, bead_points, disc_transfer
from smlm_bridge.optics.dipole import Dipole
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.power import dipole_power, emitted_fraction
from smlm_bridge.optics.propagate import PupilField, pupil_field
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.optics.zernike import noll_to_nm, zernike_basis
from smlm_bridge.psf.bead import BeadPSF
from smlm_bridge.psf.pupil_psf import PupilPSF

WATER = Optics(1.49, 1.518, 1.33, 670.0, 110.0, pixel_integration=False)
HIGH = Optics(1.70, 1.78, 1.33, 680.0, 115.0, pixel_integration=False)
MATCHED = dataclasses.replace(WATER, sample_index=1.518)
MATCHED_HIGH = dataclasses.replace(HIGH, sample_index=1.78)
DRY = Optics(0.9, 1.0, 1.33, 520.0, 150.0)  # a sample denser than the immersion medium
SIDE = 65


def at(x: float, y: float, z: float) -> torch.Tensor:
    return torch.tensor([[x, y, z]], dtype=torch.float64)


@given(
    z=st.floats(0, 1500),
    sample=st.floats(1.3, 1.6),
    immersion=st.sampled_from([1.0, 1.33, 1.406, 1.518, 1.78]),
)
@settings(max_examples=30, deadline=None)
def test_what_a_dipole_emits_goes_up_or_down(z: float, sample: float, immersion: float) -> None:
    """The energy sum rule: only the right apodisation closes it."""
    power = dipole_power(Optics(0.8 * immersion, immersion, sample, 600.0, 100.0), z)
    for part in ("vertical", "horizontal"):
        lower, upper, total = (getattr(getattr(power, name), part) for name in ("lower", "upper", "total"))
        assert lower + upper == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize(
    ("optics", "z", "lower", "collected", "upper", "total"),
    [  # vertical and horizontal, units of the power in an unbounded medium (shared/specs/psf.md, 1.5)
        (WATER, 0, (1.0586, 0.7513), (1.0236, 0.7303), (0.3061, 0.3333), (1.3647, 1.0845)),
        (WATER, 50, (0.8578, 0.6501), (0.8396, 0.6392), (0.3126, 0.3600), (1.1703, 1.0100)),
        (WATER, 670, (0.4478, 0.4543), (0.4478, 0.4543), (0.5525, 0.5508), (1.0002, 1.0051)),
        (HIGH, 0, (1.5826, 0.9756), (1.5011, 0.9194), (0.3037, 0.2639), (1.8863, 1.2395)),
        (HIGH, 200, (0.5872, 0.4775), (0.5859, 0.4765), (0.3959, 0.5574), (0.9831, 1.0349)),
        (MATCHED, 123, (0.5, 0.5), (0.3584, 0.4274), (0.5, 0.5), (1.0, 1.0)),
    ],
)
def test_powers_of_a_dipole(optics: Optics, z: float, lower, collected, upper, total) -> None:
    power = dipole_power(optics, z)
    for found, wanted in zip(
        (power.lower, power.collected, power.upper, power.total),
        (lower, collected, upper, total),
        strict=True,
    ):
        assert (found.vertical, found.horizontal) == pytest.approx(wanted, abs=6e-5)


def test_collected_share_of_the_emitted_light() -> None:
    assert emitted_fraction(WATER, 0.0) == pytest.approx(0.703, abs=6e-4)
    assert emitted_fraction(HIGH, 0.0) == pytest.approx(0.765, abs=6e-4)
    assert emitted_fraction(DRY, 0.0) < 0.3


@pytest.mark.parametrize("z", [0.0, 150.0, 600.0])
@pytest.mark.parametrize("optics", [WATER, HIGH], ids=["NA1.49", "NA1.70"])
def test_the_pupil_holds_the_collected_power(optics: Optics, z: float) -> None:
    """The sampled pupil against the quadrature: what a PSF normalises by."""
    field = pupil_field(optics, Pupil.flat(512), dtype=torch.float64)
    heights = torch.tensor([z, 900.0], dtype=torch.float64)
    ratio = field.power_at(heights)[0]
    wanted = dipole_power(optics, z).collected.free / dipole_power(optics, 900.0).collected.free
    assert float(ratio[0] / ratio[1]) == pytest.approx(wanted, rel=2e-3)


def psf_generator_images(optics: Optics, step_nm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, H, W) intensities of the components of the focused field, z last, for light polarised along x and y.

    By reciprocity the images of dipoles along x, y, z through an analyser along x and y. Read as in
    shared/specs/psf.md, 1.2: its pixels are n / (n - 1) wide, its planes -step and +step.
    """
    module = pytest.importorskip("psf_generator.propagators", reason="psf-generator is not installed")
    index, fields = optics.immersion_index, []
    for polarisation in ((1.0, 0.0), (0.0, 1.0)):
        propagator = module.VectorialSphericalPropagator(
            n_pix_pupil=257, n_pix_psf=SIDE, e0x=polarisation[0], e0y=polarisation[1],
            na=optics.numerical_aperture,
            wavelength=optics.wavelength_nm, pix_size=optics.pixel_nm * (SIDE - 1) / SIDE, n_defocus=2,
            defocus_step=step_nm, apod_factor=True, n_i=index, n_i0=index, n_g=index, n_g0=index,
        )  # fmt: skip
        fields.append(propagator.compute_focus_field()[1].abs().square())
    return fields[0].double(), fields[1].double()


def relative(image: torch.Tensor, reference: torch.Tensor) -> float:
    image, reference = image / image.sum(), reference / reference.sum()
    return float((image - reference).norm() / reference.norm())


@pytest.mark.parametrize("focus", [0.0, 1000.0])
@pytest.mark.parametrize("optics", [MATCHED, MATCHED_HIGH], ids=["NA1.49", "NA1.70"])
def test_psf_generator_in_a_matched_medium(optics: Optics, focus: float) -> None:
    """Within 1e-3 at 512 samples."""
    by_x, by_y = psf_generator_images(optics, focus)
    psf = PupilPSF.of(dataclasses.replace(optics, focus_nm=focus), Pupil.flat(512), dtype=torch.float64)
    centre = at(SIDE / 2 * optics.pixel_nm, SIDE / 2 * optics.pixel_nm, 0.0)
    assert relative(psf.images(centre, (SIDE, SIDE))[0], (by_x + by_y).sum(0)) < 1e-3


@pytest.mark.parametrize(
    ("analyser", "dipole", "seen"),
    [
        (0.0, None, lambda x, y: x.sum(0)),
        (90.0, None, lambda x, y: y.sum(0)),
        (None, (90.0, 0.0), lambda x, y: x[0] + y[0]),
        (None, (90.0, 90.0), lambda x, y: x[1] + y[1]),
        (None, (0.0, 0.0), lambda x, y: x[2] + y[2]),
        (90.0, (90.0, 0.0), lambda x, y: y[0]),
    ],
)
def test_psf_generator_with_analyser_and_fixed_dipoles(analyser, dipole, seen) -> None:
    reference = seen(*psf_generator_images(MATCHED, 400.0))
    optics = dataclasses.replace(MATCHED, focus_nm=400.0, analyser_deg=analyser)
    fixed = None if dipole is None else Dipole.fixed(polar_deg=dipole[0], azimuth_deg=dipole[1])
    psf = PupilPSF.of(optics, Pupil.flat(512), dtype=torch.float64, dipole=fixed)
    image = psf.images(at(SIDE / 2 * 110, SIDE / 2 * 110, 0.0), (SIDE, SIDE))[0]
    assert relative(image, reference) < 1e-3


def test_zernikes_are_those_of_the_package_zernike() -> None:
    package = pytest.importorskip("zernike", reason="the package zernike is not installed")
    order = 10
    theirs = package.RZern(order)
    axis = np.linspace(-0.7, 0.7, 41)
    x, y = np.meshgrid(axis, axis)
    theirs.make_cart_grid(x, y)
    ours = zernike_basis(list(range(1, theirs.nk + 1)), x, y)
    assert theirs.nk == 66
    for noll in range(1, 67):
        coefficients = np.zeros(theirs.nk)
        coefficients[noll - 1] = 1.0
        np.testing.assert_allclose(ours[noll - 1], theirs.eval_grid(coefficients, matrix=True), atol=1e-12)
        n, m = noll_to_nm(noll)
        assert theirs.nm2noll(n, m) == noll


def emitted(dipole: Dipole | None, optics: Optics = WATER) -> tuple[PupilField, torch.Tensor]:
    field = pupil_field(optics, Pupil.flat(48, {6: 0.4, 7: 0.3}), dtype=torch.float64, dipole=dipole)
    psf = PupilPSF(field, optics.pixel_nm, integrate=False)
    image = psf.images(at(1200.0, 1130.0, 150.0), (21, 23))[0]
    return field, image * field.power_at(torch.tensor([150.0], dtype=torch.float64))[0]


@pytest.mark.parametrize("analyser", [None, 30.0])
def test_three_fixed_dipoles_are_a_free_one(analyser: float | None) -> None:
    optics = dataclasses.replace(WATER, analyser_deg=analyser)
    turned = [Dipole.fixed(polar_deg=p, azimuth_deg=a) for p, a in ((90, 20), (90, 110), (0, 0))]
    total = torch.stack([emitted(dipole, optics)[1] for dipole in turned]).sum(0)
    for free in (None, Dipole.free(), Dipole.partly_mobile(polar_deg=40, azimuth_deg=7, mobility=1.0)):
        torch.testing.assert_close(total / 3, emitted(free, optics)[1], rtol=1e-9, atol=1e-15)


@given(polar=st.floats(0, 180), azimuth=st.floats(-180, 180), mobility=st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_partial_mobility_mixes_fixed_and_free(polar: float, azimuth: float, mobility: float) -> None:
    fixed = emitted(Dipole.fixed(polar_deg=polar, azimuth_deg=azimuth))[1]
    wobbling = Dipole.partly_mobile(polar_deg=polar, azimuth_deg=azimuth, mobility=mobility)
    mixed = (1 - mobility) * fixed + mobility * emitted(None)[1]
    torch.testing.assert_close(emitted(wobbling)[1], mixed, rtol=1e-6, atol=1e-12)


def test_a_dipole_and_its_opposite_are_one() -> None:
    one = emitted(Dipole.fixed(polar_deg=50, azimuth_deg=20))[1]
    other = emitted(Dipole.fixed(polar_deg=130, azimuth_deg=200))[1]
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-15)


def test_a_tilted_dipole_looks_displaced() -> None:
    """Off focus the lobe of a tilted dipole leans: the reason to model it (Enderlein et al. 2006)."""
    optics = dataclasses.replace(MATCHED, focus_nm=300.0)
    psf = PupilPSF.of(
        optics, Pupil.flat(64), dipole=Dipole.fixed(polar_deg=45, azimuth_deg=0), dtype=torch.float64
    )
    image = psf.images(at(10.5 * 110, 10.5 * 110, 0.0), (21, 21))[0]
    axis = (torch.arange(21, dtype=torch.float64) - 10) * 110
    assert abs(float((image.sum(0) * axis).sum() / image.sum())) > 20
    assert abs(float((image.sum(1) * axis).sum() / image.sum())) < 1e-6


def test_number_of_fields() -> None:
    tilted = {"polar_deg": 40.0, "azimuth_deg": 20.0}
    seen = dataclasses.replace(WATER, analyser_deg=10.0)
    for dipole, free, analysed in (
        (None, 5, 3),
        (Dipole.slow(WATER, z_nm=0.0), 5, 3),
        (Dipole.fixed(**tilted), 2, 1),
        (Dipole.partly_mobile(**tilted, mobility=0.4), 6, 3),
    ):
        assert emitted(dipole)[0].base.shape[0] == free
        assert emitted(dipole, seen)[0].base.shape[0] == analysed


def test_slow_rotation_weighs_by_the_inverse_power() -> None:
    moments = np.asarray(Dipole.slow(HIGH, z_nm=0.0).moments)
    assert np.trace(moments) == pytest.approx(1)
    assert moments[0, 0] / moments[2, 2] == pytest.approx(1.8863 / 1.2395, rel=1e-4)
    np.testing.assert_allclose(Dipole.slow(MATCHED, z_nm=0.0).moments, np.eye(3) / 3, atol=1e-9)


@pytest.mark.parametrize(("diameter", "bar"), [(100.0, 2e-4), (200.0, 2e-3)])
def test_a_bead_is_a_ball_in_three_dimensions(diameter: float, bar: float) -> None:
    """In a matched medium, where depth and focus are one, against the ball's transfer function in 3-D."""
    pixel, side, planes = 50.0, 96, 48
    optics = Optics(1.2, 1.518, 1.518, 600.0, pixel, pixel_integration=False)
    point = PupilPSF.of(optics, Pupil.flat(96, {6: 0.5, 7: 0.3}), dtype=torch.float64)
    z = (torch.arange(planes, dtype=torch.float64) - planes / 2) * 50.0
    xyz = torch.stack([torch.full_like(z, side / 2 * pixel)] * 2 + [z], dim=1)
    stack = point.images(xyz, (side, side)).numpy()
    frequencies = np.meshgrid(
        np.fft.fftfreq(planes, 50.0), np.fft.fftfreq(side, pixel), np.fft.fftfreq(side, pixel), indexing="ij"
    )
    transfer = ball_transfer(np.sqrt(sum(f**2 for f in frequencies)), diameter)
    filtered = np.fft.ifftn(np.fft.fftn(stack) * transfer).real
    bead = BeadPSF(point, diameter)
    for plane in (19, 24, 30):
        found = bead.images(xyz[plane : plane + 1], (side, side))[0].numpy()[28:-28, 28:-28]
        wanted = filtered[plane][28:-28, 28:-28]
        assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < bar
        plain = stack[plane][28:-28, 28:-28]
        assert np.linalg.norm(plain - wanted) / np.linalg.norm(wanted) > 5 * bar


def test_the_lower_side_of_a_bead_on_the_coverslip_is_brighter() -> None:
    psf = PupilPSF.of(WATER, Pupil.flat(64), dtype=torch.float64)
    seen = BeadPSF(psf, 200.0).images(at(1155, 1155, 100.0), (21, 21))[0]
    offsets, shares = bead_points(200.0)
    points = at(1155, 1155, 100.0) + torch.as_tensor(offsets)
    even = torch.einsum("p,pyx->yx", torch.as_tensor(shares), psf.images(points, (21, 21)))
    assert float((seen - even).norm() / even.norm()) > 0.005
    assert float(seen.sum()) == pytest.approx(float(even.sum()), rel=0.02)


def test_layers_and_points_have_the_moments_of_a_ball() -> None:
    offsets, shares = bead_points(180.0)
    assert shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(shares @ offsets, 0, atol=1e-12)
    np.testing.assert_allclose(shares @ offsets**2, 180**2 / 20)  # a ball's variance along any axis
    np.testing.assert_allclose(shares @ offsets**4, 3 * 90**4 / 35)
    heights, shares, radii = bead_layers(180.0, 3)
    assert shares @ (heights**2) == pytest.approx(180**2 / 20)
    assert shares @ (radii**2 / 4) == pytest.approx(180**2 / 20)
    assert float(disc_transfer(np.array([0.0]), 90.0)[0]) == 1.0
    # Seen from the side, the discs together are the ball.
    f = np.array([0.001, 0.002])
    heights, shares, radii = bead_layers(180.0, 8)
    through = sum(share * disc_transfer(f, radius) for share, radius in zip(shares, radii, strict=True))
    np.testing.assert_allclose(through, ball_transfer(f, 180.0), rtol=1e-6)


def test_ball_transfer_is_the_mean_over_the_ball() -> None:
    f = 0.002
    u = math.pi * f * 150.0
    assert float(ball_transfer(np.array([f]), 150.0)[0]) == pytest.approx(
        3 * (math.sin(u) - u * math.cos(u)) / u**3
    )
    small = ball_transfer(np.array([1e-9, 6e-6, 7e-6]), 150.0)
    np.testing.assert_allclose(small, 1.0, atol=1e-5)
