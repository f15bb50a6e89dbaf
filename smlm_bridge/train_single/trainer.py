"""The training of the network of single emitters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from smlm_bridge.calibration import Calibration
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
from smlm_bridge.pair import PairCalibration
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.simulate.instrument import View
from smlm_bridge.simulate.scene import Scene
from smlm_bridge.simulate.single import SingleRanges, draw_singles
from smlm_bridge.train import LEAST_Z_RANGE_NM, training_psf
from smlm_bridge.train_single.targets import Expected, beside, efficient_step, together
from smlm_bridge.training import LoopOptions, Training

#: Options of a training that starts from another and has little to learn: 5000 emitters, each seen 20 times.
ADAPTING = {"samples": 100_000, "batch": 128, "learning_rate": 2e-3, "emitters": 5000}
RECENTRED_FROM_PX = 1.5  # emitters that stand further from the middle of their box are brought there first
_SCALING_BOXES = 1024
_KEPT_SEED = 7919  # far from the seeds of held-out images
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
    emitters
        How many are drawn at all, once, in batches that come again in any order, every time with new noise; 0
        draws new ones for every batch.
    """

    samples: int = 2_000_000
    batch: int = 256
    learning_rate: float = 4e-3
    box_px: int = 13
    templates: int = 64
    width: int = 256
    blocks: int = 3
    recordings: int = 1
    emitters: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_box(self.box_px)
        if self.emitters < 0:
            raise InputRejected(f"emitters {self.emitters}: give how many are drawn at all, or 0.")
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


