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
from smlm_bridge.model import Model
from smlm_bridge.networks.estimates import estimate_names

_BOXES_AT_ONCE = 4096
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
    model: Model, *, camera: Camera | None = None, options: SingleMovieOptions = SingleMovieOptions()
) -> Work:
    """Detection and the network, to be done block by block by ``frames.in_blocks``.

    Candidates whose box reaches beyond the frame are left out. Of several candidates that end within a pixel of
    each other the one nearest to the middle of its box is kept.

    Parameters
    ----------
    model
        Of the system ``single``; its calibration knows the camera unless ``camera`` is given.
    camera
        Of the movie's region.
    options
        See ``SingleMovieOptions``.

    Raises
    ------
    InputRejected
        If the model takes frames, or more than one channel.
    """
    if not model.info.box_px or model.info.channels != 1:
        raise InputRejected(
            f"the model '{model.info.name}' (system {model.info.system}, {model.info.channels} channel(s)) is "
            "none of single emitters in one channel. Use localize.localize_work."
        )
    known = camera if camera is not None else model.info.calibration.camera
    pixel_nm, side = model.info.calibration.optics.pixel_nm, model.info.box_px
    return Work(
        find=lambda counts: _find(counts, model, known, options),
        empty=estimate_boxes(np.zeros((0, 1, side, side), np.float32), np.zeros((0, 2), np.intp), model),
        check=lambda counts: _check(counts, known, side),
        pixel_nm=pixel_nm,
        block_pixels=options.detect.block_pixels,
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
    counts: NDArray[np.generic], model: Model, camera: Camera, options: SingleMovieOptions
) -> pd.DataFrame:
    """Localize frames (T, 1, H, W) of counts."""
    info = model.info
    pixel, side = info.calibration.optics.pixel_nm, info.box_px
    candidates = options.finder(counts[:, 0], options.detect, pixel_nm=pixel, camera=camera)
    corners, kept = box_corners(candidates, side, (counts.shape[2], counts.shape[3]))
    frame = candidates["frame"].to_numpy(np.int64)[kept]
    boxes = cut(camera.to_photons(counts[:, 0]), frame, corners, side)
    table = estimate_boxes(boxes, corners, model, frame=frame)
    away = table[["x_nm", "y_nm"]].to_numpy() - (corners[:, ::-1] + side / 2) * pixel
    farthest = options.wander * float(info.ranges.get("wander_px", 1.0)) * pixel
    inside = (np.abs(away) <= farthest).all(axis=1)
    table, away = table[inside].reset_index(drop=True), away[inside]
    places = table[["x_nm", "y_nm"]].to_numpy()
    alone = first_of_each(places, table["frame"].to_numpy(), np.hypot(*away.T), pixel)
    found: pd.DataFrame = table[alone].reset_index(drop=True)
    return found


def _check(counts: NDArray[np.generic], camera: Camera, side: int) -> None:
    """Refuse what would fail in every frame."""
    if counts.ndim != 4 or counts.shape[1] != 1:
        raise InputRejected(
            f"the model takes one channel, the frames have the shape {counts.shape[1:]} (channel, row, column). "
            "Give one channel."
        )
    if min(counts.shape[2:]) < side:
        raise InputRejected(
            f"the frames of {counts.shape[3]} x {counts.shape[2]} px are smaller than the model's box of {side} "
            "px. Give larger frames."
        )
    camera.to_photons(counts[:0, 0])
