"""Damaged and hostile files against the readers: what they end with, the slowest case, the memory.

    python benchmarks/fuzz_readers.py [--cases 100000] [--reader NAME ...] [--seed 1] [--keep FOLDER]

Files of ours are mutated (bits, extreme numbers, cut, doubled, spliced, words of the format) and read in child
processes. A case is a fault if it ends otherwise than with a value or an error of ``smlm_bridge.errors``, ends
the process, needs over 10 s, or over 2 GB of address space beyond what the readers' libraries take.
"""

import argparse
import contextlib
import io
import json
import mmap
import os
import random
import resource
import struct
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import SmlmError
from smlm_bridge.frames import Block
from smlm_bridge.io.images import open_frames
from smlm_bridge.io.onnx_file import inspect_onnx
from smlm_bridge.io.parts import Manifest, PartStore, open_parts, read_manifest
from smlm_bridge.model import ModelInfo
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil

SECONDS = 10.0
BYTES = 2 * 1024**3
WORDS = [b"nan", b"-inf", b"1e999", b"-1", b"0", b"99999999999", b'"', b",", b"\n", b"\x00", b"[" * 500]
WORDS += [
    b"{",
    b"!!python/object/apply:os.system",
    b"&a [*a]",
    b"2020-99-99",
    b"../../x",
    b"\xff\xfe",
    b"=" * 9,
]
NUMBERS = [
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0x7FFFFFFFFFFFFFFF,
    2**64 - 1,
]


@dataclass(frozen=True)
class Reader:
    """A reader, the name of the file it is given, and whole files to start from."""

    name: str
    seeds: Sequence[bytes]
    read: Callable[[Path], object]


@dataclass
class Found:
    """What became of the cases of one reader."""

    read: int = 0
    refused: int = 0
    faults: int = 0
    slowest: float = 0.0
    example: str = ""


