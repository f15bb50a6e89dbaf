"""The CRLB alarm: it fires where the bound is beaten, and only there."""

import functools
import json

import numpy as np
import pytest
import torch

from smlm_bridge.alarm import GENERALISATION_GAP, AlarmOptions, crlb_alarm, generalisation_gap
from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.crlb import crlb
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit import FitOptions, fit_boxes
from smlm_bridge.networks.single import SingleTargets
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.simulate.background import BackgroundRanges
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.single import SingleRanges, draw_singles
from smlm_bridge.train_single import SingleOptions, SingleTrainer, run_now
from smlm_bridge.training import train

SIDE, PIXEL = 13, 100.0
RANGES = SingleRanges((-300.0, 300.0), (2000.0, 6000.0), background=BackgroundRanges((10.0, 30.0)))
KNOWN = Calibration(
    Optics(1.4, 1.518, 1.33, 670.0, PIXEL),
    gaussian=Gaussian((120.0, 120.0), (-250.0, 250.0), (400.0, 400.0)),
    z_range_nm=(-300.0, 300.0),
)


def boxes(seed: int, count: int, *, bound_gain: float = 1.0) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Boxes, their truth and its bound; the bound may be computed with a gain that the camera has not."""
    generator = torch.Generator().manual_seed(seed)
    scene, truth = draw_singles(RANGES, generator, boxes=count, side=SIDE, pixel_nm=PIXEL)
    psf, camera = KNOWN.psf(), Camera()
    photons = record(scene, render(scene, psf), camera, generator)[:, None]
    light, level = scene.photons * bound_gain, truth[:, 4] * bound_gain
    bound = crlb(psf, camera, scene.xyz_nm, light, level, shape=(SIDE, SIDE))
    return photons, truth.double().numpy(), bound.double().numpy()


def drawn(count: int, *, ratio: float = 1.0, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates whose errors are ``ratio`` times the bound."""
    rng = np.random.default_rng(seed)
    low, high = [-100, -100, -500, 1000, 5], [100, 100, 500, 8000, 20]
    truth = rng.uniform(low, high, (count, 5))
    bound = np.array([7.0, 7.0, 15.0, 60.0, 0.3]) * np.sqrt(4000 / truth[:, 3:4])
    return truth + ratio * bound * rng.standard_normal((count, 5)), truth, bound


@pytest.mark.parametrize("ratio", [1.0, 1.1, 1.6])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_silent_at_and_above_the_bound(ratio: float, seed: int) -> None:
    alarm = crlb_alarm(*drawn(2000, ratio=ratio, seed=seed), training=False)
    assert not alarm.fires
    assert not alarm.messages
    for name in ("x", "y", "z", "photons", "background"):
        middle, low, high = alarm.overall[name]
        assert low < middle < high
        assert middle == pytest.approx(ratio, rel=0.06)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    inside = [
        crlb_alarm(*drawn(400, seed=seed), training=False, options=AlarmOptions(1, 1, 1, resamples=300)).cells
        for seed in range(60)
    ]
    held = np.concatenate([(t["ratio_low"] < 1) & (t["ratio_high"] > 1) for t in inside])
    assert 0.90 < held.mean() < 0.98


def test_cells_are_stratified_and_full() -> None:
    alarm = crlb_alarm(*drawn(2000), training=False)
    assert len(alarm.cells) == 5 * 24
    assert alarm.cells["boxes"].min() >= 50
    assert alarm.cells["boxes"].sum() == 5 * 2000
    few = crlb_alarm(*drawn(130), training=False)
    assert few.cells["boxes"].min() >= 40
    assert json.loads(json.dumps(alarm.to_json()))["fires"] is False


@pytest.mark.parametrize(("training", "word"), [(True, "memorised"), (False, "wrong units")])
def test_an_undercut_fires_and_says_what_it_means(training: bool, word: str) -> None:
    alarm = crlb_alarm(*drawn(2000, ratio=0.8), training=training)
    assert alarm.undercut == ("x", "y", "z", "photons", "background")
    assert word in alarm.messages[0]


def test_one_cell_that_cheats_is_seen() -> None:
    found, truth, bound = drawn(2000)
    bright = (truth[:, 3] > 5600) & (truth[:, 2] > 250)
    found[bright, 2] = truth[bright, 2] + 0.4 * (found - truth)[bright, 2]
    alarm = crlb_alarm(found, truth, bound, training=False)
    assert alarm.undercut == ("z",)
    assert alarm.cells[alarm.cells["ratio"] < 0.6]["z_nm_low"].min() > 100


