"""Boxes from a model's own training space, localized by the model itself: what the tests are calibrated on."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from smlm_bridge.coverage.boxes import Boxes
from smlm_bridge.coverage.pairs import PairRenderer
from smlm_bridge.coverage.rendered import Renderer
from smlm_bridge.coverage.seen import boxes_of_counts, boxes_of_singles
from smlm_bridge.localize import LocalizeOptions, localize_frames
from smlm_bridge.model import Model
from smlm_bridge.pair import PairCalibration
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.simulate.channels import views
from smlm_bridge.simulate.instrument import part_of_camera
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.scene import Ranges, draw
from smlm_bridge.simulate.single import SingleRanges, draw_singles
from smlm_bridge.transform import Transform

_AT_ONCE: Final = 250  # boxes
_FRAMES: Final = 4
_SPARSE: Final = 0.1  # of the range of densities: half of the frames are drawn from its lower end
_LEAST_FIELD_PX: Final = 64
_PATIENCE: Final = 40  # frames without a localization


def drawn(model: Model, renderer: Renderer | PairRenderer, *, boxes: int, seed: int) -> Boxes:
    """Boxes drawn from the training ranges of a model, with its own predictions.

    Parameters
    ----------
    model
        The network; takes single frames.
    renderer
        PSFs as it was trained, and the side of the boxes.
    boxes, seed
        How many, about; of everything random.
    """
    parts, count, empty = [], 0, 0
    for part in _parts(model, renderer, seed):
        parts.append(part)
        count += len(part)
        empty = 0 if len(part) else empty + 1
        if count >= boxes or empty > _PATIENCE:
            break
    return Boxes.joined(parts)


def _parts(model: Model, renderer: Renderer | PairRenderer, seed: int) -> Iterator[Boxes]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        if model.info.box_px and isinstance(renderer, Renderer):
            yield _singles(model, renderer.psf, generator)
        else:
            yield from _frames(model, renderer, generator)


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


def _frames(model: Model, renderer: Renderer | PairRenderer, generator: torch.Generator) -> Iterator[Boxes]:
    """Boxes of frames of a network that takes frames."""
    info, known = model.info, model.info.calibration
    if isinstance(known, PairCalibration):  # boxes are the same wherever the channels lie
        known = replace(known, transform=Transform.identity())
        model = replace(model, info=replace(info, calibration=known))
    psfs = [one.psf for one in renderer.channels]
    ranges, pixel = Ranges.from_json(info.ranges), known.optics.pixel_nm
    least = max(_LEAST_FIELD_PX, 2 * renderer.side_px)
    field = math.ceil(least / info.size_step) * info.size_step
    cameras = tuple(part_of_camera(one.camera, (field, field), generator) for one in known.channels)
    low, high = ranges.density_um2
    sparse = replace(ranges, density_um2=(low, low + _SPARSE * (high - low)))
    scenes = [
        draw(part, generator, frames=_FRAMES, shape=(field, field), pixel_nm=pixel)
        for part in (ranges, sparse)
    ]
    counts = []
    for scene in scenes:
        seen = zip(views(scene, known, ranges, generator), psfs, cameras, strict=True)
        recorded = [record(view, render(view, psf), camera, generator) for view, psf, camera in seen]
        counts.append(torch.stack(recorded, dim=1).numpy())
    options = LocalizeOptions()
    given = (cameras[0], cameras[1]) if len(cameras) > 1 else cameras[0]
    for image in np.concatenate(counts):
        table = localize_frames(image[None], model, camera=given, options=options)
        yield boxes_of_counts(model, image, cameras, table, side_px=renderer.side_px)
