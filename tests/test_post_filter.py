"""Filters: the formula's names, density, duplicates, regions."""

import numpy as np
import pandas as pd
import pytest

from smlm_bridge.errors import InputRejected
from smlm_bridge.post.filter import by_density, by_expression, in_region, without_duplicates


@pytest.fixture
def locs():
    draw = np.random.default_rng(4)
    return pd.DataFrame(
        {
            "frame": np.arange(50),
            "x_nm": draw.uniform(0, 1000, 50),
            "y_nm": draw.uniform(0, 1000, 50),
            "z_nm": draw.uniform(-600, 600, 50),
            "photons": draw.uniform(100, 5000, 50),
            "uncertainty_xy_nm": draw.uniform(2, 40, 50),
            "probability": draw.uniform(0, 1, 50),
            "chi2": draw.uniform(0, 2, 50),
            "quality [a.u.]": draw.uniform(0, 2, 50),
        }
    )


# ---- the grammar (its values: tests/test_expression.py)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at its end: expected"),
        ("x >", "at its end"),
        ("x > 5)", r"at '\)'"),
        ("(x > 5", r"expected '\)'"),
        ("x > 1,5", "point"),
        ("x [nm] > 5", "without their unit"),
        ("~(x > 5)", "!"),
        ("x > 5 y", "at 'y'"),
        ("100 < x < 200", "a < b & b < c"),
        ("x.__class__ > 1", "no column 'x.__class__'"),
        ("__import__('os')", "calls '__import__'"),
        ("__import__(1)", "calls '__import__'"),
        ("exp(x) > 1", "abs, mean"),
        ("x", "numbers, not true and false"),
        ("x & y", "'&'.*stands beside a number"),
        ("(x > 5) + 1 > 1", r"'\+'.*stands beside a comparison"),
        ("mean(x > 5) > 1", "mean"),
        ("!x", "!"),
        ("-" * 5000 + "x > 1", "characters"),
    ],
)
def test_what_is_no_filter_is_refused_with_its_place(locs, text, words):
    with pytest.raises(InputRejected, match=words):
        by_expression(locs, text)


# ---- names


@pytest.mark.parametrize(
    ("text", "column", "test"),
    [
        ("x > 500", "x_nm", lambda v: v > 500),
        ("x_nm > 500", "x_nm", lambda v: v > 500),
        ("intensity < 1e3", "photons", lambda v: v < 1e3),
        ("photons < 1000", "photons", lambda v: v < 1e3),
        ("uncertainty_xy < 20", "uncertainty_xy_nm", lambda v: v < 20),
        ("uncertainty < 20", "uncertainty_xy_nm", lambda v: v < 20),
        ("Z > -300", "z_nm", lambda v: v > -300),
        ("prob >= 0.5", "probability", lambda v: v >= 0.5),
        ("chi2 > 1", "chi2", lambda v: v > 1),
        ("quality > 1", "quality [a.u.]", lambda v: v > 1),
        ("frame <= 10", "frame", lambda v: v < 10),
    ],
)
def test_columns_go_by_the_names_of_thunderstorm_and_by_ours(locs, text, column, test):
    kept = by_expression(locs, text)
    expected = locs[test(locs[column])].reset_index(drop=True)
    assert 0 < len(kept) < len(locs)
    pd.testing.assert_frame_equal(kept, expected)


def test_the_filter_of_the_manual(locs):
    kept = by_expression(locs, "uncertainty_xy < 20 & z > -300")
    assert len(kept) == ((locs["uncertainty_xy_nm"] < 20) & (locs["z_nm"] > -300)).sum() > 0
    assert len(by_expression(locs, "(x-500)^2 + (y-500)^2 < 300^2")) == (
        (np.hypot(locs["x_nm"] - 500, locs["y_nm"] - 500) < 300).sum()
    )
    assert len(by_expression(locs, "1 < 2")) == len(locs)


@pytest.mark.parametrize(
    ("given_name", "nearest"), [("intensty", "intensity"), ("uncertanty_z", "uncertainty_xy")]
)
def test_an_unknown_column_is_named_with_the_nearest(locs, given_name, nearest):
    with pytest.raises(InputRejected, match=f"'{given_name}'.*nearest is '{nearest}") as refusal:
        by_expression(locs, f"{given_name} < 20")
    assert "frame, x, y, z, intensity" in str(refusal.value)


def test_bad_tables(locs):
    assert by_expression(locs.iloc[:0], "x > mean(x) & photons < 1e8").empty
    assert by_expression(locs.iloc[:0], "mean(x) > 1").empty
    gap = locs.assign(chi2=[np.nan, *range(49)])
    assert len(by_expression(gap, "chi2 > mean(chi2)")) == 24  # the mean of 0 to 48, NaN left out
    assert len(by_expression(locs.iloc[:1], "x <= mean(x) + std(x)")) == 1
    with pytest.raises(InputRejected, match="no column 'z'"):
        by_expression(locs.drop(columns="z_nm"), "z > 0")
    with pytest.raises(InputRejected, match="text"):
        by_expression(locs.assign(label="a"), "label > 0")
    unknown = locs.assign(uncertainty_xy_nm=[np.nan] * 25 + [5.0] * 25)
    assert len(by_expression(unknown, "uncertainty_xy < 20")) == 25
    assert len(by_expression(locs.assign(photons=1e8), "intensity = 1e8")) == 50


