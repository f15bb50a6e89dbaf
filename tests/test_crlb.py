"""The Cramér-Rao bound against golden values, analytic limits and finite differences."""

import dataclasses

import numpy as np
import pytest
import torch

from smlm_bridge.camera import Camera
from smlm_bridge.crlb import (
    PARAMETERS,
    Extra,
    Unknowns,
    crlb,
    crlb_table,
    derivatives,
    differentiated,
    fisher,
)
from smlm_bridge.crlb_channels import Channel, channel_parameters, crlb_channels, crlb_channels_table
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit import AstigmaticSpot, Channels, fit_boxes
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.propagate import pupil_field
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.gaussian import GaussianPSF
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.transform import Transform

POISSON, SCMOS, EMCCD = Camera(), Camera(read_noise_e=1.6), Camera(em_gain=300.0)
SIDE, PIXEL = 21, 110.0
OPTICS = Optics(1.49, 1.518, 1.33, 670.0, PIXEL, pixel_integration=False)
GOLDEN = [  # focus, height, then x, y, z in nm of Poisson, sCMOS (1.6 e) and EMCCD (shared/specs/psf.md, 4)
    (0, 0, (5.83, 7.00, 12.23), (5.98, 7.16, 12.64), (8.25, 9.90, 17.30)),
    (300, 0, (13.38, 6.20, 10.07), (13.80, 6.38, 10.37), (18.92, 8.76, 14.23)),
    (300, 300, (4.72, 7.30, 16.06), (4.84, 7.46, 16.58), (6.68, 10.33, 22.71)),
    (600, 300, (7.46, 4.71, 11.47), (7.62, 4.82, 11.80), (10.54, 6.65, 16.22)),
    (-300, 300, (29.3, 54.7, 80.6), (30.7, 57.4, 84.6), (41.5, 77.4, 114.0)),
]


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def at(x: float, y: float, z: float) -> torch.Tensor:
    return tensor(SIDE / 2 * PIXEL + x, SIDE / 2 * PIXEL + y, z)[None]


def bound(psf: PupilPSF | GaussianPSF, camera: Camera, position: torch.Tensor) -> torch.Tensor:
    return crlb(psf, camera, position, tensor(2000.0), tensor(20.0), shape=(SIDE, SIDE))[0]


@pytest.mark.parametrize(("focus", "z", "poisson", "scmos", "emccd"), GOLDEN)
def test_golden_values(focus: float, z: float, poisson, scmos, emccd) -> None:
    optics = dataclasses.replace(OPTICS, focus_nm=float(focus))
    psf = PupilPSF.of(optics, Pupil.flat(64, {6: 0.6}), dtype=torch.float64)
    for camera, wanted in ((POISSON, poisson), (SCMOS, scmos), (EMCCD, emccd)):
        # Golden values of 64 samples with a hard edge: out of focus themselves 1.2 % from their limit.
        tolerance = 0.01 if focus >= 0 else 0.02
        np.testing.assert_allclose(bound(psf, camera, at(20, -15, z))[:3].numpy(), wanted, rtol=tolerance)


@pytest.fixture(scope="module")
def psf() -> PupilPSF:
    optics = dataclasses.replace(OPTICS, focus_nm=300.0, pixel_integration=True)
    return PupilPSF.of(optics, Pupil.flat(48, {6: 0.6}), dtype=torch.float64)


def test_derivatives_are_finite_differences(psf: PupilPSF) -> None:
    position, photons = at(20, -15, 300), tensor(2000.0)
    expected, slopes = derivatives(psf, position, photons, shape=(SIDE, SIDE))
    assert slopes.shape == (1, len(PARAMETERS), SIDE, SIDE)
    for axis in range(3):
        step = torch.zeros((1, 3), dtype=torch.float64)
        step[0, axis] = 0.1
        up, down = (psf.images(position + s * step, (SIDE, SIDE)) * 2000 for s in (1, -1))
        torch.testing.assert_close(slopes[:, axis], (up - down) / 0.2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slopes[:, 3] * 2000, expected)
    assert (slopes[:, 4] == 1).all()


