"""Optics, Zernikes, and the pupil's field against an independent Bessel reference."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import jv

from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.bead import bead_layers
from smlm_bridge.optics.dipole import Dipole
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.interface import scalar_amplitude, slip_phase
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.propagate import defocused, pupil_field
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.optics.zernike import noll_to_nm, zernike, zernike_basis
from smlm_bridge.psf import pupil_psf
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.psf.sampling import pupil_samples, sampling_error
from smlm_bridge.psf.spectrum import SumPSF, spectral_psf

NOLL_TABLE = {
    1: (0, 0), 2: (1, 1), 3: (1, -1), 4: (2, 0), 5: (2, -2), 6: (2, 2), 7: (3, -1), 8: (3, 1), 9: (3, -3),
    10: (3, 3), 11: (4, 0), 12: (4, 2), 13: (4, -2), 14: (4, 4), 15: (4, -4), 16: (5, 1), 22: (6, 0),
    37: (8, 0), 56: (10, 0),
}  # fmt: skip
S1 = Optics(1.49, 1.518, 1.33, 670.0, 110.0, pixel_integration=False)
S2 = Optics(1.70, 1.78, 1.33, 680.0, 115.0, pixel_integration=False)


@pytest.mark.parametrize(("noll", "nm"), NOLL_TABLE.items())
def test_noll_index(noll: int, nm: tuple[int, int]) -> None:
    assert noll_to_nm(noll) == nm


def test_noll_index_enumerates_every_mode_once() -> None:
    modes = [noll_to_nm(j) for j in range(1, 67)]
    assert len(set(modes)) == 66
    assert sorted({n for n, _ in modes}) == list(range(11))
    with pytest.raises(ValueError, match="count from 1"):
        noll_to_nm(0)


def test_zernikes_are_orthonormal_over_the_disk() -> None:
    """By a quadrature that is exact for polynomials: Gauss-Legendre in rho squared, equal steps of the angle."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    rho = np.sqrt((nodes + 1) / 2)[:, None]
    angle = np.arange(40) * 2 * np.pi / 40
    basis = zernike_basis(list(range(1, 67)), rho * np.cos(angle), rho * np.sin(angle))
    gram = np.einsum("iab,jab,a->ij", basis, basis, weights / 2, optimize=True) / 40
    np.testing.assert_allclose(gram, np.eye(66), atol=1e-12)


@pytest.mark.parametrize(
    ("noll", "polar"),
    [
        (4, lambda r, t: np.sqrt(3) * (2 * r**2 - 1)),
        (5, lambda r, t: np.sqrt(6) * r**2 * np.sin(2 * t)),
        (6, lambda r, t: np.sqrt(6) * r**2 * np.cos(2 * t)),
        (7, lambda r, t: np.sqrt(8) * (3 * r**3 - 2 * r) * np.sin(t)),
        (10, lambda r, t: np.sqrt(8) * r**3 * np.cos(3 * t)),
        (11, lambda r, t: np.sqrt(5) * (6 * r**4 - 6 * r**2 + 1)),
        (12, lambda r, t: np.sqrt(10) * (4 * r**4 - 3 * r**2) * np.cos(2 * t)),
    ],
)
def test_zernikes_are_those_of_the_literature(noll: int, polar) -> None:
    r, t = np.linspace(0, 1, 7)[:, None], np.linspace(0, 6, 9)
    wanted = np.broadcast_to(polar(r, t), (7, 9))
    np.testing.assert_allclose(zernike(noll, r * np.cos(t), r * np.sin(t)), wanted, atol=1e-12)


