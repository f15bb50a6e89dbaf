"""From one bead to all of them: where each one lies, which of them disagree, and the noise of each pixel."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from smlm_bridge.retrieve.jitter import all_images
from smlm_bridge.retrieve.model import BeadModel, Parameters
from smlm_bridge.retrieve.objective import GEOMETRY, BeadData, linear_fit, minimise, residuals
from smlm_bridge.retrieve.prepare import FAINT_FLOOR, Problem
from smlm_bridge.retrieve.start import whole_pixel_shift, window_limit_px

_SLICES = 8  # of each further bead, to find its place
_FOCUS_STEPS_NM = np.arange(-600.0, 601.0, 150.0)
_PLACE_ITERATIONS = 15
_OUTLIER_MADS, _OUTLIER_RATIO = 5.0, 1.5
_NEAR_THRESHOLD = (2.0, 4.0)
_POISSON_DISPERSION = 1.2  # residuals this close to the noise leave no model error to allow for


def placed(
    model: BeadModel, p: Parameters, problem: Problem, *, on_evaluation: Callable[[], None]
) -> Parameters:
    """``p``, which knows the first bead, with the position and focus of every other bead found.

    The pupil is held. Whole pixels and the focus by correlation, the rest by a short fit.
    """
    positions, focus = [p.position], [p.focus]
    window = problem.data.cropped(window_limit_px(model.optics, model.samples))
    for number in range(1, len(problem.beads)):
        data = window.of([number])
        chosen = [problem.slices[i] for i in _spaced(len(problem.slices), _SLICES)]
        data = data.at(chosen)
        best = (-1.0, p)
        for step in _FOCUS_STEPS_NM:
            start = replace(p, position=torch.zeros_like(p.position)).moved(focus_nm=float(step))
            correlation, shift = whole_pixel_shift(model, start, data)
            if correlation > best[0]:
                best = (correlation, start.moved(xy_nm=shift))
        found, _ = minimise(
            model,
            best[1],
            data,
            free=[name for name in GEOMETRY if name != "log_blur"],
            iterations=_PLACE_ITERATIONS,
            on_evaluation=on_evaluation,
        )
        positions.append(found.position)
        focus.append(found.focus)
    return replace(p, position=torch.cat(positions), focus=torch.cat(focus))


def bead_misfits(model: BeadModel, p: Parameters, data: BeadData) -> list[float]:
    """Weighted squared residuals of every bead, relative to its weighted data."""
    r = residuals(all_images(model, p, data), data)
    misfits = []
    for number in range(len(p.position)):
        one = data.of([number])
        chi2 = (one.weights * r[data.bead == number].square()).sum()
        misfits.append(float(chi2) / one.scale)
    return misfits


def outliers(misfits: Sequence[float]) -> dict[int, str]:
    """Beads that the common pupil explains clearly worse than it explains the others, and why they go."""
    values = np.asarray(misfits)
    if len(values) < 3:
        return {}
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    limit = max(_OUTLIER_RATIO * middle, middle + _OUTLIER_MADS * spread)
    return {
        i: f"its misfit {value:.3f} is {value / middle:.1f} times the median ({middle:.3f}): "
        "a clump, a neighbour in its window, or not on the coverslip"
        for i, value in enumerate(misfits)
        if value > limit
    }


def without(p: Parameters, keep: Sequence[int]) -> Parameters:
    """The parameters of these beads only."""
    return replace(p, position=p.position[list(keep)], focus=p.focus[list(keep)])


def reweighted(model: BeadModel, p: Parameters, problem: Problem) -> BeadData:
    """Weights from the model in place of the smoothed data.

    The minimum of squares over mu + v, renewed as mu changes, is where the likelihood of Poisson counts with
    read variance v (Huang 2013) has its maximum. What the model cannot explain is allowed for by a floor
    relative to the peak, as large as the residuals ask. A thresholded stack lost the background that its noise
    came from and keeps its weights; the pixels whose model is a few thresholds, few of which were lost, tell
    how much they are out.
    """
    data = problem.data
    images = all_images(model, p, data)
    if data.threshold is not None:
        chi2 = data.kept_weights * residuals(images, data).square()
        bright = (linear_fit(images, data)[0] / data.threshold)[:, None, None] * images
        near = (data.kept_weights > 0) & (bright > _NEAR_THRESHOLD[0]) & (bright < _NEAR_THRESHOLD[1])
        return replace(data, dispersion=float(chi2[near].mean()) if near.any() else 0.0)
    photons, background = linear_fit(images, data)
    expected = (photons[:, None, None] * images + background[:, None, None]).clamp_min(0)
    excess = problem.camera.excess_noise_factor
    variance = excess * expected + problem.read_variance[data.bead] + 1e-3
    dispersion = float(((data.photons - expected).square() / variance).mean())
    floor = FAINT_FLOOR * min(max(dispersion - _POISSON_DISPERSION, 0.0), 1.0)
    return replace(data, weights=1 / (variance + floor * data.photons.max()))


def _spaced(count: int, wanted: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, wanted))})
