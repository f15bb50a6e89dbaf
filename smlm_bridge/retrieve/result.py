"""What retrieval is asked and what it answers; scores of a model stack; the phase without its free gauge."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.zernike import zernike_basis

FloatArray = NDArray[np.float64]
REPORTED_NOLL = tuple(range(5, 67))
_TRUSTED_RADIUS = 0.95  # of the pupil, for Zernike coefficients: at the rim the samples are half covered


@dataclass(frozen=True)
class RetrieveOptions:
    """How a bead stack was recorded and how to fit it.

    Parameters
    ----------
    z_step_nm
        Travel of the focus from slice to slice, positive into the sample. Never guessed: the mirrored
        solution fits nearly as well.
    first_focus_nm
        Nominal focus of slice 0. Given, the defocus between it and the images belongs to the pupil; None puts
        the focus where the retrieved pupil has no defocus (or that of the initial mask).
    bead_diameter_nm
        Of the bead, which rests on the coverslip.
    pupil_samples
        Samples of the retrieved pupil along one axis, an even number.
    fit_slices
        Slices that are fitted, from 0; None fits all. The others are scored as held out.
    pixelwise
        True retrieves every pupil sample, False 62 Zernike coefficients; None lets slices that were left out
        of the coarse fit decide.
    analysers_deg
        Analyser angles (None: no analyser) to choose from by likelihood; empty keeps the one of the optics.
    random_starts
        Random aberrations among the starting points.
    iterations
        Of the final fit.
    seed
        Of the random starts.
    method
        "joint", or "zelger": the published approach, for comparison (see ``zelger``); one bead, a given analyser.

    Raises
    ------
    InputRejected
        If a value is out of range.
    """

    z_step_nm: float
    first_focus_nm: float | None = None
    bead_diameter_nm: float = 100.0
    pupil_samples: int = 96
    fit_slices: Sequence[int] | None = None
    pixelwise: bool | None = None
    analysers_deg: tuple[float | None, ...] = ()
    random_starts: int = 2
    iterations: int = 120
    seed: int = 0
    method: Literal["joint", "zelger"] = "joint"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.z_step_nm) and 1 <= abs(self.z_step_nm) <= 5000):
            raise InputRejected(
                f"z_step_nm {self.z_step_nm:g} must be 1 to 5000 nm or -1 to -5000 nm: the travel of the "
                "focus from slice to slice, positive into the sample."
            )
        if self.first_focus_nm is not None and not np.isfinite(self.first_focus_nm):
            raise InputRejected(f"first_focus_nm {self.first_focus_nm} is not a position in nm.")
        if not 0 <= self.bead_diameter_nm <= 1000:
            raise InputRejected(f"bead_diameter_nm {self.bead_diameter_nm:g} must lie in 0 to 1000 nm.")
        if not 32 <= self.pupil_samples <= 512 or self.pupil_samples % 2:
            raise InputRejected(f"pupil_samples {self.pupil_samples} must be even and lie in 32 to 512.")
        if self.method not in ("joint", "zelger"):
            raise InputRejected(f"method '{self.method}' is not one of joint, zelger.")
        if self.iterations < 1 or self.random_starts < 0:
            raise InputRejected("iterations must be at least 1 and random_starts at least 0.")


@dataclass(frozen=True)
class BeadFit:
    """One bead of the fit, or one that was set aside.

    Parameters
    ----------
    stack
        Number of its stack, from 0.
    x_nm, y_nm
        Centre at the middle of the scan, from the outer top-left corner of its stack.
    focus_nm
        What its height and tilt of the field add to the focus of the first bead.
    drift_nm
        x, y walked from the first to the last slice (linear part).
    photons
        Median over slices, in photo-electrons.
    rrse, mean_slice_correlation
        Of its window.
    rejected
        Why it is not part of the fit; empty for a bead that is.
    window
        First row, end of the rows, first column, end of the columns that were cut out; None if none were.
    """

    stack: int
    x_nm: float
    y_nm: float
    focus_nm: float = math.nan
    drift_nm: tuple[float, float] = (math.nan, math.nan)
    photons: float = math.nan
    rrse: float = math.nan
    mean_slice_correlation: float = math.nan
    rejected: str = ""
    window: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Retrieval:
    """A calibrated microscope and how well it explains the beads.

    Parameters
    ----------
    calibration
        With the retrieved pupil; its blur does not contain the bead's size.
    model_stack : (Z, Y, X) float32
        The fitted model of the first bead's stack in the data's own counts, every slice, not clipped.
    rrse, mean_slice_correlation
        ||model - data|| / ||data|| (above the background of each slice for a stack as recorded), and the mean
        Pearson correlation over slices; a model below the threshold of a thresholded stack counts as 0. Over
        the whole stack of a single bead, over all windows of several.
    held_out
        The same two over slices that were not fitted, or None.
    log_likelihood
        With the dispersion profiled out; only differences on the same data mean something.
    photons, background : (Z,)
        Of every slice of the first bead, in photo-electrons (counts where no camera was given).
    bead_xyz_nm
        Bead centre; x, y from the outer top-left corner of the stack, at the middle of the scan.
    focus_nm : (Z,)
        Focus of every slice on the calibration's scale.
    zernike_rad
        Noll index to coefficient of the phase, tilts and defocus taken out.
    twin
        The mirrored solution (phase rotated by 180 degrees and negated, scan reversed): its scores beside
        ours (``chosen``), both of the coarse fit, its coefficients, and whether the data tell the two apart
        (``told_apart``: one misfit is 1.5 times the other). The sign of ``z_step_nm`` decides, not the fit.
    analysers
        Log-likelihood, priors included, of every analyser angle that was tried.
    warnings
        What a user should look at.
    residual : (Z, Y, X) float32
        Model minus data.
    seconds
        Time taken.
    shift_nm : (Z, 2)
        x, y jitter of every slice, also of those not fitted, like their photons.
    beads
        Every bead, the fitted ones first.
    model_stacks
        As ``model_stack``, of every stack in the order given.
    uncertainty
        Of the coefficients and the focus (see ``covariance.Uncertainty``), or None.
    """

    calibration: Calibration
    model_stack: NDArray[np.float32]
    rrse: float
    mean_slice_correlation: float
    held_out: Mapping[str, float] | None
    log_likelihood: float
    photons: FloatArray
    background: FloatArray
    bead_xyz_nm: tuple[float, float, float]
    focus_nm: FloatArray
    zernike_rad: Mapping[int, float]
    twin: Mapping[str, Any]
    analysers: Mapping[str, float]
    warnings: tuple[str, ...]
    residual: NDArray[np.float32]
    seconds: float
    shift_nm: FloatArray = field(default_factory=lambda: np.zeros((0, 2)))
    beads: tuple[BeadFit, ...] = ()
    model_stacks: tuple[NDArray[np.float32], ...] = ()
    uncertainty: "Uncertainty | None" = None


@dataclass(frozen=True)
class Uncertainty:
    """How well the data determine the coefficients, and what they confuse.

    Parameters
    ----------
    noll
        Indices of the coefficients.
    covariance : (J, J)
        Of the coefficients in ``noll`` (rad^2): the inverse Fisher information, positions, focus, blur, photons
        and background free, times the dispersion of the residuals.
    focus_sigma_nm
        Standard deviation of the focus.
    spherical_focus_correlation
        Of Noll 11 with the focus: near 1 or -1 the images hardly tell spherical aberration from defocus.
    spherical_amplitude_correlation
        The largest, in modulus, of Noll 11 with the radial terms of the amplitude.
    """

    noll: tuple[int, ...]
    covariance: FloatArray
    focus_sigma_nm: float
    spherical_focus_correlation: float
    spherical_amplitude_correlation: float

    @property
    def sigma_rad(self) -> dict[int, float]:
        """Noll index to standard deviation."""
        return {j: float(s) for j, s in zip(self.noll, np.sqrt(self.covariance.diagonal()), strict=True)}


def stack_scores(
    model: NDArray[np.generic],
    data: NDArray[np.generic],
    *,
    threshold: "float | NDArray[np.floating] | None",
    background: FloatArray,
) -> dict[str, float]:
    """Relative error and mean correlation of (Z, Y, X) stacks, as defined in ``Retrieval``.

    ``threshold`` is a number or one of every slice, (Z,), ``background`` (Z,).
    """
    a, b = np.asarray(model, dtype=np.float64), np.asarray(data, dtype=np.float64)
    if threshold is not None:
        a = np.where(a < np.reshape(threshold, (-1, 1, 1)), 0.0, a)
    signal = b - background[:, None, None]
    rrse = np.linalg.norm(a - b) / np.linalg.norm(signal)
    a, b = (v.reshape(len(v), -1) - v.mean((1, 2))[:, None] for v in (a, b))
    spread = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    correlation = np.where(spread > 0, (a * b).sum(1) / np.maximum(spread, 1e-30), 0.0)
    return {"rrse": float(rrse), "mean_slice_correlation": float(correlation.mean())}


def decompose(phase: FloatArray, power: FloatArray, gauge: FloatArray) -> tuple[FloatArray, dict[int, float]]:
    """Split a phase that may wrap into bead position, focus and Zernike coefficients.

    Fitted together to the wrapped gradients, so that a tilt is what Noll's orthogonal polynomials call one: coma
    keeps its own. Noll 4 is left out: it is 98 % the same as the high-NA defocus.

    Parameters
    ----------
    phase, power : (N, N)
        Phase in rad and the light in each sample.
    gauge : (T, N, N)
        Phases that bead position and focus can take over (see ``model.BeadModel.gauge_terms``).

    Returns
    -------
    The (T,) amounts of ``gauge``, and Noll index to coefficient.
    """
    n = phase.shape[0]
    axis = (np.arange(n) - (n - 1) / 2) * 2.0 / n
    x, y = np.broadcast_to(axis, (n, n)), np.broadcast_to(axis[:, None], (n, n))
    trusted = (power > 0) & (np.hypot(x, y) <= _TRUSTED_RADIUS)
    terms = np.concatenate([gauge, zernike_basis(list(REPORTED_NOLL), x, y)])
    amounts = _fit_gradients(phase, trusted.astype(np.float64), terms)
    coefficients = zip(REPORTED_NOLL, amounts[len(gauge) :], strict=True)
    return amounts[: len(gauge)], {noll: float(c) for noll, c in coefficients}


def _fit_gradients(phase: FloatArray, power: FloatArray, terms: FloatArray) -> FloatArray:
    rows, values = [], []
    for axis in (0, 1):
        n = phase.shape[0]
        weight = np.sqrt(np.minimum(power.take(range(n - 1), axis), power.take(range(1, n), axis)))
        step = np.angle(np.exp(1j * np.diff(phase, axis=axis)))
        rows.append((np.diff(terms, axis=axis + 1) * weight).reshape(len(terms), -1))
        values.append((step * weight).ravel())
    matrix = np.concatenate(rows, 1).T
    scale = np.linalg.norm(matrix, axis=0)  # nm and rad side by side
    solution = np.linalg.lstsq(matrix / scale, np.concatenate(values), rcond=None)[0]
    return np.asarray(solution / scale, dtype=np.float64)
