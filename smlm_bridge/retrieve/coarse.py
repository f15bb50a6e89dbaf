"""The coarse stage: the best start, and what only a comparison of fits can decide.

Analyser, mirrored solution, and whether the data ask for a pixel-wise pupil: each is settled by fitting the
alternatives to the same few slices.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.retrieve.jitter import registered
from smlm_bridge.retrieve.model import RADIAL_NOLL, ZERNIKE_NOLL, BeadModel, Parameters
from smlm_bridge.retrieve.objective import (
    PIXELWISE,
    SMOOTH,
    BeadData,
    linear_fit,
    log_likelihood,
    minimise,
    misfit,
)
from smlm_bridge.retrieve.result import RetrieveOptions, decompose, stack_scores
from smlm_bridge.retrieve.start import (
    COARSE_SAMPLES,
    MaskFit,
    coarse_slices,
    lay_mask,
    planned_iterations,
    search,
    twin_of,
    window_limit_px,
)

_ANALYSER_ITERATIONS = 100  # the start was found behind one of them, which must not decide
_TWIN_ITERATIONS = 40
_SMOOTH_ITERATIONS = 40
_CLEARLY_BETTER = 0.05
_TOLD_APART = 1.5  # ratio of misfits: a real stack's model error differs by less between equal solutions

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What the coarse stage decided.

    Parameters
    ----------
    parameters
        Where the final fit starts.
    optics
        With the analyser chosen.
    pixelwise
        Whether the final fit is pixel-wise or of Zernike coefficients.
    twin, analysers, warnings
        See ``result.Retrieval``.
    mask
        The mask that was used, if one was.
    """

    parameters: Parameters
    optics: Optics
    pixelwise: bool
    twin: dict[str, Any]
    analysers: dict[str, float]
    mask: MaskFit | None
    warnings: list[str]


def coarse_iterations(options: RetrieveOptions, *, with_mask: bool) -> int:
    """Iterations that ``coarse_stage`` will need, for progress."""
    total = planned_iterations(random_starts=options.random_starts, with_mask=with_mask)
    return (
        total + _ANALYSER_ITERATIONS * len(options.analysers_deg) + 2 * _TWIN_ITERATIONS + _SMOOTH_ITERATIONS
    )


def coarse_stage(
    data: BeadData,
    optics: Optics,
    options: RetrieveOptions,
    *,
    initial: Pupil | None,
    on_evaluation: Callable[[], None],
) -> Found:
    """Find the start of the final fit from the slices to be fitted (``data``)."""
    chosen = coarse_slices(len(data.photons))
    window = data.cropped(window_limit_px(optics, COARSE_SAMPLES))
    few, others = window.at(chosen), window.at([i for i in range(len(data.photons)) if i not in chosen])
    model = bead_model(optics, COARSE_SAMPLES, few, options)
    centre = -float(data.focus_nm.mean())
    mask = lay_mask(model, few, initial, centre_focus_nm=centre) if initial is not None else None
    best, from_mask = search(
        model,
        few,
        centre_focus_nm=centre,
        xy_nm=centroid_nm(few, optics.pixel_nm),
        mask=mask,
        random_starts=options.random_starts,
        generator=np.random.default_rng(options.seed),
        on_evaluation=on_evaluation,
    )
    warnings = [] if mask is None else _mask_warnings(mask, from_mask, options)
    mask = mask if from_mask else None
    optics, best, analysers = _choose_analyser(optics, best, few, options, on_evaluation)
    model = bead_model(optics, COARSE_SAMPLES, few, options)
    best, twin = _twin(model, best, few, options, on_evaluation)
    pixelwise = options.pixelwise
    if pixelwise is not True:
        base = np.zeros((COARSE_SAMPLES, COARSE_SAMPLES)) if mask is None else mask.phase
        smooth = _smooth(model, best, base, few, on_evaluation)
        if pixelwise is None:
            judge = others if len(others.photons) else few
            pixelwise = _misfit(model, best, judge) < _misfit(model, smooth, judge)
        best = best if pixelwise else smooth
    return Found(best, optics, pixelwise, twin, analysers, mask, warnings)


def bead_model(optics: Optics, samples: int, data: BeadData, options: RetrieveOptions) -> BeadModel:
    """The model of the window of ``data``."""
    height, width = data.photons.shape[1:]
    return BeadModel(optics, samples, (height, width), bead_diameter_nm=options.bead_diameter_nm)


def centroid_nm(data: BeadData, pixel_nm: float) -> tuple[float, float]:
    """x, y of the light from the window's centre."""
    light = data.photons.sum(0)
    light = (light - light.median()).clamp_min(0) ** 2  # the square keeps the background out
    height, width = light.shape
    y = float((light.sum(1) * (torch.arange(height) - (height - 1) / 2)).sum() / light.sum())
    x = float((light.sum(0) * (torch.arange(width) - (width - 1) / 2)).sum() / light.sum())
    return x * pixel_nm, y * pixel_nm


