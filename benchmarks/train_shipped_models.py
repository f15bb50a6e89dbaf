"""Train, score and package the shipped models, by the command line's own verbs.

    python benchmarks/train_shipped_models.py [NAME ...] [--runs runs] [--data ../shared/data] [--threads 2]
                                              [--minutes M] [--calibrations]

Every step that has left its file is skipped and a training goes on from its checkpoint, so the command can be
interrupted and repeated. ``--minutes`` ends trainings by time instead of by number of samples; ``--calibrations``
only makes calibrations, and prints how well those of the pairs explain the published frames with one emitter (see
explained_pairs.py). What comes out under models/NAME: weights.onnx, card.md, sample.tif and its truth.csv.
A model that is not shipped yet has its setup and ranges under benchmarks/NAME; they move to models/NAME with it.
"""

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from correct_on_sample import corrected
from explained_pairs import explained
from real_data import IMAGES, compare
from score_simulated import score

from smlm_bridge.calibration import Calibration
from smlm_bridge.io.calibration import save_calibration
from smlm_bridge.io.model import load_model
from smlm_bridge.io.setup import load_setup
from smlm_bridge.optics.pupil import Pupil

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Recipe:
    """How a model is made; microscope and ranges stand in models/NAME/{setup,ranges}.toml.

    ``source`` is a mask or a bead stack below the data folder; ``make`` the verb and options that turn it into a
    calibration; without a source the pupil has the Zernike coefficients ``zernike_rad``. ``sample`` are the
    options of the frames that are shipped with the model, ``system`` those of the learned system. ``masks`` are
    the names of the channels' masks in a file of two, which are joined with ``photon_ratio``; ``cell`` is the pair
    that is corrected on a real cell instead (see correct_on_sample.py); ``network`` are the sizes of the network.
    """

    purpose: str
    source: str
    make: tuple[str, ...]
    samples: int
    sample: tuple[str, ...]
    start: str | None = None
    system: tuple[str, ...] = ()
    zernike_rad: tuple[tuple[int, float], ...] = ()
    z_range_nm: tuple[float, float] = (0.0, 0.0)
    masks: tuple[str, ...] = ()
    photon_ratio: float = 1.0
    cell: str = ""
    network: str = ""


_OF_PAIRS = "widths = [32, 64, 96]\nbottom_dilations = [1, 2, 3]\nlearning_rate = 2e-3\n"


def pair(
    name: str, what: str, z_nm: str, blur_nm: str, *, samples: int = 24_000, start: str | None = "pair_crlb"
) -> Recipe:
    """The recipe of a pair of the published simulator of DeepNebulae."""
    return Recipe(
        f"Simulated telomeres through two channels, {what}: the published simulator of DeepNebulae",
        f"masks/{name}.mat",
        ("convert", "--z-nm", z_nm, "--blur-nm", blur_nm),
        samples,
        ("--emitters", "12", "--photons", "40000:230000", "--background", "60:200", "--z-nm", z_nm),
        start=start,
        masks=("mask1", "mask2"),
        photon_ratio=0.85,
        network=_OF_PAIRS,
    )


def cell(name: str, what: str) -> Recipe:
    """The recipe of a pair of DeepNebulae for real cells."""
    return Recipe(
        f"Real telomeres through two channels, {what}, corrected on a cell",
        "",
        (),
        14_000,
        ("--emitters", "12", "--photons", "140000:400000", "--background", "60:200", "--z-nm", "1000:4000"),
        start=f"pair_{name}",
        cell=name,
        network=_OF_PAIRS,
    )


