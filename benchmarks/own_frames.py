"""Refined localizations of our own frames, drawn with a set's settings, beside the bound of the same emitters.

    python benchmarks/own_frames.py [SET ...] [--frames 500] [--emitters 1 10] [--keep FOLDER]
    python benchmarks/own_frames.py [SET ...] --published ../shared/data/simulated

Frames of 121 x 121 px (biplane 81 x 81) are drawn with the calibration of the shipped model and the photons,
background and heights of its recipe; emitters keep 2.2 um from the edge, as in the published sets. They are
localized as ``localize --model SET --refine`` does. Errors are those of pairs within 150 nm. The bound is that of
all true emitters of a frame together, their additional blur and a smooth background unknown; the ratio is that of
the root mean squares over the pairs. The z-score is the error in units of the reported uncertainty; its robust
standard deviation (from the median) stands beside the plain one. With --keep rows are kept in files of their own.
--published takes the frames of the published simulator instead.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from score_simulated import localizations, work_of
from train_shipped_models import RECIPES

from smlm_bridge.evaluate import match
from smlm_bridge.frames import Work
from smlm_bridge.io.images import open_frames
from smlm_bridge.io.model import load_model
from smlm_bridge.io.thunderstorm import read_table
from smlm_bridge.model import Model, cameras_of
from smlm_bridge.multi.frame import Refiner
from smlm_bridge.multi.group import Box, Emitters, GroupProblem
from smlm_bridge.multi.work import refiner_of

SETS = (
    "tetrapod_telomere",
    "learned_telomere",
    "tetrapod_storm",
    "pair_tetrapod_edof",
    "pair_crlb",
    "pair_learned",
    "pair_biplane",
)
AXES = ("x_nm", "y_nm", "z_nm")
UNCERTAINTIES = ("uncertainty_x_nm", "uncertainty_y_nm", "uncertainty_z_nm")
CLEAR_NM = 2200
READ_NOISE_E = {"tetrapod_storm": 13.0}  # of the published simulator; its calibration has none


def drawn(name: str, emitters: int, frames: int, folder: Path) -> tuple[Path, Path]:
    """Frames with the settings of a set, and their truth."""
    movie, truth = folder / "frames.tif", folder / "truth.csv"
    side = "81x81" if name == "pair_biplane" else "121x121"
    settings = dict(zip(RECIPES[name].sample[::2], RECIPES[name].sample[1::2], strict=True))
    settings |= {"--emitters": str(emitters), "--clear-nm": str(CLEAR_NM), "--size-px": side}
    words = [word for pair in settings.items() for word in pair]
    output = ["-o", str(movie), "--truth", str(truth), "--frames", str(frames), "--seed", "5", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "smlm_bridge", "simulate", name, *words, *output, "--overwrite"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return movie, truth


def bounds(
    model: Model, refiner: Refiner, movie: Path, truth: pd.DataFrame, read_noise_e: float
) -> np.ndarray:
    """(n, 3) of every row of the truth, with all emitters of its frame; read noise beside the cameras' own."""
    cameras = cameras_of(model, None)
    values = np.full((len(truth), 3), np.nan)
    with open_frames([movie]) as source:
        for frame in range(source.n_frames):
            here = np.flatnonzero(truth.frame == frame)
            counts = source.read(frame, frame + 1)[0]
            photons = [c.to_photons(image) for c, image in zip(cameras, counts, strict=True)]
            noise = [
                np.broadcast_to(np.float32(c.read_noise_e**2 + read_noise_e**2), image.shape)
                for c, image in zip(cameras, counts, strict=True)
            ]
            nothing = [np.zeros_like(image) for image in photons]
            box = Box(photons, noise, nothing, [(0, 0)] * len(photons))
            problem = GroupProblem(box, refiner.stamps, refiner.prior, node_px=refiner.options.node_px)
            place = np.array(truth.loc[here, list(AXES)], float)
            place[:, :2] = model.info.calibration.optics.seen_at(place[:, :2])
            start = Emitters(
                place,
                np.zeros_like(refiner.prior.mean_blur_nm2(len(here))),
                np.ones((len(here), len(photons))),
            )
            values[here] = problem.fit(start, most=0).sigma[:, :3]
    return values


def row(
    model: Model, work: Work, movie: Path, file: Path, emitters: int, read_noise_e: float = 0.0
) -> dict[str, float]:
    """What is printed of one set and density."""
    truth = read_table(file)
    table, seconds, frames = localizations(work, movie)
    refiner = refiner_of(model.info.calibration, ranges=model.info.ranges)
    bound = bounds(model, refiner, movie, truth, read_noise_e)
    pairs = match(table, truth, radius_nm=150.0)
    error = table[list(AXES)].to_numpy()[pairs.loc_index] - truth[list(AXES)].to_numpy()[pairs.truth_index]
    bound = bound[pairs.truth_index]
    score = error / table[list(UNCERTAINTIES)].to_numpy()[pairs.loc_index]
    squares, least = (error**2).mean(axis=0), (bound**2).mean(axis=0)
    return {
        "N": emitters,
        "found %": 100 * len(error) / len(truth),
        "false %": 100 * (1 - len(error) / max(1, len(table))),
        "xy nm": float(np.sqrt(squares[:2].sum())),
        "bound": float(np.sqrt(least[:2].sum())),
        "ratio": float(np.sqrt(squares[:2].sum() / least[:2].sum())),
        "z nm": float(np.sqrt(squares[2])),
        "bound ": float(np.sqrt(least[2])),
        "ratio ": float(np.sqrt(squares[2] / least[2])),
        "SD of z-scores": float(score.std()),
        "robust": float(1.4826 * np.median(np.abs(score - np.median(score, axis=0)))),
        "CPU s/frame": seconds / frames,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", choices=[*SETS, []])
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--emitters", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--keep", type=Path, help="folder for what is scored")
    parser.add_argument("--published", type=Path, help="folder of the published simulator's frames")
    arguments = parser.parse_args()
    if arguments.keep is not None and arguments.published is not None:
        parser.error("--keep is for own frames.")
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in arguments.sets or SETS:
        model = load_model(name, threads=1)
        work = work_of(model, "refined")
        rows = []
        for emitters in arguments.emitters:
            kept = arguments.keep and arguments.keep / f"{name}_{emitters}_of_{arguments.frames}.json"
            if kept is not None and kept.exists():
                rows.append(json.loads(kept.read_text(encoding="utf-8")))
                continue
            with tempfile.TemporaryDirectory() as folder:
                if arguments.published is None:
                    noise_e = 0.0
                    movie, truth = drawn(name, emitters, arguments.frames, Path(folder))
                else:
                    movie = arguments.published / f"{name}_N{emitters:03d}.tif"
                    truth = movie.with_suffix(".csv")
                    noise_e = READ_NOISE_E.get(name, 0.0)
                rows.append(row(model, work, movie, truth, emitters, noise_e))
            if kept is not None:
                kept.write_text(json.dumps(rows[-1]), encoding="utf-8")
        frames = f"{arguments.frames} own frames" if arguments.published is None else "published frames"
        print(f"{name}, {frames}")
        print(pd.DataFrame(rows).to_string(index=False, float_format="%.2f"), "\n", flush=True)


if __name__ == "__main__":
    main()
