"""ThunderSTORM tables: the CSV that ThunderSTORM, Picasso, locan, napari-storm, COMET and SMAP(py) all read.

What the readers need, and so what is written: a quoted header, ``id`` first, frames from 1, fixed-point
decimals (ThunderSTORM's parser reads ``1.5e-05`` as 1.5), no text that is not a finite number (it drops such
rows, and so does Picasso), ``\\n``, UTF-8 without BOM, and every column Picasso insists on.
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
from numpy.typing import NDArray

from smlm_bridge import locs as table
from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.delimited import read_header, read_rows

_log = logging.getLogger(__name__)

#: What stands for "no usable uncertainty": large, so that filters and weights discard the row.
UNKNOWN_UNCERTAINTY_NM: Final = 9999.0
#: PSF width for tables without one; Picasso opens no table without a width.
DEFAULT_PSF_SIGMA_NM: Final = 130.0

_LABEL: Final = {column.name: column.thunderstorm for column in table.SCHEMA}
_MUST_2D: Final = ("psf_sigma_nm", "photons", "background", "background_std", "uncertainty_xy_nm")
_MUST_3D: Final = ("psf_sigma1_nm", "psf_sigma2_nm", *_MUST_2D[1:], "uncertainty_z_nm")
_DECIMALS_OWN, _DECIMALS_FOREIGN = 3, 6
_FIXED_POINT_RANGE = (1e-4, 1e9)  # outside, the shortest representation may have an exponent
_LARGEST = 1e30  # Arrow's decimals have 38 digits

_NM_PER: Final = {"nm": 1.0, "um": 1e3, "µm": 1e3, "μm": 1e3}
_PHOTON_UNITS = ("photon", "photons", "")
#: Other programs' names: ThunderSTORM 1.3 (uncertainty), the SMLM challenge (xnano...).
_ALIASES: Final = {
    "uncertainty": "uncertainty_xy [nm]",
    **{f"{axis}{tail}": f"{axis} [nm]" for axis in "xyz" for tail in ("nano", "nm", "_nm")},
}


def write_table(
    path: str | Path,
    locs: pd.DataFrame,
    *,
    overwrite: bool = False,
    psf_sigma_nm: float = DEFAULT_PSF_SIGMA_NM,
    version: Literal["dev", "1.3"] = "dev",
) -> None:
    """Write localizations as a ThunderSTORM table, whole or not at all.

    Columns of ``locs.SCHEMA`` get ThunderSTORM's labels, others keep their own. With ``z_nm`` the 3-D set of
    columns is written, else the 2-D one; columns of the set that ``locs`` lacks are filled: widths with
    ``psf_sigma_nm``, ``bkgstd`` with sqrt(max(background, 0)), ``uncertainty_xy`` with the root mean square
    of those in x and y where these exist, everything else with 0 (not given).

    A value that is not finite is replaced, as readers drop such rows: uncertainties in nm by 9999, widths by
    ``psf_sigma_nm``, ``detections`` by 1, everything else by 0; the log says how many.

    Parameters
    ----------
    path
        The file; its folder must exist.
    locs
        A table as in ``smlm_bridge.locs``: frames from 0. An ``id`` column is dropped and numbered anew.
    overwrite
        Replace an existing file.
    psf_sigma_nm
        Width of the PSF (standard deviation, nm) where the table has none.
    version
        The ThunderSTORM to write for; 1.3 calls the lateral uncertainty ``uncertainty [nm]``.

    Raises
    ------
    InputRejected
        If a frame or position is not finite (the message names the rows), a column is not numeric, or the
        target cannot be written.
    """
    locs = table.validate(locs.drop(columns="id", errors="ignore"))
    columns = _complete(locs, psf_sigma_nm)
    labels = [_LABEL.get(name, name) for name in columns]
    if version == "1.3":
        labels = ["uncertainty [nm]" if label == "uncertainty_xy [nm]" else label for label in labels]
    _check_labels(labels)
    arrays = [_fixed_point(name, _finite(name, values, psf_sigma_nm)) for name, values in columns.items()]
    arrays.insert(0, pa.array(np.arange(1, len(locs) + 1)))
    rows = pa.Table.from_arrays(arrays, names=["id", *labels])
    header = ",".join(f'"{name}"' for name in rows.column_names) + "\n"
    with atomic_output(path, overwrite=overwrite) as temporary, open(temporary, "wb") as file:
        file.write(header.encode("utf-8"))
        options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
        pyarrow.csv.write_csv(rows, file, options)


def write_protocol(path: str | Path, mapping: Mapping[str, Any], *, overwrite: bool = False) -> Path:
    """Write our own provenance of the table ``path`` as ``<name>.protocol.json`` beside it.

    Not ThunderSTORM's ``-protocol.txt``: that one replaces the reader's camera settings on import.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputRejected
        If the mapping holds what JSON cannot (NaN among them), or the target cannot be written.
    """
    target = Path(path).with_suffix(".protocol.json")
    try:
        text = json.dumps(mapping, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputRejected(f"the protocol of {path} cannot be written as JSON: {error}.") from error
    with atomic_output(target, overwrite=overwrite) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return target


def read_protocol(path: str | Path) -> dict[str, Any]:
    """The protocol beside the table ``path``, as ``write_protocol`` wrote it.

    Raises
    ------
    InputRejected
        If there is none, or it is no JSON object.
    """
    source = Path(path).with_suffix(".protocol.json")
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputRejected(f"the protocol {source} of the table cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise InputRejected(f"the protocol {source} is not a JSON object.")
    return found


def _plain(value: object) -> object:
    """Numpy's numbers and arrays, and paths, as JSON knows them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _complete(locs: pd.DataFrame, psf_sigma_nm: float) -> dict[str, NDArray[np.generic]]:
    """The columns to write, in the order of the file, with those that readers insist on filled in."""
    given = {str(name): locs[name].to_numpy() for name in locs.columns}
    rows = len(locs)
    filled: dict[str, NDArray[np.generic]] = {}
    for name in _MUST_3D if "z_nm" in given else _MUST_2D:
        if name not in given:
            filled[name] = _filler(name, given, rows, psf_sigma_nm)
    known = {**given, **filled}
    ordered = {column.name: known[column.name] for column in table.SCHEMA if column.name in known}
    ordered["frame"] = locs["frame"].to_numpy() + FIRST_FRAME_IN_FILES
    return ordered | {name: values for name, values in given.items() if name not in _LABEL}


