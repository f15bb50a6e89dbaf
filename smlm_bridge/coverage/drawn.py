"""Boxes from a model's own training space, localized by the model itself: what the tests are calibrated on."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from smlm_bridge.coverage.boxes import Boxes
from smlm_bridge.coverage.seen import boxes_of_frame, boxes_of_singles
from smlm_bridge.localize import LocalizeOptions, localize_frames
from smlm_bridge.model import Model
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.simulate.instrument import part_of_camera
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.scene import Ranges, draw
from smlm_bridge.simulate.single import SingleRanges, draw_singles

_AT_ONCE: Final = 250  # boxes
_FRAMES: Final = 4
_SPARSE: Final = 0.1  # of the range of densities: half of the frames are drawn from its lower end
_LEAST_FIELD_PX: Final = 64
_PATIENCE: Final = 40  # frames without a localization


def drawn(model: Model, psf: PSF, *, side_px: int, boxes: int, seed: int) -> Boxes:
    """Boxes drawn from the training ranges of a model, with its own predictions.

    Parameters
    ----------
    model
        The network; takes one channel and single frames.
    psf
        As it was trained.
    side_px
        Side of the boxes.
    boxes, seed
        How many, about; of everything random.
    """
    parts, count, empty = [], 0, 0
    for part in _parts(model, psf, side_px, seed):
        parts.append(part)
        count += len(part)
        empty = 0 if len(part) else empty + 1
        if count >= boxes or empty > _PATIENCE:
            break
    return Boxes.joined(parts)


def _parts(model: Model, psf: PSF, side_px: int, seed: int) -> Iterator[Boxes]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        if model.info.box_px:
            yield _singles(model, psf, generator)
        else:
            yield from _frames(model, psf, side_px, generator)


def _singles(model: Model, psf: PSF, generator: torch.Generator) -> Boxes:
    """Boxes of a network that takes boxes."""
    info, side = model.info, model.info.box_px
    ranges: SingleRanges = SingleRanges.from_json(info.ranges)  # type: ignore[assignment]
    pixel = info.calibration.optics.pixel_nm
    camera = part_of_camera(info.calibration.camera, (side, side), generator)
    scene, _ = draw_singles(ranges, generator, boxes=_AT_ONCE, side=side, pixel_nm=pixel)
    photons = camera.to_photons(record(scene, render(scene, psf), camera, generator).numpy())
    read = np.asarray(camera.read_noise_e, np.float64) / camera.em_gain
    noise = np.broadcast_to(read**2, photons.shape)
    return boxes_of_singles(model, photons, noise, excess=camera.excess_noise_factor)


def _frames(model: Model, psf: PSF, side_px: int, generator: torch.Generator) -> Iterator[Boxes]:
    """Boxes of frames of a network that takes frames."""
    info = model.info
    ranges, pixel = Ranges.from_json(info.ranges), info.calibration.optics.pixel_nm
    least = max(_LEAST_FIELD_PX, 2 * side_px)
    field = math.ceil(least / info.size_step) * info.size_step
    camera = part_of_camera(info.calibration.camera, (field, field), generator)
    low, high = ranges.density_um2
    sparse = replace(ranges, density_um2=(low, low + _SPARSE * (high - low)))
    scenes = [
        draw(part, generator, frames=_FRAMES, shape=(field, field), pixel_nm=pixel)
        for part in (ranges, sparse)
    ]
    counts = [record(scene, render(scene, psf), camera, generator).numpy() for scene in scenes]
    options = LocalizeOptions()
    for image in np.concatenate(counts):
        table = localize_frames(image[None, None], model, camera=camera, options=options)
        yield boxes_of_frame(model, camera.to_photons(image), camera, table, side_px=side_px)
