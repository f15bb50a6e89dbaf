"""How well a pair's calibration explains the published frames with one emitter, at its true position.

    python benchmarks/explained_pairs.py CALIBRATION SET [--data ../shared/data/simulated]

For every frame and channel photons, 8 x 8 cosines of background (the baseline is among them) and the blur are
fitted; printed is the reduced chi-square, mean and largest over the frames. The variance is that of the camera,
with a baseline of 225, the middle of what the simulator draws and does not tell.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from smlm_bridge.calibration import Calibration
from smlm_bridge.io.calibration import load_channels
from smlm_bridge.io.images import open_frames
from smlm_bridge.io.thunderstorm import read_table
from smlm_bridge.psf.pupil_psf import PupilPSF

BASELINE, COSINES = 225.0, 8
BLUR_NM = (40.0, 140.0)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """Reduced chi-square and photons of a frame."""

    chi2: float
    photons: float


def cosines(shape: tuple[int, int]) -> Floats:
    """(K, H*W) of a smooth background."""
    axes = [np.cos(np.pi * np.arange(COSINES)[:, None] * (np.arange(n) + 0.5) / n) for n in shape]
    return np.einsum("iy,jx->ijyx", *axes).reshape(COSINES**2, -1)


def fitted(counts: Floats, image: Floats, basis: Floats, read_noise_e: float) -> Fit:
    """Weighted least squares, the weights by the fit itself."""
    design = np.concatenate([image[None], basis])
    weight = np.full(counts.size, 1.0 / counts.var())
    for _ in range(3):
        values = np.linalg.solve((design * weight) @ design.T, (design * weight) @ counts)
        model = values @ design
        weight = 1.0 / (np.maximum(model - BASELINE, 0.0) + read_noise_e**2)
    degrees = counts.size - len(design) - 1
    return Fit(float(((counts - model) ** 2 * weight).sum() / degrees), float(values[0]))


def explained(name: str, calibration: Path, data: Path) -> str:
    """A line for each channel of a set."""
    file = data / f"{name}_N001.tif"
    truth = read_table(file.with_suffix(".csv")).sort_values("frame")
    pair = load_channels(calibration)
    places = np.array(truth[["x_nm", "y_nm", "z_nm"]], np.float64)
    places[:, :2] = pair.optics.seen_at(places[:, :2])
    xyz = torch.tensor(places)
    with open_frames([file]) as source:
        frames = source.read(0, source.n_frames).astype(np.float64)
    lines = []
    for number, channel in enumerate(pair.channels):
        chi2 = [fit.chi2 for fit in fits(channel, frames[:, number], xyz)]
        lines.append(
            f"{name} channel {number + 1}: reduced chi2 {np.mean(chi2):.3f} (largest {max(chi2):.3f}, "
            f"{len(chi2)} frames)"
        )
    return "\n".join(lines)


def fits(channel: Calibration, frames: Floats, xyz_nm: torch.Tensor) -> list[Fit]:
    """Of frames (T, H, W) with one emitter (T, 3) each, at the best blur."""
    psf, shape = channel.psf(dtype=torch.float64), (frames.shape[1], frames.shape[2])
    assert isinstance(psf, PupilPSF)
    sharp, basis = replace(psf, blur_nm=0.0), cosines(shape)
    read = float(np.mean(channel.camera.read_noise_e))
    found = []
    for counts, place in zip(frames, xyz_nm, strict=True):

        def at(blur_nm: float, place: torch.Tensor = place, counts: Floats = counts) -> Fit:
            image = sharp.images(place[None], shape, blur_nm=torch.tensor([blur_nm], dtype=torch.float64))
            return fitted(counts.ravel(), image.numpy().ravel(), basis, read)

        def misfit(blur_nm: float, at: Callable[[float], Fit] = at) -> float:
            return at(blur_nm).chi2

        found.append(at(float(minimize_scalar(misfit, bounds=BLUR_NM, options={"xatol": 1.0}).x)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("calibration", type=Path)
    parser.add_argument("set")
    parser.add_argument(
        "--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "simulated"
    )
    arguments = parser.parse_args()
    print(explained(arguments.set, arguments.calibration, arguments.data))


if __name__ == "__main__":
    main()
