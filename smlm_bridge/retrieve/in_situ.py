"""Correct a calibration on the images of a sample: aberrations, blur and emitters fitted together.

What a bead on the coverslip, or a designed mask, does not know of (a refractive index that differs, a tilted
slip, another focus) is in the images of every emitter. All emitters of all frames are fitted at once with one
small set of Zernike coefficients and one blur for each channel, by Levenberg-Marquardt on the light of whole
frames; the emitters of a frame are eliminated frame by frame (Schur complement), so that many frames cost
little memory. In the spirit of INSPR (Xu et al. 2020), which averages single emitters; here they may overlap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.pair import AnyCalibration, PairCalibration
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.rerender import background_basis

Floats = NDArray[np.float64]

_RELATIVE = (2, 3, 4)  # tilt and defocus: of one channel they are where its emitters are
_VARIANCE_STEP = 400.0  # nm^2, of the derivative by the blur
_LARGEST_BLUR_NM = 300.0
_SMOOTHING_PX = 1.0
_GIVE_UP = 1e6  # damping beyond which no step helps


@dataclass(frozen=True)
class InSituOptions:
    """How a calibration is corrected.

    Parameters
    ----------
    zernike
        Noll indices, from 5, that each channel may have; the second channel also has tilt and defocus, relative
        to the first.
    prior_rad
        Expected size of a coefficient: what the frames do not tell stays near zero.
    model_error
        Share of an emitter's light that the corrected PSF still does not describe; it counts as noise.
    reach_px
        Images of emitters are rendered this far from their pixel.
    grid_px
        Largest spacing of the nodes of the background.
    iterations
        At most.
    """

    zernike: tuple[int, ...] = tuple(range(5, 29))
    prior_rad: float = 0.3
    model_error: float = 0.05
    reach_px: int = 45
    grid_px: float = 40.0
    iterations: int = 20

    def __post_init__(self) -> None:
        if (
            not self.zernike
            or min(self.zernike) <= max(_RELATIVE)
            or len(set(self.zernike)) < len(self.zernike)
        ):
            raise InputRejected(
                f"zernike {self.zernike}: give different Noll indices from 5; tilt and defocus of one channel are "
                "where its emitters are."
            )
        if min(self.prior_rad, self.grid_px) <= 0 or min(self.reach_px, self.iterations) < 1:
            raise InputRejected(f"sizes and numbers must be above 0, got {self}.")


@dataclass(frozen=True)
class InSitu:
    """A corrected calibration.

    Parameters
    ----------
    calibration
        The given one with other Zernike coefficients and another blur.
    xyz_nm
        Of every frame, (E, 3): the emitters as fitted with it.
    zernike_rad
        Of every channel: Noll index to what was added.
    rrse
        Of every channel: root of what is left beyond noise over the emitters' light, both squared and summed. It
        stands in the provenance of the calibration, too.
    cost
        Half the weighted sum of squares after every iteration that helped.
    """

    calibration: AnyCalibration
    xyz_nm: tuple[Floats, ...]
    zernike_rad: tuple[dict[int, float], ...]
    rrse: tuple[float, ...]
    cost: tuple[float, ...]


def correct_in_situ(
    photons: Sequence[NDArray[np.floating]],
    xyz_nm: Sequence[Floats],
    calibration: AnyCalibration,
    options: InSituOptions | None = None,
    *,
    on_step: Callable[[int, int], None] | None = None,
) -> InSitu:
    """Fit aberrations and blur of every channel, and the emitters, to frames of a sample.

    Parameters
    ----------
    photons : of (C, H, W)
        Frames in photo-electrons.
    xyz_nm : of (E, 3)
        Emitters of every frame, found with the given calibration; those of heights all over the range say most.
    calibration
        With a pupil, of a pair with two.
    on_step
        Told after every iteration how many are done, and of how many.

    Raises
    ------
    InputRejected
        If the calibration has no pupil, frames are not of its channels or not finite, or there are no emitters.
    """
    options = options or InSituOptions()
    _check(photons, xyz_nm, calibration)
    state = _State.begin(photons, xyz_nm, calibration, options)
    damping, costs = 1e-3, []
    system = _System(state, options)
    for iteration in range(options.iterations):
        while damping < _GIVE_UP:
            trial = _System(system.moved(damping), options)
            if trial.cost < system.cost:
                break
            damping *= 8
        if on_step is not None:
            on_step(iteration + 1, options.iterations)
        if damping >= _GIVE_UP:
            break
        gain, system, damping = system.cost - trial.cost, trial, damping / 4
        costs.append(system.cost)
        if gain < 1e-4 * system.cost:
            break
    return system.state.result(costs, system.unexplained)


def _check(
    photons: Sequence[NDArray[np.floating]], xyz_nm: Sequence[Floats], calibration: AnyCalibration
) -> None:
    for channel in calibration.channels:
        if channel.pupil is None:
            raise InputRejected(
                f"aberrations are corrected in a pupil; this calibration has a {channel.psf_kind}. Calibrate with "
                "--psf pupil."
            )
    count = len(calibration.channels)
    if len(photons) != len(xyz_nm) or any(frame.ndim != 3 or len(frame) != count for frame in photons):
        raise InputRejected(
            f"frames of {[frame.shape for frame in photons]} and {len(xyz_nm)} tables do not go with a "
            f"calibration of {count} channel(s). Give frames (C, H, W) and as many tables."
        )
    if not all(np.isfinite(frame).all() for frame in photons):
        raise InputRejected(
            "the frames have values that are not finite (NaN or infinity). Leave those frames out."
        )
    if not sum(len(part) for part in xyz_nm):
        raise InputRejected(
            "there are no emitters to correct the calibration with. Localize the frames first."
        )


@dataclass(frozen=True)
class _Channel:
    """What all emitters of a channel have in common: coefficients that were added, and the blur's variance."""

    calibration: Calibration
    zernike: tuple[int, ...]
    coefficients: Floats
    blur_nm2: float

    @property
    def pupil(self) -> Pupil:
        known = self.calibration.pupil
        assert known is not None
        changed = dict(known.zernike_rad)
        for noll, value in zip(self.zernike, self.coefficients, strict=True):
            changed[noll] = changed.get(noll, 0.0) + float(value)
        return replace(known, zernike_rad=changed)

    def psf(self, more_nm2: float = 0.0) -> PupilPSF:
        blur_nm = float(np.sqrt(self.blur_nm2 + more_nm2))
        return PupilPSF.of(self.calibration.optics, self.pupil, blur_nm=blur_nm)

    def corrected(self, rrse: float) -> Calibration:
        """The calibration, which says how wrong its PSF still is: ``localize --refine`` takes that for noise."""
        provenance = {**self.calibration.provenance, "rrse": rrse}
        blur_nm = float(np.sqrt(self.blur_nm2))
        return replace(self.calibration, pupil=self.pupil, blur_nm=blur_nm, provenance=provenance)


