"""The HDF5 behind a calibration: marks, strict fields, and the hash that tells damage.

Everything is read or nothing: a field that is missing, unknown, of another kind or not finite is an error that
names it.
"""

import faulthandler
import io
import json
import os
import struct
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, fields
from typing import Any, Final, NoReturn, Protocol, TypeVar

import h5py
import numpy as np

from smlm_bridge.errors import InputRejected

FORMAT: Final = "smlm_bridge calibration"
#: What is written where it is enough, and what holds splines, further Gaussians and pairs.
PLAIN_VERSION, VERSION = 1, 2
_MAPS: Final = ("offset", "e_per_adu", "read_noise_e")
_LARGEST_MAP = 16_384**2
# An array that is larger than the first is mostly in the file.
_UNSTORED_BYTES, _MOST_COMPRESSED = 100_000_000, 50
_HEAP: Final = b"GCOL"
_MOST_MEMORY: Final = 1_500_000_000  # that reading a file may take beyond its own size
_LONGEST_S = 5
# What h5py and our own types raise when a file is damaged.
_DAMAGE: Final = (TypeError, ValueError, OSError, AttributeError, RuntimeError, OverflowError, MemoryError)


class _Hashed(Protocol):
    @property
    def hash(self) -> str: ...


Read = TypeVar("Read")
Hashed = TypeVar("Hashed", bound=_Hashed)


def to_bytes(digest: str, version: int, write: Callable[[h5py.Group], None]) -> bytes:
    """An HDF5 file in memory, with the marks of a calibration and what ``write`` puts into it."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs.update({"format": FORMAT, "version": version, "hash": digest})
        write(file)
    return buffer.getvalue()


def from_bytes(data: bytes, name: str, read: Callable[[h5py.File], Read]) -> Read:
    """Open a file, check its marks and read it; whatever is wrong is one error that names the file.

    Raises
    ------
    InputRejected
        If it is no calibration, of another version, or ``read`` fails on it.
    """
    if _text_is_damaged(data) or not _survived(data, read):
        raise InputRejected(f"{name} is damaged: the HDF5 library cannot read it. Copy it again.")
    try:
        file = h5py.File(io.BytesIO(data), "r")
    except _DAMAGE as error:
        raise InputRejected(
            f"{name} is not an HDF5 file, so not a calibration (.psf.h5): {error}."
        ) from error
    with file:
        try:
            _check_marks(file)
            return read(file)
        except InputRejected as error:
            raise InputRejected(f"{name}: {error}") from error
        except KeyError as error:
            raise InputRejected(f"{name} lacks a field of a calibration: {error.args[0]}.") from error
        except _DAMAGE as error:
            raise InputRejected(f"{name} has a field of the wrong kind or is damaged: {error}.") from error


def _survived(data: bytes, read: Callable[[h5py.File], Read]) -> bool:
    """Whether a child process that reads a file comes to an end of its own.

    The HDF5 library (2.0) crashes or does not return on some damaged files, which would take this process with it.
    Only Linux promises that a child of a process with threads may go on; elsewhere nothing is tried.
    """
    if sys.platform != "linux":
        return True
    with warnings.catch_warnings():
        # Of threads beside a fork: the child meets none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            child = os.fork()
        except OSError:  # no room for another process
            return True
    if child == 0:
        _read_and_leave(data, read)
    try:
        return os.waitpid(child, 0)[1] == 0
    except ChildProcessError:  # somebody else waited for it
        return True


def _read_and_leave(data: bytes, read: Callable[[h5py.File], Read]) -> NoReturn:
    """In the child: read within limits and end without a word."""
    import resource
    import signal

    try:
        faulthandler.disable()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(6 * _LONGEST_S)  # should it wait for something
        resource.setrlimit(resource.RLIMIT_CPU, (_LONGEST_S, _LONGEST_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # no /proc: all the rest still holds
            _limit_memory(len(data) + _MOST_MEMORY)
        with h5py.File(io.BytesIO(data), "r") as file:
            _check_marks(file)
            read(file)
    except MemoryError:
        os._exit(1)
    except OSError as error:  # the library's own words where a damaged length asks for gigabytes
        os._exit(int("memory allocation failed" in str(error)))
    finally:
        os._exit(0)


def _limit_memory(more: int) -> None:
    """Let this process take so many bytes more, or less where a limit is set already."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as counts:
        held = int(counts.read().split()[0]) * resource.getpagesize()
    most, given = held + more, resource.getrlimit(resource.RLIMIT_AS)[1]
    if given != resource.RLIM_INFINITY:
        most = min(most, given)
    resource.setrlimit(resource.RLIMIT_AS, (most, given))


