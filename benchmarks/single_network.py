"""The network of single emitters against the bound: trained for minutes on a CPU, then scored on fresh boxes.

    python benchmarks/single_network.py [--case astigmatic|zelger] [--minutes 10] [--samples 600000]
        [--threads 1] [--boxes 4000] [--transfer]

Cases: ``astigmatic`` (13x13 boxes of 110 nm, scalar, NA 1.4, matched media, 1000 to 8000 photons on 5 to 20, z
from -500 to 500 nm about the focus) and ``zelger`` (39x39 boxes of 115 nm, NA 1.7, n 1.78, 680 nm, 3500 photons on
130, z from 300 to 1000 nm below the focus). Whichever of minutes (by the clock) and samples is used up first ends
the training. ``--transfer`` then changes three aberrations, together by 0.47 rad, and adapts the network as
``train --from`` does, on 5000 and on 1000 emitters, each with the backbone frozen and with all weights free,
beside a training from scratch.
"""

import argparse
import dataclasses
import time

import numpy as np
import onnxruntime
import torch

from smlm_bridge.calibration import Calibration
from smlm_bridge.networks.export import single_to_onnx
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.simulate.background import BackgroundRanges
from smlm_bridge.simulate.single import SingleRanges
from smlm_bridge.train_single import ADAPTING, SingleOptions, SingleTrainer, held_out, single_scores
from smlm_bridge.training import Start, train

CHANGED = {5: 0.3, 8: 0.3, 11: 0.2}  # rad


def astigmatic(extra: dict[int, float]) -> tuple[Calibration, SingleRanges, int]:
    optics = Optics(1.4, 1.518, 1.518, 670.0, 110.0, focus_nm=1000.0, model="scalar", supercritical=False)
    known = Calibration(optics, Pupil.flat(48, {6: 1.0} | extra), z_range_nm=(500.0, 1500.0))
    ranges = SingleRanges((500.0, 1500.0), (1000.0, 8000.0), background=BackgroundRanges((5.0, 20.0)))
    return known, ranges, 13


def zelger(extra: dict[int, float]) -> tuple[Calibration, SingleRanges, int]:
    optics = Optics(1.7, 1.78, 1.78, 680.0, 115.0, focus_nm=1500.0)
    known = Calibration(optics, Pupil.flat(48, {6: 0.0} | extra), z_range_nm=(500.0, 1200.0))
    background = BackgroundRanges((130.0, 130.0))
    ranges = SingleRanges((500.0, 1200.0), (3500.0, 3500.0), background=background)
    return known, ranges, 39


CASES = {"astigmatic": astigmatic, "zelger": zelger}


def report(title: str, trainer: SingleTrainer, boxes: int) -> None:
    scores = single_scores(trainer, boxes=boxes)
    print(f"{title}: {trainer.progress.samples} boxes trained, scored on {boxes}", flush=True)
    print(f"{'':12}{'rmse':>9}{'bias':>9}{'/bound':>9}{'z-score SD':>12}")
    for name in scores["rmse"]:
        row = [scores[key][name] for key in ("rmse", "bias", "rmse_over_crlb", "z_score_sd")]
        print(f"{name:12}{row[0]:9.2f}{row[1]:9.2f}{row[2]:9.3f}{row[3]:12.3f}")


def trained(title: str, trainer: SingleTrainer, boxes: int) -> None:
    began, clock = time.process_time(), time.perf_counter()
    train(trainer)
    cpu, wall = time.process_time() - began, time.perf_counter() - clock
    print(f"\n{title}: {cpu:.0f} CPU-s, {wall:.0f} s by the clock")
    report(title, trainer, boxes)


def inference(trainer: SingleTrainer) -> None:
    """Boxes per second of one thread's CPU time in ONNX Runtime."""
    data = single_to_onnx(trainer.network, {}, channels=1, side=trainer.options.box_px)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    known = held_out(trainer, boxes=2048)
    rates = []
    for _ in range(8):
        began = time.process_time()
        session.run(["estimates"], {"boxes": known.photons})
        rates.append(len(known.photons) / (time.process_time() - began))
    weights = sum(value.numel() for value in trainer.network.parameters())
    print(
        f"ONNX Runtime: {np.median(rates):.0f} boxes per CPU-second (median of {len(rates)}), {weights} weights"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, default="astigmatic")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--samples", type=int, default=600_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--boxes", type=int, default=4000)
    parser.add_argument("--transfer", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    known, ranges, side = CASES[given.case]({})
    options = SingleOptions(samples=given.samples, minutes=given.minutes, box_px=side)
    first = SingleTrainer(known, ranges, options)
    trained("from scratch", first, given.boxes)
    inference(first)
    if not given.transfer:
        return
    changed = CASES[given.case](CHANGED)[0]
    start = Start(first.network.state_dict(), dataclasses.asdict(first.network.scaling))
    steps = first.progress.samples // options.batch
    adapting = SingleOptions(**ADAPTING, box_px=side, seed=2)
    report("untouched", SingleTrainer(changed, ranges, adapting, start=start), given.boxes)
    share = adapting.samples / adapting.batch / steps
    for emitters in (adapting.emitters, 1000):
        print(f"\n{emitters} emitters, {100 * share:.0f} % of {steps} steps")
        for what, frozen in (("backbone frozen", True), ("all weights", False)):
            chosen = dataclasses.replace(adapting, emitters=emitters, freeze_backbone=frozen)
            trainer = SingleTrainer(changed, ranges, chosen, start=start)
            trained(f"transferred, {what}, {emitters} emitters", trainer, given.boxes)
    same = dataclasses.replace(options, samples=steps * options.batch, seed=2)
    trained("from scratch, changed aberrations", SingleTrainer(changed, ranges, same), given.boxes)


if __name__ == "__main__":
    main()
