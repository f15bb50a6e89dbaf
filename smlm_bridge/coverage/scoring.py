"""From what boxes show to a score for each test; above 1 a box is flagged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.coverage.boxes import Boxes
from smlm_bridge.coverage.limits import QUANTITIES, Allowed, outside
from smlm_bridge.coverage.reference import Expected, Familiar, Reference, joint_limits

if TYPE_CHECKING:
    from smlm_bridge.coverage.rendered import Measured

Floats = NDArray[np.float64]

FEATURES: Final = "features"
RANGES: Final = "ranges"
_RENDERED: Final = ("deviance", "likelihood", "aberration")
_FOLDS: Final = 4
_LEAST_LIMIT: Final = 0.5
_LIGHT_SPREAD: Final = 1.5  # of photons and background about their fit, over the least there is


@dataclass(frozen=True)
class Scores:
    """Scores of n boxes by test; above 1 a box is flagged.

    Parameters
    ----------
    by_test
        ``ranges``, ``deviance``, ``likelihood``, ``aberration`` and ``features``, each (n,), as far as they could
        be done.
    by_quantity
        The first of them by height, photons and background.
    standard
        All but the ranges in standard deviations of the training's.
    """

    by_test: Mapping[str, Floats]
    by_quantity: Mapping[str, Floats]
    standard: Mapping[str, Floats]

    @property
    def combined(self) -> Floats:
        """(n,) the worst of them."""
        return np.asarray(np.max(list(self.by_test.values()), axis=0))

    def worst_test(self, i: int) -> str:
        """The test that a box fails most."""
        name = max(self.by_test, key=lambda test: float(self.by_test[test][i]))
        if name == RANGES:
            name = max(self.by_quantity, key=lambda part: float(self.by_quantity[part][i]))
        return name


def scored(
    boxes: Boxes, measured: "Measured | None", reference: Reference | None, allowed: Allowed
) -> Scores:
    """Score boxes.

    Parameters
    ----------
    boxes, measured
        What was predicted, and what rendering it again showed; None without rendering.
    reference
        What the training space looks like; None tests the ranges alone.
    allowed
        The training ranges.
    """
    away = outside(*_quantities(boxes, measured), allowed)
    standard = {} if reference is None else _standard(boxes, measured, reference)
    limits = {} if reference is None else reference.limits
    by_quantity = {
        name: away[:, i] / max(limits.get(RANGES, 2.0), _LEAST_LIMIT) for i, name in enumerate(QUANTITIES)
    }
    by_test = {RANGES: np.max(list(by_quantity.values()), axis=0)}
    by_test |= {name: value / max(limits[name], _LEAST_LIMIT) for name, value in standard.items()}
    return Scores(by_test, by_quantity, standard)


def learned(boxes: Boxes, measured: "Measured", allowed: Allowed, *, side_px: int) -> Reference:
    """What the training space looks like, from boxes drawn from it."""
    count = len(boxes)
    fold = np.arange(count) % _FOLDS
    whole = _learned(boxes, measured, np.ones(count, bool), side_px)
    scores = {name: np.empty(count) for name in whole.expected}
    for k in range(_FOLDS):  # boxes that took part in learning look too familiar
        rest = _learned(boxes, measured, fold != k, side_px)
        for name, values in _standard(boxes, measured, rest).items():
            scores[name][fold == k] = values[fold == k]
    scores[RANGES] = outside(*_quantities(boxes, measured), allowed).max(axis=1)
    return Reference(whole.expected, whole.familiar, joint_limits(scores), count, side_px)


def _learned(boxes: Boxes, measured: "Measured", rows: NDArray[np.bool_], side_px: int) -> Reference:
    """From some of the boxes, without limits."""
    at = covariates(boxes, measured)[rows]
    values = {name: measured.statistics[rows, i] for i, name in enumerate(_RENDERED)}
    values = {name: value for name, value in values.items() if value.any()}
    familiar = None
    if boxes.features.shape[1]:
        familiar = Familiar.of(boxes.features[rows])
        values[FEATURES] = familiar.distance(boxes.features[rows])
    return Reference({name: Expected.of(v, at) for name, v in values.items()}, familiar, {}, len(at), side_px)


def _standard(boxes: Boxes, measured: "Measured | None", reference: Reference) -> dict[str, Floats]:
    """Statistics in standard deviations of the training's at the same prediction."""
    at = covariates(boxes, measured)
    found = {}
    if measured is not None:
        found = {name: measured.statistics[:, i] for i, name in enumerate(_RENDERED)}
    if reference.familiar is not None and boxes.features.shape[1] == len(reference.familiar.mean):
        found[FEATURES] = reference.familiar.distance(boxes.features)
    return {name: one.standard(found[name], at) for name, one in reference.expected.items() if name in found}


def covariates(boxes: Boxes, measured: "Measured | None") -> Floats:
    """(n, 4) what a statistic's expectation depends on: predicted photons, background, height, crowding."""
    light = np.log(np.maximum(boxes.photons_found, 1.0))
    level = np.log(np.maximum(boxes.background_found, 0.1))
    other = pd.Series(boxes.near_photons).groupby(boxes.near_box).sum()
    near = other.reindex(range(len(boxes)), fill_value=0.0).to_numpy(np.float64)
    crowding = np.log1p(near / np.maximum(boxes.photons_found, 1.0))
    return np.stack([light, level, boxes.xyz_nm[:, 2], crowding], axis=1)


def _quantities(boxes: Boxes, measured: "Measured | None") -> tuple[Floats, Floats]:
    """(n, 3) height, photons and background with their standard deviations; fitted ones where there are any."""
    if measured is not None:
        values = measured.quantities
    else:
        values = np.stack([boxes.xyz_nm[:, 2], boxes.photons_found, boxes.background_found], axis=1)
    side = boxes.photons.shape[-1]
    least = np.maximum(values[:, 1:], 1.0)
    light = _LIGHT_SPREAD * np.sqrt(least[:, 0])
    level = _LIGHT_SPREAD * np.sqrt(least[:, 1] + boxes.read_variance.mean((1, 2))) / side
    return values, np.stack([boxes.sigma_z_nm, light, level], axis=1)
