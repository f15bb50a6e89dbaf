"""Matching and scores, against brute force and by hand."""

import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smlm_bridge.errors import InputRejected, UsageError
from smlm_bridge.evaluate import (
    Options,
    evaluate,
    match,
    match_challenge,
    rmse_over_bound,
    scores,
)
from smlm_bridge.io.thunderstorm import read_table

DATA = Path(__file__).parents[2] / "shared" / "data"


def make(rows, columns=("frame", "x_nm", "y_nm", "z_nm")):
    return pd.DataFrame(np.asarray(rows, float).reshape(-1, len(columns)), columns=list(columns))


def random_table(generator, n, frames=2, size=400):
    xyz = generator.uniform(0, size, (n, 3))
    return make(np.column_stack([generator.integers(0, frames, n), xyz]))


def brute_force(locs, truth, allowed, distance):
    """Most pairs, then the smallest sum, over every partial one-to-one pairing."""
    best = (0, 0.0)
    for k in range(1, min(len(locs), len(truth)) + 1):
        for rows in itertools.combinations(range(len(locs)), k):
            for columns in itertools.permutations(range(len(truth)), k):
                if all(allowed[r, c] for r, c in zip(rows, columns, strict=True)):
                    total = sum(distance[r, c] for r, c in zip(rows, columns, strict=True))
                    if best[0] < k or total < best[1]:
                        best = (k, total)
    return best


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 5),
    m=st.integers(0, 5),
    radius=st.floats(50, 400),
    mode=st.sampled_from(["3d", "lateral"]),
    axial=st.none() | st.floats(50, 300),
)
def test_matching_is_optimal(seed, n, m, radius, mode, axial):
    generator = np.random.default_rng(seed)
    locs, truth = random_table(generator, n), random_table(generator, m)
    found = match(locs, truth, radius_nm=radius, mode=mode, axial_radius_nm=axial)
    d = locs.to_numpy()[:, None, 1:] - truth.to_numpy()[None, :, 1:]
    distance = np.linalg.norm(d if mode == "3d" else d[..., :2], axis=-1)
    allowed = (distance < radius) & (locs["frame"].to_numpy()[:, None] == truth["frame"].to_numpy()[None])
    if axial is not None:
        allowed &= np.abs(d[..., 2]) < axial
    count, total = brute_force(locs, truth, allowed, distance)
    assert len(found.loc_index) == count
    assert len(set(found.loc_index)) == len(set(found.truth_index)) == count
    assert allowed[found.loc_index, found.truth_index].all()
    assert distance[found.loc_index, found.truth_index].sum() == pytest.approx(total)
    np.testing.assert_allclose(found.difference_nm, d[found.loc_index, found.truth_index])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 12), m=st.integers(0, 12))
def test_challenge_matching_is_greedy(seed, n, m):
    generator = np.random.default_rng(seed)
    locs, truth = random_table(generator, n, size=900), random_table(generator, m, size=900)
    a, b = locs.to_numpy(), truth.to_numpy()
    pairs = [
        (np.linalg.norm(p[1:] - q[1:]), i, j)
        for i, p in enumerate(a)
        for j, q in enumerate(b)
        if p[0] == q[0] and np.hypot(*(p - q)[1:3]) <= 250 and abs(p[3] - q[3]) <= 500
    ]
    expected, used_i, used_j = [], set(), set()
    for _, i, j in sorted(pairs):
        if i not in used_i and j not in used_j:
            expected.append((i, j))
            used_i.add(i)
            used_j.add(j)
    found = match_challenge(locs, truth)
    assert sorted(zip(found.loc_index, found.truth_index, strict=True)) == sorted(expected)


def test_more_pairs_win_over_closer_ones():
    # Greedy pairs the middle two (10 nm) and strands the others; the optimum pairs all four.
    locs = make([[0, 100, 0, 0], [0, 210, 0, 0]])
    truth = make([[0, 0, 0, 0], [0, 110, 0, 0]])
    assert len(match(locs, truth, radius_nm=101).loc_index) == 2


def test_the_gate_is_open_at_the_radius():
    locs, truth = make([[0, 150, 0, 0]]), make([[0, 0, 0, 0]])
    assert match(locs, truth, radius_nm=150).n_locs == 1
    assert len(match(locs, truth, radius_nm=150).loc_index) == 0
    assert len(match(locs, truth, radius_nm=150.001).loc_index) == 1
    assert len(match_challenge(make([[0, 250, 0, 500]]), truth).loc_index) == 1
    assert len(match_challenge(make([[0, 250, 0, 501]]), truth).loc_index) == 0


def test_frames_do_not_mix_and_tables_stay_as_they_are():
    locs = make([[3, 10, 10, 0], [4, 10, 10, 0]])
    locs.index = [7, 7]
    before = locs.copy()
    found = match(locs, make([[4, 12, 10, 0], [5, 10, 10, 0]]))
    assert found.loc_index.tolist() == [1]
    assert found.truth_index.tolist() == [0]
    pd.testing.assert_frame_equal(locs, before)


