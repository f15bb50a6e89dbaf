"""The volume head: layers, loss, decoder, file, tiles, training, and from the command line to a table."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from smlm_bridge import locs  # noqa: E402
from smlm_bridge.calibration import Calibration  # noqa: E402
from smlm_bridge.cli import main  # noqa: E402
from smlm_bridge.errors import InputRejected  # noqa: E402
from smlm_bridge.frames import in_blocks  # noqa: E402
from smlm_bridge.io.calibration import save_calibration  # noqa: E402
from smlm_bridge.io.deepimagej import sample_frame  # noqa: E402
from smlm_bridge.io.images import open_frames  # noqa: E402
from smlm_bridge.io.model import load_model, save_model  # noqa: E402
from smlm_bridge.io.onnx_file import halves  # noqa: E402
from smlm_bridge.io.thunderstorm import read_table  # noqa: E402
from smlm_bridge.localize import LocalizeOptions, localize_work  # noqa: E402
from smlm_bridge.model import Model, ModelInfo  # noqa: E402
from smlm_bridge.networks.decode_volume import decode_volume  # noqa: E402
from smlm_bridge.networks.dense import Targets  # noqa: E402
from smlm_bridge.networks.export import volume_to_onnx  # noqa: E402
from smlm_bridge.networks.volume import VolumeLocalizer, VolumeScaling  # noqa: E402
from smlm_bridge.networks.volume_grid import VolumeGrid  # noqa: E402
from smlm_bridge.simulate.background import BackgroundRanges  # noqa: E402
from smlm_bridge.simulate.scene import Ranges  # noqa: E402
from smlm_bridge.train_volume import VolumeOptions, VolumeTrainer, volume_scores  # noqa: E402
from smlm_bridge.training import train  # noqa: E402
from smlm_bridge.volumes import tile_px, volume_work  # noqa: E402

PIXEL = 100.0
SCALING = VolumeScaling(0.0, 10.0, 5.0, PIXEL)
GRID = VolumeGrid(6, (-300.0, 300.0), upsampling=2, radius=2)
RANGES = Ranges(
    (-300.0, 300.0),
    photons=(4000.0, 8000.0),
    density_um2=(0.1, 0.3),
    background=BackgroundRanges((5.0, 20.0)),
    margin_nm=200.0,
)
OPTIONS = VolumeOptions(
    samples=400, batch=4, patch_px=20, reach_px=10, width=8, dilations=(1, 2), planes=6, upsampling=2, radius=2,
    learning_rate=1e-2,
)  # fmt: skip


def network(
    grid: VolumeGrid = GRID, *, inputs: int = 1, dilations: tuple[int, ...] = (1, 2)
) -> VolumeLocalizer:
    torch.manual_seed(1)
    return VolumeLocalizer(inputs, 8, dilations, grid, SCALING)


def info_of(net: VolumeLocalizer, calibration: Calibration) -> ModelInfo:
    return ModelInfo(
        "tiny",
        "volume",
        "tests",
        calibration,
        RANGES.to_json(),
        1,
        net.size_step,
        net.reach,
        0.1,
        volume=net.grid,
    )


@pytest.fixture(scope="module")
def trained(gaussian_calibration: Calibration, tmp_path_factory) -> Path:
    """A few steps of training."""
    net = train(VolumeTrainer(gaussian_calibration, RANGES, replace(OPTIONS, samples=12)))
    path = tmp_path_factory.mktemp("model") / "volume.onnx"
    save_model(path, volume_to_onnx(net, info_of(net, gaussian_calibration).to_metadata(), channels=1))
    return path


@pytest.fixture
def restless(gaussian_calibration: Calibration, tmp_path: Path) -> Model:
    """An untrained network whose volume is full of peaks."""
    net = network(VolumeGrid(5, (0.0, 500.0), upsampling=4, radius=4), dilations=(1, 3, 2))
    with torch.no_grad():
        net.out.weight.normal_(0.0, 1000.0)
    save_model(
        tmp_path / "m.onnx", volume_to_onnx(net, info_of(net, gaussian_calibration).to_metadata(), channels=1)
    )
    return load_model(tmp_path / "m.onnx", threads=1)


@pytest.mark.parametrize(
    ("inputs", "planes", "published"), [(1, 121, 612_703), (1, 80, 432_098), (2, 81, 439_777)]
)
def test_the_published_number_of_parameters(inputs: int, planes: int, published: int) -> None:
    """Of Nehme et al. 2020 (specs/models.md 2.2) and of the pair of Nehme et al. 2021."""
    net = VolumeLocalizer(inputs, 64, (1, 1, 2, 4, 8, 16), VolumeGrid(planes, (0.0, 4000.0)), SCALING)
    assert sum(p.numel() for p in net.parameters()) == published


@pytest.mark.parametrize("upsampling", [2, 4, 8])
def test_no_voxel_depends_on_pixels_beyond_the_reach(upsampling: int) -> None:
    grid = VolumeGrid(3, (0.0, 1.0), upsampling=upsampling)
    net = network(grid, dilations=(1, 2)).eval()
    net.limit = torch.nn.Identity()
    side = 2 * net.reach + 5
    images = torch.full((1, 1, side, side), 20.0).requires_grad_()
    seen, middle = 0, side // 2
    for row in range(middle * upsampling, (middle + 1) * upsampling):
        (gradient,) = torch.autograd.grad(net(images)[0, :, row, row].sum(), images)
        lit = gradient[0, 0].abs().sum(0).nonzero()
        seen = max(seen, middle - int(lit.min()), int(lit.max()) - middle)
    assert seen == net.reach


def spikes(*rows: tuple[float, float, float]) -> Targets:
    xyz = torch.tensor(rows).reshape(-1, 3)
    return Targets(torch.zeros(len(rows), dtype=torch.long), xyz, torch.ones(len(rows)), torch.ones(1, 8, 8))


def test_the_loss_of_spikes_in_their_voxels_is_nothing() -> None:
    """Wanted are three voxels; two emitters in one voxel are one spike, and those at the faces are inside."""
    net = network()
    wanted = spikes((30.0, 130.0, -190.0), (40.0, 120.0, -170.0), (799.9, 0.0, 299.9), (0.0, 799.9, -300.0))
    volume = torch.zeros(1, 6, 16, 16)
    for plane, row, column in ((1, 2, 0), (5, 0, 15), (0, 15, 0)):
        volume[0, plane, row, column] = GRID.height
    net.forward = lambda photons: volume
    terms = net.loss(torch.zeros(1, 1, 8, 8), wanted)
    assert float(terms["heat_map"]) == 0
    assert float(terms["overlap"]) == 0
    volume[0, 5, 0, 15] = 0.0
    terms = net.loss(torch.zeros(1, 1, 8, 8), wanted)
    # Two of three found: 1 - (2 I + 1) / (I + B + 1), I = 2, B = 3.
    assert float(terms["overlap"]) == pytest.approx(1 - 5 / 6)
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / 2.0)
    corner = (kernel[3:] ** 2).sum()  # the spike stands in the corner of three faces
    assert float(terms["heat_map"]) == pytest.approx(GRID.height**2 * corner**3 / volume.numel(), rel=1e-5)


def test_a_frame_without_emitters_has_a_loss() -> None:
    terms = network().loss(torch.full((2, 1, 8, 8), 20.0), spikes())
    assert all(bool(torch.isfinite(term)) for term in terms.values())


def test_positions_of_a_volume() -> None:
    volume = np.zeros((6, 20, 24), np.float32)
    volume[2, 4, 10] = 400.0
    volume[2, 4, 11] = 200.0
    volume[5, 19, 0] = 81.0
    volume[0, 0, 23] = 79.0
    found = decode_volume(volume, GRID, pixel_nm=PIXEL, threshold=0.1)
    assert found["x_nm"] == pytest.approx([(10 + 1 / 3 + 0.5) * 50, 25.0])
    assert found["y_nm"] == pytest.approx([225.0, 975.0])
    assert found["z_nm"] == pytest.approx([-50.0, 250.0])
    assert found["confidence"] == pytest.approx([0.5, 81 / 800])


def test_the_two_halves_are_the_network(restless: Model) -> None:
    photons = np.random.default_rng(1).gamma(2, 20, (2, 1, 13, 17)).astype(np.float32)
    assert restless.stages is not None
    first, second = restless.stages
    whole = restless.run(photons)
    assert whole.shape == (2, 5, 52, 68)
    assert whole.std() > 100
    np.testing.assert_allclose(second(first(photons)), whole, rtol=1e-4, atol=0.1)


def test_a_network_without_upsampling_has_no_halves(trained: Path) -> None:
    data = trained.read_bytes()
    assert halves(data, "Softmax") is None
    with pytest.raises(InputRejected, match="cut in two"):
        halves(data, "Add")  # the whole image goes around the first sum


@pytest.mark.parametrize("shape", [(1, 1), (9, 70), (75, 40)])
def test_the_table_does_not_depend_on_the_tiles(restless: Model, shape: tuple[int, int], monkeypatch) -> None:
    counts = np.random.default_rng(2).gamma(2, 40, (2, 1, *shape)).astype(np.float32) + 100
    whole = volume_work(restless).find(counts)
    assert len(whole) > (40 if min(shape) > 1 else -1)
    monkeypatch.setattr("smlm_bridge.volumes._CONTEXT_TILE_PX", 24)
    monkeypatch.setattr("smlm_bridge.volumes._TILE_VOXELS", 1)
    assert tile_px(restless.info.volume, 512) == 8
    tiled = volume_work(restless).find(counts)
    order = ["frame", "x_nm", "y_nm", "z_nm"]
    # A peak is the highest of 9 x 9 x 9 voxels: the last bits of two sums may decide between two of them.
    one, other = (table.sort_values(order).reset_index(drop=True).round(1) for table in (whole, tiled))
    shared = one.merge(other, on=order)
    assert len(shared) >= 0.98 * max(len(one), len(other))


def test_a_peak_belongs_to_one_tile(restless: Model, monkeypatch) -> None:
    """A spike in every voxel's place in turn: found once, where it is, also at the borders of tiles."""
    grid = restless.info.volume
    monkeypatch.setattr("smlm_bridge.volumes._TILE_VOXELS", 1)
    for row, column in ((31, 32), (32, 31), (33, 95), (0, 0), (63, 64)):

        def tail(features, row=row, column=column):
            volume = np.zeros((1, grid.planes, *(4 * n for n in features.shape[2:])), np.float32)
            volume[0, 2] = 800 * (features[0, 0].repeat(4, 0).repeat(4, 1) == row * 1000 + column)
            return volume

        def context(frames):
            return frames

        model = replace(restless, stages=(context, tail))
        counts = np.arange(64)[:, None] * 1000.0 + np.arange(96)
        camera = replace(restless.info.calibration.camera, offset=0.0, e_per_adu=1.0)
        found = volume_work(model, camera=camera).find(counts[None, None].astype(np.float32))
        assert len(found) == 1
        # A plateau of 4 x 4 voxels: its first is the peak, the centre of gravity that of the pixel.
        assert found["x_nm"][0] == pytest.approx((column + 0.5) * PIXEL)
        assert found["y_nm"][0] == pytest.approx((row + 0.5) * PIXEL)
        assert found["z_nm"][0] == pytest.approx(250.0)


