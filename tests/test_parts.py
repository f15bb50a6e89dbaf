"""The block store: parts in any order, twice, after kills, by one run at a time."""

import json

import numpy as np
import pandas as pd
import pytest

from smlm_bridge.errors import InputRejected
from smlm_bridge.frames import Block
from smlm_bridge.io.parts import Manifest, locked, open_parts, read_manifest

WORK = {"model_sha256": "ab", "threshold": None, "roi": [1, 2, 3, 4]}


def block(start: int, stop: int, failed: dict[int, str] | None = None) -> Block:
    table = pd.DataFrame({"frame": np.arange(start, stop), "x_nm": np.linspace(0, 1, stop - start) / 3})
    return Block(start, stop, table, failed or {})


def test_blocks_cover_every_frame_once() -> None:
    for frames, size in ((1, 1), (7, 3), (6, 3), (5, 100)):
        blocks = Manifest({}, frames, size).blocks
        assert [i for start, stop in blocks for i in range(start, stop)] == list(range(frames))


def test_parts_come_back_bit_for_bit_in_order(tmp_path) -> None:
    store = open_parts(tmp_path / "p", WORK, frames=7, block_frames=3, resume=False)
    for number in (2, 0, 1, 1):
        store.write(number, block(*store.manifest.blocks[number], {number: "über"} if number else None))
    assert store.missing() == []
    found = list(store.read_all())
    pd.testing.assert_frame_equal(
        pd.concat([part.table for part in found], ignore_index=True),
        pd.concat([block(*span).table for span in store.manifest.blocks], ignore_index=True),
        check_exact=True,
    )
    assert [part.failed for part in found] == [{}, {1: "über"}, {2: "über"}]


def test_going_on_keeps_parts_and_block_size(tmp_path) -> None:
    first = open_parts(tmp_path / "p", WORK, frames=7, block_frames=3, resume=False)
    first.write(1, block(3, 6))
    again = open_parts(tmp_path / "p", WORK, frames=7, block_frames=5, resume=True)
    assert again.manifest.block_frames == 3
    assert again.missing() == [0, 2]


def test_a_cut_off_part_is_missing(tmp_path) -> None:
    store = open_parts(tmp_path / "p", WORK, frames=2, block_frames=1, resume=False)
    store.write(0, block(0, 1))
    part = next((tmp_path / "p").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-20])
    assert store.missing() == [0, 1]
    with pytest.raises(InputRejected, match="resume"):
        store.read(0)


def test_parts_without_their_manifest_are_refused(tmp_path) -> None:
    store = open_parts(tmp_path / "p", WORK, frames=2, block_frames=1, resume=False)
    store.write(0, block(0, 1))
    (tmp_path / "p" / "manifest.json").unlink()
    with pytest.raises(InputRejected, match="no manifest"):
        open_parts(tmp_path / "p", WORK, frames=2, block_frames=2, resume=True)


def test_parts_that_are_there_are_refused_without_resume(tmp_path) -> None:
    open_parts(tmp_path / "p", WORK, frames=2, block_frames=1, resume=False)
    with pytest.raises(InputRejected, match="--resume"):
        open_parts(tmp_path / "p", WORK, frames=2, block_frames=1, resume=False)


@pytest.mark.parametrize(
    ("work", "frames", "named"),
    [({**WORK, "threshold": 0.3}, 2, "threshold: None there, 0.3 now"), (WORK, 3, "frames: 2 there, 3 now")],
)
def test_other_settings_are_refused_and_named(tmp_path, work, frames, named) -> None:
    open_parts(tmp_path / "p", WORK, frames=2, block_frames=1, resume=False)
    with pytest.raises(InputRejected, match=named):
        open_parts(tmp_path / "p", work, frames=frames, block_frames=1, resume=True)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "x", "version": 1}', "\x00", "[" * 100_000]
    + [
        json.dumps({"format": "smlm_bridge parts", "version": 1, "work": {}, "frames": f, "block_frames": b})
        for f, b in ((-1, 1), (1, 0), ("a", 1), (None, 1), (float("inf"), 1))
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, text) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputRejected, match="manifest"):
        read_manifest(tmp_path)


def test_one_run_at_a_time_and_shards_beside_each_other(tmp_path) -> None:
    with locked(tmp_path), pytest.raises(InputRejected, match="another run"), locked(tmp_path):
        pass
    with locked(tmp_path, shard="1-of-2"), locked(tmp_path, shard="2-of-2"):
        with pytest.raises(InputRejected, match="another run"), locked(tmp_path, shard="1-of-2"):
            pass
        with pytest.raises(InputRejected, match="another run"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass
