"""NeNA, local precision, Fourier ring correlation and z-scores against simulated tables of known truth."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from smlm_bridge.cli import main
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.thunderstorm import write_table
from smlm_bridge.locs import empty
from smlm_bridge.post.frc import frc
from smlm_bridge.post.nena import local_precision, nena
from smlm_bridge.post.quality import QualityOptions, assess, z_scores
from smlm_bridge.report.quality import quality_page


def blinking(sigma_nm: float, *, seed: int, molecules: int = 6000, claim: float = 1.0) -> pd.DataFrame:
    """Molecules at random places, each on for three frames in the mean."""
    draw = np.random.default_rng(seed)
    length = draw.geometric(1 / 3, molecules)
    molecule = np.repeat(np.arange(molecules), length)
    within = np.arange(len(molecule)) - np.repeat(np.cumsum(length) - length, length)
    place = draw.uniform(0, 15000, (molecules, 3))[molecule]
    error = draw.normal(0, 1, place.shape) * sigma_nm * [1, 1, 2]
    x, y, z = (place + error).T
    return pd.DataFrame(
        {
            "frame": draw.integers(0, 1500, molecules)[molecule] + within,
            "x_nm": x,
            "y_nm": y,
            "z_nm": z,
            "photons": draw.uniform(500, 3000, len(molecule)),
            "uncertainty_xy_nm": claim * sigma_nm,
            "uncertainty_z_nm": 2 * sigma_nm,
        }
    )


def recurring(sigma_nm: float, *, mean_rows: float, seed: int) -> pd.DataFrame:
    """Molecules at random places, each seen again and again all over the movie."""
    draw = np.random.default_rng(seed)
    molecule = np.repeat(np.arange(4000), draw.poisson(mean_rows, 4000))
    x, y = (draw.uniform(0, 6000, (4000, 2))[molecule] + draw.normal(0, sigma_nm, (len(molecule), 2))).T
    frame = draw.integers(0, 8000, len(molecule))
    return pd.DataFrame({"frame": frame, "x_nm": x, "y_nm": y, "uncertainty_xy_nm": sigma_nm})


@pytest.mark.parametrize("sigma_nm", [5.0, 20.0])
def test_nena_recovers_the_precision(sigma_nm: float) -> None:
    found = nena(blinking(sigma_nm, seed=1))
    assert found is not None
    assert found.sigma_nm == pytest.approx(sigma_nm, rel=0.03)  # the bar is 5 %
    assert found.molecule_share > 0.9
    assert found.counts.sum() == found.pairs


def test_nena_of_molecules_that_never_stay_is_none_or_wide() -> None:
    draw = np.random.default_rng(2)
    scattered = pd.DataFrame({"frame": np.arange(500), "x_nm": draw.uniform(0, 1e6, 500), "y_nm": 0.0})
    assert nena(scattered) is None
    assert nena(empty()) is None


def test_local_precision_by_axis_and_the_claimed_uncertainty() -> None:
    found = local_precision(blinking(10.0, seed=3, claim=0.5), 10.0)
    assert found is not None
    np.testing.assert_allclose(found.sigma_nm, [10, 10, 20], rtol=0.03)
    np.testing.assert_allclose(found.reported_nm, [5, 5, 20], rtol=1e-6)
    np.testing.assert_allclose(found.zscore_sd, [2, 2, 1], rtol=0.03)
    assert np.nanmedian(found.map_nm) == pytest.approx(10, rel=0.05)


def test_local_precision_sees_where_it_is_worse() -> None:
    left, right = blinking(5.0, seed=4), blinking(15.0, seed=5)
    both = pd.concat([left, right.assign(x_nm=right["x_nm"] + 20000)], ignore_index=True)
    found = local_precision(both, 10.0, tiles=8)
    assert found is not None
    half = found.map_nm.shape[1] // 2
    assert np.nanmedian(found.map_nm[:, : half - 1]) == pytest.approx(5, rel=0.1)
    assert np.nanmedian(found.map_nm[:, half + 1 :]) == pytest.approx(15, rel=0.1)


@pytest.mark.parametrize(("sigma_nm", "mean_rows"), [(10.0, 6.0), (15.0, 10.0)])
def test_frc_of_recurring_molecules_is_what_theory_says(sigma_nm: float, mean_rows: float) -> None:
    # Without structure FRC = Q H/(2 + Q H), H = exp(-4 pi^2 s^2 q^2) and Q the mean number of further rows
    # (Nieuwenhuizen et al. 2013); it is 1/7 at q = sqrt(ln(3 Q))/(2 pi s).
    table = recurring(sigma_nm, mean_rows=mean_rows, seed=6)
    found = frc(table, rng=np.random.default_rng(0))
    assert found.resolution_nm == pytest.approx(
        2 * math.pi * sigma_nm / math.sqrt(math.log(3 * mean_rows)), rel=0.03
    )
    assert found.spurious == pytest.approx(mean_rows, rel=0.1)
    assert found.corrected_nm is None or found.corrected_nm > 3 * found.resolution_nm


def test_frc_of_noise_has_no_resolution_and_says_why() -> None:
    draw = np.random.default_rng(7)
    x, y = draw.uniform(0, 5000, (2, 5000))
    noise = pd.DataFrame({"frame": np.arange(5000), "x_nm": x, "y_nm": y})
    found = frc(noise, rng=draw)
    assert found.resolution_nm is None
    assert "no structure in common" in found.note
    one = frc(noise.assign(frame=3), rng=draw)
    assert one.resolution_nm is None
    assert "one frame" in one.note
    assert frc(empty(), rng=draw).resolution_nm is None


def test_frc_of_sharp_points_stops_at_a_sensible_pixel() -> None:
    draw = np.random.default_rng(8)
    x, y = np.repeat(draw.uniform(0, 5000, (2, 300)), 20, axis=1)
    found = frc(pd.DataFrame({"frame": draw.permutation(6000), "x_nm": x, "y_nm": y}), rng=draw, repeats=1)
    assert found.resolution_nm is None
    assert "stays above 1/7" in found.note
    assert found.pixel_nm >= 2


def test_a_large_field_in_tiles_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    table = recurring(10.0, mean_rows=6, seed=9)
    whole = frc(table, pixel_nm=8, rng=np.random.default_rng(0))
    monkeypatch.setattr("smlm_bridge.post.frc._LARGEST_SIDE_PX", 256)
    tiled = frc(table, pixel_nm=8, rng=np.random.default_rng(0))
    assert tiled.frequency_per_nm.size < whole.frequency_per_nm.size
    assert tiled.resolution_nm == pytest.approx(whole.resolution_nm, rel=0.03)


def test_blinks_that_are_not_merged_make_the_frc_too_good() -> None:
    # Every molecule blinks once, for many frames: merged, it is seen once, and there is no structure.
    table = blinking(10.0, seed=10)
    rng = np.random.default_rng
    raw = assess(table, QualityOptions(link_distance_nm=0, blocks=1500), rng=rng(0))
    merged = assess(table, QualityOptions(blocks=1500), rng=rng(0))
    assert raw.frc.resolution_nm is not None
    assert raw.frc.resolution_nm < 100
    assert merged.frc.resolution_nm is None or merged.frc.resolution_nm > 3 * raw.frc.resolution_nm
    assert merged.molecules == pytest.approx(6000, rel=0.02)


def test_z_scores_are_errors_over_claims() -> None:
    table = pd.DataFrame({"frame": 0, "x_nm": [0.0, 1.0], "y_nm": 0.0, "uncertainty_xy_nm": [2.0, 9999.0]})
    scores = z_scores(table, np.array([0, 1]), np.array([[1.0, 4.0, 3.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(scores[0, :2], [0.5, 2.0])
    assert np.isnan(scores[0, 2])
    assert np.isnan(scores[1]).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: QualityOptions(link_distance_nm=-1),
        lambda: frc(empty(), blocks=1, rng=np.random.default_rng(0)),
        lambda: frc(empty(), pixel_nm=0, rng=np.random.default_rng(0)),
        lambda: nena(empty(), reach_nm=math.nan),
        lambda: local_precision(empty(), 0.0),
    ],
)
def test_arguments_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(InputRejected):
        make()  # type: ignore[operator]


def test_pages_of_poor_tables_are_written() -> None:
    for table in (
        empty(),
        blinking(5.0, seed=1).iloc[:1],
        blinking(5.0, seed=1).iloc[:50][["frame", "x_nm", "y_nm"]],
    ):
        page = quality_page(table, assess(table, rng=np.random.default_rng(0)), title="<poor>")
        assert "&lt;poor&gt;" in page
        assert "No precision by NeNA" in page


def test_the_verb_writes_its_page_and_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = blinking(8.0, seed=11)
    write_table(tmp_path / "locs.csv", table)
    write_table(tmp_path / "truth.csv", table.assign(x_nm=table["x_nm"] + 8.0))
    arguments = ["quality", "locs.csv", "--report", "q.html", "--truth", "truth.csv", "--json"]
    arguments = [str(tmp_path / a) if a.endswith((".csv", ".html")) else a for a in arguments]
    assert main(arguments) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["nena_nm"] == pytest.approx(8, rel=0.05)
    assert "frc_nm" in values
    assert values["truth_zscore_sd"][1] == 0
    page = (tmp_path / "q.html").read_text()
    assert page.count("<img") >= 5
    assert 'src="http' not in page
    assert main(arguments) == 3
    capsys.readouterr()
    again = [*arguments[:2], "--blocks", "20", "--seed", "5", "--json"]
    found = []
    for _ in range(2):
        assert main(again) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert (found[0]["seed"], found[0]["nena_nm"]) == (5, values["nena_nm"])
