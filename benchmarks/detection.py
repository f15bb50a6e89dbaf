"""Frames per CPU-second of the detectors, beside Picasso's published rate.

    python benchmarks/detection.py [--frames 300] [--size 256] [--emitters 40] [--repeats 3]

Simulated uint16 frames: Gaussian spots (sigma 1.3 px, 1000 photo-electrons, background 20, 2 counts a
photo-electron, offset 100). CPU time of one thread, best of the repeats, after one call that compiles. The
streamed line is the same with the frames going through ``detect`` from a source in memory.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.camera import Camera
from smlm_bridge.detect import DetectOptions, crop_boxes, detect, detect_frames

PIXEL_NM = 100.0
PICASSO = 273.0  # frames of 256x256 a second
CAMERA = Camera(offset=100.0)


@dataclass(frozen=True)
class Movie:
    """Frames in memory as a source."""

    counts: NDArray[np.uint16]
    first_frame: int = 0
    x0: int = 0
    y0: int = 0

    @property
    def n_frames(self) -> int:
        return len(self.counts)

    def read(self, start: int, stop: int) -> NDArray[np.uint16]:
        return self.counts[start:stop, None]


def simulate(frames: int, size: int, emitters: int) -> NDArray[np.uint16]:
    generator = np.random.default_rng(1)
    pixel = np.arange(size) + 0.5
    counts = np.empty((frames, size, size), np.uint16)
    for frame in range(frames):
        x, y = generator.uniform(0, size, (2, emitters))
        spots = [np.exp(-((pixel - centre[:, None]) ** 2) / (2 * 1.3**2)) for centre in (x, y)]
        expected = 20 + 1000 / (2 * np.pi * 1.3**2) * np.einsum("ey,ex->yx", spots[1], spots[0])
        counts[frame] = 100 + 2 * generator.poisson(expected)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--emitters", type=int, default=40, help="a frame")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    counts = simulate(arguments.frames, arguments.size, arguments.emitters)
    wavelet, dog = DetectOptions(), DetectOptions(detector="dog", threshold="8*std(DoG.F)")
    tasks = {
        "wavelet, std(Wave.F1)": lambda: detect_frames(counts, wavelet, pixel_nm=PIXEL_NM, camera=CAMERA),
        "the same, streamed": lambda: list(detect(Movie(counts), wavelet, pixel_nm=PIXEL_NM, camera=CAMERA)),
        "dog, 8*std(DoG.F)": lambda: detect_frames(counts, dog, pixel_nm=PIXEL_NM, camera=CAMERA),
    }
    print(f"{'':24}{'frames/CPU-s':>14}{'over Picasso':>14}   ({arguments.size}x{arguments.size})")
    per_picasso = PICASSO * (256 / arguments.size) ** 2
    for name, task in tasks.items():
        rate = arguments.frames / best(task, arguments.repeats)
        print(f"{name:24}{rate:14.0f}{rate / per_picasso:14.1f}")
    found = detect_frames(counts, wavelet, pixel_nm=PIXEL_NM, camera=CAMERA)
    seconds = best(lambda: crop_boxes(counts, found, 13), arguments.repeats)
    print(f"{len(found) / arguments.frames:.1f} detections a frame; {len(found) / seconds:.3g} boxes/CPU-s")


def best(task: object, repeats: int) -> float:
    """Least CPU seconds of ``task()``."""
    assert callable(task)
    task()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        task()
        seconds.append(time.process_time() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
