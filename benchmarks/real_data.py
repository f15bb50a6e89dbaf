"""The shipped models on real microscope images, beside the published networks' localizations.

    python benchmarks/real_data.py [--refine] [--data ../shared/data] [--only NAME]

For every image: number of localizations of ours and of the published network, how many agree within 250 nm after
removing one global shift, and the explained signal of both tables, re-rendered with the calibration of our model
(photons refitted, bilinear background).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from smlm_bridge.calibration import Calibration
from smlm_bridge.evaluate import match
from smlm_bridge.frames import in_blocks
from smlm_bridge.io.images import open_frames
from smlm_bridge.io.model import load_model
from smlm_bridge.io.thunderstorm import read_table
from smlm_bridge.localize import localize_work
from smlm_bridge.model import Model
from smlm_bridge.multi.work import refined, refiner_of
from smlm_bridge.rerender import Rerendered, explained_signal, rerender_frame

HERE = Path(__file__).parent
IMAGES = {
    "telomeres_tetrapod": ("telomeres_fixed/tetrapod.tif", "telomeres_fixed_tetrapod_edof.csv"),
    "tetrapod_storm": ("storm_tetrapod/frames.tif", "storm_tetrapod_frames.csv"),
}


def agreement(
    ours: pd.DataFrame, theirs: pd.DataFrame, *, radius_nm: float = 250.0
) -> tuple[int, np.ndarray, np.ndarray]:
    """Pairs within ``radius_nm`` after removing one global shift, the shift, and the RMS of the pairs.

    The shift (up to 1.5 um: what tilt and defocus of a retrieved pupil mean is a matter of convention) is the
    difference of two localizations that most other differences agree with.
    """
    axes = ["x_nm", "y_nm", "z_nm"]
    differences = np.concatenate(
        [
            (
                ours[ours.frame == k][axes].to_numpy()[:, None] - theirs[theirs.frame == k][axes].to_numpy()
            ).reshape(-1, 3)
            for k in sorted(set(ours.frame))
        ]
    )
    tree = cKDTree(differences[np.abs(differences).max(1) < 1500.0])
    votes = tree.query_ball_point(tree.data, 150.0, return_length=True)
    shift = np.median(tree.data[tree.query_ball_point(tree.data[votes.argmax()], 150.0)], axis=0)
    moved = ours.assign(**{axis: ours[axis] - s for axis, s in zip(axes, shift, strict=True)})
    pairs = match(moved, theirs, radius_nm=radius_nm)
    difference = moved[axes].to_numpy()[pairs.loc_index] - theirs[axes].to_numpy()[pairs.truth_index]
    return len(difference), shift, np.sqrt((difference**2).mean(0))


def rerendered(frames: np.ndarray, table: pd.DataFrame, calibration: Calibration) -> Iterator[Rerendered]:
    """Every frame of (T, H, W) photo-electrons rendered back."""
    psf = calibration.psf()
    for index, frame in enumerate(frames):
        xyz = np.array(table[table.frame == index][["x_nm", "y_nm", "z_nm"]], float)
        xyz[:, :2] = calibration.optics.seen_at(xyz[:, :2])
        yield rerender_frame(frame, xyz, psf)


def compare(name: str, model: Model, data: Path, *, frames: int = 25, refine: bool = False) -> str:
    """What is printed for one image."""
    image, reference = IMAGES[name]
    calibration = model.info.calibration
    work = localize_work(model)
    if refine:
        work = refined(work, refiner_of(calibration, ranges=model.info.ranges), calibration.camera)
    with open_frames([data / image]) as source:
        ours = pd.concat([b.table for b in in_blocks(source, work)], ignore_index=True)
        counts = source.read(0, min(source.n_frames, frames))[:, 0]
    theirs = read_table(data / "reference" / reference)
    pairs, shift, rms = agreement(ours, theirs)
    moved = theirs.assign(
        **{axis: theirs[axis] + s for axis, s in zip(("x_nm", "y_nm", "z_nm"), shift, strict=True)}
    )
    photons = calibration.camera.to_photons(counts)
    # A fair comparison takes as many: the most probable ones.
    tables = (ours, moved, ours.nlargest(len(theirs), "probability"))
    explained = [explained_signal(list(rerendered(photons, table, calibration))) for table in tables]
    return (
        f"{image}: {len(ours)} localizations, published network {len(theirs)}, {pairs} agree\n"
        f"  shift {np.round(shift)} nm, RMS of the pairs {np.round(rms)} nm\n"
        f"  explained signal: ours {explained[0]:.4f}, theirs (shifted) {explained[1]:.4f}; as many of "
        f"ours, the most probable, {explained[2]:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--only", choices=sorted(IMAGES))
    parser.add_argument("--refine", action="store_true", help="as localize --refine")
    parser.add_argument("--model", help="a model file instead of the shipped one (with --only)")
    parser.add_argument("--frames", type=int, default=25, help="re-render at most this many frames")
    arguments = parser.parse_args()
    for name in IMAGES if arguments.only is None else [arguments.only]:
        model = load_model(arguments.model or name, threads=2)
        print(compare(name, model, arguments.data, frames=arguments.frames, refine=arguments.refine))


if __name__ == "__main__":
    main()
