"""How well the coverage check tells data that a model was not made for from data that it was made for.

    python benchmarks/trust.py [--boxes 1500] [--drawn 4000] [--model M.onnx] [--samples 300000] [--save M.onnx]

Without --model a network of single emitters is trained first (13x13 boxes of 110 nm, scalar, NA 1.4, 670 nm,
matched media, 1 rad of astigmatism, z from -500 to 500 nm about the focus, 1000 to 8000 photons on 5 to 20;
--samples boxes, about 90 CPU-seconds for 300000). The tests are calibrated on --drawn boxes, as the program does
it; then --boxes fresh ones are drawn for every row, with seeds that nothing else uses. AUROC is that of the worst
test's score against the unaltered boxes. Bars: 0.95 (photons 0.80), at most 2.5 % of unaltered boxes flagged.

    python benchmarks/trust.py --frames tetrapod_telomere [--boxes 300]

does the same with a model of whole frames and isolated emitters in frames of 96 x 96 px.
"""

import argparse
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from smlm_bridge.calibration import Calibration
from smlm_bridge.coverage.boxes import Boxes
from smlm_bridge.coverage.drawn import drawn
from smlm_bridge.coverage.limits import Allowed
from smlm_bridge.coverage.reference import Reference
from smlm_bridge.coverage.rendered import Renderer, box_side
from smlm_bridge.coverage.scoring import Scores, learned, scored
from smlm_bridge.coverage.seen import boxes_of_frame, boxes_of_singles
from smlm_bridge.io.model import load_model, save_model
from smlm_bridge.localize import LocalizeOptions, localize_frames
from smlm_bridge.model import Model, ModelInfo
from smlm_bridge.networks.export import single_to_onnx
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.simulate.background import BackgroundRanges
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.scene import Ranges, draw
from smlm_bridge.simulate.single import SingleRanges, draw_singles
from smlm_bridge.train_single import SingleOptions, SingleTrainer, single_scores
from smlm_bridge.training import train

SIDE = 13
FIELD_PX = 96
BARS = 0.95, 0.80, 0.025


@dataclass(frozen=True)
class Altered:
    """One row: what differs from the training. Heights are in units of half the range, from its middle."""

    name: str
    aberration: dict[int, float] | None = None
    astigmatism: float = 1.0
    heights: tuple[tuple[float, float], ...] = ((-1.0, 1.0),)
    photons: float = 1.0
    background: float = 1.0
    second: bool = False
    gradient: float = 0.0
    perlin: float = 0.0
    bar: float = BARS[0]


ROWS = (
    Altered("nothing", bar=0.0),
    Altered("z 1.2 to 1.8 times the range", heights=((1.2, 1.8), (-1.8, -1.2))),
    Altered("astigmatism 0.6 for 1.0 rad", astigmatism=0.6),
    Altered("astigmatism 1.4 for 1.0 rad", astigmatism=1.4),
    Altered("coma 0.5 rad", aberration={8: 0.5}),
    Altered("coma 0.5 rad, along y", aberration={7: 0.5}),
    Altered("spherical 0.5 rad", aberration={11: 0.5}),
    Altered("photons x 4", photons=4.0, bar=BARS[1]),
    Altered("photons / 4", photons=0.25, bar=BARS[1]),
    Altered("background x 4", background=4.0),
    Altered("a second emitter", second=True),
    Altered("background gradient 0 to 2 times", gradient=1.0),
    Altered("Perlin background, amplitude 60", perlin=60.0),
)


def changed(known: Calibration, row: Altered) -> PSF:
    """The PSF of a row."""
    pupil = known.pupil
    assert pupil is not None
    change = dict(row.aberration or {})
    if row.astigmatism != 1.0:
        change[6] = change.get(6, 0.0) + (row.astigmatism - 1.0)
    if not change:
        return known.psf()
    turned = np.einsum("j,jyx->yx", np.array(list(change.values())), pupil.zernike_maps(list(change)))
    return replace(known, pupil=replace(pupil, phase_rad=pupil.phase_rad + turned)).psf()


