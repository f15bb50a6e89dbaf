"""A movie through its parts: the table is the same whatever engine, block size, shards and interruptions."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile

from smlm_bridge.cluster.dask_engine import _on_own_gpu
from smlm_bridge.cluster.engines import engine
from smlm_bridge.cluster.movie import Shard, localize_parts, merged
from smlm_bridge.cluster.recipe import Recipe, absolute_model, loaded_tool
from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError
from smlm_bridge.io.images import read_stack
from smlm_bridge.io.model import load_model

MODEL = "tetrapod_telomere"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    """Seven frames, the fifth of them not finite."""
    sample = read_stack(Path(absolute_model(MODEL)).with_name("sample.tif")).astype(np.float32)
    frames = np.concatenate([sample, sample[:, ::-1], sample[:, :, ::-1]])[:7].copy()
    frames = np.resize(frames, (7, *frames.shape[1:]))
    frames[4, 3, 3] = np.nan
    path = tmp_path_factory.mktemp("movie") / "movie.tif"
    tifffile.imwrite(path, frames, imagej=True, metadata={"axes": "TYX"})
    camera = load_model(MODEL).info.calibration.camera
    return Recipe((str(path),), absolute_model(MODEL), camera, threads=1)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> pd.DataFrame:
    with engine(None) as running:
        store = localize_parts(recipe, tmp_path_factory.mktemp("w") / "p", running, block_frames=100)
    result = merged(store)
    assert len(result.table) > 20
    assert result.failed.keys() == {4}
    assert "finite" in result.failed[4]
    return result.table


@pytest.mark.parametrize("block_frames", [1, 3])
def test_the_table_does_not_depend_on_the_blocks(recipe, whole, tmp_path, block_frames) -> None:
    with engine(None) as running:
        store = localize_parts(recipe, tmp_path / "p", running, block_frames=block_frames)
    pd.testing.assert_frame_equal(merged(store).table, whole, check_exact=True)


def test_the_table_does_not_depend_on_the_processes(recipe, whole, tmp_path) -> None:
    pytest.importorskip("distributed")
    steps: list[tuple[int, int]] = []
    with engine("2") as running:
        store = localize_parts(
            recipe, tmp_path / "p", running, block_frames=2, on_step=lambda *step: steps.append(step)
        )
    result = merged(store)
    pd.testing.assert_frame_equal(result.table, whole, check_exact=True)
    assert result.failed.keys() == {4}
    assert steps[-1] == (7, 7)


def test_local_processes_listen_on_this_machine_only() -> None:
    pytest.importorskip("distributed")
    psutil = pytest.importorskip("psutil")
    with engine("2"):
        here = psutil.Process()
        found = [
            connection.laddr.ip
            for process in (here, *here.children(recursive=True))
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert len(found) >= 3
    assert set(found) <= {"127.0.0.1", "::1"}


def test_the_network_is_loaded_once_a_process(recipe, tmp_path) -> None:
    loaded_tool.cache_clear()
    with engine(None) as running:
        localize_parts(recipe, tmp_path / "p", running, block_frames=2)
    assert loaded_tool.cache_info().misses == 1


@pytest.mark.parametrize(
    ("device", "gpus", "worker", "wanted"),
    [("cuda", 2, 3, "cuda:1"), ("cuda", 2, "a-1", "cuda"), ("cuda", 1, 3, "cuda"), ("cpu", 2, 3, "cpu")],
)
def test_each_worker_has_a_gpu_where_there_are_several(
    recipe, monkeypatch, device, gpus, worker, wanted
) -> None:
    distributed = pytest.importorskip("distributed")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(distributed, "get_worker", lambda: SimpleNamespace(name=worker))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert _on_own_gpu(replace(recipe, device=device)).device == wanted


def test_shards_make_the_same_table(recipe, whole, tmp_path) -> None:
    with engine(None) as running:
        for index in (3, 1, 2):
            store = localize_parts(recipe, tmp_path / "p", running, shard=Shard(index, 3), block_frames=2)
        pd.testing.assert_frame_equal(merged(store).table, whole, check_exact=True)


def test_a_run_goes_on_where_it_was_stopped(recipe, whole, tmp_path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with engine(None) as running:
        with pytest.raises(KeyboardInterrupt):
            localize_parts(recipe, tmp_path / "p", running, block_frames=1, on_step=stop)
        steps: list[int] = []
        store = localize_parts(
            recipe, tmp_path / "p", running, resume=True, on_step=lambda done, total: steps.append(done)
        )
    assert steps[0] == 2  # the third block's frame was done, its part not written
    pd.testing.assert_frame_equal(merged(store).table, whole, check_exact=True)


def test_what_cannot_begin_leaves_no_parts(recipe, tmp_path, monkeypatch) -> None:
    def missing(module: str, *, extra: str) -> None:
        raise MissingDependency(f"{module} is not installed: {extra}")

    with engine(None) as running:
        with monkeypatch.context() as patch:
            patch.setattr("smlm_bridge.cluster.recipe.require", missing)
            with pytest.raises(MissingDependency, match="torch"):
                localize_parts(replace(recipe, refine=True), tmp_path / "p", running)
        assert not (tmp_path / "p").exists()
        localize_parts(recipe, tmp_path / "p", running)


def test_a_run_that_is_refused_leaves_the_parts_of_the_other(recipe, tmp_path) -> None:
    def second(done: int, total: int) -> None:
        if done == 0:  # the first run has written nothing yet
            with engine(None) as other, pytest.raises(InputRejected, match="another run"):
                localize_parts(recipe, tmp_path / "p", other, resume=True)

    with engine(None) as running:
        store = localize_parts(recipe, tmp_path / "p", running, on_step=second)
    assert not store.missing()


def test_parts_that_are_missing_make_no_table(recipe, tmp_path) -> None:
    with engine(None) as running:
        store = localize_parts(recipe, tmp_path / "p", running, shard=Shard(1, 2), block_frames=1)
    with pytest.raises(SmlmError, match="parts are missing"):
        merged(store)


@pytest.mark.parametrize("workers", ["0", "-1", "many", "http://host:80", "tcp://host"])
def test_a_wrong_engine_is_refused(workers) -> None:
    with pytest.raises(InputRejected, match="workers"), engine(workers):
        pass


@pytest.mark.parametrize("index", [0, 4])
def test_a_wrong_shard_is_refused(index) -> None:
    with pytest.raises(InputRejected, match="1 <= I <= N"):
        Shard(index, 3)
