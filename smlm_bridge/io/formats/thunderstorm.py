"""ThunderSTORM's CSV, by ``io.thunderstorm``: nm from the outer corner of the first pixel, frames from 1."""

from pathlib import Path

import pandas as pd

from smlm_bridge.io.thunderstorm import read_table, write_table


def read(path: str | Path, *, pixel_nm: float | None = None) -> pd.DataFrame:
    """Read a table; errors and parameters as ``io.thunderstorm.read_table``."""
    return read_table(path, pixel_nm=pixel_nm)


def write(
    path: str | Path, locs: pd.DataFrame, *, pixel_nm: float | None = None, overwrite: bool = False
) -> int:
    """Write a table; errors as ``io.thunderstorm.write_table``. The pixel size plays no part."""
    write_table(path, locs, overwrite=overwrite)
    return len(locs)
