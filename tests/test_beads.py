"""Calibrations from averaged beads, against the PSF that drew them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from smlm_bridge.beads import BeadOptions, BeadResult, calibrate_beads
from smlm_bridge.beads.find import isolated_beads
from smlm_bridge.beads.widths import lens_angle_rad, slice_widths
from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.cli import main
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.calibration import load_channels
from smlm_bridge.io.images import write_stack
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.pair import PairCalibration
from smlm_bridge.report.averaged import averaged_page
from smlm_bridge.transform import Transform

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


def test_beads_that_are_no_gaussian_are_refused() -> None:
    """A Tetrapod-like pupil: least squares would lay some Gaussian through anything."""
    tetrapod = Calibration(OPTICS, Pupil.flat(64, {6: 1.6, 12: 1.4}), z_range_nm=(-600.0, 600.0))
    with pytest.raises(InputRejected, match="--psf pupil or spline"):
        calibrate_beads(
            [stack(tetrapod)], OPTICS, BeadOptions(STEP, -600.0, 27), kind="gaussian", camera=CAMERA
        )


def test_beads_without_astigmatism_are_doubted() -> None:
    """Widths that change together do not tell the side of the focus."""
    both = Gaussian((140.0, 140.0), (0.0, 0.0), (400.0, 400.0))
    round_spots = Calibration(OPTICS, gaussian=both, z_range_nm=(-600.0, 600.0))
    result = calibrate_beads(
        [stack(round_spots)], OPTICS, BeadOptions(STEP, -600.0, 21), kind="gaussian", camera=CAMERA
    )
    assert any("not astigmatic" in text for text in result.warnings)


@pytest.mark.real
@pytest.mark.parametrize("name", ["tetrapod", "learned1"])
def test_real_beads_of_engineered_pupils_are_no_gaussian(name: str) -> None:
    path = Path(__file__).parents[2] / "shared" / "data" / "beads" / f"{name}.tif"
    if not path.is_file():
        pytest.skip(f"no {path}: the bead stacks are not here")
    beads = tifffile.imread(path)
    with pytest.raises(InputRejected, match="Gaussian"):
        calibrate_beads(
            [beads[::3]], replace(OPTICS, wavelength_nm=605.0), BeadOptions(-300.0), kind="gaussian"
        )


def test_the_page_shows_the_beads_and_what_speaks_against_them(
    astigmatic: np.ndarray, spline: BeadResult
) -> None:
    assert spline.window_yx is not None
    page = averaged_page([replace(spline, warnings=("look <twice>",))], [astigmatic], title="a & b")
    assert page.count("<img") == 1  # a spline has no widths
    assert "a &amp; b" in page
    assert "look &lt;twice&gt;" in page
    one = Calibration(OPTICS, gaussian=HUANG, z_range_nm=(-600.0, 600.0))
    counts = stack(one)
    options = BeadOptions(STEP, -600.0, 21)
    gaussian = calibrate_beads([counts], OPTICS, options, kind="gaussian", camera=CAMERA)
    assert averaged_page([gaussian], [counts], title="x").count("<img") == 2
    assert gaussian.warnings == ()


def test_two_channels_are_calibrated_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A field with an axis C: heights mean the same in both, and the beads tell the transform and the ratio."""
    draw = np.random.default_rng(5)
    grid = np.stack(np.meshgrid(np.arange(16, 128, 28), np.arange(16, 128, 28)), -1).reshape(-1, 2)
    here = grid + draw.uniform(-4, 4, grid.shape)
    moved = Transform.affine([[-1.0, 0.0], [0.0, 1.0]], (140 * 110.0, 150.0))
    there = moved.apply(here * 110.0) / 110.0
    field = np.full((2, 13, 140, 140), 5.0)
    laws = HUANG, replace(HUANG, focus_nm=(0.0, 420.0))  # channel 2 is in focus 200 nm higher
    z = -np.arange(-6, 7) * 100.0
    for channel, (places, law, photons) in enumerate(((here, laws[0], 30_000.0), (there, laws[1], 21_000.0))):
        psf = Calibration(OPTICS, gaussian=law, z_range_nm=(-600.0, 600.0)).psf()
        for x, y in places:
            left, top = int(x) - 12, int(y) - 12
            rows, columns = (slice(max(0, o), min(140, o + 25)) for o in (top, left))
            if rows.stop - rows.start < 25 or columns.stop - columns.start < 25:
                continue
            xyz = np.column_stack([np.full_like(z, (x - left) * 110), np.full_like(z, (y - top) * 110), z])
            field[channel][:, rows, columns] += photons * psf.images(torch.tensor(xyz), (25, 25)).numpy()
    counts = np.random.default_rng(6).poisson(field).astype(np.uint16)
    write_stack(tmp_path / "field.tif", counts.swapaxes(0, 1), axes="ZCYX")
    target = tmp_path / "pair.psf.h5"
    arguments = [
        "calibrate", tmp_path / "field.tif", "-o", target, "--psf", "gaussian", "--box-px", 17, "--z-step-nm", 100,
        "--first-focus-nm", -600, "--report", tmp_path / "r.html", "--model-stack", tmp_path / "m.tif", "--json",
        "--numerical-aperture", 1.4, "--immersion-index", 1.518, "--sample-index", 1.518, "--wavelength-nm", 670,
        "--pixel-nm", 110,
    ]  # fmt: skip
    assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    said = json.loads(capsys.readouterr().out)
    pair = load_channels(target)
    assert isinstance(pair, PairCalibration)
    at = np.array([[4000.0, 5000.0], [9000.0, 12_000.0]])
    np.testing.assert_allclose(pair.transform.apply(at), moved.apply(at), atol=8.0)
    assert pair.photon_ratio == pytest.approx(0.7, rel=0.05)
    assert said["photon_ratio"] == pair.photon_ratio
    for channel, law in zip(pair.channels, laws, strict=True):
        assert channel.gaussian is not None
        np.testing.assert_allclose(channel.gaussian.focus_nm, law.focus_nm, atol=25.0)
    assert tifffile.imread(tmp_path / "m.tif").shape == (13, 2, 140, 140)
    assert (tmp_path / "r.html").read_text(encoding="utf-8").count("<img") == 5


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
