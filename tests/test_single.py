"""The network of single emitters: boxes, likelihood, file, movie, transfer."""

import io
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smlm_bridge.calibration import Calibration
from smlm_bridge.cli import main
from smlm_bridge.cluster.recipe import Recipe
from smlm_bridge.crlb import crlb
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit import fit_boxes
from smlm_bridge.fit.work import fitted_psf
from smlm_bridge.io.calibration import save_calibration
from smlm_bridge.io.model import load_model, save_model
from smlm_bridge.localize import localize_work
from smlm_bridge.model import Model, ModelInfo
from smlm_bridge.networks.estimates import estimate_names
from smlm_bridge.networks.export import input_scaling_of, single_to_onnx, to_onnx, weights_of
from smlm_bridge.networks.single import SingleLocalizer, SingleScaling, SingleTargets
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.simulate.background import BackgroundRanges
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.scene import Scene
from smlm_bridge.simulate.single import SingleRanges, draw_singles
from smlm_bridge.singles import STARTS, SingleMovieOptions, estimate_boxes, single_work
from smlm_bridge.train import Trainer
from smlm_bridge.train_single import SingleOptions, SingleTrainer, held_out, single_scores
from smlm_bridge.training import Start, train

RANGES = SingleRanges((-300.0, 300.0), (3000.0, 6000.0), background=BackgroundRanges((10.0, 30.0)))
OPTIONS = SingleOptions(samples=120 * 64, batch=64, templates=32, width=64, blocks=1, learning_rate=5e-3)
SCALING = SingleScaling(2.0, 10.0, 5.0, 100.0, 50.0, 300.0, 1000.0, 20.0)


@dataclass(frozen=True)
class Single:
    """A network trained for seconds, and its model file run by ONNX Runtime."""

    trainer: SingleTrainer
    onnx: bytes
    path: Path
    model: Model


def described(trainer: SingleTrainer, **changes: Any) -> ModelInfo:
    info = ModelInfo(
        "tiny", "single", "tests", trainer.calibration, trainer.ranges.to_json(), 1, 1, 0, box_px=13
    )
    return replace(info, **changes)


@pytest.fixture(scope="module")
def single(gaussian_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Single:
    trainer = SingleTrainer(gaussian_calibration, RANGES, OPTIONS)
    train(trainer)
    info = described(trainer, training={"scaling": asdict(trainer.network.scaling)})
    data = single_to_onnx(trainer.network, info.to_metadata(), channels=1, side=13)
    path = tmp_path_factory.mktemp("single") / "tiny.onnx"
    save_model(path, data)
    return Single(trainer, data, path, load_model(path, threads=1))


def start_of(trainer: Any) -> Start:
    return Start(trainer.network.state_dict(), asdict(trainer.network.scaling))


def test_a_trained_network_beats_a_constant(single: Single) -> None:
    scores = single_scores(single.trainer, boxes=500)
    spread = held_out(single.trainer, boxes=500).truth.std(0)
    for name, constant in zip(("x", "y", "z", "photons"), spread, strict=False):
        assert scores["rmse"][name] < 0.5 * constant, name
        assert scores["rmse_over_crlb"][name] > 0.97, name
        assert 0.5 < scores["z_score_sd"][name] < 1.5, name


def test_scores_repeat_and_are_those_of_the_file(single: Single) -> None:
    torch_scores = single_scores(single.trainer, boxes=200)
    assert torch_scores == single_scores(single.trainer, boxes=200)
    file_scores = single_scores(single.trainer, single.model.run, boxes=200)
    assert file_scores["rmse"]["z"] == pytest.approx(torch_scores["rmse"]["z"], rel=1e-4)
    assert list(torch_scores["rmse"]) == ["x", "y", "z", "photons", "background"]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_runtime_agrees_with_torch(single: Single, count: int) -> None:
    boxes = np.random.default_rng(1).gamma(2.0, 30.0, (count, 1, 13, 13)).astype(np.float32)
    with torch.no_grad():
        wanted = single.trainer.network.eval()(torch.from_numpy(boxes)).numpy()
    found = single.model.run(boxes)
    assert found.shape == wanted.shape == (count, 10)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("side", "zernike"), [(13, ()), (21, (0.3,)), (41, (0.3, 0.5, 0.2))])