def bessel(
    r: NDArray[np.float64], optics: Optics, *, z0: float, zs: float
) -> tuple[NDArray[np.float64], float]:
    """Intensity of a freely rotating dipole behind an interface at radii r, and its integral over the plane.

    By Gauss-Legendre quadrature of I0, I1, I2, with 60 nodes below and 60 beyond the critical angle.
    """
    nodes, weights = np.polynomial.legendre.leggauss(60)
    nodes, weights = (nodes + 1) / 2, weights / 2
    n_m, n_i, k0 = optics.sample_index, optics.immersion_index, optics.wavenumber_per_nm
    edge = min(optics.numerical_aperture, n_m)
    angle = np.arcsin(edge / n_m)
    parts = [(n_m * np.sin(nodes * angle), weights * angle * n_m * np.cos(nodes * angle))]
    if optics.numerical_aperture > n_m:
        beyond = optics.numerical_aperture - n_m
        parts.append((n_m + beyond * nodes**2, weights * 2 * beyond * nodes))
    s, ds = (np.concatenate(part) for part in zip(*parts, strict=True))
    cos_m = np.sqrt((1 - (s / n_m) ** 2).astype(complex))
    cos_i = np.sqrt(1 - (s / n_i) ** 2)
    t_p = 2 * n_m * cos_m / (n_m * cos_i + n_i * cos_m)
    t_s = 2 * n_m * cos_m / (n_m * cos_m + n_i * cos_i)
    apodisation = n_i / n_m * np.sqrt(cos_i) / cos_m
    a_p, a_s, b = apodisation * t_p * cos_m, apodisation * t_s, apodisation * t_p * s / n_m
    rest = np.exp(1j * k0 * (n_m * cos_m * z0 - n_i * cos_i * zs)) * s * ds
    u = k0 * np.multiply.outer(r, s)
    i_0, i_1, i_2 = (
        jv(0, u) @ (rest * (a_p + a_s) / 2),
        jv(1, u) @ (rest * b),
        jv(2, u) @ (rest * (a_p - a_s) / 2),
    )
    decay = np.exp(-2 * k0 * n_m * cos_m.imag * z0) * s * ds
    power = (np.abs(a_p) ** 2 + np.abs(a_s) ** 2 + np.abs(b) ** 2) @ decay * 2 * np.pi / k0**2
    return 2 * np.abs(i_0) ** 2 + 2 * np.abs(i_2) ** 2 + np.abs(i_1) ** 2, float(power)


