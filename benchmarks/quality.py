"""NeNA, Fourier ring correlation and diffusion against simulated tables of known truth, with CPU seconds.

python benchmarks/quality.py [--molecules 100000]
"""

import argparse
import math
import time

import numpy as np
import pandas as pd

from smlm_bridge.post.diffusion import fit_diffusion, mean_squared_displacement
from smlm_bridge.post.frc import frc
from smlm_bridge.post.nena import nena
from smlm_bridge.post.quality import assess
from smlm_bridge.post.tracks import track

FIELD_NM = 25_600.0


def blinking(
    draw: np.random.Generator, molecules: int, sigma_nm: float, frames: int = 10_000
) -> pd.DataFrame:
    """Molecules on random filaments, each on for three frames in the mean."""
    angle, centre = draw.uniform(0, np.pi, 60), draw.uniform(0, FIELD_NM, (60, 2))
    line, along = draw.integers(0, 60, molecules), draw.uniform(-FIELD_NM, FIELD_NM, molecules)
    place = (centre[line] + along[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])[line]) % FIELD_NM
    length = draw.geometric(1 / 3, molecules)
    molecule = np.repeat(np.arange(molecules), length)
    within = np.arange(len(molecule)) - np.repeat(np.cumsum(length) - length, length)
    x, y = (place[molecule] + draw.normal(0, sigma_nm, (len(molecule), 2))).T
    frame = draw.integers(0, frames, molecules)[molecule] + within
    return pd.DataFrame({"frame": frame, "x_nm": x, "y_nm": y, "uncertainty_xy_nm": sigma_nm})


def recurring(draw: np.random.Generator, sigma_nm: float, mean_rows: float) -> pd.DataFrame:
    """4000 molecules without structure, each seen all over the movie."""
    molecule = np.repeat(np.arange(4000), draw.poisson(mean_rows, 4000))
    x, y = (draw.uniform(0, 6000, (4000, 2))[molecule] + draw.normal(0, sigma_nm, (len(molecule), 2))).T
    frame = draw.integers(0, 8000, len(molecule))
    return pd.DataFrame({"frame": frame, "x_nm": x, "y_nm": y, "uncertainty_xy_nm": sigma_nm})


def moving(draw: np.random.Generator, diffusion: float, frame_s: float = 0.02) -> pd.DataFrame:
    """150 particles for 50 frames, seen during the whole frame time with an error of 20 nm."""
    step = draw.normal(0, 1e3 * math.sqrt(2 * diffusion * frame_s / 10), (150, 500, 2))
    place = np.cumsum(step, axis=1).reshape(150, 50, 10, 2).mean(axis=2) + draw.uniform(0, 20000, (150, 1, 2))
    x, y = (place + draw.normal(0, 20, place.shape)).reshape(-1, 2).T
    return pd.DataFrame({"frame": np.tile(np.arange(50), 150), "x_nm": x, "y_nm": y})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--molecules", type=int, default=100_000)
    molecules = parser.parse_args().molecules
    print("NeNA          sigma nm  found nm  error %")
    for seed, sigma in enumerate((5.0, 10.0, 20.0)):
        found = nena(blinking(np.random.default_rng(seed), molecules // 5, sigma))
        assert found is not None
        print(f"{'':12} {sigma:9.1f} {found.sigma_nm:9.2f} {100 * (found.sigma_nm / sigma - 1):8.1f}")
    print("FRC, recurring  theory nm  found nm  spurious, true and found")
    for sigma, rows in ((10.0, 6.0), (15.0, 10.0), (5.0, 20.0)):
        table = recurring(np.random.default_rng(7), sigma, rows)
        curve = frc(table, rng=np.random.default_rng(0))
        theory = 2 * math.pi * sigma / math.sqrt(math.log(3 * rows))
        print(f"{'':14} {theory:10.1f} {curve.resolution_nm:9.1f} {rows:8.0f} {curve.spurious:6.1f}")
    inside = 0
    for seed in range(40):
        table = moving(np.random.default_rng(seed), 0.05)
        number = track(table, 350)
        msd = mean_squared_displacement(table, number, frame_s=0.02, rng=np.random.default_rng(seed))
        assert msd is not None
        low, high = fit_diffusion(msd).interval_um2_s
        inside += low <= 0.05 <= high
    print(f"Diffusion 0.05 um^2/s within the 95 % interval: {inside} of 40")
    table = blinking(np.random.default_rng(9), molecules, 10.0)
    assess(table.head(2000), rng=np.random.default_rng(0))  # compiles
    began = time.process_time()
    quality = assess(table, rng=np.random.default_rng(0))
    seconds = time.process_time() - began
    print(
        f"quality of {len(table)} localizations in {FIELD_NM / 1000:g} um: {seconds:.1f} CPU-s, FRC "
        f"{quality.frc.resolution_nm:.1f} nm at a pixel of {quality.frc.pixel_nm:g} nm, 4 dealings"
    )


if __name__ == "__main__":
    main()
