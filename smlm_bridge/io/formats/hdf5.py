"""HDF5 of other programs, read strictly: numbers that lie in this very file, and no more of them than fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.io.formats.limits import check_claim

_NUMERIC: Final = "iufb"
#: What h5py raises where a file is damaged.
_DAMAGED: Final = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError)


@contextmanager
def open_hdf5(path: str | Path, kind: str) -> Iterator[h5py.File]:
    """Open a file for reading; whatever fails in the block because it is damaged is one clear error.

    Raises
    ------
    InputRejected
        If there is no such file, it is not HDF5, or it is damaged.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        why = "there is no such file" if not Path(path).exists() else "it is cut off, or not HDF5 at all"
        raise InputRejected(f"table {path} cannot be read as {kind}: {why} ({error}).") from error
    with file:
        try:
            yield file
        except InputRejected:
            raise
        except _DAMAGED as error:
            raise InputRejected(f"table {path} is damaged and cannot be read: {error}.") from error


def subgroup(path: str | Path, group: h5py.Group, name: str) -> h5py.Group:
    """A group inside a group; links to elsewhere are not followed.

    Raises
    ------
    InputRejected
        If it is not there.
    """
    found = _member(group, name)
    if not isinstance(found, h5py.Group):
        raise InputRejected(
            f"table {path} has no group '{name}'; it has {', '.join(group) or 'nothing'}. Is it of this format?"
        )
    return found


def numbers(path: str | Path, group: h5py.Group, name: str) -> NDArray[Any] | None:
    """An array of numbers, or of rows of named numbers; None where it is absent or declared empty.

    Raises
    ------
    InputRejected
        If it holds objects, text or references, lies in another file, or claims more than fits.
    """
    found = _member(group, name)
    if found is None:
        return None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise InputRejected(f"table {path}: '{name}' is not an array stored in this file.")
    if found.shape is None:
        return None
    dtype = found.dtype
    kinds = [dtype[i] for i in range(len(dtype))] if dtype.names else [dtype]
    if any(kind.kind not in _NUMERIC or kind.shape for kind in kinds):
        raise InputRejected(
            f"table {path}: '{name}' has the type {dtype}; only plain numbers are allowed, no objects, text or "
            "references. Export the table with its numeric columns alone."
        )
    check_claim(path, found.size * dtype.itemsize)
    return np.asarray(found[()])


def text(path: str | Path, group: h5py.Group, name: str) -> str | None:
    """A single text, None where it is absent or something else."""
    found = _member(group, name)
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual or found.shape != ():
        return None
    if h5py.check_string_dtype(found.dtype) is None:
        return None
    check_claim(path, found.dtype.itemsize)
    return str(found.asstr()[()])


def _member(group: h5py.Group, name: str) -> Any:
    """What a name stands for in this file; None if absent or a link, which could lead to any other file."""
    link = group.get(name, getlink=True)
    return group[name] if isinstance(link, h5py.HardLink) else None