def test_scores_by_hand():
    truth = make([[0, 0, 0, 0], [0, 1000, 0, 0], [1, 0, 0, 0]])
    locs = make([[0, 3, 4, 12], [0, 1003, -4, -12], [1, 500, 0, 0]])
    _, s = evaluate(locs, truth)
    assert (s.matched, s.n_locs, s.n_truth) == (2, 3, 3)
    assert s.jaccard == pytest.approx(0.5)
    assert s.recall == s.precision == pytest.approx(2 / 3)
    assert s.rmse_lateral_nm == pytest.approx(5)
    assert s.rmse_axial_nm == pytest.approx(12)
    assert s.bias_nm == pytest.approx((3, 0, 0))
    assert s.efficiency == pytest.approx((100 - np.hypot(50, 5) + 100 - np.hypot(50, 6)) / 2)


@pytest.mark.parametrize(
    "options", [Options(), Options(challenge=True), Options(min_photons=1.0, border_nm=10)]
)
def test_empty_tables(options):
    columns = ("frame", "x_nm", "y_nm", "z_nm", "photons")
    nothing, something = make([], columns), make([[0, 50, 50, 0, 10]], columns)
    for locs, truth in itertools.product((nothing, something), repeat=2):
        _, s = evaluate(locs, truth, options=options)
        assert s.matched == 0 or len(locs) == len(truth) == 1
        assert (s.rmse_lateral_nm is None) == (s.matched == 0)
    _, s = evaluate(nothing, something)
    assert (s.jaccard, s.recall, s.precision, s.efficiency) == (0.0, 0.0, 0.0, None)


def test_two_dimensional_tables():
    columns = ("frame", "x_nm", "y_nm")
    _, s = evaluate(make([[0, 3, 4]], columns), make([[0, 0, 0]], columns))
    assert s.rmse_axial_nm is None
    assert s.bias_nm == (3, 4, None)
    assert s.efficiency == pytest.approx(95)
    _, s = evaluate(make([[0, 3, 4]], columns), make([[0, 0, 0, 900]]), options=Options(axial_radius_nm=10))
    assert s.matched == 1


def test_photon_rules():
    columns = ("frame", "x_nm", "y_nm", "z_nm", "photons")
    truth = make([[0, 0, 0, 0, 500], [0, 900, 0, 0, 900], [0, 2000, 0, 0, 100], [1, 0, 0, 0, 100]], columns)
    locs = make([[0, 0, 0, 0, 1], [0, 900, 0, 0, 1], [1, 0, 0, 0, 1]], columns)
    found, s = evaluate(locs, truth, options=Options(min_photons=500))
    assert (s.matched, s.n_locs, s.n_truth) == (1, 1, 1)  # at the threshold counts as dim
    assert found.truth_index.tolist() == [1]
    found, s = evaluate(locs, truth, options=Options(min_photons=500, min_photons_rule="remove"))
    assert (s.matched, s.n_locs, s.n_truth) == (2, 3, 2)  # the only emitter of frame 1 stays
    assert found.truth_index.tolist() == [1, 3]
    with pytest.raises(InputRejected, match="photons"):
        evaluate(locs, truth.drop(columns="photons"), options=Options(min_photons=500))


def test_border():
    truth = make([[0, 100, 500, 0], [0, 500, 500, 0], [0, 1000, 1000, 0]])
    options = Options(border_nm=100, field_nm=(1000, 1000))
    found, s = evaluate(truth, truth, options=options)
    assert (s.n_truth, found.truth_index.tolist(), found.loc_index.tolist()) == (1, [1], [1])
    assert evaluate(truth, truth, options=Options(border_nm=100))[1] == s  # the field from the truth


def test_rmse_over_bound():
    generator = np.random.default_rng(1)
    n = 20_000
    truth = make(np.column_stack([np.arange(n), np.full((n, 3), 500.0)]))
    bound = generator.uniform(5, 20, (n, 3))
    locs = truth.copy()
    locs[["x_nm", "y_nm", "z_nm"]] += bound * [1, 1, 2] * generator.standard_normal((n, 3))
    found = match(locs, truth)
    assert rmse_over_bound(found, bound) == pytest.approx((1, 1, 2), rel=0.03)
    assert rmse_over_bound(match(locs[:0], truth), bound) == (None, None, None)
    with pytest.raises(InputRejected, match="shape"):
        rmse_over_bound(found, bound[:, :2])


def test_wrong_options_are_named():
    locs = make([[0, 0, 0, 0]])
    with pytest.raises(UsageError, match="above 0"):
        match(locs, locs, radius_nm=0)
    with pytest.raises(UsageError, match="3d and lateral"):
        match(locs, locs, mode="axial")
    with pytest.raises(InputRejected, match="not finite in row 0"):
        match(make([[0, np.nan, 0, 0]]), locs)


def test_crowded_frames_are_fast():
    generator = np.random.default_rng(0)
    truth = random_table(generator, 6000, frames=2, size=20_000)
    locs = truth.copy()
    locs[["x_nm", "y_nm", "z_nm"]] += generator.normal(0, 15, (6000, 3))
    start = time.perf_counter()
    assert scores(match(locs, truth, mode="lateral", radius_nm=250)).recall > 0.99
    many = random_table(generator, 50_000, frames=5000, size=10_000)
    assert scores(match(many, many)).jaccard == 1.0
    assert time.perf_counter() - start < 10


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared microscope data are not there")
def test_real_truth_matches_itself_half_a_pixel_away():
    truth = read_table(DATA / "simulated" / "tetrapod_storm_N035.csv")
    locs = truth.assign(x_nm=truth["x_nm"] + 55.0)
    _, s = evaluate(locs, truth)
    assert s.jaccard > 0.95
    assert s.bias_nm[0] == pytest.approx(55, abs=2)