def _mask_warnings(mask: MaskFit, from_mask: bool, options: RetrieveOptions) -> list[str]:
    warnings = []
    if mask.reversed_correlation > mask.correlation + _CLEARLY_BETTER:
        warnings.append(
            f"the mask resembles the stack better with the scan reversed (correlation "
            f"{mask.reversed_correlation:.3f} against {mask.correlation:.3f}): check the sign of z_step_nm "
            f"({options.z_step_nm:g} nm)."
        )
    if from_mask and mask.orientation != "as given":
        warnings.append(f"the mask fits only {mask.orientation}; it was used that way.")
    if not from_mask:
        warnings.append(
            "a start without the mask fitted better; the mask was not used. Is it the one in the pupil?"
        )
    return warnings


def _angle_name(angle: float | None) -> str:
    return "none" if angle is None else f"{angle:g}"


def _choose_analyser(
    optics: Optics,
    start: Parameters,
    data: BeadData,
    options: RetrieveOptions,
    on_evaluation: Callable[[], None],
) -> tuple[Optics, Parameters, dict[str, float]]:
    """Fit on from the same phase behind every candidate and keep the likeliest.

    The amplitude starts anew: it has taken on what the analyser of the search could not explain. The priors
    count, since a wrong analyser asks for a rougher amplitude; the jitter of the stage is taken out before.
    """
    start = replace(start, log_amplitude=torch.zeros_like(start.log_amplitude))
    start, data = registered(bead_model(optics, COARSE_SAMPLES, data, options), start, data)
    best, scores = (math.inf, optics, start), {}
    for angle in options.analysers_deg if optics.model == "vectorial" else ():
        candidate = replace(optics, analyser_deg=angle)
        model = bead_model(candidate, COARSE_SAMPLES, data, options)
        p, value = minimise(
            model, start, data, free=PIXELWISE, iterations=_ANALYSER_ITERATIONS, on_evaluation=on_evaluation
        )
        scores[_angle_name(angle)] = log_likelihood(value, data)
        if value < best[0]:
            best = (value, candidate, p)
    return best[1], best[2], scores


def _twin(
    model: BeadModel,
    p: Parameters,
    data: BeadData,
    options: RetrieveOptions,
    on_evaluation: Callable[[], None],
) -> tuple[Parameters, dict[str, Any]]:
    """Ours, and scores and coefficients of the mirrored solution beside it, both fitted on for as long."""
    other = data.reversed_scan()
    mirrored, p = (
        minimise(model, q, scan, free=PIXELWISE, iterations=_TWIN_ITERATIONS, on_evaluation=on_evaluation)[0]
        for q, scan in ((twin_of(model, p), other), (p, data))
    )
    ours, twins = _misfit(model, p, data), _misfit(model, mirrored, other)
    scores = [_scores(model, q, d) for q, d in ((p, data), (mirrored, other))]
    difference = log_likelihood(ours, data) - log_likelihood(twins, data)
    power, gauge = model.power.double().numpy(), model.gauge_terms()
    _, coefficients = decompose(model.total_phase(mirrored).double().numpy(), power, gauge)
    return p, {
        "z_step_nm": -options.z_step_nm,
        **scores[1],
        "chosen": scores[0],
        "log_likelihood_difference": difference,
        "told_apart": max(ours, twins) > _TOLD_APART * min(ours, twins),
        "zernike_rad": coefficients,
    }


def _scores(model: BeadModel, p: Parameters, data: BeadData) -> dict[str, float]:
    with torch.no_grad():
        images = model.images(p, data.focus_nm, data.travel, data.shift_nm, data.bead)
        photons, background = linear_fit(images, data)
        fitted = photons[:, None, None] * images + background[:, None, None]
    return stack_scores(
        fitted.numpy(),
        data.photons.numpy(),
        threshold=None if data.threshold is None else data.threshold.numpy(),
        background=background.double().numpy(),
    )


def _smooth(
    model: BeadModel,
    pixelwise: Parameters,
    base: FloatArray,
    data: BeadData,
    on_evaluation: Callable[[], None],
) -> Parameters:
    """The alternative with few parameters: Zernike coefficients on top of ``base``."""
    power = model.power.double().numpy()
    phase = model.total_phase(pixelwise).double().numpy() - base
    amounts, coefficients = decompose(phase, power, model.gauge_terms())
    start = replace(
        pixelwise,
        phase=torch.as_tensor(base.copy(), dtype=torch.float32),
        log_amplitude=torch.zeros_like(pixelwise.log_amplitude),
        zernike=torch.tensor([coefficients[j] for j in ZERNIKE_NOLL], dtype=torch.float32),
        radial=torch.zeros(len(RADIAL_NOLL)),
    ).moved(xy_nm=(amounts[0], amounts[1]), focus_nm=amounts[2])
    return minimise(
        model, start, data, free=SMOOTH, iterations=_SMOOTH_ITERATIONS, on_evaluation=on_evaluation
    )[0]


def _misfit(model: BeadModel, p: Parameters, data: BeadData) -> float:
    with torch.no_grad():
        return float(misfit(model, p, data))
