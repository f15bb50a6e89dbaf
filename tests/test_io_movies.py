"""Movies of microscopes' own formats: written on the spot where a library or the format's layout allows it."""

import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tifffile

from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError
from smlm_bridge.io.images import open_frames
from smlm_bridge.io.tiff import camera_offset_adu

SHAPE = (7, 2, 12, 10)  # frames, channels, height, width


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 4000, SHAPE).astype(np.uint16)


def check(path: Path, pixels: np.ndarray, **known: Any) -> None:
    """Frames, blocks, a region, and what the file says of itself."""
    with open_frames(path) as source:
        found = source.description
        np.testing.assert_array_equal(source.read(0, source.n_frames), pixels)
        np.testing.assert_array_equal(source.read(2, 5), pixels[2:5])
        assert source.read(3, 3).shape[0] == 0
    wanted = {"files": 1, "frames": len(pixels), "channels": pixels.shape[1], "dtype": str(pixels.dtype),
              "size_px": list(pixels.shape[2:]), "pixel_nm": None, "camera_offset": None, **known}  # fmt: skip
    assert found.pop("pixel_nm") == pytest.approx(wanted.pop("pixel_nm"))
    assert found == wanted
    with open_frames(path, frames=(3, 6), roi=(1, 2, 5, 4)) as source:
        np.testing.assert_array_equal(source.read(1, 3), pixels[3:5, :, 2:6, 1:6])


# ---- NDTiff and OME-Zarr, written by their own libraries


# In a process of its own, which is left without ado: the writer's threads outlive it.
WRITE_NDTIFF = """
import os, sys
import numpy as np
import ndtiff
pixels = np.load(sys.argv[1])
writer = ndtiff.NDTiffDataset(sys.argv[2], summary_metadata={"PixelSizeUm": 0.11}, name="run", writable=True)
metadata = {"Camera-CONVERSION FACTOR OFFSET": {"PropVal": "101.5"}}
for t in np.random.default_rng(0).permutation(len(pixels)):  # in any order
    for c, channel in enumerate(("561", "640")):
        writer.put_image({"time": int(t), "channel": channel}, pixels[t, c], metadata)
writer.finish()
os._exit(0)
"""


def test_ndtiff(tmp_path: Path, pixels: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ndtiff", reason="ndtiff (extra movies) is not installed")
    np.save(tmp_path / "pixels.npy", pixels)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        WRITE_NDTIFF,
        str(tmp_path / "pixels.npy"),
        str(tmp_path),
    ]
    subprocess.run(command, check=True, timeout=60)
    folder = next(p.parent for p in tmp_path.rglob("NDTiff.index"))
    check(folder, pixels, pixel_nm=110.0, camera_offset=101.5)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, pixels: np.ndarray, version: str) -> None:
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr (extra movies) is not installed")
    folder = tmp_path / "movie.ome.zarr"
    group = zarr.open_group(str(folder), mode="w", zarr_format=2 if version == "0.4" else 3)
    data = pixels[:, :, None]  # t, c, z, y, x
    array = group.create_array("0", shape=data.shape, chunks=(3, 1, 1, 12, 10), dtype="uint16")
    array[:] = data
    units = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *units]
    scale = {"type": "scale", "scale": [1.0, 1.0, 0.5, 0.108, 0.108]}
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"multiscales": [image]}})
    check(folder, pixels, pixel_nm=108.0)


