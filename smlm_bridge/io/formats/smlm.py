"""The .smlm format, version 0.2, of ShareLoc: a zip file with ``manifest.json`` and binary tables.

Lengths are in nm from the outer corner of the first pixel, as in ThunderSTORM, from whose tables most of these
files are made; frames count from 1. Rows lie one after the other, little-endian.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge import __version__
from smlm_bridge import locs as table
from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.formats import columns
from smlm_bridge.io.formats.limits import check_claim

_VERSION = "0.2"
_FORMAT = "smlm-table(binary)"
_TABLE = "table-0.bin"
_LARGEST_MANIFEST = 16 * 2**20
_DTYPES: Final = {
    **{f"{sign}int{8 * size}": f"<{sign or 'i'}{size}" for sign in ("u", "") for size in (1, 2, 4)},
    "float32": "<f4",
    "float64": "<f8",
}
#: Theirs (without the unit that some writers put behind the name) to ours.
_OURS: Final = {
    column.thunderstorm.partition(" [")[0]: (column.name, column.unit) for column in table.SCHEMA
} | {"background": ("background", "photon")}
_NM_PER: Final = {"nm": 1.0, "": 1.0, "um": 1e3, "µm": 1e3}  # nm is the default of the specification
_IN_PIXELS: Final = ("px", "pixel", "pixels")
#: What zipfile, zlib and json raise where a file is damaged.
_DAMAGED: Final = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError, ValueError,
    KeyError, TypeError, AttributeError, IndexError, RecursionError,
)  # fmt: skip


def read(path: str | Path, *, pixel_nm: float | None = None) -> pd.DataFrame:
    """Read the table of a .smlm file; columns it does not know keep their names.

    Raises
    ------
    InputRejected
        If it is not such a file, is damaged or out of proportion, is of another version, holds no table or
        several, a table as text or of small images, or lengths in pixels and ``pixel_nm`` is missing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(_content(path, archive, "manifest.json", _LARGEST_MANIFEST))
            return _table(path, archive, manifest, pixel_nm)
    except InputRejected:
        raise
    except _DAMAGED as error:
        why = "there is no such file" if not Path(path).exists() else f"{error!r}"
        raise InputRejected(f"table {path} is not a .smlm file, or is damaged: {why}.") from error


def _content(path: str | Path, archive: zipfile.ZipFile, name: str, expected: int) -> bytes:
    """A file of the archive, at most ``expected`` bytes of it plus one, whatever the archive says of it."""
    if name not in archive.namelist():
        raise InputRejected(
            f"table {path} has no {name}; it has {', '.join(archive.namelist()[:5]) or 'none'}."
        )
    with archive.open(name) as file:
        content = file.read(expected + 1)
    if len(content) > expected:
        raise InputRejected(f"table {path}: {name} is larger than {expected} bytes, which it should not be.")
    return content


def _table(path: str | Path, archive: zipfile.ZipFile, manifest: Any, pixel_nm: float | None) -> pd.DataFrame:
    version = str(manifest.get("format_version"))
    if version != _VERSION and not version.startswith(f"{_VERSION}."):
        raise InputRejected(f"table {path} is of version {version} of the format; {_VERSION} is read.")
    tables = [file for file in manifest["files"] if file.get("type") == "table"]
    if len(tables) != 1:
        named = ", ".join(str(file.get("name")) for file in tables) or "none"
        raise InputRejected(f"table {path} holds {len(tables)} tables ({named}); it must be one.")
    info = tables[0]
    layout = manifest["formats"][info["format"]]
    dtype = _dtype(path, layout)
    rows = info["rows"]
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        raise InputRejected(f"table {path} claims {rows!r} rows.")
    check_claim(path, rows * dtype.itemsize)
    raw = _content(path, archive, str(info["name"]), rows * dtype.itemsize)
    if len(raw) != rows * dtype.itemsize:
        raise InputRejected(
            f"table {path} has {len(raw)} bytes for {rows} rows of {dtype.itemsize} bytes; it is cut off."
        )
    return _named(path, np.frombuffer(raw, dtype), layout, info.get("offset") or {}, pixel_nm)


def _dtype(path: str | Path, layout: Mapping[str, Any]) -> np.dtype[Any]:
    """What a row is."""
    if layout.get("type") != "table" or layout.get("mode") != "binary":
        raise InputRejected(
            f"table {path} is stored as {layout.get('mode')!r}, not binary; unzip it and read the text file."
        )
    headers, types = layout["headers"], layout["dtype"]
    shapes = layout.get("shape") or [1] * len(headers)
    if any(shape not in (1, [1]) for shape in shapes):
        raise InputRejected(f"table {path} has columns of images (shape {shapes}); only numbers are read.")
    if wrong := sorted({str(kind) for kind in types if kind not in _DTYPES}):
        raise InputRejected(
            f"table {path} has the type {', '.join(wrong)}; allowed are {', '.join(_DTYPES)}."
        )
    return np.dtype([(str(name), _DTYPES[kind]) for name, kind in zip(headers, types, strict=True)])


