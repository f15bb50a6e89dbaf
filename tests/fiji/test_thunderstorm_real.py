"""ThunderSTORM itself, where its path is given, against our own implementation.

SMLM_BRIDGE_THUNDERSTORM is its jar or folder. It runs under ImageJ 1 and, where SMLM_BRIDGE_FIJI names a Fiji,
under pyimagej; each without a display and with a virtual one.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from smlm_bridge.bridge.jars import FIJI_VARIABLE, PLUGINS_VARIABLE, system_jar
from smlm_bridge.calibration import Calibration
from smlm_bridge.io.calibration import save_calibration

pytestmark = [pytest.mark.fiji, pytest.mark.thunderstorm]

LARGEST_NM = 0.1


@pytest.fixture(
    scope="module",
    params=[
        "ij1 headless",
        "ij1 xvfb",
        pytest.param("pyimagej headless", marks=pytest.mark.pyimagej),
        pytest.param("pyimagej xvfb", marks=pytest.mark.pyimagej),
    ],
)
def real(request: pytest.FixtureRequest, scenario: Any, imagej_jars: object) -> dict[str, Any]:
    place = os.environ.get(PLUGINS_VARIABLE)
    if not place:
        pytest.skip(f"{PLUGINS_VARIABLE} does not name a ThunderSTORM")
    back_end, mode = request.param.split()
    if back_end == "pyimagej" and not os.environ.get(FIJI_VARIABLE):
        pytest.skip(f"{FIJI_VARIABLE} does not name a Fiji directory")
    if mode == "xvfb" and shutil.which("Xvfb") is None:
        pytest.skip("xvfb is not installed")
    if mode == "xvfb" and back_end == "ij1" and system_jar() is None:
        pytest.skip("libij-java is not installed")
    found: dict[str, Any] = scenario("scenario_real.py", back_end, mode, place, timeout_s=580)
    assert found["back_end"] == back_end
    print({name: value for name, value in found.items() if name != "stderr"})
    return found


def test_detections_are_identical(real: dict[str, Any]) -> None:
    assert real["detections"]["same"] is True
    assert real["detections"]["number"] > 150


def test_maximum_likelihood_fits_agree(real: dict[str, Any]) -> None:
    fits = real["fits"]
    assert fits["matched"] >= 0.98 * max(fits["theirs"], fits["ours"])
    assert fits["x_nm"] <= LARGEST_NM
    assert fits["y_nm"] <= LARGEST_NM
    assert real["again"] is True


def test_drift_agrees(real: dict[str, Any]) -> None:
    if real["version"] != "dev":
        pytest.skip("the algorithm of our own is dev's")
    assert max(real["drift"].values()) <= LARGEST_NM
    assert real["drift_by_macro"] <= LARGEST_NM
    assert max(real["corrected"][name] for name in ("x_nm", "y_nm")) <= LARGEST_NM


def test_colocalization_agrees(real: dict[str, Any]) -> None:
    """Neighbours and their distances are the same, and CBC where no densities are equal (see the scenario)."""
    for name, calls in real["cbc"].items():
        for found in calls:
            assert found["distance_nm"] < 1e-9
            assert found["neighbours"] == 0
            assert found["undefined_alike"]
            assert found["unrounded"] < 1e-9, (
                "what differs is the rounding and, in three dimensions, the area"
            )
            if name != "volume":
                assert found["differ_without_ties"] == 0
                assert found["differ"] < 0.1 * found["rows"]


def test_nothing_is_left_behind(real: dict[str, Any]) -> None:
    assert real["timeout"]["error"] == "JavaTimeout"
    assert real["after_timeout"] is True
    assert real["left_open"] == []
    assert real["merged_twice"][0] >= real["merged_twice"][1] > 0
    assert "empty" in real["picture_of_nothing"]["message"]


@pytest.mark.parametrize("name", ["merge", "filter", "frames", "density", "duplicates"])
def test_post_processing_agrees(real: dict[str, Any], name: str) -> None:
    found = real[name]
    assert found["theirs"] == found["ours"] > 0
    columns = ["x_nm", "y_nm", "photons", "uncertainty_xy_nm"]
    if name == "merge" and real["version"] == "1.3":
        columns.pop()  # 1.3 computes it anew from the merged values; dev, for a table that was read, does not
    assert max(found[column] for column in columns) < 1e-6


def test_errors_and_files(real: dict[str, Any]) -> None:
    assert "nosuch" in real["bad_filter"]["message"]
    assert real["export"] is None
    assert real["import"] == 3000
    assert real["picture"] == [320, 320]
    assert real["fiducials"] == 3000
    assert max(real["our_drift_file"][name] for name in ("x_nm", "y_nm")) < 0.01


def test_closing_all_windows_loses_nothing(real: dict[str, Any]) -> None:
    kept, filtered, picture = real["windows_closed"]
    assert kept == 3000
    assert 0 < filtered < kept
    assert picture == [320, 320]


def test_astigmatism_is_calibrated_and_used(real: dict[str, Any]) -> None:
    assert real["calibrate"] is None
    if real["version"] == "1.3":
        assert "half of the widths" in real["huang"]["message"]
    assert real["z_error_nm"] < 30.0


def test_localize_with_its_detector_gives_our_table(
    gaussian_calibration: Calibration, tmp_path: Path, imagej_jars: object
) -> None:
    """Its detections are ours, so the table is the same byte for byte."""
    place = os.environ.get(PLUGINS_VARIABLE)
    if not place:
        pytest.skip(f"{PLUGINS_VARIABLE} does not name a ThunderSTORM")
    draw = np.random.default_rng(4)
    counts = draw.poisson(120, (6, 40, 44)).astype(np.uint16)
    counts[:, 10:13, 20:23] += 400
    tifffile.imwrite(tmp_path / "movie.tif", counts)
    save_calibration(tmp_path / "g.psf.h5", gaussian_calibration)
    tables = []
    for name, options in (("ours", []), ("theirs", ["--detector", "thunderstorm", "--plugins", place])):
        call = ["localize", "movie.tif", "-o", f"{name}.csv", "--calibration", "g.psf.h5", *options]
        subprocess.run([sys.executable, "-m", "smlm_bridge", *call], cwd=tmp_path, check=True, timeout=300)
        tables.append((tmp_path / f"{name}.csv").read_bytes())
    assert tables[0] == tables[1]
    assert tables[0].count(b"\n") > 6
    made = json.loads((tmp_path / "theirs.protocol.json").read_text())
    assert made["options"]["finder"].startswith("thunderstorm ")
