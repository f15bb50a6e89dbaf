"""``join``, ``convert`` between PSFs and ``calibrate --psf``: thin skins over tested functions."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from smlm_bridge.calibration import Calibration
from smlm_bridge.cli import main
from smlm_bridge.io.calibration import load_calibration, load_channels, save_calibration, save_transform
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.pair import PairCalibration
from smlm_bridge.transform import Transform

OPTICS = Optics(1.4, 1.518, 1.33, 670.0, 110.0, model="scalar", pixel_integration=False)
ASTIGMATIC = Gaussian((130.0, 140.0), (-200.0, 200.0), (400.0, 450.0))
MICROSCOPE = [
    "--numerical-aperture", "1.4", "--immersion-index", "1.518", "--sample-index", "1.33",
    "--wavelength-nm", "670", "--pixel-nm", "110",
]  # fmt: skip


@pytest.fixture
def pupil(tmp_path: Path) -> Path:
    path = tmp_path / "pupil.psf.h5"
    save_calibration(path, Calibration(OPTICS, Pupil.flat(64, {6: 0.4, 7: 0.3}), z_range_nm=(0.0, 800.0)))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert main([*map(str, arguments), "--json", "--quiet"]) == 0, capsys.readouterr().err
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_join_makes_a_pair_of_two(pupil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_transform(tmp_path / "T.json", Transform.affine(np.eye(2), (110.0, -55.0)))
    other = tmp_path / "gaussian.psf.h5"
    save_calibration(other, Calibration(OPTICS, gaussian=ASTIGMATIC, z_range_nm=(-300.0, 500.0)))
    target = tmp_path / "pair.psf.h5"
    said = run(
        capsys, "join", pupil, other, "--transform", tmp_path / "T.json", "--photon-ratio", 0.85, "-o", target
    )
    assert said["channels"] == 2
    assert said["z_range_nm"] == [0.0, 500.0]
    pair = load_channels(target)
    assert isinstance(pair, PairCalibration)
    assert pair.photon_ratio == 0.85
    assert pair.transform.apply([[0.0, 0.0]])[0] == pytest.approx([110.0, -55.0])
    assert [channel.psf_kind for channel in pair.channels] == ["pupil", "gaussian"]
    assert main(["join", str(target), str(other), "-o", str(tmp_path / "x.psf.h5")]) == 3
    assert (
        main(["join", str(pupil), str(other), "-o", str(tmp_path / "x.psf.h5"), "--photon-ratio", "0"]) == 3
    )
    (tmp_path / "T.json").write_text("{}")
    assert (
        main(["join", str(pupil), str(other), "-o", "x.psf.h5", "--transform", str(tmp_path / "T.json")]) == 3
    )


@pytest.mark.filterwarnings("ignore::UserWarning")  # what gets lost
def test_convert_goes_by_extension(pupil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "convert", pupil, tmp_path / "x.json")
    assert said["notes"] == []
    back = tmp_path / "back.psf.h5"
    run(capsys, "convert", tmp_path / "x.json", back, "--z-nm", "0:800")
    found = load_calibration(back)
    assert found.pupil is not None
    assert dict(found.pupil.zernike_rad) == pytest.approx({6: 0.4, 7: 0.3})
    assert found.optics.wavelength_nm == pytest.approx(670.0)
    run(capsys, "convert", pupil, tmp_path / "x.h5", "--box-px", 11, "--z-step-nm", 200)
    run(capsys, "convert", tmp_path / "x.h5", tmp_path / "u.psf.h5", "--focus-nm", 100)
    assert load_calibration(tmp_path / "u.psf.h5").optics.focus_nm == 100.0
    assert run(capsys, "convert", pupil, tmp_path / "x_3dcal.mat", "--box-px", 11, "--z-step-nm", 200)[
        "notes"
    ]
    run(capsys, "convert", tmp_path / "x_3dcal.mat", tmp_path / "s.psf.h5", *MICROSCOPE)
    assert load_calibration(tmp_path / "s.psf.h5").psf_kind == "spline"
    assert main(["convert", str(tmp_path / "x_3dcal.mat"), str(tmp_path / "t.psf.h5")]) == 2  # no microscope
    assert main(["convert", str(pupil), str(tmp_path / "x.yaml")]) == 3  # no widths
    assert main(["convert", str(pupil), str(tmp_path / "x.csv")]) == 2


def test_calibrate_writes_averaged_beads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    one = Calibration(OPTICS, gaussian=ASTIGMATIC, z_range_nm=(-700.0, 700.0))
    z = np.linspace(-600, 600, 13)
    xyz = np.column_stack([np.full(13, 1850.0), np.full(13, 1720.0), z])
    light = one.psf().images(torch.tensor(xyz), (33, 33)).numpy() * 50_000 + 10
    tifffile.imwrite(tmp_path / "bead.tif", np.random.default_rng(1).poisson(light).astype(np.uint16))
    for psf in ("spline", "gaussian"):
        target, model = tmp_path / f"{psf}.psf.h5", tmp_path / f"{psf}.tif"
        said = run(
            capsys, "calibrate", tmp_path / "bead.tif", "-o", target, "--psf", psf, "--box-px", 21, "--z-step-nm",
            -100 * 1.518 / 1.33, "--model-stack", model, "--report", tmp_path / f"{psf}.html", *MICROSCOPE
        )  # fmt: skip
        assert "Best possible precision" in (tmp_path / f"{psf}.html").read_text(encoding="utf-8")
        assert (said["beads"], said["used"]) == (1, 1)
        assert float(str(said["rrse"])) < 0.1
        assert load_calibration(target).psf_kind == psf
        assert tifffile.imread(model).shape == (13, 33, 33)
    found = load_calibration(tmp_path / "gaussian.psf.h5").gaussian
    assert found is not None
    assert found.focus_nm[1] - found.focus_nm[0] == pytest.approx(400.0, abs=25.0)
    refused = ["calibrate", str(tmp_path / "bead.tif"), "-o", str(tmp_path / "y.psf.h5"), "--psf", "spline"]
    assert main([*refused, "--z-step-nm", "100", "--analyser", "0", *MICROSCOPE]) == 2
