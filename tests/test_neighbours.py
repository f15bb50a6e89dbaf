"""A network that looks at neighbouring frames: the table is the same wherever a block begins or ends."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from smlm_bridge.camera import Camera
from smlm_bridge.cluster.engines import engine
from smlm_bridge.cluster.movie import Shard, localize_parts, merged
from smlm_bridge.cluster.recipe import Recipe
from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.frames import in_blocks
from smlm_bridge.io.deepimagej import sample_frame
from smlm_bridge.io.images import open_frames
from smlm_bridge.io.model import load_model, save_model
from smlm_bridge.localize import localize_work
from smlm_bridge.model import ModelInfo
from smlm_bridge.networks.maps import MAP_NAMES

FRAMES, LEVEL, STEP = 7, 1000, 10
CAMERA = Camera(offset=0.0, e_per_adu=1.0, read_noise_e=0.0)
BEFORE, OWN, AFTER = "z_nm", "photons", "uncertainty_z_nm"


@pytest.fixture(scope="module")
def model(gaussian_calibration, tmp_path_factory) -> Path:
    """Three frames in; z is the pixel's value in the frame before, photons in its own, sigma of z behind."""
    onnx = pytest.importorskip("onnx")
    weight, bias = np.zeros((len(MAP_NAMES), 3, 1, 1), np.float32), np.ones(len(MAP_NAMES), np.float32)
    rows = {name: MAP_NAMES.index(name) for name in MAP_NAMES}
    weight[rows["probability"], 1] = 1e-3
    weight[rows["z_nm"], 0] = weight[rows["photons"], 1] = weight[rows["sigma_z_nm"], 2] = 1.0
    for name in ("probability", "dx_nm", "dy_nm", "z_nm", "photons", "sigma_z_nm"):
        bias[rows[name]] = 0.0
    inputs, outputs = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", channels, "h", "w"])
        for name, channels in (("frames", 3), ("maps", len(MAP_NAMES)))
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["frames", "w", "b"], ["maps"])],
        "neighbours",
        [inputs],
        [outputs],
        [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(bias, "b")],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    info = ModelInfo("three", "dense", "tests", gaussian_calibration, {}, 1, 4, 0, context_frames=1)
    onnx.helper.set_model_props(made, info.to_metadata())
    path = tmp_path_factory.mktemp("model") / "three.onnx"
    save_model(path, made.SerializeToString())
    return path


def levels(frames: int = FRAMES) -> np.ndarray:
    return LEVEL + STEP * np.arange(frames, dtype=np.float32)


def pixels(frames: int = FRAMES) -> np.ndarray:
    """One bright pixel, of another level in every frame."""
    movie = np.zeros((frames, 16, 20), np.float32)
    movie[:, 8, 9] = levels(frames)
    return movie


def written(folder: Path, movie: np.ndarray) -> Path:
    path = folder / "movie.tif"
    tifffile.imwrite(path, movie, photometric="minisblack", compression="zlib")
    return path


def table(recipe: Recipe, folder: Path, workers: str | None = None, **options: Any) -> pd.DataFrame:
    with engine(workers) as running:
        return merged(localize_parts(recipe, folder, running, **options)).table


def test_each_frame_sees_the_one_before_and_the_one_behind(model, tmp_path) -> None:
    recipe = Recipe((str(written(tmp_path, pixels())),), str(model), CAMERA, threads=1)
    found = table(recipe, tmp_path / "p", block_frames=100)
    assert found["frame"].tolist() == list(range(FRAMES))
    np.testing.assert_array_equal(found[OWN], levels())
    np.testing.assert_array_equal(found[BEFORE], levels()[[0, *range(FRAMES - 1)]])
    np.testing.assert_array_equal(found[AFTER], levels()[[*range(1, FRAMES), FRAMES - 1]])


@pytest.mark.parametrize("block_frames", [1, 2, 3, 6])
def test_the_table_does_not_depend_on_the_blocks(model, tmp_path, block_frames) -> None:
    movie = pixels()
    movie[4, 2, 2] = np.nan
    recipe = Recipe((str(written(tmp_path, movie)),), str(model), CAMERA, threads=1)
    whole = table(recipe, tmp_path / "w", block_frames=100)
    assert len(whole) == FRAMES - 1
    cut = table(recipe, tmp_path / "p", block_frames=block_frames)
    pd.testing.assert_frame_equal(cut, whole, check_exact=True)