def test_shrinkage_is_named_and_no_alarm() -> None:
    found, truth, bound = drawn(2000)
    found[:, 4] = truth[:, 4].mean()  # always the same answer: biased in every cell
    alarm = crlb_alarm(found, truth, bound * np.array([1, 1, 1, 1, 30.0]), training=False)
    assert not alarm.fires
    assert "biased" in alarm.messages[0]
    assert "background" in alarm.messages[0]


def test_sigmas_below_the_bound_are_too_sure() -> None:
    found, truth, bound = drawn(500)
    alarm = crlb_alarm(found, truth, bound, training=False, sigma=bound * [0.8, 1, 1, 1, 1])
    assert alarm.too_sure["x"] == 1.0
    assert "x 100%" in alarm.messages[0]
    assert "y" not in alarm.messages[0].split("(")[1]


def test_bounds_that_are_not_finite_are_left_out() -> None:
    found, truth, bound = drawn(600)
    bound[:550, 2] = np.inf
    alarm = crlb_alarm(found, truth, bound, training=False)
    cells = alarm.cells[alarm.cells["parameter"] == "z"]
    assert 40 <= cells["boxes"].sum() <= 50


@pytest.mark.parametrize(
    ("change", "word"),
    [(lambda a: (a[0][:, :3], a[1], a[2]), "parameters"), (lambda a: tuple(v[:20] for v in a), "20 boxes")],
)
def test_arrays_that_do_not_belong_together_are_refused(change, word) -> None:
    with pytest.raises(InputRejected, match=word):
        crlb_alarm(*change(drawn(200)), training=False)


class OfAThousand(SingleTrainer):
    """Trained on the same thousand boxes again and again."""

    @functools.cached_property
    def fixed(self) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        return boxes(1, 1000)

    def draw_batch(self) -> tuple[torch.Tensor, SingleTargets]:
        photons, truth, _ = self.fixed
        rows = torch.randint(1000, (self.options.batch,), generator=self.generator)
        asked = torch.as_tensor(truth, dtype=torch.float32)[rows]
        return photons[rows], SingleTargets(asked, self.network.scaled(asked))


def test_a_network_that_memorised_a_thousand_images_gives_the_alarm() -> None:
    """Zelger et al. 2018: below the bound on the images it was trained on, far above it on others."""
    options = SingleOptions(samples=400 * 125, batch=125, weight_decay=0.0)
    trainer = OfAThousand(KNOWN, RANGES, options)
    train(trainer)
    photons, truth, bound = trainer.fixed
    alarm = crlb_alarm(run_now(trainer)(photons.numpy())[:, :5], truth, bound, training=True)
    assert {"x", "y"} <= set(alarm.undercut)
    assert "memorised" in alarm.messages[0]
    fresh, fresh_truth, fresh_bound = boxes(2, 1000)
    found = run_now(trainer)(fresh.numpy())[:, :5]
    held_out = crlb_alarm(found, fresh_truth, fresh_bound, training=False)
    assert not set(held_out.undercut) & {"x", "y", "z"}
    assert generalisation_gap(alarm, held_out)["x"] > GENERALISATION_GAP


@pytest.mark.parametrize(("gain", "fires"), [(1.0, False), (0.5, True)])
def test_a_wrong_gain_gives_the_alarm(gain: float, fires: bool) -> None:
    """Photons counted as half as many make the bound too high: an honest fit lies below it."""
    photons, truth, bound = boxes(3, 800, bound_gain=gain)
    centre = np.array([SIDE / 2 * PIXEL, SIDE / 2 * PIXEL, 0.0])
    options, start = FitOptions(z_range_nm=(-450.0, 450.0)), truth[:, :3] + centre + 5.0
    stack = photons[:, 0].numpy().astype(np.float64)
    result = fit_boxes(stack, np.zeros((800, 2)), KNOWN.psf(), start=start, options=options)
    found = np.stack([result[name] for name in ("x_nm", "y_nm", "z_nm", "photons", "background")], axis=1)
    found[:, :3] -= centre
    alarm = crlb_alarm(found, truth, bound, training=False)
    assert bool({"x", "y", "z"} & set(alarm.undercut)) is fires
    if fires:
        assert "photons or gain have wrong units" in alarm.messages[0]
