"""How the localizations of two tables lie to each other: coordinate-based colocalization, nearest neighbours.

For every localization of the first table, the densities of both tables in discs of growing radius around it are
compared by rank (Malkusch et al. 2012): +1 where they grow alike, 0 where they are unrelated, -1 where one grows
and the other falls. As in ThunderSTORM a localization counts as its own neighbour.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import POSITION, validate

#: ThunderSTORM's defaults.
RADIUS_STEP_NM: Final = 50.0
STEPS: Final = 10
_DIGITS: Final = 12

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Colocalization:
    """What ``colocalize`` finds for every row of the first table.

    Attributes
    ----------
    cbc
        (N,) value from -1 to 1; NaN where nothing of the other table lies within the largest radius.
    distance_nm
        (N,) distance of the nearest localization of the other table; infinite where that is empty.
    neighbours
        (N, S) localizations of the other table within each radius.
    radii_nm
        (S,) the radii.
    """

    cbc: Floats
    distance_nm: Floats
    neighbours: NDArray[np.int64]
    radii_nm: Floats


def colocalize(
    locs: pd.DataFrame,
    other: pd.DataFrame,
    *,
    radius_step_nm: float = RADIUS_STEP_NM,
    steps: int = STEPS,
    dimensions: Literal[2, 3] = 2,
    on_step: Callable[[int, int], None] | None = None,
) -> Colocalization:
    """Coordinate-based colocalization and nearest neighbours of every row of ``locs`` in ``other``.

    C = S exp(-d/R), where S is Spearman's rank correlation of the two densities N(r) R^n / (N(R) r^n) over the
    radii r, d the distance of the nearest neighbour, R the largest radius and n ``dimensions`` (Malkusch et al.
    2012). ThunderSTORM takes n = 2 also in three dimensions; here it is the dimension.

    Parameters
    ----------
    locs, other
        Tables as in ``smlm_bridge.locs``; frames play no part.
    radius_step_nm, steps
        The radii are 1, 2, ..., ``steps`` times the first.
    dimensions
        Distance in x, y, or in x, y, z.
    on_step
        Called with (radii done, radii in all), for the one table and then the other.

    Raises
    ------
    InputRejected
        If an argument is out of its range, a table is not valid, or z is asked for and a table has none.
    """
    if not (math.isfinite(radius_step_nm) and radius_step_nm > 0) or steps < 2:
        raise InputRejected(
            f"radius_step_nm {radius_step_nm} must be a length above 0 in nm, steps {steps} 2 or more."
        )
    tables = validate(locs), validate(other)
    axes = list(POSITION[:dimensions])
    if dimensions not in (2, 3) or any(axes[-1] not in table for table in tables):
        raise InputRejected(f"dimensions {dimensions}: 2, or 3 for two tables with z_nm, are allowed.")
    here, there = (table[axes].to_numpy() for table in tables)
    radii = radius_step_nm * np.arange(1, steps + 1, dtype=np.float64)
    if len(here) == 0 or len(there) == 0:
        none = np.full(len(here), np.nan)
        return Colocalization(none, np.full(len(here), np.inf), np.zeros((len(here), steps), np.int64), radii)
    tree = cKDTree(there)
    distance = np.asarray(tree.query(here)[0], dtype=np.float64)
    own, neighbours = (
        _counts(counted, here, radii, on_step, number) for number, counted in enumerate((cKDTree(here), tree))
    )
    correlation = _spearman(own / radii**dimensions, neighbours / radii**dimensions)
    cbc = np.where(neighbours[:, -1] > 0, correlation * np.exp(-distance / radii[-1]), np.nan)
    return Colocalization(cbc, distance, neighbours, radii)


def _counts(
    tree: cKDTree, place: Floats, radii: Floats, on_step: Callable[[int, int], None] | None, number: int
) -> NDArray[np.int64]:
    """Points of the tree within each radius of each place, (N, S)."""
    within = np.empty((len(place), radii.size), np.int64)
    for step, radius in enumerate(radii):
        within[:, step] = tree.query_ball_point(place, radius, return_length=True)
        if on_step is not None:
            on_step(number * radii.size + step + 1, 2 * radii.size)
    return within


def _spearman(first: Floats, second: Floats) -> Floats:
    """Rank correlation of rows; equal values share the mean of their ranks, 0 where a row has one value."""
    # Equal in exact arithmetic must be equal here: 4/4 and 9/9 times the same factor.
    ranks = [rankdata(np.round(row, _DIGITS - _digits(row)), axis=1) for row in (first, second)]
    ranks = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    size = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    return np.where(size > 0, (ranks[0] * ranks[1]).sum(axis=1) / np.where(size > 0, size, 1.0), 0.0)


def _digits(values: Floats) -> int:
    """Digits before the decimal point of the largest value, negative for those of small ones."""
    largest = float(np.abs(values).max(initial=0.0))
    return math.ceil(math.log10(largest)) if largest > 0 else 0
