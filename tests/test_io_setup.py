"""The setup file: values, options that win, messages that name the fix; designed masks on their own grid."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tifffile

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.setup import MaskSpec, load_mask, load_setup
from smlm_bridge.optics.microscope import Optics

MASKS = Path(__file__).resolve().parents[2] / "shared" / "data" / "masks"

OPTICS = """
[optics]
numerical_aperture = 1.49
immersion_index = 1.518
sample_index = 1.33
wavelength_nm = 605
pixel_nm = 110
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "setup.toml"
    path.write_text(text, encoding="utf-8")
    return path


def optics(numerical_aperture: float = 1.45) -> Optics:
    return Optics(numerical_aperture, 1.518, 1.33, 580.0, 110.0, focus_nm=4500.0)


def test_every_key_of_the_contract_is_read(tmp_path: Path) -> None:
    extra = (
        'focus_nm = 3150\nmodel = "scalar"\nsupercritical = false\nanalyser_deg = 45\n'
        "pixel_integration = false\n"
        '[mask]\nfile = "mask.mat"\nvariable = "mask1"\nslm_pixel_um = 24.0\nrelay_focal_mm = 150.0\n'
        "magnification = 100.0\n"
        "[camera]\noffset = 100.0\ne_per_adu = 0.45\nread_noise_e = 1.6\nquantum_efficiency = 0.9\n"
        "em_gain = 1.0\n"
    )
    setup = load_setup(write(tmp_path, OPTICS + extra))
    assert setup.optics == Optics(1.49, 1.518, 1.33, 605.0, 110.0, 3150.0, "scalar", False, 45.0, None, False)
    assert setup.mask == MaskSpec(tmp_path / "mask.mat", 24.0, 150.0, 100.0, "mask1")
    assert setup.camera is not None
    assert (setup.camera.offset, setup.camera.e_per_adu, setup.camera.read_noise_e) == (100.0, 0.45, 1.6)
    assert setup.camera.quantum_efficiency == 0.9


def test_an_empty_setup_says_nothing() -> None:
    setup = load_setup(None)
    assert (setup.optics, setup.mask, setup.camera) == (None, None, None)


def test_options_win_over_the_file_and_none_does_not(tmp_path: Path) -> None:
    path = write(tmp_path, OPTICS + "[camera]\noffset = 100\n")
    setup = load_setup(path, {"pixel_nm": 65.0, "wavelength_nm": None, "offset": 7, "supercritical": False})
    assert setup.optics is not None
    assert setup.camera is not None
    assert (setup.optics.pixel_nm, setup.optics.wavelength_nm) == (65.0, 605.0)
    assert setup.camera.offset == 7
    assert not setup.optics.supercritical


def test_options_alone_make_a_microscope() -> None:
    given = {"numerical_aperture": 1.2, "immersion_index": 1.33, "sample_index": 1.33}
    setup = load_setup(None, {**given, "wavelength_nm": 600.0, "pixel_nm": 100.0})
    assert setup.optics == Optics(1.2, 1.33, 1.33, 600.0, 100.0)
    with pytest.raises(InputRejected, match="--wavelength-nm --pixel-nm"):
        load_setup(None, given)


def test_a_camera_map_is_relative_to_the_file_and_from_an_option_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, elsewhere = tmp_path / "experiment", tmp_path / "elsewhere"
    for folder, level in ((experiment, 100), (elsewhere, 200)):
        folder.mkdir()
        tifffile.imwrite(folder / "offset.tif", np.full((4, 5), level, np.uint16))
    path = write(experiment, '[camera]\noffset = "offset.tif"\n')
    monkeypatch.chdir(elsewhere)
    camera = load_setup(path).camera
    assert camera is not None
    np.testing.assert_array_equal(camera.offset, np.full((4, 5), 100))
    camera = load_setup(path, {"offset": "offset.tif"}).camera
    assert camera is not None
    np.testing.assert_array_equal(camera.offset, np.full((4, 5), 200))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OPTICS + "pixel_size = 110\n", "pixel_nm in [optics]"),
        (OPTICS + "NA = 1.49\n", "numerical_aperture"),
        (OPTICS + "focus_um = 3.15\n", "focus_nm = 3150"),
        (OPTICS + "em_gain = 100\n", "em_gain in [camera]"),
        (OPTICS.replace("605", "0.605"), "605 nm"),
        (OPTICS.replace("pixel_nm = 110", "pixel_nm = 0.11"), "110 nm"),
        (OPTICS.replace("605", '"605"'), "wavelength_nm"),
        (OPTICS.replace("605", "nan"), "wavelength_nm"),
        (OPTICS + 'model = "vectoral"\n', "vectorial"),
        (OPTICS.replace("wavelength_nm = 605", ""), "--wavelength-nm"),
        ("pixel_nm = 110\n", "[optics]"),
        ("[optic]\n", "[optics]"),
        ("camera = 3\n", "[camera]"),
        ("[camera\n", "not TOML"),
        ('[camera]\noffset = "nothing.tif"\n', "nothing.tif"),
        ("[camera]\noffset = true\n", "a number or the path of a TIFF"),
        ('[mask]\nfile = "m.mat"\nslm_pixel_um = 0.024\nrelay_focal_mm = 150\nmagnification = 100\n', "24"),
        ('[mask]\nfile = "m.mat"\nslm_pixel_um = 24\nrelay_focal_mm = 0.15\nmagnification = 100\n', "150"),
    ],
)
def test_a_wrong_setup_is_rejected_with_the_likely_fix(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputRejected) as caught:
        load_setup(write(tmp_path, text))
    assert words in str(caught.value)