def test_shapes_and_units(side: int, zernike: tuple[float, ...]) -> None:
    scaling = replace(SCALING, zernike_rad=zernike)
    network = SingleLocalizer(2, side, 8, 12, 1, scaling).eval()
    out = network(torch.full((3, 2, side, side), 20.0))
    count = 5 + len(zernike)
    assert out.shape == (3, 2 * count)
    assert len(estimate_names([(5 + i, -1, 1) for i in range(len(zernike))])) == 2 * count
    assert bool((out[:, count:] > 0).all())
    truth = out[:, :count].detach()
    mean = network.raw(torch.full((3, 2, side, side), 20.0))[0]
    torch.testing.assert_close(network.scaled(truth), mean, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_gaussian_likelihood() -> None:
    """Its gradient in the mean is the distance from the aim over sigma: that of the likelihood times sigma."""
    network = SingleLocalizer(1, 13, 4, 8, 1, SCALING).eval()
    boxes = torch.full((1, 1, 13, 13), 20.0)
    mean, log_sigma = (part.detach() for part in network.raw(boxes))
    truth, sigma = network(boxes)[:, :5].detach(), log_sigma.exp()

    def loss(truth: torch.Tensor, aim: torch.Tensor) -> float:
        return float(network.loss(boxes, SingleTargets(truth, aim))["likelihood"].detach())

    at = loss(truth, mean)
    assert at == pytest.approx(float((sigma * log_sigma).sum()), abs=1e-4)
    assert loss(truth, mean + sigma) == pytest.approx(at + 0.5 * float(sigma.sum()), rel=1e-4)
    moved = loss(truth + network.units(truth) * torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]), mean)
    assert moved == pytest.approx(at + 0.5 * float((1 / sigma[:, :3]).sum()), rel=1e-4)


def test_efficient_estimates_have_the_truth_for_their_mean_and_reach_the_bound(
    gaussian_calibration: Calibration,
) -> None:
    trainer = SingleTrainer(
        gaussian_calibration, RANGES, replace(OPTIONS, batch=4000, recordings=4000, samples=4000)
    )
    _, targets = trainer.draw_batch()
    step = (targets.aim - trainer.network.scaled(targets.truth)) * trainer.network.units(targets.truth)
    truth = targets.truth[:1].double()
    middle = torch.tensor([[650.0, 650.0, 0.0]], dtype=torch.float64)
    bound = crlb(
        trainer.psf,
        gaussian_calibration.camera,
        truth[:, :3] + middle,
        truth[:, 3],
        truth[:, 4],
        shape=(13, 13),
    )[0]
    assert bool((step.mean(0).abs() < 4 * bound / 4000**0.5).all())
    torch.testing.assert_close(step.std(0).double(), bound, rtol=0.06, atol=0.0)


def test_boxes_are_drawn_as_declared() -> None:
    ranges = replace(RANGES, wander_px=0.5, zernike_rad=((5, -0.2, 0.4), (11, 0.1, 0.3)))
    generator = torch.Generator().manual_seed(1)
    scene, truth = draw_singles(ranges, generator, boxes=400, side=15, pixel_nm=100.0)
    assert truth.shape == (400, 7)
    assert torch.equal(scene.frame, torch.arange(400))
    torch.testing.assert_close(scene.xyz_nm[:, :2], truth[:, :2] + 750.0)
    assert torch.equal(scene.xyz_nm[:, 3:], truth[:, 5:])
    low, high = truth.amin(0), truth.amax(0)
    assert bool((truth[:, :2].abs() <= 50.001).all())
    assert float(high[0]) > 45
    assert float(low[5]) >= -0.2
    assert float(high[5]) <= 0.4
    assert float(low[6]) >= 0.1
    assert SingleRanges.from_json(ranges.to_json()) == ranges


