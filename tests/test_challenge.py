"""The challenge's score by its rules, wobble there and back, density sweeps, and the verb that prints them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from smlm_bridge.challenge import add_wobble, challenge_scores, estimate_wobble, scores_by_density
from smlm_bridge.cli import main
from smlm_bridge.errors import InputRejected
from smlm_bridge.evaluate import Options, evaluate
from smlm_bridge.io.thunderstorm import write_table


def drawn(frames: int = 60, seed: int = 3) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A truth of 6400 nm and localizations with errors, misses and false ones."""
    draw = np.random.default_rng(seed)
    count = draw.poisson(12, frames)
    n = int(count.sum())
    truth = pd.DataFrame(
        {
            "frame": np.repeat(np.arange(frames), count),
            "x_nm": draw.uniform(0, 6400, n),
            "y_nm": draw.uniform(0, 6400, n),
            "z_nm": draw.uniform(-750, 750, n),
            "photons": draw.gamma(2, 1500, n),
        }
    )
    found = truth[draw.random(n) < 0.85].copy()
    found["x_nm"] += draw.normal(0, 20, len(found))
    found["y_nm"] += draw.normal(0, 20, len(found))
    found["z_nm"] += draw.normal(0, 45, len(found))
    found["photons"] *= draw.normal(1, 0.1, len(found))
    false = truth.sample(80, random_state=np.random.RandomState(0)).assign(x_nm=draw.uniform(0, 6400, 80))
    return pd.concat([found, false], ignore_index=True), truth


def by_the_book(locs: pd.DataFrame, truth: pd.DataFrame, threshold: float) -> dict[str, float]:
    """The rules of the assessment, written down as loops."""
    pairs, fp, fn = [], 0, 0
    for frame in range(int(max(locs["frame"].max(), truth["frame"].max())) + 1):
        a = locs[locs["frame"] == frame][["x_nm", "y_nm", "z_nm"]].to_numpy()
        inside = truth[truth["frame"] == frame]
        b, photons = inside[["x_nm", "y_nm", "z_nm"]].to_numpy(), inside["photons"].to_numpy()
        free_a, free_b = set(range(len(a))), set(range(len(b)))
        ignored = 0
        while free_a and free_b:
            options = [(np.linalg.norm(a[i] - b[j]), i, j) for i in free_a for j in free_b
                       if np.hypot(*(a[i] - b[j])[:2]) <= 250 and abs(a[i, 2] - b[j, 2]) <= 500]  # fmt: skip
            if not options:
                break
            _, i, j = min(options)
            free_a.remove(i)
            free_b.remove(j)
            if photons[j] > threshold:
                pairs.append(a[i] - b[j])
            else:
                ignored += 1
        fp += len(free_a)
        fn += sum(photons[j] > threshold for j in free_b)
    d = np.array(pairs)
    ji = len(d) / (len(d) + fp + fn)
    lateral, axial = np.sqrt((d[:, :2] ** 2).sum(axis=1).mean()), np.sqrt((d[:, 2] ** 2).mean())
    missed = 100 * (1 - ji)
    lateral_e, axial_e = 100 - np.hypot(missed, lateral), 100 - np.hypot(missed, 0.5 * axial)
    return {"tp": len(d), "fp": fp, "fn": fn, "jaccard": ji, "rmse_lateral_nm": lateral, "rmse_axial_nm": axial,
            "efficiency_lateral": lateral_e, "efficiency_axial": axial_e,
            "efficiency": 0.5 * (lateral_e + axial_e)}  # fmt: skip


def test_the_score_is_that_of_the_rules() -> None:
    locs, truth = drawn()
    inner = [
        t[((t[["x_nm", "y_nm"]] > 450) & (t[["x_nm", "y_nm"]] < 5950)).all(axis=1)] for t in (locs, truth)
    ]
    every, bright = challenge_scores(locs, truth)
    photons = np.sort(inner[1]["photons"].to_numpy())
    assert bright.min_photons == int(np.quantile(photons, 0.25, method="hazen"))
    for score in (every, bright):
        wanted = by_the_book(*inner, score.min_photons)
        for name, value in wanted.items():
            assert getattr(score, name) == pytest.approx(value, rel=1e-12), name
    assert bright.tp < every.tp
    assert every.photon_correlation == pytest.approx(1.0, abs=0.1)
    assert every.rmse_volume_nm == pytest.approx(
        np.hypot(every.rmse_lateral_nm or 0, every.rmse_axial_nm or 0)
    )


def test_two_dimensional_runs_ignore_z() -> None:
    locs, truth = drawn()
    flat = challenge_scores(locs.drop(columns="z_nm"), truth)[0]
    assert flat.rmse_axial_nm is flat.efficiency_axial is flat.rmse_volume_nm is None
    assert flat.efficiency == flat.efficiency_lateral


def test_the_field_must_hold_emitters() -> None:
    locs, truth = drawn()
    with pytest.raises(InputRejected, match="--field-nm"):
        challenge_scores(locs, truth, field_nm=(800.0, 800.0))
    with pytest.raises(InputRejected, match="photons"):
        challenge_scores(locs, truth.drop(columns="photons"))


