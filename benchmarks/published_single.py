"""The experiments of Zelger et al. (2018, Opt. Express 26:33166) with our networks and our fit.

    python benchmarks/published_single.py [--runs runs] [--images 150] [--samples-rigid 200000]
        [--samples-aware 300000] [--pictures docs/images]

Their conditions: 39x39 boxes of 115 nm, NA 1.7 into 1.78, 680 nm, 3500 photons on 130 a pixel, the emitter within
500 nm of the middle of its box, z below the focus. Two networks are trained (once; ``--runs`` keeps them, and an
interrupted training goes on): ``rigid`` knows one pupil, ``aware`` estimates Z5, Z6 and Z11 of up to 0.5 rad, too.

precision   RMSE over the bound and z-scores from 1.0 to 0.3 um below the focus; then height by height the standard
            deviation of z of the network, and of the maximum-likelihood fit (MLE) that starts from its estimates
flips       images 100 to 200 nm below the focus; the MLE starts 200 nm too high, or from the network
aberration  0.3 rad of Z5 that the calibration does not know: z bias of both networks, of the MLE with the
            calibrated pupil and with one that has the 0.3 rad
timing      ONNX Runtime on one thread, CPU time, side by side: what a further parameter costs
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.crlb import crlb
from smlm_bridge.fit import fit_boxes
from smlm_bridge.io.checkpoint import load_checkpoint, save_checkpoint
from smlm_bridge.networks.export import single_to_onnx
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.cubic_spline import CubicSpline
from smlm_bridge.psf.cubic_spline_psf import tabulate
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.simulate.background import BackgroundRanges
from smlm_bridge.simulate.single import SingleRanges
from smlm_bridge.train_single import SingleOptions, SingleTrainer, run_now, single_scores

Floats = NDArray[np.float64]

OPTICS = Optics(1.7, 1.78, 1.78, 680.0, 115.0, focus_nm=1500.0)
FOCUS_NM, SIDE, PHOTONS, BACKGROUND, WANDER_PX = 1500.0, 39, 3500.0, 130.0, 500 / 115
JUDGED_NM = (-1000.0, -300.0)
HEIGHTS_NM = np.arange(-1000.0, -299.0, 100.0)
NEAR_NM = (-200.0, -100.0)
TRAINED_NM = {"rigid": (-1300.0, 0.0), "aware": (-1100.0, -200.0)}
ABERRATIONS = ((5, -0.5, 0.5), (6, -0.5, 0.5), (11, -0.5, 0.5))
INJECTED = {5: 0.3}
MADE = {
    "rigid": {"recordings": 4, "batch": 128, "templates": 128},
    "aware": {"recordings": 16, "batch": 256, "templates": 128},
}
SECONDS_BETWEEN_CHECKPOINTS = 60.0


def known(extra: dict[int, float]) -> Calibration:
    return Calibration(OPTICS, Pupil.flat(48, extra), z_range_nm=(200.0, 1500.0))


def ranges_of(name: str, z_nm: tuple[float, float]) -> SingleRanges:
    return SingleRanges(
        (FOCUS_NM + z_nm[0], FOCUS_NM + z_nm[1]),
        (PHOTONS, PHOTONS),
        background=BackgroundRanges((BACKGROUND, BACKGROUND)),
        wander_px=WANDER_PX,
        zernike_rad=ABERRATIONS if name == "aware" else (),
    )


def trained(name: str, samples: int, runs: Path) -> SingleTrainer:
    """The network ``rigid`` or ``aware``, from its checkpoint as far as that goes."""
    options = SingleOptions(samples=samples, box_px=SIDE, **MADE[name])  # type: ignore[arg-type]
    trainer = SingleTrainer(known({}), ranges_of(name, TRAINED_NM[name]), options)
    checkpoint = runs / f"published_{name}.checkpoint"
    if checkpoint.exists():
        trainer.load_state_dict(load_checkpoint(checkpoint))
    began, saved = time.process_time(), time.monotonic()
    before = trainer.progress.samples
    while not trainer.done:
        trainer.step()
        if trainer.done or time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
            save_checkpoint(checkpoint, trainer.state_dict())
            saved = time.monotonic()
    spent = time.process_time() - began
    print(
        f"{name}: {trainer.progress.samples} boxes, {spent:.0f} CPU-s for the last {samples - before}",
        flush=True,
    )
    return trainer


def drawn(
    z_nm: Floats, extra: dict[int, float], seed: int
) -> tuple[NDArray[np.float32], Floats, torch.Tensor]:
    """Boxes (B, S, S) of emitters at defocus ``z_nm``, positions (B, 3) in the box, and the same as a tensor."""
    draw = np.random.default_rng(seed)
    xy = (SIDE / 2 + draw.uniform(-WANDER_PX, WANDER_PX, (len(z_nm), 2))) * OPTICS.pixel_nm
    xyz = np.column_stack([xy, FOCUS_NM + z_nm])
    at = torch.as_tensor(xyz, dtype=torch.float32)
    share = PupilPSF.of(OPTICS, Pupil.flat(48, extra)).images(at, (SIDE, SIDE)).double().numpy()
    return draw.poisson(PHOTONS * share + BACKGROUND).astype(np.float32), xyz, at


def spline_of(extra: dict[int, float]) -> CubicSpline:
    """The pupil's PSF as a spline, from 1.4 um below to 0.8 um above the focus."""
    psf = PupilPSF.of(OPTICS, Pupil.flat(48, extra))
    return tabulate(psf, z_range_nm=(FOCUS_NM - 1400, FOCUS_NM + 800), size_px=SIDE + 6, z_step_nm=40.0)


