"""DECODE: HDF5 with the groups ``data``, ``meta`` and ``decode``.

The first coordinate of ``xyz`` is the row (our y), the second the column (our x); the centre of the first
pixel is 0, so half a pixel less than from its outer corner; lengths are in nm or pixels, z always in nm;
frames count from 0.
"""

import math
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge import __version__
from smlm_bridge import locs as table
from smlm_bridge.conventions import PIXEL_CENTRE
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.formats import columns
from smlm_bridge.io.formats.hdf5 import numbers, open_hdf5, subgroup

_ORDER: Final = ("y_nm", "x_nm", "z_nm")
_SIGMA: Final = ("uncertainty_y_nm", "uncertainty_x_nm", "uncertainty_z_nm")
#: Theirs to ours.
_SAME: Final = {
    "frame_ix": "frame",
    "phot": "photons",
    "bg": "background",
    "prob": "probability",
    "phot_sig": "uncertainty_photons",
}
_ABSENT: Final = ("xyz_cr", "phot_cr", "bg_sig", "bg_cr")


def read(path: str | Path, *, pixel_nm: float | None = None) -> pd.DataFrame:
    """Read a table of DECODE.

    Raises
    ------
    InputRejected
        If it is not such a file, does not say its unit, its pixel size is neither in it nor given, its pixels
        are not square, or its rows are not valid.
    """
    with open_hdf5(path, "a table of DECODE") as file:
        group = subgroup(path, file, "data")
        meta = dict(subgroup(path, file, "meta").attrs)
        xyz, sigma = (numbers(path, group, name) for name in ("xyz", "xyz_sig"))
        plain = {ours: numbers(path, group, theirs) for theirs, ours in _SAME.items()}
    pixel = columns.check_pixel(path, _pixel(path, meta) if pixel_nm is None else pixel_nm)
    unit = meta.get("xy_unit")
    unit = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else unit
    if unit not in ("nm", "px"):
        raise InputRejected(
            f"table {path}: its unit of length (xy_unit) is {unit!r}; allowed are nm and px. "
            "Convert it in DECODE, which writes the unit."
        )
    scale = np.array([1.0, 1.0, 1.0] if unit == "nm" else [pixel, pixel, 1.0])
    if xyz is None or plain["frame"] is None:
        raise InputRejected(f"table {path} has no positions (data/xyz) or no frames (data/frame_ix).")
    position = _triples(path, "xyz", xyz) * scale + np.array([PIXEL_CENTRE, PIXEL_CENTRE, 0.0]) * pixel
    data: dict[str, NDArray[Any]] = dict(zip(_ORDER, position.T, strict=True))
    if sigma is not None:
        data.update(zip(_SIGMA, (_triples(path, "xyz_sig", sigma) * scale).T, strict=True))
    data.update({name: values.ravel() for name, values in plain.items() if values is not None})
    return columns.to_table(path, data, first_frame=0)


def _triples(path: str | Path, name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    if values.ndim != 2 or values.shape[1] != 3 or values.dtype.names:
        raise InputRejected(f"table {path}: {name} has the shape {values.shape}; it must be (N, 3).")
    return values.astype(np.float64)


def _pixel(path: str | Path, meta: dict[str, Any]) -> float | None:
    """Pixel size in nm that the file states."""
    stated = meta.get("px_size")
    if not isinstance(stated, np.ndarray) or stated.shape != (2,) or stated.dtype.kind not in "iuf":
        return None
    if not math.isclose(stated[0], stated[1], rel_tol=1e-6):
        raise InputRejected(
            f"table {path} has pixels of {stated[0]} x {stated[1]} nm; only square ones can be."
        )
    return float(stated[0])


def write(
    path: str | Path, locs: pd.DataFrame, *, pixel_nm: float | None = None, overwrite: bool = False
) -> int:
    """Write a table for DECODE, in nm; columns that DECODE has no place for are left out, and the log says so.

    A table without z gets 0, one without photons, background or probability 0, 0 and 1.

    Raises
    ------
    InputRejected
        If the pixel size is missing, the table is not valid, or the target cannot be written.
    """
    locs = table.validate(locs)
    pixel = columns.check_pixel(path, pixel_nm)
    rows = len(locs)

    def column(name: str, default: float = 0.0) -> NDArray[np.float64]:
        return locs[name].to_numpy() if name in locs else np.full(rows, default)

    shift = np.array([PIXEL_CENTRE, PIXEL_CENTRE, 0.0]) * pixel
    data: dict[str, Any] = {"xyz": (np.stack([column(n) for n in _ORDER], axis=1) - shift).astype(np.float32)}
    lateral = columns.along_axes(locs, columns.UNCERTAINTIES)
    data["xyz_sig"] = h5py.Empty("f")
    if lateral is not None:
        z = column("uncertainty_z_nm", math.nan)
        data["xyz_sig"] = np.stack([lateral[1], lateral[0], z], axis=1).astype(np.float32)
    for theirs, default in (("phot", 0.0), ("bg", 0.0), ("prob", 1.0)):
        data[theirs] = column(_SAME[theirs], default).astype(np.float32)
    named = "uncertainty_photons" in locs
    data["phot_sig"] = column("uncertainty_photons").astype(np.float32) if named else h5py.Empty("f")
    data["frame_ix"] = locs["frame"].to_numpy()
    data["id"] = np.full(rows, -1, np.int64)  # DECODE: no emitter is known to be another's
    data.update({name: h5py.Empty("f") for name in _ABSENT})
    used = {*_ORDER, *columns.UNCERTAINTIES, "uncertainty_z_nm", *_SAME.values(), "id"}
    columns.leave_out(path, [str(n) for n in locs if n not in used], "have no place in a table of DECODE")
    with atomic_output(path, overwrite=overwrite) as file_name, h5py.File(file_name, "w") as file:
        file.create_group("meta").attrs.update({"xy_unit": "nm", "px_size": np.array([pixel, pixel])})
        file.create_group("decode").attrs["version"] = f"smlm_bridge {__version__}"
        group = file.create_group("data")
        for name, values in data.items():
            group.create_dataset(name, data=values)
    return rows