def mutated(seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """One file, changed in a few places."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(data) + 1)
        kind = draw.randrange(8)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = draw.randrange(256)
        elif kind == 2:
            width = draw.choice(("B", "<H", "<I", "<Q", ">I"))
            size = struct.calcsize(width)
            data[place : place + size] = struct.pack(width, draw.choice(NUMBERS) % 2 ** (8 * size))
        elif kind == 3:
            del data[place : place + draw.choice((1, 4, 100))]
        elif kind == 4:
            data[place:place] = data[place : place + draw.choice((1, 8, 200))]
        elif kind == 5:
            data[place:place] = draw.choice(WORDS)
        elif kind == 6:
            other = draw.choice(seeds)
            start = draw.randrange(len(other))
            data[place : place + 64] = other[start : start + 64]
        elif draw.random() < 0.2:
            del data[place:]
    return bytes(data)


def run(reader: Reader, cases: int, *, seed: int, folder: Path, keep: Path | None = None) -> Found:
    """Read ``cases`` mutations in child processes; a child that ends or hangs is a fault."""
    found, number = Found(), 0
    shared = mmap.mmap(-1, 64)  # case, read, refused, faults, slowest in us
    while number < cases:
        shared[:40] = struct.pack("<5q", number, 0, 0, 0, 0)
        last = min(cases, number + 2000)
        child = os.fork()
        if child == 0:
            _child(reader, range(number, last), seed, folder, shared, keep)
        code = _watched(child, shared)
        now, read, refused, faults, slowest = struct.unpack("<5q", shared[:40])
        found.read, found.refused, found.faults = (
            found.read + read,
            found.refused + refused,
            found.faults + faults,
        )
        found.slowest = max(found.slowest, slowest / 1e6)
        number = last
        if code:
            found.faults += 1
            found.example = found.example or f"case {now}: {'over 10 s' if code == 9 else f'ended by {code}'}"
            _keep(keep, reader, now, _case(reader, now, seed))
            number = now + 1
        failure = folder / "fault.txt"
        if failure.exists():
            found.example = found.example or failure.read_text()
            failure.unlink()
    return found


def _case(reader: Reader, number: int, seed: int) -> bytes:
    return mutated(reader.seeds, random.Random(f"{reader.name} {seed} {number}"))


def _child(
    reader: Reader, numbers: range, seed: int, folder: Path, shared: mmap.mmap, keep: Path | None
) -> None:
    """Read the cases and leave the process, whatever happens."""
    try:
        limit = _address_space() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 2)
        path, counts, slowest = folder / reader.name, [0, 0, 0], 0
        warnings.simplefilter("ignore")
        for number in numbers:
            data = _case(reader, number, seed)
            path.write_bytes(data)
            shared[:40] = struct.pack("<5q", number, *counts, slowest)
            began = time.process_time()
            try:
                reader.read(path)
                counts[0] += 1
            except SmlmError:
                counts[1] += 1
            except BaseException:
                counts[2] += 1
                (folder / "fault.txt").write_text(f"case {number}: {traceback.format_exc(limit=-4)}")
                _keep(keep, reader, number, data)
            slowest = max(slowest, int(1e6 * (time.process_time() - began)))
        shared[:40] = struct.pack("<5q", numbers.stop, *counts, slowest)
        os._exit(0)
    finally:
        os._exit(70)


def _watched(child: int, shared: mmap.mmap) -> int:
    """Wait for a child; 9 if a case took too long, else how it ended.

    Seconds are the CPU's, since other work may share the machine; one that sleeps has six times as many.
    """
    case, used, since = -1, 0.0, time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        now = struct.unpack("<q", shared[:8])[0]
        if now != case:
            case, used, since = now, _cpu_seconds(child), time.monotonic()
        elif _cpu_seconds(child) - used > SECONDS or time.monotonic() - since > 6 * SECONDS:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return 9
        time.sleep(0.01)


def _cpu_seconds(child: int) -> float:
    """User and system time of a process (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _keep(keep: Path | None, reader: Reader, number: int, data: bytes) -> None:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{number}-{reader.name}").write_bytes(data)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def readers(folder: Path) -> list[Reader]:
    """Every reader with its seeds, made here."""
    from smlm_bridge.io.calibration import load_calibration
    from smlm_bridge.io.drift import load_drift
    from smlm_bridge.io.setup import load_setup
    from smlm_bridge.io.thunderstorm import read_table
    from smlm_bridge.pipeline import load_pipeline

    return [
        Reader("movie.tif", _tiffs(folder), _read_movie),
        Reader("table.csv", [_table(), _table().replace(b'"', b"")], read_table),
        Reader("calibration.psf.h5", _calibrations(), load_calibration),
        Reader("model.onnx", [_onnx()], lambda path: inspect_onnx(path.read_bytes(), name="model")),
        Reader("metadata.json", [_metadata()], _read_metadata),
        Reader("package.zip", [_package()], _read_package),
        Reader("pipeline.yaml", [_PIPELINE], load_pipeline),
        Reader("pipeline.toml", [_PIPELINE_TOML], load_pipeline),
        Reader("setup.toml", [_SETUP], lambda path: load_setup(path, {})),
        Reader("drift.json", [_DRIFT], load_drift),
        Reader("manifest.json", [_manifest(folder)], lambda path: read_manifest(path.parent)),
        Reader("part-000000.parquet", [_part(folder)], _read_part),
    ]


_PIPELINE = b"""input: raw
output: results
steps:
  - merge: {distance-nm: 60}
  - filter: {expression: "uncertainty_xy < 20"}
  - render: {pixel-nm: 40, output: picture.png}
"""
_PIPELINE_TOML = (
    b'input = "raw"\noutput = "out"\n[[steps]]\nmerge = {distance-nm = 60}\n[[steps]]\ndrift = {}\n'
)
_SETUP = b"""[optics]
numerical_aperture = 1.49
immersion_index = 1.518
sample_index = 1.33
wavelength_nm = 605
pixel_nm = 110
[camera]
offset = 100.0
e_per_adu = 0.45
read_noise_e = 1.6
"""
_LINE = {"knots": [1.0, 50.0, 100.0], "polynomials": [{"coefficients": [0.1, 0.2]}] * 2, "n": 2}
_DRIFT = json.dumps(
    {
        "xFunction": _LINE,
        "yFunction": _LINE,
        "minFrame": 1,
        "maxFrame": 100,
        "units": "NANOMETER",
        "scale": 1.0,
    }
).encode()


def _read_movie(path: Path) -> None:
    with open_frames(path) as source:
        source.read(0, min(source.n_frames, 2))


def _read_metadata(path: Path) -> None:
    info, _, calibration = path.read_bytes().decode("utf-8", "replace").rpartition("\n")
    ModelInfo.from_metadata({"smlm_bridge": info, "smlm_bridge.calibration": calibration}, name="model")


def _read_package(path: Path) -> None:
    from smlm_bridge.io.deepimagej import check_package

    check_package(path)


def _read_part(path: Path) -> None:
    PartStore(path.parent, Manifest({}, 3, 3)).read(0)


def _tiffs(folder: Path) -> list[bytes]:
    frames = np.arange(3 * 16 * 20, dtype=np.uint16).reshape(3, 16, 20)
    found = []
    for options in (
        {"imagej": True, "metadata": {"axes": "TYX"}, "resolution": (9.1, 9.1)},
        {"ome": True, "metadata": {"axes": "TYX", "PhysicalSizeX": 110.0, "PhysicalSizeXUnit": "nm"}},
        {"bigtiff": True, "metadata": None},
        {"compression": "zlib", "metadata": None},
        {"metadata": None, "byteorder": ">"},
    ):
        path = folder / "seed.tif"
        tifffile.imwrite(path, frames, photometric="minisblack", **options)
        found.append(path.read_bytes())
    return found


def _table() -> bytes:
    head = b'"id","frame","x [nm]","y [nm]","z [nm]","intensity [photon]","uncertainty [nm]"\n'
    return head + b"".join(b"%d,%d,%d.5,12.25,-300,1000,1e1\n" % (i, i, i) for i in range(1, 9))


def _calibrations() -> list[bytes]:
    optics = Optics(1.4, 1.518, 1.33, 670.0, 100.0)
    gaussian = Gaussian((120.0, 120.0), (-250.0, 250.0), (400.0, 400.0))
    return [
        Calibration(optics, gaussian=gaussian, z_range_nm=(-300.0, 300.0)).to_bytes(),
        Calibration(optics, pupil=Pupil.flat(32, {6: 0.6}), z_range_nm=(-300.0, 300.0)).to_bytes(),
    ]


def _metadata() -> bytes:
    """The two texts of a model of ours, a line each."""
    info = ModelInfo(
        name="tiny",
        system="dense",
        purpose="fuzzing",
        calibration=Calibration.from_bytes(_calibrations()[0], name="tiny"),
        ranges={},
        channels=1,
        size_step=4,
        reach_px=12,
    )
    return "\n".join(info.to_metadata().values()).encode()


def _onnx() -> bytes:
    """A graph of one operator, by hand: the bytes that matter are few."""

    def field(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload)]) + payload

    tensor = b"\x08\x01\x10\x01" + field(8, b"w") + field(9, b"\x00\x00\x80\x3f")
    attribute = field(1, b"a") + field(5, tensor) + b"\xa0\x01\x04"
    node = field(1, b"frames") + field(2, b"maps") + field(4, b"Relu") + field(5, attribute)
    graph = field(1, node) + field(2, b"g") + field(5, tensor)
    metadata = field(14, field(1, b"smlm_bridge") + field(2, b"{}"))
    return b"\x08\x08" + field(7, graph) + field(8, field(1, b"") + b"\x10\x11") + metadata


