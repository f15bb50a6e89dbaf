"""Our tables to ThunderSTORM's results table and back."""

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from smlm_bridge.bridge.jars import Version
from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.locs import SCHEMA, validate

_OLD: Final = {"uncertainty_xy [nm]": "uncertainty [nm]"}
_DECIMALS: Final = 9


def write_for_thunderstorm(path: Path, locs: pd.DataFrame, *, version: Version) -> None:
    """Write a table as ThunderSTORM reads it without loss, for handing over (not for keeping).

    Nine decimals and no exponent, as its parser reads ``1e-7`` as 1; ``NaN`` as it spells it. ``detections``
    stands before the uncertainties, without which merging loses its count; a table without the column gets one.
    """
    table = validate(locs)
    if "detections" not in table:
        table["detections"] = 1
    table["frame"] += FIRST_FRAME_IN_FILES
    labels = {column.name: column.thunderstorm for column in SCHEMA if column.name in table}
    if version == "1.3":
        labels = {name: _OLD.get(label, label) for name, label in labels.items()}
    known = table[list(labels)]
    numeric = table.drop(columns=list(labels)).select_dtypes("number")
    numeric = numeric[[name for name in numeric if name != "id" and "," not in str(name)]]
    written = pd.concat([known.rename(columns=labels), numeric], axis=1)
    header = ",".join(f'"{label}"' for label in written.columns)
    text = written.to_csv(index=False, header=False, float_format=f"%.{_DECIMALS}f", na_rep="NaN")
    path.write_text(f"{header}\n{text}", encoding="utf-8")


def read_from_thunderstorm(table: Any) -> pd.DataFrame:
    """ThunderSTORM's results table, in nm and photons, as ours: known columns by our names, others by label."""
    if int(table.getRowCount()) == 0:
        return pd.DataFrame({name: pd.Series(dtype="float64") for name in ("frame", "x_nm", "y_nm")}).pipe(
            validate
        )
    table.convertAllColumnsToAnalogUnits()
    names = {re.sub(r" \[.*", "", column.thunderstorm): column.name for column in SCHEMA}
    names["uncertainty"] = "uncertainty_xy_nm"
    columns: dict[str, Any] = {}
    for label in map(str, table.getColumnNames()):
        if label == "id":
            continue
        unit = str(table.getColumnUnits(label).getLabel())
        shown = f"{label} [{unit}]" if unit else label
        columns[names.get(label, shown)] = np.array(table.getColumnAsDoubles(label), dtype=np.float64)
    columns["frame"] = np.round(columns["frame"]).astype(np.int64) - FIRST_FRAME_IN_FILES
    return validate(pd.DataFrame(columns))