@pytest.mark.parametrize(
    "wrong",
    [
        {"wander_px": -1.0},
        {"zernike_rad": ((4, -0.1, 0.1),)},
        {"zernike_rad": ((5, 0.2, 0.1),)},
        {"zernike_rad": ((5, -0.1, 0.1), (5, -0.1, 0.1))},
        {"zernike_rad": ("5",)},
    ],
)
def test_ranges_name_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputRejected, match=r"wander_px|zernike_rad"):
        replace(RANGES, **wrong)


def test_emitters_that_are_drawn_once_come_again_with_new_noise(gaussian_calibration: Calibration) -> None:
    options = replace(OPTIONS, emitters=100, batch=64, samples=6400)
    trainer = SingleTrainer(gaussian_calibration, RANGES, options)
    seen: dict[float, list[torch.Tensor]] = {}
    for _ in range(12):
        photons, targets = trainer.draw_batch()
        seen.setdefault(float(targets.truth[0, 0]), []).append(photons[0])
    assert len(seen) == 2  # batches of 64 hold 100 emitters
    first, second = next(part for part in seen.values() if len(part) > 1)[:2]
    assert not torch.equal(first, second)
    again = SingleTrainer(gaussian_calibration, RANGES, options)
    again.load_state_dict(trainer.state_dict())
    assert torch.equal(again.draw_batch()[0], trainer.draw_batch()[0])
    with pytest.raises(InputRejected, match="emitters -1"):
        replace(OPTIONS, emitters=-1)


def test_recordings_share_an_emitter_and_have_their_own_noise(gaussian_calibration: Calibration) -> None:
    photons, targets = SingleTrainer(
        gaussian_calibration, RANGES, replace(OPTIONS, recordings=4, batch=64)
    ).draw_batch()
    truth = targets.truth
    assert photons.shape == (64, 1, 13, 13)
    assert len(torch.unique(truth[:, 0])) == 16
    assert torch.equal(truth[:16], truth[48:])
    assert not torch.equal(photons[0], photons[16])
    alike = np.corrcoef(photons[[0, 16, 32, 1, 17, 33]].flatten(1).numpy())
    assert alike[:3, :3].min() > alike[:3, 3:].max()
    for wrong in ({"recordings": 0}, {"recordings": 3}, {"templates": 170}, {"width": 0}):
        with pytest.raises(InputRejected, match=r"recordings|templates"):
            replace(OPTIONS, **wrong)


@pytest.mark.parametrize("side", [11, 14, 43])
def test_bad_boxes_are_refused(side: int) -> None:
    with pytest.raises(InputRejected, match="13 to 41"):
        replace(OPTIONS, box_px=side)


def test_boxes_of_another_size_are_refused(single: Single) -> None:
    for boxes in (np.zeros((2, 15, 15)), np.zeros((2, 2, 13, 13))):
        with pytest.raises(InputRejected, match="13 x 13"):
            estimate_boxes(boxes, np.zeros((2, 2)), single.model)
    with pytest.raises(InputRejected, match="corner"):
        estimate_boxes(np.zeros((2, 13, 13)), np.zeros((3, 2)), single.model)
    with pytest.raises(InputRejected, match="finite"):
        estimate_boxes(np.full((1, 13, 13), np.nan), np.zeros((1, 2)), single.model)


