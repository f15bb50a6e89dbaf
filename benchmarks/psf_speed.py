"""PSFs a second and thread, beside psf-generator and psfmodels, with the error of each.

    python benchmarks/psf_speed.py [--emitters 256] [--repeats 5]

39 x 39 pixels of 110 nm sampled at their centres, NA 1.49, oil, 670 nm, freely rotating dipoles, single
precision, one thread; the medium is matched to the immersion, because psf-generator has no other. Time is process
CPU time a PSF, the least of the repeats, each engine in its own batches: ours emitters at drawn positions and
heights, the peers planes of z with the emitter in the middle. The error is the largest over the focus positions
-1000, -500, 0, 500, 1000 nm of ||a - b|| / ||b|| after unit sums; b is psf-generator's spherical (Bessel)
propagator, or where that is missing our own pupil of 512 samples. "at equal accuracy" compares with the cheapest
Cartesian propagator whose error does not exceed ours.

Peers are optional, and said to be missing where they are. Both install with pip:

    pip install psf-generator        (MIT)
    pip install psfmodels            (GPL-3; into an environment of its own, it is not needed otherwise)
"""

import argparse
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.pupil_psf import PupilPSF

OPTICS = Optics(1.49, 1.518, 1.518, 670.0, 110.0, pixel_integration=False)
WATER = replace(OPTICS, sample_index=1.33)
SIDE = 39
FOCUS_NM = (-1000.0, -500.0, 0.0, 500.0, 1000.0)
PLANES = 20


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    seconds: float
    error: float | None


def cpu_seconds(work: Callable[[], object], count: int, repeats: int) -> float:
    """Least CPU time for one of ``count`` PSFs."""
    work()
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best / count