@dataclass(frozen=True)
class _Frame:
    """One frame: data, noise and variance (C, H, W), emitters with ``photons`` (C, E), and ``floor`` (C, K).

    The variance is the noise and what the PSF is expected to be wrong by.
    """

    data: NDArray[np.floating]
    noise: Floats
    variance: Floats
    xyz_nm: Floats
    photons: Floats
    floor: Floats


@dataclass(frozen=True)
class _State:
    known: AnyCalibration
    channels: tuple[_Channel, ...]
    frames: tuple[_Frame, ...]

    @classmethod
    def begin(
        cls,
        photons: Sequence[NDArray[np.floating]],
        xyz_nm: Sequence[Floats],
        calibration: AnyCalibration,
        options: InSituOptions,
    ) -> "_State":
        channels = []
        for number, channel in enumerate(calibration.channels):
            noll = (*_RELATIVE, *options.zernike) if number else options.zernike
            channels.append(_Channel(channel, noll, np.zeros(len(noll)), channel.blur_nm**2))
        state = cls(calibration, tuple(channels), ())
        frames = []
        for data, xyz in zip(photons, xyz_nm, strict=True):
            basis = background_basis(data.shape[1:], options.grid_px)
            level = np.full((len(data), len(basis)), 1.0) * np.median(data, axis=(1, 2))[:, None]
            ones, unit = np.ones(data.shape), np.ones((len(data), len(xyz)))
            start = _Frame(data, ones, ones, np.asarray(xyz, np.float64), unit, level)
            frames.append(state._with_light(start, basis, options))
        return replace(state, frames=tuple(frames))

    def _with_light(self, frame: _Frame, basis: Floats, options: InSituOptions) -> _Frame:
        """Photons and background by linear least squares, for a start."""
        photons, floor = frame.photons.copy(), frame.floor.copy()
        noise, variance = frame.noise.copy(), frame.variance.copy()
        for c in range(len(self.channels)):
            windows = _Windows(self.known, c, frame, options.reach_px)
            images = self.channels[c].psf().images(windows.xyz_nm, windows.shape).double().numpy()
            design = np.concatenate([windows.placed(images), basis])
            values = np.linalg.lstsq(design @ design.T, design @ frame.data[c].ravel(), rcond=1e-8)[0]
            photons[c], floor[c] = np.maximum(values[: len(images)], 1.0), values[len(images) :]
            # Of the smoothed data: a variance that follows the fit would let it prefer to be bright.
            level = gaussian_filter(frame.data[c].astype(np.float64), _SMOOTHING_PX)
            light = level - (floor[c] @ basis).reshape(level.shape)
            noise[c] = self.channels[c].calibration.camera.variance_photons(np.maximum(level, 1.0))
            variance[c] = noise[c] + (options.model_error * light) ** 2
        return replace(frame, photons=photons, floor=floor, noise=noise, variance=variance)

    def result(self, costs: list[float], unexplained: Floats) -> InSitu:
        corrected = [
            channel.corrected(float(share)) for channel, share in zip(self.channels, unexplained, strict=True)
        ]
        known = self.known
        made: AnyCalibration
        if isinstance(known, PairCalibration):
            made = replace(known, first=corrected[0], second=corrected[1])
        else:
            made = corrected[0]
        added = tuple(
            {noll: float(value) for noll, value in zip(c.zernike, c.coefficients, strict=True)}
            for c in self.channels
        )
        xyz_nm = tuple(frame.xyz_nm for frame in self.frames)
        return InSitu(made, xyz_nm, added, tuple(map(float, unexplained)), tuple(costs))


