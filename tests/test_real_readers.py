"""Our files opened by the programs they are for, each in its own process and environment.

The interpreters are named by the environment: SMLM_BRIDGE_LOCAN_PYTHON (an environment with locan and h5py) and
SMLM_BRIDGE_PICASSO_PYTHON (one with picassosr 0.11); where they are not, the tests are skipped. A locan in the
tests' own environment will do. (locan reads SMAP's files of version 7.3 only; we write version 5.)
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from smlm_bridge.io import formats

PIXEL_NM = 110.0


def python_with(module: str, variable: str) -> str:
    if named := os.environ.get(variable):
        return named
    if importlib.util.find_spec(module) is not None:
        return sys.executable
    pytest.skip(f"{module} is not installed, and {variable} names no interpreter that has it")


def table(rows: int = 200) -> pd.DataFrame:
    draw = np.random.default_rng(7)
    return pd.DataFrame(
        {
            "frame": np.sort(draw.integers(0, 90, rows)),
            "x_nm": draw.uniform(200, 9000, rows),
            "y_nm": draw.uniform(300, 7000, rows),
            "z_nm": draw.uniform(-600, 600, rows),
            "psf_sigma1_nm": draw.uniform(120, 200, rows),
            "psf_sigma2_nm": draw.uniform(120, 200, rows),
            "photons": np.round(draw.uniform(400, 9000, rows)),
            "background": draw.uniform(5, 60, rows),
            "uncertainty_xy_nm": draw.uniform(3, 30, rows),
            "uncertainty_z_nm": draw.uniform(10, 60, rows),
        }
    )


def run(python: str, script: str, *arguments: object) -> pd.DataFrame:
    """The table that a script prints as JSON, in another interpreter, without our package on its path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "QT_QPA_PLATFORM": "offscreen"
    }
    done = subprocess.run(
        [python, "-W", "ignore", "-c", script, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return pd.DataFrame(json.loads(done.stdout.strip().splitlines()[-1]))


LOCAN = """
import json, sys
import locan
read = getattr(locan, sys.argv[1])
data = read(sys.argv[2]).data
print(json.dumps({name: data[name].astype(float).tolist() for name in data if name != "local_background_sigma"}))
"""


@pytest.mark.parametrize(
    ("name", "file", "reader"),
    [
        ("thunderstorm", "a.csv", "load_thunderstorm_file"),
        ("smlm", "a.smlm", "load_SMLM_file"),
        ("decode", "a.h5", "load_decode_file"),
    ],
)
def test_locan_reads_what_we_write(name: str, file: str, reader: str, tmp_path: Path) -> None:
    python = python_with("locan", "SMLM_BRIDGE_LOCAN_PYTHON")
    locs = table()
    formats.write(tmp_path / file, locs, name=name, pixel_nm=PIXEL_NM)
    found = run(python, LOCAN, reader, tmp_path / file)
    assert len(found) == len(locs)
    # DECODE counts x along rows from the first pixel's centre, and locan leaves it at that.
    x, y = ("y_nm", "x_nm") if name == "decode" else ("x_nm", "y_nm")
    shift = PIXEL_NM / 2 if name == "decode" else 0.0
    first = 0 if name == "decode" else 1
    np.testing.assert_allclose(found["position_x"] + shift, locs[x], atol=0.05)
    np.testing.assert_allclose(found["position_y"] + shift, locs[y], atol=0.05)
    np.testing.assert_allclose(found["position_z"], locs["z_nm"], atol=0.05)
    np.testing.assert_allclose(found["frame"] - first, locs["frame"])
    np.testing.assert_allclose(found["intensity"], locs["photons"], atol=1)


PICASSO = """
import json, sys
from picasso import io
if sys.argv[1].endswith(".csv"):
    locs, info = io.import_ts(sys.argv[1], float(sys.argv[2]))
else:
    locs, info = io.load_locs(sys.argv[1])
names = ("frame", "x", "y", "z", "photons", "lpx", "sx")
print(json.dumps({name: [float(v) for v in locs[name]] for name in names}))
"""


def test_picasso_reads_our_hdf5(tmp_path: Path) -> None:
    python = python_with("picasso", "SMLM_BRIDGE_PICASSO_PYTHON")
    locs = table()
    assert formats.write(tmp_path / "a.hdf5", locs, pixel_nm=PIXEL_NM) == len(locs)
    found = run(python, PICASSO, tmp_path / "a.hdf5", PIXEL_NM)
    assert len(found) == len(locs)
    assert found["frame"].tolist() == locs["frame"].tolist()
    for axis in "xy":  # 0 is the centre of the first pixel there
        np.testing.assert_allclose((found[axis] + 0.5) * PIXEL_NM, locs[f"{axis}_nm"], atol=0.05)
    np.testing.assert_allclose(found["z"], locs["z_nm"], atol=0.05)
    np.testing.assert_allclose(found["photons"], locs["photons"], atol=1)
    np.testing.assert_allclose(found["lpx"] * PIXEL_NM, locs["uncertainty_xy_nm"], rtol=1e-4)
    np.testing.assert_allclose(found["sx"] * PIXEL_NM, locs["psf_sigma1_nm"], rtol=1e-4)


def test_picasso_imports_our_csv(tmp_path: Path) -> None:
    python = python_with("picasso", "SMLM_BRIDGE_PICASSO_PYTHON")
    locs = table()
    formats.write(tmp_path / "a.csv", locs)
    found = run(python, PICASSO, tmp_path / "a.csv", PIXEL_NM)
    assert len(found) == len(locs)
    assert np.ptp(found["frame"] - locs["frame"]) == 0  # it counts from the first frame with a row
    for axis in "xy":  # its import does not shift by the half pixel
        np.testing.assert_allclose(found[axis] * PIXEL_NM, locs[f"{axis}_nm"], atol=0.05)
    np.testing.assert_allclose(found["z"], locs["z_nm"], atol=0.05)
    np.testing.assert_allclose(found["photons"], locs["photons"], atol=1)
