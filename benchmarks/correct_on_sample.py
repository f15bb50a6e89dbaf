"""Calibrations of the published pairs on a real cell: from bead stacks or designed masks, corrected on its image.

    python benchmarks/correct_on_sample.py [tetrapod_edof crlb learned] [--runs runs] [--data ../shared/data]
                                           [--picture FILE]

A channel with a bead stack is calibrated on it; another is the designed mask in a vectorial microscope behind an
analyser along y, as the bead stacks of the same microscope have it. The image of the cell is localized by the
shipped network of the published simulator (which never saw a real image), the pair is corrected on the same image
by ``rerender --correct``, and the image is localized again with ``--refine``. Printed are the explained signal of
both channels and the number of localizations at every stage, and the published network's number. ``--picture``
draws data and residuals of the last pair. Steps that have left their files are skipped.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tifffile

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.io.calibration import load_calibration, load_channels, save_calibration
from smlm_bridge.pair import PairCalibration

ROOT = Path(__file__).parents[1]
BASELINE, BLUR_NM, Z_NM = 200.0, 90.0, (500.0, 4500.0)


@dataclass(frozen=True)
class Channels:
    """The images of a pair's channels, the bead stacks of those that have one, and the focus in the cell."""

    images: tuple[str, str]
    beads: tuple[str | None, str | None]
    focus_nm: float


PAIRS = {
    "tetrapod_edof": Channels(("tetrapod", "edof"), ("tetrapod", "edof"), 3150.0),
    "crlb": Channels(("crlb1", "crlb2"), (None, None), 3150.0),
    "learned": Channels(("learned1", "learned2"), ("learned1", None), 3000.0),
}


def bridge(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "smlm_bridge", *map(str, words), "--overwrite"], check=True)


def designed(channel: Calibration) -> Calibration:
    """The mask of a simulated channel in the real microscope, as far as that is known."""
    optics = replace(
        channel.optics, model="vectorial", supercritical=True, pixel_integration=True, analyser_deg=90.0
    )
    return replace(channel, optics=optics, blur_nm=BLUR_NM)


class Sample:
    """The image of a pair, and the files on the way."""

    def __init__(self, name: str, runs: Path, data: Path) -> None:
        self.name, self._runs, self._data = name, runs, data
        self.frames = [data / "telomeres_fixed" / f"{image}.tif" for image in PAIRS[name].images]
        self.published = len(pd.read_csv(data / "reference" / f"telomeres_fixed_{name}.csv"))

    def file(self, end: str) -> Path:
        return self._runs / f"telomeres_{self.name}.{end}"

    def start(self) -> Path:
        """The pair as beads and masks have it."""
        pair = self.file("start.psf.h5")
        if not pair.exists():
            known = load_channels(f"pair_{self.name}")
            assert isinstance(known, PairCalibration)
            first, second = (self._channel(i, channel) for i, channel in enumerate(known.channels))
            save_calibration(pair, replace(known, first=first, second=second))
        return pair

    def _channel(self, number: int, simulated: Calibration) -> Calibration:
        beads = PAIRS[self.name].beads[number]
        if beads is None:
            channel = designed(simulated)
        else:
            file = self.file(f"{beads}.psf.h5")
            setup = ROOT / "models" / "telomeres_tetrapod" / "setup.toml"
            stack = self._data / "beads" / f"{beads}.tif"
            bridge("calibrate", stack, "-o", file, "--z-step-nm", -100, "--seed", 1, "--setup", setup)
            channel = load_calibration(file)
        optics = replace(channel.optics, focus_nm=PAIRS[self.name].focus_nm)
        return replace(channel, optics=optics, camera=Camera(offset=BASELINE), z_range_nm=Z_NM)

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


def corrected(name: str, *, runs: Path, data: Path) -> Path:
    """The calibration of a pair in the cell, made if it is not there."""
    sample = Sample(name, runs, data)
    start = sample.start()
    return sample.corrected("corrected", sample.localized("network", start, refine=False), start)


def run(sample: Sample) -> None:
    """Every stage of one pair; prints a line each."""
    print(f"{sample.name}: published network {sample.published} localizations", flush=True)
    start = sample.start()
    found = sample.localized("network", start, refine=False)
    better = sample.corrected("corrected", found, start)
    refined = sample.localized("refined", better, refine=True)
    stages = (
        ("start, network", found, start),
        ("corrected, network", found, better),
        ("corrected, refined", refined, better),
    )
    for what, table, calibration in stages:
        explained = sample.explained(what.replace(", ", "-"), table, calibration)
        count = len(pd.read_csv(table))
        print(
            f"  {what:20} explained {explained[0]:.4f} {explained[1]:.4f}, {count} localizations", flush=True
        )


def draw(sample: Sample, picture: Path) -> None:
    """Data, and what the first and the last stage leave, on one scale of each channel."""
    stages = ("start-network", "corrected-refined")
    left = [tifffile.imread(sample.file(f"{stage}.residual.tif")).reshape(2, *_SHAPE) for stage in stages]
    figure, axes = plt.subplots(2, 3, figsize=(9, 6.2), layout="constrained")
    for channel, row in enumerate(axes):
        data = tifffile.imread(sample.frames[channel]).astype(float)
        top = np.percentile(data, 99.7) - np.median(data)
        images = [data - np.median(data), *(part[channel] for part in left)]
        titles = ["data", "residual, beads or masks", "residual, corrected"]
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
    parser.add_argument("names", nargs="*", default=list(PAIRS), choices=[*PAIRS, []])
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
