"""Score models on the simulated sets beside the published networks.

    python benchmarks/score_simulated.py [--methods METHOD ...] [--data ../shared/data/simulated]
                                         [--model NAME_OR_FILE --set SET] [--emitters N ...] [--keep FOLDER]

Methods: network (the default); refined, the network and then all emitters of a frame fitted together (as localize
--refine does); and two without a network, which have the model's calibration only: likelihood, where matching
pursuit proposes emitters and all that overlap are fitted together, and pursuit, fit and subtract, every emitter
fitted alone. Without --model, every shipped model that has a set of its own name is scored, and their mean is
printed at the end. Jaccard in %, RMSE in nm over pairs within 150 nm, CPU seconds a frame on one thread. With
--keep each row is written to a file of its own, and taken from there if it is there. The published figures are
over all frames of each set, ours over the first half, which is what ../shared holds.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from smlm_bridge.cluster.recipe import nothing_found
from smlm_bridge.evaluate import Options, evaluate
from smlm_bridge.frames import Work, in_blocks
from smlm_bridge.io.images import open_frames
from smlm_bridge.io.model import load_model
from smlm_bridge.io.shipped import shipped_names
from smlm_bridge.io.thunderstorm import read_table
from smlm_bridge.localize import localize_work
from smlm_bridge.model import Model, cameras_of
from smlm_bridge.multi.options import RefineOptions
from smlm_bridge.multi.work import refined, refiner_of

HERE = Path(__file__).parent
EMITTERS = (1, 10, 20, 35, 50, 75)
LEAST_PHOTONS = {"tetrapod_storm": 6000.0}
METHODS = ("network", "refined", "likelihood", "pursuit")
COUNTED = ("N", "CPU s/frame")
ROW = ("N", "JI@100", "JI@150", "RMSE xy", "RMSE z", "bias z", "CPU s/frame")
PUBLISHED = ("jaccard_100", "jaccard_150", "rmse_lateral_nm", "rmse_axial_nm")


def work_of(model: Model, method: str) -> Work:
    """What a method does with frames of the cameras of the model's calibration."""
    if method == "network":
        return localize_work(model)
    calibration = model.info.calibration
    options = RefineOptions(group=1) if method == "pursuit" else None
    refiner = refiner_of(calibration, ranges=model.info.ranges, options=options)
    start = localize_work(model) if method == "refined" else nothing_found(calibration.optics)
    return refined(start, refiner, cameras_of(model, None))


def localizations(work: Work, file: Path) -> tuple[pd.DataFrame, float, int]:
    """Table, CPU seconds and number of frames."""
    with open_frames([file]) as source:
        start = time.process_time()
        blocks = list(in_blocks(source, work))
        return (
            pd.concat([b.table for b in blocks], ignore_index=True),
            time.process_time() - start,
            source.n_frames,
        )


def score(
    model: Model,
    set_name: str,
    data: Path,
    published: pd.DataFrame,
    *,
    method: str = "network",
    densities: Sequence[int] = EMITTERS,
    keep: Path | None = None,
) -> pd.DataFrame:
    """One row a density."""
    work = work_of(model, method)
    rows = []
    for emitters in densities:
        kept = None if keep is None else keep / f"{set_name}_{method}_N{emitters:03d}.json"
        if kept is not None and kept.exists():
            rows.append(json.loads(kept.read_text(encoding="utf-8")))
            continue
        row = _row(work, data / f"{set_name}_N{emitters:03d}.tif", LEAST_PHOTONS.get(set_name))
        theirs = published[(published.set == set_name) & (published.emitters == emitters)].iloc[0]
        beside = zip(ROW[1:5], PUBLISHED, strict=True)
        rows.append({"N": emitters, **row, **{f"theirs {ours}": theirs[name] for ours, name in beside}})
        if kept is not None:
            kept.write_text(json.dumps(rows[-1], default=float), encoding="utf-8")
    table = pd.DataFrame(rows)
    shown = [name for ours in ROW for name in (ours, f"theirs {ours}") if name in table]
    return table[shown].rename(columns={f"theirs {ours}": f"theirs{' ' * i}" for i, ours in enumerate(ROW)})


def _row(work: Work, file: Path, least: float | None) -> dict[str, float | None]:
    """What is scored of one density; ``least`` photons of an emitter that counts."""
    table, seconds, frames = localizations(work, file)
    truth = read_table(file.with_suffix(".csv"))
    rule: dict[str, object] = {}
    if least is not None:
        table = table[table.photons > least]
        rule = {"min_photons": least, "min_photons_rule": "remove"}
    near, wide = (evaluate(table, truth, options=Options(radius_nm=r, **rule))[1] for r in (100.0, 150.0))
    return {
        "JI@100": 100 * near.jaccard,
        "JI@150": 100 * wide.jaccard,
        "RMSE xy": wide.rmse_lateral_nm,
        "RMSE z": wide.rmse_axial_nm,
        "bias z": None if wide.bias_nm is None else wide.bias_nm[2],
        "CPU s/frame": seconds / frames,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "simulated")
    parser.add_argument("--model", help="a model file or the name of a shipped one")
    parser.add_argument("--set", help="the simulated set; default: the model's name")
    parser.add_argument("--methods", nargs="+", default=METHODS[:1], choices=METHODS)
    parser.add_argument("--emitters", type=int, nargs="+", default=EMITTERS, choices=EMITTERS)
    parser.add_argument("--keep", type=Path, help="folder for what is scored")
    arguments = parser.parse_args()
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    published = pd.read_csv(HERE / "published_networks.csv", comment="#")
    names = [arguments.model] if arguments.model else [n for n in shipped_names() if n in set(published.set)]
    tables: dict[str, list[pd.DataFrame]] = {method: [] for method in arguments.methods}
    for name in names:
        model = load_model(name, threads=1)
        set_name = arguments.set or model.info.name
        samples = model.info.training.get("samples", "?")
        for method in arguments.methods:
            print(f"{set_name}, {method} ({samples} training samples)", flush=True)
            table = score(
                model,
                set_name,
                arguments.data,
                published,
                method=method,
                densities=arguments.emitters,
                keep=arguments.keep,
            )
            print(table.to_string(index=False, float_format="%.2f"), "\n", flush=True)
            tables[method].append(table)
    if len(names) > 1:
        for method, scored in tables.items():
            mean = pd.concat(scored).drop(columns=[*COUNTED]).mean().to_frame().T
            print(f"mean over {len(names)} sets and their densities, {method}")
            print(mean.to_string(index=False, float_format="%.2f"), "\n")


if __name__ == "__main__":
    main()
