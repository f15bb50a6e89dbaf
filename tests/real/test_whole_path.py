"""The whole path on real microscope images and on the published simulator's frames, with the shipped models."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from smlm_bridge.cli import main
from smlm_bridge.io.shipped import shipped_names
from smlm_bridge.io.thunderstorm import read_table

pytestmark = pytest.mark.real

REPOSITORY = Path(__file__).parents[2]
Cli = Callable[[Sequence[object]], dict[str, Any]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a verb and return its JSON object."""

    def run(words: Sequence[object]) -> dict[str, Any]:
        code = main([str(word) for word in words] + ["--json", "--progress", "none", "--threads", "2"])
        out = capsys.readouterr()
        assert code == 0, out.err
        result: dict[str, Any] = json.loads(out.out)
        return result

    return run


@pytest.fixture(scope="module")
def shipped() -> None:
    """Skip where the weights are not there, e.g. in a partial checkout."""
    pairs = {f"telomeres_{pair}" for pair in ("tetrapod_edof", "crlb", "learned")}
    missing = {"tetrapod_telomere", "tetrapod_storm", "telomeres_tetrapod", *pairs} - set(shipped_names())
    if missing:
        pytest.skip(f"the shipped models {sorted(missing)} are not in this tree")


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(
    ("emitters", "jaccard", "lateral_nm", "axial_nm"),
    [(10, 0.92, 27.0, 32.0), (20, 0.94, None, None), (35, 0.82, None, None)],
)
def test_tetrapod_telomere_reaches_the_bars(
    cli: Cli,
    shared_data: Path,
    tmp_path: Path,
    emitters: int,
    jaccard: float,
    lateral_nm: float | None,
    axial_nm: float | None,
) -> None:
    frames = shared_data / "simulated" / f"tetrapod_telomere_N{emitters:03d}.tif"
    cli(["localize", frames, "--model", "tetrapod_telomere", "-o", tmp_path / "l.csv"])
    scores = cli(["evaluate", tmp_path / "l.csv", frames.with_suffix(".csv")])
    assert scores["jaccard"] >= jaccard
    if lateral_nm is not None and axial_nm is not None:
        assert scores["rmse_lateral_nm"] <= lateral_nm
        assert scores["rmse_axial_nm"] <= axial_nm


@pytest.mark.usefixtures("shipped")
def test_tetrapod_storm_reaches_the_bar(cli: Cli, shared_data: Path, tmp_path: Path) -> None:
    frames = shared_data / "simulated" / "tetrapod_storm_N010.tif"
    cli(["localize", frames, "--model", "tetrapod_storm", "-o", tmp_path / "all.csv"])
    table = (tmp_path / "all.csv").read_text().splitlines()
    column = table[0].split(",").index('"intensity [photon]"')
    bright = [row for row in table[1:] if float(row.split(",")[column]) > 6000]
    (tmp_path / "bright.csv").write_text("\n".join([table[0], *bright]) + "\n")
    truth = frames.with_suffix(".csv")
    rule = ["--min-photons", 6000, "--min-photons-rule", "remove"]
    scores = cli(["evaluate", tmp_path / "bright.csv", truth, *rule])
    assert scores["jaccard"] >= 0.70


@pytest.mark.usefixtures("shipped")
def test_real_telomeres_are_explained(cli: Cli, shared_data: Path, tmp_path: Path) -> None:
    frames = shared_data / "telomeres_fixed" / "tetrapod.tif"
    found = cli(["localize", frames, "--model", "telomeres_tetrapod", "-o", tmp_path / "l.csv"])
    assert found["failed_frames"] in ([], 0)
    again = cli(["rerender", tmp_path / "l.csv", frames, "telomeres_tetrapod", "-o", tmp_path / "m.tif"])
    assert again["explained_signal"][0] >= 0.95
    assert tifffile.imread(tmp_path / "m.tif").squeeze().shape == (155, 155)


