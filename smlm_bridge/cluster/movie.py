"""One movie to one table through its parts: resumable, the same whatever engine, block size or number of kills."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from smlm_bridge.cluster.engines import Engine
from smlm_bridge.cluster.recipe import Recipe
from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.io.channels import Movie
from smlm_bridge.io.parts import PartStore, locked, open_parts

_LOG = logging.getLogger(__name__)

_BLOCK_PIXELS = 16_000_000
_BLOCKS_A_PROCESS = 4


@dataclass(frozen=True)
class Shard:
    """Part ``index`` (from 1) of ``count`` of a job array."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise InputRejected(
                f"shard {self.index}/{self.count}: give I/N with 1 <= I <= N, for example 3/16."
            )


@dataclass(frozen=True)
class Localized:
    """A table, and the frames that failed (index within the whole movie to the reason)."""

    table: pd.DataFrame
    failed: dict[int, str]


def parts_folder(output: Path) -> Path:
    """Where the parts of a table lie until it is written."""
    return output.with_name(output.name + ".parts")


def localize_parts(
    recipe: Recipe,
    folder: Path,
    running: Engine,
    *,
    team: int = 1,
    resume: bool = False,
    restart: bool = False,
    shard: Shard | None = None,
    block_frames: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> PartStore:
    """Write every part of a movie that is missing, or those of one shard.

    Parameters
    ----------
    recipe, folder, running
        How, where to, and with what.
    team
        Number of processes to cut the movie for.
    resume, restart
        Go on with parts that are there, or delete them first; neither: refuse them.
    shard
        Only these blocks.
    block_frames
        Frames in a part; None chooses by their size. The table does not depend on it.
    on_step
        Called with (frames done, frames in all).

    Raises
    ------
    InputRejected
        If the movie, the model or parts that are there do not fit.
    SmlmError
        If some blocks failed; the parts of the others are kept, and the folder goes if there are none.
    """
    if restart and not resume and folder.is_dir():
        with locked(folder):
            pass
        shutil.rmtree(folder)
    with recipe.source() as source:
        frames = source.n_frames
        chosen = block_frames or _block_frames(source, team if shard is None else shard.count)
    store = open_parts(
        folder, recipe.fingerprint(), frames=frames, block_frames=chosen, resume=resume or shard is not None
    )
    ours = False
    try:
        with locked(folder, shard=None if shard is None else f"{shard.index}-of-{shard.count}"):
            ours = True
            missing = store.missing()
            if shard is not None:
                missing = [number for number in missing if number % shard.count == shard.index - 1]
            _run(recipe, store, running, missing, on_step)
    except SmlmError:
        if ours and shard is None and len(store.missing()) == len(store.manifest.blocks):
            store.remove()  # nothing was done that could be resumed
        raise
    if recipe.marks() != store.manifest.work["input"]:
        _LOG.warning("the movie changed while it was localized; the table is of its first %d frames.", frames)
    return store


def merged(store: PartStore) -> Localized:
    """All parts of a store as one table, in the order of the frames.

    Raises
    ------
    SmlmError
        If parts are missing, or every frame failed.
    """
    missing = store.missing()
    if missing:
        raise SmlmError(
            f"{len(missing)} of {len(store.manifest.blocks)} parts are missing in {store.folder}; give --resume."
        )
    tables: list[pd.DataFrame] = []
    failed: dict[int, str] = {}
    for block in store.read_all():
        failed |= block.failed
        if len(block.table) or not tables:
            tables.append(block.table)
    if failed and len(failed) == store.manifest.frames:
        raise SmlmError(f"every frame failed; frame {min(failed) + 1}: {failed[min(failed)]}")
    filled = [table for table in tables if len(table)] or tables
    return Localized(pd.concat(filled, ignore_index=True), failed)


def _run(
    recipe: Recipe,
    store: PartStore,
    running: Engine,
    missing: Sequence[int],
    on_step: Callable[[int, int], None] | None,
) -> None:
    if not missing:
        return
    blocks = store.manifest.blocks
    total = store.manifest.frames
    done = total - sum(blocks[number][1] - blocks[number][0] for number in missing)

    def on_frames(count: int) -> None:
        nonlocal done
        done += count
        if on_step is not None:
            on_step(done, total)

    if on_step is not None:
        on_step(done, total)
    running.run(recipe, store, missing, on_frames=on_frames)


def _block_frames(source: Movie, team: int) -> int:
    """Few seconds of work in a block, and some blocks for each process."""
    pixels = source.height * source.width * source.n_channels
    fair = -(-source.n_frames // (_BLOCKS_A_PROCESS * team)) if team > 1 else source.n_frames
    return max(1, min(_BLOCK_PIXELS // pixels, fair))
