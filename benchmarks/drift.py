"""Drift of simulated origami, filaments and sparse sets: residual rms and CPU seconds of the engines.

    python benchmarks/drift.py [--engine auto --engine rcc] [--seeds 3] [--picasso-python PYTHON]

With ``--picasso-python``, the interpreter of an environment that holds picassosr 0.11, Picasso's AIM runs on
the same tables in the same run, in segments of 100 frames, where there is z of 500.

Field 256 x 256 pixels of 100 nm; Poisson-distributed localizations of random sites in every frame. Drift
per axis: a random walk (unit normal steps, Gaussian filter over 60 frames, the larger axis spans 0.35 D) plus a
trend (0.7 D, -0.5 D), zero in the first frame. Residual: rms over frames of estimate minus truth, after its
mean is removed. CPU seconds are those of the estimate with its two split halves, warm. The sets with z add a
drift of z and, per localization, an error of 2.5 times the lateral one.
"""

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from smlm_bridge.post.drift import DriftOptions, estimate_drift

FIELD_NM = 25_600.0
Z_SPAN_NM = 400.0
# Frames: with 100, Picasso's own setting, its z is lost by a micrometre on the sets of 20 000 localizations.
PICASSO_SEGMENT, PICASSO_SEGMENT_Z = 100, 500


@dataclass(frozen=True)
class Setting:
    """One simulated acquisition."""

    structure: str
    frames: int
    per_frame: float
    sigma_nm: float
    drift_nm: float
    with_z: bool = False


SETTINGS = {
    "dr_origami": Setting("origami", 10_000, 30.0, 8.0, 500.0),
    "dr_fil": Setting("filaments", 10_000, 30.0, 15.0, 500.0),
    "dr_sparse": Setting("origami", 20_000, 4.0, 8.0, 1000.0),
    "z_fil_20k": Setting("filaments", 10_000, 2.0, 10.0, 300.0, with_z=True),
    "z_sites_20k": Setting("sites", 10_000, 2.0, 10.0, 300.0, with_z=True),
}


