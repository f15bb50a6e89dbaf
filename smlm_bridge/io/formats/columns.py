"""What all formats share: from columns of a file to a valid table, and from a table to columns of a file."""

import logging
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge import locs as table
from smlm_bridge.errors import InputRejected

_log = logging.getLogger(__name__)

#: Names of a quantity along x and y, and of the one number that stands for both.
WIDTHS: Final = ("psf_sigma1_nm", "psf_sigma2_nm", "psf_sigma_nm")
UNCERTAINTIES: Final = ("uncertainty_x_nm", "uncertainty_y_nm", "uncertainty_xy_nm")
_LARGEST_FRAME = 2**32 - 1  # of the formats that store it in 32 bits
_FRAME_COLUMN = "frame"


def check_pixel(path: str | Path, pixel_nm: float | None) -> float:
    """The pixel size as it was given.

    Raises
    ------
    InputRejected
        If it is missing or not a positive number.
    """
    if pixel_nm is None:
        raise InputRejected(
            f"table {path}: its format counts in camera pixels. Give their size in the sample in nm "
            "(--pixel-nm)."
        )
    if not (math.isfinite(pixel_nm) and pixel_nm > 0):
        raise InputRejected(f"table {path}: a pixel of {pixel_nm} nm cannot be; give a positive number.")
    return float(pixel_nm)


def to_table(path: str | Path, data: Mapping[str, NDArray[Any]], *, first_frame: int) -> pd.DataFrame:
    """A valid table, frames from 0, columns in the order of the schema; the lateral uncertainty is completed.

    Parameters
    ----------
    path
        The file, for messages.
    data
        Columns under our names and in our units, all of one length, frames as in the file.
    first_frame
        Number of the first frame in the file.

    Raises
    ------
    InputRejected
        If the columns differ in length, a frame lies before the first, or as ``locs.validate``.
    """
    lengths = {name: len(values) for name, values in data.items()}
    if len(set(lengths.values())) > 1:
        raise InputRejected(f"table {path} has columns of different lengths: {lengths}. Export it again.")
    columns = dict(data)
    if _FRAME_COLUMN in columns:
        columns[_FRAME_COLUMN] = _shifted(path, columns[_FRAME_COLUMN], first_frame)
    x, y, both = UNCERTAINTIES
    if both not in columns and x in columns and y in columns:
        columns[both] = root_mean_square(columns[x], columns[y])
    known = [column.name for column in table.SCHEMA if column.name in columns]
    ordered = [*known, *(name for name in columns if name not in known)]
    try:
        return table.validate(pd.DataFrame({name: columns[name] for name in ordered}))
    except InputRejected as error:
        raise InputRejected(f"table {path}: {error}") from error


def _shifted(path: str | Path, frame: NDArray[Any], first_frame: int) -> NDArray[Any]:
    whole = frame.dtype.kind in "iub"
    counted = frame.astype(np.int64 if whole else np.float64) - first_frame
    if counted.size and np.nanmin(np.append(counted, 0)) < 0:
        raise InputRejected(
            f"table {path} has the frame {frame.min():g}; frames count from {first_frame} in this format."
        )
    return counted


def root_mean_square(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Root mean square of two columns, row by row, (N,)."""
    mean = (np.square(first, dtype=np.float64) + np.square(second, dtype=np.float64)) / 2
    return np.asarray(np.sqrt(mean), dtype=np.float64)


def along_axes(
    locs: pd.DataFrame, names: tuple[str, str, str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """A quantity along x and y, (N,) each, from its own columns or the one for both; None if neither exists.

    ``names`` is ``WIDTHS`` or ``UNCERTAINTIES``.
    """
    first, second, both = names
    if first in locs and second in locs:
        return locs[first].to_numpy(), locs[second].to_numpy()
    return (locs[both].to_numpy(), locs[both].to_numpy()) if both in locs else None


def joined(locs: pd.DataFrame, names: tuple[str, str, str]) -> NDArray[np.float64] | None:
    """A quantity as one number for x and y, (N,): its own column, else the root mean square; else None."""
    first, second, both = names
    if both in locs:
        return np.asarray(locs[both].to_numpy(), dtype=np.float64)
    if first in locs and second in locs:
        return root_mean_square(locs[first].to_numpy(), locs[second].to_numpy())
    return None


def frames_32(path: str | Path, locs: pd.DataFrame, *, first_frame: int) -> NDArray[np.uint32]:
    """Frames as a format stores them that has 32 bits for them, (N,).

    Raises
    ------
    InputRejected
        If one is larger.
    """
    frame = locs[_FRAME_COLUMN].to_numpy() + first_frame
    if frame.size and frame.max() > _LARGEST_FRAME:
        raise InputRejected(
            f"table {path}: frame {frame.max()} is beyond {_LARGEST_FRAME}, the last of this format."
        )
    return frame.astype(np.uint32)


def other_columns(
    path: str | Path, locs: pd.DataFrame, used: Collection[str], taken: Collection[str]
) -> dict[str, NDArray[np.float64]]:
    """Columns that the format has no name for, as numbers under their own names; text is left out, and said.

    Parameters
    ----------
    path, locs
        The file, for messages, and the table.
    used
        Names in ``locs`` that are written already, in one way or another.
    taken
        Names in the file that mean something else.
    """
    rest = [str(name) for name in locs.columns if name not in used and name != "id"]
    numeric = {name for name in rest if locs[name].dtype.kind in "iufb" and name not in taken}
    leave_out(path, [name for name in rest if name not in numeric], "are not numbers or have names taken")
    return {name: locs[name].to_numpy(np.float64) for name in rest if name in numeric}


def leave_out(path: str | Path, names: Collection[str], why: str) -> None:
    """Say in the log which columns are not in the file."""
    if names:
        _log.warning("%s: the columns %s are left out; they %s", path, ", ".join(names), why)
