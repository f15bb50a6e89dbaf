"""Tables of localizations in the formats of other programs, one file a format, all with the same two verbs.

``read(path, *, pixel_nm=None)`` gives the table of ``smlm_bridge.locs``; ``write(path, locs, *, pixel_nm=None,
overwrite=False)`` writes it, whole or not at all, and returns the number of rows written. Each module says in
its first lines where its format has the origin, its first frame and its units. Nothing is imported before it
is needed.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    import pandas as pd

#: Every format by name; the module of that name in this package reads and writes it.
FORMATS: Final = ("thunderstorm", "parquet", "picasso", "smap", "decode", "smlm", "challenge")
#: What a name ends in, and the format that is; ``challenge`` has no ending of its own.
EXTENSIONS: Final = {
    "_sml.mat": "smap",
    ".csv": "thunderstorm",
    ".tsv": "thunderstorm",
    ".txt": "thunderstorm",
    ".parquet": "parquet",
    ".hdf5": "picasso",
    ".h5": "decode",
    ".smlm": "smlm",
}
_CALIBRATION = ".psf.h5"  # ends like a table of DECODE and is none


class TableFormat(Protocol):
    """The two verbs of every format."""

    def read(self, path: str | Path, *, pixel_nm: float | None = None) -> "pd.DataFrame":
        """Read a table into the columns of ``locs.SCHEMA``, frames from 0."""

    def write(
        self,
        path: str | Path,
        locs: "pd.DataFrame",
        *,
        pixel_nm: float | None = None,
        overwrite: bool = False,
    ) -> int:
        """Write a table and return how many rows it has there."""


def format_of(path: str | Path) -> str | None:
    """Name of the format that a file name stands for, None where it is no table's."""
    name = Path(path).name.lower()
    if name.endswith(_CALIBRATION):
        return None
    return next((found for extension, found in EXTENSIONS.items() if name.endswith(extension)), None)


def read(path: str | Path, *, name: str | None = None, pixel_nm: float | None = None) -> "pd.DataFrame":
    """Read a table of any format.

    Parameters
    ----------
    path
        The file.
    name
        The format, one of ``FORMATS``; absent: by the extension.
    pixel_nm
        Camera pixel in the sample, for formats in pixels whose file does not say it; where given it wins.

    Raises
    ------
    InputRejected
        If the format is not known, or the file is not a valid table of it.
    """
    import numpy as np

    with np.errstate(invalid="ignore"):  # the NaN of a damaged file may be one that signals when it is cast
        return _module(path, name).read(path, pixel_nm=pixel_nm)


def write(
    path: str | Path,
    locs: "pd.DataFrame",
    *,
    name: str | None = None,
    pixel_nm: float | None = None,
    overwrite: bool = False,
) -> int:
    """Write a table in any format; parameters as in ``read``.

    Returns
    -------
    int
        Rows in the file; Picasso's has no room for some (see there).

    Raises
    ------
    InputRejected
        If the format is not known, needs a pixel size that is not given, the table is not valid, or the
        target cannot be written.
    """
    return _module(path, name).write(path, locs, pixel_nm=pixel_nm, overwrite=overwrite)


def _module(path: str | Path, name: str | None) -> TableFormat:
    found = name or format_of(path)
    if found not in FORMATS:
        given = f"format '{name}'" if name else f"extension of {path}"
        raise InputRejected(
            f"the {given} is not one of a table; formats are {', '.join(FORMATS)}, extensions "
            f"{', '.join(EXTENSIONS)}."
        )
    return cast(TableFormat, importlib.import_module(f"{__name__}.{found}"))
