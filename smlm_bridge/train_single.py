"""Train the network of single emitters by online simulation, and score it against the Cramér-Rao bound."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smlm_bridge.crlb import Unknowns, crlb
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit.aberrations import AberratedPSF
from smlm_bridge.model import Run
from smlm_bridge.networks.dense import stabilise
from smlm_bridge.networks.single import LARGEST_BOX_PX, SMALLEST_BOX_PX, SingleLocalizer, SingleScaling
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.simulate.render import record, render
from smlm_bridge.simulate.single import SingleRanges, draw_singles
from smlm_bridge.train import LEAST_Z_RANGE_NM, training_psf
from smlm_bridge.training import LoopOptions, Training, part_of_camera

Floats = NDArray[np.float64]

_SCALING_BOXES = 1024
_SCORED_NAMES = ("x", "y", "z", "photons", "background")


@dataclass(frozen=True, kw_only=True)
class SingleOptions(LoopOptions):
    """How to train the network of single emitters; beyond ``LoopOptions``:

    Parameters
    ----------
    box_px
        Side of the boxes, odd, 13 to 41.
    widths
        Channels of the first scales; the last is repeated.
    hidden
        Neurons of the layer between the backbone and the estimates.
    """

    samples: int = 500_000
    batch: int = 256
    learning_rate: float = 4e-3
    box_px: int = 13
    widths: tuple[int, ...] = (16, 32, 64)
    hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_box(self.box_px)


def check_box(side: int) -> None:
    """Refuse a box that is even or outside 13 to 41 pixels."""
    if side % 2 == 0 or not SMALLEST_BOX_PX <= side <= LARGEST_BOX_PX:
        raise InputRejected(
            f"a box of {side} px: give an odd side of {SMALLEST_BOX_PX} to {LARGEST_BOX_PX} px, which holds the "
            "PSF at every height."
        )


class SingleTrainer(Training[SingleLocalizer, SingleOptions, SingleRanges]):
    """A training of the network of single emitters; see ``Training``.

    Raises
    ------
    InputRejected
        If a map of the calibration's camera is smaller than a box, or aberrations are asked of a calibration that
        has no pupil.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"likelihood": 1.0}
    shape_options: ClassVar[tuple[str, ...]] = ("box_px", "widths", "hidden")

    def draw_batch(self) -> tuple[Tensor, Tensor]:
        """Simulated boxes in photo-electrons (B, 1, S, S), and the truth (B, K) as ``draw_singles`` gives it."""
        return self._draw(self.options.batch)

    def _draw(self, boxes: int) -> tuple[Tensor, Tensor]:
        scene, truth = draw_singles(
            self.ranges,
            self.generator,
            boxes=boxes,
            side=self.options.box_px,
            pixel_nm=self.calibration.optics.pixel_nm,
        )
        return self._photons(scene), truth

    def _psf(self) -> PSF:
        if self.ranges.noll:
            return AberratedPSF.over(self.calibration.psf(device=self.device), self.ranges.noll)
        return training_psf(self.calibration, self.ranges, reach_px=self.options.box_px, device=self.device)

    def _network(self, scaling: SingleScaling) -> SingleLocalizer:
        return SingleLocalizer(1, self.options.box_px, self.options.widths, self.options.hidden, scaling)

    def _scaling(self) -> SingleScaling:
        """Input statistics from simulated boxes; output units from the ranges."""
        ranges = self.ranges
        generator_state = self.generator.get_state()
        photons, truth = self._draw(_SCALING_BOXES)
        boxes = stabilise(photons, self._read_variance())
        self.generator.set_state(generator_state)
        return SingleScaling(
            read_variance=self._read_variance(),
            input_shift=float(boxes.mean()),
            input_scale=float(boxes.std().clamp_min(1.0)),
            pixel_nm=self.calibration.optics.pixel_nm,
            z_mid_nm=sum(ranges.z_nm) / 2,
            z_half_nm=max(ranges.z_nm[1] - ranges.z_nm[0], LEAST_Z_RANGE_NM) / 2,
            photons=float(truth[:, 3].log().mean().exp()),
            background=float(truth[:, 4].mean().clamp_min(0.1)),
            zernike_rad=tuple((high - low) / 2 for _, low, high in ranges.zernike_rad),
        )


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Boxes that no training has seen, their truth and its bound.

    Parameters
    ----------
    photons : (B, 1, S, S)
        Photo-electrons.
    truth, bound : (B, K)
        As ``draw_singles`` gives them, and the lowest standard deviations there.
    """

    photons: NDArray[np.float32]
    truth: Floats
    bound: Floats


def held_out(trainer: SingleTrainer, *, boxes: int = 2000) -> HeldOut:
    """Boxes drawn from the training ranges with another seed, always the same ones.

    The bound takes the background for constant within a box.
    """
    known, ranges, side = trainer.calibration, trainer.ranges, trainer.options.box_px
    generator = torch.Generator(trainer.device).manual_seed(trainer.options.seed + 1)
    scene, truth = draw_singles(ranges, generator, boxes=boxes, side=side, pixel_nm=known.optics.pixel_nm)
    camera = part_of_camera(known.camera, (side, side), generator)
    counts = record(scene, render(scene, trainer.psf), camera, generator).cpu().numpy()
    bound = crlb(
        trainer.psf,
        camera,
        scene.xyz_nm,
        scene.photons,
        truth[:, 4],
        shape=(side, side),
        blur_nm=scene.blur_nm,
        unknowns=Unknowns(zernike=ranges.noll),
    )
    photons = camera.to_photons(counts)[:, None]
    return HeldOut(photons, truth.double().cpu().numpy(), bound.double().cpu().numpy())


def single_scores(trainer: SingleTrainer, run: Run | None = None, *, boxes: int = 2000) -> dict[str, Any]:
    """Figures of merit on held-out boxes; positions in nm.

    Parameters
    ----------
    trainer
        Its ranges, PSF and camera make the boxes.
    run
        What is scored, photo-electrons (B, 1, S, S) to estimates (B, 2K); None for the network as it is now.
    boxes
        How many.

    Returns
    -------
    For ``x``, ``y``, ``z``, ``photons``, ``background`` and ``zernike_J``: ``rmse``, ``bias``, ``rmse_over_crlb``
    (over the root of the mean of the bound's squares) and ``z_score_sd``; ``boxes`` and ``seed``.
    """
    known = held_out(trainer, boxes=boxes)
    values, sigma = np.split((run or run_now(trainer))(known.photons).astype(np.float64), 2, axis=1)
    error, seen = values - known.truth, np.isfinite(known.bound)
    figures = {
        "rmse": _rms(error),
        "bias": error.mean(0),
        "rmse_over_crlb": _rms(error, seen) / _rms(known.bound, seen),
        "z_score_sd": (error / sigma).std(0),
    }
    names = (*_SCORED_NAMES, *(f"zernike_{noll}" for noll in trainer.ranges.noll))
    tables = {
        figure: {name: float(v) for name, v in zip(names, row, strict=True)}
        for figure, row in figures.items()
    }
    return {**tables, "boxes": boxes, "seed": trainer.options.seed + 1}


def _rms(values: Floats, rows: NDArray[np.bool_] | None = None) -> Floats:
    """(K,) root mean squares of (B, K), of the marked values only."""
    rms: Floats = np.sqrt(np.mean(values**2, axis=0, where=True if rows is None else rows))
    return rms


def run_now(trainer: SingleTrainer) -> Run:
    """The network in its present state."""

    def run(photons: NDArray[np.float32]) -> NDArray[np.float32]:
        trainer.network.eval()
        with torch.no_grad():
            estimates = trainer.network(torch.from_numpy(photons).to(trainer.device))
        found: NDArray[np.float32] = estimates.cpu().numpy()
        return found

    return run
