"""Fits of single emitters against the bound, beside Picasso on the same boxes and frames in the same run.

    python benchmarks/single_emitters.py [--part NAME ...] [--emitters 2000] [--repeats 5]
        [--picasso-python PYTHON]

Parts: ``2d`` (Gaussian, 7x7), ``3d`` (astigmatism, cubic spline, 13x13), ``detection`` (256x256 frames), ``crlb``
(vectorial pupil; Poisson, sCMOS by number and by map, EMCCD; 10 000 images a point; the exit code is 1 if a
standard deviation is not within 3 % of the bound). CPU seconds are of one thread, the median of the repeats after
one call that compiles. ``bound`` is the Cramer-Rao bound at the truth.

Picasso lives in an environment of its own, and its lines are left out where it is not given:

    python -m venv picasso && picasso/bin/pip install picassosr==0.11.3
    python benchmarks/single_emitters.py --picasso-python picasso/bin/python
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detection import CAMERA, PIXEL_NM, simulate
from numpy.typing import NDArray
from scipy.special import erf

from smlm_bridge.camera import Camera
from smlm_bridge.crlb import crlb
from smlm_bridge.detect import detect_frames
from smlm_bridge.fit import FitResult, Spot, fit_boxes
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.cubic_spline import CubicSpline
from smlm_bridge.psf.cubic_spline_psf import tabulate
from smlm_bridge.psf.pupil_psf import PupilPSF

Floats = NDArray[np.float64]
Values = dict[str, NDArray[np.generic]]

SIGMA_PX, SIDE_2D, SIDE_3D = 1.3, 7, 13
LEVELS_2D = {"N1000_b10": (1000, 10), "N5000_b50": (5000, 50)}
LEVELS_3D = {"N2000_b10": (2000, 10), "N10000_b50": (10000, 50)}
# Matched media, so that only the focus counts: heights of -500 to 500 nm about it.
ASTIGMATIC = Optics(1.4, 1.518, 1.518, 680.0, 110.0, focus_nm=1000.0, model="scalar", supercritical=False)
HEIGHTS_NM = np.arange(-500.0, 501.0, 100.0)
STACK_STEP_NM = 20.0
WATER = Optics(1.49, 1.518, 1.33, 670.0, 110.0, focus_nm=400.0)
WATER_SIDE = 21
# Read noise of pixels: most about 1.3 e, some several times that, as of sCMOS chips.
NOISE_MAP_E = np.random.default_rng(7).gamma(4.0, 0.4, (WATER_SIDE, WATER_SIDE)).astype(np.float32)
CAMERAS = {
    "Poisson": Camera(),
    "sCMOS 1.6 e": Camera(read_noise_e=1.6),
    "sCMOS map": Camera(read_noise_e=NOISE_MAP_E),
    "EMCCD": Camera(em_gain=300.0, read_noise_e=30.0),
}
WATER_HEIGHTS_NM = (150.0, 300.0, 450.0, 600.0)
# An EMCCD's excess noise halves the photons: it reaches its bound with twice as many.
WATER_LEVELS = {"EMCCD": ((4000, 20), (8000, 80))}
OTHER_LEVELS = ((2000, 20), (8000, 80))
DIM = {"EMCCD": ((2000, 20),)}  # shown, not judged: the bound is one of many photons
IMAGES = 10_000
BAR = 1.03


def timed(task: Callable[[], FitResult], repeats: int) -> tuple[FitResult, float]:
    """The result of ``task()`` and its median CPU seconds."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.process_time()
        result = task()
        seconds.append(time.process_time() - began)
    return result, float(np.median(seconds[1:]))


def spots(x: Floats, y: Floats, sigma: float | Floats, side: int) -> Floats:
    """(E, side, side) shares of Gaussians at pixels from the corner."""
    edges = np.arange(side + 1)
    scale = np.sqrt(2) * np.broadcast_to(sigma, x.shape)[:, None]
    along = [0.5 * np.diff(erf((edges - c[:, None]) / scale), axis=1) for c in (x, y)]
    return along[1][:, :, None] * along[0][:, None, :]