def test_columns_are_those_that_the_network_knows(trained: Path) -> None:
    model = load_model(trained, threads=1)
    counts = np.full((2, 1, 12, 12), 120, np.uint16)
    table = volume_work(model).find(counts)
    assert list(table) == list(volume_work(model).empty)
    assert locs.validate(table)["frame"].dtype == np.int64
    assert table[["uncertainty_xy_nm", "uncertainty_z_nm"]].isna().all(axis=None)
    assert "photons" not in table
    with pytest.raises(InputRejected, match=r"volumes\.volume_work"):
        localize_work(model)
    with pytest.raises(InputRejected, match="not finite"):
        volume_work(model).find(np.full((1, 1, 8, 8), np.nan))
    with pytest.raises(InputRejected, match="volumes"):
        sample_frame(np.zeros((1, 64, 64)), model.info)
    found = {
        o: len(volume_work(model, options=LocalizeOptions(threshold=o)).find(counts)) for o in (0.01, 0.9)
    }
    assert found[0.01] >= found[0.9]


def test_frames_learned_by_heart_give_their_emitters(gaussian_calibration: Calibration) -> None:
    trainer = VolumeTrainer(gaussian_calibration, RANGES, OPTIONS)
    photons, asked = trainer.draw_batch()
    assert asked.image.numel() >= 2
    net = trainer.network.train()
    for _ in range(200):
        trainer.optimizer.zero_grad()
        sum(net.loss(photons, asked).values()).backward()
        trainer.optimizer.step()
    with torch.no_grad():
        volumes = net(photons).numpy()
    for image, volume in enumerate(volumes):
        found = decode_volume(volume, net.grid, pixel_nm=PIXEL, threshold=0.2)
        wanted = asked.xyz_nm[asked.image == image].numpy()
        assert len(found["x_nm"]) == len(wanted)
        if not len(wanted):
            continue
        away = np.stack([found[axis] for axis in ("x_nm", "y_nm", "z_nm")], axis=1)[:, None] - wanted
        # Half a voxel along x and y, which are 50 nm, half a plane along z, which is 100 nm.
        assert (np.abs(away).min(axis=0) < (30.0, 30.0, 60.0)).all()


