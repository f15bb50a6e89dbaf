"""Damaged and hostile files end with our own error: a small seeded part of ``benchmarks/fuzz_readers.py``."""

import importlib.util
import os
import random
import signal
import struct
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis.strategies import randoms

from smlm_bridge.calibration_file import from_bytes
from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.io.calibration import load_calibration
from smlm_bridge.io.deepimagej import check_package
from smlm_bridge.io.drift import load_drift
from smlm_bridge.io.images import open_frames
from smlm_bridge.io.thunderstorm import read_table
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

    @settings(max_examples=CASES, derandomize=True, database=None, deadline=None)
    @given(draw=randoms(use_true_random=False))
    def read_one(draw: random.Random) -> None:
        nonlocal refused
        path.write_bytes(module.mutated(reader.seeds, draw))
        try:
            reader.read(path)
        except SmlmError:
            refused += 1

    read_one()
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


def test_a_frame_of_which_most_pieces_are_missing_is_refused(tmp_path) -> None:
    """Else 600 MB are made ready, and the missing 929 792 pieces looked for."""
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, np.zeros((16, 20), np.uint16), compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags["ImageLength"].valueoffset
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, place, 14_876_688)
    path.write_bytes(bytes(data))
    with pytest.raises(InputRejected, match="929793 pieces"):
        open_frames(path)


@pytest.mark.parametrize(("number", "length"), [(0, 0), (0, 2**64 - 8), (1, 2**64 - 16), (1, 2**40)])
def test_texts_without_an_end_are_refused(tmp_path, gaussian_calibration, number, length) -> None:
    """The HDF5 library walks along the sizes of the texts, and never comes to an end (number 0 of size 0)."""
    data = bytearray(gaussian_calibration.to_bytes())
    place = data.index(b"GCOL") + 16
    while number == 0 and struct.unpack_from("<H", data, place)[0]:
        place += 16 + -(-struct.unpack_from("<Q", data, place + 8)[0] // 8) * 8
    struct.pack_into("<Q", data, place + 8, length)
    path = tmp_path / "c.psf.h5"
    path.write_bytes(bytes(data))
    with pytest.raises(InputRejected, match="cannot read it"):
        load_calibration(path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a child of a process with threads go on")
@pytest.mark.parametrize(
    "way", [lambda _file: os.abort(), lambda _file: os.kill(os.getpid(), signal.SIGSEGV)]
)
def test_a_file_that_ends_the_library_is_refused(gaussian_calibration, way) -> None:
    with pytest.raises(InputRejected, match="cannot read it"):
        from_bytes(gaussian_calibration.to_bytes(), "c.psf.h5", way)


@pytest.mark.parametrize(
    "text", [b"frame,x [nm]\r1,2\r", b"frame,x [nm]\rx,y [nm]\n", b"a" * 200_000 + b",b\n1,2\n"]
)
def test_a_line_of_names_that_csv_does_not_know(tmp_path, text) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(InputRejected):
        read_table(tmp_path / "t.csv")


def test_a_drift_of_endless_frames_is_refused(fuzz, tmp_path) -> None:
    _module, readers = fuzz
    text = readers["drift.json"].seeds[0].decode()
    (tmp_path / "drift.json").write_text(text.replace('"maxFrame": 100', '"maxFrame": 1e999'))
    with pytest.raises(InputRejected, match="infinity"):
        load_drift(tmp_path / "drift.json")


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
