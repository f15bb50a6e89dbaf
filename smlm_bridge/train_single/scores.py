"""Figures of merit of the network of single emitters on boxes that no training has seen."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from smlm_bridge.camera import Camera
from smlm_bridge.crlb import Unknowns, crlb
from smlm_bridge.model import Run
from smlm_bridge.simulate.single import SingleRanges
from smlm_bridge.train_single.targets import bound, together
from smlm_bridge.train_single.trainer import SingleTrainer

Floats = NDArray[np.float64]

_SCORED_NAMES: Final = ("x", "y", "z", "photons", "background")


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Boxes that no training has seen, their truth and its bound.

    Parameters
    ----------
    photons : (B, C, S, S)
        Photo-electrons, channel 2 on the pixels of channel 1.
    truth, bound : (B, K)
        As ``draw_singles`` gives them, and the lowest standard deviations there.
    camera
        That of the first channel, as large as a box.
    """

    photons: NDArray[np.float32]
    truth: Floats
    bound: Floats
    camera: Camera


def held_out(trainer: SingleTrainer, *, boxes: int = 2000) -> HeldOut:
    """Boxes drawn from the training ranges with another seed, always the same ones.

    The bound takes the background for constant within a box.
    """
    side, ranges = trainer.options.box_px, trainer.ranges
    generator = torch.Generator(trainer.device).manual_seed(trainer.options.seed + 1)
    scene, truth = trainer.draw(boxes, generator)
    views = trainer.instrument.views(scene, generator)
    photons = torch.stack([view.on_first(view.recorded(view.expected(), generator)) for view in views], dim=1)
    camera = views[0].camera
    if trainer.channels > 1:
        lowest = bound(together([trainer.expected(view, scene) for view in views]), truth.shape[1])
    else:
        lowest = crlb(
            trainer.psf,
            camera,
            scene.xyz_nm,
            scene.photons,
            truth[:, 4],
            shape=(side, side),
            blur_nm=scene.blur_nm,
            unknowns=Unknowns(zernike=ranges.noll),
        )
    return HeldOut(photons.cpu().numpy(), truth.double().cpu().numpy(), lowest.double().cpu().numpy(), camera)


def single_scores(trainer: SingleTrainer, run: Run | None = None, *, boxes: int = 2000) -> dict[str, Any]:
    """Figures of merit on held-out boxes; positions in nm.

    Parameters
    ----------
    trainer
        Its ranges, PSF and camera make the boxes.
    run
        What is scored, photo-electrons (B, C, S, S) to estimates (B, 2K); None for the network as it is now.
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
    names = scored_names(trainer.ranges)
    tables = {
        figure: {name: float(v) for name, v in zip(names, row, strict=True)}
        for figure, row in figures.items()
    }
    return {**tables, "boxes": boxes, "seed": trainer.options.seed + 1}


def scored_names(ranges: SingleRanges) -> tuple[str, ...]:
    """Names of the parameters of a network in the figures of merit."""
    return (*_SCORED_NAMES, *(f"zernike_{noll}" for noll in ranges.noll))


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
