"""Boxes to a table with honest error bars: the entry to every fit."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smlm_bridge._optional import require
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit import compiled
from smlm_bridge.fit.models import AstigmaticSpot, Channels, Spot
from smlm_bridge.fit.noise import Counts
from smlm_bridge.fit.options import FitOptions
from smlm_bridge.fit.problem import LEAST_WIDTH_PX, Problem, finish
from smlm_bridge.fit.result import FitResult
from smlm_bridge.psf.cubic_spline import CubicSpline

if TYPE_CHECKING:
    from smlm_bridge.fit.models import AnyPSF

Floats = NDArray[np.float64]

_LEAST_SIDE = 3
_IDEAL, _OPTIONS = Camera(), FitOptions()


def fit_boxes(
    boxes: NDArray[np.floating],
    corners: ArrayLike,
    psf: "AnyPSF | Channels",
    *,
    camera: Camera | tuple[Camera, Camera] = _IDEAL,
    options: FitOptions = _OPTIONS,
    start: NDArray[np.floating] | None = None,
) -> FitResult:
    """Fit one emitter in each box, by maximum likelihood.

    Parameters
    ----------
    boxes : (N, B, B) or (N, C, B, B)
        Photo-electrons (``Camera.to_photons``) of one or two channels.
    corners : (N, 2) or (N, C, 2)
        Row and column of each box's first pixel in its frame, as ``detect.box_corners`` gives them.
    psf
        ``Spot`` (2-D), ``AstigmaticSpot`` or ``CubicSpline``, which need no torch; any other PSF of
        ``psf.protocol``; or ``Channels`` of two of them.
    camera
        Its noise: read noise as a number or a map of the frames, EM gain. A pair for two channels.
    options
        See ``FitOptions``.
    start : (N, 3 to 5)
        Where to begin: x_nm, y_nm, z_nm and, if given, photons and background; from a network, say. No other
        heights are tried.

    Returns
    -------
    FitResult
        In the order of the boxes; a fit that fails has a status that says so.

    Raises
    ------
    InputRejected
        If shapes do not fit, a pixel is not finite, no range of heights is known, or a camera's map is too small.
    MissingDependency
        If the PSF needs torch and it is not installed.
    """
    psfs = psf.psfs if isinstance(psf, Channels) else (psf,)
    stack, places = _checked(boxes, corners, len(psfs))
    cameras = camera if isinstance(camera, tuple) else (camera,) * len(psfs)
    problem = _problem(stack, places, psf, cameras, options, start)
    if compiled.can_fit(psfs) and not options.zernike:
        found = compiled.solve(problem)
    else:
        require("torch", extra="train")
        from smlm_bridge.fit import general

        found = general.solve(problem)
    return finish(problem, found)


def _checked(
    boxes: NDArray[np.floating], corners: ArrayLike, channels: int
) -> tuple[NDArray[np.floating], NDArray[np.intp]]:
    """Boxes (N, C, B, B) and corners (N, C, 2)."""
    stack = np.asarray(boxes)
    if stack.ndim == 3 and channels == 1:
        stack = stack[:, None]
    if stack.ndim != 4 or stack.shape[1] != channels or stack.shape[2] != stack.shape[3]:
        raise InputRejected(
            f"boxes of {channels} channel(s) are (number, {'' if channels == 1 else 'channel, '}size, size), got "
            f"{np.shape(boxes)}."
        )
    if stack.shape[2] < _LEAST_SIDE:
        raise InputRejected(f"boxes of {stack.shape[2]} px are too small to fit; give {_LEAST_SIDE} or more.")
    if not np.isfinite(stack).all():
        bad = np.flatnonzero(~np.isfinite(stack).all(axis=(1, 2, 3)))
        raise InputRejected(f"box {bad[0]} (from 0) has pixels that are not finite; leave such boxes out.")
    places = np.asarray(corners, dtype=np.intp)
    if places.ndim == 2:
        places = np.repeat(places[:, None], channels, axis=1)
    if places.shape != (len(stack), channels, 2):
        raise InputRejected(
            f"corners are (number, 2), row before column, one a box; got {np.shape(corners)} for {len(stack)} "
            "boxes."
        )
    return stack, places


def _problem(
    stack: NDArray[np.floating],
    corners: NDArray[np.intp],
    psf: "AnyPSF | Channels",
    cameras: tuple[Camera, ...],
    options: FitOptions,
    start: NDArray[np.floating] | None,
) -> Problem:
    count, channels, side = stack.shape[:3]
    psfs = psf.psfs if isinstance(psf, Channels) else (psf,)
    matrix, origin = _geometry(psf, corners, side)
    name, shapes, limits = _shape(psfs, side, options)
    shares = np.ones(1)
    if isinstance(psf, Channels):
        shares = np.array([1.0, psf.photon_ratio]) / (1 + psf.photon_ratio)
    problem = Problem(
        psfs,
        shares,
        Counts.of(stack, corners, cameras, exact_emccd=options.exact_emccd),
        side,
        matrix,
        origin,
        corners[:, 0],
        psf.pixel_nm,
        name,
        shapes,
        limits,
        np.full((count, 4 + channels + len(options.zernike)), np.nan),
        options,
    )
    if start is not None:
        _begin_at(problem, np.asarray(start, dtype=np.float64), stack)
    return problem


def _geometry(psf: "AnyPSF | Channels", corners: NDArray[np.intp], side: int) -> tuple[Floats, Floats]:
    """Matrices (N, C, 2, 2) and origins (N, C, 2) of ``Problem``: the transform, linear within a box."""
    count, channels = corners.shape[:2]
    matrix = np.tile(np.eye(2), (count, channels, 1, 1))
    origin = np.zeros((count, channels, 2))
    if isinstance(psf, Channels):
        pixel = psf.pixel_nm
        middle = (corners[:, 0, ::-1] + side / 2) * pixel
        there = psf.transform.apply(middle)
        for axis in (0, 1):
            move = np.zeros(2)
            move[axis] = pixel
            ahead, behind = (psf.transform.apply(middle + sign * move) for sign in (1, -1))
            matrix[:, 1, :, axis] = (ahead - behind) / (2 * pixel)
        origin[:, 1] = there / pixel - corners[:, 1, ::-1] - matrix[:, 1].sum(axis=2) * (side / 2)
    return matrix, origin


def _shape(
    psfs: "tuple[AnyPSF, ...]", side: int, options: FitOptions
) -> tuple[str | None, Floats, tuple[float, float]]:
    """Name, starts and range of the height, or of the width in pixels."""
    first = psfs[0]
    if isinstance(first, Spot):
        width = first.sigma_nm / first.pixel_nm
        limits = (LEAST_WIDTH_PX, max(side / 2, 2 * LEAST_WIDTH_PX))
        if first.free:
            return "psf_sigma_nm", np.clip([width], *limits), limits
        return None, np.array([width]), (0.0, 2 * width)
    known: list[Any] = [getattr(psf, "z_range_nm", None) for psf in psfs]
    if options.z_range_nm is not None:
        low, high = options.z_range_nm
    elif None in known:
        raise InputRejected(
            "the PSF does not say for which heights it holds; give FitOptions(z_range_nm=...)."
        )
    else:
        low, high = max(k[0] for k in known), min(k[1] for k in known)
    for psf in psfs:
        if isinstance(psf, AstigmaticSpot):
            psf.gaussian.widths_nm([low, high])
        if isinstance(psf, CubicSpline):
            low, high = max(low, psf.z_range_nm[0]), min(high, psf.z_range_nm[1])
    if not low < high:
        raise InputRejected(f"the PSF and the options have no heights in common ({low:g} to {high:g} nm).")
    return "z_nm", np.array(options.heights((low, high))), (float(low), float(high))


def _begin_at(problem: Problem, start: Floats, stack: NDArray[np.floating]) -> None:
    """Write given starts, within the bounds; photons and background from the box where they are not given."""
    count, side = len(stack), problem.side
    if start.ndim != 2 or len(start) != count or not 3 <= start.shape[1] <= 5 or not np.isfinite(start).all():
        raise InputRejected(
            f"start is (number, 3 to 5): x_nm, y_nm, z_nm, photons, background, finite, one row a box; got "
            f"{start.shape} for {count} boxes."
        )
    edge = np.ones((side, side), bool)
    edge[1:-1, 1:-1] = False
    dark = stack[:, :, edge].mean(axis=2)
    values = problem.starts
    values[:, :2] = start[:, :2] / problem.pixel_nm - problem.corners[:, ::-1]
    values[:, 2] = start[:, 2] if problem.shape == "z_nm" else problem.shapes[0]
    values[:, 3] = stack.sum(axis=(1, 2, 3)) - dark.sum(axis=1) * side**2
    values[:, 4 : 4 + problem.channels] = dark
    values[:, 4 + problem.channels :] = 0.0
    if start.shape[1] > 3:
        values[:, 3] = start[:, 3]
    if start.shape[1] > 4:
        values[:, 4 : 4 + problem.channels] = start[:, 4, None]
    lower, upper, _ = problem.limits
    values[:] = np.clip(values, lower, upper)
