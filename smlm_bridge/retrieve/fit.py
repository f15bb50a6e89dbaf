"""Phase retrieval from the stack of one bead: the stages in order, and what they leave behind."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.retrieve.coarse import Found, bead_model, coarse_iterations, coarse_stage
from smlm_bridge.retrieve.jitter import all_images, registered
from smlm_bridge.retrieve.model import BeadModel, Parameters
from smlm_bridge.retrieve.objective import (
    PIXELWISE,
    SMOOTH,
    BeadData,
    linear_fit,
    log_likelihood,
    minimise,
    misfit,
)
from smlm_bridge.retrieve.prepare import Problem, prepare
from smlm_bridge.retrieve.result import (
    Retrieval,
    RetrieveOptions,
    decompose,
    stack_scores,
)
from smlm_bridge.retrieve.start import oriented, pupil_phase

_FINE_SLICES = 28  # more hardly change the pupil; the rest joins for the last iterations
_TURNS = (0.5, 0.5, 1 / 3)  # of the iterations; the jitter is found before each, every slice joins the last
_POOR_CORRELATION = 0.9
_FAR_FOCUS_NM = 1500.0

FloatArray = NDArray[np.float64]


def retrieve(
    stack_zyx: NDArray[np.generic],
    optics: Optics,
    options: RetrieveOptions,
    *,
    camera: Camera | None = None,
    initial: Pupil | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Retrieval:
    """Retrieve the pupil of a microscope from one bead at several focus positions.

    Maximum likelihood in the sense of Hanser 2004 and Ferdman 2020: pixel-wise phase and amplitude behind a
    vectorial model; photons and background of each slice projected out; zeros of thresholded stacks censored.

    Parameters
    ----------
    stack_zyx : (Z, Y, X)
        Counts.
    optics
        Microscope; its ``focus_nm`` is kept for the calibration and plays no part in the fit.
    options
        Step, starts, what to fit.
    camera
        Gives photo-electrons and read noise; None takes one count as one photo-electron.
    initial
        A designed mask to start from. Its tilts and defocus are kept; without it the phase has none.
    on_step
        Called with iterations done and planned.

    Raises
    ------
    InputRejected
        If the stack, the step or the slices cannot be used (see ``checks``).
    """
    started = time.perf_counter()
    problem = prepare(stack_zyx, optics, options, camera=camera)
    plan = coarse_iterations(options, with_mask=initial is not None) + options.iterations
    progress = _Progress(on_step, int(1.1 * (plan + options.iterations // 3)))
    data = problem.data.at(problem.fitted)
    found = coarse_stage(data, optics, options, initial=initial, on_evaluation=progress)
    model = bead_model(found.optics, options.pupil_samples, data, options)
    parameters, registered_data = _fine(model, problem, found, options, progress)
    problem = replace(problem, data=registered_data)
    result = _finish(stack_zyx, problem, found, model, parameters, options=options, initial=initial)
    progress.finish()
    return replace(result, seconds=time.perf_counter() - started)


class _Progress:
    """Counts evaluations against a plan."""

    def __init__(self, on_step: Callable[[int, int], None] | None, total: int) -> None:
        self._on_step, self._total, self._done = on_step, total, 0

    def __call__(self) -> None:
        self._done = min(self._done + 1, self._total - 1)
        if self._on_step is not None:
            self._on_step(self._done, self._total)

    def finish(self) -> None:
        if self._on_step is not None:
            self._on_step(self._total, self._total)


def _fine(
    model: BeadModel, problem: Problem, found: Found, options: RetrieveOptions, progress: _Progress
) -> tuple[Parameters, BeadData]:
    """The final fit, in turns with the jitter of the stage; returns the data with the jitter found."""
    free = PIXELWISE if found.pixelwise else SMOOTH
    p, data = found.parameters.resampled(options.pupil_samples), problem.data
    every = math.ceil(len(problem.fitted) / _FINE_SLICES)
    for share, step in zip(_TURNS, (every, every, 1), strict=True):
        p, data = registered(model, p, data)
        p, _ = minimise(
            model,
            p,
            data.at(problem.fitted[::step]),
            free=free,
            iterations=max(1, round(share * options.iterations)),
            on_evaluation=progress,
        )
    return registered(model, p, data)


def _finish(
    stack: NDArray[np.generic],
    problem: Problem,
    found: Found,
    model: BeadModel,
    p: Parameters,
    *,
    options: RetrieveOptions,
    initial: Pupil | None,
) -> Retrieval:
    data = problem.data
    fractions = all_images(model, p, data)
    photons, background = (v.double().numpy() for v in linear_fit(fractions, data))
    light = np.broadcast_to(background[:, None, None], stack.shape).copy()
    dark = problem.camera.expected(light).mean((1, 2))
    light[:, problem.window[0], problem.window[1]] += photons[:, None, None] * fractions.numpy()
    model_stack = problem.camera.expected(light).astype(np.float32)

    def scores(slices: list[int]) -> dict[str, float]:
        return stack_scores(
            model_stack[slices], stack[slices], threshold=problem.threshold, background=dark[slices]
        )

    overall = scores(list(range(len(stack))))
    rest = [i for i in range(len(stack)) if i not in problem.fitted]
    held_out = scores(rest) if rest else None
    with torch.no_grad():
        fitted = data.at(problem.fitted)
        likelihood = log_likelihood(float(misfit(model, p, fitted)), fitted)
    mask = None
    if initial is not None and found.mask is not None:
        mask = oriented(pupil_phase(initial, model.samples), found.mask.orientation)
    defocus_nm = model.focus_offset_nm(p).item()
    pupil, p = _pupil(model, p, options, mask)
    focus = (data.focus_nm + model.focus_offset_nm(p)).double().numpy()
    x, y = model.position_nm(p, torch.zeros(1))[0].tolist()
    pixel = found.optics.pixel_nm
    rows, columns = problem.window
    bead = (
        x + (columns.start + columns.stop) / 2 * pixel,
        y + (rows.start + rows.stop) / 2 * pixel,
        options.bead_diameter_nm / 2,
    )
    power = model.power.double().numpy()
    calibration = Calibration(
        found.optics,
        pupil=pupil,
        camera=problem.camera,
        z_range_nm=_heights(found.optics, focus),
        blur_nm=float(p.blur_nm),
        provenance=_provenance(options, overall, held_out),
    )
    return Retrieval(
        calibration,
        model_stack,
        overall["rrse"],
        overall["mean_slice_correlation"],
        held_out,
        likelihood,
        photons,
        background,
        bead,
        focus,
        decompose(pupil.phase_rad, power, model.gauge_terms())[1],
        found.twin,
        found.analysers,
        (*found.warnings, *_warnings(overall, defocus_nm, options)),
        model_stack - stack.astype(np.float32),
        seconds=0.0,
        shift_nm=data.shift_nm.double().numpy(),
    )


def _pupil(
    model: BeadModel, p: Parameters, options: RetrieveOptions, mask: FloatArray | None
) -> tuple[Pupil, Parameters]:
    """Settle what the images cannot: tilt against bead position, defocus against focus.

    Tilts and defocus are those of the mask, or none. A given first focus fixes the focus instead: what
    defocus is left then belongs to the pupil.
    """
    phase = model.total_phase(p).detach().double().numpy()
    power, terms = model.power.double().numpy(), model.gauge_terms()
    amounts, _ = decompose(phase if mask is None else phase - mask, power, terms)
    if options.first_focus_nm is not None:
        amounts[2] = -model.focus_offset_nm(p).item()
    phase = phase - np.tensordot(amounts, terms, 1)
    phase -= np.angle((power * np.exp(1j * phase)).sum())
    inside = model.inside.numpy()
    amplitude = np.exp(model.total_log_amplitude(p).detach().double().numpy())
    amplitude /= math.sqrt(float((power * amplitude**2).sum() / power.sum()))
    pupil = Pupil(np.where(inside, phase, 0.0), np.where(inside, amplitude, 1.0))
    return pupil, p.moved(xy_nm=(amounts[0], amounts[1]), focus_nm=amounts[2])


def _heights(optics: Optics, focus_nm: FloatArray) -> tuple[float, float]:
    """Heights above the coverslip that look like the bead did in the scan, at the focus of the optics."""
    heights = (optics.focus_nm - focus_nm) * optics.sample_index / optics.immersion_index
    low, high = max(0.0, float(heights.min())), float(heights.max())
    return (low, high) if high > low else (0.0, float(np.ptp(heights)))


def _warnings(overall: dict[str, float], defocus_nm: float, options: RetrieveOptions) -> list[str]:
    warnings = []
    if overall["mean_slice_correlation"] < _POOR_CORRELATION:
        warnings.append(
            f"the model explains the stack poorly (correlation {overall['mean_slice_correlation']:.3f}): "
            "check the optics, z_step_nm and that one bead stands alone."
        )
    if options.first_focus_nm is not None and abs(defocus_nm) > _FAR_FOCUS_NM:
        warnings.append(
            f"first_focus_nm leaves {defocus_nm:.0f} nm of defocus in the pupil: is it the focus of slice 0?"
        )
    return warnings


def _provenance(
    options: RetrieveOptions, overall: dict[str, float], held_out: dict[str, float] | None
) -> dict[str, Any]:
    recorded = asdict(options)
    recorded["fit_slices"] = None if options.fit_slices is None else [int(i) for i in options.fit_slices]
    recorded["analysers_deg"] = list(options.analysers_deg)
    return {"method": "phase retrieval from a bead stack", **recorded, **overall, "held_out": held_out}
