"""Emitters that live over several frames."""

from dataclasses import replace

import torch
from torch import Tensor

from smlm_bridge.simulate.scene import Ranges, Scene, draw


def draw_blinking(
    ranges: Ranges,
    generator: torch.Generator,
    *,
    sequences: int,
    frames: int,
    shape: tuple[int, int],
    pixel_nm: float,
    clear_nm: float | None = None,
) -> Scene:
    """Draw movies of blinking emitters.

    An emitter goes on at any moment and stays on for a time of the exponential law of ``ranges.lifetime_frames``;
    a frame sees of its photons the share of the frame through which it is on. The process is stationary: emitters
    that are on when a movie begins are as many as at any other moment. Densities are of emitters that are on
    during any part of a frame. Background and read noise are drawn once a movie.

    Parameters
    ----------
    ranges
        What to draw from; a lifetime of 0 gives every frame emitters of its own.
    generator
        The only source of randomness; its device is the scene's.
    sequences, frames
        Number of movies, and of the frames of each.
    shape, pixel_nm
        Rows and columns of a frame, and the camera pixel.
    clear_nm
        As ``scene.draw`` takes it.

    Returns
    -------
    Scene
        Of all movies one after the other: frame f of movie s is number s * ``frames`` + f. An emitter has a row
        for every frame that sees it.
    """
    lifetime = ranges.lifetime_frames
    if not lifetime:
        own = draw(
            ranges, generator, frames=sequences * frames, shape=shape, pixel_nm=pixel_nm, clear_nm=clear_nm
        )
        first = torch.arange(0, sequences * frames, frames, device=generator.device)
        return _one_setting_a_movie(own, first.repeat_interleave(frames))
    # In a movie of F frames (F + L) / (1 + L) times as many emitters are on as in one frame: at its beginning as
    # many as at any moment, L / (1 + L) of a frame's, then 1 / (1 + L) of them more in every frame.
    more = (frames + lifetime) / (1 + lifetime)
    low, high = ranges.density_um2
    dense = replace(ranges, density_um2=(low * more, high * more))
    born = draw(dense, generator, frames=sequences, shape=shape, pixel_nm=pixel_nm, clear_nm=clear_nm)
    on, off = _times(born.frame.numel(), frames, lifetime, generator)
    number = torch.arange(frames, device=generator.device)
    seen = (off[:, None].minimum(number + 1.0) - on[:, None].maximum(number.to(on.dtype))).clamp_min(0.0)
    emitter, frame = seen.nonzero(as_tuple=True)
    scene = replace(
        born,
        frame=born.frame[emitter] * frames + frame,
        xyz_nm=born.xyz_nm[emitter],
        photons=born.photons[emitter] * seen[emitter, frame],
        blur_nm=born.blur_nm[emitter],
    )
    if sequences == 1:  # a long movie: one background is shown, not copied
        return replace(
            scene,
            background=born.background.expand(frames, -1, -1),
            read_noise_e=born.read_noise_e.expand(frames),
        )
    return _one_setting_a_movie(
        scene, torch.arange(sequences, device=generator.device).repeat_interleave(frames)
    )


def frames_of(scene: Scene, start: int, stop: int) -> Scene:
    """Some frames of a scene, counted from 0."""
    inside = (scene.frame >= start) & (scene.frame < stop)
    return Scene(
        frame=scene.frame[inside] - start,
        xyz_nm=scene.xyz_nm[inside],
        photons=scene.photons[inside],
        blur_nm=scene.blur_nm[inside],
        background=scene.background[start:stop],
        read_noise_e=scene.read_noise_e[start:stop],
    )


def _times(count: int, frames: int, lifetime: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """When emitters go on and off, in frames; those that are on at the beginning go on at 0."""
    device = generator.device
    # Memoryless: what an emitter that is on has still to live follows the same law.
    start = torch.rand(count, generator=generator, device=device) * (frames + lifetime) - lifetime
    lived = torch.empty(count, device=device).exponential_(1 / lifetime, generator=generator)
    on = start.clamp_min(0.0)
    return on, on + lived


def _one_setting_a_movie(scene: Scene, source: Tensor) -> Scene:
    """The background and read noise of frame ``source[t]`` in frame t."""
    return replace(scene, background=scene.background[source], read_noise_e=scene.read_noise_e[source])
