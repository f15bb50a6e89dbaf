"""A movie's frames through the refinement: what ``localize --refine`` adds to a network."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.frames import Work
from smlm_bridge.multi.frame import Refiner
from smlm_bridge.multi.group import Prior
from smlm_bridge.multi.options import Refined, RefineOptions
from smlm_bridge.multi.stamps import Stamps
from smlm_bridge.pair import AnyCalibration, PairCalibration
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.psf.spline import SplinePSF
from smlm_bridge.simulate.background import is_uneven

_REACH_PX = 40
_EM_EXCESS = 2.0  # electron multiplication doubles the variance of shot noise
_UNKNOWN_BLUR_PX, _UNKNOWN_ERROR = 0.8, 0.03
_GAINS_OF_UNTOLD = 5.0, 3.0
_NODE_PX_OF_EVEN = 20.0
_DIM_SHARE = 0.3  # of the dimmest emitter that a model was trained for


def refiner_of(
    calibration: AnyCalibration,
    *,
    ranges: Mapping[str, Any] | None = None,
    options: RefineOptions | None = None,
    corner_nm: tuple[float, float] = (0.0, 0.0),
) -> Refiner:
    """The refinement for a microscope.

    Two channels are fitted together: positions are common, photons and background each channel's own.

    Parameters
    ----------
    calibration
        With a pupil, of a pair with two.
    ranges
        What a model was trained for, as ``ModelInfo.ranges``: heights, additional blur, least photons. None:
        any additional blur up to 0.8 pixels, and a PSF that is wrong by 3 % or more.
    options
        None takes the default, with lower gains where a right PSF is fitted to emitters that are not told of and
        a smoother background where the model was trained on even ones;
        photons of 0 are taken from the ranges, ``model_error`` of 0 from what the calibration says of its own
        residual.
    corner_nm
        Where frames begin within either channel (x, y): a pair's transform is that of whole frames.

    Raises
    ------
    InputRejected
        If the calibration has no pupil.
    """
    known = ranges or {}
    low, high = (float(z) for z in known.get("z_nm", calibration.z_range_nm))
    # Without a model nothing is known of the blur, nor how right the PSF is.
    unknown = (0.0, _UNKNOWN_BLUR_PX * calibration.optics.pixel_nm)
    blur = tuple(float(b) for b in known.get("blur_nm", unknown))
    given, options = options, options or RefineOptions()
    if not options.least_photons:
        options = replace(options, least_photons=_DIM_SHARE * _dimmest(known))
    if not options.most_photons:
        options = replace(options, most_photons=_brightest(known))
    if not options.told_photons:
        options = replace(options, told_photons=float(known.get("label_min_photons", 0.0)))
    if not options.model_error:
        error = max(float(channel.provenance.get("rrse") or 0.0) for channel in calibration.channels)
        options = replace(options, model_error=error if ranges else max(error, _UNKNOWN_ERROR))
    if given is None and options.told_photons and not options.model_error:
        # Dim emitters are not told of, but the others are found and placed better where they are in the fit.
        add_gain, keep_gain = _GAINS_OF_UNTOLD
        options = replace(options, add_gain=add_gain, keep_gain=keep_gain)
    if given is None and known and not is_uneven(known.get("background", {})):
        options = replace(options, node_px=_NODE_PX_OF_EVEN)
    stamps = [_stamps(channel, (low, high)) for channel in calibration.channels]
    own: tuple[float, float] | None = None
    if isinstance(calibration, PairCalibration):
        transform = calibration.transform.between(corner_nm)
        stamps[1] = replace(stamps[1], transform=None if transform.is_identity else transform)
        given = dict(known.get("channel2", {})).get("blur_nm")
        own = None if given is None else (float(given[0]), float(given[1]))
    return Refiner(stamps, Prior.of_blur((low, high), (blur[0], blur[1]), own), options)


def _stamps(channel: Calibration, z_nm: tuple[float, float]) -> Stamps:
    psf = channel.psf()
    if not isinstance(psf, PupilPSF):
        raise InputRejected(
            "refining needs a calibration with a pupil (phase and amplitude); this one has a "
            f"{channel.psf_kind}. Calibrate with --psf pupil, or fit without --refine."
        )
    table = SplinePSF.tabulate(psf, z_range_nm=z_nm, reach_nm=_REACH_PX * psf.pixel_nm)
    return Stamps.of(table, z_range_nm=z_nm)


def refined(work: Work, refiner: Refiner, camera: Camera | tuple[Camera, ...]) -> Work:
    """The same work with its table refined by maximum likelihood of all emitters of a frame.

    Parameters
    ----------
    work
        Finds emitters, of which the positions are used to start from.
    refiner
        See ``refiner_of``.
    camera
        Of the frames; of two channels, one each.
    """
    cameras = camera if isinstance(camera, tuple) else (camera,) * len(refiner.stamps)
    excess = np.array([_EM_EXCESS if known.em_gain > 1 else 1.0 for known in cameras])
    refiner = refiner.for_excess(float(excess.mean()))

    def find(counts: NDArray[np.generic]) -> pd.DataFrame:
        found = work.find(counts)
        own = work.own(counts)
        photons = np.stack([known.to_photons(own[:, c]) for c, known in enumerate(cameras)], axis=1)
        noise = np.stack([_read_noise(known, photons.shape[2:]) for known in cameras])
        scale = excess[:, None, None]
        tables = [
            _refined_frame(
                found[found["frame"] == frame],
                frame,
                (image / scale).astype(np.float32),
                (noise / scale**2).astype(np.float32),
                refiner,
                excess,
            )
            for frame, image in enumerate(photons)
        ]
        filled = [table for table in tables if len(table)]
        return pd.concat(filled, ignore_index=True) if filled else work.empty.copy()

    return replace(work, find=find)


def _read_noise(camera: Camera, shape: tuple[int, ...]) -> NDArray[np.floating]:
    return np.broadcast_to(np.asarray(camera.variance_photons(np.zeros(shape))), shape)


def _refined_frame(
    start: pd.DataFrame,
    frame: int,
    photons: NDArray[np.float32],
    variance: NDArray[np.float32],
    refiner: Refiner,
    excess: NDArray[np.float64],
) -> pd.DataFrame:
    """The table of one frame; ``photons`` are divided by the excess, so that their variance is their mean."""
    result = refiner(photons, variance, start[["x_nm", "y_nm", "z_nm"]].to_numpy(float))
    return _table(result, start, frame, excess, refiner.options)


def _table(
    result: Refined,
    start: pd.DataFrame,
    frame: int,
    excess: NDArray[np.float64],
    options: RefineOptions,
) -> pd.DataFrame:
    xyz, sigma = result.emitters.xyz_nm, result.sigma
    # An added emitter is as probable as the evidence beyond what was asked of it.
    added = 1.0 / (1.0 + np.exp(-np.clip(result.support - options.add_gain, 0.0, 50.0)))
    known = start["probability"].to_numpy(float) if "probability" in start else np.ones(len(start))
    probability = np.where(result.origin >= 0, known[result.origin] if len(known) else 1.0, added)
    table = pd.DataFrame(
        {
            "frame": np.full(len(xyz), frame, np.int64),
            "x_nm": xyz[:, 0],
            "y_nm": xyz[:, 1],
            "z_nm": xyz[:, 2],
            "photons": (result.emitters.photons * excess).sum(axis=1),
            "background": result.background[:, 0] * excess[0],
            "uncertainty_xy_nm": np.sqrt((sigma[:, 0] ** 2 + sigma[:, 1] ** 2) / 2),
            "uncertainty_z_nm": sigma[:, 2],
            "uncertainty_x_nm": sigma[:, 0],
            "uncertainty_y_nm": sigma[:, 1],
            "uncertainty_photons": np.sqrt(((sigma[:, -len(excess) :] * excess) ** 2).sum(axis=1)),
            "probability": probability,
        }
    )
    return table[table["photons"] >= options.told_photons]


def _dimmest(ranges: Mapping[str, Any]) -> float:
    """Photons of the dimmest emitter that a model answers for."""
    asked = float(ranges.get("label_min_photons", 0.0))
    if asked or ranges.get("photons_law", "gamma") == "gamma":
        return asked
    return float(ranges["photons"][0])


def _brightest(ranges: Mapping[str, Any]) -> float:
    """Photons of the brightest emitter that a model knows, 0 where its law has no end."""
    return 0.0 if ranges.get("photons_law", "gamma") == "gamma" else float(ranges["photons"][1])