def altered_ranges(ranges: Ranges, row: Altered, part: int) -> Ranges:
    """The ranges of a row; of its heights one part."""
    low, high = ranges.z_nm
    middle, half = (low + high) / 2, (high - low) / 2
    # Below the coverslip there is no sample.
    above = [ends for ends in row.heights if middle + ends[1] * half > 0]
    first, last = above[part % len(above)]
    light = ranges.background
    light = replace(
        light,
        constant=(light.constant[0] * row.background, light.constant[1] * row.background),
        perlin=(row.perlin, row.perlin) if row.perlin else light.perlin,
    )
    scale = row.photons
    photons = (ranges.photons[0] * scale, ranges.photons[1] * scale)
    if ranges.photons_law == "gamma":
        photons = (ranges.photons[0], ranges.photons[1] * scale)
    heights = (max(middle + first * half, 0.0), middle + last * half)
    return replace(ranges, z_nm=heights, photons=photons, background=light)


def single_boxes(model: Model, row: Altered, count: int, seed: int) -> Boxes:
    """Fresh boxes of a row, with the network's predictions."""
    info, parts = model.info, []
    psf, side, pixel = changed(info.calibration, row), info.box_px, info.calibration.optics.pixel_nm
    for part in range(len(row.heights)):
        generator = torch.Generator().manual_seed(seed + part)
        ranges = altered_ranges(SingleRanges.from_json(info.ranges), row, part)
        number = count // len(row.heights)
        scene, _ = draw_singles(ranges, generator, boxes=number, side=side, pixel_nm=pixel)
        expected = render(scene, psf)
        if row.second:
            angle, away = (
                2 * np.pi * torch.rand(number, generator=generator),
                torch.rand(number, generator=generator),
            )
            order = torch.randperm(number, generator=generator)
            other = scene.xyz_nm.clone()
            other[:, 0] += (250 + 450 * away) * torch.cos(angle)
            other[:, 1] += (250 + 450 * away) * torch.sin(angle)
            other[:, 2] = scene.xyz_nm[order, 2]
            expected = expected + psf.images(other, (side, side)) * scene.photons[order, None, None]
        if row.gradient:
            along, angle = (
                torch.linspace(-1, 1, side),
                2 * np.pi * torch.rand(number, 1, 1, generator=generator),
            )
            slope = along[None, None, :] * torch.cos(angle) + along[None, :, None] * torch.sin(angle)
            level = scene.background.mean((1, 2))[:, None, None]
            expected = (expected + row.gradient * slope * level).clamp_min(0.0)
        camera = info.calibration.camera
        photons = camera.to_photons(record(scene, expected, camera, generator).numpy())
        read = np.zeros_like(photons) + (np.asarray(camera.read_noise_e) / camera.em_gain) ** 2
        parts.append(boxes_of_singles(model, photons, read, excess=camera.excess_noise_factor))
    return Boxes.joined(parts)


def frame_boxes(model: Model, row: Altered, count: int, seed: int, side: int) -> Boxes:
    """Boxes of fresh sparse frames of a row, with the network's predictions."""
    info, parts = model.info, []
    psf, pixel, camera = (
        changed(info.calibration, row),
        info.calibration.optics.pixel_nm,
        info.calibration.camera,
    )
    number = 0
    while sum(map(len, parts)) < count:
        generator = torch.Generator().manual_seed(seed + number)
        ranges = altered_ranges(Ranges.from_json(info.ranges), row, number)
        clear = side / 2 * pixel
        scene = draw(
            ranges,
            generator,
            frames=8,
            shape=(FIELD_PX, FIELD_PX),
            pixel_nm=pixel,
            emitters=1,
            clear_nm=clear,
        )
        expected = render(scene, psf)
        if row.second:
            angle = 2 * np.pi * torch.rand(8, generator=generator)
            other = scene.xyz_nm.clone()
            other[:, 0] += 600 * torch.cos(angle)
            other[:, 1] += 600 * torch.sin(angle)
            other[:, 2] = scene.xyz_nm[torch.arange(7, -1, -1), 2]
            expected = expected + psf.images(other, (FIELD_PX, FIELD_PX)) * scene.photons[:, None, None]
        if row.gradient:
            along = torch.linspace(-1, 1, FIELD_PX)
            expected = expected + row.gradient * (1 + along) * scene.background.mean()
        for image in record(scene, expected, camera, generator).numpy():
            table = localize_frames(image[None, None], model, camera=camera, options=LocalizeOptions())
            found = boxes_of_frame(model, camera.to_photons(image), camera, table, side_px=side)
            parts.append(found)
        number += 1
    return Boxes.joined(parts)