def movie(single: Single) -> tuple[np.ndarray, np.ndarray]:
    """Counts (20, 1, 48, 48) with two emitters a frame, far apart, and their positions (40, 3) in order."""
    known = single.trainer.calibration
    generator = torch.Generator().manual_seed(3)
    drawn = torch.rand((20, 2, 3), generator=generator)
    low = torch.tensor([[1200.0, 1200.0, -200.0], [3200.0, 3200.0, -200.0]])
    xyz = (low + drawn * torch.tensor([400.0, 400.0, 400.0])).reshape(-1, 3)
    scene = Scene(
        torch.arange(20).repeat_interleave(2),
        xyz,
        torch.full((40,), 5000.0),
        torch.zeros(40),
        torch.full((20, 48, 48), 20.0),
        torch.zeros(20),
    )
    counts = record(scene, render(scene, known.psf()), known.camera, generator)
    return counts.numpy()[:, None], xyz.numpy()


def test_a_movie_becomes_a_table_with_honest_sigma(single: Single) -> None:
    counts, truth = movie(single)
    work = single_work(single.model)
    work.check(counts)
    table = work.find(counts)
    assert list(table.columns) == list(work.empty.columns)
    assert {"uncertainty_x_nm", "uncertainty_z_nm", "uncertainty_photons"} <= set(table.columns)
    found = 0
    scores = []
    for frame, place in zip(np.repeat(np.arange(20), 2), truth, strict=True):
        near = table[(table.frame == frame) & (np.hypot(table.x_nm - place[0], table.y_nm - place[1]) < 100)]
        assert len(near) <= 1
        found += len(near)
        scores += list((near.x_nm - place[0]) / near.uncertainty_x_nm)
    assert found >= 36
    assert 0.5 < np.std(scores) < 1.6


def test_estimates_are_a_start_for_the_fit(single: Single) -> None:
    known = held_out(single.trainer, boxes=100)
    table = estimate_boxes(known.photons, np.zeros((100, 2)), single.model)
    result = fit_boxes(
        known.photons,
        np.zeros((100, 2)),
        fitted_psf(single.trainer.calibration, 13),
        camera=single.trainer.calibration.camera,
        start=table[list(STARTS)].to_numpy(),
    )
    assert result.ok.mean() > 0.9
    error = result["z_nm"] - known.truth[:, 2]
    assert np.sqrt(np.mean(error[result.ok] ** 2)) < single_scores(single.trainer, boxes=100)["rmse"]["z"]


def test_the_recipe_takes_a_model_by_its_system(single: Single) -> None:
    camera = single.trainer.calibration.camera
    counts, _ = movie(single)
    recipe = Recipe(("movie.tif",), str(single.path), camera)
    assert recipe.work().find(counts).equals(single_work(single.model).find(counts))
    with pytest.raises(InputRejected, match="threshold"):
        replace(recipe, threshold=0.4).work()


