"""A microscope of one or two channels, from scenes to the photo-electrons that a network is given."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.pair import AnyCalibration, PairCalibration
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.simulate.channels import views
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.scene import Ranges, Scene
from smlm_bridge.transform import Resampling

_BEYOND_PX = 3  # a cubic reaches two pixels beyond, a corner one more
_FIELD_PX = 512  # of an affine transform, which does not say for what field it was made


@dataclass(frozen=True, eq=False)
class View:
    """What one channel sees: its PSF and camera, the scene in its frames, and how those come onto channel 1's.

    ``resampling`` is None where they lie there already.
    """

    psf: PSF
    camera: Camera
    scene: Scene
    resampling: Resampling | None = None

    def expected(self) -> Tensor:
        """(T, h, w) expected photo-electrons."""
        return render(self.scene, self.psf)

    def recorded(self, expected: Tensor, generator: torch.Generator) -> Tensor:
        """(T, h, w) photo-electrons of noisy frames."""
        camera = self.camera
        counts = record(self.scene, expected, camera, generator)
        offset, gain = (
            torch.as_tensor(v, dtype=counts.dtype, device=counts.device)
            for v in (camera.offset, camera.e_per_adu)
        )
        return (counts - offset) * (gain / camera.em_gain)

    def on_first(self, images: Tensor) -> Tensor:
        """Images (..., h, w) of this channel on the pixels of channel 1, (..., H, W)."""
        return images if self.resampling is None else resampled(images, self.resampling)


@dataclass(frozen=True, eq=False)
class Instrument:
    """The channels of a calibration, ready to record scenes.

    Parameters
    ----------
    calibration
        Cameras, transform and photon ratio.
    psfs
        One a channel, in whatever form.
    ranges
        What scenes are drawn from.
    """

    calibration: AnyCalibration
    psfs: tuple[PSF, ...]
    ranges: Ranges

    def views(self, scene: Scene, generator: torch.Generator, *, sequence: int = 1) -> tuple[View, ...]:
        """The scene as each channel sees it; ``sequence`` as ``channels.views`` takes it.

        Of a pair it lies anywhere in the field, so that a network sees channel 2 resampled in every way that it
        will be. Of a camera's maps a part is drawn.
        """
        known = self.calibration
        shape = (scene.background.shape[1], scene.background.shape[2])
        if not isinstance(known, PairCalibration):
            (seen,) = views(scene, known, self.ranges, generator)
            return (View(self.psfs[0], part_of_camera(known.camera, shape, generator), seen),)
        moved = _somewhere(known, shape, generator)
        source = shape if moved is None else moved.source
        transform = known.transform if moved is None else moved.transform
        scenes = views(
            scene, known, self.ranges, generator, transform=transform, shape=source, sequence=sequence
        )
        cameras = [
            part_of_camera(channel.camera, part, generator)
            for channel, part in zip(known.channels, (shape, source), strict=True)
        ]
        return (
            View(self.psfs[0], cameras[0], scenes[0]),
            View(self.psfs[1], cameras[1], scenes[1], moved),
        )

    def photons(self, scene: Scene, generator: torch.Generator, *, sequence: int = 1) -> Tensor:
        """(T, C, H, W) recorded photo-electrons of a scene, channel 2 on the pixels of channel 1."""
        return torch.stack(
            [
                view.on_first(view.recorded(view.expected(), generator))
                for view in self.views(scene, generator, sequence=sequence)
            ],
            dim=1,
        )

    @property
    def read_variance(self) -> float:
        """Typical variance of the read noise, photo-electrons squared."""
        own = self.ranges.channel2.read_noise_e or self.ranges.read_noise_e
        added = (self.ranges.read_noise_e, own)
        variances = [
            (float(np.mean(channel.camera.read_noise_e)) / channel.camera.em_gain) ** 2 + (sum(more) / 2) ** 2
            for channel, more in zip(self.calibration.channels, added, strict=False)
        ]
        return sum(variances) / len(variances)


def resampled(images: Tensor, resampling: Resampling) -> Tensor:
    """Images (..., h, w) of channel 2 as (..., H, W) on the pixels of channel 1."""
    flat = images.flatten(-2)
    strips = []
    for index, weight in resampling.strips():
        where = torch.as_tensor(index, device=images.device)
        share = torch.as_tensor(weight, dtype=images.dtype, device=images.device)
        strips.append(_gathered(flat, where, share))
    return torch.cat(strips, dim=-1).reshape(*images.shape[:-2], *resampling.shape)


def _gathered(flat: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    total = flat[..., index[0]] * weight[0]
    for where, share in zip(index[1:], weight[1:], strict=True):
        total = total + flat[..., where] * share
    return total


def _somewhere(
    pair: PairCalibration, shape: tuple[int, int], generator: torch.Generator
) -> Resampling | None:
    """From a part of channel 2 onto a part of channel 1 somewhere in the field; None where both are the same."""
    if pair.resampling(shape).moves_nothing:
        return None
    transform, (pixel1, pixel2) = pair.transform, pair.pixels_nm
    drawn = torch.rand(2, generator=generator, device=generator.device).cpu().double().numpy()
    low, high = np.zeros(2), np.full(2, float(_FIELD_PX))
    if transform.degree > 1:  # it says where it was made
        centre = np.asarray(transform.centre_nm)
        low, high = (centre - transform.scale_nm) / pixel1, (centre + transform.scale_nm) / pixel1
    corner = np.floor(low + drawn * np.maximum(high - low - np.array(shape[::-1]), 0.0))
    height, width = shape
    ends = np.array([[0, 0], [width, 0], [0, height], [width, height]]) + corner
    reached = transform.apply(ends * pixel1) / pixel2
    first = np.floor(reached.min(axis=0)) - _BEYOND_PX
    columns, rows = (np.ceil(reached.max(axis=0)) + _BEYOND_PX - first).astype(int)
    here = transform.between((float(corner[0] * pixel1), float(corner[1] * pixel1)))
    there = here.moved((corner * pixel1 - first * pixel2).tolist())
    return Resampling(there, pair.pixels_nm, shape, (int(rows), int(columns)))


def part_of_camera(camera: Camera, shape: Sequence[int], generator: torch.Generator) -> Camera:
    """A camera for a window of rows and columns ``shape``: of maps a part drawn at random.

    Raises
    ------
    InputRejected
        If a map is smaller than the window.
    """
    maps = [v for v in (camera.offset, camera.e_per_adu, camera.read_noise_e) if isinstance(v, np.ndarray)]
    if not maps:
        return camera
    least = np.min([value.shape for value in maps], axis=0)
    if least[0] < shape[0] or least[1] < shape[1]:
        raise InputRejected(
            f"the camera's maps of {least[1]} x {least[0]} pixels are smaller than a training patch of "
            f"{shape[1]} x {shape[0]} pixels. Give maps of the whole chip, numbers, or a smaller patch."
        )
    y0, x0 = (
        int(torch.randint(int(n) - side + 1, (), generator=generator, device=generator.device))
        for n, side in zip(least, shape, strict=True)
    )
    return camera.crop(y0, x0, shape[0], shape[1])
