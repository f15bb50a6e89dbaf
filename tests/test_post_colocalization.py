"""Coordinate-based colocalization against brute force and its limits."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from smlm_bridge.cli import main
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.thunderstorm import read_table, write_table
from smlm_bridge.locs import empty
from smlm_bridge.post.colocalization import colocalize


def points(place: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(dict(zip(("x_nm", "y_nm", "z_nm"), place.T, strict=False))).assign(frame=0)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_it_is_what_the_formula_says(dimensions: int) -> None:
    draw = np.random.default_rng(1)
    here, there = draw.uniform(0, 700, (60, 3)), draw.uniform(0, 700, (80, 3))
    found = colocalize(points(here), points(there), radius_step_nm=60, steps=6, dimensions=dimensions)
    radii = 60.0 * np.arange(1, 7)
    np.testing.assert_allclose(found.radii_nm, radii)
    for row, place in enumerate(here[:, :dimensions]):
        own = np.linalg.norm(here[:, :dimensions] - place, axis=1)
        other = np.linalg.norm(there[:, :dimensions] - place, axis=1)
        counts = [[(distance <= radius).sum() for radius in radii] for distance in (own, other)]
        np.testing.assert_array_equal(found.neighbours[row], counts[1])
        assert found.distance_nm[row] == pytest.approx(other.min())
        # Rounded: what is equal in exact arithmetic shares its rank.
        densities = [np.round(np.array(n) / n[-1] * (radii[-1] / radii) ** dimensions, 9) for n in counts]
        wanted = spearmanr(*densities).statistic * np.exp(-other.min() / radii[-1])
        assert found.cbc[row] == pytest.approx(wanted, abs=1e-12)


def test_limits() -> None:
    draw = np.random.default_rng(2)
    first, second = points(draw.uniform(0, 8000, (6000, 2))), points(draw.uniform(0, 8000, (6000, 2)))
    assert colocalize(first, first).cbc.min() == pytest.approx(1)
    assert abs(np.nanmean(colocalize(first, second).cbc)) < 0.05
    centre = np.repeat(
        np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2) * 3000.0, 20, axis=0
    )
    dense = points(centre + draw.normal(0, 4, centre.shape))
    # Around each dense spot the other table's density grows outwards, as r^6: from the spot's middle it rises
    # where the spot's own falls.
    radius = 500 * draw.uniform(0, 1, 25 * 2000) ** (1 / 8)
    angle = draw.uniform(0, 2 * np.pi, radius.size)
    halo = np.repeat(centre[::20], 2000, axis=0) + radius[:, None] * np.column_stack(
        [np.cos(angle), np.sin(angle)]
    )
    found = colocalize(dense, points(halo))
    # Spearman's correlation is close to -1; the distance to the halo takes its share.
    assert np.nanmean(found.cbc / np.exp(-found.distance_nm / 500)) < -0.95
    assert np.nanmean(found.cbc) < -0.5


def test_nothing_near_is_undefined_and_empty_tables_are_answered() -> None:
    here, far = points(np.array([[0.0, 0.0], [10.0, 0.0]])), points(np.array([[9000.0, 0.0]]))
    found = colocalize(here, far)
    assert np.isnan(found.cbc).all()
    np.testing.assert_allclose(found.distance_nm, [9000, 8990])
    assert np.isnan(colocalize(here, empty()).cbc).all()
    assert np.isinf(colocalize(here, empty()).distance_nm).all()
    assert colocalize(empty(), here).cbc.size == 0
    for wrong in ({"radius_step_nm": 0}, {"steps": 1}, {"dimensions": 3}):
        with pytest.raises(InputRejected):
            colocalize(here, far, **wrong)


def test_the_verb_adds_columns_to_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(3)
    place = draw.uniform(0, 2000, (300, 2))
    write_table(tmp_path / "a.csv", points(place))
    write_table(tmp_path / "b.csv", points(np.vstack([place + 2.0, [[90000.0, 0.0]]])))
    names = [str(tmp_path / name) for name in ("a.csv", "b.csv", "a2.csv", "b2.csv")]
    assert main(["colocalize", names[0], names[1], "-o", names[2], "--output2", names[3], "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["mean_cbc"][0] > 0.9
    assert values["median_distance_nm"][0] == pytest.approx(2 * 2**0.5, abs=0.01)
    assert values["without_neighbour"] == [0, 1]
    second = read_table(names[3])
    assert second["cbc"].min() == 0
    assert len(second) == 301
    assert {"cbc", "nn_dist [nm]", "nn_count"} <= set(read_table(names[2]).columns)
