"""The block store: one Parquet part for each block of frames, beside a manifest that says what they are of.

A part is written whole or not at all and depends only on its frames and on the work, so parts may come in any
order, from any number of processes, twice, and after any number of kills: together they are the same table.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet
from filelock import FileLock, Timeout

from smlm_bridge.errors import InputRejected
from smlm_bridge.frames import Block
from smlm_bridge.io.atomic import atomic_output

FORMAT: Final = "smlm_bridge parts"
VERSION: Final = 1
_MANIFEST, _LOCK = "manifest.json", "run.lock"
_FAILED_KEY = b"smlm_bridge.failed"
_LARGEST_MANIFEST = 10_000_000


@dataclass(frozen=True)
class Manifest:
    """What the parts of one table are of.

    Parameters
    ----------
    work
        Everything that determines the table: input, hash of the model, options, version; JSON.
    frames
        Number of frames.
    block_frames
        Frames in a block.
    """

    work: Mapping[str, Any]
    frames: int
    block_frames: int

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First frame and end (excluded) of every block, frames from 0 within the chosen ones."""
        starts = range(0, self.frames, self.block_frames)
        return [(start, min(self.frames, start + self.block_frames)) for start in starts]


class PartStore:
    """A folder of parts; ``open_parts`` makes or reopens one."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Take a folder that exists and holds this manifest."""
        self.folder, self.manifest = folder, manifest

    def missing(self) -> list[int]:
        """Numbers of the blocks whose part is not there or cannot be read."""
        return [number for number in range(len(self.manifest.blocks)) if self._rows(number) is None]

    def write(self, number: int, block: Block) -> None:
        """Write the part of a block, atomically; one that is there is replaced by the same."""
        rows = pa.Table.from_pandas(block.table, preserve_index=False)
        failed = {str(frame): reason for frame, reason in block.failed.items()}
        rows = rows.replace_schema_metadata(
            {**(rows.schema.metadata or {}), _FAILED_KEY: json.dumps(failed).encode()}
        )
        with atomic_output(self._path(number), overwrite=True) as temporary:
            pa.parquet.write_table(rows, temporary, compression="zstd")

    def read(self, number: int) -> Block:
        """The part of a block.

        Raises
        ------
        InputRejected
            If it is damaged.
        """
        start, stop = self.manifest.blocks[number]
        try:
            rows = pa.parquet.read_table(self._path(number))
            failed = {
                int(frame): str(reason)
                for frame, reason in json.loads(rows.schema.metadata[_FAILED_KEY]).items()
            }
            table = rows.to_pandas(ignore_metadata=True)
        except (
            OSError,
            pa.ArrowException,
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
        ) as error:
            raise InputRejected(
                f"part {self._path(number)} cannot be read ({error}); delete it and resume."
            ) from error
        return Block(start, stop, table, failed)

    def read_all(self) -> Iterator[Block]:
        """All parts in order."""
        return (self.read(number) for number in range(len(self.manifest.blocks)))

    def remove(self) -> None:
        """Delete the folder with all parts; the manifest last, so that no part is ever without one."""
        for part in self.folder.glob("*.parquet"):
            part.unlink(missing_ok=True)
        shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def _rows(self, number: int) -> int | None:
        path = self._path(number)
        if not path.exists():
            return None
        try:
            return int(pa.parquet.read_metadata(path).num_rows)
        except (OSError, pa.ArrowException):
            return None  # left over from a power cut: done again


@contextmanager
def locked(folder: Path, *, shard: str | None = None) -> Iterator[None]:
    """Keep two runs from writing the same parts; the shards of one run have a lock each.

    The lock is gone when the process is, however that ended.

    Raises
    ------
    InputRejected
        If another run has it.
    """
    name = _LOCK if shard is None else f"{shard}.{_LOCK}"
    others = [] if shard else [path for path in folder.glob(f"*.{_LOCK}") if path.name != name]
    with ExitStack() as locks:
        for path in [folder / name, *others]:
            try:
                locks.enter_context(FileLock(path, timeout=0))
            except Timeout:
                raise InputRejected(
                    f"another run is writing {folder}; wait for it, or choose another output."
                ) from None
        yield


def open_parts(
    folder: Path, work: Mapping[str, Any], *, frames: int, block_frames: int, resume: bool
) -> PartStore:
    """Make the folder of parts of a table, or go on with one that is there.

    Parameters
    ----------
    folder
        Where the parts go.
    work, frames, block_frames
        See ``Manifest``; a folder that is there keeps its own ``block_frames``.
    resume
        Whether to go on with parts that are there.

    Raises
    ------
    InputRejected
        If there are parts and ``resume`` is false, they are of something else (the message says what
        differs), or they have no manifest.
    """
    wanted = Manifest(json.loads(json.dumps(work)), frames, block_frames)
    path = folder / _MANIFEST
    stray = next(
        folder.glob("part-*"), None
    )  # before the manifest: that of another shard comes before its parts
    if stray is not None and not path.exists():
        raise InputRejected(f"{stray} has no manifest beside it; give --overwrite to start again.")
    if path.exists():
        known = read_manifest(folder)
        if not resume:
            raise InputRejected(
                f"{folder} holds the parts of an unfinished run. Give --resume to go on with it, or "
                "--overwrite to start again."
            )
        differing = _differences({**known.work, "frames": known.frames}, {**wanted.work, "frames": frames})
        if differing:
            raise InputRejected(
                f"{folder} belongs to a run with other settings ({'; '.join(differing)}). Give the same ones "
                "with --resume, or --overwrite to start again."
            )
        return PartStore(folder, known)
    folder.mkdir(exist_ok=True)
    text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(wanted)}, indent=1)
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return PartStore(folder, wanted)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of parts.

    Raises
    ------
    InputRejected
        If it is missing, damaged, or of another program version.
    """
    path = folder / _MANIFEST
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise InputRejected(f"{path} is larger than any manifest of ours; give --overwrite.")
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT or found["version"] != VERSION:
            raise InputRejected(f"{path} is of another program version; give --overwrite to start again.")
        manifest = Manifest(dict(found["work"]), int(found["frames"]), int(found["block_frames"]))
    except InputRejected:
        raise
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputRejected(f"{path} cannot be read ({error!r}); give --overwrite to start again.") from error
    if manifest.frames < 0 or manifest.block_frames < 1:
        raise InputRejected(
            f"{path} is damaged: {manifest.frames} frames in blocks of {manifest.block_frames}."
        )
    return manifest


def _differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One phrase for each setting that differs."""
    return [
        f"{key}: {known.get(key, '-')} there, {wanted.get(key, '-')} now"
        for key in {**known, **wanted}
        if known.get(key) != wanted.get(key)
    ]