# ---- density, duplicates, region


def test_density_counts_others_over_all_frames():
    locs = pd.DataFrame({"frame": [0, 1, 2, 3], "x_nm": [0.0, 30.0, 50.0, 500.0], "y_nm": 0.0, "z_nm": 0.0})
    assert by_density(locs, 50, neighbours=2)["x_nm"].tolist() == [0, 30, 50]
    assert by_density(locs, 49, neighbours=2)["x_nm"].tolist() == [30]
    assert by_density(locs, 50, neighbours=3).empty
    apart = locs.assign(z_nm=[0.0, 0.0, 300.0, 0.0])
    assert by_density(apart, 50, neighbours=1)["x_nm"].tolist() == [0, 30, 50]
    assert by_density(apart, 50, neighbours=1, dimensions=3)["x_nm"].tolist() == [0, 30]
    assert by_density(locs.iloc[:0], 50).empty
    assert by_density(locs.iloc[:1], 50).empty


def test_density_refuses_what_makes_no_sense(locs):
    with pytest.raises(InputRejected, match="z_nm"):
        by_density(locs.drop(columns="z_nm"), 50, dimensions=3)
    with pytest.raises(InputRejected, match="neighbours"):
        by_density(locs, 50, neighbours=0)
    with pytest.raises(InputRejected, match="radius_nm"):
        by_density(locs, -1)


def test_of_duplicates_in_a_frame_the_most_certain_stays():
    locs = pd.DataFrame(
        {
            "frame": [0, 0, 1, 0, 0],
            "x_nm": [0.0, 10.0, 0.0, 500.0, 510.0],
            "y_nm": 0.0,
            "uncertainty_xy_nm": [8.0, 5.0, 9.0, 7.0, np.nan],
        }
    )
    assert without_duplicates(locs, 20)["uncertainty_xy_nm"].tolist() == [5, 9, 7]
    assert len(without_duplicates(locs, 9)) == 5
    assert without_duplicates(locs, "2*uncertainty_xy")["uncertainty_xy_nm"].tolist()[:2] == [5, 9]
    assert len(without_duplicates(locs, "20 + 0*x")) == 3
    assert len(without_duplicates(locs, "0*x")) == 5


def test_exact_duplicates_leave_one():
    locs = pd.DataFrame({"frame": [2, 2, 2, 3], "x_nm": 1.0, "y_nm": 2.0, "uncertainty_xy_nm": 5.0})
    assert without_duplicates(locs, 20)["frame"].tolist() == [2, 3]
    assert len(without_duplicates(locs.iloc[:1], 20)) == 1
    assert without_duplicates(locs.iloc[:0], 20).empty


def test_duplicates_of_a_crowd_are_those_of_the_rule():
    draw = np.random.default_rng(8)
    locs = pd.DataFrame(
        {
            "frame": draw.integers(0, 6, 200),
            "x_nm": draw.uniform(0, 300, 200),
            "y_nm": draw.uniform(0, 300, 200),
            "uncertainty_xy_nm": draw.uniform(2, 20, 200),
        }
    )
    place = locs[["x_nm", "y_nm"]].to_numpy()
    near = np.linalg.norm(place[:, None] - place, axis=2) <= 30
    same = locs["frame"].to_numpy()[:, None] == locs["frame"].to_numpy()
    sigma = locs["uncertainty_xy_nm"].to_numpy()
    dropped = (near & same & (sigma < sigma[:, None])).any(axis=1)
    expected = locs[~dropped].reset_index(drop=True)
    assert 0 < len(expected) < len(locs)
    pd.testing.assert_frame_equal(without_duplicates(locs, 30), expected)


def test_duplicates_refuse_what_makes_no_sense(locs):
    with pytest.raises(InputRejected, match="uncertainty_xy_nm"):
        without_duplicates(locs.drop(columns="uncertainty_xy_nm"), 20)
    with pytest.raises(InputRejected, match="comparison"):
        without_duplicates(locs, "x > 5")
    with pytest.raises(InputRejected, match="radius_nm"):
        without_duplicates(locs, 0.0)


def test_regions_tile_the_plane(locs):
    left, right = in_region(locs, x_nm=(0, 500)), in_region(locs, x_nm=(500, 1000))
    assert len(left) + len(right) == len(locs)
    edge = float(locs["x_nm"].iloc[3])
    assert edge in in_region(locs, x_nm=(edge, 1000))["x_nm"].tolist()
    assert edge not in in_region(locs, x_nm=(0, edge))["x_nm"].tolist()
    box = in_region(locs, x_nm=(100, 900), y_nm=(100, 900), z_nm=(-100, 100))
    assert 0 < len(box) < len(locs)
    assert box["z_nm"].abs().max() <= 100
    assert len(in_region(locs)) == len(locs)
    with pytest.raises(InputRejected, match="lower first"):
        in_region(locs, y_nm=(5, 5))
    with pytest.raises(InputRejected, match="'z_nm'"):
        in_region(locs.drop(columns="z_nm"), z_nm=(0, 5))