def _package() -> bytes:
    array, buffer, content = np.zeros((1, 1, 8, 8), np.float32), io.BytesIO(), io.BytesIO()
    np.save(content, array)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        files = {"rdf.yaml": b"name: x\n", "weights.onnx": _onnx()}
        for name, data in (
            files | dict.fromkeys(("test_input.npy", "test_output.npy"), content.getvalue())
        ).items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _manifest(folder: Path) -> bytes:
    open_parts(folder / "m", {"input": ["a.tif"]}, frames=7, block_frames=3, resume=False)
    return (folder / "m" / "manifest.json").read_bytes()


def _part(folder: Path) -> bytes:
    store = open_parts(folder / "q", {}, frames=3, block_frames=3, resume=False)
    table = pd.DataFrame({"frame": np.arange(50), "x_nm": np.linspace(0, 1, 50)})
    store.write(0, Block(0, 3, table, {2: "damaged"}))
    return (folder / "q" / "part-000000.parquet").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--reader", nargs="*")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the files that are faults")
    given = parser.parse_args()
    print(f"{'file':<22}{'cases':>8}{'read':>8}{'refused':>9}{'faults':>8}{'slowest CPU-s':>15}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        for reader in readers(Path(name)):
            if given.reader and reader.name not in given.reader:
                continue
            found = run(reader, given.cases, seed=given.seed, folder=Path(name), keep=given.keep)
            counts = f"{given.cases:8d}{found.read:8d}{found.refused:9d}{found.faults:8d}"
            print(f"{reader.name:<22}{counts}{found.slowest:15.3f}", flush=True)
            if found.example:
                print(f"    {found.example}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"largest child: {peak:.2f} GB resident, with the libraries")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
