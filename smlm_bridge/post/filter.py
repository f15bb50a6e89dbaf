"""Rows worth keeping: by a formula, by density, by region, and one of each set of duplicates.

Every filter returns a new table with rows numbered from 0 and in their old order.
"""

import difflib
import math
import re
from collections.abc import Iterable
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from smlm_bridge.conventions import FIRST_FRAME_IN_FILES
from smlm_bridge.errors import InputRejected
from smlm_bridge.expression import Expression, parse
from smlm_bridge.locs import SCHEMA, validate

#: ThunderSTORM's defaults of the density filter.
DENSITY_RADIUS_NM: Final = 50.0
DENSITY_NEIGHBOURS: Final = 5

_BARE: Final = re.compile(r"\s*\[[^\]]*\]$")
_AXES: Final = ("x_nm", "y_nm", "z_nm")

Range = tuple[float, float]


def by_expression(locs: pd.DataFrame, expression: str) -> pd.DataFrame:
    """Keep the rows for which a formula is true.

    Columns are named as in ThunderSTORM (``x``, ``intensity``, ``uncertainty_xy``) or as in ``locs.SCHEMA``
    (``x_nm``, ``photons``); the grammar is that of ``smlm_bridge.expression``. ``frame`` counts from 1 in a
    formula, so that one formula means the same here, on the command line and in ThunderSTORM. A value that is
    NaN fulfils no comparison but ``!=``; ``mean`` and the like leave out what is not finite.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``.
    expression
        For example ``"uncertainty_xy < 20 & z > -300"``.

    Raises
    ------
    InputRejected
        If the formula cannot be read, names a column that the table lacks (the message names the nearest one),
        or gives numbers instead of true and false.
    """
    formula = parse(expression, None)
    table = validate(locs)
    keep = _values(formula, table)
    if not formula.is_truth:
        raise InputRejected(
            f"the expression '{expression}' gives numbers, not true and false; compare them, for example "
            "photons > 500."
        )
    return _kept(table, keep != 0)


def by_density(
    locs: pd.DataFrame,
    radius_nm: float = DENSITY_RADIUS_NM,
    *,
    neighbours: int = DENSITY_NEIGHBOURS,
    dimensions: Literal[2, 3] = 2,
) -> pd.DataFrame:
    """Keep the rows with at least so many others within a radius, over all frames.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``.
    radius_nm
        Others up to this far away are neighbours.
    neighbours
        Least number of them.
    dimensions
        Distance in x, y, or in x, y, z.

    Raises
    ------
    InputRejected
        If an argument is out of its range, or z is asked for and the table has none.
    """
    _check_radius(radius_nm)
    if neighbours < 1:
        raise InputRejected(f"neighbours {neighbours} must be 1 or more (ThunderSTORM's default is 5).")
    table = validate(locs)
    names = list(_AXES[:dimensions])
    if dimensions not in (2, 3) or names[-1] not in table:
        raise InputRejected(
            f"density in {dimensions} dimensions: 2, or 3 for a table with z_nm, are allowed."
        )
    if table.empty:
        return table
    place = table[names].to_numpy()
    within = cKDTree(place).query_ball_point(place, radius_nm, return_length=True)
    return _kept(table, np.asarray(within) - 1 >= neighbours)


def without_duplicates(locs: pd.DataFrame, radius_nm: float | str) -> pd.DataFrame:
    """Of localizations of one frame closer than a radius in x and y, keep the one with the least uncertainty.

    A row is dropped if a neighbour in its frame has a smaller ``uncertainty_xy_nm``, also if that one is
    dropped itself; of equals the first row stays. A missing uncertainty (NaN) is worse than any other.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``.
    radius_nm
        The radius, or a formula for that of every row, for example ``"uncertainty_xy"`` (Huang et al. 2011).

    Raises
    ------
    InputRejected
        If the radius is not a length, or the table has no ``uncertainty_xy_nm``.
    """
    table = validate(locs)
    if "uncertainty_xy_nm" not in table:
        raise InputRejected("duplicates are judged by uncertainty_xy_nm, a column this table does not have.")
    if isinstance(radius_nm, str):
        formula = parse(radius_nm, None)
        if formula.is_truth:
            raise InputRejected(
                f"the radius '{radius_nm}' is a comparison; give a length, as uncertainty_xy."
            )
        radius = _values(formula, table)
    else:
        _check_radius(radius_nm)
        radius = np.full(len(table), radius_nm)
    radius = np.nan_to_num(radius, posinf=0.0, neginf=0.0)
    largest = float(radius.max(initial=0.0))
    if largest <= 0:
        return table
    # Frames stand apart in a third dimension, so that one tree serves them all.
    level = np.unique(table["frame"].to_numpy(), return_inverse=True)[1] * (2.0 * largest)
    tree = cKDTree(np.column_stack([table[["x_nm", "y_nm"]].to_numpy(), level]))
    pairs = tree.query_pairs(largest, output_type="ndarray")
    sigma = table["uncertainty_xy_nm"].to_numpy()
    sigma = np.where(np.isnan(sigma), np.inf, sigma)
    first, second = pairs.min(axis=1), pairs.max(axis=1)
    second_is_worse = sigma[first] <= sigma[second]
    worse = np.where(second_is_worse, second, first)
    distance = np.linalg.norm(tree.data[first] - tree.data[second], axis=1)
    keep = np.ones(len(table), bool)
    keep[worse[distance <= radius[worse]]] = False
    return _kept(table, keep)


