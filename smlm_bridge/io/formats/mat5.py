"""MATLAB 5 files, read strictly (MathWorks, "MAT-File Format"): columns in a struct, or everything.

SciPy's reader crashes the interpreter on some damaged files, so it is not asked about files of others.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.io.formats.limits import check_claim, largest_claim

_HEADER_BYTES = 128  # a text, then version and byte order
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_DEEPEST = 16  # structs and cells in each other
_VERSION_5 = 0x0100
_COMPLEX = 0x0800
_NUMERIC_CLASSES: Final = range(6, 16)  # double, single, and the integers of 8 to 64 bits
_DAMAGED: Final = (
    struct.error, zlib.error, ValueError, KeyError, StopIteration, RuntimeError, OverflowError, MemoryError
)  # fmt: skip
_DTYPES: Final = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


@dataclass(frozen=True)
class _Matrix:
    """An array of MATLAB: what it is, its name and lengths, and the elements that hold its content."""

    kind: int
    is_complex: bool
    name: str
    shape: tuple[int, ...]
    content: Iterator[tuple[int, memoryview]]
    order: str

    def fields(self) -> Iterator[tuple[str, "_Matrix"]]:
        """Names and arrays of a struct; nothing if it is none, or an array of structs."""
        if self.kind != _STRUCT or math.prod(self.shape) != 1:
            return
        (length,) = struct.unpack(f"{self.order}i", next(self.content)[1])
        names = bytes(next(self.content)[1])
        starts = range(0, len(names), length)
        for start, (kind, body) in zip(starts, self.content, strict=True):
            if kind != _MATRIX:
                raise ValueError(f"an element of type {kind} in a struct")
            if body:  # an empty element stands for an empty array
                name = names[start : start + length].partition(b"\0")[0].decode("ascii")
                yield name, _matrix(body, self.order)

    def value(self, depth: int = 0) -> Any:
        """The content in Python's types; see ``read_mat``."""
        if depth > _DEEPEST:
            raise ValueError(f"structs and cells more than {_DEEPEST} deep")
        if self.kind in (_CELL, _STRUCT):
            return self._nested(depth)
        if self.kind == _CHAR:
            return self._text()
        values = self.numbers()
        return None if values is None else values.reshape(self.shape, order="F")

    def _nested(self, depth: int) -> Any:
        names: list[str] = []
        if self.kind == _STRUCT:
            (length,) = struct.unpack(f"{self.order}i", next(self.content)[1])
            text = bytes(next(self.content)[1])
            starts = range(0, len(text), length)
            names = [text[start : start + length].partition(b"\0")[0].decode("ascii") for start in starts]
        items = []
        for kind, body in self.content:
            if kind != _MATRIX:
                raise ValueError(f"an element of type {kind} in a struct or cell")
            items.append(_matrix(body, self.order).value(depth + 1) if body else np.empty((0, 0)))
        count = math.prod(self.shape)
        if len(items) != count * (len(names) or 1) * (self.kind == _CELL or bool(names)):
            raise ValueError(f"{len(items)} elements for the lengths {self.shape}")
        if self.kind == _CELL:
            return items
        rows = [dict(zip(names, items[i * len(names) :], strict=False)) for i in range(count)]
        return rows[0] if count == 1 else rows

    def _text(self) -> str:
        kind, body = next(self.content)
        if kind in (2, 16):  # 8-bit characters
            return bytes(body).decode("utf-8", "replace")
        return np.frombuffer(body, f"{self.order}u2").astype("<u2").tobytes().decode("utf-16-le", "replace")

    def numbers(self) -> NDArray[Any] | None:
        """All values one after the other; None where they are not real numbers."""
        if self.kind not in _NUMERIC_CLASSES or self.is_complex:
            return None
        kind, body = next(self.content)
        values = np.frombuffer(body, f"{self.order}{_DTYPES[kind]}")
        if values.size != math.prod(self.shape):
            raise ValueError(f"{values.size} values for the lengths {self.shape}")
        return values.astype(np.float64) if self.kind in _NUMERIC_CLASSES[:2] else values


