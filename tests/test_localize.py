"""A movie to a table: tiling, sizes, kinds of pixels, bad frames and where coordinates count from."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from smlm_bridge import locs
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError
from smlm_bridge.localize import LocalizeOptions, localize, localize_frames, run_tiled
from smlm_bridge.model import Model
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.scene import Scene, draw

OPTIONS = LocalizeOptions()


@dataclass
class Movie:
    """Frames in memory that behave as ``localize.Frames``."""

    counts: NDArray[np.generic]
    first_frame: int = 0
    x0: int = 0
    y0: int = 0
    broken: dict[int, Exception] = field(default_factory=dict)
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def n_frames(self) -> int:
        return len(self.counts)

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        self.reads.append((start, stop))
        for frame in range(start, stop):
            if frame in self.broken:
                raise self.broken[frame]
        return self.counts[start:stop]


def simulated(
    trained, *, frames: int = 4, shape: tuple[int, int] = (48, 64), seed: int = 5
) -> tuple[NDArray, Scene]:
    trainer = trained.trainer
    generator = torch.Generator().manual_seed(seed)
    scene = draw(
        trainer.ranges, generator, frames=frames, shape=shape, pixel_nm=100.0, emitters=6, clear_nm=300.0
    )
    counts = record(scene, render(scene, trainer.psf), trainer.calibration.camera, generator)
    return counts.numpy().astype(np.uint16)[:, None], scene


def table_of(source: Movie, model: Model, **options: object) -> pd.DataFrame:
    blocks = list(localize(source, model, **options))
    assert [block.first for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    return pd.concat([block.table for block in blocks], ignore_index=True)


def assert_same_tables(one: pd.DataFrame, other: pd.DataFrame, *, atol: float = 1e-3) -> None:
    assert len(one) == len(other) > 0
    pd.testing.assert_frame_equal(one, other, rtol=1e-5, atol=atol)


def test_bright_emitters_are_found_where_they_are(trained) -> None:
    counts, scene = simulated(trained, frames=10)
    table = table_of(Movie(counts), trained.model)
    assert locs.validate(table) is not None
    near = [
        np.hypot(table["x_nm"] - float(x), table["y_nm"] - float(y))[table["frame"] == int(frame)].min()
        for frame, (x, y, _) in zip(scene.frame, scene.xyz_nm, strict=True)
    ]
    assert np.median(near) < 30
    assert 0.7 * 60 < len(table) < 1.3 * 60


@pytest.mark.parametrize("shape", [(200, 160), (130, 67), (64, 301)])
def test_the_result_does_not_depend_on_the_tiles(trained, shape: tuple[int, int]) -> None:
    counts, _ = simulated(trained, frames=2, shape=shape)
    whole, tiled = (
        table_of(Movie(counts), trained.model, options=LocalizeOptions(tile_px=tile, block_pixels=pixels))
        for tile, pixels in ((4096, 10**9), (64, 1))
    )
    assert_same_tables(whole, tiled)


def test_maps_do_not_depend_on_the_tiles(trained) -> None:
    photons = np.random.default_rng(2).gamma(2, 20, (2, 1, 211, 155)).astype(np.float32)
    whole = run_tiled(photons, trained.model, tile_px=512, block_pixels=10**9)
    tiled = run_tiled(photons, trained.model, tile_px=64, block_pixels=20_000)
    assert whole.shape == (2, 10, 211, 155)
    np.testing.assert_allclose(tiled, whole, rtol=1e-4, atol=1e-4)


def test_the_result_does_not_depend_on_the_blocks(trained) -> None:
    counts, _ = simulated(trained, frames=7)
    single = table_of(Movie(counts), trained.model, options=LocalizeOptions(block_pixels=1))
    source = Movie(counts)
    assert_same_tables(
        single, table_of(source, trained.model, options=LocalizeOptions(block_pixels=3 * 48 * 64))
    )
    assert source.reads == [(0, 1), (1, 4), (4, 7)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 47), (49, 63), (17, 2)])
def test_odd_sizes(trained, shape: tuple[int, int]) -> None:
    table = table_of(Movie(np.full((2, 1, *shape), 140, np.uint16)), trained.model)
    assert table["frame"].isin([0, 1]).all()


def test_an_odd_size_does_not_move_what_is_found(trained) -> None:
    counts, _ = simulated(trained, frames=2, shape=(49, 65))
    even, odd = (
        table_of(Movie(c), trained.model)
        for c in (np.pad(counts, ((0, 0),) * 2 + ((0, 1),) * 2, "edge"), counts)
    )
    inside = (even["x_nm"] < 5500) & (even["y_nm"] < 4000)
    assert_same_tables(
        even[inside].reset_index(drop=True),
        odd[(odd["x_nm"] < 5500) & (odd["y_nm"] < 4000)].reset_index(drop=True),
    )


def test_one_frame(trained) -> None:
    counts, _ = simulated(trained, frames=1)
    assert set(table_of(Movie(counts), trained.model)["frame"]) == {0}


@pytest.mark.parametrize("level", [0, 100, 140])
def test_blank_frames_are_no_failure(trained, level: int) -> None:
    blocks = list(localize(Movie(np.full((3, 1, 32, 32), level, np.uint16)), trained.model))
    assert all(not block.failed for block in blocks)
    assert sum(len(block.table) for block in blocks) <= 3
    empty = blocks[0].table.iloc[:0]
    assert locs.validate(empty)["frame"].dtype == np.int64


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_kinds_of_pixels(trained, dtype: type) -> None:
    counts, _ = simulated(trained)
    camera = Camera(offset=10.0, e_per_adu=8.0)  # a camera of eight bits
    counts = np.round((counts - 100.0) * 0.5 / 8.0 + 10.0).clip(0, 255)
    reference = table_of(Movie(counts), trained.model, camera=camera)
    assert_same_tables(table_of(Movie(counts.astype(dtype)), trained.model, camera=camera), reference)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_frame_that_is_not_finite_is_reported_and_the_rest_finishes(trained, value: float) -> None:
    counts, _ = simulated(trained, frames=6)
    reference = table_of(Movie(counts), trained.model)
    hurt = counts.astype(np.float32)
    hurt[3, 0, 5, 5] = value
    blocks = list(localize(Movie(hurt, first_frame=20), trained.model))
    failed = {frame: reason for block in blocks for frame, reason in block.failed.items()}
    assert list(failed) == [23]
    assert "not finite" in failed[23]
    table = pd.concat([block.table for block in blocks if len(block.table)], ignore_index=True)
    table["frame"] -= 20
    assert_same_tables(table, reference[reference["frame"] != 3].reset_index(drop=True))


@pytest.mark.parametrize(
    "error", [SmlmError("damaged"), OSError("gone"), ValueError("short"), InputRejected("no")]
)
def test_a_frame_that_cannot_be_read_is_reported(trained, error: Exception) -> None:
    counts, _ = simulated(trained, frames=5)
    for bad in (0, 4):
        blocks = list(localize(Movie(counts, broken={bad: error}), trained.model))
        assert {f: r for block in blocks for f, r in block.failed.items()} == {bad: str(error)}
        assert blocks[-1].stop == 5
        assert set(pd.concat([block.table for block in blocks])["frame"]) == set(range(5)) - {bad}


def test_a_missing_package_is_no_bad_frame(trained) -> None:
    counts, _ = simulated(trained, frames=3)
    with pytest.raises(MissingDependency):
        list(localize(Movie(counts, broken={0: MissingDependency("imagecodecs")}), trained.model))


def test_all_frames_bad(trained) -> None:
    blocks = list(localize(Movie(np.full((3, 1, 32, 32), np.nan)), trained.model))
    assert sorted(frame for block in blocks for frame in block.failed) == [0, 1, 2]
    assert sum(len(block.table) for block in blocks) == 0
    assert list(blocks[0].table) == list(table_of(Movie(simulated(trained)[0]), trained.model))


def test_what_no_frame_can_pass_is_refused_at_once(trained) -> None:
    counts, _ = simulated(trained)
    with pytest.raises(InputRejected, match="1 channel"):
        list(localize(Movie(np.repeat(counts, 2, axis=1)), trained.model))
    with pytest.raises(InputRejected, match="offset map"):
        list(localize(Movie(counts), trained.model, camera=Camera(offset=np.zeros((7, 7)))))


def test_frames_and_positions_count_in_the_whole_movie(trained) -> None:
    counts, _ = simulated(trained)
    plain = table_of(Movie(counts), trained.model)
    moved = table_of(Movie(counts, first_frame=100, x0=30, y0=7), trained.model)
    moved["frame"] -= 100
    moved["x_nm"] -= 30 * 100
    moved["y_nm"] -= 7 * 100
    assert_same_tables(plain, moved, atol=1e-6)


def test_a_region_finds_what_the_whole_frame_finds(trained) -> None:
    counts, _ = simulated(trained, shape=(96, 96))
    whole = table_of(Movie(counts), trained.model)
    part = table_of(Movie(counts[:, :, 16:80, 8:72], x0=8, y0=16), trained.model)
    reach = trained.model.info.reach_px
    low_x, high_x, low_y, high_y = ((8 + reach), (72 - reach), (16 + reach), (80 - reach))
    inside = [
        t[t["x_nm"].between(100 * low_x, 100 * high_x) & t["y_nm"].between(100 * low_y, 100 * high_y)]
        for t in (whole, part)
    ]
    assert_same_tables(inside[0].reset_index(drop=True), inside[1].reset_index(drop=True))


def test_tables_say_where_emitters_stand(trained) -> None:
    counts, _ = simulated(trained)
    info = trained.model.info
    optics = replace(info.calibration.optics, field_scale=0.9, field_centre_nm=(3000.0, 2000.0))
    scaled = replace(info, calibration=replace(info.calibration, optics=optics))
    source = Movie(counts, x0=30, y0=7)
    seen, found = (table_of(source, replace(trained.model, info=i)) for i in (info, scaled))
    np.testing.assert_allclose(
        found[["x_nm", "y_nm"]], optics.stands_at(seen[["x_nm", "y_nm"]].to_numpy()), rtol=1e-6
    )
    assert np.abs(found["x_nm"] - seen["x_nm"]).max() > 100


def test_the_camera_can_be_another_one(trained) -> None:
    counts, _ = simulated(trained)
    known = trained.model.info.calibration.camera
    other = replace(known, offset=300.0)
    shifted = (counts + 200).astype(np.uint16)
    assert_same_tables(
        table_of(Movie(shifted), trained.model, camera=other), table_of(Movie(counts), trained.model)
    )


def test_the_threshold_decides_how_many(trained) -> None:
    counts, _ = simulated(trained)
    few, many = (
        len(table_of(Movie(counts), trained.model, options=LocalizeOptions(threshold=t))) for t in (0.9, 0.2)
    )
    assert few < many
    for wrong in ({"threshold": 0.0}, {"threshold": 1.5}, {"threshold": float("nan")}, {"tile_px": 8}):
        with pytest.raises(InputRejected):
            LocalizeOptions(**wrong)


def test_progress_ends_at_the_number_of_frames(trained) -> None:
    counts, _ = simulated(trained, frames=5)
    steps: list[tuple[int, int]] = []
    list(localize(Movie(counts), trained.model, on_step=lambda done, total: steps.append((done, total))))
    assert steps[-1] == (5, 5)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_columns_are_those_of_the_schema(trained) -> None:
    counts, _ = simulated(trained)
    camera = trained.model.info.calibration.camera
    table = localize_frames(counts, trained.model, camera=camera, options=OPTIONS)
    assert set(table) <= {column.name for column in locs.SCHEMA}
    assert (table["probability"].between(0, 1)).all()
    lateral = np.sqrt((table["uncertainty_x_nm"] ** 2 + table["uncertainty_y_nm"] ** 2) / 2)
    np.testing.assert_allclose(table["uncertainty_xy_nm"], lateral)