class _Windows:
    """Where the images of a frame's emitters lie in one channel."""

    def __init__(self, known: AnyCalibration, channel: int, frame: _Frame, reach_px: int) -> None:
        pixel_nm = known.channels[channel].optics.pixel_nm
        xy, self.turn = frame.xyz_nm[:, :2], np.tile(np.eye(2), (len(frame.xyz_nm), 1, 1))
        if channel and isinstance(known, PairCalibration):
            xy, self.turn = known.transform.apply(xy), known.transform.slopes(xy)
        height, width = self._frame_shape = frame.data.shape[1:]
        self.shape = (min(2 * reach_px + 1, height), min(2 * reach_px + 1, width))
        # Windows stay within the frame: beyond it nothing is compared.
        last = np.array([width, height]) - self.shape[::-1]
        self._corner = np.clip(np.floor(xy / pixel_nm).astype(int) - reach_px, 0, last)
        inside = np.concatenate([xy - self._corner * pixel_nm, frame.xyz_nm[:, 2:]], axis=1)
        self.xyz_nm = torch.as_tensor(inside, dtype=torch.float32)

    def placed(self, images: NDArray[np.floating]) -> Floats:
        """(E, H*W) frames with an image (E, S, S) each."""
        (rows, columns), (height, width) = self.shape, self._frame_shape
        out = np.zeros((len(images), height, width))
        for image, frame, (x0, y0) in zip(images, out, self._corner, strict=True):
            frame[y0 : y0 + rows, x0 : x0 + columns] = image
        return out.reshape(len(images), height * width)


