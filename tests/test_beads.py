"""Calibrations from averaged beads, against the PSF that drew them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from smlm_bridge.beads import BeadOptions, BeadResult, calibrate_beads
from smlm_bridge.beads.find import isolated_beads
from smlm_bridge.beads.widths import lens_angle_rad, slice_widths
from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil

# One index everywhere: then a moved focus is exactly a moved emitter.
OPTICS = Optics(1.4, 1.518, 1.518, 670.0, 110.0, model="scalar")
ASTIGMATIC = Calibration(OPTICS, Pupil.flat(64, {6: 0.9, 7: 0.35, 11: 0.2}), z_range_nm=(-600.0, 600.0))
HUANG = Gaussian((140.0, 150.0), (-220.0, 200.0), (400.0, 450.0))
CAMERA = Camera(offset=100.0, e_per_adu=0.5, read_noise_e=1.5)
PLACES = np.array(
    [[30.3, 28.6], [31.8, 90.2], [88.4, 30.7], [90.1, 92.5], [60.6, 58.9], [62.0, 116.7], [61.0, 127.6]]
)
STEP = 50.0
FOCI = np.arange(-12, 13) * STEP


def stack(calibration: Calibration, *, photons: float = 40_000.0, step_sign: int = 1) -> np.ndarray:
    """Seven beads on the coverslip, the last two too close to each other; the focus moves."""
    generator = np.random.default_rng(8)
    psf = calibration.psf()
    light = np.full((len(FOCI), 130, 140), 5.0)
    for number, (row, column) in enumerate(PLACES):
        top, left = int(row) - 20, int(column) - 20
        height, width = min(41, 130 - top), min(41, 140 - left)
        z = -step_sign * FOCI + 15.0 * (number % 3 - 1)  # the slip is a little tilted
        xyz = np.column_stack([np.full_like(z, (column - left) * 110), np.full_like(z, (row - top) * 110), z])
        images = psf.images(torch.tensor(xyz, dtype=torch.float32), (height, width)).numpy()
        light[:, top : top + height, left : left + width] += photons * (1 + 0.1 * number) * images
    counts = generator.poisson(light) / 0.5 + 100 + generator.normal(0, 3, light.shape)
    return np.clip(np.round(counts), 0, 65535).astype(np.uint16)


@pytest.fixture(scope="module")
def astigmatic() -> np.ndarray:
    return stack(ASTIGMATIC)


@pytest.fixture(scope="module")
def spline(astigmatic: np.ndarray) -> BeadResult:
    return calibrate_beads([astigmatic], OPTICS, BeadOptions(STEP, -600.0, 21), kind="spline", camera=CAMERA)


def test_isolated_beads_are_found_and_close_ones_are_not(astigmatic: np.ndarray) -> None:
    found = isolated_beads(CAMERA.to_photons(astigmatic).astype(float), box_px=21)
    assert len(found) == 5
    distance = np.abs(found[:, None] + 0.5 - PLACES[None, :5]).max(axis=2).min(axis=1)
    assert distance.max() < 1.6


def test_the_averaged_spline_is_the_psf(spline: BeadResult) -> None:
    assert (spline.beads, spline.used) == (5, 5)
    table = spline.calibration.spline
    assert table is not None
    assert spline.calibration.z_range_nm == pytest.approx((-600.0, 600.0))
    wanted = ASTIGMATIC.psf(dtype=torch.float64)
    centre = 21 / 2 * 110.0
    for z in (-350.0, 0.0, 400.0):
        # Where the averaged bead's zero lies is free: the best of all small displacements counts.
        image = table.images([(centre, centre, z)], (21, 21))[0]
        apart = [
            np.abs(image / image.sum() - (true / true.sum()).numpy()).max() / float(true.max() / true.sum())
            for true in (
                wanted.images(torch.tensor([[centre + dx, centre + dy, z]], dtype=torch.float64), (21, 21))
                for dx in (-60.0, -30.0, 0.0, 30.0, 60.0)
                for dy in (-60.0, -30.0, 0.0, 30.0, 60.0)
            )
        ]
        assert min(apart) < 0.1, z
    assert spline.rrse < 0.12
    assert spline.mean_slice_correlation > 0.98


def test_the_direction_of_the_scan_decides_the_sign_of_z(spline: BeadResult) -> None:
    other_way = stack(ASTIGMATIC, step_sign=-1)
    turned = calibrate_beads([other_way], OPTICS, BeadOptions(-STEP, 600.0, 21), kind="spline", camera=CAMERA)
    centre = 21 / 2 * 110.0
    position = [(centre, centre, 300.0), (centre, centre, -300.0)]
    assert spline.calibration.spline is not None
    assert turned.calibration.spline is not None
    one, other = (r.calibration.spline.images(position, (21, 21)) for r in (spline, turned))
    assert np.corrcoef(one[0].ravel(), other[0].ravel())[0, 1] > 0.98
    assert np.corrcoef(one[0].ravel(), other[1].ravel())[0, 1] < 0.8


def test_a_localized_bead_comes_back_with_its_height(spline: BeadResult) -> None:
    """Least squares over z with the spline finds the heights at which the PSF was rendered."""
    table = spline.calibration.spline
    assert table is not None
    centre = 21 / 2 * 110.0
    psf = ASTIGMATIC.psf(dtype=torch.float64)
    grid = np.arange(-500.0, 501.0, 20.0)
    around = (-60.0, -30.0, 0.0, 30.0, 60.0)
    places = [(centre + dx, centre + dy, z) for z in grid for dx in around for dy in around]
    models = table.images(places, (21, 21)).reshape(len(places), -1)
    models -= models.mean(axis=1, keepdims=True)
    models /= np.linalg.norm(models, axis=1, keepdims=True)
    offsets = []
    for z in (-300.0, -150.0, 0.0, 150.0, 300.0):
        image = psf.images(torch.tensor([[centre, centre, z]], dtype=torch.float64), (21, 21))[0].numpy()
        score = models @ (image - image.mean()).ravel()
        offsets.append(places[int(np.argmax(score))][2] - z)
    assert np.ptp(offsets) <= 60.0
    assert abs(np.mean(offsets)) < 40.0


def test_widths_of_an_astigmatic_gaussian_come_back() -> None:
    one = Calibration(OPTICS, gaussian=HUANG, z_range_nm=(-600.0, 600.0))
    result = calibrate_beads(
        [stack(one)], OPTICS, BeadOptions(STEP, -600.0, 21), kind="gaussian", camera=CAMERA
    )
    law = result.calibration.gaussian
    assert law is not None
    z = np.linspace(-400, 400, 17)
    np.testing.assert_allclose(law.widths_nm(z), HUANG.widths_nm(z), rtol=0.04)
    assert law.angle_rad == 0.0
    assert result.rrse < 0.1
    image = result.calibration.psf().images(torch.tensor([[1155.0, 1155.0, 100.0]]), (21, 21))
    assert float(image.sum()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("angle", [-0.5, 0.35])
def test_the_angle_of_the_lens_is_found(angle: float) -> None:
    gaussian = replace(HUANG, angle_rad=angle)
    psf = Calibration(OPTICS, gaussian=gaussian, z_range_nm=(-600.0, 600.0)).psf()
    z = torch.linspace(-400, 400, 5)
    xyz = torch.stack([torch.full_like(z, 1200.0), torch.full_like(z, 1130.0), z], 1)
    volume = psf.images(xyz, (21, 21)).double().numpy()
    assert lens_angle_rad(volume) == pytest.approx(angle, abs=0.02)
    widths = slice_widths(volume, lens_angle_rad(volume))
    np.testing.assert_allclose(widths[:, :2] * 110, gaussian.widths_nm(z.numpy()), rtol=0.02)
    np.testing.assert_allclose(widths[:, 2], 1200 / 110 - 0.5, atol=0.02)


@pytest.mark.slow
def test_without_a_first_focus_the_sharpest_slices_are_the_focus() -> None:
    deep = replace(OPTICS, focus_nm=800.0)
    result = calibrate_beads(
        [stack(ASTIGMATIC)], deep, BeadOptions(STEP, None, 21), kind="spline", camera=CAMERA
    )
    assert sum(result.calibration.z_range_nm) / 2 == pytest.approx(800.0, abs=100.0)


def test_what_cannot_be_averaged_is_said(astigmatic: np.ndarray) -> None:
    options = BeadOptions(STEP, None, 21)
    noise = np.random.default_rng(1).poisson(20.0, (12, 60, 60))
    with pytest.raises(InputRejected, match="no bead stands alone"):
        calibrate_beads([noise], OPTICS, options, kind="spline")
    with pytest.raises(InputRejected, match="6 slices"):
        calibrate_beads([astigmatic[:5]], OPTICS, options, kind="spline")
    with pytest.raises(InputRejected, match="same number of slices"):
        calibrate_beads([astigmatic, astigmatic[:20]], OPTICS, options, kind="spline")
    for wrong in ({"z_step_nm": 0.05}, {"z_step_nm": STEP, "box_px": 20}, {"z_step_nm": STEP, "box_px": 41}):
        with pytest.raises(InputRejected):
            BeadOptions(**wrong)