def read_struct(path: str | Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """The fields with real numbers, (N,) each, of the struct at ``names[0].names[1]...``.

    Raises
    ------
    InputRejected
        If the file is no MATLAB 5 file, is cut off or damaged, expands out of proportion, or has no such
        struct.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise InputRejected(f"table {path} cannot be read: {error.strerror or error}.") from error
    order = {b"IM": "<", b"MI": ">"}.get(raw[_HEADER_BYTES - 2 : _HEADER_BYTES])
    if order is None:
        raise InputRejected(f"table {path} is not a MATLAB file of version 5 or 7.3; save it as one.")
    try:
        # All of them at once, so that a file that is cut off after the wanted one is noticed, too.
        level = _variables(path, list(_elements(memoryview(raw)[_HEADER_BYTES:], order)), order)
        for name in names:
            matrix = next((matrix for found, matrix in level if found == name), None)
            if matrix is None:
                raise InputRejected(f"table {path} has no {'.'.join(names)} in it; it lacks '{name}'.")
            level = matrix.fields()
        columns = {name: matrix.numbers() for name, matrix in level}
    except _DAMAGED as error:
        if isinstance(error, InputRejected):
            raise
        raise InputRejected(f"table {path} is damaged: {error!r}.") from error
    return {name: values for name, values in columns.items() if values is not None}


def read_mat(path: str | Path) -> dict[str, Any]:
    """Every variable of a MATLAB 5 file.

    Arrays of numbers keep their shape, structs are dictionaries (arrays of structs lists of them), cells are
    lists in the order of the file (first index fastest), texts are text; what is none of these (functions,
    objects, complex numbers) is None.

    Raises
    ------
    InputRejected
        If the file cannot be read, is no MATLAB 5 file, is cut off or damaged, or expands out of proportion.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise InputRejected(f"'{path}' cannot be read: {error.strerror or error}.") from error
    order = {b"IM": "<", b"MI": ">"}.get(raw[_HEADER_BYTES - 2 : _HEADER_BYTES])
    if order is None:
        raise InputRejected(f"'{path}' is not a MATLAB file of version 5; save it in MATLAB with -v7.")
    (version,) = struct.unpack_from(f"{order}H", raw, _HEADER_BYTES - 4)
    if version != _VERSION_5:
        raise InputRejected(f"'{path}' is a MATLAB 7.3 file, which is not read; save it with -v7.")
    try:
        elements = list(_elements(memoryview(raw)[_HEADER_BYTES:], order))
        found = {name: matrix.value() for name, matrix in _variables(path, elements, order)}
    except _DAMAGED as error:
        if isinstance(error, InputRejected):
            raise
        raise InputRejected(f"'{path}' is damaged: {error!r}.") from error
    return {name: value for name, value in found.items() if name}


def _variables(
    path: str | Path, elements: list[tuple[int, memoryview]], order: str
) -> Iterator[tuple[str, _Matrix]]:
    """Names and arrays of the file; what compressed ones expand to is bounded."""
    for kind, stored in elements:
        kept, body = kind, stored
        if kind == _COMPRESSED:
            plain = zlib.decompressobj().decompress(stored, largest_claim(path) + 1)
            check_claim(path, len(plain))
            kept, body = next(_elements(memoryview(plain), order))
        if kept != _MATRIX:
            raise ValueError(f"an element of type {kept} is no variable")
        matrix = _matrix(body, order)
        yield matrix.name, matrix


def _matrix(body: memoryview, order: str) -> _Matrix:
    parts = _elements(body, order)
    flags = struct.unpack(f"{order}II", next(parts)[1])[0]
    lengths = next(parts)[1]
    shape = struct.unpack(f"{order}{len(lengths) // 4}i", lengths)
    name = bytes(next(parts)[1]).decode("ascii")
    return _Matrix(flags & 0xFF, bool(flags & _COMPLEX), name, shape, parts, order)


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Types and bytes of the elements that lie one after the other."""
    position = 0
    while position < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        start, end = position + 8, position + 8 + size
        if small := kind >> 16:  # up to 4 bytes lie inside the tag itself
            kind, start, end = kind & 0xFFFF, position + 4, position + 4 + small
            if small > 4:
                raise ValueError(f"{small} bytes in a tag of 4")
        if end > len(content):
            raise ValueError("the file is cut off")
        yield kind, content[start:end]
        position = end if kind == _COMPRESSED else -(-end // 8) * 8  # all but compressed ones are padded
