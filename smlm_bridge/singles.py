"""Single emitters by a network: detect, cut boxes, infer. No torch with an ONNX model."""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from smlm_bridge.camera import Camera
from smlm_bridge.detect import DetectOptions, Finder, box_corners, cut, detect_frames
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit.work import first_of_each
from smlm_bridge.frames import Work
from smlm_bridge.model import Cameras, Model, ModelInfo, cameras_of, check_channels, photons_of
from smlm_bridge.networks.estimates import estimate_names
from smlm_bridge.pair import PairCalibration

_BOXES_AT_ONCE = 4096
_EDGE = 1e-3  # px
#: What ``fit.fit_boxes`` takes as a start, in its order.
STARTS: Final = ("x_nm", "y_nm", "z_nm", "photons", "background")


@dataclass(frozen=True)
class SingleMovieOptions:
    """How a movie is localized by a network of single emitters.

    Parameters
    ----------
    detect
        How to find candidates.
    wander
        Estimates further than this many times the trained distance from the middle of their box, along x or y, are
        left out: there the network was never trained.
    finder
        What finds candidates.
    """

    detect: DetectOptions = field(default_factory=DetectOptions)
    wander: float = 1.5
    finder: Finder = detect_frames

    def __post_init__(self) -> None:
        if not 1 <= self.wander < float("inf"):
            raise InputRejected(f"wander {self.wander:g} must be 1 or more (times the trained distance).")


def single_work(
    model: Model,
    *,
    camera: Cameras = None,
    options: SingleMovieOptions = SingleMovieOptions(),
    corner_nm: tuple[float, float] = (0.0, 0.0),
) -> Work:
    """Detection and the network, to be done block by block by ``frames.in_blocks``.

    Candidates whose box reaches beyond the frame, of a pair in either channel, are left out; those of a pair come
    from the sum of its channels. Of several candidates that end within a pixel of
    each other the one nearest to the middle of its box is kept.

    Parameters
    ----------
    model
        Of the system ``single``; its calibration knows the cameras unless ``camera`` is given.
    camera
        Of the movie's region, or those of two channels.
    options
        See ``SingleMovieOptions``.
    corner_nm
        As ``localize.localize_work`` takes it.

    Raises
    ------
    InputRejected
        If the model takes frames.
    """
    if not model.info.box_px:
        raise InputRejected(
            f"the model '{model.info.name}' (system {model.info.system}) takes frames, not boxes. Use "
            "localize.localize_work."
        )
    pixel_nm, side, channels = (
        model.info.calibration.optics.pixel_nm,
        model.info.box_px,
        model.info.channels,
    )
    return Work(
        find=lambda counts: _find(counts, model, camera, options, corner_nm),
        empty=estimate_boxes(
            np.zeros((0, channels, side, side), np.float32), np.zeros((0, 2), np.intp), model
        ),
        check=lambda counts: _check(counts, model, camera),
        pixel_nm=pixel_nm,
        block_pixels=options.detect.block_pixels,
        stands_at=model.info.calibration.optics.stands_at,
    )


def estimate_boxes(
    boxes: NDArray[np.floating],
    corners: ArrayLike,
    model: Model,
    *,
    frame: NDArray[np.integer] | None = None,
) -> pd.DataFrame:
    """The network's estimates of boxes, one row each, in their order.

    Parameters
    ----------
    boxes : (N, S, S) or (N, C, S, S)
        Photo-electrons (``Camera.to_photons``).
    corners : (N, 2)
        Row and column of each box's first pixel, as ``detect.box_corners`` gives them.
    model
        Of the system ``single``.
    frame : (N,)
        Each box's frame; None makes all 0.

    Returns
    -------
    DataFrame
        Columns of ``locs.SCHEMA``; beyond them ``uncertainty_background`` and, of a network of aberrations,
        ``zernike_J_rad`` and ``uncertainty_zernike_J_rad``. Uncertainties are the network's own standard
        deviations. The columns ``STARTS`` are what ``fit.fit_boxes`` takes as ``start``.

    Raises
    ------
    InputRejected
        If the boxes are not the model's, or a pixel is not finite.
    """
    info = model.info
    stack = np.asarray(boxes, dtype=np.float32)
    stack = stack[:, None] if stack.ndim == 3 else stack
    places = np.asarray(corners, dtype=np.intp)
    if stack.shape[1:] != (info.channels, info.box_px, info.box_px) or places.shape != (len(stack), 2):
        raise InputRejected(
            f"the model '{info.name}' takes boxes of {info.channels} channel(s) of {info.box_px} x "
            f"{info.box_px} px with a corner each; got boxes {np.shape(boxes)} and corners {places.shape}."
        )
    if not np.isfinite(stack).all():
        bad = np.flatnonzero(~np.isfinite(stack).all(axis=(1, 2, 3)))
        raise InputRejected(f"box {bad[0]} (from 0) has pixels that are not finite; leave such boxes out.")
    names = estimate_names(info.ranges.get("zernike_rad", ()))
    parts = [model.run(stack[i : i + _BOXES_AT_ONCE]) for i in range(0, len(stack), _BOXES_AT_ONCE)]
    values = np.concatenate(parts) if parts else np.zeros((0, len(names)))
    found = dict(zip(names, values.T.astype(np.float64), strict=True))
    frames = np.zeros(len(stack), np.int64) if frame is None else np.asarray(frame, dtype=np.int64)
    middle = (places[:, ::-1].astype(np.float64) + info.box_px / 2) * info.calibration.optics.pixel_nm
    return _table(found, frames, middle)