def test_zarr_without_ome_is_refused(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr (extra movies) is not installed")
    zarr.open_group(str(tmp_path / "a.zarr"), mode="w").create_array("0", shape=(2, 3, 4), dtype="uint16")
    with pytest.raises(InputRejected, match="without the multiscales"):
        open_frames(tmp_path / "a.zarr")


# ---- CZI and LIF, written by their published layout and read by the real libraries


def segment(name: bytes, data: bytes) -> bytes:
    size = -(-len(data) // 32) * 32
    return struct.pack("<16sqq", name, size, len(data)) + data.ljust(size, b"\0")


def czi_entry(position: int, t: int, c: int, *, shape: tuple[int, int], stored: int = 0) -> bytes:
    sizes = {b"X": (0, shape[1], stored), b"Y": (0, shape[0], stored), b"C": (c, 1, 0), b"T": (t, 1, 0)}
    head = struct.pack("<2siqiiBB4si", b"DV", 1, position, 0, 0, 0, 0, b"", len(sizes))
    return head + b"".join(struct.pack("<4siifi", n, a, m, 0.0, s or m) for n, (a, m, s) in sizes.items())


def write_czi(path: Path, pixels: np.ndarray, *, left_out: int = 0) -> Path:
    xml = (b'<ImageDocument><Metadata><Scaling><Items><Distance Id="X"><Value>1.04E-07</Value></Distance>'
           b"</Items></Scaling></Metadata></ImageDocument>")  # fmt: skip
    header_size = 32 + 512
    metadata = segment(b"ZISRAWMETADATA", struct.pack("<ii", len(xml), 0).ljust(256, b"\0") + xml)
    body, entries = metadata, []
    places = [(t, c) for t in range(pixels.shape[0]) for c in range(pixels.shape[1])]
    for t, c in places[: len(places) - left_out]:
        position = header_size + len(body)
        entry = czi_entry(position, t, c, shape=pixels.shape[2:])
        raw = pixels[t, c].astype("<u2").tobytes()
        data = struct.pack("<iiq", 0, 0, len(raw)) + entry
        body += segment(b"ZISRAWSUBBLOCK", data.ljust(16 + 240, b"\0") + raw)
        entries.append(entry)
    directory = header_size + len(body)
    body += segment(b"ZISRAWDIRECTORY", struct.pack("<i", len(entries)).ljust(128, b"\0") + b"".join(entries))
    guid = bytes(16)
    head = struct.pack("<iiii16s16siqqiq", 1, 0, 0, 0, guid, guid, 0, directory, header_size, 0, 0)
    path.write_bytes(segment(b"ZISRAWFILE", head.ljust(512, b"\0")) + body)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_czi(tmp_path: Path, pixels: np.ndarray) -> None:
    pytest.importorskip("czifile", reason="czifile (extra movies) is not installed")
    check(write_czi(tmp_path / "movie.czi", pixels), pixels, pixel_nm=104.0)
    with pytest.raises(InputRejected, match="holds 13 of 14 planes"):
        open_frames(write_czi(tmp_path / "short.czi", pixels, left_out=1))


def write_lif(path: Path, images: dict[str, np.ndarray], pixel_nm: float) -> Path:
    """Each image (T, C, Y, X): the XML of its dimensions, then one block of memory."""
    elements, blocks = [], []
    for number, (name, data) in enumerate(images.items()):
        frames, channels, height, width = data.shape
        step = height * width * 2
        dims = [(1, width, 2, (width - 1) * pixel_nm * 1e-9, "m"), (2, height, 2 * width, 1e-6, "m"),
                (4, frames, step * channels, 1.0, "s")]  # fmt: skip
        described = "".join(
            f'<DimensionDescription DimID="{i}" NumberOfElements="{n}" Origin="0" Length="{length}" Unit="{unit}" '
            f'BitInc="0" BytesInc="{inc}"/>'
            for i, n, inc, length, unit in dims
        )
        colours = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="16" NameOfMeasuredQuantity="" Min="0" '
            f'Max="65535" Unit="" LUTName="Gray" IsLUTInverted="0" BytesInc="{c * step}" BitInc="0"/>'
            for c in range(channels)
        )
        elements.append(
            f'<Element Name="{name}"><Data><Image><ImageDescription><Channels>{colours}</Channels><Dimensions>'
            f"{described}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{data.nbytes}" MemoryBlockID="MemBlock_{number}"/></Element>'
        )
        label = f"MemBlock_{number}".encode("utf-16-le")
        head = b"*" + struct.pack("<Q", data.nbytes) + b"*" + struct.pack("<I", len(label) // 2) + label
        blocks.append(struct.pack("<II", 0x70, len(head)) + head + data.astype("<u2").tobytes())
    children = "".join(elements)
    xml = (
        f'<LMSDataContainerHeader Version="2"><Element Name="a"><Memory Size="0" MemoryBlockID="MemBlock_x"/>'
        f"<Children>{children}</Children></Element></LMSDataContainerHeader>"
    ).encode("utf-16-le")
    head = b"*" + struct.pack("<I", len(xml) // 2) + xml
    path.write_bytes(struct.pack("<II", 0x70, len(head)) + head + b"".join(blocks))
    return path


def test_lif(tmp_path: Path, pixels: np.ndarray) -> None:
    pytest.importorskip("liffile", reason="liffile (extra movies) is not installed")
    overview = pixels[:1, :1]
    path = write_lif(tmp_path / "a.lif", {"overview": overview, "movie": pixels}, 97.0)
    check(path, pixels, pixel_nm=97.0)
    two = write_lif(tmp_path / "b.lif", {"one": pixels, "two": pixels}, 97.0)
    with pytest.raises(InputRejected, match=r"2 movies \(one, two\)"):
        open_frames(two)


# ---- ND2: nothing writes it; a reader of the library's documented interface stands for it


class FakeNd2:
    """``nd2.ND2File`` as far as its documentation promises: sizes, dtype, read_frame, voxel_size."""

    pixels: np.ndarray
    extra: ClassVar[dict[str, int]] = {}

    def __init__(self, path: Path) -> None:
        if not Path(path).read_bytes():
            raise ValueError("not an ND2 file")
        frames, channels, height, width = self.pixels.shape
        self.sizes = {"T": frames, **self.extra, "C": channels, "Y": height, "X": width}
        self.dtype = self.pixels.dtype
        self.text_info = {"description": "Camera Offset: 98"}

    def read_frame(self, number: int) -> np.ndarray:
        return self.pixels[number].squeeze()

    def voxel_size(self) -> Any:
        return types.SimpleNamespace(x=0.16, y=0.16, z=1.0)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("channels", [1, 2])
def test_nd2(tmp_path: Path, pixels: np.ndarray, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    part = pixels[:, :channels]
    fake = type("ND2File", (FakeNd2,), {"pixels": part})
    monkeypatch.setitem(sys.modules, "nd2", types.SimpleNamespace(ND2File=fake))  # type: ignore[arg-type]
    path = tmp_path / "movie.nd2"
    path.write_bytes(b"x")
    check(path, part, pixel_nm=160.0, camera_offset=98.0)
    fake.extra = {"P": 3}  # type: ignore[attr-defined]
    with pytest.raises(InputRejected, match="P: 3"):
        open_frames(path)
    path.write_bytes(b"")
    with pytest.raises(InputRejected, match="damaged or no such file: not an ND2 file"):
        open_frames(path)


def test_a_frame_that_cannot_be_read_is_told(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = type("ND2File", (FakeNd2,), {"pixels": pixels})
    monkeypatch.setitem(sys.modules, "nd2", types.SimpleNamespace(ND2File=fake))  # type: ignore[arg-type]
    (tmp_path / "movie.nd2").write_bytes(b"x")
    with open_frames(tmp_path / "movie.nd2") as source:
        fake.read_frame = lambda self, number: pixels[0, 0, :3]  # type: ignore[attr-defined]
        with pytest.raises(SmlmError, match="damaged"):
            source.read(0, 1)


# ---- what is missing, damaged, or stated by a TIFF


@pytest.mark.parametrize(("name", "module"), [("a.nd2", "nd2"), ("a.czi", "czifile"), ("a.lif", "liffile")])
def test_a_missing_reader_is_named_with_one_line_to_install(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(MissingDependency, match=r"pip install 'smlm_bridge\[movies\]'"):
        open_frames(tmp_path / name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "module"), [("a.nd2", "nd2"), ("a.czi", "czifile"), ("a.lif", "liffile")])
@pytest.mark.parametrize(
    "content", [b"", b"II*\0", b"ZISRAWFILE" + bytes(90), struct.pack("<II", 0x70, 9) + b"*"]
)
def test_what_is_no_such_file_is_refused(name: str, module: str, content: bytes, tmp_path: Path) -> None:
    pytest.importorskip(module, reason=f"{module} (extra movies) is not installed")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputRejected, match=f"{name} is damaged"):
        open_frames(tmp_path / name)


def test_a_folder_of_such_files_is_joined(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = type("ND2File", (FakeNd2,), {"pixels": pixels})
    monkeypatch.setitem(sys.modules, "nd2", types.SimpleNamespace(ND2File=fake))  # type: ignore[arg-type]
    for number in (10, 9):
        (tmp_path / f"run{number}.nd2").write_bytes(b"x")
    with open_frames(tmp_path) as source:
        assert (source.n_frames, source.description["files"]) == (14, 2)
        np.testing.assert_array_equal(source.read(6, 8), pixels[[6, 0]])


@pytest.mark.parametrize(
    ("metadata", "offset"),
    [
        (None, None),
        ({}, None),
        ({"Hamamatsu-CONVERSION FACTOR OFFSET": "100"}, 100.0),
        ({"HamamatsuHam_DCAM-CONVERSION FACTOR OFFSET": {"PropVal": "100.25"}}, 100.25),
        ("CONVERSION FACTOR COEFF: 0.46\nConversion Factor Offset: 200", 200.0),
        ({"Camera Offset": 99}, 99.0),
        ({"ROI-Offset": 512, "OffsetX": 3}, None),
    ],
)
def test_the_offset_of_the_camera_is_taken_where_it_is_stated(metadata: Any, offset: float | None) -> None:
    assert camera_offset_adu(metadata) == offset


def test_a_tiff_of_micro_manager_states_its_offset(tmp_path: Path) -> None:
    text = '{"Andor-Exposure": "30", "Cam-CONVERSION FACTOR OFFSET": "105"}'
    tag = (51123, "s", len(text) + 1, text, True)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 5, 6), np.uint16), extratags=[tag])
    with open_frames(tmp_path / "a.tif") as source:
        assert source.camera_offset == 105.0
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((3, 5, 6), np.uint16), imagej=True,
                     metadata={"Info": "Conversion Factor Offset = 77"})  # fmt: skip
    with open_frames(tmp_path / "b.tif") as source:
        assert source.camera_offset == 77.0