def auroc(usual: np.ndarray, other: np.ndarray) -> float:
    """Chance that a value of ``other`` is larger than one of ``usual``."""
    order = np.argsort(np.concatenate([usual, other]), kind="stable")
    rank = np.empty(len(order))
    rank[order] = np.arange(1, len(order) + 1)
    return float((rank[len(usual) :].sum() - len(other) * (len(other) + 1) / 2) / len(usual) / len(other))


def trained(samples: int, save: Path | None) -> Model:
    optics = Optics(1.4, 1.518, 1.518, 670.0, 110.0, focus_nm=1000.0, model="scalar", supercritical=False)
    known = Calibration(optics, Pupil.flat(48, {6: 1.0}), z_range_nm=(500.0, 1500.0))
    ranges = SingleRanges((500.0, 1500.0), (1000.0, 8000.0), background=BackgroundRanges((5.0, 20.0)))
    trainer = SingleTrainer(known, ranges, SingleOptions(samples=samples, box_px=SIDE))
    began = time.process_time()
    train(trainer)
    scores = single_scores(trainer, boxes=2000)
    ratios = ", ".join(f"{name} {value:.3f}" for name, value in scores["rmse_over_crlb"].items())
    print(f"trained in {time.process_time() - began:.0f} CPU-s; RMSE over the bound: {ratios}", flush=True)
    training = {"options": asdict(trainer.options)}
    info = ModelInfo(
        "trust", "single", "benchmark", known, ranges.to_json(), 1, 1, 0, box_px=SIDE, training=training
    )
    path = save or Path("trust.onnx")
    save_model(
        path, single_to_onnx(trainer.network, info.to_metadata(), channels=1, side=SIDE), overwrite=True
    )
    model = load_model(path, threads=1)
    if save is None:
        path.unlink()
    return model


def table(model: Model, renderer: Renderer, reference: Reference, boxes: int) -> None:
    info = model.info
    allowed = Allowed.of(info.ranges, info.calibration.z_range_nm)

    def scores(row: Altered, seed: int) -> Scores:
        made = (
            single_boxes(model, row, boxes, seed)
            if info.box_px
            else frame_boxes(model, row, boxes, seed, renderer.side_px)
        )
        return scored(made, renderer.measure(made), reference, allowed)

    usual = scores(ROWS[0], 100)
    tests = list(usual.by_test)
    print(f"{boxes} boxes of {renderer.side_px} px a row; flagged in all, then AUROC of each test alone")
    print(f"{'altered':34}{'AUROC':>7}{'bar':>6}{'flagged':>9}" + "".join(f"{name:>12}" for name in tests))
    for number, row in enumerate(ROWS):
        found = scores(row, 1000 + 100 * number)
        flagged = float(np.mean(found.combined > 1))
        alone = "".join(f"{auroc(usual.by_test[name], found.by_test[name]):12.3f}" for name in tests)
        value = auroc(usual.combined, found.combined)
        bar = f"{row.bar:.2f}" if row.bar else "-"
        print(f"{row.name:34}{value:7.3f}{bar:>6}{flagged:9.1%}{alone}", flush=True)
        if number == 0:
            each = ", ".join(f"{name} {np.mean(part > 1):.1%}" for name, part in found.by_test.items())
            print(f"  false alarms: {flagged:.2%} (bar {BARS[2]:.1%}); by test: {each}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, default=1500)
    parser.add_argument("--drawn", type=int, default=4000)
    parser.add_argument("--samples", type=int, default=300_000)
    parser.add_argument("--model", help="a model of single emitters, instead of training one")
    parser.add_argument("--frames", help="a model of frames")
    parser.add_argument("--save", type=Path, help="where the trained model is kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    name = given.frames or given.model
    model = load_model(name, threads=1) if name else trained(given.samples, given.save)
    info = model.info
    began = time.process_time()
    side = info.box_px or box_side(info.calibration, info.ranges)
    renderer = Renderer.of(info.calibration, info.ranges, side_px=side)
    if info.coverage:
        reference = Reference.from_json(info.coverage)
    else:
        found = drawn(model, renderer.psf, side_px=side, boxes=given.drawn, seed=7)
        allowed = Allowed.of(info.ranges, info.calibration.z_range_nm)
        reference = learned(found, renderer.measure(found), allowed, side_px=side)
    print(f"calibrated on {reference.boxes} boxes in {time.process_time() - began:.0f} CPU-s", flush=True)
    table(model, renderer, reference, given.boxes)


if __name__ == "__main__":
    main()
