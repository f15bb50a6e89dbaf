"""Picasso: HDF5 with a data set ``locs``, and a YAML file of the same name beside it.

x, y, widths and lateral precisions are in pixels, and the centre of the first pixel is 0 (so 0.5 pixel less
than from its outer corner); z and its precision are in nm; frames count from 0. The pixel size stands in the
metadata: in the data set ``metadata`` since Picasso 0.11, before only in the YAML file.
"""

import json
import logging
import math
import re
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
from smlm_bridge.io.formats.hdf5 import numbers, open_hdf5, text
from smlm_bridge.io.thunderstorm import DEFAULT_PSF_SIGMA_NM

_log = logging.getLogger(__name__)

#: Theirs to ours, in pixels there and nm here; x and y are shifted as well.
_PIXELS: Final = {
    "x": "x_nm",
    "y": "y_nm",
    "sx": "psf_sigma1_nm",
    "sy": "psf_sigma2_nm",
    "lpx": "uncertainty_x_nm",
    "lpy": "uncertainty_y_nm",
}
_SAME: Final = {"z": "z_nm", "photons": "photons", "bg": "background", "lpz": "uncertainty_z_nm"}
_OURS: Final = {"frame": "frame", **_PIXELS, **_SAME}
#: Picasso deletes rows with a negative value here, or with one that is not finite anywhere.
_NOT_NEGATIVE: Final = ("x", "y", "photons", "sx", "sy", "lpx", "lpy")
_LARGEST_YAML = 1 << 20
_PIXEL_LINE = re.compile(r"^Pixelsize:[ \t]*(\S+)[ \t]*$", re.M)


def read(path: str | Path, *, pixel_nm: float | None = None) -> pd.DataFrame:
    """Read a table of Picasso; columns it does not know keep their names.

    Raises
    ------
    InputRejected
        If it is not such a file, its pixel size is neither in the file, nor in the YAML file beside it, nor
        given, or its rows are not valid.
    """
    with open_hdf5(path, "a table of Picasso") as file:
        rows = numbers(path, file, "locs")
        metadata = text(path, file, "metadata")
    if rows is None or rows.dtype.names is None or rows.ndim != 1:
        raise InputRejected(f"table {path} has no rows of named columns 'locs'; it is not of Picasso.")
    if missing := [name for name in ("frame", "x", "y") if name not in rows.dtype.names]:
        raise InputRejected(
            f"table {path} has no column {', '.join(missing)}; it has {', '.join(rows.dtype.names)}."
        )
    if pixel_nm is None:
        pixel_nm = _pixel_in_json(metadata) or _pixel_in_yaml(Path(path).with_suffix(".yaml"))
    pixel = columns.check_pixel(path, pixel_nm)
    data: dict[str, NDArray[Any]] = {}
    for name in rows.dtype.names:
        values = rows[name]
        if name in _PIXELS:
            values = (values.astype(np.float64) + (PIXEL_CENTRE if name in ("x", "y") else 0.0)) * pixel
        data[_OURS.get(name, name)] = values
    return columns.to_table(path, data, first_frame=0)


def _pixel_in_json(metadata: str | None) -> float | None:
    """Pixel size in the last document of the metadata that has one."""
    try:
        documents = json.loads(metadata or "[]")
    except (ValueError, RecursionError):
        return None
    if not isinstance(documents, list):
        return None
    found = [d["Pixelsize"] for d in documents if isinstance(d, dict) and "Pixelsize" in d]
    return float(found[-1]) if found and isinstance(found[-1], int | float) else None


def _pixel_in_yaml(path: Path) -> float | None:
    """Pixel size in Picasso's YAML: the last line of that name that is not inside something else."""
    try:
        if path.stat().st_size > _LARGEST_YAML:
            return None
        found = _PIXEL_LINE.findall(path.read_text(encoding="utf-8"))
        return float(found[-1]) if found else None
    except (OSError, ValueError):
        return None


