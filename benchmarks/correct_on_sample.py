"""Calibrations of the published pairs on a real cell: from bead stacks or designed masks, corrected on its image.

    python benchmarks/correct_on_sample.py [tetrapod_edof crlb learned] [--runs runs] [--data ../shared/data]

A channel with a bead stack is calibrated on it; another is the designed mask in a vectorial microscope behind an
analyser along y, as the bead stacks of the same microscope have it. The image of the cell is localized by the
shipped network of the published simulator (which never saw a real image), and the pair is corrected on the same
image by ``rerender --correct``; where ROUNDS is above 1, again from the table that ``localize --refine`` makes
with what was corrected. The shipped models were made with one round. Printed are the explained signal of both
channels and the number of localizations before and after every round, and the published network's number. Steps
that have left their files are skipped.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.io.calibration import load_calibration, load_channels, save_calibration
from smlm_bridge.io.thunderstorm import read_table
from smlm_bridge.pair import PairCalibration

ROOT = Path(__file__).parents[1]
BASELINE, BLUR_NM, Z_NM = 200.0, 90.0, (500.0, 4500.0)
ROUNDS = 1


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
        channel.optics,
        model="vectorial",
        supercritical=True,
        pixel_integration=True,
        analyser_deg=90.0,
        field_scale=1.0,
    )
    return replace(channel, optics=optics, blur_nm=BLUR_NM)


class Cell:
    """The image of the cell through one pair, and the files that are made of it, which begin with ``stem``."""

    def __init__(self, name: str, stem: str, *, runs: Path, data: Path) -> None:
        self.name, self._begin = name, runs / f"{stem}_{name}"
        self._data = data
        self.frames = [data / "telomeres_fixed" / f"{image}.tif" for image in PAIRS[name].images]
        self.reference = read_table(data / "reference" / f"telomeres_fixed_{name}.csv")

    def file(self, end: str) -> Path:
        return self._begin.with_name(f"{self._begin.name}.{end}")

    def localized(self, end: str, model: str, *how: object) -> Path:
        """The table of a model."""
        table = self.file(end)
        if not table.exists():
            bridge(
                "localize", self.frames[0], "-o", table, "--model", model, "--channel2", self.frames[1], *how
            )
        return table

    def explained(self, table: Path, calibration: str | Path, *written: object) -> list[float]:
        """Of both channels."""
        words = ("rerender", table, self.frames[0], calibration, "--channel2", self.frames[1], *written)
        told = subprocess.run(
            [sys.executable, "-m", "smlm_bridge", *map(str, words), "--json", "--overwrite"],
            check=True,
            stdout=subprocess.PIPE,
        )
        return list(json.loads(told.stdout)["explained_signal"])

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

    def rounds(self) -> Iterator[tuple[Path, Path]]:
        """A table of the cell and the calibration that it was made with, better every time."""
        calibration = self.start()
        for count in range(ROUNDS + 1):
            how = ("--refine",) if count else ()  # a refinement believes the PSF, the network less so
            table = self.localized(f"{count}.csv", f"pair_{self.name}", "--calibration", calibration, *how)
            yield table, calibration
            if count < ROUNDS:
                calibration = self._corrected(f"{count + 1}.psf.h5", table, calibration)

    def _corrected(self, end: str, table: Path, calibration: Path) -> Path:
        better = self.file(end)
        if not better.exists():
            words = ("rerender", table, self.frames[0], calibration, "--channel2", self.frames[1])
            bridge(*words, "--correct", better)
        return better


def corrected(name: str, *, runs: Path, data: Path) -> Path:
    """The calibration of a pair in the cell after the last round, made if it is not there."""
    cell = Cell(name, "telomeres", runs=runs, data=data)
    return list(cell.rounds())[-1][1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*PAIRS, []])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PAIRS:
        cell = Cell(name, "telomeres", runs=arguments.runs, data=arguments.data)
        print(f"{name}: published network {len(cell.reference)} localizations", flush=True)
        for count, (table, calibration) in enumerate(cell.rounds()):
            first, second = cell.explained(table, calibration)
            print(
                f"  after {count} corrections: explained {first:.4f} {second:.4f}, {len(read_table(table))} "
                "localizations",
                flush=True,
            )


if __name__ == "__main__":
    main()
