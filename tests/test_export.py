"""``export --deepimagej``: a package that bioimage.io's own test passes and DeepImageJ 3's reader accepts."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from smlm_bridge.camera import Camera
from smlm_bridge.cli import main
from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.io.deepimagej import check_package, sample_frame
from smlm_bridge.io.model import load_model
from smlm_bridge.io.onnx_file import inspect_onnx
from smlm_bridge.io.rdf import describe, halo_px, identifier, least_size_px, photons_from_counts, to_yaml
from smlm_bridge.io.shipped import shipped_names
from smlm_bridge.io.thunderstorm import read_table
from smlm_bridge.networks.maps import MAP_NAMES

yaml = pytest.importorskip("yaml")

#: Processing that DeepImageJ 3's reader knows (JDLL 0.6.1).
KNOWN_OPERATIONS = {
    "binarize", "clip", "ensure_dtype", "fixed_zero_mean_unit_variance", "scale_linear", "scale_range",
    "sigmoid", "zero_mean_unit_variance",
}  # fmt: skip
OFFSET, E_PER_ADU = 100.0, 0.45


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def exported(model: object, target: Path, *options: object) -> Path:
    arguments = ["export", model, "--deepimagej", "-o", target, *options, "--quiet"]
    assert main([*map(str, arguments)]) == 0
    return target


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped model for a camera with offset and gain, unpacked."""
    folder = tmp_path_factory.mktemp("package")
    camera = ("--offset", OFFSET, "--e-per-adu", E_PER_ADU)
    archive = exported("tetrapod_telomere", folder / "telomere.zip", *camera)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder / "telomere")
    return folder / "telomere"


@pytest.fixture(scope="module")
def rdf(package: Path) -> dict[str, Any]:
    description: dict[str, Any] = yaml.safe_load((package / "rdf.yaml").read_text(encoding="utf-8"))
    return description


def assert_deepimagej_reads(rdf: dict[str, Any], weights: bytes) -> None:
    """What DeepImageJ 3's reader throws on, or silently does wrong, is not in the description."""
    assert rdf["format_version"].startswith(("0.4.", "0.5."))
    for key in ("id", "name", "description", "documentation", "license", "type"):
        assert isinstance(rdf[key], str), key
        assert rdf[key], key
    for key in ("covers", "tags", "links"):
        assert all(isinstance(item, str) for item in rdf[key]), key
    assert len(rdf["inputs"]) == 1
    for tensor in (*rdf["inputs"], *rdf["outputs"]):
        kinds = [axis["type"] for axis in tensor["axes"]]
        assert set(kinds) <= {"batch", "channel", "space"}, "a time axis turns the order of axes to garbage"
        assert kinds.count("channel") == 1
        for axis in tensor["axes"]:
            if axis["type"] == "channel":
                assert axis["channel_names"]
            elif axis["type"] == "space":
                assert axis["id"] in "xyz"
                assert axis.get("scale", 1) == 1, "the reader takes it for an upsampling"
        for step in (*tensor.get("preprocessing", ()), *tensor.get("postprocessing", ())):
            assert step["id"] in KNOWN_OPERATIONS
            assert all(isinstance(value, float) for value in step["kwargs"].values())
    assert list(rdf["weights"]) == ["onnx"]
    facts = inspect_onnx(weights, name="weights")
    assert (facts.opset, rdf["weights"]["onnx"]["opset_version"]) == (17, 17)
    assert facts.ir_version <= 8


def test_deepimagej_reads_the_description(package: Path, rdf: dict[str, Any]) -> None:
    assert_deepimagej_reads(rdf, (package / "weights.onnx").read_bytes())
    assert (package / rdf["documentation"]).read_text(encoding="utf-8").count("\n## Validation\n") == 1
    cover = package / rdf["covers"][0]
    assert cover.read_bytes().startswith(b"\x89PNG")
    assert cover.stat().st_size < 500_000