def write(
    path: str | Path, locs: pd.DataFrame, *, pixel_nm: float | None = None, overwrite: bool = False
) -> int:
    """Write a table for Picasso, and its YAML file.

    Rows that Picasso would delete on loading are left out, and the log says how many: those within half a
    pixel of the left or upper edge or beyond, with negative photons, widths or precisions, or with a value
    that is not finite. Absent widths are 130 nm, absent photons and background 0, absent precisions the width
    over the root of the photons. Width, height and number of frames are the least that hold the rows.

    Raises
    ------
    InputRejected
        If the pixel size is missing, the table is not valid, or a target cannot be written.
    """
    locs = table.validate(locs)
    pixel = columns.check_pixel(path, pixel_nm)
    values = _in_pixels(path, locs, pixel)
    kept = np.logical_and.reduce(
        [np.isfinite(v) for v in values.values()] + [values[name] >= 0 for name in _NOT_NEGATIVE]
    )
    if dropped := int(len(locs) - kept.sum()):
        _log.warning(
            "%s: %d of %d rows are left out, as Picasso deletes rows with negative or missing values",
            path, dropped, len(locs),
        )  # fmt: skip
    rows = np.empty(int(kept.sum()), [(name, "u4" if name == "frame" else "f4") for name in values])
    for name, column in values.items():
        rows[name] = column[kept]
    info = _info(rows, pixel)
    yaml = "\n---\n".join(
        "\n".join(f"{key}: {json.dumps(value)}" for key, value in part.items()) for part in info
    )
    sidecar = Path(path).with_suffix(".yaml")
    if sidecar == Path(path):
        raise InputRejected(
            f"output {path}: beside Picasso's table lies a .yaml file; give another extension."
        )
    with (
        atomic_output(sidecar, overwrite=overwrite) as yaml_file,
        atomic_output(path, overwrite=overwrite) as file_name,
    ):
        yaml_file.write_text(yaml + "\n", encoding="utf-8")
        with h5py.File(file_name, "w") as file:
            file.create_dataset("locs", data=rows)
            file["metadata"] = json.dumps(info)
    return len(rows)


def _in_pixels(path: str | Path, locs: pd.DataFrame, pixel: float) -> dict[str, NDArray[Any]]:
    """Columns under Picasso's names and in its units."""
    rows = len(locs)
    default = np.full(rows, DEFAULT_PSF_SIGMA_NM)
    widths = columns.along_axes(locs, columns.WIDTHS) or (default, default)
    photons = locs["photons"].to_numpy() if "photons" in locs else np.zeros(rows)
    precision = columns.along_axes(locs, columns.UNCERTAINTIES)
    if precision is None:  # the first term of the precision of a Gaussian spot (Thompson et al. 2002, eq. 17)
        root = np.sqrt(np.maximum(photons, 1.0))
        precision = widths[0] / root, widths[1] / root
    values: dict[str, NDArray[Any]] = {
        "frame": columns.frames_32(path, locs, first_frame=0),
        "x": locs["x_nm"].to_numpy() / pixel - PIXEL_CENTRE,
        "y": locs["y_nm"].to_numpy() / pixel - PIXEL_CENTRE,
        "photons": photons,
        "sx": widths[0] / pixel,
        "sy": widths[1] / pixel,
        "bg": locs["background"].to_numpy() if "background" in locs else np.zeros(rows),
        "lpx": precision[0] / pixel,
        "lpy": precision[1] / pixel,
    }
    for name in ("z", "lpz"):
        if _SAME[name] in locs:
            values[name] = locs[_SAME[name]].to_numpy()
    used = {*_OURS.values(), *columns.WIDTHS, *columns.UNCERTAINTIES}
    others = columns.other_columns(path, locs, used, _OURS)
    blank = [name for name, v in others.items() if len(v) and not np.isfinite(v).any()]
    columns.leave_out(path, blank, "have no finite value")
    return {**values, **{name: v for name, v in others.items() if name not in blank}}


def _info(rows: NDArray[Any], pixel: float) -> list[dict[str, Any]]:
    """Picasso's metadata: the movie, then who made the table."""

    def extent(name: str) -> int:
        return math.ceil(rows[name].max() + PIXEL_CENTRE) or 1 if len(rows) else 1

    movie = {
        "Byte Order": "<",
        "Data Type": "uint16",
        "Width": extent("x"),
        "Height": extent("y"),
        "Frames": int(rows["frame"].max()) + 1 if len(rows) else 1,
    }
    return [movie, {"Generated by": f"smlm_bridge {__version__}", "Pixelsize": pixel}]
