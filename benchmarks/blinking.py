"""One frame or three: the same budget, the same blinking scenes, side by side.

    python benchmarks/blinking.py [--samples 20000] [--lifetime-frames 2] [--density-um2 0.3] [--photons 1000]

Networks of one frame and of three (frames together, and a shared encoder) are trained by online simulation on an
astigmatic Gaussian PSF with emitters that live over frames, for the same number of samples; then all find the
emitters in the middle frames of the same held-out scenes. An emitter is in the truth if the middle frame sees a
fifth of --photons of it. CPU seconds are those of training.
"""

import argparse
import time
from dataclasses import replace

import torch

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.simulate.background import BackgroundRanges
from smlm_bridge.simulate.scene import Ranges
from smlm_bridge.train import Trainer, TrainOptions, held_out_scores
from smlm_bridge.training import train

Z_NM = (-400.0, 400.0)
SHOWN = ("jaccard", "recall", "precision", "rmse_lateral_nm", "rmse_axial_nm")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--lifetime-frames", type=float, default=2.0)
    parser.add_argument("--density-um2", type=float, default=0.3)
    parser.add_argument("--photons", type=float, default=1000.0)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--test-frames", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    calibration = Calibration(
        Optics(1.4, 1.518, 1.33, 670.0, 100.0),
        gaussian=Gaussian((120.0, 120.0), (-250.0, 250.0), (400.0, 400.0)),
        camera=Camera(offset=100.0, e_per_adu=0.5, read_noise_e=1.5),
        z_range_nm=Z_NM,
    )
    ranges = Ranges(
        Z_NM,
        photons=(given.photons / 2, given.photons * 2),
        density_um2=(given.density_um2 / 4, given.density_um2 * 1.5),
        background=BackgroundRanges((5.0, 20.0)),
        margin_nm=300.0,
        label_min_photons=given.photons / 5,
        lifetime_frames=given.lifetime_frames,
    )
    common = TrainOptions(
        samples=given.samples,
        batch=8,
        patch_px=40,
        reach_px=10,
        widths=tuple(given.widths),
        bottom_dilations=(1,),
    )
    ways = {
        "one frame": common,
        "three frames": replace(common, context_frames=1),
        "three, shared encoder": replace(common, context_frames=1, encoders="shared"),
    }
    tested = replace(ranges, density_um2=(given.density_um2, given.density_um2))
    print(f"{given.samples} samples, lifetime {given.lifetime_frames:g} frames, {given.density_um2:g} /um2")
    print(f"{'':<24}" + "".join(f"{name:>17}" for name in SHOWN) + f"{'CPU-s':>9}")
    for name, options in ways.items():
        begun = time.process_time()
        trainer = Trainer(calibration, ranges, options)
        network = train(trainer)
        seconds = time.process_time() - begun
        # The scenes of three frames are the same for all: the network of one frame sees their middle.
        judge = Trainer(calibration, tested, replace(options, context_frames=1))
        middle = options.context_frames == 0

        def run(photons, network=network, middle=middle):  # type: ignore[no-untyped-def]
            seen = torch.from_numpy(photons[:, 1:2] if middle else photons)
            with torch.no_grad():
                return torch.cat([network(frame[None]) for frame in seen]).numpy()

        scores = held_out_scores(judge, run, frames=given.test_frames, side_px=64)
        shown = "".join(f"{'-' if scores[key] is None else round(scores[key], 3):>17}" for key in SHOWN)
        print(f"{name:<24}{shown}{seconds:9.0f}", flush=True)


if __name__ == "__main__":
    main()
