"""How far apart two emitters must stand to be found as two.

    python benchmarks/resolvable.py [--model tetrapod_storm] [--frames 20] [--photons 9000] [--background 20]

In every frame stand two emitters of equal brightness and equal height, at a random place, height and direction,
and nothing else. An emitter is found if a localization of its own lies within 150 nm. The photons are those of
each; the distance is in camera pixels.
"""

import argparse

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from smlm_bridge.frames import Work
from smlm_bridge.io.model import load_model
from smlm_bridge.localize import localize_work
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.scene import Ranges, Scene
from smlm_bridge.train import training_psf
from smlm_bridge.volumes import volume_work

RADIUS_NM, SIDE_PX = 150.0, 72


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tetrapod_storm")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--photons", type=float, default=9000.0)
    parser.add_argument("--background", type=float, default=20.0)
    parser.add_argument("--distances-px", type=float, nargs="+", default=[0, 0.5, 1, 1.5, 2, 3, 4, 6, 10])
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(given.model, threads=1)
    work = (localize_work if model.info.volume is None else volume_work)(model)
    ranges, known = Ranges.from_json(model.info.ranges), model.info.calibration
    psf = training_psf(known, ranges, reach_px=SIDE_PX // 2)
    generator = torch.Generator().manual_seed(1)
    print(f"{model.info.name}: {given.photons:g} photons each, background {given.background:g}")
    print(f"{given.frames} frames a distance")
    print(f"{'distance px':>12}{'both found':>12}{'one':>7}{'none':>7}{'localizations a frame':>24}")
    for distance in given.distances_px:
        scene = pairs(ranges, distance * known.optics.pixel_nm, known.optics.pixel_nm, given, generator)
        counts = record(scene, render(scene, psf), known.camera, generator).numpy()
        found, count = matched(work, counts, scene, given.frames)
        shares = [np.mean(found == n) for n in (2, 1, 0)]
        print(f"{distance:12g}{shares[0]:12.2f}{shares[1]:7.2f}{shares[2]:7.2f}{count:24.2f}", flush=True)


def pairs(
    ranges: Ranges, apart_nm: float, pixel_nm: float, given: argparse.Namespace, generator: torch.Generator
) -> Scene:
    """Two emitters a frame, about the middle."""
    n, size = given.frames, SIDE_PX * pixel_nm
    low, high = ranges.z_nm
    middle = size / 2 + (torch.rand((n, 2), generator=generator) - 0.5) * 4 * pixel_nm
    z = low + (0.1 + 0.8 * torch.rand((n, 1), generator=generator)) * (high - low)
    angle = 2 * np.pi * torch.rand((n, 1), generator=generator)
    half = torch.cat([torch.cos(angle), torch.sin(angle)], dim=1) * apart_nm / 2
    xyz = torch.cat([torch.cat([middle - half, z], 1), torch.cat([middle + half, z], 1)])
    return Scene(
        frame=torch.arange(n).repeat(2),
        xyz_nm=xyz,
        photons=torch.full((2 * n,), given.photons),
        blur_nm=torch.full((2 * n,), sum(ranges.blur_nm) / 2),
        background=torch.full((n, SIDE_PX, SIDE_PX), given.background),
        read_noise_e=torch.full((n,), sum(ranges.read_noise_e) / 2),
    )


def matched(work: Work, counts: np.ndarray, scene: Scene, frames: int) -> tuple[np.ndarray, float]:
    """How many of the two emitters of each frame are found, and the localizations a frame."""
    table = work.find(counts[:, None])
    found = np.zeros(frames, int)
    for frame in range(frames):
        own = table.loc[table["frame"] == frame, ["x_nm", "y_nm", "z_nm"]].to_numpy()
        away = cdist(scene.xyz_nm[scene.frame == frame].numpy(), own)
        rows, columns = linear_sum_assignment(np.minimum(away, 10 * RADIUS_NM))
        found[frame] = int((away[rows, columns] < RADIUS_NM).sum())
    return found, len(table) / frames


if __name__ == "__main__":
    main()
