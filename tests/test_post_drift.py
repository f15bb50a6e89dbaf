"""Drift: what was put in comes out, halves are compared, files go there and back, bad tables are named."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smlm_bridge.cli import main
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.drift import from_thunderstorm_json, load_drift, save_drift, to_thunderstorm_json
from smlm_bridge.io.thunderstorm import read_table, write_table
from smlm_bridge.post.drift import Drift, DriftOptions, apply_drift, estimate_drift
from smlm_bridge.report.drift import drift_plot_png

FRAMES = 1500
FIELD_NM = 5000.0


def true_drift(span_nm: float = 200.0, frames: int = FRAMES) -> np.ndarray:
    """(frames, 3): a trend and a slow wave, zero in the first frame."""
    t = np.linspace(0, 1, frames)
    x = span_nm * t + 0.1 * span_nm * np.sin(6 * t)
    y = -0.6 * span_nm * t**2 + 0.2 * span_nm * np.sin(4 * t)
    return np.stack([x, y, 0.7 * span_nm * t], axis=1)


def table(
    drift: np.ndarray, *, per_frame: int = 12, molecules: int = 250, z: bool = True, seed: int = 0
) -> pd.DataFrame:
    """Molecules that blink at random, 8 nm precise laterally and 20 nm in z."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(300, FIELD_NM - 300, (molecules, 3)) * (1, 1, 0.1)
    frame = np.repeat(np.arange(len(drift)), per_frame)
    xyz = place[rng.integers(molecules, size=frame.size)] + drift[frame]
    xyz += rng.normal(0, 1, xyz.shape) * (8, 8, 20)
    locs = pd.DataFrame({"frame": frame, "x_nm": xyz[:, 0], "y_nm": xyz[:, 1]})
    return locs.assign(z_nm=xyz[:, 2]) if z else locs


def error(found: Drift, truth: np.ndarray) -> np.ndarray:
    """Rms per axis, means removed."""
    axes = [found.x_nm, found.y_nm] + ([] if found.z_nm is None else [found.z_nm])
    return (np.stack(axes, axis=1) - truth[found.frame, : len(axes)]).std(axis=0)


def drift_of(values: np.ndarray) -> Drift:
    return Drift(np.arange(len(values)), values[:, 0], values[:, 1], z_nm=values[:, 2])


@pytest.fixture(scope="module")
def moved() -> pd.DataFrame:
    return table(true_drift())


@pytest.fixture(scope="module")
def found(moved: pd.DataFrame) -> Drift:
    return estimate_drift(moved)


def test_aim_finds_x_y_and_z(found: Drift) -> None:
    assert (error(found, true_drift())[:2] < 1.2).all()
    assert error(found, true_drift())[2] < 3.0
    assert found.engine == "comet"
    assert found.warnings == ()
    assert found.x_nm[0] == found.y_nm[0] == 0.0
    lateral = np.hypot(*true_drift()[:, :2].T).max()
    assert found.max_drift_nm == pytest.approx(lateral, abs=5)


def test_split_half_tells_the_size_of_the_error(found: Drift) -> None:
    assert found.split_half_rms_nm is not None
    assert found.split_half_z_rms_nm is not None
    real = float(np.sqrt((error(found, true_drift())[:2] ** 2).mean()))
    assert real / 2 < found.split_half_rms_nm < 6 * real


def test_rcc_agrees(moved: pd.DataFrame) -> None:
    result = estimate_drift(moved, DriftOptions(engine="rcc", segment_frames=150))
    assert result.engine == "rcc"
    assert (error(result, true_drift())[:2] < 4.0).all()


def test_aim_without_pairs_agrees(moved: pd.DataFrame) -> None:
    result = estimate_drift(moved, DriftOptions(engine="aim"))
    assert result.engine == "aim"
    assert (error(result, true_drift())[:2] < 1.2).all()
    assert error(result, true_drift())[2] < 3.0


