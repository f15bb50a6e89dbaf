"""Where to start: many cheap pixel-wise fits of a coarse problem, or a designed mask laid over the stack.

Phase retrieval of an engineered PSF has local minima. A coarse problem (every few slices, 64 samples) costs a
fraction of a second per start, so the starts compete and the better ones are fitted on (successive halving).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.optics.zernike import zernike_basis
from smlm_bridge.retrieve.model import BeadModel, Parameters
from smlm_bridge.retrieve.objective import PIXELWISE, BeadData, minimise

COARSE_SAMPLES = 64
_FIELD_SHARE = 0.86  # of the period after which a sampled pupil repeats its image
_ROUNDS = ((20, 4), (40, 2), (60, 1), (60, 1))  # iterations, survivors
_MANY_STARTS = 8  # are told apart by every other slice
_START_RAD = 0.75
_RANDOM_RAD = 0.3
_START_FOCUS_NM = (-600.0, -300.0, 300.0, 600.0)
_MASK_FOCUS_STEP_NM = 250.0
_MASK_SLICES = 6
_MASK_CLEAR = 0.95  # correlation above which the mask as given needs no search for another orientation

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class MaskFit:
    """A designed mask laid over the stack without any fit: its best pose.

    Parameters
    ----------
    parameters
        Starting point.
    correlation
        With the stack, at the best focus and shift.
    reversed_correlation
        The same for the scan run the other way.
    orientation
        What was done to the mask: "as given" or a rotation or flip.
    phase : (N, N)
        The mask in that orientation.
    """

    parameters: Parameters
    correlation: float
    reversed_correlation: float
    orientation: str
    phase: FloatArray


def window_limit_px(optics: Optics, samples: int) -> int:
    """Largest window, in pixels, that a pupil of ``samples`` points images without overlapping itself."""
    period_nm = samples * optics.wavelength_nm / (2 * optics.numerical_aperture)
    return int(_FIELD_SHARE * period_nm / optics.pixel_nm)


def coarse_slices(count: int) -> list[int]:
    """About eleven of ``count`` slices, always leaving some out to judge by."""
    if count < 6:
        return list(range(count))
    return list(range(0, count, max(2, count // 11)))


def planned_iterations(*, random_starts: int, with_mask: bool) -> int:
    """Iterations that ``search`` will need, for progress."""
    count = 2 if with_mask else 1 + 8 + len(_START_FOCUS_NM) + random_starts
    total = 0
    for iterations, survivors in _ROUNDS:
        total += count * iterations
        count = min(count, survivors)
    return total


def search(
    model: BeadModel,
    data: BeadData,
    *,
    centre_focus_nm: float,
    xy_nm: tuple[float, float],
    mask: MaskFit | None,
    random_starts: int,
    generator: np.random.Generator,
    on_evaluation: Callable[[], None],
) -> tuple[Parameters, bool]:
    """The best of many starts after a coarse pixel-wise fit, and whether it began from the mask.

    ``centre_focus_nm`` is the focus offset that puts the bead in focus at the middle of the scan.
    """

    def start(phase: FloatArray, focus_nm: float) -> Parameters:
        return Parameters.initial(phase, xy_nm=xy_nm, focus_nm=centre_focus_nm + focus_nm)

    flat = np.zeros((model.samples, model.samples))
    pool = [start(flat, 0.0)]
    if mask is not None:
        pool.append(mask.parameters)
    else:
        pool += [
            start(s * _START_RAD * z, 0.0) for z in _zernikes(model.samples, [5, 6, 12, 13]) for s in (1, -1)
        ]
        pool += [start(flat, focus) for focus in _START_FOCUS_NM]
        low_orders = _zernikes(model.samples, list(range(5, 16)))
        for _ in range(random_starts):
            pool.append(
                start(np.tensordot(_RANDOM_RAD * generator.normal(size=len(low_orders)), low_orders, 1), 0.0)
            )
    ranked = list(enumerate(pool))
    for iterations, survivors in _ROUNDS:
        fitted = []
        some = data.at(range(0, len(data.photons), 2)) if len(ranked) > _MANY_STARTS else data
        for index, p in ranked:
            best, loss = minimise(
                model, p, some, free=PIXELWISE, iterations=iterations, on_evaluation=on_evaluation
            )
            fitted.append((loss, index, best))
        fitted.sort(key=lambda item: item[:2])
        ranked = [(index, p) for _, index, p in fitted[:survivors]]
    index, best = ranked[0]
    return best, mask is not None and index == 1


def lay_mask(model: BeadModel, data: BeadData, pupil: Pupil, *, centre_focus_nm: float) -> MaskFit:
    """Find focus, shift, orientation and scan direction at which a designed mask resembles the stack most.

    Masks are handed around with either sign of the Fourier transform and either orientation of the image, so
    when the mask as given does not resemble the stack, its rotations and flips are tried too.
    """
    count = len(data.photons)
    some = data.at([round(i) for i in np.linspace(0, count - 1, min(_MASK_SLICES, count))])
    given = pupil_phase(pupil, model.samples)
    half = float(data.focus_nm.max() - data.focus_nm.min()) / 2
    offsets = np.arange(-half, half + 1, _MASK_FOCUS_STEP_NM)

    def best_of(phase: FloatArray, scan: BeadData, centre: float) -> tuple[float, float, tuple[float, float]]:
        found = (-1.0, 0.0, (0.0, 0.0))
        for offset in offsets:
            p = Parameters.initial(phase, xy_nm=(0.0, 0.0), focus_nm=centre + float(offset))
            correlation, shift = whole_pixel_shift(model, p, scan)
            if correlation > found[0]:
                found = (correlation, centre + float(offset), shift)
        return found

    turned, backwards = some.reversed_scan(), -1.0
    best: tuple[float, float, tuple[float, float]] = (-1.0, 0.0, (0.0, 0.0))
    name = next(iter(_ORIENTATIONS))
    for orientation in _ORIENTATIONS:
        phase = oriented(given, orientation)
        backwards = max(backwards, best_of(phase, turned, -centre_focus_nm)[0])
        if (found := best_of(phase, some, centre_focus_nm))[0] > best[0]:
            name, best = orientation, found
        if max(best[0], backwards) > _MASK_CLEAR:
            break
    correlation, focus, shift = best
    phase = oriented(given, name)
    p = Parameters.initial(phase, xy_nm=shift, focus_nm=focus)
    return MaskFit(p, correlation, backwards, name, phase)


def pupil_phase(pupil: Pupil, samples: int) -> FloatArray:
    """Total phase of a pupil on ``samples`` points across the pupil radius, through phasors."""
    axis = (np.arange(samples) - (samples - 1) / 2) * 2.0 / samples
    at = axis / pupil.sample_pitch + (pupil.phase_rad.shape[0] - 1) / 2
    points = np.stack(np.meshgrid(at, at, indexing="ij"))
    parts = [map_coordinates(f(pupil.phase_rad), points, order=1, mode="nearest") for f in (np.sin, np.cos)]
    phase: FloatArray = np.arctan2(*parts)
    for coefficient, shape in zip(
        pupil.zernike_rad.values(), _zernikes(samples, list(pupil.zernike_rad)), strict=True
    ):
        phase = phase + coefficient * shape
    return phase


def twin_of(model: BeadModel, p: Parameters) -> Parameters:
    """The mirrored solution: conjugate pupil rotated by 180 degrees, focus and walk-off reversed."""
    position = p.position * torch.tensor([[1.0], [-1.0]])
    return replace(
        p,
        phase=-model.total_phase(p).flip(0, 1),
        log_amplitude=model.total_log_amplitude(p).flip(0, 1),
        zernike=torch.zeros_like(p.zernike),
        radial=torch.zeros_like(p.radial),
        position=position,
        focus=-p.focus,
    )


_ORIENTATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "as given": lambda phase: phase,
    "rotated by 180 degrees": lambda phase: phase[::-1, ::-1],
    "flipped in x": lambda phase: phase[:, ::-1],
    "flipped in y": lambda phase: phase[::-1],
    "transposed": lambda phase: phase.T,
    "rotated by 90 degrees": lambda phase: np.rot90(phase),
    "rotated by 270 degrees": lambda phase: np.rot90(phase, 3),
    "transposed and rotated by 180 degrees": lambda phase: phase[::-1, ::-1].T,
}


def oriented(phase: FloatArray, orientation: str) -> FloatArray:
    """A mask in one of the orientations that ``MaskFit`` names."""
    return np.ascontiguousarray(_ORIENTATIONS[orientation](phase))


def _zernikes(samples: int, noll: list[int]) -> FloatArray:
    axis = (np.arange(samples) - (samples - 1) / 2) * 2.0 / samples
    shape = (samples, samples)
    return zernike_basis(noll, np.broadcast_to(axis, shape), np.broadcast_to(axis[:, None], shape))


def whole_pixel_shift(model: BeadModel, p: Parameters, data: BeadData) -> tuple[float, tuple[float, float]]:
    """Correlation of the model with the stack at the best whole-pixel shift, and that x, y shift in nm."""
    with torch.no_grad():
        images = model.images(p, data.focus_nm, data.travel, data.shift_nm, data.bead)
        images = images / images.square().sum((1, 2), keepdim=True).sqrt()
        stack = data.photons - data.photons.flatten(1).median(1).values[:, None, None]
        stack = stack / stack.square().sum((1, 2), keepdim=True).sqrt()
        spectra = torch.fft.rfft2(stack) * torch.fft.rfft2(images).conj()
        correlation = torch.fft.irfft2(spectra.sum(0), s=images.shape[1:]) / len(images)
        row, column = divmod(int(correlation.argmax()), images.shape[2])
    shifts = [
        (index if index <= size // 2 else index - size) * model.optics.pixel_nm
        for index, size in ((column, images.shape[2]), (row, images.shape[1]))
    ]
    return float(correlation.max()), (shifts[0], shifts[1])
