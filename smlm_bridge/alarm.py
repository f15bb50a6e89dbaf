"""The CRLB alarm: no unbiased estimator beats the Cramér-Rao bound, so one that does has cheated.

On training data it has memorised them (Zelger et al. 2018, Opt. Express 26:33166, saw it with too few images). On
held-out data seeds leak, photons or gain have wrong units, or the bound is wrong (Möckl, Roy & Moerner 2020,
Biomed. Opt. Express 11:1633). A biased estimator may beat the bound of unbiased ones honestly; its cells say so.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from smlm_bridge.errors import InputRejected

Floats = NDArray[np.float64]

NAMES: Final = ("x", "y", "z", "photons", "background")
#: What cells are cut by, and the column of the truth that holds it.
STRATA: Final = {"photons": 3, "z_nm": 2, "background": 4}
UNDERCUT: Final = 0.97
GENERALISATION_GAP: Final = 1.15
_CHANCE: Final = 0.025  # of one cell at the bound to lie below its interval
_SURE: Final = 1e-3
_FAR: Final = 3.0  # half intervals, which chance does in no cell
_LEAST_SLOPE: Final = 0.9
_MOST_BIAS: Final = 0.3
_CONSTANT: Final = 1e-12  # variance of what does not vary
_TOO_SURE: Final = 0.9
_TOO_SURE_SHARE: Final = 0.05


@dataclass(frozen=True)
class AlarmOptions:
    """How cells are made.

    Parameters
    ----------
    photons, z, background
        Numbers of cells along each, of equal counts.
    least_boxes
        In a cell; with fewer, there are fewer cells.
    resamples, seed
        Of the bootstrap.
    """

    photons: int = 3
    z: int = 4
    background: int = 2
    least_boxes: int = 50
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.photons, self.z, self.background, self.least_boxes) < 1 or self.resamples < 100:
            raise InputRejected(
                "an alarm needs 1 cell, 1 box and 100 resamples or more; got "
                f"{self.photons} x {self.z} x {self.background} cells, {self.least_boxes} boxes, "
                f"{self.resamples} resamples."
            )


@dataclass(frozen=True, eq=False)
class CrlbAlarm:
    """The alarm's answer.

    Parameters
    ----------
    cells
        A row a cell and parameter: ``parameter``, ends ``photons_low``, ``photons_high`` and likewise of ``z_nm``
        and ``background``, ``boxes``, ``rmse``, ``bound``, ``ratio`` with the 95 % interval ``ratio_low`` to
        ``ratio_high``, ``bias_over_bound``, ``slope`` of estimate against truth, ``undercut`` and ``shrunk``
        (biased, so that it may beat the bound honestly).
    overall
        By parameter the ratio of all boxes and its interval.
    undercut
        Parameters that beat the bound over all boxes, in more cells than chance allows, or in one by far.
    too_sure
        By parameter the share of boxes whose own sigma lies below 0.9 of the bound.
    training
        Whether these were training data.
    """

    cells: pd.DataFrame
    overall: dict[str, tuple[float, float, float]]
    undercut: tuple[str, ...]
    too_sure: dict[str, float]
    training: bool

    @property
    def fires(self) -> bool:
        """Whether a parameter beats the bound."""
        return bool(self.undercut)

    @property
    def messages(self) -> tuple[str, ...]:
        """What was seen, what it means and what to do."""
        texts = []
        if self.undercut:
            ratios = ", ".join(f"{name} {self.overall[name][0]:.2f}" for name in self.undercut)
            meaning = (
                "the network has memorised them. Train on more images, or draw them fresh for every step."
                if self.training
                else "seeds leak from the training, photons or gain have wrong units, or the bound is wrong. "
                "Do not use this model before that is found."
            )
            where = "training data" if self.training else "held-out data"
            texts.append(f"RMSE below the Cramér-Rao bound on {where} (RMSE over bound: {ratios}): {meaning}")
        honest = self.cells[self.cells["undercut"] & self.cells["shrunk"]]
        if len(honest):
            texts.append(
                f"{len(honest)} of {len(self.cells)} cells lie below the bound with a biased estimate "
                f"({', '.join(sorted(set(honest['parameter'])))}): it is drawn towards the middle of its range, "
                "which is legitimate at the ends of a range and at low signal only."
            )
        sure = [f"{name} {share:.0%}" for name, share in self.too_sure.items() if share > _TOO_SURE_SHARE]
        if sure:
            texts.append(
                f"the network's own sigma lies below 0.9 of the bound for more than {_TOO_SURE_SHARE:.0%} of the "
                f"boxes ({', '.join(sure)}): it is surer than the image allows."
            )
        return tuple(texts)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists, for a model card."""
        return {
            "fires": self.fires,
            "training_data": self.training,
            "undercut": list(self.undercut),
            "overall": {name: list(values) for name, values in self.overall.items()},
            "too_sure": dict(self.too_sure),
            "messages": list(self.messages),
            "cells": self.cells.to_dict(orient="records"),
        }