def test_a_missing_file_and_an_unknown_option_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="cannot be read"):
        load_setup(tmp_path / "none.toml")
    with pytest.raises(InputRejected, match="unknown key 'pixel_mm'"):
        load_setup(None, {"pixel_mm": 1.0})


def spec(file: Path, variable: str | None = None) -> MaskSpec:
    return MaskSpec(file, 24.0, 150.0, 100.0, variable)


def test_a_mask_is_cut_to_the_pupil_and_turned_about_its_centre(tmp_path: Path) -> None:
    phase = np.zeros((301, 401), np.float64)
    phase[150, 200] = 1.5  # the centre
    phase[140, 200] = -0.5  # ten samples up
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, phase)
    pupil = load_mask(spec(path), optics())
    middle = (pupil.phase_rad.shape[0] - 1) // 2
    assert pupil.phase_rad[middle, middle] == 1.5
    assert pupil.phase_rad[middle + 10, middle] == -0.5  # turned: ten samples down
    assert pupil.sample_pitch == pytest.approx(2 / 181.269, rel=1e-5)
    assert pupil.rho_axis[-1] >= 1 > pupil.rho_axis[-2]
    assert (pupil.amplitude == 1).all()


def test_a_mask_of_even_size_stays_even(tmp_path: Path) -> None:
    path = tmp_path / "mask.mat"
    scipy.io.savemat(path, {"phase": np.tile(np.linspace(-1, 1, 256), (256, 1)), "wavelength": 580.0})
    pupil = load_mask(spec(path), optics())
    assert pupil.phase_rad.shape == (184, 184)
    np.testing.assert_allclose(pupil.phase_rad + pupil.phase_rad[:, ::-1], 0, atol=1e-12)


def test_wrong_masks_are_rejected_by_name(tmp_path: Path) -> None:
    good = np.zeros((201, 201))
    bad = good.copy()
    bad[3, 4] = np.nan
    contents = {
        "two": ({"mask1": good, "mask2": good}, "mask1, mask2"),
        "none": ({"text": "no array"}, "0 2-D arrays"),
        "nan": ({"mask": bad}, "not finite"),
        "degrees": ({"mask": good + 359.0}, "rad"),
        "small": ({"mask": good[:101, :101]}, "does not cover"),
        "crooked": ({"mask": good[:, :200]}, "no common centre"),
    }
    for name, (arrays, words) in contents.items():
        path = tmp_path / f"{name}.mat"
        scipy.io.savemat(path, arrays)
        with pytest.raises(InputRejected) as caught:
            load_mask(spec(path), optics())
        assert words in str(caught.value), name
    two = tmp_path / "two.mat"
    assert load_mask(spec(two, "mask2"), optics()).phase_rad.shape == (183, 183)
    with pytest.raises(InputRejected, match="mask1, mask2"):
        load_mask(spec(two, "mask3"), optics())
    with pytest.raises(InputRejected, match="does not exist"):
        load_mask(spec(tmp_path / "missing.mat"), optics())
    (tmp_path / "junk.mat").write_bytes(b"not a matlab file")
    with pytest.raises(InputRejected, match="not a MATLAB file"):
        load_mask(spec(tmp_path / "junk.mat"), optics())


@pytest.mark.real
@pytest.mark.skipif(not MASKS.is_dir(), reason=f"no microscope data at {os.path.relpath(MASKS)}")
def test_real_masks_have_the_published_pupil_diameters() -> None:
    pupil = load_mask(spec(MASKS / "tetrapod_telomere.mat"), optics())
    assert 2 / pupil.sample_pitch == pytest.approx(181.3, abs=0.05)
    assert pupil.phase_rad.shape == (183, 183)
    storm = MaskSpec(MASKS / "tetrapod_storm.mat", 30.0, 100.0, 100.0)
    assert 2 / load_mask(storm, optics()).sample_pitch == pytest.approx(96.7, abs=0.05)
    pair = load_mask(spec(MASKS / "pair_crlb.mat", "mask1"), optics(1.49))
    assert 2 / pair.sample_pitch == pytest.approx(186.3, abs=0.05)
    with pytest.raises(InputRejected, match="mask1, mask2"):
        load_mask(spec(MASKS / "pair_crlb.mat"), optics(1.49))


def test_a_known_camera_keeps_what_is_not_said() -> None:
    known = Camera(offset=100.0, e_per_adu=0.45, read_noise_e=1.6)
    assert load_setup(None, {"offset": 90.0}, camera=known).camera == Camera(90.0, 0.45, 1.6)
    assert load_setup(None, camera=known).camera == known


def test_a_tilt_of_the_mask_displaces_the_image_its_own_way(tmp_path: Path) -> None:
    """A phase that rises towards +x moves the image towards +x, as in the published simulators."""
    import torch

    from smlm_bridge.psf.pupil_psf import PupilPSF

    rise = 2.0 * np.arange(-150, 151) / 90.6  # about 2 rad over the radius of the pupil
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, np.tile(rise, (301, 1)))
    microscope = optics()
    images = PupilPSF.of(microscope, load_mask(spec(path), microscope)).images(
        torch.tensor([[41 * microscope.pixel_nm / 2, 41 * microscope.pixel_nm / 2, 3940.0]]), (41, 41)
    )
    profile = images[0].sum(0).numpy()
    assert (profile * np.arange(41)).sum() / profile.sum() > 20.5
