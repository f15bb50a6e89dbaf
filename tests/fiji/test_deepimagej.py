"""Models in Java: the engine of DeepImageJ gives our maps, and Fiji's scripts give our table without Python."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.typing import NDArray

from smlm_bridge.cli import main
from smlm_bridge.io.model import find_model, load_model
from smlm_bridge.io.thunderstorm import read_table
from smlm_bridge.localize import LocalizeOptions, localize_frames
from smlm_bridge.model import Model
from smlm_bridge.networks.maps import MAP_NAMES

pytestmark = pytest.mark.fiji

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "fiji_scripts" / "scripts" / "Plugins" / "SMLM Bridge"
LOCALIZE, DECODE = SCRIPTS / "Localize_without_Python.groovy", SCRIPTS / "Decode_maps_to_ThunderSTORM.groovy"
DEBIAN_JARS = Path("/usr/share/java")
MAVEN_GET = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:get"
ONNXRUNTIME = "com.microsoft.onnxruntime:onnxruntime"
#: On Maven Central: DeepImageJ's engine, the newest ONNX Runtime for Java there, and the Groovy of Fiji.
SHA256 = {
    f"{ONNXRUNTIME}:1.13.1": "7a9e11f47fa7b7d188c087b25d796a2e7eeb4bde814068e2d613c6d9970d457a",
    f"{ONNXRUNTIME}:1.23.2": "e0ab4a1af57d2da09097202f2dfd691e390c82e81183314788ccde4cf7c3cc38",
    "org.apache.groovy:groovy:4.0.28": "d77164a44ab994837e61eecead64721bdb1794fa2bc6704ac6fe70cd32ef9dd3",
    "org.apache.groovy:groovy-json:4.0.28": "edec45c85ff811f9a9baacdf5b020e34593a0055ac63c92fbf1233c3b2cc9cc6",
}
FIJI_GROOVY = ("org.apache.groovy:groovy:4.0.28", "org.apache.groovy:groovy-json:4.0.28")
OFFSET, E_PER_ADU = 100.0, 0.45
CAMERA = ("--offset", str(OFFSET), "--e-per-adu", str(E_PER_ADU))


def java() -> str:
    program = shutil.which("java")
    if program is None:
        pytest.skip("there is no Java here (Debian: default-jdk-headless)")
    return program


def debian_jar(name: str, package: str) -> Path:
    jar = DEBIAN_JARS / name
    if not jar.is_file():
        pytest.skip(f"{jar} is missing (Debian: {package})")
    return jar


def maven_jar(artifact: str) -> Path:
    """From Maven's own store, or from Maven Central; skips without Maven or network."""
    group, name, version = artifact.split(":")
    place = Path(*group.split("."), name, version, f"{name}-{version}.jar")
    jar = Path.home() / ".m2" / "repository" / place
    if not jar.is_file():
        maven = shutil.which("mvn")
        if maven is None:
            pytest.skip(f"there is no Maven to fetch {artifact} with (Debian: maven)")
        command = [maven, "-q", "-B", MAVEN_GET, f"-Dartifact={artifact}", "-Dtransitive=false"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0 or not jar.is_file():
            pytest.skip(f"{artifact} cannot be fetched: {done.stdout[-300:]}")
    assert hashlib.sha256(jar.read_bytes()).hexdigest() == SHA256[artifact]
    return jar


def onnxruntime_jar(version: str = "1.13.1") -> Path:
    return maven_jar(f"{ONNXRUNTIME}:{version}")


def debian_groovy() -> list[Path]:
    """Groovy 2.4, the oldest that the scripts are written for."""
    return [debian_jar("groovy-all.jar", "groovy")]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped model for a camera with offset and gain, as archive; the folder lies beside it."""
    folder = tmp_path_factory.mktemp("package")
    archive = folder / "telomere.zip"
    assert main(["export", "tetrapod_telomere", "--deepimagej", "-o", str(archive), *CAMERA, "--quiet"]) == 0
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder / "telomere")
    return archive


@pytest.fixture(scope="module")
def counts() -> NDArray[np.uint16]:
    """(4, 121, 121): the shipped sample through that camera."""
    sample = (
        load_model("tetrapod_telomere"),
        SCRIPTS.parents[3] / "models" / "tetrapod_telomere" / "sample.tif",
    )
    return np.round(tifffile.imread(sample[1]) / E_PER_ADU + OFFSET).astype(np.uint16)


def write_movie(path: Path, frames: NDArray[Any]) -> Path:
    tifffile.imwrite(path, frames, imagej=True, metadata={"axes": "TYX"})
    return path


def scripts(
    *runs: tuple[Path, dict[str, object]],
    groovy: Sequence[Path] | None = None,
    runtime: bool = True,
    options: Sequence[str] = (),
) -> list[Any]:
    """What scripts answered in one Java: their outputs, or {"error": ...}."""
    jars = [*(groovy or debian_groovy()), debian_jar("ij.jar", "libij-java")]
    if runtime:
        jars.append(onnxruntime_jar())
    words: list[str] = []
    for script, values in runs:
        words += ["+", str(script), *(f"{key}={value}" for key, value in values.items())]
    command = [
        java(), "-Djava.awt.headless=true", "-Xmx1g", *options, "-cp", os.pathsep.join(map(str, jars)),
        "groovy.ui.GroovyMain", str(HERE / "test_deepimagej_runner.groovy"), *words[1:],
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == len(runs), done.stderr + done.stdout
    return answers


def assert_same_table(found: Path, wanted: pd.DataFrame, *, nm: float = 0.1) -> None:
    """The same emitters in the same order; everything else to a thousandth or the last decimal."""
    table = read_table(found)
    assert len(table) == len(wanted)
    assert (table["frame"].to_numpy() == wanted["frame"].to_numpy()).all()
    for name in ("x_nm", "y_nm", "z_nm"):
        assert np.abs(table[name].to_numpy() - wanted[name].to_numpy()).max() <= nm, name
    for name in wanted.columns:
        assert np.allclose(table[name], wanted[name], rtol=1e-3, atol=2e-3 if nm else 5e-4), name


@pytest.mark.parametrize("version", ["1.13.1", pytest.param("1.23.2", marks=pytest.mark.slow)])
def test_java_gives_our_maps(package: Path, tmp_path: Path, version: str) -> None:
    weights = package.with_suffix("") / "weights.onnx"
    photons = np.random.default_rng(2).gamma(2.0, 20.0, (2, 1, 100, 136)).astype("<f4")
    sample = np.load(weights.with_name("test_input.npy"))[0]
    photons[0, :, :96, :112] = (sample[:, :96, :112] - OFFSET) * E_PER_ADU
    wanted = load_model(weights).run(photons)
    (tmp_path / "in").write_bytes(photons.tobytes())
    command = [
        java(), "-cp", str(onnxruntime_jar(version)), str(HERE / "test_deepimagej_engine.java"),
        str(weights), str(tmp_path / "in"), str(tmp_path / "out"), *map(str, photons.shape),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    maps = np.frombuffer((tmp_path / "out").read_bytes(), "<f4").reshape(wanted.shape)
    spread = np.ptp(wanted, axis=(0, 2, 3), keepdims=True)
    assert float((np.abs(maps - wanted) / spread).max()) <= 1e-4


def hard_maps(frames: int) -> NDArray[np.float32]:
    """Maps with peaks in corners and at edges, neighbours of the same probability, sums around the threshold."""
    draw = np.random.default_rng(11)
    maps = np.empty((frames, len(MAP_NAMES), 23, 31), np.float32)
    maps[:, 0] = draw.uniform(0, 1, maps[:, 0].shape) ** 8
    maps[:, 0, :, ::5] = np.round(maps[:, 0, :, ::5], 1)  # the same values side by side
    maps[:, 1:3] = draw.normal(0, 40, maps[:, 1:3].shape)
    maps[:, 3] = draw.uniform(-3000, 6000, maps[:, 3].shape)
    maps[:, 4] = draw.uniform(100, 60000, maps[:, 4].shape)
    maps[:, 5:8] = draw.uniform(2, 80, maps[:, 5:8].shape)
    maps[:, 8:] = draw.uniform(0, 300, maps[:, 8:].shape)
    maps[1, 0] = 0.0
    maps[2, 0] = 0.5  # a plateau: one maximum only
    return maps


@pytest.mark.parametrize("threshold", [0.5, 0.07])
def test_the_decoder_in_fiji_is_ours(package: Path, tmp_path: Path, threshold: float) -> None:
    maps = hard_maps(6)
    tifffile.imwrite(tmp_path / "maps.tif", maps, imagej=True, metadata={"axes": "TCYX"})
    target = tmp_path / "d.csv"
    values = {"maps": tmp_path / "maps.tif", "csv": target, "pixelnm": 107.5, "threshold": threshold}
    german = ("-Duser.language=de", "-Duser.country=DE")  # whose decimals are commas
    (answer,) = scripts((DECODE, values), runtime=False, options=german)
    wanted = tables_of(maps, threshold)
    assert answer == {"localizations": len(wanted)}
    assert len(wanted) > 100
    assert_same_table(target, wanted, nm=0.001)


def tables_of(maps: NDArray[np.float32], threshold: float) -> pd.DataFrame:
    """Python's table of these maps, through its own localizer."""
    known = load_model("tetrapod_telomere").info
    calibration = replace(known.calibration, optics=replace(known.calibration.optics, pixel_nm=107.5))
    info = replace(known, calibration=calibration, size_step=1, reach_px=0)
    return localize_frames(
        np.zeros((len(maps), 1, *maps.shape[2:]), np.float32),
        Model(info, lambda _: maps),
        camera=calibration.camera,
        options=LocalizeOptions(threshold=threshold),
    )


def python_table(movie: Path, target: Path) -> pd.DataFrame:
    arguments = [
        "localize",
        str(movie),
        "--model",
        "tetrapod_telomere",
        "-o",
        str(target),
        *CAMERA,
        "--quiet",
    ]
    assert main(arguments) == 0
    return read_table(target)


def test_localizing_without_python_gives_our_table(
    package: Path, counts: NDArray[np.uint16], tmp_path: Path
) -> None:
    folder = tmp_path / "a folder with spaces and µ"
    folder.mkdir()
    movie = write_movie(folder / "movie.tif", counts)
    broken = counts.astype(np.float32)
    broken[1, 5, 7] = np.nan
    float_movie = write_movie(folder / "float.tif", broken)
    other_camera = {"cameraoffset": 90, "electronsperadu": 0.5}
    first, second, third, fourth = scripts(
        (LOCALIZE, {"movie": movie, "model": package, "csv": folder / "a.csv"}),
        (LOCALIZE, {"movie": float_movie, "model": package, "csv": folder / "b.csv"}),
        (LOCALIZE, {"movie": movie, "model": package, "csv": folder / "c.csv", "threshold": 0.9}),
        (LOCALIZE, {**other_camera, "movie": movie, "model": package, "csv": folder / "d.csv"}),
    )  # fmt: skip
    wanted = python_table(movie, tmp_path / "python.csv")
    assert first == {"localizations": len(wanted), "csvpath": str(folder / "a.csv")}
    assert_same_table(folder / "a.csv", wanted)
    good = wanted[wanted["frame"] != 1]
    assert second["localizations"] == len(good) < len(wanted)
    assert_same_table(folder / "b.csv", good)
    assert third["localizations"] < len(wanted)
    photons = [read_table(folder / name)["photons"].mean() for name in ("a.csv", "d.csv")]
    assert fourth["localizations"] > 0
    assert photons[1] == pytest.approx(photons[0] * 0.5 / E_PER_ADU, rel=0.1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.csv", "b.csv", "c.csv", "d.csv", "float.tif", "movie.tif",
    ]  # fmt: skip


def test_the_groovy_of_fiji_gives_the_same(package: Path, counts: NDArray[np.uint16], tmp_path: Path) -> None:
    movie = write_movie(tmp_path / "movie.tif", counts[:2])
    tifffile.imwrite(tmp_path / "maps.tif", hard_maps(3), imagej=True, metadata={"axes": "TCYX"})
    decode = {"maps": tmp_path / "maps.tif", "csv": tmp_path / "d.csv", "pixelnm": 107.5}
    answers = scripts(
        (LOCALIZE, {"movie": movie, "model": package, "csv": tmp_path / "a.csv"}),
        (DECODE, decode),
        groovy=[maven_jar(artifact) for artifact in FIJI_GROOVY],
    )
    assert all(answer.get("localizations") for answer in answers), answers
    assert_same_table(tmp_path / "a.csv", python_table(movie, tmp_path / "python.csv"))
    assert_same_table(tmp_path / "d.csv", tables_of(hard_maps(3), 0.5), nm=0.001)


def test_tiles_cancel_and_the_engine_of_deepimagej(
    package: Path, counts: NDArray[np.uint16], tmp_path: Path
) -> None:
    # Larger than a tile and its halos (592), no multiple of the network's grid (4).
    movie = write_movie(tmp_path / "wide.tif", np.tile(counts[:2], (1, 1, 6))[:, :, :701])
    fiji = tmp_path / "Fiji.app"
    engine = fiji / "engines" / "onnx-17-1.13.1-linux-x86_64"
    engine.mkdir(parents=True)
    (fiji / "plugins").mkdir()
    (engine / "onnxruntime-1.13.1.jar").symlink_to(onnxruntime_jar())
    (tmp_path / "cancelled").mkdir()
    values = {"movie": movie, "model": package.with_suffix("")}
    done, cancelled = scripts(
        (LOCALIZE, {**values, "csv": tmp_path / "wide.csv"}),
        (LOCALIZE, {**values, "csv": tmp_path / "cancelled" / "x.csv", "cancelin": tmp_path / "cancelled"}),
        runtime=False,
        options=[f"-Dplugins.dir={fiji / 'plugins'}"],
    )
    wanted = python_table(movie, tmp_path / "python.csv")
    assert done["localizations"] == len(wanted) > 50
    assert_same_table(tmp_path / "wide.csv", wanted)
    assert "Cancelled" in cancelled["error"]
    assert not list((tmp_path / "cancelled").iterdir())


def test_refusals_name_the_cause(package: Path, counts: NDArray[np.uint16], tmp_path: Path) -> None:
    movie = write_movie(tmp_path / "movie.tif", counts[:1])
    colour = tmp_path / "colour.tif"
    tifffile.imwrite(colour, np.zeros((20, 20, 3), np.uint8), photometric="rgb")
    maps = write_movie(tmp_path / "maps.tif", np.zeros((3, 20, 20), np.float32))
    (tmp_path / "text.tif").write_text("no picture")
    (tmp_path / "there.csv").write_text("mine")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    shipped = find_model("tetrapod_telomere")
    good = {"movie": movie, "model": package, "csv": tmp_path / "x.csv"}
    cases: list[tuple[Path, dict[str, object], str]] = [
        (LOCALIZE, {**good, "csv": tmp_path / "there.csv"}, "exists"),
        (LOCALIZE, {**good, "csv": tmp_path / "no" / "x.csv"}, "does not exist"),
        (LOCALIZE, {**good, "model": tmp_path / "nobody"}, "no model"),
        (LOCALIZE, {**good, "model": tmp_path / "other.zip"}, "weights.onnx"),
        (LOCALIZE, {**good, "model": shipped}, "smlm-bridge export"),
        (LOCALIZE, {**good, "model": movie}, "rtException"),
        (LOCALIZE, {**good, "movie": colour}, "colour"),
        (LOCALIZE, {**good, "movie": tmp_path / "text.tif"}, "cannot open"),
        (DECODE, {"maps": maps, "csv": tmp_path / "x.csv"}, "10 channels"),
    ]
    answers = scripts(*((script, values) for script, values, _ in cases))
    for answer, (_, _, reason) in zip(answers, cases, strict=True):
        assert reason in answer["error"]
    assert not (tmp_path / "x.csv").exists()
    assert (tmp_path / "there.csv").read_text() == "mine"
    (missing,) = scripts((LOCALIZE, good), runtime=False)
    assert ONNXRUNTIME in missing["error"]


@pytest.mark.parametrize("script", [LOCALIZE, DECODE])
def test_parameters_can_be_recorded_in_macros(script: Path) -> None:
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line.startswith("#@")]
    inputs = [line for line in lines if line.startswith("#@ ")]
    names = [line.split()[-1] for line in inputs]
    assert len(set(names)) == len(names) > 3
    for name in names:
        assert re.fullmatch("[a-z0-9]+", name), "ImageJ looks keys up in lower case"
        assert not any(other != name and other.endswith(name) for other in names), "a key inside another"
    for line in inputs:
        assert line.split()[1] in ("File", "Double", "Boolean", "ImagePlus"), "primitive types lose defaults"
        assert "persist=false" in line or "ImagePlus" in line
    assert lines.index(next(line for line in lines if line.startswith("#@script"))) == 0