def _filler(name: str, given: dict[str, NDArray[Any]], rows: int, psf_sigma_nm: float) -> NDArray[np.float64]:
    """Values for a column that readers insist on and the table lacks."""

    def root_mean_square(*values: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.sqrt(np.mean(np.square(values), axis=0)), dtype=np.float64)

    if name.startswith("psf_sigma"):
        others = ("psf_sigma1_nm", "psf_sigma2_nm") if name == "psf_sigma_nm" else ("psf_sigma_nm",)
        widths = [given[other] for other in others if other in given]
        return root_mean_square(*widths) if widths else np.full(rows, psf_sigma_nm)
    if name == "background_std" and "background" in given:
        return np.asarray(np.sqrt(np.maximum(given["background"], 0.0)), dtype=np.float64)
    if name == "uncertainty_xy_nm" and {"uncertainty_x_nm", "uncertainty_y_nm"} <= given.keys():
        return root_mean_square(given["uncertainty_x_nm"], given["uncertainty_y_nm"])
    return np.zeros(rows)


def _finite(name: str, values: NDArray[Any], psf_sigma_nm: float) -> NDArray[Any]:
    """The column as numbers, with what is not finite replaced (see ``write_table``)."""
    try:
        values = values.astype(np.int64) if values.dtype.kind in "biu" else values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputRejected(
            f"the column {name!r} holds text, and a ThunderSTORM table holds numbers only. Drop the column."
        ) from error
    if values.dtype.kind == "i":
        return values
    bad = ~np.isfinite(values)
    if not bad.any():
        return values
    substitute = 0.0
    if name.startswith("uncertainty") and name.endswith("_nm"):
        substitute = UNKNOWN_UNCERTAINTY_NM
    elif name.startswith("psf_sigma"):
        substitute = psf_sigma_nm
    _log.warning("%d values of %s that are not finite are written as %g", bad.sum(), name, substitute)
    return np.where(bad, substitute, values)


def _fixed_point(name: str, values: NDArray[Any]) -> pa.Array:
    """An Arrow column whose text has no exponent."""
    if values.dtype.kind == "i":
        return pa.array(values)
    decimals = _DECIMALS_OWN if name in _LABEL else _DECIMALS_FOREIGN
    rounded = np.round(values, decimals) + 0.0  # + 0.0 turns -0.0, which would be written as -0, into 0
    size = np.abs(rounded)
    low, high = _FIXED_POINT_RANGE
    if not np.any((size >= high) | ((size > 0) & (size < low))):
        return pa.array(rounded)
    if size.max() >= _LARGEST:
        raise InputRejected(f"the column {name!r} has values up to {size.max():g}, too large for a table.")
    return pa.array(rounded).cast(pa.decimal128(38, decimals), safe=False)


def _check_labels(labels: list[str]) -> None:
    for label in labels:
        if not label.strip() or re.search(r'[",\r\n]', label):
            raise InputRejected(
                f"the column {label!r} cannot be a label of a ThunderSTORM table, which is split at commas; "
                "rename the column."
            )
    if len(set(labels)) < len(labels):
        raise InputRejected(
            f"two columns would have the same label in the table: {', '.join(labels)}. Drop one."
        )