def _text_is_damaged(data: bytes) -> bool:
    """Whether the library would never return from reading a text of this file, or fill the memory first.

    Texts lie in collections of objects, each with its number, its uses and its size (HDF5 file format 3.0, III.E
    "Global Heap"); number 0 is the free space at the end and counts its own header. The library walks along the
    sizes and does not mind a step of none, nor one around the range of its integers; for a whole collection it
    takes as much memory as that says to have, before it looks whether the file is so long.
    """
    start = data.find(_HEAP)
    while start >= 0:
        size = int.from_bytes(data[start + 8 : start + 16], "little")
        if start + size > len(data):
            return True
        place, end = start + 16, start + size
        while place + 16 <= end:
            number, _uses, length = struct.unpack_from("<HH4xQ", data, place)
            step = length if number == 0 else 16 + -(-length // 8) * 8
            if step < 8 or place + step > end:
                return True
            place += step
        start = data.find(_HEAP, start + 4)
    return False


def _check_marks(file: h5py.File) -> None:
    if file.attrs.get("format") != FORMAT:
        raise InputRejected("this HDF5 file is not a calibration of smlm_bridge (no 'format' mark).")
    if int(file.attrs["version"]) not in (PLAIN_VERSION, VERSION):
        raise InputRejected(
            f"calibration version {file.attrs['version']}, this program reads versions {PLAIN_VERSION} and "
            f"{VERSION}. Use the program version that wrote it, or calibrate again."
        )


def checked_hash(file: h5py.File, found: Hashed) -> Hashed:
    """What was read, if it is what was written; the first files have no hash.

    Raises
    ------
    InputRejected
        If the hash in the file is another.
    """
    if "hash" in file.attrs and file.attrs["hash"] != found.hash:
        raise InputRejected(
            "the content does not fit the hash in the file: it was damaged or edited. Copy it again, or make it "
            "again with smlm-bridge."
        )
    return found


def described(value: Any, always: tuple[str, ...]) -> dict[str, Any]:
    """Fields of a dataclass by name: those of the first files, and others only where not at their default.

    So that files and hashes of a value do not change when its type gains a field.
    """
    result = {name: getattr(value, name) for name in always}
    for part in fields(value):
        if part.name in always:
            continue
        default: Any = part.default_factory() if part.default_factory is not MISSING else part.default
        if not np.array_equal(getattr(value, part.name), default):
            result[part.name] = getattr(value, part.name)
    return result


def canonical(value: Any) -> Any:
    """One way to write a number: 110.0 and 110 are the same microscope."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def fields_of(
    file: h5py.Group, name: str, kind: type[Any], always: tuple[str, ...], none: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The fields of the dataclass ``kind`` that stand in a group; maps are arrays in it.

    Raises
    ------
    KeyError
        If the group or a field of ``always`` that may not be None is missing.
    InputRejected
        If a field is unknown to ``kind``.
    """
    group = group_of(file, name)
    found = {key: _plain(value) for key, value in group.attrs.items()}
    found.update({key: array_of(group, key, 2, _LARGEST_MAP) for key in group if key in _MAPS})
    if unknown := (set(found) | set(group)) - {part.name for part in fields(kind)}:
        raise InputRejected(f"unknown {name} fields {sorted(unknown)}.")
    for required in always:
        if required not in found and required not in none:
            raise KeyError(f"{name}/{required}")
    return found


def group_of(file: h5py.Group, name: str) -> h5py.Group:
    """A group of the file itself."""
    if name not in file:
        raise KeyError(name)
    group = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(group, h5py.Group):
        raise InputRejected(f"{name} is not a group of fields in this file.")
    return group


def numbers(group: h5py.Group, name: str, count: int) -> list[float]:
    """An attribute of so many numbers."""
    value = np.atleast_1d(np.asarray(group.attrs[name]))
    if value.dtype.kind not in "iuf" or value.shape != (count,):
        raise InputRejected(f"{name} = {group.attrs[name]!r} is not {count} number{'s' * (count > 1)}.")
    return [float(number) for number in value]


def provenance(file: h5py.Group) -> dict[str, Any]:
    """The provenance, a JSON object."""
    content = json.loads(file.attrs["provenance"])
    if not isinstance(content, dict):
        raise InputRejected("the provenance is not a table of names and values.")
    return content


def array_of(group: h5py.Group, name: str, ndim: int, largest: int) -> Any:
    """An array of the file itself; links and external storage could read other files of the reader."""
    dataset = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        if name not in group:
            raise KeyError(f"{group.name}/{name}".strip("/"))
        raise InputRejected(f"{name} is not an array stored in this file.")
    if dataset.ndim != ndim or dataset.size > largest:
        raise InputRejected(f"{name} of shape {dataset.shape} is not a {ndim}-D array of a sensible size.")
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())  # a damaged one says anything
    if dataset.nbytes > max(_UNSTORED_BYTES, _MOST_COMPRESSED * stored):
        raise InputRejected(
            f"{name} of shape {dataset.shape} would take {dataset.nbytes / 1e6:.0f} MB of memory, of which the "
            f"file holds {stored / 1e6:.3g} MB. It is damaged, or made to fill the memory."
        )
    return dataset[()]


def _plain(value: Any) -> Any:
    """Numbers and text of Python; an attribute of several numbers is a tuple."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return value.item() if isinstance(value, np.generic) else value