def test_models_of_other_systems_are_refused(single: Single, trained) -> None:
    with pytest.raises(InputRejected, match="singles"):
        localize_work(single.model)
    with pytest.raises(InputRejected, match="localize_work"):
        single_work(trained.model)
    with pytest.raises(InputRejected, match="smaller than the model's box"):
        single_work(single.model).check(np.zeros((1, 1, 12, 40)))
    with pytest.raises(InputRejected, match="1 channel"):
        single_work(single.model).check(np.zeros((1, 2, 40, 40)))
    with pytest.raises(InputRejected, match="wander"):
        SingleMovieOptions(wander=0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"box_px": 15}, "boxes of 15 px"),
        ({"box_px": 0}, "no sizes"),
        ({"system": "dense"}, "no sizes"),
        ({"ranges": {"zernike_rad": [[5, -1, 1]]}}, "12 'estimates'"),
        ({"ranges": {"zernike_rad": [["five"]]}}, "zernike_rad"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    single: Single, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    metadata = described(single.trainer, **changes).to_metadata()
    save_model(tmp_path / "bad.onnx", single_to_onnx(single.trainer.network, metadata, channels=1, side=13))
    with pytest.raises(InputRejected, match=words):
        load_model(tmp_path / "bad.onnx")


def test_transfer_keeps_the_backbone(single: Single) -> None:
    changed = replace(single.trainer.calibration, blur_nm=40.0)
    options = replace(OPTIONS, samples=512, freeze_backbone=True, seed=4)
    trainer = SingleTrainer(changed, RANGES, options, start=start_of(single.trainer))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    train(trainer)
    after = trainer.network.state_dict()
    for name, value in single.trainer.network.state_dict().items():
        if name.startswith("backbone.blocks."):
            assert torch.equal(after[name], value), name
    for name in ("head.plain.weight", "backbone.templates.weight"):  # another PSF asks for other templates
        assert not torch.equal(after[name], before[name])
    with pytest.raises(InputRejected, match="--from"):
        SingleTrainer(changed, RANGES, options)


def test_a_start_begins_as_its_source(single: Single) -> None:
    """The scaling is part of the network: another seed or other ranges would draw another one."""
    other = replace(RANGES, background=BackgroundRanges((50.0, 90.0)), z_nm=(-200.0, 300.0))
    start = Start(weights_of(single.onnx), dict(single.model.info.training["scaling"]))
    trainer = SingleTrainer(single.trainer.calibration, other, replace(OPTIONS, seed=9), start=start)
    boxes = held_out(trainer, boxes=20).photons
    found = trainer.network.eval()(torch.from_numpy(boxes)).detach().numpy()
    np.testing.assert_allclose(found, single.model.run(boxes), rtol=1e-4, atol=1e-3)


def test_a_start_with_other_aberrations_is_refused(single: Single) -> None:
    known = Calibration(Optics(1.4, 1.518, 1.33, 670.0, 100.0), Pupil.flat(24, {6: 0.6}))
    ranges = replace(RANGES, z_nm=(0.0, 300.0), zernike_rad=((5, -0.3, 0.3),))
    with pytest.raises(InputRejected, match="zernike_rad"):
        SingleTrainer(known, ranges, OPTIONS, start=start_of(single.trainer))
    with pytest.raises(InputRejected, match="pupil"):
        SingleTrainer(single.trainer.calibration, replace(RANGES, zernike_rad=((5, -0.3, 0.3),)), OPTIONS)


def test_a_dense_start_takes_over_the_input_scaling(trained) -> None:
    dim = replace(trained.trainer.ranges, background=BackgroundRanges((1.0, 2.0)))
    scaling = input_scaling_of(trained.onnx)
    own = asdict(trained.trainer.network.scaling)
    assert scaling == pytest.approx({key: own[key] for key in scaling}, rel=1e-5)
    start = Start(weights_of(trained.onnx), scaling)
    trainer = Trainer(trained.trainer.calibration, dim, trained.trainer.options, start=start)
    assert trainer.network.scaling.input_shift == pytest.approx(own["input_shift"], rel=1e-5)
    frozen = replace(trained.trainer.options, samples=16, freeze_backbone=True)
    trainer = Trainer(trained.trainer.calibration, dim, frozen, start=start_of(trained.trainer))
    train(trainer)
    for name, value in trained.trainer.network.backbone.state_dict().items():
        assert torch.equal(trainer.network.backbone.state_dict()[name], value), name


def test_aberrations_are_outputs(tmp_path: Path) -> None:
    known = Calibration(
        Optics(1.4, 1.518, 1.33, 670.0, 100.0, model="scalar"),
        Pupil.flat(16, {6: 0.6}),
        z_range_nm=(0.0, 300.0),
    )
    ranges = replace(RANGES, z_nm=(0.0, 300.0), zernike_rad=((5, -0.3, 0.3),))
    trainer = SingleTrainer(known, ranges, replace(OPTIONS, samples=64, batch=32))
    train(trainer)
    scores = single_scores(trainer, boxes=40)
    assert list(scores["rmse_over_crlb"])[-1] == "zernike_5"
    assert np.isfinite(scores["rmse_over_crlb"]["zernike_5"])
    info = described(trainer)
    save_model(tmp_path / "a.onnx", single_to_onnx(trainer.network, info.to_metadata(), channels=1, side=13))
    model = load_model(tmp_path / "a.onnx", threads=1)
    table = estimate_boxes(held_out(trainer, boxes=5).photons, np.zeros((5, 2)), model)
    assert {"zernike_5_rad", "uncertainty_zernike_5_rad"} <= set(table.columns)


def test_a_resumed_training_is_the_undisturbed_one(gaussian_calibration: Calibration) -> None:
    options = replace(OPTIONS, samples=4 * 32, batch=32)
    whole = SingleTrainer(gaussian_calibration, RANGES, options)
    curve = [whole.step() for _ in range(4)]
    first = SingleTrainer(gaussian_calibration, RANGES, options)
    head = [first.step() for _ in range(2)]
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = SingleTrainer(gaussian_calibration, RANGES, options)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert head + [second.step() for _ in range(2)] == curve
    with pytest.raises(InputRejected, match="box_px"):
        SingleTrainer(gaussian_calibration, RANGES, replace(options, box_px=15)).load_state_dict(
            first.state_dict()
        )


def called(*arguments: object) -> int:
    return main([str(part) for part in arguments])


def test_the_commands(gaussian_calibration: Calibration, tmp_path: Path) -> None:
    save_calibration(tmp_path / "g.psf.h5", gaussian_calibration)
    base = ("train", tmp_path / "g.psf.h5", "--system", "single", "--samples", 512, "--seed", 1, "--quiet")
    assert called(*base, "-o", tmp_path / "a.onnx", "--box", 13) == 0
    model = load_model(tmp_path / "a.onnx")
    assert (model.info.system, model.info.box_px) == ("single", 13)
    assert model.info.scores["boxes"] == 2000
    card = (tmp_path / "a.card.md").read_text(encoding="utf-8")
    for part in (
        "cell by cell",
        "RMSE z",
        "Calibration",
        "boxes a second",
        "--samples 512 --seed 1",
        model.info.calibration.hash,
    ):
        assert part in card, part
    cells = [line for line in card.splitlines() if line.count("/") == 6]
    assert len(cells) == 24
    changed = replace(gaussian_calibration, blur_nm=30.0)
    save_calibration(tmp_path / "h.psf.h5", changed)
    again = ("train", tmp_path / "h.psf.h5", *base[2:], "-o", tmp_path / "b.onnx", "--box", 13)
    assert called(*again, "--from", tmp_path / "a.onnx", "--freeze", "backbone") == 0
    first, second = (weights_of((tmp_path / f"{name}.onnx").read_bytes()) for name in "ab")
    assert torch.equal(first["backbone.blocks.0.first.weight"], second["backbone.blocks.0.first.weight"])
    adapted = load_model(tmp_path / "b.onnx").info.training["options"]
    assert (adapted["batch"], adapted["emitters"], adapted["learning_rate"]) == (128, 5000, 2e-3)
    assert not torch.equal(first["head.plain.weight"], second["head.plain.weight"])
    (tmp_path / "n.toml").write_text("patch_px = 32\n")
    for wrong, code in (
        (("--box", 12), 3),
        (("--network", tmp_path / "n.toml"), 3),
        (("--freeze", "backbone"), 2),
        (("--system", "dense", "--box", 13), 2),
        (("--system", "points"), 2),
    ):
        assert called(*base, "-o", tmp_path / "c.onnx", *wrong) == code, wrong
    assert called("export", tmp_path / "a.onnx", "-o", tmp_path / "p.zip", "--deepimagej") == 3


def test_dense_networks_keep_their_file(trained) -> None:
    """The export of boxes left that of frames as it was."""
    network = trained.trainer.network
    metadata = trained.model.info.to_metadata()
    assert "box_px" not in metadata["smlm_bridge"]
    assert to_onnx(network, metadata, channels=1, size_step=network.size_step) == trained.onnx