class _System:
    """The normal equations of a state: unknowns of each frame, and those of all."""

    def __init__(self, state: _State, options: InSituOptions) -> None:
        self.state, self._options = state, options
        counts = [len(channel.zernike) + 1 for channel in state.channels]
        self._first = np.concatenate([[0], np.cumsum(counts)])
        shared = int(self._first[-1])
        prior = np.full(shared, options.prior_rad**-2)
        prior[self._first[1:] - 1] = 0.0  # the blurs
        added = np.zeros(shared)
        for channel, first in zip(state.channels, self._first[:-1], strict=True):
            added[first : first + len(channel.zernike)] = channel.coefficients
        self.cost = 0.5 * float(prior @ added**2)
        self._matrix, self._right = np.diag(prior), -prior * added
        self._left, self._light = np.zeros(len(state.channels)), np.zeros(len(state.channels))
        self._parts: list[tuple[Floats, Floats, Floats]] = []
        for frame in state.frames:
            own, between, right = self._add(frame, shared)
            self._parts.append((own, between, right))

    def _add(self, frame: _Frame, shared: int) -> tuple[Floats, Floats, Floats]:
        """Add one frame to what is shared; its own matrix, that between it and the shared ones, its right side."""
        basis = background_basis(frame.data.shape[1:], self._options.grid_px)
        emitters, nodes, channels = len(frame.xyz_nm), len(basis), len(self.state.channels)
        size = 3 * emitters + channels * (emitters + nodes)
        own, between, right = np.zeros((size, size)), np.zeros((size, shared)), np.zeros(size)
        for c, channel in enumerate(self.state.channels):
            positions, light, common, model = self._derivatives(frame, c, channel)
            light = np.concatenate([light, basis])
            floor = frame.floor[c] @ basis
            residual = frame.data[c].ravel() - model - floor
            variance = frame.variance[c].ravel()
            first = 3 * emitters + c * (emitters + nodes)
            where = np.concatenate([np.arange(3 * emitters), first + np.arange(len(light))])
            local = np.concatenate([positions, light])
            weighted = local / variance
            block = slice(self._first[c], self._first[c + 1])
            own[np.ix_(where, where)] += weighted @ local.T
            between[where, block] += weighted @ common.T
            right[where] += weighted @ residual
            self._matrix[block, block] += (common / variance) @ common.T
            self._right[block] += (common / variance) @ residual
            self.cost += 0.5 * float((residual**2 / variance).sum())
            self._left[c] += float((residual**2 - frame.noise[c].ravel()).sum())
            self._light[c] += float((model**2).sum())
        return own, between, right

    def _derivatives(self, frame: _Frame, c: int, channel: _Channel) -> tuple[Floats, Floats, Floats, Floats]:
        """By positions (3E), photons (E), and what is shared (Z + 1), each (..., H*W), and the emitters' light."""
        windows = _Windows(self.state.known, c, frame, self._options.reach_px)
        fraction, slopes = (
            part.double().numpy()
            for part in channel.psf().derivatives(windows.xyz_nm, windows.shape, zernike=channel.zernike)
        )
        wider = channel.psf(_VARIANCE_STEP).images(windows.xyz_nm, windows.shape).double().numpy()
        bright = frame.photons[c][:, None, None]
        lateral = np.einsum("ekyx,ekl->elyx", slopes[:, :2], windows.turn)
        by_position = [windows.placed(bright * lateral[:, 0]), windows.placed(bright * lateral[:, 1])]
        by_position.append(windows.placed(bright * slopes[:, 2]))
        light = windows.placed(fraction)
        common = [windows.placed(bright * slopes[:, 3 + k]).sum(0) for k in range(len(channel.zernike))]
        common.append(windows.placed(bright * (wider - fraction)).sum(0) / _VARIANCE_STEP)
        positions = np.stack(by_position, axis=1).reshape(-1, light.shape[1])
        return positions, light, np.stack(common), frame.photons[c] @ light

    @property
    def unexplained(self) -> Floats:
        """(C,) relative residual beyond noise; see ``InSitu.rrse``."""
        return np.sqrt(np.maximum(self._left, 0.0) / self._light)

    def moved(self, damping: float) -> _State:
        """The state after a damped step."""
        matrix, right = _damped(self._matrix, damping), self._right.copy()
        solved = []
        for own, between, own_right in self._parts:
            inverse = np.linalg.solve(
                _damped(own, damping), np.concatenate([between, own_right[:, None]], axis=1)
            )
            matrix -= between.T @ inverse[:, :-1]
            right -= between.T @ inverse[:, -1]
            solved.append(inverse)
        step = np.linalg.solve(matrix, right)
        channels = []
        for channel, first, last in zip(self.state.channels, self._first[:-1], self._first[1:], strict=True):
            change = step[first:last]
            blur = float(np.clip(channel.blur_nm2 + change[-1], 0.0, _LARGEST_BLUR_NM**2))
            channels.append(replace(channel, coefficients=channel.coefficients + change[:-1], blur_nm2=blur))
        frames = [
            _moved(frame, inverse[:, -1] - inverse[:, :-1] @ step)
            for frame, inverse in zip(self.state.frames, solved, strict=True)
        ]
        return replace(self.state, channels=tuple(channels), frames=tuple(frames))


def _damped(matrix: Floats, damping: float) -> Floats:
    """With its diagonal made larger; what nothing depends on stays where it is."""
    diagonal = np.diag(matrix)
    return matrix + np.diag(damping * diagonal + 1e-9 * diagonal.max() + 1e-12)


def _moved(frame: _Frame, step: Floats) -> _Frame:
    emitters, channels = len(frame.xyz_nm), len(frame.data)
    rest = step[3 * emitters :].reshape(channels, -1)
    return replace(
        frame,
        xyz_nm=frame.xyz_nm + step[: 3 * emitters].reshape(emitters, 3),
        photons=np.maximum(frame.photons + rest[:, :emitters], 1.0),
        floor=frame.floor + rest[:, emitters:],
    )
