"""Options of ThunderSTORM and ImageJ before Java sees them, and our own engine: no Java here."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from smlm_bridge.bridge import engines, jars, modules, settings
from smlm_bridge.bridge.checks import findings
from smlm_bridge.bridge.gateway import GatewayOptions, gateway
from smlm_bridge.bridge.images import to_image
from smlm_bridge.bridge.macro import option_text
from smlm_bridge.bridge.windowless import provider_class_file
from smlm_bridge.camera import Camera
from smlm_bridge.cli import main
from smlm_bridge.errors import InputRejected, MissingDependency
from smlm_bridge.post.drift_cross_correlation import cross_correlation_drift, radial_centre

OWN = engines.Engine()


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (jars.PLUGINS_VARIABLE, jars.FIJI_VARIABLE, jars.JAR_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def drifting(rows: int = 6000, frames: int = 300) -> pd.DataFrame:
    draw = np.random.default_rng(2)
    which = draw.integers(0, 400, rows)
    places = draw.uniform(600, 5000, (400, 2))
    frame = np.sort(draw.integers(0, frames, rows))
    xy = places[which] + draw.normal(0, 10, (rows, 2))
    xy[:, 0] += 150.0 * frame / frames
    return pd.DataFrame({"frame": frame, "x_nm": xy[:, 0], "y_nm": xy[:, 1]})


def test_option_text_is_what_imagej_reads() -> None:
    text = option_text({"sigma": 1.6, "size": 3, "flag": True, "off": False, "path": Path("a b/c.csv")})
    assert text == "sigma=1.6 size=3 flag=true off=false path=[a b/c.csv]"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pixelSize": 100.0}, "lower-case"),
        ({"model_path": "a", "path": "b"}, "found inside 'model_path'"),
        ({"path": "a[1].csv"}, "no brackets"),
        ({"sigma": float("nan")}, "finite"),
    ],
)
def test_options_imagej_would_misread_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(InputRejected, match=text):
        option_text(options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: modules.WaveletFilter(scale=0.0),
        lambda: modules.BoxFilter(size=-1),
        lambda: modules.MedianFilter(pattern="round"),  # type: ignore[arg-type]
        lambda: modules.LocalMaximum("std(Wave.F9)"),
        lambda: modules.LocalMaximum("Wave.F1"),
        lambda: modules.IntegratedGaussian(method="best"),  # type: ignore[arg-type]
        lambda: modules.IntegratedGaussian(full_image_fitting="yes"),  # type: ignore[arg-type]
        lambda: modules.EllipticalGaussian(calibrationpath=Path("none.yaml")),
        lambda: modules.MultiEmitter(pvalue=2.0),
        lambda: modules.NormalizedGaussian(dx=float("nan")),
        lambda: modules.Analysis(detector=modules.WaveletFilter()),  # type: ignore[arg-type]
        lambda: settings.CrossCorrelation(smoothing=0.25),  # ThunderSTORM's defaults, which throw
        lambda: settings.CrossCorrelation(steps=1),
        lambda: settings.Fiducials(on_time_ratio=2.0),
        lambda: settings.DriftFile(Path("none.json")),
        lambda: settings.Merging(distance_nm=0.0),
        lambda: settings.Density(neighbours=0),
        lambda: settings.Calibrating(defocus="cubic"),  # type: ignore[arg-type]
        lambda: GatewayOptions(memory="lots"),
        lambda: GatewayOptions(mode="window"),  # type: ignore[arg-type]
    ],
)
def test_what_thunderstorm_would_take_in_silence_is_refused(make: object) -> None:
    with pytest.raises(InputRejected):
        make()  # type: ignore[operator]


def test_modules_that_share_an_option_must_agree_on_it() -> None:
    estimator = modules.IntegratedGaussian(sigma=1.3)
    with pytest.raises(InputRejected, match="knows one for both"):
        modules.Analysis(modules.GaussianFilter(1.6), modules.LocalMaximum("50"), estimator).options("dev")
    same = modules.Analysis(modules.GaussianFilter(1.3), modules.LocalMaximum("50"), estimator)
    assert same.options("dev")["sigma"] == 1.3


def test_versions_differ() -> None:
    picture = modules.AveragedShiftedHistograms(colorize=True)
    assert picture.options("dev")["colorize"] is True
    assert picture.options("1.3")["colorizez"] is True
    assert "ccsmoothingbandwidth" in settings.CrossCorrelation().options("dev")
    assert "ccsmoothingbandwidth" not in settings.CrossCorrelation().options("1.3")
    camera = Camera(offset=1.0, quantum_efficiency=0.5)
    assert settings.camera_options(camera, 100.0, "dev")["quantumefficiency"] == 1.0
    assert "quantumefficiency" not in settings.camera_options(camera, 100.0, "1.3")


def test_camera_maps_are_refused() -> None:
    with pytest.raises(InputRejected, match="one number for all pixels"):
        settings.camera_options(Camera(offset=np.ones((4, 4), np.float32)), 100.0, "dev")


def test_class_file_of_the_provider_is_one() -> None:
    content = provider_class_file()
    assert content[:4] == b"\xca\xfe\xba\xbe"
    assert b"com/sun/net/ssl/internal/ssl/Provider" in content


@pytest.mark.parametrize("kind", ["int16", "int32", "int64", "uint32", "float64", "complex64", "bool"])
def test_pixels_that_imagej_would_change_are_refused(kind: str) -> None:
    with pytest.raises(InputRejected, match=f"no pixels of type {kind}"):
        to_image(np.zeros((2, 4, 4), kind))
    with pytest.raises(InputRejected, match="frames"):
        to_image(np.zeros((2, 3, 4, 4), np.uint16))


def test_snakeyaml_2_is_named(tmp_path: Path) -> None:
    assert jars.snakeyaml_problem([tmp_path / "snakeyaml-1.33.jar"]) is None
    problem = jars.snakeyaml_problem([tmp_path / "snakeyaml-2.2.jar"])
    assert problem is not None
    assert "3-D calibrations" in problem


def test_missing_things_name_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputRejected, match="there is no"):
        jars.find_thunderstorm(tmp_path / "none")
    (tmp_path / "ij.jar").write_bytes(b"no zip")
    with pytest.raises(InputRejected, match="cannot be read as a jar"):
        jars.given_jar(tmp_path / "ij.jar")
    if os.name != "nt":
        monkeypatch.delenv("DISPLAY", raising=False)
        with pytest.raises(MissingDependency, match="headless or xvfb"):
            gateway(GatewayOptions(back_end="ij1", mode="display"))


def test_damaged_jar_of_the_repository_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2_REPO", str(tmp_path))
    for artifact in jars.HEADLESS_IMAGEJ:
        (tmp_path / artifact.path).parent.mkdir(parents=True)
        (tmp_path / artifact.path).write_bytes(b"something else")
    with pytest.raises(InputRejected, match="SHA-256"):
        jars.maven_central()


def test_own_engine_says_so_and_works() -> None:
    engine = engines.open_engine()
    assert engine.name == "smlm_bridge"
    assert engine.note is not None
    assert "was not found" in engine.note
    table = drifting()
    corrected, drift = engines.corrected(engine, table, pixel_nm=100.0)
    # Zero is the middle of the first part, so the range counts.
    assert np.ptp(drift.x_nm) == pytest.approx(150.0, abs=6.0)
    assert np.ptp(drift.y_nm) < 6.0
    assert len(corrected) == len(table)
    assert (
        len(engines.filtered(engine, table, "frame > 100", pixel_nm=100.0)) == (table["frame"] >= 100).sum()
    )


def test_own_engine_refuses_what_it_has_not() -> None:
    frames = np.full((1, 16, 16), 100, np.uint16)
    for analysis in (
        modules.Analysis(modules.BoxFilter(), modules.LocalMaximum("50")),
        modules.Analysis(detector=modules.CentroidOfComponents()),
    ):
        with pytest.raises(InputRejected, match="without ThunderSTORM"):
            engines.run(OWN, frames, analysis, camera=Camera(), pixel_nm=100.0)


def test_own_analysis_finds_and_fits() -> None:
    draw = np.random.default_rng(3)
    row, column = np.mgrid[:32, :32] + 0.5
    frames = np.stack(
        [20 + 3000 / (2 * np.pi * 1.7) * np.exp(-((column - 12.3) ** 2 + (row - 20.1) ** 2) / 3.4)] * 4
    )
    counts = (draw.poisson(frames) * 2 + 100).astype(np.uint16)
    camera = Camera(offset=100.0, e_per_adu=0.5)
    analysis = modules.Analysis(detector=modules.LocalMaximum("8*std(Wave.F1)"))
    found = engines.run(OWN, counts, analysis, camera=camera, pixel_nm=100.0)
    assert found["frame"].to_list() == [0, 1, 2, 3]
    assert found["x_nm"].to_numpy() == pytest.approx(1230.0, abs=15)
    assert found["y_nm"].to_numpy() == pytest.approx(2010.0, abs=15)
    assert found["photons"].to_numpy() == pytest.approx(3000.0, rel=0.1)


def test_radial_centre_of_a_gaussian() -> None:
    row, column = np.mgrid[-5:6, -5:6]
    window = np.exp(-((column - 0.3) ** 2 + (row + 0.45) ** 2) / 8.0)
    assert radial_centre(window) == pytest.approx([0.3, -0.45], abs=0.02)


def test_cross_correlation_refuses_what_it_cannot() -> None:
    table = drifting(200, 50)
    for bad in ({"steps": 1}, {"smoothing": 0.2}, {"pixel_nm": 0.0}, {"steps": 60}):
        with pytest.raises(InputRejected):
            cross_correlation_drift(table, **{"pixel_nm": 100.0, **bad})  # type: ignore[arg-type]
    with pytest.raises(InputRejected, match="below 0"):
        cross_correlation_drift(table.assign(x_nm=table["x_nm"] - 9999), pixel_nm=100.0)


def test_command_line_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from smlm_bridge.io.thunderstorm import read_table, write_table

    write_table(tmp_path / "locs.csv", drifting())
    call = [
        "thunderstorm",
        "drift",
        str(tmp_path / "locs.csv"),
        "-o",
        str(tmp_path / "c.csv"),
        "--pixel-nm",
        "100",
    ]
    assert main([*call, "--json"]) == 0
    said = capsys.readouterr()
    assert '"engine": "smlm_bridge"' in said.out
    assert "ThunderSTORM was not found" in said.err
    assert (
        main(["drift", str(tmp_path / "locs.csv"), "-o", str(tmp_path / "d.csv"), "--engine", "thunderstorm"])
        == 2
    )
    assert "--pixel-nm" in capsys.readouterr().err
    verb = ["drift", str(tmp_path / "locs.csv"), "-o", str(tmp_path / "d.csv"), "--pixel-nm", "100"]
    assert main([*verb, "--engine", "thunderstorm"]) == 0
    pd.testing.assert_frame_equal(read_table(tmp_path / "c.csv"), read_table(tmp_path / "d.csv"))
    assert main(["thunderstorm", "render", str(tmp_path / "c.csv"), "-o", str(tmp_path / "p.tif"),
                 "--pixel-nm", "100", "--size-px", "64x64"]) == 4  # fmt: skip
    assert "smlm-bridge render" in capsys.readouterr().err


def test_doctor_names_what_is_missing(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in findings(fiji=tmp_path, plugins=tmp_path)}
    assert found["Fiji"].found is None
    assert "it has no folder 'jars'" in found["Fiji"].advice
    assert "there is no ThunderSTORM in" in found["ThunderSTORM"].advice
    assert {"java", "ij.jar", "DISPLAY"} <= set(found)
    assert all(finding.advice for finding in found.values())
