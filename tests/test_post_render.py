"""Pictures: counts are kept, positions are those of the conventions, the averaged histogram is one."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smlm_bridge.conventions import pixel_centre_nm
from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import empty
from smlm_bridge.post import render as module
from smlm_bridge.post.render import colour_by_density, colour_by_z, render

FIELD = (2000.0, 3000.0)


def table(n=500, *, margin=300.0, seed=0, sigma=True):
    rng = np.random.default_rng(seed)
    columns = {
        "frame": np.arange(n),
        "x_nm": rng.uniform(margin, FIELD[1] - margin, n),
        "y_nm": rng.uniform(margin, FIELD[0] - margin, n),
        "z_nm": rng.uniform(-400, 600, n),
    }
    if sigma:
        columns["uncertainty_xy_nm"] = rng.uniform(2, 60, n)
    return pd.DataFrame(columns)


def one(**columns):
    return pd.DataFrame({"frame": [0]} | {name: [value] for name, value in columns.items()})


def moments(image, pixel_nm):
    """Centre of mass and standard deviation (x, y) in nm."""
    y, x = (pixel_centre_nm(i, pixel_nm) for i in np.indices(image.shape))
    weight = image / image.sum()
    centre = (weight * x).sum(), (weight * y).sum()
    spread = (weight * (x - centre[0]) ** 2).sum(), (weight * (y - centre[1]) ** 2).sum()
    return np.array(centre), np.sqrt(spread)


@pytest.mark.parametrize("method", ["gaussian", "histogram", "ash"])
def test_every_localization_counts_one(method):
    picture = render(table(), pixel_nm=20, field_nm=FIELD, method=method)
    assert picture.counts.shape == (100, 150)
    assert picture.counts.dtype == np.float32
    assert picture.counts.sum() == pytest.approx(500, rel=1e-4)
    assert picture.shown == 500


@pytest.mark.parametrize("method", ["gaussian", "histogram", "ash"])
def test_a_localization_at_a_pixel_centre_lands_in_that_pixel(method):
    locs = one(x_nm=pixel_centre_nm(37, 20), y_nm=pixel_centre_nm(11, 20))
    counts = render(locs, pixel_nm=20, field_nm=FIELD, method=method).counts
    assert np.unravel_index(counts.argmax(), counts.shape) == (11, 37)


def test_the_first_pixel_starts_at_the_origin_and_the_far_edge_is_outside():
    at_corner = render(one(x_nm=0.0, y_nm=0.0), pixel_nm=20, field_nm=FIELD, method="histogram")
    assert at_corner.counts[0, 0] == 1
    for x, y in ((3000.0, 10.0), (10.0, 2000.0), (-0.1, 10.0), (10.0, -0.1)):
        outside = render(one(x_nm=x, y_nm=y), pixel_nm=20, field_nm=FIELD, method="histogram")
        assert outside.counts.sum() == 0
        assert outside.shown == 0


def test_the_origin_moves_the_field():
    locs = one(x_nm=10_030.0, y_nm=5_010.0)
    picture = render(locs, pixel_nm=20, field_nm=FIELD, method="histogram", origin_nm=(10_000, 5_000))
    assert picture.counts[0, 1] == 1
    assert picture.extent_nm == (10_000, 13_000, 7_000, 5_000)


@settings(deadline=None, max_examples=25)
@given(x=st.floats(1000, 2000), y=st.floats(800, 1200), sigma=st.floats(15, 90))
def test_a_gaussian_spot_stands_exactly_at_its_position_with_its_width(x, y, sigma):
    counts = render(one(x_nm=x, y_nm=y, uncertainty_xy_nm=sigma), pixel_nm=10, field_nm=FIELD).counts
    centre, spread = moments(counts.astype(float), 10)
    np.testing.assert_allclose(centre, (x, y), atol=0.02)
    np.testing.assert_allclose(spread, sigma, rtol=0.16)  # 12 % of rounding, and the pixel


def test_adding_spots_and_filtering_draw_the_same_picture(monkeypatch):
    locs = table(400, margin=0).assign(uncertainty_xy_nm=lambda t: t["uncertainty_xy_nm"] + 40)
    monkeypatch.setattr(module, "_SPOT_COST", 0.0)
    spots = render(locs, pixel_nm=20, field_nm=FIELD)
    monkeypatch.setattr(module, "_SPOT_COST", np.inf)
    filtered = render(locs, pixel_nm=20, field_nm=FIELD)
    np.testing.assert_allclose(filtered.counts, spots.counts, atol=0.02 * spots.counts.max())
    there = spots.counts > 0.05 * spots.counts.max()
    np.testing.assert_allclose(filtered.mean_z_nm[there], spots.mean_z_nm[there], atol=20)


def test_blocks_of_spots_make_no_difference(monkeypatch):
    whole = render(table(), pixel_nm=20, field_nm=FIELD).counts
    monkeypatch.setattr(module, "_SPOT_VALUES", 500)
    np.testing.assert_allclose(render(table(), pixel_nm=20, field_nm=FIELD).counts, whole, atol=1e-5)


@pytest.mark.parametrize(("given_nm", "drawn_nm"), [(9999.0, 100.0), (np.nan, 40.0), (0.0, 40.0)])
def test_unusable_uncertainties_are_bounded_or_replaced_by_the_median(given_nm, drawn_nm):
    known = pd.DataFrame({"frame": 0, "x_nm": -100.0, "y_nm": -100.0, "uncertainty_xy_nm": [40.0] * 3})
    inside = one(x_nm=1500.0, y_nm=1000.0, uncertainty_xy_nm=given_nm)
    near = one(x_nm=1500.0, y_nm=1000.0, uncertainty_xy_nm=40.0)
    counts = render(pd.concat([known, inside, near]), pixel_nm=10, field_nm=FIELD).counts
    alone = render(near, pixel_nm=10, field_nm=FIELD).counts
    _, spread = moments((counts - alone).astype(float), 10)
    np.testing.assert_allclose(spread, drawn_nm, rtol=0.16)


@pytest.mark.parametrize("shifts", [2, 3])
def test_ash_is_the_average_of_shifted_histograms(shifts):
    locs, pixel = table(200), 20.0
    height, width = int(FIELD[0] / pixel), int(FIELD[1] / pixel)
    reference = np.zeros((height, width))
    coarse = shifts * pixel
    centres = [(np.arange(count) + 0.5) * pixel for count in (height, width)]
    for dy in range(shifts):
        for dx in range(shifts):
            iy = np.floor((locs["y_nm"] + dy * pixel) / coarse).to_numpy()
            ix = np.floor((locs["x_nm"] + dx * pixel) / coarse).to_numpy()
            by = np.floor((centres[0] + dy * pixel) / coarse)
            bx = np.floor((centres[1] + dx * pixel) / coarse)
            same_row, same_column = by[:, None] == iy, bx[:, None] == ix
            reference += same_row.astype(float) @ same_column.astype(float).T
    reference /= shifts**2 * shifts**2  # the number of histograms, and fine pixels in a coarse bin
    counts = render(locs, pixel_nm=pixel, field_nm=FIELD, method="ash", shifts=shifts).counts
    np.testing.assert_allclose(counts, reference, atol=1e-5)


@pytest.mark.parametrize("method", ["gaussian", "histogram", "ash"])
def test_mean_z_of_a_pixel(method):
    locs = pd.DataFrame(
        {"frame": 0, "x_nm": [510.0, 510.0, 2010.0], "y_nm": 1010.0, "z_nm": [100.0, 300.0, -50.0]}
    )
    picture = render(locs, pixel_nm=20, field_nm=FIELD, method=method)
    assert picture.mean_z_nm[50, 25] == pytest.approx(200, abs=0.01)
    assert picture.mean_z_nm[50, 100] == pytest.approx(-50, abs=0.01)
    assert np.isnan(picture.mean_z_nm[0, 0])


@pytest.mark.parametrize("columns", [("frame", "x_nm", "y_nm"), ("frame", "x_nm", "y_nm", "z_nm")])
@pytest.mark.parametrize("method", ["gaussian", "histogram", "ash"])
def test_an_empty_table_is_a_black_picture(columns, method):
    picture = render(empty(columns), pixel_nm=20, field_nm=FIELD, method=method)
    assert not picture.counts.any()
    grey = np.linspace([0, 0, 0], [1, 1, 1], 16)
    assert not colour_by_density(picture, grey).any()
    if "z_nm" in columns:
        assert not colour_by_z(picture, np.ones((16, 3))).any()
    else:
        assert picture.mean_z_nm is None


def test_hue_is_z_and_brightness_is_density():
    blue_to_red = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    locs = pd.DataFrame(
        {"frame": 0, "x_nm": [10.0, 30.0, 50.0, 50.0], "y_nm": 10.0, "z_nm": [-900.0, 0.0, 500.0, 500.0]}
    )
    picture = render(
        locs, pixel_nm=20, field_nm=(20, 80), method="histogram", z_range_nm=(-500, 500)
    )  # z beyond the scale takes the colour at its end
    rgb = colour_by_z(picture, blue_to_red, gamma=1.0, white=2.0)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb[0], [[0, 0, 128], [0, 128, 0], [255, 0, 0], [0, 0, 0]])


def test_too_large_a_picture_is_refused_with_a_pixel_that_would_do():
    with pytest.raises(InputRejected, match=r"100000 x 50000 pixels .* pixel_nm of 4 or more"):
        render(table(), pixel_nm=1, field_nm=(50_000, 100_000))


@pytest.mark.parametrize(
    "wrong",
    [
        {"pixel_nm": 0},
        {"field_nm": (0, 10)},
        {"method": "scatter"},
        {"shifts": 0},
        {"sigma_px": (0.1, 3)},
        {"z_range_nm": (5, 5)},
    ],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(InputRejected, match=next(iter(wrong))):
        render(table(), **({"pixel_nm": 20, "field_nm": FIELD} | wrong))


def test_colouring_needs_z_and_a_proper_table_of_colours():
    flat = render(table().drop(columns="z_nm"), pixel_nm=20, field_nm=FIELD)
    with pytest.raises(InputRejected, match="colour_by_density"):
        colour_by_z(flat, np.ones((4, 3)))
    with pytest.raises(InputRejected, match="lut"):
        colour_by_density(flat, np.ones((4, 4)))
