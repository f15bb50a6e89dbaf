"""SMAP: ``_sml.mat``, a MATLAB file with the columns in ``saveloc.loc``.

Lengths are in nm and are passed on as they are; we know of no statement where SMAP has its origin. Frames
count from 1. Read are MATLAB 5 and 7.3 (HDF5), written is MATLAB 5.
"""

import math
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge import locs as table
from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.formats import columns
from smlm_bridge.io.formats.hdf5 import numbers, open_hdf5, subgroup
from smlm_bridge.io.formats.limits import largest_claim
from smlm_bridge.io.formats.mat5 import read_struct

#: Theirs to ours.
_OURS: Final = {
    "frame": "frame",
    "xnm": "x_nm",
    "ynm": "y_nm",
    "znm": "z_nm",
    "PSFxnm": "psf_sigma1_nm",
    "PSFynm": "psf_sigma2_nm",
    "phot": "photons",
    "bg": "background",
    "locprecnm": "uncertainty_xy_nm",
    "locprecznm": "uncertainty_z_nm",
    "xnmerr": "uncertainty_x_nm",
    "ynmerr": "uncertainty_y_nm",
}
_LARGEST_VARIABLE = 2**31 - 1
_LONGEST_NAME = 63


def read(path: str | Path, *, pixel_nm: float | None = None) -> pd.DataFrame:
    """Read a table of SMAP; columns it does not know keep their names. The pixel size plays no part.

    Raises
    ------
    InputRejected
        If it is not such a file, is damaged, or its rows are not valid.
    """
    largest_claim(path)  # says so where there is no such file
    found = _read_hdf5(path) if h5py.is_hdf5(path) else read_struct(path, ("saveloc", "loc"))
    if missing := [name for name in ("frame", "xnm", "ynm") if name not in found]:
        raise InputRejected(
            f"table {path} lacks saveloc.loc.{', '.join(missing)}; it has {', '.join(found) or 'none'}. "
            "Save the localizations in SMAP as _sml.mat."
        )
    rows = len(found["xnm"])
    data = {_OURS.get(name, name): v for name, v in found.items() if name in _OURS or len(v) == rows}
    return columns.to_table(path, data, first_frame=FIRST_FRAME_IN_FILES)


def _read_hdf5(path: str | Path) -> dict[str, NDArray[Any]]:
    """The columns of a MATLAB 7.3 file."""
    found: dict[str, NDArray[Any]] = {}
    with open_hdf5(path, "a table of SMAP (MATLAB 7.3)") as file:
        group = subgroup(path, subgroup(path, file, "saveloc"), "loc")
        for name in group:
            link = group.get(name, getlink=True)
            if name not in _OURS and not (isinstance(link, h5py.HardLink) and _is_numeric(group[name])):
                continue
            values = numbers(path, group, name)
            if values is not None:  # MATLAB stores the lengths of an empty array instead of the array
                empty = bool(group[name].attrs.get("MATLAB_empty", 0))
                found[name] = np.empty(0) if empty else values.ravel()
    return found


def _is_numeric(member: object) -> bool:
    return isinstance(member, h5py.Dataset) and member.dtype.kind in "iuf"


def write(
    path: str | Path, locs: pd.DataFrame, *, pixel_nm: float | None = None, overwrite: bool = False
) -> int:
    """Write a table for SMAP, not compressed: compressing takes many times as long and saves about 15 %.

    Absent photons and background are 0; other columns that are absent are so in the file, too.

    Raises
    ------
    InputRejected
        If the pixel size is missing, the table is not valid or above 2 GB, or the target cannot be written.
    """
    import scipy.io

    locs = table.validate(locs)
    pixel = columns.check_pixel(path, pixel_nm)
    loc = {name: np.ascontiguousarray(v, np.float64)[:, None] for name, v in _columns(path, locs).items()}
    if (size := sum(v.nbytes for v in loc.values())) > _LARGEST_VARIABLE - 2**20:
        raise InputRejected(
            f"table {path} would take {size / 1e9:.2g} GB, and MATLAB 5 files hold 2. "
            "Write it in parts, or as .hdf5 (Picasso), which SMAP reads as well."
        )
    width, height = (
        max(1, math.ceil(locs[name].max() / pixel)) if len(locs) else 1 for name in ("x_nm", "y_nm")
    )
    info = {
        "Width": float(width),
        "Height": float(height),
        "roi": np.array([[0.0, 0.0, width, height]]),
        "cam_pixelsize_um": np.array([[pixel, pixel]]) / 1e3,
    }
    content = {"saveloc": {"loc": loc, "info": info}, "fileformat": {"name": "sml"}}
    with atomic_output(path, overwrite=overwrite) as file_name:
        scipy.io.savemat(file_name, content, appendmat=False, long_field_names=True)
    return len(locs)


def _columns(path: str | Path, locs: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """Columns under SMAP's names, (N,) each."""
    found: dict[str, NDArray[Any]] = {"frame": locs["frame"].to_numpy() + FIRST_FRAME_IN_FILES}
    widths = columns.along_axes(locs, columns.WIDTHS) or (None, None)
    given = {
        "psf_sigma1_nm": widths[0],
        "psf_sigma2_nm": widths[1],
        "uncertainty_xy_nm": columns.joined(locs, columns.UNCERTAINTIES),
        "photons": np.zeros(len(locs)),
        "background": np.zeros(len(locs)),
    }
    for theirs, ours in _OURS.items():
        values = locs[ours].to_numpy() if ours in locs else given.get(ours)
        if values is not None and theirs != "frame":
            found[theirs] = values
    others = columns.other_columns(path, locs, {*_OURS.values(), *columns.WIDTHS}, _OURS)
    fields = [
        n for n in others if n.isascii() and n.isidentifier() and n[0] != "_" and len(n) <= _LONGEST_NAME
    ]
    columns.leave_out(path, [n for n in others if n not in fields], "cannot be names in MATLAB")
    return found | {name: others[name] for name in fields}
