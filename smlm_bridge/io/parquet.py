"""Tables of localizations as Parquet: the names of ``locs.SCHEMA`` (their units in them), frames from 1."""

from pathlib import Path

import pandas as pd

from smlm_bridge import locs as table
from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output


def write_parquet(path: str | Path, locs: pd.DataFrame, *, overwrite: bool = False) -> None:
    """Write localizations (frames from 0 in Python, from 1 in the file), whole or not at all.

    Raises
    ------
    InputRejected
        If the table is not valid or the target cannot be written.
    """
    locs = table.validate(locs)
    with atomic_output(path, overwrite=overwrite) as temporary:
        locs.assign(frame=locs["frame"] + FIRST_FRAME_IN_FILES).to_parquet(temporary, index=False)


def read_parquet(path: str | Path) -> pd.DataFrame:
    """Read what ``write_parquet`` wrote, or another Parquet table with these names.

    Raises
    ------
    InputRejected
        If the file is missing or no Parquet, or has no valid frame, x_nm or y_nm.
    """
    try:
        locs = pd.read_parquet(path)
    except OSError as error:
        raise InputRejected(f"table {path} cannot be read ({error.strerror or error}).") from error
    except ValueError as error:  # pyarrow's own errors are of this kind
        raise InputRejected(f"table {path} is not a Parquet file ({error}).") from error
    if "frame" in locs.columns:
        locs["frame"] = locs["frame"] - FIRST_FRAME_IN_FILES
    return table.validate(locs)
