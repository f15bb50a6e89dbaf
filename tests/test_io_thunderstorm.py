"""ThunderSTORM tables: what is written is what every reader needs; what is read, and what is refused."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smlm_bridge.errors import InputRejected
from smlm_bridge.io.thunderstorm import read_table, write_protocol, write_table
from smlm_bridge.locs import SCHEMA

DATA = Path(__file__).parents[2] / "shared" / "data"
HEADER_3D = (
    '"id","frame","x [nm]","y [nm]","z [nm]","sigma1 [nm]","sigma2 [nm]","intensity [photon]",'
    '"offset [photon]","bkgstd [photon]","uncertainty_xy [nm]","uncertainty_z [nm]"'
)
HEADER_2D = (
    '"id","frame","x [nm]","y [nm]","sigma [nm]","intensity [photon]","offset [photon]","bkgstd [photon]",'
    '"uncertainty_xy [nm]"'
)


def make(n=5, *, z=True, seed=0):
    generator = np.random.default_rng(seed)
    made = pd.DataFrame(
        {
            "frame": np.sort(generator.integers(0, 3, n)),
            "x_nm": generator.uniform(-50, 50_000, n),
            "y_nm": generator.uniform(0, 50_000, n),
            "photons": generator.uniform(100, 1e6, n),
            "background": generator.uniform(0, 200, n),
        }
    )
    return made.assign(z_nm=generator.uniform(-800, 800, n)) if z else made


def emulated_thunderstorm(path):
    """Read as ThunderSTORM (dev) does: naive commas, the longest number at the start of a field."""
    text = path.read_bytes().decode("utf-8")
    assert not text.startswith("\ufeff")
    assert "\r" not in text
    assert text.endswith("\n")
    lines = text.split("\n")[:-1]
    labels = [label.strip('"') for label in lines[0].split(",")]
    number = re.compile(r"-?(\d+(\.\d*)?|\.\d+)(E-?\d+)?|NaN|-?Infinity")
    rows = []
    for line in lines[1:]:
        fields = line.split(",")
        if len(fields) == len(labels) and all(number.match(field) for field in fields):
            rows.append([float(number.match(field)[0]) for field in fields])
    return pd.DataFrame(rows, columns=labels)


def test_the_3d_header_is_the_one_all_readers_take(tmp_path):
    write_table(tmp_path / "a.csv", make())
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == HEADER_3D


def test_the_2d_header_is_the_one_all_readers_take(tmp_path):
    write_table(tmp_path / "a.csv", make(z=False))
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == HEADER_2D


def test_own_columns_come_last_and_detections_before_uncertainty(tmp_path):
    extra = {
        "detections": 2,
        "probability": 0.5,
        "uncertainty_x_nm": 3.0,
        "uncertainty_y_nm": 4.0,
        "chi2": 1.5,
    }
    write_table(tmp_path / "a.csv", make().assign(**extra))
    labels = list(emulated_thunderstorm(tmp_path / "a.csv"))
    assert labels.index("detections") == labels.index("uncertainty_xy [nm]") - 1
    assert labels[-4:] == ["uncertainty_x [nm]", "uncertainty_y [nm]", "prob", "chi2"]
    rows = emulated_thunderstorm(tmp_path / "a.csv")
    np.testing.assert_allclose(rows["uncertainty_xy [nm]"], np.sqrt(12.5), atol=1e-3)


def test_missing_columns_are_filled(tmp_path):
    locs = make()
    write_table(tmp_path / "a.csv", locs.assign(background=[-4.0, 0, 4, 9, 100]), psf_sigma_nm=111)
    rows = emulated_thunderstorm(tmp_path / "a.csv")
    assert rows["bkgstd [photon]"].tolist() == [0, 0, 2, 3, 10]
    assert set(rows["sigma1 [nm]"]) == set(rows["sigma2 [nm]"]) == {111}
    assert rows["frame"].tolist() == (locs["frame"] + 1).tolist()
    assert rows["id"].tolist() == [1, 2, 3, 4, 5]


NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e14, max_value=1e14) | st.sampled_from(
    [-0.0, -1e-9, 1e-5, 0.00049, 1e9, 1e10, 123456789012.125]
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_thunderstorm_reads_every_number_as_it_is(tmp_path, values):
    x, photons, mine = (np.array(column) for column in zip(*values, strict=True))
    locs = pd.DataFrame({"frame": 0, "x_nm": x, "y_nm": 1.0, "z_nm": 2.0, "photons": photons, "mine": mine})
    write_table(tmp_path / "a.csv", locs, overwrite=True)
    rows = emulated_thunderstorm(tmp_path / "a.csv")
    assert len(rows) == len(values)
    np.testing.assert_allclose(rows["x [nm]"], x, atol=0.0006, rtol=1e-15)
    np.testing.assert_allclose(rows["intensity [photon]"], photons, atol=0.0006, rtol=1e-15)
    np.testing.assert_allclose(rows["mine"], mine, atol=0.6e-6, rtol=1e-15)
    body = (tmp_path / "a.csv").read_text().split("\n", 1)[1]
    assert re.fullmatch(r"[-\d.,\n]*", body)
    assert not re.search(r"-0(\.0*)?(?=[,\n])", body)
    again = read_table(tmp_path / "a.csv")
    np.testing.assert_allclose(again["x_nm"], x, atol=0.0006, rtol=1e-15)


def test_round_trip_of_every_column(tmp_path):
    generator = np.random.default_rng(3)
    n = 20
    locs = pd.DataFrame({c.name: generator.integers(1, 9000, n) / 8 for c in SCHEMA if c.dtype == "float64"})
    locs = locs.assign(frame=np.arange(n), detections=3)[[c.name for c in SCHEMA]]
    locs = locs.assign(chi2=0.125, count=np.arange(n))
    write_table(tmp_path / "a.csv", locs)
    pd.testing.assert_frame_equal(read_table(tmp_path / "a.csv"), locs)
    write_table(tmp_path / "b.csv", read_table(tmp_path / "a.csv"))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_numbers_that_are_not_finite_are_substituted(tmp_path, caplog):
    bad = [np.nan, np.inf, -np.inf, 1.0, 2.0]
    names = ("photons", "psf_sigma1_nm", "uncertainty_xy_nm", "probability", "other")
    write_table(tmp_path / "a.csv", make().assign(**dict.fromkeys(names, bad)))
    rows = emulated_thunderstorm(tmp_path / "a.csv")
    assert rows["intensity [photon]"].tolist() == [0, 0, 0, 1, 2]
    assert rows["sigma1 [nm]"].tolist() == [130, 130, 130, 1, 2]
    assert rows["uncertainty_xy [nm]"].tolist() == [9999, 9999, 9999, 1, 2]
    assert rows["prob"].tolist() == rows["other"].tolist() == [0, 0, 0, 1, 2]
    assert "3 values of photons" in caplog.text


@pytest.mark.parametrize("name", ["frame", "x_nm", "y_nm", "z_nm"])
def test_rows_without_a_position_are_an_error_that_names_them(tmp_path, name):
    locs = make().astype({"frame": float})
    locs.loc[[1, 3], name] = np.nan
    with pytest.raises(InputRejected, match=f"{name} is not finite in rows 1, 3"):
        write_table(tmp_path / "a.csv", locs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"note": "text"}, "'note' holds text"),
        ({"a,b": 1.0}, "cannot be a label"),
        ({"prob": 1.0, "probability": 1.0}, "same label"),
        ({"huge": 1e300}, "too large"),
    ],
)
def test_what_no_reader_could_read_is_refused(tmp_path, extra, message):
    with pytest.raises(InputRejected, match=message):
        write_table(tmp_path / "a.csv", make().assign(**extra))
    assert not list(tmp_path.iterdir())


def test_an_empty_table_round_trips(tmp_path):
    write_table(tmp_path / "a.csv", make(0))
    assert (tmp_path / "a.csv").read_text() == HEADER_3D + "\n"
    again = read_table(tmp_path / "a.csv")
    assert len(again) == 0
    assert str(again["frame"].dtype) == "int64"
    (tmp_path / "b.csv").write_text(HEADER_3D)
    assert len(read_table(tmp_path / "b.csv")) == 0


def test_version_1_3_label(tmp_path):
    write_table(tmp_path / "a.csv", make(), version="1.3")
    assert '"uncertainty [nm]"' in (tmp_path / "a.csv").read_text()
    assert "uncertainty_xy_nm" in read_table(tmp_path / "a.csv")


def test_protocol(tmp_path):
    path = write_protocol(tmp_path / "a.b.csv", {"model": Path("m.onnx"), "n": np.int64(3), "v": np.ones(2)})
    assert path.name == "a.b.protocol.json"
    assert json.loads(path.read_text()) == {"model": "m.onnx", "n": 3, "v": [1.0, 1.0]}
    with pytest.raises(InputRejected, match="JSON"):
        write_protocol(tmp_path / "c.csv", {"n": float("nan")})


ROW = "1,100,200,300"
GOOD = {
    "quoted": b'"id","frame","x [nm]","y [nm]","z [nm]"\n7,' + ROW.encode() + b"\n",
    "unquoted": f"frame,x [nm],y [nm],z [nm]\n{ROW}\n".encode(),
    "no final line break": f"frame,x [nm],y [nm],z [nm]\n{ROW}".encode(),
    "BOM, CRLF": b'\xef\xbb\xbf"frame","x [nm]","y [nm]","z [nm]"\r\n' + ROW.encode() + b"\r\n",
    "tab": f"frame\tx [nm]\ty [nm]\tz [nm]\n{ROW}\n".replace(",", "\t").encode(),
    "semicolon": f"frame;x [nm];y [nm];z [nm]\n{ROW}\n".replace(",", ";").encode(),
    "exponents": b"frame,x [nm],y [nm],z [nm]\n1,1E2,2.0e+2,3.0E02\n",
    "float frame, blanks": b"frame, x [nm], y [nm], z [nm]\n 1.0, 100 , 200, 300\n\n",
    "um": b"frame,x [um],y [um],z [um]\n1,0.1,0.2,0.3\n",
    "latin-1 µm": b"frame,x [\xb5m],y [\xb5m],z [\xb5m]\n1,0.1,0.2,0.3\n",
    "px": b"frame,x [px],y [px],z [nm]\n1,2,4,300\n",
    "challenge": b"Ground-truth,frame,xnano,ynano,znano,intensity \n1,1,100,200,300,1000\n",
    "pandas index": f",frame,x [nm],y [nm],z [nm]\n0,{ROW}\n".encode(),
    "other order": b"z [nm],y [nm],x [nm],frame\n300,200,100,1\n",
}


@pytest.mark.parametrize("name", GOOD)
def test_dialects(tmp_path, name):
    (tmp_path / "a.csv").write_bytes(GOOD[name])
    made = read_table(tmp_path / "a.csv", pixel_nm=50.0)
    assert made[["frame", "x_nm", "y_nm", "z_nm"]].to_numpy().tolist() == [[0, 100, 200, 300]]
    assert "id" not in made


def test_other_columns_keep_their_label_and_nan(tmp_path):
    (tmp_path / "a.csv").write_text(
        'frame,x [nm],y [nm],"intensity2 [photon]",chi2,uncertainty [nm],detections,intensity [ADU],when\n'
        "1,1,2,5,NaN,9,NaN,4,2020-01-01\n2,1,2,6,nan,,2,5,never\n"
    )
    made = read_table(tmp_path / "a.csv")
    assert made["intensity2 [photon]"].tolist() == [5, 6]
    assert made["chi2"].isna().all()
    assert made["chi2"].dtype == "float64"
    assert made["uncertainty_xy_nm"].tolist()[0] == 9
    assert made["detections"].tolist() == [1, 2]
    assert made["intensity [ADU]"].tolist() == [4, 5]
    assert made["when"].tolist() == ["2020-01-01", "never"]
    assert "photons" not in made


HEAD = "frame,x [nm],y [nm]\n"
BAD = {
    "empty": ("", "is empty"),
    "blank line": ("\n", "is empty"),
    "no x": ("frame,y [nm]\n1,2\n", 'no column "x \\[nm\\]"'),
    "no frame": ("x [nm],y [nm]\n1,2\n", 'no column "frame"'),
    "no header": ("1,100,200,300\n1,100,200,300\n", "starts with numbers"),
    "twice": ("frame,x [nm],y [nm],y [nm]\n1,2,3,4\n", "twice"),
    "two x": ("frame,x [nm],x [um],y [nm]\n1,2,3,4\n", "two columns"),
    "text": (HEAD + "1,2,3\n2,abc,3\n", "'abc' in column \"x \\[nm\\]\", row 2"),
    "ragged": (HEAD + "1,2,3\n2,3\n", "1 row\\(s\\) .* '2,3' with 2"),
    "truncated": (HEAD + "1,2,3\n2,", "cut off"),
    "decimal commas": (HEAD + "1,2,5,3,5\n", "decimal commas"),
    "decimal commas, tab": ("frame\tx [nm]\ty [nm]\n1\t2,5\t3\n", "point, not a comma"),
    "frame 0": (HEAD + "0,2,3\n", "count from 1"),
    "half frame": (HEAD + "1.5,2,3\n", "not a whole number in row 1"),
    "no position": (HEAD + "1,2,3\n1,NaN,3\n", '"x \\[nm\\]" is missing or not finite in row 2'),
    "infinite": (HEAD + "1,inf,3\n", "not finite in row 1"),
    "pixels": ("frame,x [px],y [px]\n1,2,3\n", "--pixel-nm"),
    "no unit": ("frame,x,y\n1,2,3\n", "without a unit"),
    "strange unit": ("frame,x [inch],y [inch]\n1,2,3\n", "allowed are nm, um and px"),
    "utf-16": (HEAD.encode("utf-16").decode("latin-1"), "UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_refused_with_the_reason(tmp_path, name):
    text, message = BAD[name]
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputRejected, match=message):
        read_table(tmp_path / "a.csv")


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(InputRejected, match="cannot be read"):
            read_table(path)


def test_a_big_table_is_fast(tmp_path):
    n = 200_000
    generator = np.random.default_rng(0)
    names = [c.name for c in SCHEMA if c.dtype == "float64"][:11]
    locs = pd.DataFrame({"frame": np.arange(n), **{k: generator.uniform(0, 5e4, n) for k in names}})
    start = time.perf_counter()
    write_table(tmp_path / "a.csv", locs)
    made = read_table(tmp_path / "a.csv")
    assert time.perf_counter() - start < 4  # a writer with a Python loop over rows takes longer
    np.testing.assert_allclose(made[names], locs[names], atol=0.0006)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared microscope data are not there")
def test_simulated_truth_and_reference_tables():
    truth = read_table(DATA / "simulated" / "pair_crlb_N010.csv")
    assert len(truth) == 100
    assert truth["frame"].tolist() == np.repeat(np.arange(10), 10).tolist()
    assert truth["intensity2 [photon]"].min() > 0
    for path in (DATA / "reference").glob("*.csv"):
        assert "confidence" in read_table(path)
