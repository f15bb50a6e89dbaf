"""Tracks, clusters, diffusion, axial scans: against particles and stacks of known truth."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from smlm_bridge.cli import main
from smlm_bridge.errors import InputRejected, MissingDependency
from smlm_bridge.io.thunderstorm import read_table, write_table
from smlm_bridge.locs import empty
from smlm_bridge.post.axial_scan import ScanOptions, axial_scan
from smlm_bridge.post.diffusion import fit_diffusion, mean_squared_displacement
from smlm_bridge.post.tracks import NONE, cluster, step_lengths_nm, track, trajectories
from smlm_bridge.report.tracks import tracks_page

D, FRAME_S, ERROR_NM = 0.05, 0.02, 20.0


def moving(
    seed: int, *, particles: int = 120, frames: int = 40, exponent: float | None = None
) -> pd.DataFrame:
    """Particles that diffuse freely, seen during the whole frame time, or jump about a place (exponent 0)."""
    draw = np.random.default_rng(seed)
    fine = 10
    start = draw.uniform(0, 20000, (particles, 1, 3))
    if exponent == 0:
        path = np.broadcast_to(start, (particles, frames, 3))
    else:
        step = draw.normal(0, 1e3 * np.sqrt(2 * D * FRAME_S / fine), (particles, frames * fine, 3))
        path = np.cumsum(step, axis=1).reshape(particles, frames, fine, 3).mean(axis=2) + start
    place = (path + draw.normal(0, ERROR_NM, path.shape)).reshape(-1, 3)
    return pd.DataFrame(
        {
            "frame": np.tile(np.arange(frames), particles),
            "x_nm": place[:, 0],
            "y_nm": place[:, 1],
            "z_nm": place[:, 2],
            "particle": np.repeat(np.arange(particles), frames),
        }
    )


@pytest.fixture
def trackpy() -> None:
    pytest.importorskip("trackpy", reason="the extra 'tracks' is not installed")


@pytest.mark.usefixtures("trackpy")
@pytest.mark.parametrize("dimensions", [2, 3])
def test_tracks_are_the_particles(dimensions: int) -> None:
    table = moving(1, particles=40).sample(frac=1, random_state=0, ignore_index=True)
    number = track(table, 350, dimensions=dimensions)
    pairs = table.groupby(number)["particle"].nunique()
    assert (pairs == 1).mean() > 0.9
    assert number.max() + 1 == pytest.approx(40, abs=2)
    # Numbered in the order of first detection.
    assert table["frame"].groupby(number).min().is_monotonic_increasing


@pytest.mark.usefixtures("trackpy")
def test_gaps_end_a_track_or_are_bridged() -> None:
    table = pd.DataFrame({"frame": [0, 1, 3, 4, 1000], "x_nm": [0.0, 5, 10, 15, 15], "y_nm": 0.0})
    np.testing.assert_array_equal(track(table, 20), [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(track(table, 20, gap_frames=1), [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(track(table, 20, gap_frames=1, min_frames=2), [0, 0, 0, 0, NONE])
    np.testing.assert_array_equal(track(table, 4), [0, 1, 2, 3, 4])


@pytest.mark.usefixtures("trackpy")
def test_steps_along_z_have_their_own_limit() -> None:
    table = pd.DataFrame({"frame": [0, 1], "x_nm": 0.0, "y_nm": 0.0, "z_nm": [0.0, 100.0]})
    assert track(table, 50, dimensions=3).max() == 1
    assert track(table, 50, max_step_z_nm=150, dimensions=3).max() == 0
    assert track(table, 50).max() == 0


@pytest.mark.usefixtures("trackpy")
def test_bad_arguments_and_hopeless_densities_are_refused() -> None:
    table = moving(2, particles=3, frames=3)
    for wrong in (
        {"max_step_nm": 0.0},
        {"max_step_nm": 10, "gap_frames": -1},
        {"max_step_nm": 10, "dimensions": 4},
    ):
        with pytest.raises(InputRejected):
            track(table, **wrong)
    with pytest.raises(InputRejected, match="dimensions"):
        track(table.drop(columns="z_nm"), 10, dimensions=3)
    draw = np.random.default_rng(0)
    x, y = draw.uniform(0, 100, (2, 400))
    dense = pd.DataFrame({"frame": np.repeat([0, 1], 200), "x_nm": x, "y_nm": y})
    with pytest.raises(InputRejected, match="smaller max_step_nm"):
        track(dense, 90)
    assert track(empty(), 10).size == 0


def test_without_trackpy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trackpy", None)
    monkeypatch.delitem(__import__("sys").modules, "trackpy.linking", raising=False)
    with pytest.raises(MissingDependency, match="tracks"):
        track(moving(1, particles=1, frames=2), 10)


def test_clusters_are_the_places() -> None:
    pytest.importorskip("sklearn", reason="the extra 'tracks' is not installed")
    table = moving(3, particles=15, frames=30, exponent=0)
    lonely = pd.DataFrame({"frame": [0], "x_nm": [90000.0], "y_nm": [0.0], "z_nm": [0.0], "particle": [99]})
    table = pd.concat([table, lonely], ignore_index=True)
    number = cluster(table, 60, dimensions=3)
    assert number[-1] == NONE
    kept = number != NONE
    assert kept.mean() > 0.95
    assert number.max() == 14
    assert len(set(zip(number[kept], table["particle"][kept], strict=True))) == 15
    with pytest.raises(InputRejected):
        cluster(table, -1)


def test_trajectories_say_how_far() -> None:
    table = pd.DataFrame({"frame": [2, 0, 1, 5], "x_nm": [3.0, 0, 3, 9], "y_nm": [4.0, 0, 0, 9], "z_nm": 0.0})
    rows = trajectories(table, np.array([0, 0, 0, NONE]))
    assert len(rows) == 1
    row = rows.iloc[0]
    assert (row["first_frame"], row["last_frame"], row["detections"]) == (0, 2, 3)
    assert row["path_nm"] == pytest.approx(7)
    assert row["displacement_nm"] == pytest.approx(5)
    assert row["gyration_radius_nm"] == pytest.approx(np.sqrt(np.var([0, 3, 3]) + np.var([0, 0, 4])))
    np.testing.assert_allclose(step_lengths_nm(table, np.array([0, 0, 0, NONE])), [3, 4])
    assert trajectories(table, np.full(4, NONE)).empty


def test_msd_is_the_mean_over_all_pairs() -> None:
    table = moving(4, particles=5, frames=7)
    table = table[~((table["frame"] == 3) & (table["particle"] == 2))].reset_index(drop=True)  # a gap
    number = table["particle"].to_numpy()
    msd = mean_squared_displacement(table, number, frame_s=0.5, lags=4, rng=np.random.default_rng(0))
    assert msd is not None
    for lag in range(1, 5):
        both = table.merge(table.assign(frame=table["frame"] - lag), on=["particle", "frame"])
        squared = (both["x_nm_x"] - both["x_nm_y"]) ** 2 + (both["y_nm_x"] - both["y_nm_y"]) ** 2
        assert msd.msd_um2[lag - 1] == pytest.approx(squared.mean() * 1e-6)
        assert msd.pairs[lag - 1] == len(both)
    np.testing.assert_allclose(msd.lag_s, [0.5, 1, 1.5, 2])
    assert (msd.low_um2 <= msd.msd_um2).all()
    assert (msd.msd_um2 <= msd.high_um2).all()


def test_the_diffusion_lies_within_its_confidence() -> None:
    inside = alpha = 0
    for seed in range(20):
        table = moving(100 + seed)
        dimensions = 2 + seed % 2
        msd = mean_squared_displacement(
            table,
            table["particle"].to_numpy(),
            frame_s=FRAME_S,
            dimensions=dimensions,
            rng=np.random.default_rng(seed),
        )
        assert msd is not None
        found = fit_diffusion(msd)
        low, high = found.interval_um2_s
        inside += low <= D <= high
        assert found.alpha_interval is not None
        alpha += found.alpha_interval[0] <= 1 <= found.alpha_interval[1]
        assert high - low < 0.2 * D
        assert found.error_nm == pytest.approx(ERROR_NM, rel=0.15)
    assert inside >= 17  # of 20 at 95 %: fewer have a chance of 1.6 %
    assert alpha >= 17


def test_particles_that_stay_do_not_diffuse() -> None:
    table = moving(5, exponent=0)
    msd = mean_squared_displacement(
        table, table["particle"].to_numpy(), frame_s=FRAME_S, rng=np.random.default_rng(0)
    )
    assert msd is not None
    found = fit_diffusion(msd, exposure=0)
    assert found.interval_um2_s[0] <= 0 <= found.interval_um2_s[1]
    assert found.error_nm == pytest.approx(ERROR_NM, rel=0.05)


def test_too_few_tracks_have_no_msd() -> None:
    table = moving(6, particles=1)
    none = {"frame_s": 0.1, "rng": np.random.default_rng(0)}
    assert mean_squared_displacement(table, table["particle"].to_numpy(), **none) is None
    assert mean_squared_displacement(empty(), np.zeros(0, np.int64), **none) is None
    with pytest.raises(InputRejected):
        mean_squared_displacement(table, table["particle"].to_numpy(), frame_s=0, rng=none["rng"])
    assert "0 tracks" in tracks_page(table, np.full(len(table), NONE), title="none")


@pytest.mark.usefixtures("trackpy")
def test_the_verb_writes_tracks_trajectories_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "locs.csv", moving(7).drop(columns="particle"))
    names = {"-o": "out.csv", "--trajectories": "rows.csv", "--report": "page.html"}
    outputs = [part for flag, name in names.items() for part in (flag, str(tmp_path / name))]
    common = ["track", str(tmp_path / "locs.csv"), "--json"]
    assert main([*common, *outputs, "--max-step-nm", "400", "--frame-ms", "20"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["tracks"] == pytest.approx(120, abs=4)
    low, high = values["diffusion_interval_um2_s"]
    assert low < D < high
    table = read_table(tmp_path / "out.csv")
    assert table["track"].min() == 1
    assert table["track"].nunique() == values["tracks"]
    assert len(pd.read_csv(tmp_path / "rows.csv")) == values["tracks"]
    assert (tmp_path / "page.html").read_text().count("<img") == 3
    assert main([*common, "-o", str(tmp_path / "no.csv")]) == 2
    assert "--max-step-nm" in capsys.readouterr().err
    assert main([*common, "-o", str(tmp_path / "cut.csv"), "--max-step-nm", "80"]) == 0
    assert "cut off" in capsys.readouterr().err


def focal_stack(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A focal stack (counts) of 25 emitters, 100 nm steps, 110 nm pixels, and their x, y, focus."""
    draw = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2) * 28 + 24
    xyz = np.column_stack([(grid + draw.uniform(-3, 3, grid.shape)) * 110.0, draw.uniform(800, 3200, 25)])
    row, column = np.mgrid[:160, :160] + 0.5
    mean = np.full((41, 160, 160), 10.0)
    for number, image in enumerate(mean):
        for x, y, z in xyz:
            width = 1.2 * np.sqrt(1 + ((number * 100.0 - z) / 400) ** 2)
            away = (column - x / 110) ** 2 + (row - y / 110) ** 2
            image += 3000 * np.exp(-away / (2 * width**2)) / (2 * np.pi * width**2)
    return draw.poisson(mean).astype(np.uint16), xyz


