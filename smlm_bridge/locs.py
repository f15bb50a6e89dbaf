"""The table of localizations: every column's name, dtype, unit and ThunderSTORM label, declared once.

A table is a plain pandas DataFrame. Columns outside ``SCHEMA`` are allowed; they are carried along untouched.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected


@dataclass(frozen=True)
class Column:
    """One column: its name in Python, its dtype, its unit and its label in a ThunderSTORM table."""

    name: str
    dtype: str
    unit: str
    thunderstorm: str


#: Every column we know, in the order of a ThunderSTORM table (``detections`` before ``uncertainty_xy``:
#: without that order ThunderSTORM's merging loses its count); our own columns come last.
SCHEMA: Final[tuple[Column, ...]] = (
    Column("frame", "int64", "", "frame"),
    Column("x_nm", "float64", "nm", "x [nm]"),
    Column("y_nm", "float64", "nm", "y [nm]"),
    Column("z_nm", "float64", "nm", "z [nm]"),
    Column("psf_sigma_nm", "float64", "nm", "sigma [nm]"),
    Column("psf_sigma1_nm", "float64", "nm", "sigma1 [nm]"),
    Column("psf_sigma2_nm", "float64", "nm", "sigma2 [nm]"),
    Column("photons", "float64", "photon", "intensity [photon]"),
    Column("background", "float64", "photon", "offset [photon]"),
    Column("background_std", "float64", "photon", "bkgstd [photon]"),
    Column("detections", "int64", "", "detections"),
    Column("uncertainty_xy_nm", "float64", "nm", "uncertainty_xy [nm]"),
    Column("uncertainty_z_nm", "float64", "nm", "uncertainty_z [nm]"),
    Column("uncertainty_x_nm", "float64", "nm", "uncertainty_x [nm]"),
    Column("uncertainty_y_nm", "float64", "nm", "uncertainty_y [nm]"),
    Column("uncertainty_photons", "float64", "photon", "uncertainty_intensity [photon]"),
    Column("probability", "float64", "", "prob"),
)
REQUIRED: Final = ("frame", "x_nm", "y_nm")
POSITION: Final = ("x_nm", "y_nm", "z_nm")
_DTYPES: Final = {column.name: column.dtype for column in SCHEMA}
_SHOWN_ROWS = 5


def empty(columns: Iterable[str] = REQUIRED) -> pd.DataFrame:
    """A table without rows; names outside ``SCHEMA`` become float64 columns."""
    return pd.DataFrame({name: pd.Series(dtype=_DTYPES.get(name, "float64")) for name in columns})


def name_rows(bad: NDArray[np.bool_], first: int = 0) -> str:
    """The rows marked in ``bad`` in words for a message: the first few numbers, counted from ``first``."""
    rows = np.flatnonzero(bad) + first
    more = f" and {rows.size - _SHOWN_ROWS} more" if rows.size > _SHOWN_ROWS else ""
    return ("row " if rows.size == 1 else "rows ") + ", ".join(map(str, rows[:_SHOWN_ROWS])) + more


def validate(locs: pd.DataFrame) -> pd.DataFrame:
    """The same table with the dtypes of ``SCHEMA`` and rows numbered from 0; the input is not changed.

    Raises
    ------
    InputRejected
        If ``frame``, ``x_nm`` or ``y_nm`` is missing, a column occurs twice, a known column is not numeric,
        a position or frame is not finite, or a frame is negative or not whole (frames count from 0 here).
    """
    missing = [name for name in REQUIRED if name not in locs.columns]
    if missing:
        raise InputRejected(
            f"the table of localizations has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, locs.columns)) or 'none'}. The columns frame, x_nm and y_nm are required."
        )
    if not locs.columns.is_unique:
        twice = sorted({str(name) for name in locs.columns[locs.columns.duplicated()]})
        raise InputRejected(f"the table has the column {', '.join(twice)} twice; rename or drop one of each.")
    coerced = {str(name): _coerce(locs[name], _DTYPES.get(str(name))) for name in locs.columns}
    table = pd.DataFrame(coerced, index=pd.RangeIndex(len(locs)))
    if (table["frame"] < 0).any():
        bad = (table["frame"] < 0).to_numpy()
        raise InputRejected(f"frames count from 0 in Python; {name_rows(bad)} (from 0) have negative frames.")
    return table


def _coerce(column: pd.Series, dtype: str | None) -> Any:
    """The values of one column in the schema's dtype; ``None`` leaves a column of others as it is."""
    if dtype is None:
        return column.array
    name = str(column.name)
    try:
        values = column.to_numpy(
            dtype=np.int64 if column.dtype.kind in "iub" else np.float64, na_value=np.nan
        )
    except (TypeError, ValueError) as error:
        raise InputRejected(f"the column {name} must be numeric, got {column.dtype} ({error}).") from error
    if name in REQUIRED or name in POSITION:
        finite = np.isfinite(values)
        if not finite.all():
            raise InputRejected(
                f"the column {name} is not finite in {name_rows(~finite)} (from 0). "
                "Every localization needs a frame and a position; drop these rows."
            )
    if dtype == "int64" and values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.round(values))
        if not whole.all():
            raise InputRejected(
                f"the column {name} must hold whole numbers; {name_rows(~whole)} (from 0) do not."
            )
    return np.asarray(values, dtype=dtype)


def sort(locs: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of a table on disk: by frame, then x, then y."""
    return locs.sort_values(list(REQUIRED), kind="stable", ignore_index=True)
