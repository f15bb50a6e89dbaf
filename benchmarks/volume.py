"""The volume head at the published sizes: search for its peaks, and its exported network, in time and memory.

    python benchmarks/volume.py peaks [--shape 70 484 484] [--emitters 300]
    python benchmarks/volume.py export [--shape 297 391] [--planes 121] [--frames 1]
    python benchmarks/volume.py reduced [--samples 8000]

``peaks`` draws emitters (Gaussians of 1.5 voxels, peaks of 100 to 800) over noise and finds them by max-pooling
the whole volume, as published (torch, a cube of 9 voxels), by the separable maximum of scipy, and by the sparse
search; all three must agree. ``export`` writes the untrained network and localizes frames of Poisson noise, tile
by tile, in a process of its own. ``reduced`` trains the size that a processor can (32 x 32 px, two voxels a pixel,
16 planes over 2 um, 24 channels) on an astigmatic Gaussian and scores it on 100 fresh frames a density, 150 nm in
3-D. CPU seconds, one thread; memory is the largest resident size of the process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RADIUS, THRESHOLD = 4, 80.0


def drawn(shape: tuple[int, int, int], emitters: int) -> NDArray[np.float32]:
    """What a trained network returns: nearly nothing, and a blob for each emitter."""
    draw = np.random.default_rng(1)
    volume = draw.normal(0, 10, shape).astype(np.float32)
    offsets = np.mgrid[-6:7, -6:7, -6:7]
    for centre in draw.uniform(8, np.array(shape) - 8, (emitters, 3)):
        whole = centre.astype(int)
        away = offsets - (centre - whole)[:, None, None, None]
        part = tuple(slice(n - 6, n + 7) for n in whole)
        volume[part] += draw.uniform(100, 800) * np.exp(-(away**2).sum(0) / (2 * 1.5**2))
    return volume.clip(0, 800)


def peaks(given: argparse.Namespace) -> None:
    import torch
    from scipy.ndimage import maximum_filter

    from smlm_bridge.networks.peaks import centres_of_gravity, find_peaks

    torch.set_num_threads(1)
    volume = drawn(tuple(given.shape), given.emitters)
    side = 2 * RADIUS + 1

    def pooled() -> NDArray[np.int64]:
        whole = torch.from_numpy(volume)[None, None]
        highest = torch.nn.functional.max_pool3d(whole, side, 1, RADIUS)
        return torch.nonzero(((highest == whole) & (whole > THRESHOLD))[0, 0]).numpy()

    def separable() -> NDArray[np.int64]:
        highest = maximum_filter(volume, side, mode="constant", cval=-np.inf)
        return np.argwhere((volume == highest) & (volume > THRESHOLD))

    def sparse() -> NDArray[np.int64]:
        return find_peaks(volume, threshold=THRESHOLD, radius=RADIUS, every_tie=True)

    centres_of_gravity(volume, sparse(), radius=RADIUS)  # compiles
    ways: dict[str, Callable[[], NDArray[np.int64]]] = {
        "max-pooling, torch": pooled,
        "max-pooling, separable, scipy": separable,
        "sparse search": sparse,
    }
    taken, found = {}, {}
    for name, find in ways.items():
        begun = time.process_time()
        found[name] = find()
        taken[name] = time.process_time() - begun
    begun = time.process_time()
    centres_of_gravity(volume, found["sparse search"], radius=RADIUS)
    gravity = time.process_time() - begun
    share = float((volume > THRESHOLD).mean())
    print(f"volume {volume.shape}, {share:.2%} of it above the threshold, cube of {side} voxels")
    print(f"{'':<32}{'CPU-s':>9}{'peaks':>7}{'times the sparse search':>26}")
    for name, seconds in taken.items():
        print(f"{name:<32}{seconds:9.4f}{len(found[name]):7d}{seconds / taken['sparse search']:26.1f}")
        assert np.array_equal(found[name], found["sparse search"]), name
    print(f"{'centres of gravity':<32}{gravity:9.4f}")
    print("all found the same peaks")


def export(given: argparse.Namespace) -> None:
    """Write the network here, run it where no torch is loaded."""
    import torch

    from smlm_bridge.calibration import Calibration
    from smlm_bridge.model import ModelInfo
    from smlm_bridge.networks.export import volume_to_onnx
    from smlm_bridge.networks.volume import VolumeLocalizer, VolumeScaling
    from smlm_bridge.networks.volume_grid import VolumeGrid
    from smlm_bridge.optics.gaussian import Gaussian
    from smlm_bridge.optics.microscope import Optics

    torch.manual_seed(1)
    grid = VolumeGrid(given.planes, (0.0, 4000.0))
    network = VolumeLocalizer(1, 64, (1, 1, 2, 4, 8, 16), grid, VolumeScaling(0.0, 20.0, 10.0, 110.0))
    with torch.no_grad():  # one voxel in 100 000 above the threshold, so that there are peaks
        network.out.weight.normal_(0.0, 60.0)
        network.limit = torch.nn.Identity()
        noise = torch.poisson(torch.full((1, 1, 48, 48), 30.0), generator=torch.Generator().manual_seed(2))
        highest = network.eval()(noise).flatten().kthvalue(int((1 - 1e-5) * given.planes * (4 * 48) ** 2))
        network.out.bias -= highest.values - THRESHOLD
        network.limit = torch.nn.Hardtanh(0.0, grid.height)
    calibration = Calibration(
        Optics(1.45, 1.518, 1.33, 670.0, 110.0),
        gaussian=Gaussian((120.0, 120.0), (1750.0, 2250.0), (400.0, 400.0)),
        z_range_nm=(0.0, 4000.0),
    )
    info = ModelInfo(
        "published sizes", "volume", "speed", calibration, {}, 1, 1, network.reach, threshold=0.1, volume=grid
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.onnx"
        path.write_bytes(volume_to_onnx(network, info.to_metadata(), channels=1))
        count = sum(p.numel() for p in network.parameters())
        print(f"{count} parameters, {path.stat().st_size / 1e6:.2f} MB; D = {given.planes}")
        height, width = given.shape
        asked = [sys.executable, __file__, "run", "--model", str(path), "--frames", str(given.frames)]
        subprocess.run([*asked, "--shape", str(height), str(width)], check=True, env={**os.environ})


def most_memory_mb() -> float:
    """Of this program alone: what ``getrusage`` says includes the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split("VmHWM:")[1].split()[0]) / 1e3