def read_table(path: str | Path, *, pixel_nm: float | None = None) -> pd.DataFrame:
    """Read a table of localizations of ThunderSTORM 1.3 or dev, of this package or of the SMLM challenge.

    Known columns get the names and units of ``locs.SCHEMA`` (nm, photons, frames from 0), others keep their
    label; ``id`` and unnamed columns are dropped. Separators comma, tab and semicolon.

    Parameters
    ----------
    path
        The file.
    pixel_nm
        Pixel size for lengths given in pixels (px).

    Raises
    ------
    InputRejected
        If the file is missing, empty or not a table; has no frame, x or y; holds text in a known column, rows
        of another length than the header, a frame below 1 or a position that is not finite; or has lengths in
        pixels and no ``pixel_nm``.
    """
    header = read_header(path)
    columns = _known_columns(header.labels, pixel_nm, path)
    numeric = [label for label, target in columns.items() if target]
    raw = read_rows(path, header, numeric=numeric)
    data: dict[str, Any] = {}
    for label, target in columns.items():
        values = raw.column(label)
        if target is None:
            data[label] = values.to_pandas()
        else:
            name, scale = target
            data[name] = values.to_numpy() * scale if scale != 1.0 else values.to_numpy()
    _check_rows(data, path)
    data["frame"] = data["frame"] - FIRST_FRAME_IN_FILES
    if "detections" in data:
        data["detections"] = np.nan_to_num(data["detections"], nan=1.0)
    return table.validate(pd.DataFrame(data, copy=False))


def _known_columns(
    header: Sequence[str], pixel_nm: float | None, path: str | Path
) -> dict[str, tuple[str, float] | None]:
    """For each label to keep: our name and the factor to our unit, or None where the label stays as it is."""
    by_name = {}
    for column in table.SCHEMA:
        name, _, unit = column.thunderstorm.partition(" [")
        by_name[name] = (column.name, unit.rstrip("]"))
    found: dict[str, tuple[str, float] | None] = {}
    for label in header:
        if label.lower() in ("", "id"):
            continue
        match = re.fullmatch(r"(.*?)\s*\[([^\[\]]*)\]", label)
        name, unit = (match[1], match[2].strip()) if match else (label, "")
        alias = _ALIASES.get(name.lower(), name.lower())
        if alias.endswith("]"):
            name, unit = alias.partition(" ")[0], unit or "nm"
        found[label] = _convert(by_name.get(name.lower()), unit, label, pixel_nm, path)
    names = [target[0] for target in found.values() if target]
    for required in table.REQUIRED:
        if required not in names:
            raise InputRejected(
                f'table {path} has no column "{_LABEL[required]}"; it has {", ".join(found) or "none"}.'
            )
    if len(set(names)) < len(names):
        raise InputRejected(f"table {path} gives one quantity in two columns: {', '.join(found)}. Drop one.")
    return found


def _convert(
    known: tuple[str, str] | None, unit: str, label: str, pixel_nm: float | None, path: str | Path
) -> tuple[str, float] | None:
    """Our name and the factor to our unit; None where the quantity is not one of ours."""
    if known is None:
        return None
    name, ours = known
    if ours == "nm":
        if unit in _NM_PER:
            return name, _NM_PER[unit]
        if unit in ("px", "pixel", "pixels", ""):
            if pixel_nm is None:
                meaning = "in pixels" if unit else "without a unit"
                raise InputRejected(
                    f'table {path}: column "{label}" is {meaning}. Give the '
                    "pixel size in nm (--pixel-nm), or name the unit in the header: nm, um or px."
                )
            return name, pixel_nm
        raise InputRejected(f'table {path}: column "{label}" has the unit {unit}; allowed are nm, um and px.')
    if ours == "photon":
        return (name, 1.0) if unit.lower() in _PHOTON_UNITS else None  # counts (ADU) are not photons
    return name, 1.0


def _check_rows(data: Mapping[str, Any], path: str | Path) -> None:
    for name in (*table.REQUIRED, "z_nm"):
        bad = ~np.isfinite(data[name]) if name in data else np.zeros(1, bool)
        if bad.any():
            raise InputRejected(
                f'table {path}: "{_LABEL[name]}" is missing or not finite in {table.name_rows(bad, 1)} of '
                "the data. Every localization needs a frame and a position; remove these rows."
            )
    frame = data["frame"]
    if frame.size and frame.min() < FIRST_FRAME_IN_FILES:
        raise InputRejected(
            f"table {path} has the frame {frame.min():g}; frames count from {FIRST_FRAME_IN_FILES} in a "
            "table. If its frames count from 0, add 1 to the column."
        )
    bad = frame != np.round(frame)
    if bad.any():
        raise InputRejected(
            f"table {path}: the frame is not a whole number in {table.name_rows(bad, 1)} of the data."
        )