def test_analytic_and_automatic_derivatives_give_one_bound(psf: PupilPSF) -> None:
    class Plain:
        """The same PSF without its analytic derivatives."""

        pixel_nm = PIXEL
        images = staticmethod(psf.images)

    position = at(20, -15, 300)
    np.testing.assert_allclose(bound(psf, SCMOS, position), bound(Plain(), SCMOS, position), rtol=1e-6)
    torch.testing.assert_close(
        differentiated(psf, position, (SIDE, SIDE))[1], psf.derivatives(position, (SIDE, SIDE))[1]
    )


def test_derivatives_by_zernikes_are_finite_differences() -> None:
    optics = dataclasses.replace(OPTICS, focus_nm=300.0, pixel_integration=True)
    noll, step = (5, 8, 11), 1e-3

    def at_value(change: dict[int, float]) -> PupilPSF:
        values = {6: 0.6, **change}
        return PupilPSF.of(optics, Pupil.flat(48, values), dtype=torch.float64)

    _, slopes = derivatives(
        at_value({}), at(20, -15, 300), tensor(2000.0), shape=(SIDE, SIDE), unknowns=Unknowns(noll)
    )
    assert slopes.shape[1] == 8
    for index, mode in enumerate(noll):
        up, down = (
            at_value({mode: sign * step}).images(at(20, -15, 300), (SIDE, SIDE)) * 2000 for sign in (1, -1)
        )
        torch.testing.assert_close(slopes[:, 5 + index], (up - down) / (2 * step), rtol=1e-4, atol=1e-5)


def test_derivatives_are_those_of_autodiff_for_every_parameter() -> None:
    """x, y, z, photons, background and two Zernike coefficients, through the whole model."""
    optics = dataclasses.replace(OPTICS, focus_nm=300.0, pixel_integration=True)
    pupil, noll = Pupil.flat(32, {6: 0.6}), (5, 11)
    maps = torch.as_tensor(pupil.zernike_maps((6, *noll)))

    def mean(theta: torch.Tensor) -> torch.Tensor:
        phase = 0.6 * maps[0] + theta[5] * maps[1] + theta[6] * maps[2]
        field = pupil_field(optics, pupil, dtype=torch.float64, phase_rad=phase)
        return theta[3] * PupilPSF(field, PIXEL).images(theta[None, :3], (9, 9))[0] + theta[4]

    theta = tensor(480.0, 510.0, 250.0, 2000.0, 20.0, 0.0, 0.0)
    wanted = torch.autograd.functional.jacobian(mean, theta).permute(2, 0, 1)
    psf = PupilPSF.of(optics, pupil, dtype=torch.float64)
    _, slopes = derivatives(psf, theta[None, :3], theta[3:4], shape=(9, 9), unknowns=Unknowns(noll))
    torch.testing.assert_close(slopes[0], wanted, rtol=1e-7, atol=1e-9)


def test_more_unknowns_cost_precision_and_are_bounded_too(psf: PupilPSF) -> None:
    from smlm_bridge.psf.spectrum import spectral_psf

    optics = dataclasses.replace(OPTICS, focus_nm=300.0, pixel_integration=True)

    def coloured(wavelength_nm: float) -> object:
        return spectral_psf(optics, Pupil.flat(48, {6: 0.6}), {wavelength_nm: 1.0}, dtype=torch.float64)

    colour = Extra("wavelength_nm", coloured, 670.0, 0.5)
    unknowns = Unknowns((5, 6), (colour,))
    assert unknowns.names == (*PARAMETERS, "zernike_5_rad", "zernike_6_rad", "wavelength_nm")
    arguments = (psf, POISSON, at(20, -15, 300), tensor(2000.0), tensor(20.0))
    more = crlb(*arguments, shape=(SIDE, SIDE), unknowns=unknowns)[0]
    fewer = bound(psf, POISSON, at(20, -15, 300))
    assert (more[:5] >= fewer - 1e-9).all()
    assert float(more[2] / fewer[2]) > 1.2  # astigmatism is what tells z here
    assert torch.isfinite(more).all()
    # Twice the photons and background: half the variance.
    double = crlb(*arguments[:3], tensor(4000.0), tensor(40.0), shape=(SIDE, SIDE), unknowns=unknowns)[0]
    np.testing.assert_allclose((more / double)[[0, 1, 2, 5, 6, 7]], np.sqrt(2), rtol=1e-6)