def _table(
    found: dict[str, NDArray[np.float64]], frame: NDArray[np.int64], middle_nm: NDArray[np.float64]
) -> pd.DataFrame:
    """Estimates by name, and the boxes' middles (N, 2) as x and y, under the names of ``locs.SCHEMA``."""
    lateral = np.sqrt((found["sigma_dx_nm"] ** 2 + found["sigma_dy_nm"] ** 2) / 2)
    columns: dict[str, NDArray[Any]] = {
        "frame": frame,
        "x_nm": middle_nm[:, 0] + found["dx_nm"],
        "y_nm": middle_nm[:, 1] + found["dy_nm"],
        "z_nm": found["z_nm"],
        "photons": found["photons"],
        "background": found["background"],
        "uncertainty_xy_nm": lateral,
        "uncertainty_z_nm": found["sigma_z_nm"],
        "uncertainty_x_nm": found["sigma_dx_nm"],
        "uncertainty_y_nm": found["sigma_dy_nm"],
        "uncertainty_photons": found["sigma_photons"],
        "uncertainty_background": found["sigma_background"],
    }
    for name in found:
        if name.startswith("zernike_"):
            columns |= {name: found[name], f"uncertainty_{name}": found[f"sigma_{name}"]}
    return pd.DataFrame(columns)


def _find(
    counts: NDArray[np.generic],
    model: Model,
    camera: Cameras,
    options: SingleMovieOptions,
    corner_nm: tuple[float, float],
) -> pd.DataFrame:
    """Localize frames (T, C, H, W) of counts."""
    info = model.info
    pixel, side = info.calibration.optics.pixel_nm, info.box_px
    shape = (counts.shape[2], counts.shape[3])
    if info.channels == 1:
        own = cameras_of(model, camera)[0]
        candidates = options.finder(counts[:, 0], options.detect, pixel_nm=pixel, camera=own)
        photons = own.to_photons(counts)
    else:
        photons = photons_of(counts, model, camera, corner_nm=corner_nm)
        candidates = options.finder(photons.sum(axis=1), options.detect, pixel_nm=pixel, camera=Camera())
    corners, kept = box_corners(candidates, side, shape)
    frame = candidates["frame"].to_numpy(np.int64)[kept]
    within = _in_second(corners, info, shape, corner_nm)
    corners, frame = corners[within], frame[within]
    boxes = np.stack([cut(photons[:, c], frame, corners, side) for c in range(info.channels)], axis=1)
    table = estimate_boxes(boxes, corners, model, frame=frame)
    away = table[["x_nm", "y_nm"]].to_numpy() - (corners[:, ::-1] + side / 2) * pixel
    farthest = options.wander * float(info.ranges.get("wander_px", 1.0)) * pixel
    inside = (np.abs(away) <= farthest).all(axis=1)
    table, away = table[inside].reset_index(drop=True), away[inside]
    places = table[["x_nm", "y_nm"]].to_numpy()
    alone = first_of_each(places, table["frame"].to_numpy(), np.hypot(*away.T), pixel)
    found: pd.DataFrame = table[alone].reset_index(drop=True)
    return found


def _in_second(
    corners: NDArray[np.intp], info: ModelInfo, shape: tuple[int, int], corner_nm: tuple[float, float]
) -> NDArray[np.bool_]:
    """(N,) whether all of a box is seen by the second channel; of one channel every box is."""
    known, side = info.calibration, info.box_px
    within = np.ones(len(corners), np.bool_)
    if not isinstance(known, PairCalibration):
        return within
    transform, (pixel1, pixel2) = known.transform.between(corner_nm), known.pixels_nm
    size = np.array(shape[::-1]) * pixel2
    for end in ((0, 0), (0, side), (side, 0), (side, side)):
        there = transform.apply((corners + end)[:, ::-1] * pixel1)
        # As precise as a thousandth of a pixel, so that channels that lie on each other lose nothing.
        within &= ((there > -_EDGE * pixel2) & (there < size + _EDGE * pixel2)).all(axis=1)
    return within


def _check(counts: NDArray[np.generic], model: Model, camera: Cameras) -> None:
    """Refuse what would fail in every frame."""
    channels, side = model.info.channels, model.info.box_px
    if counts.ndim != 4 or counts.shape[1] != channels:
        raise InputRejected(
            f"the model takes {channels} channel(s), the frames have the shape {counts.shape[1:]} (channel, row, "
            "column). Give the right channels."
        )
    if min(counts.shape[2:]) < side:
        raise InputRejected(
            f"the frames of {counts.shape[3]} x {counts.shape[2]} px are smaller than the model's box of {side} "
            "px. Give larger frames."
        )
    check_channels(counts, model, camera)
