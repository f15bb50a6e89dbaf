"""Frames from every layout of TIFF we promise, block by block, and the errors of damaged ones."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError
from smlm_bridge.io import images
from smlm_bridge.io.images import open_frames, read_stack, write_stack
from smlm_bridge.io.tiff import plane_order

DATA = Path(__file__).parents[2] / "shared" / "data"
T, C, H, W = 6, 2, 13, 11
MOVIE = np.random.default_rng(0).integers(0, 60_000, (T, H, W)).astype(np.uint16)
PAIR = np.random.default_rng(1).integers(0, 60_000, (T, C, H, W)).astype(np.uint16)


def page_by_page(path, frames, **options):
    with tifffile.TiffWriter(path) as writer:
        for frame in frames:
            writer.write(frame, **options)


LAYOUTS = {
    "tifffile": (MOVIE, {}),
    "no metadata": (MOVIE, {"metadata": None}),
    "BigTIFF": (MOVIE, {"metadata": None, "bigtiff": True}),
    "big-endian": (MOVIE, {"byteorder": ">", "metadata": None}),
    "ImageJ T": (MOVIE, {"imagej": True, "metadata": {"axes": "TYX"}}),
    "ImageJ Z": (MOVIE, {"imagej": True, "metadata": {"axes": "ZYX"}}),
    "ImageJ, frames labelled channels": (MOVIE, {"imagej": True}),
    "ImageJ, one IFD as above 4 GB": (MOVIE, {"imagej": True, "truncate": True, "metadata": {"axes": "TYX"}}),
    "zlib": (MOVIE, {"compression": "zlib", "metadata": None}),
    "zlib ImageJ": (MOVIE, {"compression": "zlib", "imagej": True}),
    "zlib big-endian": (MOVIE, {"compression": "zlib", "byteorder": ">"}),
    "OME": (MOVIE, {"ome": True, "metadata": {"axes": "TYX"}}),
    "ImageJ TC": (PAIR, {"imagej": True, "metadata": {"axes": "TCYX"}}),
    "ImageJ ZC": (PAIR, {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    "TC": (PAIR, {"metadata": {"axes": "TCYX"}}),
    "t2yx without names": (PAIR, {}),
    "OME CT": (PAIR.swapaxes(0, 1), {"ome": True, "metadata": {"axes": "CTYX"}}),
    "OME CT zlib": (PAIR.swapaxes(0, 1), {"ome": True, "compression": "zlib", "metadata": {"axes": "CTYX"}}),
    "one page": (MOVIE[:1], {}),
    "uint8": ((MOVIE // 256).astype(np.uint8), {}),
    "int16": ((MOVIE // 2).astype(np.int16), {}),
    "uint32": (MOVIE.astype(np.uint32), {}),
    "float32": (MOVIE.astype(np.float32), {}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    array, options = LAYOUTS[name]
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, array, **options)
    expected = array if "CT" not in name else PAIR
    expected = expected[:, None] if expected.ndim == 3 else expected
    with open_frames(path) as source:
        assert (source.n_frames, source.n_channels, source.height, source.width) == expected.shape
        assert source.dtype == array.dtype
        assert source.dtype.isnative
        np.testing.assert_array_equal(source.read(0, source.n_frames), expected)
        start = min(2, source.n_frames)
        np.testing.assert_array_equal(source.read(start, source.n_frames), expected[start:])
        assert source.read(1, 1).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("options", [{}, {"metadata": None}, {"contiguous": True}, {"compression": "zlib"}])
def test_movies_written_page_by_page(tmp_path, options):
    page_by_page(tmp_path / "m.tif", MOVIE, **options)
    with open_frames(tmp_path / "m.tif") as source:
        np.testing.assert_array_equal(source.read(1, T)[:, 0], MOVIE[1:])


@pytest.mark.parametrize("n", [3, 4])
def test_three_frames_are_no_colours(tmp_path, n):
    # What tifffile does to an array of 3 or 4 frames unless told otherwise.
    options = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "m.tif", MOVIE[:n], **options)
    with open_frames(tmp_path / "m.tif") as source:
        np.testing.assert_array_equal(source.read(0, n)[:, 0], MOVIE[:n])


def test_channels_of_a_single_frame(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", PAIR[0], imagej=True, metadata={"axes": "CYX"})
    with open_frames(tmp_path / "m.tif") as source:
        np.testing.assert_array_equal(source.read(0, 1), PAIR[:1])


def test_frames_and_region(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", PAIR)
    with open_frames(tmp_path / "m.tif", frames=(3, 5), roi=(2, 4, 5, 7)) as source:
        assert (source.first_frame, source.x0, source.y0) == (2, 2, 4)
        assert (source.n_frames, source.height, source.width) == (3, 7, 5)
        np.testing.assert_array_equal(source.read(1, 3), PAIR[3:5, :, 4:11, 2:7])
        with pytest.raises(InputRejected, match="source has 3"):
            source.read(0, 4)


def test_files_are_joined_in_time(tmp_path):
    for i, stop in enumerate((1, 3, 6)):  # frame10 sorts before frame2 as text
        part = MOVIE[(0, 1, 3)[i] : stop]
        tifffile.imwrite(tmp_path / f"part{(1, 2, 10)[i]}.tif", part, photometric="minisblack")
    (tmp_path / ".hidden.tif").write_text("not an image")
    (tmp_path / "notes.txt").write_text("not an image")
    for given in (tmp_path, str(tmp_path / "part*.tif"), [tmp_path / f"part{n}.tif" for n in (1, 2, 10)]):
        with open_frames(given) as source:
            np.testing.assert_array_equal(source.read(0, T)[:, 0], MOVIE)
            np.testing.assert_array_equal(source.read(2, 4)[:, 0], MOVIE[2:4])
    with open_frames([tmp_path / "part10.tif", tmp_path / "part1.tif"], frames=(2, 4)) as source:
        np.testing.assert_array_equal(source.read(0, 3)[:, 0], MOVIE[[4, 5, 0]])


def test_many_compressed_files_do_not_stay_open(tmp_path):
    for i in range(12):
        tifffile.imwrite(tmp_path / f"{i}.tif", MOVIE[i % T], compression="zlib")
    with open_frames(tmp_path) as source:
        np.testing.assert_array_equal(source.read(0, 12)[:, 0], np.concatenate([MOVIE, MOVIE]))
        assert len(source._open) <= images._OPEN_FILES
    assert not source._open


def test_different_types_are_joined_as_their_common_type(tmp_path):
    tifffile.imwrite(tmp_path / "0.tif", MOVIE)
    tifffile.imwrite(tmp_path / "1.tif", MOVIE.astype(np.float32))
    with open_frames(tmp_path) as source:
        assert source.dtype == np.float32
        np.testing.assert_array_equal(source.read(0, 2 * T)[T:], MOVIE[:, None])


def ome_set(folder, names):
    """A movie over several OME files as Micro-Manager splits it: the first file describes all."""
    each = T // len(names)
    blocks = "".join(
        f'<TiffData IFD="{i}" FirstT="{n * each + i}" FirstC="0" FirstZ="0" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{n}</UUID></TiffData>'
        for n, name in enumerate(names)
        for i in range(each)
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:0"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
        f'PhysicalSizeX="0.11" PhysicalSizeXUnit="&#181;m" SizeX="{W}" SizeY="{H}" '
        f'SizeC="1" SizeZ="1" SizeT="{T}">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{blocks}</Pixels></Image></OME>'
    )
    for n, name in enumerate(names):
        part = MOVIE[n * each : (n + 1) * each]
        tifffile.imwrite(folder / name, part, description=xml, metadata=None, photometric="minisblack")


def test_an_ome_set_counts_once(tmp_path):
    names = ["m.ome.tif", "m_1.ome.tif"]
    ome_set(tmp_path, names)
    for given in (tmp_path / names[0], tmp_path, [tmp_path / name for name in names]):
        with open_frames(given) as source:
            assert source.n_frames == T
            assert source.pixel_nm == pytest.approx(110)
            np.testing.assert_array_equal(source.read(0, T)[:, 0], MOVIE)
            np.testing.assert_array_equal(source.read(2, 4)[:, 0], MOVIE[2:4])
    (tmp_path / names[1]).unlink()
    with pytest.raises(InputRejected, match="not there"):
        open_frames(tmp_path / names[0])


@pytest.mark.parametrize(
    ("options", "pixel_nm"),
    [
        ({"imagej": True, "resolution": (10, 10), "metadata": {"unit": "um"}}, 100),
        ({"imagej": True, "resolution": (0.01, 0.01), "metadata": {"unit": "nm"}}, 100),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.16, "PhysicalSizeXUnit": "µm"}}, 160),
        ({"resolution": (1e5, 1e5), "resolutionunit": "CENTIMETER"}, 100),
        ({"resolution": (72, 72), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"imagej": True}, None),
        ({}, None),
    ],
)
def test_pixel_size(tmp_path, options, pixel_nm):
    tifffile.imwrite(tmp_path / "m.tif", MOVIE, **options)
    with open_frames(tmp_path / "m.tif") as source:
        assert source.pixel_nm == (pytest.approx(pixel_nm) if pixel_nm else None)


@pytest.mark.parametrize(
    ("axes", "lead", "shape"),
    [
        ("", (), (1, 1)),
        ("TZC", (5, 1, 2), (5, 2)),
        ("QQ", (2, 50), (50, 2)),
        ("C", (4,), (1, 4)),
        ("C", (5,), (5, 1)),
        ("TZ", (5, 6), None),
        ("QQ", (50, 60), None),
        ("TZC", (5, 6, 2), None),
    ],
)
def test_plane_order(axes, lead, shape):
    order = plane_order(axes, lead)
    assert (order if order is None else order.shape) == shape
    if order is not None:
        assert sorted(order.ravel()) == list(range(order.size))


CUT = {
    "tifffile": ({}, "of 6"),
    "ImageJ": ({"imagej": True, "metadata": {"axes": "TYX"}}, "of 6"),
    "ImageJ, one IFD": ({"imagej": True, "truncate": True}, "of 6"),
    "ImageJ zlib": ({"imagej": True, "compression": "zlib"}, "of 6"),
    "no metadata": ({"metadata": None, "contiguous": False}, ""),
    "zlib": ({"metadata": None, "compression": "zlib"}, ""),
    "BigTIFF": ({"metadata": None, "bigtiff": True, "compression": "zlib"}, ""),
}


@pytest.mark.parametrize("name", CUT)
def test_truncated_files_say_how_many_frames_are_readable(tmp_path, name):
    options, total = CUT[name]
    path = tmp_path / "m.tif"
    if options.pop("contiguous", True):
        tifffile.imwrite(path, MOVIE, **options)
    else:
        page_by_page(path, MOVIE, **options)
    os.truncate(path, int(path.stat().st_size * 0.6))
    with pytest.raises(InputRejected, match=f"cut off: [34] {total}.*frame.*readable.*1:[34]") as caught:
        open_frames(path)
    readable = int(str(caught.value).split("cut off: ")[1][0])
    with open_frames(path, frames=(1, readable)) as source:
        np.testing.assert_array_equal(source.read(0, readable)[:, 0], MOVIE[:readable])
    with pytest.raises(InputRejected, match="cut off"):
        open_frames(path, frames=(1, readable + 1))


def test_a_file_cut_off_before_another_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "0.tif", MOVIE)
    tifffile.imwrite(tmp_path / "1.tif", MOVIE)
    os.truncate(tmp_path / "0.tif", 1200)
    with pytest.raises(InputRejected, match=r"0\.tif is cut off"):
        open_frames(tmp_path, frames=(1, T))


def test_a_file_shortened_while_it_is_read(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", MOVIE)
    with open_frames(tmp_path / "m.tif") as source:
        os.truncate(tmp_path / "m.tif", 1000)
        with pytest.raises(SmlmError, match="damaged"):
            source.read(0, T)


def bad_text(folder):
    (folder / "m.tif").write_text("id,frame,x\n1,1,2\n" * 10)


def bad_empty(folder):
    (folder / "m.tif").touch()


def bad_rgb(folder):
    tifffile.imwrite(folder / "m.tif", np.zeros((H, W, 3), np.uint8), photometric="rgb")


def bad_sizes(folder):
    with tifffile.TiffWriter(folder / "m.tif") as writer:
        writer.write(MOVIE)
        writer.write(MOVIE[:, 1:])


def bad_axes(folder):
    array = np.zeros((5, 6, H, W), np.uint8)
    tifffile.imwrite(folder / "m.tif", array, imagej=True, metadata={"axes": "TZYX"})


def bad_complex(folder):
    tifffile.imwrite(folder / "m.tif", MOVIE.astype(np.complex64))


def bad_positions(folder):
    with tifffile.TiffWriter(folder / "m.ome.tif", ome=True) as writer:
        writer.write(MOVIE)
        writer.write(MOVIE)


def bad_two_files(folder):
    tifffile.imwrite(folder / "0.tif", MOVIE)
    tifffile.imwrite(folder / "1.tif", MOVIE[:, :, 1:])


def bad_header_only(folder):
    (folder / "m.tif").write_bytes(b"II*\0\x08\0\0\0")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad_text, "not a TIFF image"),
        (bad_empty, "empty"),
        (bad_rgb, "RGB"),
        (bad_sizes, "different sizes"),
        (bad_axes, "axes T: 5, Z: 6"),
        (bad_complex, "type complex64"),
        (bad_positions, "2 OME images"),
        (bad_two_files, r"1\.tif are 10x13 px .* 11x13 px"),
        (bad_header_only, "m.tif is"),
        (lambda _: None, "holds no TIFF"),
    ],
)
def test_bad_inputs_are_refused_with_the_reason(tmp_path, make, message, capfd):
    make(tmp_path)
    with pytest.raises(InputRejected, match=message):
        open_frames(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_missing_inputs_and_limits_outside(tmp_path):
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, MOVIE)
    with pytest.raises(InputRejected, match="does not exist"):
        open_frames(tmp_path / "none.tif")
    with pytest.raises(InputRejected, match="no file matches"):
        open_frames(str(tmp_path / "none*.tif"))
    with pytest.raises(InputRejected, match="no images were given"):
        open_frames([])
    for frames in ((0, 2), (2, 7), (3, 2)):
        with pytest.raises(InputRejected, match="has the frames 1:6"):
            open_frames(path, frames=frames)
    for roi in ((-1, 0, 2, 2), (0, 0, W + 1, 2), (0, 0, 0, 2), (0, H - 1, 2, 2)):
        with pytest.raises(InputRejected, match="does not lie within"):
            open_frames(path, roi=roi)


@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is not None, reason="imagecodecs is installed")
def test_a_missing_decompressor_is_named_before_the_work(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", MOVIE, compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "m.tif", mode="r+") as tif:
        for page in tif.pages:
            page.tags["Compression"].overwrite(5)  # LZW
    with pytest.raises(MissingDependency, match="pip install imagecodecs"):
        open_frames(tmp_path / "m.tif")


def test_stacks(tmp_path):
    write_stack(tmp_path / "z.tif", MOVIE, axes="ZYX", pixel_nm=110)
    np.testing.assert_array_equal(read_stack(tmp_path / "z.tif"), MOVIE)
    write_stack(tmp_path / "zc.tif", PAIR, axes="ZCYX")
    np.testing.assert_array_equal(read_stack(tmp_path / "zc.tif"), PAIR.swapaxes(0, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.int32, bool])
def test_written_stacks_open_in_imagej_with_their_pixel_size(tmp_path, dtype):
    array = (MOVIE // 256).astype(dtype)
    write_stack(tmp_path / "m.tif", array, pixel_nm=97.5)
    with tifffile.TiffFile(tmp_path / "m.tif") as tif:
        assert tif.is_imagej
        assert tif.imagej_metadata["frames"] == T
        assert tif.series[0].dtype in (np.uint8, np.uint16, np.float32)
    with open_frames(tmp_path / "m.tif") as source:
        assert source.pixel_nm == pytest.approx(97.5, rel=1e-6)
        np.testing.assert_array_equal(source.read(0, T)[:, 0], array)


def test_big_stacks_become_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_BIGTIFF_BYTES", 100)
    write_stack(tmp_path / "m.tif", PAIR, pixel_nm=110, axes="TCYX")
    with tifffile.TiffFile(tmp_path / "m.tif") as tif:
        assert tif.is_bigtiff
    with open_frames(tmp_path / "m.tif") as source:
        assert source.pixel_nm == pytest.approx(110)
        np.testing.assert_array_equal(source.read(0, T), PAIR)


def test_stacks_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(InputRejected, match="do not describe"):
        write_stack(tmp_path / "m.tif", PAIR, axes="TYX")
    with pytest.raises(InputRejected, match="lose digits"):
        write_stack(tmp_path / "m.tif", np.full((1, 2, 2), 2**24 + 1, np.uint32))
    write_stack(tmp_path / "m.tif", MOVIE)
    with pytest.raises(InputRejected, match="--overwrite"):
        write_stack(tmp_path / "m.tif", MOVIE)
    assert os.listdir(tmp_path) == ["m.tif"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared microscope data are not there")
def test_the_shared_data():
    with open_frames(DATA / "simulated" / "pair_biplane_N010.tif") as source:
        assert source.read(3, 5).shape == (2, 2, 81, 81)
    with open_frames(DATA / "telomeres_fixed" / "edof.tif") as source:
        assert source.read(0, 1).shape == (1, 1, 155, 155)
    with open_frames(DATA / "storm_tetrapod" / "frames.tif") as source:
        assert (source.n_frames, source.height, source.width) == (25, 297, 391)
    assert read_stack(DATA / "beads" / "learned1.tif").shape == (56, 121, 121)
