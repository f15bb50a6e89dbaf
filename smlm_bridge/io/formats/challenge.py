"""Tables of the SMLM challenge: nm from the outer corner of the first pixel, frames from 1.

Written, and read, is the standard submission: frame, x, y, z, photons without a header (Sage et al. 2019).
Also read are its ground truth and other tables with a header.
"""

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from smlm_bridge import locs as table
from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.formats import columns
from smlm_bridge.io.thunderstorm import read_table

_NAMES: Final = ("frame", "x_nm", "y_nm", "z_nm", "photons")
_DECIMALS: Final = {"x_nm": 3, "y_nm": 3, "z_nm": 3, "photons": 2}
_NUMERIC_START = frozenset(b"-+.0123456789")
_LARGEST = 1e9  # from here on the text could have an exponent, which many readers do not take


def read(path: str | Path, *, pixel_nm: float | None = None) -> pd.DataFrame:
    """Read a submission without a header, or any table with one that ``io.thunderstorm.read_table`` takes.

    Raises
    ------
    InputRejected
        If the file is missing or empty, holds text, or its rows are not of 4 or 5 numbers, or not valid.
    """
    try:
        with open(path, "rb") as file:
            line = file.readline(1 << 16).strip()
    except OSError as error:
        raise InputRejected(f"table {path} cannot be read: {error.strerror or error}.") from error
    if not line or line[0] not in _NUMERIC_START:
        return read_table(path, pixel_nm=pixel_nm)
    fields = line.count(b",") + 1
    if fields not in (4, 5):
        raise InputRejected(
            f"table {path} starts with {line[:60]!r}; a table of the challenge has the columns "
            "frame, x, y, z and photons, separated by commas, or a header."
        )
    names = list(_NAMES[:fields])
    try:
        rows = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.float64())),
        )
    except pa.ArrowException as error:
        raise InputRejected(f"table {path} is not a table of numbers: {error}.") from error
    data = {name: rows.column(name).to_numpy() for name in names}
    return columns.to_table(path, data, first_frame=FIRST_FRAME_IN_FILES)


def write(
    path: str | Path, locs: pd.DataFrame, *, pixel_nm: float | None = None, overwrite: bool = False
) -> int:
    """Write a submission; absent heights and photons are 0, other columns are left out, and the log says so.

    Raises
    ------
    InputRejected
        If the table is not valid, has values too large or not finite, or the target cannot be written.
    """
    locs = table.validate(locs)
    columns.leave_out(path, [str(n) for n in locs if n not in _NAMES], "have no place in a challenge's table")
    data = {"frame": pa.array(locs["frame"].to_numpy() + FIRST_FRAME_IN_FILES)}
    for name, decimals in _DECIMALS.items():
        values = locs[name].to_numpy() if name in locs else np.zeros(len(locs))
        if not np.all(np.abs(values) < _LARGEST):
            raise InputRejected(
                f"table {path}: {name} must be finite and below {_LARGEST:g}; drop such rows."
            )
        data[name] = pa.array(np.round(values, decimals) + 0.0)  # + 0.0 turns -0.0 into 0
    with atomic_output(path, overwrite=overwrite) as file_name:
        options = pyarrow.csv.WriteOptions(include_header=False)
        pyarrow.csv.write_csv(pa.table(data), file_name, options)
    return len(locs)