@pytest.mark.parametrize(
    "break_it",
    [
        lambda rdf: rdf.pop("id"),
        lambda rdf: rdf.update(documentation={"source": "README.md"}),
        lambda rdf: rdf.update(covers=[{"source": "cover.png"}]),
        lambda rdf: rdf["inputs"].append(rdf["inputs"][0]),
        lambda rdf: rdf["inputs"][0]["axes"].insert(1, {"type": "time", "id": "time"}),
        lambda rdf: rdf["outputs"][0]["axes"][1].pop("channel_names"),
        lambda rdf: rdf["inputs"][0]["preprocessing"].append({"id": "custom", "kwargs": {}}),
    ],
)
def test_the_check_sees_what_the_reader_trips_over(package: Path, rdf: dict[str, Any], break_it: Any) -> None:
    broken = json.loads(json.dumps(rdf))
    break_it(broken)
    with pytest.raises((AssertionError, KeyError)):
        assert_deepimagej_reads(broken, (package / "weights.onnx").read_bytes())


def test_every_file_is_there_with_its_hash(package: Path, rdf: dict[str, Any]) -> None:
    tensors = [
        tensor[key] for tensor in (*rdf["inputs"], *rdf["outputs"]) for key in tensor if "tensor" in key
    ]
    listed = [*tensors, rdf["weights"]["onnx"], *rdf.get("attachments", [])]
    for file in listed:
        assert hashlib.sha256((package / file["source"]).read_bytes()).hexdigest() == file["sha256"]
    named = {file["source"] for file in listed} | {"rdf.yaml", rdf["documentation"], *rdf["covers"]}
    assert {file.name for file in package.iterdir()} == named


def test_halo_and_sizes_cover_what_the_network_sees(package: Path, rdf: dict[str, Any]) -> None:
    info = load_model(package).info
    for axis_in, axis_out in zip(rdf["inputs"][0]["axes"][2:], rdf["outputs"][0]["axes"][2:], strict=True):
        size = axis_in["size"]
        assert axis_out["halo"] >= info.reach_px
        assert axis_out["halo"] % size["step"] == 0
        assert size["step"] == info.size_step
        assert size["min"] % size["step"] == 0
        assert size["min"] > 2 * axis_out["halo"]
        assert axis_out["size"] == {"tensor_id": "frames", "axis_id": axis_in["id"]}


