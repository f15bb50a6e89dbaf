"""Phase retrieval from the stacks of beads: the stages in order."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from smlm_bridge.camera import Camera
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.retrieve import zelger
from smlm_bridge.retrieve.answer import finish
from smlm_bridge.retrieve.coarse import Found, bead_model, centroid_nm, coarse_iterations, coarse_stage
from smlm_bridge.retrieve.jitter import registered
from smlm_bridge.retrieve.joint import bead_misfits, outliers, placed, reweighted, without
from smlm_bridge.retrieve.model import BeadModel, Parameters
from smlm_bridge.retrieve.objective import PIXELWISE, SMOOTH, minimise
from smlm_bridge.retrieve.prepare import Bead, Problem, prepare
from smlm_bridge.retrieve.result import Retrieval, RetrieveOptions
from smlm_bridge.retrieve.start import COARSE_SAMPLES, coarse_slices, window_limit_px

_FINE_SLICES = 28  # more hardly change the pupil; the rest joins for the last iterations
_ZELGER_ITERATIONS = (80, 60)
_MOST_SLICES = 112  # of all beads together, in the last iterations
_TURNS = (0.5, 0.5, 1 / 4)  # of the iterations; the jitter is found before each, every slice joins the last


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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch with a single thread: the products are so small that two spend their time waiting for each other.

    The answer then does not depend on the machine either: threads add up in another order.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def retrieve(
    stack_zyx: NDArray[np.generic] | Sequence[NDArray[np.generic]],
    optics: Optics,
    options: RetrieveOptions,
    *,
    camera: Camera | None = None,
    initial: Pupil | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Retrieval:
    """Retrieve the pupil of a microscope from beads at several focus positions.

    Maximum likelihood in the sense of Hanser 2004 and Ferdman 2020: pixel-wise phase and amplitude behind a
    vectorial model; photons and background of each slice projected out; zeros of thresholded stacks censored.
    All beads share the pupil and the blur; each has its own position, focus and walk with z. The beads of a raw
    field are found, those that stand alone are cut out, and those that disagree with the others are left out.

    Parameters
    ----------
    stack_zyx : (Z, Y, X), or a sequence of such
        Counts: stacks of one bead each, or raw fields with many.
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
        If the stacks, the step or the slices cannot be used (see ``checks`` and ``find``).
    """
    started = time.perf_counter()
    stacks = [stack_zyx] if isinstance(stack_zyx, np.ndarray) else list(stack_zyx)
    problem = prepare(stacks, optics, options, camera=camera)
    plan = coarse_iterations(options, with_mask=initial is not None) + options.iterations
    progress = _Progress(on_step, int(1.1 * (plan + options.iterations // 3)))
    first = problem.data.of([0])
    rejected: list[tuple[Bead, str]] = []
    if options.method == "zelger":
        found, problem = _zelger(problem.of([0]), optics, options, progress)
        model = bead_model(optics, options.pupil_samples, first, options)
        result = finish(
            stacks, problem, found, model, found.parameters, options=options, initial=None, rejected=rejected
        )
        progress.finish()
        return replace(result, seconds=time.perf_counter() - started)
    found = coarse_stage(first.at(problem.slices), optics, options, initial=initial, on_evaluation=progress)
    model = bead_model(found.optics, options.pupil_samples, first, options)
    p = found.parameters.resampled(options.pupil_samples)
    if len(problem.beads) > 1:
        p = placed(model, p, problem, on_evaluation=progress)
        p, problem, rejected = _agreeing(model, p, problem)
    p, problem, later = _fine(model, p, problem, found, options, progress)
    rejected += later
    result = finish(stacks, problem, found, model, p, options=options, initial=initial, rejected=rejected)
    progress.finish()
    return replace(result, seconds=time.perf_counter() - started)


def _zelger(
    problem: Problem, optics: Optics, options: RetrieveOptions, progress: _Progress
) -> tuple[Found, Problem]:
    """The published approach: a coarse fit from a few focus positions, then all slices that are fitted."""
    data = problem.data.at(problem.fitted)
    few = data.at(coarse_slices(len(data.photons)))
    window = few.cropped(window_limit_px(optics, COARSE_SAMPLES))
    flat = np.zeros((COARSE_SAMPLES, COARSE_SAMPLES))
    centre, xy = -float(data.focus_nm.mean()), centroid_nm(few, optics.pixel_nm)
    starts = [
        (Parameters.initial(flat, xy_nm=xy, focus_nm=centre + focus), torch.zeros(len(zelger.NOLL)))
        for focus in zelger.START_FOCUS_NM
    ]
    coarse = bead_model(optics, COARSE_SAMPLES, window, options)
    p, modes = zelger.fit_modes(
        coarse, starts, window, iterations=_ZELGER_ITERATIONS[0], on_evaluation=progress
    )
    p = zelger.with_modes(p, modes, options.pupil_samples)
    model = bead_model(optics, options.pupil_samples, data, options)
    every = math.ceil(len(data.photons) / _FINE_SLICES)
    p, _ = zelger.fit_modes(
        model,
        [(p, modes)],
        data.at(range(0, len(data.photons), every)),
        iterations=_ZELGER_ITERATIONS[1],
        on_evaluation=progress,
    )
    p, registered_data = registered(model, p, problem.data)
    return Found(p, optics, False, {}, {}, None, []), replace(problem, data=registered_data)


def _agreeing(
    model: BeadModel, p: Parameters, problem: Problem
) -> tuple[Parameters, Problem, list[tuple[Bead, str]]]:
    """The beads that one pupil explains alike, and the others with the reason."""
    if len(problem.beads) < 3:
        return p, problem, []
    fitted = problem.data.at(problem.fitted)
    away = outliers(bead_misfits(model, p, fitted))
    if not away:
        return p, problem, []
    keep = [i for i in range(len(problem.beads)) if i not in away]
    rejected = [(problem.beads[i], reason) for i, reason in away.items()]
    return without(p, keep), problem.of(keep), rejected


def _fine(
    model: BeadModel,
    p: Parameters,
    problem: Problem,
    found: Found,
    options: RetrieveOptions,
    progress: _Progress,
) -> tuple[Parameters, Problem, list[tuple[Bead, str]]]:
    """The final fit, in turns with the jitter of the stage and the weights; the data with both found.

    Beads are judged again after each turn: once the pupil is that of the majority, the bead that the search
    began with may turn out to be the odd one.
    """
    free = PIXELWISE if found.pixelwise else SMOOTH
    rejected: list[tuple[Bead, str]] = []
    for share, most in zip(_TURNS, (_FINE_SLICES, _FINE_SLICES, _MOST_SLICES), strict=True):
        fitted = problem.fitted
        step = math.ceil(len(fitted) / most)
        p, data = registered(model, p, problem.data)
        problem = replace(problem, data=data)
        problem = replace(problem, data=reweighted(model, p, problem))
        p, _ = minimise(
            model,
            p,
            problem.data.at(fitted[::step]),
            free=free,
            iterations=max(1, round(share * options.iterations)),
            on_evaluation=progress,
        )
        p, problem, away = _agreeing(model, p, problem)
        rejected += away
    p, data = registered(model, p, problem.data)
    return p, replace(problem, data=data), rejected