def sites(structure: str, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(n, 2) true positions."""
    if structure == "origami":
        return origami(rng)
    if structure == "filaments":
        return filaments(rng)
    return rng.uniform(600, FIELD_NM - 600, (count // 8, 2))  # molecules that blink eight times


def origami(rng: np.random.Generator) -> NDArray[np.float64]:
    """400 randomly rotated 3 x 4 grids of 20 nm spacing."""
    grid = 20.0 * np.stack(np.meshgrid(np.arange(4) - 1.5, np.arange(3) - 1.0), axis=-1).reshape(-1, 2)
    angle = rng.uniform(0, 2 * np.pi, 400)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    centre = rng.uniform(600, FIELD_NM - 600, (400, 1, 2))
    return (centre + grid @ turn.transpose(0, 2, 1)).reshape(-1, 2)


def filaments(rng: np.random.Generator) -> NDArray[np.float64]:
    """60 walks of 3000 steps of 8 nm, 12 nm thick."""
    start = rng.uniform(500, FIELD_NM - 500, (60, 1, 2))
    heading = rng.uniform(0, 2 * np.pi, (60, 1)) + np.cumsum(rng.normal(0, 0.02, (60, 3000)), axis=1)
    walk = start + np.cumsum(8.0 * np.stack([np.cos(heading), np.sin(heading)], axis=-1), axis=1)
    points = (walk + rng.normal(0, 12.0, walk.shape)).reshape(-1, 2)
    return points[((points > 500) & (points < FIELD_NM - 500)).all(axis=1)]


def true_drift(frames: int, drift_nm: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """(frames, 2): a smoothed random walk and a trend."""
    walk = gaussian_filter1d(np.cumsum(rng.normal(size=(frames, 2)), axis=0), 60, axis=0)
    walk *= 0.35 * drift_nm / np.ptp(walk, axis=0).max()
    drift = walk + np.linspace(0, 1, frames)[:, None] * drift_nm * np.array([0.7, -0.5])
    return drift - drift[0]


def simulate(setting: Setting, seed: int) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """The table and the true drift (frames, 2 or 3)."""
    rng = np.random.default_rng(seed)
    number = rng.poisson(setting.per_frame, setting.frames)
    frame = np.repeat(np.arange(setting.frames), number)
    points = sites(setting.structure, frame.size, rng)
    drift = true_drift(setting.frames, setting.drift_nm, rng)
    chosen = rng.integers(len(points), size=frame.size)
    xy = points[chosen] + drift[frame] + rng.normal(0, setting.sigma_nm, (frame.size, 2))
    table = pd.DataFrame({"frame": frame, "x_nm": xy[:, 0], "y_nm": xy[:, 1]})
    if setting.with_z:
        height = Z_SPAN_NM * (0.5 + 0.5 * np.sin(points[:, 0] / 1500) * np.cos(points[:, 1] / 1500))
        z_drift = true_drift(setting.frames, setting.drift_nm, rng)[:, :1]
        drift = np.hstack([drift, z_drift])
        noise = rng.normal(0, 2.5 * setting.sigma_nm, frame.size)
        table["z_nm"] = height[chosen] + z_drift[frame, 0] + noise
    return table, drift


# Reads a table of px and frames, prints CPU seconds (second of two runs, so warm) and saves the drift in px.
PICASSO = """
import sys, time, json
import numpy as np, pandas as pd
from picasso import aim
data = np.load(sys.argv[1])
info = [{"Width": 256, "Height": 256, "Frames": int(sys.argv[3]), "Pixelsize": 100.0}]
locs = pd.DataFrame({name: data[name] for name in data.files})
few = locs[locs["frame"] < 1000].copy()
aim.aim(few, [{**info[0], "Frames": 1000}], segmentation=int(sys.argv[4]))
start = time.process_time()
_, _, drift = aim.aim(locs.copy(), info, segmentation=int(sys.argv[4]))
print(json.dumps({"seconds": time.process_time() - start}))
np.save(sys.argv[2], drift.to_numpy(float))
"""


def picasso_aim(
    python: str, table: pd.DataFrame, frames: int, *, segment: int
) -> tuple[NDArray[np.float64], float]:
    """Picasso's drift (frames, 2 or 3) in nm and its CPU seconds, in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "locs.npz"), Path(folder, "drift.npy")
        columns = {"frame": table["frame"].to_numpy(np.uint32)}
        columns |= {axis: (table[f"{axis}_nm"].to_numpy() / 100.0 - 0.5).astype(np.float32) for axis in "xy"}
        columns |= {name: np.full(len(table), 0.1, np.float32) for name in ("lpx", "lpy")}
        if "z_nm" in table:
            columns["z"] = table["z_nm"].to_numpy(np.float32)
        np.savez(source, **columns)
        command = [python, "-W", "ignore", "-c", PICASSO, str(source), str(target), str(frames), str(segment)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"Picasso failed: {done.stderr[-600:]}")
        drift = np.load(target)
        drift[:, :2] *= 100.0  # px of 100 nm; z is in nm
        return drift, float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def report(name: str, engine: str, seed: int, table: pd.DataFrame, truth: NDArray[np.float64],
           found: NDArray[np.float64], seconds: float, rest: str) -> None:  # fmt: skip
    axes = min(found.shape[1], truth.shape[1])
    error = (found[:, :axes] - truth[: len(found), :axes]).std(axis=0)
    rms = " / ".join(f"{value:5.2f}" for value in error)
    span = "/".join(f"{value:.0f}" for value in np.ptp(truth, axis=0)[:2])
    print(f"{name:<12} {engine:<13} {seed:>4} {len(table):>7}  {span:<9}  {rms:<22} {seconds:>6.2f}  {rest}",
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", action="append", choices=["auto", "aim", "comet", "rcc"])
    parser.add_argument("--set", action="append", choices=SETTINGS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--segment-frames", type=int)
    parser.add_argument("--picasso-python", help="interpreter of an environment with picassosr")
    given = parser.parse_args()
    warm, _ = simulate(Setting("origami", 600, 10.0, 8.0, 50.0, with_z=True), 0)
    print(
        "bars: dr_origami, dr_fil: rms <= 0.8 nm in x, y within 1 CPU-s; z_*_20k: z <= 2.5 nm\n"
        "set          engine        seed    locs  span x/y   rms x/y(/z) nm          CPU-s  "
        "split-half xy/z nm, warnings"
    )
    if not given.picasso_python:
        print("(no Picasso beside: give --picasso-python, an environment with picassosr 0.11)")
    engines = given.engine or ["auto", "rcc"]
    for engine in engines:
        estimate_drift(warm, DriftOptions(engine=engine, segment_frames=given.segment_frames))
    for name in given.set or SETTINGS:
        for seed in range(given.seeds):
            table, truth = simulate(SETTINGS[name], seed)
            for engine in engines:
                options = DriftOptions(engine=engine, segment_frames=given.segment_frames)
                start = time.process_time()
                result = estimate_drift(table, options)
                seconds = time.process_time() - start
                found = [a for a in (result.x_nm, result.y_nm, result.z_nm) if a is not None]
                halves = f"{result.split_half_rms_nm:.2f}"
                if result.split_half_z_rms_nm is not None:
                    halves += f" / {result.split_half_z_rms_nm:.2f}"
                shown = engine if engine == result.engine else f"{engine} ({result.engine})"
                part = truth[result.frame]
                report(name, shown, seed, table, part, np.stack(found, axis=1), seconds,
                       f"{halves}, {len(result.warnings)}")  # fmt: skip
            if given.picasso_python:
                segment = PICASSO_SEGMENT_Z if SETTINGS[name].with_z else PICASSO_SEGMENT
                drift, seconds = picasso_aim(
                    given.picasso_python, table, SETTINGS[name].frames, segment=segment
                )
                report(name, f"Picasso {segment}", seed, table, truth, drift, seconds, "none, none")


if __name__ == "__main__":
    main()
