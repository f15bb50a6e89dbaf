"""The verb ``detect``."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from smlm_bridge.camera import Camera
from smlm_bridge.cli import main
from smlm_bridge.detect import DetectOptions, detect_frames
from smlm_bridge.io.images import write_stack
from smlm_bridge.io.thunderstorm import read_table

PIXEL_NM = 110.0


@pytest.fixture(scope="module")
def counts() -> NDArray[np.uint16]:
    generator = np.random.default_rng(3)
    y, x = np.mgrid[:32, :40] + 0.5
    expected = np.full((4, 32, 40), 10.0)
    for frame in expected:
        for u, v in generator.uniform((0, 0), (40, 32), (6, 2)):
            frame += 120 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 1.3**2))
    return (100 + generator.poisson(expected)).astype(np.uint16)


@pytest.fixture(scope="module")
def movie(counts: NDArray[np.uint16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("movie") / "movie.tif"
    write_stack(path, counts, pixel_nm=PIXEL_NM)
    return path


def detected(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["detect", *map(str, arguments), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    values = json.loads(line)
    assert isinstance(values, dict)
    return values


def test_the_table_is_that_of_the_function(
    counts: NDArray[np.uint16], movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "c.csv"
    values = detected(capsys, movie, "-o", output, "--offset", 100)
    expected = detect_frames(counts, pixel_nm=PIXEL_NM, camera=Camera(offset=100.0))
    assert values["frames"] == 4
    assert values["detections"] == len(expected) > 10
    assert values["failed_frames"] == 0
    table = read_table(output)
    for name in ("frame", "row", "column"):
        assert table[name].tolist() == expected[name].tolist()
    for name in ("x_nm", "y_nm", "value"):
        np.testing.assert_allclose(table[name], expected[name], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--detector", "dog"], {"detector": "dog"}),
        (["--detector-threshold", "0.8*max(F)"], {"threshold": "0.8*max(F)"}),
        (["--detector-threshold", "-5", "--connectivity", "4"], {"threshold": "-5", "connectivity": 4}),
        (["--wavelet-order", "2", "--wavelet-scale", "3"], {"wavelet_order": 2, "wavelet_scale": 3.0}),
        (
            ["--detector", "dog", "--dog-sigma-px", "1.5:3"],
            {"detector": "dog", "dog_sigma_px": (1.5, 3.0)},
        ),
    ],
)
def test_options_reach_the_detector(
    arguments: list[str],
    options: dict[str, Any],
    counts: NDArray[np.uint16],
    movie: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    detected(capsys, movie, "-o", tmp_path / "c.csv", *arguments)
    expected = detect_frames(counts, DetectOptions(**options), pixel_nm=PIXEL_NM)
    np.testing.assert_allclose(read_table(tmp_path / "c.csv")["value"], expected["value"], atol=1e-3)
    assert not expected.equals(detect_frames(counts, pixel_nm=PIXEL_NM))


def test_positions_refer_to_the_whole_movie(
    counts: NDArray[np.uint16], movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "c.csv"
    values = detected(
        capsys, movie, "-o", output, "--frames", "2:3", "--roi", "6,4,30,25", "--pixel-nm", "100"
    )
    assert values["frames"] == 2
    expected = detect_frames(counts[1:3, 4:29, 6:36], pixel_nm=100.0)
    table = read_table(output)
    assert table["frame"].tolist() == (expected["frame"] + 1).tolist()
    np.testing.assert_allclose(table["x_nm"], expected["x_nm"] + 600, atol=1e-3)
    np.testing.assert_allclose(table["y_nm"], expected["y_nm"] + 400, atol=1e-3)
    assert table["column"].tolist() == (expected["column"] + 6).tolist()


def test_the_size_of_a_pixel_is_not_guessed(
    counts: NDArray[np.uint16], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie, output, setup = tmp_path / "plain.tif", tmp_path / "c.csv", tmp_path / "setup.toml"
    write_stack(movie, counts)
    assert main(["detect", str(movie), "-o", str(output)]) == 2
    assert "--pixel-nm" in capsys.readouterr().err
    assert not output.exists()
    setup.write_text(
        "[optics]\nnumerical_aperture = 1.4\nimmersion_index = 1.518\nsample_index = 1.33\n"
        "wavelength_nm = 605\npixel_nm = 120\n[camera]\noffset = 100.0\n",
        encoding="utf-8",
    )
    assert detected(capsys, movie, "-o", output, "--setup", setup)["pixel_nm"] == 120.0


def test_a_frame_that_fails_is_named_and_the_rest_goes_on(
    counts: NDArray[np.uint16], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie, output = tmp_path / "nan.tif", tmp_path / "c.csv"
    damaged = counts.astype(np.float32)
    damaged[2, 5, 5] = np.nan
    write_stack(movie, damaged, pixel_nm=PIXEL_NM)
    values = detected(capsys, movie, "-o", output)
    assert values["failed_frames"] == 1
    assert "not finite" in values["failures"]["3"]
    assert set(read_table(output)["frame"]) == {0, 1, 3}
    write_stack(movie, np.full_like(damaged, np.nan), pixel_nm=PIXEL_NM, overwrite=True)
    assert main(["detect", str(movie), "-o", str(output), "--overwrite"]) == 1
    assert "every frame failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--split", "left-right"], 2, "--split"),
        (["--detector", "blob"], 2, "wavelet"),
        (["--detector-threshold", "std(Wave.F3)"], 3, "Did you mean Wave.F"),
        (["--detector-threshold", "F"], 3, "one threshold"),
        (["--detector-threshold", "2*"], 3, "at its end"),
        (["--dog-sigma-px", "0:1"], 3, "dog_sigma_px"),
        (["--roi", "0,0,100,100"], 3, "region"),
        (["--pixel-nm", "-1"], 3, "pixel_nm -1"),
        (["--pixel-nm", "0"], 3, "pixel_nm 0"),
    ],
)
def test_what_cannot_be_done_is_refused(
    arguments: list[str],
    code: int,
    words: str,
    movie: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "c.csv"
    assert main(["detect", str(movie), "-o", str(output), *arguments]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not output.exists()


def test_an_existing_table_and_two_channels_are_refused(
    counts: NDArray[np.uint16], movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, pair = tmp_path / "c.csv", tmp_path / "pair.tif"
    output.write_text("kept", encoding="utf-8")
    assert main(["detect", str(movie), "-o", str(output)]) == 3
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == "kept"
    write_stack(pair, counts.reshape(2, 2, 32, 40), axes="TCYX", pixel_nm=PIXEL_NM)
    assert main(["detect", str(pair), "-o", str(output), "--overwrite"]) == 3
    assert "one channel" in capsys.readouterr().err