def test_from_the_command_line_to_a_table(
    gaussian_calibration: Calibration, tmp_path: Path, capsys, monkeypatch
) -> None:
    save_calibration(tmp_path / "c.psf.h5", gaussian_calibration)
    sizes = (
        "patch_px = 16\nreach_px = 8\nwidth = 4\ndilations = [1, 2]\nplanes = 4\nupsampling = 2\nbatch = 4\n"
    )
    (tmp_path / "n.toml").write_text(sizes)
    model = tmp_path / "m.onnx"
    quick = functools.partial(volume_scores, frames=2, side_px=16)
    monkeypatch.setattr("smlm_bridge.train_volume.volume_scores", quick)
    train_it = ["train", str(tmp_path / "c.psf.h5"), "-o", str(model), "--system", "volume", "--samples", "8"]
    how = ["--network", str(tmp_path / "n.toml"), "--seed", "1", "--json", "--threads", "1"]
    assert main([*train_it, *how]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"samples", "seconds", "scores"}
    info = load_model(model).info
    assert (info.system, info.volume.planes, info.volume.z_nm) == ("volume", 4, (-300.0, 300.0))
    assert info.training["options"]["width"] == 4
    movie = np.random.default_rng(3).poisson(150, (3, 20, 22)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "movie.tif", movie, photometric="minisblack")
    asked = ["localize", str(tmp_path / "movie.tif"), "-o", str(tmp_path / "t.csv"), "--model", str(model)]
    assert main([*asked, "--threshold", "0.0001", "--json", "--threads", "1"]) == 0
    values = json.loads(capsys.readouterr().out)
    table = read_table(tmp_path / "t.csv")
    assert (values["frames"], values["localizations"]) == (3, len(table))
    assert len(table) > 0
    assert (table["uncertainty_xy_nm"] == 9999).all()
    assert (table["photons"] == 0).all()
    with open_frames([str(tmp_path / "movie.tif")]) as source:
        work = volume_work(load_model(model), options=LocalizeOptions(threshold=1e-4))
        blocks = pd.concat([block.table for block in in_blocks(source, work)])
    assert len(blocks) == len(table)


