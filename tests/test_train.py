"""Training: steps, budgets, checkpoints."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.gaussian import GaussianPSF
from smlm_bridge.psf.spline import SplinePSF
from smlm_bridge.simulate.background import BackgroundRanges
from smlm_bridge.simulate.scene import Ranges
from smlm_bridge.train import Progress, Start, Trainer, TrainOptions, train, training_psf
from smlm_bridge.training import schedule

RANGES = Ranges(
    (-300.0, 300.0), density_um2=(0.2, 0.5), background=BackgroundRanges((5.0, 20.0)), margin_nm=200.0
)
OPTIONS = TrainOptions(samples=40, batch=4, patch_px=16, widths=(4, 6), bottom_dilations=(), reach_px=8)


def make(calibration: Calibration, **changes: object) -> Trainer:
    return Trainer(calibration, RANGES, replace(OPTIONS, **changes))


def run(trainer: Trainer, *, steps: int | None = None) -> list[dict[str, float]]:
    curve = []
    while not trainer.done and (steps is None or len(curve) < steps):
        curve.append(trainer.step())
    return curve


def test_a_few_steps_run_and_end_with_the_budget(gaussian_calibration: Calibration) -> None:
    trainer = make(gaussian_calibration)
    seen: list[tuple[int, dict[str, float]]] = []
    network = train(trainer, on_step=lambda progress, terms: seen.append((progress.samples, terms)))
    assert [samples for samples, _ in seen] == list(range(4, 44, 4))
    assert all(set(terms) == {"detection", "localization", "background"} for _, terms in seen)
    assert all(math.isfinite(value) for _, terms in seen for value in terms.values())
    assert trainer.fraction == 1.0
    assert not network.training
    assert trainer.progress.seconds > 0


def test_a_time_budget_ends_too(gaussian_calibration: Calibration) -> None:
    trainer = make(gaussian_calibration, samples=10**9, minutes=1e-9)
    assert len(run(trainer)) == 1


def test_the_loss_falls(trained) -> None:
    trainer = trained.trainer
    fresh = Trainer(trainer.calibration, trainer.ranges, trainer.options)
    with torch.no_grad():
        batch = fresh.draw_batch()
        before = sum(float(t) for t in fresh.network.eval().loss(*batch).values())
        after = sum(float(t) for t in trainer.network.eval().loss(*batch).values())
    assert after < before - 3


def test_one_seed_one_curve(gaussian_calibration: Calibration) -> None:
    one, two, three = (run(make(gaussian_calibration, seed=seed), steps=3) for seed in (1, 1, 2))
    assert one == two
    assert one != three


def test_the_global_random_state_is_left_alone(gaussian_calibration: Calibration) -> None:
    torch.manual_seed(9)
    wanted = torch.rand(2)
    torch.manual_seed(9)
    run(make(gaussian_calibration), steps=1)
    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize("stop", [1, 6])
def test_a_resumed_training_is_the_undisturbed_one(gaussian_calibration: Calibration, stop: int) -> None:
    undisturbed = make(gaussian_calibration)
    curve = run(undisturbed)
    first = make(gaussian_calibration)
    head = run(first, steps=stop)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    torch.manual_seed(1234)
    buffer.seek(0)
    second = make(gaussian_calibration)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert second.progress.samples == 4 * stop
    assert head + run(second) == curve
    for name, value in undisturbed.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name


def test_the_scaling_travels_with_the_checkpoint(gaussian_calibration: Calibration) -> None:
    """Weights mean nothing without the scaling they were trained with, e.g. that of another seed."""
    first = make(gaussian_calibration, seed=5)
    second = make(gaussian_calibration, seed=6)
    assert first.network.scaling != second.network.scaling
    second.load_state_dict(first.state_dict())
    assert first.network.scaling == second.network.scaling


def test_a_checkpoint_of_something_else_is_rejected(gaussian_calibration: Calibration) -> None:
    state = make(gaussian_calibration).state_dict()
    other = Trainer(replace(gaussian_calibration, blur_nm=5.0), RANGES, OPTIONS)
    narrower = Trainer(gaussian_calibration, replace(RANGES, z_nm=(-300.0, 200.0)), OPTIONS)
    wider = make(gaussian_calibration, widths=(6, 8))
    for trainer, words in ((other, "another calibration"), (narrower, "other ranges"), (wider, "widths")):
        with pytest.raises(InputRejected, match=words):
            trainer.load_state_dict(state)


def test_weights_of_another_training_start_a_new_one(gaussian_calibration: Calibration) -> None:
    first = make(gaussian_calibration)
    run(first, steps=2)
    second = Trainer(gaussian_calibration, RANGES, OPTIONS, start=Start(first.network.state_dict(), {}))
    assert second.progress == Progress()
    assert torch.equal(second.network.out.weight, first.network.out.weight)


def test_a_loss_that_is_not_finite_ends_the_training(gaussian_calibration: Calibration) -> None:
    trainer = make(gaussian_calibration)
    with torch.no_grad():
        trainer.network.out.bias[0] = float("nan")
    seen: list[object] = []
    with pytest.raises(SmlmError, match="not finite after 4 samples"):
        train(trainer, on_step=lambda *step: seen.append(step))
    assert not seen


def test_the_learning_rate_warms_up_and_falls(gaussian_calibration: Calibration) -> None:
    trainer = make(gaussian_calibration, samples=400)
    rates = []
    for _ in range(100):
        trainer.progress.samples += 4
        rates.append(_rate(trainer))
    peak = int(np.argmax(rates))
    assert peak <= 2
    assert rates[peak] == pytest.approx(OPTIONS.learning_rate, rel=0.01)
    assert np.diff(rates[peak:]).max() < 0
    assert rates[-1] < 0.01 * OPTIONS.learning_rate


def _rate(trainer: Trainer) -> float:
    return trainer.options.learning_rate * schedule(trainer.fraction)


def test_maps_of_the_camera_are_cut_to_patches(gaussian_calibration: Calibration) -> None:
    generator = np.random.default_rng(1)
    maps = Camera(
        generator.uniform(90, 110, (30, 40)), generator.uniform(0.4, 0.6, (30, 40)), np.ones((30, 40))
    )
    trainer = Trainer(replace(gaussian_calibration, camera=maps), RANGES, OPTIONS)
    photons, _ = trainer.draw_batch()
    assert photons.shape == (4, 1, 16, 16)
    assert float(photons.mean()) == pytest.approx(float(trainer.draw_batch()[1].background.mean()), rel=0.9)
    assert all(math.isfinite(value) for terms in run(trainer, steps=2) for value in terms.values())
    with pytest.raises(InputRejected, match="smaller than a training patch"):
        Trainer(replace(gaussian_calibration, camera=maps.crop(0, 0, 15, 40)), RANGES, OPTIONS)


def test_a_single_height_is_a_range(gaussian_calibration: Calibration) -> None:
    trainer = Trainer(gaussian_calibration, replace(RANGES, z_nm=(50.0, 50.0)), OPTIONS)
    assert all(math.isfinite(value) for value in trainer.step().values())


def test_frames_of_an_empty_sample(gaussian_calibration: Calibration) -> None:
    trainer = Trainer(gaussian_calibration, replace(RANGES, density_um2=(0.0, 0.0)), OPTIONS)
    assert all(math.isfinite(value) for value in trainer.step().values())


def test_pupils_are_tabulated_for_training(gaussian_calibration: Calibration) -> None:
    assert isinstance(training_psf(gaussian_calibration, RANGES, reach_px=8), GaussianPSF)
    calibration = Calibration(Optics(1.4, 1.518, 1.33, 670.0, 100.0), Pupil.flat(32, {6: 0.6}))
    psf = training_psf(calibration, replace(RANGES, z_nm=(0.0, 200.0)), reach_px=8)
    assert isinstance(psf, SplinePSF)
    assert psf.reach_nm >= 800


@pytest.mark.parametrize("wrong", [{"patch_px": 17}, {"samples": 0}, {"minutes": 0.0}])
def test_options_name_what_is_wrong(wrong: dict[str, object]) -> None:
    with pytest.raises(InputRejected):
        replace(OPTIONS, **wrong)
