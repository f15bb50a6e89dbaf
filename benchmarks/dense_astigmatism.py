"""Crowded frames through an astigmatic PSF: efficiency and time, beside those of storm-analysis' Spliner.

    python benchmarks/dense_astigmatism.py [--runs runs] [--samples 16000] [--threads 1] [--densities 0.2 0.5 1.0]
                                           [--methods network refined likelihood]

Data as in specs/peers.md 3.4: a scalar PSF (NA 1.4, index 1.518, 680 nm, 110 nm pixels) with 0.6 rad of
astigmatism, 0.12 of spherical aberration and 0.08 of coma; 60 frames of 64 x 64 px a density, emitters anywhere,
z within 500 nm, photons from a normal distribution (5000, 1000), background 20. Scored is what is 8 px or more
from the edge, as in the SMLM challenge; the efficiency is the mean of lateral (1/nm) and axial (0.5/nm). A network
is trained for it first (kept in --runs, resumable); ``refined`` is ``localize --refine`` with it, ``likelihood``
``--refine`` without it. Spliner's figures are those of the spec, on another machine. CPU seconds, one thread.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from score_simulated import METHODS, work_of

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.evaluate import Options, evaluate
from smlm_bridge.io.calibration import save_calibration
from smlm_bridge.io.model import load_model
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.scene import Scene

ROOT = Path(__file__).parents[1]
PIXEL_NM, SIDE_PX, BORDER_PX, FRAMES, BACKGROUND = 110.0, 64, 8, 60, 20.0
Z_NM = (-500.0, 500.0)
SPLINER = {0.2: (94.4, 23, 27, 80.8, 0.12), 0.5: (88.9, 28, 43, 73.1, 0.53), 1.0: (84.6, 35, 57, 64.6, 2.1)}
RANGES = """z_nm = [-520.0, 520.0]
photons = [1500.0, 9000.0]
photons_law = "uniform"
density_um2 = [0.05, 1.6]
margin_nm = 600.0

[background]
constant = [10.0, 30.0]
"""


def calibration() -> Calibration:
    """The microscope of the spec."""
    optics = Optics(1.4, 1.518, 1.518, 680.0, PIXEL_NM, model="scalar", pixel_integration=True)
    pupil = Pupil.flat(48, {6: 0.6, 11: 0.12, 8: 0.08})
    return Calibration(optics, pupil, camera=Camera(), z_range_nm=Z_NM)


def trained(given: argparse.Namespace) -> Path:
    """The network's file."""
    file, model = given.runs / "dense_astigmatism.psf.h5", given.runs / "dense_astigmatism.onnx"
    if not model.exists():
        save_calibration(file, calibration(), overwrite=True)
        ranges, sizes = (given.runs / f"dense_astigmatism.{end}.toml" for end in ("ranges", "network"))
        ranges.write_text(RANGES, encoding="utf-8")
        sizes.write_text(
            "patch_px = 48\nreach_px = 16\nwidths = [32, 64, 96]\nlearning_rate = 2e-3\n", encoding="utf-8"
        )
        resume = ["--resume"] if model.with_suffix(".checkpoint").exists() else []
        words = [
            "train",
            file,
            "-o",
            model,
            "--samples",
            given.samples,
            "--ranges",
            ranges,
            "--network",
            sizes,
        ]
        words += ["--seed", 1, "--threads", given.threads, *resume]
        subprocess.run([sys.executable, "-m", "smlm_bridge", *map(str, words)], check=True)
    return model


def drawn(density: float) -> tuple[np.ndarray, pd.DataFrame]:
    """Frames (T, 1, H, W) and their truth."""
    rng = np.random.default_rng(3)
    counts = rng.poisson(density * (SIDE_PX * PIXEL_NM / 1000) ** 2, FRAMES)
    total = int(counts.sum())
    xy = (rng.uniform(0, SIDE_PX - 1, (total, 2)) + 0.5) * PIXEL_NM
    xyz = np.column_stack([xy, rng.uniform(*Z_NM, total)])
    photons = np.maximum(rng.normal(5000, 1000, total), 200)
    frame = np.repeat(np.arange(FRAMES), counts)
    scene = Scene(
        frame=torch.from_numpy(frame),
        xyz_nm=torch.from_numpy(xyz).float(),
        photons=torch.from_numpy(photons).float(),
        blur_nm=torch.zeros(total),
        background=torch.full((FRAMES, SIDE_PX, SIDE_PX), BACKGROUND),
        read_noise_e=torch.zeros(FRAMES),
    )
    known = calibration()
    generator = torch.Generator().manual_seed(3)
    movie = record(scene, render(scene, known.psf()), known.camera, generator).numpy()
    truth = pd.DataFrame(xyz, columns=["x_nm", "y_nm", "z_nm"]).assign(frame=frame, photons=photons)
    return movie[:, None], truth


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--samples", type=int, default=16_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--densities", type=float, nargs="+", default=list(SPLINER), choices=list(SPLINER))
    parser.add_argument("--methods", nargs="+", default=["network", "refined"], choices=METHODS)
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    model = load_model(trained(given), threads=1)
    torch.set_num_threads(1)
    field = (SIDE_PX * PIXEL_NM,) * 2
    how = Options(challenge=True, border_nm=BORDER_PX * PIXEL_NM, field_nm=field)
    rows = []
    for density in given.densities:
        movie, truth = drawn(density)
        rows.append(("Spliner (spec)", density, *SPLINER[density]))
        for method in given.methods:
            work = work_of(model, method)
            work.find(movie[:1])  # what is made once
            begun = time.process_time()
            table = work.find(movie)
            seconds = (time.process_time() - begun) / FRAMES
            scores = evaluate(table, truth, options=how)[1]
            errors = (scores.rmse_lateral_nm, scores.rmse_axial_nm)
            rows.append((method, density, 100 * scores.jaccard, *errors, scores.efficiency, seconds))
            shown = pd.DataFrame(
                rows, columns=["", "per um2", "J %", "lateral", "axial", "E3D", "CPU-s/frame"]
            )
            print(shown.to_string(index=False, float_format="%.2f"), "\n", flush=True)


if __name__ == "__main__":
    main()
