"""The declared table: schema, validation, order."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from smlm_bridge import locs as table
from smlm_bridge.errors import InputRejected


def small():
    return pd.DataFrame({"frame": [1, 0], "x_nm": [3.0, 2.0], "y_nm": [1, 2]})


def test_schema_is_consistent():
    names = [column.name for column in table.SCHEMA]
    labels = [column.thunderstorm for column in table.SCHEMA]
    assert len(set(names)) == len(names)
    assert len(set(labels)) == len(labels)
    assert labels.index("detections") < labels.index("uncertainty_xy [nm]")
    for column in table.SCHEMA:
        assert column.thunderstorm.endswith(f"[{column.unit}]") == bool(column.unit)


def test_empty_has_the_dtypes_of_the_schema():
    made = table.empty(["frame", "x_nm", "y_nm", "detections", "mine"])
    assert [str(dtype) for dtype in made.dtypes] == ["int64", "float64", "float64", "int64", "float64"]
    assert len(table.validate(made)) == 0


def test_validate_coerces_and_leaves_the_input_alone():
    given = small().astype({"frame": float}).assign(photons=np.float32(7), note="a")
    given.index = [5, 5]
    before = given.copy()
    made = table.validate(given)
    assert [str(made[name].dtype) for name in ("frame", "y_nm", "photons")] == ["int64", "float64", "float64"]
    assert made.index.tolist() == [0, 1]
    assert made["note"].tolist() == ["a", "a"]
    made.loc[0, "x_nm"] = -1.0
    pd.testing.assert_frame_equal(given, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="y_nm"), "no column y_nm"),
        (lambda t: t.assign(frame=[1, -1]), "row 1 .* negative"),
        (lambda t: t.assign(frame=[1, 0.5]), "whole numbers; row 1"),
        (lambda t: t.assign(x_nm=[np.inf, 0]), "x_nm is not finite in row 0"),
        (lambda t: t.assign(z_nm=[np.nan, 0]), "z_nm is not finite in row 0"),
        (lambda t: t.assign(photons=["a", "b"]), "photons must be numeric"),
        (lambda t: pd.concat([t, t[["x_nm"]]], axis=1), "x_nm twice"),
    ],
)
def test_validate_says_what_is_wrong(change, message):
    with pytest.raises(InputRejected, match=message):
        table.validate(change(small()))


def test_sort_is_by_frame_then_x():
    assert table.sort(small())["frame"].tolist() == [0, 1]


def test_many_bad_rows_are_abbreviated():
    assert table.name_rows(np.ones(8, bool), 1) == "rows 1, 2, 3, 4, 5 and 3 more"


def test_the_light_rooms_import_no_torch():
    rooms = ["locs", "evaluate", "io.atomic", "io.thunderstorm", "io.images"]
    code = "import sys; " + "; ".join(f"import smlm_bridge.{room}" for room in rooms)
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True)