#: What the channels see, what is expected of it, and the truth.
_Drawn = tuple[tuple[View, ...], list[Expected], Tensor]


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
        """Simulated boxes in photo-electrons (B, C, S, S), and what to learn from them."""
        times = self.options.recordings
        views, parts, truth = self._drawn()
        recorded = [
            _repeated(view, times).recorded(part.photons.repeat(times, 1, 1), self.generator)
            for view, part in zip(views, parts, strict=True)
        ]
        photons = torch.stack(
            [view.on_first(image) for view, image in zip(views, recorded, strict=True)], dim=1
        )
        # The step is that of the pixels as they were recorded: resampled ones share their noise.
        seen, units = together(parts), self.network.units(truth)
        units = torch.cat([units, *(units[:, 4:5] for _ in parts[1:])], dim=1)
        step = efficient_step(
            beside([image.reshape(times, -1, *image.shape[1:]) for image in recorded]), seen, units
        )
        aim = self.network.scaled(truth) + step[..., : truth.shape[1]]
        return photons, SingleTargets(truth.repeat(times, 1), aim.flatten(0, 1))

    def _drawn(self) -> _Drawn:
        """New emitters, or some of those that were drawn once."""
        if not self.options.emitters:
            return self._new(self.generator)
        which = torch.randint(len(self._kept), (), generator=self.generator, device=self.device)
        return self._kept[int(which)]

    def _new(self, generator: torch.Generator) -> _Drawn:
        scene, truth = self.draw(self.options.batch // self.options.recordings, generator)
        views = self.instrument.views(scene, generator)
        return views, [self.expected(view, scene) for view in views], truth

    @cached_property
    def _kept(self) -> list[_Drawn]:
        """Batches of as many emitters as are drawn at all; not in checkpoints, since the seed says which."""
        own = torch.Generator(self.device).manual_seed(self.ranks.seed(self.options.seed) + _KEPT_SEED)
        batches = math.ceil(self.options.emitters * self.options.recordings / self.options.batch)
        return [self._new(own) for _ in range(batches)]

    def draw(
        self, boxes: int, generator: torch.Generator, ranges: SingleRanges | None = None
    ) -> tuple[Scene, Tensor]:
        """Boxes and their truth, see ``draw_singles``; of the training's ranges or of others."""
        side, pixel_nm = self.options.box_px, self.calibration.optics.pixel_nm
        return draw_singles(ranges or self.ranges, generator, boxes=boxes, side=side, pixel_nm=pixel_nm)

    def expected(self, view: View, scene: Scene) -> Expected:
        """Expected images of a channel, their noise, and their derivatives by the parameters of the network.

        ``scene`` is what was drawn: photons of all channels, positions in the first.
        """
        seen = view.scene
        with torch.no_grad():
            light, slopes = derivatives(
                view.psf,
                seen.xyz_nm,
                seen.photons,
                shape=(seen.background.shape[1], seen.background.shape[2]),
                blur_nm=seen.blur_nm,
                unknowns=Unknowns(zernike=self.ranges.noll),
            )
        if self.channels > 1:
            by_x, by_y = _turned(slopes[:, :2], scene, view)
            share = (seen.photons / scene.photons)[:, None, None]
            slopes = torch.stack([by_x, by_y, slopes[:, 2], slopes[:, 3] * share, slopes[:, 4]], dim=1)
        return Expected.of(seen, view.camera, light, slopes)

    def _psf(self, channel: Calibration) -> PSF:
        if self.ranges.noll:
            if self.channels > 1:
                raise InputRejected(
                    "aberrations (zernike_rad of the ranges) are asked of one channel; this is a pair. Leave them "
                    "out."
                )
            return AberratedPSF.over(channel.psf(device=self.device), self.ranges.noll)
        # As far as from an emitter at the edge of its range to the far edge of its box.
        blur_nm = math.hypot(channel.blur_nm, self.ranges.blur_nm[1])
        reach = self.options.box_px / 2 + self.ranges.wander_px + _TABLE_MARGIN_PX
        reach += _BLUR_REACH * blur_nm / channel.optics.pixel_nm
        if isinstance(self.calibration, PairCalibration):  # its part of channel 2 is larger than the box
            turn = self.calibration.transform.slopes([self.calibration.transform.centre_nm])[0]
            reach = reach * max(1.0, float(np.abs(turn).sum(axis=1).max())) + _TABLE_MARGIN_PX
        return training_psf(channel, self.ranges, reach_px=math.ceil(reach), device=self.device)

    def _network(self, scaling: SingleScaling) -> SingleLocalizer:
        options = self.options
        recentred = self.ranges.wander_px > RECENTRED_FROM_PX
        network = SingleLocalizer(
            self.channels,
            options.box_px,
            options.templates,
            options.width,
            options.blocks,
            scaling,
            recentred=recentred,
        )
        near = replace(self.ranges, wander_px=1.0) if recentred else self.ranges
        network.backbone.begin_with(self._components(network, near, options.templates))
        if network.recentring is not None:
            finder = network.recentring.backbone
            finder.begin_with(self._components(network, self.ranges, len(finder.templates.weight)))
        return network

    def _components(self, network: SingleLocalizer, ranges: SingleRanges, count: int) -> Tensor:
        """(count, pixels) principal components of images without noise, as the network sees them."""
        state = self.generator.get_state()
        scene, _ = self.draw(max(_SCALING_BOXES, 2 * count), self.generator, ranges)
        views = self.instrument.views(scene, self.generator)
        channels = torch.stack([view.on_first(view.expected()) for view in views], dim=1)
        images = network.input_of(channels).flatten(1).float().cpu()
        self.generator.set_state(state)
        _, _, components = torch.svd_lowrank(images - images.mean(0), q=count, niter=2)
        return components.T

    def _scaling(self) -> SingleScaling:
        """Input statistics from simulated boxes; output units from the ranges."""
        ranges = self.ranges
        state = self.generator.get_state()
        scene, truth = self.draw(_SCALING_BOXES, self.generator)
        noise = self.instrument.read_variance
        boxes = stabilise(self.instrument.photons(scene, self.generator), noise)
        self.generator.set_state(state)
        return SingleScaling(
            read_variance=noise,
            input_shift=float(boxes.mean()),
            input_scale=float(boxes.std().clamp_min(1.0)),
            pixel_nm=self.calibration.optics.pixel_nm,
            z_mid_nm=sum(ranges.z_nm) / 2,
            z_half_nm=max(ranges.z_nm[1] - ranges.z_nm[0], LEAST_Z_RANGE_NM) / 2,
            photons=float(truth[:, 3].log().mean().exp()),
            background=float(truth[:, 4].mean().clamp_min(0.1)),
            zernike_rad=tuple((high - low) / 2 for _, low, high in ranges.zernike_rad),
        )


def _repeated(view: View, times: int) -> View:
    """A channel that records every scene several times."""
    noise = view.scene.read_noise_e.repeat(times)
    return replace(view, scene=replace(view.scene, read_noise_e=noise))


def _turned(slopes: Tensor, scene: Scene, view: View) -> tuple[Tensor, Tensor]:
    """Derivatives by x and y of channel 1, of those by x and y of a channel (B, 2, h, w)."""
    if view.resampling is None:
        return slopes[:, 0], slopes[:, 1]
    turn = view.resampling.transform.slopes(scene.xyz_nm[:, :2].double().cpu().numpy())
    matrix = torch.as_tensor(turn, dtype=slopes.dtype, device=slopes.device)
    turned = torch.einsum("bij,bihw->bjhw", matrix, slopes)
    return turned[:, 0], turned[:, 1]
