"""Correct the masks of the published pairs on the image of a cell, and localize it with what comes out.

    python benchmarks/correct_on_sample.py [crlb learned] [--runs runs] [--data ../shared/data] [--picture FILE]

The calibration is the designed masks in a vectorial microscope behind an analyser along y, as the bead stacks of
the same microscope have it; localized by the shipped network of the published simulator (which never saw a real
image), corrected on the same image by ``rerender --correct``, and localized again with ``--refine``. Printed are
the explained signal of both channels and the number of localizations at every stage, and the published network's
number. ``--picture`` draws data and residuals of the last pair. Steps that have left their files are skipped.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tifffile

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.io.calibration import load_channels, save_calibration
from smlm_bridge.pair import PairCalibration

ROOT = Path(__file__).parents[1]
FOCUS_NM = {"crlb": 3150.0, "learned": 3000.0}
BASELINE, BLUR_NM, Z_NM = 200.0, 90.0, (500.0, 4500.0)


def bridge(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "smlm_bridge", *map(str, words), "--overwrite"], check=True)


def real(channel: Calibration, focus_nm: float) -> Calibration:
    """The mask of a simulated channel in the real microscope, as far as it is known."""
    optics = replace(
        channel.optics,
        model="vectorial",
        supercritical=True,
        pixel_integration=True,
        analyser_deg=90.0,
        focus_nm=focus_nm,
    )
    return replace(channel, optics=optics, camera=Camera(offset=BASELINE), blur_nm=BLUR_NM, z_range_nm=Z_NM)


class Sample:
    """The image of a pair, and the files on the way."""

    def __init__(self, name: str, runs: Path, data: Path) -> None:
        self.name, self._runs = name, runs
        self.frames = [data / "telomeres_fixed" / f"{name}{channel}.tif" for channel in (1, 2)]
        self.published = len(pd.read_csv(data / "reference" / f"telomeres_fixed_{name}.csv"))

    def file(self, end: str) -> Path:
        return self._runs / f"telomeres_{self.name}.{end}"

    def localized(self, stage: str, calibration: Path, *, refine: bool) -> Path:
        table = self.file(f"{stage}.csv")
        if not table.exists():
            how = ("--refine",) if refine else ()
            with_model = (
                "--model",
                f"pair_{self.name}",
                "--calibration",
                calibration,
                "--channel2",
                self.frames[1],
            )
            bridge("localize", self.frames[0], "-o", table, *with_model, *how)
        return table

    def explained(self, stage: str, table: Path, calibration: Path) -> list[float]:
        residual = self.file(f"{stage}.residual.tif")
        words = ("rerender", table, self.frames[0], calibration, "--channel2", self.frames[1])
        told = subprocess.run(
            [
                sys.executable,
                "-m",
                "smlm_bridge",
                *map(str, words),
                "--residual",
                residual,
                "--json",
                "--overwrite",
            ],
            check=True,
            stdout=subprocess.PIPE,
        )
        return list(json.loads(told.stdout)["explained_signal"])

    def corrected(self, stage: str, table: Path, calibration: Path) -> Path:
        better = self.file(f"{stage}.psf.h5")
        if not better.exists():
            bridge(
                "rerender",
                table,
                self.frames[0],
                calibration,
                "--channel2",
                self.frames[1],
                "--correct",
                better,
            )
        return better


def run(sample: Sample) -> None:
    """Every stage of one pair; prints a line each."""
    known = load_channels(f"pair_{sample.name}")
    assert isinstance(known, PairCalibration)
    masks = sample.file("masks.psf.h5")
    focus = FOCUS_NM[sample.name]
    first, second = real(known.first, focus), real(known.second, focus)
    save_calibration(masks, replace(known, first=first, second=second), overwrite=True)
    print(f"{sample.name}: published network {sample.published} localizations", flush=True)
    table = sample.localized("network", masks, refine=False)
    stages = [("masks, network", table, masks)]
    better = sample.corrected("corrected", table, masks)
    stages.append(("corrected, network", table, better))
    table = sample.localized("refined", better, refine=True)
    stages.append(("corrected, refined", table, better))
    again = sample.corrected("again", table, better)
    table = sample.localized("last", again, refine=True)
    stages.append(("corrected again, refined", table, again))
    for what, table, calibration in stages:
        explained = sample.explained(what.replace(", ", "-").replace(" ", "-"), table, calibration)
        count = len(pd.read_csv(table))
        print(
            f"  {what:26} explained {explained[0]:.4f} {explained[1]:.4f}, {count} localizations", flush=True
        )


def draw(sample: Sample, picture: Path) -> None:
    """Data, and what the first and the last stage leave, on one scale of each channel."""
    stages = ("masks-network", "corrected-again-refined")
    left = [tifffile.imread(sample.file(f"{stage}.residual.tif")).reshape(2, *_SHAPE) for stage in stages]
    figure, axes = plt.subplots(2, 3, figsize=(9, 6.2), layout="constrained")
    for channel, row in enumerate(axes):
        data = tifffile.imread(sample.frames[channel]).astype(float)
        top = np.percentile(data, 99.7) - np.median(data)
        images = [data - np.median(data), *(part[channel] for part in left)]
        titles = ["data", "residual, masks as designed", "residual, corrected"]
        for axis, image, title in zip(row, images, titles, strict=True):
            axis.imshow(image, cmap="gray" if axis is row[0] else "RdBu_r", vmin=-top, vmax=top)
            axis.set_title(f"channel {channel + 1}: {title}", fontsize=9)
            axis.set_axis_off()
    figure.savefig(picture, dpi=80)


_SHAPE = (155, 155)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(FOCUS_NM), choices=[*FOCUS_NM, []])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        sample = Sample(name, arguments.runs, arguments.data)
        run(sample)
    if arguments.picture is not None:
        draw(sample, arguments.picture)


if __name__ == "__main__":
    main()