def inferred(trainer: SingleTrainer, boxes: NDArray[np.float32]) -> Floats:
    """Estimates (B, 2K), positions from the corner of the box."""
    found = run_now(trainer)(boxes[:, None]).astype(np.float64)
    found[:, :2] += SIDE / 2 * OPTICS.pixel_nm
    return found


def fitted(boxes: NDArray[np.float32], start: Floats, spline: CubicSpline) -> Floats:
    """x, y, z of fits from ``start`` (B, 3 to 5)."""
    found = fit_boxes(boxes, np.zeros((len(boxes), 2), int), spline, start=start)
    return found.values[:, :3]


def bounds(at: torch.Tensor) -> torch.Tensor:
    """(B, 5) Cramér-Rao bounds at positions (B, 3) in the box."""
    ones = torch.ones(len(at))
    psf = PupilPSF.of(OPTICS, Pupil.flat(48, {}))
    return crlb(psf, Camera(), at, PHOTONS * ones, BACKGROUND * ones, shape=(SIDE, SIDE))


def attained(rigid: SingleTrainer, spline: CubicSpline, images: int) -> None:
    """How near to the bound anything comes here: a fit that begins at the truth, and the network."""
    z = np.random.default_rng(11).uniform(*JUDGED_NM, images)
    boxes, xyz, at = drawn(z, {}, 11)
    limit = bounds(at)[:, :3].square().mean(0).sqrt().numpy()
    print(f"RMSE over the bound of the same {images} boxes, x, y, z")
    for name, found in (
        ("network", inferred(rigid, boxes)),
        ("MLE from the truth", fitted(boxes, xyz, spline)),
    ):
        ratio = np.sqrt(np.mean((found[:, :3] - xyz) ** 2, axis=0)) / limit
        print(f"{name:28}" + "".join(f"{value:9.3f}" for value in ratio))


def precision(rigid: SingleTrainer, images: int) -> dict[str, Floats]:
    """Over all judged heights, then height by height; returns the table by column."""
    judge = SingleTrainer(known({}), ranges_of("rigid", JUDGED_NM), rigid.options)
    scores = single_scores(judge, run_now(rigid), boxes=2000)
    print("\nprecision: 2000 boxes, 1.0 to 0.3 um below the focus")
    print(f"{'':12}{'rmse':>9}{'bias':>9}{'/bound':>9}{'z-score SD':>12}")
    for name in scores["rmse"]:
        row = [scores[key][name] for key in ("rmse", "bias", "rmse_over_crlb", "z_score_sd")]
        print(f"{name:12}{row[0]:9.2f}{row[1]:9.2f}{row[2]:9.3f}{row[3]:12.3f}")
    spline = spline_of({})
    attained(rigid, spline, 4 * images)
    rows = []
    for height in HEIGHTS_NM:
        boxes, xyz, at = drawn(np.full(images, height), {}, int(-height))
        limit = bounds(at[:100])
        network = inferred(rigid, boxes)
        mle = fitted(boxes, network[:, :5], spline)
        errors = [found[:, 2] - xyz[:, 2] for found in (network, mle)]
        bound = float(limit[:, 2].square().mean().sqrt())
        rows.append([height, bound, *(e.std() for e in errors), *(e.mean() for e in errors)])
    names = ("z", "bound", "network", "MLE", "bias network", "bias MLE")
    print(
        f"standard deviation and bias of z in nm, {images} images a height, MLE from the network's estimates"
    )
    print_table(names, rows)
    return dict(zip(names, np.array(rows).T, strict=True))


def flips(rigid: SingleTrainer, images: int) -> dict[str, Floats]:
    """z estimates (B,) of images near the focus, by how the MLE starts."""
    z = np.random.default_rng(7).uniform(*NEAR_NM, images)
    boxes, xyz, _ = drawn(z, {}, 7)
    spline = spline_of({})
    network = inferred(rigid, boxes)
    wrong = xyz + np.array([0.0, 0.0, 200.0])
    found = {
        "truth": xyz[:, 2] - FOCUS_NM,
        "network": network[:, 2] - FOCUS_NM,
        "MLE from 200 nm too high": fitted(boxes, wrong, spline)[:, 2] - FOCUS_NM,
        "MLE from the network": fitted(boxes, network[:, :5], spline)[:, 2] - FOCUS_NM,
    }
    print(
        f"\nflips: {images} images {-NEAR_NM[1]:.0f} to {-NEAR_NM[0]:.0f} nm below the focus; % that end above it"
    )
    for name, heights in found.items():
        print(f"{name:28}{100 * np.mean(heights > 0):8.2f} %")
    return found


