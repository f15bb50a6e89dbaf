"""Tables of other programs: each in its own convention, there and back, and refused where they are not sound.

What a file must hold is computed here from the conventions, and looked up with the plain library of the format.
"""

import json
import logging
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smlm_bridge.cli import main
from smlm_bridge.errors import InputRejected
from smlm_bridge.io import formats
from smlm_bridge.io.formats import limits
from smlm_bridge.locs import SCHEMA

PIXEL_NM = 110.0
FILE = {
    "thunderstorm": "a.csv",
    "parquet": "a.parquet",
    "picasso": "a.hdf5",
    "smap": "a_sml.mat",
    "decode": "a.h5",
    "smlm": "a.smlm",
    "challenge": "a.txt",
}
BINARY = ("parquet", "picasso", "smap", "decode", "smlm")
# What a format keeps: positions to the precision of its numbers (float32 of pixels or nm, 3 decimals, all).
TOLERANCE_NM = {"picasso": 4e-3, "decode": 4e-3, "smlm": 4e-3, "challenge": 6e-4, "thunderstorm": 6e-4}


def asymmetric(n: int = 7) -> pd.DataFrame:
    """No two columns alike, x and y of different size, frames with gaps."""
    i = np.arange(n)
    return pd.DataFrame(
        {
            "frame": 3 * i + 2,
            "x_nm": 1000.25 + 311.5 * i,
            "y_nm": 7000.5 - 123.75 * i,
            "z_nm": -400.0 + 150.5 * i,
            "psf_sigma1_nm": 140.0 + i,
            "psf_sigma2_nm": 170.0 + 2 * i,
            "photons": 1500.0 + 100 * i,
            "background": 20.0 + i,
            "uncertainty_xy_nm": np.sqrt(((8.0 + i) ** 2 + (11.0 + i) ** 2) / 2),
            "uncertainty_z_nm": 30.0 + i,
            "uncertainty_x_nm": 8.0 + i,
            "uncertainty_y_nm": 11.0 + i,
        }
    )


def write(folder: Path, name: str, locs: pd.DataFrame) -> Path:
    path = folder / FILE[name]
    formats.write(path, locs, name=name, pixel_nm=PIXEL_NM)
    return path


def refused(path: Path, match: str = "", **options: Any) -> None:
    with pytest.raises(InputRejected, match=match):
        formats.read(path, **options)


# ---- there and back


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_table_comes_back(name: str, tmp_path: Path) -> None:
    locs = asymmetric()
    got = formats.read(write(tmp_path, name, locs), name=name)
    assert got["frame"].tolist() == locs["frame"].tolist()
    wanted = [c for c in locs if c in got]
    assert {"x_nm", "y_nm", "z_nm", "photons"} <= set(wanted)
    if name not in ("challenge", "decode"):
        assert set(wanted) == set(locs)
    for column in wanted:
        np.testing.assert_allclose(got[column], locs[column], rtol=1e-6, atol=TOLERANCE_NM.get(name, 1e-9))
    assert [c for c in got if c in locs] == wanted


