"""Blocks on dask workers: local processes, a running cluster, or jobs of a queue."""

import contextlib
import functools
import logging
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from smlm_bridge import __version__
from smlm_bridge._optional import require
from smlm_bridge.cluster.engines import Here, OnFrames
from smlm_bridge.cluster.recipe import Recipe
from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.io.parts import PartStore, read_manifest

_LOG = logging.getLogger(__name__)

_HERE_ONLY = "127.0.0.1:0"
_TIMEOUT_S = 30
_RETRIES = 2
_DEFAULT_JOBS = 8


class Dask:
    """Workers of a dask scheduler; each writes its parts itself, so the folder of parts is seen by all."""

    def __init__(self, client: Any) -> None:
        """Take a connected client."""
        self._client = client

    def run(self, recipe: Recipe, store: PartStore, numbers: Sequence[int], *, on_frames: OnFrames) -> None:
        """See ``engines.Engine.run``."""
        distributed = require("distributed", extra="cluster")
        if recipe.threads is None:
            recipe = replace(recipe, threads=1)
        blocks = store.manifest.blocks
        task = functools.partial(write_part, recipe, str(store.folder.resolve()))
        futures = {
            self._client.submit(task, number, pure=False, retries=_RETRIES): number for number in numbers
        }
        failures: dict[int, str] = {}
        try:
            for future in distributed.as_completed(futures):
                number = futures[future]
                if future.status == "finished":
                    start, stop = blocks[number]
                    on_frames(stop - start)
                else:
                    failures[number] = _reason(future)
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone
                self._client.cancel(list(futures), force=True)
        if failures:  # a part may have been written although its worker was not heard of again
            missing = set(store.missing())
            failures = {number: reason for number, reason in failures.items() if number in missing}
        if failures:
            raise SmlmError(_told(failures, blocks, store))


def write_part(recipe: Recipe, folder: str, number: int) -> int:
    """Work on one block in a worker and write its part; returns its number."""
    store = PartStore(Path(folder), read_manifest(Path(folder)))
    Here().run(_on_own_gpu(recipe), store, [number], on_frames=lambda _frames: None)
    return number


def _on_own_gpu(recipe: Recipe) -> Recipe:
    """One GPU a worker where there are several: local workers are numbered."""
    if recipe.device != "cuda":
        return recipe
    import torch

    name = str(require("distributed", extra="cluster").get_worker().name)
    count = torch.cuda.device_count()
    return replace(recipe, device=f"cuda:{int(name) % count}") if name.isdigit() and count > 1 else recipe


def _reason(future: Any) -> str:
    try:
        error = future.exception(timeout=1)
    except Exception as problem:
        error = problem
    return str(error) or future.status if error is not None else f"the scheduler is gone ({future.status})"


def _told(failures: dict[int, str], blocks: list[tuple[int, int]], store: PartStore) -> str:
    first = min(failures)
    spans = ", ".join(f"{blocks[number][0] + 1}:{blocks[number][1]}" for number in sorted(failures)[:5])
    return (
        f"{len(failures)} of {len(blocks)} blocks failed (frames {spans}{', ...' if len(failures) > 5 else ''} "
        f"of those chosen): {failures[first]}. The parts of the others are kept in {store.folder}; give "
        "--resume to go on."
    )


@contextmanager
def local(count: int) -> Iterator[Dask]:
    """Worker processes on this machine, one thread each, that listen on this machine only."""
    distributed = require("distributed", extra="cluster")
    _be_quiet()
    with (
        tempfile.TemporaryDirectory(prefix="smlm-bridge-", ignore_cleanup_errors=True) as folder,
        _loop() as loop,
        distributed.LocalCluster(
            loop=loop,
            n_workers=count,
            threads_per_worker=1,
            host="127.0.0.1",
            # Even without a dashboard dask serves its state: on this machine only, at any port.
            dashboard_address=_HERE_ONLY,
            worker_dashboard_address=_HERE_ONLY,
            local_directory=folder,
            memory_limit=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield Dask(client)


@contextmanager
def _loop() -> Iterator[Any]:
    """Dask's event loop; the processes that it starts do not hear Ctrl-C.

    A terminal sends it to all of them at once; this process answers it and ends the others. The signal mask
    of a thread is handed on to what it starts.
    """
    runner = require("distributed.utils", extra="cluster").LoopRunner()
    masks = hasattr(signal, "pthread_sigmask")
    if masks:
        resource_tracker.ensure_running()  # else the loop starts it, which lets its thread hear Ctrl-C again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    try:
        runner.start()
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield runner.loop
    finally:
        runner.stop()


@contextmanager
def connected(address: str) -> Iterator[Dask]:
    """The workers of a scheduler that runs already.

    Raises
    ------
    SmlmError
        If nothing answers there, or its workers have another version of this program.
    """
    distributed = require("distributed", extra="cluster")
    _be_quiet()
    try:
        client = distributed.Client(address, timeout=_TIMEOUT_S)
    except OSError as error:
        raise SmlmError(
            f"no dask scheduler answers at {address} ({error}). Start one with 'dask scheduler', or give a "
            "number of local workers."
        ) from error
    with client:
        _check_versions(client)
        yield Dask(client)


@contextmanager
def queued(queue: str, file: str | None) -> Iterator[Dask]:
    """Jobs of a queue, as dask-jobqueue is configured.

    Raises
    ------
    InputRejected
        If the configuration is missing or not complete.
    """
    dask_config = require("dask.config", extra="cluster")
    jobqueue = require("dask_jobqueue", extra="cluster")
    distributed = require("distributed", extra="cluster")
    _be_quiet()
    given: dict[str, Any] = {}
    if file is not None:
        if not Path(file).is_file():
            raise InputRejected(f"the configuration {file} of the queue '{queue}' does not exist.")
        given = dask_config.collect(paths=[file], env={})
    with dask_config.set(dask_config.merge(dask_config.config, given)):
        jobs = int(dask_config.get(f"jobqueue.{queue}.jobs", _DEFAULT_JOBS))
        needed = ("cores", "memory")
        missing = [name for name in needed if dask_config.get(f"jobqueue.{queue}.{name}", None) is None]
        if missing:
            raise InputRejected(
                f"the configuration of '{queue}' does not say {' and '.join(missing)} of a job. Write them into "
                f"~/.config/dask/jobqueue.yaml, or give --workers {queue}:FILE.yaml."
            )
        try:
            cluster = getattr(jobqueue, f"{queue.upper()}Cluster")()
        except ValueError as error:
            raise InputRejected(
                f"dask-jobqueue does not take the configuration of '{queue}': {error}"
            ) from error
        with cluster, distributed.Client(cluster) as client:
            cluster.scale(jobs=jobs)
            yield Dask(client)


def _check_versions(client: Any) -> None:
    """Refuse workers without this program, or with another version of it."""
    try:
        versions = set(client.run(_version).values())
    except Exception as error:
        raise SmlmError(
            f"the workers cannot import smlm_bridge ({error}). Install smlm_bridge {__version__} where they run."
        ) from error
    if not versions:
        _LOG.warning("the scheduler has no workers yet; waiting for some.")
    if versions - {__version__}:
        raise SmlmError(
            f"the workers have smlm_bridge {', '.join(sorted(versions))}, this is {__version__}. "
            "Install the same version everywhere."
        )


def _version() -> str:
    return __version__


def _be_quiet() -> None:
    """Dask's own log is for its developers; what matters reaches the user as an error."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
