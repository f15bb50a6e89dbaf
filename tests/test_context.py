"""Three frames in: blinking scenes, backbones and encoders, from training to the table."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from smlm_bridge.calibration import Calibration  # noqa: E402
from smlm_bridge.cli import main  # noqa: E402
from smlm_bridge.errors import InputRejected  # noqa: E402
from smlm_bridge.io.calibration import save_calibration  # noqa: E402
from smlm_bridge.io.model import load_model, save_model  # noqa: E402
from smlm_bridge.io.thunderstorm import read_table  # noqa: E402
from smlm_bridge.localize import localize_work  # noqa: E402
from smlm_bridge.model import ModelInfo  # noqa: E402
from smlm_bridge.networks.backbones import Encoding, make_backbone  # noqa: E402
from smlm_bridge.networks.context import DilatedContext  # noqa: E402
from smlm_bridge.networks.export import to_onnx  # noqa: E402
from smlm_bridge.simulate.background import BackgroundRanges  # noqa: E402
from smlm_bridge.simulate.blinking import draw_blinking  # noqa: E402
from smlm_bridge.simulate.scene import Ranges, Scene  # noqa: E402
from smlm_bridge.train import FieldOptions, Trainer, TrainOptions, held_out_scores  # noqa: E402
from smlm_bridge.training import train  # noqa: E402

RANGES = Ranges(
    (-300.0, 300.0),
    photons=(1000.0, 2000.0),
    photons_law="uniform",
    density_um2=(0.4, 0.4),
    background=BackgroundRanges((5.0, 20.0)),
    margin_nm=0.0,
    lifetime_frames=1.5,
)
OPTIONS = TrainOptions(
    samples=48, batch=4, patch_px=16, widths=(4, 6), bottom_dilations=(), dilations=(1, 2), reach_px=8,
    context_frames=1,
)  # fmt: skip


def blinking(ranges: Ranges = RANGES, *, sequences: int = 400, frames: int = 5) -> Scene:
    generator = torch.Generator().manual_seed(4)
    return draw_blinking(
        ranges, generator, sequences=sequences, frames=frames, shape=(50, 40), pixel_nm=100.0
    )


def test_the_density_is_that_of_emitters_on_in_any_part_of_a_frame() -> None:
    """The same in every frame of a movie, the first and the last among them."""
    scene = blinking()
    counts = torch.bincount(scene.frame, minlength=2000).view(400, 5).double()
    wanted = 0.4 * 5.0 * 4.0
    spread = (wanted / 400) ** 0.5
    assert float((counts.mean(0) - wanted).abs().max()) < 4 * spread


def test_an_emitter_shines_for_an_exponential_time() -> None:
    scene = blinking(replace(RANGES, photons=(1000.0, 1000.0)), frames=40, sequences=60)
    x, emitter = torch.unique(scene.xyz_nm[:, 0], return_inverse=True)
    on = torch.zeros(len(x)).index_add_(0, emitter, scene.photons / 1000)
    first = torch.full((len(x),), 99.0).scatter_reduce_(0, emitter, (scene.frame % 40).float(), "amin")
    inside = on[(first > 0) & (first < 25)]  # those that go on in the movie, and off with it nearly all
    assert len(inside) > 2000
    assert float(inside.mean()) == pytest.approx(1.5, rel=0.07)
    assert float((inside > 3.0).float().mean()) == pytest.approx(np.exp(-2), rel=0.15)
    assert float(scene.photons.max()) == pytest.approx(1000.0)


def test_an_emitter_stays_where_it_is_and_the_background_with_it() -> None:
    scene = blinking(sequences=20)
    _, counts = torch.unique(scene.xyz_nm[:, 2], return_counts=True)
    assert int(counts.max()) > 2
    background = scene.background.view(20, 5, 50, 40)
    assert torch.equal(background, background[:, :1].expand_as(background))
    assert float(background[:, 0].std(0).mean()) > 1


def test_without_a_lifetime_frames_share_nothing_but_the_background() -> None:
    scene = blinking(replace(RANGES, lifetime_frames=0.0), sequences=20)
    assert len(torch.unique(scene.xyz_nm[:, 0])) == len(scene.frame)
    assert float(scene.photons.min()) >= 1000
    background = scene.background.view(20, 5, 50, 40)
    assert torch.equal(background, background[:, :1].expand_as(background))


def test_ranges_without_a_lifetime_read_as_before() -> None:
    still = replace(RANGES, lifetime_frames=0.0)
    assert "lifetime_frames" not in still.to_json()
    assert Ranges.from_json(RANGES.to_json()) == RANGES
    with pytest.raises(InputRejected, match="lifetime_frames"):
        replace(RANGES, lifetime_frames=-1.0)


def test_the_middle_frame_is_asked_for(gaussian_calibration: Calibration) -> None:
    trainer = Trainer(gaussian_calibration, RANGES, replace(OPTIONS, patch_px=32))
    scene = trainer.drawn(6, (32, 32), trainer.generator)
    assert scene.background.shape == (18, 32, 32)
    asked = trainer.asked(scene)
    rows = scene.frame % 3 == 1
    assert torch.equal(asked.xyz_nm, scene.xyz_nm[rows])
    assert torch.equal(asked.image, scene.frame[rows] // 3)
    assert torch.equal(asked.background, scene.background[1::3])
    photons, wanted = trainer.draw_batch()
    assert photons.shape == (4, 3, 32, 32)
    assert int(wanted.image.max()) < 4


@pytest.mark.parametrize("kind", ["unet", "context"])
@pytest.mark.parametrize("encoders", ["none", "shared", "separate"])
def test_no_feature_depends_on_pixels_beyond_the_reach(kind: str, encoders: Encoding) -> None:
    torch.manual_seed(1)
    backbone = make_backbone(
        3, kind=kind, widths=(4, 6), bottom_dilations=(1,), dilations=(1, 2), encoders=encoders, channels=3
    ).eval()
    step = backbone.size_step
    side = -(-(2 * backbone.reach + 4 * step) // step) * step
    images = torch.rand(1, 3, side, side).requires_grad_()
    features = backbone(images)
    assert features.shape == (1, backbone.outputs, side, side)
    row = side // 2
    (gradient,) = torch.autograd.grad(features[0, :, row, row].sum(), images)
    assert (gradient[0].abs().sum((1, 2)) > 0).all()  # every frame matters
    lit = gradient[0].abs().sum((0, 1)).nonzero()
    assert max(row - int(lit.min()), int(lit.max()) - row) <= backbone.reach


def test_a_shared_encoder_treats_frames_alike() -> None:
    torch.manual_seed(1)
    backbone = make_backbone(3, kind="context", widths=(4,), dilations=(1,), encoders="shared").eval()
    assert isinstance(backbone.encoder, DilatedContext)
    count = sum(p.numel() for p in backbone.encoder.parameters())
    alone = make_backbone(1, kind="context", widths=(4,), dilations=(1,))
    assert count == sum(p.numel() for p in alone.parameters())


@pytest.mark.parametrize(("backbone", "encoders"), [("unet", "shared"), ("context", "none")])
def test_a_trained_network_of_three_frames_localizes(
    gaussian_calibration: Calibration, tmp_path, backbone: str, encoders: str
) -> None:
    trainer = Trainer(
        gaussian_calibration, RANGES, replace(OPTIONS, backbone=backbone, encoders=encoders, samples=16)
    )
    net = train(trainer)
    info = ModelInfo(
        "three", "dense", "tests", gaussian_calibration, RANGES.to_json(), 1, net.size_step, net.reach,
        context_frames=1,
    )  # fmt: skip
    save_model(
        tmp_path / "m.onnx",
        to_onnx(net, info.to_metadata(), channels=info.inputs, size_step=net.size_step),
    )
    model = load_model(tmp_path / "m.onnx", threads=1)
    scores = held_out_scores(trainer, model.run, frames=2, side_px=16)
    assert 0 <= scores["jaccard"] <= 1
    photons = np.random.default_rng(1).gamma(2, 20, (2, 3, 16, 32)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(
            model.run(photons), net(torch.from_numpy(photons)).numpy(), rtol=1e-3, atol=1e-2
        )
    work = localize_work(model)
    assert work.context == 1
    assert work.find(np.full((2, 3, 16, 16), 120, np.uint16))["frame"].isin([0, 1]).all()
    with pytest.raises(InputRejected, match="1 channel"):
        work.find(np.full((2, 1, 16, 16), 120, np.uint16))


@pytest.mark.parametrize(
    "wrong", [{"context_frames": 2}, {"backbone": "tree"}, {"encoders": "several"}, {"dilations": ()}]
)
def test_options_name_what_is_wrong(wrong) -> None:
    with pytest.raises(InputRejected):
        replace(OPTIONS, **wrong)
    assert FieldOptions(context_frames=1).frames == 3


def test_simulate_makes_emitters_that_live_over_frames(
    gaussian_calibration: Calibration, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("smlm_bridge.cli.simulate.FRAMES_AT_ONCE", 4)
    save_calibration(tmp_path / "c.psf.h5", gaussian_calibration)
    asked = ["simulate", str(tmp_path / "c.psf.h5"), "-o", str(tmp_path / "f.tif"), "--frames", "10"]
    asked += ["--truth", str(tmp_path / "t.csv"), "--size-px", "32x32", "--density-um2", "0.5:0.5"]
    asked += ["--seed", "3"]
    assert main([*asked, "--lifetime-frames", "3", "--clear-nm", "200", "--quiet"]) == 0
    truth = read_table(tmp_path / "t.csv")
    lives = truth.groupby("x_nm")["frame"].agg(["min", "max", "count"])
    assert (lives["count"] == lives["max"] - lives["min"] + 1).all()  # without a gap, across the blocks, too
    assert lives["count"].max() > 4
    assert set(truth["frame"]) == set(range(10))
    assert truth["background"].nunique() == 1


def test_three_frames_from_the_command_line_to_a_table(
    gaussian_calibration: Calibration, tmp_path, capsys, monkeypatch
) -> None:
    save_calibration(tmp_path / "c.psf.h5", gaussian_calibration)
    (tmp_path / "r.toml").write_text("lifetime_frames = 2.0\ndensity_um2 = [0.2, 0.5]\nmargin_nm = 200.0\n")
    sizes = 'context_frames = 1\nencoders = "shared"\nwidths = [4, 6]\nbottom_dilations = []\n'
    (tmp_path / "n.toml").write_text(sizes + "patch_px = 16\nreach_px = 8\nbatch = 4\n")
    monkeypatch.setattr("smlm_bridge.cli.train.SECONDS_BETWEEN_CHECKPOINTS", 1e9)
    model, movie = tmp_path / "m.onnx", tmp_path / "movie.tif"
    train_it = ["train", str(tmp_path / "c.psf.h5"), "-o", str(model), "--ranges", str(tmp_path / "r.toml")]
    train_it += ["--network", str(tmp_path / "n.toml"), "--threads", "1", "--quiet"]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # after the training, so that a checkpoint is there
        patched.setattr("smlm_bridge.cli.train._finish", interrupted)
        assert main([*train_it, "--samples", "8"]) == 130
    resumed = [part for part in train_it if part not in ("--network", str(tmp_path / "n.toml"))]
    assert main([*resumed, "--samples", "8", "--resume"]) == 0  # what the checkpoint says of the network
    info = load_model(model).info
    assert (info.context_frames, info.channels, info.training["options"]["encoders"]) == (1, 1, "shared")
    assert info.ranges["lifetime_frames"] == 2.0
    simulate = [
        "simulate",
        str(model),
        "-o",
        str(movie),
        "--frames",
        "5",
        "--size-px",
        "16x20",
        "--seed",
        "3",
    ]
    assert main([*simulate, "--density-um2", "0.5:0.5", "--lifetime-frames", "2", "--quiet"]) == 0
    asked = [
        "localize",
        str(movie),
        "-o",
        str(tmp_path / "t.csv"),
        "--model",
        str(model),
        "--threshold",
        "0.001",
    ]
    capsys.readouterr()
    assert main([*asked, "--threads", "1", "--json", "--progress", "none"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["frames"], values["failed_frames"]) == (5, 0)
    assert set(read_table(tmp_path / "t.csv")["frame"]) <= set(range(5))
