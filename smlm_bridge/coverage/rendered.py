"""Predictions rendered again with the PSF that a model was trained on, and what they leave of the data.

Positions are those that the network gave: a refit of them would let a wrong PSF hide. Only what an image is
linear in, photons and background, is fitted, and of the training's own nuisance, the blur, the best is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.coverage.boxes import Boxes
from smlm_bridge.coverage.noise import deviance, deviance_moments
from smlm_bridge.fit.aberrations import AberratedPSF
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.psf.spline import SplinePSF
from smlm_bridge.simulate.background import is_uneven

Floats = NDArray[np.float64]

#: What is told from a box, in this order (``Measured.statistics``).
STATISTICS: Final = ("deviance", "likelihood", "aberration")
_NOLL: Final = (5, 6, 7, 8, 11)
_STEP_RAD: Final = 0.1
_STEP_NM: Final = 8.0
_BEYOND: Final = 0.15  # of the range of heights: a network may answer this far outside
_BLURS: Final = 4
_FAR: Final = 3.0  # standard deviations
_ROUNDS: Final = 2  # of the linear fit: the second has the noise of the first's answer
_LEAST: Final = 0.05  # photo-electrons: least variance of a pixel
_LIGHT_HELD: Final = 0.8
_SIDES: Final = (11, 41)


@dataclass(frozen=True)
class Measured:
    """What boxes show when their predictions are rendered again.

    Parameters
    ----------
    statistics : (n, 3)
        ``STATISTICS``: deviance beyond its expectation, in its standard deviations (asinh above 3); cube roots
        (Wilson & Hilferty 1931: nearly normal) of twice the gain of likelihood that a step from the predicted
        position promises, and of chi-squared of the first aberrations. The third is 0 without a pupil.
    quantities : (n, 3)
        Predicted height, and photons and background as fitted.
    crowding : (n,)
        Light of other emitters in the box over its own.
    model : (n, S, S)
        The rendered boxes, photo-electrons.
    """

    statistics: Floats
    quantities: Floats
    crowding: Floats
    model: Floats


@dataclass(frozen=True)
class Renderer:
    """Renders boxes as a model was trained.

    Parameters
    ----------
    psf, side_px
        Table of the PSF, and side of the boxes.
    pupil
        The PSF itself, for the derivatives by the first aberrations; None where there is no pupil.
    blur_nm
        Blurs that are tried.
    uneven
        Whether backgrounds of the training are uneven, so that a slope and a curvature are fitted, too.
    excess
        Excess noise factor of the camera.
    model_error
        What the calibration says of its own residual, over the signal: counts as expected.
    """

    psf: PSF
    side_px: int
    pupil: PupilPSF | None
    blur_nm: tuple[float, ...]
    uneven: bool
    excess: float
    model_error: float

    @classmethod
    def of(
        cls, calibration: Calibration, ranges: Mapping[str, Any], *, side_px: int, aberrations: bool = True
    ) -> "Renderer":
        """For a model's calibration and training ranges; boxes of ``side_px``."""
        psf: PSF = calibration.psf()
        pupil: PupilPSF | None = None
        aware = [int(row[0]) for row in ranges.get("zernike_rad", ())]
        if aware:
            psf = AberratedPSF.over(psf, aware)
        elif isinstance(psf, PupilPSF):
            pupil = psf if aberrations else None
            z_nm = tuple(float(z) for z in ranges.get("z_nm", calibration.z_range_nm))
            psf = _table(calibration, (z_nm[0], z_nm[1]), reach_nm=side_px * psf.pixel_nm)
        low, high = (float(v) for v in ranges.get("blur_nm", (0.0, 0.0)))
        blurs = (low,) if high <= low else tuple(np.sqrt(np.linspace(low**2, high**2, _BLURS)))
        uneven = is_uneven(ranges.get("background", {}))
        error = float(calibration.provenance.get("rrse") or 0.0)
        excess = calibration.camera.excess_noise_factor
        return cls(psf, side_px, pupil, tuple(float(b) for b in blurs), uneven, excess, error)

    @property
    def channels(self) -> "tuple[Renderer, ...]":
        """The renderer itself; a ``PairRenderer`` has two."""
        return (self,)

    def with_cameras(self, cameras: Sequence[Camera]) -> "Renderer":
        """The same for frames of another camera."""
        return replace(self, excess=cameras[0].excess_noise_factor)

    def exact(self) -> "Renderer":
        """The same for images that were drawn with the very PSF."""
        return replace(self, model_error=0.0)

    def measure(self, boxes: Boxes) -> Measured:
        """Render predictions again and compare."""
        data = boxes.photons.astype(np.float64)
        read = boxes.read_variance.astype(np.float64)
        others = self._others(boxes)
        tried = [self._fitted(data, read, boxes, others, blur) for blur in self.blur_nm]
        best = np.argmin([one.misfit for one in tried], axis=0)
        rows = np.arange(len(data))

        def chosen(name: str) -> Floats:
            return np.asarray(np.stack([getattr(one, name) for one in tried])[best, rows])

        model, photons, level = chosen("model"), chosen("photons"), chosen("background")
        blur = np.asarray(self.blur_nm)[best]
        variance = np.maximum(self.excess * np.maximum(model, 0.0) + read, _LEAST)
        signal = model - level[:, None, None]
        score = self._deviance(data, model, read, signal)
        slopes = self._slopes(boxes.xyz_nm, blur) * photons[:, None, None, None]
        fraction = self._images(self.psf, boxes.xyz_nm, blur)
        linear = self._linear(fraction, others)
        free = _without(slopes, linear, variance)
        gain = _chi2(free, data - model, variance)
        chi2 = np.zeros(len(data))
        if self.pupil is not None:
            turned = _without(
                self._turned(self.pupil, boxes.xyz_nm, blur),
                np.concatenate([linear, slopes], axis=1),
                variance,
            )
            chi2 = _chi2(turned, data - model - _explained(free, data - model, variance), variance)
        quantities = np.stack([boxes.xyz_nm[:, 2], photons, level], axis=1)
        crowding = others.sum((1, 2)) / np.maximum(boxes.photons_found, 1.0)
        roots = np.cbrt(np.maximum(np.stack([gain, chi2], axis=1), 0.0))
        return Measured(np.column_stack([score, roots]), quantities, crowding, model)

    def _deviance(self, data: Floats, model: Floats, read: Floats, signal: Floats) -> Floats:
        """(n,) deviances over their expectation, in their standard deviations."""
        mean = (np.maximum(model, 0.0) + read) / self.excess
        seen = deviance((data + read) / self.excess, mean)
        expected, spread = deviance_moments(mean)
        known = (self.model_error * signal) ** 2 / np.maximum(self.excess**2 * mean, _LEAST)
        total = (seen - expected - known).sum((1, 2))
        # Like a logarithm far out, where missed and misplaced neighbours rule.
        return np.asarray(_FAR * np.arcsinh(total / np.sqrt((spread + 4 * known).sum((1, 2))) / _FAR))

    def _others(self, boxes: Boxes) -> Floats:
        """(n, S, S) predicted light of the other emitters."""
        light = np.zeros((len(boxes.photons), self.side_px, self.side_px))
        middle = np.full(len(boxes.near_photons), float(np.median(self.blur_nm)))
        images = self._images(self.psf, boxes.near_xyz_nm, middle) * boxes.near_photons[:, None, None]
        np.add.at(light, boxes.near_box, images)
        return light

    def _images(self, psf: PSF, xyz_nm: Floats, blur_nm: Floats) -> Floats:
        with torch.no_grad():
            found = psf.images(
                torch.tensor(xyz_nm, dtype=torch.float32),
                (self.side_px, self.side_px),
                blur_nm=torch.tensor(blur_nm, dtype=torch.float32),
            )
        return np.asarray(found.double().cpu().numpy())

    def _slopes(self, xyz_nm: Floats, blur_nm: Floats) -> Floats:
        """(n, P, S, S) derivatives by position and aberrations, central differences."""
        columns = []
        for axis in range(xyz_nm.shape[1]):
            step = np.zeros(xyz_nm.shape[1])
            step[axis] = _STEP_NM if axis < 3 else _STEP_RAD
            up, down = (self._images(self.psf, xyz_nm + sign * step, blur_nm) for sign in (1, -1))
            columns.append((up - down) / (2 * step[axis]))
        return np.stack(columns, axis=1)

    def _turned(self, pupil: PupilPSF, xyz_nm: Floats, blur_nm: Floats) -> Floats:
        """(n, P, S, S) derivatives by the first aberrations; of a few boxes, which tables would not pay for."""
        place = torch.tensor(xyz_nm, dtype=torch.float32)
        if isinstance(self.psf, SplinePSF):  # within the heights of the table, as its images are
            low, high = self.psf.z_range_nm
            place[:, 2] = place[:, 2].clamp(low, high)
        with torch.no_grad():
            blur = torch.tensor(blur_nm, dtype=torch.float32)
            _, slopes = pupil.derivatives(place, (self.side_px, self.side_px), blur_nm=blur, zernike=_NOLL)
        return np.asarray(slopes[:, 3:].double().cpu().numpy())

    def _linear(self, fraction: Floats, others: Floats) -> Floats:
        """(n, L, S, S) what the image is linear in: the emitter, the background, the other emitters."""
        side = np.linspace(-1.0, 1.0, self.side_px)
        y, x = np.meshgrid(side, side, indexing="ij")
        flat = [np.ones_like(x)]
        if self.uneven:
            flat += [x, y, x * y, x**2 - 1 / 3, y**2 - 1 / 3]
        parts = [fraction[:, None], np.broadcast_to(np.stack(flat), (len(fraction), len(flat), *x.shape))]
        if others.any():
            parts.append(others[:, None])
        return np.concatenate(parts, axis=1)

    def _fitted(self, data: Floats, read: Floats, boxes: Boxes, others: Floats, blur_nm: float) -> "_Fitted":
        """Photons and background of least squares, weighted by the noise that they mean."""
        blur = np.full(len(data), blur_nm)
        fraction = self._images(self.psf, boxes.xyz_nm, blur)
        linear = self._linear(fraction, others)
        model = boxes.photons_found[:, None, None] * fraction + others
        model = model + np.maximum(boxes.background_found, 0.0)[:, None, None]
        for _ in range(_ROUNDS):
            variance = np.maximum(self.excess * np.maximum(model, 0.0) + read, _LEAST)
            weights = _solved(linear, data, variance)
            model = _sum_of(linear, weights)
        model = np.maximum(model, 0.0)
        misfit = ((data - model) ** 2 / variance).sum((1, 2))
        return _Fitted(model, weights[:, 0], weights[:, 1], misfit)


