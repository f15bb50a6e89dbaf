"""Boxes as a network sees them: cut around its localizations, or given to a network of single emitters."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.camera import Camera
from smlm_bridge.coverage.boxes import Boxes, cut_boxes, inside, positions
from smlm_bridge.coverage.limits import Allowed
from smlm_bridge.coverage.noise import extra_read_variance
from smlm_bridge.model import Model, photons_of
from smlm_bridge.pair import PairCalibration
from smlm_bridge.singles import estimate_boxes

Floats = NDArray[np.float64]

A_FRAME: Final = 4  # boxes of one frame: more share its background and its neighbours
_MOST_REACH_PX: Final = 32  # of the features: what lies farther away is another emitter's business


def boxes_of_singles(
    model: Model,
    photons: NDArray[np.float32],
    read_variance: NDArray[np.floating],
    *,
    excess: float,
    frame: NDArray[np.int64] | None = None,
    corner_px: NDArray[np.int64] | None = None,
) -> Boxes:
    """What a network of single emitters says of boxes (n, S, S) of photo-electrons.

    Parameters
    ----------
    model
        Of the system ``single``.
    photons, read_variance : (n, S, S)
        The boxes, and the variance of the camera's read noise in them.
    excess
        Excess noise factor of the camera.
    frame, corner_px
        Where the boxes lie, as in ``Boxes``.
    """
    count = len(photons)
    read_noise = Allowed.of(model.info.ranges, model.info.calibration.z_range_nm).read_noise_e
    table = estimate_boxes(photons, np.zeros((count, 2), np.intp), model)
    xyz = positions(table)
    extra = [
        extra_read_variance(
            image, camera_variance=float(np.mean(noise)), excess=excess, read_noise_e=read_noise
        )
        for image, noise in zip(photons, read_variance, strict=True)
    ]
    seen = np.zeros((count, 0)) if model.features is None else model.features(photons[:, None])
    return Boxes(
        photons=photons,
        read_variance=(read_variance + np.reshape(extra, (-1, 1, 1))).astype(np.float32),
        xyz_nm=xyz,
        photons_found=np.maximum(table["photons"].to_numpy(np.float64), 1.0),
        background_found=table["background"].to_numpy(np.float64),
        sigma_z_nm=table["uncertainty_z_nm"].to_numpy(np.float64),
        near_box=np.zeros(0, np.int64),
        near_xyz_nm=np.zeros((0, xyz.shape[1])),
        near_photons=np.zeros(0),
        features=seen.reshape(count, -1).astype(np.float64),
        frame=np.zeros(count, np.int64) if frame is None else frame,
        corner_px=np.zeros((count, 2), np.int64) if corner_px is None else corner_px,
    )


def boxes_of_frame(
    model: Model,
    photons: NDArray[np.float32],
    camera: Camera,
    table: pd.DataFrame,
    *,
    side_px: int,
    most: int = A_FRAME,
    frame: int = 0,
) -> Boxes:
    """Boxes around the localizations of one frame that stand freest of others.

    Parameters
    ----------
    model
        What localized them.
    photons : (H, W)
        The frame in photo-electrons.
    camera
        Of the frame.
    table
        All localizations of the frame, x and y from its corner.
    side_px, most
        Side of a box; how many at most. Where light overlaps, the network's own errors hide every other.
    frame
        Its number.
    """
    info, pixel = model.info, model.info.calibration.optics.pixel_nm
    xy = table[["x_nm", "y_nm"]].to_numpy(np.float64)
    whole = np.flatnonzero(inside(xy, side_px=side_px, pixel_nm=pixel, shape=photons.shape))
    chosen = freest(table, whole, reach_nm=side_px * pixel, most=most)
    read = np.broadcast_to((np.asarray(camera.read_noise_e) / camera.em_gain) ** 2, photons.shape)
    if info.box_px:
        corner = np.floor(xy[chosen] / pixel).astype(np.int64) - side_px // 2
        rows = corner[:, 1, None, None] + np.arange(side_px)[:, None]
        columns = corner[:, 0, None, None] + np.arange(side_px)
        where = {"frame": np.full(len(chosen), frame, np.int64), "corner_px": corner}
        boxes = photons[rows, columns]
        return boxes_of_singles(model, boxes, read[rows, columns], excess=camera.excess_noise_factor, **where)
    extra = extra_read_variance(
        photons,
        camera_variance=float(np.mean(read)),
        excess=camera.excess_noise_factor,
        read_noise_e=Allowed.of(info.ranges, info.calibration.z_range_nm).read_noise_e,
    )
    seen = features_at(model, photons[None], xy[chosen])
    return cut_boxes(
        photons, read + extra, table, chosen, side_px=side_px, pixel_nm=pixel, frame=frame, features=seen
    )


def boxes_of_pair(
    model: Model,
    counts: NDArray[np.generic],
    cameras: Sequence[Camera],
    table: pd.DataFrame,
    *,
    side_px: int,
    corner_nm: tuple[float, float] = (0.0, 0.0),
    most: int = A_FRAME,
    frame: int = 0,
) -> Boxes:
    """Boxes around the localizations of one frame, ``parts`` of them for each channel.

    Parameters
    ----------
    model
        What localized them.
    counts : (2, H, W)
        The frame.
    cameras
        One a channel.
    table
        All localizations of the frame, x and y from the corner of channel 1.
    corner_nm
        Where the frame begins within either channel.
    side_px, most, frame
        As for ``boxes_of_frame``.
    """
    info, pair = model.info, model.info.calibration
    assert isinstance(pair, PairCalibration)
    xy = table[["x_nm", "y_nm"]].to_numpy(np.float64)
    places = xy, pair.transform.between(corner_nm).apply(xy)
    shape = counts.shape[1], counts.shape[2]
    fits = [
        inside(place, side_px=side_px, pixel_nm=pixel, shape=shape)
        for place, pixel in zip(places, pair.pixels_nm, strict=True)
    ]
    whole = np.flatnonzero(fits[0] & fits[1])
    chosen = freest(table, whole, reach_nm=side_px * pair.pixels_nm[0], most=most)
    shares = np.array([1.0, pair.photon_ratio]) / (1.0 + pair.photon_ratio)
    read_noise = Allowed.of(info.ranges, info.calibration.z_range_nm).read_noise_e
    parts = []
    for image, camera, place, pixel, share in zip(
        counts, cameras, places, pair.pixels_nm, shares, strict=True
    ):
        photons = camera.to_photons(image)
        read = np.broadcast_to((np.asarray(camera.read_noise_e) / camera.em_gain) ** 2, shape)
        extra = extra_read_variance(
            photons,
            camera_variance=float(np.mean(read)),
            excess=camera.excess_noise_factor,
            read_noise_e=read_noise,
        )
        own = table.assign(x_nm=place[:, 0], y_nm=place[:, 1], photons=share * table["photons"])
        parts.append(
            cut_boxes(photons, read + extra, own, chosen, side_px=side_px, pixel_nm=pixel, frame=frame)
        )
    seen = photons_of(counts[None], model, (cameras[0], cameras[1]), corner_nm=corner_nm)[0]
    first = parts[0]
    return replace(
        first,
        photons_found=first.photons_found / shares[0],
        near_photons=first.near_photons / shares[0],
        features=features_at(model, seen, xy[chosen]),
        parts=tuple(parts),
    )


def boxes_of_counts(
    model: Model,
    counts: NDArray[np.generic],
    cameras: Sequence[Camera],
    table: pd.DataFrame,
    *,
    side_px: int,
    corner_nm: tuple[float, float] = (0.0, 0.0),
    most: int = A_FRAME,
    frame: int = 0,
) -> Boxes:
    """Boxes of a frame (C, H, W) of one channel or two; see ``boxes_of_pair`` and ``boxes_of_frame``."""
    if len(cameras) > 1:
        return boxes_of_pair(
            model,
            counts,
            cameras,
            table,
            side_px=side_px,
            corner_nm=corner_nm,
            most=most,
            frame=frame,
        )
    photons = cameras[0].to_photons(counts[0])
    return boxes_of_frame(model, photons, cameras[0], table, side_px=side_px, most=most, frame=frame)


def freest(
    table: pd.DataFrame, chosen: NDArray[np.int64], *, reach_nm: float, most: int
) -> NDArray[np.int64]:
    """Rows of a table, of those ``chosen`` the ``most`` with least light of others around them, in order."""
    return np.sort(chosen[np.argsort(_company(table, chosen, reach_nm), kind="stable")[:most]])


def _company(table: pd.DataFrame, chosen: NDArray[np.int64], reach_nm: float) -> Floats:
    """(n,) light of all localizations around each chosen one, over its own."""
    xy, light = table[["x_nm", "y_nm"]].to_numpy(np.float64), table["photons"].to_numpy(np.float64)
    away = np.abs(xy[chosen, None] - xy).max(axis=2)
    return np.asarray((away < reach_nm) @ light / np.maximum(light[chosen], 1.0))


def features_at(model: Model, photons: NDArray[np.float32], xy_nm: Floats) -> Floats:
    """(n, F) what the last layer of a network of frames sees at positions in a frame (C, H, W).

    (n, 0) of a network that takes boxes, or that cannot be asked.
    """
    if model.features is None or model.info.box_px or not len(xy_nm):
        return np.zeros((len(xy_nm), 0))
    step, pixel = model.info.size_step, model.info.calibration.optics.pixel_nm
    reach = -(-min(model.info.reach_px, _MOST_REACH_PX) // step) * step
    side = 2 * reach + step
    place = np.floor(xy_nm / pixel).astype(np.int64)
    # On the network's own grid, so that pooling falls as it does in whole frames.
    corner = place // step * step - reach
    beyond = reach + step
    padded = np.pad(photons, ((0, 0), (beyond, beyond), (beyond, beyond)), mode="edge")
    rows = corner[:, 1, None, None] + reach + step + np.arange(side)[:, None]
    columns = corner[:, 0, None, None] + reach + step + np.arange(side)
    limit = np.array(padded.shape)
    patches = padded[:, np.minimum(rows, limit[1] - 1), np.minimum(columns, limit[2] - 1)].swapaxes(0, 1)
    maps = [model.features(patches[i : i + 1])[0] for i in range(len(patches))]
    inner = place - corner
    found = [image[:, y, x] for image, (x, y) in zip(maps, inner, strict=True)]
    return np.asarray(found, np.float64).reshape(len(xy_nm), -1)
