"""The network beside the maximum-likelihood fit on the same boxes: what a model's card says."""

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from smlm_bridge.alarm import CrlbAlarm, crlb_alarm
from smlm_bridge.calibration import Calibration
from smlm_bridge.fit import FitOptions, fit_boxes
from smlm_bridge.fit.work import fitted_psf
from smlm_bridge.model import Run
from smlm_bridge.train_single.scores import HeldOut, held_out, run_now, scored_names
from smlm_bridge.train_single.trainer import SingleTrainer

Floats = NDArray[np.float64]

_BOXES, _ABERRATED_BOXES = 2400, 480  # fits of aberrations are slow
_SHARES: Final = (0.5, 0.683, 0.8, 0.9, 0.95, 0.99)
_TIMED_BOXES, _REPEATS = 2048, 5
_CELL: Final = ("photons_low", "photons_high", "z_nm_low", "z_nm_high", "background_low", "background_high")


@dataclass(frozen=True, eq=False)
class Comparison:
    """A network and the maximum-likelihood fit on the same held-out boxes.

    Parameters
    ----------
    alarms
        By estimator, ``network`` and ``MLE``, the comparison with the bound cell by cell; without the fit where
        the PSF has no height, and of two channels.
    calibration
        By estimator (first index) and nominal share of errors (second), the share found of each parameter.
    boxes, seed
        How many, and of what seed.
    failed_fits
        Share of fits that did not converge; they are left out.
    """

    alarms: dict[str, CrlbAlarm]
    calibration: pd.DataFrame
    boxes: int
    seed: int
    failed_fits: float

    @property
    def cells(self) -> pd.DataFrame:
        """A row a cell, by its ends: of each estimator ``ratio`` (RMSE over bound) and ``bias`` (likewise)."""
        parts = []
        for alarm in self.alarms.values():
            table = alarm.cells.pivot_table(
                index=[*_CELL], columns="parameter", values=["ratio", "bias_over_bound"]
            )
            parts.append(table.rename(columns={"bias_over_bound": "bias"}, level=0))
        return pd.concat(parts, axis=1, keys=list(self.alarms))


def compared(trainer: SingleTrainer, run: Run | None = None) -> Comparison:
    """Compare a network with the maximum-likelihood fit.

    Parameters
    ----------
    trainer
        Its ranges, PSF and camera make the boxes.
    run
        The network; None takes the trainer's as it is now.
    """
    known = held_out(trainer, boxes=_ABERRATED_BOXES if trainer.ranges.noll else _BOXES)
    names = scored_names(trainer.ranges)
    values, sigma = np.split((run or run_now(trainer))(known.photons).astype(np.float64), 2, axis=1)
    estimates = {"network": (values, sigma)}
    failed = 0.0
    fit = _fitted(trainer, known, values)
    if fit is not None:
        estimates["MLE"] = fit
        failed = float(np.isnan(fit[0][:, 0]).mean())
    alarms = {
        name: crlb_alarm(found, known.truth, known.bound, training=False, sigma=own, names=names)
        for name, (found, own) in estimates.items()
    }
    curve = {name: _coverage(found - known.truth, own, names) for name, (found, own) in estimates.items()}
    return Comparison(alarms, pd.concat(curve), len(known.truth), trainer.options.seed + 1, failed)


def _fitted(trainer: SingleTrainer, known: HeldOut, network: Floats) -> tuple[Floats, Floats] | None:
    """Estimates and bounds of fits; NaN where one failed, None where a fit knows no height, and of a pair."""
    if not isinstance(trainer.calibration, Calibration):
        return None  # boxes of channel 2 are resampled, and a fit wants the pixels as they were recorded
    side, noll = trainer.options.box_px, trainer.ranges.noll
    corners = np.zeros((len(known.photons), 2), int)
    centre = side / 2 * trainer.calibration.optics.pixel_nm
    if noll:
        start = network[:, :5] + [centre, centre, 0.0, 0.0, 0.0]
        options = FitOptions(zernike=noll, z_range_nm=trainer.calibration.z_range_nm)
        found = fit_boxes(
            known.photons,
            corners,
            trainer.calibration.psf(),
            camera=known.camera,
            options=options,
            start=start,
        )
    else:
        psf = fitted_psf(trainer.calibration, side)
        found = fit_boxes(known.photons, corners, psf, camera=known.camera)
    if "z_nm" not in found.names:
        return None
    estimates = np.column_stack([found[name] for name in found.names])
    estimates[:, :2] -= centre
    return np.where(found.ok[:, None], estimates, np.nan), found.bounds


def _coverage(error: Floats, sigma: Floats, names: tuple[str, ...]) -> pd.DataFrame:
    """Shares of errors within as many sigmas as hold the nominal shares of a Gaussian."""
    seen = np.isfinite(error) & np.isfinite(sigma) & (sigma > 0)
    scores = np.abs(np.where(seen, error, 0.0)) / np.where(seen, sigma, 1.0)
    rows = [((scores <= norm.ppf(0.5 + share / 2)) & seen).sum(0) / seen.sum(0) for share in _SHARES]
    return pd.DataFrame(rows, index=pd.Index(_SHARES, name="nominal"), columns=list(names))


def boxes_per_cpu_second(run: Run, side: int, *, channels: int = 1) -> float:
    """How many boxes a network takes in a second of CPU time, of all its threads: the median."""
    boxes = np.full((_TIMED_BOXES, channels, side, side), 20.0, np.float32)
    run(boxes)
    spent = []
    for _ in range(_REPEATS):
        began = time.process_time()
        run(boxes)
        spent.append(time.process_time() - began)
    return len(boxes) / max(float(np.median(spent)), 1e-9)
