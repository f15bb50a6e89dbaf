"""Linking of blinks and merging: who is linked, what the merged row holds, in both modes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smlm_bridge.errors import InputRejected
from smlm_bridge.post.link import link
from smlm_bridge.post.merge import merge


def table(**columns):
    rows = max(np.size(values) for values in columns.values())
    return pd.DataFrame({name: np.broadcast_to(values, rows) for name, values in columns.items()})


def drawn(seed, rows=120, frames=15, size=300.0):
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "frame": draw.integers(0, frames, rows),
            "x_nm": draw.uniform(-size, size, rows),
            "y_nm": draw.uniform(-size, size, rows),
            "z_nm": draw.uniform(-size, size, rows),
            "photons": draw.uniform(100, 1000, rows),
            "background_std": draw.uniform(1, 5, rows),
            "uncertainty_x_nm": draw.uniform(3, 30, rows),
            "uncertainty_y_nm": draw.uniform(3, 30, rows),
            "uncertainty_z_nm": draw.uniform(3, 30, rows),
            "uncertainty_xy_nm": 10.0,
        }
    )


def linked_by_hand(locs, distance, gap, z_weight):
    """The rule in plain Python: pairs of this frame and active molecules, nearest first."""
    place = locs[["x_nm", "y_nm", "z_nm"]].to_numpy() * [1, 1, z_weight]
    frame = locs["frame"].to_numpy()
    numbers, last = np.full(len(locs), -1), []
    for now in np.unique(frame):
        rows = np.flatnonzero(frame == now)
        rows = rows[np.argsort(place[rows, 0])]
        pairs = [
            (np.linalg.norm(place[row] - place[before]), row, molecule)
            for row in rows
            for molecule, before in enumerate(last)
            if now - frame[before] <= gap + 1
        ]
        busy = set()
        for away, row, molecule in sorted(pairs):
            if away < distance and numbers[row] < 0 and molecule not in busy:
                numbers[row] = molecule
                busy.add(molecule)
        for row in rows:
            if numbers[row] < 0:
                numbers[row] = len(last)
                last.append(row)
            last[numbers[row]] = row
    return numbers


# ---- linking


def linked_as_thunderstorm(locs, distance, gap, z_weight):
    """Its rule in plain Python: in table order, nearest when the frame began, judged by where it is now."""
    place = locs[["x_nm", "y_nm", "z_nm"]].to_numpy() * [1, 1, z_weight]
    frame = locs["frame"].to_numpy()
    numbers, last = np.full(len(locs), -1), []
    for now in np.unique(frame):
        began = [(molecule, row) for molecule, row in enumerate(last) if now - frame[row] <= gap + 1]
        for row in np.flatnonzero(frame == now):
            away = [np.linalg.norm(place[row] - place[before]) for _, before in began]
            nearest = began[int(np.argmin(away))][0] if began else -1
            if nearest >= 0 and np.linalg.norm(place[row] - place[last[nearest]]) < distance:
                numbers[row] = nearest
                last[nearest] = row
            else:
                numbers[row] = len(last)
                last.append(row)
    return numbers


SETTINGS = [(60.0, 0, 0.1), (90.0, 3, 0.5), (1e4, 1, 0.1)]


@pytest.mark.parametrize(("distance", "gap", "z_weight"), SETTINGS)
def test_linking_is_the_rule_in_plain_python(distance, gap, z_weight):
    locs = drawn(3)
    found = link(locs, distance, gap_frames=gap, z_weight=z_weight)
    assert found.tolist() == linked_by_hand(locs, distance, gap, z_weight).tolist()
    assert found.max() + 1 < len(locs)


@pytest.mark.parametrize(("distance", "gap", "z_weight"), SETTINGS)
@pytest.mark.parametrize("rows", [120, 900])
def test_linking_as_in_thunderstorm_is_its_rule_in_plain_python(distance, gap, z_weight, rows):
    locs = drawn(6, rows=rows)
    found = link(locs, distance, gap_frames=gap, z_weight=z_weight, one_a_frame=False)
    by_hand = linked_as_thunderstorm(locs, distance, gap, z_weight)
    # Molecules are numbered in the order of the frames, rows of the table come in any.
    order = np.argsort(locs["frame"].to_numpy(), kind="stable")
    assert found[order].tolist() == by_hand[order].tolist()
    assert found.max() + 1 < len(locs)


def test_as_in_thunderstorm_a_detection_of_the_frame_may_draw_a_molecule_near_or_away():
    near = table(frame=[0, 1, 1], x_nm=[0.0, 15.0, 30.0], y_nm=0.0)
    assert link(near, 20, one_a_frame=False).tolist() == [0, 0, 0]
    assert link(near.iloc[[0, 2, 1]], 20, one_a_frame=False).tolist() == [0, 1, 0]
    away = table(frame=[0, 1, 1], x_nm=[0.0, 15.0, -15.0], y_nm=0.0)
    assert link(away, 20, one_a_frame=False).tolist() == [0, 0, 1]
    rival = table(frame=[0, 0, 1, 1], x_nm=[0.0, 54.0, 15.0, 30.0], y_nm=0.0)
    assert link(rival, 20, one_a_frame=False).tolist() == [0, 1, 0, 2]


def test_the_distance_itself_is_too_far_and_is_to_the_last_detection():
    locs = table(frame=[0, 1, 2], x_nm=[0.0, 19.0, 38.0], y_nm=0.0)
    assert link(locs, 20).tolist() == [0, 0, 0]
    assert link(locs, 19).tolist() == [0, 1, 2]


def test_a_molecule_may_be_dark_for_the_gap_and_no_longer():
    locs = table(frame=[5, 7, 10], x_nm=1.0, y_nm=1.0)
    assert link(locs, 20, gap_frames=0).tolist() == [0, 1, 2]
    assert link(locs, 20, gap_frames=1).tolist() == [0, 0, 1]
    assert link(locs, 20, gap_frames=2).tolist() == [0, 0, 0]


def test_two_detections_of_one_frame_are_two_molecules_unless_as_in_thunderstorm():
    locs = table(frame=[0, 1, 1, 2], x_nm=[0.0, 5.0, 2.0, 2.5], y_nm=0.0)
    assert link(locs, 20).tolist() == [0, 1, 0, 0]
    assert link(locs, 20, one_a_frame=False).tolist() == [0, 0, 0, 0]
    assert link(table(frame=[3, 3], x_nm=1.0, y_nm=1.0), 20).tolist() == [0, 1]


def test_a_rival_takes_the_next_molecule_instead_of_starting_one():
    locs = table(frame=[0, 0, 1, 1], x_nm=[0.0, 15.0, 1.0, 3.0], y_nm=0.0)
    assert link(locs, 20).tolist() == [0, 1, 0, 1]


def test_z_counts_with_its_weight():
    locs = table(frame=[0, 1], x_nm=0.0, y_nm=0.0, z_nm=[0.0, 150.0])
    assert link(locs, 20).tolist() == [0, 0]
    assert link(locs, 20, z_weight=1.0).tolist() == [0, 1]
    assert link(locs.assign(z_nm=[0.0, 1e6]), 20, z_weight=0.0).tolist() == [0, 0]


def test_frames_out_of_order_and_far_apart():
    locs = table(frame=[10**9, 0, 10**9 + 1, 1], x_nm=[1e6, 0.0, 1e6, 0.0], y_nm=-5.0)
    assert link(locs, 20).tolist() == [1, 0, 1, 0]


def test_simulated_blinking_is_put_back_together():
    draw = np.random.default_rng(5)
    seen = draw.integers(1, 6, 300)
    truth = np.repeat(np.arange(300), seen)
    within = np.arange(seen.sum()) - np.repeat(seen.cumsum() - seen, seen)
    frame = np.repeat(draw.integers(0, 400, 300), seen) + 2 * within
    place = draw.uniform(0, 30_000, (300, 2))[truth] + draw.normal(0, 5, (seen.sum(), 2))
    found = link(pd.DataFrame({"frame": frame, "x_nm": place[:, 0], "y_nm": place[:, 1]}), 40)
    assert len(np.unique(np.column_stack([truth, found]), axis=0)) == 300 == found.max() + 1


# ---- merging


def pair(**columns):
    return table(
        frame=[4, 5], x_nm=[0.0, 10.0], y_nm=[0.0, 10.0], z_nm=[0.0, 10.0], photons=[100.0, 300.0],
        **columns,
    )  # fmt: skip


def test_weighted_means_and_recombined_uncertainties():
    locs = pair(
        uncertainty_x_nm=[3.0, 6.0], uncertainty_y_nm=[4.0, 4.0], uncertainty_z_nm=[8.0, 2.0],
        uncertainty_xy_nm=5.0, uncertainty_photons=[30.0, 40.0], background=[10.0, 20.0],
        background_std=[3.0, 4.0], psf_sigma_nm=[120.0, 140.0], probability=[0.7, 0.9], other=[1.0, 2.0],
        chi2=[1.0, 2.0],
    )  # fmt: skip
    row = merge(locs, 30).loc[0]
    weight = np.array([1 / 9, 1 / 36])
    assert row["x_nm"] == pytest.approx(10 * weight[1] / weight.sum())
    assert row["y_nm"] == pytest.approx(5.0)
    assert row["z_nm"] == pytest.approx(10 * (1 / 4) / (1 / 4 + 1 / 64))
    assert row["uncertainty_x_nm"] == pytest.approx(weight.sum() ** -0.5)
    assert row["uncertainty_y_nm"] == pytest.approx(4 / np.sqrt(2))
    assert row["uncertainty_z_nm"] == pytest.approx((1 / 4 + 1 / 64) ** -0.5)
    assert row["uncertainty_xy_nm"] == pytest.approx(np.sqrt((1 / weight.sum() + 8) / 2))
    assert row["uncertainty_photons"] == pytest.approx(50.0)
    assert row[["frame", "photons", "detections", "background", "psf_sigma_nm", "other"]].tolist() == [
        4, 400, 2, 15, 130, 1,
    ]  # fmt: skip
    assert row["background_std"] == pytest.approx(5.0)
    assert row["probability"] == 0.9
    assert np.isnan(row["chi2"])


def test_thunderstorm_takes_plain_means_and_sums_photons_and_background_std():
    locs = pair(
        uncertainty_x_nm=[3.0, 6.0], uncertainty_xy_nm=[5.0, 7.0], uncertainty_z_nm=[8.0, 2.0],
        background=[10.0, 20.0], background_std=[3.0, 4.0], psf_sigma_nm=[120.0, 140.0], id=[9, 4],
        probability=[0.7, 0.9],
    )  # fmt: skip
    row = merge(locs, 30, mode="thunderstorm").loc[0]
    assert row[["x_nm", "y_nm", "z_nm"]].tolist() == [5, 5, 5]
    assert row[["frame", "photons", "background", "background_std", "psf_sigma_nm", "id"]].tolist() == [
        4, 400, 15, 7, 130, 4,
    ]  # fmt: skip
    assert row[["uncertainty_x_nm", "uncertainty_xy_nm", "uncertainty_z_nm", "detections"]].tolist() == [
        3,
        5,
        8,
        2,
    ]
    assert row["probability"] == 0.7


def test_thunderstorm_computes_the_uncertainty_anew_where_it_knows_the_pixel():
    locs = pair(uncertainty_xy_nm=5.0, background_std=[3.0, 4.0], psf_sigma_nm=130.0)
    locs.loc[2] = {**locs.loc[0], "x_nm": 9000.0}  # alone, and so left as it is
    merged = merge(locs, 30, mode="thunderstorm", pixel_nm=100.0)
    width2, photons, noise = 130**2 + 100**2 / 12, 400, 7
    tau = 2 * np.pi * noise**2 * width2 / (photons * 100**2)
    expected = np.sqrt(width2 / photons * (1 + 4 * tau + np.sqrt(2 * tau / (1 + 4 * tau))))
    assert merged["uncertainty_xy_nm"].tolist() == pytest.approx([expected, 5.0])


@pytest.mark.parametrize("bad", [0.0, np.nan, 9999.0, np.inf])
def test_an_unusable_uncertainty_has_no_weight_and_spoils_nothing(bad):
    row = merge(pair(uncertainty_xy_nm=[5.0, bad], uncertainty_z_nm=[bad, bad]), 30).loc[0]
    assert row[["x_nm", "y_nm", "z_nm", "uncertainty_xy_nm"]].tolist() == [0.0, 0.0, 5.0, 5.0]
    assert row["uncertainty_z_nm"] == pytest.approx(bad, nan_ok=True)


def test_a_table_without_uncertainties_is_averaged():
    assert merge(pair(), 30)[["x_nm", "y_nm", "z_nm"]].to_numpy().tolist() == [[5, 5, 5]]


def test_detections_of_a_merged_table_are_summed_and_merging_again_changes_nothing():
    locs = pair(detections=[3, 0])
    merged = merge(locs, 30)
    assert merged["detections"].tolist() == [4]
    pd.testing.assert_frame_equal(merge(merged, 30), merged)


def test_merged_positions_are_as_precise_as_their_uncertainty_says():
    draw = np.random.default_rng(7)
    sigma = draw.uniform(3, 20, (4000, 4))
    error = draw.normal(0, sigma)
    locs = pd.DataFrame(
        {
            "frame": np.tile(np.arange(4), 4000),
            "x_nm": (np.arange(4000)[:, None] * 1000 + error).ravel(),
            "y_nm": 0.0,
            "uncertainty_xy_nm": sigma.ravel(),
        }
    )
    merged = merge(locs, 300)
    assert len(merged) == 4000
    z = (merged["x_nm"] - np.round(merged["x_nm"] / 1000) * 1000) / merged["uncertainty_xy_nm"]
    assert z.std() == pytest.approx(1.0, abs=0.05)


@given(seed=st.integers(0, 10**6), mode=st.sampled_from(["weighted", "thunderstorm"]), gap=st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_nothing_is_lost_and_the_order_of_rows_does_not_matter(seed, mode, gap):
    locs = drawn(seed, rows=60)
    merged = merge(locs, 80.0, gap_frames=gap, mode=mode)
    assert merged["detections"].sum() == len(locs)
    assert merged["photons"].sum() == pytest.approx(locs["photons"].sum())
    shuffled = locs.sample(frac=1.0, random_state=1)
    if mode == "thunderstorm":  # but for the order within a frame, as there
        within = locs.groupby("frame").cumcount()[shuffled.index]
        shuffled = shuffled.iloc[np.argsort(within, kind="stable")]
    pd.testing.assert_frame_equal(merge(shuffled, 80.0, gap_frames=gap, mode=mode), merged)
    assert merged[["frame", "x_nm"]].equals(merged[["frame", "x_nm"]].sort_values(["frame", "x_nm"]))


@pytest.mark.parametrize("mode", ["weighted", "thunderstorm"])
def test_what_is_linked_to_nothing_stays_as_it_is(mode):
    locs = drawn(2).assign(chi2=1.5)
    merged = merge(locs, 1e-6, mode=mode, pixel_nm=100.0)
    expected = locs.sort_values(["frame", "x_nm", "y_nm"], ignore_index=True).assign(detections=1)
    pd.testing.assert_frame_equal(merged, expected)


def test_detections_without_photons_have_no_uncertainty_of_thunderstorm():
    locs = pair(background_std=3.0, psf_sigma_nm=130.0).assign(photons=0.0)
    assert merge(locs, 30, mode="thunderstorm", pixel_nm=100.0)["uncertainty_xy_nm"].tolist() == [9999.0]


# ---- bad input


@pytest.mark.parametrize("mode", ["weighted", "thunderstorm"])
def test_empty_and_single_rows(mode):
    assert len(merge(drawn(1).iloc[:0], mode=mode)) == 0
    assert merge(drawn(1).iloc[:0], mode=mode)["detections"].dtype == np.int64
    one = merge(drawn(1).iloc[:1], mode=mode)
    assert one["detections"].tolist() == [1]


def test_bright_molecules_keep_their_photons():
    assert merge(pair().assign(photons=1e8), 30)["photons"].tolist() == [2e8]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"distance_nm": 0.0}, "distance_nm"),
        ({"distance_nm": np.nan}, "distance_nm"),
        ({"gap_frames": -1}, "gap_frames"),
        ({"gap_frames": 0.5}, "gap_frames"),
        ({"z_weight": -1.0}, "z_weight"),
        ({"mode": "best"}, "weighted, thunderstorm"),
        ({"pixel_nm": 0.0}, "pixel_nm"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(InputRejected, match=words):
        merge(drawn(1), **arguments)


def test_bad_tables_are_refused():
    with pytest.raises(InputRejected, match="y_nm"):
        merge(table(frame=[0], x_nm=0.0))
    with pytest.raises(InputRejected, match="not finite"):
        merge(table(frame=[0, 1], x_nm=[0.0, np.nan], y_nm=0.0))
    with pytest.raises(InputRejected, match="units"):
        merge(table(frame=[0, 1], x_nm=[0.0, 1e25], y_nm=0.0))
