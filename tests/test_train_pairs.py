"""Networks of two channels: what they are trained on, what travels with them, and a movie from end to end."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from smlm_bridge.calibration import Calibration  # noqa: E402
from smlm_bridge.camera import Camera  # noqa: E402
from smlm_bridge.cli import main  # noqa: E402
from smlm_bridge.coverage.boxes import Boxes  # noqa: E402
from smlm_bridge.coverage.pairs import PairRenderer  # noqa: E402
from smlm_bridge.coverage.rendered import Measured  # noqa: E402
from smlm_bridge.coverage.seen import boxes_of_counts  # noqa: E402
from smlm_bridge.errors import InputRejected  # noqa: E402
from smlm_bridge.io.calibration import load_channels, save_calibration  # noqa: E402
from smlm_bridge.localize import localize_work  # noqa: E402
from smlm_bridge.model import Model, ModelInfo, photons_of  # noqa: E402
from smlm_bridge.multi.work import refined, refiner_of  # noqa: E402
from smlm_bridge.optics.microscope import Optics  # noqa: E402
from smlm_bridge.optics.pupil import Pupil  # noqa: E402
from smlm_bridge.pair import PairCalibration  # noqa: E402
from smlm_bridge.simulate.background import BackgroundRanges  # noqa: E402
from smlm_bridge.simulate.channels import views  # noqa: E402
from smlm_bridge.simulate.instrument import Instrument, View, resampled  # noqa: E402
from smlm_bridge.simulate.render import record, render  # noqa: E402
from smlm_bridge.simulate.scene import Ranges, Scene, SecondRanges, draw  # noqa: E402
from smlm_bridge.simulate.single import SingleRanges  # noqa: E402
from smlm_bridge.singles import single_work  # noqa: E402
from smlm_bridge.train import Trainer, TrainOptions, run_now  # noqa: E402
from smlm_bridge.train_single import SingleOptions, SingleTrainer, held_out  # noqa: E402
from smlm_bridge.train_single import run_now as run_boxes  # noqa: E402
from smlm_bridge.transform import Resampling, Transform  # noqa: E402

PIXEL, SIDE = 100.0, 40
OPTICS = Optics(1.2, 1.33, 1.33, 670.0, PIXEL, focus_nm=0.0)
CAMERAS = Camera(offset=100.0, e_per_adu=0.5, read_noise_e=1.0), Camera(offset=200.0, e_per_adu=0.8)
RATIO = 0.7
TURN = np.deg2rad(1.0)
# One degree, mirrored along x, shifted: whole frames of SIDE pixels lie on each other.
MIRRORED = Transform.affine(
    [[-np.cos(TURN), np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]], (SIDE * PIXEL + 130.0, -70.0)
)
RANGES = Ranges(
    (-300.0, 300.0),
    photons=(15_000.0, 25_000.0),
    density_um2=(0.05, 0.2),
    background=BackgroundRanges((5.0, 10.0)),
    margin_nm=300.0,
)


def paired(transform: Transform = MIRRORED) -> PairCalibration:
    """Astigmatism along x in channel 1, along a diagonal and coma in channel 2: nothing is symmetric by chance."""
    first, second = (
        Calibration(OPTICS, Pupil.flat(32, zernike), camera=camera, z_range_nm=(-300.0, 300.0))
        for zernike, camera in zip(({6: 0.9}, {5: 0.8, 7: 0.3}), CAMERAS, strict=True)
    )
    return PairCalibration(first, second, transform, RATIO)


@pytest.fixture(scope="module")
def pair() -> PairCalibration:
    return paired()


def movie(
    pair: PairCalibration, scene: Scene, generator: torch.Generator, ranges: Ranges = RANGES
) -> np.ndarray:
    """Counts (T, 2, H, W) as ``simulate`` makes them."""
    seen = views(scene, pair, ranges, generator)
    return np.stack(
        [
            record(view, render(view, channel.psf()), channel.camera, generator).numpy()
            for view, channel in zip(seen, pair.channels, strict=True)
        ],
        axis=1,
    )


def model_of(pair: PairCalibration, run: Callable[..., Any], **more: Any) -> Model:
    info = ModelInfo("tiny", "dense", "tests", pair, RANGES.to_json(), 2, 4, 8)
    return Model(replace(info, **more), run)


def test_a_batch_is_what_localize_makes_of_simulated_frames(
    pair: PairCalibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to the network's input, without noise: drawn anywhere in the field, and from whole frames."""
    generator = torch.Generator().manual_seed(3)
    scene = draw(RANGES, generator, frames=3, shape=(SIDE, SIDE), pixel_nm=PIXEL, emitters=3, clear_nm=1200.0)
    scene = replace(scene, background=torch.full_like(scene.background, 7.0))
    monkeypatch.setattr("smlm_bridge.simulate.channels.draw_background", lambda _r, _g, *, frames, shape:
                        torch.full((frames, *shape), 7.0))  # fmt: skip
    seen = views(scene, pair, RANGES, generator)
    counts = np.stack(
        [c.camera.expected(render(v, c.psf()).numpy()) for v, c in zip(seen, pair.channels, strict=True)],
        axis=1,
    )
    model = model_of(pair, lambda frames: frames)
    from_movie = photons_of(counts.astype(np.float32), model, None)
    # Where channel 1's patch lies in its field, channel 2's images are resampled on another grid of the chip: the
    # same up to what a cubic misses between pixels.
    instrument = Instrument(pair, tuple(c.psf() for c in pair.channels), RANGES)
    parts = instrument.views(scene, generator)
    assert parts[1].resampling is not None
    drawn = np.stack([view.on_first(view.expected()).numpy() for view in parts], axis=1)
    assert drawn.shape == from_movie.shape == (3, 2, SIDE, SIDE)
    np.testing.assert_allclose(drawn[:, 0], from_movie[:, 0], atol=0.02)
    inner = slice(8, -8)
    away = np.abs(drawn[:, 1] - from_movie[:, 1])[:, inner, inner]
    assert away.max() < 0.04 * drawn[:, 1].max()
    # And the light is where the emitters are in channel 1, not mirrored: centroids over the whole frame.
    light = drawn - 7.0
    rows, columns = np.indices((SIDE, SIDE)) + 0.5
    for c in range(2):
        for frame in range(3):
            mine = scene.frame == frame
            weight = scene.photons[mine]
            wanted = (scene.xyz_nm[mine, :2] * weight[:, None]).sum(0) / weight.sum() / PIXEL
            total = light[frame, c].sum()
            found = (light[frame, c] * columns).sum() / total, (light[frame, c] * rows).sum() / total
            np.testing.assert_allclose(found, wanted, atol=1.0)
    shares = light[:, 1].sum() / light[:, 0].sum()
    assert shares == pytest.approx(RATIO, abs=0.03)


