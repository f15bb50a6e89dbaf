"""Aberrations, blur and focus of a sample, found in its own frames."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from smlm_bridge.calibration import Calibration  # noqa: E402
from smlm_bridge.camera import Camera  # noqa: E402
from smlm_bridge.cli import main  # noqa: E402
from smlm_bridge.errors import InputRejected  # noqa: E402
from smlm_bridge.io.calibration import load_channels, save_calibration  # noqa: E402
from smlm_bridge.io.images import write_stack  # noqa: E402
from smlm_bridge.io.thunderstorm import write_table  # noqa: E402
from smlm_bridge.optics.gaussian import Gaussian  # noqa: E402
from smlm_bridge.optics.microscope import Optics  # noqa: E402
from smlm_bridge.optics.pupil import Pupil  # noqa: E402
from smlm_bridge.pair import AnyCalibration, PairCalibration, with_cameras  # noqa: E402
from smlm_bridge.retrieve.in_situ import InSituOptions, correct_in_situ  # noqa: E402
from smlm_bridge.transform import Transform  # noqa: E402

PIXEL, SIDE = 110.0, 64
OPTICS = Optics(1.2, 1.33, 1.33, 670.0, PIXEL, focus_nm=0.0)
OPTIONS = InSituOptions(zernike=(5, 6, 7, 8, 11), reach_px=12, model_error=0.01)
TURN = np.deg2rad(2.0)
TURNED = Transform.affine(
    [[-np.cos(TURN), np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]], (SIDE * PIXEL + 100.0, -80.0)
)
WRONG = {7: 0.25, 8: -0.2, 11: 0.3}
WRONG2 = {3: 0.3, 4: 0.35, 5: -0.2, 11: 0.2}


def channel(zernike: dict[int, float], blur_nm: float = 40.0) -> Calibration:
    return Calibration(OPTICS, Pupil.flat(32, zernike), z_range_nm=(-500.0, 500.0), blur_nm=blur_nm)


def also(calibration: Calibration, zernike: dict[int, float], blur_nm: float) -> Calibration:
    """With other aberrations besides."""
    assert calibration.pupil is not None
    known = dict(calibration.pupil.zernike_rad)
    pupil = replace(
        calibration.pupil,
        zernike_rad={j: known.get(j, 0.0) + zernike.get(j, 0.0) for j in {*known, *zernike}},
    )
    return replace(calibration, pupil=pupil, blur_nm=blur_nm)


def frame(calibration: AnyCalibration, xyz: np.ndarray, seed: int, photons: float = 60_000.0) -> np.ndarray:
    """(C, H, W) photo-electrons of emitters on a sloping background."""
    draw = np.random.default_rng(seed)
    slope = 10.0 + np.linspace(0.0, 10.0, SIDE)
    images = []
    for c, known in enumerate(calibration.channels):
        seen = xyz.copy()
        if c and isinstance(calibration, PairCalibration):
            seen[:, :2] = calibration.transform.apply(xyz[:, :2])
        light = known.psf().images(torch.as_tensor(seen, dtype=torch.float32), (SIDE, SIDE)).numpy().sum(0)
        images.append(draw.poisson(photons * light + slope))
    return np.stack(images).astype(np.float32)


def emitters(count: int, seed: int) -> np.ndarray:
    """Scattered over a grid, so that none hides another."""
    draw = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*[np.linspace(10, SIDE - 10, 5)] * 2), axis=-1).reshape(-1, 2)
    lateral = (draw.permutation(places)[:count] + draw.uniform(-2, 2, (count, 2))) * PIXEL
    return np.column_stack([lateral, draw.uniform(-450.0, 450.0, count)])


def moved(xyz: np.ndarray, seed: int) -> np.ndarray:
    """As a localization with the wrong PSF may have them."""
    return xyz + np.random.default_rng(seed).normal(0.0, [15.0, 15.0, 40.0], xyz.shape)


def test_the_aberrations_of_one_channel_are_found() -> None:
    known = channel({6: 0.9})
    real = also(known, WRONG, 80.0)
    truth = [emitters(15, seed) for seed in (1, 2)]
    frames = [frame(real, xyz, 10 + k) for k, xyz in enumerate(truth)]
    steps: list[tuple[int, int]] = []
    found = correct_in_situ(
        frames, [moved(xyz, 3) for xyz in truth], known, OPTIONS, on_step=lambda *at: steps.append(at)
    )
    added = found.zernike_rad[0]
    assert {j: round(value, 2) for j, value in added.items()} == pytest.approx(
        {j: WRONG.get(j, 0.0) for j in OPTIONS.zernike}, abs=0.03
    )
    assert isinstance(found.calibration, Calibration)
    assert found.calibration.blur_nm == pytest.approx(80.0, abs=4.0)
    for xyz, wanted in zip(found.xyz_nm, truth, strict=True):
        error = xyz - wanted
        assert np.abs(error.mean(0)).max() < 12.0  # 0.03 rad of spherical aberration move all heights so far
        assert np.median(np.abs(error), axis=0).max() < 10.0  # of the heights 27 before
    assert list(found.cost) == sorted(found.cost, reverse=True)
    assert steps[-1][0] == len(steps)


def test_a_pair_is_focused_and_registered_against_its_first_channel() -> None:
    known = PairCalibration(channel({6: 0.9}), channel({5: 0.8}), TURNED, 1.0)
    real = PairCalibration(also(known.first, WRONG, 60.0), also(known.second, WRONG2, 70.0), TURNED, 1.0)
    truth = emitters(25, 4)
    found = correct_in_situ([frame(real, truth, 5)], [moved(truth, 6)], known, OPTIONS)
    first, second = found.zernike_rad
    assert set(first) == {5, 6, 7, 8, 11}
    assert set(second) == {2, 3, 4, 5, 6, 7, 8, 11}
    assert first == pytest.approx({j: WRONG.get(j, 0.0) for j in first}, abs=0.03)
    assert second == pytest.approx({j: WRONG2.get(j, 0.0) for j in second}, abs=0.04)
    assert (found.xyz_nm[0] - truth).std(0).max() < 10.0


def test_a_calibration_that_is_right_stays_as_it_is() -> None:
    known = channel({6: 0.9}, blur_nm=70.0)
    truth = emitters(15, 7)
    found = correct_in_situ([frame(known, truth, 8)], [truth], known, OPTIONS)
    assert max(map(abs, found.zernike_rad[0].values())) < 0.03
    assert found.calibration.channels[0].blur_nm == pytest.approx(70.0, abs=4.0)
    assert found.rrse[0] < 0.02
    assert found.calibration.channels[0].provenance["rrse"] == found.rrse[0]


def test_what_the_aberrations_allowed_do_not_explain_is_told() -> None:
    known = channel({6: 0.9})
    truth = emitters(15, 12)
    image = frame(also(known, {9: 0.4, 10: 0.3}, 40.0), truth, 13)
    found = correct_in_situ([image], [truth], known, OPTIONS)  # which may have no trefoil
    assert 0.08 < found.rrse[0] < 0.4


def test_rerender_corrects_a_calibration_on_a_region_of_a_movie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: object) -> dict[str, Any]:
        assert main([*map(str, arguments), "--json", "--quiet"]) == 0, capsys.readouterr().err
        return dict(json.loads(capsys.readouterr().out))

    cameras = (Camera(offset=100.0, e_per_adu=0.5), Camera(offset=200.0))
    known = PairCalibration(channel({6: 0.9}), channel({5: 0.8}), TURNED, 1.0)
    real = replace(known, second=also(known.second, {8: 0.4}, 80.0))
    truth = emitters(9, 9)
    counts = frame(real, truth, 10)
    counts = np.stack([camera.expected(image) for camera, image in zip(cameras, counts, strict=True)])
    table, movie = tmp_path / "table.csv", tmp_path / "movie.tif"
    write_stack(movie, counts[None].astype(np.float32), pixel_nm=PIXEL, axes="TCYX")
    rows = pd.DataFrame(moved(truth, 11), columns=["x_nm", "y_nm", "z_nm"])
    write_table(table, rows.assign(frame=0))
    save_calibration(tmp_path / "known.psf.h5", with_cameras(known, cameras))
    made = tmp_path / "made.psf.h5"
    given = ("rerender", table, movie, tmp_path / "known.psf.h5", "--roi", "3,2,60,61")
    assert main([*map(str, (*given, "--correct", tmp_path / "made.h5"))]) == 3  # before the work
    assert "ends in .psf.h5" in capsys.readouterr().err
    before, after = told(*given)["explained_signal"], told(*given, "--correct", made)
    assert np.all(np.array(after["explained_signal"]) > before)
    assert after["explained_signal"][1] > 0.99
    assert after["zernike_rad"][1]["8"] == pytest.approx(0.4, abs=0.08)
    assert after["blur_nm"][1] == pytest.approx(80.0, abs=10.0)
    corrected = load_channels(made)
    assert isinstance(corrected, PairCalibration)
    assert corrected.provenance["corrected_on"] == "movie.tif"
    assert corrected.transform.coefficients == pytest.approx(TURNED.coefficients)
    assert [c.camera for c in corrected.channels] == list(cameras)


def test_rerender_refuses_to_correct_on_a_whole_movie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_stack(tmp_path / "movie.tif", np.ones((101, 16, 16), np.float32), pixel_nm=PIXEL)
    write_table(tmp_path / "table.csv", pd.DataFrame({"frame": [0], "x_nm": [500.0], "y_nm": [500.0]}))
    save_calibration(tmp_path / "known.psf.h5", channel({6: 0.9}))
    given = [tmp_path / name for name in ("table.csv", "movie.tif", "known.psf.h5")]
    assert main(["rerender", *map(str, given), "--correct", str(tmp_path / "made.psf.h5")]) == 3
    assert "--frames A:B" in capsys.readouterr().err
    assert not (tmp_path / "made.psf.h5").exists()


def test_what_cannot_be_corrected_is_refused() -> None:
    known, xyz = channel({6: 0.9}), emitters(3, 1)
    image = frame(known, xyz, 1)
    gaussian = replace(known, pupil=None, gaussian=Gaussian((150.0, 150.0), (0.0, 0.0), (500.0, 500.0)))
    with pytest.raises(InputRejected, match="has a gaussian"):
        correct_in_situ([image], [xyz], gaussian, OPTIONS)
    with pytest.raises(InputRejected, match="1 channel"):
        correct_in_situ([np.concatenate([image, image])], [xyz], known, OPTIONS)
    with pytest.raises(InputRejected, match="no emitters"):
        correct_in_situ([image], [xyz[:0]], known, OPTIONS)
    image[0, 3, 4] = np.nan
    with pytest.raises(InputRejected, match="not finite"):
        correct_in_situ([image], [xyz], known, OPTIONS)
    with pytest.raises(InputRejected, match="from 5"):
        InSituOptions(zernike=(4, 5))
