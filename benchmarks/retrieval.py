"""Phase retrieval of the real bead stacks: scores, seconds, held-out slices, seeds, the analyser, Zelger's method.

    python benchmarks/retrieval.py [--stack tetrapod ...] [--seeds 10] [--only seeds analyser held-out zelger]

Optics as in shared/data/README.md; always from scratch, without the masks. RRSE and mean correlation of a slice
are over all slices and pixels of the stack, the model set to 0 below the stack's threshold. Seconds are CPU
seconds of one thread beside wall seconds; on an idle core the two are equal. The first run of all compiles, some
ten seconds. "odd" is fitted on the even slices and scored on the odd ones.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from smlm_bridge.optics.microscope import Optics
from smlm_bridge.retrieve import Retrieval, RetrieveOptions, retrieve

OPTICS = Optics(1.49, 1.518, 1.33, 605.0, 110.0, analyser_deg=90.0)
STEP_NM = -100.0
STACKS = ("tetrapod", "edof", "learned1")
PARTS = ("seeds", "held-out", "analyser", "zelger")
ANGLES: tuple[float | None, ...] = (None, 0.0, 90.0)
DATA = Path(__file__).parents[2] / "shared" / "data" / "beads"

Stack = NDArray[np.uint16]


def timed(run: Callable[[], Retrieval]) -> tuple[Retrieval, str]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, f"{time.process_time() - cpu:7.1f}{time.perf_counter() - wall:8.1f}"


def scores(what: str, result: Retrieval, seconds: str) -> str:
    return f"{what:<28}{result.rrse:8.4f}{result.mean_slice_correlation:9.4f}{seconds}"


def seeds(stack: Stack, count: int) -> Iterator[str]:
    found = []
    for seed in range(count):
        result, seconds = timed(lambda s=seed: retrieve(stack, OPTICS, RetrieveOptions(STEP_NM, seed=s)))
        found.append(result.rrse)
        yield scores(f"seed {seed}", result, seconds)
    yield f"{'worst over best':<28}{max(found) / min(found):8.4f}"


def held_out(stack: Stack) -> Iterator[str]:
    options = RetrieveOptions(STEP_NM, fit_slices=range(0, len(stack), 2))
    result, seconds = timed(lambda: retrieve(stack, OPTICS, options))
    assert result.held_out is not None
    odd = f"{'odd, fitted on even':<28}{result.held_out['rrse']:8.4f}"
    yield f"{odd}{result.held_out['mean_slice_correlation']:9.4f}{seconds}"


def analyser(stack: Stack) -> Iterator[str]:
    options = RetrieveOptions(STEP_NM, analysers_deg=ANGLES)
    result, seconds = timed(lambda: retrieve(stack, replace(OPTICS, analyser_deg=None), options))
    chosen = result.calibration.optics.analyser_deg
    yield scores(f"auto: {'none' if chosen is None else f'{chosen:g} deg'}", result, seconds)
    best = max(result.analysers.values())
    differences = "  ".join(f"{name} {value - best:+.0f}" for name, value in result.analysers.items())
    yield f"  log-likelihood {differences};  ours - twin {result.twin['log_likelihood_difference']:+.0f}"


def zelger(stack: Stack) -> Iterator[str]:
    for name in ("zelger", "joint"):
        result, seconds = timed(lambda m=name: retrieve(stack, OPTICS, RetrieveOptions(STEP_NM, method=m)))
        yield scores({"zelger": "Zelger 2018 (L1, Noll 2-37, 56)", "joint": "ours"}[name], result, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stack", nargs="*", choices=STACKS, default=STACKS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.stack:
        stack = tifffile.imread(DATA / f"{name}.tif")
        print(f"{name:<28}{'RRSE':>8}{'cc':>9}{'CPU s':>7}{'wall s':>8}", flush=True)
        parts = {
            "seeds": lambda s=stack: seeds(s, given.seeds),
            "held-out": lambda s=stack: held_out(s),
            "analyser": lambda s=stack: analyser(s),
            "zelger": lambda s=stack: zelger(s),
        }
        for part in given.only:
            for line in parts[part]():
                print(line, flush=True)


if __name__ == "__main__":
    main()
