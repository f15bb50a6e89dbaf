"""Damaged and hostile files end with our own error: a small seeded part of ``benchmarks/fuzz_readers.py``."""

import importlib.util
import struct
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile

from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.io.deepimagej import check_package
from smlm_bridge.io.images import open_frames
from smlm_bridge.pipeline import load_pipeline

NAMES = [
    "movie.tif",
    "table.csv",
    "calibration.psf.h5",
    "model.onnx",
    "metadata.json",
    "package.zip",
    "pipeline.yaml",
    "pipeline.toml",
    "setup.toml",
    "drift.json",
    "manifest.json",
    "part-000000.parquet",
]
CASES = 100


def loaded() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "fuzz_readers.py"
    spec = importlib.util.spec_from_file_location("fuzz_readers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_readers"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    module = loaded()
    return module, {reader.name: reader for reader in module.readers(tmp_path_factory.mktemp("seeds"))}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_damaged_is_read_or_refused_by_name(fuzz, tmp_path, name) -> None:
    _module, readers = fuzz
    reader = readers[name]
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_bytes(reader.seeds[0])
    try:
        reader.read(tmp_path / name)
    except SmlmError:
        assert name == "package.zip"  # whose network is none


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_mutated_files_end_with_our_own_error(fuzz, tmp_path, name) -> None:
    module, readers = fuzz
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    reader, path = readers[name], tmp_path / name
    refused = 0
    for number in range(CASES):
        path.write_bytes(module._case(reader, number, 1))
        try:
            reader.read(path)
        except SmlmError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("pages", [1, 2, 3])
def test_pages_in_a_circle_are_refused(tmp_path, big, pages) -> None:
    path = tmp_path / "movie.tif"
    with tifffile.TiffWriter(path, bigtiff=big) as file:
        for _ in range(pages):
            file.write(np.zeros((16, 20), np.uint16), contiguous=False, metadata=None)
    with tifffile.TiffFile(path) as file:
        first = file.pages[0].offset
        entry, count = (20, "<Q") if big else (12, "<H")
        last = file.pages[pages - 1].offset
    data = bytearray(path.read_bytes())
    tags = struct.unpack_from(count, data, last)[0]
    struct.pack_into("<Q" if big else "<I", data, last + struct.calcsize(count) + entry * tags, first)
    path.write_bytes(bytes(data))
    with pytest.raises(InputRejected, match="back to itself"):
        open_frames(path)


@pytest.mark.parametrize("images", [3, 2_000_000_000])
def test_an_imagej_movie_that_promises_more_than_it_has(tmp_path, images) -> None:
    path = tmp_path / "movie.tif"
    text = f"ImageJ=1.54f\nimages={images}\nframes={images}\n"
    tifffile.imwrite(path, np.zeros((16, 20), np.uint16), description=text, metadata=None)
    with pytest.raises(InputRejected):
        open_frames(path)


def test_a_package_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("smlm_bridge.io.deepimagej._LARGEST_UNPACKED", 1_000_000)
    path = tmp_path / "package.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights.onnx", bytes(2_000_000))
    assert path.stat().st_size < 10_000
    with pytest.raises(InputRejected, match="unpacks"):
        check_package(path)


def test_a_yaml_pipeline_builds_no_objects(tmp_path) -> None:
    pytest.importorskip("yaml")
    marker = tmp_path / "made"
    path = tmp_path / "p.yaml"
    path.write_text(f"input: !!python/object/apply:pathlib.Path.touch ['{marker}']\noutput: o\nsteps: []\n")
    with pytest.raises(InputRejected):
        load_pipeline(path)
    assert not marker.exists()


@pytest.mark.parametrize("depth", [1_000, 5_000])
def test_deep_nesting_is_refused(tmp_path, depth) -> None:
    for name in ("p.toml", "p.yaml"):
        if name == "p.yaml":
            pytest.importorskip("yaml")
        (tmp_path / name).write_text("input = " * (name == "p.toml") + "[" * depth)
        with pytest.raises(InputRejected):
            load_pipeline(tmp_path / name)