def test_auto_takes_the_pairs_of_a_small_table_and_they_are_better() -> None:
    truth = true_drift(300.0, 4000)
    few = table(truth, per_frame=2, molecules=900)
    auto, aim = estimate_drift(few), estimate_drift(few, DriftOptions(engine="aim"))
    assert (auto.engine, aim.engine) == ("comet", "aim")
    assert DriftOptions().chosen(50_000) == "aim"
    assert (error(auto, truth)[:2] < error(aim, truth)[:2]).all()
    assert error(auto, truth)[2] < 3.0
    assert auto.warnings == ()


def test_z_that_is_not_known_is_said() -> None:
    """Sparse: in z the pairs say nothing, while x and y may still be found."""
    rng = np.random.default_rng(2)
    locs = table(true_drift(), per_frame=2, molecules=100)
    locs["z_nm"] = rng.uniform(-3000, 3000, len(locs))
    result = estimate_drift(locs)
    assert result.z_nm is None or any("in z" in text for text in result.warnings)


def test_drift_that_is_quicker_than_the_segments_is_told() -> None:
    t = np.linspace(0, 1, 12_000)
    truth = np.stack([80 * np.sin(40 * t), 80 * np.cos(40 * t) - 80, 0 * t], axis=1)
    locs = table(truth, per_frame=1, molecules=60, z=False)
    few, fewer = (estimate_drift(locs.iloc[::step]) for step in (2, 8))
    assert error(few, truth)[0] < error(fewer, truth)[0]
    assert any("too long for this drift" in text or "segments only" in text for text in fewer.warnings)
    slow = estimate_drift(locs.iloc[::2], DriftOptions(segment_frames=700))
    assert error(slow, truth)[0] > 5
    assert any("too long for this drift" in text for text in slow.warnings)


@pytest.mark.parametrize("period", [7, 35])
def test_a_swing_within_the_segments_is_told(period: int) -> None:
    """Halves agree on it; what the localizations of a frame share does not."""
    swing = np.zeros((FRAMES, 3))
    swing[:, 0] = 20 * np.sin(2 * np.pi * np.arange(FRAMES) / period)
    result = estimate_drift(
        table(true_drift() + swing, z=False), DriftOptions(engine="aim", segment_frames=100)
    )
    rms = float(np.sqrt((swing[:, :2] ** 2).mean()))
    assert result.split_half_rms_nm is not None
    assert result.split_half_rms_nm < 3
    assert result.residual_rms_nm == pytest.approx(rms, rel=0.15)
    assert [text for text in result.warnings if "still move together" in text]


@pytest.mark.parametrize("engine", ["aim", "comet", "rcc", "fiducials"])
def test_an_ordinary_drift_raises_no_alarm_of_a_swing(engine: str) -> None:
    found = [beads(true_drift(), [(900, 900), (4100, 1200), (2500, 3900)], seed) for seed in range(2)]
    found += [table(true_drift(), per_frame=per_frame, z=False, seed=per_frame) for per_frame in (2, 12)]
    for locs in found[:2] if engine == "fiducials" else found[2:]:
        result = estimate_drift(locs, DriftOptions(engine=engine))
        assert result.residual_rms_nm is None or result.residual_rms_nm < 4
        assert not any("together" in text for text in result.warnings)


def test_a_swing_of_beads_is_told() -> None:
    truth = true_drift(frames=4000)
    truth[:, 1] += 25 * np.sin(2 * np.pi * np.arange(4000) / 9)
    result = estimate_drift(beads(truth, [(900, 900), (4100, 1200), (2500, 3900)]), DriftOptions("fiducials"))
    assert result.residual_rms_nm == pytest.approx(25 / 2, rel=0.15)
    assert any("still move together" in text for text in result.warnings)


# ---- fiducials