@dataclass(frozen=True)
class _Fitted:
    model: Floats
    photons: Floats
    background: Floats
    misfit: Floats


def _table(calibration: Calibration, z_nm: tuple[float, float], *, reach_nm: float) -> SplinePSF:
    psf = calibration.psf(dtype=torch.float64)
    assert isinstance(psf, PupilPSF)
    beyond = _BEYOND * (z_nm[1] - z_nm[0])
    low = z_nm[0] - beyond
    # Below the coverslip there is no sample, and an aperture beyond its index would ask for light from there.
    low = max(low, 0.0) if z_nm[0] >= 0 else low
    return SplinePSF.tabulate(psf, z_range_nm=(low, z_nm[1] + beyond), reach_nm=reach_nm)


def box_side(calibration: Calibration, ranges: Mapping[str, Any]) -> int:
    """Odd side of the boxes that hold four fifths of an emitter's light at every height, 11 to 41 px."""
    psf = calibration.psf()
    z_nm = ranges.get("z_nm", calibration.z_range_nm)
    side = _SIDES[1] + 20
    heights = torch.linspace(float(z_nm[0]), float(z_nm[1]), 17)
    middle = torch.full_like(heights, side / 2 * psf.pixel_nm)
    with torch.no_grad():
        images = psf.images(torch.stack([middle, middle, heights], dim=1), (side, side))
    for half in range(_SIDES[0] // 2, _SIDES[1] // 2):
        own = slice(side // 2 - half, side // 2 + half + 1)
        if bool((images[:, own, own].sum((1, 2)) >= _LIGHT_HELD * images.sum((1, 2))).all()):
            return 2 * half + 1
    return _SIDES[1]


def _solved(parts: Floats, data: Floats, variance: Floats) -> Floats:
    """(n, K) weights of parts (n, K, S, S) that fit data (n, S, S) best."""
    count, kinds = parts.shape[:2]
    flat = parts.reshape(count, kinds, -1)
    weighted = flat / variance.reshape(count, 1, -1)
    gram = weighted @ flat.swapaxes(1, 2)
    right = weighted @ data.reshape(count, -1, 1)
    scale = 1.0 / np.sqrt(np.maximum(np.einsum("naa->na", gram), 1e-30))
    gram = gram * scale[:, :, None] * scale[:, None, :]
    gram = gram + 1e-9 * np.eye(kinds)  # two emitters at one place share the light
    return np.asarray(np.linalg.solve(gram, right * scale[..., None])[..., 0] * scale)


def _without(directions: Floats, others: Floats, variance: Floats) -> Floats:
    """Directions (n, P, S, S) without what other directions explain of them, in the metric of the noise."""
    left = [part - _explained(others, part, variance) for part in directions.swapaxes(0, 1)]
    return np.stack(left, axis=1)


def _explained(parts: Floats, data: Floats, variance: Floats) -> Floats:
    """(n, S, S) the part of data (n, S, S) that parts (n, K, S, S) explain."""
    return _sum_of(parts, _solved(parts, data, variance))


def _sum_of(parts: Floats, weights: Floats) -> Floats:
    count, kinds, *shape = parts.shape
    return np.asarray((weights[:, None] @ parts.reshape(count, kinds, -1)).reshape(count, *shape))


def _chi2(parts: Floats, residual: Floats, variance: Floats) -> Floats:
    """(n,) squared length of residuals along parts, over the noise."""
    return np.asarray((_explained(parts, residual, variance) * residual / variance).sum((1, 2)))
