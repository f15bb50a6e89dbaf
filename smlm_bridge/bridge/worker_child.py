"""The process of one task of the worker: arrays become files, a closed stdin interrupts the verb."""

import _thread
import json
import math
import operator
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from smlm_bridge.errors import InputRejected

_AXES: Final = {2: "YX", 3: "TYX", 4: "TCYX"}
_POLL_S: Final = 0.1
_CLASSIC_TIFF: Final = 2**32 - 2**24


def run_task(main: Callable[[Sequence[str]], int]) -> int:
    """Read the command line of one verb from stdin, run it, and interrupt it when stdin closes.

    Parameters
    ----------
    main
        The program: takes the words of its command line, returns its exit code.

    Returns
    -------
    int
        The exit code.
    """
    # An interrupt ends nothing where a shell that started us in the background had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request = json.loads(sys.stdin.readline())
    lifeline = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # programs that the verb starts must not hold the lifeline
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()
    folder = Path(request["folder"])
    try:
        words = [
            str(as_file(word, folder / f"array-{number}.tif")) if isinstance(word, Mapping) else word
            for number, word in enumerate(request["words"])
        ]
    except InputRejected as error:
        print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        return error.exit_code
    return main(words)


def _watch(lifeline: int) -> None:
    if sys.platform == "win32":
        _wait_for_the_end(lifeline)
    else:
        while os.read(lifeline, 4096):
            pass
    _thread.interrupt_main()


if sys.platform == "win32":

    def _wait_for_the_end(lifeline: int) -> None:
        """Poll: a blocking read of a pipe would hang the import of numpy (numpy#24290)."""
        import _winapi
        import msvcrt

        handle = msvcrt.get_osfhandle(lifeline)
        try:
            while True:
                _winapi.PeekNamedPipe(handle, 0)
                time.sleep(_POLL_S)
        except OSError:
            return


def as_file(array: Mapping[str, Any], target: Path) -> Path:
    """Write an array in shared memory, as Appose describes it, as a TIFF.

    Parameters
    ----------
    array
        ``dtype``, ``shape`` (YX, TYX or TCYX) and ``shm`` with ``name``.
    target
        The file.

    Raises
    ------
    InputRejected
        If the description is wrong, or there is no such memory.
    """
    import numpy as np
    import tifffile

    try:
        name, shape = str(array["shm"]["name"]), tuple(operator.index(n) for n in array["shape"])
        dtype = np.dtype(str(array["dtype"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputRejected(f"an array has dtype, shape and shm with name; {error} is wrong.") from error
    if len(shape) not in _AXES or dtype.kind not in "iuf" or dtype.itemsize > 8 or min(shape) < 1:
        raise InputRejected(
            f"an array of shape {shape} and type {dtype} is no image: give numbers as YX, TYX or TCYX."
        )
    size = math.prod(shape) * dtype.itemsize
    memory = _attached(name)
    try:
        if memory.size < size:
            raise InputRejected(f"the shared memory '{name}' has {memory.size} bytes, the array {size}.")
        pixels = np.ndarray(shape, dtype, buffer=memory.buf)
        tifffile.imwrite(
            target,
            pixels,
            bigtiff=size > _CLASSIC_TIFF,
            photometric="minisblack",
            metadata={"axes": _AXES[len(shape)]},
        )
        del pixels
    finally:
        memory.close()
    return target


def _attached(name: str) -> Any:
    from multiprocessing import resource_tracker, shared_memory

    try:
        if sys.version_info >= (3, 13):
            return shared_memory.SharedMemory(name=name, track=False)
        memory = shared_memory.SharedMemory(name=name)
    except (OSError, ValueError) as error:
        raise InputRejected(f"there is no shared memory '{name}': {error}.") from error
    if sys.platform != "win32":
        # It is the service's: our end must not remove it.
        resource_tracker.unregister(f"/{name.lstrip('/')}", "shared_memory")
    return memory
