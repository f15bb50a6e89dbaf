"""The coverage check: noise, ranges, reference, verdict, the verb and the end of a localization."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.cli import main
from smlm_bridge.cluster.trust import thinned
from smlm_bridge.coverage import CoverageOptions, check_localized, coverage, reference_of
from smlm_bridge.coverage.boxes import Boxes, cut_boxes, inside
from smlm_bridge.coverage.limits import Allowed, outside, piled_up
from smlm_bridge.coverage.noise import deviance, deviance_moments, extra_read_variance
from smlm_bridge.coverage.reference import Expected, Familiar, Reference, joint_limits
from smlm_bridge.coverage.rendered import Renderer
from smlm_bridge.coverage.scoring import scored
from smlm_bridge.coverage.seen import boxes_of_singles
from smlm_bridge.coverage.verdict import light_of, suggested_ranges
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.model import load_model, save_model
from smlm_bridge.io.onnx_file import with_metadata
from smlm_bridge.io.thunderstorm import write_table
from smlm_bridge.model import Model, ModelInfo
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.report.coverage import coverage_page
from smlm_bridge.simulate.background import BackgroundRanges
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.single import SingleRanges, draw_singles
from smlm_bridge.singles import single_work

SIDE, PIXEL, Z = 13, 100.0, (-300.0, 300.0)
RANGES = SingleRanges(Z, (2000.0, 6000.0), background=BackgroundRanges((10.0, 30.0)))
OPTICS = Optics(1.4, 1.518, 1.33, 670.0, PIXEL)
ALLOWED = Allowed.of(RANGES.to_json(), Z)


def astigmatic(focus_nm: float = 250.0, sigma_nm: float = 120.0) -> Calibration:
    shape = Gaussian((sigma_nm, sigma_nm), (-focus_nm, focus_nm), (400.0, 400.0))
    return Calibration(OPTICS, gaussian=shape, z_range_nm=Z)


KNOWN = astigmatic()


class Templates:
    """Stands for a network: the best of templates on a grid of positions, which it never leaves."""

    def __init__(self) -> None:
        side = np.linspace(-100, 100, 11)
        grid = np.meshgrid(side, side, np.linspace(*Z, 25), indexing="ij")
        self.xyz = np.stack([axis.ravel() for axis in grid], axis=1)
        middle = np.array([SIDE / 2 * PIXEL, SIDE / 2 * PIXEL, 0.0])
        images = KNOWN.psf().images(torch.tensor(self.xyz + middle, dtype=torch.float32), (SIDE, SIDE))
        self.images = images.numpy().reshape(len(self.xyz), -1).astype(np.float64)
        self.mean = self.images.mean(1, keepdims=True)
        self.norm = np.sqrt(((self.images - self.mean) ** 2).sum(1))

    def __call__(self, boxes: np.ndarray) -> np.ndarray:
        flat = boxes.reshape(len(boxes), -1).astype(np.float64)
        best = (flat @ (self.images - self.mean).T / self.norm).argmax(1)
        image = self.images[best]
        centred = image - image.mean(1, keepdims=True)
        photons = (flat * centred).sum(1) / (centred**2).sum(1)
        level = flat.mean(1) - photons * image.mean(1)
        sigma = np.tile([8.0, 8.0, 15.0, 70.0, 0.4], (len(boxes), 1))
        found = np.column_stack([self.xyz[best], np.maximum(photons, 1), np.maximum(level, 0.1), sigma])
        return found.astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Model:
    info = ModelInfo("templates", "single", "tests", KNOWN, RANGES.to_json(), 1, 1, 0, box_px=SIDE)

    def features(boxes: np.ndarray) -> np.ndarray:
        flat = boxes.reshape(len(boxes), -1)
        return np.stack([np.log(np.maximum(flat.sum(1), 1)), flat.min(1), flat.std(1), flat.max(1)], axis=1)

    return Model(info, Templates(), features)


@pytest.fixture(scope="module")
def described(model: Model) -> Model:
    """The same with what its training space looks like inside."""
    known = json.loads(json.dumps(reference_of(model, boxes=1500).to_json()))
    return replace(model, info=replace(model.info, coverage=known))


@dataclass(frozen=True)
class Data:
    known: Calibration = KNOWN
    ranges: SingleRanges = RANGES
    second_nm: float = 0.0
    slope: float = 0.0

    def photons(self, count: int, seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        scene, _ = draw_singles(self.ranges, generator, boxes=count, side=SIDE, pixel_nm=PIXEL)
        expected = render(scene, self.known.psf())
        if self.second_nm:
            other = scene.xyz_nm + torch.tensor([self.second_nm, 0.0, 0.0])
            expected = expected + self.known.psf().images(other, (SIDE, SIDE)) * scene.photons[:, None, None]
        expected = expected + self.slope * torch.linspace(0, 1, SIDE)
        return record(scene, expected, Camera(), generator).numpy().astype(np.float32)


def scores(model: Model, data: Data, count: int, seed: int = 5):
    photons = data.photons(count, seed)
    boxes = boxes_of_singles(model, photons, np.zeros_like(photons), excess=1.0)
    renderer = Renderer.of(KNOWN, RANGES.to_json(), side_px=SIDE)
    return scored(boxes, renderer.measure(boxes), Reference.from_json(model.info.coverage), ALLOWED)


@pytest.mark.parametrize("mean", [0.05, 0.7, 6.0, 40.0, 900.0])
def test_the_deviance_has_the_moments_it_is_said_to_have(mean: float) -> None:
    drawn = deviance(np.random.default_rng(1).poisson(mean, 400_000).astype(float), np.full(400_000, mean))
    expected, variance = deviance_moments(np.array(mean))
    assert drawn.mean() == pytest.approx(float(expected), rel=0.02)
    assert drawn.var() == pytest.approx(float(variance), rel=0.03)


def test_read_noise_is_read_off_an_image() -> None:
    rng = np.random.default_rng(2)
    image = rng.poisson(np.linspace(20, 60, 64), (64, 64)) + 9.0 * rng.standard_normal((64, 64))
    limits = {"camera_variance": 0.0, "excess": 1.0}
    assert extra_read_variance(image, read_noise_e=(0.0, 20.0), **limits) == pytest.approx(81, rel=0.15)
    assert extra_read_variance(image, read_noise_e=(0.0, 5.0), **limits) == 25
    assert extra_read_variance(image, read_noise_e=(3.0, 3.0), **limits) == 9


def test_ranges_are_those_of_the_laws_and_of_all_parts_of_the_background() -> None:
    law = {**RANGES.to_json(), "photons": [3.0, 1000.0], "photons_law": "gamma", "label_min_photons": 1500.0}
    light = {"constant": [5.0, 20.0], "gradient": 4.0, "glow": [0.0, 30.0], "perlin": [0.0, 8.0]}
    allowed = Allowed.of({**law, "background": light}, Z)
    assert allowed.photons[0] == 1500.0
    assert 13_000 < allowed.photons[1] < 15_000
    assert allowed.background == (5.0, 62.0)
    assert Allowed.of({}, Z).z_nm == Z
    assert Allowed.of({}, Z).photons[1] == np.inf
    with pytest.raises(InputRejected, match="two numbers"):
        Allowed.of({**RANGES.to_json(), "z_nm": 3.0}, Z)


def test_outside_counts_standard_deviations_beyond_a_tolerance() -> None:
    values = np.array([[-390.0, 3000, 20], [0, 3000, 20], [0, 9000, 90]])
    away = outside(values, np.array([[8.0, 60, 0.5]] * 3), ALLOWED)
    assert away[0, 0] == pytest.approx(90 / 10)  # 8 nm of noise and 1 % of 600 nm
    assert (away[1] < 0).all()
    assert (away[2, 1:] > 10).all()
    assert (outside(values, np.ones((3, 3)), Allowed.of({}, Z))[:, 1] <= 0).all()


def test_heights_that_crowd_at_an_end_are_seen() -> None:
    z = np.random.default_rng(0).uniform(*Z, 500)
    assert piled_up(z, Z) == (False, False)
    assert piled_up(np.concatenate([z, np.full(60, 298.0)]), Z) == (False, True)


def test_what_is_expected_follows_the_prediction() -> None:
    rng = np.random.default_rng(3)
    at = rng.uniform(-1, 1, (4000, 2))
    values = 5 + 3 * at[:, 0] ** 2 + (1 + 0.5 * at[:, 1]) * rng.standard_normal(4000)
    standard = Expected.of(values, at).standard(values, at)
    for low in (-1.0, -0.3, 0.4):
        for axis in range(2):
            part = standard[(at[:, axis] > low) & (at[:, axis] < low + 0.6)]
            assert abs(part.mean()) < 0.12
            assert part.std() == pytest.approx(1, abs=0.12)


def test_unfamiliar_features_are_far() -> None:
    rng = np.random.default_rng(4)
    mixed = rng.standard_normal((6, 40))
    known = Familiar.of(rng.standard_normal((1000, 6)) @ mixed + 0.1 * rng.standard_normal((1000, 40)))
    usual = known.distance(rng.standard_normal((300, 6)) @ mixed + 0.1 * rng.standard_normal((300, 40)))
    odd = known.distance(usual[:, None] * 0 + rng.standard_normal((300, 40)))
    assert np.quantile(usual, 0.99) < np.quantile(odd, 0.01)


def test_limits_bound_the_joint_share_of_false_alarms() -> None:
    rng = np.random.default_rng(5)
    drawn = {name: rng.standard_normal(20_000) for name in "abc"}
    limits = joint_limits(drawn, share=0.02)
    flagged = np.any([values > limits[name] for name, values in drawn.items()], axis=0)
    assert flagged.mean() == pytest.approx(0.02, abs=0.001)
    assert max(limits.values()) - min(limits.values()) < 0.2


def test_few_boxes_of_the_training_space_are_flagged(described: Model) -> None:
    found = scores(described, Data(), 1500)
    assert np.mean(found.combined > 1) <= 0.03
    assert set(found.by_test) == {"ranges", "deviance", "likelihood", "features"}


@pytest.mark.parametrize(
    ("data", "test", "least"),
    [
        (Data(astigmatic(sigma_nm=150.0)), "deviance", 0.8),
        (Data(second_nm=350.0), "deviance", 0.95),
        (Data(slope=60.0), "deviance", 0.95),
        (Data(ranges=replace(RANGES, z_nm=(420.0, 600.0))), "likelihood", 0.9),
        (Data(ranges=replace(RANGES, background=BackgroundRanges((40.0, 120.0)))), "ranges", 0.9),
        (Data(ranges=replace(RANGES, photons=(8000.0, 24_000.0))), "ranges", 0.9),
    ],
)
def test_what_the_model_was_not_made_for_is_flagged(
    described: Model, data: Data, test: str, least: float
) -> None:
    found = scores(described, data, 200)
    assert np.mean(found.combined > 1) >= least
    assert np.mean(found.by_test[test] > 1) > 0.4


def test_a_reference_travels_as_text_and_damage_is_refused(described: Model) -> None:
    known = described.info.coverage
    assert Reference.from_json(known).to_json() == known
    with pytest.raises(InputRejected, match="damaged"):
        Reference.from_json({**known, "limits": 3})
    again = ModelInfo.from_metadata(described.info.to_metadata(), name="again")
    assert again.coverage == known


@pytest.mark.parametrize(
    ("fraction", "warned", "light"),
    [(0.02, False, "green"), (0.02, True, "yellow"), (0.1, False, "yellow"), (0.3, False, "red")],
)
def test_the_light(fraction: float, warned: bool, light: str) -> None:
    assert light_of(fraction, warned=warned) == light
    assert light_of(None) == "unknown"
    assert light_of(fraction, stopped=True) == "red"


def test_ranges_that_would_hold_the_data_are_suggested() -> None:
    values = np.column_stack([np.zeros(1000), np.linspace(1000, 9555, 1000), np.full(1000, 20.0)])
    shares = {"z_nm": 0.0, "photons": 0.3, "background": 0.0}
    assert suggested_ranges(shares, values, ALLOWED, (False, True)) == {
        "z_nm": (-300.0, 420.0),
        "photons": (1000.0, 9600.0),
    }


def test_boxes_know_what_shines_into_them() -> None:
    frame = np.arange(30 * 40, dtype=np.float32).reshape(30, 40)
    table = pd.DataFrame(
        {"x_nm": [1550.0, 2150.0, 250.0], "y_nm": [1520.0, 1500.0, 900.0], "z_nm": [0.0, 50, 0]}
    )
    table["photons"] = [1000.0, 500.0, 100.0]
    xy = table[["x_nm", "y_nm"]].to_numpy()
    assert inside(xy, side_px=13, pixel_nm=100.0, shape=(30, 40)).tolist() == [True, True, False]
    boxes = cut_boxes(frame, np.zeros((30, 40)), table, np.array([0, 1]), side_px=13, pixel_nm=100.0, frame=3)
    assert boxes.photons[0, 0, 0] == frame[9, 9]
    np.testing.assert_allclose(boxes.xyz_nm[0], [650, 620, 0])
    assert boxes.near_box.tolist() == [0, 1]
    assert boxes.near_photons.tolist() == [500.0, 1000.0]
    np.testing.assert_allclose(boxes.near_xyz_nm[0], [1250, 600, 50])
    both = Boxes.joined([boxes, boxes])
    assert both.near_box.tolist() == [0, 1, 2, 3]


class Movie:
    """Frames with four emitters each, held in memory, a region of a larger movie."""

    n_frames, first_frame, x0, y0 = 12, 4, 2, 3

    def __init__(self, known: Calibration = KNOWN) -> None:
        rng = np.random.default_rng(7)
        self.counts = np.empty((self.n_frames, 1, 40, 40), np.float32)
        places = (np.array([[10, 10], [30, 10], [10, 30], [30, 30]]) + 0.5) * PIXEL
        for frame in self.counts:
            xyz = np.column_stack([places + rng.uniform(-90, 90, (4, 2)), rng.uniform(-250, 250, 4)])
            images = known.psf().images(torch.tensor(xyz, dtype=torch.float32), (40, 40)).numpy()
            light = (images * rng.uniform(2500, 5500, 4)[:, None, None]).sum(0)
            frame[0] = rng.poisson(light + 20.0) + 100.0

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.counts[start:stop]


def asked(movie: Movie, model: Model, **changes):
    camera = Camera(offset=100.0)
    work = single_work(model, camera=camera)
    return coverage(movie, work, model, camera=camera, options=CoverageOptions(boxes=45), **changes)


def test_a_movie_is_judged(described: Model) -> None:
    right, wrong = asked(Movie(), described), asked(Movie(astigmatic(sigma_nm=160.0)), described)
    assert right.light == "green"
    assert wrong.light == "red"
    assert wrong.flagged_fraction > 0.5
    assert any("PSF" in reason for reason in wrong.reasons)
    assert len(wrong.worst) == 12
    assert [one.score for one in wrong.worst] == sorted((one.score for one in wrong.worst), reverse=True)
    assert {one.frame for one in wrong.worst} <= set(range(4, 16))
    assert asked(Movie(), described).to_json() == right.to_json()
    assert asked(Movie(), described, stops=("the pixel is another.",)).light == "red"
    page = coverage_page(wrong, title="a <movie>", provenance={"seed": 1})
    assert "a &lt;movie&gt;" in page
    assert page.count("<img") == 1
    assert "http" not in page.replace("http://www.w3.org", "")


def test_without_torch_ranges_and_features_are_left(
    described: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smlm_bridge.coverage.check.find_spec", lambda name: None)
    found = asked(Movie(), described)
    assert set(found.by_test) == {"ranges", "features"}
    assert "torch is not installed" in found.reasons[-1]
    assert coverage_page(found, title="x").count("<img") == 1


def test_too_little_to_judge_is_unknown(described: Model) -> None:
    table = pd.DataFrame({name: np.ones(3) for name in ("frame", "x_nm", "y_nm", "z_nm", "photons")})
    found = check_localized(Movie(), table, described, camera=Camera())
    assert (found.light, found.flagged_fraction) == ("unknown", None)
    assert "too few" in found.reasons[-1]
    neighbours = replace(described.info, context_frames=1, box_px=0, system="dense", coverage={})
    many = pd.concat([table] * 20, ignore_index=True)
    found = check_localized(Movie(), many, replace(described, info=neighbours), camera=Camera())
    assert "frames at once" in found.reasons[-1]


@dataclass(frozen=True)
class Recorded:
    """A network that was trained for seconds, on frames of its own training space."""

    model: Path
    movie: Path
    truth: Path


@pytest.fixture(scope="module")
def recorded(trained, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded")
    info = replace(trained.model.info, coverage=reference_of(trained.model, boxes=300).to_json())
    save_model(folder / "described.onnx", with_metadata(trained.onnx, info.to_metadata()))
    assert load_model(folder / "described.onnx").info.coverage == info.coverage
    batches = [trained.trainer.draw_batch() for _ in range(8)]
    counts = torch.cat([frames for frames, _ in batches]).numpy()[:, 0] / 0.5 + 100
    tifffile.imwrite(folder / "movie.tif", counts.round().astype(np.uint16), photometric="minisblack")
    columns = ["x_nm", "y_nm", "z_nm", "photons"]
    truth = [
        pd.DataFrame(np.column_stack([t.xyz_nm, t.photons]), columns=columns).assign(
            frame=t.image.numpy() + 8 * batch, background=t.background.mean((1, 2)).numpy()[t.image]
        )
        for batch, (_, t) in enumerate(batches)
    ]
    write_table(folder / "truth.csv", pd.concat(truth, ignore_index=True))
    return Recorded(folder / "described.onnx", folder / "movie.tif", folder / "truth.csv")


def test_the_verb(recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    arguments = ["coverage", str(recorded.movie), "--model", str(recorded.model), "--json", "--boxes", "60"]
    arguments += ["--truth", str(recorded.truth), "--report", str(page)]
    assert main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert {"light", "flagged_fraction", "reasons"} <= set(said)
    assert said["crlb_alarm"]["fires"] is False
    assert said["crlb_alarm"]["overall"]["x"][0] > 1
    assert "The worst boxes" in page.read_text(encoding="utf-8")
    assert main(arguments) == 3  # the page is there


def test_localize_asks_at_its_end(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, report = tmp_path / "table.csv", tmp_path / "run.html"
    run = ["localize", str(recorded.movie), "-o", str(table), "--model", str(recorded.model), "--json"]
    assert main([*run, "--report", str(report)]) == 0
    done = capsys.readouterr()
    found = json.loads(done.out)["coverage"]
    assert json.loads(table.with_suffix(".protocol.json").read_text())["coverage"] == found
    assert 0 <= found["flagged_fraction"] <= 0.15
    assert f"Coverage: {found['light']}" in done.err
    assert "Is the model meant for these data?" in report.read_text(encoding="utf-8")
    before = table.read_bytes()
    assert main([*run, "--overwrite", "--no-coverage", "--block-frames", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["coverage"] is None
    assert table.read_bytes() == before


def test_of_a_large_table_whole_frames_are_kept() -> None:
    frame = np.sort(np.random.default_rng(4).integers(7, 7 + 3000, 60_000))
    table = pd.DataFrame({"frame": frame, "x_nm": np.arange(60_000.0)})
    sample, count = thinned(table, 3000)
    assert count == 250
    assert 4000 < len(sample) < 6000
    assert sample["frame"].nunique() == count
    kept = table[table["frame"].isin(sample["frame"])]
    np.testing.assert_array_equal(sample, kept)
    small = table[:20_000]
    assert thinned(small, 3000)[0] is small


def test_of_many_movies_the_first_is_checked(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "movies").mkdir()
    for name in "ab":
        (tmp_path / "movies" / f"{name}.tif").write_bytes(recorded.movie.read_bytes())
    run = ["localize", str(tmp_path / "movies"), "-o", str(tmp_path / "out"), "--model", str(recorded.model)]
    assert main([*run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["coverage"]
    assert list(found["lights"]) == [str(tmp_path / "out" / "a.csv")]