RECIPES = {
    "tetrapod_telomere": Recipe(
        "Simulated telomeres with a Tetrapod PSF, z 2 to 6 um: the published simulator of DeepSTORM3D's demo 3",
        "masks/tetrapod_telomere.mat",
        ("convert", "--z-nm", "2000:6000", "--blur-nm", "75"),
        52_000,
        ("--emitters", "12", "--photons", "10000:60000", "--background", "60:110", "--z-nm", "2000:6000"),
    ),
    "learned_telomere": Recipe(
        "Simulated telomeres with a learned PSF, z 2 to 6 um: the published simulator of DeepSTORM3D's demo 5",
        "masks/learned_telomere.mat",
        ("convert", "--z-nm", "2000:6000", "--blur-nm", "75"),
        30_000,
        ("--emitters", "12", "--photons", "10000:60000", "--background", "60:110", "--z-nm", "2000:6000"),
        start="tetrapod_telomere",
    ),
    "tetrapod_storm": Recipe(
        "Simulated STORM frames with a Tetrapod PSF, z 0 to 4 um: the published simulator of DeepSTORM3D's demo 2",
        "masks/tetrapod_storm.mat",
        ("convert", "--z-nm", "0:4000", "--blur-nm", "100"),
        18_000,
        ("--emitters", "10", "--photons", "5000:20000", "--background", "30:40", "--z-nm", "0:4000"),
    ),
    "telomeres_tetrapod": Recipe(
        "Real cells through the Tetrapod whose bead stack is beads/tetrapod.tif, focus at 3.15 um",
        "beads/tetrapod.tif",
        ("calibrate", "--z-step-nm", "-100", "--seed", "1"),
        24_000,
        ("--emitters", "12", "--photons", "20000:200000", "--background", "300:500", "--z-nm", "1000:4000"),
        start="tetrapod_telomere",
    ),
    "single_astigmatism": Recipe(
        "Single emitters through an oil objective (NA 1.49) on water with 0.8 rad of astigmatism, z 0 to 700 nm",
        "",
        (),
        2_000_000,
        (
            "--emitters",
            "4",
            "--clear-nm",
            "900",
            "--photons",
            "2000:8000",
            "--background",
            "10:30",
            "--z-nm",
            "50:650",
        ),
        system=("--system", "single", "--box", "13"),
        zernike_rad=((6, 0.8),),
        z_range_nm=(0.0, 800.0),
    ),
    "pair_crlb": pair(
        "pair_crlb", "optimised for the bound, z 1 to 4.5 um", "1000:4500", "78", samples=36_000, start=None
    ),
    "pair_tetrapod_edof": pair("pair_tetrapod_edof", "Tetrapod and EDOF, z 1 to 4.5 um", "1000:4500", "78"),
    "pair_learned": pair("pair_learned", "learned end to end, z 1 to 4.5 um", "1000:4500", "78"),
    "pair_biplane": pair("pair_biplane", "biplane, z 0 to 4 um", "0:4000", "68", samples=60_000),
    "telomeres_tetrapod_edof": cell("tetrapod_edof", "Tetrapod and EDOF, both from bead stacks"),
    "telomeres_crlb": cell("crlb", "optimised for the bound, from the designed masks"),
    "telomeres_learned": cell("learned", "learned end to end, from a bead stack and a designed mask"),
}


def bridge(*words: object) -> None:
    """Run a verb of smlm-bridge; its progress goes to our stderr."""
    subprocess.run([sys.executable, "-m", "smlm_bridge", *map(str, words)], check=True)


def designed(recipe: Recipe, folder: Path) -> Calibration:
    """The calibration of a pupil that is written down, not measured."""
    setup = load_setup(folder / "setup.toml")
    assert setup.optics is not None
    assert setup.camera is not None
    pupil = Pupil.flat(64, dict(recipe.zernike_rad))
    made_by = {"made_by": "benchmarks/train_shipped_models.py"}
    return Calibration(
        setup.optics, pupil, camera=setup.camera, z_range_nm=recipe.z_range_nm, provenance=made_by
    )


def calibrated(name: str, recipe: Recipe, folder: Path, *, runs: Path, data: Path, threads: int) -> Path:
    """The file of the calibration, made if it is not there."""
    if recipe.cell:
        return corrected(recipe.cell, runs=runs, data=data)
    calibration = runs / f"{name}.psf.h5"
    if calibration.exists():
        return calibration
    if not recipe.source:
        save_calibration(calibration, designed(recipe, folder))
        return calibration
    verb, *options = recipe.make
    setup = (*options, "--setup", folder / "setup.toml", "--threads", threads)
    source = data / recipe.source
    if verb == "calibrate":
        bridge(verb, source, "-o", calibration, *setup)
    elif not recipe.masks:
        bridge(verb, source, calibration, *setup)
    else:
        parts = [runs / f"{name}.{mask}.psf.h5" for mask in recipe.masks]
        for mask, part in zip(recipe.masks, parts, strict=True):
            bridge(verb, source, part, *setup, "--variable", mask, "--overwrite")
        bridge("join", *parts, "-o", calibration, "--photon-ratio", recipe.photon_ratio)
    return calibration