def test_an_axial_scan_finds_every_emitter_in_focus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack, xyz = focal_stack(8)
    tifffile.imwrite(tmp_path / "scan.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    truth = pd.DataFrame(xyz * [1, 1, 0.8], columns=["x_nm", "y_nm", "z_nm"]).assign(frame=0)
    write_table(tmp_path / "truth.csv", truth)
    scan = ["axial-scan", str(tmp_path / "scan.tif"), "-o", str(tmp_path / "reference.csv"), "--json"]
    scan += ["--z-step-nm", "100", "--index-factor", "0.8", "--pixel-nm", "110"]
    assert main(scan) == 0
    assert json.loads(capsys.readouterr().out)["emitters"] == 25
    assert main(["evaluate", str(tmp_path / "reference.csv"), str(tmp_path / "truth.csv"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["jaccard"] == 1
    assert scores["rmse_lateral_nm"] < 8
    assert scores["rmse_axial_nm"] < 15
    # The scan the other way round, from the other end, is the same sample.
    tifffile.imwrite(tmp_path / "back.tif", stack[::-1], imagej=True, metadata={"axes": "ZYX"})
    back = [part.replace("scan.tif", "back.tif") for part in scan]
    back[back.index("100")] = "-100"
    assert main([*back, "--overwrite", "--first-focus-nm", "4000"]) == 0
    assert main(["evaluate", str(tmp_path / "reference.csv"), str(tmp_path / "truth.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rmse_axial_nm"] < 15


def test_an_axial_scan_refuses_what_is_none() -> None:
    stack = np.ones((5, 20, 20))
    known = {"pixel_nm": 100.0, "z_step_nm": 100.0}
    assert axial_scan(stack, empty(), **known).empty
    for wrong in ({"z_step_nm": 0.0}, {"pixel_nm": -1.0}, {"first_focus_nm": np.inf}):
        with pytest.raises(InputRejected):
            axial_scan(stack, empty(), **{**known, **wrong})
    with pytest.raises(InputRejected, match="three slices"):
        axial_scan(stack[:2], empty(), **known)
    late = pd.DataFrame({"frame": [5], "x_nm": [1.0], "y_nm": [1.0]})
    with pytest.raises(InputRejected, match="slice 5"):
        axial_scan(stack, late, **known)
    with pytest.raises(InputRejected):
        ScanOptions(index_factor=0)