def _named(
    path: str | Path,
    rows: NDArray[Any],
    layout: Mapping[str, Any],
    offset: Mapping[str, Any],
    pixel_nm: float | None,
) -> pd.DataFrame:
    """The columns under our names and in our units."""
    names = rows.dtype.names or ()
    units = layout.get("units") or [""] * len(names)
    data: dict[str, NDArray[Any]] = {}
    for name, unit in zip(names, units, strict=True):
        label, _, in_label = name.partition(" [")
        ours, kind = _OURS.get(label, (name, ""))
        values = rows[name]
        if shift := float(offset.get(name, 0)):
            values = values.astype(np.float64) + shift
        if kind == "nm":
            values = values * _scale(path, name, in_label.rstrip("]") or str(unit), pixel_nm)
        if ours in data:
            raise InputRejected(f"table {path} gives one quantity in two columns: {', '.join(names)}.")
        data[ours] = values
    data.pop("id", None)
    if missing := [name for name in table.REQUIRED if name not in data]:
        raise InputRejected(f"table {path} lacks {', '.join(missing)}; it has {', '.join(names)}.")
    return columns.to_table(path, data, first_frame=FIRST_FRAME_IN_FILES)


def _scale(path: str | Path, name: str, unit: str, pixel_nm: float | None) -> float:
    """Length of the unit in nm."""
    if unit in _IN_PIXELS:
        return columns.check_pixel(path, pixel_nm)
    if unit not in _NM_PER:
        raise InputRejected(f"table {path}: column {name} has the unit {unit!r}; allowed are nm, um and px.")
    return _NM_PER[unit]


def write(
    path: str | Path, locs: pd.DataFrame, *, pixel_nm: float | None = None, overwrite: bool = False
) -> int:
    """Write a .smlm file: frames as uint32, everything else as float32. The pixel size plays no part.

    Raises
    ------
    InputRejected
        If the table is not valid, or the target cannot be written.
    """
    locs = table.validate(locs)
    label = {column.name: column.thunderstorm.partition(" [")[0] for column in table.SCHEMA}
    lateral = columns.joined(locs, columns.UNCERTAINTIES)
    if lateral is not None:
        locs = locs.assign(uncertainty_xy_nm=lateral)
    values = {label[name]: locs[name].to_numpy(np.float64) for name in label if name in locs}
    values |= columns.other_columns(path, locs, label, [*_OURS, "id"])
    values["frame"] = columns.frames_32(path, locs, first_frame=FIRST_FRAME_IN_FILES)
    rows = np.empty(len(locs), [(name, "<u4" if name == "frame" else "<f4") for name in values])
    for name, column in values.items():
        rows[name] = column
    with (
        atomic_output(path, overwrite=overwrite) as file_name,
        zipfile.ZipFile(file_name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        archive.writestr("manifest.json", json.dumps(_manifest(path, rows), allow_nan=False, indent=1))
        with archive.open(_TABLE, "w", force_zip64=True) as file:
            file.write(rows.tobytes())
    return len(locs)


def _manifest(path: str | Path, rows: NDArray[Any]) -> dict[str, Any]:
    """What describes the table to other programs."""
    names = list(rows.dtype.names or ())
    unit = {name: _OURS[name][1] if name in _OURS else "" for name in names} | {"frame": "frame"}
    layout = {
        "name": _FORMAT,
        "type": "table",
        "mode": "binary",
        "extension": ".bin",
        "columns": len(names),
        "headers": names,
        "dtype": ["uint32" if name == "frame" else "float32" for name in names],
        "shape": [1] * len(names),
        "units": [unit[name] for name in names],
        "description": "localizations, origin at the outer corner of the first pixel, frames from 1",
    }
    info = {
        "name": _TABLE,
        "type": "table",
        "format": _FORMAT,
        "channel": "default",
        "rows": len(rows),
        "offset": dict.fromkeys(names, 0),
        "min": {name: _extreme(rows[name], np.min) for name in names},
        "max": {name: _extreme(rows[name], np.max) for name in names},
    }
    return {
        "format_version": _VERSION,
        "formats": {_FORMAT: layout},
        "files": [info],
        "name": Path(path).stem,
        "description": f"written by smlm_bridge {__version__}",
        "tags": [],
        "thumbnail": "",
        "sample": "",
        "labeling": "",
        "date": "",
    }


def _extreme(values: NDArray[Any], which: Any) -> float:
    """Least or largest value; 0 where there is none that JSON can hold."""
    found = float(which(values)) if values.size else 0.0
    return found if math.isfinite(found) else 0.0