def test_resampling_finds_the_same_pixels_in_torch_and_numpy(pair: PairCalibration) -> None:
    images = np.random.default_rng(1).random((2, 9, 11), np.float32)
    turned = Resampling(MIRRORED.moved((-2900.0, 40.0)), (PIXEL, PIXEL), (7, 8), (9, 11))
    np.testing.assert_allclose(resampled(torch.from_numpy(images), turned).numpy(), turned(images), rtol=1e-5)
    shifted = Resampling(Transform.affine(np.eye(2), (200.0, 100.0)), (PIXEL, PIXEL), (7, 8), (9, 11))
    np.testing.assert_allclose(shifted(images), images[:, 1:8, 2:10], rtol=1e-6)
    assert Resampling(Transform.identity(), (PIXEL, PIXEL), (7, 8), (7, 8)).moves_nothing
    assert not turned.moves_nothing


def test_a_region_is_resampled_as_the_whole_frames_are() -> None:
    shifted = paired(Transform.affine([[0.99, 0.02], [-0.02, 1.01]], (230.0, -140.0)))
    counts = np.random.default_rng(1).integers(200, 900, (2, 6, SIDE, SIDE))
    model = model_of(shifted, lambda frames: frames, context_frames=1)
    whole = photons_of(counts, model, None)
    part = photons_of(counts[:, :, 5:, 7:], model, None, corner_nm=(7 * PIXEL, 5 * PIXEL))
    np.testing.assert_allclose(part[..., 4:-4, 4:-4], whole[..., 9:-4, 11:-4], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(part[:, ::2], CAMERAS[0].to_photons(counts[:, ::2, 5:, 7:]))
    swapped = photons_of(counts, model, (CAMERAS[1], CAMERAS[0]))
    np.testing.assert_array_equal(swapped[:, ::2], CAMERAS[1].to_photons(counts[:, ::2]))
    with pytest.raises(InputRejected, match=r"takes 2 channel\(s\), the frames have 1"):
        photons_of(counts[:, :3], model, None)


def test_the_second_channel_has_ranges_of_its_own(pair: PairCalibration) -> None:
    own = SecondRanges((0.5, 0.9), (20.0, 40.0), BackgroundRanges((50.0, 60.0)), (3.0, 4.0))
    ranges = replace(RANGES, channel2=own, density_um2=(0.5, 0.5))
    assert Ranges.from_json(json.loads(json.dumps(ranges.to_json()))) == ranges
    assert "channel2" not in RANGES.to_json()  # checkpoints of earlier versions are compared with this
    generator = torch.Generator().manual_seed(1)
    scene = draw(ranges, generator, frames=4, shape=(SIDE, SIDE), pixel_nm=PIXEL, clear_nm=500.0)
    first, second = views(scene, pair, ranges, generator, sequence=2)
    ratio = second.photons / first.photons
    assert 0.5 <= ratio.min() < 0.6
    assert 0.8 < ratio.max() <= 0.9
    torch.testing.assert_close(first.photons + second.photons, scene.photons)
    assert 20 <= second.blur_nm.min() < second.blur_nm.max() <= 40
    assert 50 <= second.background.min() <= second.background.max() <= 60
    assert torch.equal(second.background[0], second.background[1])  # a sequence has one
    assert not torch.equal(second.background[1], second.background[2])
    twice = replace(scene, frame=torch.cat([scene.frame, scene.frame]), xyz_nm=scene.xyz_nm.repeat(2, 1),
                    photons=scene.photons.repeat(2), blur_nm=scene.blur_nm.repeat(2))  # fmt: skip
    first, second = views(twice, pair, replace(ranges, margin_nm=1e6), generator, sequence=2)
    half = len(scene.frame)  # an emitter that two frames show has one ratio
    torch.testing.assert_close(
        (second.photons / first.photons)[:half], (second.photons / first.photons)[half:]
    )
    with pytest.raises(InputRejected, match="channel2"):
        views(scene, pair.first, ranges, generator)
    with pytest.raises(InputRejected, match="photon_ratio"):
        SecondRanges(photon_ratio=(0.9, 0.5))


@pytest.fixture(scope="module")
def overfitted(pair: PairCalibration) -> tuple[Trainer, Scene]:
    """A tiny network that has seen one scene again and again, with noise of its own each time."""
    options = TrainOptions(
        samples=10_000, batch=4, patch_px=SIDE, reach_px=10, widths=(12, 24), bottom_dilations=(1,),
        encoders="separate", learning_rate=4e-3,
    )  # fmt: skip
    trainer = Trainer(pair, RANGES, options)
    generator = torch.Generator().manual_seed(11)
    scene = draw(RANGES, generator, frames=4, shape=(SIDE, SIDE), pixel_nm=PIXEL, emitters=2, clear_nm=900.0)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 4e-3
    trainer.network.train()
    for _ in range(110):
        trainer.optimizer.zero_grad(set_to_none=True)
        terms = trainer.network.loss(trainer.recorded(scene, trainer.generator), trainer.asked(scene))
        sum(terms.values()).backward()
        trainer.optimizer.step()
    return trainer, scene


def found_in(table: Any, scene: Scene) -> tuple[int, float]:
    """How many of a scene's emitters have a localization within 150 nm, and how many localizations there are."""
    truth = scene.xyz_nm.numpy()
    here = 0
    for frame, (x, y, _) in zip(scene.frame.tolist(), truth, strict=True):
        rows = table[table["frame"] == frame]
        here += bool((np.hypot(rows["x_nm"] - x, rows["y_nm"] - y) < 150).any())
    return here, len(table)


def test_a_network_of_a_pair_learns_where_emitters_are(overfitted: tuple[Trainer, Scene]) -> None:
    """Channel 2 carries on alone: its sign and origin are right, or a network of both would not find them."""
    trainer, scene = overfitted
    assert trainer.network.backbone.reach <= 2 * trainer.network.backbone.union.reach
    generator = torch.Generator().manual_seed(5)
    counts = movie(trainer.calibration, scene, generator)
    model = model_of(trainer.calibration, run_now(trainer))
    found, rows = found_in(localize_work(model).find(counts), scene)
    assert found >= 7  # of 8
    assert rows <= 10
    swapped = localize_work(model, camera=CAMERAS[::-1]).find(counts[:, ::-1].copy())
    assert found_in(swapped, scene)[0] < 5  # the channels are no two copies


def test_a_pair_travels_in_the_metadata(pair: PairCalibration) -> None:
    info = model_of(pair, lambda frames: frames).info
    metadata = info.to_metadata()
    again = ModelInfo.from_metadata(metadata, name="m")
    assert again.calibration.hash == pair.hash
    assert isinstance(again.calibration, PairCalibration)
    assert again.calibration.photon_ratio == RATIO
    assert json.loads(metadata["smlm_bridge"])["version"] == 2
    with pytest.raises(InputRejected, match="two channels"):
        _ = again.one_channel
    plain = replace(info, calibration=pair.first, channels=1).to_metadata()
    assert json.loads(plain["smlm_bridge"])["version"] == 1  # what earlier programs read, too
    with pytest.raises(InputRejected, match="sizes"):
        ModelInfo.from_metadata(replace(info, channels=1).to_metadata(), name="m")
    raw = bytearray(base64.b64decode(metadata["smlm_bridge.calibration"]))
    bad = 0
    for place in range(0, len(raw), max(1, len(raw) // 8)):
        damaged = raw.copy()
        damaged[place] ^= 0xFF
        try:
            text = base64.b64encode(bytes(damaged)).decode()
            read = ModelInfo.from_metadata({**metadata, "smlm_bridge.calibration": text}, name="m")
        except InputRejected:
            bad += 1
        else:
            assert read.calibration.hash == pair.hash  # a byte that nothing depends on
    assert bad


def test_the_joint_refinement_uses_both_channels(pair: PairCalibration) -> None:
    """Positions within their own bound, also where every channel has a blur of its own."""
    ranges = replace(RANGES, blur_nm=(0.0, 60.0), channel2=SecondRanges(blur_nm=(20.0, 90.0)))
    generator = torch.Generator().manual_seed(8)
    scene = draw(ranges, generator, frames=10, shape=(SIDE, SIDE), pixel_nm=PIXEL, emitters=2, clear_nm=900.0)
    counts = movie(pair, scene, generator, ranges)
    truth = scene.xyz_nm.double().numpy()
    start = truth + np.random.default_rng(1).normal(0, 60, truth.shape)
    table = pd.DataFrame(start, columns=["x_nm", "y_nm", "z_nm"]).assign(frame=scene.frame.numpy())
    given = replace(
        localize_work(model_of(pair, lambda frames: frames)), find=lambda _counts: table, context=0
    )
    found = refined(given, refiner_of(pair, ranges=ranges.to_json()), CAMERAS).find(counts)
    assert len(found) == len(truth)
    found = found.sort_values(["frame", "x_nm"])
    order = np.lexsort((truth[:, 0], scene.frame.numpy()))
    names = ["x_nm", "y_nm", "z_nm"]
    errors = found[names].to_numpy() - truth[order]
    sigma = found[[f"uncertainty_{name}" for name in names]].to_numpy()
    # 60 draws: the root mean square of a standard score has a standard deviation of 9 %.
    assert 0.7 < np.sqrt(np.mean((errors / sigma) ** 2)) < 1.3
    assert (np.sqrt(np.mean(errors**2, axis=0)) < [6, 6, 15]).all()
    assert np.median(found["photons"] / scene.photons.numpy()[order]) == pytest.approx(1.0, abs=0.03)
    alone = refined(given, refiner_of(pair.first, ranges=RANGES.to_json()), CAMERAS[0]).find(counts[:, :1])
    assert alone["uncertainty_z_nm"].median() > 1.1 * np.median(sigma[:, 2])


def judged(known: PairCalibration, model: Model, counts: np.ndarray, table: pd.DataFrame) -> Measured:
    """What boxes of the true emitters show when they are rendered with another calibration."""
    model = replace(model, info=replace(model.info, calibration=known))
    parts = [
        boxes_of_counts(
            model, image, CAMERAS, table[table.frame == k].reset_index(drop=True), side_px=13, frame=k
        )
        for k, image in enumerate(counts)
    ]
    boxes = Boxes.joined(parts)
    assert len(boxes) == len(counts)
    assert [len(part) for part in boxes.parts] == [len(boxes)] * 2
    return PairRenderer.of(known, RANGES.to_json(), side_px=13).with_cameras(CAMERAS).measure(boxes)


def test_coverage_renders_both_channels(pair: PairCalibration) -> None:
    generator = torch.Generator().manual_seed(6)
    scene = draw(
        RANGES, generator, frames=25, shape=(SIDE, SIDE), pixel_nm=PIXEL, emitters=1, clear_nm=1300.0
    )
    counts = movie(pair, scene, generator)
    table = pd.DataFrame(scene.xyz_nm.double().numpy(), columns=["x_nm", "y_nm", "z_nm"])
    table = table.assign(frame=scene.frame.numpy(), photons=scene.photons.double().numpy(), background=7.0)
    model = model_of(pair, lambda frames: frames)
    right = judged(pair, model, counts, table)
    # Standard scores, of which the mean of 25 has a standard deviation of 0.2.
    assert abs(right.statistics[:, 0].mean()) < 0.8
    np.testing.assert_allclose(right.quantities[:, 1], table["photons"], rtol=0.06)
    aberrated = replace(pair, second=replace(pair.second, pupil=Pupil.flat(32, {5: 0.4, 7: -0.3})))
    assert judged(aberrated, model, counts, table).statistics[:, 0].mean() > 4.0
    shifted = replace(pair, transform=pair.transform.moved((120.0, 0.0)))
    assert judged(shifted, model, counts, table).statistics[:, 1].mean() > 1.5 * right.statistics[:, 1].mean()


def test_single_emitters_in_two_channels(pair: PairCalibration) -> None:
    ranges = SingleRanges(
        (-250.0, 250.0), photons=(15_000.0, 25_000.0), background=BackgroundRanges((5.0, 10.0)), wander_px=1.0
    )
    options = SingleOptions(samples=64 * 160, batch=64, templates=32, width=48, blocks=1, box_px=13)
    trainer = SingleTrainer(pair, ranges, options)
    known = held_out(trainer, boxes=300)
    assert known.photons.shape == (300, 2, 13, 13)
    one = held_out(SingleTrainer(pair.first, ranges, options), boxes=300)
    # Two channels say more than one that has all of the light would of its own astigmatism.
    assert np.median(known.bound[:, 2]) < 1.3 * np.median(one.bound[:, 2])
    while not trainer.done:
        trainer.step()
    found = run_boxes(trainer)(known.photons)[:, :5]
    spread = np.sqrt(np.mean((found - known.truth) ** 2, axis=0))
    assert (spread[:2] < 25).all()
    assert spread[2] < 60
    info = model_of(pair, run_boxes(trainer), system="single", box_px=13, ranges=ranges.to_json())
    generator = torch.Generator().manual_seed(4)
    scene = draw(RANGES, generator, frames=6, shape=(SIDE, SIDE), pixel_nm=PIXEL, emitters=1, clear_nm=1200.0)
    table = single_work(info).find(movie(pair, scene, generator))
    assert len(table) == 6
    assert found_in(table, scene) == (6, 6)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json", "--quiet"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_pair_from_training_to_explained_signal(
    pair: PairCalibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every verb takes the model; the network is trained for seconds, so positions come from --refine."""
    cal, model, frames = tmp_path / "pair.psf.h5", tmp_path / "pair.onnx", tmp_path / "movie.tif"
    save_calibration(cal, pair)
    (tmp_path / "ranges.toml").write_text(
        "z_nm = [-300.0, 300.0]\nphotons = [15000.0, 25000.0]\ndensity_um2 = [0.05, 0.05]\nmargin_nm = 300.0\n"
        "[background]\nconstant = [5.0, 10.0]\n[channel2]\nphoton_ratio = [0.6, 0.8]\n"
    )
    (tmp_path / "net.toml").write_text(
        'widths = [4, 6]\nbottom_dilations = []\nencoders = "shared"\npatch_px = 32\nreach_px = 10\n'
    )
    said = run(
        capsys, "train", cal, "-o", model, "--ranges", tmp_path / "ranges.toml",
        "--network", tmp_path / "net.toml", "--samples", 24, "--seed", 1,
    )  # fmt: skip
    assert said["samples"] == 24
    assert "Channel 1 to channel 2" in (tmp_path / "pair.card.md").read_text()
    loaded = load_channels(model)
    assert loaded.hash == pair.hash
    run(
        capsys, "simulate", model, "-o", frames, "--truth", tmp_path / "truth.csv", "--frames", 4, "--emitters", 2,
        "--size-px", f"{SIDE}x{SIDE}", "--photons", "15000:25000", "--background", "8:8", "--clear-nm", 900,
        "--seed", 2, "--split", "left-right",
    )  # fmt: skip
    given = ["--model", model, "--split", "left-right", "--threshold", 0.9]
    plain = run(capsys, "localize", frames, "-o", tmp_path / "plain.csv", *given)
    assert plain["failed_frames"] == 0
    assert plain["coverage"]["light"] == "unknown"  # boxes of two channels are not rendered again yet
    said = run(capsys, "localize", frames, "-o", tmp_path / "table.csv", "--refine", *given)
    assert said["localizations"] >= 7
    scores = run(capsys, "evaluate", tmp_path / "table.csv", tmp_path / "truth.csv")
    assert scores["jaccard"] > 0.8
    assert scores["rmse_lateral_nm"] < 15
    told = run(capsys, "rerender", tmp_path / "table.csv", frames, model, "--split", "left-right")
    assert min(told["explained_signal"]) > 0.9
    bound = run(capsys, "crlb", model, "--photons", 20000, "--z-nm", "0:0:100", "--background", 8)
    assert bound["sigma_x_nm"][0] > 0


def test_a_view_without_resampling_is_left_alone(pair: PairCalibration) -> None:
    still = Instrument(paired(Transform.identity()), tuple(c.psf() for c in pair.channels), RANGES)
    scene = draw(RANGES, torch.Generator().manual_seed(1), frames=1, shape=(16, 16), pixel_nm=PIXEL)
    first, second = still.views(scene, torch.Generator().manual_seed(2))
    assert isinstance(second, View)
    assert second.resampling is None
    assert second.scene.background.shape == first.scene.background.shape