@pytest.mark.parametrize(
    ("sizes", "words"), [("planes = 'a'", "wrong kind"), ("depth = 3", "unknown"), ("planes", "TOML")]
)
def test_sizes_that_cannot_be(
    gaussian_calibration: Calibration, tmp_path: Path, capsys, sizes, words
) -> None:
    save_calibration(tmp_path / "c.psf.h5", gaussian_calibration)
    (tmp_path / "n.toml").write_text(sizes)
    asked = ["train", str(tmp_path / "c.psf.h5"), "-o", str(tmp_path / "m.onnx"), "--system", "volume"]
    assert main([*asked, "--network", str(tmp_path / "n.toml")]) == 3
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [{"planes": 0}, {"upsampling": 3}, {"z_nm": (1.0, 0.0)}, {"radius": -1}, {"height": float("nan")}],
)
def test_grids_that_cannot_be(wrong) -> None:
    with pytest.raises(InputRejected, match="no grid"):
        replace(GRID, **wrong)
    assert VolumeGrid.from_json(GRID.to_json()) == GRID
    for damaged in ({}, {**GRID.to_json(), "planes": 2.5}, {**GRID.to_json(), "z_nm": "ab"}):
        with pytest.raises(InputRejected):
            VolumeGrid.from_json(damaged)