def build(name: str, *, runs: Path, data: Path, threads: int, minutes: float | None) -> None:
    """One model, from its recipe to its folder."""
    recipe, folder = RECIPES[name], ROOT / "models" / name
    model = runs / f"{name}.onnx"
    given = folder if folder.exists() else Path(__file__).parent / name
    calibration = calibrated(name, recipe, given, runs=runs, data=data, threads=threads)
    if not model.exists():
        resume = ("--resume",) if model.with_suffix(".checkpoint").exists() else ()
        start = () if recipe.start is None else ("--from", recipe.start)
        sizes: tuple[object, ...] = ()
        if recipe.network:
            (runs / f"{name}.network.toml").write_text(recipe.network, encoding="utf-8")
            sizes = ("--network", runs / f"{name}.network.toml")
        budget = ("--samples", recipe.samples) if minutes is None else ("--minutes", minutes)
        how = ("--ranges", given / "ranges.toml", "--seed", 1, "--threads", threads)
        what = (*recipe.system, *budget, *how, *resume, *start, *sizes)
        bridge("train", calibration, "-o", model, "--purpose", recipe.purpose, *what)
    if not folder.exists():
        shutil.copytree(given, folder)
    shutil.copyfile(model, folder / "weights.onnx")
    sample = ("--frames", 4, "--size-px", "121x121", "--seed", 1, "--overwrite", *recipe.sample)
    bridge("simulate", calibration, "-o", folder / "sample.tif", "--truth", folder / "truth.csv", *sample)
    (folder / "card.md").write_text(card(name, model.with_suffix(".card.md"), data), encoding="utf-8")


def card(name: str, written: Path, data: Path) -> str:
    """The card that ``train`` wrote, and the scores on the published frames where the model has such a set."""
    text = written.read_text(encoding="utf-8").replace(f"--model {name}.onnx", f"--model {name}")
    text = text.partition("\n## Train it again")[0]  # below it says so with the recipe
    published = pd.read_csv(Path(__file__).parent / "published_networks.csv", comment="#")
    if name in set(published.set):
        table = score(
            load_model(name, threads=1),
            name,
            data / "simulated",
            published,
        )
        text += (
            "\n## Scores on the published simulator's frames\n\n"
            "Printed by `python benchmarks/score_simulated.py`; 'theirs' is the published network, over all "
            "frames of each set, ours over the first half. Jaccard in %, RMSE in nm over pairs within 150 nm."
            "\n\n```text\n"
            + table.drop(columns="CPU s/frame").to_string(index=False, float_format="%.1f")
            + "\n```\n"
        )
    if name in IMAGES:
        text += (
            "\n## On the real images\n\nPrinted by `python benchmarks/real_data.py`; the published network's "
            "localizations are no ground truth.\n\n```text\n"
            + compare(name, load_model(name), data)
            + "\n```\n"
        )
    return text + f"\n## Train it again\n\n    python benchmarks/train_shipped_models.py {name}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*RECIPES, []])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--calibrations", action="store_true")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    where: dict[str, Any] = {
        "runs": arguments.runs,
        "data": arguments.data,
        "threads": arguments.threads,
    }
    for name in arguments.names or RECIPES:
        if not arguments.calibrations:
            build(name, minutes=arguments.minutes, **where)
            continue
        folder = ROOT / "models" / name
        given = folder if folder.exists() else Path(__file__).parent / name
        made = calibrated(name, RECIPES[name], given, **where)
        if RECIPES[name].masks:
            print(explained(name, made, arguments.data / "simulated"))


if __name__ == "__main__":
    main()
