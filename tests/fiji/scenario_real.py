"""ThunderSTORM against our own implementation: scenario_real.py BACK_END MODE PLUGIN."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from answers import Answers

from smlm_bridge.bridge import engines
from smlm_bridge.bridge.jars import find_thunderstorm
from smlm_bridge.bridge.java import java_class
from smlm_bridge.bridge.modules import Analysis, EllipticalGaussian, IntegratedGaussian
from smlm_bridge.bridge.settings import (
    Calibrating,
    CrossCorrelation,
    Density,
    DriftFile,
    Fiducials,
    Merging,
)
from smlm_bridge.bridge.thunderstorm import ThunderStorm
from smlm_bridge.camera import Camera
from smlm_bridge.post.colocalization import Colocalization, colocalize
from smlm_bridge.post.drift import apply_drift

PIXEL_NM = 100.0
CAMERA = Camera(offset=100.0, e_per_adu=0.5, read_noise_e=1.0)
OWN = engines.Engine()


def movie(draw: np.random.Generator, frames: int = 40, side: int = 64) -> np.ndarray:
    row, column = np.mgrid[:side, :side] + 0.5
    places = draw.uniform(6, side - 6, (40, 2))
    counts = np.empty((frames, side, side), np.uint16)
    for frame in range(frames):
        image = np.full((side, side), 20.0)
        for x, y in places[draw.choice(40, 6, replace=False)]:
            photons = draw.uniform(800, 2500)
            image += (
                photons / (2 * np.pi * 1.3**2) * np.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * 1.3**2))
            )
        counts[frame] = np.clip(draw.poisson(image) / 0.5 + 100 + draw.normal(0, 2, image.shape), 0, 65535)
    return counts


def beads(draw: np.random.Generator) -> np.ndarray:
    row, column = np.mgrid[:64, :64] + 0.5
    heights = np.arange(-400, 401, 20.0)
    stack = np.full((heights.size, 64, 64), 20.0)
    for x, y in ((15.3, 15.7), (48.2, 14.4), (16.1, 49.3), (47.7, 47.2)):
        for index, z in enumerate(heights):
            wide, tall = (1.3 * np.sqrt(1 + ((z + sign * 200) / 400) ** 2) for sign in (-1, 1))
            shape = np.exp(-((column - x) ** 2) / (2 * wide**2) - (row - y) ** 2 / (2 * tall**2))
            stack[index] += 8000 / (2 * np.pi * wide * tall) * shape
    return (draw.poisson(stack) / 0.5 + 100).astype(np.uint16)


def drifting(draw: np.random.Generator, rows: int = 20000) -> pd.DataFrame:
    places = draw.uniform(500, 6000, (1500, 2))
    which = draw.integers(0, 1500, rows)
    frame = np.sort(draw.integers(0, 1000, rows))
    share = frame / 1000
    noise = draw.normal(0, 12, (rows, 2))
    table = {
        "frame": frame,
        "x_nm": places[which, 0] + noise[:, 0] + 200 * share,
        "y_nm": places[which, 1] + noise[:, 1] - 150 * share**2 + 200,
        "photons": draw.uniform(500, 3000, rows),
        "uncertainty_xy_nm": draw.uniform(5, 25, rows),
        "psf_sigma_nm": draw.uniform(120, 140, rows),  # without widths, 1.3 cannot merge
        "background": np.full(rows, 20.0),
        "background_std": np.full(rows, 5.0),
    }
    return pd.DataFrame(table).sort_values(["frame", "x_nm", "y_nm"], ignore_index=True)


def matched(theirs: pd.DataFrame, ours: pd.DataFrame, columns: tuple[str, ...]) -> dict[str, Any]:
    """Numbers of rows, and the largest difference a column where they agree in number."""
    keys = ["frame", "x_nm", "y_nm"]
    a, b = (table.sort_values(keys, ignore_index=True) for table in (theirs, ours))
    found: dict[str, Any] = {"theirs": len(a), "ours": len(b)}
    if len(a) == len(b):
        found |= {name: float(np.abs(a[name] - b[name]).max()) for name in columns}
    return found


def fits(theirs: pd.DataFrame, ours: pd.DataFrame) -> dict[str, Any]:
    """Medians of the differences of fits of the same spots."""
    from scipy.spatial import cKDTree

    def places(table: pd.DataFrame) -> np.ndarray:
        return np.column_stack([table["x_nm"], table["y_nm"], table["frame"] * 1e5])

    distance, index = cKDTree(places(theirs)).query(places(ours))
    near = distance < PIXEL_NM
    difference = np.abs(places(ours)[near] - places(theirs)[index[near]])[:, :2]
    x, y = np.median(difference, axis=0)
    return {"theirs": len(theirs), "ours": len(ours), "matched": int(near.sum()), "x_nm": x, "y_nm": y}


def colocalizations(storm: ThunderStorm, draw: np.random.Generator) -> dict[str, Any]:
    """CBC of two tables of which a part lies together, against ours: the largest differences."""
    together = draw.uniform(0, 4000, (150, 3))
    here, there = (
        pd.DataFrame(
            np.vstack([together + draw.normal(0, 15, together.shape), draw.uniform(0, 4000, (more, 3))]),
            columns=["x_nm", "y_nm", "z_nm"],
        ).assign(frame=0)
        for more in (350, 250)
    )
    found: dict[str, Any] = {}
    for name, dimensions, step in (("plane", 2, 40.0), ("coarse", 2, 200.0), ("volume", 3, 200.0)):
        settings: dict[str, Any] = {"radius_step_nm": step, "steps": 10, "dimensions": dimensions}
        for one, other in ((here, there), (there, here)):
            theirs, ours = storm.colocalize(one, other, **settings), colocalize(one, other, **settings)
            unrounded, ties = cbc_unrounded(one, ours, dimensions)
            differs = np.abs(theirs.cbc - ours.cbc) > 1e-9
            found.setdefault(name, []).append(
                {
                    "undefined_alike": bool((np.isnan(theirs.cbc) == np.isnan(ours.cbc)).all()),
                    "distance_nm": float(np.abs(theirs.distance_nm - ours.distance_nm).max()),
                    "neighbours": int(np.abs(theirs.neighbours - ours.neighbours).max()),
                    "unrounded": float(np.nanmax(np.abs(theirs.cbc - unrounded))),
                    "rows": len(one),
                    "differ": int(differs.sum()),
                    "differ_without_ties": int((differs & ~ties).sum()),
                }
            )
    return found


def cbc_unrounded(one: pd.DataFrame, known: Colocalization, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """CBC over areas, ranks of densities as they come out of the arithmetic; and rows where densities are equal.

    Densities that are equal (4 neighbours within 100 nm, 9 within 150 nm) come out of ThunderSTORM's divisions
    with different last bits now and then, and get different ranks.
    """
    from scipy.spatial import cKDTree
    from scipy.stats import rankdata

    places = one[["x_nm", "y_nm", "z_nm"][:dimensions]].to_numpy()
    tree = cKDTree(places)
    own = [tree.query_ball_point(places, radius, return_length=True) for radius in known.radii_nm]
    squares, ties, ranks = known.radii_nm**2, np.zeros(len(one), bool), []
    whole = np.arange(1, len(squares) + 1) ** 2
    for counts in (np.stack(own, axis=1), known.neighbours):
        density = counts / np.maximum(counts[:, -1:], 1) * squares[-1] / squares
        rank = rankdata(density, axis=1)
        ranks.append(rank - rank.mean(axis=1, keepdims=True))
        cross = counts[:, :, None] * whole
        equal = (
            (cross == cross.transpose(0, 2, 1)) & (counts > 0)[:, :, None] & ~np.eye(len(whole), dtype=bool)
        )
        ties |= equal.any(axis=(1, 2))
    size = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    correlation = (ranks[0] * ranks[1]).sum(axis=1) / np.where(size > 0, size, np.nan)
    return correlation * np.exp(-known.distance_nm / known.radii_nm[-1]), ties


def windows_closed(storm: ThunderStorm, table: pd.DataFrame, frames: np.ndarray) -> list[Any]:
    """Rows before and after all windows were closed, which flushes shown images and hides the table."""
    manager, gateway = java_class("ij.WindowManager"), storm.gateway
    storm.load(table, pixel_nm=PIXEL_NM)
    image = gateway.to_image(frames[:1], pixel_nm=PIXEL_NM)
    gateway.call(lambda: (image.show(), storm.results.forceShow()), what="opening windows")
    gateway.call(manager.closeAllWindows, what="closing all windows")
    gateway.call(image.close, what="closing what has no window without a display")
    kept, filtered = len(storm.table()), len(storm.filter("intensity>1000"))
    return [kept, filtered, list(storm.render(size_px=(64, 64)).shape)]


def main() -> None:
    back_end, mode, place = sys.argv[1:4]
    answers = Answers()
    draw = np.random.default_rng(8)
    plugin = find_thunderstorm(place)
    assert plugin is not None
    engine = engines.open_engine(engines.EngineOptions(plugin.jar, mode=mode, back_end=back_end))
    storm = engine.storm
    assert storm is not None
    answers.found |= {"engine": engine.name, "version": plugin.version, "back_end": engine.back_end}
    frames, table = movie(draw), drifting(draw)
    camera: dict[str, Any] = {"camera": CAMERA, "pixel_nm": PIXEL_NM}
    analysis = Analysis(estimator=IntegratedGaussian(sigma=1.3))
    detections = [engines.detect(one, frames, **camera) for one in (engine, OWN)]
    same = detections[0][["frame", "row", "column"]].equals(detections[1][["frame", "row", "column"]])
    answers.found["detections"] = {"number": len(detections[0]), "same": same}
    theirs = engines.run(engine, frames, analysis, **camera)
    answers.found["fits"] = fits(theirs, engines.run(OWN, frames, analysis, **camera))
    answers.ask("again", lambda: len(engines.run(engine, frames, analysis, **camera)) == len(theirs))
    drifts = {}
    for name, settings in {
        "default": CrossCorrelation(),
        "linear": CrossCorrelation(steps=3),
        "many": CrossCorrelation(steps=12, magnification=4.0, smoothing=0.25),
    }.items():
        if plugin.version == "1.3" and name == "many":
            continue  # 1.3 smooths by half of the parts, whatever is asked
        a, b = (engines.drift(one, table, settings, pixel_nm=PIXEL_NM) for one in (engine, OWN))
        drifts[name] = float(max(np.abs(a.x_nm - b.x_nm).max(), np.abs(a.y_nm - b.y_nm).max()))
    answers.found["drift"] = drifts
    storm.load(table, pixel_nm=PIXEL_NM)
    by_macro, drift = storm.drift(CrossCorrelation())
    own = engines.drift(OWN, table, pixel_nm=PIXEL_NM)
    answers.found["drift_by_macro"] = float(np.abs(drift.x_nm - own.x_nm).max())
    answers.found["corrected"] = matched(by_macro, apply_drift(table, own), ("x_nm", "y_nm"))
    few = table.iloc[:3000]
    columns = ("x_nm", "y_nm", "photons", "uncertainty_xy_nm")
    call: dict[str, Any] = {"pixel_nm": PIXEL_NM}
    for name, action in {
        "merge": lambda one: engines.merged(one, few, Merging(20.0), **call),
        "filter": lambda one: engines.filtered(one, few, "intensity>1000 & uncertainty_xy<15", **call),
        "frames": lambda one: engines.filtered(one, few, "frame>20", **call),
        "density": lambda one: engines.dense(one, few, Density(200.0, 3), **call),
        "duplicates": lambda one: engines.unique(one, few, 150.0, **call),
    }.items():
        answers.found[name] = matched(action(engine), action(OWN), columns)
    answers.found["cbc"] = colocalizations(storm, draw)
    storm.load(few, **call)
    answers.ask("merged_twice", lambda: [len(storm.merge(Merging(distance))) for distance in (20.0, 60.0)])
    answers.ask("picture_of_nothing", lambda: (storm.load(few[:0], **call), storm.render(size_px=(9, 9)))[1])
    storm.load(few, **call)
    answers.ask("bad_filter", lambda: storm.filter("nosuch>1"))
    storm.load(few, **call)
    answers.ask("fiducials", lambda: len(storm.drift(Fiducials(150.0, 0.01))[0]))
    storm.load(few, **call)
    answers.ask("picture", lambda: list(storm.render(size_px=(64, 64)).shape))
    with tempfile.TemporaryDirectory(prefix="a folder ") as folder:
        target = Path(folder, "a table.csv")
        answers.ask("export", lambda: storm.export(target))
        answers.ask("import", lambda: (storm.load(target, pixel_nm=PIXEL_NM), len(storm.table()))[1])
        from smlm_bridge.io.drift import save_drift

        save_drift(Path(folder, "d.json"), own)
        storm.load(table, pixel_nm=PIXEL_NM)
        loaded, _ = storm.drift(DriftFile(Path(folder, "d.json")))
        answers.found["our_drift_file"] = matched(loaded, apply_drift(table, own), ("x_nm", "y_nm"))
        stack = beads(draw)
        yaml = Path(folder, "astigmatism.yaml")
        huang = Calibrating(20.0, 400.0, "Huang '08")
        settings_3d = huang if plugin.version == "dev" else Calibrating(20.0, 400.0)
        if plugin.version == "1.3":
            answers.ask("huang", lambda: storm.calibrate(stack, yaml, huang, **camera))
        answers.ask("calibrate", lambda: storm.calibrate(stack, yaml, settings_3d, **camera))
        three = Analysis(estimator=EllipticalGaussian(fitradius=7, calibrationpath=yaml))
        found = storm.run(stack[10:31], three, **camera)
        height = -200 + 20.0 * found["frame"]
        answers.found["z_error_nm"] = float(np.median(np.abs(found["z_nm"] - height)))
    answers.ask("windows_closed", lambda: windows_closed(storm, few, frames))
    many = np.tile(frames, (20, 1, 1))
    answers.ask("timeout", lambda: storm.run(many, analysis, **camera, timeout_s=0.5))
    answers.ask("after_timeout", lambda: len(engines.run(engine, frames, analysis, **camera)) == len(theirs))
    answers.found["left_open"] = [
        str(title) for title in java_class("ij.WindowManager").getImageTitles() or () if str(title)
    ]
    answers.end()


if __name__ == "__main__":
    main()