def peer(name: str) -> Any:
    """The module, or None with a word about it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"left out: {name} ({error}); see --help for how to install it")
        return None


def error(images: np.ndarray, reference: np.ndarray) -> float:
    images, reference = (a / a.sum(axis=(1, 2), keepdims=True) for a in (images, reference))
    difference = np.linalg.norm(images - reference, axis=(1, 2)) / np.linalg.norm(reference, axis=(1, 2))
    return float(difference.max())


def ours(samples: int, optics: Optics, *, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """(5, H, W) images at the focus positions."""
    centre = torch.tensor([[SIDE / 2 * optics.pixel_nm, SIDE / 2 * optics.pixel_nm, 0.0]], dtype=dtype)
    stack = [
        PupilPSF.of(replace(optics, focus_nm=focus), Pupil.flat(samples), dtype=dtype).images(
            centre, (SIDE, SIDE)
        )
        for focus in FOCUS_NM
    ]
    return torch.cat(stack).double().numpy()


def drawn(count: int, device: str) -> torch.Tensor:
    """(E, 3) positions about the middle of the window, within 500 nm of the coverslip."""
    draw = torch.rand((count, 3), generator=torch.Generator().manual_seed(1))
    return (draw * torch.tensor([110.0, 110.0, 500.0]) + torch.tensor([19 * 110.0, 19 * 110.0, 0.0])).to(
        device
    )


def our_rows(emitters: int, repeats: int, reference: np.ndarray | None, device: str) -> list[Row]:
    xyz, rows = drawn(emitters, device), []
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    cases = [
        ("", OPTICS),
        (", water", WATER),
        (", water, pixels integrate", replace(WATER, pixel_integration=True)),
    ]
    for samples in (64, 128):
        for words, optics in cases:
            psf = PupilPSF.of(replace(optics, focus_nm=300.0), Pupil.flat(samples, {6: 0.6}), device=device)

            def images(psf: PupilPSF = psf) -> None:
                psf.images(xyz, (SIDE, SIDE))
                wait()

            miss = error(ours(samples, OPTICS), reference) if not words and reference is not None else None
            rows.append(Row(f"ours N={samples}{words}", timed(images, emitters, repeats, device), miss))

        def slopes(psf: PupilPSF = psf) -> None:
            psf.derivatives(xyz, (SIDE, SIDE))
            wait()

        name = f"ours N={samples}, water, pixels integrate, with d/dx, d/dy, d/dz"
        rows.append(Row(name, timed(slopes, emitters, max(1, repeats // 2), device), None))
    return rows


def timed(work: Callable[[], None], count: int, repeats: int, device: str) -> float:
    """CPU time on a processor, wall time on a GPU."""
    if device == "cpu":
        return cpu_seconds(work, count, repeats)
    work()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats / count


def generator_stack(module: Any, kind: str, samples: int, focus_nm: float, planes: int = 2) -> np.ndarray:
    """(Z, H, W) images of a free dipole: both polarisations, focus from -|focus| to |focus|.

    Its pixels are n / (n - 1) of what is asked for, and its range n_defocus * step // 2 to either side.
    """
    total: Any = 0.0
    for x, y in ((1.0, 0.0), (0.0, 1.0)):
        propagator = getattr(module, f"Vectorial{kind}Propagator")(
            n_pix_pupil=samples, n_pix_psf=SIDE, e0x=x, e0y=y, na=OPTICS.numerical_aperture,
            wavelength=OPTICS.wavelength_nm, pix_size=OPTICS.pixel_nm * (SIDE - 1) / SIDE, n_defocus=planes,
            defocus_step=2 * focus_nm / planes, apod_factor=True, n_i=1.518, n_i0=1.518, n_g=1.518, n_g0=1.518,
        )  # fmt: skip
        total = total + propagator.compute_focus_field().abs().square().sum(1)
    return np.asarray(total.double())


def generator_at_focus(module: Any, kind: str, samples: int) -> np.ndarray:
    """(5, H, W) at ``FOCUS_NM``; a matched medium is symmetric in z."""
    at = {focus: generator_stack(module, kind, samples, focus)[1] for focus in (0.0, 500.0, 1000.0)}
    return np.stack([at[abs(focus)] for focus in FOCUS_NM])


def generator_rows(module: Any, repeats: int, reference: np.ndarray) -> list[Row]:
    rows = []
    for kind, choices in (("Cartesian", (33, 49, 65, 97, 129, 193, 257)), ("Spherical", (65, 129))):
        for samples in choices:

            def stack(kind: str = kind, samples: int = samples) -> None:
                generator_stack(module, kind, samples, 1000.0, PLANES)

            seconds = cpu_seconds(stack, PLANES, max(1, repeats // 2))
            miss = error(generator_at_focus(module, kind, samples), reference)
            rows.append(Row(f"psf-generator {kind} N={samples}", seconds, miss))
    return rows


def models_rows(module: Any, repeats: int, reference: np.ndarray) -> list[Row]:
    rows = []
    index = OPTICS.immersion_index
    media = dict.fromkeys(("ni", "ni0", "ng", "ng0", "ns"), index)
    for oversampling in (1, 3):
        parameters = {"NA": OPTICS.numerical_aperture, **media, "sf": oversampling}

        def stack(z_um: np.ndarray, parameters: dict[str, float] = parameters) -> np.ndarray:
            images = module.vectorial_psf(
                z_um, nx=SIDE, dxy=OPTICS.pixel_nm / 1000, wvl=OPTICS.wavelength_nm / 1000, params=parameters,
                normalize=False,
            )  # fmt: skip
            return np.asarray(images, dtype=float)

        seconds = cpu_seconds(partial(stack, np.linspace(-1.0, 1.0, PLANES)), PLANES, repeats)
        points = oversampling == 1  # with more, it integrates over the pixel and cannot be compared
        miss = error(stack(np.array(FOCUS_NM) / 1000), reference) if points else None
        words = "" if points else ", pixels integrate"
        rows.append(Row(f"psfmodels vectorial, sf={oversampling}{words}", seconds, miss))
    return rows


def print_rows(rows: list[Row]) -> None:
    print(f"{'engine':<62}{'us/PSF':>9}{'PSF/s':>9}{'error':>9}")
    for row in rows:
        miss = "" if row.error is None else f"{row.error:9.4f}"
        print(f"{row.name:<62}{row.seconds * 1e6:9.0f}{1 / row.seconds:9.0f}{miss}")


def print_ratio(rows: list[Row]) -> None:
    """How many times the Cartesian propagator of the same accuracy."""
    peers = [row for row in rows if "Cartesian" in row.name and row.error is not None]
    for row in rows:
        if not row.name.startswith("ours") or row.error is None or not peers:
            continue
        good = [p for p in peers if p.error is not None and p.error <= row.error]
        if good:
            best = min(good, key=lambda p: p.seconds)
            print(f"{row.name}: {best.seconds / row.seconds:.1f} times {best.name} at equal accuracy")
        else:
            best = min(peers, key=lambda p: p.error or 0.0)
            print(f"{row.name}: {best.seconds / row.seconds:.1f} times {best.name}, which is less accurate")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emitters", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator, models = peer("psf_generator.propagators"), peer("psfmodels")
    if generator is None:
        reference = ours(512, OPTICS, dtype=torch.float64)
    else:
        reference = generator_at_focus(generator, "Spherical", 257)
    rows = our_rows(given.emitters, given.repeats, reference, "cpu")
    if generator is not None:
        rows += generator_rows(generator, given.repeats, reference)
    if models is not None:
        rows += models_rows(models, given.repeats, reference)
    print_rows(rows)
    print_ratio(rows)
    if torch.cuda.is_available():
        print(f"on {torch.cuda.get_device_name()}, wall time, {given.emitters * 64} emitters at once")
        print_rows(our_rows(given.emitters * 64, given.repeats, None, "cuda"))
    else:
        print("no GPU here: its row is left out")


if __name__ == "__main__":
    main()