def crlb_alarm(
    estimates: ArrayLike,
    truth: ArrayLike,
    bounds: ArrayLike,
    *,
    training: bool,
    sigma: ArrayLike | None = None,
    names: Sequence[str] = NAMES,
    options: AlarmOptions = AlarmOptions(),
) -> CrlbAlarm:
    """Compare errors with the Cramér-Rao bound, cell by cell of a grid of photons, height and background.

    Parameters
    ----------
    estimates, truth, bounds : (B, K)
        x, y, z, photons, background and further parameters; the bounds are standard deviations, each computed at
        its own box's truth. Bounds that are not finite are left out.
    training
        Whether the boxes were trained on; it changes what an undercut means.
    sigma : (B, K)
        The estimator's own standard deviations.
    names
        Of the K parameters.
    options
        See ``AlarmOptions``.

    Raises
    ------
    InputRejected
        If the arrays do not belong together, or hold too few boxes.
    """
    found, known, bound = (np.asarray(v, dtype=np.float64) for v in (estimates, truth, bounds))
    if not found.shape == known.shape == bound.shape or found.ndim != 2 or found.shape[1] != len(names):
        raise InputRejected(
            f"estimates {found.shape}, truth {known.shape} and bounds {bound.shape} must be (boxes, parameters) "
            f"with the parameters {', '.join(names)}."
        )
    if len(found) < options.least_boxes or found.shape[1] < len(NAMES):
        raise InputRejected(
            f"{len(found)} boxes of {found.shape[1]} parameters: an alarm needs {options.least_boxes} boxes or "
            f"more and at least the parameters {', '.join(NAMES)}."
        )
    cell, ends = _cells(known, options)
    usable = np.isfinite(found) & np.isfinite(bound)
    squares = np.where(usable, np.stack([found - known, bound]), 0.0) ** 2
    rng = np.random.default_rng(options.seed)
    rows, totals = [], np.zeros((2, options.resamples, len(names)))
    for number, spans in enumerate(ends):
        inside = cell == number
        # Weights of a Poisson law are the bootstrap's in the limit of many boxes (Hanley & MacGibbon 2006).
        weights = rng.poisson(1.0, (options.resamples, int(inside.sum()))).astype(np.float64)
        drawn = weights @ squares[:, inside]
        totals += drawn
        for k, name in enumerate(names):
            part = inside & usable[:, k]
            if part.sum() > 1:
                figures = _compared(found[part, k], known[part, k], bound[part, k], drawn[:, :, k])
                rows.append({"parameter": name, **spans, **figures})
    table = pd.DataFrame(rows)
    overall = {
        name: _ratio(squares[:, :, k].sum(1), totals[:, :, k])
        for k, name in enumerate(names)
        if usable[:, k].sum() > 1
    }
    too_sure = {}
    if sigma is not None:
        own = np.asarray(sigma, dtype=np.float64)
        too_sure = {name: float(np.mean(own[:, k] < _TOO_SURE * bound[:, k])) for k, name in enumerate(names)}
    undercut = tuple(n for n in overall if _beats(table[table["parameter"] == n], overall[n]))
    return CrlbAlarm(table, overall, undercut, too_sure, training)


def generalisation_gap(training: CrlbAlarm, held_out: CrlbAlarm) -> dict[str, float]:
    """By parameter, RMSE over bound on held-out over that on training data; above 1.15 it is overfitted."""
    return {
        name: held_out.overall[name][0] / training.overall[name][0]
        for name in held_out.overall
        if name in training.overall
    }


def _beats(cells: pd.DataFrame, overall: tuple[float, float, float]) -> bool:
    """Whether a parameter beats the bound: over all boxes, or in unbiased cells, in many or by far."""
    counted = cells[~cells["shrunk"]]
    count = int(counted["undercut"].sum())
    many = count > 0 and binom.sf(count - 1, len(counted), _CHANCE) < _SURE
    far = counted["ratio"] + _FAR * (counted["ratio_high"] - counted["ratio"]) < UNDERCUT
    return bool(many or far.any() or (overall[2] < UNDERCUT and len(counted) * 2 > len(cells)))


def _cells(truth: Floats, options: AlarmOptions) -> tuple[NDArray[np.int64], list[dict[str, float]]]:
    """The cell of every box, and the ends of every cell."""
    wanted = dict(zip(STRATA, (options.photons, options.z, options.background), strict=True))
    while np.prod(list(wanted.values())) * options.least_boxes > len(truth) and max(wanted.values()) > 1:
        most = max(wanted, key=lambda name: wanted[name])
        wanted[most] -= 1
    index = np.zeros(len(truth), np.int64)
    spans: list[dict[str, float]] = [{}]
    for name, count in wanted.items():
        values = truth[:, STRATA[name]]
        edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)))
        edges = edges if len(edges) > 1 else np.repeat(edges, 2)
        part = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        index = index * (len(edges) - 1) + part
        spans = [
            {**span, f"{name}_low": float(low), f"{name}_high": float(high)}
            for span in spans
            for low, high in itertools.pairwise(edges)
        ]
    return index, spans


def _compared(found: Floats, true: Floats, level: Floats, drawn: Floats) -> dict[str, Any]:
    """One parameter in one cell against its bound; ``drawn`` (2, R) are the resampled sums of squares."""
    error = found - true
    ratio, low, high = _ratio(np.array([np.sum(error**2), np.sum(level**2)]), drawn)
    scale, variance = np.sqrt(np.mean(level**2)), float(np.var(true))
    slope = float(np.mean((true - true.mean()) * found) / variance) if variance > _CONSTANT else 1.0
    rest = float(np.std(found - slope * true))
    spread = rest / np.sqrt(max(variance, _CONSTANT) * len(error))  # of the slope
    bias = abs(float(error.mean())) / float(scale)
    return {
        "boxes": len(error),
        "rmse": ratio * float(scale),
        "bound": float(scale),
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "bias_over_bound": bias,
        "slope": slope,
        "undercut": high < UNDERCUT,
        "shrunk": bias > _MOST_BIAS or (variance > _CONSTANT and slope + 2 * spread < _LEAST_SLOPE),
    }


def _ratio(sums: Floats, drawn: Floats) -> tuple[float, float, float]:
    """RMSE over bound, and its 95 % interval, from sums of squares (2,) and (2, R)."""
    resampled = np.sqrt(drawn[0] / np.maximum(drawn[1], _CONSTANT))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(np.sqrt(sums[0] / sums[1])), float(low), float(high)