@pytest.mark.parametrize("name", formats.FORMATS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_positions_come_back(name: str, tmp_path: Path, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    coordinate = st.floats(PIXEL_NM, 50_000).map(lambda v: round(v, 2))
    locs = pd.DataFrame(
        {
            "frame": data.draw(st.lists(st.integers(0, 10**6), min_size=n, max_size=n)),
            "x_nm": data.draw(st.lists(coordinate, min_size=n, max_size=n)),
            "y_nm": data.draw(st.lists(coordinate, min_size=n, max_size=n)),
            "photons": data.draw(st.lists(st.floats(1, 1e8), min_size=n, max_size=n)),
        }
    )
    path = tmp_path / FILE[name]
    formats.write(path, locs, name=name, pixel_nm=PIXEL_NM, overwrite=True)
    got = formats.read(path, name=name)
    assert got["frame"].tolist() == locs["frame"].tolist()
    for column in ("x_nm", "y_nm"):
        np.testing.assert_allclose(got[column], locs[column], rtol=0, atol=TOLERANCE_NM.get(name, 1e-9))
    np.testing.assert_allclose(got["photons"], locs["photons"], rtol=1e-6, atol=6e-3)


@pytest.mark.parametrize("name", [n for n in formats.FORMATS if n != "challenge"])
@pytest.mark.parametrize("rows", [0, 1])
def test_tables_of_no_and_of_one_row(name: str, rows: int, tmp_path: Path) -> None:
    got = formats.read(write(tmp_path, name, asymmetric(3).iloc[:rows]))
    assert len(got) == rows
    assert {"frame", "x_nm", "y_nm"} <= set(got)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_frames_out_of_order_duplicates_and_many_photons_stay(name: str, tmp_path: Path) -> None:
    locs = pd.concat([asymmetric(3).iloc[::-1], asymmetric(3)], ignore_index=True).assign(photons=1e8)
    got = formats.read(write(tmp_path, name, locs), name=name)
    assert got["frame"].tolist() == [8, 5, 2, 2, 5, 8]
    assert (got["photons"] == 1e8).all()


@pytest.mark.parametrize("name", ["parquet", "picasso", "smap", "smlm"])
def test_columns_unknown_to_the_format_are_carried(name: str, tmp_path: Path) -> None:
    locs = asymmetric().assign(probability=0.25, detections=3, chi2=np.arange(7) + 0.5)
    got = formats.read(write(tmp_path, name, locs))
    assert got["chi2"].tolist() == locs["chi2"].tolist()
    assert (got["probability"] == 0.25).all()
    assert (got["detections"] == 3).all()


@pytest.mark.parametrize("name", ["picasso", "smap", "decode", "smlm", "challenge"])
def test_columns_left_out_are_named(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        write(tmp_path, name, asymmetric().assign(dye="A647"))
    assert "dye" in caplog.text


@pytest.mark.parametrize("name", ["picasso", "smap", "decode"])
def test_a_pixel_is_wanted_and_checked(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="--pixel-nm"):
        formats.write(tmp_path / FILE[name], asymmetric())
    for pixel in (0.0, -1.0, np.nan):
        with pytest.raises(InputRejected, match="positive"):
            formats.write(tmp_path / FILE[name], asymmetric(), pixel_nm=pixel)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", formats.FORMATS)
def test_an_existing_file_is_kept(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, asymmetric())
    before = path.read_bytes()
    with pytest.raises(InputRejected, match="overwrite"):
        formats.write(path, asymmetric(2), name=name, pixel_nm=PIXEL_NM)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["picasso", "smlm"])
def test_a_frame_beyond_32_bits_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="frame 4294967296"):
        write(tmp_path, name, asymmetric(1).assign(frame=2**32 - (name == "smlm")))


# ---- names


def test_a_name_says_its_format() -> None:
    for name, file in FILE.items():
        if name != "challenge":
            assert formats.format_of(file.upper()) == name
    assert formats.format_of("a.psf.h5") is None
    assert formats.format_of("mask.mat") is None
    with pytest.raises(InputRejected, match="picasso"):
        formats.read("a.xyz")
    with pytest.raises(InputRejected, match="'tsf'"):
        formats.read("a.csv", name="tsf")


# ---- Picasso


def test_picasso_has_pixels_from_the_centre_of_the_first_and_frames_from_0(tmp_path: Path) -> None:
    locs = asymmetric()
    path = write(tmp_path, "picasso", locs)
    with h5py.File(path) as file:
        rows, info = file["locs"][()], json.loads(file["metadata"][()])
    assert rows.dtype["frame"] == np.dtype("u4")
    assert rows["frame"].tolist() == locs["frame"].tolist()
    np.testing.assert_allclose(rows["x"], locs["x_nm"] / PIXEL_NM - 0.5, rtol=1e-6)
    np.testing.assert_allclose(rows["y"], locs["y_nm"] / PIXEL_NM - 0.5, rtol=1e-6)
    np.testing.assert_allclose(rows["z"], locs["z_nm"], rtol=1e-6)
    np.testing.assert_allclose(rows["sx"], locs["psf_sigma1_nm"] / PIXEL_NM, rtol=1e-6)
    np.testing.assert_allclose(rows["lpy"], locs["uncertainty_y_nm"] / PIXEL_NM, rtol=1e-6)
    np.testing.assert_allclose(rows["lpz"], locs["uncertainty_z_nm"], rtol=1e-6)
    # x to 2869 nm is in the 27th pixel, y to 7000.5 nm in the 64th; the last frame is 20, from 0
    assert (info[0]["Width"], info[0]["Height"], info[0]["Frames"]) == (27, 64, 21)
    assert info[1]["Pixelsize"] == PIXEL_NM
    documents = path.with_suffix(".yaml").read_text().split("---\n")
    keys = [dict(line.split(": ", 1) for line in text.splitlines()) for text in documents]
    assert [{key: json.loads(value) for key, value in part.items()} for part in keys] == info


def test_the_centre_of_the_first_pixel_is_0_in_picasso(tmp_path: Path) -> None:
    centre = pd.DataFrame({"frame": [0], "x_nm": [0.5 * PIXEL_NM], "y_nm": [1.5 * PIXEL_NM]})
    with h5py.File(write(tmp_path, "picasso", centre)) as file:
        assert (file["locs"]["x"][0], file["locs"]["y"][0], file["locs"]["frame"][0]) == (0.0, 1.0, 0)


def test_the_pixel_of_picasso_is_found_beside_the_table(tmp_path: Path) -> None:
    path = write(tmp_path, "picasso", asymmetric())
    with h5py.File(path, "r+") as file:
        del file["metadata"]
    sidecar = path.with_suffix(".yaml")
    sidecar.write_text("Width: 27\n---\nGenerated by: Picasso\nPixelsize: 110\nBox:\n  Pixelsize: 7\n")
    np.testing.assert_allclose(formats.read(path)["x_nm"], asymmetric()["x_nm"], atol=4e-3)
    sidecar.write_text("Width: 27\n")
    refused(path, "--pixel-nm")
    sidecar.unlink()
    refused(path, "--pixel-nm")
    np.testing.assert_allclose(
        formats.read(path, pixel_nm=220.0)["x_nm"], 2 * asymmetric()["x_nm"], atol=8e-3
    )


@pytest.mark.parametrize("metadata", ["", "7", "{", '[{"Pixelsize": "110"}]', "[1]"])
def test_metadata_without_a_pixel_is_no_crash(metadata: str, tmp_path: Path) -> None:
    path = write(tmp_path, "picasso", asymmetric())
    path.with_suffix(".yaml").unlink()
    with h5py.File(path, "r+") as file:
        del file["metadata"]
        file["metadata"] = metadata
    refused(path, "--pixel-nm")


def test_rows_that_picasso_would_delete_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locs = asymmetric(6)
    locs.loc[0, "x_nm"] = 0.4 * PIXEL_NM  # left of the centre of the first pixel
    locs.loc[1, "photons"] = -1.0
    locs.loc[2, "background"] = np.nan
    assert formats.write(tmp_path / "a.hdf5", locs, pixel_nm=PIXEL_NM) == 3
    assert "3 of 6 rows are left out" in caplog.text
    assert formats.read(tmp_path / "a.hdf5")["frame"].tolist() == [11, 14, 17]


def test_a_2d_table_gets_what_picasso_insists_on(tmp_path: Path) -> None:
    locs = asymmetric()[["frame", "x_nm", "y_nm", "photons"]]
    with h5py.File(write(tmp_path, "picasso", locs)) as file:
        rows = file["locs"][()]
    assert {"frame", "x", "y", "photons", "sx", "sy", "bg", "lpx", "lpy"} == set(rows.dtype.names)
    np.testing.assert_allclose(rows["lpx"], 130.0 / np.sqrt(locs["photons"]) / PIXEL_NM, rtol=1e-5)


# ---- SMAP


def test_smap_has_columns_of_doubles_in_nm_and_frames_from_1(tmp_path: Path) -> None:
    locs = asymmetric()
    loaded = scipy.io.loadmat(write(tmp_path, "smap", locs))
    saveloc = loaded["saveloc"][0, 0]
    loc, info = saveloc["loc"][0, 0], saveloc["info"][0, 0]
    assert loaded["fileformat"][0, 0]["name"][0] == "sml"
    assert {loc[name].shape for name in loc.dtype.names} == {(7, 1)}
    assert {loc[name].dtype for name in loc.dtype.names} == {np.dtype("f8")}
    for theirs, ours in (("xnm", "x_nm"), ("ynm", "y_nm"), ("znm", "z_nm"), ("PSFynm", "psf_sigma2_nm"),
                         ("phot", "photons"), ("bg", "background"), ("locprecnm", "uncertainty_xy_nm"),
                         ("ynmerr", "uncertainty_y_nm"), ("locprecznm", "uncertainty_z_nm")):  # fmt: skip
        assert loc[theirs].ravel().tolist() == locs[ours].tolist()
    assert loc["frame"].ravel().tolist() == (locs["frame"] + 1).tolist()
    assert info["cam_pixelsize_um"].tolist() == [[0.11, 0.11]]
    assert info["roi"].tolist() == [[0, 0, 27, 64]]


def matlab_73(path: Path, columns: dict[str, Any]) -> Path:
    """A file as MATLAB writes it: HDF5 behind 512 bytes of header, arrays transposed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        group = file.create_group("saveloc/loc")
        for name, values in columns.items():
            group[name] = values
        file.create_group("fileformat")
    with open(path, "r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + struct.pack("<HH", 0x0200, 0x4D49))
    return path


def test_smap_of_matlab_73_is_read(tmp_path: Path) -> None:
    columns = {"frame": [[1.0, 4.0]], "xnm": [[10.0, 20.0]], "ynm": [[5.0, 6.0]], "LLrel": [[-1.0, -2.0]]}
    path = matlab_73(tmp_path / "a_sml.mat", columns)
    with h5py.File(path, "r+") as file:
        file["saveloc/loc/other"] = np.zeros((1, 5))
        file["saveloc/loc/elsewhere"] = h5py.SoftLink("/fileformat")
    got = formats.read(path)
    assert got.to_dict("list") == {
        "frame": [0, 3],
        "x_nm": [10.0, 20.0],
        "y_nm": [5.0, 6.0],
        "LLrel": [-1.0, -2.0],
    }


def test_an_empty_table_of_matlab_73_is_read(tmp_path: Path) -> None:
    path = matlab_73(tmp_path / "a_sml.mat", dict.fromkeys(("frame", "xnm", "ynm"), np.zeros(2, np.uint64)))
    with h5py.File(path, "r+") as file:
        for name in ("frame", "xnm", "ynm"):
            file[f"saveloc/loc/{name}"].attrs["MATLAB_empty"] = 1
    assert len(formats.read(path)) == 0


def test_a_compressed_table_of_smap_is_read(tmp_path: Path) -> None:
    loc = {"frame": [[1.0], [2.0]], "xnm": [[10.0], [20.0]], "ynm": [[5.0], [6.0]], "channel": [[0.0], [1.0]]}
    content = {"saveloc": {"loc": {name: np.array(v) for name, v in loc.items()}}}
    scipy.io.savemat(tmp_path / "a_sml.mat", content, do_compression=True)
    assert formats.read(tmp_path / "a_sml.mat")["channel"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "content",
    [
        {"other": 1.0},
        {"saveloc": 1.0},
        {"saveloc": {"loc": {"xnm": 1.0}}},
        {"saveloc": {"loc": {"frame": 1.0, "xnm": 1.0, "ynm": "text"}}},
        {"saveloc": {"loc": {"frame": [1.0, 2.0], "xnm": 1.0, "ynm": 1.0}}},
        {"saveloc": {"loc": {"frame": 0.0, "xnm": 1.0, "ynm": 1.0}}},
        {"saveloc": {"loc": {"frame": 1.5, "xnm": 1.0, "ynm": 1.0}}},
        {"saveloc": {"loc": {"frame": 1.0, "xnm": np.nan, "ynm": 1.0}}},
        {"saveloc": {"loc": {"frame": 1.0, "xnm": 1.0, "ynm": 1j}}},
    ],
)
def test_what_is_no_table_of_smap_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a_sml.mat", content)
    refused(tmp_path / "a_sml.mat", "a_sml.mat")


def test_a_bomb_in_a_matlab_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SMALL", 2**20)  # the real limit takes seconds to compress
    bomb = zlib.compress(bytes(2**21))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)
    (tmp_path / "a_sml.mat").write_bytes(header + struct.pack("<II", 15, len(bomb)) + bomb)
    refused(tmp_path / "a_sml.mat", "out of proportion")


# ---- DECODE


def test_decode_has_rows_first_and_pixel_centres_at_0(tmp_path: Path) -> None:
    locs = asymmetric().assign(probability=0.5)
    with h5py.File(write(tmp_path, "decode", locs)) as file:
        data = {name: file["data"][name][()] for name in file["data"]}
        assert file["meta"].attrs["xy_unit"] == "nm"
        assert file["meta"].attrs["px_size"].tolist() == [PIXEL_NM, PIXEL_NM]
        assert "version" in file["decode"].attrs
    half = PIXEL_NM / 2
    expected = np.stack([locs["y_nm"] - half, locs["x_nm"] - half, locs["z_nm"]], axis=1)
    np.testing.assert_allclose(data["xyz"], expected, rtol=1e-6)
    sigma = locs[["uncertainty_y_nm", "uncertainty_x_nm", "uncertainty_z_nm"]]
    np.testing.assert_allclose(data["xyz_sig"], sigma, rtol=1e-6)
    assert data["frame_ix"].tolist() == locs["frame"].tolist()
    assert data["frame_ix"].dtype == data["id"].dtype == np.int64
    assert set(data["id"]) == {-1}
    assert all(isinstance(data[name], h5py.Empty) for name in ("xyz_cr", "phot_cr", "bg_sig", "bg_cr"))
    got = formats.read(tmp_path / "a.h5")
    np.testing.assert_allclose(got["uncertainty_y_nm"], locs["uncertainty_y_nm"], rtol=1e-6)
    assert (got["probability"] == 0.5).all()


def decode_file(path: Path, *, unit: Any = "px", pixel: Any = (110.0, 110.0)) -> Path:
    with h5py.File(path, "w") as file:
        file["data/xyz"] = np.array([[2.0, 7.0, 300.0]], np.float32)
        file["data/xyz_sig"] = np.array([[0.1, 0.2, 30.0]], np.float32)
        file["data/frame_ix"] = np.array([4])
        meta = file.create_group("meta").attrs
        meta["xy_unit"] = unit
        meta["px_size"] = h5py.Empty("f") if pixel is None else np.asarray(pixel)
    return path


def test_decode_in_pixels_is_read(tmp_path: Path) -> None:
    got = formats.read(decode_file(tmp_path / "a.h5")).iloc[0]
    assert (got["x_nm"], got["y_nm"], got["z_nm"], got["frame"]) == (7.5 * 110, 2.5 * 110, 300.0, 4)
    assert got["uncertainty_x_nm"] == pytest.approx(22.0)
    assert got["uncertainty_y_nm"] == pytest.approx(11.0)
    assert got["uncertainty_z_nm"] == 30.0


def test_what_decode_does_not_say_is_asked_for(tmp_path: Path) -> None:
    path = decode_file(tmp_path / "a.h5", pixel=None)
    refused(path, "--pixel-nm")
    assert formats.read(path, pixel_nm=100.0)["x_nm"].tolist() == [750.0]
    refused(decode_file(tmp_path / "a.h5", unit=h5py.Empty("f")), "xy_unit")
    refused(decode_file(tmp_path / "a.h5", unit="km"), "'km'")
    refused(decode_file(tmp_path / "a.h5", pixel=(100.0, 120.0)), "square")


# ---- .smlm


def test_smlm_has_rows_of_little_endian_floats_and_frames_from_1(tmp_path: Path) -> None:
    locs = asymmetric().assign(probability=0.5)
    with zipfile.ZipFile(write(tmp_path, "smlm", locs)) as archive:
        assert archive.namelist() == ["manifest.json", "table-0.bin"]
        manifest = json.loads(archive.read("manifest.json"))
        raw = archive.read("table-0.bin")
    layout, info = manifest["formats"]["smlm-table(binary)"], manifest["files"][0]
    assert manifest["format_version"] == "0.2"
    assert info["rows"] == 7
    assert (
        len({len(layout[key]) for key in ("headers", "dtype", "shape", "units")} | {layout["columns"]}) == 1
    )
    assert set(layout["dtype"]) == {"uint32", "float32"}
    values = struct.unpack(
        "<" + "".join({"uint32": "I", "float32": "f"}[k] for k in layout["dtype"]) * 7, raw
    )
    table = pd.DataFrame(np.reshape(values, (7, -1)), columns=layout["headers"])
    assert table["frame"].tolist() == (locs["frame"] + 1).tolist()
    for theirs, ours in (("x", "x_nm"), ("y", "y_nm"), ("z", "z_nm"), ("intensity", "photons"),
                         ("uncertainty_xy", "uncertainty_xy_nm"), ("prob", "probability")):  # fmt: skip
        np.testing.assert_allclose(table[theirs], locs[ours], rtol=1e-6)
        assert info["min"][theirs] == pytest.approx(locs[ours].min(), rel=1e-6)
    assert dict(zip(layout["headers"], layout["units"], strict=True))["x"] == "nm"


def smlm_file(
    path: Path, *, file: Any = None, layout: Any = None, raw: bytes | None = None, **top: Any
) -> Path:
    """One row (frame 1, x 20, y 10), with what is given changed."""
    form = {"type": "table", "mode": "binary", "columns": 3, "headers": ["frame", "x", "y"],
            "dtype": ["uint32", "float32", "float32"], "shape": [1, 1, 1], "units": ["frame", "nm", "nm"],
            **(layout or {})}  # fmt: skip
    info = {"name": "t.bin", "type": "table", "format": "f", "channel": "a", "rows": 1, "offset": {}}
    manifest = {"format_version": "0.2", "formats": {"f": form}, "files": [{**info, **(file or {})}], **top}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr("t.bin", struct.pack("<Iff", 1, 20.0, 10.0) if raw is None else raw)
    return path


def test_units_and_offsets_of_smlm_are_obeyed(tmp_path: Path) -> None:
    def positions(**options: Any) -> list[float]:
        pixel_nm = options.pop("pixel_nm", None)
        got = formats.read(smlm_file(tmp_path / "a.smlm", **options), pixel_nm=pixel_nm).iloc[0]
        return [got["frame"], got["x_nm"], got["y_nm"]]

    assert positions() == [0, 20.0, 10.0]
    assert positions(file={"offset": {"x": 14, "y": -1}}) == [0, 34.0, 9.0]
    assert positions(layout={"units": ["", "um", "nm"]}) == [0, 20_000.0, 10.0]
    assert positions(layout={"units": ["", "pixel", "px"]}, pixel_nm=100.0) == [0, 2000.0, 1000.0]
    assert positions(layout={"headers": ["frame", "x [um]", "y [nm]"]}) == [0, 20_000.0, 10.0]
    refused(smlm_file(tmp_path / "a.smlm", layout={"units": ["", "pixel", "px"]}), "--pixel-nm")
    refused(smlm_file(tmp_path / "a.smlm", layout={"units": ["", "inch", "nm"]}), "'inch'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "0.1"}, "version 0.1"),
        ({"files": []}, "0 tables"),
        ({"files": [{"type": "table", "name": "a"}, {"type": "table", "name": "b"}]}, r"2 tables \(a, b\)"),
        ({"files": 3}, "damaged"),
        ({"formats": {}}, "damaged"),
        ({"file": {"rows": 2}}, "cut off"),
        ({"file": {"rows": 0}}, "larger"),
        ({"file": {"rows": -1}}, "-1 rows"),
        ({"file": {"rows": 10**15}}, "out of proportion"),
        ({"file": {"rows": "1"}}, "'1' rows"),
        ({"file": {"name": "../../etc/passwd"}}, "has no"),
        ({"file": {"offset": {"x": "much"}}}, "damaged"),
        ({"layout": {"mode": "text"}}, "'text'"),
        ({"layout": {"dtype": ["object", "float32", "float32"]}}, "type object"),
        ({"layout": {"dtype": ["uint32", "float32"]}}, "damaged"),
        ({"layout": {"headers": ["frame", "x", "x"]}}, "damaged"),
        ({"layout": {"headers": ["frame", "x", "x [nm]"]}}, "two columns"),
        ({"layout": {"headers": ["frame", "x", "q"]}}, "lacks y_nm"),
        ({"layout": {"shape": [1, 1, [40, 40]]}}, "images"),
        ({"raw": struct.pack("<Iff", 0, 1.0, 1.0)}, "frame 0"),
        ({"raw": struct.pack("<Iff", 1, np.nan, 1.0)}, "not finite"),
    ],
)
def test_what_is_no_sound_smlm_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(smlm_file(tmp_path / "a.smlm", **change), message)


def test_a_bomb_in_a_zip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SMALL", 2**20)
    rows = 2**21 // 12
    refused(smlm_file(tmp_path / "a.smlm", file={"rows": rows}, raw=bytes(12 * rows)), "out of proportion")


def test_a_zip_without_a_manifest_or_with_a_huge_one_is_refused(tmp_path: Path) -> None:
    for name, size in (("other.json", 1), ("manifest.json", 17 * 2**20)):
        with zipfile.ZipFile(tmp_path / "a.smlm", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, " " * size)
        refused(tmp_path / "a.smlm", "manifest.json")


# ---- SMLM challenge


def test_the_challenge_has_five_plain_columns_and_frames_from_1(tmp_path: Path) -> None:
    locs = pd.DataFrame(
        {
            "frame": [0, 9],
            "x_nm": [1.5, 2000.1234],
            "y_nm": [7.0, 8.0],
            "z_nm": [-3.25, 0.0],
            "photons": [9.0, 2e6],
        }
    )
    text = write(tmp_path, "challenge", locs).read_text()
    assert [[float(f) for f in line.split(",")] for line in text.splitlines()] == [
        [1, 1.5, 7.0, -3.25, 9.0],
        [10, 2000.123, 8.0, 0.0, 2e6],
    ]
    assert "e" not in text.lower()


def test_the_challenges_truth_is_read(tmp_path: Path) -> None:
    path = tmp_path / "activations.csv"
    path.write_text("Ground-truth,frame,xnano,ynano,znano,intensity \n1,1,100.5,200.5,-3,900\n2,5,1,2,3,4\n")
    got = formats.read(path, name="challenge")
    assert got["frame"].tolist() == [0, 4]
    assert got["x_nm"].tolist() == [100.5, 1.0]
    assert got["photons"].tolist() == [900.0, 4.0]


@pytest.mark.parametrize(
    "text",
    ["", "1,2\n", "1,2,3,4,5,6\n", "1,2,3,4,5\n1,2,3\n", "1,2,3,4,x\n", "0,1,1,1,1\n", "1,,1,1,1\n", "1;2;3;4;5\n",
     "1.5,1,1,1,1\n"],
)  # fmt: skip
def test_what_is_no_submission_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    refused(tmp_path / "a.txt", "a.txt", name="challenge")


def test_a_submission_has_no_exponents(tmp_path: Path) -> None:
    for value in (1e12, np.inf):
        with pytest.raises(InputRejected, match="photons"):
            write(tmp_path, "challenge", asymmetric().assign(photons=value))


# ---- what no HDF5 may do


@pytest.mark.parametrize(
    "case", ["object", "external", "link", "soft", "virtual", "text", "huge", "flat", "scalar"]
)
def test_hdf5_that_is_not_plain_numbers_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    rows = np.zeros(3, [("frame", "u4"), ("x", "f4"), ("y", "f4")])
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["locs"] = rows
    with h5py.File(path, "w") as file:
        if case == "object":
            kind = np.dtype([("frame", "u4"), ("x", h5py.special_dtype(vlen=np.float32)), ("y", "f4")])
            file.create_dataset("locs", (3,), kind)
        elif case == "external":
            file.create_dataset("locs", (3,), rows.dtype, external=[(str(tmp_path / "other.hdf5"), 0, 36)])
        elif case == "link":
            file["locs"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/locs")
        elif case == "soft":
            file["real"] = rows
            file["locs"] = h5py.SoftLink("/real")
        elif case == "virtual":
            layout = h5py.VirtualLayout((3,), rows.dtype)
            layout[:] = h5py.VirtualSource(tmp_path / "other.hdf5", "locs", (3,))
            file.create_virtual_dataset("locs", layout)
        elif case == "text":
            file.create_dataset("locs", data=np.zeros(3, [("frame", "u4"), ("x", "S8"), ("y", "f4")]))
        elif case == "huge":
            file.create_dataset("locs", (10**12,), rows.dtype, chunks=(1000,))
        elif case == "flat":
            file["locs"] = np.zeros((3, 3))
        else:
            file["locs"] = rows[0]
    refused(path, "a.hdf5", pixel_nm=100.0)


# ---- what is damaged


@pytest.mark.parametrize("name", BINARY)
def test_files_that_are_none_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / FILE[name]
    refused(path, FILE[name])
    for content in (b"", b"PK", b"frame,x,y\n1,2,3\n", bytes(1000), b"\x89HDF\r\n\x1a\n" + bytes(100)):
        path.write_bytes(content)
        refused(path, FILE[name], pixel_nm=100.0)
    path.unlink()
    path.mkdir()
    refused(path, FILE[name])


@pytest.mark.parametrize("name", BINARY)
def test_files_that_are_cut_off_are_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, asymmetric(50))
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(part * len(whole))])
        refused(path, FILE[name], pixel_nm=100.0)


@pytest.mark.parametrize("name", BINARY)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_bytes_that_are_wrong_give_a_table_or_a_clear_refusal(
    name: str, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / FILE[name]
    if not path.exists():
        write(tmp_path, name, asymmetric(3))
        path.with_suffix(".whole").write_bytes(path.read_bytes())
    whole = bytearray(path.with_suffix(".whole").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        got = formats.read(path, pixel_nm=100.0)
    except InputRejected:
        return
    assert {"frame", "x_nm", "y_nm"} <= set(got)


# ---- the verb


@pytest.mark.parametrize("name", formats.FORMATS)
def test_convert_goes_by_extension(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path, "thunderstorm", asymmetric())
    middle, back = tmp_path / f"b_{FILE[name]}", tmp_path / "back.csv"
    forced = name == "challenge"
    there = ["convert", str(source), str(middle), "--pixel-nm", "110", "--json"]
    assert main([*there, *(["--to", "challenge"] if forced else [])]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 7}
    again = ["convert", str(middle), str(back), "--json"]
    assert main([*again, *(["--from", "challenge"] if forced else [])]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 7}
    got, wanted = formats.read(back), asymmetric()
    assert got["frame"].tolist() == wanted["frame"].tolist()
    np.testing.assert_allclose(got[["x_nm", "y_nm", "z_nm"]], wanted[["x_nm", "y_nm", "z_nm"]], atol=5e-3)


def test_convert_counts_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locs = asymmetric()
    locs.loc[2, "x_nm"] = 10.0
    source = write(tmp_path, "thunderstorm", locs)
    assert main(["convert", str(source), str(tmp_path / "b.hdf5"), "--pixel-nm", "110", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"rows": 6}
    assert "1 of 7 rows are left out" in shown.err


def test_convert_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path, "thunderstorm", asymmetric())
    assert main(["convert", str(source), str(tmp_path / "b.hdf5")]) == 3
    assert "--pixel-nm" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "b.smlm"), "--from", "smlm"]) == 3
    assert "not a .smlm file" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv"]


def test_every_format_and_extension_is_in_the_reference() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for name in formats.FORMATS:
        assert any(f"| `{name}` |" in row for row in rows), name
    for extension in formats.EXTENSIONS:
        assert f"`{extension}`" in page, extension


def test_the_schema_has_no_column_that_smlm_cannot_name() -> None:
    from smlm_bridge.io.formats.smlm import _OURS

    assert {column.name for column in SCHEMA} == {ours for ours, _ in _OURS.values()}