def test_zernikes_of_a_psf_without_pupil_are_rejected() -> None:
    gaussian = GaussianPSF(Gaussian((130.0, 150.0), (0.0, 400.0), (400.0, 400.0)), PIXEL)
    arguments = (gaussian, POISSON, at(0, 0, 100), tensor(2000.0), tensor(20.0))
    with pytest.raises(InputRejected, match="PupilPSF"):
        fisher(*arguments, shape=(SIDE, SIDE), unknowns=Unknowns((5,)))


def test_exact_emccd_lies_between_none_and_twice_the_variance(psf: PupilPSF) -> None:
    def ratio(background: float, photons: float) -> torch.Tensor:
        arguments = (psf, EMCCD, at(20, -15, 300), tensor(photons), tensor(background))
        twice, exact = (crlb(*arguments, shape=(SIDE, SIDE), exact_emccd=e)[0] for e in (False, True))
        return (exact / twice)[:3]

    assert ((ratio(0.05, 300.0) < 0.95) & (ratio(0.05, 300.0) > np.sqrt(0.5))).all()
    np.testing.assert_allclose(ratio(200.0, 20000.0), 1.0, atol=3e-3)
    # Other cameras do not change.
    poisson = (psf, POISSON, at(20, -15, 300), tensor(2000.0), tensor(20.0))
    torch.testing.assert_close(
        crlb(*poisson, shape=(SIDE, SIDE), exact_emccd=True), crlb(*poisson, shape=(SIDE, SIDE))
    )


def channel(psf: PupilPSF, share: float, transform: object = ((1, 0, 0), (0, 1, 0))) -> Channel:
    return Channel(psf, POISSON, share, 20.0, transform)


def test_one_channel_is_the_plain_bound(psf: PupilPSF) -> None:
    alone = crlb_channels([channel(psf, 1.0)], at(20, -15, 300), tensor(2000.0), shape=(SIDE, SIDE))
    torch.testing.assert_close(alone[0], bound(psf, POISSON, at(20, -15, 300)))


def test_two_equal_channels_are_twice_the_light(psf: PupilPSF) -> None:
    both = crlb_channels(
        [channel(psf, 0.5), channel(psf, 0.5)], at(20, -15, 300), tensor(4000.0), shape=(SIDE, SIDE)
    )[0]
    one = bound(psf, POISSON, at(20, -15, 300))
    torch.testing.assert_close(both[:3], one[:3] / np.sqrt(2))
    torch.testing.assert_close(both[3], one[3] * np.sqrt(2))
    torch.testing.assert_close(both[4], both[5])
    assert float(both[4]) < float(one[4])  # that both see the same photons helps each background
    assert channel_parameters(2) == ("x_nm", "y_nm", "z_nm", "photons", "background_1", "background_2")


def test_a_turned_channel_gives_its_precision_along_the_turned_axis(psf: PupilPSF) -> None:
    """The second view turned by 90 degrees about the window's middle: x there is y here."""
    side = SIDE * PIXEL
    turned = ((0.0, 1.0, 0.0), (-1.0, 0.0, side))
    middle = at(0, 0, 100)
    plain = crlb_channels([channel(psf, 1.0)], middle, tensor(2000.0), shape=(SIDE, SIDE))[0]
    alone = crlb_channels([channel(psf, 1.0, turned)], middle, tensor(2000.0), shape=(SIDE, SIDE))[0]
    torch.testing.assert_close(alone[:2], plain[:2].flip(0))
    assert abs(float(plain[0] / plain[1]) - 1) > 0.05
    scaled = ((2.0, 0.0, -side / 2), (0.0, 1.0, 0.0))
    wide = crlb_channels([channel(psf, 1.0, scaled)], middle, tensor(2000.0), shape=(SIDE, SIDE))[0]
    torch.testing.assert_close(wide[0], plain[0] / 2)