def aberration(rigid: SingleTrainer, aware: SingleTrainer, images: int) -> dict[str, Floats]:
    """Bias of z with 0.3 rad of Z5, height by height."""
    splines = [spline_of({}), spline_of(INJECTED)]
    rows, z5 = [], []
    for height in HEIGHTS_NM:
        boxes, xyz, _ = drawn(np.full(images, height), INJECTED, int(-height) + 1)
        networks = [inferred(trainer, boxes) for trainer in (rigid, aware)]
        fits = [fitted(boxes, networks[0][:, :5], spline) for spline in splines]
        z5.append(networks[1][:, 5])
        rows.append([height, *((found[:, 2] - xyz[:, 2]).mean() for found in (*networks, *fits))])
    names = ("z", "rigid", "aware", "MLE, calibrated", "MLE, with Z5")
    print(f"\naberration: bias of z in nm with 0.3 rad of Z5 injected, {images} images a height")
    print_table(names, rows)
    table = dict(zip(names, np.array(rows).T, strict=True))
    mean = {name: np.abs(table[name]).mean() for name in names[1:]}
    print("mean |bias|  " + ", ".join(f"{name} {value:.1f}" for name, value in mean.items()))
    print(f"aware / rigid {mean['aware'] / mean['rigid']:.3f}")
    every = np.concatenate(z5)
    print(f"Z5 {every.mean():.4f} rad, mean of {len(every)} images; SD of one image {every.std():.3f}")
    return table


def timing(rigid: SingleTrainer, aware: SingleTrainer) -> None:
    """CPU seconds of the same boxes through both, taken in turn."""
    boxes = drawn(np.full(1024, -600.0), {}, 3)[0][:, None]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(
            single_to_onnx(trainer.network, {}, channels=1, side=SIDE),
            options,
            providers=["CPUExecutionProvider"],
        )
        for trainer in (rigid, aware)
    ]
    spent: list[list[float]] = [[], []]
    for _ in range(15):
        for i, session in enumerate(sessions):
            began = time.process_time()
            session.run(["estimates"], {"boxes": boxes})
            spent[i].append(time.process_time() - began)
    few, more = (float(np.median(s)) for s in spent)
    print(f"\ntiming: {len(boxes) / few:.0f} boxes/CPU-s with 5 parameters, {len(boxes) / more:.0f} with 8")
    print(f"each further parameter {100 * (more / few - 1) / len(ABERRATIONS):.1f} %")


def print_table(names: tuple[str, ...], rows: list[list[float]]) -> None:
    print("".join(f"{name:>17}" for name in names))
    for row in rows:
        print("".join(f"{value:17.1f}" for value in row))


def pictures(
    folder: Path, deviation: dict[str, Floats], near: dict[str, Floats], bias: dict[str, Floats]
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    axes[0].plot(deviation["z"], deviation["bound"], "k-", label="√CRLB")
    axes[0].plot(deviation["z"], deviation["network"], "o", label="network")
    axes[0].plot(deviation["z"], deviation["MLE"], "x", label="MLE")
    axes[0].set(xlabel="z from the focus (nm)", ylabel="σ of z (nm)", ylim=(0, None), title="Precision")
    for name, mark in (("MLE, calibrated", "x-"), ("rigid", "o-"), ("aware", "s-"), ("MLE, with Z5", "+-")):
        axes[1].plot(bias["z"], bias[name], mark, label=name)
    axes[1].axhline(0, color="0.7", lw=0.8, zorder=0)
    axes[1].set(xlabel="z from the focus (nm)", ylabel="bias of z (nm)", title="0.3 rad of Z5 injected")
    for name, mark in (("MLE from 200 nm too high", "x"), ("MLE from the network", ".")):
        axes[2].plot(near["truth"], near[name], mark, ms=4, label=name)
    axes[2].plot(NEAR_NM, NEAR_NM, "k-", lw=0.8)
    axes[2].set(xlabel="true z (nm)", ylabel="estimated z (nm)", title="Near the focus")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "single_published.png", dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path(__file__).parents[1] / "runs")
    parser.add_argument("--images", type=int, default=150, help="a height")
    parser.add_argument("--samples-rigid", type=int, default=200_000)
    parser.add_argument("--samples-aware", type=int, default=300_000)
    parser.add_argument("--pictures", type=Path, help="folder for the PNG; absent: none")
    parser.add_argument("--train-only", choices=list(MADE), help="train one network and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.runs.mkdir(parents=True, exist_ok=True)
    samples = {"rigid": given.samples_rigid, "aware": given.samples_aware}
    if given.train_only:
        trained(given.train_only, samples[given.train_only], given.runs)
        return
    rigid, aware = (trained(name, samples[name], given.runs) for name in MADE)
    deviation = precision(rigid, given.images)
    near = flips(rigid, 2 * given.images)
    bias = aberration(rigid, aware, given.images)
    timing(rigid, aware)
    if given.pictures:
        pictures(given.pictures, deviation, near, bias)


if __name__ == "__main__":
    main()
