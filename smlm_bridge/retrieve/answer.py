"""What a fit leaves behind: calibration, model stacks, scores, the beads, what stays uncertain."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smlm_bridge.calibration import Calibration
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.retrieve.coarse import Found
from smlm_bridge.retrieve.covariance import uncertainty
from smlm_bridge.retrieve.jitter import all_images
from smlm_bridge.retrieve.model import BeadModel, Parameters
from smlm_bridge.retrieve.objective import linear_fit, log_likelihood, misfit
from smlm_bridge.retrieve.prepare import Bead, Problem
from smlm_bridge.retrieve.result import BeadFit, Retrieval, RetrieveOptions, decompose, stack_scores
from smlm_bridge.retrieve.start import oriented, pupil_phase

_POOR_CORRELATION = 0.9
_FAR_FOCUS_NM = 1500.0

FloatArray = NDArray[np.float64]
FloatStack = NDArray[np.float32]


def finish(
    stacks: Sequence[NDArray[np.generic]],
    problem: Problem,
    found: Found,
    model: BeadModel,
    p: Parameters,
    *,
    options: RetrieveOptions,
    initial: Pupil | None,
    rejected: Sequence[tuple[Bead, str]],
) -> Retrieval:
    """The answer of ``fit.retrieve`` from the parameters of its final fit."""
    data = problem.data
    fractions = all_images(model, p, data)
    photons, background = (v.double().numpy() for v in linear_fit(fractions, data))
    models = _model_stacks(stacks, problem, fractions.numpy(), photons, background)
    overall, held_out, each = _scores(stacks, models, problem, background)
    with torch.no_grad():
        fitted = data.at(problem.fitted)
        likelihood = log_likelihood(float(misfit(model, p, fitted)), fitted)
    mask = None
    if initial is not None and found.mask is not None:
        mask = oriented(pupil_phase(initial, model.samples), found.mask.orientation)
    doubt = uncertainty(model, p, data.at(problem.fitted), slices=len(problem.fitted))
    defocus_nm = float(model.focus_offset_nm(p)[0])
    pupil, p = _pupil(model, p, options, mask)
    planes = len(stacks[0])
    focus = (data.focus_nm + model.focus_offset_nm(p)[data.bead]).double().numpy()[:planes]
    beads = _beads(model, p, problem, photons, each, rejected)
    first = problem.beads[0].stack
    calibration = Calibration(
        found.optics,
        pupil=pupil,
        camera=problem.camera,
        z_range_nm=_heights(found.optics, focus),
        blur_nm=float(p.blur_nm),
        provenance=_provenance(options, overall, held_out, beads),
    )
    return Retrieval(
        calibration,
        models[first],
        overall["rrse"],
        overall["mean_slice_correlation"],
        held_out,
        likelihood,
        photons[:planes],
        background[:planes],
        (beads[0].x_nm, beads[0].y_nm, options.bead_diameter_nm / 2),
        focus,
        decompose(pupil.phase_rad, model.power.double().numpy(), model.gauge_terms())[1],
        found.twin,
        found.analysers,
        (*found.warnings, *_warnings(overall, defocus_nm, options)),
        models[first] - stacks[first].astype(np.float32),
        seconds=0.0,
        shift_nm=data.shift_nm.double().numpy()[:planes],
        beads=tuple(beads),
        model_stacks=tuple(models),
        uncertainty=doubt,
    )


def _model_stacks(
    stacks: Sequence[NDArray[np.generic]],
    problem: Problem,
    fractions: FloatStack,
    photons: FloatArray,
    background: FloatArray,
) -> list[FloatStack]:
    """Counts of every stack: its beads on the background that their windows agree on."""
    planes = len(stacks[0])
    models = []
    for number, stack in enumerate(stacks):
        own = [i for i, bead in enumerate(problem.beads) if bead.stack == number]
        levels = np.zeros(planes)
        if own:
            levels = np.mean([background[i * planes : (i + 1) * planes] for i in own], axis=0)
        light = np.broadcast_to(levels[:, None, None], stack.shape).copy()
        for i in own:
            part = np.s_[i * planes : (i + 1) * planes]
            light[:, *problem.beads[i].window] += photons[part, None, None] * fractions[part]
        models.append(problem.camera.expected(light).astype(np.float32))
    return models


def _scores(
    stacks: Sequence[NDArray[np.generic]],
    models: Sequence[FloatStack],
    problem: Problem,
    background: FloatArray,
) -> tuple[dict[str, float], dict[str, float] | None, list[dict[str, float]]]:
    """Of all slices, of those not fitted, and of every bead."""
    planes = len(stacks[0])
    rest = [i for i in range(planes) if i not in problem.slices]
    a, b, dark, least, each = [], [], [], [], []
    for number, bead in enumerate(problem.beads):
        window = (slice(None), *bead.window) if len(problem.beads) > 1 else (slice(None),)
        model, stack = models[bead.stack][window], stacks[bead.stack][window]
        level = background[number * planes : (number + 1) * planes]
        counts = problem.camera.expected(np.broadcast_to(level[:, None, None], stacks[bead.stack].shape))
        level = counts[window].mean((1, 2))
        threshold = problem.thresholds[bead.stack]
        each.append(stack_scores(model, stack, threshold=threshold, background=level))
        a.append(model)
        b.append(stack)
        dark.append(level)
        least.append(np.full(planes, threshold or 0.0))
    thresholded = problem.thresholds[0] is not None

    def scores(slices: list[int]) -> dict[str, float]:
        parts = [np.concatenate([v[slices] for v in values]) for values in (a, b, least, dark)]
        return stack_scores(
            parts[0], parts[1], threshold=parts[2] if thresholded else None, background=parts[3]
        )

    return scores(list(range(planes))), scores(rest) if rest else None, each


def _beads(
    model: BeadModel,
    p: Parameters,
    problem: Problem,
    photons: FloatArray,
    scores: Sequence[dict[str, float]],
    rejected: Sequence[tuple[Bead, str]],
) -> list[BeadFit]:
    pixel = model.optics.pixel_nm
    count = len(problem.beads)
    numbers = torch.arange(count)
    start, middle, end = (
        model.position_nm(p, torch.full((count,), t), numbers).double().numpy() for t in (-1.0, 0.0, 1.0)
    )
    focus = model.focus_offset_nm(p).double().numpy()
    beads = []
    for i, (bead, of_slices) in enumerate(zip(problem.beads, np.split(photons, count), strict=True)):
        corner = _centre_nm(bead, pixel)
        drift = (float(end[i, 0] - start[i, 0]), float(end[i, 1] - start[i, 1]))
        beads.append(
            BeadFit(
                bead.stack,
                float(middle[i, 0]) + corner[0],
                float(middle[i, 1]) + corner[1],
                float(focus[i] - focus[0]),
                drift,
                float(np.median(of_slices)),
                scores[i]["rrse"],
                scores[i]["mean_slice_correlation"],
                window=_edges(bead),
            )
        )
    beads += [
        BeadFit(bead.stack, *_centre_nm(bead, pixel), rejected=reason, window=_edges(bead))
        for bead, reason in rejected
    ]
    beads += [
        BeadFit(stack, (spot.column + 0.5) * pixel, (spot.row + 0.5) * pixel, rejected=spot.reason)
        for stack, spot in problem.aside
    ]
    return beads


def _edges(bead: Bead) -> tuple[int, int, int, int]:
    rows, columns = bead.window
    return rows.start, rows.stop, columns.start, columns.stop


def _centre_nm(bead: Bead, pixel_nm: float) -> tuple[float, float]:
    rows, columns = bead.window
    return (columns.start + columns.stop) / 2 * pixel_nm, (rows.start + rows.stop) / 2 * pixel_nm


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
        amounts[2] = -float(model.focus_offset_nm(p)[0])
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
    options: RetrieveOptions,
    overall: dict[str, float],
    held_out: dict[str, float] | None,
    beads: Sequence[BeadFit],
) -> dict[str, Any]:
    recorded = asdict(options)
    recorded["fit_slices"] = None if options.fit_slices is None else [int(i) for i in options.fit_slices]
    recorded["analysers_deg"] = list(options.analysers_deg)
    used = sum(not bead.rejected for bead in beads)
    method = {"joint": "phase retrieval from beads", "zelger": "Zelger 2018, from one bead"}[options.method]
    return {**recorded, "method": method, "beads": used, **overall, "held_out": held_out}
