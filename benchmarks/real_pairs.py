"""One real cell through three pairs of PSFs, each localized by its shipped model, beside the published networks.

    python benchmarks/real_pairs.py [--runs runs] [--data ../shared/data] [--network] [--picture FILE]

For each pair the explained signal of both channels and the number of localizations, ours and the published
network's; then how well the tables of two pairs agree: pairs within 150 nm after removing one global shift, as a
share of all emitters in either table, and the RMS of their differences. ``--network`` leaves out ``--refine``;
``--picture`` draws data, model and residual of every channel, each channel on one scale. Tables that are in
``runs`` are kept.
"""

import argparse
import io
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tifffile
from correct_on_sample import PAIRS, ROOT, Cell
from PIL import Image
from real_data import agreement

from smlm_bridge.io.thunderstorm import read_table

RADIUS_NM = 150.0
AXES = ["x", "y", "z"]


def agreements(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """A line for every two of the tables."""
    lines = []
    for first, second in combinations(tables, 2):
        a, b = tables[first], tables[second]
        pairs, shift, rms = agreement(a, b, radius_nm=RADIUS_NM)
        share = pairs / (len(a) + len(b) - pairs)
        errors = ", ".join(f"{axis} {value:.0f}" for axis, value in zip(AXES, rms, strict=True))
        lines.append(
            f"  {first} - {second}: {share:.2f} ({pairs} of {len(a)} and {len(b)}), RMS nm {errors}, "
            f"shift {np.round(shift)} nm"
        )
    return lines


def draw(cells: list[Cell], picture: Path) -> None:
    """A row for every pair: of each channel data without its background level, model, and residual."""
    figure, axes = plt.subplots(len(cells), 6, figsize=(12, 2.3 * len(cells)), layout="constrained")
    for cell, rows in zip(cells, axes.reshape(len(cells), 2, 3), strict=True):
        model, residual = (tifffile.imread(cell.file(f"{end}.tif")) for end in ("model", "residual"))
        for row, file, rendered, left in zip(rows, cell.frames, model, residual, strict=True):
            data = tifffile.imread(file).astype(float)
            level = np.percentile(data, 5)
            top = np.percentile(data, 99.7) - level
            images = [data - level, rendered - np.percentile(rendered, 5), left]
            for axis, image, title in zip(row, images, ("data", "model", "residual"), strict=True):
                symmetric = title == "residual"
                axis.imshow(image, cmap="RdBu_r" if symmetric else "gray", vmin=-top * symmetric, vmax=top)
                axis.set_title(f"{file.stem}: {title}", fontsize=8)
                axis.set_axis_off()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=70)
    Image.open(drawn).convert("RGB").quantize(160, Image.Quantize.MAXCOVERAGE).save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--network", action="store_true")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    cells = [Cell(name, "cell", runs=arguments.runs, data=arguments.data) for name in PAIRS]
    tables = {}
    for cell in cells:
        model = f"telomeres_{cell.name}"
        end, how = ("network.csv", ()) if arguments.network else ("refined.csv", ("--refine",))
        table = cell.localized(end, model, *how)
        explained = cell.explained(
            table, model, "-o", cell.file("model.tif"), "--residual", cell.file("residual.tif")
        )
        tables[cell.name] = read_table(table)
        print(
            f"{cell.name}: explained {explained[0]:.4f} {explained[1]:.4f}, {len(tables[cell.name])} "
            f"localizations, published network {len(cell.reference)}",
            flush=True,
        )
    print("Agreement of ours:", *agreements(tables), sep="\n")
    print("Of the published networks:", *agreements({c.name: c.reference for c in cells}), sep="\n")
    if arguments.picture is not None:
        draw(cells, arguments.picture)


if __name__ == "__main__":
    main()
