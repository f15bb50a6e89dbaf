"""Draw ``docs/images/path.png``, the picture in the README, from a shipped model and its sample.

Everything in it is simulated by this project: python docs/make_path_picture.py
"""

import io
from pathlib import Path
from typing import Any

import click
import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.crlb import crlb_table
from smlm_bridge.io.images import open_frames
from smlm_bridge.io.model import load_model
from smlm_bridge.localize import LocalizeOptions, localize_frames

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "images" / "path.png"
PHOTONS, BACKGROUND = 20_000.0, 25.0
SLICES, COLUMNS, SLICE_PX = 10, 5, 51
WINDOW_PX = 81

GREY, PHASE, HEIGHT = (
    colormaps[name].resampled(n) for name, n in (("gray", 32), ("twilight", 64), ("turbo", 32))
)

Pair = tuple[float, float]


@click.command()
@click.option("--model", default="tetrapod_telomere", show_default=True)
@click.option("--frames", type=click.Path(path_type=Path), default=None, help="Absent: the model's sample.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=TARGET, show_default=True)
def main(model: str, frames: Path | None, output: Path) -> None:
    """Draw the picture."""
    matplotlib.rcParams.update({"font.size": 10, "font.family": "DejaVu Sans"})
    network = load_model(model)
    known = network.info.calibration
    with open_frames(frames or ROOT / "models" / model / "sample.tif") as source:
        counts = source.read(0, 1)
    table = localize_frames(counts, network, camera=known.camera, options=LocalizeOptions())
    figure = Figure(figsize=(12.4, 6.2), facecolor="white")
    _slices(figure.add_axes((0.02, 0.56, 0.27, 0.34)), known)
    _pupil(figure.add_axes((0.40, 0.55, 0.17, 0.34)), known)
    _bound(figure.add_axes((0.70, 0.60, 0.28, 0.29)), known)
    _frame(figure.add_axes((0.02, 0.02, 0.20, 0.40)), counts[0, 0], known)
    _positions(figure.add_axes((0.34, 0.02, 0.20, 0.40)), counts[0, 0], table, known)
    _table(figure.add_axes((0.62, 0.02, 0.36, 0.40)), table)
    for verb, start, end in (
        ("calibrate", (0.305, 0.72), (0.395, 0.72)),
        ("crlb", (0.585, 0.72), (0.665, 0.72)),
        ("localize", (0.235, 0.22), (0.325, 0.22)),
        ("", (0.595, 0.22), (0.625, 0.22)),
    ):
        _arrow(figure, verb, start, end)
    _arrow(figure, "train", (0.395, 0.60), (0.28, 0.29), at=(0.31, 0.46))
    output.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png")
    # A palette is enough for these colour maps, and a third of the size.
    Image.open(buffer).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE).save(
        output, optimize=True
    )


def _slices(axes: Axes, known: Calibration) -> None:
    """A pile of noisy images of one bead, as slices of a scan."""
    generator = torch.Generator().manual_seed(1)
    optics = known.optics
    height_nm = torch.linspace(*known.z_range_nm, SLICES)
    centre = torch.full_like(height_nm, SLICE_PX / 2 * optics.pixel_nm)
    fraction = known.psf().images(torch.stack([centre, centre, height_nm], 1), (SLICE_PX, SLICE_PX))
    counts = Camera().sample(PHOTONS * fraction + BACKGROUND, generator).numpy()
    tiles = [np.pad(image, 1, constant_values=np.nan) for image in counts]
    rows = [np.hstack(tiles[first : first + COLUMNS]) for first in range(0, SLICES, COLUMNS)]
    axes.imshow(np.vstack(rows), cmap=GREY, vmin=np.percentile(counts, 1), vmax=np.percentile(counts, 99.9))
    axes.set_title("bead stack (.tif)")
    axes.axis("off")