PAIRS = {
    "tetrapod_edof": (("tetrapod", "edof"), (0.977, 0.977)),
    "crlb": (("crlb1", "crlb2"), (0.970, 0.970)),
    "learned": (("learned1", "learned2"), (0.977, 0.970)),
}


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("refine", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_real_cell_through_two_channels_is_explained(
    cli: Cli, shared_data: Path, tmp_path: Path, pair: str, *, refine: bool
) -> None:
    """The bars are those of --refine, with no more localizations than the published network."""
    names, bars = PAIRS[pair]
    first, second = (shared_data / "telomeres_fixed" / f"{name}.tif" for name in names)
    table, model = tmp_path / "l.csv", f"telomeres_{pair}"
    how = ["--refine"] if refine else []
    cli(["localize", first, "--channel2", second, "--model", model, "-o", table, *how])
    explained = cli(["rerender", table, first, model, "--channel2", second])["explained_signal"]
    assert np.all(np.array(explained) >= (np.array(bars) if refine else 0.96))
    reference = read_table(shared_data / "reference" / f"telomeres_fixed_{pair}.csv")
    assert not refine or len(read_table(table)) <= len(reference)


@pytest.mark.usefixtures("shipped")
def test_real_storm_frames_agree_with_the_published_network(
    cli: Cli, shared_data: Path, tmp_path: Path
) -> None:
    frames = shared_data / "storm_tetrapod" / "frames.tif"
    found = cli(["localize", frames, "--model", "tetrapod_storm", "-o", tmp_path / "l.csv"])
    assert found["frames"] == 25
    ours, theirs = (
        read_table(tmp_path / "l.csv"),
        read_table(shared_data / "reference" / "storm_tetrapod_frames.csv"),
    )
    assert set(ours.frame) <= set(range(25))
    # Not ground truth: but most of what the published network is sure of should be seen by ours as well.
    sure = theirs[theirs.confidence > theirs.confidence.median()]
    seen = np.concatenate([_nearest(sure[sure.frame == k], ours[ours.frame == k]) for k in range(25)])
    assert np.mean(seen < 250.0) > 0.6


def _nearest(theirs: pd.DataFrame, ours: pd.DataFrame) -> np.ndarray:
    """Lateral distance of each of theirs to the nearest of ours, nm."""
    difference = theirs[["x_nm", "y_nm"]].to_numpy()[:, None] - ours[["x_nm", "y_nm"]].to_numpy()
    return np.sqrt((difference**2).sum(-1)).min(1, initial=np.inf)


def test_from_the_bead_stack_to_a_table(cli: Cli, shared_data: Path, tmp_path: Path) -> None:
    setup = REPOSITORY / "models" / "telomeres_tetrapod" / "setup.toml"
    stack = shared_data / "beads" / "tetrapod.tif"
    calibration = tmp_path / "tetrapod.psf.h5"
    options = ["--z-step-nm", "-100", "--setup", setup, "--fit-slices", "even", "--seed", 1]
    result = cli(["calibrate", stack, *options, "-o", calibration, "--report", tmp_path / "r.html"])
    assert result["held_out"]["mean_slice_correlation"] >= 0.975
    bound = cli(["crlb", calibration, "--photons", 20000, "--background", 100, "--z-nm", "1000:3000:500"])
    assert all(1 < sigma < 60 for sigma in bound["sigma_z_nm"])
    assert (tmp_path / "r.html").stat().st_size > 50_000
    # On from here with a training of seconds: the path holds, the quality is the shipped model's business.
    ranges = REPOSITORY / "models" / "telomeres_tetrapod" / "ranges.toml"
    model, image = tmp_path / "short.onnx", shared_data / "telomeres_fixed" / "tetrapod.tif"
    trained = cli(["train", calibration, "--ranges", ranges, "--samples", 80, "--seed", 1, "-o", model])
    assert trained["samples"] == 80
    found = cli(["localize", image, "--model", model, "--threshold", 0.05, "-o", tmp_path / "l.csv"])
    assert found["frames"] == 1
    again = cli(["rerender", tmp_path / "l.csv", image, model, "-o", tmp_path / "m.tif"])
    assert again["localizations"] == found["localizations"]