def beads(truth: np.ndarray, places: list[tuple[float, float]], seed: int = 5) -> pd.DataFrame:
    """Beads seen in nine frames of ten, 5 nm precise."""
    rng = np.random.default_rng(seed)
    parts = []
    for x, y in places:
        frame = np.flatnonzero(rng.random(len(truth)) < 0.9)
        xyz = np.array([x, y, 100.0]) + truth[frame] + rng.normal(0, 1, (frame.size, 3)) * (5, 5, 12)
        parts.append(pd.DataFrame({"frame": frame, "x_nm": xyz[:, 0], "y_nm": xyz[:, 1], "z_nm": xyz[:, 2]}))
    return pd.concat(parts)


BEADS = [(1000.0, 900.0), (4200.0, 1300.0), (2500.0, 4300.0)]


def test_fiducials_are_found_among_blinking_molecules() -> None:
    truth = true_drift(400.0)
    locs = pd.concat([table(truth, per_frame=3, molecules=400), beads(truth, BEADS)])
    result = estimate_drift(locs, DriftOptions(engine="fiducials"))
    assert result.engine == "fiducials"
    assert (error(result, truth) < (1.0, 1.0, 2.0)).all()
    assert result.warnings == ()
    assert result.split_half_rms_nm is not None
    assert result.split_half_rms_nm < 3


def test_fiducials_are_taken_where_they_are_given() -> None:
    truth = true_drift(400.0)
    moving = beads(truth * np.array([-1.0, 1.0, 1.0]), [(3500.0, 3000.0)], seed=8)
    locs = pd.concat([table(truth, per_frame=3, molecules=400), beads(truth, BEADS[:2]), moving])
    # Given a little off, as read from a picture.
    places = tuple((x + 60, y - 40) for x, y in BEADS[:2])
    result = estimate_drift(locs, DriftOptions(fiducials_nm=places, fiducial_radius_nm=900.0))
    assert result.engine == "fiducials"
    assert result.warnings == ()
    near = estimate_drift(locs, DriftOptions(fiducials_nm=places, fiducial_radius_nm=250.0))  # they leave it
    assert any("no fiducial" in text for text in near.warnings)
    assert np.abs(near.x_nm).max() < 2 * np.abs(truth[:, 0]).max()  # held, not carried on
    assert (error(result, truth) < (1.2, 1.2, 2.5)).all()
    with pytest.raises(InputRejected, match="no fiducial within 500 nm of x 9000"):
        estimate_drift(locs, DriftOptions(fiducials_nm=((9000.0, 9000.0),)))


def test_a_bead_that_goes_its_own_way_is_left_out_and_two_that_differ_are_told() -> None:
    truth = true_drift(300.0)
    loose = beads(truth * np.array([-1.0, 1.0, 1.0]), [(3500.0, 3000.0)], seed=8)
    engine = DriftOptions(engine="fiducials")
    four = estimate_drift(pd.concat([beads(truth, BEADS), loose]), engine)
    assert (error(four, truth)[:2] < 1.2).all()
    two = estimate_drift(pd.concat([beads(truth, BEADS[:1]), loose]), engine)
    assert any("disagree" in text for text in two.warnings)
    one = estimate_drift(loose, engine)
    assert any("one fiducial" in text for text in one.warnings)


def test_without_fiducials_the_engine_says_what_to_do(moved: pd.DataFrame) -> None:
    with pytest.raises(InputRejected, match=r"no fiducial was found.*aim"):
        estimate_drift(moved, DriftOptions(engine="fiducials"))
    with pytest.raises(InputRejected, match="for the engine fiducials, not rcc"):
        DriftOptions(engine="rcc", fiducials_nm=((1.0, 2.0),))
    with pytest.raises(InputRejected, match="fiducial_radius_nm"):
        DriftOptions(fiducial_radius_nm=0.0)


# ----


def test_after_correction_no_drift_is_left(moved: pd.DataFrame, found: Drift) -> None:
    left = estimate_drift(apply_drift(moved, found))
    assert np.abs([left.x_nm.std(), left.y_nm.std()]).max() < 0.5
    assert left.z_nm is not None
    assert left.z_nm.std() < 1.0


