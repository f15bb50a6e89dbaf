"""What each of two channels sees of a drawn scene."""

from dataclasses import replace

import torch
from torch import Tensor

from smlm_bridge.errors import InputRejected
from smlm_bridge.pair import AnyCalibration, PairCalibration
from smlm_bridge.simulate.background import draw_background
from smlm_bridge.simulate.scene import Ranges, Scene, SecondRanges
from smlm_bridge.transform import Transform


def views(
    scene: Scene,
    calibration: AnyCalibration,
    ranges: Ranges,
    generator: torch.Generator,
    *,
    transform: Transform | None = None,
    shape: tuple[int, int] | None = None,
    sequence: int = 1,
) -> tuple[Scene, ...]:
    """The scene as each channel of a calibration sees it; what they do not share is drawn.

    Parameters
    ----------
    scene
        Positions as in the first channel, photons of all channels together, background of the first.
    calibration
        One channel sees the scene itself.
    ranges
        What the scene was drawn from.
    generator
        Of what the second channel has for itself.
    transform, shape
        Of a part of the frames, from the first channel's to the second's, and its rows and columns; None: both
        channels' frames are whole, and of one size.
    sequence
        Frames in a row that have one background and one read noise.

    Raises
    ------
    InputRejected
        If the ranges speak of a second channel and there is none.
    """
    if not isinstance(calibration, PairCalibration):
        if ranges.channel2 != SecondRanges():
            raise InputRejected(
                "the ranges have a part channel2, and this calibration has one channel. Leave it out, or give "
                "the calibration of a pair (see join)."
            )
        return (scene,)
    own = ranges.channel2
    frames, height, width = scene.background.shape
    background = draw_background(
        own.background or ranges.background,
        generator,
        frames=frames // sequence,
        shape=shape or (height, width),
    ).repeat_interleave(sequence, dim=0)
    ratio: Tensor | float = calibration.photon_ratio
    if own.photon_ratio is not None:
        ratio = _of_emitters(scene, own.photon_ratio, generator, sequence)
    first, second = channel_scenes(
        scene,
        calibration if transform is None else replace(calibration, transform=transform),
        background,
        reach_nm=ranges.margin_nm,
        photon_ratio=ratio,
    )
    if own.blur_nm is not None:
        second = replace(second, blur_nm=_of_emitters(second, own.blur_nm, generator, sequence))
    if own.read_noise_e is not None:
        noise = _uniform(frames // sequence, own.read_noise_e, generator)
        second = replace(second, read_noise_e=noise.repeat_interleave(sequence))
    return first, second


def channel_scenes(
    scene: Scene,
    pair: PairCalibration,
    background2: Tensor,
    *,
    reach_nm: float,
    photon_ratio: Tensor | float | None = None,
) -> tuple[Scene, Scene]:
    """The scene as the first and the second channel of a pair see it.

    Parameters
    ----------
    scene
        Positions as in the first channel, photons of both channels together, background of the first.
    pair
        Transform and share of the photons.
    background2 : (T, H, W)
        Of the second channel, photo-electrons per pixel.
    reach_nm
        Emitters further outside the second channel's frames are left out of it.
    photon_ratio
        Photons in the second channel over those in the first, one or (E,); None: the pair's.
    """
    ratio = pair.photon_ratio if photon_ratio is None else photon_ratio
    second = torch.as_tensor(ratio / (1 + ratio), dtype=scene.photons.dtype, device=scene.photons.device)
    moved = pair.transform.apply(scene.xyz_nm[:, :2].double().cpu().numpy())
    xy = torch.as_tensor(moved, dtype=scene.xyz_nm.dtype, device=scene.xyz_nm.device)
    pixel_nm = pair.second.optics.pixel_nm
    size = xy.new_tensor([background2.shape[2] * pixel_nm, background2.shape[1] * pixel_nm])
    near = ((xy > -reach_nm) & (xy < size + reach_nm)).all(1)
    there = torch.cat([xy, scene.xyz_nm[:, 2:]], dim=1)
    return replace(scene, photons=scene.photons * (1 - second)), replace(
        scene,
        frame=scene.frame[near],
        xyz_nm=there[near],
        photons=(scene.photons * second)[near],
        blur_nm=scene.blur_nm[near],
        background=background2,
    )


def _of_emitters(
    scene: Scene, ends: tuple[float, float], generator: torch.Generator, sequence: int
) -> Tensor:
    """(E,) uniform from emitter to emitter; one that several frames of a sequence show is one emitter."""
    if sequence == 1:
        return _uniform(len(scene.frame), ends, generator)
    places, which = torch.unique(scene.xyz_nm, dim=0, return_inverse=True)
    return _uniform(len(places), ends, generator)[which]


def _uniform(count: int, ends: tuple[float, float], generator: torch.Generator) -> Tensor:
    return ends[0] + torch.rand(count, generator=generator, device=generator.device) * (ends[1] - ends[0])
