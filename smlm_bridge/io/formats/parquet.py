"""Parquet, by ``io.parquet``: our own names and units, frames from 1."""

from pathlib import Path

import pandas as pd

from smlm_bridge.errors import InputRejected
from smlm_bridge.io.parquet import read_parquet, write_parquet


def read(path: str | Path, *, pixel_nm: float | None = None) -> pd.DataFrame:
    """Read a table; errors as ``io.parquet.read_parquet``. The pixel size plays no part."""
    try:
        return read_parquet(path)
    except InputRejected as error:
        if str(path) in str(error):
            raise
        raise InputRejected(f"table {path}: {error}") from error
    except Exception as error:  # a damaged file fails anywhere in the parser, with any exception
        raise InputRejected(f"table {path} is not a Parquet table, or is damaged: {error!r}.") from error


def write(
    path: str | Path, locs: pd.DataFrame, *, pixel_nm: float | None = None, overwrite: bool = False
) -> int:
    """Write a table; errors as ``io.parquet.write_parquet``. The pixel size plays no part."""
    write_parquet(path, locs, overwrite=overwrite)
    return len(locs)
