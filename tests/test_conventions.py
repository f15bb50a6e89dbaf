"""Every statement of smlm_bridge.conventions, held against the code that has to obey it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from smlm_bridge import conventions
from smlm_bridge.camera import Camera
from smlm_bridge.io.thunderstorm import read_table, write_table
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.optics.zernike import noll_to_nm, zernike
from smlm_bridge.psf.gaussian import GaussianPSF
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.psf.spline import SplinePSF
from smlm_bridge.simulate.render import render
from smlm_bridge.simulate.scene import Ranges, Scene, draw

PIXEL = 110.0
OPTICS = Optics(1.49, 1.518, 1.33, 670.0, PIXEL)


def psfs() -> dict[str, PSF]:
    flat = PupilPSF.of(OPTICS, Pupil.flat(48))
    return {
        "gaussian": GaussianPSF(Gaussian((130.0, 130.0)), PIXEL),
        "vectorial": flat,
        "scalar": PupilPSF.of(replace(OPTICS, model="scalar", pixel_integration=False), Pupil.flat(48)),
        "spline": SplinePSF.tabulate(flat, z_range_nm=(0.0, 200.0), reach_nm=1500.0),
    }


@pytest.fixture(scope="module", params=psfs())
def psf(request: pytest.FixtureRequest) -> PSF:
    return psfs()[request.param]


def test_the_centre_of_a_pixel_is_half_a_pixel_from_its_corner(psf: PSF) -> None:
    row, column = 3, 6
    x, y = (conventions.pixel_centre_nm(i, PIXEL) for i in (column, row))
    assert (x, y) == (6.5 * PIXEL, 3.5 * PIXEL)
    image = psf.images(torch.tensor([[x, y, 0.0]]), (9, 11))[0]
    assert np.unravel_index(int(image.argmax()), image.shape) == (row, column)
    window = image[row - 3 : row + 4, column - 3 : column + 4]
    assert torch.allclose(window, window.flip(0), rtol=1e-3, atol=1e-6)
    assert torch.allclose(window, window.flip(1), rtol=1e-3, atol=1e-6)


def test_the_origin_is_the_outer_corner_of_the_first_pixel(psf: PSF) -> None:
    corner = psf.images(torch.tensor([[0.0, 0.0, 0.0]]), (5, 5))[0]
    assert np.unravel_index(int(corner.argmax()), corner.shape) == (0, 0)
    inner = psf.images(torch.tensor([[2 * PIXEL, 2 * PIXEL, 0.0]]), (4, 4))[0]
    torch.testing.assert_close(inner[1:3, 1:3], inner[1, 1].expand(2, 2), rtol=1e-3, atol=0)
    torch.testing.assert_close(corner[:2, :2], inner[2:, 2:], rtol=1e-3, atol=1e-6)


def test_x_runs_along_columns_and_y_down_the_rows(psf: PSF) -> None:
    images = psf.images(torch.tensor([[7.5, 1.5, 0.0], [1.5, 7.5, 0.0]]) * PIXEL, (9, 9))
    assert np.unravel_index(int(images[0].argmax()), (9, 9)) == (1, 7)
    assert np.unravel_index(int(images[1].argmax()), (9, 9)) == (7, 1)


def test_frames_are_frame_y_x() -> None:
    scene = draw(
        Ranges((0.0, 100.0)), torch.Generator().manual_seed(1), frames=3, shape=(16, 24), pixel_nm=PIXEL
    )
    assert render(scene, psfs()["gaussian"]).shape == (3, 16, 24)


def test_fractions_times_photons_are_the_photons_in_the_frame() -> None:
    scene = Scene(
        frame=torch.tensor([0]),
        xyz_nm=torch.tensor([[1100.0, 1100.0, 0.0]]),
        photons=torch.tensor([5000.0]),
        blur_nm=torch.zeros(1),
        background=torch.full((1, 20, 20), 3.0),
        read_noise_e=torch.zeros(1),
    )
    signal = render(scene, psfs()["gaussian"]) - 3.0
    assert float(signal.sum()) == pytest.approx(5000.0, rel=1e-4)


def sharpest_nm(optics: Optics, heights: torch.Tensor, pupil: Pupil | None = None) -> float:
    """Height at which the light on the axis peaks."""
    psf = PupilPSF.of(replace(optics, pixel_integration=False), pupil or Pupil.flat(64), dtype=torch.float64)
    xyz = torch.stack([torch.full_like(heights, PIXEL / 2), torch.full_like(heights, PIXEL / 2), heights], 1)
    peak = psf.images(xyz, (1, 1))[:, 0, 0]
    return float(heights[peak.argmax()])


@pytest.mark.parametrize("model", ["vectorial", "scalar"])
def test_focus_is_objective_travel_and_z_is_height(model: str) -> None:
    low = Optics(0.4, 1.518, 1.33, 600.0, PIXEL, focus_nm=20_000.0, model=model)
    wanted = conventions.paraxial_focus_nm(20_000.0, 1.33, 1.518)
    assert wanted == pytest.approx(20_000 * 1.33 / 1.518)
    heights = torch.arange(14_000.0, 22_000.0, 50.0, dtype=torch.float64)
    found = sharpest_nm(low, heights)
    assert found == pytest.approx(wanted, rel=0.02)
    assert sharpest_nm(replace(low, focus_nm=18_000.0), heights) < found


def test_a_bead_scan_moves_the_focus() -> None:
    """In a matched index only height minus focus counts: a bead below the focus is as far out as one above."""
    matched = Optics(1.3, 1.518, 1.518, 600.0, PIXEL)
    astigmatic = Pupil.flat(48, {6: 1.0})
    position = torch.tensor([[1100.0, 1100.0, 0.0]])
    bead = PupilPSF.of(replace(matched, focus_nm=400.0), astigmatic).images(position, (20, 20))
    position[0, 2] = -400.0
    emitter = PupilPSF.of(matched, astigmatic).images(position, (20, 20))
    torch.testing.assert_close(bead, emitter, rtol=1e-4, atol=1e-7)
    position[0, 2] = 400.0
    assert not torch.allclose(bead, PupilPSF.of(matched, astigmatic).images(position, (20, 20)), rtol=0.05)


def test_zernikes_are_noll_and_a_coefficient_is_its_rms() -> None:
    assert [noll_to_nm(j) for j in (2, 3, 4, 5, 6)] == [(1, 1), (1, -1), (2, 0), (2, -2), (2, 2)]
    axis = (np.arange(600) + 0.5) / 300 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    inside = x**2 + y**2 <= 1
    for noll in (2, 5, 6, 11):
        assert np.sqrt(np.mean((0.3 * zernike(noll, x[inside], y[inside])) ** 2)) == pytest.approx(
            0.3, rel=3e-3
        )


def test_tilt_of_the_pupil_moves_the_image_the_way_it_slopes() -> None:
    """Noll 2 grows with x: phase exp(i k x0) of the pupil times exp(i k x) moves the image to smaller x."""
    tilted = PupilPSF.of(OPTICS, Pupil.flat(48, {2: 2.0}))
    image = tilted.images(torch.tensor([[10.5, 10.5, 0.0]]) * PIXEL, (21, 21))[0]
    row, column = np.unravel_index(int(image.argmax()), image.shape)
    assert row == 10
    assert column < 10


def test_photo_electrons_are_counts_times_gain() -> None:
    camera = Camera(offset=100.0, e_per_adu=4.0, em_gain=20.0)
    assert camera.to_photons(np.full((1, 2, 2), 150.0))[0, 0, 0] == pytest.approx((150 - 100) * 4 / 20)


def test_frames_count_from_1_in_files_and_from_0_inside(tmp_path: Path) -> None:
    assert conventions.FIRST_FRAME_IN_FILES == 1
    table = pd.DataFrame({"frame": [0, 4], "x_nm": [55.0, 165.0], "y_nm": [55.0, 55.0]})
    write_table(tmp_path / "table.csv", table)
    text = pd.read_csv(tmp_path / "table.csv")
    assert text["frame"].tolist() == [1, 5]
    assert text["x [nm]"].tolist() == [55.0, 165.0]
    assert read_table(tmp_path / "table.csv")["frame"].tolist() == [0, 4]
