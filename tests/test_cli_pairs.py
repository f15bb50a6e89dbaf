"""Two channels from end to end: join, simulate, localize, rerender and crlb, however the channels are stored."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.cli import main
from smlm_bridge.evaluate import match
from smlm_bridge.io.calibration import save_calibration
from smlm_bridge.io.channels import open_channels
from smlm_bridge.io.images import write_stack
from smlm_bridge.io.thunderstorm import read_table, write_table
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.pair import PairCalibration
from smlm_bridge.transform import Transform

pytest.importorskip("torch")

PIXEL = 100.0
OPTICS = Optics(1.4, 1.518, 1.33, 670.0, PIXEL)
SIDE = 64
# Biplane: both round, in focus at different heights; the second mirrored, magnified, shifted and twice as bright.
NEAR = Gaussian((130.0, 130.0), (100.0, 100.0), (350.0, 350.0))
FAR = Gaussian((130.0, 130.0), (500.0, 500.0), (350.0, 350.0))
MIRRORED = Transform.affine([[-1.01, 0.0], [0.0, 1.0]], (SIDE * PIXEL + 40.0, 130.0))
CAMERAS = Camera(offset=100.0, e_per_adu=0.5), Camera(offset=200.0, e_per_adu=0.4, read_noise_e=1.0)
RATIO = 2.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    first, second = (
        Calibration(OPTICS, gaussian=gaussian, camera=camera, z_range_nm=(0.0, 600.0))
        for gaussian, camera in zip((NEAR, FAR), CAMERAS, strict=True)
    )
    path = tmp_path_factory.mktemp("pair") / "pair.psf.h5"
    save_calibration(path, PairCalibration(first, second, MIRRORED, RATIO))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json", "--quiet"]) == 0, capsys.readouterr().err
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def simulated(pair: Path, folder: Path, capsys: pytest.CaptureFixture[str], *options: object) -> None:
    run(
        capsys, "simulate", pair, "-o", folder / "movie.tif", "--truth", folder / "truth.csv", "--frames", 30,
        "--emitters", 1, "--size-px", f"{SIDE}x{SIDE}", "--photons", "9000:12000", "--background", "10:12",
        "--z-nm", "50:550", "--clear-nm", 1500, "--seed", 3, *options,
    )  # fmt: skip


def found_of(
    table: Path, truth: Path, *, apart_nm: float = 2000.0
) -> tuple[float, float, float, float, float]:
    """Share of lone true emitters found, RMS of x, y and z, and mean of photons over truth."""
    locs, true = read_table(table, pixel_nm=PIXEL), read_table(truth, pixel_nm=PIXEL)
    pairs = match(locs, true, radius_nm=250.0)
    here, there = locs.iloc[pairs.loc_index], true.iloc[pairs.truth_index]
    miss = here[["x_nm", "y_nm", "z_nm"]].to_numpy() - there[["x_nm", "y_nm", "z_nm"]].to_numpy()
    ratio = np.median(here["photons"].to_numpy() / there["photons"].to_numpy())
    return len(here) / len(true), *np.median(np.abs(miss), axis=0), float(ratio)


@pytest.mark.parametrize("how", ["axis", "channel2", "left-right", "top-bottom"])
def test_a_pair_from_simulation_to_explained_signal(
    how: str, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, list[object]] = {"axis": [], "channel2": ["--channel2", tmp_path / "second.tif"]}
    given = options.get(how, ["--split", how])
    simulated(pair, tmp_path, capsys, *given)
    shape = tifffile.imread(tmp_path / "movie.tif").shape
    assert shape == {
        "axis": (30, 2, SIDE, SIDE), "channel2": (30, SIDE, SIDE), "left-right": (30, SIDE, 2 * SIDE),
        "top-bottom": (30, 2 * SIDE, SIDE),
    }[how]  # fmt: skip
    said = run(
        capsys,
        "localize",
        tmp_path / "movie.tif",
        "--calibration",
        pair,
        "-o",
        tmp_path / "table.csv",
        *given,
    )
    assert said["failed_frames"] == 0
    share, x, y, z, photons = found_of(tmp_path / "table.csv", tmp_path / "truth.csv")
    assert share > 0.95
    assert max(x, y) < 4
    assert z < 12
    assert photons == pytest.approx(1.0, abs=0.03)
    told = run(
        capsys,
        "rerender",
        tmp_path / "truth.csv",
        tmp_path / "movie.tif",
        pair,
        "-o",
        tmp_path / "model.tif",
        *given,
    )
    explained = told["explained_signal"]
    assert isinstance(explained, list)
    assert len(explained) == 2
    assert explained[0] > 0.85  # the rest is noise
    assert explained[1] > 0.93
    assert tifffile.imread(tmp_path / "model.tif").shape == (30, 2, SIDE, SIDE)


def test_a_region_of_a_pair_gives_the_same_positions(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The transform is that of whole frames: a region must not move the second channel's boxes."""
    simulated(pair, tmp_path, capsys, "--split", "left-right")
    given = ["--split", "left-right", "--calibration", pair]
    run(capsys, "localize", tmp_path / "movie.tif", "-o", tmp_path / "all.csv", *given)
    run(
        capsys, "localize", tmp_path / "movie.tif", "-o", tmp_path / "part.csv", "--roi", "10,0,54,60", *given
    )
    whole, part = (read_table(tmp_path / name, pixel_nm=PIXEL) for name in ("all.csv", "part.csv"))
    pairs = match(part, whole, radius_nm=30.0)
    assert len(pairs.truth_index) > 18
    here, there = part.iloc[pairs.loc_index], whole.iloc[pairs.truth_index]
    np.testing.assert_allclose(here[["x_nm", "y_nm", "z_nm"]], there[["x_nm", "y_nm", "z_nm"]], atol=0.5)
    told = run(
        capsys, "rerender", tmp_path / "part.csv", tmp_path / "movie.tif", pair, "--roi", "10,0,54,60",
        "--split", "left-right",
    )  # fmt: skip
    assert min(told["explained_signal"]) > 0.7  # type: ignore[type-var,call-overload]


