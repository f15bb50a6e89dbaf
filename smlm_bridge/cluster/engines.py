"""Where blocks are worked on: here, in local processes, or on machines of a dask cluster."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from smlm_bridge.cluster.recipe import Recipe
from smlm_bridge.errors import InputRejected
from smlm_bridge.frames import in_blocks, whole_block
from smlm_bridge.io.parts import PartStore

OnFrames = Callable[[int], None]
_QUEUES = ("slurm", "pbs", "lsf", "sge")


class Engine(Protocol):
    """Works on blocks of a movie and writes their parts."""

    def run(self, recipe: Recipe, store: PartStore, numbers: Sequence[int], *, on_frames: OnFrames) -> None:
        """Write the parts ``numbers`` of ``store``.

        Parameters
        ----------
        recipe, store, numbers
            How, where, and which blocks.
        on_frames
            Called with the number of frames done since the last call.

        Raises
        ------
        SmlmError
            If some blocks could not be worked on; the parts of the others are written.
        """
        ...


class Here:
    """This process; a thread reads ahead of the network."""

    def run(self, recipe: Recipe, store: PartStore, numbers: Sequence[int], *, on_frames: OnFrames) -> None:
        """See ``Engine.run``."""
        with recipe.opened() as (source, work):
            for number in numbers:
                start, stop = store.manifest.blocks[number]
                done = 0

                def on_step(now: int, _total: int) -> None:
                    nonlocal done
                    on_frames(now - done)
                    done = now

                blocks = in_blocks(
                    source, work, start=start, stop=stop, n_frames=store.manifest.frames, on_step=on_step
                )
                store.write(number, whole_block(blocks, work))


@contextmanager
def engine(workers: str | None) -> Iterator[Engine]:
    """The engine that ``--workers`` names, and its processes as long as the context lasts.

    Parameters
    ----------
    workers
        None for this process; a number of local processes; ``tcp://HOST:PORT`` of a dask scheduler;
        ``slurm[:FILE]``, ``pbs``, ``lsf`` or ``sge`` likewise, configured as dask-jobqueue is, FILE being one
        more such configuration (YAML).

    Raises
    ------
    InputRejected
        If the text names no engine.
    MissingDependency
        If dask is not installed.
    """
    if workers is None:
        yield Here()
        return
    from smlm_bridge.cluster import dask_engine

    queue, _, file = workers.partition(":")
    if re.fullmatch(r"[1-9]\d{0,4}", workers):
        opened = dask_engine.local(int(workers))
    elif re.match(r"(tcp|tls)://[^/]+:\d+$", workers):
        opened = dask_engine.connected(workers)
    elif queue in _QUEUES:
        opened = dask_engine.queued(queue, file or None)
    else:
        raise InputRejected(
            f"workers '{workers}': give a number of processes, tcp://HOST:PORT of a dask scheduler, or "
            f"{', '.join(_QUEUES)} with an optional :FILE.yaml."
        )
    with opened as running:
        yield running


def size_of_team(workers: str | None) -> int:
    """How many processes to cut a movie for."""
    if workers is None:
        return 1
    return int(workers) if workers.isdigit() else 32