def bound_2d(photons: float, background: float) -> float:
    """Of x with x, y, sigma, photons and background free, in nm; rms over positions in a pixel."""
    draw = np.random.default_rng(0)
    x, y = draw.uniform(3, 4, (2, 400))
    step = 1e-4
    whole = np.full(400, SIGMA_PX)

    def slope(dx: float, dy: float, ds: float) -> Floats:
        ahead = spots(x + dx, y + dy, whole + ds, SIDE_2D)
        return photons * (ahead - spots(x - dx, y - dy, whole - ds, SIDE_2D)) / (2 * step)

    share = spots(x, y, whole, SIDE_2D)
    moves = ((step, 0, 0), (0, step, 0), (0, 0, step))
    slopes = np.stack([*(slope(*m) for m in moves), share, np.ones_like(share)], axis=1)
    information = np.einsum("eaij,ebij,eij->eab", slopes, slopes, 1 / (photons * share + background))
    return float(np.sqrt(np.linalg.inv(information)[:, 0, 0].mean()) * PIXEL_NM)


def astigmatic() -> PupilPSF:
    pupil = Pupil.flat(48, {6: 0.6, 11: 0.12, 8: 0.08})
    return PupilPSF.of(ASTIGMATIC, pupil, dtype=torch.float64)


def drawn(
    psf: PupilPSF, z_nm: Floats, side: int, draw: np.random.Generator
) -> tuple[Floats, Floats, torch.Tensor]:
    """Positions (E, 3) within half a pixel of the middle, fractions (E, side, side), positions as a tensor."""
    xy = (side / 2 + draw.uniform(-0.5, 0.5, (len(z_nm), 2))) * psf.pixel_nm
    xyz = np.column_stack([xy, z_nm])
    at = torch.as_tensor(xyz)
    return xyz, psf.images(at, (side, side)).numpy(), at


def part_2d(emitters: int, repeats: int) -> tuple[list[str], Values, Callable[[Values], list[str]]]:
    draw, tasks, lines, bounds, truth = np.random.default_rng(1), {}, [], {}, {}
    count = max(emitters, 20_000)
    lines.append("2-D, Gaussian of 1.3 px, 7x7; x and y in nm")
    lines.append(
        f"{'':28}{'fits/CPU-s':>11}{'std x':>8}{'std y':>8}{'/bound':>14}{'sigma/std':>11}{'bias':>12}"
    )
    for name, (photons, background) in LEVELS_2D.items():
        x, y = draw.uniform(3, 4, (2, count))
        mean = photons * spots(x, y, SIGMA_PX, SIDE_2D) + background
        boxes = draw.poisson(mean).astype(np.float32)
        tasks["2d__" + name], truth[name], bounds[name] = boxes, np.stack([x, y], 1) * PIXEL_NM, 0.0
        bounds[name] = bound_2d(photons, background)
        corners = np.zeros((count, 2), int)
        found, seconds = timed(
            lambda b=boxes, c=corners: fit_boxes(b, c, Spot(120.0, PIXEL_NM)),
            repeats,  # type: ignore[misc]
        )
        lines.append(
            line_2d(
                "ours " + name,
                found.values[:, :2],
                found.bounds[:, :2],
                truth[name],
                bounds[name],
                count / seconds,
            )
        )

    def beside(theirs: Values) -> list[str]:
        out = []
        for name in LEVELS_2D:
            theta = theirs["2d__" + name]
            # From the first pixel's centre, or from the middle's: whichever is without a bias of pixels.
            xy = theta[:, :2] * PIXEL_NM
            xy = xy + np.round((truth[name].mean(0) - xy.mean(0)) / (PIXEL_NM / 2)) * PIXEL_NM / 2
            rate = count / float(theirs["2d_seconds__" + name])
            sigma = theirs["2d_bound__" + name][:, :2] * PIXEL_NM
            out.append(line_2d("Picasso MLE " + name, xy, sigma, truth[name], bounds[name], rate))
        return out

    return lines, tasks, beside