def _pupil(axes: Axes, known: Calibration) -> None:
    assert known.pupil is not None
    rho = known.pupil.rho_axis
    outside = np.hypot(rho[:, None], rho[None, :]) > 1
    phase = np.ma.masked_array(np.angle(np.exp(1j * known.pupil.phase_rad)), outside)
    edge = abs(rho[0])
    axes.imshow(phase, cmap=PHASE, extent=(-edge, edge, edge, -edge), interpolation="nearest")
    axes.set(xlim=(-1.05, 1.05), ylim=(1.05, -1.05), title="calibration (.psf.h5)")
    axes.axis("off")


def _bound(axes: Axes, known: Calibration) -> None:
    low, high = known.z_range_nm
    inner = np.linspace(low, high, 43)[1:-1]
    table = crlb_table(
        known.psf(dtype=torch.float64),
        known.camera,
        z_nm=inner.tolist(),
        photons=PHOTONS,
        background=BACKGROUND,
        size_px=WINDOW_PX,
    )
    for name, colour in zip("xyz", ("#0072b2", "#009e73", "#d55e00"), strict=True):
        axes.plot(inner / 1000, table[f"sigma_{name}_nm"], color=colour, label=f"σ {name}")
    axes.set(xlabel="z [µm]", ylabel="nm", ylim=(0, None), xlim=(inner[0] / 1000, inner[-1] / 1000))
    axes.set_title(f"best possible precision\n({PHOTONS:.0f} photons, background {BACKGROUND:.0f} per pixel)")
    axes.legend(frameon=False, ncols=3, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)


def _frame(axes: Axes, frame: NDArray[Any], known: Calibration) -> None:
    height, width = (n * known.optics.pixel_nm / 1000 for n in frame.shape)
    low, high = np.percentile(frame, (1, 99.8))
    axes.imshow(frame, cmap=GREY, extent=(0, width, height, 0), vmin=low, vmax=high)
    axes.set_title("raw frames (.tif)")
    axes.axis("off")


def _positions(axes: Axes, frame: NDArray[Any], table: pd.DataFrame, known: Calibration) -> None:
    _frame(axes, frame, known)
    x, y, z = (table[name] / 1000 for name in ("x_nm", "y_nm", "z_nm"))
    dots = axes.scatter(x, y, c=z, s=42, cmap=HEIGHT, edgecolor="w")
    axes.set_title("localizations")
    axes.figure.colorbar(
        dots, cax=axes.inset_axes((1.03, 0.0, 0.05, 1.0)), label="z [µm]", ticks=MaxNLocator(4, integer=True)
    )


def _table(axes: Axes, table: pd.DataFrame) -> None:
    shown = table.head(6)
    columns: dict[str, Any] = {
        "x [nm]": shown["x_nm"],
        "y [nm]": shown["y_nm"],
        "z [nm]": shown["z_nm"],
        "photons": shown["photons"],
        "σ x": shown["uncertainty_x_nm"],
        "σ z": shown["uncertainty_z_nm"],
    }
    text = [[f"{value:.0f}" for value in row] for row in zip(*columns.values(), strict=True)]
    text.append(["…"] * len(columns))
    axes.axis("off")
    axes.set_title("ThunderSTORM table (.csv)")
    cells = axes.table(text, colLabels=list(columns), loc="center", cellLoc="right", edges="horizontal")
    cells.scale(1.0, 1.5)


def _arrow(figure: Figure, verb: str, start: Pair, end: Pair, *, at: Pair | None = None) -> None:
    """An arrow in fractions of the figure, with the name of the verb above it or ``at`` a point."""
    arrow = FancyArrowPatch(
        start, end, transform=figure.transFigure, arrowstyle="-|>", mutation_scale=14, color="#8a3d00"
    )
    figure.add_artist(arrow)
    x, y = at or ((start[0] + end[0]) / 2, start[1] + 0.02)
    figure.text(x, y, verb, ha="center", va="bottom", family="DejaVu Sans Mono", color="#8a3d00")


if __name__ == "__main__":
    main()