def test_an_unknown_ratio_of_photons_costs_precision(psf: PupilPSF) -> None:
    other = PupilPSF.of(
        dataclasses.replace(OPTICS, focus_nm=600.0, pixel_integration=True),
        Pupil.flat(48, {6: 0.6}),
        dtype=torch.float64,
    )
    channels = [channel(psf, 0.7), channel(other, 0.3)]
    known, free = (
        crlb_channels(channels, at(20, -15, 300), tensor(2000.0), shape=(SIDE, SIDE), free_ratio=f)[0]
        for f in (False, True)
    )
    assert (free[:3] >= known[:3] - 1e-9).all()
    assert float(free[2]) > 1.001 * float(known[2])
    assert len(free) == len(known) + 1
    with pytest.raises(InputRejected, match="sum to 1"):
        crlb_channels([channel(psf, 0.7)], at(0, 0, 300), tensor(2000.0), shape=(SIDE, SIDE))


def test_channels_have_aberrations_of_their_own_and_share_a_colour(psf: PupilPSF) -> None:
    from smlm_bridge.psf.spectrum import spectral_psf

    optics = dataclasses.replace(OPTICS, focus_nm=300.0, pixel_integration=True)

    def coloured(wavelength_nm: float) -> object:
        return spectral_psf(optics, Pupil.flat(48, {6: 0.6}), {wavelength_nm: 1.0}, dtype=torch.float64)

    colour = Extra("wavelength_nm", coloured, 670.0, 0.5)
    unknowns = [Unknowns((5,), (colour,)), Unknowns((6,), (colour,))]
    names = channel_parameters(2, unknowns=unknowns)
    assert names[-3:] == ("zernike_5_rad_1", "zernike_6_rad_2", "wavelength_nm")
    place, light = at(20, -15, 300), tensor(4000.0)
    channels = [dataclasses.replace(channel(psf, 0.5), unknowns=own) for own in unknowns]
    more = crlb_channels(channels, place, light, shape=(SIDE, SIDE))[0]
    fewer = crlb_channels([channel(psf, 0.5)] * 2, place, light, shape=(SIDE, SIDE))[0]
    assert (more[:6] >= fewer - 1e-9).all()
    # One channel alone tells less of the colour that both share.
    alone = crlb(
        psf,
        POISSON,
        place,
        tensor(2000.0),
        tensor(20.0),
        shape=(SIDE, SIDE),
        unknowns=Unknowns((5,), (colour,)),
    )[0]
    assert float(more[-1]) < 0.9 * float(alone[-1])
    one = crlb_channels(
        [dataclasses.replace(channel(psf, 1.0), unknowns=unknowns[0])],
        place,
        tensor(2000.0),
        shape=(SIDE, SIDE),
    )[0]
    torch.testing.assert_close(one, alone)


def test_fits_of_two_channels_reach_the_bound_of_both() -> None:
    """Biplane, the second channel mirrored, magnified and brighter: the same joint fit that localize makes."""
    planes = [Gaussian((130.0, 130.0), (z, z), (350.0, 350.0)) for z in (100.0, 500.0)]
    side, count, photons, ratio = 15, 3000, 4000.0, 1.5
    psfs = [GaussianPSF(plane, PIXEL) for plane in planes]
    matrix, shares = ((-1.02, 0.0), (0.0, 1.0)), (1 / (1 + ratio), ratio / (1 + ratio))
    middle = side / 2 * PIXEL
    transform = Transform.affine(matrix, (middle * 2.02, 0.0))
    place = tensor(middle, middle, 250.0)[None]
    draw = np.random.default_rng(4)
    boxes = np.stack(
        [draw.poisson(photons * s * p.images(place, (side, side)).numpy() + 10, (count, side, side))
         for p, s in zip(psfs, shares, strict=True)], axis=1,
    ).astype(np.float32)  # fmt: skip
    spots = tuple(AstigmaticSpot(plane, PIXEL, (0.0, 600.0)) for plane in planes)
    fitted = fit_boxes(boxes, np.zeros((count, 2, 2), int), Channels((spots[0], spots[1]), transform, ratio))
    there = tuple((row[0], row[1], 0.0) for row in matrix)
    channels = [
        Channel(psfs[0], POISSON, shares[0], 10.0),
        Channel(psfs[1], POISSON, shares[1], 10.0, there),  # type: ignore[arg-type]
    ]
    table = crlb_channels_table(channels, z_nm=[250.0], photons=photons, size_px=side)
    wanted = table[["sigma_x_nm", "sigma_y_nm", "sigma_z_nm", "sigma_photons"]].to_numpy()[0]
    assert fitted.ok.mean() > 0.99
    np.testing.assert_allclose(fitted.values[fitted.ok, :4].std(0) / wanted, 1.0, atol=0.05)
    np.testing.assert_allclose(np.median(fitted.bounds[fitted.ok, :4], 0) / wanted, 1.0, atol=0.03)