def test_an_emitter_only_the_second_channel_shows_well_is_found(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Candidates come from the sum: here the first channel is out of focus, and has a third of the light."""
    run(
        capsys, "simulate", pair, "-o", tmp_path / "m.tif", "--truth", tmp_path / "t.csv", "--frames", 20,
        "--emitters", 1, "--size-px", f"{SIDE}x{SIDE}", "--photons", "900:1000", "--background", "20:20", "--z-nm",
        "500:500", "--clear-nm", 1500, "--seed", 5,
    )  # fmt: skip
    run(capsys, "localize", tmp_path / "m.tif", "--calibration", pair, "-o", tmp_path / "l.csv")
    assert found_of(tmp_path / "l.csv", tmp_path / "t.csv")[0] >= 0.9


def test_the_bound_of_a_pair(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bound(*options: object) -> dict[str, np.ndarray]:
        said = run(
            capsys, "crlb", pair, "--photons", 3000, "--z-nm", "100:500:200", "--window-px", 21, *options
        )
        return {name: np.array(values) for name, values in said.items()}

    plain = bound("-o", tmp_path / "table.csv", "--plot", tmp_path / "plot.png")
    assert {"sigma_background", "sigma_background_2", "sigma_photons"} <= set(plain)
    assert len(plain["z_nm"]) == 3
    assert (plain["sigma_z_nm"] > 0).all()
    coloured = bound("--unknown-ratio")
    assert (coloured["sigma_z_nm"] >= plain["sigma_z_nm"] * (1 - 1e-9)).all()
    assert (coloured["sigma_photons_2"] > 0).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        many = run(
            capsys, "crlb", pair, "--photons", "1000:3000:1000", "--z-nm", "100:500:200", "--plot", "many.png",
            "--window-px", 21,
        )  # fmt: skip
    assert many["photons"] == [1000.0] * 3 + [2000.0] * 3 + [3000.0] * 3
    np.testing.assert_allclose(np.array(many["sigma_x_nm"])[6:], plain["sigma_x_nm"])


def test_a_wrong_transform_is_seen_in_the_second_channel(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated(pair, tmp_path, capsys)
    first, second = (
        Calibration(OPTICS, gaussian=gaussian, camera=camera, z_range_nm=(0.0, 600.0))
        for gaussian, camera in zip((NEAR, FAR), CAMERAS, strict=True)
    )
    wrong = tmp_path / "wrong.psf.h5"
    save_calibration(wrong, PairCalibration(first, second, Transform.identity(), RATIO))
    told = run(capsys, "rerender", tmp_path / "truth.csv", tmp_path / "movie.tif", wrong)
    explained = told["explained_signal"]
    assert isinstance(explained, list)
    assert explained[0] > 0.85
    assert explained[1] < 0.5


def test_what_does_not_fit_together_is_named(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_stack(tmp_path / "one.tif", np.zeros((3, 40, 40), np.uint16))
    write_stack(tmp_path / "two.tif", np.zeros((2, 40, 40), np.uint16))
    table = tmp_path / "t.csv"
    write_table(table, read_table_of_one())
    cases: list[tuple[int, str, list[object]]] = [
        (3, "2 channel(s)", ["localize", tmp_path / "one.tif", "--calibration", pair, "-o", tmp_path / "x.csv"]),
        (3, "3 frames", ["localize", tmp_path / "one.tif", "--calibration", pair, "-o", tmp_path / "x.csv",
                         "--channel2", tmp_path / "two.tif"]),
        (2, "not both", ["localize", tmp_path / "one.tif", "--calibration", pair, "-o", tmp_path / "x.csv",
                         "--channel2", tmp_path / "two.tif", "--split", "left-right"]),
        (2, "left-right", ["localize", tmp_path / "one.tif", "--calibration", pair, "-o", tmp_path / "x.csv",
                           "--split", "sideways"]),
        (3, "does not lie within", ["localize", tmp_path / "one.tif", "--calibration", pair, "-o",
                                    tmp_path / "x.csv", "--split", "0,0,30,30;20,0,30,30"]),
        (3, "2 channel(s)", ["rerender", table, tmp_path / "one.tif", pair]),
        (2, "--unknown-ratio", ["crlb", "astigmatism", "--unknown-ratio"]),
    ]  # fmt: skip
    for code, words, arguments in cases:
        capsys.readouterr()
        if "astigmatism" in arguments:
            single = tmp_path / "single.psf.h5"
            save_calibration(single, Calibration(OPTICS, gaussian=NEAR, z_range_nm=(0.0, 600.0)))
            arguments = ["crlb", single, "--unknown-ratio"]
        assert main([*map(str, arguments)]) == code, arguments
        assert words in capsys.readouterr().err


def read_table_of_one():  # type: ignore[no-untyped-def]
    import pandas as pd

    return pd.DataFrame(
        {"frame": [0], "x_nm": [1000.0], "y_nm": [1000.0], "z_nm": [100.0], "photons": [1000.0]}
    )


def test_regions_of_a_chip_are_cut_and_positions_refer_to_the_chip(tmp_path: Path) -> None:
    frames = np.arange(2 * 20 * 30, dtype=np.uint16).reshape(2, 20, 30)
    write_stack(tmp_path / "chip.tif", frames)
    with open_channels(tmp_path / "chip.tif", split="3,2,8,10;20,5,8,10", roi=(1, 2, 5, 6)) as source:
        assert (source.n_channels, source.x0, source.y0, source.width, source.height) == (2, 4, 4, 5, 6)
        assert source.corners_px == ((4, 4), (21, 7))
        assert source.roi_px == (1, 2)
        assert source.channel_shape == (10, 8)
        first, second = np.moveaxis(source.read(0, 2), 1, 0)
        assert source.description["channels"] == 2
    np.testing.assert_array_equal(first, frames[:, 4:10, 4:9])
    np.testing.assert_array_equal(second, frames[:, 7:13, 21:26])