def test_a_known_drift_adds_to_the_estimate(moved: pd.DataFrame, found: Drift) -> None:
    more = true_drift(-90.0)
    again = estimate_drift(apply_drift(moved, drift_of(-more)))
    change = np.stack([again.x_nm - found.x_nm, again.y_nm - found.y_nm], axis=1)
    assert ((change - more[:, :2]).std(axis=0) < 0.6).all()


def test_a_jump_farther_than_the_window_is_followed() -> None:
    truth = true_drift(50.0)
    truth[FRAMES // 2 :, 0] += 250.0
    result = estimate_drift(table(truth, z=False), DriftOptions(segment_frames=50))
    away = np.abs(np.arange(FRAMES) - FRAMES // 2) > 100  # the segments beside the jump
    wrong = result.x_nm - truth[:, 0]
    assert np.ptp(wrong[away]) < 10
    assert result.warnings == ()


@pytest.mark.parametrize("engine", ["auto", "aim"])
def test_a_jump_is_not_smoothed(engine: str) -> None:
    truth = true_drift(50.0)
    truth[FRAMES // 2 :, :2] += (120.0, -160.0)
    result = estimate_drift(table(truth, per_frame=14), DriftOptions(engine=engine))  # type: ignore[arg-type]
    away = np.abs(np.arange(FRAMES) - FRAMES // 2) > 40
    assert np.ptp((result.x_nm - truth[:, 0])[away]) < 10
    assert np.ptp((result.y_nm - truth[:, 1])[away]) < 10


def test_molecules_seen_once_are_not_corrected_in_silence() -> None:
    rng = np.random.default_rng(3)
    locs = pd.DataFrame(
        {
            "frame": np.repeat(np.arange(1000), 3),
            "x_nm": rng.uniform(0, 20_000, 3000),
            "y_nm": rng.uniform(0, 20_000, 3000),
        }
    )
    assert any("disagree" in text or "no match" in text for text in estimate_drift(locs).warnings)


def test_rows_in_any_order_and_without_z_give_the_same(moved: pd.DataFrame) -> None:
    flat = moved.drop(columns="z_nm")
    mixed = flat.sample(frac=1, random_state=np.random.RandomState(0))
    a, b = estimate_drift(flat), estimate_drift(mixed)
    assert a.z_nm is None
    assert a.split_half_z_rms_nm is None
    np.testing.assert_allclose(a.x_nm, b.x_nm, atol=1e-3)
    corrected = apply_drift(mixed, b)
    assert list(corrected.columns) == ["frame", "x_nm", "y_nm"]
    assert list(corrected["frame"]) == list(mixed["frame"])


def test_the_seed_repeats_and_the_input_is_kept(moved: pd.DataFrame, found: Drift) -> None:
    before = moved.copy()
    again = estimate_drift(moved)
    apply_drift(moved, again)
    pd.testing.assert_frame_equal(moved, before)
    assert again.split_half_rms_nm == found.split_half_rms_nm
    assert estimate_drift(moved, DriftOptions(seed=1)).split_half_rms_nm != found.split_half_rms_nm


def test_frames_without_localizations_are_bridged() -> None:
    truth = true_drift()
    locs = table(truth, z=False)
    locs = locs[(locs["frame"] < 500) | (locs["frame"] > 800)]
    result = estimate_drift(locs)
    assert result.frame.size == FRAMES
    seen = (result.frame < 500) | (result.frame > 800)
    wrong = np.stack([result.x_nm, result.y_nm], axis=1)[seen] - truth[seen, :2]
    assert (wrong.std(axis=0) < 1.5).all()


def test_one_frame_has_no_drift() -> None:
    locs = table(np.zeros((1, 3)), per_frame=300)
    result = estimate_drift(locs)
    assert result.frame.tolist() == [0]
    assert result.max_drift_nm == 0.0
    assert "one segment" in result.warnings[0]


@pytest.mark.parametrize("rows", [0, 1, 99])
def test_too_few_localizations_are_refused(moved: pd.DataFrame, rows: int) -> None:
    with pytest.raises(InputRejected, match=f"^{rows} localizations hold no drift"):
        estimate_drift(moved.iloc[:rows])


def test_a_stray_localization_is_named() -> None:
    locs = table(np.zeros((50, 3)), z=False)
    locs.loc[0, ["x_nm", "y_nm"]] = 1e7
    with pytest.raises(InputRejected, match="stray"):
        estimate_drift(locs)


def test_wrong_options_and_wrong_drifts_are_refused() -> None:
    with pytest.raises(InputRejected, match="segment_frames"):
        DriftOptions(segment_frames=0)
    with pytest.raises(InputRejected, match="engine 'best'"):
        DriftOptions(engine="best")  # type: ignore[arg-type]
    with pytest.raises(InputRejected, match="consecutive"):
        Drift(np.array([0, 2]), np.zeros(2), np.zeros(2))
    with pytest.raises(InputRejected, match="finite"):
        Drift(np.array([0, 1]), np.array([0, np.nan]), np.zeros(2))


@settings(max_examples=25, deadline=None)
@given(
    first=st.integers(0, 5),
    values=st.lists(st.tuples(*[st.floats(-500, 500)] * 3), min_size=1, max_size=40),
)
def test_applying_a_drift_and_its_opposite_changes_nothing(
    first: int, values: list[tuple[float, float, float]]
) -> None:
    x, y, z = np.array(values, dtype=np.float64).T
    frame = np.arange(first, first + len(values))
    locs = pd.DataFrame({"frame": np.arange(50), "x_nm": 1.0, "y_nm": 2.0, "z_nm": 3.0})
    there = apply_drift(locs, Drift(frame, x, y, z_nm=z))
    back = apply_drift(there, Drift(frame, -x, -y, z_nm=-z))
    np.testing.assert_allclose(back.to_numpy(), locs.to_numpy(), atol=1e-9)
    assert there["x_nm"].iloc[0] == pytest.approx(1.0 - x[0])  # held before its first frame
    assert there["z_nm"].iloc[-1] == pytest.approx(3.0 - z[-1])  # and after its last


# ---- ThunderSTORM's JSON


def test_json_there_and_back(found: Drift, tmp_path: Path) -> None:
    path = tmp_path / "drift.json"
    save_drift(path, found)
    back = load_drift(path)
    assert (back.frame == found.frame).all()
    for name in ("x_nm", "y_nm", "z_nm"):
        np.testing.assert_allclose(getattr(back, name), getattr(found, name), atol=2e-3)
    for name in ("engine", "max_drift_nm", "split_half_rms_nm", "split_half_z_rms_nm", "warnings"):
        assert getattr(back, name) == getattr(found, name)


def test_json_is_what_thunderstorm_evaluates(found: Drift) -> None:
    content = json.loads(json.dumps(to_thunderstorm_json(found)))
    function = content["xFunction"]
    assert (content["minFrame"], content["maxFrame"], content["units"]) == (1, FRAMES, "NANOMETER")
    assert function["n"] == len(function["polynomials"]) == len(function["knots"]) - 1
    assert function["knots"][0] <= 1
    assert function["knots"][-1] >= FRAMES  # ThunderSTORM throws outside the knots
    frame = 778  # counted from 1
    index = np.searchsorted(function["knots"], frame, side="right") - 1
    coefficients = function["polynomials"][index]["coefficients"]
    value = sum(c * (frame - function["knots"][index]) ** k for k, c in enumerate(coefficients))
    assert value == pytest.approx(found.x_nm[frame - 1], abs=2e-3)


def test_a_single_frame_and_a_jagged_drift_survive_json() -> None:
    one = Drift(np.array([4]), np.array([1.5]), np.array([-2.0]))
    assert from_thunderstorm_json(to_thunderstorm_json(one)).x_nm.tolist() == [1.5]
    jagged = np.random.default_rng(0).normal(0, 30, (40, 2))
    drift = Drift(np.arange(40), jagged[:, 0], jagged[:, 1])
    back = from_thunderstorm_json(to_thunderstorm_json(drift))
    np.testing.assert_allclose(back.y_nm, drift.y_nm, atol=2e-3)


def test_a_drift_of_thunderstorm_in_pixels_needs_the_pixel() -> None:
    line = {"knots": [1.0, 3.0], "polynomials": [{"coefficients": [0.0, 0.25]}], "n": 1}
    content = {"xFunction": line, "yFunction": line, "minFrame": 1, "maxFrame": 3, "units": "PIXEL"}
    assert from_thunderstorm_json(content, pixel_nm=100.0).x_nm.tolist() == [0.0, 25.0, 50.0]
    with pytest.raises(InputRejected, match="--pixel-nm"):
        from_thunderstorm_json(content)


@pytest.mark.parametrize(
    "text", ["not json", "[]", "{}", '{"units": "NANOMETER"}', '{"units": "furlong", "minFrame": 1}']
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InputRejected):
        load_drift(path)
    with pytest.raises(InputRejected, match="cannot be read"):
        load_drift(tmp_path / "missing.json")


# ---- the verb and its picture


def test_the_verb_corrects_saves_draws_and_applies(
    moved: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output, saved, plot = (tmp_path / n for n in ("a.csv", "b.csv", "d.json", "d.png"))
    write_table(source, moved)
    arguments = ["drift", str(source), "-o", str(output), "--save", str(saved), "--plot", str(plot), "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["engine"] == "comet"
    assert 0 < result["split_half_rms_nm"] < 5
    assert result["max_drift_nm"] > 150
    assert result["z_corrected"] is True
    assert plot.read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "c.csv"
    assert main(["drift", str(source), "-o", str(again), "--apply", str(saved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_drift_nm"] == result["max_drift_nm"]
    assert (tmp_path / "c.drift.png").read_bytes().startswith(b"\x89PNG")  # always drawn
    first, second = read_table(output), read_table(again)
    np.testing.assert_allclose(first["x_nm"], second["x_nm"], atol=5e-3)
    assert np.abs(first["x_nm"] - moved["x_nm"]).max() > 100


def test_the_verb_refuses_what_cannot_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.csv"
    write_table(source, table(np.zeros((3, 3))))
    output = tmp_path / "b.csv"
    assert main(["drift", str(source)]) == 2
    assert "nothing would be written" in capsys.readouterr().err
    assert main(["drift", str(source), "-o", str(output), "--engine", "thunderstorm"]) == 2
    assert main(["drift", str(source), "-o", str(output)]) == 3
    assert "36 localizations" in capsys.readouterr().err
    assert not output.exists()


def test_the_verb_takes_beads_by_their_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = true_drift(300.0, 600)
    source, output = tmp_path / "a.csv", tmp_path / "b.parquet"
    write_table(source, pd.concat([beads(truth, BEADS[:2]), table(truth, per_frame=1)]))
    places = [f"--fiducial={x:g},{y:g}" for x, y in BEADS[:2]]
    assert main(["drift", str(source), "-o", str(output), *places, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["engine"], result["plot"]) == ("fiducials", str(tmp_path / "b.drift.png"))
    assert output.exists()
    assert main(["drift", str(source), "-o", str(output), "--overwrite", "--fiducial", "5", "--json"]) == 2
    assert "X,Y" in capsys.readouterr().err


def test_a_drift_without_z_or_check_is_drawn() -> None:
    drift = Drift(np.arange(3), np.arange(3.0), np.zeros(3), warnings=("look at $this_",))
    assert drift_plot_png(drift).startswith(b"\x89PNG")