def run(given: argparse.Namespace) -> None:
    from smlm_bridge.io.model import load_model
    from smlm_bridge.volumes import tile_px, volume_work

    model = load_model(given.model, threads=1)
    work = volume_work(model)
    assert "torch" not in sys.modules
    height, width = given.shape
    counts = np.random.default_rng(1).poisson(30, (given.frames, 1, height, width)).astype(np.uint16)
    work.find(counts[:1, :, :24, :24])  # compiles
    before, begun = most_memory_mb(), time.process_time()
    table = work.find(counts)
    seconds = (time.process_time() - begun) / given.frames
    most = most_memory_mb()
    grid = model.info.volume
    assert grid is not None
    whole = grid.planes * grid.upsampling**2 * height * width * 4 / 1e6
    print(
        f"frame {height} x {width}: {seconds:.2f} CPU-s a frame, network and decoder, {len(table)} localizations"
    )
    print(f"memory {most:.0f} MB at most ({before:.0f} MB before); the volume itself has {whole:.0f} MB")
    print(f"tiles of {tile_px(grid, 512)} px")


def reduced(given: argparse.Namespace) -> None:
    from dataclasses import replace

    import torch

    from smlm_bridge.calibration import Calibration
    from smlm_bridge.camera import Camera
    from smlm_bridge.optics.gaussian import Gaussian
    from smlm_bridge.optics.microscope import Optics
    from smlm_bridge.simulate.background import BackgroundRanges
    from smlm_bridge.simulate.scene import Ranges
    from smlm_bridge.train_volume import VolumeOptions, VolumeTrainer, volume_scores
    from smlm_bridge.training import train

    torch.set_num_threads(1)
    z_nm = (-1000.0, 1000.0)
    calibration = Calibration(
        Optics(1.4, 1.518, 1.33, 670.0, 100.0),
        gaussian=Gaussian((120.0, 120.0), (-400.0, 400.0), (500.0, 500.0)),
        camera=Camera(offset=100.0, e_per_adu=0.5, read_noise_e=1.5),
        z_range_nm=z_nm,
    )
    ranges = Ranges(
        z_nm,
        photons=(4000.0, 8000.0),
        density_um2=(0.02, 0.8),
        background=BackgroundRanges((5.0, 20.0)),
        margin_nm=400.0,
    )
    options = VolumeOptions(
        samples=given.samples,
        learning_rate=3e-3,
        patch_px=32,
        reach_px=16,
        width=24,
        dilations=(1, 2, 4, 8),
        planes=16,
        upsampling=2,
        radius=2,
    )
    begun = time.process_time()
    trainer = VolumeTrainer(calibration, ranges, options)
    network = train(trainer)
    print(f"{given.samples} samples, {time.process_time() - begun:.0f} CPU-s")
    print(f"a voxel's own spread along x, 50 nm / sqrt(12): {50 / 12**0.5:.1f} nm")
    for density in (0.1, 0.4):
        judge = VolumeTrainer(calibration, replace(ranges, density_um2=(density, density)), options)
        judge.network = network
        scores = volume_scores(judge, frames=100, side_px=32)
        shown = ("jaccard", "recall", "precision", "rmse_lateral_nm", "rmse_axial_nm")
        print(f"{density:g} /um2: " + ", ".join(f"{name} {scores[name]}" for name in shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(required=True)
    asked = what.add_parser("peaks")
    asked.add_argument("--shape", type=int, nargs=3, default=[70, 484, 484])
    asked.add_argument("--emitters", type=int, default=300)
    asked.set_defaults(do=peaks)
    for name, do in (("export", export), ("run", run)):
        asked = what.add_parser(name)
        asked.add_argument("--shape", type=int, nargs=2, default=[297, 391])
        asked.add_argument("--frames", type=int, default=1)
        asked.add_argument("--planes", type=int, default=121)
        asked.add_argument("--model")
        asked.set_defaults(do=do)
    asked = what.add_parser("reduced")
    asked.add_argument("--samples", type=int, default=8000)
    asked.set_defaults(do=reduced)
    given = parser.parse_args()
    given.do(given)


if __name__ == "__main__":
    main()