def test_a_wobble_is_recovered_and_taken_out() -> None:
    locs, truth = drawn(400)
    z = np.arange(-800.0, 801.0, 10.0)
    wobble = pd.DataFrame({"z_nm": z, "dx_nm": 40 * np.sin(z / 300), "dy_nm": 25 * np.cos(z / 400) - 20})
    moved = add_wobble(locs.assign(z_nm=locs["z_nm"]), wobble)
    raw = challenge_scores(moved, truth)[0]
    clean = challenge_scores(
        moved, truth, wobble=wobble.sample(frac=1, random_state=np.random.RandomState(1))
    )[0]
    assert clean.rmse_lateral_nm is not None
    assert raw.rmse_lateral_nm is not None
    assert clean.rmse_lateral_nm < 0.8 * raw.rmse_lateral_nm
    beads = pd.DataFrame({"frame": np.arange(z.size), "x_nm": 3000.0, "y_nm": 3000.0, "z_nm": z})
    found = estimate_wobble(add_wobble(beads, wobble), beads)
    np.testing.assert_allclose(found[["z_nm", "dx_nm", "dy_nm"]], wobble, atol=1e-6)
    at_rows = add_wobble(beads, wobble)
    np.testing.assert_allclose(at_rows["x_nm"] - 3000, wobble["dx_nm"])
    for bad in (wobble.drop(columns="dx_nm"), wobble.head(0)):
        with pytest.raises(InputRejected, match="wobble"):
            add_wobble(truth, bad)
    with pytest.raises(InputRejected, match="nothing matched"):
        estimate_wobble(beads.assign(x_nm=0.0), beads)


def test_a_density_sweep_scores_groups_of_frames() -> None:
    locs, truth = drawn(200)
    options = Options(field_nm=(6400.0, 6400.0))
    sweep = scores_by_density(locs, truth, 4, options=options, field_nm=(6400.0, 6400.0))
    assert sum(part.frames for part in sweep) == truth["frame"].nunique()
    assert [p.density_um2 for p in sweep] == sorted(p.density_um2 for p in sweep)
    assert sum(p.scores.n_truth for p in sweep) == len(truth)
    first = sweep[0]
    assert 0 < first.scores.jaccard < 1
    one = scores_by_density(locs, truth, 1, options=options, field_nm=(6400.0, 6400.0))
    seen = locs[locs["frame"].isin(truth["frame"])]
    assert one[0].scores == evaluate(seen, truth, options=options)[1]
    with pytest.raises(InputRejected, match="density sweep"):
        scores_by_density(locs, truth, 0, options=options, field_nm=(1.0, 1.0))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locs, truth = drawn(80)
    z = np.arange(-800.0, 801.0, 10.0)
    wobble = pd.DataFrame({"z_nm": z, "dx_nm": 40 * np.sin(z / 300), "dy_nm": 0 * z})
    beads = pd.DataFrame({"frame": np.arange(z.size), "x_nm": 3000.0, "y_nm": 3000.0, "z_nm": z})
    names = ("locs", "truth", "beads", "bead_truth")
    for name, table in zip(
        names, (add_wobble(locs, wobble), truth, add_wobble(beads, wobble), beads), strict=True
    ):
        write_table(tmp_path / f"{name}.csv", table)
    saved = tmp_path / "wobble.csv"
    arguments = ["evaluate", str(tmp_path / "beads.csv"), str(tmp_path / "bead_truth.csv")]
    assert main([*arguments, "--save-wobble", str(saved), "--json"]) == 0
    capsys.readouterr()
    arguments = ["evaluate", str(tmp_path / "locs.csv"), str(tmp_path / "truth.csv"), "--challenge"]
    sweep = ["--wobble", str(saved), "--density-bins", "3", "--field-nm", "6400,6400"]
    assert main([*arguments, *sweep, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    every = challenge_scores(add_wobble(locs, wobble), truth, wobble=wobble)[0]
    assert values["challenge"]["all"]["tp"] == every.tp
    assert values["challenge"]["all"]["efficiency"] == pytest.approx(every.efficiency, abs=0.01)
    assert values["challenge"]["brightest_three_quarters"]["min_photons"] > 0
    assert len(values["by_density"]) == 3
    # the challenge's own files: a truth with its header, a submission without one
    official = tmp_path / "activations.csv"
    rows = truth.assign(frame=truth["frame"] + 1).reset_index()[
        ["index", "frame", "x_nm", "y_nm", "z_nm", "photons"]
    ]
    official.write_text(
        "Ground-truth,frame,xnano,ynano,znano,intensity \n" + rows.to_csv(index=False, header=False)
    )
    submission = tmp_path / "submission.csv"
    submission.write_text(rows.drop(columns="index").to_csv(index=False, header=False))
    assert main(["evaluate", str(submission), str(official), "--challenge", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["jaccard"] == values["challenge"]["all"]["jaccard"] == 1.0
    assert main([*arguments, "--field-nm", "3000,3000", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["challenge"] is None
    assert "--field-nm" in shown.err


def test_the_ground_truth_of_thunderstorms_generator_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text(
        '"frame","x [nm]","y [nm]","z [nm]","sigma1 [nm]","sigma2 [nm]","angle [deg]","intensity [photon]",'
        '"offset [photon]","bkgstd [photon]"\n'
        "1,1000.5,2000.25,-100,150,160,0,2500,100,3.2\n3,40,50,60,150,160,0,900,100,3.2\n"
    )
    found = tmp_path / "found.csv"
    write_table(found, pd.DataFrame({"frame": [0, 2], "x_nm": [1003.5, 40.0], "y_nm": [2004.25, 50.0],
                                     "z_nm": [-90.0, 60.0]}))  # fmt: skip
    assert main(["evaluate", str(found), str(truth), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["jaccard"], values["matched"]) == (1.0, 2)
    assert values["rmse_lateral_nm"] == pytest.approx(5 / np.sqrt(2))
    assert main(["evaluate", str(found), str(truth), "--min-photons", "1000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["matched"] == 1