def test_table_over_photons(psf: PupilPSF) -> None:
    table = crlb_table(psf, SCMOS, z_nm=(0.0, 300.0), photons=(500.0, 2000.0), background=20, size_px=SIDE)
    assert list(table)[:2] == ["z_nm", "photons"]
    assert table["z_nm"].tolist() == [0.0, 300.0, 0.0, 300.0]
    assert table["photons"].tolist() == [500.0, 500.0, 2000.0, 2000.0]
    alone = crlb_table(psf, SCMOS, z_nm=(0.0, 300.0), photons=2000, background=20, size_px=SIDE)
    np.testing.assert_allclose(table.iloc[2:].drop(columns="photons"), alone)
    with pytest.raises(InputRejected, match="above 0"):
        crlb_table(psf, SCMOS, z_nm=(0.0,), photons=(500.0, -1.0), background=20)


def test_many_emitters_are_bounded_in_parts(psf: PupilPSF, monkeypatch: pytest.MonkeyPatch) -> None:
    positions = at(20, -15, 300).repeat(3, 1) + tensor(0.0, 30.0, 60.0)[:, None]
    ones = torch.ones(3, dtype=torch.float64)
    arguments = (psf, SCMOS, positions, 2000 * ones, 20 * ones)
    whole = crlb(*arguments, shape=(SIDE, SIDE))
    monkeypatch.setattr("smlm_bridge.crlb._CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(crlb(*arguments, shape=(SIDE, SIDE)), whole)


def test_the_derivative_on_the_coverslip_is_that_of_the_sample(psf: PupilPSF) -> None:
    on, above = (
        derivatives(psf, at(20, -15, z), tensor(1.0), shape=(SIDE, SIDE))[1][0, 2] for z in (0.0, 0.01)
    )
    torch.testing.assert_close(on, above, rtol=1e-3, atol=1e-8)


def test_fisher_is_symmetric_and_adds_up_over_pixels(psf: PupilPSF) -> None:
    arguments = (psf, POISSON, at(20, -15, 300), tensor(2000.0), tensor(20.0))
    information = fisher(*arguments, shape=(SIDE, SIDE))[0]
    torch.testing.assert_close(information, information.T)
    larger = fisher(*arguments, shape=(SIDE + 4, SIDE + 4))[0]
    assert (torch.diagonal(larger) > torch.diagonal(information)).all()


def test_emccd_costs_a_factor_of_root_two(psf: PupilPSF) -> None:
    ratio = bound(psf, EMCCD, at(20, -15, 300)) / bound(psf, POISSON, at(20, -15, 300))
    np.testing.assert_allclose(ratio, np.sqrt(2), rtol=1e-6)


def test_read_noise_of_an_emccd_is_divided_by_its_gain(psf: PupilPSF) -> None:
    noisy = bound(psf, Camera(em_gain=300.0, read_noise_e=30.0), at(20, -15, 300))
    np.testing.assert_allclose(noisy, bound(psf, EMCCD, at(20, -15, 300)), rtol=1e-3)


def test_a_map_of_read_noise_counts_where_the_light_is(psf: PupilPSF) -> None:
    far, near = np.zeros((2, SIDE, SIDE), np.float32)
    far[:, :2], near[7:14, 7:14] = 30.0, 30.0
    clean = bound(psf, POISSON, at(20, -15, 300))
    assert (bound(psf, Camera(read_noise_e=near), at(20, -15, 300)) > 1.01 * clean)[:4].all()
    assert (bound(psf, Camera(read_noise_e=far), at(20, -15, 300)) < 1.01 * clean)[:3].all()


def test_gaussian_without_background_reaches_sigma_over_root_n() -> None:
    sigma, photons = 200.0, 1000.0
    gaussian = GaussianPSF(Gaussian((sigma, sigma), (-300.0, 300.0), (400.0, 400.0)), 50.0)
    at_waist = np.sqrt(1 + (300 / 400) ** 2)
    position = tensor(2000.0, 2010.0, 0.0)[None]
    found = crlb(gaussian, POISSON, position, tensor(photons), tensor(1e-9), shape=(80, 80))[0]
    # Thompson 2002, without background: sqrt((s^2 + a^2 / 12) / N); photons: sqrt(N).
    wanted = np.sqrt(((sigma * at_waist) ** 2 + 50**2 / 12) / photons)
    assert float(found[0]) == pytest.approx(wanted, rel=2e-3)
    assert float(found[1]) == pytest.approx(wanted, rel=2e-3)
    assert float(found[3]) == pytest.approx(np.sqrt(photons), rel=1e-3)


def test_more_photons_and_less_background_are_better(psf: PupilPSF) -> None:
    position = at(20, -15, 300).expand(3, 3)
    found = crlb(
        psf, POISSON, position, tensor(2000.0, 8000.0, 2000.0), tensor(20.0, 20.0, 80.0), shape=(SIDE, SIDE)
    )
    assert (found[1, :3] < 0.6 * found[0, :3]).all()
    assert (found[2, :3] > 1.1 * found[0, :3]).all()


def test_z_that_no_image_tells_is_rejected() -> None:
    flat = GaussianPSF(Gaussian((130.0, 130.0)), PIXEL)
    with pytest.raises(InputRejected, match="singular"):
        bound(flat, POISSON, at(0, 0, 0))


def test_z_in_the_focus_of_a_symmetric_psf_is_unbounded_and_the_rest_is_not() -> None:
    symmetric = GaussianPSF(Gaussian((130.0, 130.0), (0.0, 0.0), (400.0, 400.0)), PIXEL)
    table = crlb_table(symmetric, POISSON, z_nm=(-200, 0, 200), photons=2000, background=20, size_px=SIDE)
    assert np.isinf(table["sigma_z_nm"]).tolist() == [False, True, False]
    assert np.isfinite(table.drop(columns="sigma_z_nm")).all(axis=None)
    assert table["sigma_x_nm"][1] < table["sigma_x_nm"][0]


def test_table(psf: PupilPSF) -> None:
    table = crlb_table(psf, SCMOS, z_nm=(0.0, 300.0, 600.0), photons=2000, background=20, size_px=SIDE)
    assert list(table) == ["z_nm", *(f"sigma_{name}" for name in PARAMETERS)]
    middle = bound(psf, SCMOS, at(0, 0, 300))
    np.testing.assert_allclose(table.iloc[1, 1:].to_numpy(float), middle, rtol=1e-9)
    with pytest.raises(InputRejected, match="above 0"):
        crlb_table(psf, SCMOS, z_nm=(0.0,), photons=0, background=20)


def test_table_takes_the_middle_of_the_cameras_maps(psf: PupilPSF) -> None:
    noise = np.full((61, 81), 50.0, np.float32)
    noise[20:41, 30:51] = 1.6
    maps = Camera(np.zeros((61, 81)), np.ones((61, 81)), noise)
    given = {"z_nm": (300.0,), "photons": 2000, "background": 20, "size_px": SIDE}
    np.testing.assert_allclose(crlb_table(psf, maps, **given), crlb_table(psf, SCMOS, **given), rtol=1e-5)
    with pytest.raises(InputRejected, match="smaller than the window"):
        crlb_table(psf, maps.crop(0, 0, 15, 15), **given)