def test_tiles_with_this_halo_give_the_whole(package: Path, rdf: dict[str, Any]) -> None:
    model = load_model(package)
    halo, least = halo_px(model.info), least_size_px(model.info)
    frame = np.random.default_rng(4).gamma(2.0, 30.0, (1, 1, least + 40, least)).astype(np.float32)
    whole = model.run(frame)
    spread = np.ptp(whole, axis=(0, 2, 3), keepdims=True)
    top = model.run(frame[:, :, :least])[:, :, : least - halo]
    bottom = model.run(frame[:, :, 40:])[:, :, halo:]
    assert (np.abs(top - whole[:, :, : least - halo]) <= 1e-4 * spread).all()
    assert (np.abs(bottom - whole[:, :, 40 + halo :]) <= 1e-4 * spread).all()
    cut = model.run(frame[:, :, 40:])[:, :, halo // 4 :]  # a smaller halo would not do
    assert (np.abs(cut - whole[:, :, 40 + halo // 4 :]) > 1e-2 * spread).any()


def test_the_test_tensors_are_counts_and_their_maps(package: Path, rdf: dict[str, Any]) -> None:
    counts, wanted = (np.load(package / f"test_{end}.npy") for end in ("input", "output"))
    assert counts.dtype == wanted.dtype == np.float32
    assert wanted.shape == (1, len(MAP_NAMES), *counts.shape[2:])
    assert rdf["outputs"][0]["axes"][1]["channel_names"] == list(MAP_NAMES)
    assert counts.min() > OFFSET / 2  # raw, with the camera's offset
    scale = rdf["inputs"][0]["preprocessing"][0]["kwargs"]
    original = load_model("tetrapod_telomere")
    camera = Camera(offset=OFFSET, e_per_adu=E_PER_ADU)
    assert np.allclose(scale["gain"] * counts + scale["offset"], camera.to_photons(counts), atol=1e-3)
    maps = original.run(camera.to_photons(counts))
    spread = np.ptp(maps, axis=(0, 2, 3), keepdims=True)
    assert (np.abs(maps - wanted) <= 1e-4 * spread).all()
    assert maps[:, 0].max() > 0.5  # there is something to find


def test_python_reads_the_package_with_its_camera(package: Path, tmp_path: Path) -> None:
    info = load_model(package / "weights.onnx").info
    assert (info.calibration.camera.offset, info.calibration.camera.e_per_adu) == (OFFSET, E_PER_ADU)
    counts = np.load(package / "test_input.npy")[0]
    tifffile.imwrite(tmp_path / "frame.tif", counts)
    tables = []
    for name, options in (
        (str(package), ()),
        ("tetrapod_telomere", ("--offset", "100", "--e-per-adu", "0.45")),
    ):
        target = tmp_path / f"{len(tables)}.csv"
        arguments = ["localize", str(tmp_path / "frame.tif"), "--model", name, "-o", str(target), *options]
        assert main([*arguments, "--quiet"]) == 0
        tables.append(read_table(target))
    assert len(tables[0]) > 5
    pd.testing.assert_frame_equal(*tables)


def test_bioimageio_core_passes_it(package: Path) -> None:
    pytest.importorskip("bioimageio.core", reason="bioimageio.core is not installed (extra test)")
    import pydantic
    from bioimageio.spec import __version__ as spec

    if tuple(map(int, pydantic.VERSION.split(".")[:2])) >= (2, 14) and spec == "0.5.12.0":
        pytest.skip("bioimageio.spec 0.5.12.0 cannot describe any model with pydantic 2.14 or newer")
    # In a process of its own, because it leaves files open, and warnings are errors here.
    program = (
        "import sys; from bioimageio.core import test_model\n"
        "summary = test_model(sys.argv[1], weight_format='onnx', determinism='seed_only')\n"
        "sys.exit(0 if summary.status == 'passed' else summary.format())"
    )
    command = [sys.executable, "-c", program, str(package.with_suffix(".zip"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name in shipped_names() if not name.startswith("single")])
def test_every_shipped_model_of_frames_is_exported_in_ten_megabytes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "p.zip"
    code, values = run(capsys, "export", name, "--deepimagej", "-o", target)
    assert code == 0
    assert (values["opset"], values["tested"]) == (17, True)
    assert values["size_bytes"] == target.stat().st_size <= 10_000_000


def test_a_model_of_boxes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "single_astigmatism", "--deepimagej", "-o", str(tmp_path / "p.zip")]) == 3
    assert "a network of single emitters" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_of_ones_own_needs_nothing_beside_it(trained, tmp_path: Path) -> None:
    archive = exported(
        trained.path, tmp_path / "own.zip", "--author", "A", "--author", "B", "--license", "MIT"
    )
    assert check_package(archive) <= 1e-4
    with zipfile.ZipFile(archive) as opened:
        rdf = yaml.safe_load(opened.read("rdf.yaml"))
        assert_deepimagej_reads(rdf, opened.read("weights.onnx"))
    assert [author["name"] for author in rdf["authors"]] == ["A", "B"]
    assert (rdf["license"], rdf["id"]) == ("MIT", "tiny")
    # The camera of its calibration: offset 100, 0.5 electrons per ADU.
    assert rdf["inputs"][0]["preprocessing"][0]["kwargs"] == {"gain": 0.5, "offset": -50.0}


def test_the_sample_can_be_given(trained, tmp_path: Path) -> None:
    counts = np.random.default_rng(1).integers(90, 300, (3, 97, 110)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", counts, imagej=True, metadata={"axes": "TYX"})
    archive = exported(trained.path, tmp_path / "own.zip", "--sample", tmp_path / "s.tif")
    with zipfile.ZipFile(archive) as opened:
        test_input = np.load(io.BytesIO(opened.read("test_input.npy")))
    assert np.array_equal(test_input, counts[:1, None, :96, :110].astype(np.float32))


def test_a_package_that_lies_is_found_out(trained, tmp_path: Path) -> None:
    archive = exported(trained.path, tmp_path / "own.zip")
    with zipfile.ZipFile(archive) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    wrong = np.load(io.BytesIO(files["test_output.npy"])) * 1.01
    buffer = io.BytesIO()
    np.save(buffer, wrong)
    with zipfile.ZipFile(tmp_path / "wrong.zip", "w") as opened:
        for name, content in {**files, "test_output.npy": buffer.getvalue()}.items():
            opened.writestr(name, content)
    with pytest.raises(SmlmError, match="its own test output"):
        check_package(tmp_path / "wrong.zip")


def test_refusals(trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "p.zip"
    assert run(capsys, "export", trained.path, "-o", target)[0] == 2
    code, values = run(capsys, "export", trained.path, "--deepimagej", "-o", tmp_path / "p.onnx")
    assert code == 3
    assert ".zip" in values["error"]
    code, values = run(capsys, "export", "nobody", "--deepimagej", "-o", target)
    assert code == 3
    tifffile.imwrite(tmp_path / "map.tif", np.full((96, 96), 100.0, np.float32))
    code, values = run(
        capsys, "export", trained.path, "--deepimagej", "-o", target, "--offset", tmp_path / "map.tif"
    )
    assert code == 3
    assert "map" in values["error"]
    assert not list(tmp_path.glob("*.zip"))
    target.write_bytes(b"mine")
    code, values = run(capsys, "export", trained.path, "--deepimagej", "-o", target)
    assert code == 3
    assert "--overwrite" in values["error"]
    assert target.read_bytes() == b"mine"


def test_samples_of_any_size_become_allowed_sizes(trained) -> None:
    info = replace(trained.model.info, size_step=4, reach_px=9)
    assert (halo_px(info), least_size_px(info)) == (12, 40)
    frame = np.arange(30 * 55, dtype=np.float32).reshape(1, 30, 55)
    assert sample_frame(frame, info).shape == (1, 1, 40, 52)
    assert np.array_equal(sample_frame(frame, info)[0, :, :30], frame[:, :, :52])
    with pytest.raises(InputRejected, match="40 x 40"):
        sample_frame(frame[:, :20], info)
    with pytest.raises(InputRejected, match="1 channel"):
        sample_frame(np.zeros((2, 60, 60)), info)


@settings(deadline=None)
@given(st.floats(0, 1000), st.floats(0.01, 50), st.floats(1, 300), st.floats(0, 65535))
def test_two_numbers_stand_for_the_camera(
    offset: float, e_per_adu: float, gain: float, counts: float
) -> None:
    camera = Camera(offset=offset, e_per_adu=e_per_adu, em_gain=gain)
    slope, intercept = photons_from_counts(camera)
    wanted = (counts - offset) * e_per_adu / gain
    assert slope * counts + intercept == pytest.approx(wanted, rel=1e-9, abs=1e-9 * e_per_adu * 65535)


numbers = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = st.sampled_from(["no", "y", "null", "1e5", "~", "a b", "", "µ"]) | st.from_regex(
    "[a-z_]{1,8}", fullmatch=True
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(keys, values, min_size=1))
def test_yaml_says_what_was_meant(value: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


def test_names_become_ids() -> None:
    assert identifier("My model (v2), 3-D") == "my-model-v2-3-d"
    assert identifier("µ") == "model"


def test_channels_are_named(trained) -> None:
    files = ("test_input.npy", "test_output.npy", "sample_input.tif", "sample_output.tif", "weights.onnx")
    rdf = describe(
        replace(trained.model.info, channels=2),
        Camera(),
        authors=["A"],
        licence="MIT",
        hashes=dict.fromkeys(files, "0"),
        opset=17,
        timestamp="2026-01-01T00:00:00+00:00",
    )
    assert rdf["inputs"][0]["axes"][1]["channel_names"] == ["channel0", "channel1"]
