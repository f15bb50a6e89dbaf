"""What each of two channels sees of a drawn scene."""

from dataclasses import replace

import torch
from torch import Tensor

from smlm_bridge.pair import PairCalibration
from smlm_bridge.simulate.scene import Scene


def channel_scenes(
    scene: Scene, pair: PairCalibration, background2: Tensor, *, reach_nm: float
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
    """
    second = pair.photon_ratio / (1 + pair.photon_ratio)
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
        photons=scene.photons[near] * second,
        blur_nm=scene.blur_nm[near],
        background=background2,
    )