def difference_from_bessel(
    optics: Optics, samples: int, *, z0: float, zs: float, unit_sum: bool = True
) -> float:
    """Normalised RMS difference over 65 x 65 pixels, of unit sums or of absolute fractions."""
    pixel = optics.pixel_nm
    y, x = np.mgrid[-32:33, -32:33] * pixel
    radii, index = np.unique(np.hypot(y, x).round(6), return_inverse=True)
    density, power = bessel(radii, optics, z0=z0, zs=zs)
    reference = (density / power)[index].reshape(65, 65) * pixel**2
    psf = PupilPSF.of(dataclasses.replace(optics, focus_nm=zs), Pupil.flat(samples), dtype=torch.float64)
    image = psf.images(torch.tensor([[32.5 * pixel, 32.5 * pixel, z0]]), (65, 65))[0].numpy()
    if unit_sum:
        reference, image = reference / reference.sum(), image / image.sum()
    return float(np.linalg.norm(image - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("optics", [S1, S2], ids=["NA1.49", "NA1.70"])
@pytest.mark.parametrize("z0", [0.0, 500.0])
def test_vectorial_model_in_index_mismatch(optics: Optics, z0: float) -> None:
    scan = (-1000.0, -500.0, -250.0, 0.0, 250.0, 500.0, 1000.0)
    assert max(difference_from_bessel(optics, 128, z0=z0, zs=zs) for zs in scan) < 7e-3
    assert max(difference_from_bessel(optics, 256, z0=z0, zs=zs) for zs in (-1000.0, 0.0, 1000.0)) < 2e-3


@pytest.mark.parametrize(
    ("z0", "zs"), [(0.0, 0.0), (0.0, 300.0), (300.0, 300.0), (500.0, -500.0), (0.0, 1000.0)]
)
def test_fractions_are_absolute(z0: float, zs: float) -> None:
    """The fraction of all collected light, not of the light in some window or period."""
    assert difference_from_bessel(S1, 128, z0=z0, zs=zs, unit_sum=False) < 4e-3
    assert difference_from_bessel(S1, 64, z0=z0, zs=zs, unit_sum=False) < 3e-2
    if zs == 300:
        assert difference_from_bessel(S1, 128, z0=z0, zs=zs, unit_sum=False) < 1.2e-3


def test_vectorial_model_without_supercritical_light_clips_the_aperture() -> None:
    clipped = dataclasses.replace(S1, supercritical=False)
    field = pupil_field(clipped, Pupil.flat(64), dtype=torch.float64)
    k = torch.hypot(*torch.meshgrid(field.k_axis_per_nm, field.k_axis_per_nm, indexing="ij"))
    lit = field.base.abs().amax(0) > 0
    sample = S1.wavenumber_per_nm * S1.sample_index
    spacing = float(field.k_axis_per_nm[1] - field.k_axis_per_nm[0])
    assert float(k[lit].max()) < sample + spacing / 2 + 1e-12
    assert clipped.collected_aperture == 1.33
    assert S1.collected_aperture == 1.49


def test_no_sample_is_infinite_at_the_critical_angle() -> None:
    # The sample k = 96 of 128 lies at rho = 0.5078; choose the sample's index so that it is critical.
    index = 1.5 * float(Pupil.flat(128).rho_axis[127])
    field = pupil_field(Optics(1.5, 1.518, index, 670.0, 110.0), Pupil.flat(128))
    assert torch.isfinite(torch.view_as_real(field.base)).all()
    assert torch.isfinite(torch.view_as_real(defocused(field, torch.tensor([0.0, 400.0, -400.0])))).all()


def test_supercritical_light_fades_with_height() -> None:
    field = pupil_field(S1, Pupil.flat(64), dtype=torch.float64)
    power = (
        defocused(field, torch.tensor([0.0, 200.0, 800.0], dtype=torch.float64)).abs().square().sum((1, 2, 3))
    )
    share = power / power[2]
    assert float(share[0]) > 1.5
    assert float(share[0]) > float(share[1]) > 1.0


def test_the_coverslip_matters_where_it_differs() -> None:
    flat, z = Pupil.flat(64), torch.tensor([[1100.0, 1100.0, 200.0]])
    images = [
        PupilPSF.of(dataclasses.replace(S1, coverslip_index=n), flat).images(z, (20, 20))
        for n in (None, 1.518, 1.70)
    ]
    assert torch.allclose(images[0], images[1], atol=1e-9)
    assert float((images[2] - images[0]).abs().max() / images[0].max()) > 1e-3


def test_light_beyond_the_critical_angle_of_the_coverslip_is_lost() -> None:
    thin = dataclasses.replace(S1, coverslip_index=1.45)
    assert thin.collected_aperture == 1.45
    assert dataclasses.replace(thin, coverslip_index=1.52).collected_aperture == 1.49


def spherical(optics: Optics, samples: int = 128) -> NDArray[np.float64]:
    """(N, N) phase of coverslip and immersion, rad, and 0 outside the aperture."""
    axis = torch.as_tensor(Pupil.flat(samples).rho_axis) * optics.numerical_aperture
    s2 = axis[:, None] ** 2 + axis**2
    phase: NDArray[np.float64] = slip_phase(optics, s2).numpy()
    return np.where(s2.numpy() <= optics.numerical_aperture**2, phase, 0.0)


def test_a_coverslip_as_designed_adds_no_phase() -> None:
    assert S1.as_designed
    designed = dataclasses.replace(S1, coverslip_thickness_nm=170e3, design_coverslip_index=1.518)
    assert designed.as_designed
    np.testing.assert_allclose(spherical(designed), 0.0, atol=1e-6)


def test_a_coverslip_of_the_immersions_index_may_be_of_any_thickness() -> None:
    thick = dataclasses.replace(S1, coverslip_thickness_nm=180e3)
    assert not thick.as_designed
    np.testing.assert_allclose(spherical(thick), 0.0, atol=1e-6)


def test_the_wrong_coverslip_is_spherical_aberration_without_defocus() -> None:
    """Water immersion, NA 1.2, 10 um too thick: the known 0.58 waves of rho^4 a paraxial expansion gives."""
    water = Optics(1.2, 1.333, 1.333, 500.0, 100.0, coverslip_index=1.515, coverslip_thickness_nm=180e3)
    low = dataclasses.replace(water, numerical_aperture=0.3)
    rho = np.abs(Pupil.flat(128).rho_axis)
    axis = torch.as_tensor(rho * 0.3) ** 2
    # k dt [-s^4 / 8 (1 / n_c^3 - 1 / (n_c n_i^2))]: the fourth order of both cosines (Gibson & Lanni 1991).
    fourth = low.wavenumber_per_nm * 10e3 * -((rho * 0.3) ** 4) / 8 * (1 / 1.515**3 - 1 / (1.515 * 1.333**2))
    np.testing.assert_allclose(slip_phase(low, axis).numpy(), fourth, atol=0.05 * fourth.max())
    assert np.ptp(spherical(water)) > 2.0
    thin = dataclasses.replace(water, coverslip_thickness_nm=160e3)
    np.testing.assert_allclose(spherical(thin), -spherical(water), atol=1e-6)


def test_coverslip_and_immersion_of_other_indices_blur_the_focus() -> None:
    xyz, flat = torch.tensor([[1050.0, 1050.0, 0.0]]), Pupil.flat(96)

    def peak(**change: float) -> float:
        optics = dataclasses.replace(S1, **change)
        return float(PupilPSF.of(optics, flat).images(xyz, (21, 21)).max())

    assert peak(design_coverslip_index=1.53) < 0.97 * peak()
    assert peak(design_immersion_index=1.512) < 0.97 * peak()
    assert peak(design_immersion_index=1.518, working_distance_nm=3e5) == pytest.approx(peak())


@pytest.mark.parametrize("apodisation", [None, "none", "aplanatic", "fresnel"])
def test_at_low_aperture_the_scalar_model_is_the_vectorial_one(apodisation: str | None) -> None:
    """Of a dipole across the axis, behind an analyser along it."""
    dry = Optics(0.3, 1.0, 1.33, 600.0, 400.0, focus_nm=2000.0, pixel_integration=False, analyser_deg=0.0)
    xyz, flat = torch.tensor([[4200.0, 4200.0, 0.0]], dtype=torch.float64), Pupil.flat(96)
    across = Dipole.fixed(polar_deg=90, azimuth_deg=0)
    exact = PupilPSF.of(dry, flat, dtype=torch.float64, dipole=across).images(xyz, (21, 21))[0]
    scalar = dataclasses.replace(dry, model="scalar", apodisation=apodisation)
    image = PupilPSF.of(scalar, flat, dtype=torch.float64).images(xyz, (21, 21))[0]
    assert float((image - exact).norm() / exact.norm()) < (0.01 if apodisation == "fresnel" else 0.04)


def test_fresnel_amplitude_of_the_scalar_model_is_finite_at_the_critical_angle() -> None:
    scalar = dataclasses.replace(S1, model="scalar", apodisation="fresnel")
    s2 = torch.tensor([0.0, 1.33**2, 1.4**2], dtype=torch.float64)
    amplitude = scalar_amplitude(scalar, s2)
    assert torch.isfinite(torch.view_as_real(amplitude)).all()
    # At normal incidence both polarisations pass 2 n_m / (n_m + n_i), times n_i / n_m of the aplanatic factor.
    assert float(amplitude[0].real) == pytest.approx(2 * 1.518 / (1.33 + 1.518))
    assert abs(float(amplitude[2].imag)) > 0.1


def test_aplanatic_amplitude_of_the_scalar_model() -> None:
    s2 = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    scalar = dataclasses.replace(S1, model="scalar", apodisation="aplanatic")
    wanted = (1 - s2 / 1.518**2) ** -0.25
    torch.testing.assert_close(scalar_amplitude(scalar, s2).real, wanted)


def test_radial_transmission() -> None:
    pupil = Pupil.flat(65).transmitting([-0.3, 0.1])
    middle, edge = pupil.amplitude[32, 32], pupil.amplitude[32, 64]
    rho = Pupil.flat(65).rho_axis[64]
    assert (middle, edge) == pytest.approx((1.0, 1 - 0.3 * rho**2 + 0.1 * rho**4))
    assert Pupil.flat(65).transmitting([-2.0]).amplitude.min() == 0.0
    assert pupil.transmitting([-0.3]).amplitude[32, 64] == pytest.approx(edge * (1 - 0.3 * rho**2))


def test_measured_transmission_keeps_its_orientation() -> None:
    rows, columns = np.mgrid[:101, :121]
    measured = 1 + 0.004 * (columns - 60) - 0.002 * (rows - 50)
    pupil = Pupil.flat(32).measured(measured, diameter_px=80.0)
    axis = pupil.rho_axis * 40
    np.testing.assert_allclose(pupil.amplitude, 1 + 0.004 * axis - 0.002 * axis[:, None], atol=1e-12)
    for array, diameter in ((measured - 2, 80.0), (measured, 110.0), (measured[0], 80.0), (measured, 0.0)):
        with pytest.raises(InputRejected):
            Pupil.flat(32).measured(array, diameter_px=diameter)


def test_spectrum_is_the_mean_of_its_lines() -> None:
    pupil = Pupil.flat(64, {6: 0.5})
    xyz = torch.tensor([[1155.0, 1155.0, 200.0]], dtype=torch.float64)
    psf = spectral_psf(S1, pupil, {600.0: 3.0, 670.0: 1.0}, dtype=torch.float64)
    blue = dataclasses.replace(S1, wavelength_nm=600.0)
    # The same optical path is more radians at the shorter wavelength.
    lines = [
        PupilPSF.of(optics, Pupil.flat(64, {6: value}), dtype=torch.float64).images(xyz, (21, 21))
        for optics, value in ((blue, 0.5 * 670 / 600), (S1, 0.5))
    ]
    torch.testing.assert_close(psf.images(xyz, (21, 21)), 0.75 * lines[0] + 0.25 * lines[1])
    for spectrum in ({}, {600.0: 0.0}, {600.0: -1.0, 610.0: 2.0}):
        with pytest.raises(InputRejected, match="spectrum"):
            spectral_psf(S1, pupil, spectrum)
    with pytest.raises(InputRejected, match="sum to 1"):
        SumPSF(psf.parts, (0.5, 0.6))
    with pytest.raises(InputRejected, match="one share"):
        SumPSF(psf.parts, (1.0,))


@pytest.mark.parametrize(("window", "z", "tolerance"), [(15, (0.0, 600.0), 0.02), (31, (0.0, 900.0), 0.01)])
def test_the_chosen_pupil_has_the_error_it_states(
    window: int, z: tuple[float, float], tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    optics = dataclasses.replace(S1, focus_nm=300.0)
    sampling = pupil_samples(optics, window_px=window, z_range_nm=z, tolerance=tolerance)
    assert sampling.error <= tolerance
    assert sampling.samples >= 2 * window * 110 * 1.49 / 670
    side = window / 2 * 110
    xyz = torch.tensor([[side, side, height] for height in z], dtype=torch.float64)
    images, limit = (
        PupilPSF.of(optics, Pupil.flat(n), dtype=torch.float64).images(xyz, (window, window))
        for n in (sampling.samples, 384)
    )
    error = float(((images - limit).flatten(1).norm(dim=1) / limit.flatten(1).norm(dim=1)).max())
    assert error <= 1.5 * sampling.error
    monkeypatch.setattr("smlm_bridge.psf.sampling._CANDIDATES", (32, 48))
    with pytest.raises(InputRejected, match="larger tolerance"):
        pupil_samples(optics, window_px=9, z_range_nm=z, tolerance=1e-9)


def test_the_error_of_a_given_pupil_is_that_of_its_samples() -> None:
    optics = dataclasses.replace(S1, focus_nm=300.0)
    z = (0.0, 900.0)
    errors = [
        sampling_error(optics, Pupil.flat(n, {6: 0.6, 7: 0.3}), window_px=21, z_range_nm=z) for n in (48, 96)
    ]
    assert errors[1] < 0.5 * errors[0] < 0.05
    pixelwise = Pupil(Pupil.flat(48).zernike_maps([6, 7]).sum(0) * 0.5, np.ones((48, 48)))
    given = sampling_error(optics, pixelwise, window_px=21, z_range_nm=z)
    exact = sampling_error(optics, Pupil.flat(48, {6: 0.5, 7: 0.5}), window_px=21, z_range_nm=z)
    assert given == pytest.approx(exact, rel=0.25)


def test_a_refined_pupil_is_the_same_on_twice_the_samples() -> None:
    axis = Pupil.flat(32).rho_axis
    y, x = np.meshgrid(axis, axis, indexing="ij")
    coarse = Pupil(3.0 * x - 2.0 * y, 1.0 + 0.2 * x, zernike_rad={6: 0.4})
    fine = coarse.refined()
    assert fine.phase_rad.shape == (64, 64)
    assert fine.sample_pitch == coarse.sample_pitch / 2
    inner = slice(2, -2)
    y, x = np.meshgrid(fine.rho_axis, fine.rho_axis, indexing="ij")
    np.testing.assert_allclose(
        np.angle(np.exp(1j * (fine.phase_rad - 3.0 * x + 2.0 * y)))[inner, inner], 0, atol=5e-3
    )
    np.testing.assert_allclose(fine.amplitude[inner, inner], (1.0 + 0.2 * x)[inner, inner], atol=1e-9)


def test_moments_of_no_dipole_are_rejected() -> None:
    for matrix in (np.eye(3), np.diag([1.5, -0.5, 0.0]), np.eye(2) / 2, np.full((3, 3), np.nan)):
        with pytest.raises(InputRejected, match="second moments"):
            Dipole(matrix)
    with pytest.raises(InputRejected, match="mobility"):
        Dipole.partly_mobile(polar_deg=0, azimuth_deg=0, mobility=1.1)
    scalar = dataclasses.replace(S1, model="scalar")
    with pytest.raises(InputRejected, match="scalar model knows no dipoles"):
        pupil_field(scalar, Pupil.flat(16), dipole=Dipole.free())


def test_no_bead_of_a_micrometre() -> None:
    with pytest.raises(InputRejected, match="nanometres"):
        bead_layers(1000.0)


def test_chunks_do_not_change_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    psf = PupilPSF.of(dataclasses.replace(S1, pixel_integration=True), Pupil.flat(32), dtype=torch.float64)
    xyz = torch.rand((7, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 500 + 500
    blur = torch.linspace(10, 90, 7, dtype=torch.float64)
    whole = psf.images(xyz, (11, 13), blur_nm=blur), *psf.derivatives(xyz, (11, 13), blur_nm=blur)
    monkeypatch.setitem(pupil_psf._CHUNK_ELEMENTS, "cpu", 30_000)
    parts = psf.images(xyz, (11, 13), blur_nm=blur), *psf.derivatives(xyz, (11, 13), blur_nm=blur)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_a_psf_used_without_gradients_still_gives_them() -> None:
    """What is kept between calls must not be of the kind that autograd refuses."""
    psf = PupilPSF.of(S1, Pupil.flat(32))
    position = torch.tensor([[600.0, 600.0, 100.0]])
    with torch.inference_mode():
        psf.images(position, (11, 11))
    position = position.clone().requires_grad_()
    psf.images(position, (11, 11))[0, 5, 5].backward()
    assert position.grad is not None
    assert torch.isfinite(position.grad).all()


def test_gradients_by_the_phase_reach_the_images() -> None:
    phase = torch.zeros(32, 32, dtype=torch.float64, requires_grad=True)
    field = pupil_field(S1, Pupil.flat(32), dtype=torch.float64, phase_rad=phase)
    with torch.no_grad():
        PupilPSF(field, 110.0).images(torch.tensor([[600.0, 600.0, 100.0]]), (11, 11))
    PupilPSF(field, 110.0).images(torch.tensor([[600.0, 600.0, 100.0]]), (11, 11))[0, 5, 4].backward()
    assert phase.grad is not None
    assert float(phase.grad.abs().max()) > 0


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu() -> None:
    xyz = torch.tensor([[1155.0, 1130.0, 200.0], [1000.0, 1200.0, -50.0]])
    on_cpu, on_gpu = (PupilPSF.of(S1, Pupil.flat(64, {6: 0.6}), device=d) for d in ("cpu", "cuda"))
    for one, other in zip(
        on_cpu.derivatives(xyz, (21, 21), zernike=(5, 11)),
        on_gpu.derivatives(xyz.cuda(), (21, 21), zernike=(5, 11)),
        strict=True,
    ):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wavelength_nm": 0.67}, "did you mean 670 nm"),
        ({"pixel_nm": 0.11}, "did you mean 110 nm"),
        ({"wavelength_nm": 6.7e-7}, "metres"),
        ({"pixel_nm": float("nan")}, "outside"),
        ({"numerical_aperture": 1.6}, "not below immersion_index"),
        ({"immersion_index": 0.5}, "outside"),
        ({"model": "hybrid"}, "vectorial, scalar"),
        ({"analyser_deg": float("inf")}, "angle"),
        ({"pixel_nm": "110"}, "must be a number"),
        ({"focus_nm": 1e9}, "outside"),
        ({"coverslip_index": 3.0}, "outside"),
        ({"apodisation": "fresnel"}, "belongs to the scalar model"),
        ({"apodisation": "half", "model": "scalar"}, "aplanatic, fresnel"),
        ({"coverslip_thickness_nm": -1.0}, "outside"),
        ({"design_coverslip_nm": float("nan")}, "outside"),
        ({"working_distance_nm": -3.0}, "outside"),
        ({"design_coverslip_index": 1.4}, "not above numerical_aperture"),
        ({"design_immersion_index": 3.0}, "outside"),
        ({"field_scale": 110.24}, "outside"),
        ({"field_centre_nm": (1.0,)}, "two numbers"),
        ({"field_centre_nm": "middle"}, "two numbers"),
        ({"field_centre_nm": (0.0, float("nan"))}, "outside"),
    ],
)
def test_optics_names_the_slip(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputRejected, match=words):
        dataclasses.replace(S1, **change)


def test_the_field_is_scaled_about_its_centre() -> None:
    optics = dataclasses.replace(S1, field_scale=0.99, field_centre_nm=[6600, 4400])
    xy = np.array([[6600.0, 4400.0], [7600.0, 4400.0], [0.0, 0.0]])
    np.testing.assert_allclose(optics.seen_at(xy), [[6600, 4400], [7590, 4400], [66, 44]])
    np.testing.assert_allclose(optics.stands_at(optics.seen_at(xy)), xy)
    assert S1.seen_at(xy).tolist() == S1.stands_at(xy).tolist() == xy.tolist()


def test_a_pupil_names_what_is_wrong() -> None:
    flat = np.ones((16, 16))
    for arguments, words in (
        ((np.zeros((16, 15)), np.ones((16, 15))), "square"),
        ((np.zeros((4, 4)), np.ones((4, 4))), "at least 8"),
        ((np.zeros((16, 16)), np.ones((8, 8))), "differ in shape"),
        ((flat * np.nan, flat), "finite"),
        ((flat, -flat), "negative"),
        ((flat, flat, -1.0), "pitch"),
        ((flat, flat, None, {0: 1.0}), "Noll"),
        ((flat, flat, None, {4: np.inf}), "Noll"),
    ):
        with pytest.raises(InputRejected, match=words):
            Pupil(*arguments)
    with pytest.raises(InputRejected, match="no light"):
        pupil_field(S1, Pupil(np.zeros((16, 16)), np.zeros((16, 16))))


def test_pupil_axis_is_symmetric_and_just_covers_the_disk() -> None:
    axis = Pupil.flat(64).rho_axis
    np.testing.assert_allclose(axis, -axis[::-1])
    assert axis[-1] == pytest.approx(1 - 1 / 64)


def test_zernikes_add_to_the_phase() -> None:
    grid = Pupil.flat(32).rho_axis
    phase = 0.7 * zernike(8, np.broadcast_to(grid, (32, 32)), np.broadcast_to(grid[:, None], (32, 32)))
    one = pupil_field(S1, Pupil.flat(32, {8: 0.7})).base
    other = pupil_field(S1, Pupil(phase, np.ones((32, 32)))).base
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        ((0.0, 100.0),),
        ((100.0, np.nan),),
        ((100.0, 100.0), (0.0, np.inf)),
        ((1.0, 1.0), (0.0, 0.0), (0.0, 1.0)),
    ],
)
def test_gaussian_widths_must_be_sensible(arguments: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(InputRejected):
        Gaussian(*arguments)