def test_the_table_does_not_depend_on_shards_and_processes(model, tmp_path) -> None:
    pytest.importorskip("distributed")
    recipe = Recipe((str(written(tmp_path, pixels())),), str(model), CAMERA, threads=1)
    whole = table(recipe, tmp_path / "w", block_frames=100)
    with engine(None) as running:
        for index in (2, 1):
            store = localize_parts(recipe, tmp_path / "s", running, shard=Shard(index, 2), block_frames=2)
    pd.testing.assert_frame_equal(merged(store).table, whole, check_exact=True)
    pd.testing.assert_frame_equal(table(recipe, tmp_path / "p", "2", block_frames=2), whole, check_exact=True)


@pytest.mark.parametrize("block_pixels", [1, 2 * 16 * 20, 10**9])
def test_a_damaged_neighbour_is_replaced_by_the_frame_itself(model, tmp_path, block_pixels) -> None:
    """One frame not finite, one whose compressed bytes are damaged."""
    movie = pixels()
    movie[1, 2, 2] = np.inf
    path = written(tmp_path, movie)
    with tifffile.TiffFile(path) as file:
        page = file.pages[5]
        place, count = page.dataoffsets[0], page.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[place : place + count] = bytes(count)
    path.write_bytes(bytes(data))
    work = localize_work(load_model(model, threads=1), camera=CAMERA)
    with open_frames(path) as source:
        assert not np.isfinite(source.read(0, 3)).all()
        with pytest.raises(SmlmError):
            source.read(5, 6)
        work = type(work)(**{**vars(work), "block_pixels": block_pixels})
        blocks = list(in_blocks(source, work))
    assert {frame for block in blocks for frame in block.failed} == {1, 5}
    found = pd.concat([block.table for block in blocks])
    level = levels()
    assert found["frame"].tolist() == [0, 2, 3, 4, 6]
    np.testing.assert_array_equal(found[BEFORE], level[[0, 2, 2, 3, 6]])
    np.testing.assert_array_equal(found[AFTER], level[[0, 3, 4, 4, 6]])


def test_a_movie_that_grows_meanwhile_ends_where_it_ended(model, tmp_path) -> None:
    """The last frame is its own neighbour in every process, also in one that opens the movie later."""
    work = localize_work(load_model(model, threads=1), camera=CAMERA)
    with open_frames(written(tmp_path, pixels())) as source:
        (block,) = list(in_blocks(source, work, start=3, stop=4, n_frames=4))
    assert block.table[AFTER].tolist() == [levels()[3]]


def test_chosen_frames_are_a_movie_of_their_own(model, tmp_path) -> None:
    recipe = Recipe((str(written(tmp_path, pixels())),), str(model), CAMERA, frames=(3, 5), threads=1)
    found = table(recipe, tmp_path / "p", block_frames=2)
    assert found["frame"].tolist() == [2, 3, 4]
    assert found[BEFORE].tolist() == levels()[[2, 2, 3]].tolist()
    assert found[AFTER].tolist() == levels()[[3, 4, 4]].tolist()


def test_metadata_say_how_many_frames(model, gaussian_calibration) -> None:
    info = load_model(model).info
    assert (info.channels, info.context_frames, info.inputs) == (1, 1, 3)
    with pytest.raises(InputRejected, match="no sizes"):
        ModelInfo.from_metadata(
            ModelInfo("x", "dense", "t", gaussian_calibration, {}, 1, 4, 0, context_frames=99).to_metadata(),
            name="x",
        )


def test_a_model_whose_graph_takes_other_frames_is_refused(model, gaussian_calibration, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    made = onnx.load_model(os.fspath(model))
    del made.metadata_props[:]
    info = ModelInfo("one", "dense", "tests", gaussian_calibration, {}, 1, 4, 0)
    onnx.helper.set_model_props(made, info.to_metadata())
    save_model(tmp_path / "one.onnx", made.SerializeToString())
    with pytest.raises(InputRejected, match="takes 1 channel"):
        load_model(tmp_path / "one.onnx")


def test_other_programs_give_one_frame_at_a_time(model) -> None:
    with pytest.raises(InputRejected, match="neighbouring frames"):
        sample_frame(np.zeros((1, 64, 64), np.float32), load_model(model).info)
