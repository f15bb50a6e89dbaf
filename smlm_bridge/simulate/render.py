"""Render scenes: deterministic given the scene, then the camera draws its noise."""

from dataclasses import replace

import torch
from torch import Tensor

from smlm_bridge.camera import Camera
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.simulate.scene import Scene

_CHUNK_PIXELS = 8_000_000


def render(scene: Scene, psf: PSF) -> Tensor:
    """(T, H, W) expected photo-electrons per pixel, background included."""
    shape = (scene.background.shape[1], scene.background.shape[2])
    expected = scene.background.clone()
    chunk = max(1, _CHUNK_PIXELS // (shape[0] * shape[1]))
    for start in range(0, scene.frame.numel(), chunk):
        part = slice(start, start + chunk)
        images = psf.images(scene.xyz_nm[part], shape, blur_nm=scene.blur_nm[part])
        expected.index_add_(0, scene.frame[part], images * scene.photons[part, None, None])
    return expected.clamp_min_(
        0.0
    )  # interpolation leaves about -1e-5 of a peak, and no photon number is negative


def record(scene: Scene, expected: Tensor, camera: Camera, generator: torch.Generator) -> Tensor:
    """(T, H, W) counts as the camera would write them: noise drawn, whole numbers, not below 0.

    The scene's own read noise adds to the camera's.
    """
    counts = camera.sample(expected, generator)
    if bool((scene.read_noise_e > 0).any()):
        noise = torch.randn(expected.shape, generator=generator, device=expected.device)
        to_adu = torch.as_tensor(camera.e_per_adu, dtype=expected.dtype, device=expected.device)
        counts = counts + noise * scene.read_noise_e[:, None, None] / to_adu
    return counts.round().clamp_min(0.0)


def in_label_set(scene: Scene, *, pixel_nm: float, min_photons: float) -> Scene:
    """The emitters a localizer is asked for: inside the frame and bright enough."""
    height, width = scene.background.shape[1] * pixel_nm, scene.background.shape[2] * pixel_nm
    x, y = scene.xyz_nm[:, 0], scene.xyz_nm[:, 1]
    keep = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (scene.photons >= min_photons)
    return replace(
        scene,
        frame=scene.frame[keep],
        xyz_nm=scene.xyz_nm[keep],
        photons=scene.photons[keep],
        blur_nm=scene.blur_nm[keep],
    )