def in_region(
    locs: pd.DataFrame,
    *,
    x_nm: Range | None = None,
    y_nm: Range | None = None,
    z_nm: Range | None = None,
) -> pd.DataFrame:
    """Keep the rows within a box; the lower end of a range is included, the upper is not.

    Raises
    ------
    InputRejected
        If a range runs backwards, or z is asked for and the table has none.
    """
    table = validate(locs)
    keep = np.ones(len(table), bool)
    for name, ends in zip(_AXES, (x_nm, y_nm, z_nm), strict=True):
        if ends is None:
            continue
        if not ends[0] < ends[1]:
            raise InputRejected(f"the region's {name} {ends} must be two ends in nm, the lower first.")
        values = _column(table, name)
        keep &= (values >= ends[0]) & (values < ends[1])
    return _kept(table, keep)


def _check_radius(radius_nm: float) -> None:
    if not (math.isfinite(radius_nm) and radius_nm > 0):
        raise InputRejected(f"radius_nm {radius_nm} must be a length above 0 in nm, for example 50.")


def _kept(table: pd.DataFrame, keep: NDArray[np.bool_]) -> pd.DataFrame:
    return table[keep].reset_index(drop=True)


def _values(formula: Expression, table: pd.DataFrame) -> NDArray[np.float64]:
    """The formula's value in every row, (N,); 1 and 0 of a truth."""
    columns = {name: _column(table, name) for name in sorted(formula.names)}
    return np.broadcast_to(formula.evaluate(columns, axis=0, finite_only=True), len(table))


def _column(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """The values of a column by any of its names; frames count from 1."""
    names = _names(table)
    folded = {known.casefold(): label for known, label in reversed(names.items())}
    label = names.get(name, folded.get(name.casefold()))
    if label is None:
        shown = _shown(table)
        raise InputRejected(
            f"there is no column '{name}' in this table; the nearest is '{_nearest(name, [*shown, *table])}'. "
            f"Its columns are {', '.join(shown)}."
        )
    values = table[label].to_numpy()
    if values.dtype.kind not in "biuf":
        raise InputRejected(f"the column {label} holds text; expressions compute with numbers only.")
    return values.astype(np.float64) + (FIRST_FRAME_IN_FILES if label == "frame" else 0)


def _names(table: pd.DataFrame) -> dict[str, str]:
    """Every name a column may be called by, and its label in the table; our own names come first."""
    labels = [str(label) for label in table.columns]
    names = {label: label for label in labels}
    for column in SCHEMA:
        if column.name in names:
            names.setdefault(_bare(column.thunderstorm), column.name)
    if "uncertainty_xy_nm" in names:
        names.setdefault("uncertainty", "uncertainty_xy_nm")  # ThunderSTORM 1.3
    for label in labels:
        names.setdefault(_bare(label), label)
    return names


def _shown(table: pd.DataFrame) -> list[str]:
    """The columns by the names of ThunderSTORM, which a formula is likeliest to use."""
    theirs = {column.name: _bare(column.thunderstorm) for column in SCHEMA}
    return [theirs.get(str(label), _bare(str(label))) for label in table.columns]


def _bare(label: str) -> str:
    return _BARE.sub("", label)


def _nearest(name: str, names: Iterable[str]) -> str:
    def likeness(known: str) -> float:
        return difflib.SequenceMatcher(None, name.casefold(), known.casefold()).ratio()

    return max(names, key=likeness)
