"""Whether a dense network's probability and uncertainty are what they say, on frames that it was not trained on.

    python benchmarks/reliability.py [MODEL ...] [--frames 100] [--emitters 10 20]

Frames are drawn as by own_frames.py and localized by the network alone, down to a probability of 0.05. Of the
localizations of each range of probability the mean probability and the share that has an emitter within 150 nm
are printed, and the mean difference of the two, weighted by numbers. Of those above the model's own threshold:
the standard deviation of the error in x, y, z in units of the reported uncertainty, plain and robust (from the
median).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from own_frames import AXES, SETS, UNCERTAINTIES, drawn
from score_simulated import localizations
from train_shipped_models import RECIPES

from smlm_bridge.evaluate import match
from smlm_bridge.io.model import load_model
from smlm_bridge.io.thunderstorm import read_table
from smlm_bridge.localize import LocalizeOptions, localize_work
from smlm_bridge.model import Model

EDGES = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0 + 1e-6])
RADIUS_NM = 150.0


def judged(model: Model, name: str, emitters: int, frames: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probability of every localization and whether it is true; and the z-scores of those the model tells of."""
    with tempfile.TemporaryDirectory() as folder:
        movie, truth = drawn(name, emitters, frames, Path(folder))
        table, _, _ = localizations(localize_work(model, options=LocalizeOptions(threshold=EDGES[0])), movie)
        known = read_table(truth)
    pairs = match(table, known, radius_nm=RADIUS_NM)
    right = np.zeros(len(table), bool)
    right[pairs.loc_index] = True
    error = table[list(AXES)].to_numpy()[pairs.loc_index] - known[list(AXES)].to_numpy()[pairs.truth_index]
    scores = pd.DataFrame(error / table[list(UNCERTAINTIES)].to_numpy()[pairs.loc_index], columns=list("xyz"))
    told = table.probability.to_numpy()[pairs.loc_index] >= model.info.threshold
    return pd.DataFrame({"probability": table.probability, "right": right}), scores[told]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", choices=[*RECIPES, []])
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--emitters", type=int, nargs="+", default=[10, 20])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models or SETS:
        model = load_model(name, threads=1)
        for emitters in arguments.emitters:
            found, scores = judged(model, name, emitters, arguments.frames)
            bins = found.groupby(np.digitize(found.probability, EDGES))
            table = bins.agg(said=("probability", "mean"), true=("right", "mean"), number=("right", "size"))
            apart = float((np.abs(table.said - table.true) * table.number).sum() / table.number.sum())
            plain, robust = scores.std(), 1.4826 * (scores - scores.median()).abs().median()
            print(f"{name}, {emitters} emitters in each of {arguments.frames} frames")
            print(table.round(3).to_string(index=False))
            print(
                f"  probability off by {apart:.3f}; SD of z-scores x, y, z {np.round(plain, 2).tolist()}, "
                f"robust {np.round(robust, 2).tolist()}\n",
                flush=True,
            )


if __name__ == "__main__":
    main()