def line_2d(name: str, xy: Floats, sigma: Floats, truth: Floats, bound: float, rate: float) -> str:
    error = xy - truth
    std = error.std(0)
    reported = np.sqrt((sigma**2).mean(0)) / std
    bias = error.mean(0)
    return (
        f"{name:28}{rate:11.0f}{std[0]:8.3f}{std[1]:8.3f}{std[0] / bound:7.3f}{std[1] / bound:7.3f}"
        f"{reported.mean():11.3f}{bias[0]:6.2f}{bias[1]:6.2f}"
    )


def bound_3d(psf: PupilPSF, at: torch.Tensor, photons: float, background: float) -> Floats:
    """Of x, y, z of emitters at one height, rms over the first 100 of them."""
    ones = torch.ones(len(at[:100]), dtype=torch.float64)
    sigma = crlb(psf, Camera(), at[:100], photons * ones, background * ones, shape=(SIDE_3D, SIDE_3D))
    return np.asarray(sigma[:, :3].square().mean(0).sqrt().numpy())


def part_3d(emitters: int, repeats: int) -> tuple[list[str], Values, Callable[[Values], list[str]]]:
    psf, draw, truth, bounds, lines = astigmatic(), np.random.default_rng(2), {}, {}, []
    focus = ASTIGMATIC.focus_nm
    spline = tabulate(psf, z_range_nm=(focus - 800, focus + 800), size_px=19)
    planes = torch.tensor(
        [[9.5 * 110, 9.5 * 110, focus + z] for z in np.arange(-800, 801, STACK_STEP_NM)], dtype=torch.float64
    )
    tasks: Values = {"stack": psf.images(planes, (19, 19)).numpy()}
    tasks |= {"z_step_nm": np.array(STACK_STEP_NM), "pixel_nm": np.array(110.0)}
    for name, (photons, background) in LEVELS_3D.items():
        z = np.repeat(focus + HEIGHTS_NM, emitters)
        xyz, share, at = drawn(psf, z, SIDE_3D, draw)
        boxes = draw.poisson(photons * share + background).astype(np.float32)
        truth[name] = xyz
        bounds[name] = np.array(
            [bound_3d(psf, at[z == height], photons, background) for height in np.unique(z)]
        )
        tasks["3d__" + name] = boxes
        corners = np.zeros((len(z), 2), int)
        found, seconds = timed(lambda b=boxes, c=corners: fit_boxes(b, c, spline), repeats)  # type: ignore[misc]
        failed = 100 * (1 - found.ok.mean())
        title = f"ours, {name}: {len(z) / seconds:.0f} fits/CPU-s, {failed:.2f} % not converged"
        lines += table_3d(title, found.values[:, :3], found.bounds[:, :3], xyz, bounds[name])

    def beside(theirs: Values) -> list[str]:
        out: list[str] = []
        for name in LEVELS_3D:
            found = theirs["3d__" + name]
            xy = (found[:, :2] + SIDE_3D / 2) * 110.0
            z = found[:, 2]
            # Their sign and origin of z are those of a stage; the scan's middle is the focus.
            slope = np.sign(np.corrcoef(z, truth[name][:, 2])[0, 1])
            z = slope * (z - STACK_STEP_NM * (len(tasks["stack"]) // 2)) + focus
            z = z + np.median(truth[name][:, 2] - z)
            rate = len(z) / float(theirs["3d_seconds__" + name])
            title = f"Picasso spline MLE, {name}: {rate:.0f} fits/CPU-s (its bounds apart)"
            sigma = theirs["3d_bound__" + name] * [110.0, 110.0, 1.0]
            out += table_3d(title, np.column_stack([xy, z]), sigma, truth[name], bounds[name])
        return out

    return lines, tasks, beside


def table_3d(title: str, found: Floats, sigma: Floats, truth: Floats, bound: Floats) -> list[str]:
    """Of every height std over the bound, bias over std, and reported sigma over std, of x, y, z."""
    error = found - truth
    lines = [title, f"{'z nm':>8}{'std/bound':>24}{'bias/std':>24}{'sigma/std':>24}{'flips':>8}"]
    rows = []
    for height in np.unique(truth[:, 2]):
        here = truth[:, 2] == height
        limit = bound[len(rows)]
        flips = np.abs(error[here, 2]) > 10 * limit[2]
        part, said = error[here][~flips], sigma[here][~flips]
        std = part.std(0)
        rows.append([std / limit, part.mean(0) / std, np.sqrt(np.nanmean(said**2, 0)) / std])
        lines.append(_row_3d(f"{height - ASTIGMATIC.focus_nm:8.0f}", rows[-1]) + f"{flips.sum():8d}")
    table = np.array(rows)
    lines.append(_row_3d("   worst", [table[:, 0].max(0), np.abs(table[:, 1]).max(0), table[:, 2].max(0)]))
    whole = [np.sqrt((table[:, 0] ** 2).mean(0)), np.abs(table[:, 1]).mean(0), table[:, 2].mean(0)]
    lines.append(_row_3d("    mean", whole))
    return lines


def _row_3d(name: str, columns: list[Floats]) -> str:
    return name + "".join("".join(f"{value:8.3f}" for value in column) for column in columns)


def part_detection(frames: int, repeats: int) -> tuple[list[str], Values, Callable[[Values], list[str]]]:
    counts = simulate(frames, 256, 40)
    seconds = []
    for _ in range(repeats + 1):
        began = time.process_time()
        found = detect_frames(counts, pixel_nm=PIXEL_NM, camera=CAMERA)
        seconds.append(time.process_time() - began)
    rate = frames / float(np.median(seconds[1:]))
    lines = [
        f"detection, {frames} frames of 256x256, 40 emitters each",
        f"ours, std(Wave.F1)     {rate:8.0f} frames/CPU-s, {len(found) / frames:.1f} candidates a frame",
    ]

    def beside(theirs: Values) -> list[str]:
        their_rate = frames / float(theirs["detection_seconds"])
        per_frame = len(theirs["detection_found"]) / frames
        return [
            f"Picasso, net gradient  {their_rate:8.0f} frames/CPU-s, {per_frame:.1f} candidates a frame",
            f"ours / Picasso         {rate / their_rate:8.2f}",
        ]

    return lines, {"frames": counts, "net_gradient": np.array(1500)}, beside


def part_crlb(cameras: list[str]) -> tuple[list[str], bool]:
    """MLE against the bound of the vectorial pupil; whether every point that is judged is within ``BAR``."""
    psf = PupilPSF.of(WATER, Pupil.flat(64, {6: 0.6}), dtype=torch.float64)
    spline = tabulate(psf, z_range_nm=(0.0, 900.0), size_px=WATER_SIDE + 6, z_step_nm=30.0)
    print(f"vectorial pupil, NA 1.49 in water, {WATER_SIDE}x{WATER_SIDE}; {IMAGES} images a point")
    print(
        f"{'':14}{'photons':>8}{'z nm':>8}{'bound x y z':>24}{'std/bound x y z':>26}{'sigma/std x y z':>26}"
        f"{'failed':>8}",
        flush=True,
    )
    judged: list[float] = []
    for name in cameras:
        camera = CAMERAS[name]
        levels = WATER_LEVELS.get(name, OTHER_LEVELS)
        for level, height in itertools.product((*levels, *DIM.get(name, ())), WATER_HEIGHTS_NM):
            seed = len(judged) + 3 if level in levels else int(height)
            bound, std, said, failed = mle_at(psf, spline, camera, level, height, seed)
            cells = [f"{v:8.2f}" for v in bound]
            cells += [f"{v:8.3f}" if i else f"{v:10.3f}" for i, v in enumerate(std / bound)]
            cells += [f"{v:8.3f}" if i else f"{v:10.3f}" for i, v in enumerate(said / std)]
            note = "" if level in levels else "  not judged"
            print(f"{name:14}{level[0]:8d}{height:8.0f}{''.join(cells)}{failed:8d}{note}", flush=True)
            if level in levels:
                judged += [float(v) for v in std / bound]
    apart = max(max(judged) - 1, 1 - min(judged))
    passed = apart <= BAR - 1
    said_all = f"{len(judged)} standard deviations, {min(judged):.3f} to {max(judged):.3f} of the bound"
    return [f"{said_all}: {'within' if passed else 'NOT WITHIN'} 3 %"], passed


def mle_at(
    psf: PupilPSF, spline: CubicSpline, camera: Camera, level: tuple[int, int], height: float, seed: int
) -> tuple[Floats, Floats, Floats, int]:
    """Bound, standard deviation and root mean square of the reported one, of x, y, z; fits that failed."""
    photons, background = level
    shape = (WATER_SIDE, WATER_SIDE)
    position = np.array([[(WATER_SIDE / 2 + 0.18) * 110, (WATER_SIDE / 2 - 0.14) * 110, height]])
    at = torch.as_tensor(position)
    mean = photons * psf.images(at, shape).numpy() + background
    one = torch.ones(1, dtype=torch.float64)
    limit = crlb(psf, camera, at, photons * one, background * one, shape=shape, exact_emccd=True)
    counts = camera.sample(
        torch.as_tensor(np.repeat(mean, IMAGES, axis=0)), torch.Generator().manual_seed(seed)
    )
    boxes = camera.to_photons(counts.numpy())
    found = fit_boxes(boxes, np.zeros((IMAGES, 2), int), spline, camera=camera)
    std = found.values[found.ok, :3].std(0)
    said = np.sqrt((found.bounds[found.ok, :3] ** 2).mean(0))
    return limit[0, :3].numpy(), std, said, int((~found.ok).sum())


def picasso(python: str, tasks: Values, repeats: int) -> Values:
    """What Picasso makes of the tasks."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "tasks.npz"), Path(folder, "results.npz")
        np.savez(given, repeats=np.array(repeats), **tasks)
        script = Path(__file__).with_name("picasso_fits.py")
        subprocess.run([python, str(script), str(given), str(made)], check=True)
        with np.load(made) as results:
            return {name: results[name] for name in results.files}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="*", default=["2d", "3d", "detection", "crlb"])
    parser.add_argument("--emitters", type=int, default=2000, help="a point")
    parser.add_argument("--cameras", nargs="*", default=list(CAMERAS), choices=list(CAMERAS), help="of crlb")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--picasso-python", help="the Python of Picasso's environment")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[str] = []
    tasks: Values = {}
    beside: list[Callable[[Values], list[str]]] = []
    passed = True
    parts = {
        "2d": lambda: part_2d(given.emitters, given.repeats),
        "3d": lambda: part_3d(given.emitters, given.repeats),
        "detection": lambda: part_detection(given.frames, given.repeats),
    }
    for name in given.part:
        if name in parts:
            said, wanted, compare = parts[name]()
            print(*said, "", sep="\n", flush=True)
            tasks |= wanted
            beside.append(compare)
        else:
            said, passed = part_crlb(given.cameras)
            print(*said, "", sep="\n", flush=True)
    code = 0 if passed else 1
    if not tasks:
        return code
    if not given.picasso_python:
        print("Picasso left out: give --picasso-python (see --help).")
        return code
    theirs = picasso(given.picasso_python, tasks, given.repeats)
    for compare in beside:
        lines += [*compare(theirs), ""]
    print(*lines, sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
