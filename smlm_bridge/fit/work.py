"""Route A over a movie: detect, cut boxes, fit."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from smlm_bridge._optional import require
from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.conventions import PIXEL_CENTRE
from smlm_bridge.detect import Border, DetectOptions, Finder, box_corners, cut, detect_frames
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit.fit import fit_boxes
from smlm_bridge.fit.models import AstigmaticSpot, Channels, Spot
from smlm_bridge.fit.options import FitOptions
from smlm_bridge.frames import Work
from smlm_bridge.pair import PairCalibration

if TYPE_CHECKING:
    from smlm_bridge.fit.models import AnyPSF

SMALLEST_BOX_PX: Final = 7
LARGEST_BOX_PX: Final = 41
_LIGHT = 0.9  # of an emitter's photons that a box should hold at every height
_WANDER_PX = 3  # how far from the middle of its box an emitter is still rendered in full
_HEIGHTS = 9
_REACH_SIGMA = 3.0


@dataclass(frozen=True)
class FitMovieOptions:
    """How a movie is localized by fits.

    Parameters
    ----------
    detect, fit
        How to find candidates, and how to fit them.
    size_px
        Side of the boxes in pixels, odd; None takes what holds 90 % of the light at every height, 7 to 41.
    border
        What becomes of candidates whose box reaches beyond the frame; see ``detect.box_corners``.
    least_p
        Fits whose ``p_value`` is below are left out: two emitters in a box, another PSF. 0 keeps all.
    finder
        What finds candidates.
    detect_in
        Of two channels: candidates in the sum of both, the second brought onto the first, or in the first alone.
    """

    detect: DetectOptions = field(default_factory=DetectOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    size_px: int | None = None
    border: Border = "drop"
    least_p: float = 0.0
    finder: Finder = detect_frames
    detect_in: Literal["sum", "first"] = "sum"

    def __post_init__(self) -> None:
        if self.size_px is not None and (self.size_px < 3 or self.size_px % 2 == 0):
            raise InputRejected(f"size_px {self.size_px} must be odd and 3 or more, for example 13.")
        if not 0 <= self.least_p < 1:
            raise InputRejected(f"least_p {self.least_p:g} must lie in 0 to 1.")
        if self.detect_in not in ("sum", "first"):
            raise InputRejected(f"detect_in '{self.detect_in}' is not sum or first.")


def fit_work(
    calibration: Calibration | PairCalibration,
    options: FitMovieOptions = FitMovieOptions(),
    *,
    camera: Camera | tuple[Camera, Camera] | None = None,
    corner_nm: tuple[float, float] = (0.0, 0.0),
) -> Work:
    """Detection and fits, to be done block by block by ``frames.in_blocks``.

    Candidates of two channels come from their sum. Of several candidates that end at one emitter the one nearest
    to the middle of its box is kept; fits that did not converge are left out.

    Parameters
    ----------
    calibration
        The PSF. A Gaussian or a spline needs no torch; a pupil is made into a spline once. A pair takes movies of
        two channels.
    options
        See ``FitMovieOptions``.
    camera
        That of the movie's region, or those of two channels; None takes the calibration's.
    corner_nm
        Where the movie's region begins within either channel (x, y): the pair's transform is that of whole frames.

    Raises
    ------
    InputRejected
        If the box is larger than the calibration's spline, or options contradict the PSF.
    MissingDependency
        If the calibration holds a pupil and torch is not installed.
    """
    channels = calibration.channels
    size = options.size_px or max(box_px(channel) for channel in channels)
    psfs = tuple(fitted_psf(channel, size) for channel in channels)
    psf: AnyPSF | Channels = psfs[0]
    if isinstance(calibration, PairCalibration):
        psf = Channels((psfs[0], psfs[1]), calibration.transform.between(corner_nm), calibration.photon_ratio)
    given = camera if isinstance(camera, tuple) else (camera,) * len(channels)
    cameras = tuple(own or channel.camera for own, channel in zip(given, channels, strict=True))
    task = _Task(psf, size, cameras, options)
    return Work(
        find=task.find,
        empty=task.table(np.zeros((0, len(psfs), size, size)), np.zeros((0, len(psfs), 2), int), np.zeros(0)),
        check=task.check,
        pixel_nm=psf.pixel_nm,
        block_pixels=options.detect.block_pixels,
        stands_at=calibration.optics.stands_at,
    )


def fitted_psf(calibration: Calibration, size_px: int) -> "AnyPSF":
    """What a calibration is fitted with: a ``Spot`` or ``AstigmaticSpot``, or a spline.

    Raises
    ------
    InputRejected
        If the calibration's spline is smaller than the box.
    MissingDependency
        If the calibration holds a pupil, and torch is not installed.
    """
    optics, gaussian = calibration.optics, calibration.gaussian
    if calibration.spline is not None:
        held = min(calibration.spline.coefficients.shape[1:3]) // calibration.spline.samples_per_px
        if held < size_px - 1:
            raise InputRejected(
                f"the calibration's spline is {held + 1} px wide, the box {size_px} px. Give a smaller size_px."
            )
        return calibration.spline
    if gaussian is not None and optics.pixel_integration:
        if not np.isfinite(gaussian.depth_nm).any():
            width = float(np.hypot(np.sqrt(np.prod(gaussian.sigma_nm)), calibration.blur_nm))
            return Spot(width, optics.pixel_nm)
        return AstigmaticSpot(gaussian, optics.pixel_nm, calibration.z_range_nm, calibration.blur_nm)
    require("torch", extra="train")
    from smlm_bridge.psf.cubic_spline_psf import tabulate

    return tabulate(calibration.psf(), z_range_nm=calibration.z_range_nm, size_px=size_px + 2 * _WANDER_PX)


def box_px(calibration: Calibration) -> int:
    """Side of the box that holds 90 % of the light at every height, odd, 7 to 41 pixels."""
    pixel = calibration.optics.pixel_nm
    heights = np.linspace(*calibration.z_range_nm, _HEIGHTS)
    if calibration.gaussian is not None and calibration.pupil is None:
        widest = np.hypot(calibration.gaussian.widths_nm(heights).max(), calibration.blur_nm)
        half = int(np.ceil(_REACH_SIGMA * widest / pixel))
        return int(np.clip(2 * half + 1, SMALLEST_BOX_PX, LARGEST_BOX_PX))
    half = LARGEST_BOX_PX // 2 + 5
    window = (2 * half + 1, 2 * half + 1)
    places = np.column_stack([np.full((_HEIGHTS, 2), (half + 0.5) * pixel), heights])
    if calibration.spline is not None:
        images = calibration.spline.images(places, window)
    else:
        torch = require("torch", extra="train")
        images = calibration.psf().images(torch.as_tensor(places), window).double().numpy()
    largest = LARGEST_BOX_PX
    if calibration.spline is not None:
        largest = min(calibration.spline.coefficients.shape[1:3]) // calibration.spline.samples_per_px
    whole = images.sum(axis=(1, 2))
    for r in range(SMALLEST_BOX_PX // 2, LARGEST_BOX_PX // 2):
        part = slice(half - r, half + r + 1)
        if (images[:, part, part].sum(axis=(1, 2)) >= _LIGHT * whole).all():
            return min(2 * r + 1, (largest - 1) | 1)
    return min(LARGEST_BOX_PX, (largest - 1) | 1)


@dataclass(frozen=True)
class _Task:
    """One block of counts to a table."""

    psf: "AnyPSF | Channels"
    size: int
    cameras: tuple[Camera, ...]
    options: FitMovieOptions

    def check(self, counts: NDArray[np.generic]) -> None:
        """Refuse what would fail in every frame."""
        if counts.ndim != 4 or counts.shape[1] != len(self.cameras):
            raise InputRejected(
                f"the calibration has {len(self.cameras)} channel(s), the frames have the shape "
                f"{counts.shape[1:]} (channel, row, column). Give the movie of these channels."
            )
        for camera in self.cameras:
            camera.to_photons(counts[:0, 0])

    def find(self, counts: NDArray[np.generic]) -> pd.DataFrame:
        """Localize frames (T, C, H, W) of counts."""
        pixel = self.psf.pixel_nm
        find, detect = self.options.finder, self.options.detect
        if isinstance(self.psf, Channels) and self.options.detect_in == "sum":
            found = find(self._sum(counts), detect, pixel_nm=pixel, camera=Camera())
        else:
            found = find(counts[:, 0], detect, pixel_nm=pixel, camera=self.cameras[0])
        shape = (counts.shape[2], counts.shape[3])
        first, kept = box_corners(found, self.size, shape, border=self.options.border)
        frame = found["frame"].to_numpy(np.intp)[kept]
        corners = first[:, None]
        if isinstance(self.psf, Channels):
            corners, inside = self._second(first, shape)
            corners, frame = corners[inside], frame[inside]
        boxes = [
            camera.to_photons(cut(counts[:, c], frame, corners[:, c], self.size))
            if np.ndim(camera.offset) == 0 and np.ndim(camera.e_per_adu) == 0
            else cut(camera.to_photons(counts[:, c]), frame, corners[:, c], self.size)
            for c, camera in enumerate(_without_read_noise(camera) for camera in self.cameras)
        ]
        return self.table(np.stack(boxes, axis=1), corners, frame)

    def _sum(self, counts: NDArray[np.generic]) -> NDArray[np.float32]:
        """(T, H, W) photo-electrons of both channels, the second's brought onto the first."""
        assert isinstance(self.psf, Channels)
        first, second = (
            _without_read_noise(camera).to_photons(counts[:, c]) for c, camera in enumerate(self.cameras)
        )
        places = self.psf.transform.apply(_pixel_centres(first.shape[1:]) * self.psf.pixel_nm)
        there = places.T[::-1] / self.psf.pixel_nm - PIXEL_CENTRE
        # What the second channel does not show is as its edge: no step that looks like light.
        moved = [map_coordinates(frame, there, order=1, mode="nearest") for frame in second]
        summed: NDArray[np.float32] = first + np.reshape(moved, first.shape)
        return summed

    def _second(
        self, first: NDArray[np.intp], shape: tuple[int, int]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Corners (K, 2, 2) in both channels, and which lie inside the second's frame."""
        assert isinstance(self.psf, Channels)
        pixel, size = self.psf.pixel_nm, self.size
        there = self.psf.transform.apply((first[:, ::-1] + size / 2) * pixel)
        second = np.rint(there / pixel - size / 2).astype(np.intp)[:, ::-1]
        inside = np.asarray(((second >= 0) & (second <= np.array(shape) - size)).all(axis=1))
        return np.stack([first, second], axis=1), inside

    def table(
        self, boxes: NDArray[Any], corners: NDArray[np.integer], frame: NDArray[np.generic]
    ) -> pd.DataFrame:
        """Fit boxes (K, C, size, size) and keep one row an emitter."""
        camera = self.cameras[0] if len(self.cameras) == 1 else (self.cameras[0], self.cameras[1])
        result = fit_boxes(boxes, corners, self.psf, camera=camera, options=self.options.fit)
        table = result.table(np.asarray(frame, dtype=np.int64))
        middle = (corners[:, 0, ::-1] + self.size / 2) * self.psf.pixel_nm
        away = np.hypot(*(table[["x_nm", "y_nm"]].to_numpy() - middle).T)
        good = result.ok & (result.p_value >= self.options.least_p)
        rows = np.flatnonzero(good)
        places = table.loc[good, ["x_nm", "y_nm"]].to_numpy()
        alone = first_of_each(places, table["frame"].to_numpy()[good], away[good], self.psf.pixel_nm)
        return table.iloc[rows[alone]].reset_index(drop=True)


def _pixel_centres(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(H * W, 2) x and y of the centres of a frame's pixels, in pixels."""
    row, column = np.indices(shape, dtype=np.float64).reshape(2, -1)
    return np.stack([column, row], axis=1) + PIXEL_CENTRE


def _without_read_noise(camera: Camera) -> Camera:
    """For counts to photo-electrons of boxes, where a map of the read noise has another size and no part."""
    return Camera(camera.offset, camera.e_per_adu, 0.0, camera.quantum_efficiency, camera.em_gain)


def first_of_each(
    places: NDArray[np.float64], frame: NDArray[np.int64], away: NDArray[np.float64], pixel_nm: float
) -> NDArray[np.bool_]:
    """Which fits stay: of those of a frame within one pixel of each other the one nearest to its box's middle."""
    stay = np.ones(len(places), np.bool_)
    if len(places) < 2:
        return stay
    apart = 10 * pixel_nm  # frames are kept apart along a third axis
    pairs = cKDTree(np.column_stack([places, frame * apart])).query_pairs(pixel_nm, output_type="ndarray")
    if len(pairs):
        worse = np.where(away[pairs[:, 0]] > away[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
        stay[worse] = False
    return stay
