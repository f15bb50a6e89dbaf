"""The ThunderSTORM adapter against our stand-in: scenario_stand_in.py MODE JAR."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from answers import Answers

from smlm_bridge.bridge.engines import EngineOptions, open_engine
from smlm_bridge.bridge.modules import (
    Analysis,
    IntegratedGaussian,
    LocalMaximum,
    NoFilter,
    NormalizedGaussian,
)
from smlm_bridge.bridge.settings import CrossCorrelation, Merging
from smlm_bridge.camera import Camera

CAMERA = Camera(offset=100.0, e_per_adu=0.5, read_noise_e=1.5, quantum_efficiency=0.8)
LOCS = pd.DataFrame(
    {
        "frame": [0, 1, 2, 3],
        "x_nm": [100.0, 200.0, 300.0, 400.0],
        "y_nm": [10.0, 20.0, 30.0, 40.0],
        "photons": [500.0, 1000.0, 1500.0, 2000.0],
    }
)


def main() -> None:
    mode, jar = sys.argv[1:3]
    answers = Answers()
    engine = open_engine(EngineOptions(plugins=Path(jar), mode=mode))
    storm = engine.storm
    assert storm is not None
    answers.found |= {"engine": engine.name, "note": engine.note, "version": storm.version}
    recorded: Any = storm.gateway.java_class("cz.cuni.lf1.lge.ThunderSTORM.Recorded")

    def options(command: str) -> str:
        return next(str(call) for call in reversed(recorded.CALLS) if str(call).startswith(command))

    frames = np.full((3, 8, 9), 7, np.uint16)
    frames[1] = 9

    def run(threshold: str = "std(Wave.F1)") -> Any:
        analysis = Analysis(NoFilter(), LocalMaximum(threshold), IntegratedGaussian(sigma=1.3))
        return storm.run(frames, analysis, camera=CAMERA, pixel_nm=110.0, timeout_s=20).to_dict("list")

    answers.ask("run", run)
    answers.ask("camera_options", lambda: options("Camera setup"))
    answers.ask("run_options", lambda: options("Run analysis"))
    em = Camera(offset=90.0, e_per_adu=4.0, em_gain=300.0)
    answers.ask("em", lambda: storm.set_camera(em, pixel_nm=110.0))
    answers.ask("em_options", lambda: options("Camera setup"))
    for name, threshold in (("handled", "11"), ("dialog", "12"), ("silent", "13"), ("after", "14")):
        answers.ask(name, lambda threshold=threshold: run(threshold))
    answers.ask("load", lambda: storm.load(LOCS, pixel_nm=110.0))
    answers.ask("first_filter", lambda: len(storm.filter("intensity > 600")))
    answers.ask("bad_filter", lambda: storm.filter("nosuch > 1"))
    answers.ask("second_filter", lambda: len(storm.filter("frame > 3")))
    answers.ask("filter_options", lambda: options("Show results table"))
    answers.ask("merge", lambda: len(storm.merge(Merging(distance_nm=30.0))))
    answers.ask("merge_options", lambda: options("Show results table"))
    answers.ask("merge_again", lambda: len(storm.merge()))
    answers.ask("drift", lambda: storm.drift(CrossCorrelation(steps=3))[1].x_nm.tolist())
    answers.ask("drift_options", lambda: options("Show results table"))
    answers.ask("unknown_action", lambda: storm.post_process("nothing", {}))
    answers.ask(
        "render", lambda: list(storm.render(NormalizedGaussian(magnification=4.0), size_px=(8, 9)).shape)
    )
    answers.ask("render_options", lambda: options("Visualization"))
    with tempfile.TemporaryDirectory(prefix="a folder ") as folder:
        target = Path(folder, "a table.csv")
        answers.ask("export", lambda: (storm.export(target), target.read_text())[1])
        answers.ask("no_folder", lambda: storm.export(Path(folder, "none", "t.csv")))
    answers.ask("empty", lambda: (storm.load(LOCS.iloc[:0], pixel_nm=110.0), storm.merge())[1])
    answers.end()


if __name__ == "__main__":
    main()
