"""The training of the network of single emitters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from smlm_bridge.camera import Camera
from smlm_bridge.crlb import Unknowns, derivatives
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit.aberrations import AberratedPSF
from smlm_bridge.networks.dense import stabilise
from smlm_bridge.networks.single import (
    LARGEST_BOX_PX,
    SMALLEST_BOX_PX,
    SingleLocalizer,
    SingleScaling,
    SingleTargets,
)
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.scene import Scene
from smlm_bridge.simulate.single import SingleRanges, draw_singles
from smlm_bridge.train import LEAST_Z_RANGE_NM, training_psf
from smlm_bridge.train_single.targets import Expected, efficient_step
from smlm_bridge.training import LoopOptions, Training, part_of_camera

_SCALING_BOXES = 1024
_TABLE_MARGIN_PX, _BLUR_REACH = 2.0, 3.5


@dataclass(frozen=True, kw_only=True)
class SingleOptions(LoopOptions):
    """How to train the network of single emitters; beyond ``LoopOptions``:

    Parameters
    ----------
    box_px
        Side of the boxes, odd, 13 to 41.
    templates
        Products with the whole box that begin the network.
    width, blocks
        Neurons a layer, and residual pairs of layers.
    recordings
        Boxes of a batch that show the same emitter, each with noise of its own: where an image costs more than a
        step of the network, as with aberrations, 4 or 8 train faster than 1. It divides the batch.
    """

    samples: int = 2_000_000
    batch: int = 256
    learning_rate: float = 4e-3
    box_px: int = 13
    templates: int = 64
    width: int = 256
    blocks: int = 3
    recordings: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_box(self.box_px)
        if self.recordings < 1 or self.batch % self.recordings:
            raise InputRejected(f"recordings {self.recordings} must divide the batch of {self.batch}.")
        if not (1 <= self.templates <= self.box_px**2 and self.width >= 1 and self.blocks >= 0):
            raise InputRejected(
                f"no network has {self.templates} templates, {self.width} neurons and {self.blocks} blocks for "
                f"boxes of {self.box_px} px: 1 to {self.box_px**2} templates, 1 neuron or more, 0 blocks or more."
            )


def check_box(side: int) -> None:
    """Refuse a box that is even or outside 13 to 41 pixels."""
    if side % 2 == 0 or not SMALLEST_BOX_PX <= side <= LARGEST_BOX_PX:
        raise InputRejected(
            f"a box of {side} px: give an odd side of {SMALLEST_BOX_PX} to {LARGEST_BOX_PX} px, which holds the "
            "PSF at every height."
        )


class SingleTrainer(Training[SingleLocalizer, SingleOptions, SingleRanges]):
    """A training of the network of single emitters; see ``Training``.

    Raises
    ------
    InputRejected
        If a map of the calibration's camera is smaller than a box, or aberrations are asked of a calibration that
        has no pupil.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"likelihood": 1.0}
    shape_options: ClassVar[tuple[str, ...]] = ("box_px", "templates", "width", "blocks")

    def draw_batch(self) -> tuple[Tensor, SingleTargets]:
        """Simulated boxes in photo-electrons (B, 1, S, S), and what to learn from them."""
        side, times = self.options.box_px, self.options.recordings
        scene, truth = self._draw(self.options.batch // times)
        camera = part_of_camera(self.calibration.camera, (side, side), self.generator)
        seen = self._expected(scene, camera)
        repeated = replace(scene, read_noise_e=scene.read_noise_e.repeat(times))
        counts = record(repeated, seen.photons.repeat(times, 1, 1), camera, self.generator)
        offset, gain = (torch.as_tensor(v).to(counts) for v in (camera.offset, camera.e_per_adu))
        photons = (counts - offset) * (gain / camera.em_gain)
        step = efficient_step(photons.reshape(times, -1, side, side), seen, self.network.units(truth))
        aim = self.network.scaled(truth) + step
        return photons[:, None], SingleTargets(truth.repeat(times, 1), aim.flatten(0, 1))

    def _expected(self, scene: Scene, camera: Camera) -> Expected:
        """Expected images, their noise, and their derivatives by all parameters."""
        side = self.options.box_px
        with torch.no_grad():
            light, slopes = derivatives(
                self.psf,
                scene.xyz_nm,
                scene.photons,
                shape=(side, side),
                blur_nm=scene.blur_nm,
                unknowns=Unknowns(zernike=self.ranges.noll),
            )
        return Expected.of(scene, camera, light, slopes)

    def _draw(self, boxes: int) -> tuple[Scene, Tensor]:
        side, pixel_nm = self.options.box_px, self.calibration.optics.pixel_nm
        return draw_singles(self.ranges, self.generator, boxes=boxes, side=side, pixel_nm=pixel_nm)

    def _psf(self) -> PSF:
        if self.ranges.noll:
            return AberratedPSF.over(self.calibration.psf(device=self.device), self.ranges.noll)
        # As far as from an emitter at the edge of its range to the far edge of its box.
        blur_nm = math.hypot(self.calibration.blur_nm, self.ranges.blur_nm[1])
        reach = self.options.box_px / 2 + self.ranges.wander_px + _TABLE_MARGIN_PX
        reach += _BLUR_REACH * blur_nm / self.calibration.optics.pixel_nm
        return training_psf(self.calibration, self.ranges, reach_px=math.ceil(reach), device=self.device)

    def _network(self, scaling: SingleScaling) -> SingleLocalizer:
        options = self.options
        network = SingleLocalizer(
            1, options.box_px, options.templates, options.width, options.blocks, scaling
        )
        network.backbone.begin_with(self._components(network))
        return network

    def _components(self, network: SingleLocalizer) -> Tensor:
        """(templates, pixels) principal components of images without noise, as the network sees them."""
        state = self.generator.get_state()
        scene, _ = self._draw(max(_SCALING_BOXES, 2 * self.options.templates))
        images = network.input_of(render(scene, self.psf)[:, None]).flatten(1).float().cpu()
        self.generator.set_state(state)
        _, _, components = torch.svd_lowrank(images - images.mean(0), q=self.options.templates, niter=2)
        return components.T

    def _scaling(self) -> SingleScaling:
        """Input statistics from simulated boxes; output units from the ranges."""
        ranges = self.ranges
        state = self.generator.get_state()
        scene, truth = self._draw(_SCALING_BOXES)
        boxes = stabilise(self._photons(scene), self._read_variance())
        self.generator.set_state(state)
        return SingleScaling(
            read_variance=self._read_variance(),
            input_shift=float(boxes.mean()),
            input_scale=float(boxes.std().clamp_min(1.0)),
            pixel_nm=self.calibration.optics.pixel_nm,
            z_mid_nm=sum(ranges.z_nm) / 2,
            z_half_nm=max(ranges.z_nm[1] - ranges.z_nm[0], LEAST_Z_RANGE_NM) / 2,
            photons=float(truth[:, 3].log().mean().exp()),
            background=float(truth[:, 4].mean().clamp_min(0.1)),
            zernike_rad=tuple((high - low) / 2 for _, low, high in ranges.zernike_rad),
        )
